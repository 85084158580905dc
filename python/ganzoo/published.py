"""Figures that papers print, each with all that it takes to measure it again: what `ganzoo reproduce <name>` trains."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    Args:
        source: paper and table.
        variant, options: what is trained, with all its options that are not the variant's defaults.
        data, data_options: what it is trained on and measured against.
        trials: how many trainings the figures are means of.
        figures: mean and standard error, in the units of `ganzoo.metrics`, under the names it gives them. A picture has none.
        notes: what is known to differ, or to be uncertain, in a sentence.
    """

    source: str
    variant: str
    options: dict
    data: str
    data_options: tuple = ()
    trials: int = 1
    figures: dict = field(default_factory=dict)
    notes: str = ""


def _pacgan_table(method, variant, options, data, modes, quality, divergence):
    return Published(
        source=f"Lin et al. (2018), PacGAN, arXiv:1712.04086, table 1, {method}",
        variant=variant,
        options=dict(steps=400_000, batch=100, latent=2, ema=0.0, lr=1e-4, betas=(0.8, 0.999), **options),
        data=data,
        trials=10,
        figures={"modes covered": modes, "high-quality share": quality, "reverse KL": divergence},
        notes="The authors' library let β₁ stand for 1 − β₁ in some versions, so that theirs may have been 0.2.",
    )


def _wgan_gp_toy(data):
    return Published(
        source="Gulrajani et al. (2017), WGAN-GP, arXiv:1704.00028, the authors' gan_toy.py",
        variant="wgan-gp",
        options=dict(
            steps=100_000, batch=256, latent=2, ema=0.0, penalty_weight=0.1, critic_steps=5, lr=1e-4, betas=(0.5, 0.9)
        ),
        data=data,
        data_options=() if data == "swiss-roll" else ("protocol=wgan-gp",),
        notes="The authors show pictures and print no figures; ring and Swiss roll are 100,000 fixed points here and endless there.",
    )


_GAN = ("GAN", "gan", dict(simultaneous=True))
_ALI = ("ALI", "bigan", dict(stochastic=True))
_PAC2, _PAC3, _PAC4 = ((f"PacGAN{m}", "pacgan", dict(pack_size=m)) for m in (2, 3, 4))

PUBLISHED = {
    "pacgan-ring-gan": _pacgan_table(*_GAN, "ring", (6.3, 0.5), (0.982, 0.002), (0.45, 0.09)),
    "pacgan-ring-ali": _pacgan_table(*_ALI, "ring", (6.6, 0.3), (0.976, 0.004), (0.36, 0.04)),
    "pacgan-ring-pacgan2": _pacgan_table(*_PAC2, "ring", (7.9, 0.1), (0.956, 0.020), (0.07, 0.03)),
    "pacgan-ring-pacgan3": _pacgan_table(*_PAC3, "ring", (7.8, 0.1), (0.977, 0.003), (0.10, 0.02)),
    "pacgan-ring-pacgan4": _pacgan_table(*_PAC4, "ring", (7.8, 0.1), (0.959, 0.014), (0.07, 0.02)),
    "pacgan-grid-gan": _pacgan_table(*_GAN, "grid", (17.3, 0.8), (0.948, 0.007), (0.70, 0.07)),
    "pacgan-grid-ali": _pacgan_table(*_ALI, "grid", (24.1, 0.4), (0.957, 0.006), (0.14, 0.03)),
    "pacgan-grid-pacgan2": _pacgan_table(*_PAC2, "grid", (23.8, 0.7), (0.913, 0.008), (0.13, 0.04)),
    "pacgan-grid-pacgan3": _pacgan_table(*_PAC3, "grid", (24.6, 0.4), (0.942, 0.004), (0.06, 0.02)),
    "pacgan-grid-pacgan4": _pacgan_table(*_PAC4, "grid", (24.8, 0.2), (0.936, 0.006), (0.04, 0.01)),
    "wgan-gp-ring": _wgan_gp_toy("ring"),
    "wgan-gp-grid": _wgan_gp_toy("grid"),
    "wgan-gp-swiss-roll": _wgan_gp_toy("swiss-roll"),
}
