"""What the metrics need of the reference set, computed once and kept in the cache."""

import hashlib
from dataclasses import dataclass

import torch

from ganzoo.data.base import fingerprint
from ganzoo.files import cache_folder, write_atomically
from ganzoo.metrics.extractors import BATCH
from ganzoo.metrics.frechet import Moments
from ganzoo.training import distributed

KEPT = 10_000
"""Features that are kept for the metrics that compare samples one by one."""


@dataclass(frozen=True)
class Reference:
    """`moments` of the features of the whole set, `features` (M, D) of at most 10,000 of its samples, in a random
    order."""

    moments: Moments
    features: torch.Tensor


def reference(data, extractor):
    """The reference of a set under an extractor.

    Kept under a hash of the set's contents, name and split and the extractor's name, so that what was computed from one
    split can never stand in for another.
    """
    import safetensors.torch

    file, kept = distributed.from_first(lambda: _kept(data, extractor))
    if kept:
        return Reference(Moments(len(data), kept["mean"], kept["scatter"]), kept["features"])
    moments, features = Moments(), []
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def extract(part):
        return extractor.extract(data.fetch(part)["image"])[0].cpu()

    for batch in distributed.shared_out(extract, order.split(BATCH)):
        moments.add(batch)
        if len(features) * BATCH < KEPT:
            features.append(batch.float())
    features = torch.cat(features)[:KEPT]
    content = {"mean": moments.mean, "scatter": moments.scatter, "features": features}
    distributed.from_first(lambda: write_atomically(file, safetensors.torch.save(content)))
    return Reference(moments, features)


def _kept(data, extractor):
    """The file of a reference, and what it holds, or None."""
    import safetensors.torch

    key = hashlib.sha256(repr((fingerprint(data), extractor.name, extractor.resize)).encode()).hexdigest()[:32]
    file = cache_folder("statistics") / f"{key}.safetensors"
    try:
        kept = safetensors.torch.load_file(file)
        return file, {name: kept[name] for name in ("mean", "scatter", "features")}
    except (OSError, KeyError, safetensors.SafetensorError):
        return file, None
