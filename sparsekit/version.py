"""The version of the installed package."""

from functools import cache
from importlib import metadata


@cache
def version() -> str:
    """Return the version, or "unknown" in a source tree that is not installed."""
    try:
        return metadata.version("sparsekit")
    except metadata.PackageNotFoundError:
        return "unknown"
