"""Folders and zips of images, with a class per folder where there are folders, and pairs of images."""

import contextlib
import io
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ganzoo.data.base import DataSet, Paired, Subset, Tensors, scaled
from ganzoo.data.packed import Pack
from ganzoo.errors import Error, reason
from ganzoo.options import CountOrZero

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
GREY, COLOUR = ("1", "L", "LA"), ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB")
MEMORY = 2**30
"""Bytes of pixels up to which a set lives in memory unless told otherwise."""
UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""What reading a damaged file or zip may raise."""
AT_ONCE = 64
"""Images that one thread decodes before it takes the next ones."""
GROUPS = (19, 30, 40, 50, 60)
"""The ages at which the groups after the first begin: Antipov, Baccouche and Dugelay (2017), arXiv:1702.01983, section 2."""
DOMAINS = {"train": (("a", "b"), ("A", "B"), ("trainA", "trainB")), "test": (("testA", "testB"),)}


def open_images(
    path,
    *,
    form: Literal["", "images", "side-by-side", "paired", "unpaired"] = "",
    size: CountOrZero = 0,
    channels: Literal[0, 1, 3] = 0,
    damaged: Literal["refuse", "skip"] = "refuse",
    store: Literal["", "memory", "disk", "files"] = "",
    split: Literal["train", "test"] = "train",
    labels: Literal["folders", "ages"] = "folders",
    threads: CountOrZero = 0,
):
    """The images of a folder or a zip, in the order of their names; folders in it are classes.

    form       `images`: each file is a sample; `side-by-side`: each holds A on its left half and B on its right, as pix2pix
               has it; `paired`: the folders a and b (or trainA and trainB) hold the same names; `unpaired`: two domains from
               such folders. Unless given it is `paired` where there are such folders, `images` otherwise.
    size       height and width: images are scaled until their shorter side has it, then cropped around the centre. 0 takes
               them as they are, all of one size.
    channels   1 makes all grey, 3 makes all RGB, 0 takes them as they are, all grey or all in colour.
    damaged    what happens when a file is empty, cannot be decoded, or has other channels or another size than most: `refuse`
               the set, naming the first, or `skip` and say how many.
    store      `memory` decodes all at once; `disk` does so into a cache file that is mapped into memory, and found again next
               time; `files` decodes when fetching and sees only then whether an image is whole. Unless given it is `memory`
               up to 1 GiB of pixels, `files` beyond.
    labels     `folders` takes the folders for classes; `ages` takes what the file names begin with, as UTKFace's do ([age]_[gender]_…),
               in six groups: up to 18, 19 to 29, to 39, to 49, to 59, and 60 or more.
    split      chooses trainA and trainB, or testA and testB.
    threads    threads that decode; 0 for one per core.
    """
    path, options = Path(path), _Options(size, channels, damaged, store, labels, threads or os.cpu_count())
    domains = _domain_folders(path, split)
    if form in ("paired", "unpaired") and not domains:
        wanted = " or ".join(f"{a} and {b}" for a, b in DOMAINS[split])
        raise Error(f"{path} has no folders {wanted}, which form={form} needs.")
    if form == "unpaired":
        return {domain: _open(folder, options) for domain, folder in zip("ab", domains)}
    if form == "paired" or (domains and not form):
        return _open_paired(path, domains, options)
    if form == "side-by-side":
        return SideBySide(_open(path, options, halves=True))
    return _open(path, options)


@dataclass(frozen=True)
class _Options:
    size: int
    channels: int
    damaged: str
    store: str
    labels: str
    threads: int


def _domain_folders(path, split):
    if path.is_dir():
        present = {entry.name for entry in path.iterdir() if entry.is_dir()}
        for pair in DOMAINS[split]:
            if present.issuperset(pair):
                return [path / name for name in pair]
    return None


# --- the files ---


class _Folder:
    def __init__(self, path):
        self._path = path

    def listing(self):
        """Name, bytes and time of change of every file, by name."""
        found = []
        for folder, _, files in os.walk(self._path):
            for file in files:
                stat = os.stat(os.path.join(folder, file))
                name = os.path.relpath(os.path.join(folder, file), self._path)
                found.append((name.replace(os.sep, "/"), stat.st_size, stat.st_mtime_ns))
        return sorted(found)

    def open(self, name):
        return open(self._path / name, "rb")

    def read(self, name):
        return (self._path / name).read_bytes()


class _Zip:
    def __init__(self, path):
        try:
            self._archive = zipfile.ZipFile(path)
        except UNREADABLE as error:
            raise Error(f"{path} is not a whole zip file ({reason(error)}).") from error

    def listing(self):
        return sorted((i.filename, i.file_size, i.CRC) for i in self._archive.infolist() if not i.is_dir())

    def open(self, name):
        return self._archive.open(name)

    def read(self, name):
        return self._archive.read(name)


# --- decoding ---


class _Damage(Exception):
    """Why a file cannot be taken, as what follows its name in a sentence."""


@contextlib.contextmanager
def _opened(file):
    """The image in an open file, its pixels not yet decoded. Whatever a decoder stumbles over becomes a `_Damage`."""
    from PIL import Image, UnidentifiedImageError

    try:
        if not file.read(1):
            raise _Damage("is empty")
        file.seek(0)
        with Image.open(file) as image:
            yield image
    except _Damage:
        raise
    except UnidentifiedImageError as error:
        raise _Damage("cannot be read as an image") from error
    except Exception as error:
        raise _Damage(f"is damaged ({reason(error)})") from error


def _header(file):
    """Height, width and channels."""
    from PIL import ExifTags

    with _opened(file) as image:
        if image.mode not in GREY + COLOUR:
            raise _Damage(f"has pixels of the kind {image.mode}, not of 8 bits")
        width, height = image.size
        if _turned(image) and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
            width, height = height, width
        return height, width, 1 if image.mode in GREY else 3


def _turned(image):
    """Whether the file may say how the camera was held. A PNG could, but one would have to decode it to know."""
    return image.format != "PNG"


def _decode(content, size, channels, halves):
    """The image as uint8 (channels, height, width). `halves` are scaled and cropped each by itself."""
    from PIL import ImageOps

    with _opened(io.BytesIO(content)) as opened:
        upright = ImageOps.exif_transpose(opened) if _turned(opened) else opened
        image = upright.convert("L" if channels == 1 else "RGB")
    width, height = image.size
    if halves:
        if width % 2:
            raise _Damage(f"is {width} pixels wide, which does not halve")
        parts = [image.crop((left, 0, left + width // 2, height)) for left in (0, width // 2)]
        pixels = np.concatenate([np.atleast_3d(_fit(part, size)) for part in parts], 1)
    else:
        pixels = np.atleast_3d(_fit(image, size))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _fit(image, size):
    if not size or image.size == (size, size):
        return np.asarray(image)
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))


class _Decoder:
    """The images of a source as arrays of one shape."""

    def __init__(self, source, shape, options, halves):
        self._source, self.shape, self._options, self._halves = source, shape, options, halves

    @cached_property
    def _pool(self):
        return ThreadPoolExecutor(self._options.threads, "decode")

    def map(self, function, items):
        """Results in the order of the items, of several threads. What a file is refused for comes as a `_Damage`."""

        def attempt(part):
            return [_caught(function, item) for item in part]

        at_once = max(1, min(AT_ONCE, len(items) // self._options.threads))
        parts = [items[i : i + at_once] for i in range(0, len(items), at_once)]
        return [result for part in self._pool.map(attempt, parts) for result in part]

    def decode_all(self, names, pixels):
        """Fill the first rows of `pixels` (where not None) with all images that are whole. Returns their names and the
        damages of the others by name."""

        def put(numbered):
            i, name = numbered
            image = self.decode(name)
            if pixels is not None:
                pixels[i] = image

        results = self.map(put, list(enumerate(names)))
        whole = [i for i, result in enumerate(results) if result is None]
        if pixels is not None and len(whole) < len(names):
            for row, i in enumerate(whole):
                pixels[row] = pixels[i]
        return [names[i] for i in whole], {name: result for name, result in zip(names, results) if result is not None}

    def header(self, name):
        try:
            with self._source.open(name) as file:
                return _header(file)
        except UNREADABLE as error:
            raise _unreadable(error) from error

    def decode(self, name):
        try:
            content = self._source.read(name)
        except UNREADABLE as error:
            raise _unreadable(error) from error
        pixels = _decode(content, self._options.size, self.shape[0], self._halves)
        if pixels.shape != self.shape:
            raise _Damage(f"has {_size(pixels.shape)} pixels, not {_size(self.shape)}")
        return pixels


def _unreadable(error):
    return _Damage(f"cannot be read ({reason(error)})")


def _caught(function, item):
    try:
        return function(item)
    except _Damage as damage:
        return damage


def _size(shape):
    return f"{shape[-2]}×{shape[-1]}"


# --- sets ---


class Files(DataSet):
    """Images that are decoded when they are fetched, by several threads."""

    def __init__(self, path, decoder, names, labels, classes, notes):
        super().__init__(str(path), decoder.shape, classes, notes=notes)
        self._path, self._decoder, self.names, self._labels = path, decoder, names, labels

    def __len__(self):
        return len(self.names)

    def fetch(self, indices):
        names = [self.names[i] for i in indices.tolist()]
        pixels = self._decoder.map(self._decoder.decode, names)
        for name, image in zip(names, pixels):
            if isinstance(image, _Damage):
                raise Error(f"{self._path / name} {image}.")
        batch = {"image": scaled(torch.from_numpy(np.stack(pixels)).to(self.device))}
        if self._labels is not None:
            batch["label"] = self._labels[indices].to(self.device)
        return batch


class Decoded(Tensors):
    """Images that have been decoded."""

    def __init__(self, path, pixels, names, labels, classes, notes):
        super().__init__(str(path), {"image": torch.from_numpy(pixels), "label": labels}, classes, notes=notes)
        self.names = names


class Mapped(Decoded):
    """The same in a file that is mapped into memory, and stays there: batches go to the device."""

    def fetch(self, indices):
        return {
            field: scaled(torch.from_numpy(values.numpy()[indices.numpy()]).to(self.device))
            for field, values in self._fields.items()
        }

    def to(self, device):
        return DataSet.to(self, device)


class SideBySide(DataSet):
    """Left halves as `a`, right halves as `b`."""

    def __init__(self, data):
        channels, height, width = data.shape
        super().__init__(data.name, (channels, height, width // 2), data.classes, data.split, data.notes)
        self._data = data

    def __len__(self):
        return len(self._data)

    def fetch(self, indices):
        batch = self._data.fetch(indices)
        a, b = batch.pop("image").chunk(2, 3)
        return {"a": a.contiguous(), "b": b.contiguous(), **batch}

    def to(self, device):
        self._data.to(device)
        return super().to(device)


def _open_paired(path, folders, options):
    a, b = (_open(folder, options) for folder in folders)
    numbers = [{name.rpartition(".")[0]: i for i, name in enumerate(data.names)} for data in (a, b)]
    alone = sorted(numbers[0].keys() ^ numbers[1].keys())
    notes = [*a.notes, *b.notes]
    if alone:
        said = f"{len(alone)} of the images in {path} have no partner of the same name, {alone[0]} being the first"
        if options.damaged == "refuse":
            raise Error(f"{said}; damaged=skip (--data-options damaged=skip) leaves them out.")
        notes.append(f"ganzoo: {said}; they are left out.")
    common = sorted(numbers[0].keys() & numbers[1].keys())
    if not common:
        raise Error(f"{path} has no two images of the same name in {folders[0].name} and {folders[1].name}.")
    if a.shape != b.shape:
        raise Error(
            f"{folders[0]} has images of {_size(a.shape)} pixels and {folders[1].name} of {_size(b.shape)}; size=… fits them."
        )
    subsets = [Subset(data, [number[stem] for stem in common]) for data, number in zip((a, b), numbers)]
    pairs = Paired(*subsets, name=str(path))
    pairs.notes = tuple(notes)
    return pairs


def _open(path, options, halves=False):
    """The set of one folder or zip."""
    source = _Folder(path) if path.is_dir() else _Zip(path)
    listing = [entry for entry in source.listing() if not _hidden(entry[0])]
    names = [name for name, *_ in listing if name.lower().endswith(ENDINGS)]
    if not names:
        raise Error(f"{path} has no images ({', '.join(ENDINGS)}).")
    pack = Pack((str(path.resolve()), listing, options, halves)) if options.store == "disk" else None
    if pack and (found := pack.open()):
        return _mapped(path, found, names, options)

    decoder, whole, damages = _survey(path, source, names, options, halves)
    store = options.store or ("memory" if len(whole) * math.prod(decoder.shape) <= MEMORY else "files")
    pixels = None
    if store != "files":
        pixels = (pack.create if pack else np.empty)((len(whole), *decoder.shape), np.uint8)
    if store != "files" or options.damaged == "skip":
        whole, broken = decoder.decode_all(whole, pixels)
        damages |= broken
    try:
        notes = _judge(path, names, whole, damages, options.damaged)
    except Error:
        if pack:
            pack.discard()
        raise
    other = [name for name, *_ in listing if not name.lower().endswith(ENDINGS)]
    if other:
        files = f"{len(other)} files that are" if len(other) > 1 else "a file that is"
        what = f"images, {other[0]} being the first" if len(other) > 1 else f"an image, {other[0]}"
        notes.append(f"ganzoo: {path} has {files} not {what}; left out.")
    if pack:
        return _mapped(path, pack.finish(pixels[: len(whole)], {"names": whole, "notes": notes}), names, options)
    labels, classes = _labels(path, names, whole, options)
    if store == "files":
        return Files(path, decoder, whole, labels, classes, notes)
    return Decoded(path, pixels[: len(whole)], whole, labels, classes, notes)


def _mapped(path, found, names, options):
    pixels, index = found
    return Mapped(path, pixels, index["names"], *_labels(path, names, index["names"], options), index["notes"])


def _hidden(name):
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _survey(path, source, names, options, halves):
    """The decoder for the shape that most images have, the names of those that have it by their headers, and the others
    with their damages."""
    scout = _Decoder(source, None, options, halves)
    headers = dict(zip(names, scout.map(scout.header, names)))
    damages = {name: header for name, header in headers.items() if isinstance(header, _Damage)}
    fit = {name: header for name, header in headers.items() if name not in damages}
    channels = options.channels or _most(header[2] for header in fit.values()) or 3
    if not options.channels:
        words = (
            "is grey among images in colour (channels=3 takes both)",
            "is in colour among grey images (channels=1 takes both)",
        )
        damages |= {name: _Damage(words[channels == 1]) for name, header in fit.items() if header[2] != channels}
        fit = {name: header for name, header in fit.items() if header[2] == channels}
    height = width = options.size
    sizes = Counter(header[:2] for header in fit.values())
    if not options.size and options.damaged == "refuse" and max(sizes.values(), default=0) < len(fit) / 2:
        raise Error(
            f"the images in {path} have {len(sizes)} sizes: size=64 (--data-options size=64) scales their shorter side "
            "and crops the centre."
        )
    if options.size:
        width *= 1 + halves
    else:
        height, width = _most(header[:2] for header in fit.values()) or (0, 0)
        for name, header in fit.items():
            if header[:2] != (height, width):
                said = f"has {_size(header[:2])} pixels among images of {_size((height, width))} (size=… scales all)"
                damages[name] = _Damage(said)
        fit = {name: header for name, header in fit.items() if name not in damages}
    return _Decoder(source, (channels, height, width), options, halves), list(fit), damages


def _most(values):
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else None


def _judge(path, names, whole, damages, policy):
    """The note on damaged images that are left out; raises where they are not to be, or nothing is left."""
    if not damages:
        return []
    first, others = min(damages), len(damages) - 1
    said = f"{len(damages)} of the {len(names)} images in {path} cannot be taken: {first} {damages[first]}"
    said += f", and {others} other{'s' * (others > 1)}" if others else ""
    if not whole:
        raise Error(f"{said}; none is left.")
    if policy == "refuse":
        raise Error(f"{said}; damaged=skip (--data-options damaged=skip) leaves them out.")
    return [f"ganzoo: {said}; left out."]


def _labels(path, names, whole, options):
    """The classes of the images `whole`, by the folders that all of `names` lie in or by the ages in their names, and how many there are."""
    if options.labels == "ages":
        return torch.bucketize(_ages(path, whole), torch.tensor(GROUPS), right=True), len(GROUPS) + 1
    parts = {name: name.split("/") for name in names}
    while len({part[0] for part in parts.values()}) == 1 and all(len(part) > 1 for part in parts.values()):
        parts = {name: part[1:] for name, part in parts.items()}
    if any(len(part) == 1 for part in parts.values()):
        return None, None
    numbers = {folder: number for number, folder in enumerate(sorted({part[0] for part in parts.values()}))}
    return torch.tensor([numbers[parts[name][0]] for name in whole]), len(numbers)


def _ages(path, names):
    """What each file's name begins with, up to the first _."""
    ages = [name.rpartition("/")[2].partition("_")[0] for name in names]
    for name, age in zip(names, ages):
        if not age.isdecimal():
            raise Error(f"labels=ages takes ages from names such as 25_0_2_20170116.jpg, and {path} has {name}.")
    return torch.tensor([int(age) for age in ages])
