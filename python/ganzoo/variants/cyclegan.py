from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ganzoo.networks import patch, resnet_generator
from ganzoo.objectives import least_squares_discriminator, least_squares_generator
from ganzoo.options import Betas, Count, NotNegative, Positive
from ganzoo.training import distributed
from ganzoo.variants.base import Networks, Player, register
from ganzoo.variants.translating import KEPT, Translating, beside


class ImagePool(nn.Module):
    """Generated images of the past. An image that comes is, while there is room, shown and kept; afterwards it is, half of the time,
    shown and not kept, and otherwise takes the place of one that is shown in its stead.

    Source: Shrivastava et al. (2017), arXiv:1612.07828, section 2.3, as CycleGAN's code has it.
    """

    def __init__(self, size, shape):
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, fake, choices):
        """The images to show for these (N, C, H, W), by a number in [0, 1) for each. Several processes keep the same pool, into which
        the images of all of them come in turn."""
        fake, choices = distributed.gather(fake.detach()), distributed.gather(choices)
        size, shown = len(self.images), []
        for image, choice in zip(fake.split(1), choices.split(1)):
            place = torch.where(self.filled < size, self.filled, ((2 * choice - 1) * size).long())
            full, old = self.filled == size, self.images[place.clamp(0, size - 1)]
            kept = ~full | (choice >= 0.5)
            shown.append(torch.where(full & kept, old, image))
            self.images[place.clamp(0, size - 1)] = torch.where(kept, image, old)
            self.filled.add_(1).clamp_(max=size)
        share = len(fake) // distributed.size()
        return torch.cat(shown)[distributed.rank() * share :][:share]


@register("cyclegan")
@dataclass
class CycleGAN(Translating):
    """CycleGAN: two domains translated into each other without pairs, so that there and back is where one was.

    L_D = ½ E (D_A(a) − 1)² + ½ E D_A(F(b))² + the same of D_B and G,
    L_G = E (D_B(G(a)) − 1)² + E (D_A(F(b)) − 1)² + λ (E |F(G(a)) − a| + E |G(F(b)) − b|) + λ_id λ (E |F(a) − a| + E |G(b) − b|).

    G, here `to_b`, and F, `to_a`, train as one, at once with the judges, which are shown generated images from a pool of the last ones.
    The learning rate falls to 0 over the second half.

    Source: Zhu, Park, Isola and Efros (2017), arXiv:1703.10593, sections 3, 4 and 5.2 (identity), appendix 7.
    """

    usual_data = ("glyphs",)
    form = "unpaired"
    judges = ("judge_a", "judge_b")
    samplers = ("to_b", "to_a", "sources")
    batch: Count = 1
    cycle_weight: NotNegative = 10.0
    """λ, the weight of there and back."""
    identity_weight: NotNegative = 0.5
    """λ_id, the weight, in λ, of leaving alone what is already in the domain. It keeps colours where they may stay."""
    blocks: Count = 6
    """Residual blocks of each generator."""
    pool: Count = 50
    """Generated images that are kept to show the judges, of either domain."""
    lr: Positive = 2e-4
    """Adam's learning rate in the first half of the training."""
    betas: Betas = (0.5, 0.999)
    """Adam's decay rates."""

    def networks(self, data, ops):
        a, b = data.fields["a"], data.fields["b"]
        return Networks(
            to_a=resnet_generator.Generator(b, a[0], self.width, self.blocks),
            to_b=resnet_generator.Generator(a, b[0], self.width, self.blocks),
            judge_a=patch.Discriminator(a, self.width, nn.InstanceNorm2d),
            judge_b=patch.Discriminator(b, self.width, nn.InstanceNorm2d),
            pool_a=ImagePool(self.pool, a),
            pool_b=ImagePool(self.pool, b),
            sources=torch.zeros(KEPT, *a),
        )

    def enter(self, networks, draw, ops):
        networks.sources.copy_(draw.real("a", count=KEPT))

    def judges_loss(self, networks, draw, ops):
        a, b = draw.real("a"), draw.real("b")
        fake_a = networks.pool_a(networks.to_a(b), draw.uniform())
        fake_b = networks.pool_b(networks.to_b(a), draw.uniform())
        loss_a = least_squares_discriminator(networks.judge_a(a), networks.judge_a(fake_a))
        loss_b = least_squares_discriminator(networks.judge_b(b), networks.judge_b(fake_b))
        return loss_a + loss_b, {"judge_a": loss_a, "judge_b": loss_b}

    def generators_loss(self, networks, draw, ops):
        def distance(x, y):
            return (x - y).abs().mean()

        a, b = draw.real("a"), draw.real("b")
        fake_a, fake_b = networks.to_a(b), networks.to_b(a)
        fooling = 2 * (
            least_squares_generator(networks.judge_a(fake_a)) + least_squares_generator(networks.judge_b(fake_b))
        )
        aba, bab = distance(networks.to_a(fake_b), a), distance(networks.to_b(fake_a), b)
        loss, figures = fooling + self.cycle_weight * (aba + bab), {"A→B→A": aba, "B→A→B": bab}
        if self.identity_weight:
            identity = distance(networks.to_a(a), a) + distance(networks.to_b(b), b)
            loss, figures = (
                loss + self.identity_weight * self.cycle_weight * identity,
                {**figures, "identity": identity},
            )
        return loss, figures

    def falling(self, step):
        """The factor on the learning rate: 1 in the first half, then down to 0 in equal steps."""
        return min(1.0, max(0.0, 2 * (1 - step / self.steps)))

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "judges": Player(("judge_a", "judge_b"), self.judges_loss, adam, lr=self.falling),
            "generators": Player(("to_a", "to_b"), self.generators_loss, adam, ema=self.ema, lr=self.falling),
        }

    def schedule(self, step):
        return [("generators", "judges")]

    def translate(self, networks, images):
        return networks.to_b(images)

    def show(self, networks, latents, labels=None):
        a = self.chosen(networks, latents)
        b = networks.to_b(a)
        return beside(a, b, networks.to_a(b))
