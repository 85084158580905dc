"""Several processes as one: torch.distributed, started by torchrun.

Every process draws the random numbers of the whole batch and computes its slice of it; gradients, batch statistics and
figures are averaged over the processes. All state is the same in each of them, so the first one alone saves it.
"""

import os
import warnings

import torch
import torch.distributed as dist
from torch import nn

from ganzoo.errors import ArgumentError


def rank():
    return dist.get_rank() if size() > 1 else 0


def size():
    """The number of processes; 1 outside of torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def join(device):
    """Under torchrun, meet the other processes. Returns this process's device: the accelerator of its own where there
    are several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    kind = torch.device(device).type
    if kind == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # a default of its functions is the group that there is at its import, which would then never let go of its threads
        from torch.distributed.nn import functional  # noqa: F401

        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return device


def leave():
    if dist.is_available() and dist.is_initialized():
        # gloo's threads let go of the last exchange's tensors, for which they need an interpreter that is not ending
        dist.barrier()
        dist.destroy_process_group()


def check_shares(variant, shares):
    """Raise where a batch cannot be cut into equal shares."""
    if variant.batch % shares:
        raise ArgumentError("batch", f"a multiple of the {shares} parts it is cut into", variant.batch)


def average(tensors):
    """Replace each of the tensors by its mean over the processes, in one exchange."""
    if size() > 1 and tensors:
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= size()
        torch._foreach_copy_(
            tensors, [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors)]
        )


def mean(values):
    """The mean over the processes of a tensor that each of them has, differentiable to any order. For losses that are
    not a mean over samples: take it of the means of which they are made."""
    if size() == 1:
        return values
    from torch.distributed.nn.functional import all_reduce

    with warnings.catch_warnings():  # its successor is differentiable only since PyTorch 2.13
        warnings.simplefilter("ignore", FutureWarning)
        return all_reduce(values) / size()


def whole(values):
    """The rows of all processes, in their order, in every process, differentiable to any order."""
    if size() == 1:
        return values
    places = [torch.zeros_like(values) for _ in range(size())]
    places[rank()] = values
    return mean(torch.cat(places)) * size()


def gather(values):
    """The rows of all processes, in their order, in every process. Not differentiable."""
    if size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def from_first(function):
    """What a function returns in the first process, in every process. The others wait for it, and do not call it."""
    if size() == 1:
        return function()
    box = [function()] if rank() == 0 else [None]
    dist.broadcast_object_list(box)
    return box[0]


def shared_out(function, parts):
    """`function(part)` for each of the parts, in their order. Each is called in one process, and all of them get the results."""
    for start in range(0, len(parts), size()):
        number = start + rank()
        result = function(parts[number]) if number < len(parts) else None
        if size() == 1:
            yield result
        else:
            results = [None] * size()
            dist.all_gather_object(results, result)
            yield from results[: len(parts) - start]


def merged(rows, device):
    """Tensors in which each process has filled other rows, as one. All but the first process may pass None where they filled none."""
    shape, dtype = from_first(lambda: (rows.shape, rows.dtype))
    rows = torch.zeros(shape, dtype=dtype, device=device) if rows is None else rows
    dist.all_reduce(rows)
    return rows


class _WholeBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the statistics of the batches of all processes, made of differentiable means: gradient penalties
    differentiate it twice, which torch.nn.SyncBatchNorm does not allow."""

    def forward(self, x):
        if not (self.training or self.running_mean is None):
            return super().forward(x)
        dims = [dim for dim in range(x.dim()) if dim != 1]
        per_channel = [1, -1, *[1] * (x.dim() - 2)]
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        centre = mean(wide.mean(dims))
        centred = wide - centre.view(per_channel)
        variance = mean(centred.square().mean(dims))
        if self.training and self.running_mean is not None:
            self._keep(centre.detach(), variance.detach(), x.numel() // x.shape[1] * size())
        normal = centred * (variance + self.eps).rsqrt().view(per_channel)
        if self.affine:
            normal = normal * self.weight.view(per_channel) + self.bias.view(per_channel)
        return normal.to(x.dtype)

    @torch.no_grad()
    def _keep(self, centre, variance, count):
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(centre, share)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), share)

    def _check_input_dim(self, x):
        pass


def with_whole_batch_norms(networks):
    """The networks, their batch norms replaced where there are several processes."""
    if size() > 1:
        for module in networks.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.__class__ = _WholeBatchNorm
    return networks


def lost(error):
    """Whether a RuntimeError says that another process is gone."""
    signs = (
        "Connection closed by peer",
        "Connection reset",
        "Broken pipe",
        "NCCL",
        "Timed out waiting",
        "connectPair",
        "gloo",
    )
    return size() > 1 and any(sign in str(error) for sign in signs)
