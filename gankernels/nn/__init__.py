"""Modules and parametrisations made of ops."""

from .layers import Blur, Downsample, MinibatchDiscrimination, MinibatchStdDev, PixelNorm, Upsample
from .spectral_norm import SpectralNorm, remove_spectral_norm, spectral_norm

__all__ = [
    "Blur",
    "Downsample",
    "MinibatchDiscrimination",
    "MinibatchStdDev",
    "PixelNorm",
    "SpectralNorm",
    "Upsample",
    "remove_spectral_norm",
    "spectral_norm",
]
