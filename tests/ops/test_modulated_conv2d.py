"""conv2d_resample and modulated_conv2d, which are made of registered ops: the op suite's promises, and how many convolutions they take."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import gankernels as gk

from .specs import TOLERANCE
from .test_fast_double_backward import ConvolutionCalls
from .test_suite import LAYOUTS, assert_close, in_layout

FIR = gk.setup_filter([1, 3, 3, 1])
ODD = torch.tensor([0.2, 0.5, -0.1])  # separable, and not symmetric
MATRIX = torch.tensor([[0.5, -1.0, 0.25, 2.0], [1.5, 0.75, -0.5, 1.0], [0.125, 0.25, 2.0, -0.75]])
every = pytest.mark.parametrize


# --- conv2d_resample ---


@every("kernel", ((3, 3), (1, 1), (2, 4)), ids=str)
@every(("up", "down"), itertools.product((1, 2, 3), (1, 2, 3)))
def test_convolutions_between_resamplings_are_those_of_the_reference(kernel, up, down):
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    flags = (True, False)
    for f, padding, groups, flip_weight, flip_filter in itertools.product(
        (FIR, ODD, MATRIX, None), (1, [2, -1], [1, 2, 0, 3]), (1, 2), flags, flags
    ):
        w = torch.randn(4, 6 // groups, *kernel, dtype=torch.float64)
        f = None if f is None else f.double()
        more = (f, up, down, padding, groups, flip_weight, flip_filter)
        assert_close(gk.conv2d_resample(x, w, *more), gk.reference.conv2d_resample(x, w, *more), 1e-13)


@every(("up", "down"), ((1, 1), (2, 1), (1, 2)))
def test_half_of_the_kernel_keeps_a_constant_image_and_its_size(up, down):
    w = torch.zeros(1, 1, 3, 3)
    w[0, 0, 1, 1] = 1
    y = gk.conv2d_resample(torch.ones(1, 1, 16, 16), w, FIR, up, down, padding=1)
    assert y.shape == (1, 1, 16 * up // down, 16 * up // down)
    assert_close(y[..., 3:-3, 3:-3], torch.ones_like(y[..., 3:-3, 3:-3]), 1e-6)


@every(("up", "down", "kernel"), ((1, 1, 3), (2, 1, 3), (2, 1, 1), (1, 2, 3), (1, 2, 1), (2, 3, 3)))
def test_a_convolution_between_resamplings_differentiates_to_second_order(up, down, kernel):
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, kernel, kernel, dtype=torch.float64, requires_grad=True)

    def op(x, w):
        return gk.conv2d_resample(x, w, FIR.double(), up, down, padding=[1, 2, 1, 0], flip_weight=False)

    assert gradcheck(op, (x, w)) and gradgradcheck(op, (x, w))


# --- modulated_conv2d ---

FORMS = {
    "plain": {},
    "layer": {"act": "lrelu", "clamp": 1.5, "padding": 1},
    "up": {"act": "lrelu", "up": 2, "padding": 1, "resample_filter": FIR, "flip_weight": False},
    "down": {"act": "swish", "down": 2, "padding": 1, "resample_filter": FIR},
    "to_rgb": {"demodulate": False, "kernel": 1, "clamp": 2.0},
    "alias_free": {"padding": 2, "input_gain": 0.7},
}
SIZES = {"odd": (3, 5, 4, 7, 6), "one": (1, 5, 1, 3, 3), "wide": (2, 70, 33, 9, 8)}
SPECIAL = {"small": (2, 2, 2, 4, 3), "empty": (0, 3, 4, 4, 5)}


def arguments(form, size="odd", dtype=torch.float64, device="cpu", layout="contiguous"):
    """(N, I, O, H, W) as the op's tensors by name, and its other arguments. Noise and bias are not in every form."""
    more = dict(FORMS[form])
    kernel, (n, i, o, height, width) = more.pop("kernel", 3), (SIZES | SPECIAL)[size]
    x = torch.randn(n, i, height, width, dtype=torch.float64)
    tensors = {"x": x, "weight": torch.randn(o, i, kernel, kernel, dtype=torch.float64) / (i * kernel**2) ** 0.5}
    tensors["styles"] = torch.randn(n, i, dtype=torch.float64) + 1
    if form not in ("plain", "alias_free"):
        tensors["bias"] = torch.randn(o, dtype=torch.float64)
    if form in ("layer", "up"):
        out = (height * more.get("up", 1), width * more.get("up", 1))
        tensors["noise"] = torch.randn(n if form == "up" else 1, 1, *out, dtype=torch.float64)
    tensors = {name: t.to(device, dtype) for name, t in tensors.items()}
    tensors["x"] = in_layout(tensors["x"], layout)
    return tensors, {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in more.items()}


def wide(tensors):
    return {name: t.detach().double() for name, t in tensors.items()}


each_form = every("form", FORMS)


DTYPES_AND_LAYOUTS = [
    (dtype, layout) for dtype in TOLERANCE for layout in (LAYOUTS if dtype == torch.float32 else LAYOUTS[:2])
]


@each_form
@every(("dtype", "layout"), DTYPES_AND_LAYOUTS, ids=str)
def test_values_and_gradients(form, dtype, layout, device, poisoned_empty):
    """Errors are at most a small multiple of the tolerance of an op in this dtype: two of them, and a convolution. In 16 bits without
    kinks, across which rounding would take a gradient."""
    for size in SIZES:
        tensors, more = arguments(form, size, dtype, device, layout)
        if dtype.itemsize == 2:
            more |= {"act": "linear", "clamp": None}
        results = []
        for op, given in ((gk.modulated_conv2d, tensors), (gk.reference.modulated_conv2d, wide(tensors))):
            given = {
                name: t.detach().clone(memory_format=torch.preserve_format).requires_grad_()
                for name, t in given.items()
            }
            y = op(**given, **more)
            if op is gk.modulated_conv2d:
                assert y.dtype == dtype
                assert layout != "channels_last" or y.is_contiguous(memory_format=torch.channels_last)
            weights = (torch.arange(y.numel(), device=device) % 7 - 2.5).reshape(y.shape)
            results.append([y.detach(), *torch.autograd.grad((y * weights).sum(), list(given.values()))])
        for got, want in zip(*results, strict=True):
            assert_close(got, want, (100 if dtype == torch.float64 else 6) * TOLERANCE[dtype])


@each_form
def test_an_empty_batch(form, device):
    tensors, more = arguments(form, "empty", torch.float32, device)
    y = gk.modulated_conv2d(**{name: t.requires_grad_() for name, t in tensors.items()}, **more)
    assert y.shape[:2] == (0, 4) and min(y.shape[2:]) > 0
    y.sum().backward()
    assert all(t.grad.shape == t.shape and not t.grad.any() for t in tensors.values())


@each_form
def test_derivatives_to_second_order(form, device):
    tensors, more = arguments(form, "small", device=device)
    names = list(tensors)
    leaves = [t.requires_grad_() for t in tensors.values()]

    def op(*leaves):
        return gk.modulated_conv2d(**dict(zip(names, leaves)), **more)

    assert gradcheck(op, leaves) and gradgradcheck(op, leaves)


def test_three_orders_are_those_of_weights_per_sample():
    """The gradient of the gradient of the gradient."""
    tensors, more = arguments("layer")
    derivatives = []
    for op in (gk.modulated_conv2d, gk.reference.modulated_conv2d):
        given = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        leaves, total, found = list(given.values()), op(**given, **more).square().sum(), []
        for _ in range(3):
            found.append(
                torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
            )
            total = sum(g.square().sum() for g in found[-1])
        derivatives.append([g for order in found for g in order])
    for got, want in zip(*derivatives):
        assert_close(got, want, 1e-10)


@every("form", ("layer", "alias_free"))
@every("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_demodulated_convolutions_stay_in_range(form, dtype, device):
    """Styles and weights that would overflow float16 many times over; demodulation makes up for their size."""
    tensors, more = arguments(form, "wide", torch.float32, device)
    tensors["x"] = tensors["x"].to(dtype)
    tensors["weight"], tensors["styles"] = 1e3 * tensors["weight"], 3e4 * tensors["styles"]
    y, want = gk.modulated_conv2d(**tensors, **more), gk.reference.modulated_conv2d(**wide(tensors), **more)
    assert y.dtype == dtype
    assert_close(y, want, 6 * TOLERANCE[dtype])


def test_side_arguments_may_be_in_float32(device):
    tensors, more = arguments("layer", dtype=torch.bfloat16, device=device)
    sides = {name: t.float().requires_grad_() for name, t in tensors.items() if name != "x"}
    y = gk.modulated_conv2d(tensors["x"], **sides, **more)
    assert_close(y, gk.reference.modulated_conv2d(**wide(tensors), **more), 6 * TOLERANCE[torch.bfloat16])
    y.sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in sides.values())


def test_noise_of_one_image_and_gains_of_the_input(device):
    tensors, more = arguments("layer", device=device)
    flat = {**tensors, "noise": tensors["noise"][0, 0]}
    assert torch.equal(gk.modulated_conv2d(**flat, **more), gk.modulated_conv2d(**tensors, **more))
    for gain in (0.5, torch.tensor(0.5), torch.rand(5), torch.rand(3, 5)):
        gain = gain.to(device, torch.float64) if isinstance(gain, torch.Tensor) else gain
        got, want = (
            op(**tensors, **more, input_gain=gain) for op in (gk.modulated_conv2d, gk.reference.modulated_conv2d)
        )
        assert_close(got, want, 1e-12)


@every(("form", "up"), (("layer", 1), ("up", 2)))
def test_a_layer_takes_as_few_convolutions_as_there_are_products(form, up):
    """y = d C(w, s x): of its two factors, s x and w. Backward: one gradient each. Path length, that is the gradient in the styles
    taken and then differentiated: the tangent's convolution, and again both gradients, since y itself enters d's derivative; the
    weights' gradient has two terms. Weights per sample would be convolutions of N groups, of which none must be seen."""
    tensors, more = arguments(form, dtype=torch.float32)
    given = {name: t.requires_grad_() for name, t in tensors.items()}
    with ConvolutionCalls() as calls:
        y = gk.modulated_conv2d(**given, **more)
    assert (calls.forward, calls.input, calls.weight) == (1, 0, 0)
    with ConvolutionCalls() as calls:
        torch.autograd.grad(y.sum(), list(given.values()))
    assert (calls.forward, calls.input, calls.weight) == (0, 1, 1)

    y = gk.modulated_conv2d(**given, **more)
    with ConvolutionCalls() as calls:
        (g,) = torch.autograd.grad((y * torch.randn_like(y)).sum(), given["styles"], create_graph=True)
    assert (calls.forward, calls.input, calls.weight) == (0, 1, 0)
    with ConvolutionCalls() as calls:
        g.square().sum().backward()
    assert (calls.forward, calls.input, calls.weight) == (1, 1, 2)


def two_layers(x, latents, weight1, weight2, bias, noise):
    """A block of a generator: an upsampling layer and one that keeps the size, with their noise, bias and activation."""
    more = {"bias": bias, "act": "lrelu", "padding": 1, "clamp": 256.0}
    x = gk.modulated_conv2d(x, weight1, latents, noise=noise, up=2, resample_filter=FIR, flip_weight=False, **more)
    return gk.modulated_conv2d(x, weight2, latents, noise=noise, **more)


def test_a_penalty_through_a_generator_costs_its_minimum_and_is_exact():
    """R1 of a critic on generated images, in the latents: per modulated layer what the layer alone takes, in float64 as with weights
    per sample."""

    def tensors(dtype):
        torch.manual_seed(0)
        shapes = {"x": (2, 4, 3, 3), "latents": (2, 4), "weight1": (4, 4, 3, 3), "weight2": (4, 4, 3, 3), "bias": (4,)}
        shapes["noise"] = (2, 1, 6, 6)
        return {name: torch.randn(shape, dtype=dtype).requires_grad_() for name, shape in shapes.items()}

    def penalty(block, given):
        images = block(**given)
        (g,) = torch.autograd.grad((images * images.detach().cos()).sum(), given["latents"], create_graph=True)
        leaves = list(given.values())
        return torch.autograd.grad(g.square().sum(), leaves, allow_unused=True, materialize_grads=True)

    with ConvolutionCalls() as calls:
        ours = penalty(two_layers, tensors(torch.float64))
    # forward; input gradients; tangents, of which x's needs none; then both gradients of each
    assert (calls.forward, calls.input, calls.weight) == (4, 4, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gk, "modulated_conv2d", gk.reference.modulated_conv2d)
        plain = penalty(two_layers, tensors(torch.float64))
    for got, want in zip(ours, plain, strict=True):
        assert_close(got, want, 1e-11)


@each_form
def test_compiled_equals_eager(form):
    tensors, more = arguments(form)
    names = list(tensors)

    def penalty(*leaves):
        y = gk.modulated_conv2d(**dict(zip(names, leaves)), **more)
        (g,) = torch.autograd.grad(y.square().sum(), leaves[2], create_graph=True)
        return g.square().sum()

    gradients = []
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        for function in (penalty, torch.compile(penalty, fullgraph=True, backend="aot_eager")):
            leaves = [t.clone().requires_grad_() for t in tensors.values()]
            gradients.append(torch.autograd.grad(function(*leaves), leaves, allow_unused=True, materialize_grads=True))
    for eager, compiled in zip(*gradients, strict=True):
        assert_close(compiled, eager, 1e-11)


@every("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast_casts_the_image_and_keeps_in_range(dtype):
    tensors, more = arguments("layer", dtype=torch.float32)
    tensors["weight"] = 1e3 * tensors["weight"]
    tensors["styles"] = (3e2 * tensors["styles"]).to(dtype)  # out of a linear layer
    with torch.autocast("cpu", dtype):
        y = gk.modulated_conv2d(**tensors, **more)
    assert y.dtype == dtype
    assert_close(y, gk.reference.modulated_conv2d(**wide(tensors), **more), 6 * TOLERANCE[dtype])


X, W, S, F4 = torch.ones(2, 3, 4, 5), torch.ones(6, 3, 3, 3), torch.ones(2, 3), torch.ones(4)
BAD = {
    "list": (lambda: gk.conv2d_resample([1.0], W), "conv2d_resample: x must be a tensor, got list"),
    "dimensions": (lambda: gk.conv2d_resample(X[0], W), r"x must have shape \(N, C, H, W\) .* got \(3, 4, 5\)"),
    "weight": (lambda: gk.conv2d_resample(X, W[:, :2]), r"w must have .* with I = 3, got \(6, 2, 3, 3\)"),
    "weight_rank": (lambda: gk.conv2d_resample(X, W[0]), r"w must have shape \(O, I, rows, columns\) .* got \(3, 3, 3\)"),
    "groups": (lambda: gk.conv2d_resample(X, W[:, :1], groups=0), "groups must be an integer >= 1, got 0"),
    "of_groups": (lambda: gk.conv2d_resample(X, W[:5, :1], groups=3), r"I = 3 / 3, O a multiple of 3, got \(5, 1, 3, 3\)"),
    "weight_dtype": (lambda: gk.conv2d_resample(X, W.half()), "w must have the dtype of x, float32, got float16"),
    "weight_device": (lambda: gk.conv2d_resample(X, W.to("meta")), "w must be on the device of x, cpu, got meta"),
    "up": (lambda: gk.conv2d_resample(X, W, F4, up=0), "up must be an integer >= 1, got 0"),
    "down": (lambda: gk.conv2d_resample(X, W, F4, down=1.5), "down must be an integer >= 1, got 1.5"),
    "empty_filter": (lambda: gk.conv2d_resample(X, W, F4[:0], up=2), r"f must have shape .* and not be empty, got \(0,\)"),
    "filter_rank": (lambda: gk.conv2d_resample(X, W, X, up=2), r"f must have shape .* got \(2, 3, 4, 5\)"),
    "cropped_away": (lambda: gk.conv2d_resample(X, W, padding=-1), r"padding must leave .* got \(-1, -1, -1, -1\), which"),
    "mod_list": (lambda: gk.modulated_conv2d(X, 1.0, S), "modulated_conv2d: weight must be a tensor, got float"),
    "integers": (lambda: gk.modulated_conv2d(X.long(), W, S), "x must be float64, .* got int64"),
    "mod_weight": (lambda: gk.modulated_conv2d(X, W[:, :2], S), r"weight must have .* with I = 3, got \(6, 2, 3, 3\)"),
    "styles": (lambda: gk.modulated_conv2d(X, W, S[:, :2]), r"styles must have shape \(N, I\) = \(2, 3\), got \(2, 2\)"),
    "styles_dtype": (lambda: gk.modulated_conv2d(X, W, S.double()), "styles must have the dtype of x, .* got float64"),
    "styles_device": (lambda: gk.modulated_conv2d(X, W, S.to("meta")), "styles must be on the device of x, cpu, got meta"),
    "noise": (
        lambda: gk.modulated_conv2d(X, W, S, padding=1, noise=X[:, :1, 1:]),
        r"noise must have shape \(N, 1, outH, outW\) = \(2, 1, 4, 5\), .* got \(2, 1, 3, 5\)",
    ),
    "bias": (lambda: gk.modulated_conv2d(X, W, S, bias=S[0]), r"bias must have shape \(O,\) = \(6,\), got \(3,\)"),
    "act": (lambda: gk.modulated_conv2d(X, W, S, act="gelu"), "act must be one of linear, relu, .* swish, got 'gelu'"),
    "clamp": (lambda: gk.modulated_conv2d(X, W, S, clamp=-1.0), "clamp must be a finite number >= 0, got -1.0"),
    "mod_up": (lambda: gk.modulated_conv2d(X, W, S, up=[2, 2]), r"up must be an integer >= 1, got \[2, 2\]"),
    "mod_filter": (
        lambda: gk.modulated_conv2d(X, W, S, resample_filter=X, up=2),
        r"resample_filter must have shape \(taps,\) or .* got \(2, 3, 4, 5\)",
    ),
    "mod_cropped_away": (lambda: gk.modulated_conv2d(X[..., :2], W, S), r"padding must leave .* image \(4, 2\)"),
    "input_gain": (
        lambda: gk.modulated_conv2d(X, W, S, input_gain=S[0, :2]),
        r"input_gain must be a number or expand to \(N, I\) = \(2, 3\), got \(2,\)",
    ),
    "input_gain_number": (lambda: gk.modulated_conv2d(X, W, S, input_gain="1"), "input_gain must be a finite number, got str"),
}  # fmt: skip


@every(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        call()
    assert str(error.value).startswith("gankernels.") and "\n" not in str(error.value)


@pytest.mark.gpu
def test_cuda_graph_replays():
    tensors, more = arguments("up", dtype=torch.float32, device="cuda")
    gk.modulated_conv2d(**tensors, **more)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = gk.modulated_conv2d(**tensors, **more)
    tensors["x"].copy_(torch.randn_like(tensors["x"]))
    graph.replay()
    assert torch.equal(y, gk.modulated_conv2d(**tensors, **more))
