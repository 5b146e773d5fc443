"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

EMBEDDED = "embedded"  # the model in the package
MOST_PROMPTS = 100_000  # in one evaluation or demo: more is a slip, and would fill the memory first

Model = Annotated[str, Argument(help=f'A folder or a hub id of a transformers model, or "{EMBEDDED}"')]
PromptFiles = Annotated[list[Path], Option("--prompt-file", help="A text file; may be given several times")]
Most = Annotated[int | None, Option(help="Read at most so many tokens of each prompt file")]
Seed = Annotated[int, Option(help="Chooses text, facts and places")]
Device = Annotated[str, Option(help="cpu, cuda, or auto: cuda if there is one")]
Dtype = Annotated[
    str,
    Option(help="Of weights and attention: float32, bfloat16, float16, float64, or auto: as the model was saved"),
]
