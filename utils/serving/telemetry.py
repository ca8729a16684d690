"""Request counts in the text format of Prometheus (exposition format 0.0.4).

Labels are endpoints, status codes and verdicts; nothing about pictures, names or clients is recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

PREFIX = "deepfake_engine_"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FAMILIES = {  # kind and help
    "requests_total": ("counter", "Requests by endpoint and HTTP status."),
    "verdicts_total": ("counter", "Images by verdict."),
    "request_seconds": ("histogram", "Seconds from a complete request to its answer."),
    "queue_images": ("gauge", "Images waiting for the detector."),
    "batches_total": ("counter", "Batches scored."),
    "scored_total": ("counter", "Regions scored."),
}


class Telemetry:
    """Counters and one histogram; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: dict[str, dict[str, float]] = {name: {} for name in FAMILIES}

    def _add(self, family: str, sample: str, value: float = 1) -> None:
        self._samples[family][sample] = self._samples[family].get(sample, 0) + value

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request and its duration."""
        name, label = "request_seconds", f'endpoint="{endpoint}"'
        with self._lock:
            self._add("requests_total", f'requests_total{{{label},status="{status}"}}')
            for edge in (*SECONDS, float("inf")):
                text = "+Inf" if edge == float("inf") else edge
                self._add(name, f'{name}_bucket{{{label},le="{text}"}}', int(seconds <= edge))
            self._add(name, f"{name}_sum{{{label}}}", seconds)
            self._add(name, f"{name}_count{{{label}}}")

    def verdict(self, verdict: str) -> None:
        """Count the verdict on an image."""
        with self._lock:
            self._add("verdicts_total", f'verdicts_total{{verdict="{verdict}"}}')

    def text(self, values: Mapping[str, float]) -> str:
        """Format all counts, and ``values`` of families without labels."""
        lines = []
        with self._lock:
            for name, (kind, meaning) in FAMILIES.items():
                samples = {name: values[name]} if name in values else self._samples[name]
                lines += [f"# HELP {PREFIX}{name} {meaning}", f"# TYPE {PREFIX}{name} {kind}"]
                lines += [f"{PREFIX}{sample} {value:.9g}" for sample, value in samples.items()]
        return "\n".join(lines) + "\n"
