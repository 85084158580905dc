"""CIFAR-10's files, the python and the binary version, in their folder or still in the .tar.gz they come in.

Format: https://www.cs.toronto.edu/~kriz/cifar.html. The python version consists of pickles, which can run code when they
are loaded; here they are read by an unpickler that knows byte strings, lists, dicts and numbers, and numpy's arrays of
bytes as plain data, and refuses everything else.
"""

import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ganzoo.data.base import Tensors
from ganzoo.errors import Error, reason

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
EACH = 10_000
"""Images in each of the files."""
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def is_cifar10(path):
    return path.name.endswith((".tar.gz", ".tgz")) or _batches_folder(path) is not None


def open_cifar10(path, *, split: Literal["train", "test"] = "train"):
    """CIFAR-10 from the folder of its five training batches and its test batch, or from its .tar.gz."""
    path = Path(path)
    files = _from_archive(path, split) if path.is_file() else _from_folder(path, split)
    parts = [_parse(name, content) for name, content in files.items()]
    images = torch.from_numpy(np.concatenate([images for images, _ in parts]))
    labels = torch.from_numpy(np.concatenate([labels for _, labels in parts]))
    whole, notes = EACH * len(files), []
    if len(images) != whole:  # a file cut between two records looks like one that never had more
        notes = [f"ganzoo: {path} has {len(images):,} {split} images, and CIFAR-10 has {whole:,}."]
    return Tensors(str(path), {"image": images, "label": labels}, 10, split, notes)


def _batches_folder(path):
    for folder in (path, path / "cifar-10-batches-py", path / "cifar-10-batches-bin"):
        for names in BATCHES.values():
            if any((folder / (name + ending)).exists() for name in names for ending in ("", ".bin")):
                return folder
    return None


def _from_folder(path, split):
    folder, files = _batches_folder(path), {}
    for name in BATCHES[split]:
        found = [folder / (name + ending) for ending in ("", ".bin") if (folder / (name + ending)).exists()]
        if not found:
            raise Error(
                f"{folder} has no {name} or {name}.bin, one of the {len(BATCHES[split])} files of CIFAR-10's {split} images."
            )
        files[found[0]] = found[0].read_bytes()
    return files


def _from_archive(path, split):
    files = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and name.removesuffix(".bin") in BATCHES[split]:
                    files[name] = archive.extractfile(member).read()
            while archive.fileobj.read(2**20):  # to the end, where the checksum is
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise Error(f"{path} is not a whole .tar.gz file ({reason(error)}).") from error
    missing = sorted({*BATCHES[split]} - {name.removesuffix(".bin") for name in files})
    if missing:
        raise Error(f"{path} has no {missing[0]}, one of the {len(BATCHES[split])} files of CIFAR-10's {split} images.")
    return {f"{path}:{name}": files[name] for name in sorted(files)}


def _parse(name, content):
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of one batch."""
    if not content:
        raise Error(f"{name} is empty.")
    pixels, labels = _parse_binary(name, content) if str(name).endswith(".bin") else _parse_pickle(name, content)
    if labels.size and not 0 <= labels.min() <= labels.max() <= 9:
        raise Error(f"{name} has the label {labels.max()}, and CIFAR-10's are 0 to 9.")
    return pixels.reshape(-1, *SHAPE), labels


def _parse_binary(name, content):
    if len(content) % (1 + PIXELS):
        raise Error(f"{name} must be records of {1 + PIXELS} bytes, and has {len(content)} bytes.")
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _parse_pickle(name, content):
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise Error(f"{name} is not a batch of CIFAR-10 ({reason(error)}).") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise Error(f"{name} is damaged: its pickle cannot be read ({type(error).__name__}).") from error
    data, labels = (batch.get(b"data"), batch.get(b"labels")) if isinstance(batch, dict) else (None, None)
    pixels = data.pixels() if isinstance(data, _Array) else None
    if pixels is None or not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise Error(
            f"{name} is not a batch of CIFAR-10: it must be a dict of data, rows of {PIXELS} bytes, and labels."
        )
    if len(labels) != len(pixels):
        raise Error(f"{name} has {len(labels)} labels for {len(pixels)} images.")
    return pixels, np.array(labels, np.int64)


class _Array:
    """Stands in for numpy's array while unpickling, so that nothing of numpy runs on what the file says."""

    state = None

    def __setstate__(self, state):
        self.state = state

    def pixels(self):
        """The rows, or None where the state is not that of such an array."""
        try:
            _, shape, dtype, fortran, content = self.state
            whole = len(shape) == 2 and shape[1] == PIXELS and len(content) == shape[0] * PIXELS
            if dtype.code in ("u1", b"u1") and not fortran and isinstance(content, bytes) and whole:
                return np.frombuffer(content, np.uint8).reshape(-1, PIXELS)
        except (TypeError, ValueError, AttributeError):
            pass
        return None


class _DType:
    def __init__(self, code, *_):
        self.code = code

    def __setstate__(self, state):
        pass


class _Unpickler(pickle.Unpickler):
    STAND_INS = {
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # how Python 3 writes bytes in protocol 2
    }

    def find_class(self, module, name):
        if (module, name) not in self.STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return self.STAND_INS[module, name]
