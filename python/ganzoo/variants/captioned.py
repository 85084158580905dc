from dataclasses import dataclass

import torch

from ganzoo.errors import ArgumentError
from ganzoo.networks.conditional import TextEncoder
from ganzoo.options import Count
from ganzoo.variants.base import Variant

MOST_ROUNDS = 200
"""Draws of 50 images for each class in which every class is to be met."""


@dataclass
class Captioned(Variant):
    """What is drawn from captions. Classes are drawn by a caption that the data have of each, `captions` among the networks, and
    `sample(n, labels=[...])` takes n captions as well."""

    conditional = True
    usual_data = ("captioned-digits",)
    code: Count = 32
    """Dimensions of what the encoders make of a caption."""

    def text_encoder(self, data):
        """A network from captions (N, T), whole numbers, to codes (N, code)."""
        if not data.vocabulary:
            raise ArgumentError("data", "captioned in the words of its vocabulary", f"{data.name} without one")
        return TextEncoder(len(data.vocabulary), self.code)

    def no_captions(self, data):
        """What `captions` starts as, (classes, T). Raises `ArgumentError` for data without."""
        if "caption" not in data.fields:
            fields = f"samples of {data.name} with {', '.join(data.fields)}"
            raise ArgumentError("data", "captioned, as captioned-digits are", fields)
        return torch.zeros(data.classes, *data.fields["caption"], dtype=torch.int64)

    def enter(self, networks, draw, ops):
        """Gives each class a caption; returns how many samples of each it has seen."""
        counts = torch.zeros_like(networks.captions[:, 0])
        for _ in range(MOST_ROUNDS):
            batch = draw.batch(count=50 * len(counts))
            label, places = batch["label"], torch.arange(50 * len(counts), device=counts.device)
            # the last of each class: of several that are written to one place, which one stays is up to threads
            last = torch.full_like(counts, -1).scatter_reduce(0, label, places, "amax")
            networks.captions[last >= 0] = batch["caption"][last[last >= 0]]
            counts += label.bincount(minlength=len(counts))
            if counts.all():
                break
        wanted, found = max(len(counts), 2), counts.count_nonzero()
        if found < wanted:
            raise ArgumentError(
                "data", f"captioned in each of {wanted} classes", f"{counts.sum()} images of {found} classes"
            )
        return counts

    def condition(self, networks, labels):
        """Captions as they are, labels as the caption of each class."""
        return labels if labels.dim() == 2 else networks.captions[labels]
