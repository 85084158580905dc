"""Results that outgrow the last-level cache are written around it, which small results never are."""

import os

import pytest
import torch

import gankernels as gk
from gankernels.ops.bias_act import affine_reference
from tests.ops.specs.spec import TOLERANCE
from tests.ops.test_suite import assert_close

CACHE = os.sysconf("SC_LEVEL3_CACHE_SIZE") if "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names else 0
CACHE = CACHE if CACHE > 0 else 32 << 20
B, NOISE = (torch.randn(shape).bfloat16().float() for shape in ((7,), (1, 1, 1, 1001)))  # the same in every dtype
F = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
NUMBERS = 2, 0.2, 1.4, None  # leaky ReLU, its slope and gain, no clamp

CASES = {
    "lrelu": lambda ops, x: ops.bias_act(x, B.to(x.dtype), act="lrelu"),
    "tanh": lambda ops, x: ops.bias_act(x, act="tanh"),
    "noise": lambda ops, x: (torch.ops.gankernels.bias_act if ops is gk else affine_reference)(
        x, None, NOISE.expand(1, 1, *x.shape[2:]).to(x.dtype), None, *NUMBERS
    ),
    "upfirdn2d": lambda ops, x: ops.upfirdn2d(
        x, F.to(torch.promote_types(x.dtype, torch.float32)), padding=[2, 1, 2, 1]
    ),
}


@pytest.mark.skipif(CACHE > 64 << 20, reason="the cache of this CPU is too large for a cheap test")
@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)], ids=str
)
@pytest.mark.parametrize("case", CASES)
def test_large_results(case, dtype, layout):
    """A row is odd, so that runs of memory begin anywhere within a line."""
    height = CACHE // (dtype.itemsize * 2 * 7 * 1001) + 1
    x = torch.randn(2, 7, height, 1001).to(dtype).to(memory_format=layout).requires_grad_()
    exact = x.detach().float().requires_grad_()
    got, want = CASES[case](gk, x), CASES[case](gk.reference, exact)
    assert_close(got, want.double(), TOLERANCE[dtype])
    g = torch.rand_like(got)
    for a, b in zip(torch.autograd.grad(got, x, g), torch.autograd.grad(want, exact, g.float())):
        assert_close(a, b.double(), 2 * TOLERANCE[dtype])
