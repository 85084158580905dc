"""The ops of the StyleGAN2-ADA and StyleGAN3 code bases, under `torch_utils.ops`.

    import gankernels.compat.stylegan3
    gankernels.compat.stylegan3.install()

answers for torch_utils.ops.{bias_act, upfirdn2d, filtered_lrelu, conv2d_gradfix, conv2d_resample, grid_sample_gradfix, fma};
the rest of a checkout's torch_utils stays its own. Signatures are the public ones; `impl="ref"` is the plain PyTorch
reference, "cuda" (the default everywhere, as there) the kernels, on whatever device the tensors are.
"""

from __future__ import annotations

import sys
from types import ModuleType

import torch
import torch.nn.functional as F

import gankernels as gk

from ..ops.upfirdn2d import four, pair, taps_of
from ._modules import Conv2dGradfix, module, number, package, put

NAME = "torch_utils.ops"


def _by_impl(op: str, impl: str):
    if impl not in ("ref", "cuda"):
        raise ValueError(f"gankernels.{op}: impl must be 'ref' or 'cuda', got {impl!r}.")
    return getattr(gk.reference if impl == "ref" else gk, op)


def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
    alpha, gain, clamp = number(alpha), number(gain), number(clamp)
    clamp = None if clamp is not None and clamp < 0 else clamp
    return _by_impl("bias_act", impl)(x, b, dim, act, alpha, gain, clamp)


def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
    return _by_impl("upfirdn2d", impl)(x, f, up, down, padding, flip_filter, number(gain))


def _padding(padding, before, after):
    x0, x1, y0, y1 = four(padding)
    return [x0 + before[0], x1 + after[0], y0 + before[1], y1 + after[1]]


def filter2d(x, f, padding=0, flip_filter=False, gain=1, impl="cuda"):
    taps = taps_of(f)
    padding = _padding(padding, [t // 2 for t in taps], [(t - 1) // 2 for t in taps])
    return upfirdn2d(x, f, padding=padding, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(x, f, up=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    ups, taps = pair(up), taps_of(f)
    before = [(t + u - 1) // 2 for t, u in zip(taps, ups)]
    padding = _padding(padding, before, [(t - u) // 2 for t, u in zip(taps, ups)])
    return upfirdn2d(x, f, up, 1, padding, flip_filter, gain * ups[0] * ups[1], impl)


def downsample2d(x, f, down=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    downs, taps = pair(down), taps_of(f)
    before = [(t - d + 1) // 2 for t, d in zip(taps, downs)]
    padding = _padding(padding, before, [(t - d) // 2 for t, d in zip(taps, downs)])
    return upfirdn2d(x, f, 1, down, padding, flip_filter, gain, impl)


def setup_filter(f, device=torch.device("cpu"), normalize=True, flip_filter=False, gain=1, separable=None):
    return gk.setup_filter(f, device, normalize, flip_filter, gain, separable)


def filtered_lrelu(
    x,
    fu=None,
    fd=None,
    b=None,
    up=1,
    down=1,
    padding=0,
    gain=2**0.5,
    slope=0.2,
    clamp=None,
    flip_filter=False,
    impl="cuda",
):
    gain, slope, clamp = number(gain), number(slope), number(clamp)
    return _by_impl("filtered_lrelu", impl)(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip_filter)


def conv2d_resample(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False):
    return gk.conv2d_resample(x, w, f, up, down, padding, groups, flip_weight, flip_filter)


def modulated_conv2d(x, w, s, demodulate=True, padding=0, input_gain=None):
    """As that code base defines it beside its networks, `training.networks_stylegan3.modulated_conv2d`: weights of a mean square of
    1 per output channel and styles of 1 over the batch, where it demodulates."""
    if demodulate:
        w = w * w.square().mean([1, 2, 3], keepdim=True).rsqrt()
        s = s * s.square().mean().rsqrt()
    return gk.modulated_conv2d(x, w, s, padding=padding, demodulate=demodulate, input_gain=input_gain)


def _grid_sample_gradfix() -> ModuleType:
    gradfix = module(f"{NAME}.grid_sample_gradfix", {"enabled": False})

    def grid_sample(input, grid):
        if gradfix.enabled:
            return gk.grid_sample(input, grid)
        return F.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    gradfix.grid_sample = grid_sample
    return gradfix


def _modules() -> list[ModuleType]:
    named = {
        "bias_act": {"bias_act": bias_act, "activation_funcs": gk.activation_funcs},
        "upfirdn2d": {
            "upfirdn2d": upfirdn2d,
            "filter2d": filter2d,
            "upsample2d": upsample2d,
            "downsample2d": downsample2d,
            "setup_filter": setup_filter,
            "_parse_padding": lambda padding: tuple(four(padding)),
            "_parse_scaling": lambda scaling: tuple(pair(scaling)),
            "_get_filter_size": taps_of,
        },
        "filtered_lrelu": {"filtered_lrelu": filtered_lrelu},
        "conv2d_resample": {"conv2d_resample": conv2d_resample},
        "fma": {"fma": gk.fma},
    }
    made = [module(f"{NAME}.{name}", names) for name, names in named.items()]
    return [*made, Conv2dGradfix(f"{NAME}.conv2d_gradfix", enabled=False), _grid_sample_gradfix()]


_installed: list[ModuleType] = []


def install() -> None:
    """Puts the modules in place, also over those already imported. Call it before the code that uses them is imported, with a
    checkout's folder on sys.path already. A second call changes nothing: what was assigned to the modules' globals stays."""
    if not _installed:
        _installed.extend(_modules())
    if any(sys.modules.get(made.__name__) is not made for made in _installed):
        package(NAME)
        for made in _installed:
            put(made)
