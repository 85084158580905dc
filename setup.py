"""Builds two extensions against the PyTorch that is already installed.

`gankernels._C`         the kernels: C++ (and CUDA, when possible) against PyTorch's stable ABI, so one binary serves 2.10 and newer.
`gankernels._autograd`  the C++ autograd nodes of `fast_double_backward`, and what takes hundreds of tensors in a call: ordinary libtorch
                        code, tied to the PyTorch it was built with.

Environment: GANKERNELS_CUDA=auto|0|1 (auto: when nvcc and a CUDA build of PyTorch are there), DEBUG=1, MAX_JOBS, CXX,
TORCH_CUDA_ARCH_LIST.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup

MINIMUM_TORCH = (2, 10)
DEFAULT_ARCH_LIST = "8.0;8.6;8.9;9.0;10.0+PTX"
ROOT = Path(__file__).parent


def fail(sentence):
    sys.exit(f"gankernels: {sentence}")


def import_torch():
    """The installed PyTorch, also from inside pip's isolated build environment (which hides site-packages)."""
    site_packages = [
        path for path in (sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]) if path not in sys.path
    ]
    sys.path.extend(dict.fromkeys(site_packages))
    try:
        import torch
    except ImportError:
        fail(
            f"PyTorch {'.'.join(map(str, MINIMUM_TORCH))} or newer must be installed before gankernels, and `import torch` "
            f"fails in {sys.executable}."
        )
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < MINIMUM_TORCH:
        fail(f"PyTorch {'.'.join(map(str, MINIMUM_TORCH))} or newer is needed, and {torch.__version__} is installed.")
    return torch


def check_compiler():
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        fail(
            f"a C++ compiler is needed to build from source, and `{compiler}` was not found (set CXX to name another)."
        )


def wants_cuda(torch, cuda_home):
    choice = os.environ.get("GANKERNELS_CUDA", "auto")
    nvcc = cuda_home is not None and (Path(cuda_home) / "bin" / "nvcc").exists()
    if choice == "1":
        if not nvcc:
            fail("GANKERNELS_CUDA=1 asks for CUDA kernels, and no nvcc was found (set CUDA_HOME).")
        if torch.version.cuda is None:
            fail(f"GANKERNELS_CUDA=1 asks for CUDA kernels, and PyTorch {torch.__version__} is a build without CUDA.")
        return True
    if choice not in ("auto", "0"):
        fail(f"GANKERNELS_CUDA must be auto, 0 or 1, got {choice!r}.")
    return choice == "auto" and nvcc and torch.version.cuda is not None


def sources(*patterns):
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def build():
    if not {"build_ext", "build", "install", "develop", "bdist_wheel", "editable_wheel"} & set(sys.argv):
        return {}  # metadata and source distributions need neither torch nor a compiler
    torch = import_torch()
    check_compiler()
    from torch.utils import cpp_extension

    debug = os.environ.get("DEBUG") == "1"
    # -g0, since Python's own flags ask for debugging symbols: a quarter of the time of the build, and nine tenths of its size
    cxx = ["-std=c++20", "-fvisibility=hidden", "-Wall"] + (["-O0", "-g"] if debug else ["-O3", "-g0"])
    # without these no loop with a square root or a comparison is vectorised; values are the same
    cxx += ["-fno-math-errno", "-fno-trapping-math"]
    stable = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
    headers = sources("csrc/**/*.h", "csrc/**/*.cuh")
    of_lists = ["csrc/cpu/clip_weights.cpp"]
    stable_sources = [source for source in sources("csrc/*.cpp", "csrc/cpu/*.cpp") if source not in of_lists]
    kernels = dict(name="gankernels._C", depends=headers, py_limited_api=True)
    compile_args = {"cxx": cxx + stable}
    if wants_cuda(torch, cpp_extension.CUDA_HOME):
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCH_LIST)
        compile_args["nvcc"] = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-DUSE_CUDA", *stable] + (
            ["-G"] if debug else []
        )
        # PyTorch's build helper takes away the conversions of float16 and bfloat16 that the kernels are written with
        compile_args["nvcc"] += ["-U__CUDA_NO_HALF_CONVERSIONS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__"]
        extension = cpp_extension.CUDAExtension
        kernels["sources"] = [*stable_sources, *sources("csrc/cuda/*.cu")]
    else:
        extension = cpp_extension.CppExtension
        kernels["sources"] = stable_sources
    autograd = cpp_extension.CppExtension(
        name="gankernels._autograd",
        sources=sources("csrc/autograd/*.cpp") + of_lists,
        extra_compile_args={"cxx": cxx + [f'-DGANKERNELS_BUILT_FOR="{torch.__version__}"']},
    )
    extensions: list[Extension] = [extension(**kernels, extra_compile_args=compile_args), autograd]

    class BuildExtension(cpp_extension.BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            # pip's is a new one each time; in one that stays, ninja compiles what has changed
            self.build_temp = str(ROOT / "build" / "objects")

    return dict(ext_modules=extensions, cmdclass={"build_ext": BuildExtension})


setup(
    packages=find_packages(include=["gankernels*"]) + find_packages("python", include=["ganzoo*"]),
    **build(),
)
