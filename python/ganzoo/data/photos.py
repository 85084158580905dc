"""Patches of the two photos that come with scikit-learn: a Chinese temple and a flower, 427×640 pixels each, RGB.

Source: Attribution in scikit-learn's `datasets/images/README.txt` (CC-BY).
"""

from typing import Literal

import numpy as np
import torch

from ganzoo.data.base import Tensors
from ganzoo.errors import ArgumentError
from ganzoo.options import CountOrZero

PHOTOS = ("china", "flower")


def open_photos(
    *,
    size: CountOrZero = 64,
    stride: CountOrZero = 0,
    photo: Literal["both", "china", "flower"] = "both",
    form: Literal["images", "unpaired"] = "images",
):
    """Square patches of the photos, `stride` pixels apart (half their size unless given), labelled by the photo.

    `size=0` gives the photos whole. `form="unpaired"` gives the temple's patches as domain `a`, the flower's as `b`.
    """
    from sklearn.datasets import load_sample_images

    pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in load_sample_images().images]
    height, width = pixels[0].shape[1:]
    if size > height:
        raise ArgumentError("size", f"from 1 to {height}, or 0 for the whole photos", size)
    patches = [_patches(image, size, stride or max(1, size // 2)) if size else image[None] for image in pixels]
    if form == "unpaired":
        return {domain: Tensors("photos", {"image": images}) for domain, images in zip("ab", patches)}
    if photo != "both":
        return Tensors("photos", {"image": patches[PHOTOS.index(photo)]}, split=photo)
    labels = torch.cat([torch.full((len(images),), label) for label, images in enumerate(patches)])
    return Tensors("photos", {"image": torch.cat(patches), "label": labels}, classes=len(PHOTOS))


def _patches(image, size, stride):
    return image.unfold(1, size, stride).unfold(2, size, stride).flatten(1, 2).transpose(0, 1).contiguous()
