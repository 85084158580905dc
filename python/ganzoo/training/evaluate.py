"""What `ganzoo evaluate` does."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

from ganzoo.data.base import DataSet
from ganzoo.errors import ArgumentError, Error
from ganzoo.files import write_atomically
from ganzoo.metrics.equivariance import eq_r, eq_t
from ganzoo.metrics.evaluate import evaluate, sample_count
from ganzoo.metrics.extractors import BATCH
from ganzoo.metrics.figure import Figure
from ganzoo.metrics.psnr import psnr
from ganzoo.techniques.base import plain
from ganzoo.training import distributed
from ganzoo.training.checkpoint import load
from ganzoo.training.loop import as_device, as_sources, check_form
from ganzoo.training.run import RunOptions, open_data, read_config, settle_data
from ganzoo.variants.translating import Translating

EVALUATION = "evaluation.jsonl"
MOVED = 256
"""Images that EQ-T and EQ-R are measured on."""


def reconstruction_error(generator, data, n):
    """Of the first `n` samples of a set, or of all that there are: the root of the mean square, over pixels or coordinates."""
    count, total = min(n, len(data)), 0.0
    for numbers in torch.arange(count).split(BATCH):
        images = data.fetch(numbers)["image"]
        total += (generator.reconstruct(images) - images).square().flatten(1).mean(1).sum().item()
    error, split = (total / count) ** 0.5, f"{data.name}/{data.split}, {count} of {len(data)}"
    return Figure("reconstruction error", error, "pixels" if images.dim() == 4 else "coordinates", split, "none", count)


def equivariance(generator, seed):
    """EQ-T and EQ-R of a generator's images, before what brings them into [−1, 1]."""
    size, latents = generator.data.shape[-1], generator.variant.latents(MOVED, torch.Generator().manual_seed(seed))

    def synthesize(index, shift, turn):
        at = slice(index, index + 1)
        return generator.variant.moved(generator.networks, latents[at], torch.tensor([shift]), torch.tensor([turn]))[0]

    figures = {"EQ-T": eq_t(synthesize, MOVED, size, seed), "EQ-R": eq_r(synthesize, MOVED, size, seed)}
    return [Figure(f"{name} in dB", value, "pixels", "none", "none", MOVED) for name, value in figures.items()]


def evaluate_run(run, *, data="", data_options=(), n=0, extractor="", seed=1, device="cpu"):
    """The figures of a trained generator against its run's data, or against `data`, opened with `data_options`; in a run folder they are added to
    `evaluation.jsonl`. Returns a list of `ganzoo.metrics.figure.Figure`."""
    if n < 0:
        raise ArgumentError("n", "at least 1, or 0 for the number that suits the data", n)
    as_device(device)
    generator, folder = load(run), Path(run)
    if not data and not folder.is_dir():
        raise Error(f"{run} is not the folder of a run, so --data must say what to compare with.")
    if data_options and not data:
        raise ArgumentError("data_options", "left out, unless --data says of what", " ".join(data_options))
    options = RunOptions(data=data, data_options=data_options) if data else read_config(folder)[1]
    settle_data(generator.variant, options)
    reference = open_data(options)
    if isinstance(plain(generator.variant), Translating):
        check_form(generator.variant, as_sources(reference, 1))
        figures = _translated(generator, reference, n, extractor or "pixels", seed, device)
    elif isinstance(reference, dict):
        raise Error("there are no metrics for domains of images.")
    else:
        n = n or sample_count(reference)
        labels = torch.arange(n) % generator.data.classes if generator.variant.conditional else None
        figures = evaluate(generator.sample(n, seed=seed, labels=labels), reference, extractor, labels, device)
        if "encoder" in generator.variant.samplers:
            figures.append(reconstruction_error(generator, reference, n))
        if generator.variant.moved:
            figures += equivariance(generator, seed)
    if folder.is_dir() and distributed.rank() == 0:
        path = folder / EVALUATION
        lines = [json.dumps({"step": generator.steps, "seed": seed, **asdict(figure)}) + "\n" for figure in figures]
        write_atomically(path, ((path.read_text() if path.exists() else "") + "".join(lines)).encode())
    return figures


class _Wanted(DataSet):
    """What images are to become, of data that are pairs for a variant, as a set of images."""

    def __init__(self, variant, data):
        self._variant, self._data = variant, data
        shape = self.fetch(torch.zeros(1, dtype=torch.int64))["image"].shape[1:]
        super().__init__(data.name, shape, split=f"{data.split}, what is wanted")

    def __len__(self):
        return len(self._data)

    def fetch(self, indices):
        return {"image": self._variant.pair(self._data.fetch(indices))[1]}


def _translated(generator, reference, n, extractor, seed, device):
    """What becomes of the images of a domain, against those of the other; of pairs also against the very images that they should become,
    beside what enlarging alone makes of them."""
    variant = generator.variant
    if isinstance(reference, dict):
        wanted, numbers = reference["b"], torch.arange(min(n or sample_count(reference["b"]), len(reference["a"])))
        made = generator.translate(reference["a"].fetch(numbers)["image"], seed)
        return evaluate(made, wanted, extractor, device=device)
    wanted = _Wanted(variant, reference)
    numbers = torch.arange(min(n or sample_count(wanted), len(wanted)))
    given, partners = variant.pair(reference.fetch(numbers))
    made, plain = generator.translate(given, seed), F.interpolate(given, size=partners.shape[2:], mode="bicubic")
    values = {
        "L1 to the partner": (made - partners).abs().mean(),
        "PSNR to the partner, dB": psnr(made, partners),
        "PSNR of what it was made of, dB": psnr(plain, partners),
    }
    split = f"{wanted.name}/{wanted.split}, {len(numbers)} of {len(wanted)}"
    figures = [Figure(name, value.item(), "pixels", split, "bicubic", len(made)) for name, value in values.items()]
    return evaluate(made, wanted, extractor, device=device) + figures
