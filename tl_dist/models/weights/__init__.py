"""The weights of a backbone, from any source, converted once into a safetensors file in the user's cache.

Workers read no other file. A second `resolve` needs neither the network nor TensorFlow, so the launcher calls it first.
"""

import hashlib
import json
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tl_dist.config import registry
from tl_dist.config.rules.model import WEIGHTS_FILES
from tl_dist.files import atomic, limits
from tl_dist.files.packages import locked, user_cache
from tl_dist.models.backbones import Backbone
from tl_dist.models.weights import descriptions, hub, sources
from tl_dist.models.weights.descriptions import Images
from tl_dist.refusal import ExitCode, Refusal, from_child

_CONVERSION = 3  # raise it when every source has to be converted again
_CONVERT_S = 3600.0
_TYPES = {"F32": "float32", "I32": "int32", "I64": "int64"}  # safetensors' names


@dataclass(frozen=True)
class WeightsFile:
    """Converted weights: a safetensors file of arrays `layer/variable`, every float a float32."""

    path: Path
    sha256: str
    source: str  # the spec that it was converted from
    others: tuple[str, ...] = ()
    """layers of the source that are no part of the backbone, and so were left out"""
    revision: str | None = None
    """commit of the hub's repository that it came from"""
    images: Images | None = None
    """what images were to the authors, where the source is described"""


def resolve(spec: str, backbone: str, *, sha256: str | None = None, cache: Path | None = None) -> WeightsFile | None:
    """Return the converted file for `spec`, converting it now if there is none yet; None for `random`.

    `spec` is `imagenet`, `pypi:NAME==VERSION`, `hf://OWNER/NAME`, `random`, `function` or a path (`sources.KINDS`).
    `sha256` is the digest that the source must have, checked before it is parsed; for `imagenet`, of the converted
    file. Never imports TensorFlow: a child builds a network if one is needed. Of several processes at once, one
    converts. Refuses sources that cannot be obtained, do not fit the network, or are not safe to read.
    """
    request = _request(spec, backbone, sha256, cache)
    if request is None:
        return None
    return _recall(request) or (_convert(request) if request.kind == "pypi" else _convert_in_child(request))


def convert(spec: str, backbone: str, *, sha256: str | None = None, cache: Path | None = None) -> WeightsFile | None:
    """Do as `resolve`, but in this process, which imports TensorFlow if a network has to be built."""
    request = _request(spec, backbone, sha256, cache)
    return None if request is None else _recall(request) or _convert(request)


def images_of(spec: str, backbone: str, *, fetch: bool = True, cache: Path | None = None) -> Images | None:
    """Return what images were to the authors of weights; None if no description says so.

    A description on the hub is fetched, unless `resolve` has converted the weights; without `fetch`, it is unknown.
    """
    if not spec.startswith("hf://"):
        return None if spec.startswith("pypi:") or not spec.endswith(WEIGHTS_FILES) else descriptions.beside(Path(spec))
    request = _request(spec, backbone, None, cache)
    assert request is not None
    if (record := request.recorded()) is not None or not fetch:
        return record and record["images"]
    return descriptions.beside(hub.fetch(spec, request.cache, described_only=True)[0])


def load(network: Any, file: WeightsFile) -> None:
    """Assign the weights of `file` to `network`, a backbone as it was built.

    Refuses a file with another digest, and one whose names, types or shapes are not exactly the network's, before
    anything is assigned.
    """
    import safetensors

    try:
        with file.path.open("rb") as stored:
            digest = hashlib.file_digest(stored, "sha256").hexdigest()
    except OSError as error:
        what = f"weights file {file.path} cannot be read on this host: {atomic.reason(error)}."
        fix = "point XDG_CACHE_HOME at a directory that all hosts share."
        raise Refusal(what, fix=fix, code=ExitCode.STORAGE) from error
    if digest != file.sha256:
        what = f"weights file {file.path} has sha256 {digest}, not {file.sha256}."
        fix = "delete it and start again: it is then converted again."
        raise Refusal(what, fix=fix, code=ExitCode.UNSAFE)
    wanted = {v.path: (str(v.dtype), tuple(v.shape)) for v in network.weights}
    with safetensors.safe_open(file.path, framework="numpy") as stored:
        views = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (no dict)
        available = {
            name: (_TYPES.get(view.get_dtype(), view.get_dtype()), tuple(view.get_shape()))
            for name, view in views.items()
        }
        sources.compare(file.path, network, wanted, available)
        for variable in network.weights:
            variable.assign(stored.get_tensor(variable.path))
    sources.finish(network)


@dataclass(frozen=True)
class _Request:
    """A source of weights for a backbone, checked as far as the spec alone allows."""

    kind: Literal["built", "pypi", "hub", "file"]
    spec: str  # the absolute path of a file
    name: str  # of the network, as `registry.backbone` takes it
    backbone: Backbone
    sha256: str | None
    cache: Path
    version: tuple[int | str, ...] = ()
    """changes with the file, and with the code of a backbone of another package"""

    @property
    def directory(self) -> Path:
        return self.cache / "weights"

    @property
    def label(self) -> str:
        """Return backbone and source as part of a file name."""
        source = "file" if self.kind == "file" else self.spec.removeprefix("pypi:")
        return re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.backbone.name}-{source}")

    @property
    def record(self) -> Path:
        """Return the path of the record that names the converted file of this request."""
        name, more = registry.parts_of(registry.without_folder(self.name))
        more.pop("preprocessing", None)
        identity = json.dumps([_CONVERSION, self.spec, name, more, *self.version])
        return self.directory / f"{self.label}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"

    def recorded(self) -> dict[str, Any] | None:
        """Return the record; None if it is missing or wrong."""
        keys = {"source_sha256", "sha256", "file", "bytes", "others", "revision", "images"}
        with suppress(OSError, ValueError):
            record: dict[str, Any] = json.loads(self.record.read_bytes())
            return record if isinstance(record, dict) and keys <= record.keys() else None
        return None

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
    code = tuple(value for key, value in registry.code_of_network(backbone).items() if key == "code")
    if spec in ("imagenet", "function"):
        if record.pretrained is None or record.function != (spec == "function"):
            why = "Keras has none" if spec == "imagenet" else "it is no function"
            raise _no_such(spec, record.name, why, "set model.weights to random.")
        return _Request("built", spec, backbone, record, sha256, cache, code)
    if spec.startswith("pypi:"):
        published = sources.PYPI_WEIGHTS.get(spec.removeprefix("pypi:"))
        if published is None or published.backbone != record.name:
            known = ", ".join(f"pypi:{name} for {entry.backbone}" for name, entry in sources.PYPI_WEIGHTS.items())
            raise _no_such(spec, record.name, "that package is not known to hold any", f"use {known}.")
        return _Request("pypi", spec, backbone, record, sha256, cache)
    if spec.startswith("hf://"):
        return _Request("hub", spec, backbone, record, sha256, cache, code)
    if not spec.endswith(WEIGHTS_FILES):
        kinds = f"imagenet, random, pypi:NAME==VERSION, hf://OWNER/NAME, or {sources.KINDS}"
        raise _no_such(spec, record.name, "it names no source", f"use {kinds}.")
    path = Path(spec).expanduser().resolve()
    try:
        stats = [file.stat() for file in sources.files_of(path)]
    except OSError as error:
        raise _no_such(spec, record.name, atomic.reason(error), "correct model.weights.") from error
    # No device number: it differs between the hosts that mount a file system.
    version = [part for s in stats for part in (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)]
    return _Request("file", str(path), backbone, record, sha256, cache, (*version, *code))


def _no_such(spec: str, backbone: str, why: str, fix: str) -> Refusal:
    return Refusal(f"no weights '{spec}' for {backbone}: {why}.", fix=fix, code=ExitCode.USAGE)


def _recall(request: _Request) -> WeightsFile | None:
    """Return the file that an earlier conversion wrote for this request; None if its record is missing or wrong."""
    if (record := request.recorded()) is None:
        return None
    path, sha256, images = request.directory / Path(record["file"]).name, record["sha256"], record["images"]
    try:
        if path.stat().st_size != record["bytes"]:
            return None
    except OSError:
        return None
    request.check_digest(record["source_sha256"] or sha256)
    descriptions.refuse_other_scaling(request.spec, request.backbone.name, request.backbone.preprocessing, images)
    return WeightsFile(path, sha256, request.spec, tuple(record["others"]), record["revision"], images)


def _convert(request: _Request) -> WeightsFile:
    """Convert in this process, unless another one does it first."""
    try:
        with locked(request.directory / f".{request.record.stem}.lock"):
            return _recall(request) or _obtain(request)
    except OSError as error:
        what = f"the weights '{request.spec}' cannot be kept in {request.directory}: {atomic.reason(error)}."
        fix = "free space there, or point XDG_CACHE_HOME at a directory that you can write."
        raise Refusal(what, fix=fix, code=ExitCode.STORAGE) from error


def _obtain(request: _Request) -> WeightsFile:
    """Write the converted file, then the record that names it."""
    from safetensors.numpy import save

    source_sha256: str | None = None
    others: tuple[str, ...] = ()
    revision = images = None
    if request.kind == "built":
        arrays = (sources.from_function if request.backbone.function else sources.from_keras)(request.backbone)
    elif request.kind == "pypi":
        package = request.spec.removeprefix("pypi:")
        arrays, source_sha256 = sources.from_package(package, request.backbone, request.check_digest, request.cache)
    else:
        path = Path(request.spec)
        if request.kind == "hub":
            path, revision = hub.fetch(request.spec, request.cache)
        images = descriptions.beside(path)
        descriptions.refuse_other_scaling(request.spec, request.backbone.name, request.backbone.preprocessing, images)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=request.directory) as scratch:
            arrays, source_sha256, others = sources.read(
                sources.files_of(path), request.backbone, request.check_digest, Path(scratch)
            )
    data = save(arrays)
    sha256 = hashlib.sha256(data).hexdigest()
    request.check_digest(source_sha256 or sha256)
    path = request.directory / f"{request.label}-{sha256[:12]}.safetensors"
    atomic.write_atomically(path, data)
    record = {"spec": request.spec, "file": path.name, "bytes": len(data), "sha256": sha256}
    record |= {"source_sha256": source_sha256, "others": others, "revision": revision, "images": images}
    atomic.write_atomically(request.record, json.dumps(record, indent=1).encode())
    return WeightsFile(path, sha256, request.spec, others, revision, images)


def _convert_in_child(request: _Request) -> WeightsFile:
    """Run this package as a command; return the file, or raise the refusal with which it ends."""
    command = [sys.executable, "-P", "-m", "tl_dist.models.weights", request.spec, request.name]
    command += ["--cache", str(request.cache), *(["--sha256", request.sha256] if request.sha256 else [])]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_CONVERT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise _failed(request, f"took more than {_CONVERT_S:.0f} s", command) from None
    if done.returncode == 0 and (file := _recall(request)):
        return file
    if done.returncode == -signal.SIGVTALRM:
        raise _failed(request, f"kept HDF5's library busy for {limits.HDF5_CPU_S} s of CPU time", command)
    raise from_child(done.returncode, done.stderr) or _failed(request, f"ended with status {done.returncode}", command)


def _failed(request: _Request, how: str, command: list[str]) -> Refusal:
    what = f"the conversion of the weights '{request.spec}' for {request.backbone.name} {how}."
    fix = f"run 'python {' '.join(command[1:6])}' to see why, and use no file that you do not trust."
    return Refusal(what, fix=fix, code=ExitCode.UNSAFE if request.kind == "file" else ExitCode.INTERNAL)
