import math

import pytest
import torch
from torch import nn

import gankernels as gk

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
C = 0.01
_op = torch.ops.gankernels


def weights_of(device, dtype, requires_grad=True):
    """Every layout, and sizes around those of vectors, blocks and chunks."""
    shapes = [(), (0,), (1,), (7,), (1023,), (1025,), (16384,), (16385,), (64, 3, 4, 4), (3, 5, 7, 3), (2, 0, 3)]
    weights = [torch.randn(shape, dtype=torch.float64).to(device, dtype) * 0.02 for shape in shapes]
    weights.append((torch.randn(8, 6, 3, 3, device=device) * 0.02).to(dtype).to(memory_format=torch.channels_last))
    weights.append((torch.randn(9, 11, device=device) * 0.02).to(dtype).t())
    weights.append((torch.randn(40, 30, device=device) * 0.02).to(dtype)[3:, ::3])
    weights.append((torch.randn(5000, device=device) * 0.02).to(dtype)[1:])  # not aligned for wide loads
    return [w.requires_grad_(requires_grad) for w in weights]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(dtype, device):
    weights = weights_of(device, dtype)
    weights[6].data[[0, 5000, -1]] = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype, device=device)
    want = [w.detach().clone() for w in weights]
    gk.reference.clip_weights_(want, C)
    strides = [w.stride() for w in weights]
    assert gk.clip_weights_(weights, C) is None
    for w, expected, stride in zip(weights, want, strides):
        torch.testing.assert_close(w.detach(), expected, rtol=0, atol=0, equal_nan=True)
        assert w.stride() == stride and w.requires_grad and w.is_leaf


@pytest.mark.parametrize("c", [1e-30, 1e-9, 0.3, 1, 7e4, 1e300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bounds_beyond_the_dtype(c, dtype, device):
    w = torch.tensor([0.0, -0.0, 1e-7, -0.25, 0.5, -60000.0, math.inf, -math.inf, math.nan]).to(device, dtype)
    want = w.double().clamp(-c, c).to(dtype)  # where c is beyond the range of the dtype, stock raises
    gk.clip_weights_([w], c)
    torch.testing.assert_close(w, want, rtol=0, atol=0, equal_nan=True)


def test_many_tensors_of_several_dtypes(device):
    weights = [torch.randn(7 + 37 * i, device=device, dtype=DTYPES[i % 4]) for i in range(200)]
    want = [w.clamp(-C, C) for w in weights]
    gk.clip_weights_(iter(weights), C)
    assert all(torch.equal(w, expected) for w, expected in zip(weights, want))


def test_a_module_and_a_tensor(device):
    critic = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 1)).to(device)
    gk.clip_weights_(critic, C)
    assert all(p.abs().max() <= C for p in critic.parameters())
    assert critic[1].running_var.eq(1).all()  # buffers are not weights
    w = torch.ones(3, device=device)
    gk.clip_weights_(w, C)
    assert w.eq(C).all()


def test_nothing_to_clip():
    gk.clip_weights_([], C)
    gk.clip_weights_(nn.Identity(), C)


def test_weights_in_range_are_not_written():
    import ctypes
    import mmap

    page = mmap.mmap(-1, 1 << 20)
    w = torch.frombuffer(page, dtype=torch.float32)
    w.fill_(-C)
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(w.data_ptr()), len(page), mmap.PROT_READ) == 0  # a write would end the process
    gk.clip_weights_([w], C)
    assert libc.mprotect(ctypes.c_void_p(w.data_ptr()), len(page), mmap.PROT_READ | mmap.PROT_WRITE) == 0


def test_backward_through_a_clipped_weight_raises(device):
    w = torch.ones(3, device=device, requires_grad=True)
    x = torch.ones(3, device=device, requires_grad=True)
    y = (w * x).sum()
    gk.clip_weights_([w], C)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_no_gradient_is_recorded(device):
    leaf = torch.ones(3, device=device, requires_grad=True)
    w = leaf * 2
    gk.clip_weights_([w], C)
    assert w.eq(C).all()
    leaf.grad = None
    gk.clip_weights_([leaf], C)
    assert leaf.is_leaf and leaf.grad_fn is None


@pytest.mark.parametrize(
    "c, error",
    [
        (0, ValueError),
        (-0.1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
def test_bad_c(c, error):
    w = torch.ones(3)
    with pytest.raises(error, match=r"^gankernels\.clip_weights_: c must be a finite number > 0, got "):
        gk.clip_weights_([w], c)
    if error is ValueError:
        with pytest.raises(RuntimeError, match=r"gankernels\.clip_weights_: c must be a finite number > 0, got "):
            _op.clip_weights_([w], c)
    assert w.eq(1).all() and w._version == 0


@pytest.mark.parametrize(
    "bad, error, sentence",
    [
        (
            torch.ones(3, dtype=torch.int64),
            TypeError,
            r"module_or_tensors\[1\] must be float64, float32, bfloat16 or float16, got int64",
        ),
        (torch.ones(3, dtype=torch.complex64), TypeError, r"module_or_tensors\[1\] must be float64.*got complex64"),
        (torch.ones(3).to_sparse(), TypeError, r"module_or_tensors\[1\] must be dense, got sparse_coo"),
        (3.0, TypeError, r"module_or_tensors\[1\] must be a tensor, got float"),
        (torch.ones(1).expand(3), ValueError, r"module_or_tensors\[1\] must have its own memory for every element"),
        (torch.ones(3, device="meta"), ValueError, "module_or_tensors must be on one device, got cpu and meta"),
        pytest.param("cuda", ValueError, "module_or_tensors must be on one device", marks=pytest.mark.gpu),
    ],
)
def test_bad_tensors(bad, error, sentence):
    good = torch.ones(3)
    bad = torch.ones(3, device="cuda") if bad == "cuda" else bad
    with pytest.raises(error, match=rf"^gankernels\.clip_weights_: {sentence}"):
        gk.clip_weights_([good, bad], C)
    assert good.eq(1).all() and good._version == 0


def test_neither_a_module_nor_tensors():
    with pytest.raises(
        TypeError, match=r"^gankernels\.clip_weights_: module_or_tensors must be a module or tensors, got float"
    ):
        gk.clip_weights_(3.0, C)


def test_opcheck(device):
    weights = [torch.randn(5, device=device), torch.randn(2, 3, device=device)]
    torch.library.opcheck(_op.clip_weights_.default, (weights, C))


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_in_a_compiled_step(device, backend):
    def make():
        torch.manual_seed(0)
        return nn.Linear(4, 3).to(device)

    def step(layer, x):
        gk.clip_weights_(layer, C)
        return layer(x).square().sum()

    eager, compiled = make(), make()
    x = torch.randn(2, 4, device=device)
    step(eager, x).backward()
    torch.compile(step, fullgraph=True, backend=backend)(compiled, x).backward()
    for a, b in zip(eager.parameters(), compiled.parameters()):
        assert torch.equal(a, b) and a.abs().max() <= C
        torch.testing.assert_close(a.grad, b.grad)


def test_does_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    results = []
    for n in (1, 3):
        torch.set_num_threads(n)
        torch.manual_seed(0)
        weights = [torch.randn(n) for n in (5, 700_001, 0, 33, 1_200_000)]
        gk.clip_weights_(weights, 0.5)
        results.append(weights)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) and a.abs().max() <= 0.5 for a, b in zip(*results) if a.numel())


@pytest.mark.gpu
def test_cuda_graph():
    weights = [torch.ones(5000, device="cuda") for _ in range(60)]
    gk.clip_weights_(weights, C)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gk.clip_weights_(weights, C)
    for w in weights:
        w.fill_(1)
    graph.replay()
    assert all(w.eq(C).all() for w in weights)
