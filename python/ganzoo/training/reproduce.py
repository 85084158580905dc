"""What `ganzoo reproduce` does: a run's configuration once more, and what differs."""

import json
from pathlib import Path

import torch

from ganzoo.errors import Error
from ganzoo.training.checkpoint import load_checkpoint
from ganzoo.training.monitor import read_metrics
from ganzoo.training.run import read_config, train, versions


def reproduce(run, runs, command):
    """Train a run's configuration again in a new folder below `runs`. Returns lines that compare the two."""
    variant, options, config = read_config(run)
    state = load_checkpoint(run)
    if state["steps"] < variant.steps:
        raise Error(f"{run} has not ended: it has {state['steps']} of {variant.steps} steps.")
    options.runs, options.data_options, options.compare_blocks = runs, tuple(options.data_options), 0
    folder = train(variant, options, command)
    changed = [
        f"{name} was {old} and is {versions().get(name)}"
        for name, old in config["versions"].items()
        if old != versions().get(name)
    ]
    again = load_checkpoint(folder)
    lines = [f"{run} again in {folder}; {'; '.join(changed) or 'same versions and platform'}."]
    if _equal(state["networks"], again["networks"]):
        return [*lines, "The weights are equal to the bit."]
    return [*lines, "The weights differ.", *_figures(run, folder)]


def _equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _figures(run, folder):
    """Lines with what both runs ended with, side by side."""
    ends = []
    for each in (run, folder):
        record = {key: value for key, value in read_metrics(each)[-1].items() if key not in ("step", "seconds")}
        summary = Path(each, "summary.json")
        digits = json.loads(summary.read_text()).get("digits", {}).get("samples", {}) if summary.exists() else {}
        ends.append({**record, **digits})
    return [f"{name}: {ends[0][name]:.4g} then, {ends[1][name]:.4g} now" for name in ends[0] if name in ends[1]]
