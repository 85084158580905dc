"""What a new process waits for: the import, and the import with the first gradient penalty, forward and backward.

Ours imports torch too and adds to it, so it cannot be faster: what counts is the seconds beyond torch's own, and two are the limit.
"""

import subprocess
import sys
from pathlib import Path

from .harness import OURS, Workload, case

ROOT = Path(__file__).parent.parent
IMPORT = {OURS: "import torch, gankernels", "stock": "import torch"}
CRITIC = """
from torch import nn
critic = nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(16 * 16 * 16, 1)).to("{device}")
real, fake = torch.randn(2, 8, 3, 32, 32, device="{device}")
"""
FIRST_PENALTY = {
    OURS: "gankernels.gradient_penalty(critic, real, fake).backward()",
    "stock": """
x = torch.lerp(real, fake, torch.rand(8, 1, 1, 1, device="{device}")).requires_grad_()
grads, = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
(10 * (grads.flatten(1).norm(dim=1) - 1).square().mean()).backward()
""",
}


def prepare(sources):
    def program(source):
        return lambda i=0: subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=True)

    variants = {name: program(source) for name, source in sources.items()}

    return Workload(variants, check=variants[OURS], limit=2.0)


@case(OURS, "stock")
def test_import(device):
    return prepare(IMPORT)


@case(OURS, "stock")
def test_first_penalty(device):
    return prepare({name: f"{IMPORT[name]}\n{CRITIC}\n{FIRST_PENALTY[name]}".format(device=device) for name in IMPORT})
