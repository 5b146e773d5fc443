"""Training text: the Python source of permissively licensed packages installed on this machine.

The Python standard library is the evaluation text, so it stays out: a file is dropped when more than a fifth of
its longer lines also occur there (copies and backports). Files with the same content are taken once.
"""

import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

from sparsekit.testbed.text import standard_library

# Each package is under the licence named here; packages that are not installed are left out and not reported as used.
LICENCES = {
    "accelerate": "Apache-2.0",
    "botorch": "MIT",
    "cupy-cuda13x": "MIT",
    "diffrax": "Apache-2.0",
    "equinox": "Apache-2.0",
    "flax": "Apache-2.0",
    "gpytorch": "MIT",
    "jax": "Apache-2.0",
    "networkx": "BSD-3-Clause",
    "numba": "BSD-2-Clause",
    "numpy": "BSD-3-Clause",
    "numpyro": "Apache-2.0",
    "onnxscript": "MIT",
    "optax": "Apache-2.0",
    "pandas": "BSD-3-Clause",
    "pytorch-lightning": "Apache-2.0",
    "scikit-learn": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "statsmodels": "BSD-3-Clause",
    "sympy": "BSD-3-Clause",
    "torch": "BSD-3-Clause",
    "torch-geometric": "MIT",
    "torchvision": "BSD-3-Clause",
    "transformers": "Apache-2.0",
    "triton": "MIT",
}
LARGEST = 512 * 1024  # bytes; larger files are mostly generated tables
LINE = 24  # characters that a line needs to show where it comes from
SHARED = 0.2


@dataclass(frozen=True)
class Source:
    package: str
    version: str
    licence: str
    files: int
    bytes: int


@dataclass(frozen=True)
class Corpus:
    text: bytes
    sources: tuple[Source, ...]
    dropped: int  # files with text of the standard library


def collect(packages: Sequence[str], processes: int) -> Corpus:
    """Return the source files of `packages`, in a mixed order that depends on their content alone."""
    unknown = sorted(set(packages) - set(LICENCES))
    if unknown:
        raise ValueError(f"packages={unknown}: no licence is known for these; choose from {sorted(LICENCES)}")
    with get_context("fork").Pool(processes) as pool:
        library = standard_library(Path(sysconfig.get_paths()["stdlib"]))
        known = frozenset().union(*pool.imap_unordered(_lines_of, library, chunksize=32))
    global _KNOWN
    _KNOWN = known  # the workers forked next inherit it
    found: dict[bytes, bytes] = {}
    sources = []
    dropped = 0
    with get_context("fork").Pool(processes) as pool:
        for package in sorted(packages):
            try:
                distribution = metadata.distribution(package)
            except metadata.PackageNotFoundError:
                continue
            paths = [
                Path(str(file.locate()))
                for file in distribution.files or ()
                if file.suffix == ".py" and ".." not in file.parts
            ]
            taken = size = 0
            for content, new in pool.imap_unordered(_read, paths, chunksize=32):
                digest = hashlib.sha256(content).digest()
                dropped += not new
                if not new or not content or digest in found:
                    continue
                found[digest] = content
                taken += 1
                size += len(content)
            sources.append(Source(package, distribution.version, LICENCES[package], taken, size))
    return Corpus(b"".join(found[digest] for digest in sorted(found)), tuple(sources), dropped)


_KNOWN: frozenset[bytes] = frozenset()


def _lines_of(path: Path) -> set[bytes]:
    return {line.strip() for line in path.read_bytes().splitlines() if len(line.strip()) >= LINE}


def _read(path: Path) -> tuple[bytes, bool]:
    """Return a file's content, and whether it is new: not made of lines of the standard library."""
    try:
        content = path.read_bytes()
    except OSError:  # listed by the package, removed since
        return b"", True
    if len(content) > LARGEST:
        return b"", True
    lines = {line.strip() for line in content.splitlines() if len(line.strip()) >= LINE}
    if lines and len(lines & _KNOWN) > SHARED * len(lines):
        return b"", False
    return content if content.endswith(b"\n") else content + b"\n", True
