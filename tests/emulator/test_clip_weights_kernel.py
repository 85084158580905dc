import mmap

import numpy as np
import pytest
from arrays import DTYPES, decode, encode

SIZES = (0, 1, 7, 255, 1024, 4096, 4097, 3 * 4096 + 5)


def clip(values, c, dtype):
    bound = decode(encode(np.array([c]), dtype))[0]
    return np.where(values > bound, bound, np.where(values < -bound, -bound, values))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])  # elements: the second is not aligned for 128-bit accesses
def test_values(emulator, dtype, offset):
    random = np.random.default_rng(0)
    weights = [encode(random.normal(scale=0.02, size=n + offset), dtype)[offset:] for n in SIZES]
    weights[-1][[0, 5000, -1]] = encode(np.array([np.nan, np.inf, -np.inf]), dtype)
    expected = [clip(decode(w), 0.01, dtype) for w in weights]
    assert emulator.clip_weights(weights, 0.01) == 1
    for w, want in zip(weights, expected):
        np.testing.assert_array_equal(decode(w), want)


@pytest.mark.parametrize("tensors, launches", [(48, 1), (49, 1), (1625, 1), (1626, 2)])
def test_many_tensors_in_few_launches(emulator, tensors, launches):
    weights = [np.linspace(-1, 1, 2 + t % 5) for t in range(tensors)]
    expected = [np.clip(w, -0.5, 0.5) for w in weights]
    assert emulator.clip_weights(weights, 0.5) == launches
    assert all(np.array_equal(w, want) for w, want in zip(weights, expected))


def test_all_in_range_writes_nothing(emulator):
    page = mmap.mmap(-1, 65536)
    page.write(np.full(16384, 0.01, np.float32).tobytes())
    weights = np.frombuffer(page, np.float32)
    # a write to read-only memory would end the process
    libc = __import__("ctypes").CDLL(None, use_errno=True)
    address = weights.__array_interface__["data"][0]
    assert libc.mprotect(__import__("ctypes").c_void_p(address), 65536, mmap.PROT_READ) == 0
    emulator.clip_weights([weights], 0.5)
    libc.mprotect(__import__("ctypes").c_void_p(address), 65536, mmap.PROT_READ | mmap.PROT_WRITE)


def test_beyond_2_to_the_31_elements(last_block):
    weights = np.zeros(2**31 + 4096, np.uint16)
    weights[-5:] = encode(np.arange(5.0), "bfloat16")
    last_block.clip_weights([weights], 2.0)
    assert decode(weights[-5:]).tolist() == [0, 1, 2, 2, 2]
