"""The command table and the program's exit codes. Only the named command's module is imported; never torch.

Typer is imported where a command line is read, so that ``eagle3 --help`` and the shell's completion are fast.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from eagle3cli import __version__
from eagle3cli.cli.command_spec import CommandSpec
from eagle3cli.errors import DONE, FAILED, Eagle3Error

DATA = "Data"
TRAINING = "Training"
SERVING = "Serving"
PIPELINE = "Whole chain & settings"
STEPS = (DATA, TRAINING, SERVING, PIPELINE)
DEBUG_HINT = "run again with --debug to see where it happened"
PATH_FIXES = {
    errno.EACCES: "allow it for you (chmod, chown), or name another path",
    errno.EPERM: "allow it for you (chmod, chown), or name another path",
    errno.ENOTDIR: "a part of this path is a file; name another path",
    errno.EEXIST: "something of another kind stands there; name another path",
    errno.EISDIR: "this is a folder; name a file",
}
"""What helps where the system refuses a path, by its error number."""
FLAGS = {
    "--version": "Show the version.",
    "--install-completion": "Install completion for the current shell, or for bash, zsh or fish after it.",
    "--show-completion": "Print what --install-completion writes.",
    "-h, --help": "Show this message; after a command, what is set in its common case.",
    "--help-all": "After a command: every option, in groups.",
}
"""The program's own flags."""
SUMMARY = "Train EAGLE-3 draft models, from a data set's name to a measured speed-up."


TABLE: tuple[CommandSpec, ...] = (
    CommandSpec("prepare", "Bring any source of conversations to one layout.", DATA),
    CommandSpec("regenerate", "Rewrite the replies with the target, so that the draft learns its own words.", DATA),
    CommandSpec("merge", "Join regenerated shards into a training and an evaluation file.", DATA),
    CommandSpec("cache", "Tokenize, mask and choose the draft vocabulary.", DATA),
    CommandSpec("view", "Show which tokens of a row are trained on.", DATA),
    CommandSpec("check-template", "Judge a chat template: the stop tokens, and the masks of probing rows.", DATA),
    CommandSpec("view-train-data", "Show which tokens of the training rows are trained on.", DATA),
    CommandSpec("hidden-states", "Write the target's hidden states to disk for offline training.", TRAINING),
    CommandSpec("train", "Train the draft, online or from hidden states on disk.", TRAINING),
    CommandSpec("eval", "Measure the acceptance length on held-out data.", TRAINING),
    CommandSpec("import", "Read a draft of another program.", SERVING),
    CommandSpec("export", "Write a draft folder that SGLang and vLLM load.", SERVING),
    CommandSpec("bench", "Measure acceptance and speed with and without the draft.", SERVING),
    CommandSpec("run", "Run the whole chain from one settings file.", PIPELINE),
    CommandSpec("refresh", "Train a served draft on from its server's logs, and serve it if it is better.", PIPELINE),
    CommandSpec("watch", "Follow a run from another terminal.", PIPELINE),
    CommandSpec("plan", "Say what a command or a recipe will cost before it starts.", PIPELINE),
    CommandSpec("report", "Write the report of a run, or set several runs side by side.", PIPELINE),
    CommandSpec("config", "Show, check and write settings.", PIPELINE),
    CommandSpec("doctor", "Check this machine, and say how to fix what is wrong.", PIPELINE),
)


def overview(*, colour: bool = False) -> str:
    """The help of the program itself: the commands by step, in the order of the work."""
    bold, cyan, end = ("\x1b[1m", "\x1b[36m", "\x1b[0m") if colour else ("", "", "")
    lines = [f"{bold}Usage:{end} eagle3 COMMAND [OPTIONS]", "", f"  {SUMMARY}", ""]
    for step in STEPS:
        specs = [spec for spec in TABLE if spec.step == step]
        lines += [f"{bold}{step}:{end}", *(f"  {cyan}{spec.name:<17}{end}{spec.summary}" for spec in specs), ""]
    lines.append(f"{bold}Options:{end}")
    lines += [f"  {cyan}{name:<22}{end}{text}" for name, text in FLAGS.items()]
    return "\n".join([*lines, "", f"{bold}Example:{end}", "  eagle3 run quickstart"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors are shown, not raised."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _run(list(argv))
    except Eagle3Error as error:
        return _show(error, argv)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader of our output has gone (eagle3 ... | head); keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        return _show(_unexpected(error), argv)


def _run(argv: list[str]) -> int:
    if argv in ([], ["--help"], ["-h"], ["--help-all"]):  # by hand: grouped by step, and fast
        from eagle3cli.console.out import Out

        print(overview(colour=Out().colour), flush=True)
        return DONE
    if argv[0] == "--version":
        print(f"eagle3 {__version__}", flush=True)
        return DONE
    if argv[0] in ("--install-completion", "--show-completion"):
        from eagle3cli.cli.completion.install import run_flag

        return run_flag(argv)
    from eagle3cli.cli.program import run

    code = run(argv, TABLE, SUMMARY)
    sys.stdout.flush()
    return code


def _show(error: Eagle3Error, argv: Sequence[str]) -> int:
    from eagle3cli.console.out import Out

    if "--debug" in argv:
        traceback.print_exc()
    Out(json_wanted="--json" in argv).error(error)
    return error.exit_code


def _unexpected(error: Exception) -> Eagle3Error:
    """An error nobody foresaw, in one line; a full disk is called that."""
    if isinstance(error, OSError):
        from eagle3cli.runtime.files import NO_SPACE, disk_error

        where = str(error.filename) if error.filename is not None else None
        reason = error.strerror or str(error)
        if error.errno in NO_SPACE:
            fix = "make space (or choose another folder) and run the same command again; finished work is kept"
            return Eagle3Error("disk-full", f"the disk is full: {reason}", where=where, fix=fix)
        if where is not None and error.errno == errno.EROFS:
            return disk_error(error, Path(where))
        if where is not None:
            fix = PATH_FIXES.get(error.errno or 0, DEBUG_HINT)
            return Eagle3Error("system-error", reason[:1].lower() + reason[1:], where=where, fix=fix)
    text = str(error).strip().split("\n")[0]
    return Eagle3Error(
        "unexpected", f"{type(error).__name__}: {text}" if text else type(error).__name__, fix=DEBUG_HINT
    )


def entry() -> None:
    """The script ``eagle3``."""
    if "_EAGLE3_COMPLETE" in os.environ:  # a shell asks what may follow
        from eagle3cli.cli.completion.shells import answer

        print(answer(sys.argv[1:], TABLE))
        return
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing is sent anywhere unless asked for
    if "OMP_WAIT_POLICY" not in os.environ:
        # Torch's threads wait for each other by spinning for milliseconds, which a busy machine pays for; without any
        # spinning Linux leaves them on one core. Some ten microseconds avoid both.
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if not sys.stderr.isatty():  # a log is no place for the libraries' bars; ours turn into lines
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    sys.exit(main())
