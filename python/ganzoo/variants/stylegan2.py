from dataclasses import dataclass
from functools import partial

import torch

from ganzoo.networks import stylegan2
from ganzoo.options import Count, Decay, NotNegative
from ganzoo.variants.base import Networks, Player, Regularizer, register
from ganzoo.variants.styled import LazyR1


@register("stylegan2")
@dataclass
class StyleGAN2(LazyR1):
    """StyleGAN2: styles scale a convolution's weights, which are demodulated; lazy R1 and path length regularisation.

    L_D = E softplus(−ℓ(x)) + E softplus(ℓ(G(z))) + γ/2 E ‖∇ℓ(x)‖²,
    L_G = E softplus(−ℓ(G(z))) + λ E (‖Jᵀy‖ − a)², J = ∂G/∂w, y ~ N(0, I)/√(HW), a the running mean of the lengths ‖Jᵀy‖.

    R1 is taken at every 16th update and 16 times as large, the path length at every 4th and 4 times. As in the authors' training, ‖Jᵀy‖² is
    the mean over the layers' own w rather than of one w.

    Source: Karras et al. (2020), arXiv:1912.04958, sections 2 to 4 and appendix B.
    """

    latent: Count = 16
    """Dimensions of z and of w. The paper's 512 are for photographs; for digits 64 were more than 1,500 steps could use."""
    ema: Decay = 0.99
    path_length_weight: NotNegative = 0.01
    """λ, the weight of the path length's term. The authors' 2 is for photographs; here it slows down what 1,500 steps can learn."""
    path_length_every: Count = 4
    """Generator updates from one path length to the next."""
    path_length_decay: Decay = 0.99
    """Decay of a, the running mean of the path lengths, per path length taken."""

    def networks(self, data, ops):
        return Networks(
            generator=stylegan2.Generator(self.latent, data.shape, self.width, self.depth, ops),
            discriminator=stylegan2.Discriminator(data.shape, self.width, ops),
            w_mean=torch.zeros(self.latent),
            mean_length=torch.zeros(()),
        )

    def path_length(self, networks, draw, ops):
        generator = networks.generator
        w, noise = self.styles(networks, draw), draw.normal(generator.pixels)
        y = draw.normal(*generator.image_shape) / generator.image_shape[-1]
        penalty, lengths = ops.path_length_penalty(
            partial(generator.synthesis, noise=noise), w, networks.mean_length, y
        )
        return self.path_length_weight * penalty, {"length": lengths.mean()}

    def follow(self, networks, figures):
        super().follow(networks, figures)
        if "length" in figures:
            networks.mean_length.lerp_(figures["length"].to(networks.mean_length), 1 - self.path_length_decay)

    def generator_player(self, ops):
        path_length = Regularizer(self.path_length, every=self.path_length_every)
        return Player(
            ("generator",),
            self.generator_loss,
            self.adam(ops, self.path_length_every),
            ema=self.ema,
            regularizers={"path_length": path_length},
            after=self.follow,
        )
