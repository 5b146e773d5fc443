"""Pipelines as text, for command lines and config files.

    token_coverage(tau=0.02) | flex_prefill(gamma=0.95) | decompress(fill=sliding_window(128))

A spec is a list of names with optional arguments, joined by "|". A name is a class name in snake case. A value
is a number, quoted text, True, False, None, a list, or a name with arguments. "dense" alone is the empty pipeline. A
recipe's name stands for its steps: "balanced".
"""

import ast
from dataclasses import fields
from inspect import signature
from numbers import Integral, Real
from typing import Any

from .presets import PRESETS
from .registry import DENSE, did_you_mean, known_names, look_up, snake, was_replaced


def parse(spec: str) -> list[Any]:
    """Build the steps that a spec names. Raises ValueError with the position of a mistake."""
    if not isinstance(spec, str):
        raise ValueError(
            f"spec: got {type(spec).__name__}; allowed is text such as 'token_coverage(tau=0.02)': pass a str"
        )
    if spec.strip() == DENSE:
        return []
    try:
        # parentheses, so that a spec may run over several lines; they shift positions by one
        tree = ast.parse(f"({spec}\n)", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        line, column = getattr(error, "lineno", 1) or 1, getattr(error, "offset", 1) or 1
        why = getattr(error, "msg", str(error)) or "it is nested too deeply"
        raise _error(spec, line, column - 1 - (line == 1), f"it does not parse ({why})") from None
    return [step for node in _joined(tree) for step in _steps(spec, node)]


def write(steps: list[Any]) -> str:
    """Return the spec of the steps. Raises ValueError for a step that has no name in a spec."""
    return " | ".join(map(_text, steps)) or DENSE


def brief(step: Any) -> str:
    """Return a step as Python code, with the parameters that are not the default; without any, no parentheses."""
    return step_text(step).removesuffix("()")


def step_text(step: Any) -> str:
    """Return a step as Python code, with the parameters that are not the default."""
    if not hasattr(type(step), "__dataclass_fields__"):
        return getattr(step, "__name__", repr(step))
    return f"{type(step).__name__}({', '.join(f'{n}={_shown(v)}' for n, v in changed(step).items())})"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return step_text(value) if hasattr(type(value), "__dataclass_fields__") else repr(value)


def changed(step: Any) -> dict[str, Any]:
    """Return the parameters of a step that are not the default."""
    try:
        plain = type(step)()
    except TypeError:  # a parameter has no default: return all
        return {f.name: getattr(step, f.name) for f in fields(step) if f.init}
    return {f.name: v for f in fields(step) if f.init and (v := getattr(step, f.name)) != getattr(plain, f.name)}


def _joined(node: ast.expr) -> list[ast.expr]:
    """Return the parts that "|" joins."""
    parts = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        parts.append(node.right)
        node = node.left
    return [node, *reversed(parts)]


def _steps(spec: str, node: ast.expr) -> list[Any]:
    """Return the step that a name stands for; a recipe's name stands for all of its steps."""
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name) or call.func.id not in PRESETS:
        return [_call(spec, node)]
    if call.args or call.keywords:
        raise _at(spec, node, f"wrong arguments (a recipe has none); {call.func.id} takes: none")
    return parse(PRESETS[call.func.id])


def _call(spec: str, node: ast.expr) -> Any:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise _at(spec, node, "expected a name, perhaps with arguments in parentheses")
    name = call.func.id
    if (cls := look_up(name)) is None:
        allowed = ", ".join(known_names())
        raise _at(spec, node, f"there is no {name!r}{did_you_mean(name)}; allowed are dense (alone), {allowed}")
    if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        raise _at(spec, node, "stars are not allowed; write the arguments out")
    if len({k.arg for k in call.keywords}) < len(call.keywords):
        raise _at(spec, node, "an argument is given twice")
    args = [_value(spec, a) for a in call.args]
    try:
        return cls(*args, **{str(k.arg): _value(spec, k.value) for k in call.keywords})
    except TypeError as error:
        takes = ", ".join(signature(cls).parameters) or "none"
        raise _at(spec, node, f"wrong arguments ({error}); {name} takes: {takes}") from None
    except ValueError as error:
        raise error if str(error).startswith("spec:") else _at(spec, node, str(error)) from None


def _value(spec: str, node: ast.expr) -> Any:
    if isinstance(node, ast.Call) or (isinstance(node, ast.Name) and look_up(node.id)):
        return _call(spec, node)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(spec, item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        meant = did_you_mean(node.id) if isinstance(node, ast.Name) else ""
        raise _at(
            spec, node, f"expected a number, quoted text, True, False, None, a list or a name with arguments{meant}"
        ) from None


def _text(step: Any) -> str:
    name = snake(type(step).__name__)
    if look_up(name) is not type(step):
        again = was_replaced(type(step))
        raise ValueError(
            f"stages: {step!r} is of a class that was registered anew since; allowed is the newest: make it again"
            if again
            else f"stages: {step!r} has no name in a spec; allowed are {', '.join(known_names())}: use one of them, "
            "or give a class of your own a name with sparsekit.register"
        )
    inner = ", ".join(f"{n}={_value_text(v)}" for n, v in changed(step).items())
    return f"{name}({inner})" if inner else name


def _value_text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value_text, value))}]"
    if hasattr(type(value), "__dataclass_fields__"):
        return _text(value)
    if value is None or isinstance(value, str | bool | Integral):
        return repr(value if value is None or isinstance(value, str | bool) else int(value))
    if isinstance(value, Real) and abs(float(value)) < float("inf"):  # numpy's numbers too, whose repr no spec can hold
        return repr(float(value))
    raise ValueError(
        f"stages: got the parameter {value!r}; allowed in a spec are finite numbers, text, True, False, None, lists "
        "and stages: give the stage one of those"
    )


def _at(spec: str, node: ast.expr, problem: str) -> ValueError:
    node = node.func if isinstance(node, ast.Call) and not hasattr(node, "lineno") else node
    # columns count bytes of the line, and the first line has our parenthesis before it
    line = (f"({spec}").splitlines()[node.lineno - 1] if spec else "("
    column = len(line.encode()[: node.col_offset].decode(errors="ignore")) - (node.lineno == 1)
    return _error(spec, node.lineno, column, problem)


def _error(spec: str, line: int, column: int, problem: str) -> ValueError:
    start = sum(len(x) for x in spec.splitlines(keepends=True)[: line - 1])
    position = min(max(start + column, 0), len(spec))
    return ValueError(
        f"spec: at position {position}, before {spec[position : position + 20]!r}: {problem}; write it like "
        "'token_coverage(tau=0.02) | flex_prefill(gamma=0.95)'"
    )
