"""Penalties against stock autograd on critics written as users write them, and the ways a penalty can be lost."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gankernels as gk
from tests.ops.test_fast_double_backward import critic as small_critic


class DCGAN(nn.Module):
    def __init__(self, inplace=True):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, 8, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=inplace),
            nn.Conv2d(8, 16, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=inplace),
            nn.Conv2d(16, 1, 4, 1, 0),
        )

    def forward(self, x):
        return self.main(x).view(-1)


class ResBlock(nn.Module):
    def __init__(self, channels, size):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm([channels, size, size]), nn.LayerNorm([channels, size, size])
        self.conv1, self.conv2 = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.skip = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        h = self.conv1(F.relu(self.norm1(x)))
        h = self.conv2(F.relu(self.norm2(h)))
        return F.avg_pool2d(h, 2) + self.skip(F.avg_pool2d(x, 2))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block1, self.block2 = nn.Conv2d(3, 6, 3, padding=1), ResBlock(6, 16), ResBlock(6, 8)
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        h = F.max_pool2d(self.block2(self.block1(self.stem(x))), 2)
        return self.head(F.relu(h).sum((2, 3)))


class LabelledRecurrentAttention(nn.Module):
    """Labels by projection, two outputs, a GRU over rows, attention over positions."""

    def __init__(self):
        super().__init__()
        self.need_weights = True  # without them stock takes its fused attention
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.embed = nn.Embedding(5, 8)
        self.score, self.classes = nn.Linear(8, 1), nn.Linear(8, 5)

    def forward(self, x, labels, *, scale=1.0):
        tokens = F.elu(self.conv(x)).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=self.need_weights)[0]
        h = self.gru(tokens)[0].mean(1)
        return scale * (self.score(h) + (self.embed(labels) * h).sum(1, keepdim=True)), self.classes(h)


class PooledMLP(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 6), nn.LeakyReLU(0.2), nn.Linear(6, 1),
        )  # fmt: skip


LABELS = torch.tensor([0, 3, 4])
CRITICS = {
    "dcgan": (DCGAN, (), {}),
    "resnet": (ResNet, (), {}),
    "labelled_recurrent_attention": (LabelledRecurrentAttention, (LABELS,), {"scale": 0.7}),
}


def batch():
    return [torch.randn(3, 3, 16, 16, dtype=torch.float64) for _ in range(2)]


def stock_norms(critic, x, args, kwargs):
    out = critic(x, *args, **kwargs)
    score = out[0] if isinstance(out, tuple) else out
    (grads,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return grads.flatten(1).norm(2, dim=1)


def stock_gradient_penalty(critic, real, fake, eps, args=(), kwargs={}):  # noqa: B006
    eps = eps.view(-1, 1, 1, 1)
    x = (eps * real + (1 - eps) * fake).requires_grad_()
    return 10 * (stock_norms(critic, x, args, kwargs) - 1).square().mean()


def gradients(loss, model):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return [p.grad for p in model.parameters()]


def assert_same_gradients(ours, stock, tolerance=1e-12):
    for a, b in zip(ours, stock, strict=True):
        if a is None:  # a parameter that only moves a switching pattern, such as a norm's bias before a ReLU
            assert b is None or not b.any()
        else:
            assert (a - b).abs().max() <= tolerance * max(1, b.abs().max())


@pytest.mark.parametrize("name", CRITICS)
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=("nchw", "channels_last"))
def test_unmodified_critics_get_stock_gradients(name, layout):
    make, args, kwargs = CRITICS[name]
    model = make().double().to(memory_format=layout)
    real, fake = (t.contiguous(memory_format=layout) for t in batch())
    eps = torch.rand(3, dtype=torch.float64)
    stock_loss = stock_gradient_penalty(model, real, fake, eps, args, kwargs)
    stock = gradients(stock_loss, model)
    loss = gk.gradient_penalty(model, real, fake, eps=eps, critic_args=args, critic_kwargs=kwargs)
    assert torch.allclose(loss, stock_loss, rtol=1e-12)
    assert_same_gradients(gradients(loss, model), stock)

    for ours, points in ((gk.r1_penalty, real), (gk.r2_penalty, fake)):
        stock_loss = 5 * stock_norms(model, points.clone().requires_grad_(), args, kwargs).square().mean()
        stock = gradients(stock_loss, model)
        loss = ours(model, points, 10.0, critic_args=args, critic_kwargs=kwargs)
        assert torch.allclose(loss, stock_loss, rtol=1e-12)
        assert_same_gradients(gradients(loss, model), stock)


@pytest.mark.parametrize(("make", "backend"), ((DCGAN, "aot_eager"), (ResNet, "aot_eager"), (PooledMLP, "inductor")))
def test_compiled_whole_step_equals_eager(make, backend):
    model = make().double()
    real, fake = batch()
    eps = torch.rand(3, dtype=torch.float64)
    eager = gradients(gk.gradient_penalty(model, real, fake, eps=eps), model)

    def loss(real, fake, eps):
        return gk.gradient_penalty(model, real, fake, eps=eps)

    def step(real, fake, eps):
        loss(real, fake, eps).backward()

    zero = torch.zeros(1, dtype=torch.float64)  # torch.compile leaves out gradients that are zero by structure
    for function in (loss, step):
        model.zero_grad(set_to_none=True)
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            out = torch.compile(function, fullgraph=True, backend=backend)(real, fake, eps)
        if function is loss:
            out.backward()
        for a, b in zip((p.grad for p in model.parameters()), eager, strict=True):
            assert torch.allclose(zero if a is None else a, zero if b is None else b, rtol=1e-10, atol=1e-12)


def test_interpolates_with_one_eps_per_sample():
    real, fake = torch.zeros(64, 1, 4, 4), torch.ones(64, 1, 4, 4)
    x = gk.interpolate(real, fake)
    assert torch.equal(x, x[:, :1, :1, :1].expand_as(x)) and x[:, 0, 0, 0].unique().numel() == 64
    assert 0.3 < x.mean() < 0.7 and x.min() >= 0 and x.max() <= 1


def test_the_norm_is_taken_per_sample_over_all_other_dimensions():
    def critic(x):
        return x.flatten(1).sum(1) * torch.tensor([1.0, 2.0])

    penalty, norms = gk.gradient_penalty(
        critic_with_parameter(critic), *[torch.randn(2, 3, 2, 2)] * 2, return_norms=True
    )
    want = torch.tensor([1.0, 2.0]) * math.sqrt(12)
    assert torch.allclose(norms, want) and torch.allclose(penalty, 10 * (want - 1).square().mean())
    assert not norms.requires_grad


def critic_with_parameter(function):
    one = torch.ones((), requires_grad=True)
    return lambda x: function(x) * one


def test_one_sided_leaves_small_norms_alone():
    model = nn.Linear(4, 1, bias=False)
    nn.init.constant_(model.weight, 0.1)
    x = torch.randn(5, 4)
    penalty = gk.gradient_penalty(model, x, x, one_sided=True)
    penalty.backward()
    assert penalty == 0 and not model.weight.grad.any()
    assert gk.gradient_penalty(model, x, x) > 0


def test_dragan_perturbs_within_half_a_standard_deviation():
    real, seen = torch.randn(8, 3, 4, 4), []

    def critic(x):
        seen.append(x.detach())
        return x.square().sum((1, 2, 3))

    gk.dragan_penalty(critic, real, generator=torch.Generator().manual_seed(1))
    shift = (seen[0] - real) / real.std(correction=0)
    assert shift.min() >= 0 and shift.max() <= 0.5 and shift.max() > 0.25
    assert (shift.amax((1, 2, 3)) / 0.5).std() > 0.05, "one interpolation per sample"


def test_a_generator_fixes_the_draw():
    model, (real, fake) = DCGAN().double(), batch()
    first, second, third = (
        gk.gradient_penalty(model, real, fake, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first == second != third


@pytest.mark.parametrize("layers", (None, 4))
def test_path_length_penalty_equals_its_formula(layers):
    class Synthesis(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.conv = nn.Linear(6, 2 * 16), nn.ConvTranspose2d(2, 3, 4, 2, 1)

        def forward(self, w):
            w = w if w.dim() == 2 else (w * torch.arange(1, 5, dtype=w.dtype).view(1, 4, 1)).sum(1)
            return self.conv(F.leaky_relu(self.fc(w)).view(-1, 2, 4, 4))

    model = Synthesis().double()
    w = torch.randn((5, layers, 6) if layers else (5, 6), dtype=torch.float64)
    y = torch.randn(5, 3, 8, 8, dtype=torch.float64) / 8
    ws = w.clone().requires_grad_()
    (jvp,) = torch.autograd.grad((model(ws) * y).sum(), ws, create_graph=True)
    lengths = jvp.square().sum(2).mean(1).sqrt() if layers else jvp.square().sum(1).sqrt()
    mean = 0.5 + 0.1 * (lengths.mean() - 0.5)
    want = 2 * (lengths - mean).square().mean()
    stock = gradients(want, model)

    running = torch.tensor(0.5, dtype=torch.float64)
    loss, got = gk.path_length_penalty(model, w, running, decay=0.1, noise=y, return_lengths=True)
    assert torch.allclose(loss, want, rtol=1e-12) and torch.allclose(got, lengths) and torch.allclose(running, mean)
    assert_same_gradients(gradients(loss, model), stock)


def test_path_length_penalty_reaches_the_mapping_network():
    mapping, synthesis = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Unflatten(1, (3, 2, 2)))
    gk.path_length_penalty(synthesis, mapping(torch.randn(3, 4)), torch.zeros(())).backward()
    assert mapping.weight.grad.abs().sum() > 0


def test_the_generator_gets_its_gradient_when_fake_carries_a_graph():
    generator, model = nn.Linear(4, 4).double(), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    z, real, eps = torch.randn(3, 4).double(), torch.randn(3, 4).double(), torch.rand(3).double()
    results = []
    for loss in (
        gk.gradient_penalty(model, real, generator(z), eps=eps),
        10 * (stock_norms(model, eps[:, None] * real + (1 - eps[:, None]) * generator(z), (), {}) - 1).square().mean(),
    ):
        results.append(gradients(loss, generator))
    assert_same_gradients(*results)
    real.requires_grad_()
    gk.r1_penalty(model, real).backward()
    assert real.grad is None, "R1 is taken at the samples, not through them"


def test_frozen_parts_stay_frozen():
    model = DCGAN().double()
    model.main[0].requires_grad_(False)
    real, fake = batch()
    eps = torch.rand(3, dtype=torch.float64)
    ours = gradients(gk.gradient_penalty(model, real, fake, eps=eps), model)
    assert ours[0] is None
    assert_same_gradients(ours, gradients(stock_gradient_penalty(model, real, fake, eps), model))


def test_autocast():
    model = ResNet()
    real, fake = (t.float() for t in batch())
    eps = torch.rand(3)
    exact = gradients(gk.gradient_penalty(model, real, fake, eps=eps), model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = gk.gradient_penalty(model, real, fake, eps=eps)
    assert loss.dtype == torch.float32
    for a, b in zip(gradients(loss, model), exact, strict=True):
        assert a is None or (a - b).norm() <= 0.1 * b.norm() + 1e-3


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_low_precision_critic_has_a_float32_penalty(dtype):
    model = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1)).to(dtype)
    x = torch.randn(4, 6, dtype=dtype)
    loss, norms = gk.r1_penalty(model, x, return_norms=True)
    loss.backward()
    assert loss.dtype == norms.dtype == torch.float32 and model[0].weight.grad.dtype == dtype


@pytest.mark.parametrize("activation", (nn.Tanh(), nn.LeakyReLU(0.2), nn.ReLU()), ids=str)
def test_nan_in_gives_nan_out(activation):
    """Piecewise linear too, where stock's penalty at a NaN is finite: the slope there is."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), activation, nn.Linear(4, 1)).double()
    real, fake = batch()
    real[0, 0, 0, 0] = float("nan")
    penalty, norms = gk.gradient_penalty(model, real, fake, return_norms=True)
    scores, r1, *_ = gk.regularized_scores(model, real)
    for loss in (penalty, gk.r1_penalty(model, real), scores.mean() + r1):
        assert loss.isnan() and gradients(loss, model)[0].isnan().any()
    assert norms.isnan().tolist() == [True, False, False], "the sample at fault"
    images = nn.Sequential(nn.Linear(4, 12), activation, nn.Unflatten(1, (3, 2, 2))).double()
    w = torch.full((3, 4), float("nan"), dtype=torch.float64)
    assert gk.path_length_penalty(images, w, torch.zeros((), dtype=torch.float64)).isnan()


def test_an_index_into_scores_is_refused():
    """It would take a sample, and leave the others without a penalty."""
    with pytest.raises(
        ValueError, match="gankernels.r1_penalty: output must name one of what the critic returned, got 0 for Tensor"
    ):
        gk.r1_penalty(LINEAR, torch.randn(3, 4), output=0)


def test_several_outputs():
    two = nn.Linear(4, 2)
    x = torch.randn(3, 4)

    def as_dict(x):
        return {"score": two(x)[:, :1], "features": x}

    want = gk.r1_penalty(lambda x: two(x)[:, :1], x)
    assert gk.r1_penalty(lambda x: (two(x)[:, :1], x), x) == want
    assert gk.r1_penalty(lambda x: [x * 0, two(x)[:, :1]], x, output=1) == want
    assert gk.r1_penalty(as_dict, x, output="score") == want
    assert gk.r1_penalty(as_dict, x, output=lambda out: out["score"]) == want
    with pytest.raises(TypeError, match=r"gankernels.r1_penalty: critic must return a tensor .* got dict"):
        gk.r1_penalty(as_dict, x)


def no_grad_critic(x):
    with torch.no_grad():
        return x.sum(1)


LINEAR = nn.Linear(4, 1)
LOST = {
    "no_grad": (no_grad_critic, "must depend on its input, and it carries no gradient"),
    "detached": (lambda x: x.detach().sum(1), "must depend on its input, and it carries no gradient"),
    "ignored": (lambda x: LINEAR(torch.ones(3, 4)), "must depend on its input, and its gradient there is absent"),
    "detached_input": (lambda x: LINEAR(x.detach()), "must depend on its input, and its gradient there is absent"),
}


@pytest.mark.parametrize("name", LOST)
def test_a_penalty_is_never_lost_in_silence(name):
    critic, message = LOST[name]
    x = torch.randn(3, 4)
    for penalty in (lambda: gk.gradient_penalty(critic, x, x), lambda: gk.r1_penalty(critic, x)):
        with pytest.raises(RuntimeError, match=message):
            penalty()


def test_a_generator_detached_from_its_styles_raises():
    mean_length = torch.zeros(())
    with pytest.raises(RuntimeError, match="the images must depend on w, and their gradient there is absent"):
        gk.path_length_penalty(lambda w: LINEAR(w.detach()).view(-1, 1, 1, 1), torch.randn(3, 4), mean_length)
    assert mean_length == 0


def test_under_no_grad_it_raises():
    with torch.no_grad(), pytest.raises(RuntimeError, match="gradients must be enabled"):
        gk.r1_penalty(LINEAR, torch.randn(3, 4))


def test_a_compiled_critic_raises():
    """PyTorch 2.13 would refuse only in backward; 2.11 returns a gradient without a graph, and the penalty is lost."""
    x, images = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    whole = torch.compile(small_critic(), backend="aot_eager")
    trunk, head = torch.compile(nn.Conv2d(3, 4, 3).double(), backend="aot_eager"), nn.Linear(4, 1).double()
    for critic in (whole, lambda x: head(trunk(x).mean((2, 3)))):
        for points in (x, x.clone().requires_grad_() * 1):
            with pytest.raises(RuntimeError, match="gankernels.* a compiled critic .* compile the whole step instead"):
                gk.gradient_penalty(critic, points, images)


def test_a_compiled_part_beside_the_path_from_the_input_is_fine():
    condition = torch.compile(nn.Linear(4, 4), backend="aot_eager")
    label = condition(torch.randn(3, 4))
    gk.r1_penalty(lambda x: (LINEAR(x) * label).sum(1), X).backward()
    assert condition.weight.grad.abs().sum() > 0


def test_a_critic_without_parameters_has_a_constant_penalty():
    x = torch.randn(3, 4)
    assert torch.isclose(gk.r1_penalty(lambda x: x.sum(1), x, 1.0), torch.tensor(2.0))


X = torch.randn(3, 4)
BAD = {
    "real_not_a_tensor": (lambda: gk.gradient_penalty(LINEAR, [1.0], X), "real must be a tensor, got list"),
    "integers": (lambda: gk.gradient_penalty(LINEAR, X.long(), X), "real must be float64, .* got int64"),
    "shapes": (lambda: gk.gradient_penalty(LINEAR, X, X[:, :2]), r"fake must have the shape of real, \(3, 4\), got \(3, 2\)"),
    "batches": (lambda: gk.gradient_penalty(LINEAR, X, X[:2]), r"fake must have the shape of real, \(3, 4\), got \(2, 4\)"),
    "dtypes": (lambda: gk.gradient_penalty(LINEAR, X, X.double()), "dtype of real, float32, got float64"),
    "devices": (lambda: gk.gradient_penalty(LINEAR, X, X.to("meta")), "must be on the device of real, cpu, got meta"),
    "empty": (lambda: gk.gradient_penalty(LINEAR, X[:0], X[:0]), r"real must have shape \(N, ...\) with N >= 1, got \(0, 4\)"),
    "scalar": (lambda: gk.r1_penalty(LINEAR, X[0, 0]), r"real must have shape \(N, ...\)"),
    "weight": (lambda: gk.gradient_penalty(LINEAR, X, X, weight=-1), "weight must be a finite number >= 0, got -1"),
    "weight_nan": (lambda: gk.gradient_penalty(LINEAR, X, X, weight=math.nan), "weight must be a finite number"),
    "target": (lambda: gk.gradient_penalty(LINEAR, X, X, target=math.inf), "target must be a finite number >= 0, got inf"),
    "gamma": (lambda: gk.r1_penalty(LINEAR, X, -2.0), "gamma must be a finite number >= 0, got -2.0"),
    "gamma_text": (lambda: gk.r2_penalty(LINEAR, X, "10"), "gamma must be a finite number >= 0, got str"),
    "noise": (lambda: gk.dragan_penalty(LINEAR, X, noise=-0.5), "noise must be a finite number >= 0, got -0.5"),
    "decay": (lambda: gk.path_length_penalty(LINEAR, X, torch.zeros(()), decay=2), r"decay must be in \[0, 1\], got 2"),
    "w_shape": (lambda: gk.path_length_penalty(LINEAR, X[0], torch.zeros(())), r"w must have shape \(N, D\) or \(N, L, D\)"),
    "mean_length": (lambda: gk.path_length_penalty(LINEAR, X, 0.0), "mean_length must be a tensor of one element"),
    "images": (lambda: gk.path_length_penalty(LINEAR, X, torch.zeros(())), r"synthesis must return images .* got \(3, 1\)"),
    "mean_length_integer": (lambda: gk.path_length_penalty(LINEAR, X, torch.zeros((), dtype=torch.int64)), "mean_length must be float64"),
    "mean_length_device": (lambda: gk.path_length_penalty(LINEAR, X, torch.zeros((), device="meta")), "mean_length .* cpu, got meta"),
    "synthesis": (lambda: gk.path_length_penalty(None, X, torch.zeros(())), "synthesis must be a callable, got NoneType"),
    "critic": (lambda: gk.r1_penalty(3, X), "critic must be a callable, got int"),
    "complex": (lambda: gk.r1_penalty(lambda x: x.to(torch.complex64).sum(1), X), "score must be real, got complex64"),
    "output": (lambda: gk.r1_penalty(lambda x: (LINEAR(x),), X, output=2), "output must name one .* got 2 for tuple"),
    "eps": (lambda: gk.gradient_penalty(LINEAR, X, X, eps=1.5), r"eps must be a tensor or a number in \[0, 1\], got 1.5"),
}  # fmt: skip


def test_multi_head_attention_that_stock_fuses():
    model, (real, fake), eps = LabelledRecurrentAttention().double(), batch(), torch.rand(3, dtype=torch.float64)
    stock = gradients(stock_gradient_penalty(model, real, fake, eps, (LABELS,)), model)
    model.need_weights = False
    ours = gradients(gk.gradient_penalty(model, real, fake, eps=eps, critic_args=(LABELS,)), model)
    assert_same_gradients(ours, stock)


def test_checkpointed_parts_are_computed_anew_as_they_were():
    """In the backward, where no layer is routed."""

    class Checkpointed(DCGAN):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    model, (real, fake), eps = Checkpointed(inplace=False).double(), batch(), torch.rand(3, dtype=torch.float64)
    stock = gradients(stock_gradient_penalty(model, real, fake, eps), model)
    assert_same_gradients(gradients(gk.gradient_penalty(model, real, fake, eps=eps), model), stock)
    scores, r1, *_ = gk.regularized_scores(model, real, 10.0)
    ours = gradients(scores.square().mean() + r1, model)
    x = real.clone().requires_grad_()
    stock_loss = model(x).square().mean() + 5 * stock_norms(model, x, (), {}).square().mean()
    assert_same_gradients(ours, gradients(stock_loss, model))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(name):
    call, message = BAD[name]
    with pytest.raises((TypeError, ValueError), match=message) as error:
        call()
    assert str(error.value).startswith("gankernels.") and "\n" not in str(error.value)


def test_the_registered_convolution_checks_too():
    with pytest.raises(
        RuntimeError, match="gankernels.fast_convolution: input must have 4 dimensions, batch first, got"
    ):
        torch.ops.gankernels.fast_convolution(X, torch.ones(1, 1, 1, 1), None, [1], [0], [1], False, [0], 1)
