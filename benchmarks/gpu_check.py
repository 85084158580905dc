"""Builds, tests and measures the package on a machine with a GPU, without a network, within a time budget.

    python3 -m benchmarks.gpu_check            (make gpu-check)

Everything goes to one folder ($OUT, or ./out): a log per stage, rows.jsonl with every figure as soon as it is there, a results file
for benchmarks/results, and summary.txt, one page on what is red, slow or below the floor, rewritten after every stage, so that a
run cut off from outside leaves what it has. The exit status is 1 when something is red; slow is not red. --dry-run goes the
same way on a machine without a GPU, with fewer and shorter benchmarks.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import report

ROOT = Path(__file__).parent.parent

# In order of importance; compiled variants last, since a compilation costs more than all samples of a case.
BENCHMARKS = [
    ("test_gradient_penalty.py", "not compiled"),
    ("test_regularized_loss.py", "not compiled"),
    ("test_spectral_norm.py", "not compiled"),
    ("test_weights.py", ""),
    ("test_modulated_conv2d.py", "not compiled"),
    ("test_ops.py", ""),
    ("test_steps.py", ""),
    ("test_ganzoo.py", ""),
    ("test_latency.py", ""),
    ("test_gradient_penalty.py", "compiled"),
    ("test_regularized_loss.py", "compiled"),
    ("test_spectral_norm.py", "compiled"),
    ("test_modulated_conv2d.py", "compiled"),
]
DRY_BENCHMARKS = [
    ("test_gradient_penalty.py", "digits and not compiled"),
    ("test_spectral_norm.py", "sngan32-forward_backward and not compiled"),
    ("test_weights.py", "200_small or rmsprop"),
    ("test_ops.py", "pixel_norm"),
]


# `setup.py build_ext --inplace` without the project's metadata, which old versions of setuptools refuse.
BUILD = """
import runpy, sys
from setuptools import Distribution
Distribution.parse_config_files = lambda *arguments, **keywords: None
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""

# tool -> where its output says how many errors there were
SANITIZERS = {"memcheck": r"ERROR SUMMARY: (\d+) error", "racecheck": r"RACECHECK SUMMARY: (\d+) hazard"}
NOTHING_COLLECTED = 5  # an exit status of pytest


def shown(command: list[str]) -> str:
    return " ".join("<program>" if "\n" in part else part for part in command)


def verdict(status: int | None, output: str, fine=(0,)) -> str:
    """Of a run of pytest; what failed before a cut-off is red."""
    if re.search(r"\d+ (failed|errors?)\b", output) or status not in (*fine, None):
        return "RED"
    return "cut off" if status is None else "ok"


class Check:
    def __init__(self, out: Path, budget: float, dry: bool):
        self.out, self.dry = out, dry
        self.end = time.monotonic() + budget
        self.stages: list[tuple[str, str, str]] = []  # name, result, last line of its log
        self.rows = out / "rows.jsonl"

    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, stage: str, command: list[str], limit: float, env: dict | None = None) -> tuple[int | None, str]:
        """Exit status, None when cut off, and the output, which is also appended to the stage's log."""
        began = time.monotonic()
        log = self.out / f"{stage}.log"
        offset = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                                       env=os.environ | {"PYTHONUNBUFFERED": "1"} | (env or {}))  # fmt: skip
            status = None
            # an interrupt lets pytest tell what it has seen so far
            for how, patience in ((signal.SIGINT, limit), (signal.SIGKILL, 10), (None, 10)):
                try:
                    code = process.wait(max(1.0, patience))
                    status = code if how is signal.SIGINT else None
                    break
                except subprocess.TimeoutExpired:
                    if how is not None:
                        os.killpg(process.pid, how)
        with log.open("rb") as file:
            file.seek(offset)
            output = file.read().decode(errors="replace")
        print(f"{stage}: exit status {status}, {time.monotonic() - began:.0f} s: {shown(command)}", flush=True)
        return status, output

    def record(self, stage: str, result: str, output: str):
        lines = [line.strip(" =") for line in output.splitlines() if line.strip(" =")]
        self.stages.append((stage, result, lines[-1][:200] if lines else ""))
        self.summarise()

    def summarise(self):
        rows = report.read_rows(self.rows) if self.rows.exists() else []
        short = report.shortfalls(rows)
        text = [f"{result:8} {stage}: {last}" for stage, result, last in self.stages]
        text += ["", f"slow or below the floor: {len(short) or 'nothing'}", *(f"  {line}" for line in short)]
        text += ["", "case, variant: median, device time, times the fastest stock, share of the floor"]
        for row in rows:
            share = f"{row['floor_share']:.0%}" if "floor_share" in row else "-"
            text.append(f"  {row['case']}, {row['variant']}: {report.duration(row['median'])}, "
                        f"{report.duration(row['device_median'])}, {row['ratio']:.2f}, {share}")  # fmt: skip
        (self.out / "summary.txt").write_text("\n".join(text) + "\n")

    # --- stages ---

    def build(self) -> bool:
        env = {"MAX_JOBS": os.environ.get("MAX_JOBS", str(os.cpu_count()))}
        if not self.dry:
            import torch

            env["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
            env["GANKERNELS_CUDA"] = "1"
        limit = self.left() * (1 if self.dry else 0.5)
        status, output = self.run("build", [sys.executable, "-c", BUILD], limit, env)
        self.record("build", "ok" if status == 0 else "RED", output)
        return status == 0

    def tests(self):
        pytest = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--maxfail=20", "-p", "no:cacheprovider"]
        status, output = self.run("tests", [*pytest, "tests/ops"], 0.4 * self.left())
        self.record("tests/ops", verdict(status, output, fine=(0, NOTHING_COLLECTED)), output)
        # ganzoo needs libraries that may not be there beside PyTorch
        status, output = self.run("tests", [sys.executable, "-c", "import ganzoo.cli"], 60, {"PYTHONPATH": "python"})
        if status == 0:
            status, output = self.run("tests", [*pytest, "tests/zoo"], 0.2 * self.left())
            self.record("tests/zoo", verdict(status, output, fine=(0, NOTHING_COLLECTED)), output)
        else:
            self.record("tests/zoo", "skipped", output)

    def sanitizer(self):
        """A tool that cannot run on this machine says nothing about the kernels: only errors that it reports are red."""
        smoke = [sys.executable, "-m", "benchmarks.smoke"]
        status, output = self.run("sanitizer", smoke, 0.3 * self.left())
        self.record("smoke", "ok" if status == 0 else "RED", output)
        folders = [os.environ.get("PATH", ""), os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
        program = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
        if status != 0 or self.dry or program is None:
            self.record("compute-sanitizer", "skipped", "" if program else "compute-sanitizer is not on the PATH")
            return
        for tool, pattern in SANITIZERS.items():
            # each tensor an allocation of its own, or an overrun lands inside the cache of the allocator
            env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            status, output = self.run("sanitizer", [program, "--tool", tool, *smoke], 0.25 * self.left(), env)
            found = re.findall(pattern, output)
            if not found:
                self.record(tool, "skipped", "it did not run to its end here: see sanitizer.log")
            else:
                self.record(tool, "RED" if int(found[-1]) else "ok", f"{found[-1]} errors")

    def benchmarks(self, seconds: float):
        for file, keyword in DRY_BENCHMARKS if self.dry else BENCHMARKS:
            if self.left() < 15:
                self.record(f"{file} -k '{keyword}'", "cut off", "no time left")
                continue
            command = [sys.executable, "-m", "pytest", f"benchmarks/{file}", "-q", "-p", "no:cacheprovider", "--seconds",
                       str(seconds), "--rows", str(self.rows), "--benchmark-columns=median,iqr,rounds"]  # fmt: skip
            status, output = self.run("benchmarks", command + (["-k", keyword] if keyword else []), self.left() - 5)
            self.record(f"{file} -k '{keyword}'", verdict(status, output), output)
        if self.rows.exists():
            report.merge(report.read_rows(self.rows), self.out)


def main():
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu_check", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--budget", type=float, help="seconds in all (default 540, dry 900)")
    parser.add_argument("--seconds", type=float, help="of sampling per benchmark case (default 2, dry 0: one round)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "out"))
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if not options.dry_run:
        import torch

        if not torch.cuda.is_available():
            sys.exit("gpu-check: PyTorch sees no CUDA device here; --dry-run goes the same way without one.")
    options.out.mkdir(parents=True, exist_ok=True)
    for old in (*options.out.glob("*.log"), *options.out.glob("*.jsonl"), *options.out.glob("*.json")):
        old.unlink()
    check = Check(options.out.resolve(), options.budget or (900 if options.dry_run else 540), options.dry_run)
    if check.build():
        check.tests()
        check.sanitizer()
        check.benchmarks(options.seconds if options.seconds is not None else 0 if options.dry_run else 2)
    print((options.out / "summary.txt").read_text())
    sys.exit(any(result == "RED" for _, result, _ in check.stages))


if __name__ == "__main__":
    main()
