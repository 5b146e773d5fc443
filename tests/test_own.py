"""Tests of custom stages: their names in specs, files and commands, and the laws for them."""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from shutil import copytree
from typing import ClassVar

import numpy as np
import pytest
import torch

import sparsekit as sk
from sparsekit import Blocks, Pipeline, Plan, Tokens, registry
from sparsekit.cli import main
from sparsekit.integrations.transformers import load_pipeline, save_pipeline
from sparsekit.layers import Schedule, read_pipeline
from sparsekit.testing import check_stage

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Remove the stages that a test registered, after the test."""
    monkeypatch.setattr(registry, "_own", {})
    monkeypatch.setattr(registry, "_replaced", [])
    yield
    registry._entries.cache_clear()


@dataclass(frozen=True)
class NearBlocks:
    """A stage that keeps the first block of keys and the nearest ones."""

    near: int = 1
    block_size: int = 2
    chooses: ClassVar[str] = "blocks"

    def kept(self, problem):
        first, end, edge = (x[..., None] for x in problem.block_range(self.block_size))
        block = torch.arange(-(-problem.k.shape[2] // self.block_size))
        return (block >= first) & (block < end) & ((block == 0) | (block >= edge - self.near))

    def __call__(self, problem):
        return Plan(blocks=Blocks.of(self.kept(problem), (self.block_size, self.block_size)))


DENSE = NearBlocks(near=2**30)


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_registered_class_has_a_name_in_specs_files_and_below_a_union(tmp_path):
    assert sk.register(NearBlocks) is NearBlocks
    spec = "token_coverage(tau=0.1) | near_blocks(near=3) | union(patterns=[near_blocks, streaming])"
    pipeline = Pipeline.from_spec(spec)
    assert pipeline.stages[1:] == (NearBlocks(3), sk.Union([NearBlocks(), sk.Streaming()]))
    assert pipeline.to_spec() == spec and Pipeline.from_spec(pipeline.to_spec()) == pipeline
    schedule = Schedule({"0-3": "dense", "default": pipeline.to_spec()})
    assert Schedule.load(schedule.save(tmp_path)).pipeline == schedule.pipeline == read_pipeline(str(tmp_path))
    save_pipeline(tmp_path, {"0": Pipeline([NearBlocks(7)])})
    assert load_pipeline(tmp_path) == {"0": "near_blocks(near=7)"}


def test_what_has_no_name_is_told_how_it_gets_one():
    with pytest.raises(ValueError, match=r"NearBlocks\(.* has no name in a spec; .* with sparsekit\.register$"):
        Pipeline([NearBlocks()]).to_spec()


@dataclass
class Thawed:
    def __call__(self, problem):
        return Plan()


@dataclass(frozen=True)
class NoStage:
    near: int = 1


class NoData:
    def __call__(self, problem):
        return Plan()


@dataclass(frozen=True)
class Streaming(NearBlocks):
    pass


@dataclass(frozen=True)
class Balanced(NearBlocks):
    pass


@dataclass(frozen=True)
class Dense(NearBlocks):
    pass


@dataclass(frozen=True)
class Lambda(NearBlocks):
    pass


@pytest.mark.parametrize(
    "cls,message",
    [
        (Thawed, "Thawed, a dataclass that is not frozen; allowed is a stage"),
        (NoStage, "NoStage, a class whose instances cannot be called with a Problem; allowed is a stage"),
        (NoData, r"NoData, .* no dataclass \(yet\); allowed is a stage, .*: write @sparsekit.register above"),
        (NearBlocks(), r"NearBlocks\(.*\), no class; allowed is a stage"),
        (lambda problem: Plan(), "lambda.*, no class; allowed is a stage"),
        (Lambda, "Lambda, a class whose name in snake case is a Python keyword"),
        (Streaming, "Streaming, but 'streaming' is built in; allowed is .*: rename the class"),
        (Balanced, "Balanced, but 'balanced' is built in"),
        (Dense, "Dense, but 'dense' is built in"),
    ],
)
def test_what_cannot_be_registered_is_refused_in_one_line(cls, message):
    with pytest.raises(ValueError, match=f"^cls: got .*{message}") as refused:
        sk.register(cls)
    assert "\n" not in str(refused.value) and registry._own == {}


def test_a_name_is_taken_by_another_class_and_not_by_the_same_one_again():
    def cell():
        @sk.register
        @dataclass(frozen=True)
        class Mine(NearBlocks):
            pass

        return Mine

    old, new = cell(), cell()
    assert Pipeline.from_spec("mine").stages == (new(),) and Pipeline([new()]).to_spec() == "mine"
    with pytest.raises(ValueError, match="registered anew since; allowed is the newest: make it again"):
        Pipeline([old()]).to_spec()

    @dataclass(frozen=True)
    class Mine(NearBlocks):
        pass

    with pytest.raises(ValueError, match=r"but 'mine' is the name of .*cell\.<locals>\.Mine; .*: rename the class"):
        sk.register(Mine)


def test_a_compiled_call_runs_the_newest_class():
    """The operator caches the pipeline of a spec, but a class that is registered again must replace it."""

    def cell(near):
        @sk.register
        @dataclass(frozen=True)
        class Mine(NearBlocks):
            def __call__(self, problem):
                return NearBlocks(near)(problem)

    q = torch.randn(1, 1, 24, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for near in (1, 4):
        cell(near)
        out, _ = torch.ops.sparsekit.attention(q, q, q, "mine | attend(break_even=0)", True, None)
        torch.testing.assert_close(out, Pipeline([NearBlocks(near)], break_even=0)(q, q, q))


def test_a_stage_of_ones_own_with_a_name_is_not_built_in():
    """It gets no CUDA graph, because a graph would not repeat its work on the host."""
    sk.register(NearBlocks)
    built_in = sk.Union([sk.Streaming(), sk.BlockTopK()])
    assert Pipeline([built_in, sk.Decompress(sk.SlidingWindow())])._lawful
    for own in (NearBlocks(), sk.Union([sk.Streaming(), NearBlocks()])):
        pipeline = Pipeline([sk.TokenCoverage(), own])
        assert pipeline._spec is not None and not pipeline._lawful


@dataclass(frozen=True)
class Anything(NearBlocks):
    what: object = None
    found: int = field(default=0, init=False)


def test_a_parameter_is_written_so_that_it_is_read_or_not_at_all():
    sk.register(Anything)
    for what in (None, True, 3, -2.5, "a 'b' \n", 1e-300):
        assert Pipeline.from_spec(Pipeline([Anything(what=what)]).to_spec()).stages == (Anything(what=what),)
    for what in (np.float32(0.5), np.int64(3)):
        assert Pipeline([Anything(what=what)]).to_spec() == f"anything(what={what.item()!r})"
    for what in (float("inf"), torch.float16, len, {1: 2}):
        with pytest.raises(ValueError, match=r"^stages: got the parameter .*; allowed in a spec are finite numbers"):
            Pipeline([Anything(what=what)]).to_spec()


@pytest.mark.parametrize(
    "spec,meant",
    [
        ("token_coverge", "token_coverage"),
        ("TokenCoverage", "token_coverage"),
        ("dens", "dense"),
        ("ballanced", "balanced"),
        ("near_block(near=2)", "near_blocks"),
        ("decompress(fill=sliding_windows(3))", "sliding_window"),
        ("union([streamin])", "streaming"),
    ],
)
def test_the_name_that_was_meant_is_told(spec, meant):
    sk.register(NearBlocks)
    with pytest.raises(ValueError, match=rf"^spec: at position .*\(did you mean {meant}\?\)"):
        Pipeline.from_spec(spec)


def test_a_name_like_no_other_is_met_without_a_guess():
    with pytest.raises(ValueError, match="there is no 'qqqq'; allowed are dense"):
        Pipeline.from_spec("qqqq")


# --- entry points -----------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that puts a package with entry points on the path."""

    def install(package, source, **entries):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / f"{package}.py").write_text(source)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[sparsekit.stages]\n{lines}")
        registry._entries.cache_clear()
        monkeypatch.delitem(sys.modules, package, raising=False)

    return install


STAGE = """
from dataclasses import dataclass
from sparsekit import Plan
@dataclass(frozen=True)
class HalfDense:
    part: float = 0.5
    def __call__(self, problem):
        return Plan()
"""


def test_an_entry_point_is_read_when_its_name_is_looked_up_and_once(installed, monkeypatch):
    installed("own_half", STAGE, half_dense="own_half:HalfDense")
    reads = []
    real = registry.entry_points
    monkeypatch.setattr(registry, "entry_points", lambda **which: reads.append(which) or real(**which))
    assert Pipeline.from_spec("token_coverage | streaming").to_spec() == "token_coverage | streaming"
    assert reads == [] and "own_half" not in sys.modules, "what is built in asks nobody"
    with pytest.raises(ValueError, match=r"there is no 'half_dens' \(did you mean half_dense\?\); .*, half_dense,"):
        Pipeline.from_spec("half_dens")
    assert "own_half" not in sys.modules, "nothing is imported to list the names"
    pipeline = Pipeline.from_spec("half_dense(part=0.25)")
    assert pipeline.to_spec() == "half_dense(part=0.25)" and type(pipeline.stages[0]).__module__ == "own_half"
    assert len(reads) == 1


def test_a_module_may_register_what_an_entry_point_names(installed):
    installed("own_both", STAGE + "import sparsekit\nsparsekit.register(HalfDense)\n", half_dense="own_both:HalfDense")
    assert Pipeline.from_spec("half_dense").to_spec() == "half_dense"


def test_a_name_that_an_installed_package_has_is_taken(installed):
    installed("own_first", STAGE, near_blocks="own_first:HalfDense")
    with pytest.raises(ValueError, match="'near_blocks' is the name of the entry point near_blocks = .* of own_first;"):
        sk.register(NearBlocks)
    installed("own_second", STAGE, near_blocks="own_second:HalfDense")
    with pytest.raises(ValueError, match="the name 'near_blocks' is taken twice, .*own_.* and .*own_.*: uninstall the"):
        Pipeline.from_spec("near_blocks")


@pytest.mark.parametrize(
    "source,value,message",
    [
        (
            "import a_module_that_is_not_there",
            "own_bad:HalfDense",
            r"does not import \(ModuleNotFoundError: .*repair that",
        ),
        ("1 / 0", "own_bad:HalfDense", r"does not import \(ZeroDivisionError"),
        ("class (", "own_bad:HalfDense", r"does not import \(SyntaxError"),
        ("", "own_bad:HalfDense", r"does not import \(AttributeError"),
        (STAGE, "own_bad:Plan", "own_bad:Plan of own_bad: cls: got .*Plan, a class whose instances cannot be called"),
        ("HalfDense = 3", "own_bad:HalfDense", "of own_bad: cls: got 3, no class; allowed is a stage"),
        (STAGE.replace("HalfDense", "Half"), "own_bad:Half", "called 'half' in a spec; .*: give the entry point"),
    ],
)
def test_an_entry_point_that_is_wrong_is_one_line_for_who_asks_for_it(installed, source, value, message):
    installed("own_bad", source, half_dense=value)
    assert Pipeline.from_spec("streaming") == Pipeline([sk.Streaming()]), "others do not suffer"
    with pytest.raises(ValueError, match=f"^spec: .*half_dense.*{message}") as refused:
        Pipeline.from_spec("half_dense")
    assert "\n" not in str(refused.value)


def test_entry_points_are_told_by_value_where_no_package_is_known():
    assert registry._from(EntryPoint("a", "b:C", registry.GROUP)) == "the entry point a = b:C"


@pytest.mark.parametrize(
    "command",
    [
        ["run", "embedded", "--prompt-file", "text"],
        ["profile", "embedded", "--prompt-file", "text"],
        ["calibrate", "embedded", "--prompt-file", "text"],
        ["eval", "embedded", "--length", "1K"],
        ["demo", "--length", "1024"],
    ],
)
def test_every_command_knows_the_name(installed, command, capfd, monkeypatch, tmp_path):
    """The command creates the stage, and prints the stage's error about its parameter."""
    refusing = STAGE.replace(
        "def __call__", "def __post_init__(self): raise ValueError(f'part {self.part}!')\n    def __call__"
    )
    installed("own_told", refusing, half_dense="own_told:HalfDense")
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("some text")
    monkeypatch.setattr(sys, "argv", ["sparsekit", *command, "--pipeline", "half_dense(part=7)"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "part 7!" in capfd.readouterr().err


def test_the_example_package_is_installed_and_found(tmp_path):
    """The test builds and installs its wheel without a network, runs its test, and uses its stage in a command."""
    copytree(ROOT / "examples" / "tri_shape", tmp_path / "source")  # a build writes files beside the source
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", site, tmp_path / "source"], check=True)
    assert sorted(path.name for path in site.glob("*.py")) == ["tri_shape.py"]
    (tmp_path / "text").write_text("for a stage of one's own, some text that is long enough\n" * 8)
    words = ["--prompt-file", tmp_path / "text", "--pipeline", "tri_shape(sinks=4, window=32, block_size=16)"]
    for command in (
        ["pytest", "-q", "-p", "no:cacheprovider", tmp_path / "source" / "tests"],
        ["sparsekit", "run", "embedded", "--tokens", "1", *words],
    ):
        code = (
            f"import sys; sys.path.insert(0, {str(site)!r}); import runpy; sys.argv = {[str(w) for w in command]!r}; "
        )
        code += f"runpy.run_module({command[0]!r}, run_name='__main__', alter_sys=True)"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert ran.returncode == 0, ran.stdout + ran.stderr


# --- the laws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [NearBlocks(), NearBlocks(near=2, block_size=3)], ids=repr)
def test_a_lawful_stage_passes(stage):
    check_stage(stage, looks_ahead=False)


class Wrong(NearBlocks):
    """A lawful stage, into which the functions below plant one fault each."""


def plan_of(kept, size=2):
    return Plan(blocks=Blocks.of(kept, (size, size)))


def changes_its_input(self, problem):
    problem.k.mul_(2)
    return NearBlocks.__call__(self, problem)


def forgets_padding(self, problem):
    """Plant a fault: keep the nearest blocks in the row's buffer, padding included."""
    end = -(-problem.k.shape[2] // 2)
    block = torch.arange(end)
    return plan_of(NearBlocks(2**30).kept(problem) & (NearBlocks().kept(problem) | (block >= end - 2)))


def mixes_sequences(self, problem):
    """Plant a fault: keep keys that are large in the mean over the batch."""
    heavy = problem.k.norm(dim=-1).mean((0, 1)) > 0.5
    heavy[-1] = True
    return Plan(keys=Tokens.of(heavy.expand(problem.k.shape[0], 1, -1)))


def sees_the_future(self, problem):
    """Plant a fault: keep every block, also those after the diagonal."""
    rows, columns = (-(-x.shape[2] // 2) for x in (problem.q, problem.k))
    return plan_of(torch.ones(problem.q.shape[0], 1, rows, columns, dtype=torch.bool))


def looks_ahead(self, problem):
    """Plant a fault: later keys decide which blocks earlier queries see."""
    near = 1 + (problem.k.sum((1, 2, 3)) > 0).int()[:, None, None, None]
    return plan_of(NearBlocks(near).kept(problem))


def loses_the_first_block(self, problem):
    _, end, edge = (x[..., None] for x in problem.block_range(2))
    block = torch.arange(-(-problem.k.shape[2] // 2))
    return plan_of(NearBlocks().kept(problem) & ((block > 0) | (block >= edge.minimum(end - 1))))


def leaves_queries_without_keys(self, problem):
    return plan_of(NearBlocks().kept(problem) & (torch.arange(-(-problem.k.shape[2] // 2)) > 0))


def forgets_windows(self, problem):
    """Plant a fault: with a sliding window keep only the first block, which later queries do not see."""
    first = torch.arange(-(-problem.k.shape[2] // 2)) == 0
    return plan_of(NearBlocks().kept(problem) & first) if problem.sliding_window else NearBlocks.__call__(self, problem)


def is_narrow_inside_windows(self, problem):
    return NearBlocks(1 if problem.sliding_window else self.near)(problem)


def knows_one_head_of_positions(self, problem):
    problem.q_pos.expand(-1, 1, -1)  # more heads after a stage that chooses by head
    return NearBlocks.__call__(self, problem)


def crashes_on_nan(self, problem):
    if not problem.q.isfinite().all():
        raise IndexError("index 7 is out of range")
    return NearBlocks.__call__(self, problem)


def refuses_everything(self, problem):
    raise ValueError("Wrong: not today")


def refuses_without_its_name(self, problem):
    raise ValueError("not today")


def returns_a_mask(self, problem):
    return problem.visible()


def is_random(self, problem):
    return plan_of(
        NearBlocks(2**30).kept(problem) & (torch.rand(-(-problem.k.shape[2] // 2)) < 0.5) | NearBlocks().kept(problem)
    )


DENSELY = {"dense": 2**30}
PLANTED = [
    (leaves_queries_without_keys, {}, "gives a lawful plan: a kept query sees no key"),
    (returns_a_mask, {}, "gives a lawful plan: it returned Tensor, and not a Plan"),
    (refuses_everything, {}, "gives a lawful plan: it refuses nearly every problem"),
    (refuses_without_its_name, {}, "gives a lawful plan: its refusal does not name it: not today"),
    (changes_its_input, {}, "leaves its input alone: it changed q, k or v"),
    (is_random, {}, "gives the same plan twice: it "),
    (mixes_sequences, {}, "judges each sequence alone: one sequence changed another's plan"),
    (forgets_padding, {}, "is not changed by padding: padding changed the choice"),
    (sees_the_future, {}, "lists nothing of the future: it lists a block of keys that none of the block's queries"),
    (looks_ahead, {"looks_ahead": False}, "looks at nothing of the future: a later token changed which keys an"),
    (loses_the_first_block, {"sinks": 1}, "shows the sinks: a query does not see one of the first 1 tokens"),
    (forgets_windows, {}, "gives a lawful plan inside a window: a kept query sees no key"),
    (NearBlocks.__call__, {"dense": 0}, "is dense attention in its dense setting: its output is not that of dense"),
    (is_narrow_inside_windows, DENSELY, "is dense inside a window in its dense setting: it leaves out a pair"),
    (knows_one_head_of_positions, {}, "chains with the nested meaning: it raised RuntimeError: "),
    (crashes_on_nan, {}, "bears nan and inf: it raised IndexError: index 7 is out of range"),
]


@pytest.mark.parametrize("call,how,said", PLANTED, ids=[call.__name__ for call, _, _ in PLANTED])
def test_a_stage_that_breaks_a_law_is_told_which(call, how, said):
    Planted = type("Wrong", (Wrong,), {"__call__": call, "__module__": __name__})
    how = how | {"dense": Planted(near=how["dense"]) if "dense" in how else False}
    with pytest.raises(AssertionError) as broken:
        check_stage(Planted(), **how)
    first, second = str(broken.value).splitlines()
    assert re.fullmatch(rf"Wrong\(.*\) breaks the law that a stage {re.escape(said)}.*", first)
    assert second.startswith("the smallest problem that shows it: q [")
    assert broken.value.__cause__ is not None


def test_a_spec_that_loses_a_parameter_is_told():
    @sk.register
    @dataclass(frozen=True)
    class Pair(NearBlocks):
        nears: tuple = (1, 2)  # a spec gives a list

    with pytest.raises(AssertionError, match=r"breaks the law that a stage is what its spec says: its spec 'pair\("):
        check_stage(Pair(nears=(2, 3)), dense=False)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="^stage: got <class .*: pass an instance, with parentheses"):
        check_stage(NearBlocks)
    with pytest.raises(ValueError, match="^dense: got None, and the module of Streaming has no DENSE of its kind"):
        check_stage(Streaming())
    with pytest.raises(ValueError, match="^sinks: got -1"):
        check_stage(NearBlocks(), sinks=-1)
    with pytest.raises(ValueError, match="^examples: got 0"):
        check_stage(NearBlocks(), examples=0)


def test_hypothesis_is_needed_when_a_stage_is_checked_and_not_before():
    code = """
import sys
sys.modules["hypothesis"] = None
import sparsekit as sk
from sparsekit.testing import check_stage
try:
    check_stage(sk.Streaming(1, 1, 2))
except ImportError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == 'this needs hypothesis: pip install "sparsekit[testing]"\n'
