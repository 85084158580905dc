"""y = clamp(gain act(u)) with u = scale x + noise + b: bias and activation, and what a modulated convolution puts before them.

scale is one per sample and channel, noise one per pixel, b one per channel; each may be absent. With f(u) the function after the sum:
    t = g f'(u),    dx = scale t,    d scale = sum over pixels of x t,    d noise = sum over channels of t,    db = sum of t
    given v, v_scale, v_noise, v_b arriving at these:  q = scale v + x v_scale + v_noise + v_b is how far they move u,
    dg = q f'(u),    du = q g f''(u),    dx = scale du + v_scale t,    d scale = sum of x du + v t,    d noise, db: sums of du
What is kept for backward is y where that tells f' and no scale asks for x (the next layer keeps it anyway), else x, from which u is
taken again. Where y is kept, the derivative of f' goes to y instead of to u, so that it joins y's other gradient; for piecewise
linear functions it is absent, and every order of derivative is one pass. With a scale these have two fused orders, and any further one in
stock ops. Sums are float32 (float64 for float64).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .._checks import check_number, check_tensor, got, shape
from .._registration import refuse_derivative, register
from .._triton import BLOCK, in_layout_of, jit, tl, triton

_op = torch.ops.gankernels


@dataclass(frozen=True)
class Activation:
    """A row of `activation_funcs`: the function in plain PyTorch, and the alpha and gain that bias_act uses unless told."""

    func: object
    def_alpha: float = 0.0
    def_gain: float = 1.0


# The order is that of the kernels' numbers.
activation_funcs = {
    "linear": Activation(lambda u, alpha: u),
    "relu": Activation(lambda u, alpha: F.relu(u), def_gain=math.sqrt(2)),
    "lrelu": Activation(lambda u, alpha: F.leaky_relu(u, alpha), def_alpha=0.2, def_gain=math.sqrt(2)),
    "tanh": Activation(lambda u, alpha: torch.tanh(u)),
    "sigmoid": Activation(lambda u, alpha: torch.sigmoid(u)),
    "elu": Activation(lambda u, alpha: F.elu(u)),
    "selu": Activation(lambda u, alpha: F.selu(u)),
    "softplus": Activation(lambda u, alpha: F.softplus(u)),
    "swish": Activation(lambda u, alpha: torch.sigmoid(u) * u, def_gain=math.sqrt(2)),
}
LINEAR, RELU, LRELU, TANH, SIGMOID, ELU, SELU, SOFTPLUS, SWISH = map(tl.constexpr if tl else int, range(9))
NUMBERS = {name: number for number, name in enumerate(activation_funcs)}
_PIECEWISE_LINEAR = 3  # the numbers below


def reference(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None):
    """clamp(gain * act(x + b)) in plain PyTorch."""
    f = activation_funcs[act]
    alpha, gain = f.def_alpha if alpha is None else alpha, f.def_gain if gain is None else gain
    if b is not None:
        x = x + b.to(x.dtype).reshape([-1 if i == dim % x.dim() else 1 for i in range(x.dim())])
    x = f.func(x, alpha)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def affine_reference(x, scale, noise, b, act, alpha, gain, clamp):
    """The registered op in plain PyTorch."""
    if scale is not None:
        x = x * scale.reshape(*scale.shape, *[1] * (x.dim() - 2))
    if noise is not None:
        x = x + noise
    return reference(x, b, 1, list(activation_funcs)[act], alpha, gain, clamp)


# --- Triton kernels: a sample is a matrix, of channels by pixels (PLANES) or of pixels by channels. One program per COLS columns
# and STEPS times ROWS = BLOCK / COLS rows of it. Sums over rows stay in registers over the STEPS; sums over columns are
# complete per row. Both are written per block and summed afterwards, in a fixed order. The function's numbers are compile-time
# constants: as arguments they would arrive in float32, too coarse for the float64 kernels. clamp is NaN where there is none. ---


@jit
def exp_minus_one(x):
    """e^x - 1, exact to rounding also near 0."""
    small = x * 0 + 1
    if x.dtype == tl.float64:
        for k in tl.static_range(13, 1, -1):
            small = 1 + small * x * (1 / k)
    else:
        for k in tl.static_range(7, 1, -1):
            small = 1 + small * x * (1 / k)
    return tl.where(tl.abs(x) < 0.35, small * x, tl.exp(x) - 1)


@jit
def log_one_plus(z):
    """log(1 + z) for z in [0, 1], by the series of 2 atanh(z / (2 + z))."""
    s = z / (2 + z)
    series = z * 0
    if z.dtype == tl.float64:
        for k in tl.static_range(17, -1, -1):
            series = series * s * s + 1 / (2 * k + 1)
    else:
        for k in tl.static_range(8, -1, -1):
            series = series * s * s + 1 / (2 * k + 1)
    return 2 * s * series


@jit
def sigmoid(u):
    e = tl.exp(-tl.abs(u))
    return tl.where(u < 0, e, 1) / (1 + e)


@jit
def activated(u, ACT: tl.constexpr, alpha: tl.constexpr):
    a = u
    if ACT == RELU:
        a = tl.where(u > 0, u, u * 0)  # NaN stays NaN
    elif ACT == LRELU:
        a = tl.where(u > 0, u, alpha * u)
    elif ACT == TANH:
        e = exp_minus_one(-2 * tl.abs(u))
        a = tl.where(u < 0, e, -e) / (2 + e)
    elif ACT == SIGMOID:
        a = sigmoid(u)
    elif ACT == ELU:
        a = tl.where(u < 0, exp_minus_one(tl.where(u < 0, u, u * 0)), u)
    elif ACT == SELU:
        a = 1.0507009873554804934 * tl.where(u < 0, 1.6732632423543772848 * exp_minus_one(tl.where(u < 0, u, u * 0)), u)
    elif ACT == SOFTPLUS:
        a = tl.where(u < 0, u * 0, u) + log_one_plus(tl.exp(-tl.abs(u)))
    elif ACT == SWISH:
        a = u * sigmoid(u)
    return a


@jit
def slope(u, a, ACT: tl.constexpr, alpha: tl.constexpr):
    """The derivative of `activated` from its result a; u where that does not tell."""
    d = a * 0 + 1
    if ACT == RELU:
        d = tl.where(a > 0, d, a * 0)
    elif ACT == LRELU:
        if alpha < 0:
            d = tl.where(u > 0, d, d * alpha)
        else:
            d = tl.where(a > 0, d, d * alpha)
    elif ACT == TANH:
        d = 1 - a * a
    elif ACT == SIGMOID:
        d = a * (1 - a)
    elif ACT == ELU:
        d = tl.where(a <= 0, a + 1, 1)
    elif ACT == SELU:
        d = tl.where(a <= 0, a + 1.0507009873554804934 * 1.6732632423543772848, 1.0507009873554804934)
    elif ACT == SOFTPLUS:
        d = -exp_minus_one(-a)
    elif ACT == SWISH:
        s = sigmoid(u)
        d = s + a * (1 - s)
    return d


@jit
def bend(u, a, ACT: tl.constexpr):
    """The derivative of `slope` in a; of swish its derivative in u."""
    d = a * 0
    if ACT == TANH:
        d = -2 * a
    elif ACT == SIGMOID:
        d = 1 - 2 * a
    elif ACT == ELU or ACT == SELU:
        d = tl.where(a <= 0, d + 1, d)
    elif ACT == SOFTPLUS:
        d = tl.exp(-a)
    elif ACT == SWISH:
        s = sigmoid(u)
        d = s * (1 - s) * (2 + u - 2 * a)
    return d


@jit
def first_and_second(
    u, ACT: tl.constexpr, alpha: tl.constexpr, gain: tl.constexpr, clamp: tl.constexpr, FROM_Y: tl.constexpr
):
    """From u: f'(u) and f''(u). From the y that was kept: f' and its derivative in y."""
    if FROM_Y:
        y = u
        a = y * 0 if gain == 0 else y * (1 / gain)
    else:
        a = activated(u, ACT, alpha)
        y = gain * a
    first = gain * slope(u, a, ACT, alpha)
    second = bend(u, a, ACT)
    if clamp == clamp:
        inside = tl.where((y >= clamp) | (y <= -clamp), y * 0, y * 0 + 1)
        first *= inside
        second *= inside
    if not FROM_Y:
        second = second * (gain if ACT == SWISH else first)
    return first, second


@jit
def program_tile(rows, cols, PLANES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, STEPS: tl.constexpr):
    """This program's sample, block of rows, block of columns and first row."""
    row_blocks, col_blocks = tl.cdiv(rows, ROWS * STEPS), tl.cdiv(cols, COLS)
    program = tl.program_id(0)
    row_block = program // col_blocks % row_blocks
    return (program // (row_blocks * col_blocks)).to(tl.int64), row_block, program % col_blocks


@jit
def tile_at(
    sample, row_block, col_block, step, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr, STEPS: tl.constexpr
):
    """Rows (ROWS, 1), columns (1, COLS), offsets and mask of one tile."""
    row = row_block.to(tl.int64) * (ROWS * STEPS) + step * ROWS + tl.arange(0, ROWS)[:, None]
    col = col_block * COLS + tl.arange(0, COLS)[None, :]
    return row, col, (sample * rows + row) * cols + col, (row < rows) & (col < cols)


@jit
def load_channel(ptr, sample, row, col, rows, cols, PLANES: tl.constexpr, PER_SAMPLE: tl.constexpr):
    """A value per channel of the tile."""
    channel, channels = (row, rows) if PLANES else (col, cols)
    at = sample * channels + channel if PER_SAMPLE else channel
    return tl.load(ptr + at, channel < channels, other=0.0)


@jit
def load_pixel(ptr, sample, row, col, rows, cols, PLANES: tl.constexpr, PER_SAMPLE: tl.constexpr):
    pixel, pixels = (col, cols) if PLANES else (row, rows)
    at = sample * pixels + pixel if PER_SAMPLE else pixel
    return tl.load(ptr + at, pixel < pixels, other=0.0)


@jit
def wide(x, ptr):
    """In the dtype of sums, that of the tensor ptr points to."""
    return x.to(tl.float64 if ptr.dtype.element_ty == tl.float64 else tl.float32)


@jit
def moved(
    x, scale_ptr, noise_ptr, b_ptr, sample, row, col, rows, cols,
    PLANES: tl.constexpr, SCALE: tl.constexpr, NOISE: tl.constexpr, BIAS: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr,
):  # fmt: skip
    """scale x + noise + b, of those that are there."""
    if SCALE:
        x = x * load_channel(scale_ptr, sample, row, col, rows, cols, PLANES, True).to(x.dtype)
    if NOISE:
        x = x + load_pixel(noise_ptr, sample, row, col, rows, cols, PLANES, NOISE_PER_SAMPLE).to(x.dtype)
    if BIAS:
        x = x + load_channel(b_ptr, sample, row, col, rows, cols, PLANES, False).to(x.dtype)
    return x


@jit
def bias_act_kernel(
    x_ptr, scale_ptr, noise_ptr, b_ptr, y_ptr, rows, cols,
    ACT: tl.constexpr, alpha: tl.constexpr, gain: tl.constexpr, clamp: tl.constexpr,
    PLANES: tl.constexpr, SCALE: tl.constexpr, NOISE: tl.constexpr, BIAS: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr,
    COLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, row_block, col_block = program_tile(rows, cols, PLANES, BLOCK // COLS, COLS, 1)
    row, col, at, mask = tile_at(sample, row_block, col_block, 0, rows, cols, BLOCK // COLS, COLS, 1)
    x = wide(tl.load(x_ptr + at, mask, other=0.0), x_ptr)
    u = moved(
        x, scale_ptr, noise_ptr, b_ptr, sample, row, col, rows, cols, PLANES, SCALE, NOISE, BIAS, NOISE_PER_SAMPLE
    )
    y = gain * activated(u, ACT, alpha)
    if clamp == clamp:
        y = tl.where(y > clamp, clamp, y)
        y = tl.where(y < -clamp, -clamp, y)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask)


@jit
def store_row_sums(ptr, value, sample, row, col_block, rows, cols, COLS: tl.constexpr):
    at = (sample * tl.cdiv(cols, COLS) + col_block) * rows + row
    tl.store(ptr + at, tl.sum(value, axis=1)[:, None], row < rows)


@jit
def store_col_sums(ptr, value, sample, row_block, col, rows, cols, ROWS: tl.constexpr, STEPS: tl.constexpr):
    at = (sample * tl.cdiv(rows, ROWS * STEPS) + row_block) * cols + col
    tl.store(ptr + at, tl.sum(value, axis=0)[None, :], col < cols)


@jit
def bias_act_bwd_kernel(
    grad_ptr, saved_ptr, scale_ptr, noise_ptr, b_ptr, dx_ptr, d_scale_ptr, d_noise_ptr, d_b_ptr, rows, cols,
    ACT: tl.constexpr, alpha: tl.constexpr, gain: tl.constexpr, clamp: tl.constexpr, FROM_Y: tl.constexpr,
    PLANES: tl.constexpr, SCALE: tl.constexpr, NOISE: tl.constexpr, BIAS: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr,
    COLS: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = BLOCK // COLS
    sample, row_block, col_block = program_tile(rows, cols, PLANES, ROWS, COLS, STEPS)
    accumulator = tl.float64 if saved_ptr.dtype.element_ty == tl.float64 else tl.float32
    t_total = tl.zeros((ROWS, COLS), accumulator)
    xt_total = t_total
    for step in range(STEPS):
        row, col, at, mask = tile_at(sample, row_block, col_block, step, rows, cols, ROWS, COLS, STEPS)
        x = wide(tl.load(saved_ptr + at, mask, other=0.0), saved_ptr)
        grad = wide(tl.load(grad_ptr + at, mask, other=0.0), grad_ptr)
        u = x
        if not FROM_Y:
            u = moved(
                x,
                scale_ptr,
                noise_ptr,
                b_ptr,
                sample,
                row,
                col,
                rows,
                cols,
                PLANES,
                SCALE,
                NOISE,
                BIAS,
                NOISE_PER_SAMPLE,
            )
        first, _ = first_and_second(u, ACT, alpha, gain, clamp, FROM_Y)
        t = grad * first
        dx = moved(t, scale_ptr, noise_ptr, b_ptr, sample, row, col, rows, cols, PLANES, SCALE, False, False, False)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask)
        if PLANES:
            if BIAS:
                store_row_sums(d_b_ptr, t, sample, row, col_block, rows, cols, COLS)
            if SCALE:
                store_row_sums(d_scale_ptr, x * t, sample, row, col_block, rows, cols, COLS)
        elif NOISE:
            store_row_sums(d_noise_ptr, t, sample, row, col_block, rows, cols, COLS)
        t_total += t
        if SCALE and not PLANES:
            xt_total += x * t
    col = col_block * COLS + tl.arange(0, COLS)[None, :]
    if PLANES:
        if NOISE:
            store_col_sums(d_noise_ptr, t_total, sample, row_block, col, rows, cols, ROWS, STEPS)
    else:
        if BIAS:
            store_col_sums(d_b_ptr, t_total, sample, row_block, col, rows, cols, ROWS, STEPS)
        if SCALE:
            store_col_sums(d_scale_ptr, xt_total, sample, row_block, col, rows, cols, ROWS, STEPS)


@jit
def bias_act_bwd_bwd_kernel(
    v_ptr, v_scale_ptr, v_noise_ptr, v_b_ptr, grad_ptr, saved_ptr, scale_ptr, noise_ptr, b_ptr,
    d_grad_ptr, d_saved_ptr, d_scale_ptr, d_noise_ptr, d_b_ptr, rows, cols,
    ACT: tl.constexpr, alpha: tl.constexpr, gain: tl.constexpr, clamp: tl.constexpr, FROM_Y: tl.constexpr,
    PLANES: tl.constexpr, SCALE: tl.constexpr, NOISE: tl.constexpr, BIAS: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr,
    V_SCALE: tl.constexpr, V_NOISE: tl.constexpr, V_BIAS: tl.constexpr, V_NOISE_PER_SAMPLE: tl.constexpr,
    COLS: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = BLOCK // COLS
    sample, row_block, col_block = program_tile(rows, cols, PLANES, ROWS, COLS, STEPS)
    accumulator = tl.float64 if saved_ptr.dtype.element_ty == tl.float64 else tl.float32
    u_total = tl.zeros((ROWS, COLS), accumulator)
    scale_total = u_total
    for step in range(STEPS):
        row, col, at, mask = tile_at(sample, row_block, col_block, step, rows, cols, ROWS, COLS, STEPS)
        x = wide(tl.load(saved_ptr + at, mask, other=0.0), saved_ptr)
        grad = wide(tl.load(grad_ptr + at, mask, other=0.0), grad_ptr)
        v = wide(tl.load(v_ptr + at, mask, other=0.0), v_ptr)
        u = x
        if not FROM_Y:
            u = moved(
                x,
                scale_ptr,
                noise_ptr,
                b_ptr,
                sample,
                row,
                col,
                rows,
                cols,
                PLANES,
                SCALE,
                NOISE,
                BIAS,
                NOISE_PER_SAMPLE,
            )
        first, second = first_and_second(u, ACT, alpha, gain, clamp, FROM_Y)
        t = grad * first
        q = moved(v, scale_ptr, v_noise_ptr, v_b_ptr, sample, row, col, rows, cols, PLANES, SCALE, V_NOISE, V_BIAS,
                  V_NOISE_PER_SAMPLE)  # fmt: skip
        if V_SCALE:
            v_scale = load_channel(v_scale_ptr, sample, row, col, rows, cols, PLANES, True).to(x.dtype)
            q += x * v_scale
        du = q * grad * second
        dx = moved(du, scale_ptr, noise_ptr, b_ptr, sample, row, col, rows, cols, PLANES, SCALE, False, False, False)
        if V_SCALE:
            dx += v_scale * t
        tl.store(d_grad_ptr + at, (q * first).to(d_grad_ptr.dtype.element_ty), mask)
        if not (FROM_Y and ACT <= LRELU):
            tl.store(d_saved_ptr + at, dx.to(d_saved_ptr.dtype.element_ty), mask)
        if not FROM_Y:
            d_scale = x * du + v * t
            if PLANES:
                if BIAS:
                    store_row_sums(d_b_ptr, du, sample, row, col_block, rows, cols, COLS)
                if SCALE:
                    store_row_sums(d_scale_ptr, d_scale, sample, row, col_block, rows, cols, COLS)
            elif NOISE:
                store_row_sums(d_noise_ptr, du, sample, row, col_block, rows, cols, COLS)
            u_total += du
            scale_total += d_scale
    if not FROM_Y:
        col = col_block * COLS + tl.arange(0, COLS)[None, :]
        if PLANES:
            if NOISE:
                store_col_sums(d_noise_ptr, u_total, sample, row_block, col, rows, cols, ROWS, STEPS)
        else:
            if BIAS:
                store_col_sums(d_b_ptr, u_total, sample, row_block, col, rows, cols, ROWS, STEPS)
            if SCALE:
                store_col_sums(d_scale_ptr, scale_total, sample, row_block, col, rows, cols, ROWS, STEPS)


# --- launch ---

_STEPS = 16  # so many tiles are summed in registers: what is written of sums stays a small part of what is read


def _planes_or_rows(x):
    """x, or a contiguous copy when its pixels lie neither as planes of channels nor as rows of channels, in order."""
    if x.numel() == 0:
        return x.new_empty(x.shape)  # its strides mean nothing
    return x if x.is_contiguous() or x.movedim(1, -1).is_contiguous() else x.contiguous()


def _matrices(x, per_sample):
    """(samples, rows, columns, whether rows are channels) of x, samples merged where nothing tells them apart."""
    n, c = x.shape[:2]
    pixels = x.numel() // (n * c)
    if x.is_contiguous() and (pixels > 1 or c == 1):
        return n, c, pixels, True
    return (n, pixels, c, False) if per_sample else (1, n * pixels, c, False)


def _is_shared(noise):
    return noise is not None and noise.shape[0] == 1


def _dense(*sides):
    return [None if side is None else side.contiguous() for side in sides]


def _accumulate(x):
    return torch.promote_types(x.dtype, torch.float32)


class _Launch:
    """What the three launches have in common: the grid, and the constants of layout and function."""

    def __init__(self, x, scale, noise, b, more_noise, act, alpha, gain, clamp, sums):
        self.x = x
        per_sample = scale is not None or _is_shared(noise) or _is_shared(more_noise)
        self.samples, self.rows, self.cols, self.planes = _matrices(x, per_sample)
        self.tile_cols = min(triton.next_power_of_2(self.cols), BLOCK)
        tiles = triton.cdiv(self.rows, BLOCK // self.tile_cols)
        self.steps = (
            min(_STEPS, triton.next_power_of_2(tiles)) if sums and (noise is not None or not self.planes) else 1
        )
        self.row_blocks = triton.cdiv(self.rows, BLOCK // self.tile_cols * self.steps)
        self.col_blocks = triton.cdiv(self.cols, self.tile_cols)
        self.grid = (self.samples * self.row_blocks * self.col_blocks,)
        # the limit is rounded as y is when it is stored: backward recognises it in y
        self.function = (act, alpha, gain, math.nan if clamp is None else float(torch.tensor(clamp, dtype=x.dtype)))
        self.there = (self.planes, scale is not None, noise is not None, b is not None, not _is_shared(noise))

    def partial(self, side, over_rows):
        """Sums per block, over rows or over columns."""
        if side is None:
            return None
        blocks, length = (self.row_blocks, self.cols) if over_rows else (self.col_blocks, self.rows)
        return self.x.new_empty((self.samples, blocks, length), dtype=_accumulate(self.x))

    def partials(self, scale, noise, b):
        return self.partial(scale, not self.planes), self.partial(noise, self.planes), self.partial(b, not self.planes)

    def totals(self, partials, scale, noise, b):
        d_scale, d_noise, d_b = partials
        empty = self.x.new_empty(0, dtype=_accumulate(self.x))
        return (
            empty if scale is None else d_scale.sum(1),
            empty if noise is None else d_noise.sum((0, 1) if _is_shared(noise) else 1).view(noise.shape),
            empty if b is None else d_b.sum((0, 1)),
        )


def _empty_sides(x, scale, noise, b):
    return tuple(x.new_zeros(0 if side is None else side.shape, dtype=_accumulate(x)) for side in (scale, noise, b))


def _bias_act_triton(x, scale, noise, b, act, alpha, gain, clamp):
    x = _planes_or_rows(x)
    y = torch.empty_like(x)
    if x.numel():
        launch = _Launch(x, scale, noise, b, None, act, alpha, gain, clamp, sums=False)
        arguments = (x, *_dense(scale, noise, b), y, launch.rows, launch.cols, *launch.function, *launch.there)
        bias_act_kernel[launch.grid](*arguments, launch.tile_cols, BLOCK)
    return y


def _bias_act_bwd_triton(grad, saved, scale, noise, b, act, alpha, gain, clamp):
    saved = _planes_or_rows(saved)
    dx = torch.empty_like(saved)
    if not saved.numel():
        return dx, *_empty_sides(saved, scale, noise, b)
    launch = _Launch(saved, scale, noise, b, None, act, alpha, gain, clamp, sums=True)
    partials = launch.partials(scale, noise, b)
    bias_act_bwd_kernel[launch.grid](
        in_layout_of(saved, grad), saved, *_dense(scale, noise, b), dx, *partials, launch.rows, launch.cols, *launch.function,
        _keeps_y(scale, act, alpha), *launch.there, launch.tile_cols, launch.steps, BLOCK,
    )  # fmt: skip
    return dx, *launch.totals(partials, scale, noise, b)


def _bias_act_bwd_bwd_triton(v, v_scale, v_noise, v_b, grad, saved, scale, noise, b, act, alpha, gain, clamp):
    saved = _planes_or_rows(saved)
    d_grad = torch.empty_like(saved)
    d_saved = saved.new_empty(0) if _is_straight(scale, act, alpha) else torch.empty_like(saved)
    from_y = _keeps_y(scale, act, alpha)
    if from_y:
        noise = b = None
    if not saved.numel():
        return d_grad, d_saved, *_empty_sides(saved, scale, noise, b)
    launch = _Launch(
        saved, v_scale if scale is None else scale, noise, b, v_noise, act, alpha, gain, clamp, sums=not from_y
    )
    planes, _, *there = launch.there
    partials = launch.partials(scale, noise, b)
    bias_act_bwd_bwd_kernel[launch.grid](
        in_layout_of(saved, v), *_dense(v_scale, v_noise, v_b), in_layout_of(saved, grad), saved, *_dense(scale, noise, b),
        d_grad, d_saved, *partials, launch.rows, launch.cols, *launch.function, from_y, planes, scale is not None, *there,
        v_scale is not None, v_noise is not None, v_b is not None, not _is_shared(v_noise), launch.tile_cols, launch.steps, BLOCK,
    )  # fmt: skip
    return d_grad, d_saved, *launch.totals(partials, scale, noise, b)


# --- fake and derivatives, but for those of csrc/autograd/bias_act.cpp ---


def _keeps_y(scale, act, alpha):
    """Whether backward works from y; kernels and autograd nodes follow the same rule."""
    return scale is None and act != NUMBERS["swish"] and (act != NUMBERS["lrelu"] or alpha >= 0)


def _is_straight(scale, act, alpha):
    """Whether, besides, the derivative of f' in y is zero everywhere."""
    return act < _PIECEWISE_LINEAR and _keeps_y(scale, act, alpha)


def _bwd_bwd_setup_context(ctx, inputs, output):
    *tensors, ctx.act, ctx.alpha, ctx.gain, ctx.clamp = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _bwd_bwd_backward(ctx, w_grad, w_saved, w_scale, w_noise, w_b):
    """Of piecewise-linear functions, in stock ops: with f' a constant pattern m, dg = m q, dx = v_scale m g, d scale = m v g."""
    if ctx.act >= _PIECEWISE_LINEAR:
        refuse_derivative("bias_act_bwd_bwd")(ctx)
    numbers = ctx.act, ctx.alpha, ctx.gain, ctx.clamp
    tensors = ctx.saved_tensors
    if _is_straight(tensors[6], *numbers[:2]):  # m is what the first derivative multiplies with
        gradients = [None] * 9
        if w_grad is not None:
            of_v, _, *of_sides = _op.bias_act_bwd(w_grad, tensors[5], None, *tensors[2:4], *numbers)
            gradients[0] = of_v
            gradients[2:4] = (None if t is None else g.to(t.dtype) for t, g in zip(tensors[2:4], of_sides))
        return *gradients, None, None, None, None
    saved, *sides = (None if t is None else t.detach() for t in tensors[5:])
    kept = _op.bias_act(
        saved, *sides, *(numbers if _keeps_y(None, *numbers[:2]) else (NUMBERS["linear"], 0.0, 1.0, None))
    )
    m = _op.bias_act_bwd(torch.ones_like(kept), kept, None, None, None, *numbers)[0]

    def along_channels(t):
        return None if t is None else t.reshape(*t.shape, *[1] * (m.dim() - 2))

    def total(*products):
        """The sum of those products of which every factor is there."""
        there = [math.prod(factors) for factors in products if all(f is not None for f in factors)]
        return sum(there) * m if there else None

    v, v_scale, v_noise, v_b, grad, saved, scale, _, _ = tensors
    w_scale = None if scale is None else along_channels(w_scale)
    s, v_s = 1 if scale is None else along_channels(scale), along_channels(v_scale)
    gradients = (
        total((s, w_grad), (w_scale, grad)),
        total((saved, w_grad), (grad, w_saved)),
        total((w_grad,)),
        total((w_grad,)),
        total((v_s, w_saved), (w_scale, v)),
        total((v_s, w_grad)),
        total((v, w_grad)),
    )

    def of(t, gradient):
        if t is None or gradient is None:
            return None
        shape = along_channels(t).shape if t.dim() < m.dim() else t.shape
        return gradient.sum_to_size(shape).reshape(t.shape).to(t.dtype)

    return *(of(t, gradient) for t, gradient in zip(tensors, gradients)), None, None, None, None, None, None


def _fake(x, scale, noise, b, act, alpha, gain, clamp):
    return torch.empty_like(_planes_or_rows(x))


def _bwd_fake(grad, saved, scale, noise, b, act, alpha, gain, clamp):
    return torch.empty_like(_planes_or_rows(saved)), *_empty_sides(saved, scale, noise, b)


def _bwd_bwd_fake(v, v_scale, v_noise, v_b, grad, saved, scale, noise, b, act, alpha, gain, clamp):
    out = _planes_or_rows(saved)
    if _keeps_y(scale, act, alpha):
        noise = b = None
    d_saved = saved.new_empty(0) if _is_straight(scale, act, alpha) else torch.empty_like(out)
    return torch.empty_like(out), d_saved, *_empty_sides(saved, scale, noise, b)


register("bias_act", fake=_fake, cuda=_bias_act_triton, cpp_autograd=True)
register("bias_act_bwd", fake=_bwd_fake, cuda=_bias_act_bwd_triton, cpp_autograd=True)
register(
    "bias_act_bwd_bwd",
    fake=_bwd_bwd_fake,
    backward=_bwd_bwd_backward,
    setup_context=_bwd_bwd_setup_context,
    cuda=_bias_act_bwd_bwd_triton,
    partly=True,
)


def check_side(op: str, name: str, value, x: torch.Tensor) -> None:
    """A tensor that is added to or multiplied with x: on its device, of its dtype or the one of sums."""
    check_tensor(op, name, value)
    if value.dtype not in (x.dtype, _accumulate(x)):
        or_wide = "" if x.dtype == _accumulate(x) else f", or {str(_accumulate(x))[6:]}"
        raise TypeError(
            f"gankernels.{op}: {name} must have the dtype of x, {str(x.dtype)[6:]}{or_wide}, got {str(value.dtype)[6:]}."
        )
    if value.device != x.device:
        raise ValueError(f"gankernels.{op}: {name} must be on the device of x, {x.device}, got {value.device}.")


def check_function(op: str, act, alpha, gain, clamp) -> tuple:
    """The registered op's (act, alpha, gain, clamp)."""
    if not isinstance(act, str) or act not in activation_funcs:
        raise ValueError(f"gankernels.{op}: act must be one of {', '.join(activation_funcs)}, got {got(act)}.")
    f = activation_funcs[act]
    alpha, gain = f.def_alpha if alpha is None else alpha, f.def_gain if gain is None else gain
    check_number(op, "alpha", alpha)
    check_number(op, "gain", gain)
    if clamp is not None:
        check_number(op, "clamp", clamp, 0)
    return NUMBERS[act], float(alpha), float(gain), None if clamp is None else float(clamp)


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> torch.Tensor:
    """y = clamp(gain * act(x + b)): bias, activation, gain and clamp in one pass over memory.

    Args:
        x: of any shape.
        b: (C,) with C = x.shape[dim], in x's dtype or float32; None for no bias.
        dim: the dimension of x that b belongs to.
        act: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus or swish.
        alpha: the slope of lrelu for negative values, default 0.2; the others have none.
        gain: default 1; sqrt(2) for relu, lrelu and swish. `activation_funcs[act]` has both defaults, def_alpha and def_gain.
        clamp: limits y to [-clamp, clamp]; None for no limit.

    Returns: x's shape, dtype and memory format. Differentiable to any order in x and b for linear, relu and lrelu, twice for the others;
    beyond that it raises. At 0 the slope of relu is 0 and of lrelu alpha; at the limits of the clamp it is 0.

    Forward reads x and writes y. Backward reads the gradient and what was kept, and writes dx; db comes from the same pass, in a
    fixed order of summation. Kept is y, which the next layer keeps anyway; x for swish, and for lrelu with alpha < 0; nothing for
    linear without clamp. x that is neither contiguous nor channels_last is copied first.

    Raises: TypeError or ValueError for an integer tensor, b of another shape, dtype or device, an unknown act, or a clamp < 0.

    Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" and its successors.
    """
    check_tensor("bias_act", "x", x)
    numbers = check_function("bias_act", act, alpha, gain, clamp)
    if b is None:
        return _op.bias_act(x if x.dim() > 1 else x.reshape(1, -1), None, None, None, *numbers).view(x.shape)
    if isinstance(dim, bool) or not isinstance(dim, int) or not -x.dim() <= dim < x.dim():
        raise ValueError(f"gankernels.bias_act: dim must name a dimension of x of shape {shape(x)}, got {got(dim)}.")
    check_side("bias_act", "b", b, x)
    dim %= x.dim()
    if b.shape != (x.shape[dim],):
        raise ValueError(f"gankernels.bias_act: b must have shape (C,) = ({x.shape[dim]},), got {shape(b)}.")
    if dim == 1:
        return _op.bias_act(x, None, None, b, *numbers)
    y = _op.bias_act(x.flatten(0, dim - 1) if dim else x.unsqueeze(0), None, None, b, *numbers)
    return y.view(x.shape)
