"""Rows of data sets on the hub, streamed through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eagle3cli.data.sources.files import read_file
from eagle3cli.data.sources.lines import SourceRow
from eagle3cli.errors import DataError

ANSWER_SECONDS = 10
SHUFFLED_ROWS = 2_000
"""Rows among which a shuffled stream draws the next one; they are held in memory."""
_FIX = "check the name and the network (HF_HUB_OFFLINE, HF_TOKEN), or download a file and give its path instead"


def read_hub(
    name: str, split: str, subset: str | None = None, *, shuffle_seed: int | None = None
) -> Iterator[SourceRow]:
    """Rows of a hub data set; with ``shuffle_seed`` its files in random order, and rows shuffled on the way.

    Raises DataError where the hub does not answer in some seconds, or has no such data set, subset or split.
    """
    _ask_hub(name)
    import datasets

    datasets.disable_progress_bars()
    place = f"{name}[{f'{subset}/' if subset else ''}{split}]"
    number = 0
    try:
        rows = datasets.load_dataset(name, subset, split=split, streaming=True)
        if shuffle_seed is not None:
            rows = rows.shuffle(seed=shuffle_seed, buffer_size=SHUFFLED_ROWS)
        for number, value in enumerate(rows, 1):
            yield SourceRow(number, dict(value), path=place)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        what = f"cannot read the hub data set: {reason}" if number == 0 else f"the download stopped: {reason}"
        fix = "name one with --subset" if "Config name is missing" in reason else _FIX
        fix = "name one with --split" if "Bad split" in reason or "Unknown split" in reason else fix
        raise DataError(
            "hub-unreachable", what, where=f"{place} row {number + 1}" if number else name, fix=fix
        ) from error


def read_hub_file(name: str, file: str) -> Iterator[SourceRow]:
    """Rows of one file of a hub data set, for data sets that cannot be streamed. Raises DataError."""
    _ask_hub(name)
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(name, file, repo_type="dataset")
    except Exception as error:  # the errors of whichever HTTP library huggingface_hub uses
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError("hub-unreachable", f"cannot download {file}: {reason}", where=name, fix=_FIX) from error
    yield from read_file(Path(path))


def _ask_hub(name: str) -> None:
    """Ask once whether the data set is there, so that a machine without a network hears it at once."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return  # `datasets` looks for an earlier download, and says at once where there is none
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().dataset_info(name, timeout=ANSWER_SECONDS)
    except HFValidationError as error:
        raise DataError(
            "invalid-value", "not a name of a hub data set", where=name, fix="a hub data set is OWNER/NAME"
        ) from error
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError("hub-unreachable", f"the hub refuses the data set: {reason}", where=name, fix=_FIX) from error
    except Exception as error:  # the errors of whichever HTTP library huggingface_hub uses
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError("hub-unreachable", f"the hub does not answer: {reason}", where=name, fix=_FIX) from error
