"""Techniques that make a training more stable, one a file, each for any variant that it fits.

ganzoo.create("gan", techniques=["instance-noise:sigma=0.2,anneal=1000", "ada"])
"""

from ganzoo.techniques import (
    ada,
    diffaugment,
    discriminator_width,
    ema,
    feature_matching,
    historical_averaging,
    instance_noise,
    label_noise,
    label_smoothing,
    lazy_r1,
    minibatch_discrimination,
    n_critic,
    prediction,
    ttur,
    virtual_batch_norm,
)
from ganzoo.techniques.base import Shown, Technique, equipped, list_techniques, register, technique_class

__all__ = [
    "Shown",
    "Technique",
    "ada",
    "diffaugment",
    "discriminator_width",
    "ema",
    "equipped",
    "feature_matching",
    "historical_averaging",
    "instance_noise",
    "label_noise",
    "label_smoothing",
    "lazy_r1",
    "list_techniques",
    "minibatch_discrimination",
    "n_critic",
    "prediction",
    "register",
    "technique_class",
    "ttur",
    "virtual_batch_norm",
]
