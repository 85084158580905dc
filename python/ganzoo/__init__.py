"""ganzoo: GANs assembled from the fused ops of gankernels, one paper a file.

From Python:

    trainer = ganzoo.Trainer(ganzoo.create("wgan-gp", width=16), ganzoo.data.open("digits"), seed=0)
    figures = trainer.step()
    pictures = ganzoo.load("runs/<run>").sample(64, seed=0)

`ganzoo train wgan-gp` does the same with files, progress and curves.
"""

from ganzoo import data
from ganzoo.errors import ArgumentError, Error
from ganzoo.training.checkpoint import load
from ganzoo.training.loop import Trainer
from ganzoo.variants import create, list_variants

__all__ = ["ArgumentError", "Error", "Trainer", "create", "data", "list_variants", "load", "main"]


def main():
    """The command line, for a file that registers variants of its own: `if __name__ == "__main__": ganzoo.main()`."""
    from ganzoo.cli import main

    main()
