"""Tokenizing in this process or over several, with the results in the order of the input."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path

from eagle3cli.data.images.processor import has_processor
from eagle3cli.data.tokens.blocks import EncoderConfig, Item, PackedBlock, blocks_of, encode_items, pack
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.data.tokens.mask_check import check_masks
from eagle3cli.errors import Eagle3Error

BYTES_PER_PROCESS = 8 << 20
"""Starting a process costs a second, so a small input gets one."""
PRELOADED = "eagle3cli.data.tokens.preload"
M_MXFAST = 1
"""Of glibc's mallopt: the largest block whose freeing is put off."""


@dataclass(frozen=True)
class BlockTokenizer:
    """Turns files into blocks of token rows."""

    always_ids: list[int]
    """Special tokens and those that end a turn: no draft vocabulary is without them."""
    blocks: Callable[[Path], Iterator[PackedBlock]]
    """Blocks of a file, in order."""
    judged: Callable[[Mapping[str, Path]], dict[str, int]]
    """:func:`check_masks` of the files, by a tokenizer that is loaded anyway."""


def processes_for(size: int, most: int) -> int:
    """How many processes are worth starting for ``size`` bytes of text, at most ``most``."""
    return max(1, min(most, size // BYTES_PER_PROCESS))


@contextmanager
def block_tokenizer(config: EncoderConfig, processes: int) -> Iterator[BlockTokenizer]:
    """What tokenizes by a config; raises ModelError where its tokenizer or template cannot be used."""
    if processes == 1:
        encoder = config.encoder()
        yield BlockTokenizer(
            always_ids(encoder),
            lambda path: (_packed(config, encoder, b, path) for b in blocks_of(path)),
            lambda paths: check_masks(config, paths, encoder),
        )
        return
    initial = (config, os.getcwd())
    pool = ProcessPoolExecutor(processes, mp_context=_context(config), initializer=_start, initargs=initial)
    try:
        ready = [pool.submit(_always_ids) for _ in range(processes)]  # a worker starts when there is a task for it
        yield BlockTokenizer(
            ready[0].result(),
            lambda path: _in_order(pool, 3 * processes, path),
            lambda paths: pool.submit(_judged, paths).result(),
        )
    except BrokenProcessPool as error:
        fix = "look for a memory limit, or use fewer processes: --build-dataset-num-proc 1"
        raise Eagle3Error("process-died", "a tokenising process died", fix=fix) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def always_ids(encoder: Encoder) -> list[int]:
    """Special tokens of the tokenizer and the tokens at which the target stops, ascending."""
    tokenizer = encoder.tokenizer
    special = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return sorted(encoder.end_ids.union(special, tokenizer.all_special_ids))


def _context(config: EncoderConfig) -> BaseContext:
    """How workers start: forked from a process that did nothing but import, so that they start at once and share its
    memory. (A fork of this process would copy the locks of its threads.) A model's own code, and a processor of images,
    which needs torch, get a plain process."""
    if (
        config.trust_remote_code
        or has_processor(config.model_path, config.revision)
        or "forkserver" not in multiprocessing.get_all_start_methods()
    ):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


def _in_order(pool: ProcessPoolExecutor, ahead: int, path: Path) -> Iterator[PackedBlock]:
    waiting: deque[Future[PackedBlock]] = deque()
    for items in blocks_of(path):
        waiting.append(pool.submit(_work, items, path))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _packed(config: EncoderConfig, encoder: Encoder, items: list[Item], path: Path) -> PackedBlock:
    return pack(encode_items(encoder, items, str(path), preformatted=config.is_preformatted))


_config: EncoderConfig | None = None
_encoder: Encoder | None = None


def _start(config: EncoderConfig, folder: str) -> None:
    """Begin a worker: one thread, deaf to Ctrl-C (the parent decides), gone when the parent is."""
    global _config
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    _free_at_once()
    _config = config


def _free_at_once() -> None:
    """Have glibc put small freed blocks where they belong at once: tokenizing frees so many together that sorting them
    later costs a twentieth of its time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MXFAST, 0)


def _end_with_parent() -> None:
    """End this process when its parent does, whose end closes a pipe.

    Linux can be asked for a signal then (SIGIO, which ends a process). A thread that waits, as elsewhere, makes every
    allocation dearer: a seventh of the time that tokenizing takes.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel
    if sys.platform == "linux":
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
        if not parent.is_alive():
            os._exit(1)
    else:
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()


def _ready() -> tuple[EncoderConfig, Encoder]:
    """The worker's encoder, made at its first task: there an error reaches the parent as it is."""
    global _encoder
    assert _config is not None
    if _encoder is None:
        _encoder = _config.encoder()
        gc.freeze()  # what is here stays: the garbage collector need not look at it again and again
    return _config, _encoder


def _always_ids() -> list[int]:
    return always_ids(_ready()[1])


def _judged(paths: Mapping[str, Path]) -> dict[str, int]:
    config, encoder = _ready()
    return check_masks(config, paths, encoder)


def _work(items: list[Item], path: Path) -> PackedBlock:
    return _packed(*_ready(), items, path)
