"""eagle3 cache: token rows and the draft's vocabulary, built once for the same content.

    CACHE_DIR/processed_dataset/KEY/{train,eval}/   Arrow rows, as `datasets.load_from_disk` reads them
    CACHE_DIR/processed_dataset/KEY/summary.json    counts; errors.jsonl beside it has every row that needs a look
    CACHE_DIR/vocab_mapping/KEY-SIZE-WEIGHTS.safetensors

KEY is a hash of the inputs' content, the tokenizer, the template and the options: changed data never meet an old cache.
Finding a finished cache imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file

from eagle3cli.data.chat.named import NAMED, named_template, template_text
from eagle3cli.data.chat.preformatted import ReplyDelimiters
from eagle3cli.data.chat.template import template_options
from eagle3cli.data.chat.tokenizer import eos_ids, load_tokenizer
from eagle3cli.data.conversations.system_prompt import system_prompt_text
from eagle3cli.data.ledger import ERRORS
from eagle3cli.data.tokens.blocks import EncoderConfig
from eagle3cli.data.tokens.build import COUNTS, JUDGED, SUMMARY, build, damage
from eagle3cli.data.tokens.counts import Counts, Ranking, fit_to_vocab, rank_tokens
from eagle3cli.data.tokens.on_policy import describe
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.data.tokens.vocab_file import holds, write_vocab
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.runtime.files import read_json, write_folder, write_json
from eagle3cli.runtime.manifest import remove_leftovers
from eagle3cli.runtime.provenance import FileStat, describe_files, digest_json
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from eagle3cli.data.tokens.vocab import VocabMapping

FORMAT = 8
"""Raised when the same inputs would give other rows."""
DIGESTS = "inputs.json"
TOKENIZER_PARTS = (
    *("*token*.json", "*.model", "chat_template*", "vocab.*", "merges.txt", "*config.json", "*.tiktoken"),
    *("additional_chat_templates/*", "*.py"),
)
ELSEWHERE = ("model_path", "revision", "trust_remote_code", "chat_template")
"""Fields of a config whose content is in the key by another way."""
COVERAGE_SIZES = (4096, 8192, 16384, 32000, 65536, 131072)


@dataclass(frozen=True)
class TokenCache:
    """Token rows and vocabulary, ready to train on."""

    train: TokenRows
    eval: TokenRows | None
    vocab_file: Path
    folder: Path
    """``processed_dataset/KEY``."""
    summary: dict[str, Any]
    """Counts of each split, coverage of the vocabulary, whether this call built the rows, and how far they hold the
    target's own replies where a pass has seen that."""

    @cached_property
    def vocab(self) -> VocabMapping:
        """The draft's vocabulary."""
        from eagle3cli.data.tokens.vocab import load_vocab

        return load_vocab(self.vocab_file)


def open_or_build(
    settings: Settings, draft_vocab_size: int, vocab_size: int, report: Reporter, ranks: Ranks = SINGLE_PROCESS
) -> TokenCache:
    """The cache for these settings, built if there is none yet, or if the one there is has been damaged.

    Of several ranks the first one builds, and the others find what it has made. Raises UsageError without training
    data, DataError for unusable data, ModelError for the tokenizer.
    """
    with ranks.main_process_first():
        if not ranks.is_main:  # what the first one has just built is not built again
            settings = settings.updated("cache", overwrite=False)
        return _open_or_build(settings, draft_vocab_size, vocab_size, report)


def _open_or_build(settings: Settings, draft_vocab_size: int, vocab_size: int, report: Reporter) -> TokenCache:
    paths = data_paths(settings)
    config = encoder_config(settings)
    settings.data.cache_dir.mkdir(parents=True, exist_ok=True)
    key = cache_key(settings, config, paths)
    folder = settings.data.cache_dir / "processed_dataset" / key
    built = settings.cache.overwrite or not (folder / SUMMARY).is_file()
    if not built and (wrong := damage(folder, read_json(folder / SUMMARY))):
        report.warn(f"the cache is damaged ({wrong}) and is built anew: {folder}")
        built = True
    remove_leftovers(folder.parent)
    if built:
        judge = settings.data.check_masks and not config.is_preformatted
        write_folder(
            folder, lambda temporary: build(temporary, key, paths, config, settings.data.num_proc, report, judge=judge)
        )
    judged = judge_masks(settings, folder)
    summary: dict[str, Any] = read_json(folder / SUMMARY)
    if judged is not None:
        summary[JUDGED] = judged
        write_json(folder / SUMMARY, summary)
    for split in paths if built else ():
        if summary[split]["rejected"]:
            counted = f"{summary[split]['rejected']} of {summary[split]['read']} rows of {split}"
            report.warn(f"{counted} were rejected; each with its place and reason: {folder / ERRORS}")
    vocab_file, vocab_summary = _vocabulary(settings, folder, summary["always_ids"], draft_vocab_size, vocab_size)
    rows = {split: TokenRows.open(folder / split) for split in paths}
    known = {split: describe(folder / split, rows[split].sources) for split in paths}
    on_policy = {split: measured for split, measured in known.items() if measured is not None}
    summary |= {"on_policy": on_policy} if on_policy else {}
    return TokenCache(
        train=rows["train"],
        eval=rows.get("eval"),
        vocab_file=vocab_file,
        folder=folder,
        summary={**summary, "key": key, "built": built, "vocab": vocab_summary},
    )


def judge_masks(settings: Settings, folder: Path | None) -> dict[str, int] | None:
    """What the judge says of a sample of the rows, counts by verdict; None where it was not asked, or said so of the
    finished cache in ``folder`` before.

    Raises DataError with the row, mask visible, where one is not what the target would have written.
    """
    asked = settings.data.check_masks and not settings.data.is_preformatted
    if not asked or (folder is not None and JUDGED in read_json(folder / SUMMARY)):
        return None
    from eagle3cli.data.tokens.mask_check import check_masks

    return check_masks(encoder_config(settings), data_paths(settings))


def data_paths(settings: Settings) -> dict[str, Path]:
    """The input file of each split; raises where there is no training file."""
    data = settings.data
    if data.train_path is None:
        fix = "run eagle3 merge first; or give replies that the target wrote: --train-data-path FILE.jsonl"
        raise UsageError("missing-data", "no training data given", where="data.train_path", fix=fix)
    paths = {"train": data.train_path} | ({"eval": data.eval_path} if data.eval_path is not None else {})
    for split, path in paths.items():
        if not path.is_file():
            what = "is a folder, not a file" if path.is_dir() else "no such file"
            raise DataError("no-such-path", what, where=str(path), fix=f"check data.{split}_path (--{split}-data-path)")
    return paths


def encoder_config(settings: Settings) -> EncoderConfig:
    """What decides the rows' tokens and masks."""
    target = settings.target
    data = settings.data
    header = data.assistant_header
    marks = ReplyDelimiters(header, data.end_of_turn_token, data.user_header) if header is not None else None
    return EncoderConfig(
        model_path=target.model_path,
        revision=target.revision,
        trust_remote_code=target.trust_remote_code,
        chat_template=data.chat_template,
        max_length=data.row_limit,
        last_turn_only=data.last_turn_only,
        is_preformatted=data.is_preformatted,
        system_prompt=system_prompt_text(data.system_prompt),
        text_marks=marks,
        chat_options=tuple(sorted(template_options(data.chat_template_kwargs).items())),
    )


def find_cache(settings: Settings) -> Path | None:
    """The folder of a finished cache for these settings, None where there is none; changes nothing.

    Raises as :func:`open_or_build` where there is no such data.
    """
    key = cache_key(settings, encoder_config(settings), data_paths(settings), remember=False)
    folder = settings.data.cache_dir / "processed_dataset" / key
    return folder if (folder / SUMMARY).is_file() and not settings.cache.overwrite else None


def cache_key(settings: Settings, config: EncoderConfig, paths: dict[str, Path], *, remember: bool = True) -> str:
    """16 hex digits that change with the content of any input and with every option that matters.

    ``remember`` keeps the files' hashes in the cache's folder, where there is one.
    """
    stats_file = settings.data.cache_dir / DIGESTS
    earlier_stats: dict[str, FileStat] = read_json(stats_file) if stats_file.is_file() else {}
    folder = Path(config.model_path).expanduser()
    files = {file for pattern in TOKENIZER_PARTS for file in folder.glob(pattern)} if folder.is_dir() else set()
    parts = sorted(file for file in files if file.is_file())
    described = describe_files([*paths.values(), *parts], earlier_stats)
    new = any(earlier_stats.get(name) != stat for name, stat in described.items())
    if remember and new and settings.data.cache_dir.is_dir():
        write_json(stats_file, {**earlier_stats, **described})
    content = {
        "format": FORMAT,
        "inputs": {split: described[str(path.resolve())]["sha256"] for split, path in paths.items()},
        "tokenizer": _tokenizer_content(config, {p.name: described[str(p.resolve())]["sha256"] for p in parts}),
        "options": {name: value for name, value in asdict(config).items() if name not in ELSEWHERE},
    }
    return digest_json(content)


def _tokenizer_content(config: EncoderConfig, files: dict[str, str]) -> dict[str, Any]:
    """Files of a local tokenizer, or for one of the hub what it holds in memory; and the template's text."""
    name = config.chat_template
    if files:  # whether a named template fits the tokenizer is seen when rows are encoded, without which is no cache
        named = named_template(name) if name in NAMED else None
        return {"files": files, "template": named if named or name == "auto" else template_text(name, None)}
    tokenizer = load_tokenizer(config.model_path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    content = [tokenizer.backend_tokenizer.to_str(), json.dumps(tokenizer.chat_template, sort_keys=True)]
    content.append(str(sorted(eos_ids(tokenizer, config.model_path))))
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in content]
    return {"tokenizer": digests, "template": template_text(name, tokenizer)}


def _vocabulary(
    settings: Settings, folder: Path, always: list[int], draft_vocab_size: int, vocab_size: int
) -> tuple[Path, dict[str, Any]]:
    """The file of the draft's vocabulary for these rows, written unless it is there, and what it covers."""
    weights = {"reply_weight": settings.cache.reply_weight, "prompt_weight": settings.cache.prompt_weight}
    if not any(weights.values()):
        raise UsageError(
            "conflicting-options", "both weights are 0", where="cache.reply_weight", fix="leave one of them above 0"
        )
    counts = {name: fit_to_vocab(array, vocab_size) for name, array in load_file(folder / COUNTS).items()}
    ranking = rank_tokens(counts["train_reply"], counts["train_prompt"], always=always, **weights)
    size = min(draft_vocab_size, vocab_size)
    ids = ranking.first(size)
    name = f"{folder.name}-{size}-{weights['reply_weight']}x{weights['prompt_weight']}.safetensors"
    path = settings.data.cache_dir / "vocab_mapping" / name
    if settings.cache.overwrite or not holds(path, ids, vocab_size):
        remove_leftovers(path.parent)
        write_vocab(path, ids, vocab_size)
    measured_on = "eval" if "eval_reply" in counts else "train_aside"
    measured_ranking = ranking
    if measured_on == "train_aside":
        reply, prompt = (counts[f"train_{kind}"] - counts[f"train_{kind}_aside"] for kind in ("reply", "prompt"))
        measured_ranking = rank_tokens(reply, prompt, always=always, **weights)
    held_out = counts["eval_reply" if measured_on == "eval" else "train_reply_aside"]
    return path, {
        "size": size,
        "target_size": vocab_size,
        "file": str(path),
        "always_in": ranking.fixed,
        "coverage_of_train": float(ranking.coverage(counts["train_reply"])[size]),
        "coverage_of": measured_on,
        **_coverage(measured_ranking, held_out, size),
    }


def _coverage(ranking: Ranking, reply: Counts, size: int) -> dict[str, Any]:
    """What draft vocabularies of several sizes cover of these tokens, and which size suits them."""
    covered = ranking.coverage(reply)
    suggested = ranking.suggested(reply)
    sizes = sorted({size, suggested, *(s for s in COVERAGE_SIZES if ranking.fixed <= s < len(ranking.ids))})
    by_size = {s: float(covered[s]) for s in sizes}
    return {"coverage": by_size[size], "coverage_by_size": by_size, "suggested_size": suggested}
