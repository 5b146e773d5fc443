"""Optional packages, and the extra that installs each of them."""

from importlib import import_module


def needs(module: str, extra: str | None) -> None:
    """Raise ImportError that names the extra, or the package itself if None has it, unless `module` is installed."""
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # it is there, and lacks something itself
            raise
        what = f'"sparsekit[{extra}]"' if extra else module
        raise ImportError(f"this needs {module}: pip install {what}", name=module) from error
