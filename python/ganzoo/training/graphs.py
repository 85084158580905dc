"""Steps captured in CUDA graphs: forward and backward passes, penalties, optimisers, averages and controllers of all turns of a
step as one launch.

The first time that a plan comes, the turns of a step with the lazy terms that are due, it runs as ever, on the stream of the
captures, and what it draws is noted; it also makes the optimisers' state. The second time it is captured, which runs nothing, and
replayed; from then on it is only replayed. Drawing stays outside, into buffers that the graph reads, and so do learning rates, which
the graph reads from tensors. A step with another schedule or other terms is another plan. So no step is taken twice or undone, and a
run has the same steps as one without graphs.
"""

import warnings
from functools import partial

import torch

from ganzoo.errors import ArgumentError, Error, reason
from ganzoo.training import distributed
from ganzoo.training.draw import Given, Noted


class Recorder:
    """Captures functions on one CUDA device, one after another, on a stream and in a pool of memory that they share: none of
    them leaves anything there that another one reads."""

    def __init__(self, device):
        if device.type != "cuda":
            raise ArgumentError("cuda_graph", "used on a CUDA device", device.type)
        if distributed.size() > 1:
            raise ArgumentError("cuda_graph", "used in one process", f"{distributed.size()} processes")
        self._device, self._stream, self._pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def aside(self, function):
        """Run a function on the stream of the captures, which libraries' workspaces and autograd's nodes then belong to."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            result = function()
        current.wait_stream(self._stream)
        return result

    def record(self, function):
        """A function that replays what this one does on the device. Both return a dict of tensors."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self._device), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                results = function()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first = error.__context__ or error  # ending a capture that has failed raises once more
            raise Error(f"this training cannot be captured in a CUDA graph: {reason(first)}.") from error

        def replay():
            graph.replay()
            return {name: value.clone() for name, value in results.items()}  # the next replay writes over them

        return replay


class Graphs:
    """The plans of a phase of training.

    Args:
        play: `play(plan, update, draw)` takes a plan whose first update has that number: all of its work is on the device, but
            for what it draws.
        optimizers: the players' optimisers by name, which are made capturable.
        device: of the training.

    Raises `ArgumentError` where there is no CUDA device, or an optimiser cannot be captured.
    """

    def __init__(self, play, optimizers, device):
        self._play, self._optimizers, self._recorder, self._plans = play, optimizers, Recorder(device), {}
        for optimizer in optimizers.values():
            make_capturable(optimizer, device)

    def play(self, plan, update, draw):
        """`play(plan, update, draw)`, replayed where it can be."""
        captured = self._plans.get(plan)
        if captured is None:
            noted = Noted(draw)
            figures = self._recorder.aside(partial(self._play, plan, update, noted))
            players = {name for turn in plan for name, _ in turn}
            if all(self._optimizers[name].state for name in players):  # none yet where fp16's first steps overflowed
                self._plans[plan] = _Captured(noted.requests, update)
            return figures
        captured.fill(draw, update)
        if captured.replay is None:
            captured.replay = self._recorder.record(lambda: self._play(plan, captured.update, captured.given()))
        return captured.replay()


class _Captured:
    """What a plan draws, in buffers that stay where they are, and its graph. `update` is the number of its first update when the
    draws were noted."""

    def __init__(self, requests, update):
        self.update, self._requests, self._buffers, self.replay = update, requests, [], None

    def fill(self, draw, update):
        """Draw what was noted, for a step whose first update has this number."""
        for number, (method, args, options) in enumerate(self._requests):
            if method == "begin":
                args = (args[0] + update - self.update, *args[1:])
            values = getattr(draw, method)(*args, **options)
            values = values if isinstance(values, dict) else {} if values is None else {"": values}
            if number == len(self._buffers):
                self._buffers.append({field: value.clone() for field, value in values.items()})
            for field, value in values.items():
                self._buffers[number][field].copy_(value)

    def given(self):
        """A draw that answers with the buffers."""
        # As aliases: a loss may ask for gradients in what it draws.
        values = [{field: buffer.detach() for field, buffer in buffers.items()} for buffers in self._buffers]
        return Given(self._requests, [value.get("", value) for value in values])


def make_capturable(optimizer, device):
    """Keep all that an optimiser's step depends on in tensors on the device: learning rates and the counts of its steps."""
    for group in optimizer.param_groups:
        if "capturable" not in group:
            raise ArgumentError("cuda_graph", "used with optimisers that are capturable", type(optimizer).__name__)
        group["capturable"] = True
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float64).to(device)
    for state in optimizer.state.values():
        state["step"] = state["step"].to(device)


def plain_state(optimizer):
    """An optimiser's state dict as it is without capture: either kind of run goes on from the other's checkpoints."""
    state = optimizer.state_dict()
    groups = [
        {**group, "lr": float(group["lr"]), **({"capturable": False} if "capturable" in group else {})}
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


@torch.no_grad()
def step_where_finite(scaler, optimizer, averages):
    """`scaler.step(optimizer)` without the host's looking at the gradients: where they overflowed the step is undone, that of the
    moving `averages` too. A first step, which makes the optimiser's state, is the scaler's own."""
    if not (scaler.is_enabled() and optimizer.state):
        return scaler.step(optimizer)
    scaler.unscale_(optimizer)
    (overflowed,) = scaler._found_inf_per_device(optimizer).values()
    tensors = [param for group in optimizer.param_groups for param in group["params"]] + averages
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    before = [tensor.clone() for tensor in tensors]
    optimizer.step()
    for tensor, old in zip(tensors, before):
        tensor.copy_(torch.where(overflowed.bool(), old, tensor))
