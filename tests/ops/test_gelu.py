"""All there is in 16 bits."""

import pytest
import torch
import torch.nn.functional as F

import gankernels as gk
from tests.ops.specs.gelu import _slope


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_every_number_and_every_nan(dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    finite, nan = x.isfinite(), x.isnan()
    y = gk.gelu(x)
    dx = torch.ops.gankernels.gelu_bwd(torch.ones_like(x), x, False)
    exact, slope = F.gelu(x.double()), _slope(x.double(), False)
    for got, want in ((y, exact), (dx, slope)):
        error = (got.double() - want)[finite].abs()
        assert (error <= 0.51 * torch.finfo(dtype).eps * want[finite].abs() + 1e-6).all()
        assert got[nan].isnan().all()
    assert torch.ops.gankernels.gelu_bwd(x, torch.full_like(x, -50), False)[nan].isnan().all()
