"""Types that say which values an option may take, and the check that every dataclass of options runs.

With these, `Options(steps=0).check()` raises "ganzoo: steps must be at least 1, got 0.":

    @dataclass
    class Options(Checked):
        steps: Count = 100
        lr: Positive = 1e-4
"""

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

from ganzoo.errors import ArgumentError, Error


@dataclasses.dataclass(frozen=True)
class Range:
    """What a value must satisfy, as a predicate and as the words that follow "must be"."""

    holds: Callable[[Any], bool]
    words: str


def _is_decay(value):
    return 0 <= value < 1


Count = Annotated[int, Range(lambda value: value >= 1, "at least 1")]
CountOrZero = Annotated[int, Range(lambda value: value >= 0, "at least 0")]
Positive = Annotated[float, Range(lambda value: 0 < value < math.inf, "a finite number above 0")]
NotNegative = Annotated[float, Range(lambda value: 0 <= value < math.inf, "a finite number of at least 0")]
Finite = Annotated[float, Range(math.isfinite, "a finite number")]
Decay = Annotated[float, Range(_is_decay, "at least 0 and below 1")]
Share = Annotated[float, Range(lambda value: 0 <= value <= 1, "from 0 to 1")]
Betas = Annotated[
    tuple[float, float], Range(lambda pair: all(map(_is_decay, pair)), "two numbers, each at least 0 and below 1")
]

_NOUNS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple[str, ...]: "a list of texts",
}


def _has_type(value, kind):
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if kinds[-1] is ...:
            return isinstance(value, (tuple, list)) and all(_has_type(item, kinds[0]) for item in value)
        return isinstance(value, (tuple, list)) and len(value) == len(kinds) and all(map(_has_type, value, kinds))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


class Checked:
    """Base of the dataclasses whose fields are annotated with the types of this module."""

    def check(self):
        """Raise `ArgumentError` for the first field whose type or value is not allowed."""
        hints = typing.get_type_hints(type(self), include_extras=True)
        for name in (field.name for field in dataclasses.fields(self)):
            hint = hints[name]
            kind, *constraints = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
            check_value(name, getattr(self, name), kind, [c for c in constraints if isinstance(c, Range)])


def check_options(name, options, known):
    """Raise `Error` for an option that is not among those `known` of what has this name."""
    for option in options:
        if option not in known:
            raise Error(f"{name} has no option {option}; its options are {', '.join(known) or 'none'}.")


def check_value(name, value, kind, ranges=()):
    """Raise `ArgumentError` for a value that is not of a kind or not in all of the ranges."""
    if not _has_type(value, kind):
        if typing.get_origin(kind) is Literal:
            raise ArgumentError(name, f"one of {', '.join(typing.get_args(kind))}", repr(value))
        raise ArgumentError(name, _NOUNS[kind] if kind in _NOUNS else ranges[0].words, repr(value))
    for allowed in ranges:
        if not allowed.holds(value):
            raise ArgumentError(name, allowed.words, value)
