"""The demo: a long-context model answers questions about real text, with dense and with sparse attention.

Each question has its own prompt, with facts hidden in real text. `compare` asks the questions; this module shows its
records, and draws the plan of one layer.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Column, Table

from . import testbed
from .checks import check_count
from .evaluation.comparison import DENSE, Prompts, compare
from .evaluation.price import first_token
from .evaluation.records import Records
from .evaluation.rows import Row, front
from .files import write_whole
from .pipeline import Pipeline
from .plan import Plan
from .problem import Problem
from .testbed.source import Bytes

PIPELINES = {
    "dense": "dense",
    "token": "token_coverage(tau=0.2)",
    "+ window": "token_coverage(tau=0.2) | decompress(fill=sliding_window(128, sinks=0))",
    "+ window, sinks": "token_coverage(tau=0.2) | decompress(fill=sliding_window(128))",
    "block": "flex_prefill(gamma=0.95)",
    "stacked": "token_coverage(tau=0.05) | flex_prefill(gamma=0.99) | decompress(fill=sliding_window(128))",
}
BESIDE = ("token", "+ window", "+ window, sinks")  # pipelines with the same tokens, which are drawn side by side
TIMED = {"cpu": 1, "cuda": 3}  # timed passes of the first question: one takes seconds on a CPU


@dataclass(frozen=True)
class Answer:
    """A pipeline's answer to a question; it is right if every value in it is."""

    task: str
    expected: str
    got: str
    right: bool


@dataclass(frozen=True)
class Demo:
    """The results of a demo, and one layer's attention to draw, from the prefill of the first prompt."""

    device: str
    rows: tuple[Row, ...]  # one for each pipeline, the model's own dense attention first
    answers: Mapping[str, tuple[Answer, ...]]  # by pipeline
    problem: Problem
    plans: Mapping[str, Plan]  # by pipeline to draw; if several, the same tokens with each one's fill
    layer: int
    head: int

    def right(self, row: Row) -> int:
        """Count the right answers of a pipeline."""
        return sum(answer.right for answer in self.answers.get(row.pipeline, ()))

    def speed_up(self, row: Row) -> float | None:
        """Return the time of the model's own dense attention over the pipeline's, if both were timed."""
        own = self.rows[0].attention_ms
        return own.p50 / row.attention_ms.p50 if own and row.attention_ms else None

    def draw(self, path: Path) -> Path:
        """Draw one head of one layer: a plan beside dense attention, or several fills side by side. Return `path`.

        Raises ImportError without matplotlib.
        """
        from .plots import draw_fills, draw_plan

        rows = {row.pipeline: row for row in self.rows}
        where = f"layer {self.layer}, head {self.head}"
        if len(self.plans) == 1:
            [(name, plan)] = self.plans.items()
            return draw_plan(self.problem, plan, path, head=self.head, title=f"{rows[name].spec}\n{where}")
        questions = len(self.answers[self.rows[0].pipeline])
        right = [f"{self.right(rows[name])} of {questions} answers right" for name in self.plans]
        return draw_fills(self.problem, self.plans, path, right, head=self.head, title=where)

    def table(self) -> Table:
        """Return the figures as a table for rich."""
        first = self.rows[0]
        questions = len(self.answers[first.pipeline])
        table = Table(
            Column("pipeline", no_wrap=True),
            title=f"{questions} questions about {first.length:,} bytes of real text, on {self.device}",
            caption="attention: deciding and attending in all layers; prefill: the whole model, to the first token",
        )
        for name in ("right", "attention ms", "speed-up", "kept", "density", "prefill ms"):
            table.add_column(name, justify="right")
        for row in self.rows:
            speed = self.speed_up(row)
            table.add_row(
                row.pipeline,
                f"{self.right(row)}/{questions}",
                f"{row.attention_ms.p50:,.0f}" if row.attention_ms else "",
                f"{speed:.2f}x" if speed else "",
                f"{row.kept:.3f}" if row.kept is not None else "",
                f"{row.density:.3f}" if row.density is not None else "",
                f"{row.first_token_ms.p50:,.0f}" if row.first_token_ms else "",
            )
        return table

    def sentences(self) -> list[str]:
        """Return the table in words: for each pipeline whether its answers are right, and each wrong answer."""
        lines = []
        for row in self.rows:
            spec = "" if row.spec == row.pipeline else f" = {row.spec}"
            if row.failed:
                lines.append(f"{row.pipeline}{spec}: BROKE, {row.failed}")
                continue
            answers = self.answers[row.pipeline]
            wrong = [answer for answer in answers if not answer.right]
            speed = self.speed_up(row) or 1.0
            gain = f"{speed:.2f} times faster" if speed > 1.005 else f"{1 / speed:.2f} times SLOWER"
            gain = "the yardstick" if row is self.rows[0] else f"attention {gain} than dense"
            kept = "every answer right" if not wrong else f"{len(wrong)} of {len(answers)} answers WRONG"
            lines.append(f"{row.pipeline}{spec}: {kept}, {gain}")
            lines += [f"    {answer.task}: expected {answer.expected!r}, got {answer.got!r}" for answer in wrong]
        return lines

    def save(self, path: Path) -> Path:
        """Write the figures as JSON, whole. Return `path`."""
        rows = [
            {
                "name": row.pipeline,
                "pipeline": row.spec,
                "right": self.right(row),
                "questions": len(self.answers.get(row.pipeline, ())),
                "attention_ms": row.attention_ms and row.attention_ms.p50,
                "speed_up": self.speed_up(row),
                "kept": row.kept,
                "density": row.density,
                "first_token_ms": row.first_token_ms and row.first_token_ms.p50,
                "answers": [asdict(answer) for answer in self.answers.get(row.pipeline, ())],
            }
            for row in self.rows
        ]
        content = {"length": self.rows[0].length, "device": self.device, "torch": torch.__version__, "rows": rows}
        return write_whole(path, json.dumps(content, indent=1) + "\n")


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

    `pipelines` are specs by name; dense attention is always the first. `on_step(done, total, name)` is called after
    each pass. Raises ValueError for a length below 1024, a text too short, or a spec that does not parse.
    """
    check_count("questions", questions, 1)
    sparse = {name: Pipeline.from_spec(spec) for name, spec in pipelines.items()}
    sparse = {name: pipeline for name, pipeline in sparse.items() if pipeline != Pipeline()}
    source, tasks = Bytes(text), testbed.TRAINED
    prompts = [Prompts(source, (tasks[i % len(tasks)],), (length,), each=1, seed=seed + i) for i in range(questions)]
    where = torch.device(device)
    model = testbed.load_model(torch.float32 if where.type == "cpu" else torch.bfloat16, where)

    records, before = Records(), 0
    for number, prompt in enumerate(prompts):
        later = (len(prompts) - number - 1) * (len(sparse) + 1)
        done = 0

        def step(now: int, total: int, name: str) -> None:
            nonlocal done
            done = now
            if on_step:
                on_step(before + now, before + total + later, name)  # noqa: B023

        timed = 0 if number else TIMED[where.type]
        compare(model, sparse, prompt, records, name="embedded", timed=timed, on_step=step)
        before += done
    rows = [row for row in front(records.lines) if row.pipeline == DENSE or row.pipeline in sparse]
    answers: dict[str, list[Answer]] = {}
    for line in records.lines:
        if line["kind"] == "answers":
            expected = source.decode(source.case(line["task"], line["seed"], length).reply)
            right = line["found"] == line["answers"]
            answers.setdefault(line["pipeline"], []).append(Answer(line["task"], expected, line["answer"], right))
    ran = [row.pipeline for row in rows if not row.failed]
    drawn = BESIDE if set(BESIDE) <= set(ran) else ran[-1:]
    problem, plan, layer, head = _looked_at(model, source.case(tasks[0], seed, length).prompt, sparse.get(drawn[-1]))
    plans = {name: replace(plan, fill=sparse[name].decompress.fill) for name in drawn} if drawn == BESIDE else {}
    by_name = {name: tuple(each) for name, each in answers.items()}
    chip = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return Demo(chip, tuple(rows), by_name, problem, plans or {drawn[0]: plan}, layer, head)


def _looked_at(model: Any, prompt: Sequence[int], pipeline: Pipeline | None) -> tuple[Problem, Plan, int, int]:
    """Return the problem of a middle layer in a prefill, its plan, the layer, and the head with most pairs."""
    from .integrations.transformers import LayerCall, sparsify  # transformers is an optional extra

    middle, caught = model.config.num_hidden_layers // 2, []

    def watch(call: LayerCall) -> None:
        if call.layer == middle:
            caught.append((call.problem, call.plan))

    with sparsify(model, Pipeline([pipeline or Pipeline()], break_even=0), watch=watch):
        first_token(model, torch.tensor([prompt], device=model.device))
    problem, plan = caught[0]
    return problem, plan, middle, int(plan.work(problem)[0].argmax())
