"""Greedy chain speculative decoding with an EAGLE-3 draft, written a second time: slow, naive, and on its own.

It imports nothing from ``eagle3cli``; it reads an exported draft folder and a target folder (through transformers) and
recomputes everything at every step, without key/value caches, so that it can tell whether simulated acceptance, the
local engine and the exported folder mean the same thing.

What is counted, exactly
    - A *prompt* is a list of token ids. The first new token is the target's argmax after the prompt; it belongs to no
      verify step.
    - A *verify step* begins with known tokens ``x_0 .. x_n`` (``x_n`` the newest). The draft proposes ``k`` tokens, one
      target pass over ``x_0 .. x_n`` and the proposals gives the target's argmax after each of them; the ``a`` leading
      proposals that equal it are accepted and the target's own next token is added: ``a + 1`` new tokens.
    - New tokens end with the first end-of-text token (which counts) or at ``max_new_tokens``; what a step yields
      beyond that is not counted, but the step is.
    - *Acceptance length* of a set of prompts = (sum of new tokens - number of prompts) / (sum of verify steps): all
      new tokens but the first of each prompt.

How the draft sees it
    Row p (p < n) has ``h^0_p = fc(aux_p)``, with ``aux_p`` the outputs of the configured target layers at position p,
    reads the embedding of ``x_{p+1}`` and stands at RoPE position p. Row n-1 therefore proposes ``x_{n+1}``. Depth i
    goes on from row n-1: its hidden state is the layer's output (before the final norm) of depth i-1, it reads the
    embedding of the last proposal, stands at position n-1+i, and sees the depth-0 keys of all rows and the keys of the
    chain before it. With ``fc_norm`` in the config each layer of aux is normed first; with ``norm_output`` the next
    depth gets the output after the final norm. With ``layer_types`` of sliding attention a query sees the keys of the
    ``sliding_window`` newest positions, its own included, and those of the first ``draft_sinks``.

By hand: ``python tests/independent_eagle3.py TARGET DRAFT --k 3 --prompts prompts.jsonl``, a JSON list of token ids a
line.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM


@dataclass
class Measured:
    """What decoding some prompts gave."""

    replies: list[list[int]]
    """New tokens of each prompt, the first included."""
    steps: list[int]
    """Verify steps of each prompt."""

    @property
    def acceptance_length(self) -> float:
        """(new tokens after the first of each prompt) / verify steps."""
        return (sum(map(len, self.replies)) - len(self.replies)) / max(sum(self.steps), 1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps))


class NaiveDraft:
    """The exported folder as plain tensors in fp32."""

    def __init__(self, folder: Path, default_layers: tuple[int, ...] | None = None) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.w = {
            name: t.float() if t.is_floating_point() else t
            for name, t in load_file(folder / "model.safetensors").items()
        }
        eagle = self.config.get("eagle_config") or {}
        self.aux_layers = eagle.get("eagle_aux_hidden_state_layer_ids") or default_layers
        self.heads, self.groups = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        self.dim, self.eps = self.config["head_dim"], self.config["rms_norm_eps"]
        self.frequencies = self._frequencies()

    def first(self, aux: Tensor) -> Tensor:
        """Hidden state of a row before any depth."""
        if self.config.get("fc_norm"):
            parts = aux.chunk(len(self.aux_layers))
            aux = torch.cat([rms_norm(p, self.w[f"fc_norm.{i}.weight"], self.eps) for i, p in enumerate(parts)])
        return self.w["fc.weight"] @ aux

    def carried(self, hidden: Tensor) -> Tensor:
        """What the next depth gets of a hidden state."""
        return rms_norm(hidden, self.w["norm.weight"], self.eps) if self.config.get("norm_output") else hidden

    def _frequencies(self) -> Tensor:
        base = self.config.get("rope_theta") or self.config["rope_parameters"]["rope_theta"]
        plain = [base ** (-2 * j / self.dim) for j in range(self.dim // 2)]
        scaling = self.config.get("rope_scaling") or {}
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind == "default":
            return torch.tensor(plain)
        if kind == "linear":
            return torch.tensor(plain) / scaling["factor"]
        if kind != "llama3":
            raise ValueError(f"RoPE type {kind} is not written here")
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        context, factor = scaling["original_max_position_embeddings"], scaling["factor"]
        scaled = []
        for f in plain:
            turns = context * f / (2 * math.pi)
            share = min(max((turns - low) / (high - low), 0.0), 1.0)
            scaled.append(share * f + (1 - share) * f / factor)
        return torch.tensor(scaled)

    def rotate(self, x_heads: Tensor, position: int) -> Tensor:
        """RoPE on ``[heads, dim]``: entry j turns with entry j + dim/2."""
        angle = position * self.frequencies
        cos, sin = torch.cos(angle), torch.sin(angle)
        a, b = x_heads[:, : self.dim // 2], x_heads[:, self.dim // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def project(self, hidden: Tensor, embedded: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of one row, ``[heads, dim]`` each."""
        both = torch.cat(
            [
                rms_norm(embedded, self.w["midlayer.input_layernorm.weight"], self.eps),
                rms_norm(hidden, self.w["midlayer.hidden_norm.weight"], self.eps),
            ]
        )
        q = (self.w["midlayer.self_attn.q_proj.weight"] @ both).view(self.heads, self.dim)
        k = (self.w["midlayer.self_attn.k_proj.weight"] @ both).view(self.groups, self.dim)
        v = (self.w["midlayer.self_attn.v_proj.weight"] @ both).view(self.groups, self.dim)
        return self.rotate(q, position), self.rotate(k, position), v

    def layer(self, hidden: Tensor, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """The decoder layer for one row: attention over the given keys, then the MLP."""
        key, value = torch.stack(list(keys)), torch.stack(list(values))  # [rows, groups, dim]
        mixed = []
        for head in range(self.heads):
            group = head // (self.heads // self.groups)
            weights = torch.softmax(key[:, group] @ query[head] / math.sqrt(self.dim), dim=0)
            mixed.append(weights @ value[:, group])
        residual = hidden + self.w["midlayer.self_attn.o_proj.weight"] @ torch.cat(mixed)
        x = rms_norm(residual, self.w["midlayer.post_attention_layernorm.weight"], self.eps)
        gate, up = self.w["midlayer.mlp.gate_proj.weight"] @ x, self.w["midlayer.mlp.up_proj.weight"] @ x
        return residual + self.w["midlayer.mlp.down_proj.weight"] @ (torch.nn.functional.silu(gate) * up)

    def seen(self, states: Sequence[Tensor]) -> list[Tensor]:
        """What the newest row sees of the keys (or values) of all positions."""
        if "sliding_attention" not in (self.config.get("layer_types") or ()):
            return list(states)
        first = len(states) - self.config["sliding_window"]
        sinks = self.config.get("draft_sinks") or 0
        return [state for at, state in enumerate(states) if at >= first or at < sinks]

    def best(self, hidden: Tensor) -> int:
        """The proposal at a hidden state, as a token of the target."""
        logits = self.w["lm_head.weight"] @ rms_norm(hidden, self.w["norm.weight"], self.eps)
        draft_token = int(logits.argmax())
        return draft_token + int(self.w["d2t"][draft_token])

    def propose(self, tokens: Sequence[int], aux: Tensor, embedding: Tensor, k: int) -> list[int]:
        """``k`` tokens after ``tokens`` (x_0 .. x_n); ``aux`` are the auxiliary states of x_0 .. x_{n-1}."""
        embedding = self.w.get("embed_tokens.weight", embedding)
        newest = len(tokens) - 1
        hidden = [self.first(aux[p]) for p in range(newest)]
        projected = [self.project(hidden[p], embedding[tokens[p + 1]], p) for p in range(newest)]
        keys, values = [key for _, key, _ in projected], [value for _, _, value in projected]
        current = self.layer(hidden[-1], projected[-1][0], self.seen(keys), self.seen(values))
        proposals = [self.best(current)]
        for depth in range(1, k):
            current = self.carried(current)
            query, key, value = self.project(current, embedding[proposals[-1]], newest - 1 + depth)
            keys, values = [*keys, key], [*values, value]
            current = self.layer(current, query, self.seen(keys), self.seen(values))
            proposals.append(self.best(current))
        return proposals


@torch.no_grad()
def measure(
    target_folder: Path,
    draft_folder: Path,
    prompts: Sequence[Sequence[int]],
    *,
    k: int,
    max_new_tokens: int,
    eos_ids: frozenset[int] = frozenset(),
    default_layers: tuple[int, ...] | None = None,
) -> Measured:
    """Decode the prompts greedily with the draft, in fp32; definitions in the module's docstring.

    ``default_layers`` stands in where the draft's config does not name its auxiliary layers.
    """
    model = AutoModelForCausalLM.from_pretrained(target_folder, dtype=torch.float32).eval()
    draft = NaiveDraft(draft_folder, default_layers)
    embedding = model.get_input_embeddings().weight

    def run(tokens: Sequence[int]) -> tuple[list[int], Tensor]:
        """The target's argmax after every token, and the auxiliary states of every token."""
        out = model(torch.tensor([list(tokens)]), output_hidden_states=True, use_cache=False)
        aux = torch.cat([out.hidden_states[layer + 1][0] for layer in draft.aux_layers], dim=-1)
        return out.logits[0].argmax(-1).tolist(), aux

    measured = Measured([], [])
    for prompt in prompts:
        tokens = list(prompt)
        answers, aux = run(tokens)
        tokens.append(answers[-1])
        steps = 0
        while len(tokens) - len(prompt) < max_new_tokens and not eos_ids.intersection(tokens[len(prompt) :]):
            proposals = draft.propose(tokens, aux, embedding, k)
            answers, aux = run([*tokens, *proposals])
            after = answers[len(tokens) - 1 :]  # after the newest token, and after each proposal
            accepted = 0
            while accepted < k and proposals[accepted] == after[accepted]:
                accepted += 1
            tokens += after[: accepted + 1]
            aux = aux[: len(tokens) - 1]
            steps += 1
        measured.replies.append(_cut(tokens[len(prompt) :], max_new_tokens, eos_ids))
        measured.steps.append(steps)
    return measured


def _cut(reply: list[int], max_new_tokens: int, eos_ids: frozenset[int]) -> list[int]:
    ends = [i + 1 for i, token in enumerate(reply) if token in eos_ids]
    return reply[: min([max_new_tokens, *ends])]


def main() -> None:
    parser = argparse.ArgumentParser(description="Acceptance length of an EAGLE-3 draft folder, measured naively.")
    parser.add_argument("target", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="one JSON list of token ids a line")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--eos", type=int, nargs="*", default=[])
    given = parser.parse_args()
    prompts = [json.loads(line) for line in given.prompts.read_text().splitlines() if line.strip()]
    found = measure(
        given.target, given.draft, prompts, k=given.k, max_new_tokens=given.max_new_tokens, eos_ids=frozenset(given.eos)
    )
    print(json.dumps({"acceptance_length": found.acceptance_length, "steps": found.steps, "replies": found.replies}))


if __name__ == "__main__":
    main()
