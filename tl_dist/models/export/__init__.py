"""A trained model as a file for another runtime: how each format is written (`write`) and run again (`runtime`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tl_dist.files.packages import require
from tl_dist.refusal import ExitCode, Refusal


@dataclass(frozen=True)
class Format:
    """What a format is called on the disk and by model hubs, and what it takes."""

    file: str
    library: str
    numbers: tuple[str, ...] = ("float32",)
    """the types in which it can keep weights"""
    packages: tuple[str, ...] = ()
    """what writing and running it needs beside TensorFlow, by the names under which they are imported"""

    def require(self) -> None:
        """Refuse (64) where one of them is not installed."""
        require(self.packages, extra="export")


FORMATS: Mapping[str, Format] = {
    "savedmodel": Format("savedmodel", "tf-keras"),
    "keras": Format("model.keras", "keras"),
    "onnx": Format("model.onnx", "onnx", packages=("tf2onnx", "onnx", "onnxruntime")),
    "litert": Format("model.tflite", "litert", ("float32", "float16", "int8"), packages=("ai_edge_litert",)),
}

_ALSO_CALLED = {
    "tflite": "litert",
    "lite": "litert",
    "saved_model": "savedmodel",
    "tf": "savedmodel",
    "h5": "keras",
}


def format_of(name: str, numbers: str) -> Format:
    """The format of this name; refuses one that is not known, or does not take these numbers."""
    found = FORMATS.get(name)
    if found is None:
        meant = _ALSO_CALLED.get(name.lower())
        fix = f"use --to {meant}" if meant else f"use one of {', '.join(FORMATS)}"
        raise Refusal(f"no export is called '{name}'.", fix=f"{fix}.", code=ExitCode.USAGE)
    if numbers not in found.numbers:
        able = [other for other, one in FORMATS.items() if numbers in one.numbers]
        raise Refusal(
            f"an export to {name} has no weights in {numbers}.",
            fix=f"leave out --{numbers}, or export --to {' or '.join(able)}.",
            code=ExitCode.USAGE,
        )
    return found
