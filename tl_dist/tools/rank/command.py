"""`tl-dist rank`: choose a pretrained network to start from, by scores of its features of the training examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_dist import tasks
from tl_dist.config import file as config_file
from tl_dist.config import registry
from tl_dist.datasets import seen
from tl_dist.datasets.division import open_splits
from tl_dist.files import limits
from tl_dist.files.atomic import write_output
from tl_dist.files.foreign import read_file
from tl_dist.launcher import train
from tl_dist.launcher.task import run_shown
from tl_dist.models import weights
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores import figures, text
from tl_dist.terminal.console import Console, plain
from tl_dist.terminal.tables import narrow_table, relative
from tl_dist.tools.rank import Request
from tl_dist.tools.rank.candidates import Candidate, candidates

VERSION = 1
"""raise it when a score changes: scores saved by earlier commands are then computed again"""

SCORES = {"nearest": 3, "logme": 3, "h_score": 2, "nleep": 2}
"""other scores, and their decimals"""
SORTED_BY = "probe, then published accuracy"
WORTH = (
    "how far to trust it: on three data sets the first choice, once trained, was 0.00 to 0.15 points below the best, "
    "as was the first by published accuracy alone (benchmarks/rank)"
)


def rank(request: train.Request, names: str, console: Console, *, images: int, out: Path) -> dict[str, Any]:
    """Score every candidate, show them best first, and write the config of the best. Returns the ranking, for JSON."""
    order = ranked(request, names, console, images=images)
    rows = [row for _, row in order]
    show(rows, console)
    _write(*order[0], out, console)
    return {"candidates": rows, "sorted_by": SORTED_BY, "best": str(out)}


def ranked(
    request: train.Request, names: str, console: Console, *, images: int
) -> list[tuple[Candidate, dict[str, Any]]]:
    """Score every candidate on at most `images` training examples; return each with its scores, best first."""
    tasks.refuse_others(request.load(), "rank compares networks by how well they separate classes")
    choices = candidates(request, names)
    splits = open_splits(choices[0].training.data)[0]
    labels = np.asarray(splits["train"].labels)
    if len(np.unique(labels)) < 2:
        raise Refusal(
            f"all {len(labels):,} training examples of {request.label} are of one class: there is nothing to rank by.",
            fix="add images of another class.",
            code=ExitCode.DATA,
        )
    sample = {"images": min(images, len(labels)), "data": splits["train"].fingerprint}
    rows = []
    for candidate in choices:
        seen.flattered(candidate.features, request.runs, "rank", splits)
        scores = _scores(request, candidate, sample, console)
        rows.append({"candidate": candidate.label, "accuracy": candidate.accuracy, **scores})
    return [(choices[k], rows[k]) for k in preferred(rows)]


def _scores(
    request: train.Request, candidate: Candidate, sample: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """Return the scores that an earlier command saved for the same sample, else have workers compute them."""
    model = candidate.features.model
    file = weights.resolve(model.weights, candidate.features.network, sha256=model.weights_sha256)
    code = registry.code_of_others(candidate.features)
    scored = {"version": VERSION, **sample, "weights": file and file.sha256, "code": code}
    run = RunDir(request.runs / candidate.features.name)
    run = RunDir.open(run.path) if run.config_file.exists() else run
    record = (run.done or {}).get("ranking")
    if not isinstance(record, dict) or record.get("request") != scored:
        console.say(f"{candidate.label}: {relative(run.path)}", style="bold")
        run = run_shown(request, candidate.features, Request(scored=scored), "ranking", console)
        record = (run.done or {})["ranking"]
    return {key: value for key, value in record.items() if key != "request"}


def _write(best: Candidate, row: Mapping[str, Any], target: Path, console: Console) -> None:
    """Write the config of the best as YAML; refuses (73) to replace a file with other content."""
    cfg = best.training.model_copy(update={"name": f"{best.training.name[:59]}-best"})
    probe = f"{text.figure(row['linear_probe'], 4)} ({text.span(row['interval'])})"
    content = f"# {best.label}, by tl-dist rank: linear probe {probe}\n{config_file.dump(cfg)}".encode()
    if not target.exists():
        write_output(target, content, option="--out")
    elif read_file(target, max_bytes=limits.CONFIG, links=True) != content:
        what = f"{target} is there already, and is not the config of the best, {best.label}."
        fix = "name another file with --out (the scores are kept)."
        raise Refusal(what, fix=fix, code=ExitCode.CANNOT_CREATE)
    console.say(f"best: tl-dist train {relative(target)}", style="bold")


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Show the table of candidates, which of them the folds do not tell apart, and what the method is worth."""
    table = narrow_table(
        "candidate", "linear\nprobe", "95 %\ninterval", "near-\nest", "LogME", "H-\nscore", "N-\nLEEP",
        "million\nparam.", "fea-\ntures", "Image-\nNet", folds=("candidate",),
    )  # fmt: skip
    for row in rows:
        ends = "\n".join(map(text.figure, row["interval"]))
        scores = [text.figure(row[name], digits) for name, digits in SCORES.items()]
        size = f"{row['parameters'] / 1e6:.2f}", f"{row['features']:,}", text.figure(row["accuracy"])
        table.add_row(plain(row["candidate"]), text.figure(row["linear_probe"]), ends, *scores, *size)
    console.print(table)
    console.say(
        f"linear probe: accuracy of a linear classifier on the frozen features, over "
        f"{len(rows[0]['fold_accuracies'])} folds of {rows[0]['examples']:,} training examples"
        + (", each with its weight; the other scores are unweighted" if rows[0]["weighted"] else "")
    )
    alike = _alike(rows)
    if len(alike) > 1:
        names = ", ".join(rows[k]["candidate"] for k in alike)
        order = "published accuracy" if _published(rows, alike) else "the probe"
        console.say(f"the folds do not tell these apart, so {order} decides which is first: {names}")
    console.say(WORTH, style="dim")


def preferred(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Order the candidates, the one to start from first: by the probe; published accuracy decides among the best.

    The best are the first by the probe and all that its folds do not tell apart from it. If one of them has no
    published accuracy, or these are equal, the probe decides alone.
    """
    order = sorted(range(len(rows)), key=lambda k: -rows[k]["linear_probe"])
    first = [order[k] for k in _alike([rows[k] for k in order])]
    if _published(rows, first):
        first.sort(key=lambda k: -rows[k]["accuracy"])
    return first + [k for k in order if k not in first]


def _alike(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """List the best by the probe and all for which the interval of the difference over the same folds holds 0."""
    best = max(rows, key=lambda row: row["linear_probe"])
    gaps = [np.subtract(best["fold_accuracies"], row["fold_accuracies"]).tolist() for row in rows]
    ratio = best["test_to_train"]
    return [k for k, gap in enumerate(gaps) if figures.corrected_interval(gap, ratio)[0] <= 0]


def _published(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> bool:
    return all(rows[k]["accuracy"] is not None for k in numbers)
