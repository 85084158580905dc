"""Every kernel once, forward and backward, on small odd inputs: a program short enough for compute-sanitizer.

compute-sanitizer --tool memcheck python -m benchmarks.smoke
"""

import torch

import gankernels as gk
from tests.ops.specs import SPECS

from .networks import digits_critic


def run_spec(spec, device):
    inputs = spec.inputs(spec.shapes["odd"], torch.float32, device)
    inputs = [t.requires_grad_() if i in spec.differentiable else t for i, t in enumerate(inputs)]
    outputs = spec.op(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum(outputs[i].square().sum() for i in spec.outputs)
    if loss.requires_grad:
        torch.autograd.grad(loss, [inputs[i] for i in spec.differentiable])


def run_model(device):
    """A critic step with spectral norm, penalty, and each optimiser with clip and moving average."""
    critic = gk.nn.spectral_norm(digits_critic()).to(device)
    real, fake = torch.randn(2, 5, 1, 8, 8, device=device)
    params = list(critic.parameters())
    for optimizer in (gk.optim.RMSprop, gk.optim.Adam):
        gk.gradient_penalty(critic, real, fake).backward()
        optimizer(params, clip=0.01, ema=[p.detach().clone() for p in params]).step()
    gk.clip_weights_(critic, 0.005)


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for spec in SPECS:
        run_spec(spec, device)
    run_model(device)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{len(SPECS)} ops and a critic step ran on {device}")


if __name__ == "__main__":
    main()
