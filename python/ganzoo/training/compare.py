"""Images per second of a variant with the ops of gankernels and with stock PyTorch's, side by side."""

import time
from statistics import median

import torch

from ganzoo.training.loop import Trainer

BLOCK_SECONDS = 0.3


def compare_speed(variant, data, *, device, blocks):
    """Trains two copies of a variant, alike but for their ops, in turns of about 0.3 s.

    Returns `images_per_second` and `stock_images_per_second`, each the median over `blocks` turns, and their `ratio`.
    An image counts once for each discriminator or critic update that it is drawn for. What else the machine does falls
    on both sides alike, since the turns are short and alternate in their order.
    """
    trainers = {ops: Trainer(variant, data, device=device, ops=ops) for ops in ("gankernels", "stock")}
    for trainer in trainers.values():
        _images_per_second(trainer, 3)
    began = time.perf_counter()
    _images_per_second(trainers["stock"], 3)
    steps = max(1, round(3 * BLOCK_SECONDS / (time.perf_counter() - began)))
    rates = {ops: [] for ops in trainers}
    for block in range(blocks):
        for ops in sorted(trainers, reverse=block % 2 == 1):
            rates[ops].append(_images_per_second(trainers[ops], steps))
    ours, stock = median(rates["gankernels"]), median(rates["stock"])
    return {"images_per_second": ours, "stock_images_per_second": stock, "ratio": ours / stock, "blocks": blocks}


def _images_per_second(trainer, steps):
    before = trainer.images_drawn
    began = time.perf_counter()
    for _ in range(steps):
        trainer.step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return (trainer.images_drawn - before) / (time.perf_counter() - began)


def speed_line(speed):
    """One line that says which side is faster and by how much."""
    ratio, ours, stock = speed["ratio"], speed["images_per_second"], speed["stock_images_per_second"]
    if ratio >= 1:
        verdict = f"gankernels is {ratio:.2f} times as fast"
    else:
        verdict = f"gankernels is SLOWER here, {ratio:.2f} times as fast"
    return (
        f"gankernels {ours:,.0f} images/s, stock PyTorch {stock:,.0f} images/s: {verdict} "
        f"(medians of {speed['blocks']} interleaved blocks)."
    )
