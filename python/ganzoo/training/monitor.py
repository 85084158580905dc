"""What a person and a program see of a run while it goes on: the progress bar, `metrics.jsonl`, `log.txt` and TensorBoard."""

import json
import time
from pathlib import Path

from ganzoo.files import write_atomically
from ganzoo.plots import label

METRICS, LOG, TENSORBOARD = "metrics.jsonl", "log.txt", "tensorboard"
REFRESH = 0.25


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


def _line(record):
    return json.dumps(record) + "\n"


class Monitor:
    """Shows the progress of a run and appends its figures to `metrics.jsonl`, one JSON object a line: `step`,
    `seconds` of training so far, and the figures that `Trainer.step` returned. What a person should know goes to `log.txt`
    and, the latest of it, below the progress bar. To be used as a context manager around the training.

    A run that goes on from step `start` keeps the records up to it.
    """

    def __init__(self, folder, title, start, steps, *, tensorboard=False):
        self._folder, self._title, self._start, self._steps = Path(folder), title, start, steps
        self._tensorboard, self._shown = tensorboard, 0.0
        self._latest, self._alarm = "", ""
        self.records = [record for record in read_metrics(folder) if record["step"] <= start]

    def __enter__(self):
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.text import Text

        self._seconds = self.records[-1]["seconds"] if self.records else 0.0
        self._began = time.perf_counter()
        self._file = None
        self.back_to(self._start)
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self._folder / TENSORBOARD), purge_step=self._start + 1)
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
        self._live = Live(Group(self._progress, self._figures), auto_refresh=False)
        self._live.start()
        return self

    def __exit__(self, *exception):
        self._live.refresh()
        self._live.stop()
        if not self._live.console.is_terminal:
            self._live.console.line()
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()

    def back_to(self, step):
        """Forget the records after a step."""
        if self._file:
            self._file.close()
        self.records = [record for record in self.records if record["step"] <= step]
        write_atomically(self._folder / METRICS, "".join(map(_line, self.records)).encode())
        self._file = open(self._folder / METRICS, "a")

    def seconds(self):
        """Seconds of training, those before a resume included."""
        return self._seconds + time.perf_counter() - self._began

    def advance(self, step):
        now = time.perf_counter()
        if now - self._shown > REFRESH or step == self._steps:
            self._shown = now
            rate = (step - self._start) / (now - self._began)
            self._progress.update(self._task, completed=step, rate=f"{rate:.1f} steps/s")
            self._live.refresh()

    def log(self, step, values):
        """Record the figures of a step, numbers by name."""
        self.records.append({"step": step, "seconds": round(self.seconds(), 3), **values})
        self._file.write(_line(self.records[-1]))
        self._file.flush()
        if self._tensorboard:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        self._latest = "   ".join(f"{label(name)} {value:.3f}" for name, value in values.items())
        self._show()

    def _show(self):
        self._figures.plain = f"{self._latest}   {self._alarm}".rstrip()

    def alarm(self, step, sentences):
        """What is wrong, in sentences, as of this step; none when all is well again."""
        self._alarm = f"ALARM: {'; '.join(sentences)}" if sentences else ""
        self._show()
        for sentence in sentences:
            self.say(step, f"alarm: {sentence}")

    def say(self, step, sentence):
        """A line in `log.txt`."""
        with open(self._folder / LOG, "a") as file:
            file.write(f"step {step}: {sentence}.\n")


class Silent:
    """The monitor of all processes but the first."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def ignore(self, *_):
        return None

    log = advance = alarm = say = back_to = seconds = ignore
