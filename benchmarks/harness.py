"""Interleaved measurements of the variants of a case, reported through pytest-benchmark.

pytest-benchmark measures test after test, so a machine that drifts (clocks, neighbours, temperature) flatters whoever ran at the
right time. Here the variants of a case take turns within one process. The samples are taken once, by the first test of the case
that asks for them, and each variant's test replays its own into the `benchmark` fixture on a clock that advances by exactly that
much: tables, JSON and --benchmark-compare work as for any other test.

On a GPU two times are taken: what a call costs its caller, launches included (pytest-benchmark's figure), and the device's own time
with the launches queued up ahead of it, which is what a share of the floor means there.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import itertools
import json
import math
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import gankernels

OURS, FLOOR = "gankernels", "floor"  # every other eager variant is named stock…
MIN_ROUNDS, MAX_ROUNDS = 5, 500
FEWEST_ROUNDS, LONG = 3, 10.0  # of processes, and of what takes longer than so many seconds for more rounds


@dataclasses.dataclass
class Workload:
    """What a case prepares: its variants, ready to be called.

    variants  name -> call(i), where i counts calls and picks among rotated inputs
    check     raises AssertionError when the op is wrong; runs before anything is measured
    after     untimed, after every call(i): puts back what the call used up
    bytes     what the floor reads and writes
    forward   one forward pass of the network, F: the flops of each eager variant are then counted in F, its convolutions by kind
    images    real images that a call trains on
    limit     for calls that are processes of their own: seconds that gankernels may take beyond stock
    goals     peer -> how many times as fast as that peer gankernels ought to be here; below 1 for the floor
    """

    variants: dict[str, Callable[[int], object]]
    check: Callable[[], None]
    after: Callable[[int], None] = lambda i: None
    bytes: int | None = None
    forward: Callable[[], object] | None = None
    images: int | None = None
    limit: float | None = None
    goals: dict[str, float] = dataclasses.field(default_factory=dict)


# --- tests out of cases ---


class ReplayClock:
    """The timer of every benchmark here: it moves only when a sample is replayed."""

    now = 0.0

    def __call__(self):
        return self.now

    def replay(self, seconds):
        self.now += seconds


CLOCK = ReplayClock()


def case(
    *variants: str,
    tier: str = "quick",
    combinations: Sequence[dict[str, str]] | None = None,
    extra: Callable[[dict[str, str]], Sequence[str]] = lambda combination: (),
    **parameters: Sequence[str],
):
    """Turns a function that prepares a Workload into one test per combination of `parameters` and per variant.

    The function is called with the device and the parameters of one combination, all strings. `combinations` lists them where
    they are not a product, `extra` the variants that only some of them have. Cases of tier "full" are left out of a quick run.
    """
    if combinations is None:
        combinations = [dict(zip(parameters, values)) for values in itertools.product(*parameters.values())]
    pairs = [(chosen, variant) for chosen in combinations for variant in (*variants, *extra(chosen))]

    def decorate(prepare):
        name = prepare.__name__.removeprefix("test_").removesuffix(f"_{tier}")

        @getattr(pytest.mark, tier)
        @pytest.mark.benchmark(timer=CLOCK)
        @pytest.mark.parametrize(
            ("chosen", "variant"),
            [pytest.param(chosen, variant, id="-".join([*chosen.values(), variant])) for chosen, variant in pairs],
        )
        def test(request, benchmark, settings, chosen, variant):
            title = f"{name}[{'-'.join(chosen.values())}]" if chosen else name
            benchmark.group = title

            def prepared():
                workload = prepare(settings.device, **chosen)
                workload.variants = {name: workload.variants[name] for name in (*variants, *extra(chosen))}
                return workload

            if benchmark.disabled:
                workload = prepared()
                workload.check()
                benchmark(workload.variants[variant], 0)
                return
            measured = settings.measured(title, tier, prepared)
            samples = measured.samples[variant]
            pending = iter(samples)
            benchmark.pedantic(CLOCK.replay, setup=lambda: ((next(pending),), {}), rounds=len(samples))
            path, _, test_name = request.node.nodeid.partition("::")
            this_case = test_name.removesuffix(f"{variant}]")
            row = measured.row(variant) | {
                "case": title,
                "variant": variant,
                "tier": tier,
                **settings.environment,
                "command": f"pytest {path} -k '{this_case}'" + (" --tier full" if tier == "full" else ""),
                "cost": measured.cost,
            }
            benchmark.extra_info.update(row)
            settings.record(row)

        test.__name__, test.__doc__, test.__module__ = prepare.__name__, prepare.__doc__, prepare.__module__
        return test

    return decorate


def machine_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    name = (models or [platform.processor() or platform.machine()])[0].replace("(R)", "")
    return f"{name}, {torch.get_num_threads()} threads"


class Settings:
    """The command line of one run, and what it has measured so far."""

    def __init__(
        self,
        device: str,
        seconds: float,
        rows: str | None,
        budget: float = math.inf,
        tell: Callable[[str], None] = lambda line: None,
    ):
        self.device, self.seconds, self.budget, self.tell = device, seconds, budget, tell
        self.environment = {
            "device": device,
            "machine": machine_name(device),
            "date": time.strftime("%Y-%m-%d"),
            "versions": {"gankernels": gankernels.__version__, "torch": torch.__version__,
                         "python": platform.python_version()},
        }  # fmt: skip
        if seconds:
            self.environment["ceilings"] = ceilings(device)
        self._rows = Path(rows) if rows else None
        self._measured: dict[tuple[str, str], Measured | str] = {}
        self._began = time.perf_counter()

    def measured(self, title, tier, prepare) -> Measured:
        """The samples of a case, taken the first time. A case that is wrong, or breaks, has none: all its tests fail."""
        key = title, tier  # the full tier has some cases with further variants
        if key not in self._measured:
            began = time.perf_counter()
            if began - self._began > self.budget:
                pytest.skip("the time of --budget is up")
            torch.manual_seed(0)
            try:
                found = measure(prepare(), self.device, self.seconds)
                found.cost = time.perf_counter() - began
                self._measured[key] = found
                self.tell(f"{time.perf_counter() - self._began:6.0f} s  {title}: {found.summary()}")
            except Exception as error:
                self._measured[key] = f"{type(error).__name__}: {error}"
                raise
            finally:
                if "torch._dynamo" in sys.modules:
                    torch._dynamo.reset()  # cases compile the same functions, and so many versions of one are refused
                gc.collect()
                gc.freeze()  # what a case leaves behind, imports mostly, need not be looked through after every other
                if self.device == "cuda":
                    torch.cuda.empty_cache()
        found = self._measured[key]
        if isinstance(found, str):
            pytest.fail(f"the case failed before: {found}", pytrace=False)
        return found

    def record(self, row):
        """Appends to the file of rows at once: what was measured before a run is cut off is not lost."""
        if self._rows is not None:
            with self._rows.open("a") as file:
                file.write(json.dumps(row) + "\n")


# --- measuring ---


@dataclasses.dataclass
class Measured:
    samples: dict[str, list[float]]  # seconds per call, as its caller sees it
    device_samples: dict[str, list[float]]  # seconds per call on the GPU alone; on the CPU the same lists
    memory: dict[str, int]  # most bytes live at once during a call, beyond those before it
    passes: dict[str, dict]
    bytes: int | None
    images: int | None
    limit: float | None
    goals: dict[str, float]
    cost: float = 0.0  # seconds that all of it took

    def summary(self) -> str:
        """The medians, in a line."""
        medians = ", ".join(
            f"{name} {1e3 * statistics.median(samples):.4g} ms" for name, samples in self.samples.items()
        )
        return f"{medians}; {len(next(iter(self.samples.values())))} rounds, took {self.cost:.1f} s"

    def row(self, variant: str) -> dict:
        medians = {name: statistics.median(samples) for name, samples in self.samples.items()}
        device = {name: statistics.median(samples) for name, samples in self.device_samples.items()}
        stock = [name for name in medians if name.startswith("stock") and not name.endswith("_compiled")]
        row = {
            "median": medians[variant],
            "p20": quantile(self.samples[variant], 0.2),
            "p80": quantile(self.samples[variant], 0.8),
            "rounds": len(self.samples[variant]),
            "device_median": device[variant],
            # against each peer as a caller sees it, against the floor on the device
            "speedup": {
                peer: (device[peer] / device[variant]) if peer == FLOOR else medians[peer] / medians[variant]
                for peer in medians
                if peer != variant
            },
            "ratio": min(medians[name] for name in stock) / medians[variant],
        }
        if variant in self.memory:
            row["memory"] = self.memory[variant]
        if variant == OURS:
            row["goals"] = self.goals
            if self.limit is not None:
                beyond = [a - b for a, b in zip(self.samples[OURS], self.samples["stock"])]
                row |= {"beyond": statistics.median(beyond), "limit": self.limit}
        if FLOOR in medians:
            row["floor_share"] = device[FLOOR] / device[variant]
        if self.bytes is not None:
            row |= {"bytes": self.bytes, "bytes_per_second": self.bytes / device[variant]}
        if self.images is not None:
            row["images_per_second"] = self.images / medians[variant]
        if variant in self.passes:
            row |= self.passes[variant] | {"flops_per_second": self.passes[variant]["flops"] / device[variant]}
        return row


def quantile(samples, q):
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, math.floor(q * len(ordered)))]


def measure(workload: Workload, device: str, seconds: float) -> Measured:
    """Round after round, every variant once per round, for about `seconds`; a single round for 0."""
    workload.check()
    calls = workload.variants
    counter = itertools.count()

    def finished(timer, call):
        i = next(counter)
        elapsed = timer(call, i)
        workload.after(i)
        return elapsed

    passes, memory, peak = {}, {}, peak_memory_of(device)
    # a process has memory of its own, and nothing to warm up
    for name, call in calls.items() if workload.limit is None else ():
        if workload.forward is None or name.endswith("_compiled"):
            finished(wall_time, call)
            memory[name] = finished(peak, call)
        else:
            with Counted() as counted:
                memory[name] = finished(peak, call)
            passes[name] = counted.in_units_of(workload.forward)

    def rounds(timer, seconds):
        samples = {name: [] for name in calls}
        names, order, began = list(calls), random.Random(0), time.perf_counter()
        while len(samples[names[0]]) < MAX_ROUNDS:
            for name in names:
                samples[name].append(finished(timer, calls[name]))
            # taking turns, everybody would mostly follow the same neighbour, and find its lines in the cache
            order.shuffle(names)
            elapsed = time.perf_counter() - began
            least = FEWEST_ROUNDS if workload.limit is not None or elapsed > LONG else MIN_ROUNDS
            if elapsed > seconds and len(samples[names[0]]) >= (least if seconds else 1):
                break
        return samples

    gc.collect()
    gc.disable()
    try:
        if device == "cpu" or workload.limit is not None:
            samples = device_samples = rounds(wall_time, seconds)
        else:
            samples = rounds(event_time, seconds / 2)
            ahead = 2 * max(statistics.median(s) for s in samples.values())
            device_samples = rounds(lambda call, i: event_time(call, i, ahead), seconds / 2)
    finally:
        gc.enable()
    return Measured(
        samples, device_samples, memory, passes, workload.bytes, workload.images, workload.limit, workload.goals
    )


def wall_time(call, i):
    began = time.perf_counter()
    call(i)
    return time.perf_counter() - began


CYCLES_PER_SECOND = 2e9  # of torch.cuda._sleep; only its order of magnitude matters


def event_time(call, i, ahead: float = 0.0):
    """Seconds between two events around the call; `ahead` keeps the device busy meanwhile, so that no launch is waited for."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    if ahead:
        torch.cuda._sleep(int(ahead * CYCLES_PER_SECOND))
    start.record()
    call(i)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_memory_of(device):
    return cuda_peak_memory if device == "cuda" else cpu_peak_memory


def cuda_peak_memory(call, i):
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(i)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def cpu_peak_memory(call, i):
    """From the allocator's own record: it also sees what kernels allocate inside."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call(i)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(0, *live, 0)


class Counted(TorchDispatchMode):
    """Floating-point operations, and convolutions by kind. Stock also computes weight gradients as forward convolutions; these
    count as forward."""

    def __init__(self):
        super().__init__()
        self.flops = 0
        self.convolutions = {"forward": 0, "input gradient": 0, "weight gradient": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        if func is torch.ops.aten.convolution.default:
            self.convolutions["forward"] += 1
        elif func is torch.ops.aten.convolution_backward.default:
            self.convolutions["input gradient"] += args[10][0]
            self.convolutions["weight gradient"] += args[10][1]
        return out

    def in_units_of(self, forward):
        with Counted() as one, torch.no_grad():
            forward()
        return {"passes": self.flops / one.flops, "flops": self.flops, "convolutions": self.convolutions}


def ceilings(device: str) -> dict[str, float]:
    """What this machine does at most, now: bytes read and written per second by a large copy, operations per second of a large
    matrix product, fastest of some rounds."""
    size = 1024 if device == "cpu" else 8192
    timer = wall_time if device == "cpu" else event_time
    source, destination = torch.rand(2, 2**24 if device == "cpu" else 2**28, device=device)

    def fastest(call):
        return min(timer(call, i) for i in range(MIN_ROUNDS))

    found = {"copy": 2 * nbytes(source) / fastest(lambda i: destination.copy_(source))}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size, device=device, dtype=dtype)
        found[str(dtype).removeprefix("torch.")] = 2 * size**3 / fastest(lambda i: a @ a)
    return found


# --- what cases are made of ---


def nbytes(tree) -> int:
    """Of all tensors in a nest of tuples, lists, dicts and modules."""
    leaves = torch.utils._pytree.tree_leaves(tree)
    tensors = [t for leaf in leaves for t in (leaf.parameters() if isinstance(leaf, torch.nn.Module) else [leaf])]
    return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))


def rotated(make: Callable[[], object], device: str) -> list:
    """As many results of make(), 16 at most, as it takes for a call to find none of its inputs in a cache."""
    first = make()
    cache = 2 * torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 32 << 20
    return [first, *(make() for _ in range(min(16, math.ceil(cache / max(nbytes(first), 1))) - 1))]


def copy_of(size: int, device: str, fresh: int = 0) -> Callable[[int], None]:
    """The floor of an op that reads and writes `size` bytes in all: a copy of half as many, of which `fresh` go to memory
    that is allocated for it, the others to memory that is there already."""
    there = size // 2 - fresh
    repeats = math.ceil(there / (256 << 20))
    shape = (max(1, there // max(repeats, 1) // 4),)
    pairs = rotated(lambda: (torch.rand(shape, device=device), torch.zeros(shape, device=device)), device)
    source_of_fresh = torch.rand(fresh // 4, device=device)

    def copy(i):
        source, destination = pairs[i % len(pairs)]
        for _ in range(repeats):
            destination.copy_(source)
        if fresh:
            torch.empty_like(source_of_fresh).copy_(source_of_fresh)

    return copy


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_pages(keep: bool):
    """Whether glibc's malloc keeps large blocks that were freed, instead of returning them to the system."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0 if keep else 65536)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1 if keep else 128 << 10)


def assert_accurate(ours, stock, exact, what: str, rounding: float | None = None):
    """The error of ours against float64 is at most four times stock's in the same precision, if that is a number, plus eight times
    the rounding of one operation, that of the dtype if not given."""
    assert len(ours) == len(stock) == len(exact), f"{what}: {len(ours)}, {len(stock)}, {len(exact)} results"
    for index, (a, b, truth) in enumerate(zip(ours, stock, exact)):
        assert a.shape == b.shape == truth.shape, f"{what}[{index}]: shapes {a.shape}, {b.shape}, {truth.shape}"
        scale = truth.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        error, allowed = (torch.linalg.vector_norm(t - truth, torch.inf) / scale for t in (a, b))
        allowed = 4 * allowed.nan_to_num(0.0) + 8 * (rounding or torch.finfo(a.dtype).eps)
        assert error <= allowed, f"{what}[{index}]: relative error {error:.1e}, and {allowed:.1e} is allowed"
