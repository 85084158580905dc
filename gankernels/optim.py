"""RMSprop and Adam whose step, clip and moving average of the weights are one pass over memory.

They are torch.optim's optimisers in formulas, options and state dicts: either loads what the other saved.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim.optimizer import Optimizer, ParamsT, _use_grad_for_differentiable

from ._checks import check_flags, check_number, got
from .ops.clip_weights import check_weights, clip_weights_

__all__ = ["Adam", "RMSprop"]

_op = torch.ops.gankernels


class _FusedOptimizer(Optimizer):
    """What both share: the moving average, the step's walk over the groups, and interchangeable state dicts."""

    _name: str
    _flags: tuple[str, ...]

    def __init__(self, params: ParamsT, defaults: dict, ema: Iterable[torch.Tensor] | None) -> None:
        name = self._name
        params = _listed(name, "params", params, "tensors or groups")
        for i, p in enumerate(params):
            if not isinstance(p, (torch.Tensor, dict, tuple)):
                raise TypeError(
                    f"gankernels.{name}: params[{i}] must be a tensor, a pair (name, tensor) or a group, got {type(p).__name__}."
                )
        check_flags(name, **{key: defaults[key] for key in self._flags})
        if isinstance(defaults["lr"], torch.Tensor):
            if defaults["lr"].numel() != 1 or defaults["lr"].dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"gankernels.{name}: lr must be a number or one float32 or float64 number in a tensor, got "
                    f"{str(defaults['lr'].dtype)[6:]} {tuple(defaults['lr'].shape)}."
                )
        else:
            check_number(name, "lr", defaults["lr"], 0)
        for key in ("eps", "weight_decay"):
            check_number(name, key, defaults[key], 0)
        if defaults["clip"] is not None:
            check_number(name, "clip", defaults["clip"], 0, above=True)
        _check_fraction(name, "ema_decay", defaults["ema_decay"])
        self._ema: dict[torch.Tensor, torch.Tensor] | None = None
        super().__init__(params, defaults)
        if ema is not None:
            self._ema = self._pair(_listed(name, "ema", ema, "tensors"))

    def _pair(self, ema: list) -> dict:
        name = self._name
        params = [p for group in self.param_groups for p in group["params"]]
        check_weights(name, "ema", ema)
        if len(ema) != len(params):
            raise ValueError(
                f"gankernels.{name}: ema must hold one tensor per parameter, {len(params)}, got {len(ema)}."
            )
        for i, (average, p) in enumerate(zip(ema, params)):
            if (average.shape, average.dtype, average.device) != (p.shape, p.dtype, p.device):
                raise ValueError(
                    f"gankernels.{name}: ema[{i}] must match its parameter, {_metadata(p)}, got {_metadata(average)}."
                )
            if average.data_ptr() == p.data_ptr() and p.numel():
                raise ValueError(f"gankernels.{name}: ema[{i}] must have its own memory, and is its parameter.")
        return dict(zip(params, ema))

    def add_param_group(self, param_group: dict) -> None:
        if self._ema is not None:
            raise ValueError(f"gankernels.{self._name}: parameters cannot be added to an optimizer made with ema.")
        super().add_param_group(param_group)
        check_weights(self._name, "params", self.param_groups[-1]["params"])

    def load_state_dict(self, state_dict: dict) -> None:
        # torch's own optimisers know nothing of clip and ema_decay: keep those of this one
        mine = [{key: group[key] for key in ("clip", "ema_decay")} for group in self.param_groups]
        groups = [{**own, **group} for own, group in zip(mine, state_dict["param_groups"])]
        groups += state_dict["param_groups"][len(mine) :]
        super().load_state_dict({**state_dict, "param_groups": groups})

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_ema": self._ema}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_ema", None)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            for p in group["params"]:
                state = self.state.get(p)
                if state and not isinstance(state["step"], torch.Tensor):  # a checkpoint of torch 1
                    state["step"] = _new_step(p, group, state["step"])

    def _gather(self, group: dict) -> tuple[list, list, list]:
        """Parameters with a gradient, the gradients, and parameters without."""
        weights, grads, idle = [], [], []
        for p in group["params"]:
            grad = p.grad
            if grad is None:
                idle.append(p)
                continue
            if grad.is_sparse:
                raise TypeError(
                    f"gankernels.{self._name}: gradients must be dense, got a sparse one of shape {tuple(p.shape)}."
                )
            weights.append(p)
            grads.append(grad)
        return weights, grads, idle

    def _state_of(self, p: torch.Tensor, group: dict) -> dict:
        state = self.state[p]
        if not state:
            self._init_state(p, state, group)
        return state

    @_use_grad_for_differentiable
    def step(self, closure=None):
        """Updates the parameters, clips them, moves their averages; returns the closure's loss, if there is one."""
        self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gathered = [self._gather(group) for group in self.param_groups]  # refuses before anything is modified
        for group, (weights, grads, idle) in zip(self.param_groups, gathered):
            if weights:
                states = [self._state_of(p, group) for p in weights]
                ema = [] if self._ema is None else [self._ema[p] for p in weights]
                lr = group["lr"]
                updated = self._update(
                    group, weights, grads, states, ema,
                    steps=[state["step"] for state in states],
                    lr=0.0 if isinstance(lr, torch.Tensor) else lr,
                    lr_tensor=lr if isinstance(lr, torch.Tensor) else None,
                )  # fmt: skip
                if not torch.compiler.is_compiling():
                    for tensors in (weights, ema, *updated):
                        torch.autograd.graph.increment_version(tensors)
            if idle:
                self._settle(idle, group)
        return loss

    def _settle(self, idle: list, group: dict) -> None:
        """Parameters without a gradient are clipped and averaged all the same, as a loop over all parameters would."""
        if group["clip"] is not None:
            clip_weights_(idle, group["clip"])
        if self._ema is not None:
            torch._foreach_lerp_([self._ema[p] for p in idle], idle, 1 - group["ema_decay"])


def _listed(name: str, key: str, values, what: str) -> list:
    if isinstance(values, (str, torch.Tensor)) or not isinstance(values, Iterable):
        raise TypeError(f"gankernels.{name}: {key} must be an iterable of {what}, got {type(values).__name__}.")
    return list(values)


def _metadata(t: torch.Tensor) -> str:
    return f"{str(t.dtype)[6:]} {tuple(t.shape)} on {t.device}"


def _check_fraction(name: str, key: str, value, *, below_one: bool = False) -> None:
    check_number(name, key, value, 0)
    if value > 1 or (below_one and value == 1):
        raise ValueError(f"gankernels.{name}: {key} must be a number in [0, 1{')' if below_one else ']'}, got {value}.")


def _new_step(p: torch.Tensor, group: dict, value: float = 0.0) -> torch.Tensor:
    """On the device only when capturable, as torch has it."""
    return torch.full((), float(value), dtype=torch.float32, device=p.device if group["capturable"] else "cpu")


class RMSprop(_FusedOptimizer):
    """RMSprop, optional clip of the updated weights, optional moving average of them, in one pass over memory.

    g <- grad (-grad with maximize) + weight_decay w
    v <- alpha v + (1 - alpha) g^2
    w <- w - lr g / (sqrt(v - m^2) + eps),   m <- alpha m + (1 - alpha) g when centered, 0 otherwise; with momentum, the
         quotient goes through b <- momentum b + quotient
    w <- min(max(w, -clip), clip)
    ema <- ema_decay ema + (1 - ema_decay) w

    Args:
        params: parameters or groups; floating dtypes, dense gradients.
        lr, alpha, eps, weight_decay, momentum, centered, maximize: as torch.optim.RMSprop's. lr may be a tensor; on the
            device of the parameters it is read there, so that a captured CUDA graph follows its changes.
        clip: finite, > 0, or None. A group may have its own.
        ema: tensors parallel to the parameters (G_ema.parameters()), updated in place, not part of the state dict.
        ema_decay: in [0, 1].
        capturable: keep the step counts on the device, so that step() can be captured in a CUDA graph.

    Parameters without a gradient are not updated, but are clipped and averaged. State dicts interchange with
    torch.optim.RMSprop's.

    Source: Tieleman and Hinton 2012, lecture 6.5; with clip, Arjovsky et al. 2017, "Wasserstein GAN", algorithm 1.
    """

    _name = "optim.RMSprop"
    _flags = ("centered", "maximize", "capturable")

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        maximize: bool = False,
        *,
        clip: float | None = None,
        ema: Iterable[torch.Tensor] | None = None,
        ema_decay: float = 0.999,
        capturable: bool = False,
    ) -> None:
        _check_fraction(self._name, "alpha", alpha)
        check_number(self._name, "momentum", momentum, 0)
        defaults = dict(
            lr=lr, momentum=momentum, alpha=alpha, eps=eps, centered=centered, weight_decay=weight_decay,
            maximize=maximize, capturable=capturable, foreach=None, differentiable=False, clip=clip,
            ema_decay=ema_decay,
        )  # fmt: skip
        super().__init__(params, defaults, ema)

    def _init_state(self, p, state, group):
        state["step"] = _new_step(p, group)
        state["square_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        if group["momentum"] > 0:
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        if group["centered"]:
            state["grad_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def _update(self, group, weights, grads, states, ema, *, steps, lr, lr_tensor):
        square_avgs = [state["square_avg"] for state in states]
        momentum_buffers = [state["momentum_buffer"] for state in states] if group["momentum"] > 0 else []
        grad_avgs = [state["grad_avg"] for state in states] if group["centered"] else []
        _op.rmsprop_(
            weights, grads, square_avgs, momentum_buffers, grad_avgs, steps, ema, lr=lr, lr_tensor=lr_tensor,
            alpha=group["alpha"], eps=group["eps"], weight_decay=group["weight_decay"], momentum=group["momentum"],
            maximize=group["maximize"], clip=group["clip"], ema_decay=group["ema_decay"],
        )  # fmt: skip
        return square_avgs, momentum_buffers, grad_avgs


class Adam(_FusedOptimizer):
    """Adam (AdamW with decoupled_weight_decay), optional clip, optional moving average, in one pass over memory.

    g <- grad (-grad with maximize) + weight_decay w           (decoupled: w <- (1 - lr weight_decay) w instead)
    m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2   (amsgrad: below, the largest v so far)
    w <- w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
    w <- min(max(w, -clip), clip)
    ema <- ema_decay ema + (1 - ema_decay) w

    Args:
        params: parameters or groups; floating dtypes, dense gradients.
        lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay: as torch.optim.Adam's. lr may be a
            tensor; on the device of the parameters it is read there, so that a captured CUDA graph follows its changes.
        clip: finite, > 0, or None. A group may have its own.
        ema: tensors parallel to the parameters (G_ema.parameters()), updated in place, not part of the state dict.
        ema_decay: in [0, 1].
        capturable: keep the step counts on the device, so that step() can be captured in a CUDA graph.

    Parameters without a gradient are not updated, but are clipped and averaged. State dicts interchange with
    torch.optim.Adam's.

    Source: Kingma and Ba 2015, "Adam"; Reddi et al. 2018 (amsgrad); Loshchilov and Hutter 2019 (decoupled decay).
    """

    _name = "optim.Adam"
    _flags = ("amsgrad", "maximize", "decoupled_weight_decay", "capturable")

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        *,
        clip: float | None = None,
        ema: Iterable[torch.Tensor] | None = None,
        ema_decay: float = 0.999,
        capturable: bool = False,
    ) -> None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"gankernels.{self._name}: betas must be two numbers in [0, 1), got {got(betas)}.")
        for i in range(2):
            _check_fraction(self._name, f"betas[{i}]", betas[i], below_one=True)
        defaults = dict(
            lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, amsgrad=amsgrad,
            maximize=maximize, foreach=None, capturable=capturable, differentiable=False, fused=None,
            decoupled_weight_decay=decoupled_weight_decay, clip=clip, ema_decay=ema_decay,
        )  # fmt: skip
        super().__init__(params, defaults, ema)

    def _init_state(self, p, state, group):
        state["step"] = _new_step(p, group)
        state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        if group["amsgrad"]:
            state["max_exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def _update(self, group, weights, grads, states, ema, *, steps, lr, lr_tensor):
        exp_avgs = [state["exp_avg"] for state in states]
        exp_avg_sqs = [state["exp_avg_sq"] for state in states]
        max_exp_avg_sqs = [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else []
        beta1, beta2 = group["betas"]
        _op.adam_(
            weights, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, ema, lr=lr, lr_tensor=lr_tensor, beta1=beta1,
            beta2=beta2, eps=group["eps"], weight_decay=group["weight_decay"],
            decoupled_weight_decay=group["decoupled_weight_decay"], maximize=group["maximize"], clip=group["clip"],
            ema_decay=group["ema_decay"],
        )  # fmt: skip
        return exp_avgs, exp_avg_sqs, max_exp_avg_sqs
