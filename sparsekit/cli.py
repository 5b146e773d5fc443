"""The command line. Bad input is one line on stderr and exit code 2."""

import sys

import typer

from .commands.backends import backends
from .commands.calibrate import calibrate
from .commands.demo import demo
from .commands.evaluate import evaluate
from .commands.page import page
from .commands.profile import profile
from .commands.run import run
from .dispatch import NoBackendError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(demo)
app.command()(run)
app.command()(profile)
app.command()(calibrate)
app.command("eval")(evaluate)
app.command()(page)
app.command()(backends)


@app.callback()
def _root() -> None:
    """Sparse attention for long-context prefill: training-free methods as stages that stack."""


def main() -> None:
    """The entry point: what a user can mend is one line, not a traceback."""
    try:
        app()
    except (ValueError, ImportError, OSError, NoBackendError) as error:
        print(f"sparsekit: {error}", file=sys.stderr)
        sys.exit(2)
