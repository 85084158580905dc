"""Keeps benchmarks/results/<machine>.json and writes the README's tables, docs/benchmarks.md and its plots from them.

    pytest benchmarks/ --benchmark-json=out.json
    python -m benchmarks.report out.json
    python -m benchmarks.report --compare before.json after.json
    python -m benchmarks.report --compare main HEAD
    python -m benchmarks.report --compare main HEAD --measure benchmarks/test_weights.py

A file is what pytest-benchmark or --rows wrote. Cases it holds replace those of the same name, and a line of history is added;
without any file only the README, docs/benchmarks.md and its plots are written anew. --check writes nothing and fails when the
README is not up to date. --compare tells what became faster or slower against stock, and fails when anything did become slower:
between two files of results, or two git revisions, by the results that these hold, or, with --measure and what pytest is to run, by
building and measuring both now, each in a folder of its own below out/revisions with its own benchmarks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
OURS = "gankernels"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
TITLES = {
    "test_regularized_loss.py": "A loss with its penalties, forward and backward",
    "test_gradient_penalty.py": "Gradient penalties, forward and backward",
    "test_steps.py": "Whole steps of training",
    "test_ganzoo.py": "A generator step of `ganzoo train` on digits",
    "test_spectral_norm.py": "Spectral normalisation",
    "test_weights.py": "Weight clipping and optimisers",
    "test_modulated_conv2d.py": "Layers of modulated convolution, forward and backward",
    "test_ops.py": "Ops at the shapes of real networks",
    "test_latency.py": "What a new process waits for",
}
KEPT = ("median", "p20", "p80", "device_median", "ratio", "speedup", "floor_share", "bytes_per_second", "memory", "passes",
        "flops_per_second", "images_per_second", "convolutions", "goals", "beyond", "limit")  # fmt: skip


def read_rows(path: Path) -> list[dict]:
    text = path.read_text()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return [benchmark["extra_info"] for benchmark in json.loads(text)["benchmarks"]]


def merge(rows: list[dict], folder: Path) -> list[Path]:
    """Adds rows to the files of their machines in `folder`; returns the files written."""
    results: dict[Path, dict] = {}
    fresh: set[tuple[Path, str]] = set()
    for row in rows:
        path = folder / f"{slug(row['machine'])}.json"
        if path not in results:
            results[path] = json.loads(path.read_text()) if path.exists() else {"cases": {}}
            drop_what_is_gone(results[path])
            results[path] |= {"machine": row["machine"], "device": row["device"]}
            if "ceilings" in row:
                results[path]["ceilings"] = rounded(row["ceilings"])
        if (path, row["case"]) not in fresh:
            fresh.add((path, row["case"]))
            about = {key: row[key] for key in ("command", "tier", "date", "versions")}
            results[path]["cases"][row["case"]] = about | {"variants": {}}
        kept = {key: rounded(row[key]) for key in KEPT if key in row}
        results[path]["cases"][row["case"]]["variants"][row["variant"]] = kept
    folder.mkdir(parents=True, exist_ok=True)
    for path, result in results.items():
        path.write_text(json.dumps(result, indent=1) + "\n")
    return list(results)


def drop_what_is_gone(result: dict):
    """Cases whose file is no longer among the benchmarks."""
    there = {path.name for path in HERE.glob("test_*.py")}
    kept = {name: case for name, case in result["cases"].items() if Path(case["command"].split()[1]).name in there}
    result["cases"] = kept


def slug(machine: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def duration(seconds: float) -> str:
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def share(row: dict) -> str:
    return f"{row['floor_share']:.0%}" if "floor_share" in row else "-"


def times(ratio: float) -> str:
    return f"{ratio:.2f}×" + (" (slower)" if ratio < 0.995 else "")


def beyond(row: dict) -> str:
    return f"{duration(row['beyond'])} of {row['limit']:g} s" + (" (beyond)" if row["beyond"] > row["limit"] else "")


def shown(name: str) -> str:
    return name.replace("_", " ")


def load(folder: Path) -> list[dict]:
    """The results of every machine, the CPU's first."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted(results, key=lambda result: (result["device"] != "cpu", result["machine"]))


def groups(results: list[dict], tiers=("quick", "full")):
    """(title, commands by case, in the order in which they were first measured)."""
    found = {name: case for result in results for name, case in result["cases"].items() if case["tier"] in tiers}
    for file, title in TITLES.items():
        chosen = {name: case["command"] for name, case in found.items() if f"/{file} " in case["command"]}
        if chosen:
            yield title, chosen


def measured_on(result: dict) -> str:
    versions = sorted({f"{case['date']}, torch {case['versions']['torch']}" for case in result["cases"].values()})
    return f"{result['machine']} ({'; '.join(versions)})"


def summary(case: dict | None) -> str:
    """Of a further machine, in one cell."""
    row = case and case["variants"].get(OURS)
    if not row:
        return "not measured yet"
    return " · ".join(
        [duration(row["median"]), *([beyond(row)] if "beyond" in row else [times(row["ratio"]), share(row)])]
    )


def below(result: dict, tiers: tuple[str, ...]) -> list[str]:
    """A list of the cases of a machine that are slower than stock or short of a goal."""
    rows = [row | {"case": name, "variant": variant} for name, case in result["cases"].items() if case["tier"] in tiers
            for variant, row in case["variants"].items()]  # fmt: skip
    return [f"- {line}" for line in shortfalls(rows)] or ["- nothing"]


def tables(results: list[dict]) -> str:
    """The README's: what is below its goal, then one row per case: every variant's median on the first machine, and what the others
    gave in one cell each."""
    if not results:
        return "Not measured yet."
    first, *others = results
    heads = [other["machine"] for other in others]
    if not any(result["device"] == "cuda" for result in results):
        heads.append("GPU")
    lines = [
        f"Medians on {measured_on(first)}, the variants of a row interleaved in one process; then how many times as fast "
        f"{OURS} is as the fastest eager stock variant, and which share of the floor, measured in the same run, it reaches. "
        + (f"Other columns: {OURS}, times stock, share of the floor. " if others else "")
        + "Commands are for the root of the repository, with `.venv/bin` on the PATH. Memory, passes, quantiles, bytes per second and "
        "the full tier: [docs/benchmarks.md](docs/benchmarks.md).",
    ]
    for result in results:
        lines += [
            "",
            f"Slower than stock, or short of what is aimed at, on {result['machine']}:",
            "",
            *below(result, ("quick",)),
        ]
    for title, commands in groups(results, tiers=("quick",)):
        cases = {name: first["cases"].get(name) for name in commands}
        variants = dict.fromkeys(name for case in cases.values() if case for name in case["variants"] if name != OURS)
        variants = sorted(variants, key=lambda name: (name == "floor", "compiled" in name))
        lines += ["", f"#### {title}", ""]
        rate = any("images_per_second" in row for case in cases.values() if case for row in case["variants"].values())
        processes = any("beyond" in row for case in cases.values() if case for row in case["variants"].values())
        measures = (
            ["beyond stock, of what is allowed"]
            if processes
            else ["times stock", "images/s" if rate else "of the floor"]
        )
        columns = ["case", f"**{OURS}**", *map(shown, variants), *measures, *heads, "reproduce with"]
        lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for name, command in commands.items():
            rows = cases[name]["variants"] if cases[name] else {}
            ours = rows.get(OURS)
            cells = [shown(name), f"**{duration(ours['median'])}**" if ours else "not measured yet"]
            cells += [duration(rows[variant]["median"]) if variant in rows else "" for variant in variants]
            if not ours:
                cells += [""] * len(measures)
            elif processes:
                cells += [beyond(ours)]
            else:
                cells += [times(ours["ratio"]), f"{ours['images_per_second']:,.0f}" if rate else share(ours)]
            cells += [summary(other["cases"].get(name)) for other in others] + ["not measured yet"] * (
                len(heads) - len(others)
            )
            lines.append("| " + " | ".join([*cells, f"`{command}`"]) + " |")
    return "\n".join(lines)


def page(results: list[dict]) -> str:
    """docs/benchmarks.md: everything that was measured."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks.report`. A row is one variant of one case: median, 20th and 80th percentile of the time "
        "a caller sees; device time where a GPU is measured; the speed against the fastest eager stock variant; the share of the "
        "floor; bytes of the floor, and operations, per second of device time; peak memory of the call beyond what was there; for "
        "networks the flops in forward passes F, and convolutions forward + input gradient + weight gradient.",
    ]
    for result in results:
        lines += [
            "",
            f"## {measured_on(result)}",
            "",
            f"![speed against stock, share of the floor]({plot_name(result)})",
        ]
        if "ceilings" in result:
            copy, single, half = (result["ceilings"][name] / 1e9 for name in ("copy", "float32", "bfloat16"))
            lines += ["", f"In the last run a large copy moved {copy:.3g} GB/s, read and written; a large matrix product ran at "
                          f"{single:.4g} GFLOP/s in float32, {half:.4g} in bfloat16."]  # fmt: skip
        lines += ["", "Slower than stock, or short of what is aimed at:", "", *below(result, ("quick", "full"))]
        for title, commands in groups([result]):
            lines += ["", f"### {title}", ""]
            heads = ["case", "variant", "median", "p20 to p80", "device", "times stock", "of the floor"]
            heads += ["GB/s", "GFLOP/s", "memory", "passes"]
            lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
            for name in commands:
                for variant, row in result["cases"][name]["variants"].items():
                    cells = [
                        shown(name),
                        f"**{variant}**" if variant == OURS else shown(variant),
                        duration(row["median"]),
                    ]
                    cells += [f"{duration(row['p20'])} to {duration(row['p80'])}"]
                    cells += [duration(row["device_median"]) if result["device"] == "cuda" else "-"]
                    cells += [beyond(row), "-"] if "beyond" in row else [times(row["ratio"]), share(row)]
                    cells += [f"{row['bytes_per_second'] / 1e9:.3g}" if "bytes_per_second" in row else "-"]
                    cells += [f"{row['flops_per_second'] / 1e9:.4g}" if "flops_per_second" in row else "-"]
                    cells += [f"{row['memory'] / 1e6:.3g} MB" if "memory" in row else "-"]
                    convolutions = " + ".join(map(str, row.get("convolutions", {}).values()))
                    cells += [f"{row['passes']:.1f} F: {convolutions}" if "passes" in row else "-"]
                    lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot_name(result: dict) -> str:
    return f"benchmarks-{slug(result['machine'])}.svg"


def plot(result: dict, path: Path):
    """The quick tier. On the left the speed against the fastest eager stock variant, a bar per case, losses as plain to see as wins,
    and against every other peer, a mark; on the right the share of the floor."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "gankernels"  # the same figures give the same file
    from matplotlib import pyplot

    ours = {name: case["variants"][OURS] for name, case in result["cases"].items()
            if case["tier"] == "quick" and OURS in case["variants"] and "beyond" not in case["variants"][OURS]}  # fmt: skip
    figure, (speed, floor) = pyplot.subplots(1, 2, sharey=True, width_ratios=(2, 1), figsize=(11, 1 + 0.19 * len(ours)))
    names = [shown(name) for name in ours]
    ratios = [row["ratio"] for row in ours.values()]
    colours = ["tab:blue" if ratio >= 0.995 else "tab:red" for ratio in ratios]
    speed.barh(names, [ratio - 1 for ratio in ratios], left=1, log=True, color=colours)
    for kind, marker in (("stock", "|"), ("compiled", "d")):
        marks = [(times, shown(name)) for name, row in ours.items() for peer, times in row["speedup"].items()
                 if peer != "floor" and (kind == "compiled") == peer.endswith("compiled")]  # fmt: skip
        if marks:
            speed.scatter(
                *zip(*marks),
                s=14,
                marker=marker,
                color="black",
                linewidths=0.8,
                label=f"against each {kind} variant",
                zorder=2,
            )
    speed.axvline(1, color="black", linewidth=0.8)
    speed.set(xlabel=f"times as fast as stock PyTorch, {result['machine']}", ylim=(len(ours) - 0.5, -0.5))
    speed.tick_params(axis="y", labelsize=6)
    ticks = [tick for tick in (0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100) if tick <= 1.3 * max(ratios)]
    speed.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    speed.minorticks_off()
    speed.legend(fontsize=6)
    shares = {shown(name): row["floor_share"] for name, row in ours.items() if "floor_share" in row}
    floor.barh(list(shares), list(shares.values()), color="tab:gray")
    floor.axvline(1, color="black", linewidth=0.8)
    floor.set(xlabel="share of the floor", xlim=(0, 2))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def compare(before: dict, after: dict, threshold: float) -> tuple[list[str], bool]:
    """What became faster or slower between two results of one machine, by more than `threshold`; whether anything is slower.

    The measure is the ratio to stock of the same run, which a machine that drifts moves less than the times themselves.
    """
    lines, slower = [], False
    for name, case in after["cases"].items():
        old, new = (result["cases"].get(name, {"variants": {}})["variants"].get(OURS) for result in (before, after))
        if old is None or new is None:
            lines.append(f"new      {name}" if old is None else f"gone     {name}")
            continue
        change = new["ratio"] / old["ratio"]
        if abs(change - 1) > threshold:
            lines.append(f"{'faster' if change > 1 else 'SLOWER':8} {name}: {old['ratio']:.2f} to {new['ratio']:.2f} times stock, "
                         f"{duration(old['median'])} to {duration(new['median'])}")  # fmt: skip
            slower |= change < 1
    lines += [f"gone     {name}" for name in before["cases"] if name not in after["cases"]]
    return lines, slower


def git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"--compare takes files of results or git revisions: git {' '.join(arguments)}: {run.stderr.strip()}")
    return run.stdout


def held_by(source: str) -> dict[str, dict]:
    """The results by machine of a file of results, or of a git revision."""
    if Path(source).is_file():
        found = [json.loads(Path(source).read_text())]
    else:
        names = git("ls-tree", "--name-only", source, "benchmarks/results/").splitlines()
        found = [json.loads(git("show", f"{source}:{name}")) for name in names if name.endswith(".json")]
    return {result["machine"]: result for result in found}


def measured_at(revision: str, arguments: list[str]) -> dict[str, dict]:
    """The results by machine of a git revision, built and measured now."""
    commit = git("rev-parse", "--verify", f"{revision}^{{commit}}").strip()
    folder = ROOT / "out" / "revisions" / commit[:12]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(folder / "python")])}
    if not (folder / "built").exists():
        print(f"building {revision} in {folder}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, env=env, check=True)
        (folder / "built").touch()
    rows = folder / "rows.jsonl"
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", *arguments, "--rows", rows, "--benchmark-columns=median,iqr,rounds"]
    print(f"measuring {revision}: {' '.join(map(str, command[1:]))}", flush=True)
    subprocess.run(command, cwd=folder, env=env)  # what is red is not compared
    results = merge(read_rows(rows), folder / "results") if rows.exists() else []
    return {result["machine"]: result for result in (json.loads(path.read_text()) for path in results)}


def print_comparison(sources: list[str], threshold: float, arguments: list[str] | None) -> int:
    before, after = (held_by(source) if arguments is None else measured_at(source, arguments) for source in sources)
    worse = False
    for machine in before.keys() & after.keys():
        lines, slower = compare(before[machine], after[machine], threshold)
        print(
            "\n".join(
                ["", f"{machine}:", *(f"  {line}" for line in lines or ["nothing changed by more than the threshold"])]
            )
        )
        worse |= slower
    if not before.keys() & after.keys():
        sys.exit(f"the two have no machine in common: {', '.join(before)} and {', '.join(after)}.")
    return 1 if worse else 0


def keep_history(rows: list[dict], folder: Path):
    """One line per machine and run: gankernels' median and its ratio to stock, by case."""
    runs: dict[str, dict] = {}
    for row in rows:
        if row["variant"] == OURS:
            run = runs.setdefault(slug(row["machine"]), {"date": row["date"], "versions": row["versions"], "cases": {}})
            run["cases"][row["case"]] = [rounded(row["median"]), rounded(row["ratio"])]
    for name, run in runs.items():
        (folder / "history").mkdir(parents=True, exist_ok=True)
        with (folder / "history" / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(run) + "\n")


def shortfalls(rows: list[dict]) -> list[str]:
    """What is slower than stock, or short of a goal, one sentence each."""
    found = []
    for row in rows:
        if row["variant"] != OURS:
            continue
        if "beyond" in row:
            if row["beyond"] > row["limit"]:
                found.append(f"{shown(row['case'])}: {beyond(row)} beyond stock")
            continue
        goals = {peer: 1.0 for peer in row["speedup"] if peer.startswith("stock")} | row.get("goals", {})
        for peer, goal in goals.items():
            speedup = row["speedup"].get(peer)  # goals may name variants that this case leaves out
            if speedup is not None and speedup < 0.995 * goal:
                found.append(
                    f"{shown(row['case'])}: {speedup:.2f} times as fast as {shown(peer)}, the goal is {goal:.2f}"
                )
    return found


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="of --benchmark-json or --rows")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the results files")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of benchmarks.md and its plots")
    parser.add_argument("--check", action="store_true")
    parser.add_argument(
        "--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="two files of results, or two git revisions"
    )
    parser.add_argument(
        "--measure", nargs=argparse.REMAINDER, help="what pytest is to measure of both revisions now; comes last"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.1, help="smallest change that --compare tells of (default 0.1)"
    )
    options = parser.parse_args()
    if options.compare:
        sys.exit(print_comparison(options.compare, options.threshold, options.measure))
    rows = [row for file in options.files for row in read_rows(file)]
    if rows and not options.check:
        print("\n".join([f"wrote {path}" for path in merge(rows, options.results)] + shortfalls(rows)))
        keep_history(rows, options.results)
    results = load(options.results)
    before = options.readme.read_text() if options.readme.exists() else ""
    if BEGIN not in before or END not in before:
        sys.exit(f"{options.readme} must have the lines {BEGIN} and {END}, between which the tables go.")
    head, rest = before.split(BEGIN, 1)
    after = f"{head}{BEGIN}\n{tables(results)}\n{END}{rest.split(END, 1)[1]}"
    if options.check:
        sys.exit("README.md is not up to date: run `python -m benchmarks.report`." if after != before else 0)
    options.readme.write_text(after)
    options.docs.mkdir(exist_ok=True)
    (options.docs / "benchmarks.md").write_text(page(results))
    for result in results:
        plot(result, options.docs / plot_name(result))


if __name__ == "__main__":
    main()
