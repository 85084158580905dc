"""What the op suite and the benchmarks need to know about an op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

# Shapes by what they are there for: odd sizes, one sample, more than one chunk of work per sample, several samples per chunk.
SHAPES = {"odd": (3, 5, 7, 3), "one": (1, 2, 3, 3), "large": (2, 3, 96, 97), "many": (65, 3, 4, 4)}

# Largest error relative to the largest value of the float64 reference, per dtype: a few units in the last place.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def randn(shape, dtype, device):
    return torch.randn(shape, dtype=torch.float64).to(device, dtype)


def accumulate(dtype):
    return torch.promote_types(dtype, torch.float32)


def images_and(*constants, images):
    """Makes the arguments of an op of so many images of one shape, followed by these."""

    def inputs(shape, dtype, device):
        return *(randn(shape, dtype, device) for _ in range(images)), *constants

    return inputs


def as_it_is(function, *args):
    """How a peer is called that takes the op's own arguments."""
    return function(*args)


def weighted(op):
    """An op whose derivatives, where the suite takes a sum of its output, do not cancel: its output times 1, 2, ... 11, 1, ..."""

    def times_weights(*args):
        out = op(*args)
        return out * (torch.arange(out.numel(), device=out.device) % 11 + 1).reshape(out.shape).to(out.dtype)

    return times_weights


@dataclass(frozen=True)
class Spec:
    """op(*inputs) against reference(*inputs).

    inputs(shape, dtype, device) makes the arguments. `images` and `differentiable` are the positions of those that come in
    several memory formats and of those with a derivative; `outputs` the positions of differentiable outputs. The last op of
    a chain has nothing differentiable: its derivative raises. `shapes` has the names of SHAPES, and may have more, of 2
    dimensions and up. `stock_products` says that stock's products of matrices are inside, whose order of summation depends on the
    number of threads. `bad` holds, by name, calls with bad input and a pattern of the one sentence they raise. `distinct` is the
    dimension along which an expanded tensor keeps its own values: for a statistic over the batch, 0.

    For the benchmarks: `real` has shapes of real networks by name; without any the op is not measured. `stock` is what people
    write without a kernel, where that is not the reference, and `stock_orders` how often it can be differentiated; `peers` holds
    (module, function, call), with call(function, *inputs), by the name of a peer (benchmarks/peers.py); `goals`, by mode, how many
    times as fast as a variant the op ought to be.
    """

    name: str
    op: Callable
    reference: Callable
    inputs: Callable
    images: tuple[int, ...]
    differentiable: tuple[int, ...]
    outputs: tuple[int, ...] = (0,)
    second_order: bool = True
    shapes: dict = field(default_factory=lambda: SHAPES)
    stock_products: bool = False
    bad: dict[str, tuple[Callable, str]] = field(default_factory=dict)
    distinct: int = 1
    real: dict[str, tuple[int, ...]] = field(default_factory=dict)
    stock: Callable | None = None
    stock_orders: int = 2
    peers: dict[str, tuple[str, str, Callable]] = field(default_factory=dict)
    goals: dict[str, dict[str, float]] = field(default_factory=dict)


INT = "i32"


@dataclass(frozen=True)
class Kernel:
    """How a Triton kernel is compiled ahead of time.

    arguments(t, a) are the types of its arguments that are not compile-time constants, for data of pointer type t and sums of
    pointer type a; `constants` the constants but BLOCK; `streams` says that its loads are 128 bits wide.
    """

    kernel: Callable
    arguments: Callable
    constants: dict = field(default_factory=dict)
    streams: bool = True
    launch: Callable = lambda t: {}
    slow: bool = False
