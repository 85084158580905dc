import os
import sys

import pytest
import torch

LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser):
    parser.addoption("--inductor", type=int, default=0, metavar="N", help="put N random critics through inductor too")


def pytest_collection_modifyitems(config, items):
    """Without a CUDA device its tests are left out, thousands of them, and counted in one line at the end."""
    if torch.cuda.is_available():
        return
    left_out = [item for item in items if "gpu" in item.keywords]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if "gpu" not in item.keywords]
    config.stash[LEFT_OUT] = len(left_out)
    if hasattr(config, "workeroutput"):  # a process of xdist's
        config.workeroutput["left_out"] = len(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter, config):
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} tests were left out: they need a CUDA device.")


@pytest.fixture(autouse=True)
def alone():
    """Every test starts from the same seed and without what others compiled."""
    torch.manual_seed(0)
    yield
    if torch.cuda.is_initialized():
        leave_a_lost_context()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def leave_a_lost_context():
    """After an illegal access every later test of the process fails too: one of xdist's ends, and the others' results stand."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        raise


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def poisoned_empty():
    """torch.empty comes filled with NaN, so that an element a kernel forgot shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
