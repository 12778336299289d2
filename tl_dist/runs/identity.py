"""What a run is, for those who use it: its classes and precision need no data set."""

from __future__ import annotations

from typing import Any

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import UNWRITTEN, RunDir


def identity_of(run: RunDir) -> dict[str, Any]:
    """What the workers of the run have agreed on; refuses (64) a run that has not begun."""
    identity = run.read_identity()
    if identity is None:
        raise Refusal(
            f"{run.path} has not begun.", fix="train it first: tl-dist train CONFIG.", code=ExitCode.USAGE
        )
    return identity


def decoding_of(run: RunDir, *, new: int) -> int:
    """By which version of the rule of decoding the run reads images; `new` where it has not begun."""
    identity = run.read_identity()
    return new if identity is None else int(identity.get("decoding", UNWRITTEN["decoding"]))
