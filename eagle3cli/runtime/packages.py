"""Which Python packages are installed."""

from __future__ import annotations

from importlib import metadata


def installed_version(name: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
