"""A variant that lives outside of the package, in a file that is its own command line, as CONTRIBUTING describes it."""

import json
import re
from pathlib import Path

FILE = Path(__file__).with_name("own_variant.py")


def test_a_variant_of_ones_own_trains_resumes_samples_and_evaluates_from_one_file(python, tmp_path):
    assert len(FILE.read_text().splitlines()) < 60

    def command(*arguments):
        process = python(str(FILE), *map(str, arguments), cwd=tmp_path)
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return out

    assert re.search(r"^relativistic +\S", command("list"), re.M)
    options = "--data ring --batch 64 --steps 40 --save-every 20 --no-tensorboard --compare-blocks 0".split()
    command("train", "relativistic", *options)
    (run,) = (tmp_path / "runs").iterdir()
    command("resume", run, "--steps", 60)
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 60
    command("sample", run, "--n", 100, "--out", "points.png")
    assert (tmp_path / "points.png").stat().st_size > 1000
    assert "modes covered" in command("evaluate", run)
    assert f"python {FILE} resume {run.relative_to(tmp_path)}" in (run / "README.txt").read_text()
    process = python("-m", "ganzoo", "sample", str(run), cwd=tmp_path)
    assert process.communicate(timeout=120)[1] == (
        "ganzoo: the run is of a variant relativistic that is not registered: run the file that defines it, or import it.\n"
    )


def test_it_can_be_used_from_python_too(python, tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(FILE.parent)!r})
import own_variant, ganzoo, torch
trainer = ganzoo.Trainer(ganzoo.create("relativistic", batch=16), ganzoo.data.open("ring"), seed=1)
trainer.step()
assert trainer.sample(5).shape == (5, 2)
assert "relativistic" in ganzoo.list_variants()
"""
    process = python("-c", code)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
