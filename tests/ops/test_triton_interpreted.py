"""Every Triton kernel runs on the CPU under Triton's interpreter. In processes of its own, `TRITON_INTERPRET=1 pytest <this file>`,
because the interpreter is chosen when a kernel is defined; test_triton.py starts one for each family of ops."""

import math
import os

import numpy as np
import pytest
import torch

import gankernels as gk  # noqa: F401  loads the ops
from gankernels._triton import BLOCK
from gankernels.ops import grad_norm_penalty
from tests.ops.specs import FAMILY, LAUNCHERS, SPECS, TOLERANCE
from tests.ops.test_suite import as_tuple, assert_close, double, inputs_of

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in a process of its own")

_op = torch.ops.gankernels


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch):
    """The interpreter keeps bfloat16 as integers, and multiplies matrices of these integers."""
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder

    create_dot = InterpreterBuilder.create_dot

    def widened(self, a, b, *rest):
        a, b = (self.create_fp_ext(t, float32) if t.dtype.scalar == bfloat16 else t for t in (a, b))
        return create_dot(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", widened)


def launcher_of(spec):
    return next((LAUNCHERS[name] for name in sorted(LAUNCHERS, key=len)[::-1] if spec.name.startswith(name)), None)


def spec_of(name):
    return next(spec for spec in SPECS if launcher_of(spec) is LAUNCHERS[name])


each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{FAMILY[spec.name]}/{spec.name}")


@each_spec
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [  # every dtype and every layout, not every pair: which loads are cast has nothing to do with where they are
        (torch.float64, "contiguous"),
        (torch.float32, "contiguous"),
        (torch.float32, "channels_last"),
        (torch.bfloat16, "channels_last"),
        (torch.float32, "sliced"),
        (torch.float32, "transposed"),
    ],
    ids=str,
)
def test_interpreted_kernels_equal_the_reference(spec, dtype, layout):
    launcher = launcher_of(spec)
    if launcher is None:
        pytest.skip("its GPU kernel is CUDA C++")
    copied = layout in ("sliced", "transposed")  # by the launcher, whatever the size
    # the interpreter is slow; in the order of the spec, since a set's would draw other numbers in every process
    for size in ("odd",) if copied else [size for size in spec.shapes if size != "large"]:
        args = inputs_of(spec, size, dtype, "cpu", layout)
        # the interpreter rounds to bfloat16 towards zero where a GPU rounds to nearest
        tolerance = TOLERANCE[dtype] * (2 if dtype == torch.bfloat16 else 1)
        for got, want in zip(as_tuple(launcher(*args)), as_tuple(spec.reference(*double(args)))):
            assert_close(got, want, tolerance)


@pytest.mark.parametrize("name", LAUNCHERS, ids=lambda name: f"of_{FAMILY[spec_of(name).name]}-{name}")
def test_offsets_have_64_bits(name, monkeypatch):
    """More than 2^31 elements at a small scale: no 32-bit integer may reach three quarters of the number of elements."""
    from triton.runtime.interpreter import InterpreterBuilder

    spec = spec_of(name)
    shape = (132, *spec.shapes["odd"][1:])
    if math.prod(shape) * 3 // 4 <= 2 * BLOCK:
        shape = (40, *spec.shapes["many"][1:])
    args = spec.inputs(shape, torch.float32, "cpu")
    limit = max(a.numel() for a in args if isinstance(a, torch.Tensor)) * 3 // 4
    assert limit > 2 * BLOCK
    binary_op = InterpreterBuilder.binary_op

    def narrow(self, left, right, op):
        result = binary_op(self, left, right, op)
        assert result.data.dtype != np.int32 or np.abs(result.data).max() < limit, (
            f"{op.__name__} of 32-bit integers overflows"
        )
        return result

    monkeypatch.setattr(InterpreterBuilder, "binary_op", narrow)
    LAUNCHERS[name](*args)


@pytest.mark.parametrize("one_sided", (False, True))
@pytest.mark.parametrize("target", (0.0, 5.0))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
def test_interpreted_second_derivative_of_grad_norm_penalty_equals_the_cpu_kernel(one_sided, target, dtype):
    for shape in ((3, 5, 7, 3), (2, 3, 30, 31), (1, 1)):
        scale = torch.linspace(0, 2, shape[0], dtype=dtype).reshape(-1, *[1] * (len(shape) - 1))  # one norm is 0
        grads, v = torch.randn(shape, dtype=dtype) * scale, torch.randn(shape, dtype=dtype)
        _, norms = _op.grad_norm_penalty(grads, target, one_sided)
        args = (v, torch.tensor(0.7, dtype=dtype), grads, norms, target, one_sided)
        got = grad_norm_penalty._grad_norm_penalty_bwd_bwd_triton(*args)
        for g, w in zip(got, _op.grad_norm_penalty_bwd_bwd(*args), strict=True):
            assert_close(g, w.double(), TOLERANCE[dtype])


@pytest.mark.parametrize("name", ("attention", "attention_bwd", "attention_bwd_bwd"))
def test_heads_of_more_features_than_a_program_takes_of_attention(name):
    spec = spec_of(name)
    args = spec.inputs((1, 5, 70), torch.float64, "cpu")
    for got, want in zip(as_tuple(LAUNCHERS[name](*args)), as_tuple(spec.reference(*args)), strict=True):
        assert_close(got, want, TOLERANCE[torch.float64])
