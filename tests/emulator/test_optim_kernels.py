"""Several steps of the optimiser kernels against the formulas in float64."""

import itertools

import numpy as np
import pytest
from arrays import DTYPES, EPS, decode, encode

SIZES = (3, 4096, 4096 + 130, 0)
STEPS = 3


def tensors(seed, dtype, offset):
    """Values of either sign, none so small that its square is subnormal in float16."""
    random = np.random.default_rng(seed)
    values = [random.uniform(0.1, 0.5, n + offset) * random.choice([-1, 1], n + offset) for n in SIZES]
    return [encode(v, dtype)[offset:] for v in values]


def zeros(like, wanted=True):
    return [np.zeros_like(t) for t in like] if wanted else []


def clip(w, c):
    return np.clip(w, -c, c)


def rounded(values, dtype):
    return decode(encode(values, dtype))


def run_rmsprop(emulator, dtype, offset=0, lr_tensor=None, *, momentum=0.0, centered=False, weight_decay=0.0,
                maximize=False, clip_to=np.inf, with_ema=False):  # fmt: skip
    weights = tensors(0, dtype, offset)
    lists = dict(
        square_avgs=zeros(weights), momentum_buffers=zeros(weights, momentum > 0), grad_avgs=zeros(weights, centered),
        ema=[w.copy() for w in weights] if with_ema else [],
    )  # fmt: skip
    numbers = dict(alpha=0.9, eps=1e-8, weight_decay=weight_decay, momentum=momentum, maximize=maximize, clip=clip_to)
    want, ema = ([decode(w) for w in weights] for _ in range(2))
    square, buffer, average = ([np.zeros(n) for n in SIZES] for _ in range(3))
    for step in range(STEPS):
        grads = tensors(step + 1, dtype, offset)
        emulator.rmsprop(weights=weights, grads=grads, **lists, **numbers, lr_tensor=lr_tensor, lr=0.01, ema_decay=0.75)
        for i, grad in enumerate(grads):
            g = (-1 if maximize else 1) * decode(grad) + weight_decay * want[i]
            square[i] = 0.9 * square[i] + 0.1 * g * g
            variance = square[i]
            if centered:
                average[i] = 0.9 * average[i] + 0.1 * g
                variance = variance - average[i] ** 2
            direction = g / (np.sqrt(variance) + 1e-8)
            if momentum:
                direction = buffer[i] = momentum * buffer[i] + direction
            want[i] = rounded(clip(want[i] - 0.01 * direction, clip_to), dtype)
            square[i], average[i], buffer[i] = (rounded(t[i], dtype) for t in (square, average, buffer))
            ema[i] = rounded(0.75 * ema[i] + 0.25 * want[i], dtype)
    got = [weights, lists["square_avgs"], lists["momentum_buffers"], lists["grad_avgs"], lists["ema"]]
    return got, [want, square, buffer, average, ema]


def run_adam(emulator, dtype, offset=0, lr_tensor=None, *, amsgrad=False, weight_decay=0.0, decoupled=False,
             maximize=False, clip_to=np.inf, with_ema=False):  # fmt: skip
    weights = tensors(0, dtype, offset)
    lists = dict(
        exp_avgs=zeros(weights), exp_avg_sqs=zeros(weights), max_exp_avg_sqs=zeros(weights, amsgrad),
        ema=[w.copy() for w in weights] if with_ema else [], steps=[np.zeros(1, np.float32) for _ in weights],
    )  # fmt: skip
    numbers = dict(beta1=0.5, beta2=0.9, eps=1e-8, weight_decay=weight_decay, decoupled_weight_decay=decoupled)
    numbers.update(maximize=maximize, clip=clip_to)
    want, ema = ([decode(w) for w in weights] for _ in range(2))
    first, second, largest = ([np.zeros(n) for n in SIZES] for _ in range(3))
    for step in range(1, STEPS + 1):
        grads = tensors(step, dtype, offset)
        emulator.adam(weights=weights, grads=grads, **lists, **numbers, lr_tensor=lr_tensor, lr=0.01, ema_decay=0.75)
        for i, grad in enumerate(grads):
            g = (-1 if maximize else 1) * decode(grad)
            if decoupled:
                want[i] = want[i] * (1 - 0.01 * weight_decay)
            else:
                g = g + weight_decay * want[i]
            first[i] = 0.5 * first[i] + 0.5 * g
            second[i] = 0.9 * second[i] + 0.1 * g * g
            largest[i] = np.maximum(largest[i], second[i])
            moment = largest[i] if amsgrad else second[i]
            denominator = np.sqrt(moment) / np.sqrt(1 - 0.9**step) + 1e-8
            want[i] = rounded(clip(want[i] - 0.01 / (1 - 0.5**step) * first[i] / denominator, clip_to), dtype)
            first[i], second[i], largest[i] = (rounded(t[i], dtype) for t in (first, second, largest))
            ema[i] = rounded(0.75 * ema[i] + 0.25 * want[i], dtype)
    assert all(step == STEPS for step in lists["steps"])
    got = [weights, lists["exp_avgs"], lists["exp_avg_sqs"], lists["max_exp_avg_sqs"], lists["ema"]]
    return got, [want, first, second, largest, ema]


def check(got, want, dtype):
    """Arithmetic is in float32 at least, storage in dtype: a step may round to the other neighbour."""
    for got_list, want_list in zip(got, want):
        for a, b in zip(got_list, want_list):
            np.testing.assert_allclose(
                decode(a), b, rtol=8 * EPS[dtype], atol=8 * EPS[dtype] * np.abs(b).max(initial=0)
            )


RMSPROP = [
    dict(momentum=momentum, centered=centered, weight_decay=0.1 * other, maximize=other, clip_to=clip_to, with_ema=ema)
    for momentum, centered, (other, clip_to, ema) in itertools.product(
        (0.0, 0.9), (False, True), ((False, np.inf, False), (True, 0.3, True))
    )
]
ADAM = [
    dict(amsgrad=amsgrad, weight_decay=decay, decoupled=decoupled, maximize=other, clip_to=clip_to, with_ema=ema)
    for amsgrad, (decay, decoupled), (other, clip_to, ema) in itertools.product(
        (False, True), ((0.0, False), (0.1, False), (0.1, True)), ((False, np.inf, False), (True, 0.3, True))
    )
]


@pytest.mark.parametrize("options", RMSPROP)
def test_rmsprop(emulator, options):
    check(*run_rmsprop(emulator, "float64", **options), "float64")


@pytest.mark.parametrize("options", ADAM)
def test_adam(emulator, options):
    check(*run_adam(emulator, "float64", **options), "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])  # elements: the second is not aligned for 128-bit accesses
def test_dtypes(emulator, dtype, offset):
    check(*run_rmsprop(emulator, dtype, offset, momentum=0.5, clip_to=0.3, with_ema=True), dtype)
    check(*run_adam(emulator, dtype, offset, amsgrad=True, clip_to=0.3, with_ema=True), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_learning_rate_on_the_device(emulator, dtype):
    for run in (run_rmsprop, run_adam):
        by_number, _ = run(emulator, "float32")
        by_tensor, _ = run(emulator, "float32", lr_tensor=np.array([0.01], dtype))
        for a, b in zip(by_number[0], by_tensor[0]):
            np.testing.assert_array_equal(a, b)


def test_beyond_2_to_the_31_elements(last_block):
    """What one step makes of the end of huge tensors is what it makes of small ones."""
    ones = encode(np.ones(5), "bfloat16")

    def end_of_one_step(size, step, *states):
        lists = {name: [np.zeros(size, np.uint16)] for name in ("weights", "grads", *states)}
        lists["weights"][0][-5:] = lists["grads"][0][-5:] = ones
        step(lists)
        return [tensors[0][-5:].tolist() for tensors in lists.values()]

    def rmsprop(lists):
        last_block.rmsprop(
            **lists, momentum_buffers=[], grad_avgs=[], ema=[], lr_tensor=None, lr=0.1, alpha=0.9, eps=1e-8, weight_decay=0.0,
            momentum=0.0, maximize=False, clip=np.inf, ema_decay=0.0,
        )  # fmt: skip

    def adam(lists):
        last_block.adam(
            **lists, max_exp_avg_sqs=[], ema=[], steps=[np.zeros(1, np.float32)], lr_tensor=None, lr=0.1, beta1=0.5, beta2=0.9,
            eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False, maximize=False, clip=np.inf, ema_decay=0.0,
        )  # fmt: skip

    for step, states in ((rmsprop, ["square_avgs"]), (adam, ["exp_avgs", "exp_avg_sqs"])):
        small, huge = (end_of_one_step(size, step, *states) for size in (5, 2**31 + 4096))
        assert huge == small and small[0] != ones.tolist()
