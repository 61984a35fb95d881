"""Targets with windows, sinks and other caches get the same replies as from transformers, whatever their neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AttentionMaskInterface, AutoConfig, AutoModelForCausalLM

from eagle3cli.backends.target import positions
from eagle3cli.backends.target.positions import GROUPED_ATTENTION, PositionCache
from eagle3cli.models.sampling import Sampling
from eagle3cli.serving.decode.batches import PROBE_TOKENS, BatchDecoder, decoding, serves_positions
from eagle3cli.serving.decode.generate import Decoder, Sequence
from tests.failing import fails
from tests.families import COMMON, FAMILIES
from tests.tiny import tiny_config

NEEDS_5 = pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="transformers 4 wants more with its cache"
)

LENGTHS = (3, 40, 1, 17, 9, 25)
NO_END = frozenset[int]()


def config_of(kind: str) -> Any:
    from transformers import Gemma2Config, GptOssConfig, Llama4TextConfig, MiniMaxConfig, MistralConfig, Qwen3NextConfig

    same: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        "pad_token_id": 0,
    }
    if kind == "mistral":
        return MistralConfig(**same, sliding_window=8)
    if kind == "gemma2":
        return Gemma2Config(**same, sliding_window=8)
    if kind == "gpt_oss":
        return GptOssConfig(**same, sliding_window=8, num_local_experts=4, num_experts_per_tok=2)
    if kind == "llama4":
        return Llama4TextConfig(**{**COMMON, **FAMILIES[kind][1], "num_hidden_layers": 4})
    if kind == "qwen3_next":
        return Qwen3NextConfig(**same, linear_num_value_heads=4, linear_num_key_heads=2, num_experts=0)
    if kind == "minimax":  # a class of cache of its own
        return MiniMaxConfig(**{**same, "num_hidden_layers": 2}, num_local_experts=2, block_size=16)
    return tiny_config(kind)


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_of(kind), dtype=torch.float32).eval().requires_grad_(False)


def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(3, 300, (length,), generator=draw).tolist() for length in LENGTHS]


def replies(decoder: Decoder | BatchDecoder) -> list[list[int]]:
    finished: list[Sequence] = []
    for index, prompt in enumerate(prompts()):
        decoder.add(index, prompt, 24)
    while not decoder.is_finished:
        finished += decoder.step()
    return [reply.token_ids for reply in sorted(finished, key=lambda reply: reply.index)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt_oss", "qwen3_next", "llama", "llama4", "minimax"])
def test_a_batch_gets_what_transformers_gives_each_alone(kind: str) -> None:
    model = model_of(kind)
    finished = replies(BatchDecoder(model, 4, NO_END))
    for reply, prompt in zip(finished, prompts(), strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        assert reply == expected[0, len(prompt) :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "by_position"),
    [
        ("llama", True),
        ("qwen2", True),
        ("mistral", True),
        ("gemma2", True),
        ("gpt_oss", True),
        ("qwen3_next", False),
    ],
)
def test_the_decoder_fits_the_target(kind: str, by_position: bool) -> None:
    model = model_of(kind)
    assert serves_positions(model) == by_position
    with decoding(model, 4, NO_END) as decoder:
        assert isinstance(decoder, Decoder) == by_position
        finished = replies(decoder)
    assert finished == replies(BatchDecoder(model, 1, NO_END))


@pytest.mark.parametrize(
    ("kind", "by_position", "together"),
    [("bloom", False, 2), ("gpt2", True, 2), pytest.param("mamba", False, 1, marks=NEEDS_5), ("rwkv", False, 1)],
)
def test_what_the_config_does_not_tell_is_tried(kind: str, by_position: bool, together: int) -> None:
    """Mamba and RWKV have names of their own for their cache, and count padding as text."""
    model = auto_model(kind, n_head=4, attention_hidden_size=64)
    assert serves_positions(model) == by_position
    with decoding(model, 2, NO_END) as decoder:
        assert decoder.batch_size == together
        for index, prompt in enumerate(prompts()[:2]):
            decoder.add(index, prompt, 3)
        finished: list[Sequence] = []
        while not decoder.is_finished:
            finished += decoder.step()
    assert len(finished) == 2
    for reply in finished:
        for i, token in enumerate(reply.token_ids):
            read = torch.tensor([[*reply.prompt_ids, *reply.token_ids[:i]]])
            assert token == model(input_ids=read, use_cache=False).logits[0, -1].argmax()


def test_a_cache_that_nothing_here_can_use_is_refused() -> None:
    with (
        fails("out-of-memory"),
        decoding(auto_model("xlstm", num_heads=4), 2, NO_END),
    ):
        pass


def test_too_little_memory_is_no_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    model = auto_model("bloom", n_head=4)
    monkeypatch.setattr(model.transformer, "forward", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError), decoding(model, 2, NO_END):
        pass


def auto_model(kind: str, **own: int) -> Any:
    config = AutoConfig.for_model(kind, vocab_size=320, hidden_size=64, num_hidden_layers=2, pad_token_id=0)
    for name, value in own.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def test_sampling_does_not_depend_on_the_batch() -> None:
    model, sampling = model_of("mistral"), Sampling(0.9, 0.9, 20, 3)
    alone = replies(BatchDecoder(model, 1, NO_END, sampling))
    assert replies(BatchDecoder(model, 4, NO_END, sampling)) == alone
    assert alone != replies(BatchDecoder(model, 4, NO_END))


def test_rows_end_at_the_end_token_and_the_next_batch_starts() -> None:
    model = model_of("mistral")
    free = replies(BatchDecoder(model, 2, NO_END))
    end = free[0][5]
    for cut, full in zip(replies(BatchDecoder(model, 2, frozenset({end}))), free, strict=True):
        assert cut == (full[: full.index(end) + 1] if end in full else full)


def half(kind: str) -> Any:
    """A target in bfloat16, on a processor that rounds as AMX does: by up to a tenth of the largest logit."""
    model = model_of(kind).to(torch.bfloat16)
    noise = torch.Generator().manual_seed(0)

    def rounded(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(logits.shape, generator=noise).clamp(-3, 3) / 3
        return logits + (0.05 * logits.abs().amax() * drawn).to(logits.dtype)

    model.lm_head.register_forward_hook(rounded)
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma2", "gpt_oss"])
def test_rounding_of_16_bits_is_no_wrong_cache(kind: str) -> None:
    assert serves_positions(half(kind))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("fault", ["padding is seen", "one position late", "the past is lost"])
def test_a_wrong_cache_of_16_bits_is_noticed(kind: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    update = PositionCache.update

    def wrong(
        self: PositionCache, keys: torch.Tensor, values: torch.Tensor, layer: int, *more: Any, **named: Any
    ) -> Any:
        keys, values = update(self, keys, values, layer, *more, **named)
        if keys.shape[2] > PROBE_TOKENS:  # the second pass
            if fault == "one position late":
                keys = keys.roll(1, 2)
            if fault == "the past is lost":
                values = values * (torch.arange(values.shape[2]) >= values.shape[2] // 2)[:, None]
        return keys, values

    def all_seen(*, dtype: torch.dtype, **_: Any) -> torch.Tensor:
        cache = positions._current.get()
        return torch.zeros(len(cache.positions_BQ), 1, cache.positions_BQ.shape[1], cache.extent, dtype=dtype)

    monkeypatch.setattr(PositionCache, "update", wrong)
    if fault == "padding is seen":
        monkeypatch.setitem(AttentionMaskInterface._global_mapping, GROUPED_ATTENTION, all_seen)
    assert not serves_positions(half(kind))
