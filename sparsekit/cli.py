"""The command line. An error is one line on stderr and exit code 2; Ctrl-C is exit code 130."""

import io
import sys
import warnings
from typing import Annotated

import typer

from .commands.backends import backends
from .commands.calibrate import calibrate
from .commands.demo import demo
from .commands.errors import report, warn
from .commands.evaluate import evaluate
from .commands.explore import explore
from .commands.page import page
from .commands.profile import profile
from .commands.run import run

app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(run)
app.command()(profile)
app.command()(calibrate)
app.command("eval")(evaluate)
app.command()(page)
app.command()(explore)
app.command()(backends)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the versions of sparsekit and what it runs on", is_eager=True)
    ] = False,
) -> None:
    """Sparse attention for long-context prefill: training-free methods as stages that stack."""
    if version:
        from .evaluation.records import versions

        by_name = versions()
        names = sorted(by_name, key=lambda name: name != "sparsekit")
        typer.echo(", ".join(f"{name} {by_name[name]}" for name in names))
        raise typer.Exit


def main() -> None:
    """Run the command line; an error is one line, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape letters that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = warn
        warnings.filterwarnings("default", "sparsekit:", DeprecationWarning)  # for an old name in a spec or a file
        try:
            app()
        except Exception as error:  # any error: a traceback does not help the user of a command
            report(error)
            sys.exit(2)
