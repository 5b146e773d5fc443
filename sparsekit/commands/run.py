"""sparsekit run"""

import warnings
from typing import Annotated

from rich.console import Console
from typer import Option

from ..checks import check_count
from .options import Device, Dtype, Model, Most, PromptFiles


def run(
    model: Model,
    prompt_file: PromptFiles,
    pipeline: Annotated[str, Option(help="Spec of a pipeline, or a schedule: a .json file or a folder with one")],
    tokens: Annotated[int, Option(help="Tokens to generate, at least 1")] = 64,
    most: Most = None,
    chat: Annotated[
        bool, Option("--chat", help="Put each text into the model's chat template, as a user's message")
    ] = False,
    device: Device = "auto",
    device_map: Annotated[
        str | None, Option(help="Spread the model over devices, as accelerate does: auto, balanced, sequential, ...")
    ] = None,
    dtype: Dtype = "auto",
) -> None:
    """Continue a text, dense and sparse, and compare: time to the first token, continuations, and what ran sparse."""
    from ..integrations.transformers import sparsify
    from ..layers import read_pipeline
    from . import turns
    from .loading import load, read_prompts, require_chat
    from .positions import check_lengths
    from .progress import progress

    check_count("tokens", tokens, 1)
    sparse, console = read_pipeline(pipeline), Console()
    say = lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
    with progress():
        loaded = load(model, device, dtype=dtype, device_map=device_map)
    words = require_chat(loaded) if chat else None
    prompts = list(zip(prompt_file, read_prompts(prompt_file, loaded.tokenizer, most, words), strict=True))
    with sparsify(loaded.model, sparse):  # raises before anything is timed if the pipeline does not fit the model
        pass
    check_lengths(loaded.model, prompts, tokens)
    for file, prompt in prompts:
        with progress() as on_step, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "sparsekit: .* (runs|ran) dense")  # `what_ran` reports it
            dense, answer = turns.compare(loaded.model, prompt, tokens, sparse, on_step)
        say(f"{file}: {len(prompt):,} tokens")
        console.print(turns.table(dense, answer))
        for line in (
            turns.what_ran(str(file), answer.layers, len(prompt)),
            turns.how_sure(dense, answer),
            turns.sinks(answer.layers),
        ):
            if line:
                say(line)
        for name, result in {"dense": dense, "sparse": answer}.items():
            text = loaded.tokenizer.decode_after(prompt, result.runs[0].tokens).decode(errors="replace")
            say(f"{name}: {text!r}")
        same = dense.runs[0].tokens == answer.runs[0].tokens
        say("the continuations are the same" if same else "the continuations DIFFER")
