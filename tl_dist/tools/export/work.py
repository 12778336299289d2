"""Export the model of a run for another runtime, and compare it with the run image by image before it is kept."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist import tasks
from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.config.data import Square
from tl_dist.data import pipeline
from tl_dist.data.resize import resize
from tl_dist.datasets import preprocess
from tl_dist.datasets.decoding import decode_jpeg, decode_png
from tl_dist.datasets.division import groups_of
from tl_dist.files.atomic import reason, write_atomically
from tl_dist.models.export import Format, Predict, format_of, opened, write
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores import figures
from tl_dist.tools.export import Request, model_card, place
from tl_dist.trainer import evaluate
from tl_dist.trainer.load_model import Restored, restored
from tl_dist.trainer.setup import Setup, setup

MIN_AGREEMENT = {"float32": 0.999, "other precision": 0.99, "float16": 0.99, "int8": 0.98}
BATCH = 32
ENCODED_EXAMPLES = 100  # examples on which a SavedModel's own decoding is compared
_DECODED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # how JPEG and PNG begin: what a SavedModel decodes
_TIMED_S, _MOST_CALLS = 3.0, 200  # for each size of batch


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Export the run as requested."""
    export(run, request, cores=cores)
    return ExitCode.DONE


def export(run: RunDir, request: Request, *, cores: int | None) -> dict[str, Any]:
    """Write the export to `request.out`, all of it or nothing, and return its report.

    Refuse an export that predicts the class that the run predicts for fewer than `min_agreement` of the images, and
    what `place.directory` refuses. The run is not changed. `cores`: as `setup` takes it.
    """
    form = format_of(request.to, request.numbers)
    form.require()
    # The exported model sees one view: the mean over several views belongs to the evaluation.
    overrides = ["strategy=single", "workers=1", "evaluation.views=[]"]
    data = setup(run, cores=cores, overrides=overrides) if request.check != "none" else None
    # Only TensorFlow's own runtimes compute in bfloat16.
    precision = None if request.to in ("savedmodel", "keras") else "float32"
    # The weights of a computed classifier include the scale of each feature: in 8 bits most of them would be 0.
    dense_head = request.numbers != "int8" or not config_file.load(run.config_file).classifier.computed
    own = restored(run, request.at, precision=precision, dense_head=dense_head)
    with place.directory(Path(request.out)) as directory:
        file = directory / form.file
        _write(directory, form, own, request)
        report = {
            "run": run.name,
            "step": own.checkpoint.step,
            "to": request.to,
            "numbers": request.numbers,
            "file": form.file,
            "temperature": own.temperature,
            "bytes": sum(part.stat().st_size for part in (file, *file.rglob("*")) if part.is_file()),
            "versions": {name: version(name) for name in ("keras", *form.packages)},
        }
        if data is not None:
            report |= _compared(data, request, own, file)
        write_atomically(directory / "MODEL_CARD.md", model_card.text(run, own, report).encode())
        place.write_report(directory, report)
    return report


def _write(directory: Path, form: Format, own: Restored, request: Request) -> None:
    """Write the model, the names of its classes, and how an image becomes its input."""
    size, square = own.model.input_shape[1], own.config.data.square
    settings = {"class_names": list(own.class_names), "image_size": size, **square._asdict()}
    settings["task"] = own.config.task
    if own.decision is not None:
        settings["decision"] = asdict(own.decision)
    write_atomically(directory / "classes.json", json.dumps(settings, indent=1).encode())
    shutil.copyfile(preprocess.__file__, directory / "preprocess.py")
    write(
        own.model,
        directory / form.file,
        to=request.to,
        class_names=own.class_names,
        read=partial(_decoded, size=size, square=square),
        numbers=request.numbers,
        one_class=tasks.one_class_each(own.config),
    )


def _decoded(encoded: Any, *, size: int, square: Square) -> Any:
    """Decode a JPEG or PNG to uint8 [size, size, 3] in a graph, with operations that TensorFlow Serving has too."""
    image = tf.cond(
        tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff",
        lambda: decode_jpeg(encoded),
        lambda: decode_png(encoded),
    )
    return tf.ensure_shape(resize(image, size, square), [size, size, 3])


def _compared(data: Setup, request: Request, own: Restored, file: Path) -> dict[str, Any]:
    """Return how far the export is from the checkpoint on a split, and its latency for batches of 1 and BATCH.

    Refuse (65) one that its runtime cannot run, or that agrees with the run on too few images.
    """
    split, size = request.check, data.image_size
    try:
        predict = opened(request.to, file, threads=data.threads)
        predict(np.zeros((1, size, size, 3), np.uint8))
    except Exception as error:  # each runtime has its own kind
        what = f"the model was exported to {request.to}, but its runtime does not run it ({reason(error)})."
        fix = "export --to another format, or without --int8 or --float16."
        raise Refusal(what, fix=fix, code=ExitCode.DATA) from error
    expected = evaluate.probabilities(data, split, own.checkpoint)
    exported = np.concatenate([predict(images) for images in _images(data, split)])
    source, first, cfg = data.splits[split], next(_images(data, split)), data.cfg
    paired = {}
    if tasks.one_class_each(cfg):
        labels, groups = np.asarray(source.labels), groups_of(source, cfg.data)
        paired["paired"] = figures.paired(labels, expected, exported, groups)
    report = {
        "split": split,
        **_difference(cfg, expected, exported),
        **paired,
        "latency_ms": {str(rows): _latency(predict, np.resize(first, (rows, *first.shape[1:]))) for rows in (1, BATCH)},
    }
    if request.to == "savedmodel":
        report |= _encoded_compared(data, split, file, predict)
    kind = request.numbers
    if kind == "float32" and own.precision != own.trained_in:
        kind = "other precision"
    least = MIN_AGREEMENT[kind] if request.min_agreement is None else request.min_agreement
    agreement = report["num_agreeing"] / report["num_examples"]
    if agreement < least:
        raise Refusal(
            f"the export gives {report['num_agreeing']:,} of {report['num_examples']:,} images of '{split}' "
            f"the answer that the run gives them ({agreement:.4f}); at least {least:g} is required, so nothing "
            "was written.",
            fix=f"export --to another format, or accept it with --min-agreement {int(agreement * 1e4) / 1e4:g}.",
            code=ExitCode.DATA,
        )
    return report


def _difference(cfg: Config, expected: NDArray[np.floating], exported: NDArray[np.floating]) -> dict[str, Any]:
    return {
        "num_examples": len(expected),
        "num_agreeing": int(tasks.of(cfg).agree(expected, exported).sum()),
        "largest_difference": float(np.abs(exported - expected).max()),
    }


def _images(data: Setup, split: str, examples: list[int] | None = None) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of a split, or some examples, as the run evaluates them: uint8 [up to BATCH, size, size, 3]."""
    source = data.splits[split] if examples is None else data.splits[split].subset(np.array(examples))
    batches = pipeline.evaluation_batches(
        pipeline.plain(source, data.image_size, data.cfg.data.square),
        source.num_examples,
        rows=range(BATCH),
        global_batch=BATCH,
        threads=data.threads,
    )
    with data.examples.naming_bad(split, lambda: range(data.splits[split].num_examples)):
        for batch in batches:
            yield batch.images.numpy()[batch.weights.numpy() > 0]


def _encoded_compared(data: Setup, split: str, file: Path, predict: Predict) -> dict[str, Any]:
    """Compare a SavedModel's own decoding of JPEG and PNG files with the run's; empty for a split without any."""
    source = data.splits[split]
    examples = range(min(ENCODED_EXAMPLES, source.num_examples)) if source.is_encoded else range(0)
    files = {k: encoded for k in examples if (encoded := source.encoded_bytes(k)).startswith(_DECODED)}
    if not files:
        return {}
    signature = tf.saved_model.load(str(file)).signatures["encoded"]
    answers = signature(encoded=tf.constant(list(files.values())))
    exported = answers.get("probabilities", answers.get("values")).numpy()
    expected = np.concatenate([predict(images) for images in _images(data, split, list(files))])
    return {"encoded": _difference(data.cfg, expected, exported)}


def _latency(predict: Predict, images: NDArray[np.uint8]) -> dict[str, float]:
    """Return the median and high percentiles of a call in milliseconds, without the first two calls, which compile."""
    for _ in range(2):
        predict(images)
    times: list[float] = []
    end = time.perf_counter() + _TIMED_S
    while len(times) < _MOST_CALLS and (time.perf_counter() < end or len(times) < 5):
        start = time.perf_counter()
        predict(images)
        times.append(1e3 * (time.perf_counter() - start))
    return {f"p{q}": float(np.percentile(times, q)) for q in (50, 90, 99)}
