"""Run property-based tests: what counts as a good outcome, and how many inputs are tried.

An outcome is good if it is a result, or one sentence that says what is wrong with the input. Any other exception, more
than :data:`SECONDS` of processor time and more than :data:`MEMORY` of additional memory are failures.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import resource
import secrets
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamask import cli
from dynamask.structures import DynaMaskError

SECONDS, WAITING = 20, 180
"""Seconds of processor time, and of waiting, after which an input has failed."""
MEMORY = 2**30
"""Bytes by which one input may raise the process's memory."""
LONGEST_SENTENCE = 1500
"""Characters of a message: a few paths or names of an input may be part of it, the whole input may not."""
LONG_RUN_SECONDS = float(os.environ.get("DYNAMASK_FUZZ_SECONDS", "60"))
"""Seconds that ``pytest -m fuzz`` spends on each target."""

settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink),
)
settings.register_profile("fuzz", settings.get_profile("ci"), derandomize=False, max_examples=250)


class TooSlowError(BaseException):
    """An input took too long; no base of the exceptions that the code under test catches."""


@dataclass(frozen=True)
class Target:
    """A part of the product that takes input from outside.

    Attributes:
        inputs: valid inputs with mutations, and random ones.
        check: called with an input; it raises if the outcome is not good.
        examples: number of inputs in the normal test run.
    """

    inputs: st.SearchStrategy
    check: Callable[[Any], None]
    examples: int


def run_examples(target: Target) -> None:
    """Check the same few inputs in every run."""
    _run(target, settings(settings.get_profile("ci"), max_examples=target.examples), None)


def run_for(target: Target, seconds: float = LONG_RUN_SECONDS) -> int:
    """Check new inputs until the time is over, and return how many there were."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        count += _run(target, settings.get_profile("fuzz"), secrets.randbits(32), end)
    return count


def _run(target: Target, profile: settings, seed: int | None, end: float = float("inf")) -> int:
    count = 0

    @profile
    @given(target.inputs)
    def every_outcome_is_good(value: Any) -> None:
        nonlocal count
        if time.monotonic() < end:
            count += 1
            with bounded():
                target.check(value)

    if seed is not None:
        every_outcome_is_good = hypothesis.seed(seed)(every_outcome_is_good)
    every_outcome_is_good()
    return count


# Outcomes


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Limit the time and the memory of the code inside."""
    before = _reset_peak()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if before is not None:  # ends what would take the memory of the whole machine
        resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + 4 * MEMORY, limits[1]))
    handlers = [(number, signal.signal(number, _stop)) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    try:
        yield
    except TooSlowError:
        raise AssertionError(f"it took more than {SECONDS} s of processor time, or waited for {WAITING} s") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers:
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    if before is not None:
        grown = _memory("VmHWM") - before
        assert grown <= MEMORY, f"it took {grown / 2**20:.0f} MB"


def _stop(*_: Any) -> None:
    raise TooSlowError


def _reset_peak() -> int | None:
    """Memory of this process in bytes, from which its peak counts again; None where the system cannot tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _memory("VmRSS")


def _memory(what: str) -> int:
    """A figure of this process in bytes: VmRSS, VmSize, or VmHWM, the peak of VmRSS."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{what}:\s*(\d+) kB", status, flags=re.MULTILINE)[1]) * 1024


def result_or_sentence(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result of a call, or None where it refused its arguments in one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*arguments, **options)
        except DynaMaskError as error:
            check_sentence(str(error).encode("utf-8", errors="replace").decode())
            return None


def check_sentence(text: str) -> None:
    """Assert that a message is one sentence of a readable length."""
    assert text.strip(), "an error without a message"
    assert len(text) <= LONGEST_SENTENCE, f"a message of {len(text)} characters: {text[:200]!r}"
    assert "Traceback" not in text


_parser = functools.cache(cli.build_parser)  # most of the time of a small command


def run_command(*words: str, codes: tuple[int, ...] = (0, 2)) -> int:
    """The exit code of ``dynamask`` with these words, after checking what it printed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    before = sys.stdout, sys.stderr, warnings.showwarning
    sys.stdout, sys.stderr = out, err
    try:
        with mock.patch.object(cli, "build_parser", _parser):
            code = cli.main(list(words))
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout, sys.stderr, warnings.showwarning = before
    lines = err.buffer.getvalue().decode("utf-8").split("\n")[:-1]
    printed = [line for line in lines if not line.startswith("dynamask: warning: ")]
    assert code in codes, f"exit code {code}"
    if code == 2:
        errors = [line for line in printed if line.startswith("dynamask: error: ")]
        assert len(errors) == 1 and printed[-1] == errors[0], printed
        check_sentence(errors[0].removeprefix("dynamask: error: "))
    return code
