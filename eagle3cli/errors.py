"""The errors that people see, their codes, and the exit codes of the program."""

from __future__ import annotations

DONE = 0
FAILED = 1
USAGE = 2
SOME_ROWS_FAILED = 3
STOPPED = 128
"""Added to the number of the signal that ended the program."""

FIXES = {
    # command line and settings
    "command-line": "see the command's --help",
    "invalid-value": "give one of the values that the message names",
    "unknown-name": "choose one of the names that there are: eagle3 config show lists the settings",
    "settings-file": "eagle3 config check FILE names the line",
    "conflicting-options": "leave one of them out",
    "missing-data": "name the file: --train-data-path, --eval-data-path, --input-path",
    "missing-target": "give a folder or a hub id: --target-model-path",
    "missing-draft": "run eagle3 train first, or give a folder",
    "missing-key": "set it, or leave the tracker out",
    "no-such-device": "use --device cpu, or see eagle3 doctor",
    "port-taken": "leave out --port: a free one is found",
    "process-count": "start a multiple of the group: --gpus, --tp-size",
    # files and folders
    "no-such-path": "check the path",
    "not-a-file": "give the other",
    "unreadable-file": "allow it, or check the path",
    "bad-json": "mend the file, or write it again",
    "damaged-file": "copy or download it again",
    "cannot-write": "choose another place, or allow it",
    "disk-full": "make room and run the command again",
    "already-exists": "choose another place, or pass --overwrite",
    "unsafe-overwrite": "name the folder itself",
    "foreign-files": "choose another place",
    "locked": "wait for it, or stop it",
    "made-differently": "undo the change, choose another place, or pass --overwrite",
    "no-such-run": "name a run's folder",
    "read-back-differs": "check the disk",
    # rows and conversations
    "no-data-files": "give a folder with jsonl, json, parquet or shard files",
    "no-rows": "look at the reasons in the summary, and at errors.jsonl",
    "no-such-row": "rows are counted from 1",
    "no-reply-tokens": "the rows need replies: run eagle3 regenerate first",
    "row-layout": "give what eagle3 cache wrote",
    "row-messages": "name the columns: --map user=question assistant=answer",
    "row-tools": "they are objects, or JSON text of objects",
    "row-images": "each image part and each <image> needs one image",
    "row-finish": "it has one entry for each reply",
    "row-text": "a line is one JSON object in UTF-8; a pre-formatted row is {id, text}",
    "bad-image": "name a file that is there, and prepare again if it changed",
    "images-unsupported": "leave the rows with images out, or use a target that sees them",
    "question-layout": "turns is a list of texts",
    "text-withheld": "fetch it from its source, as the message says",
    "recorded-replies": "record the replies again",
    "no-reply": "rows of tool calls alone are left out",
    "bad-exchange": "log the request with its response",
    "unfinished-reply": "it is left out",
    "server-error": "look at its last lines",
    "hub-unreachable": "check the name and the network, or give a local folder",
    # templates, tokens and masks
    "unknown-template": "--chat-template auto, a named one, or a .jinja file",
    "unsupported-template": "name another one: --chat-template",
    "refused-by-template": "the row is left out; another template may take it",
    "header-differs": "often one that drops earlier reasoning: --train-only-last-turn",
    "reply-rewritten": "--train-only-last-turn, or another template",
    "two-replies": "the row is left out",
    "empty-reply": "the row is left out",
    "mask-inexact": "the row is left out",
    "mask-wrong": "report it with the row",
    "no-tokenizer": "add its tokenizer.json",
    "token-outside-vocabulary": "tokenizer and model do not belong together: check --target-model-path",
    "vocabulary-mapping": "build the cache again with --overwrite",
    # hidden states
    "no-store": "write it first: eagle3 hidden-states",
    "store-format": "capture again with --overwrite",
    "store-unfinished": "run the command that writes it again",
    "store-unfit": "capture again with these settings",
    "damaged-store": "run the command that wrote it again",
    "specforge-file": "leave it out, or name the target that wrote it",
    "states-not-finite": "use --target-dtype bfloat16 or float32",
    # models
    "not-a-model": "give a transformers model folder, a hub id or a .gguf file",
    "unloadable-target": "use another target, or another backend",
    "unsupported-engine": "use --target-model-backend hf",
    "unsupported-quantization": "give the unquantised model",
    "no-gguf": "convert it with llama.cpp",
    "no-weights": "give the folder of a model with safetensors",
    "pickle": "convert it to safetensors",
    "missing-tensor": "copy the model again",
    "tensor-shape": "copy the model again",
    "aux-layers": "give --aux-layers LOW MID HIGH",
    "adapter-unusable": "merge it with peft, and give the merged folder",
    "not-a-draft": "give what eagle3 train or eagle3 export wrote",
    "draft-format": "eagle3 export writes the other formats",
    "draft-config": "use --draft-model-config auto",
    "other-target": "give the target that it was trained for",
    "missing-target-name": "give --target-model-path",
    "weights-not-finite": "use bfloat16",
    "unservable-draft": "export another layout, or train without the option that it names",
    # packages, processes and engines
    "missing-package": "run the line that the message gives",
    "package-too-old": "install the version that the message names",
    "missing-engine": "install it, or name its path",
    "no-server": "start it, or check --server-address-port",
    "servers-differ": "start all of them with the same model",
    "context-too-short": "lower --max-tokens, or ask shorter questions",
    "task-name": "rename one of the files",
    "no-task": "see the warnings above",
    "row-outcomes": "run the command again with --overwrite",
    "process-died": "look at its log; then run the same command again",
    "out-of-memory": "lower --max-length or the batch; eagle3 plan forecasts the need",
    "upload-failed": "check the token and the network, and run it again",
    # runs
    "not-finite-gradient": "look at the rows that are named, or lower the learning rate",
    "stage-not-done": "run from that stage on",
    "old-rows-missing": "give them: --train-data-path",
    "cannot-calibrate": "plan without it: the ranges stay as they are",
    "not-measured": "run the command that measures it",
    "stopped": "run the same command again to go on",
    "system-error": "the message is the system's own",
    "unexpected": "run it with --debug, and report what it shows",
}
"""Every code, with the fix that is shown where the place that raises it has none of its own."""


class Eagle3Error(Exception):
    """Something a person can fix: says what is wrong, where, and how to fix it.

    ``code`` is one of FIXES and never changes: ``examples/troubleshooting.md`` has a line on each. ``where`` is a file
    and line, a settings key or a flag; ``fix`` is a sentence that says what to change.
    """

    exit_code = FAILED

    def __init__(self, code: str, message: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.where = where
        self.fix = fix or FIXES[code]

    def __str__(self) -> str:
        return "\n".join([f"{self.where}: {self.message}" if self.where else self.message, f"fix: {self.fix}"])


def reason_of(error: Eagle3Error) -> str:
    """On one line why a row is left out: what is wrong, and where."""
    return f"{error.message}: {error.where}" if error.where else error.message


class UsageError(Eagle3Error):
    """A wrong flag, a wrong setting, or a combination that cannot work."""

    exit_code = USAGE


class DataError(Eagle3Error):
    """An input file or row that cannot be used."""


class ModelError(Eagle3Error):
    """A target or draft model that cannot be loaded or does not fit."""


class Stopped(Eagle3Error):
    """The user or the system asked the program to stop; work was saved."""

    def __init__(self, signal_number: int, message: str, *, fix: str | None = None) -> None:
        super().__init__("stopped", message, fix=fix)
        self.exit_code = STOPPED + signal_number
