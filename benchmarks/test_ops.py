"""Every op of the op suite at the shapes of real networks, by the suite's own entries (`real` in tests/ops/specs).

op × shape × dtype × layout × mode, where a mode is forward, forward_backward (the first derivative, from the outputs' gradients) or
second_order (the derivative of that derivative, in everything it depends on). Stock is the op's reference in plain PyTorch, the
form that code without a kernel has, or PyTorch's own op, and then the reference is measured too; eager and compiled. Peers join
where they are installed or named (`--peer`). The floor is a copy of as many
bytes as inputs and outputs have, each once.

On a CPU an output beyond 32 MB comes from the system page by page, at every call, and that can outweigh the arithmetic:
`fresh_pages`. `reused_pages` lets the allocator keep what was freed, as a GPU's caching allocator always does.
"""

import itertools
import math

import pytest
import torch

import gankernels as gk
from tests.ops.specs import SPECS, TOLERANCE
from tests.ops.specs.spec import Spec, randn
from tests.ops.test_suite import as_tuple, in_layout, with_grad

from . import peers
from .harness import OURS, Workload, assert_accurate, case, copy_of, keep_pages, nbytes, rotated


def image_and_points(shape, dtype, device):
    """As many points as pixels: inside, at the border and, by up to a whole image, outside."""
    n, _, h, w = shape
    return randn(shape, dtype, device), 0.8 * randn((n, h, w, 2), dtype, device), "zeros", False


def stock_grid_sample(x, grid, padding_mode, align_corners):
    return torch.nn.functional.grid_sample(x, grid, "bilinear", padding_mode, align_corners)


# Not an entry of the suite, since it rounds as stock does, which depends on the size of the image, and calls stock's op.
GRID_SAMPLE = Spec("grid_sample", gk.grid_sample, gk.reference.grid_sample, image_and_points, (0,), (0, 1),
                   real={"ada256": (8, 3, 256, 256)}, stock=stock_grid_sample, stock_orders=1)  # fmt: skip

MEASURED = {spec.name: spec for spec in [*SPECS, GRID_SAMPLE] if spec.real}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}
FORWARD, FIRST, SECOND = MODES = ("forward", "forward_backward", "second_order")


def differentiated(op, spec, mode):
    """call(args, grads, tangents) -> tensors: the outputs of `op`, its first derivative, or its second."""

    def outputs(args):
        found = as_tuple(op(*args))
        return [found[i] for i in spec.outputs]

    def forward(args, grads, tangents):
        with torch.no_grad():
            return outputs(args)

    def forward_backward(args, grads, tangents):
        ys = outputs(args)
        return [y.detach() for y in ys] + list(torch.autograd.grad(ys, [args[i] for i in spec.differentiable], grads))

    def second_order(args, grads, tangents):
        xs = [args[i] for i in spec.differentiable]
        first = torch.autograd.grad(outputs(args), xs, grads, create_graph=True)
        return torch.autograd.grad(first, [*xs, *grads], tangents, allow_unused=True, materialize_grads=True)

    return {FORWARD: forward, FIRST: forward_backward, SECOND: second_order}[mode]


def make_inputs(spec, shape, dtype, device, layout, mode):
    """Arguments, gradients of the outputs, and tangents of the gradients, those that are images in the layout."""
    args = list(spec.inputs(spec.real[shape], DTYPES[dtype], device))
    for i in spec.images:
        args[i] = in_layout(args[i], layout)
    if mode == FORWARD:
        return args, None, None
    args = with_grad(spec, args)
    ys = as_tuple(spec.op(*args))
    grads = [torch.randn_like(ys[i]).requires_grad_(mode == SECOND) for i in spec.outputs]
    return args, grads, [torch.randn_like(args[i]) for i in spec.differentiable] if mode == SECOND else None


def in_double(tree):
    def double(t):
        wide = isinstance(t, torch.Tensor) and t.is_floating_point()
        return t.detach().double().requires_grad_(t.requires_grad) if wide else t

    return torch.utils._pytree.tree_map(double, tree)


def stock_of(spec, mode):
    return spec.reference if spec.stock is None or (mode == SECOND and spec.stock_orders < 2) else spec.stock


def prepare(device, op, shape, dtype, layout, mode, compiled=False, fresh_pages=False):
    spec = MEASURED[op]
    inputs = rotated(lambda: make_inputs(spec, shape, dtype, device, layout, mode), device)
    ours, stock, exact = (differentiated(form, spec, mode) for form in (spec.op, stock_of(spec, mode), spec.reference))
    results = ours(*inputs[0])
    args, grads, tangents = inputs[0]
    # what comes in and what goes out; a derivative reads the arguments again
    size = nbytes((args, grads, tangents, results)) + (0 if mode == FORWARD else nbytes(args))

    def rotating(function):
        return lambda i: function(*inputs[i % len(inputs)])

    def check():
        of_stock, truth = stock(*inputs[0]), exact(*in_double(inputs[0]))
        assert_accurate(results, of_stock, truth, f"{op}, {mode}")
        for name, form in theirs.items():  # they may round in their own way, but compute the same
            assert_accurate(
                form(*inputs[0]), of_stock, truth, f"{op}, {mode}, {name}", max(2**-12, torch.finfo(DTYPES[dtype]).eps)
            )
        if device == "cpu":
            keep_pages(not fresh_pages)

    variants = {OURS: rotating(ours), "stock": rotating(stock), "reference": rotating(exact)}
    if compiled:
        variants["stock_compiled"] = rotating(
            differentiated(torch.compile(stock_of(spec, mode), dynamic=False), spec, mode)
        )
    theirs = {name: differentiated(form, spec, mode) for name, form in peers.forms(spec.peers).items()}
    variants |= {name: rotating(form) for name, form in theirs.items()}
    variants["floor"] = copy_of(size, device, nbytes(results) if fresh_pages else 0)
    goals = (
        {"stock": 1.0} | ({"floor": 0.85} if device == "cuda" and mode == FORWARD else {}) | spec.goals.get(mode, {})
    )
    return Workload(variants, check, bytes=size, goals=goals)


def combinations():
    """Of the first shape every dtype in every layout, of the others float32 as it comes and bfloat16 as it trains best."""
    for spec in MEASURED.values():
        modes = MODES if spec.second_order else (FORWARD, FIRST)
        for number, (name, shape) in enumerate(spec.real.items()):
            best = "channels_last" if len(shape) == 4 else "contiguous"
            usual = {("float32", "contiguous"): None, ("bfloat16", best): None}
            further = {("float32", best): None, ("bfloat16", "contiguous"): None} if number == 0 else {}
            for (dtype, layout), mode in itertools.product(usual | further, modes):
                if spec is GRID_SAMPLE and dtype == "bfloat16":
                    continue  # stock's kernel for the CPU gives NaN there, or ends the process
                yield {"op": spec.name, "shape": name, "dtype": dtype, "layout": layout, "mode": mode}


def is_quick(combination):
    """The first shape of an op, as most people call it."""
    first = next(iter(MEASURED[combination["op"]].real))
    usual = {"shape": first, "dtype": "float32", "layout": "contiguous"}
    return combination["mode"] != SECOND and all(combination[key] == value for key, value in usual.items())


def makes_fresh_pages(combination):
    shape = MEASURED[combination["op"]].real[combination["shape"]]
    return combination["mode"] != SECOND and combination["dtype"] == "float32" and math.prod(shape) * 4 > 32 << 20


def the_peers(combination):
    return peers.names(MEASURED[combination["op"]].peers)


def further_variants(combination):
    """A compiled function is differentiated once only; what is compiled for one dtype and layout stands for the others."""
    mode, spec = combination["mode"], MEASURED[combination["op"]]
    usual = combination["dtype"] == "float32" and combination["layout"] == "contiguous"
    compiled = ["stock_compiled"] if usual and mode != SECOND else []
    reference = ["reference"] if stock_of(spec, mode) is not spec.reference else []
    return *compiled, *reference, *peers.names(spec.peers)


ALL = list(combinations())


@case(OURS, "stock", "floor", combinations=[c for c in ALL if is_quick(c)], extra=the_peers)
def test_ops(device, **combination):
    return prepare(device, **combination)


@case(OURS, "stock", "floor", tier="full", combinations=[c for c in ALL if not is_quick(c)], extra=further_variants)
def test_ops_full(device, **combination):
    return prepare(device, **combination, compiled="stock_compiled" in further_variants(combination))


@case(OURS, "stock", "stock_compiled", "floor", tier="full", combinations=[c for c in ALL if is_quick(c)])
def test_ops_compiled_full(device, **combination):
    return prepare(device, **combination, compiled=True)


@case(OURS, "stock", "floor", tier="full", combinations=[c for c in ALL if makes_fresh_pages(c)])
def test_ops_fresh_pages(device, **combination):
    if device == "cuda":
        pytest.skip("a GPU's allocator reuses its memory")
    return prepare(device, **combination, fresh_pages=True)
