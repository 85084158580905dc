"""Layers made of one op each: resampling with a filter, pixel normalisation and statistics over the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .._checks import check_integer, check_number, got
from ..ops.minibatch_discrimination import minibatch_discrimination
from ..ops.minibatch_stddev import minibatch_stddev
from ..ops.pixel_norm import pixel_norm
from ..ops.upfirdn2d import setup_filter, taps, upfirdn2d


class _Resample(nn.Module):
    """`upfirdn2d` with a fixed filter, which is a buffer `kernel`, (rows, columns), as public checkpoints have it."""

    def __init__(self, kernel: torch.Tensor, up: int, down: int, pad: Sequence[int], gain: float) -> None:
        super().__init__()
        self.up, self.down, self.pad = up, down, tuple(pad)
        self.register_buffer("kernel", setup_filter(kernel, separable=False) * gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return upfirdn2d(x, self.kernel, up=self.up, down=self.down, padding=[*self.pad, *self.pad])

    def extra_repr(self) -> str:
        return f"taps={tuple(self.kernel.shape)}, up={self.up}, down={self.down}, pad={self.pad}"


def taps_along_axes(op: str, name: str, kernel: Sequence | torch.Tensor) -> torch.Tensor:
    """A filter of 1 or 2 dimensions."""
    kernel = taps(op, name, kernel)
    if kernel.dim() == 0:
        raise ValueError(f"gankernels.{op}: {name} must have shape (taps,) or (rows, columns), got a number.")
    return kernel


class Blur(_Resample):
    """Filters images, padded by pad = (before, after) along both axes.

    kernel: (taps,), its outer product with itself is taken, or (rows, columns); normalised to sum 1, and to upsample_factor^2
    where it makes up for zeros that a transposed convolution has inserted.
    """

    def __init__(self, kernel: Sequence | torch.Tensor, pad: tuple[int, int], upsample_factor: int = 1) -> None:
        if not isinstance(pad, (tuple, list)) or len(pad) != 2 or not all(type(p) is int for p in pad):
            raise TypeError(f"gankernels.nn.Blur: pad must be two integers, (before, after), got {got(pad)}.")
        check_integer("nn.Blur", "upsample_factor", upsample_factor, 1)
        super().__init__(taps_along_axes("nn.Blur", "kernel", kernel), 1, 1, pad, upsample_factor**2)


class Upsample(_Resample):
    """Images at `factor` times their size, interpolated with kernel = (taps,) or (rows, columns) of any scale."""

    def __init__(self, kernel: Sequence | torch.Tensor = (1, 3, 3, 1), factor: int = 2) -> None:
        check_integer("nn.Upsample", "factor", factor, 1)
        kernel = taps_along_axes("nn.Upsample", "kernel", kernel)
        rest = len(kernel) - factor
        super().__init__(kernel, factor, 1, ((rest + 1) // 2 + factor - 1, rest // 2), factor**2)


class Downsample(_Resample):
    """Images at 1/`factor` of their size, filtered with kernel = (taps,) or (rows, columns) of any scale."""

    def __init__(self, kernel: Sequence | torch.Tensor = (1, 3, 3, 1), factor: int = 2) -> None:
        check_integer("nn.Downsample", "factor", factor, 1)
        kernel = taps_along_axes("nn.Downsample", "kernel", kernel)
        rest = len(kernel) - factor
        super().__init__(kernel, 1, factor, ((rest + 1) // 2, rest // 2), 1)


class PixelNorm(nn.Module):
    """`pixel_norm`: every pixel's channels, or every latent's features, brought to a mean square of 1."""

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        check_number("nn.PixelNorm", "eps", eps, 0, above=True)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pixel_norm(x, eps=self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class MinibatchStdDev(nn.Module):
    """`minibatch_stddev`: appends num_channels channels to (N, C, ...)."""

    def __init__(self, group_size: int | None = 4, num_channels: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        if group_size is not None:
            check_integer("nn.MinibatchStdDev", "group_size", group_size, 1)
        check_integer("nn.MinibatchStdDev", "num_channels", num_channels, 1)
        check_number("nn.MinibatchStdDev", "eps", eps, 0, above=True)
        self.group_size, self.num_channels, self.eps = group_size, num_channels, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return minibatch_stddev(x, self.group_size, self.num_channels, self.eps)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}, eps={self.eps}"


class MinibatchDiscrimination(nn.Module):
    """Appends `minibatch_discrimination`'s out_features values, less the 1 of every sample with itself, to (N, in_features).

    kernel_dims is C, the dimensions in which two samples' distance is taken. T starts normal with std 1 / sqrt(in_features),
    so that m has the scale of x.
    """

    def __init__(self, in_features: int, out_features: int, kernel_dims: int = 16) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("out_features", out_features), ("kernel_dims", kernel_dims)):
            check_integer("nn.MinibatchDiscrimination", name, value, 1)
        self.T = nn.Parameter(torch.randn(in_features, out_features, kernel_dims) / in_features**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, minibatch_discrimination(x, self.T.to(x.dtype)) - 1], dim=1)

    def extra_repr(self) -> str:
        return "in_features={}, out_features={}, kernel_dims={}".format(*self.T.shape)
