"""sparsekit page"""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument


def page(
    records: Annotated[Path, Argument(help="File of records that sparsekit eval --out wrote")],
    out: Annotated[Path, Argument(help="Markdown page to write; its pictures are written beside it")],
) -> None:
    """Write a page of an evaluation's records: tables, and pictures of accuracy over speed-up."""
    from ..evaluation.page import write_page
    from ..evaluation.records import Records

    if not records.is_file():
        raise ValueError(f"records: got {str(records)!r}, which is no file; allowed is what sparsekit eval --out wrote")
    Console().print(f"page: {write_page(Records(records).lines, out)}", markup=False, highlight=False, soft_wrap=True)
