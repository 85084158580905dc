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
    loaded.set_only_last_block(False)
    return loaded


@pytest.fixture
def last_block(emulator):
    """Runs the last block of every launch: what lies beyond 2^31 elements, in arrays of 4 GiB of zeros, which the system provides
    without memory behind them."""
    emulator.set_only_last_block(True)
    yield emulator
    emulator.set_only_last_block(False)
