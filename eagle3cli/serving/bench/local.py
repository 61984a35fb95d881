"""The local engine of the benchmark: our own lossless chain decoder, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eagle3cli import __version__
from eagle3cli.backends.target.hf import HfTarget, load_target, read_target_config
from eagle3cli.models.draft import Draft
from eagle3cli.models.inference import load_for_inference
from eagle3cli.runtime.devices import set_threads
from eagle3cli.runtime.report import Reporter
from eagle3cli.serving.bench.rounds import parts
from eagle3cli.serving.bench.session import Advance, Hook, Measurement, MeasureOptions
from eagle3cli.serving.chat_tokenizer import ChatTokenizer, load_chat_tokenizer
from eagle3cli.serving.client.protocol import Acceptance, Answer
from eagle3cli.serving.conversation import OpenConversation, Response
from eagle3cli.serving.decode.decode import Decoded, decode
from eagle3cli.serving.decode.passes import Passes
from eagle3cli.serving.engine import context_length
from eagle3cli.settings.tables import Settings


@dataclass
class LocalEngine:
    """The target, and the draft where there is one, in this process; they serve every chain."""

    target: HfTarget
    draft: Draft | None
    tokenizer: ChatTokenizer
    context: int
    notes: tuple[str, ...] = ()
    drafting: str = "probabilistic"

    def __post_init__(self) -> None:
        self.passes = Passes(self.target, self.draft)

    @property
    def tie_limit(self) -> float:
        """A half-precision type has eight bits of a number's twenty-four: logits of 16 to 32 stand .125 apart in
        bfloat16, and passes of other sizes round a few of those steps otherwise (.375 was seen)."""
        return 1e-3 if self.target.dtype == torch.float32 else 0.5

    @property
    def facts(self) -> dict[str, Any]:
        """This program's own decoder."""
        dtype = str(self.target.dtype).removeprefix("torch.")
        threads = {"threads": torch.get_num_threads()} if self.target.device.type == "cpu" else {}
        return {
            **{"engine": "local", "engine_version": __version__, "dtype": dtype, "device": self.target.device.type},
            **threads,
        }

    def warm_up(self, prompt: Sequence[int], options: MeasureOptions, times: int, check: Hook) -> None:
        """First calls allocate and choose kernels."""
        batch = options.config.batch
        for _ in range(times):
            self._decode([prompt] * batch, options, [0] * batch, lambda _: check())

    def rounds(self, conversations: Sequence[OpenConversation], batch: int) -> list[list[int]]:
        """A batch each, prompts of similar length together."""
        lengths = [len(self.tokenizer.encode(conversation)) for conversation in conversations]
        return parts(sorted(range(len(lengths)), key=lambda index: lengths[index]), batch)

    def measure(
        self, conversations: Sequence[OpenConversation], options: MeasureOptions, advance: Advance, check: Hook
    ) -> Measurement:
        """Turn by turn, prompts of similar length together."""
        measurement = Measurement(cpu_seconds=0.0)
        while running := [conversation for conversation in conversations if not conversation.is_complete]:
            prompts = {conversation.index: self.tokenizer.encode(conversation) for conversation in running}
            running.sort(key=lambda conversation: len(prompts[conversation.index]))
            for start in range(0, len(running), options.config.batch):
                batch = running[start : start + options.config.batch]
                seeds = [options.sampling(conversation).seed for conversation in batch]

                def check_step(share: float, rows: int = len(batch)) -> None:
                    check()
                    advance(0, under_way=rows * share)

                began = time.perf_counter()
                cpu_began = time.process_time()
                texts = [prompts[conversation.index] for conversation in batch]
                replies = self._decode(texts, options, seeds, check_step)
                measurement.seconds += time.perf_counter() - began
                measurement.cpu_seconds = (measurement.cpu_seconds or 0.0) + time.process_time() - cpu_began
                for conversation, decoded in zip(batch, replies, strict=True):
                    prompt = tuple(prompts[conversation.index])
                    answer = self._answer(prompt, decoded)
                    measurement.responses.append(Response(conversation.index, conversation.replies, prompt, answer))
                    content = self.tokenizer.parse_reply(decoded.token_ids).content
                    conversation.append_reply(content, decoded.finish)
                advance(len(batch), under_way=0.0)
        return measurement

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        options: MeasureOptions,
        seeds: list[int],
        check: Callable[[float], None],
    ) -> list[Decoded]:
        room = self.context - max(map(len, prompts))
        return decode(
            self.target,
            self.draft if options.config.steps else None,
            prompts,
            k=options.config.steps,
            max_new_tokens=max(1, min(options.max_tokens, room)),
            eos_ids=self.tokenizer.eos_ids,
            batch_size=options.config.batch,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            seeds=seeds,
            check=check,
            passes=self.passes,
        )

    def _answer(self, prompt: Sequence[int], decoded: Decoded) -> Answer:
        positions = tuple(decoded.counted_at)
        acceptance = Acceptance(decoded.steps, sum(positions), decoded.steps * len(positions), positions)
        return Answer(
            self.tokenizer.decode(decoded.token_ids),
            decoded.finish,
            len(decoded.token_ids),
            len(prompt),
            token_ids=tuple(decoded.token_ids),
            acceptance=acceptance if positions else None,
            frames=tuple(decoded.frames),
            seconds=decoded.frames[-1][0],
        )

    @torch.inference_mode()
    def logit_margin(self, prompt: Sequence[int], one: int, other: int) -> float | None:
        """One more pass of the target over the common beginning."""
        _, last_SH = self.target.capture([prompt])[0]
        logprobs_V = self.target.head(last_SH[-1:]).float().log_softmax(-1)[0]
        return float((logprobs_V[one] - logprobs_V[other]).abs())


def load_local_engine(settings: Settings, draft_folder: Path | None, report: Reporter) -> LocalEngine:
    """Load the target and, where a folder is given, the draft, in the target's type and on its device."""
    tokenizer = load_chat_tokenizer(settings, images=True)
    set_threads(settings.target.threads)
    draft = None
    if draft_folder is not None:
        draft = load_for_inference(draft_folder, read_target_config(settings.target), settings.draft.aux_layers)
    target = load_target(settings.target, report, draft.config.aux_layers if draft else None)
    if draft is not None:
        draft = draft.to(target.device).cast(target.dtype)
    return LocalEngine(target, draft, tokenizer, context_length(target.model))
