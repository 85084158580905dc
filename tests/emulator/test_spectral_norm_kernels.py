"""Spectral normalisation: memory (slices, rows, inner) is a matrix of `rows` rows, its columns turned by `leading`."""

import numpy as np
import pytest
from arrays import DTYPES, EPS, decode, encode

# (rows, slices, inner, leading): whole rows of several tiles and parts, of odd length, channels_last columns, one row,
# one column; slices as of transposed convolutions, contiguous and channels_last, and wider than they are many
SHAPES = [
    (34, 1, 1040, 1040),
    (9, 1, 27, 27),
    (13, 1, 45, 5),
    (1, 1, 300, 300),
    (33, 1, 1, 1),
    (12, 34, 8, 272),
    (5, 35, 9, 315),
    (40, 33, 1, 33),
    (3, 2, 30, 60),
    (7, 24, 1, 6),
]

# an offset of one element is not aligned for 128-bit accesses
each_dtype_and_offset = pytest.mark.parametrize(
    "dtype, offset", [*((dtype, 0) for dtype in DTYPES), ("float32", 1), ("float16", 1)]
)


class Layer:
    def __init__(self, shape, dtype, random, offset=0):
        self.shape, (self.rows, self.slices, self.inner, leading) = shape, shape
        self.columns = self.slices * self.inner
        place = np.arange(self.columns)
        self.column = place % leading * (self.columns // leading) + place // leading
        self.dtype, self.random, self.offset = dtype, random, offset
        self.weight = self.normal()
        self.u, self.v = (encode(random.normal(size=n), dtype) for n in (self.rows, self.columns))

    def normal(self):
        n = self.rows * self.columns
        return encode(self.random.normal(size=n + self.offset), self.dtype)[self.offset :]

    def empty(self):
        return encode(np.full(self.rows * self.columns + self.offset, np.nan), self.dtype)[self.offset :]

    def matrix(self, memory):
        places = (
            decode(memory)
            .reshape(self.slices, self.rows, self.inner)
            .transpose(1, 0, 2)
            .reshape(self.rows, self.columns)
        )
        matrix = np.empty_like(places)
        matrix[:, self.column] = places
        return matrix


def group(dtype, offset=0, shapes=SHAPES):
    random = np.random.default_rng(0)
    layers = [Layer(shape, dtype, random, offset) for shape in shapes]
    accumulate = np.float64 if dtype == "float64" else np.float32
    uv = np.full(sum(layer.rows + layer.columns for layer in layers), np.nan, accumulate)
    return layers, uv, np.full(len(layers), np.nan, accumulate)


def split(layers, uv):
    at = 0
    for layer in layers:
        yield (
            uv[at : at + layer.rows].astype(float),
            uv[at + layer.rows : at + layer.rows + layer.columns].astype(float),
        )
        at += layer.rows + layer.columns


def iterate(emulator, layers, uv, sigma, iterations, eps=1e-12):
    arrays = ([getattr(layer, name) for layer in layers] for name in ("weight", "u", "v", "shape"))
    return emulator.spectral_norm_power_iteration(*arrays, uv, sigma, iterations, eps)


def assert_close(got, want, dtype, units=8):
    error = np.abs(got - want).max()
    assert error <= units * EPS[dtype] * max(np.abs(want).max(), 1e-30), (error, np.abs(want).max())


@each_dtype_and_offset
@pytest.mark.parametrize("iterations, eps", [(0, 1e-12), (2, 1e-12), (1, 30.0)])
def test_power_iteration(emulator, dtype, offset, iterations, eps):
    layers, uv, sigma = group(dtype, offset)
    wants = []
    for layer in layers:
        matrix, u, v = layer.matrix(layer.weight), decode(layer.u), decode(layer.v)
        for _ in range(iterations):
            u = matrix @ v
            u /= max(np.linalg.norm(u), eps)
            v = matrix.T @ u
            v /= max(np.linalg.norm(v), eps)
        wants.append((u, v, u @ matrix @ v))
    assert iterate(emulator, layers, uv, sigma, iterations, eps) == (3 if iterations == 0 else 1 + 4 * iterations)
    sums = "float64" if dtype == "float64" else "float32"
    for layer, (u, v), s, want in zip(layers, split(layers, uv), sigma, wants):
        assert_close(u, want[0], sums, 64)
        assert_close(v, want[1], sums, 64)
        # without iterations sigma is a sum that cancels
        assert_close(s, want[2], sums, 64 if iterations else 4096)
        assert_close(decode(layer.u), want[0], dtype, 64 if dtype == sums else 1)
        assert_close(decode(layer.v), want[1], dtype, 64 if dtype == sums else 1)


@each_dtype_and_offset
def test_normalize_and_derivatives(emulator, dtype, offset):
    layers, uv, sigma = group(dtype, offset)
    iterate(emulator, layers, uv, sigma, 1)
    weights, shapes = [layer.weight for layer in layers], [layer.shape for layer in layers]
    g, h = ([layer.normal() for layer in layers] for _ in range(2))
    normalized, dw, g_out, w_out = ([layer.empty() for layer in layers] for _ in range(4))
    emulator.spectral_normalize(weights, normalized, sigma)
    assert emulator.spectral_normalize_gradients([], g, weights, [], dw, shapes, uv, sigma) == 3
    assert emulator.spectral_normalize_gradients(h, g, weights, g_out, w_out, shapes, uv, sigma) == 3
    for i, (layer, (u, v)) in enumerate(zip(layers, split(layers, uv))):
        s, uv_t = float(sigma[i]), np.outer(u, v)
        big_w, big_g, big_h = (layer.matrix(x[i]) for x in (weights, g, h))
        q, hg, gw = u @ big_h @ v, (big_h * big_g).sum(), (big_g * big_w).sum()
        units = 64 if dtype in ("float64", "float32") else 2
        assert_close(layer.matrix(normalized[i]), big_w / s, dtype, units)
        assert_close(layer.matrix(dw[i]), big_g / s - gw / s**2 * uv_t, dtype, units)
        assert_close(layer.matrix(g_out[i]), big_h / s - q / s**2 * big_w, dtype, units)
        want = -q / s**2 * big_g + (2 * gw * q / s**3 - hg / s**2) * uv_t
        assert_close(layer.matrix(w_out[i]), want, dtype, 8 * units)


def test_huge_and_tiny_weights(emulator):
    for scale in (1e-25, 1e25):
        layers, uv, sigma = group("float32", shapes=[(9, 1, 27, 27), (5, 35, 9, 315)])
        for layer in layers:
            layer.weight *= np.float32(scale)
        iterate(emulator, layers, uv, sigma, 1, 0.0)
        for layer, (u, v), s in zip(layers, split(layers, uv), sigma):
            assert_close(u @ layer.matrix(layer.weight) @ v, float(s), "float32", 64)
            np.testing.assert_allclose([np.linalg.norm(u), np.linalg.norm(v)], 1, rtol=1e-5)


def test_nan_and_zero(emulator):
    layers, uv, sigma = group("float32", shapes=[(3, 1, 4, 4), (3, 1, 4, 4)])
    layers[0].weight[:], layers[1].weight[:] = np.nan, 0
    iterate(emulator, layers, uv, sigma, 1)
    (u, v), (u0, v0) = split(layers, uv)
    assert np.isnan([*u, *v, sigma[0]]).all() and not np.any([*u0, *v0, sigma[1]])


@pytest.mark.parametrize("count, tables, gradient_tables", [(32, 1, 1), (33, 1, 1), (508, 2, 2)])
def test_many_layers_in_few_launches(loaded, count, tables, gradient_tables):
    loaded.set_order(loaded.Order.ascending)
    layers, uv, sigma = group(
        "float32", shapes=[(3, 1, 4, 4), (2, 3, 2, 6)] * (count // 2) + [(1, 1, 2, 2)] * (count % 2)
    )
    assert iterate(loaded, layers, uv, sigma, 0) == 3 * tables
    grads, out = [layer.normal() for layer in layers], [layer.empty() for layer in layers]
    weights, shapes = [layer.weight for layer in layers], [layer.shape for layer in layers]
    assert loaded.spectral_normalize_gradients([], grads, weights, [], out, shapes, uv, sigma) == 3 * gradient_tables
    for i in (0, count // 2, count - 1):
        u, v = list(split(layers, uv))[i]
        s, matrix, g = float(sigma[i]), layers[i].matrix(weights[i]), layers[i].matrix(grads[i])
        np.testing.assert_allclose(s, u @ matrix @ v, rtol=1e-4)
        want = g / s - (g * matrix).sum() / s**2 * np.outer(u, v)
        np.testing.assert_allclose(layers[i].matrix(out[i]), want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_beyond_2_to_the_31_elements(last_block):
    weights, out = np.zeros((2, 2**31 + 4096), np.uint16)
    weights[-5:] = encode(np.arange(5.0), "bfloat16")
    last_block.spectral_normalize([weights], [out], np.array([2.0], np.float32))
    assert decode(out[-5:]).tolist() == [0, 0.5, 1, 1.5, 2]
