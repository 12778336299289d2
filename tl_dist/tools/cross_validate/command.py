"""`tl-dist cv`: every example is predicted by classifiers that have not seen it, for several divisions into folds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_dist.config import Config
from tl_dist.datasets import seen
from tl_dist.datasets.division import manifest_of_folds, open_splits
from tl_dist.datasets.grouping import one_fold_each
from tl_dist.features.classifiers import selection
from tl_dist.files.atomic import write_output
from tl_dist.files.private import make_private
from tl_dist.launcher.task import run_shown
from tl_dist.launcher.train import Request, after_source_task, open_run, train_config, with_workers
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import split_ids
from tl_dist.scores import cross_validation, figures, predictions
from tl_dist.scores.cross_validation import OUT_OF_FOLD
from tl_dist.terminal.tables import column_groups, narrow_table, relative, show_groups
from tl_dist.tools.cross_validate import Request as Folds

if TYPE_CHECKING:
    from tl_dist.terminal.console import Console


def cross_validate(request: Request, folds: int, seeds: int, console: Console, by: str | None = None) -> int:
    """Run what is missing of the folds, and show the figures; the same command resumes after a stop.

    A classifier that is computed from features takes one extraction and one process; any other config is trained once
    for each fold, as a run of its own: NAME-cv-SEED-FOLD. `by`: each group of this kind is held out once, as
    `datasets.grouping.named` has it; their run is NAME-cv-by-BY.
    """
    cfg = request.load()
    seen.flattered(cfg, request.runs, "cv")
    name = cross_validation.name_of(cfg.name, by)
    if cfg.classifier.computed:
        found = _on_features(request, name, folds, seeds, console, by)
    else:
        groups, held_out = None, None
        if by is not None:
            groups, names = _folds_by_group(request, cfg, name, by)
            folds, seeds, held_out = len(names), 1, (by, names)
        code = _by_training(request, cfg, name, folds, seeds, console, groups)
        if code != ExitCode.DONE:
            return code
        found = _merged(request, name, folds, seeds, held_out)
    show(found, console)
    console.say(f"out-of-fold predictions: {relative(request.runs / name / OUT_OF_FOLD)}")
    return ExitCode.DONE


def _on_features(
    request: Request, name: str, folds: int, seeds: int, console: Console, by: str | None
) -> dict[str, Any]:
    cfg = request.load(f"name={json.dumps(name)}")
    task = Folds(folds=folds, seeds=seeds, by=by)
    run = run_shown(request, cfg, task, "cross-validation", console)
    return dict((run.done or {})["cross_validation"])


def _folds_by_group(request: Request, cfg: Config, name: str, by: str) -> tuple[Path, list[str]]:
    """A manifest in which each group is a fold, and their names."""
    whole = cfg.data.model_copy(update={"validation_fraction": 0.0, "test_fraction": 0.0})
    splits = open_splits(whole)[0]
    if set(splits) != {"train"}:
        raise Refusal(
            f"the data set of {request.config} has a division of its own, so that its groups cannot be held out.",
            fix="use a data set without official splits, and no data.split; or a computed classifier.",
            code=ExitCode.USAGE,
        )
    fold, names = one_fold_each(splits["train"], by)
    file = request.runs / f"{name}-folds.json"
    make_private(request.runs)
    content = manifest_of_folds(splits["train"], fold)
    write_output(file, json.dumps(content).encode(), option="--runs")
    return file.absolute(), names


def _by_training(
    request: Request,
    cfg: Config,
    name: str,
    folds: int,
    seeds: int,
    console: Console,
    groups: Path | None,
) -> int:
    """Train every fold of every seed that is not done, each in a process of its own; DONE, or the code of a stop."""
    requests = [
        _of_fold(request, cfg, name, folds, seed, fold, groups)
        for seed in range(seeds)
        for fold in range(folds)
    ]
    code, first = after_source_task(with_workers(requests[0].load()), request.runs, console)
    if code != ExitCode.DONE:
        return code
    # What they amount to is a run as well: refused now, if another config has its name.
    open_run(request.runs, cfg.model_copy(update={"name": name, "source": first.source}))
    codes = (train_config(one.load(), one.runs, console, figures=False) for one in requests)
    return next((code for code in codes if code != ExitCode.DONE), ExitCode.DONE)


def _of_fold(
    request: Request, cfg: Config, name: str, folds: int, seed: int, fold: int, groups: Path | None
) -> Request:
    name = f"{name}-{seed}"
    changes = {"name": json.dumps(f"{name}-{fold}"), "seed": seed, "data.split_seed": seed, "data.fold": fold}
    changes |= {"data.folds": folds} if groups is None else {"data.split": json.dumps(str(groups))}
    if cfg.source is not None and cfg.source.data is not None:  # one for all folds of a seed
        changes["source.name"] = json.dumps(f"{name}-source")
    return replace(request, overrides=[*request.overrides, *(f"{key}={v}" for key, v in changes.items())])


def _merged(
    request: Request, name: str, folds: int, seeds: int, held_out: tuple[str, list[str]] | None
) -> dict[str, Any]:
    runs = [[request.runs / f"{name}-{seed}-{fold}" for fold in range(folds)] for seed in range(seeds)]
    split = _split_of_folds(runs[0])
    parts = [[predictions.load(predictions.file_of(run, split)) for run in of_seed] for of_seed in runs]
    trained = [[split_ids(RunDir(run))["train"] for run in of_seed] for of_seed in runs]
    found = cross_validation.merged(parts, held_out, trained)
    run = RunDir(request.runs / name)
    found.save(run.path / OUT_OF_FOLD)
    result = cross_validation.summary(found)
    run.mark_done({"cross_validation": result})
    return result


def _split_of_folds(runs: Sequence[Path]) -> str:
    """Which split of each run is its fold: test, or validation where the test split is official, the same in all.

    Whether there is a validation split says nothing: `data.validation_fraction` makes one beside the fold.
    """
    files = [predictions.file_of(run, "test") for run in runs[:2]]
    if not files[0].exists():
        return "validation"
    first, second = (set(predictions.load(file).ids.tolist()) for file in files)
    return "validation" if first & second else "test"


def show(found: dict[str, Any], console: Console) -> None:
    """The mean with its interval first, then what it is made of."""
    low, high = found["interval"]
    left_out = found.get("left_out", {})
    over = next(
        (f"{found['folds']} parts by {kind}, each counting the same," for kind in left_out),
        f"{found['folds']} folds x {found['seeds']} seeds",
    )
    console.say(
        f"accuracy {found['accuracy']:.4f} | mean of {over} of {found['num_examples']:,} examples | "
        f"95 % interval {low:.4f} to {high:.4f} (Nadeau and Bengio)",
        style="bold",
    )
    together = f"all examples together: accuracy {found['seed_accuracies'][0]:.4f} | " if left_out else ""
    console.say(together + figures.summary_line(found["figures"]))
    if "chosen" in found:
        console.say(chosen_line(found["chosen"]))
    for line in cross_validation.never_seen_lines(found):
        console.say(line, style="yellow")
    for name, group in found["groups"].items():
        console.say(f"{name}: accuracy {group['accuracy']:.4f} of {group['num_examples']:,} examples")
    for kind, rows in left_out.items():
        console.say(f"each {kind} held out once, from training on the others:")
        show_groups(kind, rows, console)
        return
    names = [f"fold\n{k}" for k in range(found["folds"])]
    for some in column_groups(names, len("0.0000"), console, beside=len("seed 0.0000 ")):
        table = narrow_table("seed", *some, "all")
        first = names.index(some[0])
        for seed, row in enumerate(found["fold_accuracies"]):
            values = [*row[first : first + len(some)], found["seed_accuracies"][seed]]
            table.add_row(str(seed), *(f"{value:.4f}" for value in values))
        console.print(table)


def chosen_line(chosen: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """What the classifiers took, the most frequent first: "chosen within the training folds: l2 0.1 (20), 0.03 (5)"."""
    parts = []
    for key in ("l2", "layers"):
        counts = Counter(f"{one[key]:g}" if key == "l2" else one[key] for folds in chosen for one in folds)
        several = ", ".join(f"{value} ({count})" for value, count in counts.most_common())
        if set(counts) != {"all"}:
            parts.append(f"{key} {several}")
    line = f"chosen within the training folds: {' | '.join(parts)}"
    edges = Counter(one.get("edge") for folds in chosen for one in folds)
    for edge in ("least", "greatest"):
        if edges[edge]:
            line += f" | {edges[edge]} of {edges.total()} took {selection.edge_advice(edge)}"
    return line
