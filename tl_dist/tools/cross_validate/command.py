"""`tl-dist cv`: predict every example by classifiers that have not seen it, for several divisions into folds."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tl_dist import tasks
from tl_dist.config import Config
from tl_dist.datasets import seen
from tl_dist.datasets.division import manifest_of_folds, one_fold_each, open_splits
from tl_dist.features import nested
from tl_dist.files.atomic import write_output
from tl_dist.files.private import make_private
from tl_dist.launcher import train
from tl_dist.launcher.task import run_shown
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import split_ids
from tl_dist.scores import cross_validation, predictions, text
from tl_dist.scores.cross_validation import OUT_OF_FOLD
from tl_dist.tasks import Task
from tl_dist.terminal.console import Console
from tl_dist.terminal.tables import column_groups, narrow_table, relative, show_groups
from tl_dist.tools.cross_validate import Request


def cross_validate(
    request: train.Request, folds: int | None, seeds: int | None, console: Console, by: str | None = None
) -> int:
    """Run the folds that are missing, and show the figures; the same command resumes after a stop."""
    run, summary = cross_validated(request, folds, seeds, console, by)
    show(summary, console)
    console.say(f"out-of-fold predictions: {relative(run.path / OUT_OF_FOLD)}")
    return ExitCode.DONE


def cross_validated(
    request: train.Request, folds: int | None, seeds: int | None, console: Console, by: str | None = None
) -> tuple[RunDir, dict[str, Any]]:
    """Run the folds that are missing, 5 in each of 5 divisions by default; return the merged run and its summary.

    A classifier that is computed from features takes one extraction and one process. Any other config is trained once
    per fold, each as a run of its own: NAME-cv-SEED-FOLD. With `by`, a kind of group as in
    `datasets.division.groupings`, each group is held out once instead, and the runs are called NAME-cv-by-BY. Refuses
    (75) to go on after a stop.
    """
    if by is not None and (folds or seeds):
        what = "--by leaves out each group once, and has no other folds or seeds."
        raise Refusal(what, fix="remove --folds and --seeds, or --by.", code=ExitCode.USAGE)
    folds, seeds, cfg = folds or 5, seeds or 5, request.load()
    if by is not None:
        tasks.refuse_others(cfg, "--by compares the accuracies of groups", "leave out --by: groups stay together")
    seen.flattered(cfg, request.runs, "cv")
    name = cross_validation.name_of(cfg.name, by)
    if cfg.classifier.computed:
        task = Request(folds=folds, seeds=seeds, by=by)
        run = run_shown(request, request.load(f"name={json.dumps(name)}"), task, "cross-validation", console)
        return run, (run.done or {})["cross_validation"]
    groups, held_out = None, None
    if by is not None:
        groups, names = _folds_by_group(request, cfg, name, by)
        folds, seeds, held_out = len(names), 1, (by, names)
    requests = [
        _fold_request(request, cfg, name, folds, seed, fold, groups) for seed in range(seeds) for fold in range(folds)
    ]
    code = _train(requests, cfg, name, console)
    if code != ExitCode.DONE:
        what = "the cross-validation was stopped."
        raise Refusal(what, fix="run the same command again.", code=ExitCode(code))
    return RunDir(request.runs / name), _merge(request, name, folds, seeds, held_out, tasks.of(cfg))


def _folds_by_group(request: train.Request, cfg: Config, name: str, by: str) -> tuple[Path, list[str]]:
    """Write a manifest in which each group is a fold; return its path and the names of the groups."""
    whole = cfg.data.model_copy(update={"validation_fraction": 0.0, "test_fraction": 0.0})
    splits = open_splits(whole)[0]
    if set(splits) != {"train"}:
        what = f"the data set of {request.label} is already divided into splits, so its groups cannot be held out."
        fix = "use a data set without official splits, and no data.split; or a computed classifier."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    fold, names = one_fold_each(splits["train"], by)
    file = request.runs / f"{name}-folds.json"
    make_private(request.runs)
    write_output(file, json.dumps(manifest_of_folds(splits["train"], fold)).encode(), option="--runs")
    return file.absolute(), names


def _train(requests: Sequence[train.Request], cfg: Config, name: str, console: Console) -> int:
    """Train every fold that is not done, each in its own process. Returns DONE, or the code of a stop."""
    runs = requests[0].runs
    code, first = train.after_source_task(train.with_workers(requests[0].load()), runs, console)
    if code != ExitCode.DONE:
        return code
    # The merged folds become a run as well: if another config has its name, refuse before training.
    train.open_run(runs, cfg.model_copy(update={"name": name, "source": first.source}))
    codes = (train.train_config(each.load(), each.runs, console, figures=False) for each in requests)
    return next((code for code in codes if code != ExitCode.DONE), ExitCode.DONE)


def _fold_request(
    request: train.Request, cfg: Config, name: str, folds: int, seed: int, fold: int, groups: Path | None
) -> train.Request:
    name = f"{name}-{seed}"
    changes = {"name": json.dumps(f"{name}-{fold}"), "seed": seed, "data.split_seed": seed, "data.fold": fold}
    changes |= {"data.folds": folds} if groups is None else {"data.split": json.dumps(str(groups))}
    if cfg.source is not None and cfg.source.data is not None:  # all folds of a seed share one source task
        changes["source.name"] = json.dumps(f"{name}-source")
    return replace(request, overrides=[*request.overrides, *(f"{key}={v}" for key, v in changes.items())])


def _merge(
    request: train.Request, name: str, folds: int, seeds: int, held_out: tuple[str, list[str]] | None, task: Task
) -> dict[str, Any]:
    """Merge the predictions of all folds into the run `name`, and return their summary."""
    runs = [[request.runs / f"{name}-{seed}-{fold}" for fold in range(folds)] for seed in range(seeds)]
    split = _split_of_folds(runs[0])
    parts = [[predictions.load(predictions.file_of(run, split)) for run in of_seed] for of_seed in runs]
    trained = [[split_ids(RunDir(run))["train"] for run in of_seed] for of_seed in runs]
    out_of_fold = cross_validation.merged(parts, held_out, trained)
    run, summary = RunDir(request.runs / name), cross_validation.summary(out_of_fold, task.figures)
    out_of_fold.save(run.path / OUT_OF_FOLD)
    run.mark_done({"cross_validation": summary})
    return summary


def _split_of_folds(runs: Sequence[Path]) -> str:
    """Name the split that holds the fold in each run: test, or validation if all runs share an official test split.

    The presence of a validation split proves nothing: `data.validation_fraction` makes one beside the fold.
    """
    files = [predictions.file_of(run, "test") for run in runs[:2]]
    if not files[0].exists():
        return "validation"
    first, second = (set(predictions.load(file).ids.tolist()) for file in files)
    return "validation" if first & second else "test"


def show(summary: dict[str, Any], console: Console) -> None:
    """Show the mean with its interval, then the figures of groups and folds."""
    left_out, num_folds, main = summary.get("left_out", {}), summary["folds"], summary.get("main", "accuracy")
    name_of = text.FIGURES.get(main, main)
    over = f"{num_folds} folds x {summary['seeds']} seeds"
    for kind in left_out:
        over = f"{num_folds} groups by {kind}, weighted equally,"
    console.say(
        f"{name_of} {summary[main]:.4f} | mean of {over} of {summary['num_examples']:,} examples | "
        f"{text.interval(summary['interval'], 'Nadeau and Bengio')}",
        style="bold",
    )
    together = f"all examples together: accuracy {summary['seed_accuracies'][0]:.4f} | " if left_out else ""
    console.say(together + text.summary(summary["figures"]))
    if "chosen" in summary:
        console.say(chosen_line(summary["chosen"]))
    for line in text.never_seen_by_fold(summary):
        console.say(line, style="yellow")
    for name, group in summary["groups"].items():
        console.say(f"{name}: {name_of} {text.figure(group[main], 4)} of {group['num_examples']:,} examples")
    for kind, rows in left_out.items():
        console.say(f"each {kind} held out once, trained on the others:")
        show_groups(kind, rows, console)
        return
    names = [f"fold\n{k}" for k in range(num_folds)]
    for columns in column_groups(names, len("0.0000"), console, beside=len("seed 0.0000 ")):
        table = narrow_table("seed", *columns, "all")
        first = names.index(columns[0])
        for seed, row in enumerate(summary["fold_accuracies"]):
            values = [*row[first : first + len(columns)], summary["seed_accuracies"][seed]]
            table.add_row(str(seed), *(f"{value:.4f}" for value in values))
        console.print(table)


def chosen_line(chosen: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Count the choices, the most frequent first: "chosen within the training folds: l2 0.1 (20), 0.03 (5)"."""
    choices = [choice for folds in chosen for choice in folds]
    parts = []
    for key in ("l2", "layers"):
        counts = Counter(f"{choice[key]:g}" if key == "l2" else choice[key] for choice in choices)
        values = ", ".join(f"{value} ({count})" for value, count in counts.most_common())
        if set(counts) != {"all"}:
            parts.append(f"{key} {values}")
    edges = Counter(choice.get("edge") for choice in choices)
    parts += [
        f"{edges[edge]} of {edges.total()} took {nested.edge_advice(edge)}"
        for edge in ("least", "greatest")
        if edges[edge]
    ]
    return f"chosen within the training folds: {' | '.join(parts)}"
