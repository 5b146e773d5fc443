"""Optional packages, and the extra that installs each of them."""

from importlib import import_module


def needs(module: str, extra: str) -> None:
    """Raise ImportError that names the extra unless the package `module` is installed."""
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # it is there, and lacks something itself
            raise
        raise ImportError(f'this needs {module}: pip install "sparsekit[{extra}]"', name=module) from error
