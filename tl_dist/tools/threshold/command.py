"""`tl-dist threshold`: choose a threshold for a class, or take costs of mistakes, and keep the rule in the run."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_dist import tasks
from tl_dist.config import file as config_file
from tl_dist.files import limits
from tl_dist.files.atomic import write_atomically
from tl_dist.files.foreign import read_file
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint
from tl_dist.runs.directory import RunDir
from tl_dist.scores import calibration, conformal, decision, predictions, text
from tl_dist.scores.decision import Decision
from tl_dist.scores.predictions import Predictions


class Wish(NamedTuple):
    """What the rule should reach: one of `recall`, `precision`, `f1` and `costs`."""

    recall: float | None = None
    precision: float | None = None
    of_class: str | None = None
    """the class of recall and precision; default: the second of two"""
    costs: Path | None = None
    """a CSV table: true classes in its first column, chosen ones in its first row"""
    f1: bool = False
    """of task 'multilabel' alone: the greatest F1 of each label"""


def choose(path: Path, wish: Wish, at: str = "") -> tuple[Decision, dict[str, Any]]:
    """Choose the rule for a checkpoint, store it in the run, and return it with its effect on the validation split.

    Refuses (64) a run without a validation split, (65) one whose validation predictions are of another checkpoint, and
    costs for probabilities that are not calibrated.
    """
    run = RunDir.open(path)
    saved = checkpoint.find(run, at)
    if saved is None:
        fix = "train it first: tl-dist train CONFIG."
        raise Refusal(f"{run.path} has no checkpoint.", fix=fix, code=ExitCode.USAGE)
    predicted = _validation(run, saved.step, at)
    cfg = config_file.load(run.config_file, imports=False)
    kind, share = ("precision", wish.precision) if wish.recall is None else ("recall", wish.recall)
    if not tasks.one_class_each(cfg):
        if not tasks.gives_labels(cfg):
            raise Refusal("numbers have no threshold.", fix="leave it out.", code=ExitCode.USAGE)
        thresholds = _of_labels(predicted, wish)
        aim = "greatest F1" if wish.f1 else f"{kind} at least {share:g}"
        rule = Decision(f"{aim} of each label", saved.sha256, saved.step, 1.0, thresholds=thresholds)
        write_atomically(run.path / decision.FILE, rule.to_json())
        return rule, rule.effect_on_labels(predicted.targets > 0.5, predicted.probabilities)
    if wish.f1:
        what = f"--f1 chooses a threshold for each of several labels, and {run.path} gives each image one class."
        raise Refusal(what, fix="use --recall, --precision or --costs.", code=ExitCode.USAGE)
    names = [str(name) for name in predicted.class_names]
    fit = calibration.of_checkpoint(run.path, saved.sha256)
    temperature = 1.0 if fit is None else fit.temperature
    probabilities = decision.calibrated(predicted.probabilities, temperature)
    of = saved.sha256, saved.step, temperature
    if wish.costs is not None:
        if fit is None:
            what = f"costs need calibrated probabilities, and step {saved.step:,} of {run.path} is not calibrated."
            raise Refusal(what, fix=f"tl-dist calibrate {run.path}, then this again.", code=ExitCode.DATA)
        rule = Decision(f"least cost by {wish.costs.name}", *of, costs=costs_of(wish.costs, names))
    else:
        positive = _class(names, wish.of_class)
        least = _least(wish, predicted.labels == positive, probabilities[:, positive])
        aim = f"{kind} of '{names[positive]}' at least {share:g}"
        rule = Decision(aim, *of, positive=positive, at_least=least)
    write_atomically(run.path / decision.FILE, rule.to_json())
    return rule, rule.effect(predicted.labels, probabilities, [str(group) for group in predicted.groups])


def _of_labels(predicted: Predictions, wish: Wish) -> tuple[float, ...]:
    """Return the threshold of each label that reaches the wish on these images. Refuses one that no threshold has."""
    if wish.costs is not None or wish.of_class is not None:
        fix = "use --recall, --precision or --f1, without --class."
        raise Refusal("each label gets a threshold of its own.", fix=fix, code=ExitCode.USAGE)
    thresholds = []
    for name, has, own in zip(predicted.class_names, predicted.targets.T, predicted.probabilities.T, strict=True):
        try:
            if not has.any():
                raise Refusal("no validation image has it.", fix="add some, or leave it out.", code=ExitCode.DATA)
            thresholds.append(_least(wish, has > 0.5, own))
        except Refusal as refusal:
            raise Refusal(f"label '{name}': {refusal.what}", fix=refusal.fix, code=refusal.code) from None
    return tuple(thresholds)


def _least(wish: Wish, has: NDArray[np.bool_], own: NDArray[np.floating]) -> float:
    """Return the threshold on the probabilities `own` that reaches the wish for the images that have the class."""
    if wish.recall is not None:
        return decision.just_below(conformal.least_probability(own[has], wish.recall, "recall"))
    if wish.precision is not None:
        return decision.threshold_for_precision(has.astype(np.int32), own, 1, wish.precision)
    return decision.threshold_for_f1(has, own)


def remove(path: Path) -> None:
    """Remove the rule of a run: the class with the highest probability is chosen again."""
    (RunDir.open(path).path / decision.FILE).unlink(missing_ok=True)


def show(rule: Decision, effect: dict[str, Any], path: Path, say: Callable[[str], None]) -> None:
    """Print the rule, its effect where it was chosen, and who obeys it."""
    where = "" if rule.positive is None else f" is reached from probability {rule.at_least:.4f} on"
    if rule.thresholds:
        where = f", from probabilities {', '.join(f'{value:.4f}' for value in rule.thresholds)} on"
    say(f"step {rule.step:,}: {rule.aim}{where}")
    say(f"validation: {text.decision(effect)}")
    say("from now on predict, serve and export decide on the class by this rule; probabilities stay as they are")
    say(f"to see the effect on the test split: tl-dist eval {path}")


def _validation(run: RunDir, step: int, at: str) -> Predictions:
    file = predictions.file_of(run.path, "validation")
    again = f"tl-dist eval {run.path} --split validation" + (f" --at {at}" if at else "")
    if not file.exists():
        data = config_file.load(run.config_file).data
        if not (data.validation_fraction or data.split or data.folds) and not (run.path / "predictions").exists():
            again = "train it with data.validation_fraction, such as 0.2, under another name=NAME"
        what = f"{run.path} has no predictions of a validation split, and nothing may be chosen on the test split."
        raise Refusal(what, fix=f"{again}.", code=ExitCode.USAGE)
    predicted = predictions.load(file)
    if predicted.step != step:
        what = f"the validation predictions of {run.path} are of step {predicted.step:,}, its checkpoint of {step:,}."
        raise Refusal(what, fix=f"{again}, then this again.", code=ExitCode.DATA)
    return predicted


def _class(names: Sequence[str], wanted: str | None) -> int:
    if wanted in names:
        return names.index(str(wanted))
    if wanted is None and len(names) == 2:
        return 1
    what = "--class must say of which class" if wanted is None else f"the run has no class '{wanted}'"
    raise Refusal(f"{what}.", fix=f"use one of {', '.join(names[:20])}.", code=ExitCode.USAGE)


def costs_of(path: Path, names: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    """Read costs [true class][chosen class] of these classes, in any order. Refuses (64) anything else."""
    lines = read_file(path, max_bytes=limits.EVALUATION).decode("utf-8-sig", "replace").splitlines()
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    try:
        chosen = rows[0][1:]
        table = {row[0]: dict(zip(chosen, map(float, row[1:]), strict=True)) for row in rows[1:]}
        costs = np.array([[table[true][decided] for decided in names] for true in names])
        if len(table) != len(names) or len(chosen) != len(names):
            raise ValueError("it has other classes, too")
        if not np.isfinite(costs).all():
            raise ValueError("a cost is not finite")
    except (ValueError, KeyError, IndexError) as error:
        why = f"class {error} is missing" if isinstance(error, KeyError) else str(error)
        raise Refusal(
            f"{path} is no table of costs for {', '.join(names[:20])}: {why}.",
            fix="write the classes in the first row (chosen) and the first column (true), and numbers between.",
            code=ExitCode.USAGE,
        ) from error
    return tuple(map(tuple, costs.tolist()))
