"""Tries the laws on any stage, without the tests of this project."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from ..checks import check_count
from ..extras import needs
from ..problem import Problem
from ..registry import look_up, snake


def check_stage(
    stage: Any, *, dense: Any = None, sinks: int | None = None, looks_ahead: bool = True, examples: int = 40
) -> None:
    """Try every law of stages on small random problems on the CPU, the same ones each time. It takes some seconds.

    Raises AssertionError, whose first line says which law the stage breaks and why; ImportError without hypothesis.

    Args:
        stage: the stage, small enough for 24 tokens, for example with blocks of 2; call once for each setting
        dense: the setting of the stage that is dense attention; None: DENSE of its module; False: it has none
        sinks: number of first tokens that each kept query must see; None: the stage's field `sinks`, if it has one
        looks_ahead: whether later tokens may change which keys earlier queries see, as in stages where the last
            queries vote; False checks that they do not
        examples: problems for each law, >= 1
    """
    check_count("examples", examples, 1)
    if isinstance(stage, type) or not callable(stage):
        raise ValueError(f"stage: got {stage!r}; allowed is a stage: pass an instance, with parentheses")
    if dense is None:
        dense = _dense_of(stage)
    sinks = getattr(stage, "sinks", 0) if sinks is None else sinks
    check_count("sinks", sinks, 0)
    needs("hypothesis", "testing")
    from hypothesis import strategies as st

    from . import laws
    from .strategies import FILLS, SEEDS, problems, windowed

    attempt = partial(_attempt, examples)
    size, bad = st.integers(1, 6), st.sampled_from([float("nan"), float("inf"), float("-inf")])
    attempt(laws.gives_a_lawful_plan, stage, p=problems())
    attempt(laws.leaves_its_input_alone, stage, p=problems())
    attempt(laws.gives_the_same_plan_twice, stage, p=problems())
    attempt(laws.judges_each_sequence_alone, stage, p=problems())
    attempt(laws.is_not_changed_by_padding, stage, p=problems(square=True), extra=st.integers(1, 5))
    attempt(laws.lists_nothing_of_the_future, stage, p=problems(causal=True))
    if not looks_ahead:
        whole = problems(square=True, causal=True)
        attempt(laws.looks_at_nothing_of_the_future, stage, p=whole, cut=st.integers(1, 24), seed=SEEDS)
    if sinks:
        attempt(laws.shows_the_sinks, stage, p=problems(), sinks=st.just(sinks))
    attempt(laws.gives_a_lawful_plan_inside_a_window, stage, p=windowed())
    if dense is not False:
        attempt(laws.is_dense_attention_in_its_dense_setting, dense, p=problems(), size=size)
        attempt(laws.is_dense_inside_a_window_in_its_dense_setting, dense, p=windowed(), size=size)
    attempt(laws.chains_with_the_nested_meaning, stage, p=problems(), fill=FILLS)
    attempt(laws.bears_nan_and_inf, stage, p=problems(), bad=bad, data=st.data())
    if look_up(snake(type(stage).__name__)) is type(stage):
        attempt(laws.is_what_its_spec_says, stage)


def _dense_of(stage: Any) -> Any:
    dense = getattr(sys.modules.get(type(stage).__module__), "DENSE", None)
    if type(dense) is not type(stage):
        raise ValueError(
            f"dense: got None, and the module of {type(stage).__name__} has no DENSE of its kind; allowed are the "
            "setting of the stage that is dense attention, or False if it has none: pass one of the two"
        )
    return dense


def _attempt(examples: int, law: Callable[..., None], stage: Any, **drawn: Any) -> None:
    """Try a law on random problems. Raises AssertionError with the reason and the smallest problem that breaks it."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
    from hypothesis.errors import FailedHealthCheck, Flaky, Unsatisfiable

    tried: list[dict[str, Any]] = []

    @settings(
        max_examples=examples if drawn else 1,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=[check for check in HealthCheck if check is not HealthCheck.filter_too_much],
    )
    @given(st.fixed_dictionaries(drawn))
    def run(values: dict[str, Any]) -> None:
        tried[:] = [values]
        law(stage, **values)

    cause: Exception | None = None
    try:
        run()
    except AssertionError as error:
        why, cause = _first_line(error), error
    except (FailedHealthCheck, Unsatisfiable) as error:
        why, cause = "it refuses nearly every problem", error
    except Flaky as error:
        why, cause = "it does not do the same with the same problem", error
    except Exception as error:  # a user's stage may raise anything
        why, cause = f"it raised {type(error).__name__}: {_first_line(error)}", error
    if cause is not None:
        lines = [f"{stage!r} breaks the law that a stage {law.__name__.replace('_', ' ')}: {why}"]
        if tried and "p" in tried[0]:
            lines.append(f"the smallest problem that shows it: {_problem_text(tried[0]['p'])}")
        raise AssertionError("\n".join(lines)) from cause


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _problem_text(p: Problem) -> str:
    shapes = ", ".join(f"{name} {list(getattr(p, name).shape)}" for name in ("q", "k", "v"))
    window = f", sliding window {p.sliding_window}" if p.sliding_window else ""
    return f"{shapes}, {'causal' if p.causal else 'not causal'}{window}"
