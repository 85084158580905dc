import gc
import math

import pytest
import torch

from . import peers
from .harness import Settings


def pytest_addoption(parser):
    group = parser.getgroup("gankernels benchmarks")
    group.addoption("--device", choices=("cpu", "cuda"), help="default: cuda when there is one")
    group.addoption("--seconds", type=float, default=0.5, help="of sampling per case (default 0.5; 0: one round)")
    group.addoption(
        "--budget", type=float, default=math.inf, help="seconds after which the cases that are left are skipped"
    )
    group.addoption(
        "--tier", choices=("quick", "full"), default="quick", help="full adds layouts, dtypes, shapes, compiled stock"
    )
    group.addoption(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help=f"a checkout of public code to compare with: {', '.join(peers.KNOWN)}",
    )
    group.addoption("--rows", metavar="FILE", help="append every result as a line of JSON as soon as it is there")


@pytest.fixture(scope="session")
def settings(request):
    options = request.config.option
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    reporter, capture = map(request.config.pluginmanager.get_plugin, ("terminalreporter", "capturemanager"))

    def tell(line):
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(line)

    yield Settings(device, options.seconds, options.rows, options.budget, tell)
    gc.unfreeze()  # what `measured` froze, so that it goes in an orderly way


def pytest_configure(config):
    for option in config.option.peer:
        peers.add(option)


# They change how malloc works, for the rest of the process (`keep_pages`).
LAST = ("test_spectral_norm.py", "test_modulated_conv2d.py", "test_ops.py")


def pytest_collection_modifyitems(config, items):
    """What counts most comes first, for a run that is cut off."""
    items.sort(key=lambda item: (item.path.name in LAST, "full" in item.keywords))
    if config.option.tier == "quick":
        full = [item for item in items if "full" in item.keywords]
        config.hook.pytest_deselected(items=full)
        items[:] = [item for item in items if item not in set(full)]


def pytest_terminal_summary(terminalreporter):
    for name, why in peers.LEFT_OUT.items():
        terminalreporter.write_line(f"peer {name} is left out: {why}")
