"""Started by torchrun or alone: trains a hard case and the games of docs/training-loop.md in float64, and saves what came of them."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from games import GAMES, POINTS
from torch import nn

from ganzoo.data.base import Tensors
from ganzoo.objectives import contrastive
from ganzoo.training import distributed
from ganzoo.training.loop import Trainer
from ganzoo.variants import Networks, Regularizer, create
from ganzoo.variants.wgan_gp import WGANGP

SMALL = dict(width=1, latent=2, batch=8)
TECHNIQUES = (
    "feature-matching",
    "historical-averaging",
    "instance-noise",
    "label-flips:probability=0.3",
    "lazy-r1:every=2",
    "minibatch-discrimination:features=3,dims=2",
    "prediction",
)


@dataclass
class Hard(WGANGP):
    """WGAN-GP with one spectrally normalised group, batch norm in both networks, so that the penalty goes through batch
    statistics, a lazy penalty, a term of all pairs of a batch, an average and a controller."""

    batch: int = 8
    latent: int = 4
    critic_steps: int = 2
    ema: float = 0.9

    def networks(self, data, ops):
        critic = nn.Sequential(
            nn.Conv2d(1, 4, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0),
        )  # fmt: skip
        generator = nn.Sequential(
            nn.Linear(self.latent, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 64), nn.Tanh(),
            nn.Unflatten(1, (1, 8, 8)),
        )  # fmt: skip
        return Networks(generator=generator, critic=ops.spectral_norm(critic), mean=torch.zeros(()))

    def r1(self, networks, draw, ops):
        x = draw.real().requires_grad_()
        (slope,) = torch.autograd.grad(networks.critic(x).sum(), x, create_graph=True)
        return slope.square().flatten(1).sum(1).mean(), {}

    def partners(self, networks, draw, ops):
        first, second = (networks.critic[:-2](images) for images in (draw.real(), networks.generator(draw.latents())))
        return contrastive(first, second), {}

    def follow(self, networks, figures):
        networks.mean.lerp_(figures["wasserstein_estimate"], 0.5)

    def players(self, ops):
        players = super().players(ops)
        lazy = {"r1": Regularizer(self.r1, every=2), "partners": Regularizer(self.partners)}
        players["critic"] = type(players["critic"])(
            **{**vars(players["critic"]), "regularizers": lazy, "after": self.follow}
        )
        return players


def outcome(variant, data, samples):
    trainer = Trainer(variant, data, seed=3)
    for _ in range(3):
        figures = trainer.step()
    for value in figures.values():
        distributed.average([value])
    return {"state": trainer.state_dict(), "figures": figures, "samples": trainer.sample(samples, seed=1)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.join("cpu")
    torch.set_default_dtype(torch.float64)
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    outcomes = {
        "hard": outcome(Hard(), Tensors("noise", {"image": images}), samples=600)
    }  # so that both processes draw some
    # losses of the package that are not a mean over samples
    outcomes |= {name: outcome(create(name, **SMALL), POINTS, samples=20) for name in ("dragan", "ebgan")}
    outcomes["techniques"] = outcome(create("hinge", **SMALL, techniques=TECHNIQUES), POINTS, samples=20)
    for name, game in GAMES.items():
        if game.batch % 2 == 0:
            outcomes[name] = outcome(game(), game.data, samples=20)
    if distributed.rank() == 0:
        torch.save(outcomes, sys.argv[1])
    distributed.leave()
    threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in threads), (
        f"{threads}: a thread that outlives its interpreter ends in abort()"
    )
