from dataclasses import dataclass

from ganzoo.networks import autoencoder, dcgan, toy
from ganzoo.objectives import energy_discriminator, pulling_away
from ganzoo.options import Count, NotNegative, Positive
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, register


@register("ebgan")
@dataclass
class EBGAN(Alternating):
    """EBGAN: the discriminator is an autoencoder, and an image's energy the error of its reconstruction.

    U(x) = ‖Dec(Enc(x)) − x‖²/n over the n pixels, L_D = E U(x) + E max(0, m − U(G(z))), L_G = E U(G(z)) + w·PT(Enc(G(z))),
    PT(S) = Σᵢ Σⱼ≠ᵢ cos²(sᵢ, sⱼ)/(N (N − 1)).

    Source: Zhao, Mathieu and LeCun (2017), arXiv:1609.03126, eqs. 1 to 4.
    """

    judges = ()  # its discriminator returns images
    width: Count = 8
    margin: Positive = 1.0
    """m, the energy above which generated images are left alone."""
    pulling_away_weight: NotNegative = 0.1
    """w, the weight of the pulling-away term; 0 leaves it out."""
    code: Count = 16
    """Dimensions of the code that the autoencoder goes through."""
    lr: Positive = 1e-3
    """Adam's learning rate."""

    def networks(self, data, ops):
        family = toy if data.points else dcgan
        return Networks(
            generator=family.Generator(self.latent, data.shape, self.width),
            discriminator=autoencoder.Autoencoder(data.shape, self.width, self.code),
        )

    def energy(self, x, rebuilt):
        return (rebuilt - x).square().flatten(1).mean(1)

    def discriminator_loss(self, networks, draw, ops):
        real, fake = draw.real(), networks.generator(draw.latents())
        real, fake = (self.energy(x, networks.discriminator(x)) for x in (real, fake))
        return energy_discriminator(real, fake, self.margin), {"real": real.mean(), "fake": fake.mean()}

    def generator_loss(self, networks, draw, ops):
        fake = networks.generator(draw.latents())
        codes = networks.discriminator.encoder(fake)
        away, energy = pulling_away(codes), self.energy(fake, networks.discriminator.decoder(codes)).mean()
        return energy + self.pulling_away_weight * away, {"pulling_away": away}

    def scores(self, networks, images, labels=None):
        return -self.energy(images, networks.discriminator(images))
