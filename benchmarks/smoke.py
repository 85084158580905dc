"""Every op of the op suite once, forward and backward, on small odd inputs: a program short enough for compute-sanitizer.

    compute-sanitizer --tool memcheck python -m benchmarks.smoke
"""

import sys

import torch

from tests.ops.specs import SPECS


def run(spec, device):
    inputs = spec.inputs(spec.shapes["odd"], torch.float32, device)
    inputs = [t.requires_grad_() if i in spec.differentiable else t for i, t in enumerate(inputs)]
    outputs = spec.op(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum(outputs[i].square().sum() for i in spec.outputs)
    if loss.requires_grad:
        torch.autograd.grad(loss, [inputs[i] for i in spec.differentiable])


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for spec in SPECS:
        run(spec, device)
        print(spec.name, flush=True)
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
