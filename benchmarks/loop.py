"""What the loop itself costs: digits WGAN-GP by `Trainer` with its progress bar, and by a loop written out by hand; and how long a
checkpoint of 100 MB keeps a training waiting."""

import time
from statistics import median

import torch
from ganzoo.data import open as open_data
from ganzoo.training.checkpoint import Saver
from ganzoo.training.health import Health
from ganzoo.training.loop import Trainer
from ganzoo.training.monitor import Monitor
from ganzoo.training.ops import get_ops
from ganzoo.training.run import LOG_EVERY
from ganzoo.variants import DataInfo, Networks, create

BLOCKS, STEPS = 15, 12


def by_hand(variant, images):
    """The training as one writes it for this one variant."""
    ops = get_ops("gankernels")
    networks = variant.networks(DataInfo("digits", images.shape[1:]), ops)
    generator, critic = networks.generator, networks.critic
    average = [p.detach().clone() for p in generator.parameters()]
    step_critic = ops.Adam(critic.parameters(), lr=variant.lr, betas=variant.betas)
    step_generator = ops.Adam(
        generator.parameters(), lr=variant.lr, betas=variant.betas, ema=average, ema_decay=variant.ema
    )
    batch, latent, order = variant.batch, variant.latent, torch.randperm(len(images))
    position = 0
    while True:
        critic.requires_grad_(True)
        for _ in range(variant.critic_steps):
            if position + batch > len(order):
                order, position = torch.randperm(len(images)), 0
            real = images[order[position : position + batch]]
            position += batch
            with torch.no_grad():
                fake = generator(torch.randn(batch, latent))
            loss = critic(fake).mean() - critic(real).mean()
            loss = loss + ops.gradient_penalty(critic, real, fake, eps=torch.rand(batch), weight=variant.penalty_weight)
            step_critic.zero_grad()
            loss.backward()
            step_critic.step()
        critic.requires_grad_(False)
        loss = -critic(generator(torch.randn(batch, latent))).mean()
        step_generator.zero_grad()
        loss.backward()
        step_generator.step()
        yield


def by_the_loop(variant, data, folder):
    trainer, health = Trainer(variant, data), Health()
    with Monitor(folder, "digits", 0, 10**6) as monitor:
        while True:
            health.note(trainer.steps + 1, trainer.step())
            if trainer.steps % LOG_EVERY == 0:
                monitor.log(trainer.steps, health.check())
            monitor.advance(trainer.steps)
            yield


def test_overhead_of_the_loop(tmp_path):
    torch.set_num_threads(1)
    data = open_data("digits")
    images = data.fetch(torch.arange(len(data)))["image"]
    loops = {"by hand": by_hand(create("wgan-gp"), images), "the loop": by_the_loop(create("wgan-gp"), data, tmp_path)}
    seconds = {name: [] for name in loops}

    def block(loop):
        began = time.perf_counter()
        for _ in range(STEPS):
            next(loop)
        return (time.perf_counter() - began) / STEPS

    for loop in loops.values():
        block(loop)
    for number in range(BLOCKS):
        for name in sorted(loops, reverse=number % 2 == 1):
            seconds[name].append(block(loops[name]))
    hand, ours = median(seconds["by hand"]), median(seconds["the loop"])
    overhead = median(b / a for a, b in zip(seconds["by hand"], seconds["the loop"])) - 1
    print(f"by hand {hand * 1e3:.2f} ms a step, the loop {ours * 1e3:.2f} ms: {overhead:+.1%}")
    for loop in loops.values():
        loop.close()
    assert overhead <= 0.03


def test_stall_of_a_checkpoint_of_100_mb(tmp_path):
    torch.set_num_threads(1)
    variant = create("gan", batch=2)
    trainer = Trainer(variant, torch.rand(2, 1, 8, 8))
    trainer.networks = Networks(generator=trainer.networks.generator, discriminator=torch.nn.Linear(5000, 5000))
    stalls = []
    with Saver(tmp_path) as saver:
        for _ in range(3):
            began = time.perf_counter()
            saver.save(trainer)
            stalls.append(time.perf_counter() - began)
            saver.wait()
    size = (tmp_path / "checkpoint.pt").stat().st_size
    print(f"{size / 1e6:.0f} MB: training stood still for {median(stalls) * 1e3:.0f} ms")
    assert size > 100e6 and max(stalls) < 1
