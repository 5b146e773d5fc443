import pytest
import torch
from hypothesis import settings

settings.register_profile("sparsekit", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("sparsekit")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))
