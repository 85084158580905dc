import pytest
import torch

from .harness import Settings


def pytest_addoption(parser):
    group = parser.getgroup("gankernels benchmarks")
    group.addoption("--device", choices=("cpu", "cuda"), help="default: cuda when there is one")
    group.addoption("--seconds", type=float, default=3.0, help="of sampling per case (default 3; 0: one round)")
    group.addoption("--rows", metavar="FILE", help="append every result as a line of JSON as soon as it is there")


@pytest.fixture(scope="session")
def settings(request):
    options = request.config.option
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Settings(device, options.seconds, options.rows)
