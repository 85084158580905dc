"""`python -m gankernels`: versions, devices, and which kernel serves each op to which order. Paste it into a bug report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import gankernels
from gankernels._registration import OPS


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    cpu = f"cpu     {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    gpus = []
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        gpus.append(f"cuda:{i}  {p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB")
    return [cpu, *(gpus or ["cuda    no device"])]


def _autograd_ops() -> list[str]:
    names = {n.removeprefix("gankernels::").split(".")[0] for n in torch._C._dispatch_get_all_op_names()
             if n.startswith("gankernels::fast_") and not n.endswith("_norm")}  # fmt: skip
    return sorted(names)


def main() -> None:
    built_for = torch.ops.gankernels.autograd_built_for()
    print(f"gankernels {gankernels.__version__}, built for PyTorch {built_for}")
    print(f"torch {torch.__version__} (CUDA {torch.version.cuda or 'none'}), triton {_version('triton')}, "
          f"numpy {_version('numpy')}")  # fmt: skip
    print(f"python {platform.python_version()}, {platform.platform()}")
    print(*_devices(), sep="\n")
    rows = [(op.name, op.orders, op.cpu, op.cuda) for op in sorted(OPS.values(), key=lambda op: op.name)]
    rows += [(name, "any", "stock, C++ autograd", "stock, C++ autograd") for name in _autograd_ops()]
    header = ("op", "derivatives", "CPU kernel", "CUDA kernel")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(4)]
    print()
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


if __name__ == "__main__":
    main()
