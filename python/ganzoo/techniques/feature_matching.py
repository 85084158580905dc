import dataclasses
from dataclasses import dataclass

from torch import nn

from ganzoo.techniques.base import Technique, each, register
from ganzoo.training import distributed


@register("feature-matching")
@dataclass
class FeatureMatching(Technique):
    """Feature matching: L_G = ‖E f(x) − E f(G(z))‖², f the input of the judge's last layer; it replaces the generator's loss.

    E f(x) is a target. Were it the discriminator's to move in this loss, both would agree on features that say nothing.

    Source: Salimans et al. (2016), arXiv:1606.03498, section 3.1.
    """

    order = 1

    def networks(self, data, ops):
        self.need_samples()
        networks = self.variant.networks(data, ops)
        self.need_plain_generator(networks)
        name = self.judges_of(networks)[0]
        judge = getattr(networks, name)
        if len(each(judge)) > 1:
            self.refuse("it has several discriminators")
        path = last_layer(judge)
        if path is None:
            self.refuse(f"its {name} has no last layer whose input could be matched")
        self.caught = None
        judge.get_submodule(path).register_forward_pre_hook(lambda _, inputs: self._catch(inputs[0]))
        return networks

    def players(self, ops):
        players = self.variant.players(ops)
        ours = self.both_sides(players)[1]
        if [players[name].networks for name in ours] != [("generator",)]:
            self.refuse("it does not have one player that trains the generator and nothing else")
        return {**players, ours[0]: dataclasses.replace(players[ours[0]], loss=self.generator_loss)}

    def generator_loss(self, networks, draw, ops):
        batch = draw.batch()
        condition = (batch["label"],) if self.variant.conditional else ()
        real = self.features(networks, batch["image"], condition).mean(0).detach()
        fake = self.features(networks, networks.generator(draw.latents(), *condition), condition).mean(0)
        return (distributed.mean(real) - distributed.mean(fake)).square().sum(), {}

    def features(self, networks, x, condition=()):
        """What the judge's last layer is given, (N, ...)."""
        self.caught = []
        (score,) = self.scorers(networks, self.judges_of(networks)[0], condition)
        score(x)
        (features,), self.caught = self.caught, None
        return features

    def _catch(self, features):
        if self.caught is not None:
            self.caught.append(features)


def last_layer(network):
    """The name of a network's last dense layer or convolution, of whatever kind, or None."""
    names = [
        name
        for name, module in network.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) in (2, 4) and not isinstance(module, nn.Embedding)
    ]
    return names[-1] if names else None
