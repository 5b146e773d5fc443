"""Checks that prompts fit a model's positions.

A model with learned positions has a table of them: a token beyond its end is an error deep in the model. Computed
positions (RoPE) have no end, but a model may fail on positions that it never saw in training. A short prompt shows
which kind a model has.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LOOK = 4  # tokens of the short prompt


def check_lengths(model: Any, prompts: Iterable[tuple[object, list[int]]], generated: int = 0) -> None:
    """Check that a model has positions for each prompt, given with its name, and for the tokens generated after it.

    Raises ValueError for more positions than a model has learned. Warns if a model that computes positions needs more
    than its `max_position_embeddings`.
    """
    given = list(prompts)
    made_for = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    learned = learned_positions(model, _ordinary(model, given[0][1])) if given else None
    later = max(generated - 1, 0)  # the last token is never read
    for name, tokens in given:
        needed = len(tokens) + later
        size = f"{str(name)!r} has {len(tokens):,} tokens"
        size += f", with {generated:,} to generate {needed:,} positions" if later else ""
        if learned is not None and needed > learned:
            mend = f"pass --most {learned - later}" if later < learned else f"pass --tokens {learned // 2} or less"
            raise ValueError(
                f"prompt-file: {size}; allowed are {learned:,}, because the model has a learned vector for each "
                f"position and no more than these: {mend}"
            )
        if learned is None and isinstance(made_for, int) and needed > made_for:
            warnings.warn(
                f"sparsekit: {size}, and the model was made for {made_for:,} (max_position_embeddings): beyond them "
                "its answers may be worthless, dense or sparse",
                stacklevel=2,
            )


def most_positions(model: Any) -> int | None:
    """Return a model's number of positions, from its table of them or its config; None if neither has it."""
    text = model.config.get_text_config()
    token = next(id for id in range(LOOK) if id != getattr(text, "pad_token_id", None))
    learned, made_for = learned_positions(model, token), getattr(text, "max_position_embeddings", None)
    return learned if learned is not None else made_for if isinstance(made_for, int) else None


@torch.no_grad()
def learned_positions(model: Any, token: int) -> int | None:
    """Return the number of positions that a model has learned, or None if it computes them.

    On a prompt that repeats one token, the table of positions is the only table that a model reads row after row. The
    first row may have an offset, as in OPT.
    """
    tables = _Tables({parameter.data_ptr(): name for name, parameter in model.named_parameters()})
    with tables:
        model.base_model(torch.full((1, LOOK), token, device=model.device), use_cache=False)
    return min(tables.positions, default=None)


class _Tables(TorchDispatchMode):
    """A mode that records how many positions each table holds that is read row after row."""

    def __init__(self, parameters: Mapping[int, str]) -> None:
        super().__init__()
        self.positions: list[int] = []
        self._parameters = parameters  # names by address

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten.embedding.default:
            self._look(args[0], args[1])
        elif func is aten.index_select.default and args[1] == 0 and args[0].data_ptr() in self._parameters:
            self._look(args[0], args[2])
        elif func is aten.index.Tensor and len(args[1]) == 1 and args[0].data_ptr() in self._parameters:
            self._look(args[0], args[1][0])
        return func(*args, **(kwargs or {}))

    def _look(self, table: Tensor, rows: Tensor) -> None:
        if rows.numel() == LOOK and rows.dtype != torch.bool:
            first, *others = rows.flatten().tolist()
            if others == list(range(first + 1, first + LOOK)):
                self.positions.append(table.shape[0] - first)


def _ordinary(model: Any, tokens: list[int]) -> int:
    """Return a token of a prompt that is not padding: some models give padding no position."""
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    return next((token for token in tokens if token != padding), tokens[0])
