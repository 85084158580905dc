from dataclasses import dataclass, replace

import torch

from ganzoo.networks import biggan
from ganzoo.objectives import hinge_discriminator, hinge_generator
from ganzoo.options import Betas, Count, NotNegative, Positive
from ganzoo.variants.alternating import TwoRates
from ganzoo.variants.base import Networks, Regularizer, register


@register("biggan")
@dataclass
class BigGAN(TwoRates):
    """BigGAN: conditional on classes by batch norm and by projection, with a split latent, orthogonal regularisation and truncation.

    L_D = E max(0, 1 − ℓ(x, y)) + E max(0, 1 + ℓ(G(z, y), y)), L_G = −E ℓ(G(z, y), y) + β Σ_W ‖WWᵀ ⊙ (1 − I)‖², both networks under spectral
    normalisation. The regulariser leaves the norms of a weight's rows alone, and the classes' embedding as a whole. Samples are of
    z ~ N(0, I) within ±`truncation`, which is drawn without trying again: z ← Φ⁻¹(Φ(−t) + Φ(z)(Φ(t) − Φ(−t))).

    Source: Brock, Donahue and Simonyan (2019), arXiv:1809.11096, sections 3 and 4; projection: Miyato and Koyama (2018), arXiv:1802.05637.
    """

    conditional = True
    steps: Count = 700
    discriminator_steps: Count = 2
    """Discriminator updates per generator step."""
    embedding: Count = 32
    """Dimensions of the embedding of the classes that the generator's norms share."""
    orthogonal_weight: NotNegative = 1e-4
    """β, the weight of the orthogonal regularisation of the generator."""
    truncation: NotNegative = 0.0
    """t, how large the latents of samples may be; 0 for no limit, which training never has."""
    lr: Positive = 5e-4
    """Adam's learning rate for the generator. The paper's 5e-5 and 2e-4 are for photographs; these are for 700 steps on digits."""
    discriminator_lr: Positive = 2e-3
    """Adam's learning rate for the discriminator."""
    betas: Betas = (0.0, 0.999)
    """Adam's decay rates."""

    def networks(self, data, ops):
        generator = biggan.Generator(self.latent, data.shape, self.width, data.classes, self.embedding, ops)
        discriminator = biggan.Discriminator(data.shape, self.width, data.classes, ops)
        return Networks(generator=ops.spectral_norm(generator), discriminator=ops.spectral_norm(discriminator))

    def discriminator_loss(self, networks, draw, ops):
        batch = draw.batch()
        x, y = batch["image"], batch["label"]
        fake = networks.discriminator(networks.generator(draw.latents(), y), y)
        return hinge_discriminator(networks.discriminator(x, y), fake), {}

    def generator_loss(self, networks, draw, ops):
        y = draw.batch()["label"]
        return hinge_generator(networks.discriminator(networks.generator(draw.latents(), y), y)), {}

    def orthogonal(self, networks, draw, ops):
        matrices = [
            p.flatten(1)
            for name, p in networks.generator.named_parameters()
            if p.dim() > 1 and not name.endswith("shared")  # techniques may have put the generator into another network
        ]
        products = [w @ w.mT for w in matrices]
        total = sum((p - p.diag().diag()).square().sum() for p in products)
        return self.orthogonal_weight * total, {}

    def players(self, ops):
        players, terms = super().players(ops), {"orthogonal": Regularizer(self.orthogonal)}
        return {**players, "generator": replace(players["generator"], regularizers=terms)}

    def schedule(self, step):
        return ["discriminator"] * self.discriminator_steps + ["generator"]

    def truncated(self, z):
        if not self.truncation:
            return z
        below = torch.special.ndtr(torch.tensor(-self.truncation, dtype=torch.float64)).item()
        shares = below + torch.special.ndtr(z.double()) * (1 - 2 * below)
        return torch.special.ndtri(shares).to(z)

    def sample(self, networks, latents, labels=None):
        return networks.generator(self.truncated(latents), labels)
