"""The same kernels under AddressSanitizer, in a process of their own: accesses outside a buffer, misaligned vectors."""

import os
import subprocess
import sys
from pathlib import Path

import harness
import pytest

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(harness.under_asan(), reason="already under AddressSanitizer"),
    pytest.mark.skipif(harness.compiler() is None, reason="no C++ compiler"),
    pytest.mark.skipif(
        harness.compiler() is not None and not (harness.runtime("libasan.so") and harness.runtime("libubsan.so")),
        reason="the compiler has no AddressSanitizer runtime",
    ),
]


def run(*arguments):
    # libstdc++ as well: AddressSanitizer looks for the real __cxa_throw at the start, before our module brings it
    preload = f"{harness.runtime('libasan.so')} {harness.runtime('libstdc++.so.6')}"
    # stacks to detect use after return do not go together with fibers; Python itself leaks by design
    environment = dict(os.environ, LD_PRELOAD=preload, ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0")
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_kernels_are_clean():
    # which addresses are touched does not depend on the order; huge arrays would have shadow memory to match
    one_order = "not descending and not shuffled and not beyond"
    options = [
        "-q",
        "-s",
        "-x",
        "-p",
        "no:cacheprovider",
        f"--confcutdir={HERE}",
        f"--ignore={HERE}/test_nvcc.py",
        "-k",
        one_order,
    ]
    done = run("-m", "pytest", *options, str(HERE))
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "call, finding",
    [
        ("global_write(y, 1)", "heap-buffer-overflow"),
        ("global_write(y, -1)", "heap-buffer-overflow"),
        ("dynamic_write(y, 1)", "heap-buffer-overflow"),
        ("shared_write(y, True)", "out of bounds|global-buffer-overflow"),
        ("misaligned_load(y)", "misaligned address"),
    ],
)
def test_a_planted_access_is_caught(call, finding):
    program = (
        "import harness, numpy; m = harness.load(); y = numpy.zeros(512, numpy.float32); print('start', flush=True)"
    )
    done = run("-c", f"{program}; m.{call}")
    assert "start" in done.stdout and done.returncode != 0, done.stdout + done.stderr
    assert any(word in done.stderr for word in finding.split("|")), done.stderr
