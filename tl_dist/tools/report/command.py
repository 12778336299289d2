"""`tl-dist report`: one page about a run, or about several on the same examples; heat maps are computed by workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Splits
from tl_dist.datasets.division import open_splits, pooled
from tl_dist.files.atomic import write_output
from tl_dist.files.foreign import refuse_other
from tl_dist.launcher.task import Computation
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.records import flattered
from tl_dist.scores import heat
from tl_dist.scores.explanations import Explained
from tl_dist.tools.report import comparison, single
from tl_dist.tools.report.duplicates import Twin, twins_in
from tl_dist.tools.report.examples import MAX_SUSPECTS, Examples, examples_of
from tl_dist.tools.report.facts import OUT_OF_FOLD_SPLIT, Facts, gather
from tl_dist.tools.report.page import MARK, require_jinja2
from tl_dist.tools.report.pictures import HEAT_SIDE, address_of, thumbnails

_TWINS_SHOWN = 24


@dataclass(frozen=True)
class Request:
    """What a command line asks for."""

    runs: Sequence[Path]
    out: Path | None = None
    split: str | None = None
    heat_maps: int = 40
    """of so many errors"""
    how: Computation = field(default_factory=Computation)
    """of the heat maps"""
    explain: Callable[..., Explained] | None = None
    """`tools.explain.command.ask`; without, there are no heat maps"""
    pictures: bool = True
    """without, the data set is not opened"""


def report(request: Request, say: Callable[[str], None]) -> Path:
    """Write the page, and say what it is made from; where it lies.

    Refuses (73) to replace a file that is no such page. What a run keeps is enough for a page without pictures.
    """
    require_jinja2()
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
        splits = _opened(facts, notes)
    else:
        splits = {}
        notes.append(
            f"The page was made without images: tl-dist report {facts.run.path} adds them, and heat maps."
        )
    groups = _groups(facts.said.ids, splits) if not len(facts.said.groups) else facts.said.groups
    facts = replace(facts, said=replace(facts.said, groups=groups))
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
    notes = [f"{one.run.name}: {text}." for one in facts for text in flattered(one.run.path)]
    splits = _opened(facts[0], notes)
    if not len(compared.groups):
        compared = replace(compared, groups=_groups(compared.ids, splits))
    say("reading images")
    return comparison.page(compared, _pictures(splits, compared.shown()), notes)


def _opened(facts: Facts, notes: list[str]) -> Splits:
    """The splits of the run's data set; none where they cannot be opened any more, which is noted."""
    try:
        return open_splits(facts.cfg.data)[0]
    except Refusal as refusal:
        notes.append(f"The page has no images: {refusal.what}")
        return {}


def _held_out_by(facts: Facts, splits: Splits) -> Splits:
    """The splits between which nothing may be known: of out-of-fold predictions the folds, those of the first seed."""
    if facts.split != OUT_OF_FOLD_SPLIT or facts.out_of_fold is None:
        return splits
    fold = dict(zip(facts.out_of_fold.ids.tolist(), facts.out_of_fold.fold[0].tolist(), strict=True))
    pool = pooled(splits)
    of = np.array([fold.get(name, -1) for name in pool.ids])
    return {"test" if k < 0 else f"fold {k}": pool.subset(np.flatnonzero(of == k)) for k in np.unique(of)}


def _shown(examples: Examples, twins: Iterable[Twin]) -> list[str]:
    """The ids of all that may be shown, each once."""
    said, own, suspects = examples.facts.said, examples.suspects_of, examples.suspects.examples
    ids = [*said.ids[examples.pictured()].tolist(), *own.ids[suspects[:MAX_SUSPECTS]].tolist()]
    ids += [place.id for twin in list(twins)[:_TWINS_SHOWN] for place in twin.pair]
    return list(dict.fromkeys(map(str, ids)))


def _pictures(splits: Splits, ids: Sequence[str]) -> Mapping[str, str]:
    """Addresses of small pictures, by id."""
    wanted = set(ids)
    found: dict[str, str] = {}
    for source in splits.values():
        rows = {k: name for k, name in enumerate(source.ids) if name in wanted}
        found |= {rows[k]: address for k, address in thumbnails(source, rows).items()}
    return found


def _groups(ids: NDArray[Any], splits: Splits) -> NDArray[Any]:
    """The group of each example by the data set, for older predictions; empty where it has none."""
    known: dict[str, str] = {}
    for source in splits.values():
        known |= dict(zip(source.ids, source.annotations.groups or (), strict=False))
    whole = bool(known) and known.keys() >= set(ids.tolist())
    return np.array([known[name] for name in ids.tolist()] if whole else [], np.str_)


def _heat(
    examples: Examples, splits: Splits, request: Request, notes: list[str], say: Callable[[str], None]
) -> Mapping[str, str]:
    """Addresses of pictures of what speaks for the predicted class, by id, of the worst errors.

    None of what was predicted out of fold: the run has no model that did it.
    """
    facts = examples.facts
    place = {name: k for k, name in enumerate(splits[facts.split].ids)} if facts.split in splits else {}
    worst = [k for k in examples.errors[: request.heat_maps].tolist() if facts.said.ids[k] in place]
    if not worst or request.explain is None:
        return {}
    say(f"computing heat maps of {len(worst)} errors")
    examples_of_split = [place[facts.said.ids[k]] for k in worst]
    classes = [int(examples.predicted[k]) for k in worst]
    try:
        found = request.explain(
            facts.run, request.how, split=facts.split, examples=examples_of_split, classes=classes
        )
    except Refusal as refusal:
        if refusal.code == ExitCode.REQUEUE:
            raise
        notes.append(f"There are no heat maps: {refusal.what}")
        return {}
    pictures = (heat.overlay(*pair) for pair in zip(found.images, found.cam, strict=True))
    return {
        str(facts.said.ids[k]): address_of(picture, HEAT_SIDE)
        for k, picture in zip(worst, pictures, strict=True)
    }
