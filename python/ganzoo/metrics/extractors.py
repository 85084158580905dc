"""Networks, or none, whose features and class probabilities the metrics compare.

An extractor has a `name` that changes whenever its features do, says in `resize` what it does to images first, and its
`extract(images)`, for images in [−1, 1] or points, gives features (B, D) and probabilities (B, K), or None where it knows
no classes. For single images it is `places(images)` that counts, features (B, P, D) of P places of each.
"""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ganzoo.data.base import fingerprint
from ganzoo.errors import Error, reason
from ganzoo.files import cache_folder, write_atomically

BATCH = 256
MOST_PIXELS = 4096
PATCH = 5


class Pixels:
    """The pixels or coordinates themselves. Images of a `shape` with more than 4,096 numbers are first made smaller by the mean
    over squares of pixels: with more features a covariance takes gigabytes and its roots take hours."""

    name, resize, _side = "pixels", "none", 1

    def __init__(self, shape=()):
        while len(shape) == 3 and shape[0] * (shape[1] // self._side) * (shape[2] // self._side) > MOST_PIXELS:
            self._side += 1
            self.resize = f"mean of {self._side}×{self._side}"

    def extract(self, images):
        return (F.avg_pool2d(images, self._side) if self._side > 1 else images).flatten(1), None


class Patches:
    """All patches of 5×5 pixels of an image, as the features of its places."""

    name, resize = f"patches of {PATCH}×{PATCH} pixels", "none"

    def places(self, images):
        height, width = images.shape[2:]
        if min(height, width) < PATCH or height == width == PATCH:  # one place has no covariance
            wanted = f"of several patches of {PATCH}×{PATCH} pixels, which are what is compared"
            raise Error(f"the samples must be {wanted}, got {height}×{width} pixels.")
        return F.unfold(images, PATCH).transpose(1, 2)


class Classifier:
    """A small convolutional network, trained here on nine tenths of a labelled set of images. Features are its last hidden
    layer's, of mean square 1 over the training set.

    Trained once: the weights are kept in the cache, and their hash is part of the name. `accuracy` is that on the tenth
    that was held out.

    Args:
        data: the labelled set, which decides size, channels and classes.
        steps: of Adam on batches of 64.
    """

    resize = "none"

    def __init__(self, data, steps=600):
        import safetensors.torch

        if not data.classes or len(data.shape) != 3:
            raise Error(f"a classifier needs images with labels, and {data.name} has none.")
        self._shape, self.classes = data.shape, data.classes
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        train, held_out = order[len(order) // 10 :], order[: len(order) // 10]
        file = cache_folder("classifiers") / f"{fingerprint(data)[:16]}-{steps}.safetensors"
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self._network = _small_network(data.shape, data.classes)
            try:
                self._network.load_state_dict(safetensors.torch.load_file(file))
            except (OSError, RuntimeError, safetensors.SafetensorError):
                self._train(data, train, steps)
                self._to_unit_features(data, train)
                write_atomically(file, safetensors.torch.save(self._network.state_dict()))
        self._network.eval().requires_grad_(False)
        weights = b"".join(value.numpy().tobytes() for value in self._network.state_dict().values())
        self.accuracy = self._accuracy(data, held_out)
        version = hashlib.sha256(weights).hexdigest()[:8]
        self.name = f"classifier of {data.name}/{data.split} ({version}, {self.accuracy:.1%} right)"

    def _train(self, data, train, steps):
        optimizer = torch.optim.Adam(self._network.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            batch = data.fetch(train[torch.randint(len(train), (64,))])
            loss = F.cross_entropy(self._network(batch["image"].cpu()), batch["label"].cpu())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def _to_unit_features(self, data, train):
        """Scale the last hidden layer so that its features' mean square over the training set is 1, and the output layer
        by the inverse: the kernel distance, cubic, depends on the scale."""
        squares = [self._network[:-1](data.fetch(part)["image"].cpu()).square().mean(1) for part in train.split(BATCH)]
        scale = torch.cat(squares).mean().sqrt()
        hidden, output = self._network[-3], self._network[-1]
        hidden.weight /= scale
        hidden.bias /= scale
        output.weight *= scale

    def _accuracy(self, data, indices):
        right = 0
        for part in indices.split(BATCH):
            batch = data.fetch(part)
            right += (self.extract(batch["image"].cpu())[1].argmax(1) == batch["label"].cpu()).sum().item()
        return right / len(indices)

    def extract(self, images):
        if images.shape[1:] != self._shape:
            raise Error(f"the {self.name} takes images of shape {self._shape}, got {tuple(images.shape[1:])}.")
        features = self._network[:-1](images.cpu().float())
        return features, self._network[-1](features).softmax(1)


def _small_network(shape, classes):
    channels, height, width = shape
    layers, before = [], channels
    if max(height, width) <= 8:
        layers, before = [nn.Conv2d(channels, 32, 3, 1, 1), nn.ReLU()], 32
    while max(height, width) > 4:
        after = 32 if before == channels else 64
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.ReLU()]
        before, height, width = after, -(-height // 2), -(-width // 2)
    hidden = nn.Linear(before * height * width, 64)
    return nn.Sequential(*layers, nn.Flatten(), hidden, nn.ReLU(), nn.Linear(64, classes))


class Inception:
    """The Inception network of the FID's authors, as torch-fidelity has it. Nothing is downloaded: the file of its weights
    has to lie in the cache, below `weights`.

    Args:
        device: where it runs.
    """

    URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
    resize = "bilinear to 299×299 as TensorFlow 1 does"

    def __init__(self, device="cpu"):
        file = cache_folder("weights") / Path(self.URL).name
        if not file.exists():
            raise Error(
                f"the weights of the Inception network are missing: put {self.URL} into {file.parent}, or choose another "
                "extractor (--extractor pixels)."
            )
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise Error(
                f"the Inception network needs torch-fidelity: pip install gankernels[inception] ({error})."
            ) from error
        content = file.read_bytes()
        try:
            torch.load(file, weights_only=True)  # the library would run what a pickle says
            network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(file))
        except Exception as error:
            raise Error(f"{file} does not hold the weights of the Inception network ({reason(error)}).") from error
        self._network, self._device = network.to(device), device
        self.name = f"Inception ({hashlib.sha256(content).hexdigest()[:8]})"

    def places(self, images):
        """The output of the last convolution before the second pooling, (B, 71², 192)."""
        found = []
        layer = self._network.Conv2d_4a_3x3
        hook = layer.register_forward_hook(lambda _, inputs, output: found.append(output.flatten(2).transpose(1, 2)))
        try:
            self.extract(images)
        finally:
            hook.remove()
        return found[0]

    def extract(self, images):
        pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        features, logits = self._network(pixels.expand(-1, 3, -1, -1).to(self._device))
        return features, logits.softmax(1)
