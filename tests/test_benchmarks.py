"""What the benchmarks promise: nothing wrong is measured, nothing slower goes unseen, and the README says what was measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import report
from benchmarks.harness import Settings, Workload

ROOT = Path(__file__).parent.parent


def workload(check=lambda: None):
    x = torch.ones(64)
    return Workload({"gankernels": lambda i: x + 1, "stock": lambda i: x.exp().exp()}, check, goals={"stock": 1e9})


def rows(settings, title, ratio=None):
    measured = settings.measured(title, workload)
    about = {"case": title, "tier": "quick", "command": f"pytest benchmarks/test_ops.py -k '{title}'", **settings.environment}
    found = [measured.row(variant) | about | {"variant": variant} for variant in ("gankernels", "stock")]
    if ratio is not None:
        found[0]["ratio"] = ratio
    return found


@pytest.fixture
def settings():
    return Settings("cpu", 0, None)


def test_a_wrong_op_is_not_measured(settings):
    def wrong():
        raise AssertionError("the gradient is wrong")

    with pytest.raises(AssertionError, match="the gradient is wrong"):
        settings.measured("op", lambda: workload(wrong))
    with pytest.raises(pytest.fail.Exception, match="the case failed before: AssertionError: the gradient is wrong"):
        settings.measured("op", workload)


def test_variants_take_turns_and_rows_tell_all(settings):
    ours, stock = rows(settings, "op")
    assert ours["rounds"] == stock["rounds"] == 1
    assert ours["p20"] <= ours["median"] <= ours["p80"]
    assert ours["ratio"] == pytest.approx(stock["median"] / ours["median"]) and stock["ratio"] == 1
    assert report.shortfalls([ours]) == [f"op: {ours['ratio']:.2f} times as fast as stock, the goal is 1000000000.00"]


def test_a_later_change_that_slows_something_down_is_seen(settings, tmp_path):
    for folder, ratios in (("before", (2.0, 3.0)), ("after", (1.5, 3.1))):
        found = [row for name, ratio in zip(("slowed", "same"), ratios) for row in rows(settings, name, ratio)]
        (path,) = report.merge(found, tmp_path / folder)
    files = [str(tmp_path / folder / path.name) for folder in ("before", "after")]
    command = [sys.executable, "-m", "benchmarks.report", "--compare"]
    found = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1 and "SLOWER   slowed: 2.00 to 1.50 times stock" in found.stdout and "same" not in found.stdout
    found = subprocess.run([*command, *files, "--threshold", "0.5"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0 and "nothing changed" in found.stdout


def test_results_become_the_readme(settings, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    rows_file = tmp_path / "rows.jsonl"
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows(settings, "op")))
    command = [sys.executable, "-m", "benchmarks.report", "--results", tmp_path / "results", "--readme", readme, "--docs", tmp_path]
    subprocess.run([*command, rows_file], cwd=ROOT, check=True, capture_output=True)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| op | **" in text and "not measured yet" in text and "`pytest benchmarks/test_ops.py -k 'op'`" in text
    assert (tmp_path / "benchmarks.md").exists() and list(tmp_path.glob("*.svg"))
    (history,) = (tmp_path / "results" / "history").glob("*.jsonl")
    assert json.loads(history.read_text())["cases"].keys() == {"op"}
    assert subprocess.run([*command, "--check"], cwd=ROOT).returncode == 0
    readme.write_text(text.replace("**gankernels**", "gankernels"))
    assert subprocess.run([*command, "--check"], cwd=ROOT, capture_output=True).returncode == 1


def test_the_readme_is_what_was_measured():
    subprocess.run([sys.executable, "-m", "benchmarks.report", "--check"], cwd=ROOT, check=True)
