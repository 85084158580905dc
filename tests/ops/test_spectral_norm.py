"""gk.nn.spectral_norm against torch.nn.utils.parametrizations.spectral_norm, and its ops against their formulas."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm as stock

import gankernels as gk

_op = torch.ops.gankernels
F64 = dict(atol=1e-10, rtol=1e-10)


def network(seed=0):
    """Every way a weight is read: rows, transposed, 1x1, matrix, one row; an activation with a second derivative."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Softplus(),
        nn.Sequential(nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.Tanh(), nn.Conv2d(6, 4, 1)),
        nn.Flatten(),
        nn.Linear(4 * 12 * 12, 5),
        nn.Linear(5, 1),
    ).double()


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]


def pair(**options):
    """The same network with torch's and with our spectral norm, from the same random numbers."""
    theirs, ours = network(), network()
    torch.manual_seed(1)
    for layer in layers_of(theirs):
        stock(layer, **options)
    torch.manual_seed(1)
    return theirs, gk.nn.spectral_norm(ours, **options)


def images(n=4, seed=2):
    return torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_same_state(a, b, **tolerance):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    for key in a:
        torch.testing.assert_close(a[key], b[key], **(tolerance or F64), msg=lambda m: f"{key}: {m}")


def assert_same_grads(a, b):
    for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, **F64, msg=lambda m: f"{name}: {m}")


def vectors(model):
    return torch.cat([b.flatten() for b in model.buffers()]).clone()


def norms_of(model):
    return [m for m in model.modules() if isinstance(m, gk.nn.SpectralNorm)]


# ------------------------------------------------------------------------------------------------------------ the ops


def group(dtype=torch.float64):
    """Weights of every layout, with vectors that have not converged: sigma's derivative must not rely on it."""
    torch.manual_seed(3)
    weights = [
        torch.randn(4, 3, 3, 2),
        torch.randn(5, 7, 2, 3).contiguous(memory_format=torch.channels_last),
        torch.randn(3, 4, 3, 2),
        torch.randn(6, 5, 2, 2).contiguous(memory_format=torch.channels_last),
        torch.randn(4, 6).T,
        torch.randn(3, 4, 2, 5)[..., ::2],
        torch.randn(1, 9),
        torch.randn(9, 1),
        torch.randn(4, 3, 5),
        torch.randn(2, 5, 3, 4).permute(1, 2, 0, 3),
        torch.randn(3, 2, 4, 5).permute(1, 3, 0, 2),
    ]
    dims = [0, 0, 1, 1, 0, 0, 0, 0, 2, 0, 2]
    weights = [w.to(dtype) for w in weights]
    u = [torch.randn(w.shape[d]).to(dtype) for w, d in zip(weights, dims)]
    v = [torch.randn(w.numel() // w.shape[d]).to(dtype) for w, d in zip(weights, dims)]
    return weights, u, v, dims


def normalize(weights, u, v, dims):
    """W / sigma with sigma recomputed from these weights, as the derivatives assume."""
    uv, sigma = _op.spectral_norm_power_iteration_([w.detach() for w in weights], u, v, dims, 0, 1e-12)
    return _op.spectral_normalize(weights, uv, sigma, dims)


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values(iterations, dtype):
    weights, u, v, dims = group(dtype)
    exact = [
        gk.reference.spectral_norm(w.double(), a.double(), b.double(), dim, iterations)
        for w, a, b, dim in zip(weights, u, v, dims)
    ]
    before = [t.clone() for t in (*u, *v)]
    uv, sigma = _op.spectral_norm_power_iteration_(weights, u, v, dims, iterations, 1e-12)
    normalized = _op.spectral_normalize(weights, uv, sigma, dims)
    assert uv.dtype == sigma.dtype == torch.promote_types(dtype, torch.float32)
    tolerance = 16 * torch.finfo(dtype).eps
    for w, got, (want, want_u, want_v), got_u, got_v in zip(weights, normalized, exact, u, v, strict=True):
        for g, e in ((got, want), (got_u, want_u), (got_v, want_v)):
            assert g.dtype == dtype
            assert (g.double() - e).abs().max() <= tolerance * max(1, e.abs().max())
        if w.is_contiguous() or w.is_contiguous(memory_format=torch.channels_last):
            assert got.stride() == w.stride()
    packed = torch.cat([t.flatten() for pair_ in zip(u, v) for t in pair_])
    assert (packed.double() - uv.double()).abs().max() <= torch.finfo(dtype).eps * packed.abs().max()
    if iterations == 0:
        assert all(torch.equal(a, b) for a, b in zip(before, (*u, *v)))


@pytest.mark.parametrize("shape, dim", [((128, 64, 3, 3), 0), ((96, 65, 5, 5), 1), ((70, 3000), 0), ((3000, 70), 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_large_weights_and_threads(shape, dim, memory_format):
    """Several items of work per layer; whoever computes them, the result is the same to the bit."""
    torch.manual_seed(0)
    weight = torch.randn(shape)
    weight = weight.contiguous(memory_format=memory_format) if weight.dim() == 4 else weight
    u, v = torch.randn(shape[dim]), torch.randn(weight.numel() // shape[dim])
    want, want_u, want_v = gk.reference.spectral_norm(weight.double(), u.double(), v.double(), dim, 2)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            a, b = u.clone(), v.clone()
            uv, sigma = _op.spectral_norm_power_iteration_([weight], [a], [b], [dim], 2, 1e-12)
            (out,) = _op.spectral_normalize([weight], uv, sigma, [dim])
            (grad,) = _op.spectral_normalize_bwd([out], [weight], uv, sigma, [dim], [0])
            results.append((out, a, b, grad))
    finally:
        torch.set_num_threads(threads)
    for got, exact in zip(results[0], (want, want_u, want_v)):
        assert (got.double() - exact).abs().max() <= 1e-5 * exact.abs().max()
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other))


def test_gradcheck():
    weights, u, v, dims = group()
    weights = [w.requires_grad_() for w in weights]
    assert gradcheck(lambda *ws: normalize(ws, u, v, dims), weights)
    assert gradgradcheck(lambda *ws: normalize(ws, u, v, dims), weights)


def test_gradcheck_with_layers_that_nobody_uses():
    weights, u, v, dims = group()
    weights = [w.requires_grad_() for w in weights]

    def some(*ws):
        out = normalize(ws, u, v, dims)
        return out[1].square(), out[2] * out[5].sum()

    assert gradcheck(some, weights)
    assert gradgradcheck(some, weights)
    outputs = normalize(weights, u, v, dims)
    grads = torch.autograd.grad(outputs[3].sum(), weights, allow_unused=True)
    assert [g is not None for g in grads] == [i == 3 for i in range(len(weights))]


def test_third_derivative_raises():
    weights, u, v, dims = group()
    w = weights[0].requires_grad_()
    first = torch.autograd.grad(normalize([w], u[:1], v[:1], dims[:1])[0].pow(3).sum(), w, create_graph=True)[0]
    second = torch.autograd.grad(first.pow(2).sum(), w, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="spectral_normalize_bwd_bwd"):
        second.sum().backward()


def test_gradients_in_other_layouts():
    weights, u, v, dims = group()
    weights = [w.requires_grad_() for w in weights[:4]]
    outputs = normalize(weights, u[:4], v[:4], dims[:4])
    total = torch.autograd.grad(sum(o.sum() for o in outputs), weights, retain_graph=True)  # stride 0
    ones = torch.autograd.grad(outputs, weights, [torch.ones(o.shape, dtype=o.dtype) for o in outputs])
    assert all(torch.equal(a, b) for a, b in zip(total, ones))


@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1e25])
def test_weights_far_from_one_neither_vanish_nor_overflow(scale):
    torch.manual_seed(0)
    weight, u, v = torch.randn(8, 3, 3, 3) * scale, torch.randn(8), torch.randn(27)
    want, _, _ = gk.reference.spectral_norm(weight.double(), u.double(), v.double(), eps=0.0)
    uv, sigma = _op.spectral_norm_power_iteration_([weight], [u], [v], [0], 1, 0.0)
    torch.testing.assert_close(_op.spectral_normalize([weight], uv, sigma, [0])[0].double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("eps", [1e-12, 0.5, 1e3])
def test_eps_bounds_the_norms(dim, eps):
    torch.manual_seed(0)
    weight, u, v = torch.randn(4, 6, dtype=torch.float64), torch.randn(4 + 2 * dim), torch.randn(6 - 2 * dim)
    u, v = u.double(), v.double()
    want = gk.reference.spectral_norm(weight, u, v, dim, 2, eps)
    uv, sigma = _op.spectral_norm_power_iteration_([weight], [u], [v], [dim], 2, eps)
    for got, exact in zip((_op.spectral_normalize([weight], uv, sigma, [dim])[0], u, v), want):
        torch.testing.assert_close(got, exact, **F64)


def test_nan_and_zero_weights():
    u, v = torch.ones(3), torch.ones(4)
    uv, sigma = _op.spectral_norm_power_iteration_([torch.full((3, 4), float("nan"))], [u], [v], [0], 1, 1e-12)
    assert uv.isnan().all() and sigma.isnan().all() and u.isnan().all() and v.isnan().all()
    u, v = torch.ones(3), torch.ones(4)
    uv, sigma = _op.spectral_norm_power_iteration_([torch.zeros(3, 4)], [u], [v], [0], 1, 1e-12)
    assert (uv == 0).all() and (sigma == 0).all() and (u == 0).all()


def test_empty_weights():
    for shape in ((0, 3), (3, 0)):
        u, v = torch.ones(shape[0]), torch.ones(shape[1])
        uv, sigma = _op.spectral_norm_power_iteration_([torch.empty(shape)], [u], [v], [0], 1, 1e-12)
        assert (uv == 0).all() and sigma.tolist() == [0]
        assert _op.spectral_normalize([torch.empty(shape)], uv, sigma, [0])[0].shape == shape


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_opcheck(layout):
    weights = [torch.randn(4, 3, 3, 2), torch.randn(3, 4, 3, 2)]
    weights = [w.contiguous(memory_format=layout).requires_grad_() for w in weights]
    u, v, dims = [torch.randn(4), torch.randn(4)], [torch.randn(18), torch.randn(18)], [0, 1]
    plain = [w.detach() for w in weights]
    torch.library.opcheck(_op.spectral_norm_power_iteration_.default, (plain, u, v, dims, 1, 1e-12))
    uv, sigma = _op.spectral_norm_power_iteration_(plain, u, v, dims, 0, 1e-12)
    torch.library.opcheck(_op.spectral_normalize.default, (weights, uv, sigma, dims))
    g = [torch.randn_like(weights[1]).requires_grad_()]
    torch.library.opcheck(_op.spectral_normalize_bwd.default, (g, weights, uv, sigma, dims, [1]))
    h = [torch.randn_like(weights[1])]
    torch.library.opcheck(_op.spectral_normalize_bwd_bwd.default, (h, [g[0].detach()], plain, uv, sigma, dims, [1]))


# --------------------------------------------------------------------------------------------------- against torch's


@pytest.mark.parametrize("options", [{}, {"n_power_iterations": 3}, {"eps": 1e-2}, {"dim": 1}], ids=str)
def test_training_equals_torch(options):
    theirs, ours = pair(**options)
    assert_same_state(theirs, ours)
    optimisers = [torch.optim.Adam(m.parameters(), 1e-2) for m in (theirs, ours)]
    for step in range(5):
        x = images(seed=step)
        for model, optimiser in zip((theirs, ours), optimisers):
            optimiser.zero_grad()
            (model(x).square().mean() - model(x.flip(0)).mean()).backward()  # two forwards, one backward
        assert_same_grads(theirs, ours)
        for optimiser in optimisers:
            optimiser.step()
        assert_same_state(theirs, ours)
    theirs.eval(), ours.eval()
    before = vectors(ours)
    torch.testing.assert_close(theirs(x), ours(x), **F64)
    assert torch.equal(before, vectors(ours))
    theirs.train(), ours.train()
    torch.testing.assert_close(theirs(x), ours(x), **F64)


def test_gradient_penalty_and_unrolled_steps_equal_torch():
    theirs, ours = pair()
    for model in (theirs, ours):
        x = images().requires_grad_()
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        g.square().sum().backward()
        parameters = [p for p in model.parameters() if p.requires_grad]
        step = torch.autograd.grad(model(images(seed=5)).square().sum(), parameters, create_graph=True)
        sum(s.square().sum() for s in step).backward()  # second derivative in the weights
    assert_same_grads(theirs, ours)


@pytest.mark.parametrize(
    "make, dim",
    [
        (lambda: nn.Conv1d(3, 4, 3), None),
        (lambda: nn.Conv3d(3, 4, (1, 2, 3)), None),
        (lambda: nn.ConvTranspose1d(3, 4, 3), None),
        (lambda: nn.ConvTranspose3d(3, 4, (1, 2, 3)), None),
        (lambda: nn.Conv2d(6, 4, 3, groups=2), None),
        (lambda: nn.Bilinear(3, 4, 5), None),
        (lambda: nn.Embedding(7, 3), None),
        (lambda: nn.Conv2d(3, 4, 3), -1),
        (lambda: nn.LayerNorm(5), None),  # a vector: w / |w|
    ],
)
def test_single_layers_equal_torch(make, dim):
    torch.manual_seed(0)
    theirs = make().double()
    ours = copy.deepcopy(theirs)
    torch.manual_seed(1)
    stock(theirs, dim=dim)
    torch.manual_seed(1)
    assert gk.nn.spectral_norm(ours, dim=dim) is ours
    assert_same_state(theirs, ours)
    for layer in (theirs, ours):
        (layer.weight.pow(2).sum() + layer.weight.sum()).backward()
    assert_same_state(theirs, ours)
    assert_same_grads(theirs, ours)


def test_other_parameter_names():
    layer = nn.Module()
    layer.kernel = nn.Parameter(torch.randn(4, 5))
    gk.nn.spectral_norm(layer, "kernel")
    assert parametrize.is_parametrized(layer, "kernel")
    for _ in range(30):
        layer.kernel
    assert torch.linalg.matrix_norm(layer.kernel, 2).item() == pytest.approx(1, abs=1e-3)


# --------------------------------------------------------------------------------------------------------- the group


class Counter(torch.utils._python_dispatch.TorchDispatchMode):
    """Calls of our ops."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "gankernels":
            self.calls.append(func._opname)
        return func(*args, **(kwargs or {}))


def test_one_call_for_the_whole_model():
    _, ours = pair()
    with Counter() as counter:
        ours(images()).sum().backward()
    assert counter.calls == ["spectral_norm_power_iteration_", "spectral_normalize", "spectral_normalize_bwd"]
    assert all(norm.ready is None for norm in norms_of(ours))


def test_which_layers_join():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 3),
            "norm": nn.LayerNorm((4, 4)),
            "batch": nn.BatchNorm2d(4),
            "embedding": nn.Embedding(5, 4),
            "bag": nn.EmbeddingBag(5, 4),
            "gru": nn.GRU(3, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "bilinear": nn.Bilinear(2, 3, 4),
            "prelu": nn.PReLU(4),
        }
    )
    gk.nn.spectral_norm(model)
    joined = {path for path, m in model.named_modules() if parametrize.is_parametrized(m, "weight")}
    assert joined == {"conv", "embedding", "bag", "attention.out_proj", "bilinear"}


def test_a_layer_alone_iterates_and_a_layer_used_twice_iterates_once():
    _, ours = pair()
    layer = ours[2][2]
    norm, before = layer.parametrizations.weight[0], vectors(layer)
    layer(torch.randn(1, 6, 3, 3, dtype=torch.float64))
    assert norm.ready is None and not torch.equal(before, vectors(layer))

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4, dtype=torch.float64)

        def forward(self, x):
            return self.linear(self.linear(x))

    twice = gk.nn.spectral_norm(Twice())
    once = copy.deepcopy(twice)
    x = torch.randn(2, 4, dtype=torch.float64)
    twice(x)
    once.linear(x)
    assert torch.equal(vectors(twice), vectors(once))


def test_further_parametrisations_apply_to_what_the_group_computed():
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    theirs, ours = pair()
    for model in (theirs, ours):
        parametrize.register_parametrization(model[4], "weight", Double())
    torch.testing.assert_close(theirs(images()), ours(images()), **F64)
    with Counter() as counter:
        ours(images())
    assert len(counter.calls) == 2


def test_a_forward_that_fails_leaves_nothing_behind():
    _, ours = pair()
    with pytest.raises(RuntimeError):
        ours(torch.randn(1, 2, 8, 8, dtype=torch.float64))
    assert all(norm.ready is None for norm in norms_of(ours))


def test_deepcopy_is_independent():
    theirs, ours = pair()
    clone = copy.deepcopy(ours)
    before = vectors(ours), [p.detach().clone() for p in ours.parameters()]
    x = images()
    clone(x).sum().backward()
    with torch.no_grad():
        for p in clone.parameters():
            p.mul_(2)
    assert torch.equal(before[0], vectors(ours)) and all(
        torch.equal(a, b) for a, b in zip(before[1], ours.parameters())
    )
    assert all(p.grad is None for p in ours.parameters()) and all(p.grad is not None for p in clone.parameters())
    state = vectors(clone)
    torch.testing.assert_close(theirs(x), ours(x), **F64)
    assert torch.equal(state, vectors(clone))
    with Counter() as counter:
        clone(x)
    assert len(counter.calls) == 2
    assert copy.deepcopy(ours[2])(torch.randn(1, 8, 6, 6, dtype=torch.float64)).shape == (1, 4, 12, 12)  # a part of it


def test_pickling_says_what_torch_says():
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(pair()[1])


def test_data_parallel_replicas():
    """What nn.parallel.replicate does, on one device: replicas share hooks with the model, and buffers."""
    _, ours = pair()
    reference = copy.deepcopy(ours)
    modules = list(ours.modules())
    replicas = [m._replicate_for_data_parallel() for m in modules]
    for module, replica in zip(modules, replicas):
        for name, child in module._modules.items():
            if child is not None:
                setattr(replica, name, replicas[modules.index(child)])
        for name, p in module._parameters.items():
            if p is not None:
                setattr(replica, name, p.view_as(p))
    x = images()
    with Counter() as counter:
        got = replicas[0](x)
    assert len(counter.calls) == 2
    torch.testing.assert_close(got, reference(x), **F64)
    assert torch.equal(vectors(ours), vectors(reference))
    got.sum().backward()
    reference(x)
    assert all(p.grad is not None for p in ours.parameters())
    assert all(norm.ready is None for replica in replicas for norm in norms_of(replica))


def test_frozen_layers():
    theirs, ours = pair()
    for model in (theirs, ours):
        model[4].requires_grad_(False)
        model[2][0].parametrizations.weight.original.requires_grad_(False)
        read = []
        hook = model[4].register_forward_pre_hook(lambda layer, args: read.append(layer.weight.requires_grad))
        model(images()).sum().backward()
        hook.remove()
        assert read == [False]
    for (name, p), q in zip(theirs.named_parameters(), ours.parameters()):
        assert (p.grad is None) == (q.grad is None), name


def test_some_layers_in_eval():
    theirs, ours = pair()
    for model in (theirs, ours):
        model[2].eval()
        for _ in range(2):
            model(images()).sum().backward()
    assert_same_state(theirs, ours)
    assert_same_grads(theirs, ours)


def test_mixed_dtypes():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).double())
    gk.nn.spectral_norm(model)
    model.forward = lambda x: model[1](model[0](x).double())
    with Counter() as counter:
        model(torch.randn(2, 4)).sum().backward()
    assert len(counter.calls) == 6


def test_no_grad_inference_mode_and_autocast():
    theirs, ours = pair()
    theirs.float(), ours.float()
    x = images().float()
    for context in (torch.no_grad, torch.inference_mode):
        before = vectors(ours)
        with context():
            torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-5)
        assert not torch.equal(before, vectors(ours))
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())
    reference = copy.deepcopy(ours).eval()
    torch.testing.assert_close(y.float(), reference(x), rtol=0.05, atol=0.05)


def test_channels_last_equals_contiguous():
    _, ours = pair()
    moved = copy.deepcopy(ours).to(memory_format=torch.channels_last)
    x = images()
    for model in (ours, moved):
        for _ in range(3):
            model(x).sum().backward()
    assert_same_state(ours, moved)
    assert_same_grads(ours, moved)
    weight = moved[0].parametrizations.weight.original
    assert weight.is_contiguous(memory_format=torch.channels_last) and weight.grad.stride() == weight.stride()


def test_changing_a_weight_before_backward_is_caught():
    _, ours = pair()
    loss = ours(images()).sum()
    with torch.no_grad():
        ours[0].parametrizations.weight.original.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_functional_call():
    _, ours = pair()
    ours.eval()
    other = copy.deepcopy(ours)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    x = images()
    got = torch.func.functional_call(ours, dict(other.named_parameters()), x)
    torch.testing.assert_close(got, other(x), **F64)


def test_sparse_gradients_of_embeddings():
    dense, sparse = nn.Embedding(7, 3, dtype=torch.float64), nn.Embedding(7, 3, sparse=True, dtype=torch.float64)
    sparse.load_state_dict(dense.state_dict())
    for layer in (dense, sparse):
        torch.manual_seed(0)
        gk.nn.spectral_norm(layer)(torch.tensor([1, 5])).square().sum().backward()
    assert_same_grads(dense, sparse)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_model_equals_eager(backend):
    torch._dynamo.reset()
    _, eager = pair()
    model = copy.deepcopy(eager)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for step in range(3):
        x = images(seed=step)
        for m in (eager, compiled):
            (m(x).square().mean() - m(x.flip(0)).mean()).backward()
        assert_same_grads(eager, model)
        assert_same_state(eager, model)
    eager.eval(), model.eval()
    torch.testing.assert_close(compiled(x), eager(x), **F64)
    eager.train(), model.train()
    torch.testing.assert_close(compiled(x), eager(x), **F64)
    assert_same_state(eager, model)


def test_convergence_to_the_largest_singular_value():
    _, ours = pair()
    with torch.no_grad():
        for _ in range(300):
            ours(images())
    ours.eval()
    for layer in layers_of(ours):
        matrix = layer.weight.movedim(int(isinstance(layer, nn.ConvTranspose2d)), 0).flatten(1)
        assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(1, abs=1e-4)


# ------------------------------------------------------------------------------------------------------- state dicts


def test_state_dicts_of_torch_load_both_ways():
    theirs, ours = pair()
    theirs(images())
    ours.load_state_dict(theirs.state_dict())
    assert_same_state(theirs, ours, atol=0, rtol=0)
    ours(images(seed=7))
    theirs.load_state_dict(ours.state_dict())
    theirs.eval(), ours.eval()
    torch.testing.assert_close(theirs(images()), ours(images()), **F64)


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.spectral_norm.*deprecated.*:FutureWarning")
@pytest.mark.parametrize("whole_model", [False, True])
def test_legacy_state_dicts_load_both_ways(whole_model):
    old, ours = network(), network(5)
    for layer in layers_of(old):
        nn.utils.spectral_norm(layer)
    old(images())
    if whole_model:
        gk.nn.spectral_norm(ours, legacy_state_dict=True)
    else:
        for layer in layers_of(ours):
            gk.nn.spectral_norm(layer, legacy_state_dict=True)
    assert set(ours.state_dict()) == set(old.state_dict())
    ours.load_state_dict(old.state_dict())
    assert not any("parametrizations" in key for key in ours.state_dict())
    old.eval(), ours.eval()
    torch.testing.assert_close(old(images()), ours(images()), **F64)
    ours.train()(images())
    old.load_state_dict(ours.state_dict())
    torch.testing.assert_close(old(images()), ours.eval()(images()), **F64)

    modern = gk.nn.spectral_norm(network(6))
    modern.load_state_dict(ours.state_dict())
    clone = copy.deepcopy(ours)
    clone.load_state_dict(modern.state_dict())  # saves the old layout, loads the new one
    assert set(clone.state_dict()) == set(old.state_dict())
    torch.testing.assert_close(old(images()), modern.eval()(images()), **F64)


def test_missing_and_unexpected_keys_are_reported():
    _, ours = pair()
    state = ours.state_dict()
    del state["0.parametrizations.weight.0._u"]
    state["0.weight_u"] = torch.zeros(8)
    with pytest.raises(RuntimeError, match="0.parametrizations.weight.0._u"):
        ours.load_state_dict(state)


# ------------------------------------------------------------------------------------------------- adopting, removing


def test_a_model_made_with_torch_joins_as_it_is():
    theirs, _ = pair(n_power_iterations=2)
    theirs(images())
    ours = gk.nn.spectral_norm(copy.deepcopy(theirs), eps=1.0, n_power_iterations=5)
    assert_same_state(theirs, ours, atol=0, rtol=0)
    for model in (theirs, ours):
        model(images()).sum().backward()
    assert_same_state(theirs, ours)
    assert_same_grads(theirs, ours)
    with Counter() as counter:
        ours(images())
    assert len(counter.calls) == 2


def test_layers_normalised_one_by_one_and_inner_groups_join():
    ours = network()
    gk.nn.spectral_norm(ours[0])
    gk.nn.spectral_norm(ours[2])
    for _ in range(2):  # a second call changes nothing
        gk.nn.spectral_norm(ours)
        with Counter() as counter:
            ours(images())
        assert len(counter.calls) == 2


@pytest.mark.parametrize("part", [None, 0, 2])
def test_remove(part):
    _, ours = pair()
    ours(images())
    want = copy.deepcopy(ours).eval()(images())
    weight = ours[0].parametrizations.weight.original
    state = vectors(ours)
    target = ours if part is None else ours[part]
    assert gk.nn.remove_spectral_norm(target) is target
    if part != 2:
        assert type(ours[0]) is nn.Conv2d and ours[0].weight is weight
        assert not ours[0]._load_state_dict_pre_hooks and not ours[0]._state_dict_hooks
    if part is None:
        assert set(ours.state_dict()) == set(network().state_dict())
        assert not (ours._forward_hooks or ours._forward_pre_hooks or ours._forward_hooks_always_called)
    else:
        assert torch.equal(state[-10:], vectors(ours)[-10:])
    ours.eval()
    torch.testing.assert_close(ours(images()), want, **F64)
    gk.nn.spectral_norm(ours)
    ours(images())


def test_replaced_layers_are_left_alone():
    _, ours = pair()
    ours[0] = nn.Conv2d(3, 8, 3, dtype=torch.float64)
    del ours[2][1]
    ours(images()).sum().backward()
    assert ours[0].weight.grad is not None


# --------------------------------------------------------------------------------------------------------- bad input


class Nested(nn.Module):
    def __init__(self, bad):
        super().__init__()
        self.good, self.bad = nn.Linear(3, 4), bad


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize(
    "make, options, error, message",
    [
        (lambda: torch.randn(3, 4), {}, TypeError, "module must be a torch.nn.Module, got Tensor"),
        (lambda: nn.Linear(3, 4), {"n_power_iterations": 0}, ValueError, "n_power_iterations must be an integer >= 1, got 0"),
        (lambda: nn.Linear(3, 4), {"n_power_iterations": 1.5}, ValueError, "n_power_iterations must be an integer >= 1, got 1.5"),
        (lambda: nn.Linear(3, 4), {"eps": -1.0}, ValueError, "eps must be a finite number >= 0, got -1.0"),
        (lambda: nn.Linear(3, 4), {"eps": float("nan")}, ValueError, "eps must be a finite number >= 0, got nan"),
        (lambda: nn.Linear(3, 4), {"eps": "small"}, TypeError, "eps must be a finite number >= 0, got str"),
        (lambda: nn.Linear(3, 4), {"dim": 2}, ValueError, r"dim must be an integer in \[-2, 2\) for weight, got 2"),
        (lambda: Nested(nn.Conv1d(3, 4, 3)), {"dim": 2}, ValueError, r"dim must be an integer in \[-2, 2\) for good.weight, got 2"),
        (lambda: nn.ReLU(), {}, ValueError, "module must have a parameter 'weight' or a convolution.*got ReLU with none"),
        (lambda: nn.Linear(3, 4), {"name": "kernel"}, ValueError, "must have a parameter 'kernel'.*got Linear with none"),
        (lambda: gk.nn.spectral_norm(nn.Linear(3, 4)), {}, ValueError, "weight of the module already has spectral norm"),
        (lambda: stock(nn.Linear(3, 4)), {}, ValueError, "weight of the module already has spectral norm"),
        (lambda: Nested(nn.utils.spectral_norm(nn.Linear(3, 4))), {}, ValueError, "bad.weight already has.*deprecated"),
        (lambda: nn.utils.spectral_norm(nn.Linear(3, 4)), {}, ValueError, "weight already has.*deprecated"),
        (lambda: Nested(nn.LazyLinear(4)), {}, ValueError, "bad.weight of a lazy layer has no shape yet"),
        (lambda: Nested(nn.Linear(3, 4, dtype=torch.complex64)), {}, TypeError, "bad.weight must be float64.*got complex64"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(make, options, error, message):
    module = make()
    before = list(module.state_dict()) if isinstance(module, nn.Module) else None
    random = torch.get_rng_state()
    with pytest.raises(error, match=f"^gankernels.spectral_norm: .*{message}"):
        gk.nn.spectral_norm(module, **options)
    assert torch.equal(random, torch.get_rng_state())
    if before is not None:
        assert list(module.state_dict()) == before and not module._forward_hooks


def test_bad_input_of_remove():
    with pytest.raises(TypeError, match="^gankernels.remove_spectral_norm: module must be"):
        gk.nn.remove_spectral_norm(3)
    with pytest.raises(ValueError, match="^gankernels.remove_spectral_norm: .*must have spectral norm.*Linear without"):
        gk.nn.remove_spectral_norm(nn.Linear(2, 2))
    layer = gk.nn.spectral_norm(nn.Linear(3, 3))
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    with pytest.raises(ValueError, match="^gankernels.remove_spectral_norm: .*no further parametrisation, got 2"):
        gk.nn.remove_spectral_norm(layer)
    assert parametrize.is_parametrized(layer, "weight")


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(weights=[]), "weights must not be empty|one entry per weight"),
        (dict(weights=[torch.randn(3)]), "must have 2 or more dimensions"),
        (dict(dims=[2]), "dims.0. must be in"),
        (dict(dims=[]), "dims must have one entry per weight"),
        (dict(u=[torch.ones(4)]), r"u.0. must be a contiguous Float tensor of shape \(3,\), got Float of shape \(4,\)"),
        (dict(v=[torch.ones(4).double()]), "v.0. must be a contiguous Float tensor"),
        (dict(v=[torch.ones(8)[::2]]), "v.0. must be a contiguous"),
        (dict(u=[]), "one tensor per weight"),
        (dict(iterations=-1), "iterations must be >= 0, got -1"),
        (dict(eps=float("nan")), "eps must be finite and >= 0"),
        (
            dict(weights=[torch.ones(3, 4).long()], u=[torch.ones(3).long()], v=[torch.ones(4).long()]),
            "weights.0. must be float64, float32, bfloat16 or float16, got Long",
        ),
        (dict(weights=[torch.randn(3, 4), torch.randn(3, 4).double()], dims=[0, 0]), "one dtype"),
    ],
)
def test_bad_input_of_the_op_modifies_nothing(change, message):
    call = (
        dict(weights=[torch.randn(3, 4)], u=[torch.ones(3)], v=[torch.ones(4)], dims=[0], iterations=1, eps=1e-12)
        | change
    )
    before = [t.clone() for t in (*call["u"], *call["v"])]
    with pytest.raises(RuntimeError, match=f"gankernels.spectral_norm_power_iteration_: .*({message})"):
        _op.spectral_norm_power_iteration_(*call.values())
    assert all(torch.equal(a, b) for a, b in zip(before, (*call["u"], *call["v"])))


def test_bad_input_of_the_derivatives():
    weights, u, v, dims = group()
    uv, sigma = _op.spectral_norm_power_iteration_(weights, u, v, dims, 0, 1e-12)
    with pytest.raises(RuntimeError, match="gankernels.spectral_normalize: uv must be a contiguous Double tensor"):
        _op.spectral_normalize(weights, uv[1:], sigma, dims)
    with pytest.raises(RuntimeError, match="gankernels.spectral_normalize: sigma must be a contiguous Double tensor"):
        _op.spectral_normalize(weights, uv, sigma.float(), dims)
    with pytest.raises(RuntimeError, match="gankernels.spectral_normalize_bwd: layers must be in"):
        _op.spectral_normalize_bwd([weights[0]], weights, uv, sigma, dims, [len(weights)])
    with pytest.raises(RuntimeError, match="gankernels.spectral_normalize_bwd: grads must have one tensor per entry"):
        _op.spectral_normalize_bwd([weights[0]], weights, uv, sigma, dims, [0, 1])
    with pytest.raises(
        RuntimeError, match="gankernels.spectral_normalize_bwd: grads must have the shape of its weight"
    ):
        _op.spectral_normalize_bwd([weights[0]], weights, uv, sigma, dims, [1])
