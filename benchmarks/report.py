"""Keeps benchmarks/results/<device>.json and writes the README's tables from them.

    pytest benchmarks/ --benchmark-json=out.json
    python -m benchmarks.report out.json

A file is what pytest-benchmark or --rows wrote. Cases it holds replace those of the same name; without any file only the README is
written anew. --check writes nothing and fails when the README is not up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
TITLES = {
    "test_gradient_penalty.py": "Gradient penalties, forward and backward",
    "test_spectral_norm.py": "Spectral normalisation",
    "test_weights.py": "Weight clipping and optimisers",
    "test_ops.py": "Ops at the shapes of real networks",
    "test_streaming.py": "One pass over images",
}
KEPT = ("median", "p20", "p80", "device_median", "ratio", "speedup", "floor_share", "bytes_per_second", "memory", "passes",
        "convolutions", "goals")  # fmt: skip


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
        path = folder / (re.sub(r"[^a-z0-9]+", "-", row["machine"].lower()).strip("-") + ".json")
        if path not in results:
            results[path] = json.loads(path.read_text()) if path.exists() else {"cases": {}}
            results[path] |= {"machine": row["machine"], "device": row["device"]}
        if (path, row["case"]) not in fresh:
            fresh.add((path, row["case"]))
            about = {key: row[key] for key in ("command", "date", "versions")}
            results[path]["cases"][row["case"]] = about | {"variants": {}}
        kept = {key: rounded(row[key]) for key in KEPT if key in row}
        results[path]["cases"][row["case"]]["variants"][row["variant"]] = kept
    folder.mkdir(parents=True, exist_ok=True)
    for path, result in results.items():
        path.write_text(json.dumps(result, indent=1) + "\n")
    return list(results)


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def duration(seconds: float) -> str:
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def cell(variant: str, row: dict) -> str:
    parts = [duration(row["median"])]
    if variant != "floor":
        parts.append(f"{row['ratio']:.2f}×" + (" (slower)" if row["ratio"] < 0.995 else ""))
        if "floor_share" in row:
            parts.append(f"{row['floor_share']:.0%} of the floor")
        if "passes" in row:
            parts += [f"{row['passes']:.1f} F", f"{row['memory'] / 1e6:.3g} MB"]
    return " · ".join(parts)


def tables(folder: Path) -> str:
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    results.sort(key=lambda result: result["device"])
    machines = [result["machine"] for result in results]
    if not any(result["device"] == "cuda" for result in results):
        machines.append("GPU")
    cases = {}  # in the order in which they were first measured
    for result in results:
        for name, case in result["cases"].items():
            cases.setdefault(name, {"command": case["command"], "variants": {}})["variants"].update(case["variants"])
    lines = []
    for file, title in TITLES.items():
        chosen = {name: case for name, case in cases.items() if file in case["command"]}
        if not chosen:
            continue
        lines += ["", f"#### {title}", "", f"| case | variant | {' | '.join(machines)} | reproduce with |"]
        lines.append("|---" * (len(machines) + 3) + "|")
        for name, case in chosen.items():
            for variant in case["variants"]:
                cells = []
                for machine in machines:
                    result = next((result for result in results if result["machine"] == machine), {"cases": {}})
                    row = result["cases"].get(name, {"variants": {}})["variants"].get(variant)
                    cells.append(cell(variant, row) if row else "not measured yet")
                shown = f"**{variant}**" if variant == "gankernels" else variant.replace("_", " ")
                lines.append(f"| {name.replace('_', ' ')} | {shown} | {' | '.join(cells)} | `{case['command']}` |")
    legend = (
        "Median time · speed against the fastest eager stock variant · share of the floor, which is measured in the same run · "
        "for penalties also the flops in forward passes F of the critic, and the peak memory of the call."
    )
    if not results:
        return "Not measured yet."
    measured = []
    for result in results:
        case = list(result["cases"].values())[-1]
        measured.append(f"{result['machine']}: {case['date']}, torch {case['versions']['torch']}")
    return "\n".join([legend, *lines, "", f"Measured on {'; '.join(measured)}."])


def shortfalls(rows: list[dict]) -> list[str]:
    """What is slower than stock, or short of a goal, one sentence each."""
    found = []
    for row in rows:
        if row["variant"] != "gankernels":
            continue
        goals = {peer: 1.0 for peer in row["speedup"] if peer.startswith("stock")} | row["goals"]
        for peer, goal in goals.items():
            speedup = row["speedup"][peer]
            if speedup < goal:
                found.append(f"{row['case']}: {speedup:.2f} times as fast as {peer}, the goal is {goal:.2f}")
    return found


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="of --benchmark-json or --rows")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the results files")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    rows = [row for file in options.files for row in read_rows(file)]
    if rows and not options.check:
        print("\n".join([f"wrote {path}" for path in merge(rows, options.results)] + shortfalls(rows)))
    before = options.readme.read_text() if options.readme.exists() else ""
    if BEGIN not in before or END not in before:
        sys.exit(f"{options.readme} must have the lines {BEGIN} and {END}, between which the tables go.")
    head, rest = before.split(BEGIN, 1)
    after = f"{head}{BEGIN}\n{tables(options.results)}\n{END}{rest.split(END, 1)[1]}"
    if options.check:
        sys.exit("README.md is not up to date: run `python -m benchmarks.report`." if after != before else 0)
    options.readme.write_text(after)


if __name__ == "__main__":
    main()
