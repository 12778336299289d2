"""`tl-dist report`: write one page about a run, or about several on the same examples; workers compute heat maps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tl_dist import tasks
from tl_dist.datasets import Splits
from tl_dist.files.atomic import write_output
from tl_dist.files.foreign import refuse_other
from tl_dist.launcher.task import Computation
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.records import flattered
from tl_dist.scores.explanations import Explained, overlay
from tl_dist.tools.report import comparison, images, of_targets, single
from tl_dist.tools.report.examples import MAX_SUSPECTS, Examples, examples_of
from tl_dist.tools.report.facts import Facts, gather
from tl_dist.tools.report.page import MARK


@dataclass(frozen=True)
class Request:
    """The options of `tl-dist report`."""

    runs: Sequence[Path]
    out: Path | None = None
    split: str | None = None
    heat_maps: int = 40  # number of errors to compute heat maps of
    how: Computation = field(default_factory=Computation)  # how heat maps are computed
    explain: Callable[..., Explained] | None = None
    """`tools.explain.command.ask`; without it there are no heat maps"""
    pictures: bool = True  # if False, the data set is not opened


def report(request: Request, say: Callable[[str], None]) -> Path:
    """Write the page, report progress by `say`, and return the path of the page.

    Refuses (73) to replace a file that is not a report. The run directory alone is enough for a page without pictures.
    """
    first, *others = request.runs
    out = request.out or (Path("comparison.html") if others else first / "report.html")
    refuse_other(out, lambda file: MARK in file.read(256), what="a report", option="--out")
    facts = [gather(path, request.split) for path in request.runs]
    content = _comparison(facts, say) if others else _single(facts[0], request, say)
    write_output(out, content, option="--out")
    return out


def _single(facts: Facts, request: Request, say: Callable[[str], None]) -> bytes:
    notes = list[str]()
    splits = images.opened(facts, notes) if request.pictures else {}
    if not request.pictures:
        notes.append(f"This page was made without images: tl-dist report {facts.run.path} adds them, and heat maps.")
    predicted = facts.predictions
    if not len(predicted.groups):
        predicted = replace(predicted, groups=images.groups_of(predicted.ids, splits))
    if len(predicted.targets):
        say("reading images")
        facts, twins = replace(facts, predictions=predicted), images.twins_of(facts, splits) if splits else None
        ids = [*map(str, predicted.ids[of_targets.worst(facts)])]
        ids += [name for _, pair in (twins or ())[: images.MAX_TWINS] for name, _, _ in pair]
        return of_targets.page(facts, images.thumbnails(splits, ids), twins, notes)
    examples, twins = examples_of(replace(facts, predictions=predicted)), None
    if splits:
        say("looking for near duplicates")
        twins = images.twins_of(facts, splits)
        say("reading images")
        ids = [*predicted.ids[examples.pictured()]]
        ids += [*examples.suspects_of.ids[examples.suspects.examples[:MAX_SUSPECTS]]]
        ids += [name for _, pair in (twins or ())[: images.MAX_TWINS] for name, _, _ in pair]
        examples = replace(examples, images=images.thumbnails(splits, ids))
        examples = replace(examples, heat=_heat(examples, splits, request, notes, say))
    return single.page(examples, twins=twins, notes=notes)


def _comparison(facts: Sequence[Facts], say: Callable[[str], None]) -> bytes:
    for each in facts:
        tasks.refuse_others(each.cfg, "a comparison counts images with the right class", "report on each run by itself")
    compared = comparison.compare(facts)
    notes = [f"{each.run.name}: {text}." for each in facts for text in flattered(each.run.path)]
    splits = images.opened(facts[0], notes)
    if not len(compared.groups):
        compared = replace(compared, groups=images.groups_of(compared.ids, splits))
    say("reading images")
    shown = compared.ids[compared.disagreements()]
    return comparison.page(compared, images.thumbnails(splits, shown), notes)


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
    return {
        str(ids[k]): images.address_of(picture, images.HEAT_SIDE) for k, picture in zip(worst, pictures, strict=True)
    }
