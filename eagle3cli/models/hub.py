"""An exported folder on the Hugging Face hub. Nothing is sent unless this is called; the token is the environment's."""

from __future__ import annotations

from pathlib import Path

from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.models.card import HUB_ID

FILES = ("config.json", "model.safetensors", "README.md")


def check_repository(name: str) -> str:
    """``name`` where it is ``owner/name``; raises UsageError."""
    if not HUB_ID.fullmatch(name):
        raise UsageError("invalid-value", f"not a repository: {name}", where="--push", fix="give owner/name")
    return name


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a draft's files to a model repository, which is made where it is missing; returns its URL.

    Raises Eagle3Error where the hub cannot be reached or refuses.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    again = f"the folder {folder} is whole; upload it with: hf upload {repository} {folder}"
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message="EAGLE-3 draft, exported by eagle3",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        denied = "set HF_TOKEN to a token that may write there; " if status in (401, 403) else ""
        what = f"the hub refuses ({status}): {error.server_message or str(error).splitlines()[0]}"
        raise Eagle3Error("upload-failed", what, where=repository, fix=denied + again) from error
    except (OfflineModeIsEnabled, httpx.HTTPError, OSError, ValueError) as error:
        raise Eagle3Error("upload-failed", f"cannot be uploaded: {error}", where=repository, fix=again) from error
    return str(done.repo_url if hasattr(done, "repo_url") else f"{api.endpoint}/{repository}")
