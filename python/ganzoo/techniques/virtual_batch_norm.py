from dataclasses import dataclass

import torch
from torch import nn

from ganzoo.options import Count
from ganzoo.techniques.base import Technique, plain, register
from ganzoo.variants.translating import Translating


@register("virtual-batch-norm")
@dataclass
class VirtualBatchNorm(Technique):
    """Virtual batch norm: the generator's batch norms take the statistics of a fixed batch of latents and of the sample itself.

    The reference batch is chosen at the start and goes through the current weights beside every batch; a sample's image no longer depends
    on its neighbours. The batch that came before is no reference: it would carry them over.

    Source: Salimans et al. (2016), arXiv:1606.03498, section 3.5, which has it in the generator alone, for its cost.
    """

    reference: Count = 64
    """Latents of the reference batch."""

    def networks(self, data, ops):
        self.need_samples()
        if isinstance(plain(self.variant), Translating):
            self.refuse("its generator makes images of images")
        self.both_sides(self.variant.players(ops))
        networks = self.variant.networks(data, ops)
        self.need_plain_generator(networks)
        generator = getattr(networks, "generator", None)
        norms = [
            (path, module)
            for path, module in (generator.named_modules() if generator is not None else ())
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        if not norms:
            self.refuse("it has no generator with batch norm")
        for path, norm in norms:
            generator.set_submodule(path, VirtualNorm(norm, self.reference))
        latents = self.variant.latents(self.reference, torch.Generator().manual_seed(torch.initial_seed()))
        labels = (torch.arange(self.reference) % data.classes,) if self.variant.conditional else ()
        networks.generator = WithReference(generator, latents, *labels)
        return networks


class WithReference(nn.Module):
    """A network that a reference batch goes through ahead of every other."""

    def __init__(self, network, *reference):
        super().__init__()
        self.network = network
        for number, values in enumerate(reference):
            self.register_buffer(f"reference{number}", values)

    def forward(self, *inputs):
        reference = [getattr(self, f"reference{number}") for number in range(len(inputs))]
        return self.network(*map(torch.cat, zip(reference, inputs)))[len(reference[0]) :]


class VirtualNorm(nn.Module):
    """In place of a batch norm, for rows of which the first `count` are the reference batch."""

    def __init__(self, norm, count):
        super().__init__()
        self.weight, self.bias, self.eps, self.count = norm.weight, norm.bias, norm.eps, count

    def forward(self, x):
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        space, per_channel = list(range(2, x.dim())), [1, -1, *[1] * (x.dim() - 2)]
        own_mean = wide.mean(space, keepdim=True) if space else wide
        own_variance = (wide - own_mean).square().mean(space, keepdim=True) if space else torch.zeros_like(wide)
        mean = own_mean[: self.count].mean(0, keepdim=True)
        variance = (own_variance[: self.count] + (own_mean[: self.count] - mean).square()).mean(0, keepdim=True)
        # a mixture of the reference with the sample, of weight 1 / (count + 1), but for the reference batch itself
        share = torch.full((len(x), *[1] * (x.dim() - 1)), 1 / (self.count + 1), dtype=wide.dtype, device=x.device)
        share[: self.count] = 0
        away = own_mean - mean
        mixed = (1 - share) * (variance + (share * away).square()) + share * (
            own_variance + ((1 - share) * away).square()
        )
        normal = (wide - mean - share * away) * (mixed + self.eps).rsqrt()
        if self.weight is not None:
            normal = normal * self.weight.view(per_channel) + self.bias.view(per_channel)
        return normal.to(x.dtype)
