"""What bends, as `fast_double_backward` routes it, against stock autograd: normalisations, smooth activations, attention."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import gankernels as gk
from benchmarks.harness import cpu_peak_memory
from tests.ops.test_fast_double_backward import IMAGE, SEQUENCE, penalty_and_gradients, routed

TOKENS = (2, 3, 7, 4)  # batch, heads, tokens, features


class Attention(nn.Module):
    """Every head's queries, keys and values from the same tokens."""

    def __init__(self, **options):
        super().__init__()
        self.to_qkv, self.options = nn.Linear(4, 12), options

    def forward(self, x):
        return F.scaled_dot_product_attention(*self.to_qkv(x).chunk(3, -1), **self.options)


def affine(layer):
    """With parameters that show."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


LAYERS = {
    "group_norm": (nn.GroupNorm(2, 4), IMAGE),
    "group_norm_one_group": (nn.GroupNorm(1, 4), IMAGE),
    "group_norm_plain": (nn.GroupNorm(2, 4, affine=False), SEQUENCE),
    "group_norm_latents": (nn.GroupNorm(2, 8), (3, 8)),
    "layer_norm_images": (nn.LayerNorm(IMAGE[1:]), IMAGE),
    "layer_norm_no_bias": (nn.LayerNorm(IMAGE[2:], bias=False), IMAGE),
    "layer_norm_features": (nn.LayerNorm(5), IMAGE),
    "layer_norm_plain": (nn.LayerNorm(SEQUENCE[1:], elementwise_affine=False), SEQUENCE),
    "rms_norm": (nn.RMSNorm(5), IMAGE),
    "rms_norm_images": (nn.RMSNorm(IMAGE[1:], eps=0.1), IMAGE),
    "instance_norm1d": (nn.InstanceNorm1d(4, affine=True), SEQUENCE),
    "instance_norm2d": (nn.InstanceNorm2d(4, eps=0.1), IMAGE),
    "tanh": (nn.Tanh(), IMAGE),
    "sigmoid": (nn.Sigmoid(), (3, 5)),
    "silu": (nn.SiLU(), IMAGE),
    "elu": (nn.ELU(), SEQUENCE),
    "selu": (nn.SELU(), IMAGE),
    "softplus": (nn.Softplus(), IMAGE),
    "gelu": (nn.GELU(), IMAGE),
    "gelu_tanh": (nn.GELU("tanh"), IMAGE),
    "attention": (Attention(), TOKENS),
    "attention_causal": (Attention(is_causal=True, scale=0.7), TOKENS),
}
LAYERS = {name: (affine(layer), shape) for name, (layer, shape) in LAYERS.items()}
each_layer = pytest.mark.parametrize("name", LAYERS)


def layer_and_input(name, layout=torch.contiguous_format):
    layer, shape = LAYERS[name]
    x = torch.randn(shape, dtype=torch.float64)
    return layer.double(), x.contiguous(memory_format=layout) if x.dim() == 4 else x


class Calls(TorchDispatchMode):
    """The registered ops that run, with their arguments."""

    def __enter__(self):
        self.calls = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "gankernels":
            self.calls.append((func._opname, args))
        return func(*args, **(kwargs or {}))

    def names(self):
        return [name for name, _ in self.calls]


@each_layer
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=("nchw", "channels_last"))
def test_equals_stock_to_second_order(name, layout):
    layer, x = layer_and_input(name, layout)
    with sdpa_kernel(SDPBackend.MATH):
        stock = penalty_and_gradients(lambda x: layer(x * 1), layer, x)
    with Calls() as calls:
        ours = penalty_and_gradients(routed(layer), layer, x)
    kernel = "group_norm" if "norm" in name else name.split("_")[0] if name[:4] in ("gelu", "atte") else "bias_act"
    assert {kernel, f"{kernel}_bwd", f"{kernel}_bwd_bwd"} <= set(calls.names()), "not routed"
    # of these only one side keeps channels_last
    if name not in ("rms_norm", "instance_norm2d") and not name.endswith("images"):
        assert ours[0].stride() == stock[0].stride()
    for a, b in zip(ours, stock, strict=True):
        a = torch.zeros_like(b) if a is None and b is not None else a
        b = torch.zeros_like(a) if b is None and a is not None else b
        assert (a is None and b is None) or (a - b).abs().max() <= 1e-12 * max(1, b.abs().max())


@pytest.mark.parametrize(
    "swap", (lambda x: x.mT.contiguous().mT, lambda x: x.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0))
)
def test_a_norm_of_images_column_by_column(swap):
    layer, x = layer_and_input("group_norm")
    ours, stock = (penalty_and_gradients(call, layer, swap(x)) for call in (routed(lambda x: layer(swap(x))), layer))
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=("nchw", "channels_last"))
def test_parameters_of_a_norm_of_images_that_need_no_gradient(layout):
    """PyTorch 2.13's own group norm crashes there in channels_last."""
    layer, x = layer_and_input("group_norm", layout)
    with gk.fast_double_backward():
        y = layer(x)
    gradients = torch.autograd.grad(y.square().sum(), [layer.weight, layer.bias])
    normalised = F.group_norm(x, 2, eps=layer.eps)
    y = normalised * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
    for a, b in zip(gradients, torch.autograd.grad(y.square().sum(), [layer.weight, layer.bias]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@each_layer
def test_gradgradcheck_with_parameters(name):
    layer, x = layer_and_input(name)
    parameters = {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters()}

    def call(x, *values):
        with gk.fast_double_backward():
            return torch.func.functional_call(layer, dict(zip(parameters, values)), (x,))

    assert gradgradcheck(call, (x.requires_grad_(), *parameters.values()), fast_mode=True)


@each_layer
def test_compiled_step_equals_eager(name):
    layer, x = layer_and_input(name)
    scale = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
    parameters = [scale, *layer.parameters()]

    def step(x):
        with gk.fast_double_backward():
            y = layer(x * scale)
        (g,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        return g.square().sum()

    results = []
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
            loss = function(x.clone().requires_grad_())
            results.append((loss, *torch.autograd.grad(loss, parameters, allow_unused=True)))
    for eager, compiled in zip(*results, strict=True):
        assert (eager is None and compiled is None) or torch.allclose(eager, compiled, rtol=1e-10, atol=1e-12)


class Critic(nn.Module):
    """A bit of everything: convolutions, norms of images and of tokens, attention, a batch norm with fixed statistics."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.LayerNorm((8, 8, 8)), nn.LeakyReLU(0.2), nn.BatchNorm2d(8)
        )
        self.stem[3].running_mean.normal_()
        self.stem[3].eval()
        self.block = nn.Sequential(
            nn.GroupNorm(1, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True)
        )
        self.norm, self.to_qkv, self.head = nn.RMSNorm(8), nn.Linear(8, 24), nn.Linear(8, 1)

    def forward(self, x):
        h = self.stem(x)
        h = (h + self.block(h)).flatten(2).mT
        q, k, v = (t.reshape(*t.shape[:2], 2, 4).transpose(1, 2) for t in self.to_qkv(self.norm(h)).chunk(3, -1))
        h = h + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(F.leaky_relu(h, 0.2).mean(1))


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=("nchw", "channels_last"))
def test_penalty_of_a_critic_equals_stock(layout):
    critic = affine(Critic()).double().to(memory_format=layout)
    parameters = list(critic.parameters())
    real = torch.randn(3, 3, 16, 16, dtype=torch.float64).contiguous(memory_format=layout)

    def stock():
        x = real.clone().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            (grads,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        return 5 * grads.square().flatten(1).sum(1).mean()

    def ours():
        return gk.r1_penalty(critic, real)

    want = (stock().detach(), *torch.autograd.grad(stock(), parameters, allow_unused=True, materialize_grads=True))
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        for function in (ours, torch.compile(ours, fullgraph=True, backend="aot_eager")):
            penalty = function()
            got = (
                penalty.detach(),
                *torch.autograd.grad(penalty, parameters, allow_unused=True, materialize_grads=True),
            )
            for a, b in zip(got, want, strict=True):
                assert (a - b).abs().max() <= 1e-10 * max(1, b.abs().max())


def test_parameters_get_a_gradient_only_where_one_is_asked_for():
    layer, x = layer_and_input("group_norm")
    x.requires_grad_()
    with Calls() as calls:
        y = routed(layer)(x)
        (g,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        g.square().sum().backward()
    ((_, first),) = [call for call in calls.calls if call[0] == "group_norm_bwd"][:1]
    assert first[-2:] == (True, False), "of x alone"
    assert calls.names().count("group_norm_bwd_bwd") == 1
    assert layer.weight.grad is not None and layer.bias.grad is not None
    layer.zero_grad()


def test_frozen_parameters_and_no_weight_gradients():
    layer = nn.GroupNorm(2, 4).double()
    layer.bias.requires_grad_(False)
    x = torch.randn(IMAGE, dtype=torch.float64)
    with gk.fast_double_backward():
        y = layer(x)
    y.sin().sum().backward(retain_graph=True)
    want = torch.autograd.grad(F.group_norm(x, 2, layer.weight, layer.bias).sin().sum(), layer.weight)[0]
    assert torch.allclose(layer.weight.grad, want) and layer.bias.grad is None
    layer.weight.grad = None
    with gk.no_weight_gradients(), Calls() as calls:
        y.sin().sum().backward()
    assert layer.weight.grad is None and not calls.calls


def test_the_bias_gets_zeros_where_a_convolutions_does():
    layer = nn.GroupNorm(2, 4)
    x = torch.randn(IMAGE, requires_grad=True)
    with gk.fast_double_backward():
        y = F.relu(layer(x * 1))
    (g,) = torch.autograd.grad((y * torch.randn_like(y, requires_grad=True)).sum(), x, create_graph=True)
    g.sum().backward()
    assert layer.bias.grad is not None and layer.bias.grad.count_nonzero() == 0


@pytest.mark.parametrize("name", ("group_norm", "silu", "gelu", "attention"))
def test_third_derivative_raises(name):
    layer, x = layer_and_input(name)
    y = routed(layer)(x.requires_grad_())
    for _ in range(2):
        (y,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="not implemented.* fast_double_backward"):
        torch.autograd.grad(y.sin().sum(), x)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_autocast_and_mixed_dtypes_are_those_of_stock(dtype):
    x = torch.randn(IMAGE, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for layer in (nn.GroupNorm(2, 4), nn.LayerNorm(5), nn.RMSNorm(5)):
            stock, ours = layer(x), routed(layer)(x)
            exact = copy.deepcopy(layer).double()(x.double())
            assert ours.dtype == stock.dtype
            assert (ours - exact).abs().max() <= (stock - exact).abs().max() + 0.02
            (grad,) = torch.autograd.grad(ours.float().sum(), layer.weight)
            assert grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_eps_of_rms_norm_is_stocks(dtype):
    x = torch.full((2, 4), 1e-3, dtype=dtype)
    stock = F.rms_norm(x, (4,))
    torch.testing.assert_close(gk.rms_norm(x, 4), stock)
    with gk.fast_double_backward():
        torch.testing.assert_close(F.rms_norm(x, (4,)), stock)


def test_left_to_stock():
    x = torch.randn(IMAGE, requires_grad=True)
    with Calls() as calls, gk.fast_double_backward():
        nn.BatchNorm2d(4)(x)
        nn.InstanceNorm2d(4, track_running_stats=True)(x)
        F.layer_norm(x[:0], (5,))
        F.layer_norm(x, x.shape)  # over the batch too
        F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(6, 6, dtype=torch.bool))
        F.softplus(x, beta=2), F.elu(x, 0.5), torch.tanh(x[0, 0, 0]), F.silu(x * 1, inplace=True)
    assert not calls.calls
    with gk.fast_double_backward(), pytest.raises(ValueError, match="more than 1 value"):
        F.group_norm(x[:1, :2, :1, :1], 2)


def test_memory_of_attention_is_linear_in_the_tokens():
    """Penalty and its backward, from 1,024 to 2,048 tokens."""
    layer, peaks = Attention(), []
    for tokens in (1024, 2048):
        x = torch.randn(1, 1, tokens, 4)
        peaks.append(cpu_peak_memory(lambda i, x=x: gk.r1_penalty(layer, x).backward(), 0))
    assert peaks[1] < 2.5 * peaks[0] and peaks[1] < 2048**2 * 4, peaks
