"""The ops of the StyleGAN2-ADA code base: those of `stylegan3`, and the form that its modulated convolution has.

import gankernels.compat.stylegan2_ada
gankernels.compat.stylegan2_ada.install()
training.networks.modulated_conv2d = gankernels.compat.stylegan2_ada.modulated_conv2d
"""

from __future__ import annotations

import gankernels as gk

from .stylegan3 import install

__all__ = ["install", "modulated_conv2d"]


def modulated_conv2d(
    x,
    weight,
    styles,
    noise=None,
    up=1,
    down=1,
    padding=0,
    resample_filter=None,
    demodulate=True,
    flip_weight=True,
    fused_modconv=True,
):
    """noise: (N, 1, H, W), (1, 1, H, W) or (H, W) of the result. `fused_modconv` chose between two forms of one sum, and is ignored."""
    return gk.modulated_conv2d(
        x,
        weight,
        styles,
        noise=noise,
        up=up,
        down=down,
        padding=padding,
        resample_filter=resample_filter,
        demodulate=demodulate,
        flip_weight=flip_weight,
    )
