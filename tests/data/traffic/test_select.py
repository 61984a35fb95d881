"""Which exchanges become rows: secrets out, floods and loud clients held down, the same rows every time."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.ledger import Ledger
from eagle3cli.data.traffic.logs import read_logs
from eagle3cli.data.traffic.private import EMAIL, SECRETS, secret_in
from eagle3cli.data.traffic.select import ALIKE, MOST_ALIKE, NOT_DRAWN, OVER_SHARE, REPEATED, SEEN, Traffic, select

EXAMPLES = {
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "an API key (sk-)": "sk-proj-" + "aB3" * 8,
    "a Stripe key": "sk_live_" + "a1B2" * 5,
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "a GitLab token": "glpat-" + "a1B2" * 5,
    "a Hugging Face token": "hf_" + "aBcD" * 8,
    "an AWS key": "AKIA" + "A1B2" * 4,
    "a Google key": "AIza" + "a1B2_" * 7,
    "a Slack token": "xoxb-1234567890-abc",
    "a package registry's token": "npm_" + "a1B2" * 9,
    "a JSON Web Token": "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
    "a bearer token": "Authorization: Bearer " + "a1B2" * 6,
    "a login in an address": "postgres://admin:hunter22@db/x",
    "a login in a header": "Authorization: Basic dXNlcjpwYXNz",
    "a key of some service": "SG." + "a1B2" * 5 + "." + "a1B2" * 10,
    "a key in an address": "https://host/maps?key=" + "a1b2" * 5,
    "a key in a variable": "export SOME_TOKEN=a1b2c3d4e5",
    "a password": "the password is Tr0ub4dor&3",
    "a card's number": "4111 1111 1111 1111",
}


def exchange(prompt: str, reply: str = "So.", **request: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply}
    asked = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": prompt}], **request}
    return {"request": asked, "response": {"choices": [{"message": message, "finish_reason": "stop"}]}}


def selected(
    folder: Path, rows: list[dict[str, Any]], *, seen: set[str] | None = None, size: int = 1000, share: float = 0.5
) -> tuple[Traffic, list[dict[str, Any]], dict[str, Any]]:
    log = folder / "server.log"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ledger = Ledger(io.StringIO())
    names = frozenset({"m"})
    output = folder / "rows.jsonl"
    traffic = select(
        read_logs([log]), output, ledger, seen=seen or set(), names=names, sample_size=size, client_share=share
    )
    summary = ledger.summary()
    assert summary["read"] == summary["written"] + sum(
        summary[name] for name in ("rejected", "duplicates", "filtered", "left_out")
    )
    return traffic, [json.loads(line) for line in output.read_text().splitlines()], summary


@pytest.mark.parametrize("name", [*SECRETS, "a card's number"])
def test_a_row_with_a_secret_is_dropped_by_its_name(tmp_path: Path, name: str) -> None:
    rows = [exchange(f"Look: {EXAMPLES[name]}"), exchange("Mine?", f"It is {EXAMPLES[name]} now"), exchange("Hello?")]
    _, kept, summary = selected(tmp_path, rows)
    assert [row["conversations"][0]["content"] for row in kept] == ["Hello?"]
    assert summary["reasons"] == {f"holds {name}": 2}


@pytest.mark.parametrize(
    "text",
    [
        *("OPENAI_API_KEY=abcd1234efgh", "DB_PASSWORD: s3cr3tpass", '{"aws_secret_access_key": "wJalr/XUtn1"}'),
        *("dbPassword = 'hunter2'", "the API key is 9f8e7d6c5b4a", "AccountKey=Eby8vdM02xNOcqFl==", "pwd:hunter2"),
        "redis://:hunter22@cache:6379",
        *("https://host/cb#access_token=ya29.a0AfH6SMBx12", "Cookie: sessionid=38afes7a8abcdef"),
    ],
)
def test_a_password_is_known_by_its_name_in_files_and_code(text: str) -> None:
    message = {"role": "user", "content": text}
    assert secret_in(Conversation("", (message, {"role": "assistant", "content": "So."}))) is not None


@pytest.mark.parametrize(
    "text",
    [
        *("the password is forgotten", 'password = input("Password: ")', "def api_key(self): ...", "api_key=API_KEY"),
        *("1700000000000", "4111 1111 1111 1112", "https://host:8080/path", "task-1234567890123456789012345"),
        *(
            "https://host/page?id=12345678901234567890",
            "compass: north20",
            "a basic understanding",
            "the key: 16 letters",
        ),
        *("for key in keys1: print(key)", "git@host", "sort(key=lambda row: row[1])", "press: keyboard=qwerty1"),
        "password:" * 100_000,  # in time that does not grow with its square
        *("token bearer of news", "user@example.com", "sk-learn is a library for models"),
    ],
)
def test_usual_text_holds_no_secret(text: str) -> None:
    message = {"role": "user", "content": text}
    assert secret_in(Conversation("", (message, {"role": "assistant", "content": "So."}))) is None


def test_addresses_are_replaced_everywhere_and_the_reply_counts_as_edited(tmp_path: Path) -> None:
    rows = [
        exchange("Write to ann.lee+x@mail.example.net.uk!", "See ?to=ann.lee%40mail.example.net.uk"),
        exchange("Hello?"),
    ]
    traffic, kept, _ = selected(tmp_path, rows)
    text = json.dumps(kept)
    assert "ann" not in text
    assert text.count(EMAIL) == 2
    assert traffic.origins == {"edited": 1, "greedy": 1}


def test_a_flood_of_one_prompt_is_a_few_rows(tmp_path: Path) -> None:
    flood = [exchange("Say hello!") for _ in range(500)] + [exchange(f"Say hello {i}!") for i in range(500)]
    _, kept, summary = selected(tmp_path, [*flood, exchange("Something else?")])
    assert len(kept) == MOST_ALIKE + 1
    assert summary["reasons"] == {REPEATED: 499, ALIKE: 501 - MOST_ALIKE}


def test_one_client_fills_at_most_its_share(tmp_path: Path) -> None:
    loud = [exchange(f"Loud {chr(97 + i % 26)}{chr(97 + i // 26)}?", user="loud") for i in range(200)]
    quiet = [exchange(f"Quiet {chr(97 + i)}?", user=f"quiet{i % 3}") for i in range(20)]
    _, kept, summary = selected(tmp_path, [*loud, *quiet])
    assert sum("Loud" in row["conversations"][0]["content"] for row in kept) == 20
    assert summary["reasons"] == {OVER_SHARE: 180}
    assert len(selected(tmp_path, loud)[1]) == 200  # alone it takes nothing from others


def test_the_same_rows_are_drawn_whatever_their_order_and_seen_ones_are_not(tmp_path: Path) -> None:
    rows = [exchange(f"What is {chr(97 + i % 26)}{chr(97 + i // 26)}?") for i in range(60)]
    first, kept, summary = selected(tmp_path, rows, size=10)
    assert summary["reasons"] == {NOT_DRAWN: 50}
    assert selected(tmp_path, rows[::-1], size=10)[1] == kept
    again, none, summary = selected(tmp_path, rows, seen=set(first.prompts))
    assert (again.rows, none, summary["reasons"]) == (0, [], {SEEN: 60})
