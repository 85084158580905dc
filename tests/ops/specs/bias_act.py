import math

import torch

import gankernels as gk
from gankernels.ops import bias_act
from gankernels.ops.bias_act import affine_reference

from .spec import INT, SHAPES, Kernel, Spec, accumulate

_op = torch.ops.gankernels
_ACTS = list(gk.activation_funcs)


def _sides(shape, dtype, device, sides):
    """scale, noise and b of those named in `sides`; all small, in the dtype of sums except b."""
    n, c, *pixels = shape
    shapes = {"scale": (n, c), "noise": (n, 1, *pixels), "shared": (1, 1, *pixels), "b": (c,)}
    made = {s: torch.rand(shapes[s], dtype=torch.float64).to(device, dtype if s == "b" else accumulate(dtype)) / 10
            for s in sides}  # fmt: skip
    if "scale" in made:
        made["scale"] += 1
    return made.get("scale"), made.get("noise", made.get("shared")), made.get("b")


def _image(shape, dtype, device):
    """Values on both sides of 0 and of the clamp, away from where rounding would decide on which."""
    x = torch.randn(shape, dtype=torch.float64)
    x = torch.where(x.abs() < 0.7, 0.4, 2.0) * x.sign() + torch.rand(shape, dtype=torch.float64) / 10
    return x.to(device, dtype)


def _gradient(shape, dtype, device):
    """Positive, so that sums do not cancel: their error is measured against the largest of them."""
    return (torch.rand(shape, dtype=torch.float64) + 0.5).to(device, dtype)


def _numbers(act, alpha=0.3, gain=1.3, clamp=None):
    return _ACTS.index(act), alpha, gain, clamp


def _inputs(act, sides, **more):
    numbers = _numbers(act, **more)

    def inputs(shape, dtype, device):
        return _image(shape, dtype, device), *_sides(shape, dtype, device, sides), *numbers

    return inputs


# act'(u) from a = act(u): written from the definitions, not from the kernels
_SLOPES = {
    "linear": lambda a: torch.ones_like(a),
    "relu": lambda a: (a > 0).to(a.dtype),
    "lrelu": lambda a: torch.where(a > 0, torch.ones_like(a), 0.3),
    "tanh": lambda a: 1 - a**2,
    "sigmoid": lambda a: a - a**2,
    "elu": lambda a: torch.where(a > 0, 1, 1 + a),
    "selu": lambda a: torch.where(a > 0, 1.0507009873554805, 1.0507009873554805 * 1.6732632423543772 + a),
    "softplus": lambda a: 1 - torch.exp(-a),
}


def _sums(t, x, scale, noise, b):
    empty, pixels = t.new_empty(0), tuple(range(2, t.dim()))
    return (
        empty if scale is None else (x * t).sum(pixels),
        empty if noise is None else t.sum(1, keepdim=True).sum_to_size(noise.shape),
        empty if b is None else t.sum((0, *pixels)),
    )


def _bwd_reference(grad, saved, scale, noise, b, act, alpha, gain, clamp):
    if bias_act._keeps_y(scale, act, alpha):
        slope = gain * _SLOPES[_ACTS[act]](saved / gain)
        t = grad * (slope if clamp is None else torch.where(saved.abs() >= clamp, 0, slope))
        return t, *_sums(t, saved, scale, noise, b)
    with torch.enable_grad():
        given = [t for t in (saved, scale, noise, b) if t is not None]
        leaves = [t if t.requires_grad else t.detach().requires_grad_() for t in given]
        there = iter(leaves)
        x, *sides = (None if t is None else next(there) for t in (saved, scale, noise, b))
        gradients = iter(
            torch.autograd.grad(affine_reference(x, *sides, act, alpha, gain, clamp), leaves, grad, create_graph=True)
        )
    return tuple(grad.new_empty(0) if t is None else next(gradients) for t in (saved, scale, noise, b))


def _bwd_inputs(act, sides, **more):
    def inputs(shape, dtype, device):
        x, *rest = _inputs(act, sides, **more)(shape, dtype, device)
        saved = x
        if bias_act._keeps_y(rest[0], *rest[3:5]):
            saved = affine_reference(*(t.double() if isinstance(t, torch.Tensor) else t for t in (x, *rest))).to(dtype)
        return _gradient(shape, dtype, device), saved, *rest

    return inputs


def _bwd_bwd_reference(v, v_scale, v_noise, v_b, grad, saved, scale, noise, b, *numbers):
    # where y was kept noise and b do not enter, and neither does y where the slope is that of a straight line
    enter = 1 if bias_act._is_straight(scale, *numbers[:2]) else 2 if bias_act._keeps_y(scale, *numbers[:2]) else 5
    with torch.enable_grad():
        leaves = [
            t if t is None or t.requires_grad else t.detach().requires_grad_() for t in (grad, saved, scale, noise, b)
        ]
        moved = [(o, w) for o, w in zip(_bwd_reference(*leaves, *numbers), (v, v_scale, v_noise, v_b)) if w is not None]
        asked = [t for t in leaves[:enter] if t is not None]
        outputs, vectors = zip(*moved)
        gradients = iter(torch.autograd.grad(
            outputs, asked, vectors, allow_unused=True, materialize_grads=True, create_graph=torch.is_grad_enabled()
        ))  # fmt: skip
    return tuple(v.new_empty(0) if t is None or i >= enter else next(gradients) for i, t in enumerate(leaves))


def _bwd_bwd_inputs(act, sides, v_sides, **more):
    def inputs(shape, dtype, device):
        rest = _bwd_inputs(act, sides, **more)(shape, dtype, device)
        v_scale, v_noise, v_b = _sides(shape, dtype, device, v_sides)
        return (
            _gradient(shape, dtype, device),
            v_scale,
            v_noise,
            None if v_b is None else v_b.to(accumulate(dtype)),
            *rest,
        )

    return inputs


X, B = torch.ones(3, 4, 2, 2), torch.ones(4)
_RAW = (None, None, None, 2, 0.2, 1.0, None)

_BAD = {
    "list": (lambda: gk.bias_act([1.0]), "x must be a tensor, got list"),
    "integers": (lambda: gk.bias_act(X.long()), "x must be float64, .* got int64"),
    "act": (lambda: gk.bias_act(X, act="gelu"), "act must be one of linear, relu, lrelu, tanh, .* swish, got 'gelu'"),
    "b_shape": (lambda: gk.bias_act(X, B[:3]), r"b must have shape \(C,\) = \(4,\), got \(3,\)"),
    "b_shape_of_dim": (lambda: gk.bias_act(X, B, dim=-1), r"b must have shape \(C,\) = \(2,\), got \(4,\)"),
    "b_dtype": (lambda: gk.bias_act(X, B.double()), "b must have the dtype of x, float32, got float64"),
    "b_device": (lambda: gk.bias_act(X, B.to("meta")), "b must be on the device of x, cpu, got meta"),
    "dim": (lambda: gk.bias_act(X, B, dim=4), r"dim must name a dimension of x of shape \(3, 4, 2, 2\), got 4"),
    "alpha": (lambda: gk.bias_act(X, alpha=math.nan), "alpha must be a finite number, got nan"),
    "gain": (lambda: gk.bias_act(X, gain="1"), "gain must be a finite number, got str"),
    "clamp": (lambda: gk.bias_act(X, clamp=-1.0), "clamp must be a finite number >= 0, got -1.0"),
    "raw_dimensions": (lambda: _op.bias_act(B, *_RAW), r"x must have shape \(N, C, ...\), got \(4,\)"),
    "raw_scale": (lambda: _op.bias_act(X, B, *_RAW[1:]), r"scale must have shape \(3, 4\), got \(4,\)"),
    "raw_noise": (
        lambda: _op.bias_act(X, None, X, *_RAW[2:]),
        r"noise must have shape \(3, 1, 2, 2\), got \(3, 4, 2, 2\)",
    ),
    "raw_b": (lambda: _op.bias_act(X, None, None, B[:2], *_RAW[3:]), r"b must have shape \(4,\), got \(2,\)"),
    "raw_b_dtype": (lambda: _op.bias_act(X, None, None, B.half(), *_RAW[3:]), "b must be Float, got Half"),
    "raw_act": (lambda: _op.bias_act(X, *_RAW[:3], 9, *_RAW[4:]), "act must be .* 0 to 8, got 9"),
    "raw_clamp": (lambda: _op.bias_act(X, *_RAW[:6], -1.0), "clamp must be >= 0, got -1"),
    "raw_integers": (lambda: _op.bias_act(X.long(), *_RAW), "expected a float64, float32, .* got Long"),
    "raw_grad": (lambda: _op.bias_act_bwd(X[:2], X, *_RAW), r"grad must have the shape of saved, \(3, 4, 2, 2\), got"),
    "raw_v_scale": (lambda: _op.bias_act_bwd_bwd(X, X[..., 0, 0], None, None, X, X, *_RAW), "v_scale must be absent"),
    "raw_v": (lambda: _op.bias_act_bwd_bwd(X[:2], None, None, None, X, X, *_RAW), "v must have the shape of saved"),
}

# Small, since gradcheck and the interpreter are slow: a single channel, several steps and several blocks of a GPU's program along
# pixels and along channels, an empty batch.
_SHAPES = {
    "odd": (3, 4, 3, 2),
    "one": (1, 1, 5, 3),
    "large": SHAPES["large"],
    "sequence": (2, 40, 300),
    "latents": (2, 1700),
    "empty": (0, 3, 4, 4),
}
_ALL = ("scale", "noise", "b")

# StyleGAN2's layers; the epilogue of its modulated convolutions has all of the arguments
_REAL = {
    "lrelu": {
        "stylegan2_64": (4, 512, 64, 64),
        "stylegan2_256": (2, 128, 256, 256),
        "stylegan2_1024": (1, 32, 1024, 1024),
        "mapping": (64, 512),
    },
    "all_lrelu": {"stylegan2_64": (4, 512, 64, 64), "stylegan2_256": (2, 128, 256, 256)},
}


def _public(function, x, scale, noise, b, act, alpha, gain, clamp):
    """How a peer is called: the public form has neither scale nor noise."""
    return function(x, b, act=_ACTS[act], alpha=alpha, gain=gain, clamp=clamp)


def _rosinality(function, x, scale, noise, b, act, alpha, gain, clamp):
    return function(x, b, negative_slope=alpha, scale=gain)


_PEERS = {"stylegan3": ("torch_utils.ops.bias_act", "bias_act", _public), "mmcv": ("mmcv.ops", "bias_act", _public),
          "rosinality": ("op", "fused_leaky_relu", _rosinality)}  # fmt: skip

SPECS = [
    *(
        Spec(
            f"bias_act_{name}",
            _op.bias_act,
            affine_reference,
            _inputs(act, sides, **more),
            (0, 2) if {"noise", "shared"} & set(sides) else (0,),
            (
                0,
                *(i for i, names in enumerate((("scale",), ("noise", "shared"), ("b",)), 1) if set(names) & set(sides)),
            ),
            shapes=_SHAPES,
            bad=_BAD if name == "lrelu" else {},
            real=_REAL.get(name, {}),
            peers=_PEERS if name == "lrelu" else {},
            goals={"forward_backward": {"stock": 2.0}} if name == "lrelu" else {},
        )
        for name, act, sides, more in (
            ("lrelu", "lrelu", ("b",), {}),
            ("scale", "linear", ("scale",), {"gain": 1.0}),
            ("relu", "relu", ("b",), {"clamp": 1.5}),
            ("tanh", "tanh", ("shared", "b"), {}),
            ("sigmoid", "sigmoid", (), {}),
            ("elu", "elu", ("b",), {"clamp": 1.5}),
            ("selu", "selu", ("b",), {"gain": -1.0}),
            ("softplus", "softplus", ("b",), {}),
            ("all_lrelu", "lrelu", _ALL, {"clamp": 1.5}),
            ("all_swish", "swish", ("scale", "shared", "b"), {}),
            ("falling_lrelu", "lrelu", ("noise", "b"), {"alpha": -0.3}),
        )
    ),
    *(
        Spec(
            f"bias_act_bwd_{name}",
            _op.bias_act_bwd,
            _bwd_reference,
            _bwd_inputs(act, sides, **more),
            (0, 1),
            differentiable,
            outputs=(
                0,
                *(i for i, names in enumerate((("scale",), ("noise", "shared"), ("b",)), 1) if set(names) & set(sides)),
            ),
            second_order="lrelu" in name,
            shapes=_SHAPES,
        )
        for name, act, sides, differentiable, more in (
            ("lrelu", "lrelu", ("shared", "b"), (0,), {"clamp": 1.5}),
            ("softplus", "softplus", ("noise", "b"), (0, 1), {}),
            ("all_lrelu", "lrelu", _ALL, (0, 1, 2, 3, 4), {}),
            ("all_sigmoid", "sigmoid", ("scale", "shared", "b"), (0, 1, 2, 3, 4), {"clamp": 1.5}),
        )
    ),
    *(
        Spec(
            f"bias_act_bwd_bwd_{name}",
            _op.bias_act_bwd_bwd,
            _bwd_bwd_reference,
            _bwd_bwd_inputs(act, sides, v_sides, **more),
            (0, 4, 5),
            differentiable,
            outputs=(0, 1, 2) if differentiable and name != "lrelu" else (0,),
            shapes=_SHAPES,
        )
        for name, act, sides, v_sides, differentiable, more in (
            ("lrelu", "lrelu", ("noise", "b"), ("noise", "b"), (0, 2, 3), {"clamp": 1.5}),
            ("tanh", "tanh", ("noise", "b"), ("noise", "b"), (), {"clamp": 1.5}),
            ("all_lrelu", "lrelu", _ALL, ("scale",), (0, 1, 4, 5, 6), {}),
            ("all_relu", "relu", _ALL, _ALL, (0, 1, 2, 3, 4, 5, 6), {"clamp": 1.5}),
            ("falling_lrelu", "lrelu", ("noise", "b"), ("noise", "b"), (0, 2, 3), {"alpha": -0.3}),
            ("all_swish", "swish", ("scale", "shared", "b"), ("scale", "shared", "b"), (), {"clamp": 1.5}),
        )
    ),
]

LAUNCHERS = {
    "bias_act": bias_act._bias_act_triton,
    "bias_act_bwd": bias_act._bias_act_bwd_triton,
    "bias_act_bwd_bwd": bias_act._bias_act_bwd_bwd_triton,
}


def _constants(act, planes, there, **more):
    return {
        "ACT": _ACTS.index(act), "alpha": 0.2, "gain": math.sqrt(2), "clamp": math.nan, "PLANES": planes, "SCALE": there,
        "NOISE": there, "BIAS": True, "NOISE_PER_SAMPLE": True, "COLS": 1024 if planes else 256, **more,
    }  # fmt: skip


_V = {"V_SCALE": True, "V_NOISE": False, "V_BIAS": False, "V_NOISE_PER_SAMPLE": True, "STEPS": 16}
KERNELS = {
    "bias_act_planes": Kernel(
        bias_act.bias_act_kernel, lambda t, a: (t, a, a, a, t, INT, INT), _constants("lrelu", True, True, clamp=256.0)
    ),
    "bias_act_rows": Kernel(
        bias_act.bias_act_kernel, lambda t, a: (t, a, a, a, t, INT, INT), _constants("softplus", False, False)
    ),
    **{
        f"bias_act_bwd_{name}": Kernel(
            bias_act.bias_act_bwd_kernel,
            lambda t, a: (t, t, a, a, a, t, a, a, a, INT, INT),
            _constants(act, planes, there, FROM_Y=not there, STEPS=16),
        )
        for name, act, planes, there in (
            ("planes", "lrelu", True, True),
            ("rows", "lrelu", False, True),
            ("y", "elu", False, False),
        )
    },
    **{
        f"bias_act_bwd_bwd_{name}": Kernel(
            bias_act.bias_act_bwd_bwd_kernel,
            lambda t, a: (t, a, a, a, t, t, a, a, a, t, t, a, a, a, INT, INT),
            _constants(act, planes, True, FROM_Y=False, **_V),
        )
        for name, act, planes in (("planes", "lrelu", True), ("rows", "swish", False))
    },
}
