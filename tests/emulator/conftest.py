import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import harness


@pytest.fixture(scope="session")
def loaded():
    if harness.compiler() is None:
        pytest.skip("no C++ compiler")
    return harness.load()


@pytest.fixture(params=["ascending", "descending", "shuffled"])
def emulator(loaded, request):
    """The kernels, in every order of the threads: a result that depends on it betrays a missing barrier."""
    loaded.set_order(getattr(loaded.Order, request.param))
    loaded.set_first_block(0)
    return loaded
