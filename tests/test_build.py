"""What stands in the way of a build is said in one sentence."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def build(**env):
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext"], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True
    )


def assert_one_sentence(run, text):
    assert run.returncode != 0
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("gankernels: ") and text in last and "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("source", "text"),
    (
        ("raise ImportError", "PyTorch 2.10 or newer must be installed before gankernels"),
        ("__version__ = '2.9.1+cpu'", "PyTorch 2.10 or newer is needed, and 2.9.1+cpu is installed"),
    ),
    ids=("missing", "too_old"),
)
def test_torch(source, text, tmp_path):
    (tmp_path / "torch.py").write_text(source)
    assert_one_sentence(build(PYTHONPATH=str(tmp_path)), text)


def test_no_compiler():
    assert_one_sentence(build(CXX="/nowhere/c++"), "a C++ compiler is needed")


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a PyTorch without CUDA")
def test_cuda_that_cannot_be():
    assert_one_sentence(build(GANKERNELS_CUDA="1"), "GANKERNELS_CUDA=1 asks for CUDA kernels")


def test_an_unknown_choice():
    assert_one_sentence(build(GANKERNELS_CUDA="maybe"), "GANKERNELS_CUDA must be auto, 0 or 1, got 'maybe'")


@pytest.mark.parametrize(
    ("is_checkout", "advice"), ((True, "start Python in another one"), (False, "install with `pip install .`"))
)
def test_missing_extension_is_named(tmp_path, is_checkout, advice):
    """A folder that was not built says how to build it, or where else what is installed may be found."""
    (tmp_path / "gankernels").mkdir()
    if is_checkout:
        (tmp_path / "setup.py").touch()
    for name in ("__init__.py", "_registration.py"):
        (tmp_path / "gankernels" / name).write_text((ROOT / "gankernels" / name).read_text())
    run = subprocess.run([sys.executable, "-c", "import gankernels"], cwd=tmp_path, capture_output=True, text=True)
    last = run.stderr.splitlines()[-1]
    assert "the compiled extension _C is missing" in last and advice in last


def test_bug_report_lists_every_op():
    run = subprocess.run([sys.executable, "-m", "gankernels"], cwd=ROOT, capture_output=True, text=True, check=True)
    for word in (
        "torch " + torch.__version__,
        "grad_norm_penalty",
        "spectral_normalize",
        "clip_weights_",
        "fast_convolution",
    ):
        assert word in run.stdout


def test_names_that_the_oldest_headers_have():
    """PyTorch's newer headers define macros that 2.10 and 2.11 lack, whatever version is aimed at."""
    known = {"STABLE_TORCH_LIBRARY", "STABLE_TORCH_LIBRARY_FRAGMENT", "STABLE_TORCH_LIBRARY_IMPL"}
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cuh", ".cu")]
    used = {name: path for path in sources for name in re.findall(r"\bSTABLE_TORCH_\w+", path.read_text())}
    assert used and {name: path for name, path in used.items() if name not in known} == {}
