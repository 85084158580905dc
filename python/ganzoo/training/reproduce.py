"""What `ganzoo reproduce` does: a run's configuration, or a published one, once more, and what differs."""

import dataclasses
import json
import math
from pathlib import Path

import torch

from ganzoo.errors import Error
from ganzoo.files import write_atomically
from ganzoo.published import PUBLISHED
from ganzoo.training.checkpoint import load_checkpoint
from ganzoo.training.evaluate import evaluate_run
from ganzoo.training.monitor import read_metrics
from ganzoo.training.run import RunOptions, read_config, resume, train, versions
from ganzoo.variants.base import create

REPRODUCTION = "reproduction.json"
PICTURES = 20
"""Checkpoints of each trial, with a picture of its samples."""


def reproduce(run, runs, command):
    """Train a run's configuration again in a new folder below `runs`. Returns lines that compare the two."""
    if not Path(run).is_dir():
        raise Error(f"{run} must be the folder of a run, or one of {', '.join(PUBLISHED)}.")
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


def reproduce_published(name, runs, command, *, trials=0, steps=0, device="cpu"):
    """Train and measure a row of `ganzoo.published`, `trials` and `steps` as published unless given, each trial a run below
    `runs/name` that is taken up again where it stands. Writes `reproduction.json` there, and returns lines with the published figures and
    these side by side."""
    row = PUBLISHED[name]
    variant = create(row.variant, **{**row.options, **({"steps": steps} if steps else {})})
    folder, measured = Path(runs, name), {}
    options = RunOptions(
        data=row.data,
        data_options=row.data_options,
        device=device,
        save_every=max(500, variant.steps // PICTURES),
        compare_blocks=0,
        runs=str(folder),
    )
    trials = trials or row.trials
    for seed in range(trials):
        run = _trial(variant, dataclasses.replace(options, seed=seed), command)
        for figure in evaluate_run(run, device=device):
            measured.setdefault(figure.name, []).append(figure.value)
    report = {
        "source": row.source,
        "variant": row.variant,
        "options": variant.options(),
        "data": [row.data, *row.data_options],
        "trials": trials,
        "published": {"steps": row.options["steps"], "trials": row.trials, "figures": row.figures},
        "measured": measured,
        "versions": versions(),
    }
    write_atomically(folder / REPRODUCTION, json.dumps(report, indent=2).encode())
    return [*_protocol(name, row, variant.steps, trials), *_side_by_side(row.figures, measured)]


def _trial(variant, options, command):
    """The folder of a run of this configuration that has come to its end: one that is there already, finished, or a new one."""
    wanted = json.loads(json.dumps([variant.name, variant.options(), dataclasses.asdict(options)]))
    for path in sorted(Path(options.runs).glob("*/config.json")):
        config = json.loads(path.read_text())
        if [config["variant"], config["options"], config["run"]] == wanted:
            run = path.parent
            return run if load_checkpoint(run)["steps"] >= variant.steps else resume(run)
    return train(variant, options, command)


def _protocol(name, row, steps, trials):
    """Lines that say what was run, and how it falls short of what was published."""
    done = f"{steps:,} steps, {trials} trial{'s' if trials > 1 else ''}"
    asked = row.options["steps"], row.trials
    same = (steps, trials) == asked
    return [
        f"{name}: {row.source}.",
        f"{done}, as published." if same else f"{done}; NOT the published {asked[0]:,} steps, {asked[1]} trials.",
        *([row.notes] if row.notes else []),
    ]


def _side_by_side(published, measured):
    """A table of means with their standard errors. Figures that the paper does not print are left out when it prints any."""
    names = [name for name in measured if name in published or not published]
    rows = [("", "published", "here")]
    for name in names:
        values = torch.tensor(measured[name], dtype=torch.float64)
        here = values.mean().item(), (values.std() / len(values) ** 0.5).item() if len(values) > 1 else math.nan
        rows.append((name, _with_error(*published[name]) if published else "", _with_error(*here)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _with_error(mean, error):
    return f"{mean:.4g}" if math.isnan(error) else f"{mean:.4g} ± {error:.2g}"


def published_rows():
    """Lines that name the rows of `ganzoo.published`, each with its figures."""
    width = max(map(len, PUBLISHED))
    return [
        f"{name:{width}}  {row.source}: {_in_words(row.figures)}; {row.options['steps']:,} steps, {row.trials} trial"
        f"{'s' if row.trials > 1 else ''}"
        for name, row in PUBLISHED.items()
    ]


def _in_words(figures):
    return ", ".join(f"{name} {_with_error(*value)}" for name, value in figures.items()) or "no figures"
