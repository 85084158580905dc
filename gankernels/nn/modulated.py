"""Layers of a style-based generator: the modulated convolution with what makes its styles, and the biased activation behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from .._checks import check_flags, check_integer, check_number
from ..ops.bias_act import bias_act
from ..ops.modulated_conv2d import modulated_conv2d
from .layers import Blur, taps_along_axes


class FusedLeakyReLU(nn.Module):
    """scale * leaky_relu(x + bias), the bias along dimension 1, in one pass."""

    def __init__(
        self, channels: int, bias: bool = True, negative_slope: float = 0.2, scale: float = math.sqrt(2)
    ) -> None:
        super().__init__()
        op = "nn.FusedLeakyReLU"
        check_integer(op, "channels", channels, 1)
        check_flags(op, bias=bias)
        check_number(op, "negative_slope", negative_slope)
        check_number(op, "scale", scale)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.negative_slope, self.scale = negative_slope, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return bias_act(x, self.bias, act="lrelu", alpha=self.negative_slope, gain=self.scale)

    def extra_repr(self) -> str:
        return f"bias={self.bias is not None}, negative_slope={self.negative_slope}, scale={self.scale}"


class Modulation(nn.Module):
    """Latents to styles: z W^T / sqrt(in_features) + bias, with the bias 1 at first."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.ones(out_features))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(z, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


class ModulatedConv2d(nn.Module):
    """`modulated_conv2d` at a layer's own styles: (N, in_channels, H, W) and latents (N, style_dim) to (N, out_channels, H', W').

    The image keeps its size, or doubles or halves it with upsample or downsample, filtered by blur_kernel, (taps,) or (rows,
    columns) of any scale. kernel_size is odd. The weight starts normal and counts with 1 / sqrt(in_channels kernel_size^2). State, as
    in public checkpoints: weight (1, out, in, k, k), modulation.weight, modulation.bias, and blur.kernel where it resamples.

    What follows the layer joins its last pass: forward(x, latents, noise=…, bias=…, act=…, gain=…, clamp=…) as in the op.
    `op` may be another of the same arguments, such as the reference.
    """

    op = staticmethod(modulated_conv2d)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_dim: int,
        demodulate: bool = True,
        upsample: bool = False,
        downsample: bool = False,
        blur_kernel: Sequence | torch.Tensor = (1, 3, 3, 1),
    ) -> None:
        super().__init__()
        op = "nn.ModulatedConv2d"
        check_integer(op, "in_channels", in_channels, 1)
        check_integer(op, "out_channels", out_channels, 1)
        check_integer(op, "kernel_size", kernel_size, 1)
        check_integer(op, "style_dim", style_dim, 1)
        check_flags(op, demodulate=demodulate, upsample=upsample, downsample=downsample)
        blur_kernel = taps_along_axes(op, "blur_kernel", blur_kernel)
        self.demodulate, self.up, self.down = demodulate, 2 if upsample else 1, 2 if downsample else 1
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, kernel_size, kernel_size))
        self.modulation = Modulation(style_dim, in_channels)
        if upsample or downsample:
            self.blur = Blur(blur_kernel, (0, 0), upsample_factor=self.up)  # for its state; the op pads

    def forward(self, x: torch.Tensor, latents: torch.Tensor, **epilogue) -> torch.Tensor:
        _, _, i, k, _ = self.weight.shape
        return self.op(
            x,
            self.weight[0] / math.sqrt(i * k * k),
            self.modulation(latents),
            up=self.up,
            down=self.down,
            padding=int(k) // 2,  # torch.jit.trace has tensors for sizes
            resample_filter=self.blur.kernel / self.up**2 if self.up * self.down > 1 else None,
            demodulate=self.demodulate,
            flip_weight=self.up == 1,  # the weight of a checkpoint that upsamples is one of a transposed convolution
            **epilogue,
        )

    def extra_repr(self) -> str:
        _, out, inputs, k, _ = self.weight.shape
        return f"{inputs}, {out}, kernel_size={k}, demodulate={self.demodulate}, up={self.up}, down={self.down}"
