"""ganzoo: GANs assembled from the fused ops of gankernels, one paper a file.

From Python:

    trainer = ganzoo.Trainer(ganzoo.create("wgan-gp", width=16), images, seed=0)
    figures = trainer.step()
    pictures = ganzoo.load("runs/<run>").sample(64, seed=0)

`ganzoo train wgan-gp` does the same with files, progress and curves.
"""

from ganzoo.errors import ArgumentError, Error
from ganzoo.training.checkpoint import load
from ganzoo.training.loop import Trainer
from ganzoo.variants import create, list_variants

__all__ = ["ArgumentError", "Error", "Trainer", "create", "list_variants", "load"]
