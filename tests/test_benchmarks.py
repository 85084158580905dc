"""What the benchmarks promise: nothing wrong is measured, nothing slower goes unseen, and the README says what was measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, report
from benchmarks.harness import Settings, Workload

ROOT = Path(__file__).parent.parent


def python(*arguments, **env):
    """Runs another Python here, not as a part of this pytest, which would keep its pytest from measuring."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | env
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, env=env)


def workload(check=lambda: None):
    x = torch.ones(64)
    return Workload({"gankernels": lambda i: x + 1, "stock": lambda i: x.exp().exp()}, check, goals={"stock": 1e9})


def rows(settings, title, ratio=None):
    measured = settings.measured(title, "quick", workload)
    about = {
        "case": title,
        "tier": "quick",
        "command": f"pytest benchmarks/test_ops.py -k '{title}'",
        **settings.environment,
    }
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
        settings.measured("op", "quick", lambda: workload(wrong))
    with pytest.raises(pytest.fail.Exception, match="the case failed before: AssertionError: the gradient is wrong"):
        settings.measured("op", "quick", workload)


def test_a_case_of_both_tiers_is_measured_with_the_variants_of_each(settings):
    def compiled():
        found = workload()
        found.variants["stock_compiled"] = found.variants["stock"]
        return found

    quick, full = settings.measured("step", "quick", workload), settings.measured("step", "full", compiled)
    assert quick is settings.measured("step", "quick", None)
    assert set(full.samples) - set(quick.samples) == {"stock_compiled"}


WRONG = """
import dataclasses
from tests.ops.specs import SPECS

(index,) = (i for i, spec in enumerate(SPECS) if spec.name == "interpolate")
right = SPECS[index].op
SPECS[index] = dataclasses.replace(SPECS[index], op=lambda *args: 1.001 * right(*args))
"""

PEER = """
import gankernels as gk

def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
    return gk.reference.upfirdn2d(x, f, up, down, padding, flip_filter, gain)
"""


def test_an_op_that_is_wrong_is_red_and_a_checkout_of_a_peer_is_measured(tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "torch_utils" / "ops").mkdir(parents=True)
    (tmp_path / "torch_utils" / "ops" / "upfirdn2d.py").write_text(PEER)
    (tmp_path / "op.py").write_text("raise RuntimeError('no compiler')")
    chosen = "(interpolate-image64 or upfirdn2d_up-up_64) and float32-contiguous-forward-"
    options = ["-k", chosen, "--seconds", 0, "--rows", tmp_path / "rows.jsonl", "--peer", f"stylegan3={tmp_path}"]
    options += ["--peer", f"rosinality={tmp_path}"]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    run = python("-m", "pytest", "-p", "wrong", "benchmarks/test_ops.py", *options, PYTHONPATH=path)
    assert run.returncode == 1 and "interpolate, forward[0]: relative error 1.0e-03" in run.stdout, run.stdout
    assert "peer rosinality is left out: RuntimeError: no compiler" in run.stdout
    measured = {(row["case"].split("-")[0], row["variant"]) for row in report.read_rows(tmp_path / "rows.jsonl")}
    assert measured == {("ops[upfirdn2d_up", variant) for variant in ("gankernels", "stock", "floor", "stylegan3")}


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
    found = python("-m", "benchmarks.report", "--compare", *files)
    assert (
        found.returncode == 1
        and "SLOWER   slowed: 2.00 to 1.50 times stock" in found.stdout
        and "same" not in found.stdout
    )
    found = python("-m", "benchmarks.report", "--compare", *files, "--threshold", 0.5)
    assert found.returncode == 0 and "nothing changed" in found.stdout


def test_results_become_the_readme(settings, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    rows_file = tmp_path / "rows.jsonl"
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows(settings, "op")))
    command = ["-m", "benchmarks.report", "--results", tmp_path / "results", "--readme", readme, "--docs", tmp_path]
    assert python(*command, rows_file).returncode == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| op | **" in text and "not measured yet" in text and "`pytest benchmarks/test_ops.py -k 'op'`" in text
    assert (tmp_path / "benchmarks.md").exists() and list(tmp_path.glob("*.svg"))
    (history,) = (tmp_path / "results" / "history").glob("*.jsonl")
    assert json.loads(history.read_text())["cases"].keys() == {"op"}
    assert python(*command, "--check").returncode == 0
    readme.write_text(text.replace("**gankernels**", "gankernels"))
    assert python(*command, "--check").returncode == 1


def test_a_dry_run_of_the_gpu_check_passes(tmp_path):
    run = python("-m", "benchmarks.gpu_check", "--dry-run", "--no-build", "--out", tmp_path)
    assert run.returncode == 0, run.stdout
    summary = (tmp_path / "summary.txt").read_text()
    assert "ok       tests/ops:" in summary and "ok       smoke:" in summary and "slow or below the floor: " in summary
    assert {row["variant"] for row in report.read_rows(tmp_path / "rows.jsonl")} >= {"gankernels", "stock", "floor"}
    assert len(list(tmp_path.iterdir())) <= 8  # more do not come back from a lent machine


def test_the_gpu_check_builds_with_any_setuptools():
    """As far as the compiler: the project's metadata, which old ones refuse, is not read."""
    run = python("-c", gpu_check.BUILD, CXX="/nowhere/c++")
    assert run.returncode == 1 and "gankernels: a C++ compiler is needed" in run.stderr


def test_the_readme_is_what_was_measured():
    run = python("-m", "benchmarks.report", "--check")
    assert run.returncode == 0, run.stderr
