"""Open a run for a tool that works on its features, with records and stops as in training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from tl_dist.features.extraction import Say
from tl_dist.features.regressions import Stopped
from tl_dist.runs.directory import RunDir
from tl_dist.runs.records import append_to
from tl_dist.trainer.setup import Setup, setup


@contextmanager
def on_features(
    run: RunDir, phase: str, cores: int, *, alone: bool
) -> Iterator[tuple[Setup, Callable[[], bool], Say]]:
    """Open a run for a task on its features. Yields its setup, a check for a stop, and a writer of records.

    `Stopped`, which a fit raises when a stop was requested, ends the body.
    """
    run_setup = setup(run, cores=cores)
    with append_to(run.metrics_file) as lines, run_setup.parallel.naming_lost_peers():
        stop_requested = partial(run_setup.stop_requested, phase, alone=alone)
        with suppress(Stopped):

            def say(record: Mapping[str, Any]) -> None:
                lines.write(json.dumps(record) + "\n")

            yield run_setup, stop_requested, say
