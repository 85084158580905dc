"""Spectral normalisation of a layer, or of all layers of a model as one group of tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm as StockSpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm as StockSpectralNormHook

from .._checks import check_flags, check_integer, check_number, check_tensor, got
from ..ops import spectral_norm as _ops

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    *_TRANSPOSED,
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
)


class SpectralNorm(nn.Module):
    """The parametrisation W -> W / sigma(W) that `spectral_norm` registers on a weight; its buffers `_u`, `_v` are
    torch's.

    While the root of a group runs its forward, `ready` holds what the group has computed; else the weight is normalised
    alone.
    """

    def __init__(self, u: torch.Tensor, v: torch.Tensor, dim: int, n_power_iterations: int, eps: float) -> None:
        super().__init__()
        self.dim, self.n_power_iterations, self.eps = dim, n_power_iterations, eps
        self.register_buffer("_u", u)
        self.register_buffer("_v", v)
        self.ready: torch.Tensor | None = None

    def iterations(self) -> int:
        return self.n_power_iterations if self.training else 0

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.ready is not None:
            return self.ready
        return _ops.normalize([weight], [self._u], [self._v], [self.dim], self.iterations(), self.eps)[0]

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def extra_repr(self) -> str:
        return f"dim={self.dim}, n_power_iterations={self.n_power_iterations}, eps={self.eps}"


class _Normalize(nn.Module):
    """What is left of spectral normalisation for a vector: w / |w|, as in torch."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(weight, dim=0, eps=self.eps)

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        return value


class _Group:
    """Hooks of a root: every layer's W / sigma in one go before its forward, forgotten after.

    Knows its layers by path, so that deep copies, data-parallel replicas and replaced layers are right by construction.
    """

    def __init__(self, name: str, paths: list[str]) -> None:
        self.name = name
        self.paths = [tuple(path.split(".")) for path in paths]

    def members(self, root: nn.Module) -> Iterator[tuple[SpectralNorm, nn.Module]]:
        for path in self.paths:
            module = root
            for part in (*path, "parametrizations", self.name):
                module = module._modules.get(part)
                if module is None:
                    break
            else:
                first = module._modules["0"]
                if isinstance(first, SpectralNorm):
                    yield first, module

    def compute(self, root: nn.Module, args) -> None:
        calls = {}
        for norm, parametrizations in self.members(root):
            weight, buffers = parametrizations.original, norm._buffers
            key = (weight.dtype, weight.device, norm.n_power_iterations if norm.training else 0, norm.eps)
            norms, weights, u, v, dims = calls.setdefault(key, ([], [], [], [], []))
            norms.append(norm)
            weights.append(weight)
            u.append(buffers["_u"])
            v.append(buffers["_v"])
            dims.append(norm.dim)
        for (_, _, iterations, eps), (norms, weights, u, v, dims) in calls.items():
            for norm, ready in zip(norms, _ops.normalize(weights, u, v, dims, iterations, eps)):
                norm.__dict__["ready"] = ready  # not by Module.__setattr__, which takes 1.5 us

    def release(self, root: nn.Module, args, output) -> None:
        for norm, _ in self.members(root):
            norm.__dict__["ready"] = None


class _LoadLegacy:
    """Renames weight_orig, weight_u, weight_v of a state dict that torch.nn.utils.spectral_norm saved."""

    def __init__(self, name: str, names: dict[str, str]) -> None:
        self.name, self.names = name, names

    def __call__(self, module, state_dict, prefix, *_) -> None:
        if all(prefix + legacy in state_dict for legacy in self.names):
            for legacy, current in self.names.items():
                state_dict[prefix + current] = state_dict.pop(prefix + legacy)


class _SaveLegacy:
    def __init__(self, name: str, names: dict[str, str]) -> None:
        self.name, self.names = name, names

    def __call__(self, module, state_dict, prefix, local_metadata) -> None:
        for legacy, current in self.names.items():
            state_dict[prefix + legacy] = state_dict.pop(prefix + current)


def _own_norm(module: nn.Module, name: str) -> tuple[int, nn.Module] | None:
    """Which of the weight's parametrisations is a spectral norm, ours or torch's."""
    if parametrize.is_parametrized(module, name):
        for i, norm in enumerate(module.parametrizations[name]):
            if isinstance(norm, (SpectralNorm, StockSpectralNorm)):
                return i, norm
    return None


def _stock_hook(layer: nn.Module, name: str) -> bool:
    return any(isinstance(h, StockSpectralNormHook) and h.name == name for h in layer._forward_pre_hooks.values())


def _has(layer: nn.Module, name: str) -> bool:
    """Without reading a normalised weight, which would iterate."""
    tensors = (layer._parameters.get(name), layer._buffers.get(name))
    return any(t is not None for t in tensors) or parametrize.is_parametrized(layer, name) or _stock_hook(layer, name)


def _check_name(op: str, name) -> None:
    if not isinstance(name, str):
        raise TypeError(f"gankernels.{op}: name must be a string, got {type(name).__name__}.")


def _check_layer(layer: nn.Module, path: str, name: str, dim: int | None) -> int:
    """The dimension of the matrix's rows, after all that can be said against this layer has been said."""
    weight, label = getattr(layer, name), f"{path}.{name}" if path else name
    if _stock_hook(layer, name):
        raise ValueError(
            f"gankernels.spectral_norm: {label} already has spectral normalisation of the deprecated torch.nn.utils."
            "spectral_norm; remove it with torch.nn.utils.remove_spectral_norm first."
        )
    if isinstance(weight, nn.parameter.UninitializedTensorMixin):
        raise ValueError(f"gankernels.spectral_norm: {label} of a lazy layer has no shape yet; run a forward first.")
    check_tensor("spectral_norm", label, weight)
    if dim is None:
        return 1 if isinstance(layer, _TRANSPOSED) else 0
    if isinstance(dim, bool) or not isinstance(dim, int) or not -weight.dim() <= dim < weight.dim():
        raise ValueError(
            f"gankernels.spectral_norm: dim must be an integer in [{-weight.dim()}, {weight.dim()}) for {label}, "
            f"got {got(dim)}."
        )
    return dim % weight.dim()


def _read_ready_first(layer: nn.Module, name: str) -> None:
    """What the group has computed is read in 0.5 us a layer; through the modules of a parametrisation it takes 7."""
    stock = getattr(type(layer), name)

    def read(layer: nn.Module) -> torch.Tensor:
        norms = layer._modules["parametrizations"]._modules[name]._modules
        first = norms["0"]
        ready = first.ready if len(norms) == 1 and isinstance(first, SpectralNorm) else None
        return stock.fget(layer) if ready is None else ready

    setattr(type(layer), name, property(read, stock.fset))


def _register(
    layer: nn.Module, name: str, dim: int, n_power_iterations: int, eps: float, legacy_state_dict: bool
) -> None:
    weight = getattr(layer, name).detach()
    if weight.dim() == 1:
        parametrize.register_parametrization(layer, name, _Normalize(eps))
        return
    # torch's draws and its 15 iterations: the same seed gives the same u and v
    rows = weight.shape[dim]
    u = nn.functional.normalize(weight.new_empty(rows).normal_(), dim=0, eps=eps)
    v = nn.functional.normalize(weight.new_empty(weight.numel() // max(rows, 1)).normal_(), dim=0, eps=eps)
    _ops.power_iteration_([weight], [u], [v], [dim], 15, eps)
    parametrize.register_parametrization(layer, name, SpectralNorm(u, v, dim, n_power_iterations, eps))
    _read_ready_first(layer, name)
    _register_legacy(layer, name, legacy_state_dict)


def _adopt(layer: nn.Module, name: str, legacy_state_dict: bool) -> None:
    """Makes a spectral norm of torch's ours, with its u and v."""
    i, norm = _own_norm(layer, name)
    if isinstance(norm, StockSpectralNorm) and hasattr(norm, "_u"):
        ours = SpectralNorm(norm._u, norm._v, norm.dim, norm.n_power_iterations, norm.eps)
        layer.parametrizations[name][i] = ours.train(norm.training)
        _read_ready_first(layer, name)
        _register_legacy(layer, name, legacy_state_dict)


def _register_legacy(layer: nn.Module, name: str, save: bool) -> None:
    i, _ = _own_norm(layer, name)
    prefix = f"parametrizations.{name}."
    names = {f"{name}_orig": f"{prefix}original", f"{name}_u": f"{prefix}{i}._u", f"{name}_v": f"{prefix}{i}._v"}
    layer.register_load_state_dict_pre_hook(_LoadLegacy(name, names))
    if save:
        layer.register_state_dict_post_hook(_SaveLegacy(name, names))


def _drop_group(module: nn.Module, name: str) -> None:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [
            k
            for k, hook in hooks.items()
            if isinstance(g := getattr(hook, "__self__", None), _Group) and g.name == name
        ]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)


def spectral_norm(
    module: nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    legacy_state_dict: bool = False,
) -> nn.Module:
    """W / sigma(W) in place of W, sigma the largest singular value as estimated by power iteration: of one layer, or of
    all layers of a whole model in one call per forward.

        u <- W v / max(|W v|, eps),  v <- W^T u / max(|W^T u|, eps),  sigma = u^T W v

    Signature, meaning, initialisation, buffers and state dict are those of
    torch.nn.utils.parametrizations.spectral_norm: u and v move by n_power_iterations in training mode and stay in
    evaluation mode, and are constants to the derivatives, of which there are two.

    Args:
        module: a layer with a parameter `name` (a vector is divided by its norm), or a model without one: then every
            Conv1d/2d/3d, ConvTranspose1d/2d/3d, Linear, Bilinear, Embedding and EmbeddingBag in it whose `name` has
            two or more dimensions joins the group, subclasses included. Layers that already have spectral
            normalisation, this one or torch's parametrisation, join with the u, v and settings they have.
        name: the parameter to normalise.
        n_power_iterations: iterations per forward in training, >= 1.
        eps: lower bound of the norms that u and v are divided by.
        dim: the dimension that gives the matrix's rows, by default 1 for transposed convolutions and 0 for others.
        legacy_state_dict: save `weight_orig`, `weight_u`, `weight_v`, the layout of the older
            torch.nn.utils.spectral_norm, in place of `parametrizations.weight.original`, `.0._u`, `.0._v`. Both load,
            whichever is saved.

    Returns: module, modified. A weight W is under `parametrizations.<name>.original`.

    A group computes when the model itself is called and forgets when that call ends. So a layer used twice in one
    forward iterates once (torch: twice), and a layer read outside of such a call (a submodule called by itself,
    `print(layer.weight)`) is normalised alone, with an iteration of its own in training, as in torch. Activation
    checkpointing with use_reentrant=False works around the whole model; around a part of it, PyTorch refuses what it
    recomputes: normalise that part's layers one by one. The gradients of all weights of a group are computed together,
    when the last of them has arrived. Autocast leaves sigma in the weights' own precision. As with every op of
    gankernels, derivatives are autograd's, not torch.func's.

    Raises: TypeError or ValueError, with the model as it was, for anything but such a module, a number out of range, a
    lazy layer before its first forward, a layer that is normalised already, or by the deprecated
    torch.nn.utils.spectral_norm.

    Source: Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks".
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"gankernels.spectral_norm: module must be a torch.nn.Module, got {type(module).__name__}.")
    _check_name("spectral_norm", name)
    check_integer("spectral_norm", "n_power_iterations", n_power_iterations, 1)
    check_flags("spectral_norm", legacy_state_dict=legacy_state_dict)
    check_number("spectral_norm", "eps", eps, 0)
    eps = float(eps)
    if _has(module, name):
        if _own_norm(module, name) is not None:
            raise ValueError(f"gankernels.spectral_norm: {name} of the module already has spectral normalisation.")
        _register(module, name, _check_layer(module, "", name, dim), n_power_iterations, eps, legacy_state_dict)
        return module

    layers = {path: layer for path, layer in module.named_modules() if isinstance(layer, _LAYERS) and _has(layer, name)}
    fresh = {path: layer for path, layer in layers.items() if _own_norm(layer, name) is None}
    rows = {path: _check_layer(layer, path, name, dim) for path, layer in fresh.items()}
    fresh = {path: layer for path, layer in fresh.items() if getattr(layer, name).dim() >= 2}
    group = [path for path, layer in module.named_modules() if path in fresh or _own_norm(layer, name) is not None]
    if not group:
        raise ValueError(
            f"gankernels.spectral_norm: module must have a parameter {name!r} or a convolution, linear or embedding "
            f"layer with one, got {type(module).__name__} with none."
        )
    for path in group:
        layer = module.get_submodule(path)
        if path in fresh:
            _register(layer, name, rows[path], n_power_iterations, eps, legacy_state_dict)
        else:
            _adopt(layer, name, legacy_state_dict)
    for part in module.modules():
        _drop_group(part, name)
    hooks = _Group(name, group)
    module.register_forward_pre_hook(hooks.compute, prepend=True)
    module.register_forward_hook(hooks.release, always_call=True)
    return module


def remove_spectral_norm(module: nn.Module, name: str = "weight") -> nn.Module:
    """Makes W / sigma(W), with u and v as they are, the plain parameter `name` of the layer, or of every layer of the
    model.

    The parameters stay the same objects, so an optimiser keeps them. Returns module.

    Raises: TypeError or ValueError, with the model as it was, when nothing is normalised, or a weight has further
    parametrisations.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"gankernels.remove_spectral_norm: module must be a torch.nn.Module, got {type(module).__name__}."
        )
    _check_name("remove_spectral_norm", name)
    layers = [
        layer
        for layer in module.modules()
        if parametrize.is_parametrized(layer, name)
        and any(isinstance(norm, (SpectralNorm, _Normalize)) for norm in layer.parametrizations[name])
    ]
    if not layers:
        raise ValueError(
            f"gankernels.remove_spectral_norm: module must have spectral normalisation of {name!r}, got "
            f"{type(module).__name__} without."
        )
    for layer in layers:
        if len(layer.parametrizations[name]) > 1:
            raise ValueError(
                f"gankernels.remove_spectral_norm: {name} of {type(layer).__name__} must have no further "
                f"parametrisation, got {len(layer.parametrizations[name])}; torch.nn.utils.parametrize."
                "remove_parametrizations removes all."
            )
    for layer in layers:
        layer.parametrizations[name].eval()
        parametrize.remove_parametrizations(layer, name)
        for hooks in (layer._load_state_dict_pre_hooks, layer._state_dict_hooks):
            for key, hook in list(hooks.items()):
                hook = getattr(hook, "hook", hook)
                if isinstance(hook, (_LoadLegacy, _SaveLegacy)) and hook.name == name:
                    del hooks[key]
    for part in module.modules():
        _drop_group(part, name)
    return module
