"""A tiny target for tests: a random Llama, Qwen2 or Qwen3 with a real tokenizer and a chat template."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

LAYERS, HIDDEN, VOCAB = 8, 64, 320
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = [
    "How do I sort a list of numbers? You call sorted on the list and keep what it returns.",
    "A train leaves the station at nine and arrives at noon; how long was it on its way? Three hours.",
    "The draft proposes, the target checks, and the reader sees the target's own words, only sooner.",
    "Rain fell on the hills, then on the town, and in the evening the river stood above the meadow.",
    "Write a short letter to a friend who has moved to another city. Dear friend, I hope that you are well.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "Übung macht den Meister. Ça va très bien, merci. 你好，世界。 12345 67890",
]


def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of at most VOCAB tokens, trained on TEXT, with ChatML's markers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*TEXT, "user", "assistant", "system"] * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=START, eos_token=END, pad_token=PAD)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(kind: str = "llama") -> Any:
    """The model's config: 8 layers of width 64, 4 heads, 2 of keys and values."""
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    classes: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    return classes[kind](
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=kind == "llama",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.1,
    )


def tiny_target(folder: Path, kind: str = "llama", seed: int = 0) -> Path:
    """Write a random target of ``kind`` (llama, qwen2, qwen3) with its tokenizer to ``folder``; returns ``folder``."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32)
    model.generation_config.eos_token_id = [2]
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


WORDS = ("red", "blue", "green", "small", "large", "round", "square", "old", "new", "warm")
SETTINGS = """
[target]
model_path = "{tiny}"
threads = 1
[draft]
vocab_size = 200
[data]
train_path = "train.jsonl"
eval_path = "eval.jsonl"
max_length = 128
[train]
total_steps = 12
num_epochs = 9
batch_size = 4
learning_rate = 1e-3
ttt_length = 3
eval_interval = 6
save_interval = 3
log_interval = 2
"""


def conversations(count: int, start: int = 0) -> str:
    """JSON lines of one exchange each, about colours."""
    lines = []
    for n in range(start, start + count):
        reply = " and ".join(WORDS[(n * k) % len(WORDS)] for k in range(3, 9))
        turns = [{"role": "user", "content": f"Name colours, number {n}."}, {"role": "assistant", "content": reply}]
        lines.append(json.dumps({"id": f"row-{n}", "conversations": turns}))
    return "\n".join(lines) + "\n"


def training_place(folder: Path, tiny: Path) -> Path:
    """Fill ``folder`` with data and an eagle3.toml for a training run of twelve steps; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text(conversations(14))
    (folder / "eval.jsonl").write_text(conversations(4, 100))
    (folder / "eagle3.toml").write_text(SETTINGS.format(tiny=tiny))
    return folder


def train_tiny(folder: Path, tiny: Path) -> None:
    """`eagle3 train` in such a folder, to ``run``; its result in ``result.json``."""
    from eagle3cli.cli.main import main

    training_place(folder, tiny)
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["train", "--mode", "online", "--output-dir", "run", "--json"]) == 0
    (folder / "result.json").write_text(said.getvalue())
