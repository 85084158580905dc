import sys

import pytest

import gankernels as gk

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


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("needs"):
            if absent := [op for op in mark.args if not hasattr(gk, op)]:
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(absent)}"))


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(*ops): ops the test cannot do without")
