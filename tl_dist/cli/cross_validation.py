"""`tl-dist cv`: every example is predicted by classifiers that have not seen it, for several divisions into folds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tl_dist.cli.tasks import run_shown
from tl_dist.cli.train import Request, after_source_task, open_run, train_config, with_workers
from tl_dist.config import Config
from tl_dist.features.classifiers import selection
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.scores import cross_validation, figures, predictions
from tl_dist.scores.cross_validation import OUT_OF_FOLD
from tl_dist.terminal.tables import column_groups, narrow_table, relative, show_line

if TYPE_CHECKING:
    from tl_dist.terminal.console import Console


def cross_validate(request: Request, folds: int, seeds: int, console: Console) -> int:
    """Run what is missing of the folds, and show the figures; the same command resumes after a stop.

    A classifier that is computed from features takes one extraction and one process; any other config is trained once
    for each fold, as a run of its own: NAME-cv-SEED-FOLD.
    """
    cfg = request.load()
    name = f"{cfg.name}-cv"
    if cfg.classifier.computed:
        found = _on_features(request, name, folds, seeds, console)
    else:
        code = _by_training(request, cfg, folds, seeds, console)
        if code != ExitCode.DONE:
            return code
        found = _merged(request, name, folds, seeds)
    show(found, console)
    show_line(console, f"out-of-fold predictions: {relative(request.runs / name / OUT_OF_FOLD)}")
    return ExitCode.DONE


def _on_features(request: Request, name: str, folds: int, seeds: int, console: Console) -> dict[str, Any]:
    cfg = request.load(f"name={json.dumps(name)}")
    task = ("--cross-validate", str(folds), str(seeds))
    run = run_shown(request, cfg, task, "cross-validation", console)
    return dict((run.done or {})["cross_validation"])


def _by_training(request: Request, cfg: Config, folds: int, seeds: int, console: Console) -> int:
    """Train every fold of every seed that is not done, each in a process of its own; DONE, or the code of a stop."""
    requests = [_of_fold(request, cfg, folds, seed, fold) for seed in range(seeds) for fold in range(folds)]
    code, first = after_source_task(with_workers(requests[0].load()), request.runs, console)
    if code != ExitCode.DONE:
        return code
    # What they amount to is a run as well: refused now, if another config has its name.
    open_run(request.runs, cfg.model_copy(update={"name": f"{cfg.name}-cv", "source": first.source}))
    codes = (train_config(one.load(), one.runs, console, figures=False) for one in requests)
    return next((code for code in codes if code != ExitCode.DONE), ExitCode.DONE)


def _of_fold(request: Request, cfg: Config, folds: int, seed: int, fold: int) -> Request:
    name = f"{cfg.name}-cv-{seed}"
    changes = {"name": json.dumps(f"{name}-{fold}"), "seed": seed, "data.split_seed": seed}
    changes |= {"data.folds": folds, "data.fold": fold}
    if cfg.source is not None and cfg.source.data is not None:  # one for all folds of a seed
        changes["source.name"] = json.dumps(f"{name}-source")
    return replace(request, overrides=[*request.overrides, *(f"{key}={v}" for key, v in changes.items())])


def _merged(request: Request, name: str, folds: int, seeds: int) -> dict[str, Any]:
    runs = [[request.runs / f"{name}-{seed}-{fold}" for fold in range(folds)] for seed in range(seeds)]
    # The fold is the validation split where the test split is official; there is no other validation split then.
    official = predictions.file_of(runs[0][0], "validation").exists()
    split = "validation" if official else "test"
    parts = [[predictions.load(predictions.file_of(run, split)) for run in of_seed] for of_seed in runs]
    found = cross_validation.merged(parts)
    run = RunDir(request.runs / name)
    found.save(run.path / OUT_OF_FOLD)
    result = cross_validation.summary(found)
    run.mark_done({"cross_validation": result})
    return result


def show(found: dict[str, Any], console: Console) -> None:
    """The mean with its interval first, then what it is made of."""
    low, high = found["interval"]
    show_line(
        console,
        f"accuracy {found['accuracy']:.4f} | mean of {found['folds']} folds x {found['seeds']} seeds "
        f"of {found['num_examples']:,} examples | 95 % interval {low:.4f} to {high:.4f} (Nadeau and Bengio)",
        style="bold",
    )
    show_line(console, figures.summary_line(found["figures"]))
    if "chosen" in found:
        show_line(console, chosen_line(found["chosen"]))
    for name, group in found["groups"].items():
        show_line(console, f"{name}: accuracy {group['accuracy']:.4f} of {group['num_examples']:,} examples")
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
