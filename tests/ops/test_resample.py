"""What the op suite does not know about resampling: sizes, constant images, what is kept for a derivative."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import gankernels as gk
from tests.ops.test_suite import assert_close


@pytest.mark.parametrize("taps", [[1], [1, 2, 1], [1, 3, 3, 1], [1.0] * 9, range(1, 13)], ids=len)
@pytest.mark.parametrize("factor", [1, 2, 3, [2, 1]], ids=str)
def test_centred_resampling_keeps_sizes_and_constant_images(taps, factor, device):
    f = gk.setup_filter(list(taps), device=device)
    assert f.dim() == (1 if len(taps) >= 8 else 2)
    x = torch.ones(1, 2, 24, 36, device=device)
    fx, fy = (factor, factor) if isinstance(factor, int) else factor
    up, down = gk.upsample2d(x, f, factor), gk.downsample2d(x, f, factor)
    assert up.shape == (1, 2, 24 * fy, 36 * fx) and gk.filter2d(x, f).shape == x.shape
    assert down.shape == (1, 2, 24 // fy, 36 // fx)
    torch.testing.assert_close(down[:, :, 6:-6, 6:-6], torch.ones_like(down[:, :, 6:-6, 6:-6]))
    if fx == fy and all(sum(taps[k::fx]) == sum(taps) / fx for k in range(fx)):  # every phase has the same sum
        torch.testing.assert_close(up[:, :, 12:-12, 12:-12], torch.ones_like(up[:, :, 12:-12, 12:-12]))


def test_setup_filter():
    torch.testing.assert_close(gk.setup_filter(None), torch.ones(1, 1))
    torch.testing.assert_close(gk.setup_filter([1, 3], normalize=False), torch.tensor([[1.0, 3], [3, 9]]))
    torch.testing.assert_close(gk.setup_filter([1, 3], separable=True, flip_filter=True), torch.tensor([0.75, 0.25]))
    assert gk.setup_filter(range(1, 9), gain=4).sum().item() == pytest.approx(2)  # each axis has the square root
    assert gk.setup_filter([1, 1], gain=4).sum().item() == pytest.approx(4)


@pytest.mark.parametrize("rank_one", [True, False])
def test_a_matrix_of_rank_one_is_what_its_factors_are(rank_one, device):
    f = torch.tensor([0.0, 2.0, -1.0, 0.5])
    matrix = f.outer(f)
    matrix[0, 0] = 0 if rank_one else 1e-3  # outside the factors
    x = torch.randn(2, 3, 9, 8, device=device)
    got = gk.upfirdn2d(x, matrix.to(device), up=2, padding=2)
    assert_close(got, gk.reference.upfirdn2d(x.double(), matrix.to(device), up=2, padding=2), 2e-6)
    assert_close(gk.upfirdn2d(x, f.to(device), up=2, padding=2), got.double(), 2e-6 if rank_one else 2e-3)


@pytest.mark.parametrize("taps", range(1, 14))
@pytest.mark.parametrize("factors", [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (3, 2)], ids=str)
def test_any_number_of_taps_at_any_width(taps, factors, device):
    """Loops are compiled for the usual numbers of taps, and a row is taken in blocks as wide as a processor's registers."""
    f = torch.randn(taps, device=device)
    for width in (1, 15, 33, 40, 97):
        x = torch.randn(1, 2, 5, width, device=device)
        arguments = *factors, [taps // 2 + 1, taps - taps // 2, taps // 2, taps]
        want = gk.reference.upfirdn2d(x.double(), f.double(), *arguments)
        for layout in (torch.contiguous_format, torch.channels_last):
            assert_close(gk.upfirdn2d(x.to(memory_format=layout), f, *arguments), want, 2e-6)


@pytest.mark.parametrize("op", ["upfirdn2d", "filtered_lrelu"])
def test_images_of_several_bands(op, device):
    """Bands share rows of the upsampled image; each of those has one owner, whose bits are kept."""
    f = torch.rand(7, dtype=torch.float64).to(device)
    x = torch.randn(1, 1, 700, 300, dtype=torch.float64, device=device, requires_grad=True)
    arguments = {"upfirdn2d": (f, 1, 1, 3), "filtered_lrelu": (f, f, None, 2, 3, 9)}[op]
    results = []
    for function in (getattr(gk, op), getattr(gk.reference, op)):
        y = function(x, *arguments)
        results.append([y, *torch.autograd.grad(y.square().sum(), x)])
    for got, want in zip(*results):
        assert_close(got, want, 1e-13)


def test_filtered_lrelu_keeps_two_bits_and_only_for_a_derivative(device):
    x, f = torch.randn(2, 4, 32, 32, device=device), torch.ones(4, device=device) / 4
    calls = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.gankernels.filtered_lrelu.default:
                calls.append(out[1])
            return out

    with Recorder():
        gk.filtered_lrelu(x, f, f, up=2, down=2, padding=3)
        with torch.no_grad():
            gk.filtered_lrelu(x.clone().requires_grad_(), f, f, up=2, down=2, padding=3)
        gk.filtered_lrelu(x.clone().requires_grad_(), f, f, up=2, down=2, padding=3)
    upsampled = 2 * 32 + 6 - 3
    assert [mask.nbytes for mask in calls] == [0, 0, 2 * 4 * upsampled * ((upsampled + 3) // 4)]


def test_filtered_lrelu_in_several_threads_at_once(device):
    f = torch.rand(12, dtype=torch.float64).to(device)

    def derivative(seed):
        x = torch.randn(2, 3, 20 + seed, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x = x.to(device).requires_grad_()
        y = gk.filtered_lrelu(x, f, f, up=2, down=2, padding=11, clamp=0.8)
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]

    alone = [derivative(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, want in zip(pool.map(derivative, range(8)), alone):
                assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_a_bias_alone_is_differentiated(device):
    x, b = torch.randn(2, 3, 6, 6, device=device), torch.zeros(3, device=device, requires_grad=True)
    f = torch.ones(4, device=device) / 4
    got, want = (
        torch.autograd.grad(op(x, f, f, b, up=2, down=2, padding=3).square().sum(), b)[0]
        for op in (gk.filtered_lrelu, gk.reference.filtered_lrelu)
    )
    assert_close(got, want.double(), 2e-6)


def test_references_are_made_of_stock_ops():
    """What an export sees."""

    class Resample(torch.nn.Module):
        def forward(self, x):
            f = torch.ones(4) / 4
            return gk.reference.filtered_lrelu(
                gk.reference.upfirdn2d(x, f, up=2, padding=[2, 1, 2, -1]), f, f, up=2, padding=3
            )

    program = torch.export.export(Resample(), (torch.randn(1, 3, 8, 8),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called and all(name.startswith("aten.") for name in called)
