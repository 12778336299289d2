"""`tl-dist rank`: choose a pretrained network to start from, by scores of its features of the training examples."""

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
from tl_dist.launcher import train
from tl_dist.launcher.task import run_shown
from tl_dist.models import weights
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores import clusters, figures, predictions
from tl_dist.terminal.tables import narrow_table, relative
from tl_dist.tools.rank import Request, agreement
from tl_dist.tools.rank.candidates import Candidate, bare, candidates

if TYPE_CHECKING:
    from tl_dist.terminal.console import Console

VERSION = 2
"""raise it when a score changes: scores saved by earlier commands are then computed again"""

DAMAGED = (LookupError, TypeError, ValueError, AttributeError)
"""what reading damaged records of a run may raise"""

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
    request: train.Request,
    text: str,
    console: Console,
    *,
    images: int,
    trained: Sequence[Path],
    out: Path | None,
) -> dict[str, Any]:
    """Score every candidate, show them best first, and write the config of the best. Returns the ranking, for JSON."""
    choices = candidates(request, text)
    splits = open_splits(choices[0].training.data)[0]
    labels = np.asarray(splits["train"].labels)
    if len(np.unique(labels)) < 2:
        raise Refusal(
            f"all {len(labels):,} training examples of {request.config} are of one class: there is nothing to rank by.",
            fix="add images of another class.",
            code=ExitCode.DATA,
        )
    rows = []
    for candidate in choices:
        seen.flattered(candidate.features, request.runs, "rank", splits)
        scored = {"version": VERSION, "images": min(images, len(labels)), "data": splits["train"].fingerprint}
        scored |= _digests(candidate)
        scores = _scores(request, candidate, scored, console)
        rows.append({"candidate": candidate.label, "accuracy": candidate.accuracy, **scores})
    runs = _named_runs(trained, choices, rows) if trained else _matching_runs(request.runs, choices, rows)
    for row, of_candidate in zip(rows, runs, strict=True):
        row["trained"] = float(np.mean([_accuracy(run) for run in of_candidate])) if of_candidate else None
        row["runs"] = len(of_candidate)
    order = preferred(rows)
    rows = [{**rows[k], "order": -place} for place, k in enumerate(order)]
    compared = _agreement(rows, _resampled([runs[k] for k in order if runs[k]]))
    ranking = {"candidates": rows, "sorted_by": SCORES["order"], "agreement": compared}
    show(ranking, console)
    best = choices[order[0]]
    ranking["best"] = str(_write(request, best, rows[0], out, console))
    return ranking


def _digests(candidate: Candidate) -> dict[str, Any]:
    """Return the digests of a candidate's weights and of other packages' code: its features depend on both."""
    model = candidate.features.model
    file = weights.resolve(model.weights, model.backbone, sha256=model.weights_sha256)
    return {"weights": file and file.sha256, "code": registry.code_of_others(candidate.features)}


def _scores(
    request: train.Request, candidate: Candidate, scored: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """Return the scores that an earlier command saved for the same `scored`, else have workers compute them."""
    run = RunDir(request.runs / candidate.features.name)
    run = RunDir.open(run.path) if run.config_file.exists() else run
    record = (run.done or {}).get("ranking")
    if not isinstance(record, dict) or record.get("request") != scored:
        console.say(f"{candidate.label}: {relative(run.path)}", style="bold")
        run = run_shown(request, candidate.features, Request(scored=scored), "ranking", console)
        record = (run.done or {})["ranking"]
    return {key: value for key, value in record.items() if key != "request"}


def _matching_runs(
    root: Path, choices: Sequence[Candidate], rows: Sequence[Mapping[str, Any]]
) -> list[list[RunDir]]:
    """Find, for each candidate, the finished runs below `root` that trained its config, with any seed."""
    runs: list[list[RunDir]] = [[] for _ in choices]
    wanted = [bare(candidate.training) for candidate in choices]
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


def _named_runs(
    trained: Sequence[Path], choices: Sequence[Candidate], rows: Sequence[Mapping[str, Any]]
) -> list[list[RunDir]]:
    """Assign the runs `trained` to the candidates, whatever else their configs say.

    Refuses (64) a run of other data or of a network that is not a candidate.
    """
    runs: list[list[RunDir]] = [[] for _ in choices]
    for path in trained:
        run = RunDir.open(path)
        model, identity = config_file.load(run.config_file, imports=False).model, run.read_identity()
        if _accuracy(run) is None or identity is None:
            raise Refusal(f"{path} has not been trained to its end.", fix="train it.", code=ExitCode.USAGE)
        if identity.get("data") != rows[0]["data"]:
            what = f"{path} was not trained on the examples of the config."
            raise Refusal(what, fix="name runs of the same data and splits.", code=ExitCode.USAGE)
        models = [candidate.features.model for candidate in choices]
        same = [
            k
            for k, other in enumerate(models)
            if (model.backbone, model.layers) == (other.backbone, other.layers)
            and _same_start(identity, rows[k])
        ]
        if not same:
            what = f"{path} was trained from {model.backbone} with weights '{model.weights}', not from a candidate."
            raise Refusal(what, fix="add it to the candidates, or leave it out.", code=ExitCode.USAGE)
        runs[same[0]].append(run)
    return runs


def _same_start(identity: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Tell whether a run began with the weights of a candidate, on the same data and splits."""
    return all(identity.get(key) == row[key] for key in ("data", "weights_sha256"))


def _accuracy(run: RunDir) -> float | None:
    """Return the accuracy on the test split, else on validation; None before the end of the run."""
    by_split = (run.done or {}).get("figures", {})
    record = by_split.get("test") or by_split.get("validation")
    return None if record is None else float(record["accuracy"])


def _resampled(runs: Sequence[Sequence[RunDir]]) -> NDArray[np.float64] | None:
    """Call `agreement.resample`; None unless all runs have saved predictions of the same images."""
    predicted = [[_predictions(run) for run in of_candidate] for of_candidate in runs]
    first = predicted[0][0] if predicted else None
    if first is None or not all(each and np.array_equal(each.ids, first.ids) for each in chain(*predicted)):
        return None
    right = [np.stack([_right(each) for each in of_candidate if each]) for of_candidate in predicted]
    return agreement.resample(right, clusters.numbers(first.groups))


def _predictions(run: RunDir) -> predictions.Predictions | None:
    """Load the predictions behind a run's accuracy; None if a later evaluation has replaced them."""
    by_split = (run.done or {}).get("figures", {})
    split = "test" if by_split.get("test") else "validation"
    with suppress(Refusal):
        predicted = predictions.load(predictions.file_of(run.path, split))
        if np.isclose(_right(predicted).mean(), by_split[split]["accuracy"]):
            return predicted
    return None


def _right(predicted: predictions.Predictions) -> NDArray[np.bool_]:
    return predicted.probabilities.argmax(axis=1) == predicted.labels


def _agreement(
    rows: Sequence[Mapping[str, Any]], resampled: NDArray[np.float64] | None
) -> dict[str, Any] | None:
    """Compare each score and baseline with the trained accuracies; None if fewer than two candidates were trained."""
    trained = [row["trained"] for row in rows]

    def of(names: Mapping[str, str]) -> Iterator[agreement.Agreement]:
        for key, name in names.items():
            compared = agreement.agreement(name, [row[key] for row in rows], trained, resampled)
            if compared is not None:
                yield compared

    scores, baselines = list(of(SCORES)), list(of(BASELINES))
    if not scores:
        return None
    best = agreement.best_of(baselines)
    return {
        "scores": [asdict(score) for score in scores],
        "baselines": [asdict(baseline) for baseline in baselines],
        "best_baseline": best and best.name,
        "beats_baseline": dict(agreement.verdict(scores, baselines)),
    }


def _write(
    request: train.Request, best: Candidate, row: Mapping[str, Any], out: Path | None, console: Console
) -> Path:
    """Write the config of the best as YAML; refuses (73) to replace a file with other content."""
    target = out or request.config.with_name(f"{request.config.stem}_best.yaml")
    cfg = best.training.model_copy(update={"name": f"{best.training.name[:59]}-best"})
    low, high = row["interval"]
    probe = f"{row['linear_probe']:.4f} ({low:.4f} to {high:.4f})"
    text = f"# {best.label}, by tl-dist rank: linear probe {probe}\n{config_file.dump(cfg)}".encode()
    if not target.exists():
        write_output(target, text, option="--out")
    elif read_file(target, max_bytes=limits.CONFIG, links=True) != text:
        raise Refusal(
            f"{target} is there already, and is not the config of the best, {best.label}.",
            fix="name another file with --out (the scores are kept).",
            code=ExitCode.CANNOT_CREATE,
        )
    console.say(f"best: tl-dist train {relative(target)}", style="bold")
    return target


def show(ranking: Mapping[str, Any], console: Console) -> None:
    """Show the table of candidates, which of them the folds do not tell apart, and the agreement with trained runs."""
    from tl_dist.terminal.console import plain

    rows = ranking["candidates"]
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
    if ranking["agreement"] is not None:
        show_agreement(ranking["agreement"], console)


def preferred(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Order the candidates, the one to start from first: by the probe; published accuracy decides among the best.

    The best are the first by the probe and all that its folds do not tell apart from it. If one of them has no
    published accuracy, or these are equal, the probe decides alone.
    """
    order = sorted(range(len(rows)), key=lambda k: -rows[k]["linear_probe"])
    alike = _alike([rows[k] for k in order])
    first = [order[k] for k in alike]
    if _published(rows, first):
        first.sort(key=lambda k: -rows[k]["accuracy"])
    return first + [k for k in order if k not in first]


def _alike(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """List the best by the probe and all that its folds do not tell apart from it, in the order of `rows`."""
    best = max(rows, key=lambda row: row["linear_probe"])
    return [k for k, row in enumerate(rows) if not told_apart(best, row)]


def _published(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> bool:
    return all(rows[k]["accuracy"] is not None for k in numbers)


def told_apart(best: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether `best` is surely better: the interval of the difference over the same folds is above 0."""
    difference = np.subtract(best["fold_accuracies"], other["fold_accuracies"]).tolist()
    return figures.corrected_interval(difference, best["test_to_train"])[0] > 0


def show_agreement(compared: Mapping[str, Any], console: Console) -> None:
    """Show what the first choice of each score and baseline lost, and which scores beat no baseline."""
    table = narrow_table("ordered by", "regret in points", "weighted tau", "Spearman")
    for row in (*compared["scores"], *compared["baselines"]):
        known = [f"{row[key]:.3f}" if row[key] is not None else "-" for key in ("kendall", "spearman")]
        error = "" if row["error"] is None else f" ± {100 * row['error']:.2f}"
        table.add_row(row["name"], f"{100 * row['regret']:.2f}{error}", *known)
    console.print(table)
    console.say(
        f"over {compared['scores'][0]['num']} trained candidates; regret: the accuracy that the first choice lost"
    )
    weak = [name for name, beats in compared["beats_baseline"].items() if not beats]
    if weak:
        best = compared["best_baseline"]
        console.say(f"no better than the best plain baseline, {best}: {', '.join(weak)}", style="yellow")
