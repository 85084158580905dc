"""Builds, tests and measures the package on a machine with a GPU, without a network, within a time budget.

    python3 -m benchmarks.gpu_check            (make gpu-check)

Everything goes to one folder ($OUT, or ./out): a log per stage, rows.jsonl with every figure as soon as it is there, a results file,
and summary.txt, one page on what is red, slow or below the floor, rewritten after every stage, so that a run cut off from outside
leaves what it has. `python -m benchmarks.report out/rows.jsonl` then takes the figures into benchmarks/results and the README. The exit
status is 1 when something is red; slow is not red. --dry-run goes the same way on a machine without a GPU, with a handful of tests
and benchmarks.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import report

ROOT = Path(__file__).parent.parent

# In order of importance; a process each, since a kernel that breaks the device's context takes the rest of its process with it.
# Compiled variants last, since a compilation costs more than all samples of a case.
BENCHMARKS = [
    (("test_gradient_penalty.py", "test_regularized_loss.py", "test_spectral_norm.py"), "not compiled"),
    (("test_weights.py",), ""),
    (("test_modulated_conv2d.py",), "not compiled"),
    (("test_ops.py",), ""),
    (("test_steps.py",), ""),
    (("test_ganzoo.py",), ""),  # by itself: the libraries of ganzoo may not be there
    (("test_latency.py",), ""),
    (
        ("test_gradient_penalty.py", "test_regularized_loss.py", "test_spectral_norm.py", "test_modulated_conv2d.py"),
        "compiled",
    ),
]
DRY_BENCHMARKS = [
    (("test_gradient_penalty.py", "test_weights.py"), "penalty_digits and not compiled or 200_small"),
    (("test_ops.py",), "interpolate and forward-"),
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
SHOWN = 15  # lines of a red stage, or of slow rows, in the summary


def there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def shown(command: list[str]) -> str:
    return " ".join("<program>" if "\n" in part else part for part in command)


def at_most(lines: list[str]) -> list[str]:
    rest = len(lines) - SHOWN
    return lines[:SHOWN] + ([f"… and {rest} more"] if rest > 0 else [])


def verdict(status: int | None, output: str, fine=(0,)) -> str:
    """Of a run of pytest; what failed before a cut-off is red."""
    if re.search(r"\d+ (failed|errors?)\b", output) or status not in (*fine, None):
        return "RED"
    return "cut off" if status is None else "ok"


class Check:
    def __init__(self, out: Path, budget: float, dry: bool):
        self.out, self.dry = out, dry
        self.end = time.monotonic() + budget
        self.stages: list[tuple[str, str, list[str]]] = []  # name, result, what is to say about it
        self.lock = threading.Lock()
        self.rows = out / "rows.jsonl"

    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, log: str, command: list[str], limit: float, env: dict | None = None) -> tuple[int | None, str]:
        """Exit status, None when cut off, and the output, which is also appended to a log."""
        began = time.monotonic()
        path = self.out / f"{log}.log"
        offset = path.stat().st_size if path.exists() else 0
        with path.open("ab") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                                       env=os.environ | {"PYTHONUNBUFFERED": "1"} | (env or {}))  # fmt: skip
            status = None
            try:
                status = process.wait(max(1.0, limit))
            except subprocess.TimeoutExpired:
                # lets pytest tell what it has seen so far; xdist hangs where all get it
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it left running
            process.wait()
        with path.open("rb") as file:
            file.seek(offset)
            output = file.read().decode(errors="replace")
        print(f"{log}: exit status {status}, {time.monotonic() - began:.0f} s: {shown(command)}", flush=True)
        return status, output

    def record(self, stage: str, result: str, output: str):
        """What the summary says of a stage: its last line, and where it is red the errors it names."""
        lines = [line.strip(" =") for line in output.splitlines() if line.strip(" =")]
        said = [line[:200] for line in lines[-1:]]
        if result == "RED":
            said += [
                line[:200]
                for line in at_most([line for line in lines if re.match(r"(FAILED|ERROR) |.*\berror:", line)])
            ]
        with self.lock:
            self.stages.append((stage, result, said))
            self.summarise()

    def summarise(self):
        text = []
        for stage, result, (last, *errors) in ((stage, result, said or [""]) for stage, result, said in self.stages):
            text += [f"{result:8} {stage}: {last}", *(f"           {error}" for error in errors)]
        short = report.shortfalls(report.read_rows(self.rows)) if self.rows.exists() else []
        text += ["", f"slow or below the floor: {len(short) or 'nothing'}", *(f"  {line}" for line in short)]
        (self.out / "summary.txt").write_text("\n".join(text) + "\n")

    def figures(self) -> str:
        text = ["case, variant: median, device time, times the fastest stock, share of the floor"]
        for row in report.read_rows(self.rows) if self.rows.exists() else []:
            text.append(f"  {row['case']}, {row['variant']}: {report.duration(row['median'])}, "
                        f"{report.duration(row['device_median'])}, {row['ratio']:.2f}, {report.share(row)}")  # fmt: skip
        return "\n".join(text)

    # --- stages ---

    def build(self) -> bool:
        """Whether there is a package to go on with: without its CUDA C++ kernels where these do not compile, and then red."""
        env = {"MAX_JOBS": os.environ.get("MAX_JOBS", str(os.cpu_count()))}
        if not self.dry:
            import torch

            env["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
        choices = (os.environ.get("GANKERNELS_CUDA", "auto"),) if self.dry else ("1", "0")
        for choice in choices:
            limit = self.left() * (1 if self.dry else 0.45)
            status, output = self.run("build", [sys.executable, "-c", BUILD], limit, env | {"GANKERNELS_CUDA": choice})
            self.record(f"build, GANKERNELS_CUDA={choice}", "ok" if status == 0 else "RED", output)
            if status == 0:
                return True
        return False

    def pytest(self, log: str, arguments: list[str], limit: float, several: bool = False) -> tuple[int | None, str]:
        """`several` processes, where xdist is there: compiling kernels keeps a processor busy, not the GPU."""
        processes = ["-n", str(min(8, os.cpu_count() or 1))] if several and not self.dry and there("xdist") else []
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *processes, *arguments]
        return self.run(log, command, limit)

    def tests(self):
        of_gpu = ["-m", "gpu"] if not self.dry else ["-k", "test_nan_in_gives_nan_out or test_objectives"]
        status, output = self.pytest("tests", [*of_gpu, "tests/ops"], 0.45 * self.left(), several=True)
        self.record("tests/ops", verdict(status, output), output)
        # ganzoo needs libraries that may not be there beside PyTorch
        status, output = self.run(
            "tests", [sys.executable, "-c", "import ganzoo, sklearn"], 60, {"PYTHONPATH": "python"}
        )
        if status == 0:
            status, output = self.pytest("tests", [*of_gpu, "tests/zoo"], 0.25 * self.left())
            self.record("tests/zoo", verdict(status, output, fine=(0, NOTHING_COLLECTED)), output)
        else:
            self.record("tests/zoo", "skipped", output)

    def sanitizer(self):
        """A tool that cannot run on this machine says nothing about the kernels: only errors that it reports are red."""
        smoke = [sys.executable, "-m", "benchmarks.smoke"]
        status, output = self.run("sanitizer", smoke, 0.2 * self.left())
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
        for files, keyword in DRY_BENCHMARKS if self.dry else BENCHMARKS:
            stage = ", ".join(files) + (f" -k '{keyword}'" if keyword else "")
            if self.left() < 45:
                self.record(stage, "cut off", "no time left")
                continue
            arguments = [*(f"benchmarks/{file}" for file in files), "--seconds", str(seconds), "--rows", str(self.rows)]
            arguments += ["--budget", str(self.left() - 30)]  # what is left then is skipped, and pytest ends by itself
            arguments += ["--benchmark-columns=median,iqr,rounds", *(["-k", keyword] if keyword else [])]
            arguments += ["--tier", "full"] if keyword == "compiled" else []
            status, output = self.pytest("benchmarks", arguments, self.left() - 5)
            self.record(stage, verdict(status, output), output)
        if self.rows.exists():
            report.merge(report.read_rows(self.rows), self.out)


def main():
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu_check", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--budget", type=float, help="seconds in all (default 540, dry 900)")
    parser.add_argument("--seconds", type=float, help="of sampling per benchmark case (default 1.5, dry 0: one round)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "out"))
    parser.add_argument("--no-build", action="store_true", help="the package is built already")
    parser.add_argument(
        "--no-tests", action="store_true", help="only measures, where one command's time was too short for everything"
    )
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
    if options.no_build or check.build():
        stages = [] if options.no_tests else [check.tests, check.sanitizer]
        # what is right or wrong does not depend on who else uses the GPU, what is fast does
        with ThreadPoolExecutor() as pool:
            for stage in [pool.submit(stage) for stage in stages]:
                stage.result()
        check.benchmarks(options.seconds if options.seconds is not None else 0 if options.dry_run else 1.5)
    print(check.figures(), (options.out / "summary.txt").read_text(), sep="\n\n")
    sys.exit(any(result == "RED" for _, result, _ in check.stages))


if __name__ == "__main__":
    main()
