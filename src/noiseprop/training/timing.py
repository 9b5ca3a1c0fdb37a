"""Paired timing: every candidate runs once per round, so that a slow machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def time_in_turn(
    candidates: Mapping[str, Callable[[], object]],
    *,
    warmup: int = 5,
    rounds: int = 30,
    most: int = 400,
    precision: float = 0.02,
    seconds: float = 60.0,
    burst: int = 1,
) -> dict[str, list[float]]:
    """Return the seconds of each candidate in each round, until every median ratio to the first has error `precision`.

    At least `rounds` are made, at most `most`, for at most `seconds`. A round runs a candidate `burst` times in a row
    and, if that is more than once, drops the first time, which finds the code of another candidate in the caches.
    """
    for _ in range(warmup):
        for run in candidates.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    started = time.perf_counter()
    while len(next(iter(times.values()))) < most and time.perf_counter() - started < seconds:
        for name, run in candidates.items():
            if burst > 1:
                run()
            start = time.perf_counter()
            for _ in range(max(1, burst - 1)):
                run()
            times[name].append((time.perf_counter() - start) / max(1, burst - 1))
        done = len(next(iter(times.values())))
        if done >= rounds and done % 10 == 0 and max(compare_times(times, each)["error"] for each in times) < precision:
            break
    return times


def compare_times(times: Mapping[str, list[float]], name: str) -> dict[str, float]:
    """Return a candidate's time relative to the first: median, its 95 % half-width ("error"), and quartiles."""
    first = next(iter(times.values()))
    ratios = sorted(a / b for a, b in zip(times[name], first, strict=True))
    n = len(ratios)
    half = 0.98 * n**0.5  # ranks of the sign test's interval for a median
    low, high = ratios[max(0, int(n / 2 - half))], ratios[min(n - 1, int(n / 2 + half))]
    median = statistics.median(ratios)
    return {
        "median": median,
        "quartile_1": ratios[n // 4],
        "quartile_3": ratios[(3 * n) // 4],
        "error": (high - low) / 2 / median,
        "rounds": n,
        "milliseconds": statistics.median(times[name]) * 1e3,
    }
