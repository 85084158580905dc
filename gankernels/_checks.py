"""One-sentence checks, made before anything is computed or modified."""

from __future__ import annotations

import math

import torch

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def shape(t: torch.Tensor) -> str:
    return str(tuple(t.shape))


def got(value) -> str:
    """A value as it reads in an error: tensors and what else has no short form by their type."""
    text = "" if isinstance(value, torch.Tensor) else repr(value)
    return text if 0 < len(text) <= 60 and "tensor(" not in text else type(value).__name__


def check_tensor(op: str, name: str, value) -> None:
    """A floating-point tensor of a dtype the kernels know."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"gankernels.{op}: {name} must be a tensor, got {type(value).__name__}.")
    if value.dtype not in FLOATING:
        raise TypeError(
            f"gankernels.{op}: {name} must be float64, float32, bfloat16 or float16, got {str(value.dtype)[6:]}."
        )


def check_batch(op: str, name: str, value) -> None:
    check_tensor(op, name, value)
    if value.dim() < 1 or value.shape[0] < 1:
        raise ValueError(f"gankernels.{op}: {name} must have shape (N, ...) with N >= 1, got {shape(value)}.")


def check_like(op: str, name: str, value, like_name: str, like: torch.Tensor) -> None:
    """Same shape, dtype and device as another argument."""
    check_tensor(op, name, value)
    if value.shape != like.shape:
        raise ValueError(
            f"gankernels.{op}: {name} must have the shape of {like_name}, {shape(like)}, got {shape(value)}."
        )
    if value.dtype != like.dtype:
        raise TypeError(
            f"gankernels.{op}: {name} must have the dtype of {like_name}, {str(like.dtype)[6:]}, got {str(value.dtype)[6:]}."
        )
    if value.device != like.device:
        raise ValueError(
            f"gankernels.{op}: {name} must be on the device of {like_name}, {like.device}, got {value.device}."
        )


def check_integer(op: str, name: str, value, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"gankernels.{op}: {name} must be an integer >= {minimum}, got {got(value)}.")


def check_flags(op: str, **flags) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"gankernels.{op}: {name} must be True or False, got {type(value).__name__}.")


def check_generator(op: str, value) -> None:
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"gankernels.{op}: generator must be a torch.Generator or None, got {type(value).__name__}.")


def check_callable(op: str, name: str, value, args, kwargs) -> None:
    """A callable and what it gets after its first argument, <name>_args and <name>_kwargs."""
    if not callable(value):
        raise TypeError(f"gankernels.{op}: {name} must be a callable, got {type(value).__name__}.")
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"gankernels.{op}: {name}_args must be a tuple or list, got {type(args).__name__}.")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise TypeError(f"gankernels.{op}: {name}_kwargs must be a dict or None, got {type(kwargs).__name__}.")


def check_number(op: str, name: str, value, minimum: float = -math.inf, *, above: bool = False) -> None:
    """A finite Python number, >= minimum (or > minimum with `above`)."""
    bound = "a finite number" if minimum == -math.inf else f"a finite number {'>' if above else '>='} {minimum:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"gankernels.{op}: {name} must be {bound}, got {type(value).__name__}.")
    # comparisons rather than math.isfinite, which torch.compile cannot trace for a number it treats as an input
    if not -math.inf < value < math.inf or value < minimum or (above and value == minimum):
        raise ValueError(f"gankernels.{op}: {name} must be {bound}, got {value}.")
