"""Results of bias_act that outgrow the last-level cache are written around it, which small results never are."""

import pytest
import torch

import gankernels as gk
from gankernels.ops.bias_act import affine_reference
from tests.ops.specs.spec import TOLERANCE
from tests.ops.test_suite import assert_close

BYTES = 25 << 20  # kLargestKept in csrc/cpu/stream.h is 24 MB
B, NOISE = (torch.randn(shape).bfloat16().float() for shape in ((7,), (1, 1, 1, 1001)))  # the same in every dtype
NUMBERS = 2, 0.2, 1.4, None  # leaky ReLU, its slope and gain, no clamp

CASES = {
    "lrelu": lambda ops, x: ops.bias_act(x, B.to(x.dtype), act="lrelu"),
    "tanh": lambda ops, x: ops.bias_act(x, act="tanh"),
    "noise": lambda ops, x: (torch.ops.gankernels.bias_act if ops is gk else affine_reference)(
        x, None, NOISE.expand(1, 1, *x.shape[2:]).to(x.dtype), None, *NUMBERS
    ),
}


@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)], ids=str
)
@pytest.mark.parametrize("case", CASES)
def test_large_results(case, dtype, layout):
    """A row is odd, so that runs of memory begin anywhere within a line."""
    height = BYTES // (dtype.itemsize * 2 * 7 * 1001) + 1
    x = torch.randn(2, 7, height, 1001).to(dtype).to(memory_format=layout).requires_grad_()
    exact = x.detach().float().requires_grad_()
    got, want = CASES[case](gk, x), CASES[case](gk.reference, exact)
    assert_close(got, want.double(), TOLERANCE[dtype])
    g = torch.rand_like(got)
    for a, b in zip(torch.autograd.grad(got, x, g), torch.autograd.grad(want, exact, g.float())):
        assert_close(a, b.double(), 2 * TOLERANCE[dtype])
