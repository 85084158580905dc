"""Pictures of a run: grids of samples and curves."""

import io
import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ganzoo.files import write_atomically

CELL = 64
GAP = 3


def save_grid(path, images, columns=8):
    """Write images (N, C, H, W) in [−1, 1], C of 1 or 3, as a PNG grid. Images lower than `CELL` pixels are enlarged
    by a whole factor, bicubically: a person reads 8×8 digits far better that way than as blocks."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(_pixels(images, columns)).save(content, "PNG")
    write_atomically(path, content.getvalue())


def _pixels(images, columns):
    """A grid of images as an array of pixels, 0 ... 255."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    scale = max(1, CELL // height)
    cells = torch.full((rows * columns, channels, height * scale, width * scale), -1.0)
    cells[:count] = F.interpolate(images.detach().float().cpu(), scale_factor=scale, mode="bicubic")
    cells = F.pad(cells, (GAP, GAP, GAP, GAP), value=-0.5)
    grid = cells.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    pixels = ((grid + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels[..., 0] if channels == 1 else pixels


def save_animation(path, samples, seconds=0.08):
    """Write samples, as those of `save_samples`, as an animation that goes there and back: a GIF, or an animated PNG for a name
    that ends so."""
    from PIL import Image

    if samples.dim() == 4:
        frames = [Image.fromarray(_pixels(image[None], columns=1)) for image in samples]
    else:
        frames = [Image.fromarray(_drawn(sample[None], within=samples, size=3)) for sample in samples]
    frames += frames[-2:0:-1]
    content, kind = io.BytesIO(), "PNG" if str(path).lower().endswith("png") else "GIF"
    frames[0].save(content, kind, save_all=True, append_images=frames[1:], duration=round(seconds * 1000), loop=0)
    write_atomically(path, content.getvalue())


def save_samples(path, samples, columns=8):
    """Write samples as a PNG: images (N, C, H, W) as a grid, points (N, 2) where they lie, sequences (N, T, C) as lines."""
    if samples.dim() == 4:
        save_grid(path, samples, columns)
    else:
        _write(path, _figure(samples, within=samples, size=6))


def _figure(samples, within, size):
    """Points or sequences on axes that have room for all of `within`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    samples, within = (values.detach().float().cpu() for values in (samples, within))
    if samples.dim() == 2 and samples.shape[1] == 2:
        axes.scatter(*within.T, s=4, alpha=0)
        axes.scatter(*samples.T, s=4 if len(samples) > 1 else 40, alpha=0.5)
        axes.set_aspect("equal")
    else:
        axes.set_ylim(within.min().item() - 0.1, within.max().item() + 0.1)
        for sample in samples[:8]:
            axes.plot(sample.squeeze())
    return figure


def _drawn(samples, within, size):
    """The same as an array of pixels."""
    figure = _figure(samples, within, size)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _write(path, figure):
    content, suffix = io.BytesIO(), Path(path).suffix[1:].lower()
    kind = suffix if suffix in ("pdf", "svg") else "png"
    figure.savefig(content, format=kind, dpi=100)
    write_atomically(path, content.getvalue())


def save_curves(path, runs, title=""):
    """Write the curves of one run, one panel for the losses and one for each other figure against the generator step, or of
    several runs, with one panel for each figure that any of them has. PNG, or PDF or SVG for a name that ends so.

    `runs` are the records of `metrics.jsonl` by the run's name. Points are drawn faintly, their running mean over a
    twentieth of the run on top.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = dict.fromkeys(name for records in runs.values() for record in records for name in record)
    names = [name for name in found if name not in ("step", "seconds")]
    losses = [name for name in names if name.endswith("_loss") and len(runs) == 1]
    panels = ([losses] if losses else []) + [[name] for name in names if name not in losses]
    figure = Figure(figsize=(8, 2.6 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels):
        for name, (run, records) in itertools.product(panel, runs.items()):
            points = [(record["step"], record[name]) for record in records if name in record]
            if points:
                _draw_curve(axis, *map(torch.tensor, zip(*points)), label(name) if len(runs) == 1 else run)
        if len(runs) > 1:
            axis.set_ylabel(label(panel[0]))
        axis.legend(loc="upper right")
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("generator step")
    _write(path, figure)


def _draw_curve(axis, steps, values, name):
    window = max(1, len(values) // 20)
    (line,) = axis.plot(steps, values, alpha=0.25, linewidth=0.8)
    axis.plot(steps[window - 1 :], values.unfold(0, window, 1).mean(1), color=line.get_color(), label=name)


def save_games(path, probabilities, curves, distances, variances):
    """Write what `ganzoo.games.compared` returns as a PNG: the generator's loss and its slope against D(G(z)), and how its gradient
    varies from sample to sample against the distance that it has to go."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axis, slope_axis, variance_axis = figure.subplots(1, 3)
    for name, (losses, slopes) in curves.items():
        loss_axis.plot(probabilities, losses, label=name)
        slope_axis.plot(probabilities, slopes, label=name)
        variance_axis.plot(distances, variances[name], label=name)
    loss_axis.set(title="loss of the generator, J(G)", xlabel="D(G(z))", ylim=(-20, 7))
    slope_axis.set(title="its slope in the score, dJ/dℓ", xlabel="D(G(z))", ylim=(-3, 0.1))
    variance_axis.set(title="variance of the gradient / mean²", xlabel="distance of N(0, 1) to the data", yscale="log")
    for axis in (loss_axis, slope_axis, variance_axis):
        axis.legend()
        axis.grid(alpha=0.3)
    _write(path, figure)


def label(name):
    """The name of a figure as a person reads it: `wasserstein_estimate` becomes `Wasserstein estimate`."""
    return name.replace("_", " ").replace("wasserstein", "Wasserstein")
