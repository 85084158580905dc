"""gk.optim against torch.optim, followed by the loops that clip and average, in float64 to 1e-12."""

import copy
import io
import itertools
import math
import pickle

import pytest
import torch
from torch import nn

import gankernels as gk

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_op = torch.ops.gankernels


def parameters(dtype=torch.float64, device="cpu"):
    torch.manual_seed(1)
    weights = [torch.randn(shape, dtype=torch.float64) * 0.1 for shape in ((), (7,), (0,), (33, 5), (16390,))]
    weights.append((torch.randn(4, 3, 3, 3, dtype=torch.float64) * 0.1).to(memory_format=torch.channels_last))
    weights.append((torch.randn(6, 5, dtype=torch.float64) * 0.1).t())
    return [nn.Parameter(w.to(device, dtype)) for w in weights]


def set_gradients(params, seed):
    torch.manual_seed(seed)
    for p in params:
        # contiguous whatever the layout of the parameter, and no two steps share a tensor
        p.grad = (torch.randn(p.shape, dtype=torch.float64) * 0.3 + 0.05).to(p.device, p.dtype)


def stock_step(optimizer, params, clip, ema, ema_decay):
    optimizer.step()
    with torch.no_grad():
        if clip is not None:
            for p in params:
                p.clamp_(-clip, clip)
        for average, p in zip(ema or (), params):
            average.lerp_(p, 1 - ema_decay)


def averages(params):
    return [torch.empty_like(p).copy_(p.detach()).requires_grad_(False) for p in params]


def train(ours, stock, options, clip=None, with_ema=False, steps=4, dtype=torch.float64, device="cpu"):
    """The same steps by both; returns ((parameters, averages, optimizer) of ours, ... of stock)."""
    a, b = parameters(dtype, device), parameters(dtype, device)
    ema_a, ema_b = (averages(a), averages(b)) if with_ema else (None, None)
    mine = ours(a, clip=clip, ema=ema_a, ema_decay=0.9, **options)
    theirs = stock(b, **options)
    for seed in range(steps):
        set_gradients(a, seed)
        set_gradients(b, seed)
        if seed == 1:  # a parameter without a gradient is clipped and averaged, but not updated
            a[3].grad = b[3].grad = None
        mine.step()
        stock_step(theirs, b, clip, ema_b, 0.9)
    return (a, ema_a, mine), (b, ema_b, theirs)


def assert_same_state(mine, theirs, **tolerance):
    mine, theirs = mine.state_dict()["state"], theirs.state_dict()["state"]
    assert mine.keys() == theirs.keys()
    for i in mine:
        assert mine[i].keys() == theirs[i].keys()
        for key in mine[i]:
            torch.testing.assert_close(mine[i][key], theirs[i][key], **tolerance)


EXACT = dict(rtol=1e-12, atol=1e-12)
RMSPROP = [
    dict(momentum=momentum, centered=centered, weight_decay=decay, maximize=maximize)
    for momentum, centered, decay, maximize in itertools.product((0, 0.9), (False, True), (0, 0.1), (False, True))
]
ADAM = [
    dict(amsgrad=amsgrad, weight_decay=decay, decoupled_weight_decay=decoupled, maximize=maximize)
    for amsgrad, (decay, decoupled), maximize in itertools.product(
        (False, True), ((0, False), (0.1, False), (0.1, True)), (False, True)
    )
]
CASES = [(gk.optim.RMSprop, torch.optim.RMSprop, o) for o in RMSPROP] + [
    (gk.optim.Adam, torch.optim.Adam, o) for o in ADAM
]
BOTH = [CASES[0], (gk.optim.Adam, torch.optim.Adam, {})]
OPTIONS = [
    (gk.optim.RMSprop, torch.optim.RMSprop, dict(momentum=0.5, centered=True, lr=0.02)),
    (gk.optim.Adam, torch.optim.Adam, dict(amsgrad=True, weight_decay=0.02, betas=(0.5, 0.9))),
]


def name_of(case):
    return "-".join([case[0].__name__, *(f"{key}={value}" for key, value in case[2].items() if value)])


each_case = pytest.mark.parametrize("case", CASES, ids=name_of)
both = pytest.mark.parametrize("case", BOTH, ids=name_of)
with_options = pytest.mark.parametrize("case", OPTIONS, ids=lambda case: case[0].__name__)


@each_case
@pytest.mark.parametrize("clip, with_ema", [(None, False), (0.09, False), (None, True), (0.09, True)])
def test_equals_torch(case, clip, with_ema, device):
    ours, stock, options = case
    (a, ema_a, mine), (b, ema_b, theirs) = train(ours, stock, options, clip, with_ema, device=device)
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, **EXACT)
        assert x.stride() == y.stride()
        assert clip is None or x.numel() == 0 or x.abs().max() <= clip
    for x, y in zip(ema_a or (), ema_b or ()):
        torch.testing.assert_close(x, y, **EXACT)
    assert_same_state(mine, theirs, **EXACT)


@with_options
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_other_dtypes(case, dtype, device):
    """No further from the float64 result than stock, up to a few units in the last place."""
    ours, stock, options = case
    exact, _ = train(ours, stock, options, 0.09, True)
    (a, ema_a, _), (b, ema_b, _) = train(ours, stock, options, 0.09, True, dtype=dtype, device=device)
    # the float64 run starts from unrounded weights, which alone is an error of half a unit
    ulp = 2 * torch.finfo(dtype).eps
    for mine, theirs, want in zip(a + ema_a, b + ema_b, exact[0] + exact[1]):
        if want.numel() == 0:
            continue
        error, stock_error = ((t.double().cpu() - want).abs().max().item() for t in (mine, theirs))
        assert error <= 1.5 * stock_error + ulp * want.abs().max().item()


@both
def test_parameters_of_several_dtypes(case, device):
    ours = case[0]
    a = [nn.Parameter(torch.ones(50 + i, dtype=dtype, device=device)) for i, dtype in enumerate(DTYPES)]
    for p in a:
        p.grad = torch.ones_like(p)
    optimizer = ours(a, lr=0.25, clip=0.5)
    optimizer.step()
    assert all(p.abs().eq(0.5).all() for p in a)


@both
def test_memory_that_is_not_dense(case, device):
    """Parameters, gradients and averages in layouts of their own."""
    ours, stock, _ = case
    torch.manual_seed(0)
    a = nn.Parameter(torch.randn(8, 12, dtype=torch.float64, device=device)[:, ::2])
    ema = torch.zeros(6, 16, dtype=torch.float64, device=device)[:, ::2].t()
    b = nn.Parameter(a.detach().clone())
    average = ema.clone()
    mine, theirs = ours([a], clip=0.8, ema=[ema], ema_decay=0.9), stock([b])
    for _ in range(3):
        gradient = torch.randn(6, 8, dtype=torch.float64, device=device).t()
        a.grad, b.grad = gradient, gradient.contiguous()
        mine.step()
        stock_step(theirs, [b], 0.8, [average], 0.9)
    torch.testing.assert_close(a, b, **EXACT)
    torch.testing.assert_close(ema, average, **EXACT)
    a.grad = torch.ones((), dtype=torch.float64, device=device).expand(8, 6)  # what sum().backward() delivers
    b.grad = torch.ones(8, 6, dtype=torch.float64, device=device)
    mine.step()
    stock_step(theirs, [b], 0.8, [average], 0.9)
    torch.testing.assert_close(a, b, **EXACT)


@with_options
def test_torch_loads_ours_and_ours_loads_torchs(case, device):
    ours, stock, options = case
    (a, _, mine), (b, _, theirs) = train(ours, stock, options, device=device)

    def through_a_file(state):
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    swapped_mine, swapped_theirs = ours(b, clip=0.05, ema_decay=0.5), stock(a)
    swapped_mine.load_state_dict(through_a_file(theirs.state_dict()))
    swapped_theirs.load_state_dict(through_a_file(mine.state_dict()))
    group = swapped_mine.param_groups[0]
    assert (group["clip"], group["ema_decay"]) == (0.05, 0.5)  # torch's state dict says nothing of them
    assert all(group[key] == value for key, value in options.items())
    group["clip"] = None
    for seed in range(10, 13):
        set_gradients(a, seed)
        set_gradients(b, seed)
        swapped_mine.step()
        swapped_theirs.step()
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, **EXACT)
    assert_same_state(swapped_mine, swapped_theirs, **EXACT)


@with_options
def test_resumes_to_the_bit(case, device):
    ours, stock, options = case
    (a, ema, mine), _ = train(ours, stock, options, 0.09, True, device=device)
    b, other_ema = copy.deepcopy(a), copy.deepcopy(ema)
    resumed = ours(b, clip=1.0, ema=other_ema)
    resumed.load_state_dict(copy.deepcopy(mine.state_dict()))  # else the two share their state
    assert resumed.param_groups[0]["clip"] == 0.09
    for params, optimizer in ((a, mine), (b, resumed)):
        set_gradients(params, 20)
        optimizer.step()
    assert all(torch.equal(x, y) for x, y in zip(a + ema, b + other_ema))


@with_options
def test_pickle_and_deepcopy_keep_the_average(case):
    ours, _, options = case
    p, ema = nn.Parameter(torch.ones(3)), torch.zeros(3)
    optimizer = ours([p], ema=[ema], ema_decay=0.5, **options)
    p.grad = torch.ones(3)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        parameter = copied.param_groups[0]["params"][0]
        parameter.grad = torch.ones(3)
        copied.step()
        assert copied._ema[parameter].gt(0).all() and ema.eq(0).all()


@both
def test_groups_schedules_and_closures(case, device):
    ours, stock, _ = case
    a, b = parameters(device=device), parameters(device=device)

    def groups(params):
        return [dict(params=params[:3]), dict(params=params[3:], lr=0.5, weight_decay=0.01)]

    mine, theirs = ours(groups(a)), stock(groups(b))
    mine.param_groups[1]["clip"] = 0.08
    schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5) for optimizer in (mine, theirs)]
    for seed in range(3):
        losses = []
        for optimizer, params in ((mine, a), (theirs, b)):

            def closure(optimizer=optimizer, params=params, seed=seed):
                optimizer.zero_grad()
                loss = sum((p * (i + 1 + seed)).square().sum() for i, p in enumerate(params))
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).item())
        with torch.no_grad():
            for p in b[3:]:
                p.clamp_(-0.08, 0.08)
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
        for scheduler in schedulers:
            scheduler.step()
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, **EXACT)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_learning_rate_as_a_tensor(case, dtype, device):
    ours, _, _ = case
    a, b = parameters(device=device), parameters(device=device)
    lr = torch.tensor(0.5, dtype=dtype, device=device)
    by_tensor, by_number = ours(a, lr=lr), ours(b, lr=0.5)
    for seed in range(2):
        for params, optimizer in ((a, by_tensor), (b, by_number)):
            set_gradients(params, seed)
            optimizer.step()
        lr.fill_(0.25)
        by_number.param_groups[0]["lr"] = 0.25
    assert all(torch.equal(x, y) for x, y in zip(a, b))


@both
def test_weights_and_state_are_seen_to_change(case, device):
    ours, _, _ = case
    w = torch.ones(3, device=device, requires_grad=True)
    average = torch.zeros(3, device=device)
    optimizer = ours([w], ema=[average])
    y = (w * w).sum()
    w.grad = torch.ones(3, device=device)
    versions = w._version, average._version
    optimizer.step()
    assert w._version > versions[0] and average._version > versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@both
def test_nan_gradients_give_nan_weights(case, device):
    ours, _, _ = case
    w = nn.Parameter(torch.zeros(40, device=device))
    w.grad = torch.zeros(40, device=device)
    w.grad[7] = math.nan
    ours([w], clip=0.1).step()
    assert w[7].isnan() and w.isnan().sum() == 1


@both
def test_gradient_scaler(case):
    ours, stock, _ = case
    a, b = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    for p, optimizer in ((a, ours([a], lr=0.1)), (b, stock([b], lr=0.1))):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for factor in (1.0, math.inf):
            optimizer.zero_grad()
            scaler.scale((p * factor).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    torch.testing.assert_close(a, b)


@with_options
def test_in_a_compiled_step(case, device):
    ours, _, options = case

    def run(compiled):
        torch.manual_seed(0)
        layer = nn.Linear(4, 3).to(device)
        average = averages(layer.parameters())
        optimizer = ours(layer.parameters(), clip=0.3, ema=average, **options)

        def step(x):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()

        step = torch.compile(step, backend="aot_eager") if compiled else step
        for i in range(3):
            step(torch.full((2, 4), 0.1 * (i + 1), device=device))
        return [*layer.parameters(), *average]

    for x, y in zip(run(False), run(True)):
        torch.testing.assert_close(x, y)


@with_options
def test_many_and_large_tensors_do_not_depend_on_threads(case):
    ours, _, options = case
    threads, results = torch.get_num_threads(), []
    for n in (1, 3):
        torch.set_num_threads(n)
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(size)) for size in [*range(1, 60), 300_001, 40_000]]
        optimizer = ours(params, clip=0.7, **options)
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        results.append(params)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results))


BAD = [
    (dict(lr=-1.0), ValueError, "lr must be a finite number >= 0, got -1"),
    (dict(lr=math.nan), ValueError, "lr must be a finite number"),
    (dict(lr="1"), TypeError, "lr must be a finite number"),
    (dict(lr=torch.ones(2)), ValueError, "lr must be a number or one float32 or float64 number in a tensor"),
    (dict(eps=-1e-8), ValueError, "eps must be a finite number >= 0"),
    (dict(weight_decay=-0.1), ValueError, "weight_decay must be a finite number >= 0"),
    (dict(clip=0), ValueError, "clip must be a finite number > 0, got 0"),
    (dict(clip=math.inf), ValueError, "clip must be a finite number > 0, got inf"),
    (dict(ema_decay=1.5), ValueError, r"ema_decay must be a number in \[0, 1\], got 1.5"),
    (dict(ema=[]), ValueError, "ema must hold one tensor per parameter, 1, got 0"),
    (
        dict(ema=[torch.ones(2)]),
        ValueError,
        r"ema\[0\] must match its parameter, float32 \(3,\) on cpu, got float32 \(2,\) on cpu",
    ),
    (
        dict(ema=[torch.ones(3, dtype=torch.float64)]),
        ValueError,
        r"ema\[0\] must match its parameter, .* got float64 \(3,\)",
    ),
    (dict(ema=[None]), TypeError, r"ema\[0\] must be a tensor, got NoneType"),
]


@pytest.mark.parametrize("optimizer", [gk.optim.RMSprop, gk.optim.Adam])
@pytest.mark.parametrize("options, error, sentence", BAD)
def test_bad_options(optimizer, options, error, sentence):
    with pytest.raises(error, match=rf"^gankernels\.optim\.{optimizer.__name__}: {sentence}"):
        optimizer([nn.Parameter(torch.ones(3))], **options)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda p: gk.optim.RMSprop(p, alpha=1.1), r"optim\.RMSprop: alpha must be a number in \[0, 1\], got 1.1"),
        (lambda p: gk.optim.RMSprop(p, momentum=-1), r"optim\.RMSprop: momentum must be a finite number >= 0, got -1"),
        (
            lambda p: gk.optim.Adam(p, betas=(0.9, 1.0)),
            r"optim\.Adam: betas\[1\] must be a number in \[0, 1\), got 1.0",
        ),
        (lambda p: gk.optim.Adam(p, ema=p), r"optim\.Adam: ema\[0\] must have its own memory"),
    ],
)
def test_bad_options_of_one(make, sentence):
    with pytest.raises(ValueError, match=rf"^gankernels\.{sentence}"):
        make([nn.Parameter(torch.ones(3))])


@both
def test_bad_parameters_and_gradients(case):
    ours = case[0]
    with pytest.raises(TypeError, match=r"params\[0\] must be float64, float32, bfloat16 or float16, got complex64"):
        ours([nn.Parameter(torch.ones(3, dtype=torch.complex64))])
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = ours([a, b])
    a.grad, b.grad = torch.ones(3), torch.ones(3).to_sparse()
    with pytest.raises(TypeError, match="gradients must be dense, got a sparse one of shape"):
        optimizer.step()
    assert a.eq(1).all() and not optimizer.state
    optimizer = ours([a], ema=[b.detach().clone()])
    with pytest.raises(ValueError, match="parameters cannot be added to an optimizer made with ema"):
        optimizer.add_param_group(dict(params=[b]))


def op_arguments(name, n=2):
    """Arguments of rmsprop_ or adam_ with everything in use."""
    torch.manual_seed(0)
    lists = [
        [torch.rand(4, 3) + (i == 2) for _ in range(n)] for i in range(5)
    ]  # square_avg above the square of grad_avg
    steps = [torch.zeros(()) for _ in range(n)]
    numbers = dict(lr=0.1, lr_tensor=None, eps=1e-8, weight_decay=0.1, maximize=False, clip=0.5, ema_decay=0.9)
    if name == "rmsprop_":
        numbers.update(alpha=0.9, momentum=0.5)
    else:
        numbers.update(beta1=0.5, beta2=0.9, decoupled_weight_decay=False)
    return [*lists, steps, [torch.rand(4, 3) for _ in range(n)]], numbers


each_op = pytest.mark.parametrize("name", ["rmsprop_", "adam_"])


@each_op
def test_reference_and_opcheck(name):
    tensors, numbers = op_arguments(name)
    expected = copy.deepcopy(tensors)
    getattr(_op, name)(*tensors, **numbers)
    getattr(gk.reference, name)(*expected, **numbers)
    for got, want in zip(tensors, expected):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    tensors, numbers = op_arguments(name)
    torch.library.opcheck(getattr(_op, name).default, tuple(tensors), numbers)


@each_op
@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda tensors, numbers: numbers.update(clip=-1.0), "clip must be a finite number > 0, got -1"),
        (lambda tensors, numbers: numbers.update(lr=-1.0), "lr must be a finite number >= 0, got -1"),
        (lambda tensors, numbers: numbers.update(eps=math.nan), "eps must be a finite number >= 0, got nan"),
        (lambda tensors, numbers: numbers.update(ema_decay=2.0), "ema_decay must be a finite number >= 0 and <= 1"),
        (
            lambda tensors, numbers: numbers.update(lr_tensor=torch.ones(2)),
            r"lr_tensor must be one float32 or float64 number",
        ),
        (lambda tensors, numbers: tensors[1].pop(), "grads must hold one tensor per weight, 2, got 1"),
        (lambda tensors, numbers: tensors[2].clear(), "must hold one tensor per weight, 2, got 0"),
        (lambda tensors, numbers: tensors[5].pop(), "steps must hold one tensor per weight, 2, got 1"),
        (lambda tensors, numbers: tensors[5].__setitem__(0, torch.zeros(2)), r"steps\[0\] must be one float32 number"),
        (
            lambda tensors, numbers: tensors[6].__setitem__(1, torch.zeros(3, 4)),
            r"ema must have the shape of its weight, \(4, 3\)",
        ),
        (
            lambda tensors, numbers: tensors[1].__setitem__(1, torch.zeros(4, 3).double()),
            "grads must have the dtype of its weight",
        ),
    ],
)
def test_bad_arguments_of_the_op(name, change, sentence):
    tensors, numbers = op_arguments(name)
    change(tensors, numbers)
    before = copy.deepcopy(tensors)
    with pytest.raises(RuntimeError, match=rf"gankernels\.{name}: .*{sentence}"):
        getattr(_op, name)(*tensors, **numbers)
    assert all(torch.equal(a, b) for got, want in zip(tensors, before) for a, b in zip(got, want))


@pytest.mark.gpu
@with_options
def test_cuda_graph(case):
    """Capturable: step counts and learning rate on the device, no host synchronisation."""
    ours, stock, options = case
    lr = torch.tensor(0.01, device="cuda")
    a, b = parameters(torch.float32, "cuda"), parameters(torch.float32, "cuda")
    options = {**options, "lr": lr, "capturable": True}
    mine, theirs = ours(a, clip=0.09, **options), stock(b, **options)
    for params in (a, b):
        set_gradients(params, 0)
    for _ in range(2):
        mine.step()
        stock_step(theirs, b, 0.09, None, 0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mine.step()
    lr.fill_(0.005)
    for _ in range(3):
        graph.replay()
        stock_step(theirs, b, 0.09, None, 0)
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    assert_same_state(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@with_options
def test_weights_that_missed_steps(case):
    ours, stock, options = case
    (a, _, _), (b, _, _) = train(ours, stock, options, device="cuda")
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, **EXACT)
