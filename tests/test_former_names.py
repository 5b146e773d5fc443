"""Tests that old names of fields work like the new ones, with a warning that names both."""

import json
import pickle
import sys
import warnings
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparsekit as sk
from bench import records as speed_records
from sparsekit import Pipeline, Plan, Problem, TokenCoverage, cli, registry
from sparsekit.evaluation.records import Records
from sparsekit.former_names import former_names
from sparsekit.layers import Schedule, load_pipeline

OLD = "token_coverage(tau=0.2, window=64, pool=3) | decompress(fill=sliding_window(window=32))"
NEW = OLD.replace("window=64", "voters=64")
X = torch.zeros(1, 1, 8, 4)
# a class, its other arguments, and values of its renamed field
RENAMED = {
    TokenCoverage: ({}, st.integers(1, 2**31)),
    Problem: (
        dict(
            q=X, k=X, v=X, q_pos=torch.arange(8).int()[None, None], k_pos=torch.arange(8).int()[None, None], scale=1.0
        ),
        st.none() | st.integers(1, 2**31),
    ),
}


def warns(where, old, new):
    return pytest.warns(
        DeprecationWarning, match=f"^sparsekit: {where}: '{old}' is the old name of '{new}': write {new}$"
    )


def test_every_class_with_a_renamed_field_is_tried():
    classes = [*(getattr(sk, name) for name in sk.__all__), *registry._built_in().values()]
    assert {cls for cls in classes if former_names(cls)} == {*RENAMED}


@pytest.mark.parametrize("cls", RENAMED, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_a_field_is_taken_and_read_by_both_names(cls, data):
    rest, values = RENAMED[cls]
    for old, new in former_names(cls).items():
        assert new in {f.name for f in fields(cls)} and old not in {f.name for f in fields(cls)}
        made, value = cls(**rest, **{new: (x := data.draw(values))}), x
        with warns(cls.__name__, old, new):
            same = cls(**rest, **{old: value})
        assert same == made and repr(same) == repr(made)
        with warns(cls.__name__, old, new):
            assert getattr(made, old) == getattr(made, new)
        assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize("cls", RENAMED, ids=lambda cls: cls.__name__)
def test_both_names_at_once_are_refused(cls):
    for old, new in former_names(cls).items():
        with pytest.raises(
            ValueError, match=f"^{old}: got 3 beside {new}=4; allowed is one of them.*: pass {new} alone$"
        ):
            cls(**RENAMED[cls][0], **{old: 3, new: 4})
    with pytest.raises(ValueError, match="window: got 5 beside voters=128"):
        replace(TokenCoverage(), window=5)


def test_a_pickle_of_the_old_field_loads():
    state = TokenCoverage(voters=64).__dict__
    old = TokenCoverage.__new__(TokenCoverage)
    with warns("TokenCoverage", "window", "voters"):
        old.__setstate__({"window" if name == "voters" else name: value for name, value in state.items()})
    assert old == TokenCoverage(voters=64)


def test_a_problem_is_made_by_both_names():
    with warns("Problem.of", "window", "sliding_window"):
        assert Problem.of(X, X, X, window=3) == Problem.of(X, X, X, sliding_window=3)


@pytest.mark.parametrize("fill", [None, sk.SlidingWindow(4, 2)])
def test_a_plans_window_is_its_local_one(fill):
    t = sk.Tokens.of(torch.arange(8).remainder(2).bool()[None, None])
    plan = Plan(t, t, fill=fill)
    with warns("Plan", "window", "local"):
        assert plan.window == plan.local == fill


def test_an_old_spec_is_the_new_one():
    with warns("TokenCoverage", "window", "voters") as caught:
        old = Pipeline.from_spec(OLD)
    assert [warning.filename for warning in caught] == [__file__], "it points at who wrote the spec"
    assert old == Pipeline.from_spec(NEW) and "window=64" not in old.to_spec()
    assert old.to_spec() == Pipeline.from_spec(NEW).to_spec()


def test_the_command_line_says_so_in_one_line(monkeypatch, capsys):
    words = ["sparsekit", "eval", "no/such/folder/", "--pipeline", "token_coverage(window=3)"]
    monkeypatch.setattr(sys, "argv", words)
    with warnings.catch_warnings(), pytest.raises(SystemExit):
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's default outside of the main file
        cli.main()
    said, error = capsys.readouterr().err.strip().splitlines()
    assert said == "sparsekit: TokenCoverage: 'window' is the old name of 'voters': write voters"
    assert error.startswith("sparsekit: MODEL: got 'no/such/folder/'")


@pytest.mark.parametrize("old,layers", [(OLD, False), ({"0-1": OLD, "default": "dense"}, True)])
def test_an_old_file_loads(old, layers, tmp_path):
    new = {"0-1": NEW, "default": "dense"} if layers else NEW
    for name, spec in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        figures = dict(
            layer=0, pipeline=OLD if name == "old" else NEW, ms=1.0, kept=1.0, density=1.0, mass=1.0, error=0.0
        )
        text = json.dumps({"pipeline": spec, "measured": {"target": 0.9, "layers": [figures]}})
        (tmp_path / name / "sparsekit.json").write_text(text)
    with warns("TokenCoverage", "window", "voters"):
        loaded = Schedule.load(tmp_path / "old")
    assert loaded == Schedule.load(tmp_path / "new")
    with warns("TokenCoverage", "window", "voters"):
        found = load_pipeline(tmp_path / "old")
        pipelines = [sk.layers.by_layer(x, [0, 1]) for x in (found, load_pipeline(tmp_path / "new"))]
    assert pipelines[0] == pipelines[1]


SPECS = [
    OLD,
    json.dumps({"0-3": OLD, "4": "streaming(window=3)"}),
    str(Pipeline.from_spec(NEW)).replace("voters", "window"),
]


@pytest.mark.parametrize("what", SPECS, ids=["a spec", "a schedule", "without a spec"])
def test_old_records_are_read_by_the_new_name_and_stay_as_they_are(what, tmp_path):
    path, line = tmp_path / "records.jsonl", dict(kind="answers", pipeline=what, what=what, length=8)
    path.write_text("".join(f"{json.dumps(line | more)}\n" for more in ({"run": "a"}, {"each": {"run": ["b", "c"]}})))
    new = what.replace("window=64", "voters=64")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines = Records(path).lines
        path.write_text(f"{json.dumps(line | {'run': 'd'})}\n")
        lines += speed_records.read(path)
    assert [(one["pipeline"], one["what"], one["run"]) for one in lines] == [(new, new, run) for run in "abcd"]
    Records(path).append(line | {"run": "e"})
    assert path.read_text().startswith(f"{json.dumps(line | {'run': 'd'})}\n"), "lines are never changed"


def test_a_text_without_old_names_stays():
    for text in (
        "streaming(window=3)",
        "my_token_coverage(window=3)",
        "no spec, window=3",
        NEW,
        "sliding_window(window=8)",
    ):
        assert registry.by_new_names(text) == text


def test_an_unknown_name_is_still_answered_by_the_one_that_is_like_it():
    with pytest.raises(ValueError, match="there is no 'token_covrage' .did you mean token_coverage.."):
        Pipeline.from_spec("token_covrage(window=3)")
    with pytest.raises(ValueError, match="wrong arguments .*'windw'.*; token_coverage takes: tau, voters, pool"):
        Pipeline.from_spec("token_coverage(windw=3)")
    with pytest.raises(ValueError, match="at position 0.*: window: got 3 beside voters=4"):
        Pipeline.from_spec("token_coverage(window=3, voters=4)")
