"""What every source of data gives: samples by number, as batches of float tensors."""

import hashlib

import torch

from ganzoo.errors import ArgumentError


class DataSet:
    """Samples that are fetched by their numbers.

    `name` is what it was opened as, `split` which part of the source it is ("all" where the source has no parts), `shape`
    the shape of one sample's main field, `classes` the number of classes or None, and `notes` sentences on what was
    left out when it was opened. Captioned sets have a `vocabulary`, the words by their numbers, of which 0 is none.
    """

    vocabulary = ()

    def __init__(self, name, shape, classes=None, split="all", notes=()):
        self.name, self.shape, self.classes, self.split, self.notes = name, tuple(shape), classes, split, tuple(notes)
        self.device = torch.device("cpu")

    def __len__(self):
        raise NotImplementedError

    def fetch(self, indices):
        """The samples of these numbers, an int64 tensor (B,) on the CPU, as a dict of tensors on the set's device.

        Images are `image` (B, C, H, W), float32 in [−1, 1], 2-D points `image` (B, 2), sequences `image` (B, T, C); classes are `label` (B,), int64;
        pairs are `a` and `b` in place of `image`; captions are `caption` (B, T), int64.
        """
        raise NotImplementedError

    def to(self, device):
        """Fetch to this device from now on; sets that live in memory move there as a whole. Returns the set."""
        self.device = torch.device(device)
        return self


class Tensors(DataSet):
    """Fields that live in memory, on the device: uint8 pixels in 0 ... 255, which `fetch` scales to [−1, 1]; float fields and
    int64 labels, which it gives as they are."""

    def __init__(self, name, fields, classes=None, split="all", notes=()):
        self._fields = {field: values for field, values in fields.items() if values is not None}
        super().__init__(name, next(iter(self._fields.values())).shape[1:], classes, split, notes)

    def __len__(self):
        return len(next(iter(self._fields.values())))

    def fetch(self, indices):
        indices = indices.to(self.device)
        return {field: scaled(values[indices]) for field, values in self._fields.items()}

    def to(self, device):
        self._fields = {field: values.to(device) for field, values in self._fields.items()}
        return super().to(device)


class Subset(DataSet):
    """The samples of another set with these numbers, in this order."""

    def __init__(self, data, indices, split=None, notes=None):
        super().__init__(
            data.name, data.shape, data.classes, split or data.split, data.notes if notes is None else notes
        )
        self.vocabulary = data.vocabulary
        self._data, self._indices, self.device = data, torch.as_tensor(indices, dtype=torch.int64), data.device

    def __len__(self):
        return len(self._indices)

    def fetch(self, indices):
        return self._data.fetch(self._indices[indices])

    def to(self, device):
        self._data.to(device)
        return super().to(device)


class Paired(DataSet):
    """Two sets of equal length as the fields `a` and `b`."""

    def __init__(self, a, b, name):
        super().__init__(name, a.shape, a.classes, a.split, dict.fromkeys([*a.notes, *b.notes]))
        self._a, self._b = a, b

    def __len__(self):
        return len(self._a)

    def fetch(self, indices):
        a, b = self._a.fetch(indices), self._b.fetch(indices)
        return {"a": a.pop("image"), "b": b["image"], **a}

    def to(self, device):
        self._a.to(device), self._b.to(device)
        return super().to(device)


def scaled(values):
    """uint8 pixels as float32 in [−1, 1]: x/127.5 − 1. Other tensors as they are."""
    return values.to(torch.float32).div_(127.5).sub_(1) if values.dtype == torch.uint8 else values


def numbered(captions, vocabulary, length):
    """Texts as a field `caption` (N, length): the numbers of their words in the vocabulary, then zeros."""
    numbers = {word: number for number, word in enumerate(vocabulary)}
    rows = torch.zeros(len(captions), length, dtype=torch.int64)
    for row, caption in zip(rows, captions):
        words = caption.lower().split()
        if not (0 < len(words) <= length and numbers.keys() >= set(words)):
            known = ", ".join(vocabulary[1:])
            raise ArgumentError("captions", f"from one to {length} of the words {known}", repr(caption))
        row[: len(words)] = torch.tensor([numbers[word] for word in words])
    return rows


def fingerprint(data):
    """A hash of all samples of a set, of its name and its split, in one pass over it."""
    total = hashlib.sha256(repr((data.name, data.split, len(data), data.shape)).encode())
    for part in torch.arange(len(data)).split(1024):
        for values in data.fetch(part).values():
            total.update(values.cpu().numpy().tobytes())
    return total.hexdigest()
