"""What a forecast of memory is compared with: a random target, conversations, a store of one long row, and the memory
of a process."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from eagle3cli.backends.target.head import fingerprint
from eagle3cli.data.hidden_states.rows import StateRow, aux_count, count_rows, row_codec, teacher_positions
from eagle3cli.data.hidden_states.store import StoreMeta, vocab_hash
from eagle3cli.data.hidden_states.writer import Index, StoreWriter, plan_layout
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.data.tokens.vocab import from_ids
from eagle3cli.runtime.report import Silent
from tests.tiny import tiny_tokenizer

COLOURS = ("red", "blue", "green", "small", "large", "round", "square", "old", "new", "warm", "list", "numbers")
HIDDEN, VOCAB, DRAFT_VOCAB = 64, 4096, 2048
AUX_LAYERS = (1, 3, 4)
WITH_LOSS = 0.7


@dataclass(frozen=True)
class Model:
    """A random target; the tokens that it prefers are those that its tokenizer has."""

    hidden: int
    layers: int
    heads: int
    groups: int
    intermediate: int
    vocab: int

    def write(self, folder: Path) -> None:
        """Write it, with its tokenizer."""
        tokenizer = tiny_tokenizer()
        config = LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            head_dim=self.hidden // self.heads,
            max_position_embeddings=131_072,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.get_input_embeddings().weight.data[len(tokenizer) :] *= 0.1
        model.generation_config.eos_token_id = [2]
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def write_rows(path: Path, count: int, words: int, share: float) -> None:
    """Conversations of one turn."""
    drawn = random.Random(0)
    with path.open("w") as f:
        for number in range(count):
            asked, said = (
                " ".join(drawn.choice(COLOURS) for _ in range(round(words * part))) for part in (1 - share, share)
            )
            turns = [{"role": "user", "content": f"{asked} {number}"}, {"role": "assistant", "content": said}]
            f.write(json.dumps({"id": f"row-{number}", "conversations": turns}) + "\n")


def write_store(folder: Path, target: Path, length: int) -> None:
    """One row of so many tokens, the end of it a reply."""
    seeded = torch.Generator().manual_seed(0)
    mask = np.arange(length) >= (1 - WITH_LOSS) * length
    row = TokenRow(
        "long", torch.randint(0, DRAFT_VOCAB, (length,), generator=seeded).int().numpy(), mask.view(np.uint8)
    )
    where = teacher_positions(torch.from_numpy(mask))
    states = StateRow(
        token_ids_S=torch.from_numpy(row.token_ids.astype("int64")),
        loss_mask_S=torch.from_numpy(mask),
        aux_UC=torch.randn(aux_count(where), HIDDEN * len(AUX_LAYERS), generator=seeded).bfloat16(),
        last_RH=torch.randn(len(where), HIDDEN, generator=seeded).bfloat16(),
        top_R=torch.randint(0, DRAFT_VOCAB, (len(where),), generator=seeded),
    )
    vocab = from_ids(list(range(DRAFT_VOCAB)), VOCAB)
    codec = row_codec("bf16", layers=len(AUX_LAYERS), hidden=HIDDEN, aux_RC=states.aux_UC, last_RH=states.last_RH)
    index = Index(count_rows([row]), codec, vocab)
    meta = StoreMeta(
        target=str(target),
        revision=None,
        target_hash=fingerprint(str(target)),
        aux_layers=AUX_LAYERS,
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        compute_dtype="float32",
        data_hash=index.counts.data_hash,
        rows=1,
        vocab_hash=vocab_hash(vocab),
        shard_mb=1000,
        encoding="bf16",
    )
    with StoreWriter(folder, meta, plan_layout(index.counts, codec, shard_mb=1000), index, Silent()) as store:
        for shard in store.pending:
            with store.writing(shard) as put:
                put(0, codec.pack([states])[0])
        store.finish()


def own_megabytes(pid: int | str) -> float:
    """Resident memory of a process that is no file's; 0 where it has just ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
