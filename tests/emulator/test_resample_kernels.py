import numpy as np
import pytest
from arrays import DTYPES, EPS, decode, encode

SHORT, LONG = np.array([1.0, 3, 3, 1]), np.array([0.2, -0.4, 0.7, 1.1, 2.3, 3.1, 2.9, 2.2, 1.3, 0.6, -0.3, 0.1])
MATRIX = np.array([[0.5, -1.0, 0.25, 2.0], [1.5, 0.75, -0.5, 1.0], [0.1, 0.3, 2.0, -0.7]])


def along_axis(x, axis, taps, up, down, pad, out):
    """out[o] = sum of taps[k] u[o down + k - pad], u being x with zeros inserted."""
    x = np.moveaxis(x, axis, -1)
    y = np.zeros((*x.shape[:-1], out))
    for o in range(out):
        for k, tap in enumerate(taps):
            i, rest = divmod(o * down + k - pad, up)
            if rest == 0 and 0 <= i < x.shape[-1]:
                y[..., o] += tap * x[..., i]
    return np.moveaxis(y, -1, axis)


def resampled(x, f, across, along, flip):
    f = f if flip else np.flip(f)
    if f.ndim == 1:
        return along_axis(along_axis(x, 2, f, *along), 3, f, *across)
    rows = [along_axis(x, 3, row, *across) for row in f]
    return sum(along_axis(r, 2, np.eye(len(f))[k], *along) for k, r in enumerate(rows))


def side(size, up, down, pad, out):
    return (up, down, pad, size, out)


def taps_for(f, dtype):
    return f.astype("float64" if dtype == "float64" else "float32")


def in_memory(x, channels_last):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if channels_last else np.ascontiguousarray(x)


def logical(x, channels_last):
    return np.moveaxis(x, -1, 1) if channels_last else x


def assert_close(got, want, dtype):
    assert np.abs(got - want).max() <= 16 * EPS[dtype] * np.abs(want).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "f, across, along, flip",  # axes: up, down, pad, out
    [
        (SHORT, (2, 1, 2, 70), (2, 1, 1, 9), False),
        (LONG, (1, 2, 5, 18), (1, 2, -3, 2), True),
        (MATRIX, (3, 2, 3, 40), (2, 3, -1, 3), False),
    ],
)
def test_upfirdn2d(emulator, f, across, along, flip, channels_last, dtype):
    x = encode(np.random.default_rng(0).normal(size=(2, 11, 5, 34)), dtype)
    want = 0.7 * resampled(decode(x), f, across, along, flip)
    y = in_memory(encode(np.full(want.shape, np.nan), dtype), channels_last)
    sides = (side(34, *across), side(5, *along))
    emulator.upfirdn2d(in_memory(x, channels_last), y, taps_for(f, dtype), *sides, flip, 0.7, channels_last)
    assert_close(decode(logical(y, channels_last)), want, dtype)


# A forward: the upsampled image is 39 x 43 and not padded before the second filter.
UPSAMPLE, DOWNSAMPLE = ((2, 1, 9, 43), (2, 1, 10, 39)), ((1, 3, 0, 14), (1, 3, 0, 13))
GAIN, SLOPE, CLAMP = 1.3, 0.2, 2.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("filters", [(LONG, MATRIX), (MATRIX, SHORT)], ids=["long_matrix", "matrix_short"])
def test_filtered_lrelu(emulator, filters, channels_last, dtype):
    random = np.random.default_rng(0)
    x, bias = encode(random.normal(size=(1, 5, 16, 18)), dtype), encode(random.normal(size=5), dtype)
    fu, fd = filters
    middle = resampled(decode(x) + decode(bias)[:, None, None], fu, *UPSAMPLE, False)
    value = GAIN * np.where(middle > 0, middle, SLOPE * middle)
    want = resampled(np.clip(value, -CLAMP, CLAMP), fd, *DOWNSAMPLE, False)
    codes = np.where(middle > 0, 0, 1) | np.where(np.abs(value) > CLAMP, 2, 0)
    sides = [side(18, *UPSAMPLE[0]), side(16, *UPSAMPLE[1]), side(43, *DOWNSAMPLE[0]), side(39, *DOWNSAMPLE[1])]
    mask = in_memory(np.zeros((1, 5, 39, 11), np.uint8), channels_last)
    for kept in (None, mask):
        y = in_memory(encode(np.full(want.shape, np.nan), dtype), channels_last)
        emulator.filtered_lrelu(
            in_memory(x, channels_last), bias, y, kept, False, taps_for(fu, dtype), taps_for(fd, dtype), sides, False, GAIN,
            SLOPE, CLAMP, channels_last,
        )  # fmt: skip
        assert_close(decode(logical(y, channels_last)), want, dtype)
    bits = np.stack([logical(mask, channels_last) >> shift & 3 for shift in (0, 2, 4, 6)], -1).reshape(1, 5, 39, 44)
    used = 12 * 3 + fd.shape[0], 13 * 3 + fd.shape[-1]  # what the second filter reaches
    sure = np.abs(middle) > 1e-3
    sure &= np.abs(np.abs(value) - CLAMP) > 1e-3
    same = bits[..., :43] == codes
    assert np.all((same | ~sure)[:, :, : used[0], : used[1]])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_filtered_lrelu_with_the_mask(emulator, channels_last, dtype):
    random = np.random.default_rng(0)
    x, bits = encode(random.normal(size=(2, 3, 9, 21)), dtype), random.integers(0, 4, (2, 3, 20, 48), dtype=np.uint8)
    up, down = ((2, 1, 5, 46), (2, 1, -2, 20)), ((1, 2, 3, 25), (1, 2, -1, 10))
    factor = np.where(bits[..., :46] >= 2, 0, np.where(bits[..., :46] == 1, GAIN * SLOPE, GAIN))
    want = resampled(factor * resampled(decode(x), LONG, *up, True), MATRIX, *down, True)
    mask = sum(bits[..., q::4] << 2 * q for q in range(4)).astype(np.uint8)
    y = in_memory(encode(np.full(want.shape, np.nan), dtype), channels_last)
    sides = [side(21, *up[0]), side(9, *up[1]), side(46, *down[0]), side(20, *down[1])]
    emulator.filtered_lrelu(
        in_memory(x, channels_last), None, y, in_memory(mask, channels_last), True, taps_for(LONG, dtype),
        taps_for(MATRIX, dtype), sides, True, GAIN, SLOPE, 0.0, channels_last,
    )  # fmt: skip
    assert_close(decode(logical(y, channels_last)), want, dtype)


@pytest.mark.parametrize("channels_last", [False, True])
def test_beyond_2_to_the_31_elements(last_block, channels_last):
    """The last pixels of the last of three images."""
    shape = (3, 16387, 16387, 3) if channels_last else (3, 3, 16387, 16387)
    x, y = np.zeros((2, *shape), np.uint16)
    x.reshape(-1)[-3:] = encode(np.arange(1.0, 4.0), "bfloat16")
    sides = [(1, 1, 0, 16387, 16387)] * 2
    last_block.upfirdn2d(x, y, np.ones(1, np.float32), *sides, False, 2.0, channels_last)
    assert decode(y.reshape(-1)[-3:]).tolist() == [2, 4, 6]
