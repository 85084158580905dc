"""What `ganzoo reproduce` makes of the figures that papers print."""

import json

import pytest

import ganzoo
from ganzoo import Trainer
from ganzoo.metrics import evaluate
from ganzoo.published import PUBLISHED, Published
from ganzoo.training.reproduce import published_rows, reproduce_published
from ganzoo.training.run import RunOptions, open_data

ROW = Published(
    source="A paper, table 1",
    variant="gan",
    options=dict(steps=4, batch=8, latent=2, width=1),
    data="ring",
    data_options=("n=300",),
    trials=2,
    figures={"modes covered": (6.3, 0.5)},
)


@pytest.fixture
def row(monkeypatch):
    monkeypatch.setitem(PUBLISHED, "tiny", ROW)
    monkeypatch.setitem(evaluate.__globals__, "TRANSPORTED", 100)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_row_can_be_trained_and_names_figures_that_are_measured(name):
    row = PUBLISHED[name]
    variant = ganzoo.create(row.variant, **row.options)
    data = open_data(RunOptions(data=row.data, data_options=row.data_options))
    trainer = Trainer(variant, data)
    trainer.step()
    measured = {figure.name for figure in evaluate(trainer.sample(50), data)}
    assert set(row.figures) <= measured and any(line.startswith(name) for line in published_rows())


def test_trials_are_runs_that_are_measured_together(row, tmp_path, monkeypatch):
    step = Trainer.step

    def interrupted(trainer):
        if trainer.seed == 1 and trainer.steps == 3:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce_published("tiny", tmp_path, "ganzoo reproduce tiny")
    monkeypatch.setattr(Trainer, "step", step)
    lines = reproduce_published("tiny", tmp_path, "ganzoo reproduce tiny")
    assert lines[:2] == ["tiny: A paper, table 1.", "4 steps, 2 trials, as published."]
    assert lines[2].split() == ["published", "here"] and lines[3].startswith("modes covered  6.3 ± 0.5  ")
    runs = sorted((tmp_path / "tiny").glob("*/checkpoint.pt"))
    assert len(runs) == 2
    measured = json.loads((tmp_path / "tiny" / "reproduction.json").read_text())["measured"]["reverse KL"]

    written = [run.stat().st_mtime_ns for run in runs]
    lines = reproduce_published("tiny", tmp_path, "ganzoo reproduce tiny", trials=3)
    assert lines[1] == "4 steps, 3 trials; NOT the published 4 steps, 2 trials."
    assert [run.stat().st_mtime_ns for run in runs] == written
    assert len(list((tmp_path / "tiny").glob("*/checkpoint.pt"))) == 3
    again = json.loads((tmp_path / "tiny" / "reproduction.json").read_text())
    assert str(again["measured"]["reverse KL"][:2]) == str(measured) and again["published"]["trials"] == 2
