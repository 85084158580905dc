"""Decoded images as one file of bytes that is mapped into memory, beside an index that says what is in it."""

import hashlib
import json
import os

import numpy as np

from ganzoo.files import cache_folder, write_atomically


class Pack:
    """The pack of one set of files and options; `key` is anything that decides what would be in it."""

    def __init__(self, key):
        self._path = cache_folder("packed") / hashlib.sha256(repr(key).encode()).hexdigest()[:32]
        self._pixels, self._index = self._path.with_suffix(".u8"), self._path.with_suffix(".json")
        self._beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")

    def open(self):
        """The pixels (N, C, H, W) and the index, or None where there is no whole pack."""
        try:
            index = json.loads(self._index.read_text())
            return np.memmap(self._pixels, np.uint8, "c", shape=tuple(index["shape"])), index
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def create(self, shape, dtype):
        """Pixels to fill, in a file that is not yet the pack."""
        return np.memmap(self._beside, dtype, "w+", shape=shape)

    def finish(self, pixels, index):
        """Make the filled pixels the pack: all or nothing, the index last. Returns what `open` does."""
        pixels.flush()
        os.truncate(self._beside, pixels.size)
        os.replace(self._beside, self._pixels)
        write_atomically(self._index, json.dumps({**index, "shape": pixels.shape}).encode())
        return self.open()

    def discard(self):
        self._beside.unlink(missing_ok=True)
