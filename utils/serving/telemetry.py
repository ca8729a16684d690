"""Request counts in the text format of Prometheus (exposition format 0.0.4).

Labels are endpoints, status codes and verdicts; nothing about pictures, names or clients is recorded.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping

PREFIX = "deepfake_engine_"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Telemetry:
    """Counters and one histogram; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._verdicts: Counter[str] = Counter()
        self._buckets: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[str] = Counter()

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request and its duration."""
        with self._lock:
            self._requests[endpoint, status] += 1
            self._buckets[endpoint, bisect_left(SECONDS, seconds)] += 1
            self._seconds[endpoint] += seconds  # type: ignore[assignment]

    def verdict(self, verdict: str) -> None:
        """Count the verdict on an image."""
        with self._lock:
            self._verdicts[verdict] += 1

    def text(self, gauges: Mapping[str, tuple[str, str, Callable[[], float]]]) -> str:
        """Format all counts, and ``gauges`` (name to kind, help and a function that returns the value)."""
        with self._lock:
            lines = _header("requests_total", "counter", "Requests by endpoint and HTTP status.")
            lines += [
                f'{PREFIX}requests_total{{endpoint="{endpoint}",status="{status}"}} {count}'
                for (endpoint, status), count in sorted(self._requests.items())
            ]
            lines += _header("verdicts_total", "counter", "Images by verdict.")
            lines += [
                f'{PREFIX}verdicts_total{{verdict="{verdict}"}} {n}' for verdict, n in sorted(self._verdicts.items())
            ]
            lines += _header("request_seconds", "histogram", "Seconds from a complete request to its answer.")
            for endpoint in sorted(self._seconds):
                lines += self._histogram(endpoint)
        for name, (kind, description, read) in gauges.items():
            lines += [*_header(name, kind, description), f"{PREFIX}{name} {read():g}"]
        return "\n".join(lines) + "\n"

    def _histogram(self, endpoint: str) -> list[str]:
        lines, total = [], 0
        for number, edge in enumerate((*map(str, SECONDS), "+Inf")):
            total += self._buckets[endpoint, number]
            lines.append(f'{PREFIX}request_seconds_bucket{{endpoint="{endpoint}",le="{edge}"}} {total}')
        lines.append(f'{PREFIX}request_seconds_sum{{endpoint="{endpoint}"}} {self._seconds[endpoint]:.6f}')
        return [*lines, f'{PREFIX}request_seconds_count{{endpoint="{endpoint}"}} {total}']


def _header(name: str, kind: str, description: str) -> list[str]:
    return [f"# HELP {PREFIX}{name} {description}", f"# TYPE {PREFIX}{name} {kind}"]
