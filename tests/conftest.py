import os
from importlib.util import find_spec

import pytest
import torch
from hypothesis import Phase, settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when a kernel is decorated, so it is set before any import

os.environ["SPARSEKIT_CACHE"] = os.devnull  # tests ignore prices measured on this machine
os.environ["SPARSEKIT_MEASURE"] = "0"  # and measure none
os.environ["HF_HUB_OFFLINE"] = "1"  # no test downloads a model; the hub reads it on import

settings.register_profile("sparsekit", deadline=None, max_examples=60, derandomize=True, database=None)
settings.register_profile("faults", settings.get_profile("sparsekit"), phases=[Phase.explicit, Phase.generate])
settings.register_profile("typed", settings.get_profile("sparsekit"), max_examples=6)  # any example shows a wrong shape
settings.load_profile(os.environ.get("SPARSEKIT_HYPOTHESIS", "sparsekit"))  # tests/faults.py and make test set others


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


@pytest.fixture(scope="session", autouse=True)
def the_interpreter_is_quick():
    if os.environ.get("TRITON_INTERPRET") != "1" or not find_spec("triton"):
        yield
        return
    from quick_interpreter import quick_interpreter

    with quick_interpreter():
        yield
