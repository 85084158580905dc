"""What the losses draw: batches of data, latents and random numbers, all of them functions of the seed and a position.

Nothing here has a state but how many samples were drawn so far. So a run resumes from a number, batches can be
fetched ahead in another thread, and a process of many, or one micro-batch of many, computes the draws of the whole
batch and takes its slice: the game does not depend on how it was cut.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import torch

from ganzoo.data.base import Tensors
from ganzoo.errors import ArgumentError, Error

AHEAD = 3
"""Batches that are fetched ahead from data outside of memory."""


def check_seed(seed):
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ArgumentError("seed", "a whole number of at least 0 and below 2^63", repr(seed))
    return seed


def seed_of(*numbers):
    """A seed from a seed and further whole numbers. Seeds that differ in the last number alone are different in the 32 bits
    that PyTorch's CPU generator looks at."""
    mixed = 0
    for number in numbers[:-1]:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF  # one round of SplitMix64
        mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return (mixed + numbers[-1]) & 0x7FFFFFFFFFFFFFFF


@contextlib.contextmanager
def private_random(seed, device):
    """PyTorch's default generators, those of dropout and of initialisers, seeded; afterwards the caller's states are back."""
    cuda = torch.device(device).type == "cuda"
    outer = torch.get_rng_state(), cuda and torch.cuda.get_rng_state(device)
    torch.default_generator.manual_seed(seed)
    if cuda:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(outer[0])
        if cuda:
            torch.cuda.set_rng_state(outer[1], device)


class Order:
    """The endless order in which a set of samples is drawn: one random permutation after another, the epochs, each a
    function of the seed and its number."""

    def __init__(self, length, seed):
        self._length, self._seed = length, seed
        self._epoch, self._permutation = -1, None

    def __getitem__(self, positions):
        start, stop, parts = positions.start, positions.stop, []
        while start < stop:
            epoch, first = divmod(start, self._length)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(seed_of(self._seed, epoch))
                self._epoch, self._permutation = epoch, torch.randperm(self._length, generator=generator)
            parts.append(self._permutation[first : first + stop - start])
            start += len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Sample(dict):
    """The fields of a batch by name. One that it does not have is named in a sentence, with who `asks` for it."""

    def __init__(self, fields, asks, data):
        super().__init__(fields)
        self._asks, self._data = asks, data

    def __missing__(self, field):
        raise Error(
            f"{self._asks} asks for the field {field} of {self._data}, a sample of which has {', '.join(self)}."
        )


class Source:
    """Batches of a data set by position, those of sets outside of memory fetched ahead in a thread."""

    def __init__(self, data, seed):
        self.name, self._data, self._order = data.name, data, Order(len(data), seed)
        self._thread = None if isinstance(data, Tensors) else ThreadPoolExecutor(1, "ganzoo-fetch")
        self._coming = {}

    def fetch(self, start, stop, step):
        """The samples at these positions, as a dict. The next call is likely to ask for those `step` further on."""
        if self._thread is None:
            return self._data.fetch(self._order[start:stop])
        batch = self._coming.pop((start, stop), None)
        batch = batch.result() if batch else self._data.fetch(self._order[start:stop])
        wanted = [(start + ahead * step, stop + ahead * step) for ahead in range(1, AHEAD + 1)]
        coming = {span: future for span, future in self._coming.items() if span[0] >= start}
        for span in wanted:
            if span not in coming:
                coming[span] = self._thread.submit(self._data.fetch, self._order[slice(*span)])
        self._coming = coming
        return batch


class Draw:
    """What a loss may sample: every call is fresh. Counts are those of the whole batch; what comes back is the share of
    this process and this micro-batch."""

    def __init__(self, variant, sources, seed, device):
        self._variant, self._seed = variant, seed
        self._sources = {
            domain: Source(data, seed_of(seed, 1, number)) for number, (domain, data) in enumerate(sources.items())
        }
        self._main = next(iter(sources))
        self._generator = torch.Generator(device)
        self.positions = dict.fromkeys(sources, 0)
        self.step, self.asks = 0, "this variant"  # who draws, as the subject of a sentence
        self._share, self._shares, self._update = 0, 1, None

    def begin(self, update, share=0, shares=1):
        """Start the draws of an update over: they are those of its number and the positions that it began at."""
        if update != self._update:
            self._update, self._began = update, dict(self.positions)
        self.positions.update(self._began)
        self._share, self._shares = share, shares
        self._generator.manual_seed(seed_of(self._seed, 2, update))

    def mark(self):
        """Where the draws stand, to `go_back` to."""
        return dict(self.positions), self._generator.get_state()

    def go_back(self, mark):
        self.positions.update(mark[0])
        self._generator.set_state(mark[1])

    def _mine(self, values):
        if self._shares == 1:
            return values
        size = len(values) // self._shares
        return values[self._share * size : (self._share + 1) * size]

    def _whole(self, count, rows):
        return rows * self._shares if rows else count or self._variant.batch

    def batch(self, domain=None, count=None):
        """`count` samples, `batch` unless given, of the data or of one of its domains: a dict of fields."""
        if domain is None and len(self.positions) > 1:
            raise Error(
                f"{self.asks} draws from one data set, and the data are the domains {', '.join(self.positions)}."
            )
        domain = self._main if domain is None else domain
        if domain not in self.positions:
            raise Error(f"{self.asks} draws from a domain {domain}, which the data do not have.")
        count = self._variant.batch if count is None else count
        size, position = count // self._shares, self.positions[domain]
        self.positions[domain] = position + count
        start, source = position + self._share * size, self._sources[domain]
        return Sample(source.fetch(start, start + size, count), self.asks, source.name)

    def real(self, domain=None, count=None):
        """The same samples' images alone, (count, ...)."""
        batch = self.batch(domain, count)
        if "image" not in batch:
            raise Error(f"{self.asks} draws single images, and a sample of the data has {', '.join(batch)} instead.")
        return batch["image"]

    def latents(self, count=None):
        """Latents from the variant's prior, `batch` of them unless given."""
        return self._mine(self._variant.latents(count or self._variant.batch, self._generator))

    def uniform(self, *shape, count=None, rows=None):
        """U(0, 1), (batch, *shape): one row per sample. `rows` asks for as many as there are at hand, of a part of the batch where it is
        one that the loss sees."""
        rows = (self._whole(count, rows), *shape)
        return self._mine(torch.rand(rows, device=self._generator.device, generator=self._generator))

    def normal(self, *shape, count=None, rows=None):
        """N(0, 1), (batch, *shape): one row per sample; `rows` as in `uniform`."""
        rows = (self._whole(count, rows), *shape)
        return self._mine(torch.randn(rows, device=self._generator.device, generator=self._generator))

    def integers(self, high, *shape, count=None, rows=None):
        """Whole numbers in 0 ... high − 1, (batch, *shape): one row per sample; `rows` as in `uniform`."""
        rows = (self._whole(count, rows), *shape)
        return self._mine(torch.randint(high, rows, device=self._generator.device, generator=self._generator))


class Noted:
    """Passes requests on to a draw, and notes them, for a loss that runs again on values drawn beforehand."""

    def __init__(self, draw):
        self._draw, self.requests = draw, []

    def __getattr__(self, method):
        def ask(*args, **options):
            self.requests.append((method, args, options))
            return getattr(self._draw, method)(*args, **options)

        return ask

    @property
    def step(self):
        raise Error(
            "a loss that is compiled or captured cannot read draw.step, a plain number; it can read a buffer of the "
            "networks that `after` counts up."
        )

    def mark(self):
        return len(self.requests), self._draw.mark()

    def go_back(self, mark):
        del self.requests[mark[0] :]
        self._draw.go_back(mark[1])


def _answer(method):
    """A method of `Given`; a functools.partialmethod would break the graphs of PyTorch 2.11."""

    def answer(self, *args, **options):
        return self._give(method, *args, **options)

    return answer


class Given:
    """Answers noted requests with values, in their order."""

    def __init__(self, requests, values):
        self._requests, self._values, self._next = requests, values, 0

    def _give(self, method, *args, **options):
        number, self._next = self._next, self._next + 1
        if number == len(self._requests) or self._requests[number] != (method, args, options):
            raise Error(
                f"a loss that is compiled or captured must draw the same at every call, and now asks for {method}."
            )
        return self._values[number]

    def begin(self, *_):
        self._next += 1

    batch = _answer("batch")
    real = _answer("real")
    latents = _answer("latents")
    uniform = _answer("uniform")
    normal = _answer("normal")
    integers = _answer("integers")
    step = Noted.step
