"""Clipping of weights, and optimisers that clip or average the weights in the same pass, against stock steps one after the other.

The floors count every weight, gradient and state once read and once written where it changes; weights that are all in range need
only be read.
"""

import torch

import gankernels as gk

from .harness import Workload, assert_accurate, case, copy_of, nbytes, rotated
from .networks import dcgan_discriminator

CLIP = 0.01  # WGAN's

# 200 from 7 to 4,097 elements, as the biases, norms and small layers of a critic have
SMALL = [round(7 * (4097 / 7) ** (i / 199)) for i in range(200)]
LARGE = [200_000] * 40


@torch.no_grad()
def clamp_loop(weights, c):
    for weight in weights:
        weight.clamp_(-c, c)


@torch.no_grad()
def clamp_foreach(weights, c):
    torch._foreach_clamp_min_(weights, -c)
    torch._foreach_clamp_max_(weights, c)


SIZES = {"200_small": SMALL, "40_large": LARGE}
VALUES = ("in_range", "some_out")


@case("gankernels", "stock_loop", "stock_foreach", "floor", sizes=SIZES, values=VALUES)
def test_clip_weights(device, sizes, values):
    counts = SIZES[sizes]

    def make():
        """In range, or one in a hundred out of it."""
        weights = [torch.empty(n, device=device).uniform_(-CLIP, CLIP) for n in counts]
        return weights if values == "in_range" else [w / 0.99 for w in weights]

    sets = rotated(make, device)
    originals = [[w.clone() for w in weights] for weights in sets]
    size = nbytes(sets[0]) * (1 if values == "in_range" else 2)

    def call(clip):
        return lambda i: clip(sets[i % len(sets)], CLIP)

    def restore(i):
        if values == "some_out":
            torch._foreach_copy_(sets[i % len(sets)], originals[i % len(sets)])

    def check():
        for clip in (gk.clip_weights_, clamp_loop, clamp_foreach):
            weights = [torch.randn(n, device=device) for n in counts]
            expected = [w.clamp(-CLIP, CLIP) for w in weights]
            clip(weights, CLIP)
            assert all(torch.equal(w, e) for w, e in zip(weights, expected)), "clipped weights differ from clamp's"

    variants = {
        "gankernels": call(gk.clip_weights_),
        "stock_loop": call(clamp_loop),
        "stock_foreach": call(clamp_foreach),
        "floor": copy_of(size, device),
    }
    if sizes == "200_small":
        goals = {"stock_loop": 3.0, "stock_foreach": 1.0}
    else:
        goals = {"stock_loop": 1.0, "stock_foreach": 1.0, "floor": 0.85 if device == "cuda" else 1 / 1.3}
    return Workload(variants, check, restore, bytes=size, goals=goals)


def prepare(device, ours, stock, bytes_per_weight, goals):
    """`ours` and every value of `stock`: make(params) -> (one whole step, the tensors that it updates)."""
    plain = [p.detach() for p in dcgan_discriminator().to(device).parameters()]
    grads = [torch.randn_like(p) for p in plain]

    def bound(make, dtype=torch.float32):
        """The step of parameters of its own."""
        params = [p.to(dtype, copy=True).requires_grad_() for p in plain]
        for p, grad in zip(params, grads):
            p.grad = grad.to(dtype, copy=True)
        return make(params)

    def after_three_steps(make, dtype=torch.float32):
        step, tensors = bound(make, dtype)
        for _ in range(3):
            step()
        return [t.detach() for t in tensors]

    def check():
        exact = after_three_steps(stock["stock_foreach"], torch.float64)
        assert_accurate(after_three_steps(ours), after_three_steps(stock["stock_foreach"]), exact, "after three steps")

    def call(make):
        step, _ = bound(make)
        return lambda i: step()

    size = sum(p.numel() for p in plain) * bytes_per_weight
    variants = {"gankernels": call(ours), **{name: call(make) for name, make in stock.items()}}
    variants["floor"] = copy_of(size, device)
    return Workload(variants, check, bytes=size, goals=goals | ({"floor": 0.85} if device == "cuda" else {}))


def clipped(optimizer, params):
    def step():
        optimizer.step()
        clamp_loop(params, CLIP)

    return step, params


@case("gankernels", "stock_loop", "stock_foreach", "floor")
def test_rmsprop_clip(device):
    """RMSprop and clip of a DCGAN critic, as in WGAN."""

    def stock(foreach):
        return lambda params: clipped(torch.optim.RMSprop(params, lr=5e-5, foreach=foreach), params)

    def ours(params):
        return gk.optim.RMSprop(params, lr=5e-5, clip=CLIP).step, params

    variants = {"stock_loop": stock(foreach=False), "stock_foreach": stock(foreach=True)}
    return prepare(device, ours, variants, 4 * 5, {name: 1.5 for name in variants})


def adam(params, **options):
    return torch.optim.Adam(params, lr=2e-4, betas=(0.5, 0.999), **options)


@case("gankernels", "stock_fused", "stock_foreach", "floor")
def test_adam_clip(device):
    """Adam and clip of a DCGAN critic."""

    def stock(**options):
        return lambda params: clipped(adam(params, **options), params)

    def ours(params):
        return gk.optim.Adam(params, lr=2e-4, betas=(0.5, 0.999), clip=CLIP).step, params

    variants = {"stock_fused": stock(fused=True), "stock_foreach": stock(foreach=True)}
    return prepare(device, ours, variants, 4 * 7, {name: 1.0 for name in variants})


@case("gankernels", "stock_fused", "stock_foreach", "floor")
def test_adam_ema(device):
    """Adam and an exponential moving average of the weights, for the same shapes."""
    decay = 0.999

    def stock(**options):
        def make(params):
            optimizer, averages = adam(params, **options), [p.detach().clone() for p in params]

            def step():
                optimizer.step()
                with torch.no_grad():
                    torch._foreach_lerp_(averages, params, 1 - decay)

            return step, params + averages

        return make

    def ours(params):
        averages = [p.detach().clone() for p in params]
        return gk.optim.Adam(params, lr=2e-4, betas=(0.5, 0.999), ema=averages, ema_decay=decay).step, params + averages

    variants = {"stock_fused": stock(fused=True), "stock_foreach": stock(foreach=True)}
    return prepare(device, ours, variants, 4 * 9, {name: 1.0 for name in variants})
