"""Which passes a critic takes when loss and penalty are differentiated, and which of its operations decide it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .._checks import check_batch
from .penalties import _differentiable_score

_op = torch.ops.gankernels


class _Flops(TorchDispatchMode):
    def __enter__(self):
        self.total = self.weights = 0
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if func is torch.ops.aten.convolution_backward.default:
            # either gradient costs what the forward does: a product for each weight of a filter and each place it was put
            places = args[1] if args[7] else args[0]
            flops = 2 * places.numel() * args[2][0].numel()
            self.total += flops * (args[10][0] + args[10][1])
            self.weights += flops * args[10][1]
        elif func is torch.ops.aten.linear.default:
            self.total += 2 * args[0].numel() * args[1].shape[0]
        elif count is not None:
            flops = count(*args, **(kwargs or {}), out_val=out)
            self.total += flops
            # g^T a, a linear layer's weight gradient, is the only product whose first factor is transposed
            if func is torch.ops.aten.mm.default and args[0].stride(0) == 1 < args[0].stride(1):
                self.weights += flops
        return out


class Explanation:
    """What `explain` found. Printed, it is one line and a table; `folds`, `passes` and `operations` hold the same."""

    def __init__(self, folds, reason, passes, operations):
        self.folds, self.reason, self.passes, self.operations = folds, reason, passes, operations

    def __str__(self):
        what = "one backward for loss and penalty" if self.folds else "loss and penalty one by one"
        total = ", ".join(f"{name} {cost:.2f}" for name, cost in self.passes.items())
        line = f"{what}{'' if self.folds else f' ({self.reason})'}: {sum(self.passes.values()):.2f} F = {total}"
        width = max([len(module) for module, *_ in self.operations] + [6])
        rows = [f"{'module':{width}}  {'operation':32}  route"]
        rows += [f"{module:{width}}  {operation:32}  {route}" for module, operation, route in self.operations]
        return "\n".join([line, *rows])

    __repr__ = __str__


def _number() -> int:
    """Where autograd's count of nodes stands."""
    return (torch.zeros((), requires_grad=True) * 1).grad_fn._sequence_nr()


def explain(
    critic: Callable,
    x: torch.Tensor,
    *,
    critic_args: Sequence = (),
    critic_kwargs: dict | None = None,
    output: int | str | Callable | None = None,
) -> Explanation:
    """How `regularized_scores` differentiates this critic: what each pass costs, and which route each operation takes.

        >>> gk.explain(critic, real)
        one backward for loss and penalty: 3.95 F = forward 1.00, input gradient 1.00, tangent and adjoints 0.97, weight gradient 0.98
        module  operation                         route
        0       gankernels::Convolution           weights' gradient shared by loss and penalty
        1       gankernels::Local                 no second derivative
        ...

    Costs are counted floating-point operations of convolutions and matrix products, in units of F, one forward of the critic. It runs
    the critic and both backwards once and leaves the parameters' .grad as they are; buffers (running statistics) move as in any forward.

    Args: as of `regularized_scores`.

    Returns: an Explanation: `.folds`, `.reason` (why not), `.passes` {name: cost in F}, `.operations` [(module, operation, route)].

    Raises: as `regularized_scores`.
    """
    op = "explain"
    check_batch(op, "x", x)
    spans, handles, open_spans = [], [], []

    def enter(name):
        return lambda *_: open_spans.append((name, _number()))

    def leave(*_):
        name, first = open_spans.pop()
        spans.append((first, _number(), name))

    if isinstance(critic, nn.Module):
        for name, module in critic.named_modules():
            handles += [
                module.register_forward_pre_hook(enter(name)),
                module.register_forward_hook(leave, always_call=True),
            ]
    forward, first, second = _Flops(), _Flops(), _Flops()
    try:
        with forward:
            score, x, _, kept_elsewhere = _differentiable_score(
                op, critic, x.detach(), critic_args, critic_kwargs, output
            )
    finally:
        for handle in handles:
            handle.remove()
    names, numbers, why_not = _op.examine_critic(score, x)
    with first:
        scores, penalty, _ = _op.regularize(score, x, 1.0, 0.0, False, not kept_elsewhere, op)
    parameters = [p for p in critic.parameters() if p.requires_grad] if isinstance(critic, nn.Module) else []
    with second:
        loss = scores.square().sum() + penalty
        if parameters:
            torch.autograd.grad(loss, parameters, allow_unused=True)

    operations = []
    for number, name, obstacle in sorted(zip(numbers, names, why_not)):
        inside = [(first, module) for first, last, module in spans if first < number < last]
        route = _ROUTES.get(name, "stock, weights' gradient of the loss by its own backward")
        operations.append((max(inside)[1] if inside else "", name, f"not folded: {obstacle}" if obstacle else route))
    folds = not any(why_not) and not kept_elsewhere
    reasons = [f"{why_not[-1]}"] if why_not[-1] else []
    reasons += ["it keeps tensors under hooks, as checkpointing does"] if kept_elsewhere else []
    reasons += [f"{module or 'critic'}: {name} {route.removeprefix('not folded: ')}"
                for module, name, route in operations if route.startswith("not folded")]  # fmt: skip
    f = max(forward.total, 1)
    passes = {
        "forward": forward.total / f,
        "input gradient": first.total / f,
        "tangent and adjoints": (second.total - second.weights) / f,
        "weight gradient": second.weights / f,
    }
    return Explanation(folds, "; ".join(reasons[:3]), passes, operations)


_ROUTES = {
    "gankernels::Convolution": "weights' gradient shared by loss and penalty",
    "gankernels::Linear": "weights' gradient shared by loss and penalty",
    "gankernels::Local": "no second derivative",
}
