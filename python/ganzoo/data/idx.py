"""IDX files, gzipped or not: MNIST, FashionMNIST and their like.

Format: http://yann.lecun.com/exdb/mnist: two zero bytes, the type of the elements, the number of dimensions, each dimension
as a big-endian 32-bit integer, then the elements.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from ganzoo.data.base import Tensors
from ganzoo.errors import ArgumentError, Error, reason
from ganzoo.options import CountOrZero

PREFIXES = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "images{}idx3-ubyte{}", "labels{}idx1-ubyte{}"
ENDINGS = [(dot, gz) for dot in "-." for gz in ("", ".gz")]
UBYTE = 8


def images_file(path, split):
    """The file of this split's images in a folder, or None."""
    for folder in (path, path / "raw"):
        for ending in ENDINGS:
            file = folder / f"{PREFIXES[split]}-{IMAGES.format(*ending)}"
            if file.exists():
                return file
    return None


def is_idx(path):
    return any(images_file(path, split) for split in PREFIXES) if path.is_dir() else "ubyte" in path.name


def open_idx(path, *, split: Literal["train", "test"] = "train", size: CountOrZero = 0):
    """MNIST-like images and labels from the folder of their IDX files, or from one file of images by itself.

    `size` pads the images with black on all sides to size × size, as is usual for networks that double 4×4: 28 to 32.
    The labels are those of the file beside it whose name says `labels` for `images`; without one there are no classes.
    """
    path = Path(path)
    images_path = images_file(path, split) if path.is_dir() else path
    if images_path is None:
        raise Error(f"{path} has no IDX file of the {split} images ({PREFIXES[split]}-{IMAGES.format('-', '')}).")
    images = _read(images_path, dims=3)
    stem = images_path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    found = [images_path.with_name(stem + gz) for gz in ("", ".gz") if images_path.with_name(stem + gz).exists()]
    labels = None
    if found and found[0] != images_path:
        labels = torch.from_numpy(_read(found[0], dims=1).astype(np.int64))
        if len(labels) != len(images):
            raise Error(f"{found[0]} has {len(labels)} labels for the {len(images)} images of {images_path.name}.")
    images = torch.from_numpy(images).unsqueeze(1)
    if size:
        height, width = size - images.shape[2], size - images.shape[3]
        if min(height, width) < 0:
            raise ArgumentError("size", f"at least {max(images.shape[2:])}, as images are padded, not scaled", size)
        images = F.pad(images, (width // 2, width - width // 2, height // 2, height - height // 2))
    classes = None if labels is None else int(labels.max()) + 1
    return Tensors(str(path), {"image": images, "label": labels}, classes, split if path.is_dir() else "all")


def _read(path, dims):
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Error(f"{path} is not a whole gzip file ({reason(error)}).") from error
    if len(content) < 4 + 4 * dims or content[:2] != b"\0\0":
        raise Error(
            f"{path} is not an IDX file: it has {len(content)} bytes beginning with {content[:4].hex() or 'none'}."
        )
    if (content[2], content[3]) != (UBYTE, dims):
        raise Error(
            f"{path} must hold unsigned bytes in {dims} dimensions, and its header says type {content[2]} in {content[3]}."
        )
    shape = struct.unpack(f">{dims}I", content[4 : 4 + 4 * dims])
    if len(content) - 4 - 4 * dims != math.prod(shape):
        raise Error(
            f"{path} must have {math.prod(shape):,} bytes of data by its header {shape}, "
            f"and has {len(content) - 4 - 4 * dims:,}."
        )
    if not math.prod(shape):
        raise Error(f"{path} is empty: its header says {shape}.")
    return np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * dims).reshape(shape)
