"""`tl-dist report`: write one page about a run, or about several on the same examples; workers compute heat maps."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Splits
from tl_dist.datasets.division import open_splits, pooled
from tl_dist.files.atomic import write_output
from tl_dist.files.foreign import refuse_other
from tl_dist.files.packages import require
from tl_dist.launcher.task import Computation
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.records import flattered
from tl_dist.scores.explanations import Explained, overlay
from tl_dist.tools.report import comparison, single
from tl_dist.tools.report.duplicates import MAX_SHOWN, Twin, twins_in
from tl_dist.tools.report.examples import MAX_SUSPECTS, Examples, examples_of
from tl_dist.tools.report.facts import OUT_OF_FOLD_SPLIT, Facts, gather
from tl_dist.tools.report.page import MARK
from tl_dist.tools.report.pictures import HEAT_SIDE, address_of, thumbnails


@dataclass(frozen=True)
class Request:
    """The options of `tl-dist report`."""

    runs: Sequence[Path]
    out: Path | None = None
    split: str | None = None
    heat_maps: int = 40
    """number of errors to compute heat maps of"""
    how: Computation = field(default_factory=Computation)
    """how heat maps are computed"""
    explain: Callable[..., Explained] | None = None
    """`tools.explain.command.ask`; without it there are no heat maps"""
    pictures: bool = True
    """if False, the data set is not opened"""


def report(request: Request, say: Callable[[str], None]) -> Path:
    """Write the page, report progress by `say`, and return the path of the page.

    Refuses (73) to replace a file that is not a report. The run directory alone is enough for a page without pictures.
    """
    require(("jinja2",), extra="report", what="a report")
    out = request.out or (
        request.runs[0] / "report.html" if len(request.runs) == 1 else Path("comparison.html")
    )
    refuse_other(out, lambda file: MARK in file.read(256), what="a report", option="--out")
    facts = [gather(path, request.split) for path in request.runs]
    content = _single(facts[0], request, say) if len(facts) == 1 else _comparison(facts, say)
    write_output(out, content, option="--out")
    return out


def _single(facts: Facts, request: Request, say: Callable[[str], None]) -> bytes:
    notes = list[str]()
    if request.pictures:
        splits = _open_splits(facts, notes)
    else:
        splits = {}
        notes.append(
            f"This page was made without images: tl-dist report {facts.run.path} adds them, and heat maps."
        )
    predicted = facts.predictions
    groups = predicted.groups if len(predicted.groups) else _groups(predicted.ids, splits)
    facts = replace(facts, predictions=replace(predicted, groups=groups))
    examples = examples_of(facts)
    twins: Sequence[Twin] | None = None
    if splits:
        say("looking for near duplicates")
        twins = twins_in(_held_out_by(facts, splits), len(os.sched_getaffinity(0)))
        say("reading images")
        examples = replace(examples, images=_pictures(splits, _shown(examples, twins or ())))
        examples = replace(examples, heat=_heat(examples, splits, request, notes, say))
    return single.page(examples, groups=groups.tolist(), twins=twins, notes=notes)


def _comparison(facts: Sequence[Facts], say: Callable[[str], None]) -> bytes:
    compared = comparison.compare(facts)
    notes = [f"{each.run.name}: {text}." for each in facts for text in flattered(each.run.path)]
    splits = _open_splits(facts[0], notes)
    if not len(compared.groups):
        compared = replace(compared, groups=_groups(compared.ids, splits))
    say("reading images")
    return comparison.page(compared, _pictures(splits, compared.shown()), notes)


def _open_splits(facts: Facts, notes: list[str]) -> Splits:
    """Open the splits of the run's data set; return none, with a note, if that is no longer possible."""
    try:
        return open_splits(facts.cfg.data)[0]
    except Refusal as refusal:
        notes.append(f"The page has no images: {refusal.what}")
        return {}


def _held_out_by(facts: Facts, splits: Splits) -> Splits:
    """Return the parts that must not share images: the splits; of out-of-fold predictions, the first seed's folds."""
    if facts.split != OUT_OF_FOLD_SPLIT or facts.out_of_fold is None:
        return splits
    fold = dict(zip(facts.out_of_fold.ids.tolist(), facts.out_of_fold.fold[0].tolist(), strict=True))
    pool = pooled(splits)
    of = np.array([fold.get(name, -1) for name in pool.ids])
    return {"test" if k < 0 else f"fold {k}": pool.subset(np.flatnonzero(of == k)) for k in np.unique(of)}


def _shown(examples: Examples, twins: Sequence[Twin]) -> list[str]:
    """List the ids of all examples that may be shown, each once."""
    predicted, checked = examples.facts.predictions, examples.suspects_of
    suspects = examples.suspects.examples[:MAX_SUSPECTS]
    ids = [*predicted.ids[examples.pictured()].tolist(), *checked.ids[suspects].tolist()]
    ids += [place.id for twin in twins[:MAX_SHOWN] for place in twin.pair]
    return list(dict.fromkeys(map(str, ids)))


def _pictures(splits: Splits, ids: Sequence[str]) -> Mapping[str, str]:
    """Return the `data:` addresses of thumbnails, by id."""
    wanted = set(ids)
    addresses: dict[str, str] = {}
    for source in splits.values():
        rows = {k: name for k, name in enumerate(source.ids) if name in wanted}
        addresses |= {rows[k]: address for k, address in thumbnails(source, rows).items()}
    return addresses


def _groups(ids: NDArray[Any], splits: Splits) -> NDArray[Any]:
    """Look up the group of each example in the data set, for predictions saved without; empty if it has none."""
    known: dict[str, str] = {}
    for source in splits.values():
        known |= dict(zip(source.ids, source.annotations.groups or (), strict=False))
    whole = bool(known) and known.keys() >= set(ids.tolist())
    return np.array([known[name] for name in ids.tolist()] if whole else [], np.str_)


def _heat(
    examples: Examples, splits: Splits, request: Request, notes: list[str], say: Callable[[str], None]
) -> Mapping[str, str]:
    """Return the `data:` addresses of heat maps of the worst errors for the predicted class, by id.

    There are none for out-of-fold predictions: the run does not hold the models that made them.
    """
    facts = examples.facts
    ids = facts.predictions.ids
    place = {name: k for k, name in enumerate(splits[facts.split].ids)} if facts.split in splits else {}
    worst = [k for k in examples.errors[: request.heat_maps].tolist() if ids[k] in place]
    if not worst or request.explain is None:
        return {}
    say(f"computing heat maps of {len(worst)} errors")
    rows = [place[ids[k]] for k in worst]
    classes = [int(examples.predicted[k]) for k in worst]
    try:
        maps = request.explain(facts.run, request.how, split=facts.split, examples=rows, classes=classes)
    except Refusal as refusal:
        if refusal.code == ExitCode.REQUEUE:
            raise
        notes.append(f"There are no heat maps: {refusal.what}")
        return {}
    pictures = (overlay(*pair) for pair in zip(maps.images, maps.cam, strict=True))
    return {str(ids[k]): address_of(picture, HEAT_SIDE) for k, picture in zip(worst, pictures, strict=True)}
