"""The local engine of the benchmark: our own lossless chain decoder, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eagle3cli.backends.target.hf import HfTarget, load_target, read_target_config
from eagle3cli.models.draft import Draft
from eagle3cli.models.opened import open_draft
from eagle3cli.runtime.devices import set_threads
from eagle3cli.runtime.report import Reporter
from eagle3cli.serving.bench.session import Heard, Measured, Talk, Voice, Wanted
from eagle3cli.serving.client.protocol import Acceptance, Answer
from eagle3cli.serving.decode.decode import Decoded, decode
from eagle3cli.settings.tables import Settings


@dataclass
class LocalSpeaker:
    """The target, and the draft where there is one, in this process; they serve every chain."""

    target: HfTarget
    draft: Draft | None
    voice: Voice
    context: int
    notes: tuple[str, ...] = ()

    @property
    def tie(self) -> float:
        """A half-precision type has eight bits of a number's twenty-four."""
        return 1e-3 if self.target.dtype == torch.float32 else 0.25

    def warm_up(self, prompt: Sequence[int], wanted: Wanted, times: int) -> None:
        """First calls allocate and choose kernels."""
        for _ in range(times):
            self._decode([list(prompt)] * wanted.config.batch, wanted, [0] * wanted.config.batch)

    def measure(
        self, talks: Sequence[Talk], wanted: Wanted, advance: Callable[[], None], check: Callable[[], None]
    ) -> Measured:
        """Turn by turn, prompts of similar length together."""
        found = Measured()
        while asked := [talk for talk in talks if not talk.is_over]:
            prompts = {talk.number: talk.ask(self.voice) for talk in asked}
            asked.sort(key=lambda talk: len(prompts[talk.number]))
            for start in range(0, len(asked), wanted.config.batch):
                check()
                part = asked[start : start + wanted.config.batch]
                begun = time.perf_counter()
                seeds = [wanted.sampling(talk).seed for talk in part]
                answers = self._decode([prompts[talk.number] for talk in part], wanted, seeds)
                found.seconds += time.perf_counter() - begun
                for talk, answer in zip(part, answers, strict=True):
                    found.heard.append(self._heard(talk, prompts[talk.number], answer))
                    talk.hear(self.voice.spoken(answer.token_ids))
                    advance()
        return found

    def _decode(self, prompts: list[list[int]], wanted: Wanted, seeds: list[int]) -> list[Decoded]:
        room = self.context - max(map(len, prompts))
        answers = decode(
            self.target,
            self.draft if wanted.config.steps else None,
            prompts,
            k=wanted.config.steps,
            max_new_tokens=max(1, min(wanted.max_tokens, room)),
            eos_ids=self.voice.ends,
            batch_size=wanted.config.batch,
            temperature=wanted.temperature,
            seeds=seeds,
        )
        return answers

    def _heard(self, talk: Talk, prompt: list[int], found: Decoded) -> Heard:
        counted = tuple(found.counted_at)
        answer = Answer(
            self.voice.text(found.token_ids),
            found.finish,
            len(found.token_ids),
            len(prompt),
            token_ids=tuple(found.token_ids),
            acceptance=Acceptance(found.steps, sum(counted), found.steps * len(counted), counted) if counted else None,
            frames=tuple(found.frames),
            seconds=found.frames[-1][0],
        )
        return Heard(talk.number, talk.turn, tuple(prompt), answer)

    @torch.inference_mode()
    def margin(self, prompt: Sequence[int], one: int, other: int) -> float | None:
        """One more pass of the target over the common beginning."""
        _, last_SH = self.target.capture([list(prompt)])[0]
        chances_V = self.target.head(last_SH[-1:]).float().log_softmax(-1)[0]
        return float((chances_V[one] - chances_V[other]).abs())


def load_speaker(settings: Settings, draft_folder: Path | None, voice: Voice, report: Reporter) -> LocalSpeaker:
    """Load the target and, where a folder is given, the draft, in the target's type and on its device."""
    set_threads(settings.target.threads)
    draft = None
    if draft_folder is not None:
        draft = open_draft(draft_folder, read_target_config(settings.target), settings.draft.aux_layers)
    target = load_target(settings.target, report, draft.config.aux_layers if draft else None)
    if draft is not None:
        draft = draft.to(target.device).cast(target.dtype)
    context = int(getattr(target.model.config, "max_position_embeddings", 0) or 1 << 30)
    return LocalSpeaker(target, draft, voice, context)
