"""Sources of data: images in [−1, 1], points in the plane, sequences, pairs and domains, from one word or path each.

    data = ganzoo.data.open("digits", split="train")
    batch = data.fetch(torch.arange(64))    # {"image": (64, 1, 8, 8), "label": (64,)}

A set is a `DataSet`: `len(data)`, `data.fetch(indices)`, `data.shape`, `data.classes`, `data.name`, `data.split`,
`data.to(device)`. Unpaired domains are a dict of two sets, `a` and `b`.
"""

import inspect
import sys
import typing
from pathlib import Path

from ganzoo.data.base import DataSet, Paired, Subset, Tensors
from ganzoo.data.captioned_digits import open_captioned_digits
from ganzoo.data.cifar10 import is_cifar10, open_cifar10
from ganzoo.data.digits import open_digits
from ganzoo.data.folder import open_images
from ganzoo.data.glyphs import open_glyphs
from ganzoo.data.idx import is_idx, open_idx
from ganzoo.data.photos import open_photos
from ganzoo.data.stacked_digits import open_stacked_digits
from ganzoo.data.toys import open_grid, open_parallel_lines, open_ring, open_sines, open_swiss_roll
from ganzoo.errors import ArgumentError, Error
from ganzoo.options import check_options, check_value

__all__ = ["DataSet", "Paired", "SOURCES", "Subset", "Tensors", "open"]

SOURCES = {
    "digits": open_digits,
    "captioned-digits": open_captioned_digits,
    "ring": open_ring,
    "grid": open_grid,
    "swiss-roll": open_swiss_roll,
    "parallel-lines": open_parallel_lines,
    "sines": open_sines,
    "stacked-digits": open_stacked_digits,
    "photos": open_photos,
    "glyphs": open_glyphs,
}
"""What opens each word of the command line; its keyword arguments are the source's options."""


def open(spec, **options):
    """The data that a word of the command line stands for, or that lie at a path: IDX files, CIFAR-10's files, a folder or
    zip of images.

    Options are those of the source, as Python values or as text ("size=32" on the command line arrives as "32"). What was
    left out, such as damaged files the options say to skip, is told in one line on stderr and in `data.notes`.

    Raises `Error` for a word, path, option or file that cannot be used, in one sentence.
    """
    source, path = SOURCES.get(spec), Path(spec)
    if source is None and not path.exists():
        words = ", ".join(SOURCES)
        raise ArgumentError(
            "data", f"one of {words}, or the path of IDX files, CIFAR-10's files, a folder or zip of images", repr(spec)
        )
    arguments = [path] if source is None else []
    source = source or _source_of(path)
    hints = typing.get_type_hints(source, include_extras=True)
    check_options(spec, options, hints)
    try:
        converted = {option: _converted(option, value, hints[option]) for option, value in options.items()}
        data = source(*arguments, **converted)
    except ArgumentError as error:
        raise Error(f"the option {error.argument} of {spec} must be {error.expectation}, got {error.got}.") from error
    except OSError as error:
        raise Error(f"{error.filename or spec} cannot be read: {error.strerror or error}.") from error
    sets = data.values() if isinstance(data, dict) else [data]
    for note in dict.fromkeys(note for part in sets for note in part.notes):
        print(note, file=sys.stderr)
    return data


def source_options(spec):
    """The options of a word or path with their defaults."""
    source = SOURCES.get(spec) or _source_of(Path(spec))
    keywords = [p for p in inspect.signature(source).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {p.name: p.default for p in keywords}


def _source_of(path):
    if is_idx(path):
        return open_idx
    return open_cifar10 if is_cifar10(path) else open_images


def _converted(option, value, hint):
    """The value as what the hint says: int, float, str, one of those with a `Range`, or a Literal."""
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    kind, *ranges = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    kind = type(choices[0]) if choices else kind
    if isinstance(value, str):
        try:
            value = kind(value)
        except ValueError:
            pass
    check_value(option, value, kind, ranges)
    if choices and value not in choices:
        named = [str(choice) for choice in choices if choice != ""]
        raise ArgumentError(option, f"one of {', '.join(named)}", repr(value))
    return value
