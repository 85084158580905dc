"""A variant that lives outside of the package, in a file that is its own command line, as CONTRIBUTING describes it."""

import json
import re
import runpy
import sys
from pathlib import Path

import ganzoo
from ganzoo import cli

FILE = Path(__file__).with_name("own_variant.py")


def test_a_variant_of_ones_own_trains_resumes_samples_and_evaluates_from_one_file(
    python, forked, tmp_path, monkeypatch
):
    assert len(FILE.read_text().splitlines()) < 60
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", [str(FILE), *map(str, arguments)])
        status, out, errors = forked(lambda: runpy.run_path(str(FILE), run_name="__main__"))
        assert status == 0, errors
        return out

    assert re.search(r"^relativistic +\S", command("list"), re.M)
    options = "--data ring --batch 64 --steps 40 --save-every 20 --no-tensorboard --compare-blocks 0".split()
    process = python(str(FILE), "train", "relativistic", *options)
    assert process.communicate(timeout=120)[1] == ""
    (run,) = (tmp_path / "runs").iterdir()
    assert f"python {FILE} resume {run.relative_to(tmp_path)}" in (run / "README.txt").read_text()
    command("resume", run, "--steps", 60)
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 60
    command("sample", run, "--n", 100, "--out", "points.png")
    assert (tmp_path / "points.png").stat().st_size > 1000
    assert "modes covered" in command("evaluate", run, "--n", 200)
    monkeypatch.setattr(sys, "argv", ["ganzoo", "sample", str(run)])
    assert forked(cli.main)[2] == (
        "ganzoo: the run is of a variant relativistic that is not registered: run the file that defines it, or import it.\n"
    )


def test_it_can_be_used_from_python_too(forked, monkeypatch):
    monkeypatch.syspath_prepend(FILE.parent)

    def use():
        import own_variant  # noqa: F401

        trainer = ganzoo.Trainer(ganzoo.create("relativistic", batch=16), ganzoo.data.open("ring"), seed=1)
        trainer.step()
        assert trainer.sample(5).shape == (5, 2)
        assert "relativistic" in ganzoo.list_variants()

    status, _, errors = forked(use)
    assert status == 0, errors
