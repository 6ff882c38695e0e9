"""How long calls take, measured so that they can be compared on a machine that does other things as well."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call: percentiles over `runs` calls."""

    p50: float
    p95: float
    p99: float
    runs: int

    def json(self) -> dict[str, float]:
        return asdict(self)


def measure(
    calls: Mapping[str, Callable[[], object]], *, seconds: float = 0.5, at_least: int = 20
) -> dict[str, Latency]:
    """Latency of each call. They take turns, so that a burst of other load meets all of them alike; for `seconds` in
    all and `at_least` that often, after three turns that do not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    warm_up = 3
    end = time.perf_counter() + seconds
    turn = 0
    while turn < warm_up + at_least or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= warm_up:
                times[name].append(1000 * (time.perf_counter() - start))
        turn += 1
    return {name: _percentiles(each) for name, each in times.items()}


def _percentiles(times: list[float]) -> Latency:
    p50, p95, p99 = (float(value) for value in np.percentile(times, (50, 95, 99)))
    return Latency(p50, p95, p99, len(times))
