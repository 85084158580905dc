"""nvcc compiles every CUDA source for every architecture, without spills and with 128-bit loads where they matter."""

import re
import shutil
import subprocess
from pathlib import Path

import harness
import pytest

CUDA = harness.ROOT / "csrc" / "cuda"
SOURCES = sorted(CUDA.glob("*.cu"))
ARCHITECTURES = ("80", "90", "100")
WIDE_LOADS = (
    "clip_weights_kernel",
    "rmsprop_kernel",
    "adam_kernel",
    "spectral_normalize_kernel",
    "spectral_normalize_bwd",
)


def tool(name):
    """A tool of the CUDA toolkit; triton ships some of them too."""
    triton = harness.importlib.util.find_spec("triton")
    folders = ["/usr/local/cuda/bin"]
    if triton is not None:
        folders.append(str(Path(triton.origin).parent / "backends/nvidia/bin"))
    return shutil.which(name) or next((found for folder in folders if (found := shutil.which(name, path=folder))), None)


@pytest.fixture(scope="module")
def includes():
    cpp_extension = pytest.importorskip("torch.utils.cpp_extension")
    return [f"-I{path}" for path in cpp_extension.include_paths()]


def compile_with_nvcc(source, includes, *arguments):
    flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    done = subprocess.run(
        [tool("nvcc"), *flags, *includes, *arguments, str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_every_kernel_has_a_launcher():
    texts = [path.read_text() for path in [*SOURCES, *CUDA.glob("*.cuh")]]
    included = {name for text in texts for name in re.findall(r'#include "(.*\.cuh)"', text)}
    assert included == {path.name for path in CUDA.glob("*.cuh")}


@pytest.mark.skipif(tool("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_spills(source, includes, tmp_path):
    """Launchers, and kernels for every architecture."""
    library = tmp_path / "kernels.o"
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
    options = ["-c", *targets, "-Xptxas=-v", "-Xcompiler=-fPIC,-Wall", "-o", str(library)]
    done = compile_with_nvcc(source, includes, *options)
    assert set(re.findall(r"for 'sm_(\d+)'", done.stderr)) == set(ARCHITECTURES)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert spills and all(pair == ("0", "0") for pair in spills), done.stderr

    if tool("cuobjdump") is None or tool("nvdisasm") is None:
        return
    assembly = subprocess.run(
        [tool("cuobjdump"), "-sass", str(library)], capture_output=True, text=True, check=True
    ).stdout
    for function in assembly.split("Function : ")[1:]:
        if any(name in function.split("\n")[0] for name in WIDE_LOADS):
            assert "LDG.E.128" in function and "STG.E.128" in function, function.split("\n")[0]
