"""The op suite: every promise of an op that does not depend on which op it is, for every entry of specs/."""

import dataclasses

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from tests.ops.specs import SPECS, TOLERANCE

LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded", "transposed")
pytestmark = pytest.mark.filterwarnings("ignore:.*deterministic.*")


def in_layout(t, layout, distinct=1):
    """The same values in another memory layout (an expanded tensor has its own values, along the dimension `distinct`)."""
    if layout == "contiguous":
        return t.contiguous()
    if layout == "channels_last":
        return t.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        return torch.stack([t, t + 1], dim=-1)[..., 0]
    if layout == "transposed":  # dense, but the batch is not outermost
        return t.transpose(0, 1).contiguous().transpose(0, 1)
    return t[tuple(slice(None if dim == distinct else 1) for dim in range(t.dim()))].expand_as(t)


def inputs_of(spec, size, dtype, device, layout="contiguous"):
    args = list(spec.inputs(spec.shapes[size], dtype, device))
    for i in spec.images:
        args[i] = in_layout(args[i], layout, spec.distinct)
    return args


def as_tuple(outputs):
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def with_grad(spec, args):
    return [a.detach().clone(memory_format=torch.preserve_format).requires_grad_() if i in spec.differentiable else a
            for i, a in enumerate(args)]  # fmt: skip


def double(args):
    return [a.double() if isinstance(a, torch.Tensor) else a for a in args]


def relative_error(got, want):
    """The largest error, of the largest value."""
    return (
        (got.double() - want.double()).abs().max().item() / max(1e-30, want.abs().max().item()) if got.numel() else 0.0
    )


def assert_close(got, want, tolerance):
    assert got.shape == want.shape
    error = relative_error(got, want)
    assert error <= tolerance, f"error {error:.3g} of the largest value, {tolerance:.3g} allowed"


def every(name, values, ids=None):
    return pytest.mark.parametrize(name, values, ids=ids)


each_spec = every("spec", SPECS, ids=lambda spec: spec.name)
each_differentiable = every("spec", [spec for spec in SPECS if spec.differentiable], ids=lambda spec: spec.name)


@each_spec
@every("dtype", list(TOLERANCE), ids=str)
@every("layout", LAYOUTS)
def test_values(spec, dtype, layout, device, poisoned_empty):
    for size in spec.shapes:
        args = inputs_of(spec, size, dtype, device, layout)
        before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
        got, want = as_tuple(spec.op(*args)), as_tuple(spec.reference(*double(args)))
        # the order in which a product of matrices is summed is the processor's
        plain = as_tuple(spec.reference(*args)) if spec.stock_products else want
        for g, w, p in zip(got, want, plain, strict=True):
            assert_close(g, w, max(TOLERANCE[dtype], 4 * relative_error(p, w)))
        for a, b in zip(args, before):
            assert not isinstance(a, torch.Tensor) or torch.equal(a, b), "an input was written to"


@each_differentiable
@every("dtype", list(TOLERANCE), ids=str)
@every("layout", ("contiguous", "channels_last"))
def test_first_derivative_values(spec, dtype, layout, device, poisoned_empty):
    for size in spec.shapes:
        args = with_grad(spec, inputs_of(spec, size, dtype, device, layout))
        exact = [a.detach().double().requires_grad_() if i in spec.differentiable else a
                 for i, a in enumerate(double(args))]  # fmt: skip
        grads = []
        for op, xs in ((spec.op, args), (spec.reference, exact)):
            outputs = [as_tuple(op(*xs))[i] for i in spec.outputs]
            # sum() delivers a gradient of stride 0
            grads.append(torch.autograd.grad(sum(o.sum() for o in outputs), [xs[i] for i in spec.differentiable]))
        for got, want in zip(*grads):
            assert_close(got, want, 3 * TOLERANCE[dtype])


@each_differentiable
@every("layout", LAYOUTS)
def test_derivatives_to_second_order(spec, layout, device):
    args = with_grad(spec, inputs_of(spec, "odd", torch.float64, device, layout))

    def differentiable_outputs(*xs):
        return tuple(as_tuple(spec.op(*xs))[i] for i in spec.outputs)

    assert gradcheck(differentiable_outputs, args)
    if spec.second_order:
        assert gradgradcheck(differentiable_outputs, args)


@each_differentiable
def test_beyond_its_order_an_op_raises(spec, device):
    if spec.second_order:
        return
    args = with_grad(spec, inputs_of(spec, "odd", torch.float64, device))
    output = as_tuple(spec.op(*args))[spec.outputs[0]]
    first = torch.autograd.grad(output.square().sum(), args[spec.differentiable[-1]], create_graph=True)
    with pytest.raises(NotImplementedError, match="not implemented"):
        torch.autograd.grad(first[0].square().sum(), args[spec.differentiable[-1]])


def assert_fake_equals_real(spec, args, real):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = as_tuple(spec.op(*[mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]))
    for r, f in zip(as_tuple(real), fake, strict=True):
        assert (r.shape, r.stride(), r.dtype) == (f.shape, f.stride(), f.dtype)


@each_spec
@every("layout", ("contiguous", "channels_last", "sliced", "transposed"))
def test_fake_tensors_have_the_strides_of_real_ones(spec, layout, device):
    for size in spec.shapes:
        args = inputs_of(spec, size, torch.float32, device, layout)
        assert_fake_equals_real(spec, args, spec.op(*args))


@each_spec
@every("layout", ("contiguous", "channels_last", "sliced"))
def test_without_elements(spec, layout, device):
    """Whichever dimension is 0, an op refuses in one sentence or returns what its fake says, strides included."""
    for dim in range(len(spec.shapes["odd"])):
        shape = tuple(0 if d == dim else size for d, size in enumerate(spec.shapes["odd"]))
        args = inputs_of(dataclasses.replace(spec, shapes={"empty": shape}), "empty", torch.float32, device, layout)
        try:
            real = spec.op(*args)
        except (RuntimeError, ValueError) as refusal:
            assert str(refusal).startswith("gankernels.")
        else:
            assert_fake_equals_real(spec, args, real)


@each_spec
def test_opcheck(spec, device):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        """The registered ops an op calls, with their arguments."""

        def __init__(self):
            super().__init__()
            self.calls = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "gankernels":
                self.calls.append((func, args))
            return func(*args, **(kwargs or {}))

    for layout in ("contiguous", "channels_last"):
        with Recorder() as recorder:
            spec.op(*with_grad(spec, inputs_of(spec, "odd", torch.float32, device, layout)))
        assert recorder.calls
        for func, args in recorder.calls:
            differentiable = spec.differentiable and any(isinstance(a, torch.Tensor) for a in args)
            args = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args]
            for a in args:
                if differentiable and isinstance(a, torch.Tensor) and a.is_floating_point() and a.dim() > 1:
                    a.requires_grad_()
            torch.library.opcheck(func, tuple(args))


@each_differentiable
def test_compiled_equals_eager(spec, device):
    args = inputs_of(spec, "odd", torch.float64, device)

    def step(*xs):
        outputs = [as_tuple(spec.op(*xs))[i] for i in spec.outputs]
        return sum((o.square()).sum() for o in outputs)

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        xs = with_grad(spec, args)
        gradients.append(torch.autograd.grad(function(*xs), [xs[i] for i in spec.differentiable]))
    for eager, compiled in zip(*gradients):
        assert_close(compiled, eager, 1e-12)


@each_spec
def test_nan_in_gives_nan_out(spec, device):
    args = inputs_of(spec, "odd", torch.float32, device)
    args[spec.images[0]] = torch.full_like(args[spec.images[0]], float("nan"))
    assert all(o.isnan().all() for i, o in enumerate(as_tuple(spec.op(*args))) if i in spec.outputs)


@each_spec
def test_result_does_not_depend_on_the_number_of_threads(spec):
    args = inputs_of(spec, "large", torch.float32, "cpu")
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(as_tuple(spec.op(*args)))
    torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert_close(a, b.double(), TOLERANCE[torch.float32] if spec.stock_products else 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [pytest.param(*case, id=f"{spec.name}-{name}") for spec in SPECS for name, case in spec.bad.items()],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message) as error:
        call()
    assert str(error.value).startswith("gankernels.") and "\n" not in str(error.value)


@pytest.mark.gpu
@each_spec
def test_cuda_graph_replays(spec):
    args = inputs_of(spec, "odd", torch.float32, "cuda")
    spec.op(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = as_tuple(spec.op(*args))
    for i in spec.images:
        args[i].copy_(torch.randn_like(args[i]))
    graph.replay()
    for got, want in zip(outputs, as_tuple(spec.op(*args))):
        assert torch.equal(got, want)


@pytest.mark.gpu
@each_spec
def test_other_streams_and_devices(spec):
    device = f"cuda:{torch.cuda.device_count() - 1}"
    args = inputs_of(spec, "odd", torch.float32, device)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        got = as_tuple(spec.op(*args))
    torch.cuda.synchronize(device)
    for g, w in zip(got, as_tuple(spec.reference(*double(args)))):
        assert g.device == torch.device(device)
        assert_close(g, w, TOLERANCE[torch.float32])


@pytest.mark.gpu
@every("name", ("interpolate", "pixel_norm", "grad_norm_penalty_bwd"))
def test_more_than_2_31_elements(name):
    """The last sample lies beyond 2^31 and comes out as it does alone."""
    spec = next(spec for spec in SPECS if spec.name == name)
    args = list(spec.inputs((3, 1, 2, 8), torch.bfloat16, "cuda"))
    for i in spec.images:
        args[i] = torch.randn(3, 4, 13400, 13400, dtype=torch.bfloat16, device="cuda")
    got = as_tuple(spec.op(*args))[0]
    alone = [a[2:] if isinstance(a, torch.Tensor) and a.dim() else a for a in args]
    want = as_tuple(spec.op(*alone))[0]
    if name == "grad_norm_penalty_bwd":
        want = want / 3  # a mean over the batch
    assert_close(got[2:], want, TOLERANCE[torch.bfloat16])
