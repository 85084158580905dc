import sys

import pytest

PACKAGES = ("torch_utils", "op", "models", "mmcv")


def belongs(name):
    return name.partition(".")[0] in PACKAGES


@pytest.fixture(autouse=True)
def fresh_modules():
    """No trace of the code bases' packages before or after a test."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if belongs(name)}
    yield
    for name in filter(belongs, list(sys.modules)):
        del sys.modules[name]
    sys.modules.update(before)
