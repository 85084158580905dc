"""What `ganzoo evaluate` does."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

import ganzoo.data
from ganzoo.errors import ArgumentError, Error
from ganzoo.files import write_atomically
from ganzoo.metrics.evaluate import evaluate, sample_count
from ganzoo.metrics.extractors import BATCH
from ganzoo.metrics.figure import Figure
from ganzoo.training import distributed
from ganzoo.training.checkpoint import load
from ganzoo.training.loop import as_device
from ganzoo.training.run import open_data, read_config

EVALUATION = "evaluation.jsonl"


def reconstruction_error(generator, data, n):
    """Of the first `n` samples of a set, or of all that there are: the root of the mean square, over pixels or coordinates."""
    count, total = min(n, len(data)), 0.0
    for numbers in torch.arange(count).split(BATCH):
        images = data.fetch(numbers)["image"]
        total += (generator.reconstruct(images) - images).square().flatten(1).mean(1).sum().item()
    error, split = (total / count) ** 0.5, f"{data.name}/{data.split}, {count} of {len(data)}"
    return Figure("reconstruction error", error, "pixels" if images.dim() == 4 else "coordinates", split, "none", count)


def evaluate_run(run, *, data="", n=0, extractor="", seed=1, device="cpu"):
    """The figures of a trained generator against its run's data, or against `data`; in a run folder they are added to
    `evaluation.jsonl`. Returns a list of `ganzoo.metrics.figure.Figure`."""
    if n < 0:
        raise ArgumentError("n", "at least 1, or 0 for the number that suits the data", n)
    as_device(device)
    generator, folder = load(run), Path(run)
    if not data and not folder.is_dir():
        raise Error(f"{run} is not the folder of a run, so --data must say what to compare with.")
    reference = ganzoo.data.open(data) if data else open_data(read_config(folder)[1])
    if isinstance(reference, dict):
        raise Error("there are no metrics for domains of images.")
    n = n or sample_count(reference)
    labels = torch.arange(n) % generator.data.classes if generator.variant.conditional else None
    samples = generator.sample(n, seed=seed, labels=labels)
    figures = evaluate(samples, reference, extractor, labels, device)
    if "encoder" in generator.variant.samplers:
        figures.append(reconstruction_error(generator, reference, n))
    if folder.is_dir() and distributed.rank() == 0:
        path = folder / EVALUATION
        lines = [json.dumps({"step": generator.steps, "seed": seed, **asdict(figure)}) + "\n" for figure in figures]
        write_atomically(path, ((path.read_text() if path.exists() else "") + "".join(lines)).encode())
    return figures
