"""Read what a run's users need without its data set: classes, precision, splits."""

import json
from collections.abc import Sequence
from typing import Any

from tl_dist.files import limits
from tl_dist.files.atomic import reason
from tl_dist.files.foreign import read_file
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir


def identity_of(run: RunDir) -> dict[str, Any]:
    """Return what the run's workers have agreed on; refuse (64) a run that has not begun, or that has no model."""
    identity = run.read_identity()
    if "cross_validation" in (run.done or {}):
        what = f"{run.path} is a cross-validation, which keeps no model."
        fix = "train the config on all training examples: tl-dist train CONFIG."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    if identity is None:
        what = f"{run.path} has not begun."
        raise Refusal(what, fix="train it first: tl-dist train CONFIG.", code=ExitCode.USAGE)
    for key in ("class_names", "precision", "data"):
        if key not in identity:
            what = f"{run.identity_file} holds no {key}."
            raise Refusal(what, fix="restore the file from a copy.", code=ExitCode.UNSAFE)
    return identity


def split_ids(run: RunDir) -> dict[str, list[str]]:
    """Return the ids of each split's examples, by the run's own manifest; refuse (78) a damaged one."""
    file = run.path / "split.json"
    try:
        splits = json.loads(read_file(file, max_bytes=limits.SPLIT_MANIFEST))["splits"]
        return {str(split): [str(name) for name in entry["ids"]] for split, entry in splits.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{file} cannot be read ({reason(error)})."
        raise Refusal(what, fix="restore the file.", code=ExitCode.UNSAFE) from error


def columns(run: RunDir, class_names: Sequence[str], key: str) -> list[int]:
    """Return the index of each class among those of the run that `key` names; refuse (64) a run of other classes."""
    theirs = identity_of(run)["class_names"]
    if sorted(theirs) != sorted(class_names):
        only = [sorted(set(a) - set(b)) for a, b in ((theirs, class_names), (class_names, theirs))]
        words = [", ".join(map(repr, names[:5])) or "none more" for names in only]
        what = f"{key} {run.path} has other classes: {words[0]} there alone, {words[1]} here alone."
        fix = "name a run of the same classes (they are matched by their names)."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    return [theirs.index(name) for name in class_names]
