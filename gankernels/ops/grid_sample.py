"""Bilinear sampling of images at the points of a grid, differentiable to any order in both.

Sampling and its first derivative are stock's kernels; the derivatives beyond, which stock lacks, are C++ autograd nodes over
stock kernels (csrc/autograd/grid_sample.cpp). In terms of a point p with fractions f_x, f_y between the pixels a b / c d
around it,
    y = (1 - f_x)(1 - f_y) a + f_x (1 - f_y) b + (1 - f_x) f_y c + f_x f_y d.
"""

from __future__ import annotations

import torch

from .._checks import check_flags, check_tensor, got, shape

_op = torch.ops.gankernels

PADDING_MODES = ("zeros", "border", "reflection")  # in the order in which PyTorch numbers them


def _points(coordinate: torch.Tensor, size: int, padding_mode: str, align_corners: bool) -> torch.Tensor:
    """Grid coordinates as distances, in pixels, from the first pixel's centre."""
    point = (coordinate + 1) / 2 * (size - 1) if align_corners else ((coordinate + 1) * size - 1) / 2
    if padding_mode == "reflection":
        low, span = (0, size - 1) if align_corners else (-0.5, size)
        point = span - ((point - low).remainder(2 * span) - span).abs() + low if span else point * 0
    return point if padding_mode == "zeros" else point.clamp(0, size - 1)


def reference(
    x: torch.Tensor, grid: torch.Tensor, padding_mode: str = "zeros", align_corners: bool = False
) -> torch.Tensor:
    """The four pixels around each point, gathered and weighted, in plain PyTorch."""
    n, c, height, width = x.shape
    dtype = torch.promote_types(torch.promote_types(x.dtype, grid.dtype), torch.float32)
    column, row = (
        _points(grid[..., i].to(dtype).reshape(n, 1, -1), size, padding_mode, align_corners)
        for i, size in ((0, width), (1, height))
    )
    total = 0
    for dx in (0, 1):
        for dy in (0, 1):
            at_x, at_y = column.detach().floor() + dx, row.detach().floor() + dy
            weight = (1 - (column - at_x).abs()) * (1 - (row - at_y).abs())
            exists = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
            index = (at_y.clamp(0, height - 1) * width + at_x.clamp(0, width - 1)).long()
            total = total + x.to(dtype).flatten(2).gather(2, index.expand(-1, c, -1)) * weight * exists
    return total.reshape(n, c, *grid.shape[1:3]).to(x.dtype)


def grid_sample(
    x: torch.Tensor, grid: torch.Tensor, padding_mode: str = "zeros", align_corners: bool = False
) -> torch.Tensor:
    """x at the points of grid by bilinear interpolation: torch.nn.functional.grid_sample, with every order of derivative.

    Args:
        x: (N, C, H, W).
        grid: (N, H_out, W_out, 2): points (x, y) in units of half the image, -1 at its left or upper end and 1 at the other.
        padding_mode: "zeros", "border" or "reflection": what lies outside of the image.
        align_corners: whether -1 and 1 are the centres of the outermost pixels; if not, their outer edges.

    Returns: (N, C, H_out, W_out) in x's dtype; bfloat16 and float16 are sampled in float32. Differentiable to any order in x
    and grid; where the formula has a kink, as it is right of it. Forward and first derivative are one stock kernel each. The
    derivative of the gradient in x is sampling again; that of the gradient in grid reads x four times, once per neighbour,
    in passes of stock ops, and is computed only where a backward asks for it.

    Raises: TypeError or ValueError for an integer tensor, wrong shapes, tensors on several devices or an unknown padding_mode.

    Source: Jaderberg et al. 2015, "Spatial Transformer Networks", 3.3.
    """
    op = "grid_sample"
    check_tensor(op, "x", x)
    check_tensor(op, "grid", grid)
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(f"gankernels.{op}: x must have shape (N, C, H, W) and no empty samples, got {shape(x)}.")
    if grid.dim() != 4 or grid.shape[0] != x.shape[0] or grid.shape[3] != 2:
        raise ValueError(
            f"gankernels.{op}: grid must have shape (N, H_out, W_out, 2) with N = {x.shape[0]}, got {shape(grid)}."
        )
    if grid.device != x.device:
        raise ValueError(f"gankernels.{op}: grid must be on the device of x, {x.device}, got {grid.device}.")
    if padding_mode not in PADDING_MODES:
        known = ", ".join(PADDING_MODES)
        raise ValueError(f"gankernels.{op}: padding_mode must be one of {known}, got {got(padding_mode)}.")
    check_flags(op, align_corners=align_corners)
    mode = PADDING_MODES.index(padding_mode)
    if x.dtype == grid.dtype and x.dtype.itemsize >= 4:
        return _op.grid_sample(x, grid, mode, align_corners)
    dtype = torch.promote_types(torch.promote_types(x.dtype, grid.dtype), torch.float32)
    return _op.grid_sample(x.to(dtype), grid.to(dtype), mode, align_corners).to(x.dtype)
