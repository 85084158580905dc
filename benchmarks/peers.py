"""Public code to compare with: installed packages, and checkouts named on the command line, `pytest benchmarks --peer stylegan3=PATH`.

Nothing of a peer is part of this repository. An entry of the op suite names, under `peers`, the module and the function of a peer, and
how it is called with the op's arguments.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys

KNOWN = ("stylegan3", "mmcv")
CHECKOUTS: dict[str, str] = {}


def add(option: str):
    """`NAME=PATH` of the command line."""
    name, _, path = option.partition("=")
    if name not in KNOWN or not path:
        raise ValueError(f"--peer must be NAME=PATH with NAME one of {', '.join(KNOWN)}, got {option!r}.")
    CHECKOUTS[name] = path


def names(spec) -> list[str]:
    """The peers that have this op and are here."""
    return [name for name in spec.peers if name in CHECKOUTS or importlib.util.find_spec(name) is not None]


def form(spec, name: str):
    """The peer's form of the op."""
    module, function, call = spec.peers[name]
    path = [CHECKOUTS[name]] if name in CHECKOUTS else []
    sys.path[:0] = path
    try:
        return functools.partial(call, getattr(importlib.import_module(module), function))
    finally:
        del sys.path[: len(path)]
