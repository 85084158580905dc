"""Routed layers against stock autograd: values, derivatives to third order, and the passes that are not made."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import gankernels as gk

BLUR = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64).outer(torch.tensor([0.25, 0.5, 0.25])).expand(4, 1, 3, 3) / 4
IMAGE, SEQUENCE, VOLUME = (2, 4, 6, 5), (2, 4, 7), (1, 4, 3, 3, 4)


class ConvolutionCalls(TorchDispatchMode):
    """Counts convolution passes: forward (or tangent), input gradient, weight gradient."""

    def __enter__(self):
        self.forward = self.input = self.weight = 0
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.forward += 1
        elif func is torch.ops.aten.convolution_backward.default:
            self.input += args[-1][0]
            self.weight += args[-1][1]
        return func(*args, **(kwargs or {}))


def fixed_batch_norm():
    """With statistics and parameters that show."""
    layer = nn.BatchNorm2d(4, eps=0.1).eval()
    for numbers in (layer.weight, layer.bias, layer.running_mean):
        nn.init.normal_(numbers)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer


KERNEL = torch.randn(4, 3, 3, 3, dtype=torch.float64)

# Linear in their parameters and piecewise linear in x.
LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3, 2, 1), SEQUENCE),
    "conv2d": (nn.Conv2d(4, 6, 3, 2, 1), IMAGE),
    "conv2d_groups_dilation_no_bias": (nn.Conv2d(4, 6, 2, dilation=2, groups=2, bias=False), IMAGE),
    "conv2d_same": (nn.Conv2d(4, 6, (3, 5), padding="same"), IMAGE),
    "conv2d_same_even": (nn.Conv2d(4, 6, 4, padding="same"), IMAGE),
    "conv2d_valid": (nn.Conv2d(4, 6, 3, padding="valid"), IMAGE),
    "conv2d_reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), IMAGE),
    "conv2d_replicate": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"), IMAGE),
    "conv2d_unbatched": (nn.Conv2d(4, 6, 3), IMAGE[1:]),
    "conv3d": (nn.Conv3d(4, 3, 3, padding=1), VOLUME),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 3, 4, 2, 1), SEQUENCE),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), IMAGE),
    "conv_transpose3d": (nn.ConvTranspose3d(4, 2, 3), VOLUME),
    "batch_norm1d": (nn.BatchNorm1d(4).eval(), SEQUENCE),
    "batch_norm2d": (fixed_batch_norm(), IMAGE),
    "instance_norm_fixed": (nn.InstanceNorm2d(4, affine=True, track_running_stats=True).eval(), IMAGE),
    "linear": (nn.Linear(5, 3), IMAGE),
    "linear_vector": (nn.Linear(4, 3, bias=False), (4,)),
    "relu": (nn.ReLU(), IMAGE),
    "relu_inplace": (nn.ReLU(inplace=True), IMAGE),
    "relu_method": (torch.Tensor.relu, IMAGE),
    "leaky_relu": (nn.LeakyReLU(0.2), IMAGE),
    "leaky_relu_inplace": (nn.LeakyReLU(0.2, inplace=True), IMAGE),
    "leaky_relu_negative_slope": (nn.LeakyReLU(-0.3), IMAGE),
    "rrelu": (nn.RReLU().eval(), IMAGE),
    "relu6": (nn.ReLU6(), IMAGE),
    "hardtanh": (nn.Hardtanh(-0.5, 0.7), IMAGE),
    "threshold": (nn.Threshold(0.1, 2.0), IMAGE),
    "abs": (torch.abs, IMAGE),
    "max_pool1d": (nn.MaxPool1d(2), SEQUENCE),
    "max_pool2d": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "max_pool2d_dilation": (nn.MaxPool2d(2, 1, dilation=2), IMAGE),
    "max_pool3d": (nn.MaxPool3d(2), VOLUME),
    "avg_pool1d": (nn.AvgPool1d(2), SEQUENCE),
    "avg_pool2d": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
    "avg_pool2d_divisor": (nn.AvgPool2d(2, divisor_override=3), IMAGE),
    "avg_pool3d": (nn.AvgPool3d(2), VOLUME),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d((3, 2)), IMAGE),
    "adaptive_avg_pool2d_global": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive_max_pool2d": (nn.AdaptiveMaxPool2d((3, 2)), IMAGE),
    "interpolate_area": (lambda x: F.interpolate(x, (3, 2), mode="area"), IMAGE),
    "prelu": (nn.PReLU(), IMAGE),
    "prelu_per_channel": (nn.PReLU(4, 0.1), SEQUENCE),
    "nearest": (nn.Upsample(scale_factor=2), IMAGE),
    "bilinear": (nn.Upsample(scale_factor=0.5, mode="bilinear"), IMAGE),
    "bicubic_antialias": (lambda x: F.interpolate(x, (3, 2), mode="bicubic", antialias=True), IMAGE),
    "pixel_shuffle": (nn.PixelShuffle(2), IMAGE),
    "pixel_unshuffle": (nn.PixelUnshuffle(2), (2, 4, 6, 4)),
    "blur_pool": (lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), BLUR, stride=2, groups=4), IMAGE),
    "zero_pad": (nn.ZeroPad2d(1), IMAGE),
    "circular_pad": (nn.CircularPad2d(1), IMAGE),
    "reflection_pad1d": (nn.ReflectionPad1d(2), SEQUENCE),
    "reflection_pad2d": (nn.ReflectionPad2d((1, 2, 0, 3)), IMAGE),
    "replication_pad2d": (nn.ReplicationPad2d(1), IMAGE),
}
# Nothing of theirs is routed.
STOCK_ALREADY = {"conv2d_same_even", "conv2d_unbatched", "adaptive_avg_pool2d_global", "nearest", "bilinear", "bicubic_antialias",
                 "pixel_shuffle", "pixel_unshuffle", "zero_pad", "circular_pad"}  # fmt: skip
# Stock's forget channels_last; in one pixel strides say nothing.
NO_STRIDES = {"rrelu", "instance_norm_fixed", "adaptive_avg_pool2d_global"}

each_layer = pytest.mark.parametrize("name", LAYERS)


def layer_and_input(name, layout=torch.contiguous_format):
    layer, shape = LAYERS[name]
    if isinstance(layer, nn.Module):
        layer = layer.double()
        layer.zero_grad(set_to_none=True)
    x = torch.randn(shape, dtype=torch.float64)
    return layer, x.contiguous(memory_format=layout) if x.dim() == 4 else x


def routed(layer):
    def call(x):
        with gk.fast_double_backward():
            return layer(x * 1)  # in-place layers need an input that is not a leaf

    return call


def penalty_and_gradients(forward, layer, x):
    """First- and second-order gradients in x and the parameters of a loss that is quadratic in the input gradient."""
    parameters = list(layer.parameters()) if isinstance(layer, nn.Module) else []
    x = x.clone().requires_grad_()
    y = forward(x)
    (g,) = torch.autograd.grad((y * y.detach().cos()).sum() + y.square().sum(), x, create_graph=True)
    first = torch.autograd.grad(y.square().sum(), [x, *parameters], retain_graph=True)
    second = torch.autograd.grad(g.square().sum(), [x, *parameters], allow_unused=True)
    return y, g, *first, *second


@each_layer
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=("nchw", "channels_last"))
def test_equals_stock_to_second_order(name, layout):
    layer, x = layer_and_input(name, layout)
    stock = penalty_and_gradients(lambda x: layer(x * 1), layer, x)
    ours = penalty_and_gradients(routed(layer), layer, x)
    assert name in NO_STRIDES or ours[0].stride() == stock[0].stride()
    for a, b in zip(ours, stock, strict=True):
        a = torch.zeros_like(b) if a is None and b is not None else a
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-12, atol=1e-12)


@each_layer
def test_gradcheck(name):
    layer, x = layer_and_input(name)
    assert gradcheck(routed(layer), (x.requires_grad_(),), fast_mode=True)


# One of each family of nodes: each is closed under differentiation, so three orders show every order.
@pytest.mark.parametrize("name", ("conv1d", "conv_transpose1d", "linear", "leaky_relu", "max_pool1d", "avg_pool1d"))
def test_gradcheck_to_third_order(name):
    layer, _ = layer_and_input(name)
    x = torch.randn((1, 4, 5) if "1d" in name else (3, 5), dtype=torch.float64, requires_grad=True)
    parameters = {}
    if isinstance(layer, nn.Module):
        parameters = {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters()}

    def input_gradient(x, *values):
        with gk.fast_double_backward():
            y = torch.func.functional_call(layer, dict(zip(parameters, values)), (x * 1,))
        return torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]

    assert gradgradcheck(input_gradient, (x, *parameters.values()), fast_mode=True)


@each_layer
def test_no_zeros_flow_back(name):
    """The gradient of the input gradient is absent at the input of a (piecewise) linear layer."""
    layer, x = layer_and_input(name)
    if name in STOCK_ALREADY:
        pytest.skip("left to stock")
    x.requires_grad_()
    y = routed(layer)(x)
    (g,) = torch.autograd.grad(y, x, torch.randn_like(y).requires_grad_(), create_graph=True)
    assert g.requires_grad
    assert torch.autograd.grad(g.sum(), x, allow_unused=True) == (None,)


class Operations(TorchDispatchMode):
    """Names of the ops that are dispatched, but for those that only look at memory another way."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._opname not in ("view", "view_as", "flatten", "slice", "detach", "alias", "transpose"):
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


RESAMPLING = ("nearest", "bilinear", "bicubic_antialias", "pixel_shuffle", "pixel_unshuffle", "adaptive_max_pool2d", "max_pool2d",
              "avg_pool2d", "adaptive_avg_pool2d", "interpolate_area", "reflection_pad2d", "replication_pad2d", "zero_pad")  # fmt: skip


@pytest.mark.parametrize("name", RESAMPLING)
def test_resampling_takes_one_kernel_each_way(name):
    """Whether routed or left to stock: no zeros, no second pass."""
    layer, x = layer_and_input(name)
    x.requires_grad_()
    y = routed(layer)(x)
    r, v = torch.randn_like(y).requires_grad_(), torch.randn_like(x)
    with Operations() as first:
        (g,) = torch.autograd.grad(y, x, r, create_graph=True)
    with Operations() as second:
        torch.autograd.grad(g, r, v)
    for operations in (first, second):
        assert sorted(operations.names)[:-2] == [] and "mul" in operations.names, "one beside the multiplication by 1"


@each_layer
def test_compiled_step_equals_eager(name):
    layer, x = layer_and_input(name)
    parameters = list(layer.parameters()) if isinstance(layer, nn.Module) else []
    if not parameters:
        layer = nn.Sequential(nn.Identity(), *([layer] if isinstance(layer, nn.Module) else []), nn.Flatten(0)).double()
        scale = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
        parameters, inner = [scale], layer
        layer = lambda x: inner(x * scale)  # noqa: E731

    def step(x):
        with gk.fast_double_backward():
            y = layer(x * 1)
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return g.square().sum()

    results = []
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
            loss = function(x.clone().requires_grad_())
            results.append((loss, *torch.autograd.grad(loss, parameters, allow_unused=True)))
    for eager, compiled in zip(*results, strict=True):
        assert (eager is None and compiled is None) or torch.allclose(eager, compiled, rtol=1e-12, atol=1e-12)


def critic(inplace=False):
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace),
        nn.Conv2d(8, 16, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace),
        nn.Conv2d(16, 24, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace),
        nn.Flatten(),
        nn.Linear(96, 1),
    ).double()


@pytest.mark.parametrize("inplace", (False, True))
def test_a_penalty_takes_four_passes(inplace):
    model, x = critic(inplace), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with ConvolutionCalls() as first:
        penalty = gk.r1_penalty(model, x)
    assert (first.forward, first.input, first.weight) == (3, 3, 0), "forward and input gradient, no weight gradient"
    with ConvolutionCalls() as second:
        penalty.backward()
    assert (second.forward, second.input, second.weight) == (3, 0, 3), "tangent forward and weight gradient"


@pytest.mark.parametrize(
    "first",
    (nn.Conv2d(3, 4, 3), lambda x: torch.convolution(x, KERNEL, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)),
)
def test_nobody_computes_the_penaltys_gradient_in_images_that_nobody_asked_it_for(first):
    layers = nn.Sequential(nn.SiLU(), nn.Conv2d(4, 1, 14), nn.Flatten()).double()
    first = first.double() if isinstance(first, nn.Module) else first
    real, fake = torch.randn(2, 2, 3, 16, 16, dtype=torch.float64)

    def input_gradients(fake):
        penalty = gk.gradient_penalty(lambda x: layers(first(x)), real, fake, eps=0.5)
        with ConvolutionCalls() as calls:
            penalty.backward()
        return calls.input

    assert input_gradients(fake) == 0, "what bends goes into the first weights, and not below them"
    asked = fake.clone().requires_grad_()
    assert input_gradients(asked) == 1
    x = (0.5 * (real + asked)).detach().requires_grad_()
    (grads,) = torch.autograd.grad(layers(first(x)).sum(), x, create_graph=True)
    (exact,) = torch.autograd.grad(10 * (grads.flatten(1).norm(dim=1) - 1).square().mean(), x)
    torch.testing.assert_close(asked.grad, 0.5 * exact, rtol=1e-10, atol=1e-13)


def convolutions_of_compiled(step, x):
    """Runs the compiled step and counts the convolution passes in its graphs."""
    targets = []

    def record(graph, inputs):
        targets.extend((node.target, node.args) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    def backend(graph, inputs):
        from torch._functorch.aot_autograd import aot_module_simplified

        return aot_module_simplified(graph, inputs, fw_compiler=record, bw_compiler=record)

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch.compile(step, fullgraph=True, backend=backend)(x)
    backward = [args[-1] for target, args in targets if target is torch.ops.aten.convolution_backward.default]
    return {
        "forward": sum(target is torch.ops.aten.convolution.default for target, _ in targets),
        "input": sum(mask[0] for mask in backward),
        "weight": sum(mask[1] for mask in backward),
    }


def test_a_compiled_penalty_takes_four_passes():
    model, x = critic(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    calls = convolutions_of_compiled(lambda x: gk.r1_penalty(model, x).backward(), x)
    assert calls == {"forward": 6, "input": 3, "weight": 3}


def test_first_order_backward_is_one_call_per_layer():
    model, x = critic(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with gk.fast_double_backward():
        loss = model(x).sum()
    with ConvolutionCalls() as calls:
        loss.backward()
    assert (calls.forward, calls.input, calls.weight) == (0, 2, 3), "none to the images, who do not ask"


def test_no_weight_gradients():
    model, x = critic(), torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    with gk.fast_double_backward():
        loss = model(x).sum()
    with gk.no_weight_gradients(), gk.no_weight_gradients(), ConvolutionCalls() as calls:
        loss.backward(retain_graph=True)
    assert calls.weight == 0 and x.grad is not None
    assert model[0].weight.grad is None and model[7].weight.grad is None and model[0].bias.grad is not None
    loss.backward()
    assert model[0].weight.grad is not None, "the switch ends with its scope"


def test_no_weight_gradients_ends_on_an_error():
    with pytest.raises(KeyError), gk.no_weight_gradients():
        raise KeyError
    model = nn.Linear(2, 2)
    with gk.fast_double_backward():
        model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is not None


def test_inplace_activation_writes_its_input():
    x = torch.randn(3, 4, requires_grad=True)
    with gk.fast_double_backward():
        hidden = x * 1
        out = F.leaky_relu(hidden, 0.2, inplace=True)
    assert out is hidden and torch.equal(hidden, F.leaky_relu(x, 0.2))


def test_writing_to_what_a_layer_saved_is_noticed():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    layer = nn.Conv2d(3, 4, 3)
    with gk.fast_double_backward():
        hidden = x * 1
        y = layer(hidden)
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("slope", (0.0, 0.2))
def test_gradients_that_others_hold_are_not_overwritten(slope):
    """An activation writes its gradient over the one that arrives, unless somebody else sees that memory."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 4, 3).double(), torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for context in (contextlib.nullcontext(), gk.fast_double_backward()):
        kept = []
        with context:
            hidden = conv(x)
            y = F.leaky_relu(hidden, slope)
        y.register_hook(kept.append)
        hidden.register_hook(kept.append)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), conv.weight)
        results.append([*(k.detach() for k in kept), first.detach(), second])
    for ours, stock in zip(*results, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-12, atol=1e-12)


def test_autocast_runs_in_low_precision_and_casts_back():
    model, x = critic().float(), torch.randn(2, 3, 16, 16)
    dtypes = []
    results = []
    for mode in (gk.fast_double_backward, torch.autograd.set_detect_anomaly):
        xs = x.clone().requires_grad_()
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            mode() if mode is gk.fast_double_backward else torch.enable_grad(),
        ):
            y = model(xs)
        dtypes.append(y.dtype)
        results.append(torch.autograd.grad(y.float().sum(), [xs, *model.parameters()]))
    assert dtypes == [torch.bfloat16] * 2
    for a, b in zip(*results):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).norm() <= 0.02 * b.norm()


@each_layer
def test_autocast_has_the_dtypes_of_stock(name):
    layer, shape = LAYERS[name]
    layer = copy.deepcopy(layer).float() if isinstance(layer, nn.Module) else layer
    if name in ("blur_pool", "bicubic_antialias"):
        pytest.skip("stock's has no bfloat16")
    for dtype in (torch.bfloat16, torch.float32):
        results = []
        for mode in (contextlib.nullcontext, gk.fast_double_backward):
            x = torch.linspace(-2, 2, math.prod(shape)).reshape(shape).to(dtype).requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16), mode():
                y = layer(x * 1)
            results.append((y, *torch.autograd.grad(y.float().sum(), x)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(b, a, rtol=0.02, atol=0.02)


def test_tensor_subclasses_pass_through():
    class Logged(torch.Tensor):
        pass

    x = torch.randn(2, 4).as_subclass(Logged).requires_grad_()
    with gk.fast_double_backward():
        y = F.relu(x)
    assert type(y) is Logged
    assert "Local" not in y.grad_fn.name() + y.grad_fn.next_functions[0][0].name(), "routed"


def test_torch_func_passes_through():
    model, x = critic(), torch.randn(2, 3, 16, 16, dtype=torch.float64)

    def score(x):
        with gk.fast_double_backward():
            return model(x).sum()

    assert torch.allclose(torch.func.grad(score)(x), torch.func.grad(lambda x: model(x).sum())(x))


def derivatives(call, x, *parameters):
    """A function's values, its gradient in x, and that gradient's in x and the parameters."""
    real = lambda t: torch.view_as_real(t) if t.is_complex() else t  # noqa: E731
    x = x.detach().requires_grad_()
    y = call(x * 1)
    (g,) = torch.autograd.grad(real(y).square().sum(), x, create_graph=True)
    inputs = [x, *(p for p in parameters if p.requires_grad)]
    return y, g, *torch.autograd.grad(real(g).square().sum(), inputs, allow_unused=True, materialize_grads=True)


def assert_as_stock(call, x, *parameters, tolerance=1e-12):
    stock = derivatives(call, x, *parameters)
    with gk.fast_double_backward():
        ours = derivatives(call, x, *parameters)
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_a_bound_that_rounding_moves_outwards_still_stops_the_gradient(dtype):
    assert_as_stock(lambda x: F.hardtanh(x, -0.51, 0.7), torch.linspace(-2, 2, 50).to(dtype), tolerance=0)


COMPLEX = {
    "linear": (F.linear, (3, 5)),
    "conv1d": (lambda x, w: F.conv1d(x[0], w), (3, 6, 3)),
    "conv2d": (F.conv2d, (3, 4, 3, 3)),
    "conv_transpose2d": (F.conv_transpose2d, (4, 3, 3, 3)),
    "abs": (lambda x, w: x.abs(), ()),
    "tanh": (lambda x, w: torch.tanh(x), ()),
    "reflection_pad": (lambda x, w: F.pad(x, (1, 1, 1, 1), mode="reflect"), ()),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_features_are_left_to_stock(name):
    call, shape = COMPLEX[name]
    weight = torch.randn(shape, dtype=torch.complex128, requires_grad=True)
    assert_as_stock(lambda x: call(torch.fft.fft(x), weight), torch.randn(IMAGE, dtype=torch.float64), weight)


@pytest.mark.parametrize("one", (2, (2,), np.int64(2)), ids=("int", "tuple", "numpy"))
@pytest.mark.parametrize("layer", (F.max_pool1d, F.avg_pool1d, F.max_pool2d, F.avg_pool2d, F.max_pool3d, F.avg_pool3d))
def test_one_number_stands_for_all_dimensions(layer, one):
    shape = (2, 4, *[6] * int(layer.__name__[-2]))
    assert_as_stock(lambda x: layer(x, one, stride=one), torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize("one", (2, (2,), np.int64(2)), ids=("int", "tuple", "numpy"))
def test_one_stride_stands_for_all_dimensions(one):
    assert_as_stock(lambda x: F.conv2d(x, KERNEL.mT, stride=one), torch.randn(2, 3, 7, 7, dtype=torch.float64))


REFUSED = {
    "strided_same": lambda x: F.conv2d(x[:, :3], KERNEL, stride=2, padding="same"),
    "layer_norm_of_other_rows": lambda x: F.layer_norm(x, (3,)),
    "layer_norm_of_a_transposed_scale": lambda x: F.layer_norm(x, (6, 5), torch.ones(5, 6, dtype=x.dtype)),
    "rms_norm_of_other_rows": lambda x: F.rms_norm(x, (4,)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stock_refuses_is_refused(name):
    x = torch.randn(IMAGE, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        REFUSED[name](x)
    with pytest.raises(RuntimeError), gk.fast_double_backward():
        REFUSED[name](x)


def test_results_may_be_written_to_where_stock_keeps_the_input():
    for layer in (nn.LeakyReLU(0.2), nn.Hardtanh(), nn.Threshold(0.1, 0.2), nn.SiLU(), nn.GELU(), torch.abs):
        assert_as_stock(lambda x, layer=layer: layer(x).mul_(3).add_(x), torch.randn(IMAGE, dtype=torch.float64))


def test_frozen_linear_layers_keep_no_input_and_biases_may_change():
    frozen, layer = nn.Linear(5, 5).double().requires_grad_(False), nn.Linear(5, 5).double()

    def call(x):
        h = x * 2
        y = frozen(h)
        h.mul_(3)
        y = y * layer(h)
        with torch.no_grad():
            layer.bias.mul_(1)
        return y * h

    assert_as_stock(call, torch.randn(3, 5, dtype=torch.float64), layer.weight)


def usual(x):
    return x.contiguous()


def channels_last(x):
    """With as odd a stride along the batch as a single image may have."""
    return x.flatten(2).mT.contiguous().mT.reshape(x.shape)


@pytest.mark.parametrize("of_gradient", (usual, channels_last))
@pytest.mark.parametrize("of_image", (usual, channels_last))
@pytest.mark.parametrize("size", ((6, 5), (3, 4, 3)))
@pytest.mark.parametrize("norm", (F.batch_norm, F.instance_norm))
def test_fixed_statistics_of_one_image_in_any_layout(norm, size, of_image, of_gradient):
    """PyTorch 2.13's own batch norm has a wrong gradient where one of the two is channels_last."""
    x, g = torch.randn(2, 1, 3, *size, dtype=torch.float64)
    mean, variance, weight, bias = torch.rand(4, 3, dtype=torch.float64)
    x = of_image(x).requires_grad_()
    with gk.fast_double_backward():
        y = norm(x, mean, variance, weight, bias, False)
    channel = (-1, *[1] * len(size))
    scale = (weight * torch.rsqrt(variance + 1e-5)).view(channel)
    torch.testing.assert_close(y, (x - mean.view(channel)) * scale + bias.view(channel), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(y, x, of_gradient(g))
    torch.testing.assert_close(gradient, g * scale, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "below", (nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.2)), nn.Identity())
)
def test_gradients_of_zeros_without_memory(below):
    """What the derivative of sgn is."""
    model = nn.Sequential(below, nn.Flatten()).double()
    assert gk.r1_penalty(lambda x: model(x).sgn().sum(1), torch.randn(2, 3, 6, 6, dtype=torch.float64)) == 0


def test_meta_tensors():
    with torch.device("meta"):
        model, x = critic(), torch.empty(2, 3, 16, 16, dtype=torch.float64)
    penalty = gk.r1_penalty(model, x)
    penalty.backward()
    assert penalty.is_meta and all(p.grad.is_meta for p in model.parameters() if p is not model[-1].bias)


def test_results_given_to_write_to_are_written():
    def call(x):
        scale = torch.empty_like(x)
        with torch.no_grad():
            torch.abs(x, out=scale)
        return x * scale

    assert_as_stock(call, torch.randn(3, 4, dtype=torch.float64))


def test_infinite_inputs_of_prelu():
    x = torch.tensor([[[-math.inf], [0.0], [math.inf]]])
    with gk.fast_double_backward():
        assert F.prelu(x, torch.tensor([0.1])).flatten().tolist() == [-math.inf, 0, math.inf]


def test_forward_mode_passes_through():
    model, x = critic(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with forward_ad.dual_level(), gk.fast_double_backward():
        y = forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x))))
    _, tangent = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    assert torch.equal(y.primal, model(x)) and torch.allclose(y.tangent, tangent)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("make", (torch.Tensor.to_sparse, lambda x: torch.nested.as_nested_tensor([x, x[:2]])))
def test_sparse_and_nested_inputs_pass_through(make):
    x, weight = make(torch.randn(3, 5)), torch.randn(2, 5, requires_grad=True)
    results = []
    for mode in (contextlib.nullcontext, gk.fast_double_backward):
        with mode():
            y = F.linear(x, weight)
        y = y.to_padded_tensor(0.0) if y.is_nested else y
        results.append((y, *torch.autograd.grad(y.square().sum(), weight)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_a_network_it_does_not_know_stays_right():
    class Smooth(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 1)

        def forward(self, x):
            h = F.silu(self.norm(self.conv(x)))
            return self.head(F.gelu(h.mean((2, 3))) * torch.tanh(h).amax((2, 3)))

    model, x = Smooth().double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    results = [penalty_and_gradients(f, model, x) for f in (model, routed(model))]
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "padding", "groups", "size"), [(3, 1, 1, 8), (3, 0, 2, 9), (4, 1, 1, 8), (5, 2, 4, 7)]
)
def test_the_mean_of_a_convolution_is_a_strided_convolution(kernel, padding, groups, size):
    layers = nn.Sequential(nn.Conv2d(4, 4, kernel, padding=padding, groups=groups), nn.AvgPool2d(2)).double()
    x = torch.randn(2, 4, size, size, dtype=torch.float64, requires_grad=True)

    def derivatives(y):
        (g,) = torch.autograd.grad(y.tanh().sum(), x, create_graph=True)
        return y, g, *torch.autograd.grad(g.square().sum(), list(layers.parameters()))

    with gk.fast_double_backward():
        mine = layers(x)
        listened = layers[0](x)
        listened.register_hook(lambda g: 2 * g)
        listened = layers[1](listened)
    assert mine.grad_fn.name() == "gankernels::Convolution" and listened.grad_fn.name() == "gankernels::Local"
    for a, b in zip(derivatives(mine), derivatives(layers(x)), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


# channels, outputs, size, kernel, stride, padding: steps without taps, padding beyond the kernel, bands of rows, lines longer than a tile
IMAGES = [
    (1, 5, (7, 9), (3, 3), (1, 1), (1, 1)),
    (2, 6, (8, 8), (4, 4), (2, 2), (1, 1)),
    (3, 64, (64, 64), (4, 4), (2, 2), (1, 1)),
    (3, 7, (9, 11), (2, 3), (3, 5), (0, 1)),
    (3, 8, (5, 1), (5, 1), (3, 1), (2, 0)),
    (4, 9, (6, 7), (1, 1), (1, 1), (0, 0)),
    (4, 9, (6, 7), (1, 1), (2, 3), (2, 4)),
    (5, 6, (10, 10), (7, 7), (1, 1), (3, 3)),
    (6, 100, (40, 70), (3, 3), (1, 1), (0, 2)),
    (7, 8, (5, 300), (2, 6), (1, 2), (1, 3)),
    (8, 9, (12, 12), (5, 5), (2, 2), (2, 2)),
    (3, 5, (50,), (15,), (1,), (7,)),
    (1, 6, (4000,), (41,), (4,), (20,)),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels, outputs, size, kernel, stride, padding", IMAGES)
def test_the_gradient_of_an_image(channels, outputs, size, kernel, stride, padding, layout, dtype):
    layout = layout if len(size) == 2 else torch.contiguous_format
    convolution = F.conv1d if len(size) == 1 else F.conv2d
    x = torch.randn(3, channels, *size, dtype=dtype).to(memory_format=layout).requires_grad_()
    weight = torch.randn(outputs, channels, *kernel, dtype=dtype).to(memory_format=layout)
    with gk.fast_double_backward():
        y = convolution(x, weight, None, stride, padding)
    g = torch.randn_like(y)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        (gradient,) = torch.autograd.grad(y, x, g)

    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(convolution(exact, weight.double(), None, stride, padding), exact, g.double())
    terms = outputs * math.prod(kernel)
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=4 * terms * torch.finfo(dtype).eps)
    assert gradient.is_contiguous(memory_format=layout)
    calls_stock = any(event.key == "aten::convolution_backward" for event in profile.key_averages())
    is_matrix_product = max(kernel) == 1 and layout is torch.channels_last
    assert calls_stock == is_matrix_product


# taps, stride, padding, transposed, samples, channels, outputs, size, output padding, groups: partial tiles, blocks that end within a sample, rows
# longer than a block
MINIMAL_FILTERING = [
    (3, 1, 1, False, 24, 32, 64, (5, 7), 0, 1),
    (3, 1, 1, True, 8, 96, 32, (9, 16), 0, 1),
    (3, 1, 1, False, 1, 32, 32, (3, 261), 0, 1),
    (4, 2, 1, False, 16, 64, 32, (15, 21), 0, 1),
    (4, 2, 1, False, 64, 32, 96, (10, 8), 0, 1),
    (4, 2, 1, False, 1, 32, 160, (64, 270), 0, 1),
    (4, 2, 1, True, 16, 64, 32, (8, 9), 1, 1),
    (4, 2, 1, True, 6, 32, 64, (16, 12), 0, 1),
    (3, 2, 1, False, 12, 64, 32, (32, 31), 0, 1),
    (3, 2, 1, True, 6, 32, 64, (20, 24), 1, 1),
    (3, 2, 0, False, 1, 32, 96, (49, 274), 0, 1),
    (3, 2, 0, True, 9, 96, 32, (16, 18), 0, 1),
    (3, 2, 0, True, 2, 64, 96, (63, 20), 1, 1),
    (3, 1, 1, False, 8, 96, 48, (9, 16), 0, 3),
    (3, 1, 1, False, 2, 64, 128, (33, 30), 0, 4),
    (3, 1, 1, False, 1, 96, 96, (3, 261), 0, 2),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "taps, stride, padding, transposed, samples, channels, outputs, size, output_padding, groups", MINIMAL_FILTERING
)
def test_minimal_filtering(
    taps, stride, padding, transposed, samples, channels, outputs, size, output_padding, groups, layout
):
    convolution = F.conv_transpose2d if transposed else F.conv2d
    options = dict(stride=stride, padding=padding, groups=groups)
    options |= dict(output_padding=output_padding) if transposed else {}
    x = torch.randn(samples, channels, *size).to(memory_format=layout)
    weight = torch.randn(*((channels, outputs) if transposed else (outputs, channels // groups)), taps, taps).to(
        memory_format=layout
    )
    g, dx, dw = torch.randn_like(convolution(x, weight, **options)), torch.randn_like(x), torch.randn_like(weight)
    wide = torch.randn(samples, channels, size[0], 2 * size[1])[..., ::2].copy_(x)
    tensors = (x, weight, torch.randn(outputs), g, dx, dw)

    def results(x, weight, bias, g, dx, dw):
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias, g)]
        x, weight, bias, g = leaves
        y = convolution(x, weight, bias, **options)
        gradients = torch.autograd.grad(y, leaves[:3], g, create_graph=True)
        tangents = (gradients[0] * dx).sum() + (gradients[1] * dw).sum()
        return [y, *gradients, *torch.autograd.grad(tangents, [x, weight, g])]

    def ours(x, *others):
        with gk.fast_double_backward():
            return results(x, *others)

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        got = ours(*tensors)
    stock, exact = results(*tensors), results(*(t.double() for t in tensors))
    for a, b, c in zip(got, stock, exact):
        assert a.is_contiguous(memory_format=layout) or a.dim() == 1
        error, of_stock = ((t - c).norm() / c.norm() for t in (a, b))
        assert error < 4 * of_stock + torch.finfo(torch.float32).eps
    # without padding, stock's make the first row and the first column of an image with twice as many
    calls = {event.key for event in profile.key_averages()}
    assert "aten::convolution_backward" not in calls and ("aten::convolution" in calls) == (padding == 0)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - threads % 2)
        assert all(torch.equal(a, b) for a, b in zip(got, ours(*tensors)))
    finally:
        torch.set_num_threads(threads)
    if layout is torch.contiguous_format:
        assert all(torch.equal(a, b) for a, b in zip(got, ours(wide, *tensors[1:])))


@pytest.mark.parametrize("channels, outputs, groups", [(64, 64, 8), (48, 32, 2), (32, 48, 2)])
def test_groups_that_fill_no_register_are_left_to_stock(channels, outputs, groups):
    x, weight = torch.randn(8, channels, 16, 16), torch.randn(outputs, channels // groups, 3, 3)
    with gk.fast_double_backward():
        y = F.conv2d(x, weight, None, 1, 1, 1, groups)
    assert torch.equal(y, F.conv2d(x, weight, None, 1, 1, 1, groups))


@pytest.mark.parametrize("stride, taps", [(1, 3), (2, 4), (2, 3)])
def test_small_and_empty_batches_are_left_to_stock(stride, taps):
    """The transforms of the weights would cost more than they save."""
    x, weight = torch.randn(2, 32, 4, 4), torch.randn(32, 32, taps, taps)
    with gk.fast_double_backward():
        small, empty = F.conv2d(x, weight, None, stride, 1), F.conv2d(x[:0], weight, None, stride, 1)
    assert torch.equal(small, F.conv2d(x, weight, None, stride, 1)) and empty.shape[0] == 0


def test_the_second_derivative_of_attention_computes_no_first():
    q, k, v = torch.randn(3, 2, 5, 4, dtype=torch.float64).requires_grad_()
    gradient = torch.ones_like(v)
    first = torch.autograd.grad(gk.scaled_dot_product_attention(q, k, v), (q, k, v), gradient, create_graph=True)
    with torch.autograd.profiler.profile() as profile:
        torch.autograd.grad(sum(g.sin().sum() for g in first), (q, k, v))
    calls = [event.name for event in profile.function_events if event.name.startswith("gankernels::attention")]
    assert calls == ["gankernels::attention_bwd_bwd"]
