"""What the op suite does not ask of bias_act: dimensions, public defaults, orders beyond the second, what is kept."""

import pytest
import torch

import gankernels as gk


@pytest.mark.parametrize(
    ("shape", "dim"), [((7,), 0), ((3, 5), -1), ((2, 3, 5), 2), ((2, 3, 5), 0), ((2, 3, 4, 5), -2), ((2, 3, 4, 5), 1)]
)
def test_bias_along_any_dimension(shape, dim, device):
    x, b = (
        torch.randn(shape, device=device, requires_grad=True),
        torch.randn(shape[dim], device=device, requires_grad=True),
    )
    for layout in (x, x.movedim(0, -1).contiguous().movedim(-1, 0)):
        y, want = gk.bias_act(layout, b, dim, "lrelu"), gk.reference.bias_act(layout, b, dim, "lrelu")
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(
            torch.autograd.grad(y.square().sum(), (x, b)), torch.autograd.grad(want.square().sum(), (x, b))
        )


@pytest.mark.parametrize("act", gk.activation_funcs)
def test_defaults_and_range_of_every_activation(act, device):
    x = torch.cat(
        [torch.linspace(-12, 12, 401), torch.tensor([0.0, -0.0, 1e-30, -1e-5, 300.0, -300.0, 1e30, -1e30])]
    ).to(device)
    y, want = gk.bias_act(x, act=act), gk.reference.bias_act(x.double(), act=act)
    torch.testing.assert_close(y.double(), want, rtol=1e-6, atol=2e-8 if act in ("softplus", "swish") else 1e-30)
    assert gk.bias_act(torch.full((3,), torch.nan, device=device), act=act).isnan().all()


def test_scalars_and_no_bias(device):
    x = torch.tensor(-2.0, device=device)
    assert gk.bias_act(x, act="lrelu", gain=1).item() == pytest.approx(-0.4)
    y = gk.bias_act(x)
    assert y.item() == -2 and y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("act", ("linear", "relu", "lrelu"))
def test_piecewise_linear_to_the_third_order(act, device):
    x, b, w = (
        torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in ((2, 3, 4), (3,), (2, 3, 4))
    )

    def third(bias_act):
        y = bias_act(x * w, b, act=act, clamp=2.0)
        for _ in range(2):
            (y,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        return torch.autograd.grad((y**3).sum(), (x, w), create_graph=True)

    torch.testing.assert_close(third(gk.bias_act), third(gk.reference.bias_act))


def test_smooth_beyond_the_second_order_raises(device):
    x = torch.randn(2, 3, device=device, requires_grad=True)
    (y,) = torch.autograd.grad(gk.bias_act(x, act="tanh").sum(), x, create_graph=True)
    (y,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="bias_act_bwd_bwd"):
        y.sum().backward()


def test_bias_gets_zeros_from_a_second_derivative(device):
    x, b = torch.randn(2, 3, device=device, requires_grad=True), torch.zeros(3, device=device, requires_grad=True)
    (g,) = torch.autograd.grad(gk.bias_act(x, b, act="lrelu").sum(), x, create_graph=True)
    g.square().sum().backward()
    assert torch.equal(b.grad, torch.zeros_like(b))


@pytest.mark.parametrize(
    ("act", "clamp", "kept"), [("linear", None, 0), ("linear", 1.0, 1), ("lrelu", None, 1), ("tanh", None, 1)]
)
def test_keeps_its_output_or_nothing(act, clamp, kept):
    x, b = torch.randn(2, 3, 4, requires_grad=True), torch.zeros(3, requires_grad=True)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.data_ptr()) or t, lambda t: t):
        y = gk.bias_act(x * 1, b, act=act, clamp=clamp)
    assert packed.count(y.data_ptr()) == kept and set(packed) <= {y.data_ptr(), b.data_ptr()}
