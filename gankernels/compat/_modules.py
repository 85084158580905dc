"""What the shims share: modules under a chosen name, and convolutions whose behaviour module globals switch."""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType

import torch
import torch.nn.functional as F

from ..ops.fast_double_backward import fast_double_backward


def package(name: str) -> ModuleType:
    """The package of this name: the one that is importable, else an empty one, parents included."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and misses something else
    made = ModuleType(name)
    made.__path__ = []
    return put(made)


def put(module: ModuleType) -> ModuleType:
    """Makes `import <its name>` find the module."""
    parent, _, own = module.__name__.rpartition(".")
    if parent:
        setattr(package(parent), own, module)
    sys.modules[module.__name__] = module
    return module


def module(name: str, names: dict) -> ModuleType:
    """A module of these names."""
    made = ModuleType(name)
    vars(made).update(names)
    return made


def number(value) -> float | None:
    """What those code bases put through float(): numpy's numbers and tensors of one element too."""
    return None if value is None else float(value)


class Conv2dGradfix(ModuleType):
    """`enabled` and `weight_gradients_disabled` are globals that users assign.

    enabled: convolutions with exact double backward at its minimum; else stock's.
    weight_gradients_disabled: while True, those convolutions compute no gradient of a weight in backward.
    """

    def __init__(self, name: str, enabled: bool) -> None:
        super().__init__(name)
        self.enabled = enabled
        self._disabled = False

    @property
    def weight_gradients_disabled(self) -> bool:
        return self._disabled

    @weight_gradients_disabled.setter
    def weight_gradients_disabled(self, value: bool) -> None:
        if bool(value) != self._disabled:
            torch.ops.gankernels.disable_weight_gradients(1 if value else -1)
            self._disabled = bool(value)

    @contextlib.contextmanager
    def no_weight_gradients(self, disable: bool = True):
        before = self.weight_gradients_disabled
        if disable:
            self.weight_gradients_disabled = True
        try:
            yield
        finally:
            self.weight_gradients_disabled = before

    def _routed(self):
        return fast_double_backward() if self.enabled else contextlib.nullcontext()

    def conv2d(self, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        with self._routed():
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups)

    def conv_transpose2d(self, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        with self._routed():
            return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
