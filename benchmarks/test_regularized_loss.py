"""A discriminator's loss with its zero-centred penalties, forward and backward into the weights: gk.regularized_scores, the same in plain
PyTorch, and the loss alone. With F one forward of the discriminator on the points, `passes` are the flops spent in units of F.
"""

import copy

import torch
import torch.nn.functional as F

import gankernels as gk

from .harness import Workload, assert_accurate, case, rotated
from .networks import PeriodsCritic, critic64, residual_critic, toy_critic

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last, "signal": torch.contiguous_format}


def ours(critic, x):
    return gk.regularized_scores(critic, x, 10.0)[:2]


def stock(critic, x):
    x = x.detach().requires_grad_()
    scores = critic(x)
    (grads,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return scores, 5 * grads.square().flatten(1).sum(1).mean()


def alone(critic, x):
    return critic(x), 0


def r1_loss(score, critic, real, fake):
    scores, penalty = score(critic, real)
    return F.softplus(-scores).mean() + penalty


def r1_r2_loss(score, critic, real, fake):
    """R3GAN's: relativistic, both penalties."""
    (of_real, r1), (of_fake, r2) = score(critic, real), score(critic, fake)
    return F.softplus(of_fake - of_real).mean() + r1 + r2


def prepare(make_critic, shape, layout, device, loss, goal, compiled=False):
    """All variants of one loss; `compiled` adds whole compiled steps, backward inside, of which stock's has the same goal."""
    critic = make_critic().to(device, memory_format=LAYOUTS[layout])
    parameters = list(critic.parameters())

    def images():
        return torch.randn(shape, device=device).to(memory_format=LAYOUTS[layout])

    inputs = rotated(lambda: (images(), images()), device)

    def step(score):
        def run(i):
            loss(score, critic, *inputs[i % len(inputs)]).backward()

        return run

    def compiled_step(score):
        @torch.compile(fullgraph=True)
        def gradients(real, fake):
            return torch.autograd.grad(loss(score, critic, real, fake), parameters)

        def run(i):
            with torch._dynamo.config.patch(trace_autograd_ops=True):
                # stock's requires_grad_() of an intermediate does not compile before torch 2.12
                real, fake = (x.detach().requires_grad_() for x in inputs[i % len(inputs)])
                for parameter, grad in zip(parameters, gradients(real, fake)):
                    parameter.grad = grad

        return run

    def forget_gradients(i):
        for parameter in parameters:
            parameter.grad = None

    def results(run):
        run(0)
        grads = [p.grad for p in parameters]
        forget_gradients(0)
        return grads

    def check():
        # stock and we may take different kernels, only one of which multiplies in TF32
        rounding = 2**-10 if device == "cuda" and torch.backends.cudnn.allow_tf32 else None
        double = copy.deepcopy(critic).double()
        exact = torch.autograd.grad(loss(stock, double, *(t.double() for t in inputs[0])), list(double.parameters()))
        of_stock = results(variants["stock"])
        for name in variants:
            if name.startswith("gankernels"):
                assert_accurate(results(variants[name]), of_stock, exact, f"gradient, {name}", rounding)

    variants, goals = {"gankernels": step(ours), "stock": step(stock), "loss_alone": step(alone)}, {"stock": goal}
    if compiled:
        goals["stock_compiled"] = goal
        variants |= {"gankernels_compiled": compiled_step(ours), "stock_compiled": compiled_step(stock)}
    points = inputs[0] if loss is r1_r2_loss else inputs[0][:1]
    return Workload(variants, check, forget_gradients, forward=lambda: [critic(x) for x in points], goals=goals)


IMAGES = ("nchw", "channels_last")
VARIANTS = ("gankernels", "stock", "loss_alone")
COMPILED = ("gankernels_compiled", "stock_compiled")


def prepare_strided(device, layout, compiled=False):
    goal = 2.0 if device == "cuda" else {"nchw": 1.6, "channels_last": 1.75}[layout]
    return prepare(critic64, (32, 3, 64, 64), layout, device, r1_loss, goal, compiled)


def prepare_relativistic(device, layout, compiled=False):
    return prepare(residual_critic, (8, 3, 32, 32), layout, device, r1_r2_loss, 1.6, compiled)


def prepare_periods(device, compiled=False):
    return prepare(PeriodsCritic, (8, 1, 4096), "signal", device, r1_loss, 1.4, compiled)


@case(*VARIANTS, layout=IMAGES)
def test_loss_and_r1(device, layout):
    return prepare_strided(device, layout)


@case(*VARIANTS, *COMPILED, tier="full", layout=IMAGES)
def test_loss_and_r1_compiled(device, layout):
    return prepare_strided(device, layout, compiled=True)


@case(*VARIANTS, layout=IMAGES)
def test_relativistic_loss_r1_r2(device, layout):
    return prepare_relativistic(device, layout)


@case(*VARIANTS, *COMPILED, tier="full", layout=("nchw",))
def test_relativistic_loss_r1_r2_compiled(device, layout):
    """One layout: it takes minutes to compile."""
    return prepare_relativistic(device, layout, compiled=True)


@case(*VARIANTS)
def test_loss_and_r1_periods(device):
    return prepare_periods(device)


@case(*VARIANTS, *COMPILED, tier="full")
def test_loss_and_r1_periods_compiled(device):
    return prepare_periods(device, compiled=True)


@case(*VARIANTS, width=("4", "16"), tier="full")
def test_loss_and_r1_toy(device, width):
    """So small that the calls are all there is: the fold must not cost more of them than it saves."""
    return prepare(lambda: toy_critic(int(width)), (64, 2), "signal", device, r1_loss, 1.0)
