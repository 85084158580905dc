"""Loss and penalty in one backward against stock autograd: random critics, critics that relate samples, passes counted, ways of use."""

import gc

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import gankernels as gk
from tests.ops.test_fast_double_backward import ConvolutionCalls, convolutions_of_compiled, critic
from tests.ops.test_penalties import CRITICS, batch

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

GAMMA = 3.0


def softplus_loss(scores):
    return F.softplus(-scores).mean()


def stock_loss(model, x, loss=softplus_loss, args=()):
    x = x.detach().clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # stock's other attention differentiates once
        outputs = model(x, *args)
    scores = outputs[0] if isinstance(outputs, tuple) else outputs
    (g,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return loss(scores) + GAMMA / 2 * g.flatten(1).square().sum(1).mean()


def our_loss(model, x, loss=softplus_loss, args=(), **options):
    regularized = gk.regularized_scores(model, x, GAMMA, critic_args=args, **options)
    return loss(regularized.scores) + regularized.penalty


def folded(model, x, **options):
    """Whether loss and penalty share a backward."""
    return "Regularized" in gk.regularized_scores(model, x, GAMMA, **options).penalty.grad_fn.name()


def gradients(loss, parameters):
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


def assert_equal_to_stock(model, x, loss=softplus_loss, args=(), tolerance=1e-10, ours=our_loss):
    parameters = [p for p in model.parameters() if p.requires_grad]
    theirs = stock_loss(model, x, loss, args)
    stock = gradients(theirs, parameters)
    mine = ours(model, x, loss, args)
    assert torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance)
    scale = max([1.0, *(float(g.abs().max()) for g in stock if g.numel())])
    for a, b in zip(gradients(mine, parameters), stock, strict=True):
        assert (a - b).abs().max() <= tolerance * scale


# --- random critics ---


class Scale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.randn(channels, 1, 1)), nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x):
        return x * self.scale + self.offset


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Twice(nn.Sequential):
    """A shared sub-module."""

    def forward(self, x):
        return super().forward(super().forward(x))


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.value, self.gate = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.value(x) * torch.sigmoid(self.gate(x))


class Branches(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.left, self.right = nn.Conv2d(channels, 2, 1), nn.Conv2d(channels, 2, 3, padding=1)

    def forward(self, x):
        a, b = torch.cat([F.relu(self.left(x)), self.right(x)], 1).chunk(2, 1)
        return torch.cat([a[:, :1], b, a], 1)


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).flatten(2).transpose(1, 2).chunk(3, -1)
        return (torch.softmax(q @ k.mT, -1) @ v).transpose(1, 2).reshape(x.shape)


class Statistic(nn.Module):
    """Minibatch standard deviation: relates samples."""

    def forward(self, x):
        deviation = (x.var(0, correction=0) + 1e-8).sqrt().mean()
        return torch.cat([x, deviation.expand(len(x), 1, *x.shape[2:])], 1)


class HeadsAttention(Attention):
    def forward(self, x):
        q, k, v = self.qkv(x).flatten(2).mT.unsqueeze(1).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v).squeeze(1).mT.reshape(x.shape)


class BiasAct(nn.Module):
    """gk.bias_act with a bias, and without."""

    def __init__(self, channels, act):
        super().__init__()
        self.act, self.bias = act, nn.Parameter(torch.randn(channels))

    def forward(self, x):
        return gk.bias_act(gk.bias_act(x, self.bias, act=self.act), act="lrelu", clamp=2.0)


class FilteredLeakyReLU(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(channels))
        self.register_buffer("f", gk.setup_filter([1, 3, 3, 1]))

    def forward(self, x):
        return gk.filtered_lrelu(x, self.f, self.f, self.bias, up=2, down=2, padding=3, clamp=3.0)


class Warp(nn.Module):
    """Samples the image where a layer of it says."""

    def __init__(self, channels):
        super().__init__()
        self.where = nn.Conv2d(channels, 2, 1)

    def forward(self, x):
        return gk.grid_sample(x, torch.tanh(self.where(x)).permute(0, 2, 3, 1))


class Projection(nn.Module):
    """Scores projected on labels."""

    def __init__(self, features):
        super().__init__()
        self.score, self.embed = nn.Linear(features, 1), nn.Embedding(3, features)
        self.register_buffer("labels", torch.tensor([0, 2, 0]))

    def forward(self, x):
        x = x.flatten(1)
        return self.score(x) + (self.embed(self.labels[: len(x)]) * x).sum(1, keepdim=True)


def spectral(channels):
    """Normalised by an estimate of the norm that stands still."""
    return gk.nn.spectral_norm(nn.Conv2d(channels, 3, 3, padding=1)).eval()


class Sequence(nn.Module):
    """Periods of a signal as rows, as vocoders' discriminators read it."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), groups=channels)

    def forward(self, x):
        n, c, h, w = x.shape
        signal = F.pad(x.reshape(n, c, h * w), (1, 2), "reflect")[..., : h * w]
        return F.leaky_relu(self.conv(signal.reshape(n, c, w, h)).reshape(x.shape), 0.1)


class Signal(nn.Module):
    """Pixels in order as a signal."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv1d(channels, 3, 5, padding=2)

    def forward(self, x):
        return self.conv(x.flatten(2)).reshape(len(x), -1, *x.shape[2:])


class OverChannels(nn.Module):
    """A norm of each pixel's channels, as transformers have it."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Outputs(nn.Module):
    """The score, and features from the same trunk."""

    def __init__(self, features):
        super().__init__()
        self.score, self.classes = nn.Linear(features, 1), nn.Linear(features, 3)

    def forward(self, x):
        x = x.flatten(1)
        return self.score(x), self.classes(x)


def frozen(module):
    return module.requires_grad_(False)


# name -> c -> (module on c channels, channels after it)
LAYERS = {
    "conv": lambda c: (nn.Conv2d(c, 3, 3, padding=1), 3),
    "conv_strided": lambda c: (nn.Conv2d(c, 4, 4, 2, 1), 4),
    "conv_grouped": lambda c: (nn.Conv2d(c, 2 * c, 3, padding=1, groups=c, bias=False), 2 * c),
    "conv_reflect": lambda c: (nn.Conv2d(c, 2, 3, padding=1, padding_mode="reflect"), 2),
    "conv_frozen": lambda c: (frozen(nn.Conv2d(c, 3, 3, padding=1)), 3),
    "conv_transposed": lambda c: (nn.ConvTranspose2d(c, 2, 3, 1, 1), 2),
    "conv_1d": lambda c: (Signal(c), 3),
    "twice": lambda c: (Twice(nn.Conv2d(c, c, 3, padding=1), nn.LeakyReLU(0.2)), c),
    "residual": lambda c: (
        Residual(nn.Sequential(nn.Conv2d(c, 3, 1), nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(3, c, 3, padding=1))),
        c,
    ),
    "branches": lambda c: (Branches(c), 5),
    "gate": lambda c: (Gate(c), c),
    "attention": lambda c: (Attention(c), c),
    "heads_attention": lambda c: (HeadsAttention(c), c),
    "sequence": lambda c: (Sequence(c), c),
    "spectral_norm": lambda c: (spectral(c), 3),
    "bias_act": lambda c: (BiasAct(c, "lrelu"), c),
    "bias_act_smooth": lambda c: (BiasAct(c, "swish"), c),
    "filtered_lrelu": lambda c: (FilteredLeakyReLU(c), c),
    "pixel_norm": lambda c: (gk.nn.PixelNorm(), c),
    "blur": lambda c: (gk.nn.Blur([1, 3, 3, 1], (2, 1)), c),
    "downsample": lambda c: (gk.nn.Downsample(), c),
    "warp": lambda c: (Warp(c), c),
    "scale": lambda c: (Scale(c), c),
    "leaky_relu": lambda c: (nn.LeakyReLU(0.2), c),
    "relu": lambda c: (nn.ReLU(), c),
    "hardtanh": lambda c: (nn.Hardtanh(), c),
    "silu": lambda c: (nn.SiLU(), c),
    "gelu": lambda c: (nn.GELU(), c),
    "tanh": lambda c: (nn.Tanh(), c),
    "softplus": lambda c: (nn.Softplus(), c),
    "elu": lambda c: (nn.ELU(), c),
    "layer_norm": lambda c: (OverChannels(nn.LayerNorm(c)), c),
    "rms_norm": lambda c: (OverChannels(nn.RMSNorm(c, eps=1e-5)), c),
    "group_norm": lambda c: (nn.GroupNorm(1, c), c),
    "batch_norm_eval": lambda c: (nn.BatchNorm2d(c).eval(), c),
    "batch_norm": lambda c: (nn.BatchNorm2d(c), c),
    "instance_norm": lambda c: (nn.InstanceNorm2d(c, affine=True), c),
    "statistic": lambda c: (Statistic(), c + 1),
    "minibatch_stddev": lambda c: (gk.nn.MinibatchStdDev(), c + 1),
    "max_pool": lambda c: (nn.MaxPool2d(3, 1, 1), c),
    "avg_pool": lambda c: (nn.AvgPool2d(2), c),
    "upsample_nearest": lambda c: (nn.Upsample(scale_factor=2), c),
    "upsample": lambda c: (nn.Upsample(scale_factor=2, mode="bilinear"), c),
    "pixel_shuffle": lambda c: (nn.Sequential(nn.Conv2d(c, 8, 1), nn.PixelShuffle(2)), 2),
    "pixel_unshuffle": lambda c: (nn.PixelUnshuffle(2), 4 * c),
}
RELATES_SAMPLES = {"batch_norm", "statistic", "minibatch_stddev"}
HALVING = {"conv_strided", "avg_pool", "pixel_unshuffle", "downsample"}
DOUBLING = {"upsample", "upsample_nearest", "pixel_shuffle"}
HEADS = {
    "flatten": lambda c, s: nn.Sequential(nn.Flatten(), nn.Linear(c * s * s, 1)),
    "pool": lambda c, s: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 3), nn.ReLU(), nn.Linear(3, 1)
    ),
    "conv": lambda c, s: nn.Sequential(nn.Conv2d(c, 1, s), nn.Flatten(0)),
    "projection": lambda c, s: Projection(c * s * s),
    "outputs": lambda c, s: Outputs(c * s * s),
    "layer_norm": lambda c, s: nn.Sequential(nn.Flatten(), nn.LayerNorm(c * s * s), nn.Linear(c * s * s, 1)),
    "patches": lambda c, s: nn.Conv2d(c, 1, 1),  # several scores per sample
}


class RandomCritic(nn.Sequential):
    def __init__(self, layers, head, size=4):
        channels, modules, relates = 2, [], head == "patches"
        for name in layers:
            if name in HALVING and size < 4 or name in DOUBLING and size > 4:
                continue
            module, after = LAYERS[name](channels)
            if after > 8:
                continue
            channels = after
            size = size // 2 if name in HALVING else 2 * size if name in DOUBLING else size
            modules.append(module)
            relates |= name in RELATES_SAMPLES
        super().__init__(*modules, HEADS[head](channels, size))
        self.relates = relates


PARTS, CRITICS_OF_A_PART = 10, 50  # parts: workers share them


@pytest.fixture
def rare_collections():
    """Tracing leaves millions of objects, and the collector would look through all there are again and again: 0.3 of 0.75 s a critic."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def compiled_loss(backend):
    def ours(model, x, *_):
        return torch.compile(lambda x: our_loss(model, x), fullgraph=True, backend=backend)(x)

    return ours


def each_random_critic(start, count, check):
    """check(critic, x) for so many."""
    tried = 0

    @seed(start)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        layers=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5),
        head=st.sampled_from(sorted(HEADS)),
        weights=st.integers(0, 99),
    )
    def draw(layers, head, weights):
        nonlocal tried
        tried += 1
        torch.manual_seed(weights)
        check(RandomCritic(layers, head).double(), torch.randn(3, 2, 4, 4, dtype=torch.float64))
        torch._dynamo.reset()
        if tried % 10 == 0:
            gc.collect()

    draw()
    assert tried >= count


@pytest.mark.parametrize("part", range(PARTS))
def test_random_critics_get_stock_gradients(part, rare_collections):
    """Eager and compiled."""

    def check(model, x):
        assert_equal_to_stock(model, x)
        assert folded(model, x) != model.relates
        assert_equal_to_stock(model, x, ours=compiled_loss("aot_eager"))

    each_random_critic(part, CRITICS_OF_A_PART, check)


def test_random_critics_get_stock_gradients_by_inductor(request, rare_collections):
    count = request.config.getoption("--inductor")
    if not count:
        pytest.skip("--inductor N puts N random critics through inductor, half a minute each")
    each_random_critic(0, count, lambda model, x: assert_equal_to_stock(model, x, ours=compiled_loss("inductor")))


@pytest.mark.parametrize("name", CRITICS)
def test_critics_as_users_write_them(name):
    make, args, _ = CRITICS[name]
    assert_equal_to_stock(make().double(), batch()[0], args=args)


# --- critics that relate samples, in ways that a careless look at shapes would miss: batch and features have one size ---

N = 4
RELATING = {
    "transpose": lambda h: h.t(),
    "mean_over_batch": lambda h: h - h.mean(0, keepdim=True),
    "sum_over_batch": lambda h: h + h.sum(0),
    "softmax_over_batch": lambda h: torch.softmax(h, 0),
    "roll": lambda h: h.roll(1, 0),
    "flip": lambda h: h.flip(0),
    "gram": lambda h: h @ h.t(),
    "weights_from_input": lambda h: F.linear(h.detach(), h),
    "shuffle": lambda h: h[torch.tensor([1, 0, 3, 2])],
    "sort": lambda h: h.sort(0).values,
    "batch_statistics": lambda h: F.batch_norm(h, None, None, training=True),
    "columns_as_rows": lambda h: h.reshape(2, 2, N).transpose(0, 1).reshape(N, N),
    "bias": lambda h: gk.bias_act(h, h[:, 0], act="swish"),
    "broadcast": lambda h: h + h[:, 0],
    "unbatched_convolution": lambda h: F.conv1d(h, torch.ones(N, N, 1, dtype=h.dtype)),
    "stack": lambda h: torch.stack([h[:, 0], h[:, 1], h[:, 2], h[:, 3]], 0),
    "cumulative": lambda h: h.cumsum(0),
}


class Relating(nn.Module):
    def __init__(self, relate):
        super().__init__()
        self.relate, self.body, self.head = relate, nn.Linear(3, N), nn.Linear(N, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.relate(self.body(x))))


@pytest.mark.parametrize("name", RELATING)
def test_critics_that_relate_samples_are_not_folded(name):
    model, x = Relating(RELATING[name]).double(), torch.randn(N, 3, dtype=torch.float64)
    assert not folded(model, x)
    assert_equal_to_stock(model, x)


@pytest.mark.parametrize(
    "end", (torch.sgn, lambda h: h**0, lambda h: torch.linalg.vector_norm(h.unsqueeze(-1), ord=0, dim=-1))
)
def test_layers_above_a_gradient_that_ends_are_not_folded(end):
    """The gradient of the input's gradient does not come to them, and neither would what the fold hands on with it."""

    class Critic(Relating):
        def __init__(self, end):
            super().__init__(end)
            self.beside = nn.Linear(3, 1)

        def forward(self, x):
            return super().forward(x) + self.beside(x)

    model, x = Critic(end).double(), torch.randn(N, 3, dtype=torch.float64)
    assert not folded(model, x)
    assert_equal_to_stock(model, x)


def test_checkpointed_parts_are_not_folded():
    """What they keep may be asked for once in a backward."""
    layer = nn.Linear(N, N)
    model = Relating(lambda h: torch.utils.checkpoint.checkpoint(lambda h: layer(h).tanh(), h, use_reentrant=False))
    model.inner = layer
    model, x = model.double(), torch.randn(N, 3, dtype=torch.float64)
    assert not folded(model, x)
    assert_equal_to_stock(model, x)
    told = gk.explain(model, x)
    assert not told.folds and "checkpointing" in told.reason


def test_hooks_on_the_way_are_not_folded():
    model, x = Relating(lambda h: h).double(), torch.randn(N, 3, dtype=torch.float64)
    assert folded(model, x)
    model = Relating(lambda h: (h.register_hook(lambda g: g.clamp(-0.1, 0.1)), h)[1]).double()
    assert not folded(model, x)
    model = Relating(lambda h: h).double()
    model.head.register_full_backward_hook(lambda *_: None)
    assert not folded(model, x)


# --- passes ---


def calls_of(function):
    with ConvolutionCalls() as calls:
        function()
    return calls.forward, calls.input, calls.weight


def test_piecewise_linear_takes_four_passes_loss_included():
    model, x = critic(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert calls_of(lambda: our_loss(model, x).backward()) == (6, 3, 3)
    # one by one the loss adds its own adjoint and weight gradient, but no gradient in the images
    assert calls_of(lambda: our_loss(model, x, fold=False).backward()) == (6, 5, 6)


def test_smooth_takes_six_passes_below_the_activation_and_four_above():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 10), nn.Flatten()
    ).double()  # fmt: skip
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    # no tangent is needed above the last weights, those of a convolution here; the adjoint of SiLU's second derivative goes through the
    # second convolution and into the weights of the first two
    assert calls_of(lambda: our_loss(model, x).backward()) == (4 + 3, 4 + 1, 4 + 2)


def test_without_the_penalty_there_is_no_tangent():
    model, x = critic(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    scores = gk.regularized_scores(model, x).scores
    assert calls_of(lambda: softplus_loss(scores).backward()) == (0, 0, 3)
    ours = [p.grad.clone() for p in model.parameters()]
    for a, b in zip(ours, gradients(softplus_loss(model(x)), list(model.parameters())), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-14)


def test_without_the_loss_it_is_the_penalty():
    model, x = critic(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    parameters = list(model.parameters())
    ours = gradients(gk.regularized_scores(model, x, GAMMA).penalty, parameters)
    for a, b in zip(ours, gradients(gk.r1_penalty(model, x, GAMMA), parameters), strict=True):
        assert torch.equal(a, b)


# --- explain ---


def test_explain_counts_the_passes():
    told = gk.explain(critic(), torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert told.folds and told.reason == ""
    assert all(0.95 <= cost <= 1 for cost in told.passes.values()) and told.passes["forward"] == 1
    assert told.operations[0] == ("0", "gankernels::Convolution", "weights' gradient shared by loss and penalty")
    assert (
        str(told).startswith("one backward for loss and penalty: ") and "\n" not in str(told).split("module")[0].strip()
    )


def test_explain_names_the_module_that_relates_samples():
    model = critic()
    model[1] = nn.Sequential(nn.BatchNorm2d(8), nn.LeakyReLU(0.2)).double()
    told = gk.explain(model, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert not told.folds and told.reason.startswith("1.0: ") and "relates samples" in told.reason
    assert sum(told.passes.values()) > 5.5, "two more passes: the loss's adjoint and weight gradient"
    assert ("1.0", "NativeBatchNormBackward0", "not folded: relates samples to each other, or may") in told.operations
    assert all(p.grad is None for p in model.parameters())


# --- ways of use ---


def test_relativistic_loss_with_both_penalties():
    model, real, fake = critic(), *torch.randn(2, 2, 3, 16, 16, dtype=torch.float64)
    parameters = list(model.parameters())

    def coupled(score):
        (a, r1), (b, r2) = score(real), score(fake)
        return F.softplus(b - a).mean() + r1 + r2

    def stock(x):
        x = x.clone().requires_grad_()
        scores = model(x)
        (g,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        return scores, GAMMA / 2 * g.flatten(1).square().sum(1).mean()

    ours = coupled(lambda x: gk.regularized_scores(model, x, GAMMA)[:2])
    assert calls_of(ours.backward) == (6, 0, 6)
    for p, b in zip(parameters, gradients(coupled(stock), parameters), strict=True):
        assert torch.allclose(p.grad, b, rtol=1e-10, atol=1e-14)


class TwoHeads(nn.Module):
    """A score projected on labels, and classes from the same trunk."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8), nn.LeakyReLU(0.2))
        self.score, self.classes, self.embed = nn.Linear(8, 1), nn.Linear(8, 5), nn.Embedding(5, 8)

    def forward(self, x, labels):
        h = self.trunk(x)
        return self.score(h) + (self.embed(labels) * h).sum(1, keepdim=True), self.classes(h)


def test_labels_several_outputs_and_another_loss():
    model, x, labels = TwoHeads().double(), torch.randn(3, 6, dtype=torch.float64), torch.tensor([1, 4, 1])
    parameters = list(model.parameters())
    assert folded(model, x, critic_args=(labels,))
    ours = gk.regularized_scores(model, x, GAMMA, critic_args=(labels,))
    loss = softplus_loss(ours.scores) + ours.penalty + F.cross_entropy(ours.outputs[1], labels)
    stock = stock_loss(model, x, args=(labels,)) + F.cross_entropy(model(x, labels)[1], labels)
    for a, b in zip(gradients(loss, parameters), gradients(stock, parameters), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-14)


def test_accumulation_loss_scaling_and_repeated_backward():
    model, xs = critic(), torch.randn(2, 2, 3, 16, 16, dtype=torch.float64)
    for x in xs:
        loss = our_loss(model, x) * 1024
        loss.backward(retain_graph=True)
        loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    stock = gradients(sum(stock_loss(model, x) for x in xs), list(model.parameters()))
    for p, b in zip(model.parameters(), stock, strict=True):
        assert torch.allclose(p.grad, 2048 * b, rtol=1e-10, atol=1e-10)


def test_autocast():
    model, x = critic().float(), torch.randn(4, 3, 16, 16)
    exact = gradients(stock_loss(model, x), list(model.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = our_loss(model, x, lambda s: softplus_loss(s.float()))
    assert folded(model, x)
    for a, b in zip(gradients(loss, list(model.parameters())), exact, strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() <= 0.05 * b.norm()


def test_batch_of_one():
    assert_equal_to_stock(critic(), torch.randn(1, 3, 16, 16, dtype=torch.float64))


def test_spectral_norm_and_shared_weights():
    model = nn.Sequential(
        nn.Linear(4, 4), nn.LeakyReLU(0.2), nn.Linear(4, 4), nn.LeakyReLU(0.2), nn.Linear(4, 1)
    ).double()
    model[2].weight = model[0].weight
    gk.nn.spectral_norm(model[4])
    model.eval()  # no further iteration between the two
    x = torch.randn(3, 4, dtype=torch.float64)
    assert folded(model, x)
    assert_equal_to_stock(model, x)


def test_compiled_step_takes_four_passes():
    model, x = critic(), torch.randn(2, 3, 16, 16, dtype=torch.float64)

    def step(x):
        our_loss(model, x).backward()

    calls = convolutions_of_compiled(step, x)
    assert calls == {"forward": 6, "input": 3, "weight": 3}
    for p, b in zip(model.parameters(), gradients(stock_loss(model, x), list(model.parameters())), strict=True):
        assert torch.allclose(p.grad, b, rtol=1e-10, atol=1e-14)


def _data_parallel(rank, file, xs, state, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model = critic()
    model.load_state_dict(state)
    parallel = nn.parallel.DistributedDataParallel(model)
    our_loss(parallel, xs[rank]).backward()
    if rank == 0:
        results.put([p.grad.numpy() for p in model.parameters()])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_data_parallel_training(tmp_path):
    model, xs = critic(), torch.randn(2, 2, 3, 16, 16, dtype=torch.float64)
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (tmp_path / "store", xs, model.state_dict(), results)
    processes = [context.Process(target=_data_parallel, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    ours = results.get(timeout=120)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    stock = gradients(stock_loss(model, xs.flatten(0, 1)), list(model.parameters()))
    for a, b in zip(ours, stock, strict=True):
        assert torch.allclose(torch.from_numpy(a), b, rtol=1e-10, atol=1e-14)


def test_differentiating_twice_says_so():
    model, x = critic(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    parameters = list(model.parameters())
    with pytest.raises(NotImplementedError, match="differentiable once.*fold=False"):
        torch.autograd.grad(our_loss(model, x), parameters, create_graph=True)
    torch.autograd.grad(our_loss(model, x, fold=False), parameters, create_graph=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: F.leaky_relu_(x, 0.2).flatten(1).sum(1), "in place"),
        (lambda x: x.mul_(2).flatten(1).sum(1), "in place"),
        (lambda x: x.view(4, -1)[:, 0], "a view of it"),
        (lambda x: x, "a view of it"),
        (lambda x: x.detach().flatten(1).sum(1), "must depend on its input"),
        (lambda x: nn.Linear(2, 1)(torch.ones(4, 2)), "must depend on its input"),
    ],
)
def test_a_critic_that_cannot_be_regularized_is_one_sentence(call, message):
    x = torch.randn(4, 3)
    with pytest.raises(RuntimeError, match=message) as error:
        gk.regularized_scores(call, x)
    assert str(error.value).startswith("gankernels.regularized_scores: ") and str(error.value).count(". ") == 0


def test_a_critic_that_writes_to_its_input_under_no_grad():
    def call(x):
        with torch.no_grad():
            x.mul_(2)
        return x.flatten(1).sum(1)

    with pytest.raises(RuntimeError, match="in place"):
        gk.regularized_scores(call, torch.randn(4, 3))


def test_no_grad_is_one_sentence():
    with torch.no_grad(), pytest.raises(RuntimeError, match="gankernels.regularized_scores: gradients must be enabled"):
        gk.regularized_scores(critic(), torch.randn(2, 3, 16, 16, dtype=torch.float64))


@pytest.mark.parametrize(("gamma", "error"), [(-1.0, ValueError), (float("nan"), ValueError), ("a", TypeError)])
def test_gamma_is_checked(gamma, error):
    with pytest.raises(error, match="gankernels.regularized_scores: gamma"):
        gk.regularized_scores(critic(), torch.randn(2, 3, 16, 16, dtype=torch.float64), gamma)
