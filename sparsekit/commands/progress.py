"""Shows progress on stderr: on a terminal a bar that disappears at the end, elsewhere a line every few seconds."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY = 10.0  # seconds between lines where there is no terminal
SAME = 6  # while nothing changes only every sixth line is printed: a step may take an hour

OnStep = Callable[[int, int, str], None]


@contextmanager
def progress() -> Iterator[OnStep]:
    """Yield the function `on_step(done, total, name)` that moves a bar or lines; both begin with "loading"."""
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
    """Yield `on_step`; a thread prints the lines, so that a log shows life during a long step."""
    state, over, began = "loading", Event(), monotonic()

    def on_step(done: int, total: int, name: str) -> None:
        nonlocal state
        state = f"{done} of {total}, {name}"

    def print_lines() -> None:
        last, silent = "", 0
        while not over.wait(EVERY):
            silent = silent + 1 if state == last else 0
            if silent % SAME == 0:
                last = state
                elapsed = timedelta(seconds=round(monotonic() - began))
                print(f"sparsekit: {state}, {elapsed} so far", file=sys.stderr, flush=True)

    thread = Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield on_step
    finally:
        over.set()
        thread.join()
