"""Networks that were trained elsewhere, from files."""

import torch
from torch import nn

from ganzoo.errors import ArgumentError


class Exported(nn.Module):
    """The network in a file that torch.export.save wrote for batches of any size, frozen. Its weights stay in the file: no checkpoint has
    them, and who loads a run needs the file too. `option` is what the file is the value of."""

    def __init__(self, option, path):
        super().__init__()
        try:
            network = torch.export.load(path).module()
        except Exception as error:  # torch.export.load raises whatever is wrong with the file makes its readers raise
            wanted = f"a file that torch.export.save wrote ({type(error).__name__})"
            raise ArgumentError(option, wanted, path) from error
        self._held = [network.requires_grad_(False)]  # not a child: it refuses eval()
        self._option, self._path = option, path

    def fitting(self, what, example, fits):
        """Itself. Raises `ArgumentError` unless it is `what`: unless `fits` what it makes of an example."""
        try:
            fit = fits(self(example))
        except Exception:  # a graph raises whatever an input of another shape makes its ops raise
            fit = False
        if not fit:
            raise ArgumentError(self._option, what, self._path)
        return self

    def _apply(self, fn, recurse=True):
        self._held[0]._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, x):
        return self._held[0](x)
