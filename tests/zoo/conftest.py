import dataclasses
import importlib.util
import os
import subprocess
import sys
import traceback

import ganzoo
import pytest
import torch
from ganzoo.variants import create, variant_class

# the command line's own library may be missing beside a PyTorch that is only there to compute
collect_ignore = [] if importlib.util.find_spec("tyro") else ["test_kill.py", "test_own_variant.py", "test_run.py"]

TINY = {
    "gan": dict(width=4),
    "cgan": dict(width=4),
    "acgan": dict(width=4),
    "infogan": dict(width=4),
    "text-to-image": dict(width=4, code=4),
    "face-aging": dict(width=4),
    "wgan": dict(width=4, long_critic_steps=7, long_first=1, long_every=4),
    "wgan-gp": dict(width=4),
    "wgan-lp": dict(width=4),
    "sngan": dict(width=4),
    "r3gan": dict(width=4),
    "lsgan": dict(width=4),
    "hinge": dict(width=4),
    "dragan": dict(width=4),
    "unrolled": dict(width=4, unrolling=2),
    "ebgan": dict(width=4),
    "began": dict(width=4),
    "reg-gan": dict(width=4),
    "mdgan": dict(width=4),
    "loss-sensitive": dict(width=4),
    "pix2pix": dict(width=2),
    "sagan": dict(width=4),
    "biggan": dict(width=4),
    "stylegan": dict(width=4, depth=2, phase_steps=2, fade_steps=3),
    "stylegan2": dict(width=4, depth=2, r1_every=2, path_length_every=2),
    "stylegan3": dict(width=2, convolutions=3, margin=4, r1_every=2),
    "stylegan-t": dict(width=4, depth=2, code=4, patch=4, tokens=8, pretraining=2),
    "vae": dict(width=4),
    "aae": dict(width=4),
    "bigan": dict(width=4),
    "vae-gan": dict(width=4),
    "cyclegan": dict(width=2, blocks=1, batch=4),
    "srgan": dict(width=2, blocks=1, pretraining=2, doublings=1),
    "pacgan": dict(width=4),
    "gman": dict(width=4, discriminators=2),
    "d2gan": dict(width=4),
    "mgan": dict(width=4, generators=3),
    "mad-gan": dict(width=4, generators=3),
    "lapgan": dict(width=1, doublings=1),
    "cogan": dict(width=2),
    "singan": dict(width=2, ema=0.5, scales=2, steps_per_scale=2, size=24, rounds=1, batch=1),
    "fashion-gan": dict(width=1),
    "rnn-gan": dict(width=4),
}
"""Options that make each variant quick, and visit both phases of WGAN's schedule, and of StyleGAN's growing, within a few steps."""

DATA = {
    "pix2pix": ("glyphs", "form=paired", "size=16"),
    "biggan": ("digits",),
    "cyclegan": ("glyphs", "form=unpaired", "size=16"),
    "srgan": ("digits",),
    "lapgan": ("photos", "size=16", "photo=flower"),
    "cogan": ("glyphs", "form=unpaired", "size=16"),
    "stylegan-t": ("captioned-digits",),
    "text-to-image": ("captioned-digits",),
    "singan": ("photos", "size=0", "photo=flower"),
    "fashion-gan": ("glyphs", "size=32"),
    "rnn-gan": ("sines", "length=12", "n=1000"),
}
"""What those train on for which digits' images alone will not do: a word and options, as on the command line."""
IMAGES_ONLY = {
    "pix2pix",
    "sagan",
    "biggan",
    "stylegan",
    "stylegan2",
    "stylegan3",
    "stylegan-t",
    "cyclegan",
    "srgan",
    "lapgan",
    "cogan",
    "text-to-image",
    "singan",
    "fashion-gan",
    "rnn-gan",
}
"""Those that points in the plane are nothing for, or have no captions."""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def images():
    """Digits with their labels, for games with a condition too."""
    return ganzoo.data.open("digits")


def small_options(name):
    """Options of a variant that make it quick."""
    known = {field.name for field in dataclasses.fields(variant_class(name))}
    sizes = {"latent": 8, "batch": 16, **TINY[name]}
    return {option: value for option, value in sizes.items() if option in known}


@pytest.fixture(params=sorted(TINY))
def tiny(request):
    """Each variant in turn, small."""
    return create(request.param, **small_options(request.param))


@pytest.fixture
def tiny_data(tiny, images):
    """What the variant in turn trains on."""
    if tiny.name not in DATA:
        return images
    word, *options = DATA[tiny.name]
    return ganzoo.data.open(word, **dict(option.split("=") for option in options))


@pytest.fixture(scope="session")
def python():
    """Starts another Python with this one's import path; returns the process."""

    def start(*arguments, **options):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    return start


@pytest.fixture
def forked(tmp_path_factory):
    """Runs a function in a fork of this process, in which PyTorch is there already; returns its exit status, stdout and stderr."""
    folder = tmp_path_factory.mktemp("forked")

    def run(function):
        child = os.fork()
        if child == 0:
            status = 1
            with open(folder / "out", "w") as sys.stdout, open(folder / "err", "w") as sys.stderr:
                try:
                    function()
                    status = 0
                except SystemExit as ending:
                    status = ending.code or 0
                except BaseException:
                    traceback.print_exc()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status, (folder / "out").read_text(), (folder / "err").read_text()

    return run


@pytest.fixture
def forked_command(forked, monkeypatch):
    """Runs the command line in a fork; returns its stdout."""

    def run(*arguments):
        from ganzoo import cli

        monkeypatch.setattr(sys, "argv", ["ganzoo", *map(str, arguments)])
        status, out, errors = forked(cli.main)
        assert status == 0, errors
        return out

    return run


def same(first, second):
    """Whether two nests of dicts, lists and tensors are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second
