"""The demo: a long-context model answers questions about real text, dense beside sparse.

Facts are hidden in real text (`testbed`), each question has a prompt of its own, and every pipeline reads every
prompt, one after another, so that all times are of the same run.
"""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table

from . import testbed
from .parameters import check_count
from .pipeline import Pipeline
from .plan import Plan
from .problem import Problem
from .timing import now_ms

PIPELINES = {
    "dense": "dense",
    "token": "token_coverage(tau=0.02)",
    "token + fill": "token_coverage(tau=0.2) | decompress(fill=sliding_window(128))",
    "block": "flex_prefill(gamma=0.95)",
    "stacked": "token_coverage(tau=0.05) | flex_prefill(gamma=0.99) | decompress(fill=sliding_window(128))",
}
WARM_UP = 1024  # bytes of an untimed prompt before each pipeline's first


@dataclass(frozen=True)
class Answer:
    """One pipeline's answer to one question."""

    task: str
    expected: str
    got: str
    right: bool
    attention_ms: float  # deciding and attending, all layers, of the prefill
    answer_ms: float  # the whole model, prefill and decode
    kept: float  # part of the queries, in [0, 1], mean over layers
    density: float  # part of the dense pairs, in [0, 1], mean over layers


@dataclass(frozen=True)
class Row:
    """One pipeline over all questions."""

    name: str
    spec: str
    answers: tuple[Answer, ...]

    @property
    def right(self) -> int:
        return sum(answer.right for answer in self.answers)

    @property
    def attention_ms(self) -> float:
        return statistics.median(answer.attention_ms for answer in self.answers)

    @property
    def answer_ms(self) -> float:
        return statistics.median(answer.answer_ms for answer in self.answers)

    @property
    def kept(self) -> float:
        return statistics.mean(answer.kept for answer in self.answers)

    @property
    def density(self) -> float:
        return statistics.mean(answer.density for answer in self.answers)


@dataclass(frozen=True)
class Picture:
    """One layer's attention to draw: where the last pipeline read its first prompt."""

    problem: Problem
    plan: Plan
    layer: int
    head: int


@dataclass(frozen=True)
class Demo:
    """What the demo found. The first row is dense."""

    length: int  # bytes of a prompt
    device: str
    rows: tuple[Row, ...]
    picture: Picture

    def speed_up(self, row: Row) -> float:
        """Of attention, over dense in the same run: the median over the questions."""
        return statistics.median(
            dense.attention_ms / mine.attention_ms
            for dense, mine in zip(self.rows[0].answers, row.answers, strict=True)
        )

    def table(self) -> Table:
        """For rich."""
        table = Table(
            "pipeline",
            title=f"{len(self.rows[0].answers)} questions about {self.length:,} bytes of real text, on {self.device}",
            caption="attention: deciding and attending in all layers of the prefill, median; answer: the whole model",
        )
        for name in ("right", "attention ms", "speed-up", "kept", "density", "answer ms"):
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(
                row.name,
                f"{row.right}/{len(row.answers)}",
                f"{row.attention_ms:,.0f}",
                f"{self.speed_up(row):.2f}x",
                f"{row.kept:.3f}",
                f"{row.density:.3f}",
                f"{row.answer_ms:,.0f}",
            )
        return table

    def sentences(self) -> list[str]:
        """What the table says, in words: for each pipeline whether it kept the answers, and each wrong one."""
        said = []
        for row in self.rows:
            wrong = [answer for answer in row.answers if not answer.right]
            speed = self.speed_up(row)
            gain = f"{speed:.2f} times faster" if speed > 1.005 else f"{1 / speed:.2f} times SLOWER"
            gain = "the yardstick" if row is self.rows[0] else f"attention {gain} than dense"
            answers = "every answer right" if not wrong else f"{len(wrong)} of {len(row.answers)} answers WRONG"
            spec = "" if row.spec == row.name else f" = {row.spec}"
            said.append(f"{row.name}{spec}: {answers}, {gain}")
            said += [f"    {a.task}: expected {a.expected!r}, got {a.got!r}" for a in wrong]
        return said

    def save(self, path: Path) -> Path:
        """The figures as JSON, written whole."""
        rows = [
            {
                "name": row.name,
                "pipeline": row.spec,
                "right": row.right,
                "questions": len(row.answers),
                "attention_ms": row.attention_ms,
                "speed_up": self.speed_up(row),
                "kept": row.kept,
                "density": row.density,
                "answer_ms": row.answer_ms,
                "answers": [asdict(answer) for answer in row.answers],
            }
            for row in self.rows
        ]
        found = {"length": self.length, "device": self.device, "torch": torch.__version__, "rows": rows}
        unfinished = path.with_name(f".{path.name}")
        unfinished.write_text(json.dumps(found, indent=1) + "\n")
        return unfinished.replace(path)


def run_demo(
    text: bytes,
    *,
    length: int = 16384,
    questions: int = 4,
    pipelines: Mapping[str, str] = PIPELINES,
    seed: int = 0,
    device: str = "cpu",
    on_step: Callable[[int, int, str], None] | None = None,
) -> Demo:
    """Ask the embedded model `questions` questions, each hidden in `length` bytes of `text`, under each pipeline.

    `pipelines` are specs by name; dense is the first row whether it is among them or not. `on_step(done, total,
    name)` is called after each answer. Raises ValueError for a length below 1024, a text too short, or a spec that
    does not parse.
    """
    check_count("questions", questions, 1)
    asked = {name: Pipeline.from_spec(spec) for name, spec in pipelines.items()}
    asked = {"dense": Pipeline()} | {name: made for name, made in asked.items() if made != Pipeline()}
    # the small model's attention is cheap on a GPU; what is asked here is what each pipeline does, worth it or not
    parsed = {name: Pipeline([made], break_even=0) for name, made in asked.items()}
    tasks = [testbed.TASKS[name] for name in testbed.TRAINED]
    samples = [tasks[i % len(tasks)](text, length, seed + i) for i in range(questions)]
    warm_up = tasks[0](text, min(length, WARM_UP), seed)
    where = torch.device(device)
    model = testbed.load_model(torch.float32 if where.type == "cpu" else torch.bfloat16, where)

    answers: dict[str, list[Answer]] = {name: [] for name in parsed}
    pictures: list[Picture] = []
    for number, sample in enumerate(samples):
        for name, pipeline in parsed.items():
            if not number:
                _ask(model, warm_up, pipeline)
            answer, picture = _ask(model, sample, pipeline)
            answers[name].append(answer)
            if not number:
                pictures.append(picture)
            if on_step:
                on_step(sum(map(len, answers.values())), questions * len(parsed), name)
    rows = tuple(Row(name, asked[name].to_spec(), tuple(mine)) for name, mine in answers.items())
    chip = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return Demo(length, chip, rows, pictures[-1])


def _ask(model, sample: testbed.Sample, pipeline: Pipeline) -> tuple[Answer, Picture]:
    from .integrations.transformers import LayerCall, sparsify  # transformers is an optional extra

    found: list[tuple[float, float, float]] = []
    pictures: list[Picture] = []
    spent = 0.0  # on looking, which is not the model's time
    middle = model.config.num_hidden_layers // 2

    def watch(call: LayerCall) -> None:
        nonlocal spent
        began = now_ms(model.device)
        found.append((call.ms, call.plan.kept(call.problem), call.plan.density(call.problem)))
        if call.layer == middle:
            busiest = int(call.plan.work(call.problem)[0].argmax())
            pictures.append(Picture(call.problem, call.plan, call.layer, busiest))
        spent += now_ms(model.device) - began

    with sparsify(model, pipeline, watch=watch):
        began = now_ms(model.device)
        got = testbed.generate_answer(model, sample.prompt, len(sample.answer))
        whole = now_ms(model.device) - began - spent
    ms, kept, density = (list(column) for column in zip(*found, strict=True))
    answer = Answer(
        sample.task,
        sample.answer.decode(),
        got.decode(errors="replace"),
        got == sample.answer,
        sum(ms),
        whole,
        statistics.mean(kept),
        statistics.mean(density),
    )
    return answer, pictures[-1]
