"""Tests of every op in every backend; a new kernel file needs no test of its own here."""

import importlib
import inspect
import subprocess
import sys

import pytest
import torch
from arguments import WHERE, arguments, doubled, tensors
from closeness import no_worse_on_average

from sparsekit import NoBackendError, Plan, Problem, attend, dispatch
from sparsekit.samples import Samples

CELLS = [(op, b) for op, row in dispatch.table().items() for b, missing in row.items() if missing is None]


@pytest.mark.parametrize("op,backend", CELLS)
def test_every_backend_of_an_op_has_the_arguments_of_its_definition(op, backend):
    definition = importlib.import_module(f"sparsekit.ops.{op}")
    module = importlib.import_module(f"{dispatch.BACKENDS[backend]}.{op}")
    signature = inspect.signature(getattr(module, op))
    assert signature == inspect.signature(getattr(definition, op))
    assert list(inspect.signature(module.why_not).parameters) == list(signature.parameters)


@pytest.mark.parametrize("op,backend", [cell for cell in CELLS if cell[1] != "reference"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_kernel_answers_as_its_definition(op, backend, seed):
    """Check that numbers are about as near to float64 as the definition's, and choices are the same."""
    reasons, tried, outputs = set(), 0, []
    for args in arguments(op, Samples.of(seed, WHERE)):
        if reason := dispatch.why_not(backend, op, *args):
            reasons.add(reason)
            continue
        tried += 1
        run = lambda how, *given: tensors(dispatch.run(op, WHERE, *given, backend=how))  # noqa: E731
        mine, plain, truth = run(backend, *args), run("reference", *args), run("reference", *map(doubled, args))
        assert len(mine) == len(plain)
        for x, y, true in zip(mine, plain, truth, strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype) or not y.is_floating_point()
            if y.is_floating_point():
                finite = true.isfinite()
                assert torch.equal(x[~finite].nan_to_num(), y[~finite].nan_to_num())
                outputs.append((x[finite], y[finite], true[finite], x.dtype))
            else:
                n = min(x.shape[-1], y.shape[-1])  # lists may be longer, with padding
                assert torch.equal(x[..., :n], y[..., :n])
    if outputs:
        no_worse_on_average(outputs)
    if not tried:
        pytest.skip(f"{backend} cannot: {'; '.join(sorted(reasons))}")


def test_every_kernel_is_the_fast_version_of_an_op():
    for backend, package in dispatch.BACKENDS.items():
        for module in dispatch.pkgutil.iter_modules(importlib.import_module(package).__path__):
            assert module.name in dispatch.ops(), f"{backend}.{module.name} has no definition in sparsekit.ops"


def test_a_named_backend_runs_or_says_why_not(monkeypatch):
    x = torch.randn(1, 1, 4, 4)
    p = Problem.of(x, x, x)
    monkeypatch.setitem(dispatch.BACKENDS, "absent", "sparsekit_kernels.absent")
    with pytest.raises(NoBackendError, match="absent: there is no sparsekit_kernels.absent"):
        attend(p, Plan(), backend="absent")
    assert dispatch.choose("attend", "cpu", p, Plan(), backend="reference") == "reference"


@pytest.mark.parametrize("op,backend", [(op, b) for op, b in CELLS if b not in dispatch.AUTO["cpu"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_machine_lacks_is_said_before_what_the_tensors_are(monkeypatch, op, backend, dtype):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for D in (8, 300):
        for args in dispatch.definition(op).samples(Samples(D=D, Dv=D, dtype=dtype)).values():
            said = dispatch.why_not(backend, op, *args)
            assert said in [
                f"it needs {needed} GPU, and there is none here" for needed in ("a", "an NVIDIA", "a Hopper")
            ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dispatch.why_not(backend, op, *args).endswith("GPU, and the tensors are on cpu")


@pytest.mark.parametrize("backend,op", [("triton", "attend"), ("hopper", "scatter_tokens")])
def test_a_library_that_is_not_installed_is_named_and_its_ops_are_no_empty_cells(backend, op):
    """The test runs in a process that cannot import Triton and believes that it has a GPU."""
    code = "import sys; sys.modules['triton'] = None\nimport torch\nfrom sparsekit import Plan, Problem, dispatch\n"
    code += "x = torch.ones(1, 1, 4, 4); p = Problem.of(x, x, x)\n"
    code += "import sparsekit_kernels.hopper as h, sparsekit_kernels.triton as t\n"
    code += "h.no_gpu = t.no_gpu = lambda *device: None; h.capability = lambda device: (9, 0)\n"
    code += f"print(dispatch.has({backend!r}, {op!r}), dispatch.why_not({backend!r}, {op!r}, p, Plan()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "True triton is not installed: pip install sparsekit[triton]", ran.stderr


def test_nothing_heavy_is_imported_until_asked_for():
    heavy = ("transformers", "matplotlib", "triton", "flash_attn", "sparsekit_kernels.cpu.attend")
    code = f"import sys, sparsekit; print([m for m in {heavy!r} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
