"""Modules and parametrisations made of ops."""

from .layers import Blur, Downsample, MinibatchDiscrimination, MinibatchStdDev, PixelNorm, Upsample
from .modulated import FusedLeakyReLU, ModulatedConv2d
from .spectral_norm import SpectralNorm, remove_spectral_norm, spectral_norm

__all__ = [
    "Blur",
    "Downsample",
    "FusedLeakyReLU",
    "MinibatchDiscrimination",
    "MinibatchStdDev",
    "ModulatedConv2d",
    "PixelNorm",
    "SpectralNorm",
    "Upsample",
    "remove_spectral_norm",
    "spectral_norm",
]
