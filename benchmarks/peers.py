"""Public code to compare with: packages that are installed, and checkouts named on the command line,

    pip install kornia && pytest benchmarks/test_ops.py -k upfirdn2d_blur
    pytest benchmarks/test_spectral_norm.py --peer biggan=PATH      (git clone https://github.com/ajbrock/BigGAN-PyTorch PATH)

Nothing of a peer is part of this repository. An entry of the op suite names, under `peers`, the module and the function of a peer, and
how it is called with the op's arguments. A peer that is here but cannot be imported, because its kernels do not compile on this
machine for one, is left out, and the end of the run says why. One whose result is wrong is red.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

# name -> where it is from
KNOWN = {
    "biggan": "github.com/ajbrock/BigGAN-PyTorch",
    "kornia": "pip install kornia",
    "mmcv": "pip install mmcv",
    "rosinality": "github.com/rosinality/stylegan2-pytorch",
    "stylegan3": "github.com/NVlabs/stylegan3",
}
CHECKOUTS: dict[str, str] = {}
LEFT_OUT: dict[str, str] = {}  # name -> why


def add(option: str):
    """`NAME=PATH` of the command line."""
    name, _, path = option.partition("=")
    if name not in KNOWN or not Path(path).is_dir() or not path:
        raise ValueError(f"--peer must be NAME=PATH, NAME one of {', '.join(KNOWN)} and PATH a folder, got {option!r}.")
    CHECKOUTS[name] = str(Path(path).resolve())


@functools.cache
def find(name: str, module: str, attribute: str) -> Callable | None:
    """The function or class of a peer; None when the peer is not here or cannot be imported."""
    path = [CHECKOUTS[name]] if name in CHECKOUTS else []
    if not path and importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    sys.path[:0] = path
    try:
        found = importlib.import_module(module)
        if path and not Path(found.__file__).is_relative_to(path[0]):
            raise ImportError(f"{module} is taken already, by {found.__file__}")
        return getattr(found, attribute)
    except Exception as error:
        LEFT_OUT.setdefault(name, f"{type(error).__name__}: {error}".splitlines()[0])
        return None
    finally:
        del sys.path[: len(path)]


def names(peers: dict[str, tuple[str, str, Callable]]) -> list[str]:
    """Of an entry's peers, those that are here."""
    return [name for name, (module, attribute, _) in peers.items() if find(name, module, attribute)]


def forms(peers: dict[str, tuple[str, str, Callable]]) -> dict[str, Callable]:
    """The peers' forms of the op."""
    return {name: functools.partial(peers[name][2], find(name, *peers[name][:2])) for name in names(peers)}
