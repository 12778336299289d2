"""Export the model of a run for another runtime, and compare it with the run image by image before it is kept."""

from __future__ import annotations

import json
import shutil
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.config import file as config_file
from tl_dist.data.resize import resize
from tl_dist.datasets import preprocess
from tl_dist.datasets.decoding import decode_jpeg, decode_png
from tl_dist.files.atomic import reason, write_atomically
from tl_dist.models.export import Format, format_of
from tl_dist.models.export.runtime import Predict, opened
from tl_dist.models.export.write import write
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.tools.export import Request, model_card, place
from tl_dist.tools.export import check as export_check
from tl_dist.trainer.load_model import Restored, restored
from tl_dist.trainer.setup import Setup, setup

MIN_AGREEMENT = {"float32": 0.999, "other precision": 0.99, "float16": 0.99, "int8": 0.98}


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
        _write(directory, form, own, request)
        report = {
            "run": run.name,
            "step": own.step,
            "to": request.to,
            "numbers": request.numbers,
            "file": form.file,
            "temperature": own.temperature,
            "bytes": _size(directory / form.file),
            "versions": {name: version(name) for name in ("keras", *form.packages)},
        }
        if data is not None:
            predict = _running(request.to, directory / form.file, data)
            report |= export_check.compared(data, request.check, own.checkpoint, predict)
            if request.to == "savedmodel":
                report |= export_check.encoded_compared(data, request.check, directory / form.file, predict)
            _refuse_below(report, request, _min_agreement(request, own))
        write_atomically(directory / "MODEL_CARD.md", model_card.text(run, own, report).encode())
        place.write_report(directory, report)
    return report


def _write(directory: Path, form: Format, own: Restored, request: Request) -> None:
    """Write the model, the names of its classes, and how an image becomes its input."""
    size, crop = own.model.input_shape[1], own.config.data.kept_fraction
    settings = {
        "class_names": list(own.class_names),
        "image_size": size,
        "crop_fraction": crop,
    }
    write_atomically(directory / "classes.json", json.dumps(settings, indent=1).encode())
    shutil.copyfile(preprocess.__file__, directory / "preprocess.py")
    write(
        own.model,
        directory / form.file,
        to=request.to,
        class_names=own.class_names,
        read=partial(_decoded, size=size, crop=crop),
        numbers=request.numbers,
    )


def _running(to: str, file: Path, data: Setup) -> Predict:
    """Return the export in its own runtime, after it has run once. Refuse (65) one that the runtime cannot run."""
    size = data.built.image_size
    try:
        predict = opened(to, file, threads=data.threads)
        predict(np.zeros((1, size, size, 3), np.uint8))
    except Exception as error:  # each runtime has its own kind
        raise Refusal(
            f"the model was exported to {to}, but its runtime does not run it ({reason(error)}).",
            fix="export --to another format, or without --int8 or --float16.",
            code=ExitCode.DATA,
        ) from error
    return predict


def _decoded(encoded: Any, *, size: int, crop: float | None) -> Any:
    """Decode a JPEG or PNG to uint8 [size, size, 3] in a graph, with operations that TensorFlow Serving has too."""
    image = tf.cond(
        tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff",
        lambda: decode_jpeg(encoded),
        lambda: decode_png(encoded),
    )
    return tf.ensure_shape(resize(image, size, crop), [size, size, 3])


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a directory."""
    return (
        sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        if path.is_dir()
        else path.stat().st_size
    )


def _min_agreement(request: Request, own: Restored) -> float:
    """Return the share of images for which export and run must predict the same class."""
    if request.min_agreement is not None:
        return request.min_agreement
    if request.numbers != "float32":
        return MIN_AGREEMENT[request.numbers]
    return MIN_AGREEMENT["other precision" if own.precision != own.trained_in else "float32"]


def _refuse_below(report: dict[str, Any], request: Request, min_agreement: float) -> None:
    agreement = report["num_agreeing"] / report["num_examples"]
    if agreement < min_agreement:
        raise Refusal(
            f"the export gives {report['num_agreeing']:,} of {report['num_examples']:,} images of '{request.check}' "
            f"the class that the run gives them ({agreement:.4f}); at least {min_agreement:g} is required, so nothing "
            "was written.",
            fix=f"export --to another format, or accept it with --min-agreement {int(agreement * 1e4) / 1e4:g}.",
            code=ExitCode.DATA,
        )
