"""Export the model of a run as a file for another runtime."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tl_dist.runs import request
from tl_dist.scores.text import paired_test


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Export a checkpoint in a format, and compare it with the run."""

    to: str
    numbers: str
    out: str  # a directory
    check: str = "test"  # the split on which it is compared with the run; "none" for no comparison
    min_agreement: float | None = None
    """None: 0.999 in the precision of the run, 0.99 in another, 0.98 in int8"""


def agreement(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words how far a compared export is from its run: image by image, and by their accuracies."""
    of = "class" if "paired" in report else "answer"
    yield (
        f"{report['num_agreeing']:,} of {report['num_examples']:,} images of '{report['split']}' have the {of} that "
        f"the run gives them | largest difference {'of a probability ' if 'paired' in report else ''}"
        f"{report['largest_difference']:.2g}"
    )
    if "paired" in report:
        first, second = report["paired"]["accuracies"]
        yield f"accuracy {second:.4f}, of the run {first:.4f} ({paired_test(report['paired'])})"
