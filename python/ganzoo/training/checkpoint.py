"""Files that outlive the process: checkpoints to go on from, and generators to sample from.

A file is written beside its place, flushed to the disk and renamed over it, so a reader, or a process killed at any
moment, finds the old file or the new one, whole.
"""

import io
import json
from pathlib import Path

import torch

from ganzoo.errors import Error
from ganzoo.files import write_atomically
from ganzoo.training.loop import draw_samples
from ganzoo.training.ops import get_ops
from ganzoo.variants.base import create

CHECKPOINT = "checkpoint.pt"
GENERATOR = "generator.safetensors"


def save_checkpoint(folder, trainer):
    """Write a trainer's state to `checkpoint.pt` and the generator that samples to `generator.safetensors`."""
    import safetensors.torch

    content = io.BytesIO()
    torch.save(trainer.state_dict(), content)
    write_atomically(Path(folder) / CHECKPOINT, content.getvalue())
    described = {
        "variant": trainer.variant.name,
        "options": trainer.variant.options(),
        "image_shape": trainer.image_shape,
        "steps": trainer.steps,
    }
    weights = {name: tensor.contiguous() for name, tensor in trainer.generator().state_dict().items()}
    # One entry: safetensors writes several in an order that changes from process to process.
    metadata = {"ganzoo": json.dumps(described)}
    write_atomically(Path(folder) / GENERATOR, safetensors.torch.save(weights, metadata=metadata))


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

    Attributes: `variant` with its options, `image_shape` (C, H, W), `steps` trained, `network` the `torch.nn.Module`.
    """

    def __init__(self, variant, image_shape, steps, network):
        self.variant, self.image_shape, self.steps, self.network = variant, image_shape, steps, network

    def sample(self, n, seed=0):
        """`n` images (n, C, H, W), float32 in [−1, 1], the same for the same seed."""
        return draw_samples(self.variant, self.network, n, seed)


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
        variant = create(described["variant"], **described["options"])
        image_shape, steps = tuple(described["image_shape"]), described["steps"]
    except (safetensors.SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise Error(f"{file} is damaged, or not a generator that ganzoo saved ({type(error).__name__}).") from error
    network = variant.networks(image_shape, get_ops("gankernels")).generator
    network.load_state_dict(weights)
    return Generator(variant, image_shape, steps, network.eval().requires_grad_(False))
