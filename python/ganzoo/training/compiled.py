"""Losses compiled with torch.compile.

A compiled loss cannot fetch data or seed generators, so its draws are made before it runs: a trial on copies of the networks'
buffers notes what the loss asks for, which is the same at every call.
"""

import torch
from torch.func import functional_call

from ganzoo.training.draw import Given, Noted


class CompiledLoss:
    """A loss, `loss(networks, draw, ops)`, that is compiled at its first call."""

    def __init__(self, loss, backend):
        self._loss, self._requests = loss, None
        options = {"backend": backend} if isinstance(backend, str) else {}
        # Where a loss breaks into graphs, PyTorch 2.11 loses gradients once requires_grad of a network has changed.

        def of_values(networks, values, ops):
            return loss(networks, Given(self._requests, values), ops)

        # dynamo keeps what it compiled with the code, and gives up once there are 8 of a kind
        of_values.__code__ = of_values.__code__.replace()
        self._compiled = torch.compile(of_values, fullgraph=True, **options)

    def __call__(self, networks, draw, ops):
        # The derivatives of a penalty are taken inside of the compiled region. A number of one loss, such as its level, is not that of
        # another, which dynamo would take for a number that changes.
        with torch._dynamo.config.patch(trace_autograd_ops=True, specialize_int=True):
            if self._requests is None:
                noted, mark = Noted(draw), draw.mark()
                buffers = {name: buffer.clone() for name, buffer in networks.named_buffers()}
                functional_call(networks, buffers, (self._loss, noted, ops))
                self._requests = noted.requests
                draw.go_back(mark)
            values = [getattr(draw, method)(*args, **options) for method, args, options in self._requests]
            plain = [dict(value) if isinstance(value, dict) else value for value in values]
            return self._compiled(networks, plain, ops)
