"""Builds tests/emulator/bindings.cpp with the host compiler, once per state of its sources, and loads it.

Needs numpy and pybind11, not torch.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAME = "gankernels_emulator"
FLAGS = ["-std=c++20", "-O1", "-g", "-Wall", "-Wno-unknown-pragmas", "-shared", "-fPIC", "-fvisibility=hidden"]
FLAGS += ["-DGANKERNELS_EMULATE"]
ASAN_FLAGS = ["-fsanitize=address,alignment,bounds", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def compiler():
    """The C++ compiler, or None."""
    return shutil.which(os.environ.get("CXX", "g++").split()[0])


def runtime(library):
    """Path of one of GCC's sanitizer runtimes, or None when it is not installed."""
    found = subprocess.run(
        [compiler(), f"-print-file-name={library}"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return os.path.realpath(found) if os.path.sep in found else None


def under_asan():
    """AddressSanitizer must be a process's first library, so a test process is wholly under it or not at all."""
    return "libasan" in os.environ.get("LD_PRELOAD", "")


def build(asan):
    sources = sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h"), *ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*.cuh")])
    sources.append(ROOT / "csrc" / "cuda" / "device.h")
    flags = FLAGS + (ASAN_FLAGS if asan else [])
    includes = [
        f"-I{path}" for path in (ROOT / "csrc/cuda", HERE, pybind11.get_include(), sysconfig.get_paths()["include"])
    ]
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256("\0".join([version, *flags, *includes]).encode())
    for source in sources:
        digest.update(source.read_bytes())
    library = ROOT / "build" / "emulator" / digest.hexdigest()[:16] / (NAME + sysconfig.get_config_var("EXT_SUFFIX"))
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        command = [compiler(), *flags, *includes, str(HERE / "bindings.cpp"), "-o", str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the emulator does not compile:\n{' '.join(command)}\n{done.stderr}")
        os.replace(unfinished, library)
    return library


def shared_variables(library):
    """(offset from the anchor, bytes) of every `__shared__` variable: the local statics of device code."""
    table = subprocess.run(
        ["nm", "-S", "--defined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in table.splitlines()]
    anchor = next(int(row[0], 16) for row in rows if row[-1] == "gankernels_emulator_anchor")
    device_code = ("_ZZN10gankernels4cuda", "_ZZN12_GLOBAL__N_1")  # mangled: local to a function of these namespaces
    return [
        (int(row[0], 16) - anchor, int(row[1], 16))
        for row in rows
        if len(row) == 4 and row[2] in "bBdDuV" and row[3].startswith(device_code)
    ]


def load():
    library = build(under_asan())
    spec = importlib.util.spec_from_file_location(NAME, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.set_shared_variables(shared_variables(library))
    return module
