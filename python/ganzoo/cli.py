"""The command line. `ganzoo train <variant>` takes the fields of the variant's dataclass and of a run's."""

import contextlib
import dataclasses
import functools
import io
import re
import shlex
import sys
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg
from tyro.extras import SubcommandApp

import ganzoo
from ganzoo.errors import ArgumentError, Error, program
from ganzoo.training.run import RunOptions
from ganzoo.variants import list_variants, variant_class

OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
"""Parts of what PyTorch's RuntimeErrors say when an allocation fails."""


def list_command():
    """List the variants, and the techniques with their options."""
    from ganzoo.techniques import list_techniques, technique_class

    width = max(map(len, [*list_variants(), *list_techniques()]))
    for name in list_variants():
        print(f"{name:{width}}  {variant_class(name).__doc__.splitlines()[0]}")
    print("\nFor --techniques, as name or name:option=value,option=value:\n")
    for name in list_techniques():
        technique = technique_class(name)
        options = ", ".join(f"{field.name}={field.default}" for field in dataclasses.fields(technique))
        print(f"{name:{width}}  {technique.__doc__.splitlines()[0]}{f' ({options})' if options else ''}")


def sample_command(
    run: Annotated[str, Positional, arg(metavar="RUN")], n: int = 64, seed: int = 0, out: str = "samples.png"
):
    """Draw images from a trained generator into a PNG. Needs no data set.

    Args:
        run: The folder of a run, or a generator.safetensors by itself.
        n: How many images.
        seed: Decides the latents.
        out: The PNG to write.
    """
    from ganzoo.plots import save_samples
    from ganzoo.training import distributed
    from ganzoo.training.checkpoint import load

    if n < 1:
        raise ArgumentError("n", "at least 1", n)
    distributed.join("cpu")
    generator = load(run)
    images = generator.show(n, seed=seed)
    if distributed.rank() == 0:
        with _writing("out", out):
            save_samples(out, images, generator.variant.columns(generator.data))
        print(f"Wrote {out}")
    distributed.leave()


def interpolate_command(
    run: Annotated[str, Positional, arg(metavar="RUN")],
    frames: int = 9,
    between: int = 2,
    space: Literal["z", "w"] = "z",
    path: Literal["slerp", "lerp"] = "slerp",
    seed: int = 0,
    label: int = 0,
    out: str = "interpolation.png",
    animation: str = "interpolation.gif",
):
    """Walk between latents of a trained generator: a strip as PNG and the same walk as an animation. Needs no data set.

    Args:
        run: The folder of a run, or a generator.safetensors by itself.
        frames: Images from one latent to the next, both included.
        between: Latents to walk between, from the first to the last; at least 2.
        space: z, the latents, or w, the styles, of a generator that has a mapping network.
        path: slerp, along the sphere on which latents lie, or lerp, straight.
        seed: Decides the latents.
        label: The class that a conditional generator draws.
        out: The PNG to write.
        animation: The GIF to write, or PNG for an animated PNG; an empty text for none.
    """
    from ganzoo.plots import save_animation, save_samples
    from ganzoo.training.checkpoint import load

    if frames < 2 or between < 2:
        raise ArgumentError("frames" if frames < 2 else "between", "at least 2", frames if frames < 2 else between)
    if animation == out:
        raise ArgumentError("animation", "another file than the strip's", animation)
    images = load(run).interpolate(between, frames, space=space, path=path, seed=seed, label=label)
    with _writing("out", out):
        save_samples(out, images, columns=min(len(images), frames))
    if animation:
        with _writing("animation", animation):
            save_animation(animation, images)
    print(f"Wrote {' and '.join(filter(None, (out, animation)))}")


def evaluate_command(
    run: Annotated[str, Positional, arg(metavar="RUN")],
    data: str = "",
    data_options: tuple[str, ...] = (),
    n: int = 0,
    extractor: str = "",
    seed: int = 1,
    device: str = "cpu",
):
    """Measure a trained generator against data, and add the figures to its run's evaluation.jsonl.

    Args:
        run: The folder of a run, or a generator.safetensors by itself, which needs --data.
        data: The reference, as in `ganzoo train`; the run's own unless given.
        data_options: Options of these data, as name=value: split=test.
        n: How many samples; 0 for the number that suits the data.
        extractor: pixels, classifier or inception; the data's usual one unless given.
        seed: Decides the latents.
        device: Where the extractor runs.
    """
    from ganzoo.training import distributed
    from ganzoo.training.evaluate import evaluate_run

    distributed.join("cpu")
    figures = evaluate_run(
        run, data=data, data_options=data_options, n=n, extractor=extractor, seed=seed, device=device
    )
    if distributed.rank() == 0:
        print(*figures, sep="\n")
    distributed.leave()


def reproduce_command(
    what: Annotated[str, Positional, arg(metavar="WHAT")],
    trials: int = 0,
    steps: int = 0,
    device: str = "cpu",
    runs: str = "runs",
):
    """Train a run's configuration again and compare what comes out of it with the run; or train what a paper has printed the
    figures of, and put both side by side.

    Args:
        what: The folder of a run that has ended, or the name of a published row; list for their names.
        trials: Trainings of a published row, with different seeds; 0 for as many as were published.
        steps: Generator steps of each; 0 for as many as were published.
        device: Where a published row trains.
        runs: Folder in which the new runs' own folders are made.
    """
    from ganzoo.published import PUBLISHED
    from ganzoo.training.reproduce import published_rows, reproduce, reproduce_published

    for name, value in (("trials", trials), ("steps", steps)):
        if value < 0 or (value and what not in PUBLISHED):
            raise ArgumentError(name, "0, or at least 1 for a published row", value)
    if device != "cpu" and what not in PUBLISHED:
        raise ArgumentError("device", "left out, unless a published row is to train there", device)
    if what == "list":
        lines = published_rows()
    elif what in PUBLISHED:
        lines = reproduce_published(what, runs, _command(), trials=trials, steps=steps, device=device)
    else:
        lines = reproduce(what, runs, _command())
    print(*lines, sep="\n")


def plot_command(
    what: Annotated[tuple[str, ...], Positional, arg(metavar="WHAT")],
    figures: tuple[str, ...] = (),
    out: str = "curves.png",
):
    """Draw a run's curves, or those of several runs over each other; or the three games of GAN side by side: loss, slope and
    variance of the generator's gradient.

    Args:
        what: The folders of runs, or games for the three games, minimax, non-saturating and maximum-likelihood.
        figures: Names of figures, as in metrics.jsonl; all unless given.
        out: The PNG to write; PDF or SVG for a name that ends so.
    """
    from ganzoo.plots import save_curves, save_games
    from ganzoo.training.monitor import read_metrics

    if what == ("games",):
        from ganzoo.games import compared

        if figures:
            raise ArgumentError("figures", "left out, unless it is a run that is drawn", ", ".join(figures))
        with _writing("out", out):
            save_games(out, *compared())
        print(f"Wrote {out}")
        return
    if not what:
        raise Error("plot needs the folders of one or more runs, or games.")
    records = {run: read_metrics(run) for run in what}
    for run in what:
        if not records[run]:
            raise Error(f"{run} must be the folder of a run, and has no metrics.jsonl with figures.")
    axes = ("step", "seconds")
    known = dict.fromkeys(name for run in what for record in records[run] for name in record if name not in axes)
    for name in figures:
        if name not in known:
            raise ArgumentError("figures", f"among {', '.join(known)}", name)
    kept = {"step", *(figures or known)}
    with _writing("out", out):
        chosen = {run: [{key: record[key] for key in record if key in kept} for record in records[run]] for run in what}
        save_curves(out, chosen, title=what[0] if len(what) == 1 else "")
    print(f"Wrote {out}")


def _command():
    return f"{program()} {shlex.join(sys.argv[1:])}"


@contextlib.contextmanager
def _writing(argument, path):
    try:
        yield
    except OSError as error:
        raise ArgumentError(argument, f"a file that can be written ({error.strerror})", path) from error


def resume_command(
    run: Annotated[str, Positional, arg(metavar="RUN")], steps: int = 0, data: str = "", device: str = ""
):
    """Go on with a run from its last checkpoint, to the bit on the CPU.

    Args:
        run: The folder of the run.
        steps: Generator steps to end at; 0 for those the run was started with.
        data: Where the run's data are now, if they have moved.
        device: Where to go on, unless where the run was.
    """
    from ganzoo.training.run import resume

    resume(run, steps, data, device)


def _train_command(variant_type):
    def command(variant: OmitArgPrefixes[variant_type], run: OmitArgPrefixes[RunOptions]):
        from ganzoo.training.run import train

        train(variant, run, _command())

    command.__doc__ = variant_type.__doc__
    return command


def _deferred(command):
    """The same command line, but what it returns does the work, so that only parsing happens inside tyro."""

    @functools.wraps(command)
    def parsed(*args, **kwargs):
        return functools.partial(command, *args, **kwargs)

    return parsed


def _app():
    app, variants = SubcommandApp(), SubcommandApp()
    for name in list_variants():
        variant = variant_class(name)
        variants.command(_deferred(_train_command(variant)), name=name, help=variant.__doc__.splitlines()[0])
    app.command(variants, name="train", help="Train a variant.")
    app.command(_deferred(resume_command), name="resume")
    app.command(_deferred(sample_command), name="sample")
    app.command(_deferred(interpolate_command), name="interpolate")
    app.command(_deferred(evaluate_command), name="evaluate")
    app.command(_deferred(reproduce_command), name="reproduce")
    app.command(_deferred(plot_command), name="plot")
    app.command(_deferred(list_command), name="list")
    return app


def _as_sentence(box):
    """The message in the box that tyro draws around a mistake on the command line, as one sentence.

    Its first line is a title. Where the terminal has no line-drawing characters only the rules between its parts are
    drawn.
    """
    rows = " ".join(row.strip("│ ") for row in box.splitlines()[1:] if row[:1] != "╰")
    parts = [re.sub(r"\s+", " ", part).strip(" .:") for part in re.split("[─-]{3,}", rows)]
    said = [part for part in parts if part and not part.startswith(("For full helptext", "Argument helptext"))]
    said.sort(
        key=lambda part: part if part.startswith("Arguments similar to") else ""
    )  # tyro has them in a set's order
    text = "; ".join(part[:1].lower() + part[1:] for part in said)
    for pattern, words in _REWORDED.items():
        text = re.sub(pattern, words, text)
    return f"ganzoo: {text}."


def _elsewhere(found):
    """What to say of options that other commands have."""
    applied = re.findall(r"(\S+) \(applied to ([^)]*)\)", found[1])
    names, command = [name for name, _ in applied if name.startswith("--")], applied[0][1]
    shown = ", ".join(names or [name for name, _ in applied])
    return f"{command.removeprefix(program()).strip()} has no option {shown}; `{command} --help` shows those it has"


_REWORDED = {
    r"unrecognized or misplaced options: (.*) Arguments are applied to .*": _elsewhere,
    r"arguments similar to (--\S+): (--\S+)[^;]*": r"perhaps you meant \2 by \1",
    r"error parsing (\S+): invalid literal for int\(\) with base 10: (.*)": r"\1 must be a whole number, got \2",
    r"error parsing (\S+): could not convert string to float: (.*)": r"\1 must be a number, got \2",
    r"perhaps you meant: (--\S+).*": r"perhaps you meant \1",
    r"missing value for argument '(\S+)'\. Expected (\d+) values": r"\1 must be given \2 value(s), and fewer came",
    r"missing from (.*): ([A-Z]+) (.*)\. \(required\)": r"\1 needs \2: \3",
}


def main():
    """Entry point of `ganzoo`. A mistake in the input ends it with one sentence on stderr and exit status 2."""
    refused = io.StringIO()
    try:
        with contextlib.redirect_stderr(refused):
            command = _app().cli(prog=program(), description=ganzoo.__doc__.splitlines()[0])
    except SystemExit as ending:
        sys.exit(_fail(_as_sentence(refused.getvalue())) if ending.code else 0)
    try:
        command()
    except ArgumentError as error:
        sys.exit(_fail(error.on_command_line()))
    except Error as error:
        sys.exit(_fail(str(error)))
    except OSError as error:
        sys.exit(_fail(f"ganzoo: {error.filename or 'the disk'} cannot be used: {error.strerror}."))
    except RuntimeError as error:
        if not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        sys.exit(_fail("ganzoo: the memory is too small for networks and batches of this size."))
    except KeyboardInterrupt:
        sys.exit(_fail(f"ganzoo: stopped; `{program()} resume` goes on from the run's last checkpoint."))


def _fail(sentence):
    print(sentence, file=sys.stderr)
    return 2
