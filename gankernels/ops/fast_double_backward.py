"""Double backward at its minimum for the layers a critic is made of, without a change to the critic.

Let F be one forward of the critic. A gradient penalty needs four passes of that size: forward, input gradient, tangent forward
and weight gradient. Stock autograd takes more than six, eager and compiled, because

1. the derivative of e.g. leaky_relu_backward in its input is a tensor of zeros, not absent, and runs through the whole network;
2. so does the zero gradient that convolution's double backward hands to its input;
3. the weight's gradient is computed as a forward convolution whose kernel is the whole feature map.

Inside `fast_double_backward()` a torch-function mode routes those layers to ops of csrc/autograd that do none of this. What it does
not know passes through untouched, and stays right.

On the CPU in float32, convolutions of 4x4 with stride 2, of 3x3 with stride 1 and of 3x3 with stride 2, transposed ones too, take 9/16,
4/9 and 25/36 of the products (csrc/cpu/winograd.h), where images are large enough for it to pay: a loss without a second derivative
gains as well.

Why C++ autograd nodes here, and around the penalty's norms: these ops mostly rearrange stock kernels, so the boundary is most of their
cost (a node in C++ costs what aten's does; one with a Python derivative twice that, forward and backward) and, unlike a Python
formula, a C++ node knows which gradients this very backward call asks for. Ops with kernels of their own go through
`_registration.register`, where a boundary is paid once per step and not once per layer.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .attention import attend, fits
from .bias_act import NUMBERS
from .group_norm import default_eps

_op = torch.ops.gankernels
_ROUTES = {}


def _route(*functions):
    """The decorated function answers for these torch functions; it returns NotImplemented for a case it leaves to stock."""

    def decorate(route):
        for function in functions:
            _ROUTES[function] = route
        return route

    return decorate


def _tuple(value, n):
    """n numbers, of one or of a sequence of one or n, as torch takes them."""
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return values * n if len(values) == 1 else values


def _convolution(dimensions, transposed):
    def call(input, weight, bias, stride, padding, dilation, output_padding, groups):
        if input.dim() != dimensions + 2:
            return NotImplemented  # an unbatched sample
        dilation = _tuple(dilation, dimensions)
        if padding == "valid":
            padding = 0
        elif padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
            if any(t % 2 for t in total) or any(s != 1 for s in _tuple(stride, dimensions)):
                return NotImplemented  # pads one side more than the other, or is refused
            padding = [t // 2 for t in total]
        return _op.fast_convolution.default(
            input,
            weight,
            bias,
            _tuple(stride, dimensions),
            _tuple(padding, dimensions),
            dilation,
            transposed,
            _tuple(output_padding, dimensions),
            groups,
        )

    if transposed:

        def route(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
            return call(input, weight, bias, stride, padding, dilation, output_padding, groups)
    else:

        def route(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
            return call(input, weight, bias, stride, padding, dilation, 0, groups)

    return route


for _dimensions, _conv, _conv_transpose in (
    (1, torch.conv1d, torch.conv_transpose1d),
    (2, torch.conv2d, torch.conv_transpose2d),
    (3, torch.conv3d, torch.conv_transpose3d),
):
    _route(_conv)(_convolution(_dimensions, transposed=False))
    _route(_conv_transpose)(_convolution(_dimensions, transposed=True))


@_route(F.linear)
def _linear(input, weight, bias=None):
    if weight.dim() != 2:
        return NotImplemented
    return _op.fast_linear.default(input, weight, bias)


@_route(torch.relu, torch.Tensor.relu)
def _relu(input):
    return _op.fast_leaky_relu.default(input, 0.0)


@_route(torch.relu_, torch.Tensor.relu_)
def _relu_(input):
    return _op.fast_leaky_relu_.default(input, 0.0)


@_route(F.relu)
def _functional_relu(input, inplace=False):
    return _op.fast_leaky_relu_.default(input, 0.0) if inplace else _op.fast_leaky_relu.default(input, 0.0)


@_route(F.leaky_relu)
def _leaky_relu(input, negative_slope=0.01, inplace=False):
    if inplace and negative_slope >= 0:
        return _op.fast_leaky_relu_.default(input, negative_slope)
    return NotImplemented if inplace else _op.fast_leaky_relu.default(input, negative_slope)


@_route(F.rrelu)
def _rrelu(input, lower=1.0 / 8, upper=1.0 / 3, training=False, inplace=False):
    return NotImplemented if training else _leaky_relu(input, (lower + upper) / 2, inplace)


@_route(F.hardtanh)
def _hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False):
    return NotImplemented if inplace else _op.fast_hardtanh.default(input, min_val, max_val)


@_route(F.relu6)
def _relu6(input, inplace=False):
    return NotImplemented if inplace else _op.fast_hardtanh.default(input, 0.0, 6.0)


@_route(F.threshold)
def _threshold(input, threshold, value, inplace=False):
    return NotImplemented if inplace else _op.fast_threshold.default(input, threshold, value)


@_route(torch.abs, torch.absolute, torch.Tensor.abs, torch.Tensor.absolute)
def _abs(input):
    return _op.fast_abs.default(input)


def _pool_arguments(kernel_size, stride, padding, dimensions):
    kernel = _tuple(kernel_size, dimensions)
    stride = kernel if stride is None else _tuple(stride, dimensions) or kernel
    return kernel, stride, _tuple(padding, dimensions)


def _autocasts(input):
    return input.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(input.device.type)


def _as_autocast_has_it(input):
    """On a CPU, autocast pads, and pools volumes, in float32."""
    is_low = input.device.type == "cpu" and input.dtype in (torch.bfloat16, torch.float16)
    return input.float() if is_low and _autocasts(input) else input


def _max_pool(dimensions):
    def route(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
        if return_indices or input.dim() != dimensions + 2:
            return NotImplemented
        kernel, stride, padding = _pool_arguments(kernel_size, stride, padding, dimensions)
        dilation = _tuple(dilation, dimensions)
        if dimensions == 1:  # as one row of an image
            row = _op.fast_max_pool.default(
                input.unsqueeze(-2), [1, *kernel], [1, *stride], [0, *padding], [1, *dilation], ceil_mode
            )
            return row.squeeze(-2)
        input = _as_autocast_has_it(input) if dimensions == 3 else input
        return _op.fast_max_pool.default(input, kernel, stride, padding, dilation, ceil_mode)

    return route


def _avg_pool(dimensions):
    def route(
        input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
    ):
        if input.dim() != dimensions + 2:
            return NotImplemented
        kernel, stride, padding = _pool_arguments(kernel_size, stride, padding, dimensions)
        if dimensions == 1:
            row = _op.fast_avg_pool.default(
                input.unsqueeze(-2), [1, *kernel], [1, *stride], [0, *padding], ceil_mode, count_include_pad, None
            )
            return row.squeeze(-2)
        input = _as_autocast_has_it(input) if dimensions == 3 else input
        return _op.fast_avg_pool.default(input, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)

    return route


for _dimensions, _max_pools, _avg in (
    (1, (F.max_pool1d, torch.max_pool1d), F.avg_pool1d),
    (2, (F.max_pool2d, torch.max_pool2d), F.avg_pool2d),
    (3, (F.max_pool3d, torch.max_pool3d), F.avg_pool3d),
):
    _route(*_max_pools)(_max_pool(_dimensions))
    _route(_avg)(_avg_pool(_dimensions))


@_route(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(input, output_size):
    size = _tuple(output_size, 2)
    if input.dim() != 4 or None in size:
        return NotImplemented
    if size == [
        1,
        1,
    ]:  # as stock does it, without its as_strided of the result, in which a reader of the graph sees no rows
        return input.mean((2, 3), keepdim=True)
    return _op.fast_adaptive_avg_pool2d.default(input, size)


@_route(F.adaptive_max_pool2d)
def _adaptive_max_pool2d(input, output_size, return_indices=False):
    size = _tuple(output_size, 2)
    if input.dim() != 4 or None in size or return_indices:
        return NotImplemented
    return _op.fast_adaptive_max_pool2d.default(input, size)


@_route(F.interpolate)
def _interpolate(
    input,
    size=None,
    scale_factor=None,
    mode="nearest",
    align_corners=None,
    recompute_scale_factor=None,
    antialias=False,
):
    """By area, which is adaptive pooling; stock's other modes waste nothing."""
    if mode != "area" or size is None or align_corners is not None or antialias or recompute_scale_factor is not None:
        return NotImplemented
    return NotImplemented if input.dim() != 4 else _adaptive_avg_pool2d(input, size)


@_route(F.prelu, torch.prelu)
def _prelu(input, weight):
    if input.dim() < 2 or _autocasts(input):
        return NotImplemented
    weight = weight if weight.numel() == 1 else weight.reshape(-1, *[1] * (input.dim() - 2))
    return _op.fast_leaky_relu.default(input, 0.0) + weight * input.clamp_max(0)


@_route(F.pad)
def _pad(input, pad, mode="constant", value=None):
    pad = list(pad)
    if mode not in ("reflect", "replicate") or (len(pad), input.dim()) not in ((2, 3), (4, 4)):
        return NotImplemented
    op = _op.fast_reflection_pad if mode == "reflect" else _op.fast_replication_pad
    return op.default(_as_autocast_has_it(input), pad)


@_route(F.group_norm, torch.group_norm)
def _group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    if not _kernels(input) or input.dim() < 2 or input.numel() <= input.shape[0] * num_groups:
        return NotImplemented
    return _op.fast_group_norm.default(input, weight, bias, num_groups, eps)


def _norms_rows(input, shape, *parameters):
    """Whether a norm over the last dimensions has rows to work on; what does not fit is stock's to refuse."""
    shape = tuple(shape)
    return (
        _kernels(input)
        and 0 < len(shape) < input.dim()
        and input.shape[-len(shape) :] == shape
        and all(p is None or p.shape == shape for p in parameters)
    )


@_route(F.layer_norm, torch.layer_norm)
def _layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    if not _norms_rows(input, normalized_shape, weight, bias):
        return NotImplemented
    return _op.fast_layer_norm.default(input, weight, bias, list(normalized_shape), eps, True)


@_route(F.rms_norm, torch.rms_norm)
def _rms_norm(input, normalized_shape, weight=None, eps=None):
    if not _norms_rows(input, normalized_shape, weight):
        return NotImplemented
    eps = default_eps(input) if eps is None else eps
    return _op.fast_layer_norm.default(input, weight, None, list(normalized_shape), eps, False)


@_route(F.instance_norm)
def _instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None or input.dim() < 3:
        return NotImplemented
    return _group_norm(input, input.shape[1], weight, bias, eps)


@_route(F.batch_norm)
def _batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    """With fixed statistics an affine map per channel; with those of the batch, stock's."""
    if training or input.dim() < 2:
        return NotImplemented
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return _op.fast_channel_affine.default(input, scale, shift)


def _activation(act, tensor, alpha=0.0):
    """By bias_act, without the bias: its second derivative is one pass."""
    if not _kernels(tensor) or not 2 <= tensor.dim() <= 5:
        return NotImplemented
    return _op.bias_act.default(tensor, None, None, None, act, alpha, 1.0, None)


@_route(torch.tanh, torch.Tensor.tanh, F.tanh)
def _tanh(input):
    return _activation(NUMBERS["tanh"], input)


@_route(torch.sigmoid, torch.Tensor.sigmoid, F.sigmoid)
def _sigmoid(input):
    return _activation(NUMBERS["sigmoid"], input)


@_route(F.silu)
def _silu(input, inplace=False):
    return NotImplemented if inplace else _activation(NUMBERS["swish"], input)


@_route(F.elu)
def _elu(input, alpha=1.0, inplace=False):
    return NotImplemented if inplace or alpha != 1 else _activation(NUMBERS["elu"], input)


@_route(F.selu)
def _selu(input, inplace=False):
    return NotImplemented if inplace else _activation(NUMBERS["selu"], input)


@_route(F.softplus)
def _softplus(input, beta=1, threshold=20):
    return NotImplemented if (beta, threshold) != (1, 20) else _activation(NUMBERS["softplus"], input)


@_route(F.gelu)
def _gelu(input, approximate="none"):
    if not _kernels(input) or approximate not in ("none", "tanh"):
        return NotImplemented
    return _op.gelu.default(input, approximate == "tanh")


@_route(F.scaled_dot_product_attention)
def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if attn_mask is not None or dropout_p or not _kernels(query) or not fits(query, key, value):
        return NotImplemented
    if _autocasts(query):
        query, key, value = (t.to(torch.get_autocast_dtype(query.device.type)) for t in (query, key, value))
    return attend(query, key, value, is_causal, scale)


@_route(F.multi_head_attention_forward)
def _multi_head_attention(*args, **kwargs):
    """Attention in its plain form: what stock calls inside is not routed, and its fused attention has no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.multi_head_attention_forward(*args, **kwargs)


def _kernels(x):
    return x.device.type in ("cpu", "cuda") and x.is_floating_point() and x.numel() > 0


_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


def _is_real_and_strided(args):
    """Of the first argument, which is the layer's input in all that take complex, sparse or nested ones."""
    x = args[0] if args else None
    return not isinstance(x, torch.Tensor) or not (x.is_complex() or x.is_nested or x.layout is not torch.strided)


def _transforms():
    """Whether a torch.func transform or forward-mode differentiation is under way, which C++ autograd nodes do not know."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def _keeps_elsewhere():
    """What is kept under saved-tensor hooks may be computed anew where this mode is not active: torch.utils.checkpoint counts on finding
    the same tensors then, and on their being asked for once in a backward."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


class fast_double_backward(TorchFunctionMode):  # noqa: N801  a context manager, named as users type it
    """Routes a network's layers, while its forward runs, to ops whose second derivatives cost what they must.

        with gk.fast_double_backward():
            scores = critic(x)
        (grads,) = torch.autograd.grad(scores.sum(), x, create_graph=True)

    Known: convolutions and transposed convolutions of 1 to 3 dimensions, linear layers, ReLU, leaky ReLU (also in place), ReLU6,
    hardtanh, threshold, abs, evaluation-mode RReLU, max and average pooling, reflection and replication padding, batch and instance
    norm with fixed statistics. A convolution's mean over 2x2 becomes a convolution of stride 2, of 4/9 the products at 3x3. Values
    and gradients of every order are those of stock PyTorch; only zeros that stock computes are left out. A parameter that moves the
    penalty only through a switching pattern (say, a learned offset added before a ReLU) may get no .grad where stock hands it a
    tensor of zeros; biases of convolutions, linear layers and norms get their zeros.

    Known too, with a fused second derivative, and no third: layer, group, instance and RMS norm, GELU, SiLU, tanh, sigmoid, softplus,
    ELU, SELU, scaled dot-product attention without a mask or dropout. nn.MultiheadAttention takes attention in its plain form. Of these,
    softplus, ELU and SELU keep their result, where stock keeps the input: a network that then writes to it in place is told so by autograd.

    Anything else, tensor subclasses, complex, sparse and nested tensors, torch.func transforms, forward-mode differentiation and what runs
    under torch.utils.checkpoint or other saved-tensor hooks included, passes through untouched. Works under torch.compile, autocast, DataParallel.
    """

    kept_elsewhere = False  # whether a layer ran under saved-tensor hooks

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        route = _ROUTES.get(func)
        if route is not None and not self._wants_stock(types, args, kwargs):
            out = route(*args, **kwargs)
            if out is not NotImplemented:
                return out
        return func(*args, **kwargs)

    def _wants_stock(self, types, args, kwargs):
        if not _PLAIN.issuperset(types) or "out" in kwargs or not _is_real_and_strided(args):
            return True
        if torch.compiler.is_compiling():
            return False
        elsewhere = _keeps_elsewhere()
        self.kept_elsewhere = self.kept_elsewhere or elsewhere
        return elsewhere or _transforms()


@contextlib.contextmanager
def no_weight_gradients():
    """Backward passes inside compute no gradient of the weights of layers that ran under `fast_double_backward`.

    For first-order passes of which only the input's gradient is wanted but whose caller asks for more, such as a
    `loss.backward()` that should only reach the generator through the discriminator. `torch.autograd.grad(…, x)` needs no such
    switch: the layers see that no weight was asked for. Weights get no .grad at all inside, biases do. Process-wide, since
    autograd runs a GPU's backward on threads of its own; nests.
    """
    _op.disable_weight_gradients(1)
    try:
        yield
    finally:
        _op.disable_weight_gradients(-1)
