"""Public code to compare with, from checkouts named on the command line: `pytest benchmarks --peer stylegan3=PATH`.

Nothing of a peer is part of this repository. An entry of the op suite names, under `peers`, the module and the function of a peer that
take the op's arguments, and what it wants beyond them.
"""

from __future__ import annotations

import functools
import importlib
import sys

KNOWN = ("stylegan3",)
CHECKOUTS: dict[str, str] = {}


def add(option: str):
    """`NAME=PATH` of the command line."""
    name, _, path = option.partition("=")
    if name not in KNOWN or not path:
        raise ValueError(f"--peer must be NAME=PATH with NAME one of {', '.join(KNOWN)}, got {option!r}.")
    CHECKOUTS[name] = path


def names(spec) -> list[str]:
    """The peers that have this op and are here."""
    return [name for name in spec.peers if name in CHECKOUTS]


def form(spec, name: str):
    """The peer's form of the op."""
    module, function, more = spec.peers[name]
    sys.path.insert(0, CHECKOUTS[name])
    try:
        return functools.partial(getattr(importlib.import_module(module), function), **more)
    finally:
        sys.path.pop(0)
