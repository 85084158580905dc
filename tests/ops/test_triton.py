"""Triton kernels without a GPU: interpreted in a process of its own, and compiled ahead of time for each architecture."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from gankernels._triton import BLOCK  # noqa: E402
from tests.ops.specs import FAMILY, INT, KERNELS, LAUNCHERS, SPECS  # noqa: E402

ARCHITECTURES = (80, 90, 100)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# Triton 3.6, whose assembler keeps two numbers on the stack now and then
OLD = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
F, B, H, D = "*fp32", "*bf16", "*fp16", "*fp64"


@pytest.mark.skipif(
    OLD and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="Triton 3.6 interprets loops by a conversion that NumPy 2.4 refuses",
)
@pytest.mark.parametrize(
    "family", sorted({FAMILY[s.name] for s in SPECS if any(s.name.startswith(n) for n in LAUNCHERS)})
)
def test_interpreted_in_a_process_of_its_own(family):
    file = Path(__file__).with_name("test_triton_interpreted.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file), "-k", f"{family}/ or of_{family}"],
        cwd=file.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-4000:] + run.stderr[-2000:]


# every architecture and dtype with 32-bit sizes, and the sizes of tensors of more than 2^31 elements once
COMPILED = [(pointer, capability, INT) for pointer in (F, B, D) for capability in ARCHITECTURES] + [(F, 90, "i64")]
SLOW = [*zip((F, B, D), ARCHITECTURES, (INT, "i64", INT), strict=True), (H, 90, INT)]


@pytest.mark.parametrize(
    ("name", "pointer", "capability", "integer"),
    [(name, *target) for name, kernel in KERNELS.items() for target in (SLOW if kernel.slow else COMPILED)],
)
def test_compiles_ahead_of_time(name, pointer, capability, integer, tmp_path):
    kernel = KERNELS[name].kernel
    options = KERNELS[name].launch(pointer)
    constants = {"BLOCK": BLOCK, **KERNELS[name].constants}
    constants.update({n: options.pop(n) for n in kernel.arg_names if n in options})
    arguments = [n for n in kernel.arg_names if n not in constants]
    types = [integer if t == INT else t for t in KERNELS[name].arguments(pointer, D if pointer == D else F)]
    signature = dict(zip(arguments, types, strict=True))
    signature.update({n: "constexpr" for n in constants})
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if n in arguments}
    compiled = triton.compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    ptx = compiled.asm["ptx"]
    assert ".local" not in ptx, "an array went to local memory"
    if KERNELS[name].streams:
        assert any(f"ld.global{cache}.{wide}" in ptx for cache in ("", ".nc") for wide in ("v4.b32", "v2.b64")), (
            "128-bit loads"
        )
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [CUOBJDUMP, "-res-usage", tmp_path / "kernel.cubin"], capture_output=True, text=True, check=True
    )
    stack = int(re.search(r"STACK:(\d+)", usage.stdout)[1])
    kept = (16 if pointer == D else 8) if OLD else 0
    assert stack <= kept and "LOCAL:0" in usage.stdout, f"registers spilled: {usage.stdout}"


def test_importing_gankernels_compiles_nothing():
    code = "import sys, gankernels; assert not {'torch._inductor', 'ninja'} & set(sys.modules)"
    env = {**os.environ, "PATH": "", "CC": "/nonexistent", "CXX": "/nonexistent"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=Path(__file__).parents[2])
    assert torch.ops.gankernels.interpolate
