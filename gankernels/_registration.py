"""The one helper by which ops register.

Schemas and CPU kernels come with the extension `_C`; a CUDA kernel comes with it too, or is a Triton launcher passed here.
Everything else about an op (its fake, its derivative, to which order it goes) is said in one call of `register`, in its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Op:
    """One row of `python -m gankernels`."""

    name: str
    differentiable: bool  # has a derivative; its derivative's own row says whether that has one
    cpu: str
    cuda: str

    @property
    def orders(self) -> str:
        """To which order it differentiates: `x_bwd` serves the derivative of `x`; stock ops or an op of the chain, any further."""
        order, op = 0, self
        while op is not None and op.differentiable:
            order, op = order + 1, OPS.get(f"{op.name}_bwd")
        return "any" if op is None else str(order) if order else "-"


OPS: dict[str, Op] = {}


def load_library() -> None:
    """Loads the kernels (`_C`, stable ABI) and the autograd nodes (`_autograd`, tied to one PyTorch)."""
    folder = Path(__file__).parent
    for stem in ("_C", "_autograd"):
        found = sorted(folder.glob(f"{stem}*.so"))
        if not found:
            is_checkout = (folder.parent / "setup.py").exists()
            raise ImportError(
                f"gankernels: the compiled extension {stem} is missing from {folder}; "
                + (
                    "that is the checkout's folder: start Python in another one to find what `pip install .` installed, or "
                    "compile here with `pip install --editable .`."
                    if is_checkout
                    else "install with `pip install .`."
                )
            )
        try:
            torch.ops.load_library(found[0])
        except OSError as error:
            raise ImportError(_WRONG_TORCH.format(file=found[0].name, why=error)) from error
    built_for = torch.ops.gankernels.autograd_built_for()
    if _release(built_for) != _release(torch.__version__):
        raise ImportError(_WRONG_TORCH.format(file=found[0].name, why=f"it was built for {built_for}"))


_WRONG_TORCH = (
    f"gankernels: {{file}} does not fit PyTorch {torch.__version__}; reinstall gankernels, which builds it for the PyTorch that is "
    "installed ({why})."
)


def _release(version: str) -> list[str]:
    """Binaries fit within one minor release."""
    return version.split("+")[0].split(".")[:2]


def refuse_derivative(name: str):
    def backward(ctx, *grads):
        raise NotImplementedError(f"gankernels.{name}: the derivative of this op is not implemented; gankernels.reference has forms "
                                  "that differentiate to any order, and a layer that fast_double_backward, or a penalty by it, brought "
                                  "here does so outside of it.")  # fmt: skip

    return backward


def register(
    name: str,
    *,
    fake,
    backward=None,
    setup_context=None,
    cuda=None,
    mutates=False,
    cpp_autograd=False,
    partly=False,
    keeps_rows=False,
) -> None:
    """Completes the op `gankernels::name`, whose schema and CPU kernel are in C++.

    fake           output metadata from input metadata; strides as the kernels return them
    backward       derivative formula, itself made of registered or stock ops; without one, differentiating raises
    setup_context  saves for it
    cuda           Triton launcher; None when the CUDA kernel is C++
    mutates        an in-place op without outputs to differentiate
    cpp_autograd   its derivative is a node of csrc/autograd, which costs less than one in Python
    partly         the derivative raises for some arguments: the table of orders does not count it
    keeps_rows     samples, rows along dimension 0, do not see each other: `regularized_scores` may share passes through the op
    """
    qualified = f"gankernels::{name}"
    torch.library.register_fake(qualified, fake)
    if not mutates and not cpp_autograd:
        torch.library.register_autograd(qualified, backward or refuse_derivative(name), setup_context=setup_context)
    if keeps_rows:
        torch.ops.gankernels.declare_keeps_rows(f"GeneratedBackwardFor_gankernels_{name}_defaultBackward")
    if cuda is not None:
        torch.library.impl(qualified, "CUDA", cuda)
    has_cuda = cuda is not None or torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CUDA")
    OPS[name] = Op(
        name,
        differentiable=cpp_autograd or backward is not None and not partly,
        cpu="C++",
        cuda="Triton" if cuda is not None else "CUDA C++" if has_cuda else "CUDA C++, not built",
    )
