"""`tl-dist rank`: which pretrained network to start from, by scores of its features of the training examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import file as config_file
from tl_dist.config import registry
from tl_dist.datasets import seen
from tl_dist.datasets.division import open_splits
from tl_dist.files import limits
from tl_dist.files.atomic import children, write_output
from tl_dist.files.foreign import read_file
from tl_dist.launcher.task import run_shown
from tl_dist.launcher.train import Request
from tl_dist.models import weights
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores import clusters, figures, predictions
from tl_dist.terminal.tables import narrow_table, relative
from tl_dist.tools.rank import Request as Scored
from tl_dist.tools.rank import agreement
from tl_dist.tools.rank.candidates import Candidate, bare, candidates

if TYPE_CHECKING:
    from tl_dist.terminal.console import Console

VERSION = 2
"""raise it when a score changes: what earlier commands have kept is then computed anew"""

DAMAGED = (LookupError, TypeError, ValueError, AttributeError)
"""what records of a run may raise that are not as they were written"""

SCORES = {
    "order": "probe, then published accuracy",
    "linear_probe": "linear probe",
    "nearest": "nearest neighbours",
    "logme": "LogME",
    "h_score": "H-score",
    "nleep": "N-LEEP",
}
BASELINES = {"parameters": "parameters", "features": "number of features", "accuracy": "published accuracy"}


def rank(
    request: Request, text: str, console: Console, *, images: int, trained: Sequence[Path], out: Path | None
) -> dict[str, Any]:
    """Score every candidate, show them, the best first, and write the config of the best; what was found, for JSON."""
    every = candidates(request, text)
    splits = open_splits(every[0].training.data)[0]
    labels = np.asarray(splits["train"].labels)
    if len(np.unique(labels)) < 2:
        raise Refusal(
            f"all {len(labels):,} training examples of {request.config} are of one class: no network is better there.",
            fix="add images of another class.",
            code=ExitCode.DATA,
        )
    rows = []
    for one in every:
        seen.flattered(one.features, request.runs, "rank", splits)
        wanted = {"version": VERSION, "images": min(images, len(labels)), "data": splits["train"].fingerprint}
        wanted |= _code_of(one)
        rows.append(
            {"candidate": one.label, "accuracy": one.accuracy, **_scored(request, one, wanted, console)}
        )
    runs = _given(trained, every, rows) if trained else _found(request.runs, every, rows)
    for row, those in zip(rows, runs, strict=True):
        row["trained"] = float(np.mean([_accuracy(run) for run in those])) if those else None
        row["runs"] = len(those)
    order = preferred(rows)
    rows = [{**rows[k], "order": -place} for place, k in enumerate(order)]
    resampled = _resampled([runs[k] for k in order if runs[k]])
    found = {"candidates": rows, "sorted_by": SCORES["order"], "agreement": _agreement(rows, resampled)}
    show(found, console)
    best = every[order[0]]
    found["best"] = str(_write(request, best, rows[0], out, console))
    return found


def _code_of(one: Candidate) -> dict[str, Any]:
    """What else decides the features of a candidate: the digest of its weights, and of code of other packages."""
    model = one.features.model
    file = weights.resolve(model.weights, model.backbone, sha256=model.weights_sha256)
    return {"weights": file and file.sha256, "code": registry.code_of_others(one.features)}


def _scored(request: Request, one: Candidate, wanted: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """The scores of a candidate, as an earlier command has kept them for the same, or by workers."""
    run = RunDir(request.runs / one.features.name)
    run = RunDir.open(run.path) if run.config_file.exists() else run
    kept = (run.done or {}).get("ranking")
    if not isinstance(kept, dict) or kept.get("request") != wanted:
        console.say(f"{one.label}: {relative(run.path)}", style="bold")
        run = run_shown(request, one.features, Scored(scored=wanted), "ranking", console)
        kept = (run.done or {})["ranking"]
    return {key: value for key, value in kept.items() if key != "request"}


def _found(root: Path, every: Sequence[Candidate], rows: Sequence[Mapping[str, Any]]) -> list[list[RunDir]]:
    """By candidate the runs below `root` that are the config trained from it to its end, of any seed."""
    runs: list[list[RunDir]] = [[] for _ in every]
    wanted = [bare(one.training) for one in every]
    for path in children(root):
        with suppress(Refusal, OSError, *DAMAGED):
            run = RunDir.open(path)
            identity = run.read_identity()
            if _accuracy(run) is None or identity is None:
                continue
            settings = bare(config_file.load(run.config_file, imports=False))
            for k, row in enumerate(rows):
                if settings == wanted[k] and _same_start(identity, row):
                    runs[k].append(run)
    return runs


def _given(
    trained: Sequence[Path], every: Sequence[Candidate], rows: Sequence[Mapping[str, Any]]
) -> list[list[RunDir]]:
    """By candidate these runs, whatever else their configs say; refuses (64) one of other data or another network."""
    runs: list[list[RunDir]] = [[] for _ in every]
    for path in trained:
        run = RunDir.open(path)
        model, identity = config_file.load(run.config_file, imports=False).model, run.read_identity()
        if _accuracy(run) is None or identity is None:
            raise Refusal(f"{path} has not been trained to its end.", fix="train it.", code=ExitCode.USAGE)
        if identity.get("data") != rows[0]["data"]:
            what = f"{path} was trained on other examples than the config has"
            raise Refusal(f"{what}.", fix="name runs of the same data and splits.", code=ExitCode.USAGE)
        same = [
            k
            for k, one in enumerate(every)
            if (model.backbone, model.layers) == (one.features.model.backbone, one.features.model.layers)
            and _same_start(identity, rows[k])
        ]
        if not same:
            what = f"{path} was trained from {model.backbone} with weights '{model.weights}', which is no candidate"
            raise Refusal(f"{what}.", fix="add it to the candidates, or leave it out.", code=ExitCode.USAGE)
        runs[same[0]].append(run)
    return runs


def _same_start(identity: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a run began with the weights of a candidate, and with the same data and splits."""
    return all(identity.get(key) == row[key] for key in ("data", "weights_sha256"))


def _accuracy(run: RunDir) -> float | None:
    """Of the test split, or of validation where there is none; None before the end of a run."""
    found = (run.done or {}).get("figures", {})
    of_split = found.get("test") or found.get("validation")
    return None if of_split is None else float(of_split["accuracy"])


def _resampled(runs: Sequence[Sequence[RunDir]]) -> NDArray[np.float64] | None:
    """As `agreement.resample` has it; None where what each said of the same images is not kept."""
    said = [[_said(run) for run in those] for those in runs]
    first = said[0][0] if said else None
    if first is None or not all(one and np.array_equal(one.ids, first.ids) for one in chain(*said)):
        return None
    right = [np.stack([_right(one) for one in those if one]) for those in said]
    return agreement.resample(right, clusters.numbers(first.groups))


def _said(run: RunDir) -> predictions.Predictions | None:
    """Of each example that its accuracy is of; None where a later evaluation has taken its place."""
    found = (run.done or {}).get("figures", {})
    split = "test" if found.get("test") else "validation"
    with suppress(Refusal):
        said = predictions.load(predictions.file_of(run.path, split))
        if np.isclose(_right(said).mean(), found[split]["accuracy"]):
            return said
    return None


def _right(said: predictions.Predictions) -> NDArray[np.bool_]:
    return said.probabilities.argmax(axis=1) == said.labels


def _agreement(
    rows: Sequence[Mapping[str, Any]], resampled: NDArray[np.float64] | None
) -> dict[str, Any] | None:
    """How each score and baseline orders what was trained; None where fewer than two were."""
    trained = [row["trained"] for row in rows]

    def of(names: Mapping[str, str]) -> Iterator[agreement.Agreement]:
        for key, name in names.items():
            one = agreement.agreement(name, [row[key] for row in rows], trained, resampled)
            if one is not None:
                yield one

    scores, baselines = list(of(SCORES)), list(of(BASELINES))
    if not scores:
        return None
    best = agreement.best_of(baselines)
    return {
        "scores": [asdict(one) for one in scores],
        "baselines": [asdict(one) for one in baselines],
        "best_baseline": best and best.name,
        "beats_baseline": dict(agreement.verdict(scores, baselines)),
    }


def _write(
    request: Request, best: Candidate, row: Mapping[str, Any], out: Path | None, console: Console
) -> Path:
    """The config of the best as YAML; refuses (73) to replace a file that says something else."""
    target = out or request.config.with_name(f"{request.config.stem}_best.yaml")
    cfg = best.training.model_copy(update={"name": f"{best.training.name[:59]}-best"})
    low, high = row["interval"]
    head = (
        f"# {best.label}, by tl-dist rank: linear probe {row['linear_probe']:.4f} ({low:.4f} to {high:.4f})\n"
    )
    text = (head + config_file.dump(cfg)).encode()
    if target.exists():
        if read_file(target, max_bytes=limits.CONFIG, links=True) != text:
            raise Refusal(
                f"{target} is there already, and is another config than that of the best, {best.label}.",
                fix="name another file with --out (the scores are kept).",
                code=ExitCode.CANNOT_CREATE,
            )
    else:
        write_output(target, text, option="--out")
    console.say(f"best: tl-dist train {relative(target)}", style="bold")
    return target


def show(found: Mapping[str, Any], console: Console) -> None:
    """One table, the best probe first; what it cannot tell apart; and what training made of it, where that is known."""
    from tl_dist.terminal.console import plain

    rows = found["candidates"]
    table = narrow_table(
        "candidate", "linear\nprobe", "95 %\ninterval", "near-\nest", "LogME", "H-\nscore", "N-\nLEEP",
        "million\nparam.", "fea-\ntures", "Image-\nNet", "trained", folds=("candidate",),
    )  # fmt: skip
    for row in rows:
        low, high = row["interval"]
        known = [f"{row[key]:.3f}" if row[key] is not None else "-" for key in ("accuracy", "trained")]
        table.add_row(
            plain(row["candidate"]), f"{row['linear_probe']:.3f}", f"{low:.3f}\n{high:.3f}", f"{row['nearest']:.3f}",
            f"{row['logme']:.3f}", f"{row['h_score']:.2f}", f"{row['nleep']:.2f}",
            f"{row['parameters'] / 1e6:.2f}", f"{row['features']:,}", *known,
        )  # fmt: skip
    console.print(table)
    folds = len(rows[0]["fold_accuracies"])
    console.say(
        f"linear probe: the accuracy of a last layer on these features, frozen as they are, over {folds} folds of "
        f"{rows[0]['examples']:,} training examples"
        + (", by their weights; in the other scores all count alike" if rows[0]["weighted"] else "")
    )
    alike = _alike(rows)
    if len(alike) > 1:
        names = ", ".join(rows[k]["candidate"] for k in alike)
        order = "published accuracy" if _published(rows, alike) else "the probe"
        console.say(f"the folds do not tell these apart, so the first is the best by {order}: {names}")
    if found["agreement"] is not None:
        show_agreement(found["agreement"], console)


def preferred(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The candidates, the one to start from first: by the probe, and by published accuracy where the folds cannot say.

    Where one that is not told apart from the best has no published accuracy, and among equals, by the probe alone.
    """
    order = sorted(range(len(rows)), key=lambda k: -rows[k]["linear_probe"])
    alike = _alike([rows[k] for k in order])
    first = [order[k] for k in alike]
    if _published(rows, first):
        first.sort(key=lambda k: -rows[k]["accuracy"])
    return first + [k for k in order if k not in first]


def _alike(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The best by the probe, and those that its folds do not tell apart from it, as they come."""
    best = max(rows, key=lambda row: row["linear_probe"])
    return [k for k, row in enumerate(rows) if not told_apart(best, row)]


def _published(rows: Sequence[Mapping[str, Any]], those: Sequence[int]) -> bool:
    return all(rows[k]["accuracy"] is not None for k in those)


def told_apart(best: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the interval of the difference over the same folds leaves out 0."""
    difference = np.subtract(best["fold_accuracies"], other["fold_accuracies"]).tolist()
    return figures.corrected_interval(difference, best["test_to_train"])[0] > 0


def show_agreement(found: Mapping[str, Any], console: Console) -> None:
    """What each would have lost by its first choice, and a line for each score that no better than a baseline is."""
    table = narrow_table("ordered by", "regret in points", "weighted tau", "Spearman")
    for one in (*found["scores"], *found["baselines"]):
        known = [f"{one[key]:.3f}" if one[key] is not None else "-" for key in ("kendall", "spearman")]
        error = "" if one["error"] is None else f" ± {100 * one['error']:.2f}"
        table.add_row(one["name"], f"{100 * one['regret']:.2f}{error}", *known)
    console.print(table)
    num = found["scores"][0]["num"]
    console.say(f"by {num} candidates that were trained; regret: what its first choice lost in accuracy")
    weak = [name for name, beats in found["beats_baseline"].items() if not beats]
    if weak:
        best = found["best_baseline"]
        console.say(f"no better than the best plain baseline, {best}: {', '.join(weak)}", style="yellow")
