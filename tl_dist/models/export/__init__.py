"""Export of a trained model to other runtimes: the formats, how each is written (`write`) and run (`runtime`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tl_dist.files.packages import require
from tl_dist.refusal import ExitCode, Refusal


@dataclass(frozen=True)
class Format:
    """A format: its name on disk and for model hubs, and what it requires."""

    file: str
    library: str
    numbers: tuple[str, ...] = ("float32",)
    """the types in which it can store weights"""
    packages: tuple[str, ...] = ()
    """the packages that writing and running it needs besides TensorFlow, by the names under which they are imported"""

    def require(self) -> None:
        """Refuse (64) if one of the packages is not installed."""
        require(self.packages, extra="export")


FORMATS: Mapping[str, Format] = {
    "savedmodel": Format("savedmodel", "tf-keras"),
    "keras": Format("model.keras", "keras"),
    "onnx": Format("model.onnx", "onnx", packages=("tf2onnx", "onnx", "onnxruntime")),
    "litert": Format("model.tflite", "litert", ("float32", "float16", "int8"), packages=("ai_edge_litert",)),
}

_OTHER_NAMES = {
    "tflite": "litert",
    "lite": "litert",
    "saved_model": "savedmodel",
    "tf": "savedmodel",
    "h5": "keras",
}


def format_of(name: str, numbers: str) -> Format:
    """Return the format of this name; refuse (64) an unknown name, and numbers in which it stores no weights."""
    export = FORMATS.get(name)
    if export is None:
        usual_name = _OTHER_NAMES.get(name.lower())
        fix = f"use --to {usual_name}" if usual_name else f"use one of {', '.join(FORMATS)}"
        raise Refusal(f"no export is called '{name}'.", fix=f"{fix}.", code=ExitCode.USAGE)
    if numbers not in export.numbers:
        others = [other for other, record in FORMATS.items() if numbers in record.numbers]
        raise Refusal(
            f"an export to {name} has no weights in {numbers}.",
            fix=f"leave out --{numbers}, or export --to {' or '.join(others)}.",
            code=ExitCode.USAGE,
        )
    return export
