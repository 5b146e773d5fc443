import os

import pytest
import torch
from hypothesis import Phase, settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, so before any is imported

os.environ["SPARSEKIT_CACHE"] = os.devnull  # what somebody measured on this machine decides nothing in a test
os.environ["SPARSEKIT_MEASURE"] = "0"  # nor what would be measured in the middle of one
os.environ["HF_HUB_OFFLINE"] = "1"  # a model that is not here is not looked for elsewhere; read on import, too

settings.register_profile("sparsekit", deadline=None, max_examples=60, derandomize=True, database=None)
settings.register_profile("faults", settings.get_profile("sparsekit"), phases=[Phase.explicit, Phase.generate])
settings.register_profile("typed", settings.get_profile("sparsekit"), max_examples=6)  # any shows a wrong shape
settings.load_profile(os.environ.get("SPARSEKIT_HYPOTHESIS", "sparsekit"))  # the others: tests/faults.py, make test


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))
