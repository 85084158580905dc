"""The emulator itself: right values from right kernels, a clear sentence from wrong ones."""

import numpy as np
import pytest


def test_block_sum(emulator):
    x = np.random.default_rng(0).normal(size=(5, 256)).astype(np.float32)
    sums = np.zeros(5, np.float32)
    emulator.block_sum(x, sums)
    np.testing.assert_allclose(sums, x.astype(np.float64).sum(1), rtol=1e-5)


def test_warp_operations(emulator):
    x = np.arange(32, dtype=np.float32)
    y = np.full((8, 32), -1, np.float32)
    emulator.warp_operations(x, y)
    lane = np.arange(32)
    assert (y[0] == 5).all()
    assert (y[1] == lane // 8 * 8 + (lane + 3) % 8).all()
    assert (y[2] == lane ^ 7).all()
    assert (y[3] == np.where(lane % 16 < 14, lane + 2, lane)).all()
    assert (y[4] == np.where(lane >= 3, lane - 3, lane)).all()
    assert (y[5] == 21).all()
    assert (y[6] == 1).all()
    assert (y[7, :16] == lane[:16] ^ 1).all() and (y[7, 16:] == -1).all()


def reverse(module, barrier):
    x = np.arange(4 * 96, dtype=np.float32)
    y = np.full_like(x, np.nan)
    module.reverse(x, y, 96, barrier)
    return np.array_equal(y.reshape(4, 96), x.reshape(4, 96)[:, ::-1])


def test_dynamic_shared_memory(emulator):
    assert reverse(emulator, barrier=True)


def test_a_missing_barrier_is_caught(emulator):
    assert not reverse(emulator, barrier=False)


def test_unwritten_shared_memory_is_nan(emulator):
    emulator.shared_write(np.zeros(32, np.float32), False)
    y = np.zeros(32, np.float32)
    emulator.unwritten(y)
    assert np.isnan(y[7]) and (np.delete(y, 7) == 1).all()


@pytest.mark.parametrize(
    "kernel, places",
    [
        ("exit_before_barrier", ["waits at __syncthreads", "has exited"]),
        ("two_barriers", ["waits at __syncthreads", "waits at __syncthreads"]),
        ("absent_lane", ["waits at __shfl_sync", "waits at __syncthreads"]),
    ],
)
def test_divergence_is_caught(emulator, kernel, places):
    y = np.zeros(64, np.float32)
    with pytest.raises(RuntimeError, match="divergence: thread .* of block .*") as error:
        getattr(emulator, kernel)(y)
    text = str(error.value)
    assert all(text.count(place) >= places.count(place) for place in places) and "bindings.cpp:" in text
    assert reverse(emulator, barrier=True)  # and the next launch is unharmed
