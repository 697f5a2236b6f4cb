"""Latency: which engine is called when and for how long, and the statistics of the samples.

Nothing here knows an engine or a process, and the clock is an argument, so tests need not wait.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from quantvm.jobs.latency.schema import LatencyRow

SPREAD_WARNING = 0.10
"""An interquartile range above this share of the median is too noisy to tell times apart that differ by 10 %."""


def time_calls(
    call: Callable[[], object],
    *,
    min_calls: int,
    min_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Returns the duration of each call in milliseconds; ends when both minimums, calls and seconds, are reached.

    Args:
        call: what is timed.
        min_calls: at least this many calls.
        min_seconds: at least this long, measured over the calls alone.
        clock: returns seconds.
    """
    samples_ms: list[float] = []
    measured_s = 0.0
    while len(samples_ms) < min_calls or measured_s < min_seconds:
        start_s = clock()
        call()
        duration_s = clock() - start_s
        measured_s += duration_s
        samples_ms.append(duration_s * 1e3)
    return samples_ms


def alternate(
    engines: Sequence[str],
    measure: Callable[[str, float], Sequence[float] | None],
    *,
    min_rounds: int,
    min_seconds: float,
) -> dict[str, list[list[float]]]:
    """Returns each engine's samples in milliseconds, round by round; a round holds a slice of every engine.

    So whatever slows the machine down for a while affects all of them. Every other round takes the engines in reverse
    order, so that none always follows the same one. It ends when every engine has reached both minimums.

    Args:
        engines: names.
        measure: measures a slice of that many seconds of one engine and returns its samples; None: the engine failed
            and drops out.
        min_rounds: at least this many rounds.
        min_seconds: at least so many seconds of calls for each engine.
    """
    slice_s = min_seconds / min_rounds
    rounds: dict[str, list[list[float]]] = {name: [] for name in engines}
    n_rounds = 0
    while rounds and not (n_rounds >= min_rounds and all(_seconds(r) >= min_seconds for r in rounds.values())):
        order = list(rounds)
        for name in order if n_rounds % 2 == 0 else reversed(order):
            samples_ms = measure(name, slice_s)
            if samples_ms is None:
                del rounds[name]
            else:
                rounds[name].append(list(samples_ms))
        n_rounds += 1
    return rounds


def _seconds(rounds_ms: Iterable[Iterable[float]]) -> float:
    # Slices whose sum equals the asked seconds up to rounding are enough.
    return sum(map(sum, rounds_ms)) / 1e3 * (1 + 1e-9)


def summarize(rounds_ms: Sequence[Sequence[float]], batch: int) -> LatencyRow:
    """Returns the statistics of the samples of all rounds; percentiles are interpolated linearly.

    Args:
        rounds_ms: durations of calls, at least one.
        batch: images in one call.
    """
    samples_ms = np.concatenate([np.asarray(r, dtype=np.float64) for r in rounds_ms])
    p25, p50, p75, p90, p99 = (float(p) for p in np.percentile(samples_ms, [25, 50, 75, 90, 99]))
    spread = (p75 - p25) / p50
    return {
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "min_ms": float(samples_ms.min()),
        "n": len(samples_ms),
        "n_rounds": len(rounds_ms),
        "round_p50_ms": [float(np.median(r)) for r in rounds_ms],
        "images_per_s": 1e3 * batch / p50,
        "spread": spread,
        "spread_warning": spread > SPREAD_WARNING,
    }


def geometric_mean(values: Iterable[float]) -> float | None:
    """Returns the geometric mean, or None of no values."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None
