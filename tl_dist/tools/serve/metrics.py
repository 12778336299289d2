"""Count what a server has done, in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

from collections import Counter
from threading import Lock

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counts that several threads add to."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._codes: Counter[int] = Counter()
        self._took: Counter[float] = Counter()
        self._seconds = 0.0
        self._counts = {"images": 0, "image_errors": 0, "batches": 0}

    def request(self, code: int, seconds: float) -> None:
        """Count a request for a prediction that has been answered."""
        with self._lock:
            self._codes[code] += 1
            self._took[next((bound for bound in BOUNDS_S if seconds <= bound), float("inf"))] += 1
            self._seconds += seconds

    def batch(self, images: int) -> None:
        """Count a batch of images that has been computed."""
        with self._lock:
            self._counts["images"] += images
            self._counts["batches"] += 1

    def image_errors(self, number: int) -> None:
        """Count images that could not be decoded."""
        with self._lock:
            self._counts["image_errors"] += number

    @property
    def requests(self) -> int:
        """The number of answered requests for predictions, with any status code."""
        return sum(self._codes.values())

    def text(self) -> str:
        """Return all counts and the histogram of answer times."""
        with self._lock:
            lines = ["# TYPE tl_dist_requests_total counter"]
            lines += [
                f'tl_dist_requests_total{{code="{code}"}} {n}' for code, n in sorted(self._codes.items())
            ]
            for name, number in self._counts.items():
                lines += [f"# TYPE tl_dist_{name}_total counter", f"tl_dist_{name}_total {number}"]
            lines.append("# TYPE tl_dist_request_seconds histogram")
            within = 0
            for bound in (*BOUNDS_S, float("inf")):
                within += self._took[bound]
                label = "+Inf" if bound == float("inf") else f"{bound:g}"
                lines.append(f'tl_dist_request_seconds_bucket{{le="{label}"}} {within}')
            lines.append(f"tl_dist_request_seconds_sum {self._seconds:.6f}")
            lines.append(f"tl_dist_request_seconds_count {within}")
        return "\n".join(lines) + "\n"
