"""How far the work is, on stderr: a bar, gone once it is done; where there is no terminal, a line now and then."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY = 10.0  # seconds from line to line where there is no terminal
SAME = 6  # lines left out while nothing has changed: a step may take an hour

OnStep = Callable[[int, int, str], None]


@contextmanager
def progress() -> Iterator[OnStep]:
    """The `on_step(done, total, name)` of a bar, or of lines; both begin with "loading"."""
    errors = Console(stderr=True)
    if not errors.is_terminal:
        with _lines() as on_step:
            yield on_step
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=errors, transient=True) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)


@contextmanager
def _lines() -> Iterator[OnStep]:
    """A thread says it: a single step may take longer than who watches a log believes in it."""
    state, over, began = "loading", Event(), monotonic()

    def on_step(done: int, total: int, name: str) -> None:
        nonlocal state
        state = f"{done} of {total}, {name}"

    def tell() -> None:
        said, silent = "", 0
        while not over.wait(EVERY):
            silent = silent + 1 if state == said else 0
            if silent % SAME == 0:
                said = state
                elapsed = timedelta(seconds=round(monotonic() - began))
                print(f"sparsekit: {state}, {elapsed} so far", file=sys.stderr, flush=True)

    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield on_step
    finally:
        over.set()
        thread.join()
