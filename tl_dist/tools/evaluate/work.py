"""Evaluate a checkpoint on the workers of its run: on a split, on corrupted images of it, or on another data set."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist import tasks
from tl_dist.data import corruptions, pipeline
from tl_dist.data.batch import Batch
from tl_dist.data.pipeline import Read
from tl_dist.datasets import Source, pool_of, seen
from tl_dist.datasets.curation.layout import opened
from tl_dist.datasets.division import groupings, groups_of, pooled
from tl_dist.datasets.files import unusable
from tl_dist.features.views import in_views
from tl_dist.files.atomic import write_atomically
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores import predictions, robustness
from tl_dist.scores.evaluation import Evaluation, by_group
from tl_dist.scores.robustness import Hits
from tl_dist.tools.evaluate import Request
from tl_dist.trainer import evaluate
from tl_dist.trainer.agreement import agree
from tl_dist.trainer.board import class_records
from tl_dist.trainer.load_model import Loaded, loaded
from tl_dist.trainer.predict import Found, predict_decodable
from tl_dist.trainer.run_writer import evaluation_record
from tl_dist.trainer.setup import Setup, setup
from tl_dist.training.evaluation import MAX_LOGITS

_MAX_NAMES = 8


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Evaluate as requested. Rank 0 writes evaluations/SPLIT.json in the run, or evaluation.json in `request.into`."""
    if request.data is not None:
        model = loaded(run, request.at, cores=cores, overrides=request.overrides)
        tasks.refuse_others(model.cfg, "--data matches classes by their names", "evaluate a split of its own data")
        evaluate_data(model, Path(request.data), request.split, Path(request.into or ""), request.by)
        return ExitCode.DONE
    run_setup = setup(run, cores=cores, overrides=request.overrides)
    split = str(request.split)
    if request.corruptions:
        tasks.refuse_others(run_setup.cfg, "--corruptions counts images with the right class")
        names, severities = list(request.corruptions), list(request.severities)
        record = evaluate_corrupted(run_setup, split, names, severities, request.at)
        if run_setup.is_first:
            _write(run, f"{split}_corruptions.json", json.dumps(record).encode())
        return ExitCode.DONE
    if request.by:
        tasks.refuse_others(run_setup.cfg, "figures by group are accuracies", "leave out --by and --by-group")
    groupings(evaluate.split_of(run_setup, split), request.by)  # refused before an hour is spent
    result = evaluate.evaluate_checkpoint(run_setup, split, request.at)
    if run_setup.is_first:  # rank 0 alone has the figures
        record = _record(run, run_setup.state.step, result, run_setup.splits[split], request.by)
        _write(run, f"{split}.json", json.dumps(record).encode())
        if "calibration" in result.figures:
            from tl_dist.scores.pictures import reliability_picture

            picture = reliability_picture(result.figures["calibration"])
            _write(run, f"{split}_reliability.png", picture)
    return ExitCode.DONE


def _record(run: RunDir, step: int, result: Evaluation, source: Source, by: Sequence[str]) -> dict[str, Any]:
    """Return the record of an evaluation, whose predictions the run has just saved, with figures `by` group."""
    record = evaluation_record(step, result, source.class_names)
    record["classes"] = class_records(result, source.class_names)
    if names_by_kind := groupings(source, by):
        saved = predictions.load(predictions.file_of(run.path, result.split))
        columns = saved.labels, saved.probabilities, saved.groups
        record["groups"] = {kind: by_group(names, *columns) for kind, names in names_by_kind.items()}
    return record


def _write(run: RunDir, name: str, content: bytes) -> None:
    run.evaluations.mkdir(exist_ok=True)
    write_atomically(run.evaluations / name, content)


def evaluate_corrupted(
    setup: Setup, split: str, names: list[str], severities: list[int], at: str = ""
) -> dict[str, Any]:
    """Return the record of a checkpoint under each corruption and severity; rank 0 saves what was correct.

    Images are corrupted at the size of the model, seeded by their place in the split: the same on any number of
    workers. Refuse (64) a model whose images are too small to be corrupted.
    """
    source, size, cfg = evaluate.split_of(setup, split), setup.image_size, setup.cfg
    if size < corruptions.LEAST_SIDE:
        raise Refusal(
            f"the model takes images of {size} pixels; the corruptions are made for {corruptions.LEAST_SIDE} or more.",
            fix="evaluate a run with a larger data.image_size.",
            code=ExitCode.USAGE,
        )
    corruptions.prepare(names)
    evaluator, _ = evaluate.of_checkpoint(setup, split, at)
    plain = pipeline.plain(source, size, cfg.data.square)

    def hits(read: Read) -> np.ndarray:
        """Return which examples are classified correctly: bool [examples], complete on rank 0."""
        result = evaluator.counted(split, in_views(read, cfg.evaluation.views))
        if not setup.is_first:
            return np.zeros(source.num_examples, bool)
        logits = evaluate.kept_logits(result, "kept")
        return np.asarray(logits.argmax(axis=1) == source.labels)

    clean = hits(plain)
    right = np.stack([np.stack([hits(corrupted(plain, name, severity)) for severity in severities]) for name in names])
    result = Hits(
        ids=np.array(source.ids, np.str_),
        names=np.array(names, np.str_),
        severities=np.array(severities, np.int64),
        clean=clean,
        right=right,
        step=setup.state.step,
        image_size=size,
        groups=np.array(groups_of(source, cfg.data), np.str_),
    )
    if setup.is_first:
        result.save(robustness.file_of(setup.run.path, split))
    return {"split": split, **robustness.record(result)}


def corrupted(read: Read, name: str, severity: int) -> Read:
    """Return a read of the same images, each corrupted with its position as the seed."""

    def corrupt(images: np.ndarray, positions: np.ndarray) -> np.ndarray:
        pairs = zip(images, positions.tolist(), strict=True)
        return np.stack([corruptions.corrupted(image, name, severity, position) for image, position in pairs])

    def corrupt_rows(batch: Batch) -> Batch:
        images = tf.numpy_function(corrupt, [batch.images, batch.positions], tf.uint8)
        return batch._replace(images=tf.ensure_shape(images, batch.images.shape))

    return read.then(corrupt_rows)


def evaluate_data(model: Loaded, path: Path, split: str | None, directory: Path, by: Sequence[str] = ()) -> None:
    """Evaluate the data set at `path`; rank 0 writes the record to `directory`, and the predictions to the run.

    `split` is one of the data set's; default: its test split, or all of it if it has none. Left out are examples of
    classes that the run does not know and, up to the budget of the run's config, images that cannot be decoded. `by`:
    as `groupings` takes it.
    """
    part, source = _part(path, split)
    groupings(source, by)
    agree(model.parallel, {"data": source.fingerprint, "class_names": list(source.class_names)})
    known, unknown = matched(source, model.class_names, path)
    faults: dict[str, str] = {}
    pieces = predict_decodable(model, known, faults, cache=directory / "header_checks", path=path)
    counted, sums = _counted(model, pieces, known)
    if model.parallel.rank:
        return
    if not len(counted):
        raise unusable(f"no image of {path} can be decoded", "see what 'tl-dist data verify' says of it")
    evaluated = known.subset(counted)
    data_name = path.absolute().name if path.is_dir() else path.stem
    own = seen.of_run(model.run)
    result = predictions.with_figures(
        Evaluation(
            split=re.sub(r"[^\w.-]", "_", f"{data_name}-{part}-{source.fingerprint[:8]}"),
            num_examples=evaluated.num_examples,
            **sums,
        ),
        model.run.path,
        step=model.step,
        ids=evaluated.ids,
        truth=evaluated.labels,
        class_names=model.class_names,
        types=evaluated.annotations.types,
        groups=evaluated.annotations.groups or (),
        temperature=None if model.calibration is None else model.temperature,
        decision=model.decision,
        judge=tasks.of(model.cfg).figures,
        num_fitted=seen.among(evaluated, directory, own.validation),
    )
    record = _record(model.run, model.step, result, evaluated, by)
    num_seen = seen.among(evaluated, directory, np.concatenate([own.trained, own.chosen]))
    record["data"] = {
        "seen": num_seen if own.trained.size else None,  # None: the run's record is gone
        "path": str(path),
        "split": part,
        "fingerprint": source.fingerprint,
        "unknown": unknown,
        "missing": sorted(set(model.class_names) - set(source.class_names)),
        "undecodable": faults,
        "moving_statistics": model.moving_statistics,
    }
    write_atomically(directory / "evaluation.json", json.dumps(record).encode())


def _counted(model: Loaded, pieces: Iterable[Found], known: Source) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Return on rank 0 which examples of `known` are in the pieces, and their sums as fields of `Evaluation`."""
    classes = len(model.class_names)
    examples, logits = [np.empty(0, np.int64)], [np.empty((0, classes), np.float32)]
    keep = known.num_examples * classes <= MAX_LOGITS
    confusion, loss = np.zeros((classes, classes), np.int64), 0.0
    for piece in pieces:
        if model.parallel.rank:
            continue
        labels, wide = known.labels[piece.examples], piece.logits.astype(np.float64)
        np.add.at(confusion, (labels, wide.argmax(axis=1)), 1)
        loss += float((np.logaddexp.reduce(wide, axis=1) - wide[np.arange(len(labels)), labels]).sum())
        examples.append(piece.examples)
        if keep:
            logits.append(piece.logits)
    counted = np.concatenate(examples)
    return counted, {
        "num_correct": int(np.trace(confusion)),
        "mean_loss": loss / max(1, len(counted)),
        "confusion": confusion,
        "logits": np.concatenate(logits) if keep else None,
    }


def _part(path: Path, split: str | None) -> tuple[str, Source]:
    """Return the name and the examples of the part to evaluate."""
    _, splits = opened(path)
    if split is None:
        return ("test", splits["test"]) if "test" in splits else ("all", pooled(splits))
    if split not in splits:
        fix = f"use one of {', '.join(splits)}, or leave out --split."
        raise Refusal(f"{path} has no split '{split}'.", fix=fix, code=ExitCode.USAGE)
    return split, splits[split]


def matched(source: Source, class_names: Sequence[str], path: Path) -> tuple[Source, dict[str, int]]:
    """Return the examples of classes in `class_names`, labelled by their place there, and the counts of all others.

    Refuse (65) a data set without a class in common.
    """
    place = {name: k for k, name in enumerate(class_names)}
    number = np.array([place.get(name, -1) for name in source.class_names], np.int32)
    whole, rows = pool_of(source)
    known = number[source.labels] >= 0
    if not known.any():
        theirs, ours = (", ".join(list(names)[:_MAX_NAMES]) for names in (source.class_names, class_names))
        what = f"no class of {path} ({theirs}) is one of the run's ({ours})"
        raise unusable(what, "name the classes alike: they are matched by their names")
    counts = Counter(source.class_names[label] for label in source.labels[~known])
    renamed = replace(whole, labels=number[whole.labels], class_names=tuple(class_names))
    return renamed.subset(rows[known]), dict(sorted(counts.items()))
