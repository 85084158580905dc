"""What a person and a program see of a run while it goes on: the progress bar and `metrics.jsonl`."""

import json
import math
import time
from pathlib import Path

from ganzoo.errors import Error
from ganzoo.plots import label

METRICS = "metrics.jsonl"


def read_metrics(folder):
    """The records of a run's `metrics.jsonl`, up to the first that is not whole: a killed process may leave half a
    line."""
    path = Path(folder) / METRICS
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class Monitor:
    """Shows the progress of a run and appends its figures to `metrics.jsonl`, one JSON object a line: `step`,
    `seconds` of training so far, and the figures that `Trainer.step` returned. To be used as a context manager
    around the training.

    A run that goes on from step `start` keeps the records up to it.
    """

    def __init__(self, folder, title, start, steps):
        self.records = [record for record in read_metrics(folder) if record["step"] <= start]
        self._path, self._title, self._start, self._steps = Path(folder) / METRICS, title, start, steps

    def __enter__(self):
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.text import Text

        self._file = open(self._path, "w")
        for record in self.records:
            self._write(record)
        self._seconds = self.records[-1]["seconds"] if self.records else 0.0
        self._began = time.perf_counter()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._task = self._progress.add_task(self._title, total=self._steps, completed=self._start, rate="")
        self._figures = Text()
        self._live = Live(Group(self._progress, self._figures), refresh_per_second=4)
        self._live.start()
        return self

    def __exit__(self, *exception):
        self._live.stop()
        if not self._live.console.is_terminal:
            self._live.console.line()
        self._file.close()

    def _write(self, record):
        self._file.write(json.dumps(record) + "\n")

    def seconds(self):
        """Seconds of training, those before a resume included."""
        return self._seconds + time.perf_counter() - self._began

    def advance(self, step):
        rate = (step - self._start) / (time.perf_counter() - self._began)
        self._progress.update(self._task, completed=step, rate=f"{rate:.1f} steps/s")

    def log(self, step, figures):
        """Record the figures of a step, scalar tensors by name. Raises `Error` when one is no longer a finite
        number."""
        values = {name: value.item() for name, value in figures.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise Error(f"training diverged: {label(name)} is {value} at step {step}.")
        self.records.append({"step": step, "seconds": round(self.seconds(), 3), **values})
        self._write(self.records[-1])
        self._file.flush()
        self._figures.plain = "   ".join(f"{label(name)} {value:.3f}" for name, value in values.items())
