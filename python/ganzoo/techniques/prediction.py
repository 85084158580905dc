import dataclasses
from dataclasses import dataclass

from ganzoo.techniques.base import Technique, register


@register("prediction")
@dataclass
class Prediction(Technique):
    """Prediction step: the discriminators' side sees the generators at ū = u + (u − u₋), where their last step would take them again.

    u_{k+1} = u_k − α ∂L_G/∂u (u_k, v_k), ū = u_{k+1} + (u_{k+1} − u_k), v_{k+1} = v_k − β ∂L_D/∂v (ū, v_k). u itself stays u_{k+1}.

    Source: Yadav, Shah, Xu, Jacobs and Goldstein (2018), arXiv:1705.07364, section 3.
    """

    def players(self, ops):
        players = self.variant.players(ops)
        theirs, ours = self.both_sides(players)
        ahead = tuple(dict.fromkeys(network for name in ours for network in players[name].networks))
        return {
            name: dataclasses.replace(player, lookahead=ahead) if name in theirs else player
            for name, player in players.items()
        }
