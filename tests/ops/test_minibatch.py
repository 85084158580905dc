"""What the op suite does not see of the statistics over the batch: the public functions around their kernels."""

import torch
from torch.autograd import gradcheck, gradgradcheck

import gankernels as gk
from benchmarks.harness import cpu_peak_memory


def test_minibatch_stddev_appends_each_groups_statistic(device):
    x = torch.randn(6, 4, 3, 5, dtype=torch.float64, device=device, requires_grad=True)
    y = gk.minibatch_stddev(x, group_size=3, num_channels=2)
    assert torch.equal(y[:, :4], x) and y.shape == (6, 6, 3, 5)
    for sample, group in ((0, (0, 2, 4)), (3, (1, 3, 5))):  # groups are strided
        for i in range(2):
            sigma = (x[list(group), 2 * i : 2 * i + 2].var(0, unbiased=False) + 1e-8).sqrt().mean()
            torch.testing.assert_close(y[sample, 4 + i], sigma.expand(3, 5))
    torch.testing.assert_close(gk.reference.minibatch_stddev(x, 3, 2), y)
    assert gk.minibatch_stddev(x[:2]).shape == (2, 5, 3, 5)  # a batch smaller than a group is a group
    assert gradgradcheck(lambda x: gk.minibatch_stddev(x, 3, 2), x)


def test_minibatch_discrimination_is_that_of_the_product(device):
    x, T = (
        torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True) for shape in ((4, 3, 2), (6, 5, 3))
    )
    y = gk.minibatch_discrimination(x, T)
    torch.testing.assert_close(y, gk.reference.minibatch_discrimination(x, T))
    alone = gk.minibatch_discrimination(x[:1], T)
    assert torch.equal(alone, torch.ones_like(alone))  # j = i counts, and is 1
    assert gradcheck(gk.minibatch_discrimination, (x, T)) and gradgradcheck(gk.minibatch_discrimination, (x, T))


def test_memory_of_minibatch_discrimination_is_linear_in_the_batch():
    def peak(samples):
        m = torch.randn(samples, 8, 4, requires_grad=True)
        return cpu_peak_memory(lambda i: torch.ops.gankernels.minibatch_discrimination(m).square().sum().backward(), 0)

    assert peak(800) <= 2.2 * peak(400) < 400 * 400 * 4  # less than a single matrix of pairs
