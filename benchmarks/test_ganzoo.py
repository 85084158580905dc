"""Training as `ganzoo train` does it on digits, step by step: every update of a generator step, data, averages and figures included,
with the ops of gankernels and with the same maths in stock PyTorch."""

import ganzoo
from ganzoo.data.digits import digits

from .harness import OURS, Workload, case

VARIANTS = ("gan", "wgan", "wgan-gp", "sngan")


@case(OURS, "stock", variant=VARIANTS)
def test_train(device, variant):
    images = digits()[0]
    trainers = {ops: ganzoo.Trainer(ganzoo.create(variant), images, device=device, ops=ops) for ops in (OURS, "stock")}
    for trainer in trainers.values():
        trainer.steps = 25  # until then WGAN's critic takes 100 updates in a step
        trainer.step()
    one = trainers[OURS]
    before = one.images_drawn
    one.step()
    images_per_step = one.images_drawn - before

    def check():
        """tests/zoo compares the training of both families of ops; here, that both are alive."""
        for trainer in trainers.values():
            assert all(figure.isfinite() for figure in trainer.step().values())

    steps = {ops: (lambda i, trainer=trainer: trainer.step()) for ops, trainer in trainers.items()}
    return Workload(steps, check, images=images_per_step, goals={"stock": 1.0})
