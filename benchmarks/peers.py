"""Public code to compare with, from checkouts named on the command line: `pytest benchmarks --peer stylegan3=PATH`.

Nothing of a peer is part of this repository. An entry of the op suite says under `peers` how a peer's modules are called with the
op's arguments.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType

# peer -> the module of its checkout that has the ops
MODULES = {"stylegan3": "torch_utils.ops"}
CHECKOUTS: dict[str, str] = {}


def add(option: str):
    """`NAME=PATH` of the command line."""
    name, _, path = option.partition("=")
    if name not in MODULES or not path:
        raise ValueError(f"--peer must be NAME=PATH with NAME one of {', '.join(MODULES)}, got {option!r}.")
    CHECKOUTS[name] = path


@functools.cache
def module(name: str) -> ModuleType:
    sys.path.insert(0, CHECKOUTS[name])
    try:
        return importlib.import_module(MODULES[name])
    finally:
        sys.path.pop(0)


def names(spec) -> list[str]:
    """The peers that have this op and are here."""
    return [name for name in spec.peers if name in CHECKOUTS]


def form(spec, name: str):
    """The peer's form of the op."""
    return functools.partial(spec.peers[name], module(name))
