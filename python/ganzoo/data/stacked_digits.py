"""Three digits in one image: 1,000 modes, after the stacked MNIST of Metz et al. (2016), arXiv:1611.02163."""

from typing import Literal

import torch

from ganzoo.data.base import DataSet
from ganzoo.data.digits import open_digits
from ganzoo.data.idx import open_idx
from ganzoo.errors import ArgumentError
from ganzoo.options import Count, CountOrZero


class Stacked(DataSet):
    """Triples of a set of grey digits, one in each channel, put together when they are fetched. The label of the digits
    a, b, c is 100 a + 10 b + c."""

    def __init__(self, digits, n, seed):
        super().__init__("stacked-digits", (3, *digits.shape[1:]), 1000, digits.split)
        self.digits = digits
        self._triples = torch.randint(len(digits), (n, 3), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self._triples)

    def fetch(self, indices):
        batch = self.digits.fetch(self._triples[indices].flatten())
        a, b, c = batch["label"].unflatten(0, (-1, 3)).unbind(1)
        return {"image": batch["image"].squeeze(1).unflatten(0, (-1, 3)), "label": 100 * a + 10 * b + c}

    def to(self, device):
        self.digits.to(device)
        return super().to(device)


def open_stacked_digits(
    *,
    n: Count = 128_000,
    seed: CountOrZero = 0,
    source: str = "",
    split: Literal["all", "train", "test"] = "all",
    size: CountOrZero = 0,
):
    """Random triples of scikit-learn's digits, stacked on the channels, or of those in the folder `source` of IDX files (MNIST),
    which `size` pads."""
    if source:
        digits = open_idx(source, split="train" if split == "all" else split, size=size)
    elif size:
        raise ArgumentError("size", "0 without a source of IDX files", size)
    else:
        digits = open_digits(split=split)
    return Stacked(digits, n, seed)
