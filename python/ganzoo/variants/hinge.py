from dataclasses import dataclass

from ganzoo.objectives import hinge_discriminator, hinge_generator
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import register


@register("hinge")
@dataclass
class HingeGAN(Alternating):
    """Hinge GAN: the discriminator is a support vector machine, and learns only from scores within its margin.

    L_D = E max(0, 1 − ℓ(x)) + E max(0, 1 + ℓ(G(z))), L_G = −E ℓ(G(z)).

    Source: Lim and Ye (2017), Geometric GAN, arXiv:1705.02894, eqs. 18 to 21; Tran, Ranganath and Blei (2017), arXiv:1702.08896. SN-GAN,
    SAGAN and BigGAN play this game too, with normalised discriminators.
    """

    def discriminator_loss(self, networks, draw, ops):
        real, fake = networks.discriminator(draw.real()), networks.discriminator(networks.generator(draw.latents()))
        return hinge_discriminator(real, fake), {"real": real.mean(), "fake": fake.mean()}

    def generator_loss(self, networks, draw, ops):
        return hinge_generator(networks.discriminator(networks.generator(draw.latents()))), {}
