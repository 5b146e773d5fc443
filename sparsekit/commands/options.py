"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

EMBEDDED = "embedded"  # the model in the package
MOST_PROMPTS = 100_000  # of one evaluation or demo: a larger number is a typing error and would fill the memory

Model = Annotated[str, Argument(help=f'A folder or a hub id of a transformers model, or "{EMBEDDED}"')]
PromptFiles = Annotated[list[Path], Option("--prompt-file", help="A text file; repeat the option for several")]
Most = Annotated[int | None, Option(help="Read at most this many tokens of each prompt file")]
Seed = Annotated[int, Option(help="Seed that chooses the text, the facts and where they are hidden")]
Device = Annotated[str, Option(help="cpu, cuda, or auto: cuda if there is one")]
Dtype = Annotated[
    str,
    Option(help="Dtype of weights and attention: float32, bfloat16, float16, float64, or auto: as the model was saved"),
]
