"""Optional packages, and the extra that installs each of them."""

from importlib import import_module


def needs(module: str, extra: str | None) -> None:
    """Raise ImportError unless `module` is installed; it names the extra, or the package if `extra` is None."""
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # the module is installed, but lacks another one
            raise
        what = f'"sparsekit[{extra}]"' if extra else module
        raise ImportError(f"this needs {module}: pip install {what}", name=module) from error
