"""Files that outlive the process: checkpoints to go on from, and generators to sample from.

A file is written beside its place, flushed to the disk and renamed over it, so a reader, or a process killed at any
moment, finds the old file or the new one, whole.
"""

import dataclasses
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ganzoo.errors import ArgumentError, Error
from ganzoo.files import write_atomically
from ganzoo.techniques.base import equipped, plain
from ganzoo.training.draw import check_seed, private_random
from ganzoo.training.loop import SAMPLING_BATCH, draw_samples
from ganzoo.training.ops import get_ops
from ganzoo.variants.base import DataInfo, Networks, create_saved
from ganzoo.variants.translating import FromImages

CHECKPOINT = "checkpoint.pt"
GENERATOR = "generator.safetensors"


def save_checkpoint(folder, trainer):
    """Write a trainer's state to `checkpoint.pt` and what samples to `generator.safetensors`."""
    with Saver(folder) as saver:
        saver.save(trainer)


class Saver:
    """Saves the checkpoints of a run in a thread of its own, from a copy in memory: training stands still while it is copied,
    not while it is written. To be used as a context manager, which ends when the last one is on the disk."""

    def __init__(self, folder):
        self._folder, self._writing = Path(folder), None
        self._thread = ThreadPoolExecutor(1, "ganzoo-save")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._thread.shutdown()
        if exception[0] is None:
            self.wait()

    def save(self, trainer):
        """Save a trainer's state. Raises what went wrong with the one before."""
        self.wait()
        variant = trainer.variant
        described = {
            "variant": variant.name,
            "options": variant.options(),
            "data": dataclasses.asdict(trainer.data),
            "phase": variant.phase,
            "steps": trainer.steps,
        }
        state, weights = _copied(trainer.state_dict()), _copied(trainer.sampling().state_dict())
        self._writing = self._thread.submit(_write, self._folder, state, weights, described)

    def wait(self):
        """Until all is on the disk."""
        if self._writing:
            self._writing.result()
            self._writing = None


def _copied(state):
    """A nest of dicts, lists and tensors, the tensors copied to the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, (list, tuple)) else state


def _write(folder, state, weights, described):
    import safetensors.torch

    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(folder / CHECKPOINT, content.getbuffer())
    # One entry of metadata: safetensors writes several in an order that changes from process to process.
    metadata = {"ganzoo": json.dumps(described)}
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    write_atomically(folder / GENERATOR, safetensors.torch.save(weights, metadata=metadata))


def load_checkpoint(folder):
    """The state in a run folder's `checkpoint.pt`, on the CPU. Raises `Error` where it is missing or damaged."""
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        raise Error(f"{folder} must be the folder of a run, and has no {CHECKPOINT}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damage makes its readers raise
        raise Error(f"{path} is damaged and cannot be read ({type(error).__name__}).") from error


class Generator:
    """A trained generator on the CPU. Needs no data set; made by `load`.

    Attributes: `variant` with its options, `data` the `DataInfo` of what it was trained on, `steps` trained, `networks` those
    that it samples with.
    """

    def __init__(self, variant, data, steps, networks):
        self.variant, self.data, self.steps, self.networks = variant, data, steps, networks

    def sample(self, n, seed=0, labels=None):
        """`n` images (n, C, H, W), float32 in [−1, 1], the same for the same seed. `labels` (n,) for a conditional
        generator, all classes in turn unless given, or a list of n captions where it was trained on captions."""
        return draw_samples(self.variant, self.data, self.networks, n, seed, labels=labels)

    def show(self, n, seed=0, labels=None):
        """The same for a picture: beside samples that were made from images, those images."""
        return draw_samples(self.variant, self.data, self.networks, n, seed, labels=labels, show=True)

    @torch.no_grad()
    def reconstruct(self, images):
        """What becomes of images (n, C, H, W) in [−1, 1], or points, that are encoded and sampled again. Raises `Error` where the
        variant has no encoder."""
        if "encoder" not in self.variant.samplers:
            raise Error(f"{self.variant.name} cannot reconstruct images: it has no encoder.")
        if images.shape[1:] != self.data.shape:
            raise ArgumentError(
                "images", f"of shape {self.data.shape}, as {self.data.name} has", tuple(images.shape[1:])
            )
        latents = self.variant.encode(self.networks, images)
        return self.variant.sample(self.networks, latents)

    @torch.no_grad()
    def translate(self, images, seed=0):
        """What the generator of a variant that translates makes of images (N, C, H, W) in [−1, 1]."""
        if not hasattr(self.variant, "translate"):
            raise Error(f"{self.variant.name} makes images of latents, not of images.")
        with private_random(seed, "cpu"):
            return torch.cat([self.variant.translate(self.networks, part) for part in images.split(SAMPLING_BATCH)])

    @torch.no_grad()
    def interpolate(self, between=2, frames=9, *, space="z", path="slerp", seed=0, label=0):
        """Images along the way from each of `between` latents to the next, `frames` of them with both ends, which
        neighbouring ways share. A conditional generator draws them all of the class `label`.

        In `z` the latents are mixed, in `w` the styles that a generator's `mapping` makes of them, and of its condition where it has
        one, for its `synthesis`.
        `path` is `lerp`, a + t(b − a), or `slerp`, along the sphere: White (2016), arXiv:1609.04468.
        """
        if isinstance(plain(self.variant), FromImages):
            raise Error(f"{self.variant.name} makes images of images: there are no latents to walk between.")
        network = getattr(self.networks, "generator", None)
        if space == "w" and not (hasattr(network, "mapping") and hasattr(network, "synthesis")):
            raise Error(f"{self.variant.name} has no styles w: its generator has no mapping and synthesis networks.")
        if self.variant.conditional and not 0 <= label < self.data.classes:
            raise ArgumentError("label", f"from 0 to {self.data.classes - 1}", label)
        if label and not self.variant.conditional:
            raise ArgumentError("label", "left out, as the generator is not conditional", label)

        def with_labels(points):
            return (points, torch.full((len(points),), label)) if self.variant.conditional else (points,)

        points = self.variant.latents(between, torch.Generator().manual_seed(check_seed(seed)))
        if space == "w":
            points, *labels = with_labels(points)
            points = network.mapping(points, *(self.variant.condition(self.networks, these) for these in labels))
        mix = slerp if path == "slerp" else torch.lerp
        ways = [torch.stack([mix(a, b, t) for t in torch.linspace(0, 1, frames)]) for a, b in zip(points, points[1:])]
        points = torch.cat([ways[0], *(way[1:] for way in ways[1:])])
        with private_random(seed, "cpu"):
            if space == "w":
                return network.synthesis(points)
            return self.variant.sample(self.networks, *with_labels(points))


def slerp(a, b, t):
    """(sin((1 − t)θ)·a + sin(tθ)·b)/sin θ with θ the angle between a and b; lerp where they are parallel."""
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
    angle = torch.acos(cosine)
    if angle.sin() < 1e-4:
        return torch.lerp(a, b, t)
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def load(path):
    """The generator of a run folder, or of a `generator.safetensors` by itself. No code is unpickled.

    Raises `Error` where there is none, where it is damaged, or where its variant is not registered.
    """
    import safetensors

    path = Path(path)
    file = path / GENERATOR if path.is_dir() else path
    if not file.is_file():
        raise Error(f"{path} must be the folder of a run or its {GENERATOR}, and there is none.")
    try:
        with safetensors.safe_open(file, "pt") as opened:
            described = json.loads(opened.metadata()["ganzoo"])
            weights = {name: opened.get_tensor(name) for name in opened.keys()}
        variant = equipped(create_saved(described["variant"], described["options"]))
        data = DataInfo(**described["data"])
        variant.phase, steps = described["phase"], described["steps"]
    except (safetensors.SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise Error(f"{file} is damaged, or not a generator that ganzoo saved ({type(error).__name__}).") from error
    shapes = {"shape": tuple(data.shape), "fields": {field: tuple(shape) for field, shape in data.fields.items()}}
    data = dataclasses.replace(data, **shapes, vocabulary=tuple(data.vocabulary))
    networks = variant.networks(data, get_ops("gankernels"))
    networks = Networks(**{name: getattr(networks, name) for name in variant.samplers})
    networks.load_state_dict(weights)
    return Generator(variant, data, steps, networks.eval().requires_grad_(False))
