"""Whether data keep a training waiting, and how long metrics take: `python -m benchmarks.data`.

Writes a folder of 10,000 JPEGs of 64×64 pixels, cut from scikit-learn's photos, opens it in each way and trains DCGAN's
discriminator on it, batches of 64 fetched one ahead in a thread. The wait share is the part of that time in which the step
had no batch to work on.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ganzoo.data
import torch
from ganzoo.metrics import frechet_distance, kernel_distance, moments, neighbourhoods
from ganzoo.networks import dcgan

IMAGES, SIDE, BATCH = 10_000, 64, 64


def write_images(folder):
    from PIL import Image

    photos = ganzoo.data.open("photos", size=SIDE, stride=6)
    pixels = ((photos.fetch(torch.arange(IMAGES))["image"] + 1) * 127.5).round().to(torch.uint8)
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{i:05}.jpg", quality=90)


def training_step():
    """Hinge loss of DCGAN's discriminator on a batch and its negative, backward included."""
    network = dcgan.Discriminator((3, SIDE, SIDE), 16)

    def step(images):
        network.zero_grad()
        (torch.relu(1 - network(images)).mean() + torch.relu(1 + network(-images)).mean()).backward()

    return step


def waited(data, step, seconds):
    """Steps per second and the share of the time that was spent waiting for batches."""
    generator, waiting, count = torch.Generator().manual_seed(0), 0.0, 0

    def fetch():
        return data.fetch(torch.randint(len(data), (BATCH,), generator=generator))["image"]

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(fetch)
        step(coming.result())
        coming = thread.submit(fetch)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            before = time.perf_counter()
            images = coming.result()
            waiting += time.perf_counter() - before
            coming = thread.submit(fetch)
            step(images)
            count += 1
        total = time.perf_counter() - began
    return count / total, waiting / total


def timed(function, *arguments):
    began = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of training per kind of store")
    seconds = parser.parse_args().seconds
    step = training_step()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GANZOO_CACHE"] = str(Path(folder, "cache"))
        images = Path(folder, "images")
        images.mkdir()
        write_images(images)
        fixed = ganzoo.data.Tensors("one batch", {"image": torch.zeros(BATCH, 3, SIDE, SIDE)})
        print(f"{torch.get_num_threads()} threads; without data {waited(fixed, step, seconds)[0]:.1f} steps/s")
        for store in ("memory", "disk", "disk again", "files"):
            data, opening = timed(lambda: ganzoo.data.open(str(images), store=store.split()[0]))
            rate, share = waited(data, step, seconds)
            print(f"{store:10} opened in {opening:5.2f} s, {rate:5.1f} steps/s, wait share {share:.2%}")
    for dimensions in (64, 2048):
        real, fake = torch.randn(IMAGES, dimensions), torch.randn(IMAGES, dimensions) + 0.1
        first = moments(real)
        frechet = timed(lambda: frechet_distance(moments(fake), first))[1]
        kernel, near = timed(kernel_distance, fake, real)[1], timed(neighbourhoods, fake, real)[1]
        print(
            f"{IMAGES} features of {dimensions}: Fréchet distance {frechet:.1f} s, "
            f"kernel distance {kernel:.1f} s, precision to coverage {near:.1f} s"
        )


if __name__ == "__main__":
    main()
