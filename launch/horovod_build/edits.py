"""The changes to Horovod's source, each with its reason: exact matches, no copy of the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from horovod_build import refusal

VERSION = "0.28.1"
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"  # of the source archive


@dataclass(frozen=True)
class Edit:
    """Replace `old`, which must occur exactly once in the file at `path`, by `new`."""

    path: str
    old: str
    new: str
    reason: str


EDITS = (
    Edit(
        path="horovod/tensorflow/CMakeLists.txt",
        old='list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n',
        new="",
        reason="includes headers that TensorFlow's wheel does not ship (highwayhash, farmhash); it only "
        "serves HOROVOD_ENABLE_XLA_OPS, which tl_dist never sets",
    ),
    Edit(
        path="horovod/common/gloo/gloo_controller.cc",
        old="global_ranks_.reserve(size_);",
        new="global_ranks_.resize(size_);",
        reason="reserve leaves the vector empty while it is written through data(): the stall inspector then "
        "knows no ranks, and HOROVOD_STALL_SHUTDOWN_TIME_SECONDS does nothing under Gloo",
    ),
    Edit(
        path="horovod/tensorflow/mpi_ops.cc",
        old='#include "tensorflow/compiler/xla/stream_executor/stream.h"\n',
        new='#include "tensorflow/compiler/xla/stream_executor/stream.h"\n'
        "namespace stream_executor { namespace gpu {\n"
        "GpuStreamHandle AsGpuStreamValue(Stream* stream) {\n"
        "  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);\n"
        "}\n"
        "} }\n",
        reason="Horovod only declares this function and TensorFlow 2.21's CUDA wheel no longer defines it: a "
        "GPU build links, and then cannot be loaded. The public accessor of the same value takes its place",
    ),
)


def apply_edits(source: Path, edits: Sequence[Edit] = EDITS) -> None:
    """Make every edit, or raise before the first file is written: a source that differs is not guessed at."""
    results: dict[Path, str] = {}
    for edit in edits:
        file = source / edit.path
        text = results.get(file)
        if text is None:
            text = file.read_text(encoding="utf-8") if file.exists() else ""
        if (matches := text.count(edit.old)) != 1:
            raise refusal.Refusal(
                f"cannot edit {edit.path}: expected exactly 1 match of {edit.old.strip()!r}, "
                f"found {matches}. Fix: use the source archive of Horovod {VERSION} as published",
                refusal.INTERNAL,
            )
        results[file] = text.replace(edit.old, edit.new)
    for file, text in results.items():
        file.write_text(text, encoding="utf-8")
