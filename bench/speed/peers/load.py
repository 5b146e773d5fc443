"""The authors' code from a checkout that the user names: imported from there, never copied, its files unchanged."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from bench.speed.contender import Contender, Skipped
from sparsekit import Problem

PEERS = ("token_sparse", "flex_prefill", "xattention", "minference")  # modules here


def peer_contenders(name: str, folder: Path | None, p: Problem, only: str = "") -> list[Contender]:
    """Return a peer's contenders whose name contains `only`. Raises Skipped with the reason if it cannot run."""
    if folder is None:
        raise Skipped("no folder with the authors' code was named: pass --peers")
    peer = importlib.import_module(f"bench.speed.peers.{name}")
    checkout = folder / peer.CHECKOUT
    if not checkout.is_dir():
        raise Skipped(f"there is no {peer.CHECKOUT} in the folder: clone the repository there")
    return [one for one in peer.contenders(checkout, p) if only in one.case]


def from_file(path: Path) -> ModuleType:
    """Import one file of a checkout as a module, without its package. Raises Skipped with the reason."""
    if not path.is_file():
        raise Skipped(f"the checkout has no {path.name} where it was: take an earlier commit")
    spec = importlib.util.spec_from_file_location(f"their_{path.stem}", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise Skipped(f"{path.name} needs what is not installed ({error})") from None
    return module


def from_package(checkout: Path, name: str) -> ModuleType:
    """Import a module of a checkout by its own name. Raises Skipped with the reason."""
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Skipped(f"{name} needs what is not installed ({error})") from None
