"""The pipeline of each layer: as an argument, as a schedule, and as the file sparsekit.json beside a model.

{"pipeline": {"15-30": "token_coverage(tau=0.02) | flex_prefill", "default": "dense"}}
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from rich.table import Table

from .files import write_whole
from .pipeline import Pipeline
from .registry import by_new_names

FILE = "sparsekit.json"  # the name of a schedule beside its model
NAME = 12  # letters of a spec that fit into a table of 80 columns
DENSE = "dense"
Layers: TypeAlias = dict[int | str, Pipeline | str]  # a layer, a range "4-7" or "default", to a pipeline or its spec
Given = Pipeline | str | Mapping[int | str, Pipeline | str]


def to_pipeline(given: Any) -> Pipeline:
    """Return a pipeline, given one, a recipe's name or a spec. Raises ValueError for anything else."""
    pipeline = Pipeline.from_spec(given) if isinstance(given, str) else given
    if not isinstance(pipeline, Pipeline):
        raise ValueError(
            f"pipeline: got {given!r}; allowed are a Pipeline, a spec, or a mapping of layers to those: pass one"
        )
    return pipeline


def pipeline_unless_dense(given: Any) -> Pipeline | None:
    """Do as `to_pipeline`, but return None for a dense pipeline."""
    pipeline = to_pipeline(given)
    return pipeline if pipeline.stages else None


def by_layer(pipeline: Any, layers: list[int], only: Any = None) -> dict[int, Pipeline | None]:
    """Return the pipeline of each of a model's layers, None for dense.

    `pipeline` is one for all layers or a mapping from layers to pipelines; `only` names the layers that get a single
    one. Raises ValueError for something that is no pipeline, a layer that the model lacks or that is named twice.
    """
    if only is not None:
        if isinstance(pipeline, Mapping):
            raise ValueError(
                f"layers: got {only!r} beside a mapping; allowed is None there, because a mapping names its layers: "
                "leave layers out"
            )
        names = [only] if isinstance(only, int | str) else list(only)
        pipeline = {name: pipeline for name in names} | {"default": "dense"}
    if not isinstance(pipeline, Mapping):
        return dict.fromkeys(layers, pipeline_unless_dense(pipeline))
    chosen: dict[int, Pipeline | None] = {}
    for name, one in pipeline.items():
        for layer in () if name == "default" else _numbers(name):
            if layer not in layers:
                raise ValueError(
                    f"pipeline: got layer {layer}, but the model has {layers[0]} to {layers[-1]}: name one of those"
                )
            if layer in chosen:
                raise ValueError(f"pipeline: layer {layer} is named twice, again by {name!r}: keep one of the entries")
            chosen[layer] = pipeline_unless_dense(one)
    default = pipeline_unless_dense(pipeline.get("default", "dense"))
    return {layer: chosen.get(layer, default) for layer in layers}


def without_break_even(pipeline: Pipeline | Layers) -> Pipeline | Layers:
    """Return the pipelines with `break_even=0` in every layer: their stages also run on short prompts."""
    if isinstance(pipeline, dict):
        return {name: Pipeline([to_pipeline(one)], break_even=0) for name, one in pipeline.items()}
    return Pipeline([pipeline], break_even=0)


def by_range(specs: Mapping[int, str]) -> Layers:
    """Name neighbours with the same spec once: {0: a, 1: a, 2: b} -> {"0-1": a, "2": b}."""
    runs: list[list[int]] = []
    for layer in sorted(specs):
        if runs and runs[-1][-1] == layer - 1 and specs[runs[-1][-1]] == specs[layer]:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return {str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}": specs[run[0]] for run in runs}


def numbered(layers: Iterable[int]) -> str:
    """Return layers as text: [0, 1, 2, 5] -> "layers 0-2, 5"."""
    names = list(by_range(dict.fromkeys(layers, "")))
    return f"layer{'s' if len(names) > 1 or '-' in str(names[0]) else ''} {', '.join(map(str, names))}"


@dataclass(frozen=True)
class Measured:
    """The figures of one pipeline in one layer, over all prompts."""

    layer: int
    pipeline: str  # spec
    ms: float  # time to decide and attend, mean over prompts
    kept: float  # part of the queries, in [0, 1], mean over prompts
    density: float  # part of the dense pairs, in [0, 1], mean over prompts
    mass: float  # attention probability on the computed pairs, in [0, 1], for the worst prompt and rows
    error: float  # |output - dense| / |dense|, for the worst prompt and rows
    chosen: bool = False  # whether the layer gets this pipeline

    @property
    def score(self) -> float:
        """The figure that a target is compared with: 1 - `error`."""
        return 1 - self.error


@dataclass(frozen=True)
class Schedule:
    """A pipeline for each layer; `sparsify(model, schedule.pipeline)` applies it."""

    pipeline: Layers  # specs
    measured: tuple[Measured, ...] = ()  # every candidate in every layer
    target: float | None = None  # the least score that every layer must have
    sinks: Mapping[int, Mapping[str, float]] = field(default_factory=dict)  # by layer, the `Sinks.figures` of a profile

    @property
    def chosen(self) -> dict[int, Measured]:
        """By layer, the figures of the pipeline that it gets."""
        return {one.layer: one for one in self.measured if one.chosen}

    @property
    def dense(self) -> dict[int, Measured]:
        """By layer, the figures of dense attention."""
        return {one.layer: one for one in self.measured if one.pipeline == DENSE}

    @property
    def speed_up(self) -> float:
        """Dense attention's time over the schedule's, for all layers; 1 if nothing was measured."""
        before, after = (sum(one.ms for one in of.values()) for of in (self.dense, self.chosen))
        return before / after if after else 1.0

    def _called(self) -> dict[str, str]:
        """Return, for each spec too long for a table, the number that stands for it."""
        long = [spec for spec in dict.fromkeys(one.pipeline for one in self.chosen.values()) if len(spec) > NAME]
        return {spec: f"({number})" for number, spec in enumerate(long, 1)}

    def legend(self) -> list[str]:
        """Return the specs that the numbers in the table stand for, a line each."""
        return [f"{number} {spec}" for spec, number in self._called().items()]

    def table(self) -> Table:
        """Return the table for rich: every layer with its pipeline; numbers stand for long ones, see `legend`."""
        table = Table(
            "layer",
            "pipeline",
            title=f"schedule: attention {self.speed_up:.2f} times as fast as dense",
            caption=f"1 - output error is at least {self.target} in every layer; ms: of a prompt",
        )
        for name in ("mass kept", "output error", "density", "ms", "dense ms"):
            table.add_column(name, justify="right")
        called = self._called()
        for layer, one in self.chosen.items():
            figures = f"{one.mass:.4f}", f"{one.error:.1e}", f"{one.density:.3f}", f"{one.ms:.2f}"
            table.add_row(str(layer), called.get(one.pipeline, one.pipeline), *figures, f"{self.dense[layer].ms:.2f}")
        return table

    def save(self, path: Path | str) -> Path:
        """Write the schedule as JSON, whole; in a folder the file is sparsekit.json. Return the file's path."""
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        layers = [asdict(one) for one in self.measured]
        measured: dict[str, Any] = {"target": self.target, "layers": layers} if layers else {}
        measured |= {"sinks": self.sinks} if self.sinks else {}
        return _write(path, {"pipeline": self.pipeline, "measured": measured})

    @classmethod
    def load(cls, path: Path | str) -> "Schedule":
        """Read the schedule in a file, or in the sparsekit.json of a folder. Raises ValueError for anything else."""
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        try:
            content = _read(path)
            layers, measured = content["pipeline"], content.get("measured", {})
            layers = {"default": layers} if isinstance(layers, str) else layers
            schedule = cls(
                {name: to_pipeline(spec).to_spec() for name, spec in layers.items()},
                tuple(_measured(**one) for one in measured.get("layers", ())),
                measured.get("target"),
                {int(layer): dict(one) for layer, one in measured.get("sinks", {}).items()},
            )
        except OSError as error:
            raise ValueError(
                f"path: {str(path)!r} cannot be read ({error.strerror}); allowed is a file that Schedule.save wrote: "
                "pass one"
            ) from error
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"path: {str(path)!r} is no schedule ({type(error).__name__}: {error}); allowed is JSON like "
                '{"pipeline": {"0-3": "dense", "4": "token_coverage"}}: save one with Schedule.save'
            ) from error
        return schedule


def save_pipeline(folder: Path | str, pipeline: Given) -> Path:
    """Write a pipeline, or a mapping from layers to pipelines, beside a model; `sparsify(model)` reads it there.

    Returns the file's path. Raises ValueError for something that is no folder or no pipeline, and for a stage that has
    no name in a spec.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"folder: got {str(folder)!r}; allowed is the folder of a saved model: save the model first")
    if isinstance(pipeline, Mapping):
        for name in pipeline:
            _ = name == "default" or _numbers(name)
        text: Any = {str(name): _text(one) for name, one in pipeline.items()}
    else:
        text = _text(pipeline)
    return _write(Path(folder) / FILE, {"pipeline": text})


def load_pipeline(folder: Path | str) -> Given:
    """Read what `save_pipeline` wrote: a spec, or a mapping from layers to specs. Raises ValueError without a file."""
    path = Path(folder) / FILE
    if not str(folder) or not path.is_file():
        raise ValueError(
            f"pipeline: got none, and there is no {FILE} in {str(folder)!r}; allowed are a pipeline, or a model loaded "
            "from a folder with that file: pass a pipeline, or write the file with save_pipeline"
        )
    try:
        pipeline = _read(path)["pipeline"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: not such a file ({error!r}); allowed is {{"pipeline": a spec, or layers and their specs}}: write '
            "it with save_pipeline"
        ) from None
    return pipeline


def read_pipeline(text: str) -> Pipeline | Layers:
    """Return the argument for `sparsify`, given a spec or the path of a schedule: a .json file, or a folder with one.

    Raises ValueError for a spec that does not parse or a file that is no schedule.
    """
    if text.endswith(".json") or os.path.isfile(os.path.join(text, FILE)):  # unlike Path, False for a long spec
        return Schedule.load(text).pipeline
    try:
        return Pipeline.from_spec(text)
    except ValueError as error:
        if os.path.exists(text):
            raise ValueError(
                f"pipeline: got the path {text!r}, which is no schedule; allowed are a spec, a .json file, or a folder "
                f"with a {FILE}: save one with sparsekit profile or calibrate"
            ) from error
        raise


def _measured(pipeline: str, **figures: Any) -> Measured:
    """Return the figures in a file, with the present names of parameters in the spec."""
    return Measured(pipeline=by_new_names(pipeline), **figures)


def _numbers(name: int | str) -> Iterable[int]:
    """Return the layers of a name: a number, or a range such as "15-30"."""
    if isinstance(name, int) and not isinstance(name, bool):
        return [name]
    match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", name) if isinstance(name, str) else None
    if not match or (match[2] and int(match[2]) < int(match[1])):
        raise ValueError(
            f'pipeline: got {name!r} for a layer; allowed are a number, a range like "15-30" and "default": write it so'
        )
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _text(one: Any) -> str:
    """Return the text of a pipeline in the file."""
    pipeline = pipeline_unless_dense(one)
    return one if isinstance(one, str) else pipeline.to_spec() if pipeline else "dense"


def _write(path: Path, content: Mapping[str, Any]) -> Path:
    """Write JSON whole, or not at all."""
    return write_whole(path, json.dumps(content, indent=1) + "\n")


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())  # in any encoding of JSON, with or without a byte order mark
