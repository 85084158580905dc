"""One file per op or family of ops; the op suite and the benchmarks find it by itself.

SPECS      the entries of the op suite, one for each schema
FAMILY     the file of each entry, by its name
LAUNCHERS  Triton launchers by the name their specs begin with; they run interpreted
KERNELS    Triton kernels by name; they are compiled ahead of time
"""

from importlib import import_module
from pkgutil import iter_modules

from .spec import INT, TOLERANCE, Kernel, Spec

SPECS: list[Spec] = []
FAMILY: dict[str, str] = {}
LAUNCHERS: dict = {}
KERNELS: dict[str, Kernel] = {}
for _module in sorted(module.name for module in iter_modules(__path__) if module.name != "spec"):
    _family = import_module(f"{__name__}.{_module}")
    SPECS += _family.SPECS
    FAMILY |= {spec.name: _module for spec in _family.SPECS}
    LAUNCHERS |= getattr(_family, "LAUNCHERS", {})
    KERNELS |= getattr(_family, "KERNELS", {})

__all__ = ["FAMILY", "INT", "KERNELS", "LAUNCHERS", "SPECS", "TOLERANCE", "Kernel", "Spec"]
