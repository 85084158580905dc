"""The GANs, one paper a file, each registered by name when this package is imported."""

from ganzoo.variants import gan, r3gan, sngan, wgan, wgan_gp
from ganzoo.variants.base import (
    DataInfo,
    Networks,
    Player,
    Regularizer,
    Variant,
    create,
    list_variants,
    register,
    variant_class,
)

__all__ = [
    "DataInfo",
    "Networks",
    "Player",
    "Regularizer",
    "Variant",
    "create",
    "gan",
    "list_variants",
    "r3gan",
    "register",
    "sngan",
    "variant_class",
    "wgan",
    "wgan_gp",
]
