"""Prove that all workers run the same thing, before the first step and while they train."""

import functools
import hashlib
import json
import platform
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import Config, extensions, registry
from tl_dist.config import file as config_file
from tl_dist.data import order
from tl_dist.datasets import Splits, manifest, preprocess
from tl_dist.files.atomic import write_atomically
from tl_dist.files.foreign import read_slice
from tl_dist.models.classifier import digest
from tl_dist.parallel import DataParallel
from tl_dist.refusal import ExitCode, Refusal, shortened
from tl_dist.trainer.setup import Setup

_CODE = Path(__file__).parents[1]
_code_digest = functools.cache(extensions.code_digest)


def versions(cfg: Config, code: str | None = None) -> dict[str, str]:
    """Return the versions of the libraries of this worker, and digests of this package's code and of its strategy's.

    `code` is the digest of this package's code, where it is known.
    """
    facts = {"python": platform.python_version(), "code": code or _code_digest(_CODE)}
    for package in ("tensorflow", "tensorflow-cpu", "keras", "horovod", "numpy"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    if cfg.strategy not in registry.STRATEGIES:
        facts["strategy"] = " ".join(registry.code_of(registry.STRATEGY, cfg.strategy).values())
    return facts


def code_of(parallel: DataParallel) -> str:
    """Return the digest of this package's code: hundreds of files, read by one worker of each host. Blocks."""
    place = json.dumps([socket.gethostname(), str(_CODE)]).encode()
    places = parallel.gather(place)
    reader = places.index(place)
    digests = parallel.gather(_code_digest(_CODE).encode() if reader == parallel.rank else b"")
    return digests[reader].decode()


def prove(setup: Setup, teacher_sha256: str | None = None) -> None:
    """Refuse workers whose code, config, data set or plan of collectives differs from another's, or from the run's."""
    cfg, examples = setup.cfg, setup.examples
    facts: dict[str, Any] = {
        "trajectory": config_file.trajectory(cfg),
        "precision": setup.precision,
        "order": order.VERSION,
        "decoding": preprocess.VERSION,
        "data": {name: source.fingerprint for name, source in examples.opened.items()},
        "class_names": list(setup.splits["train"].class_names),
        "weights_sha256": setup.weights and setup.weights.sha256,
        "frozen_sha256": setup.model.frozen_digest(),
        "start_sha256": digest({path: v.numpy() for path, v in setup.optimizer.start.items()}),
        "collectives": plan(setup.model.moving),
    }
    if cfg.model.batch_norm == "train":
        # Batch statistics of a replica depend on these: the only setting in which the worker count shows.
        facts["batch_statistics_of"] = [setup.parallel.num_replicas, cfg.accumulate]
    optional = {
        "weights_revision": setup.weights and setup.weights.revision,
        "weights_images": setup.weights and setup.weights.images,
        "source_sha256": setup.origin_sha256,
        "teacher_sha256": teacher_sha256,
        "split": examples.split_digest,
        "extensions": registry.code_of_others(cfg) or None,
    }
    facts |= {key: value for key, value in optional.items() if value is not None}
    used = {name: source.fingerprint for name, source in setup.splits.items()}
    agree(setup.parallel, {**facts, "used": used, "versions": versions(cfg, code_of(setup.parallel))})
    if setup.is_first:
        # Newer libraries may resume a run; other data, weights or settings may not.
        setup.run.freeze_identity(facts)
        _write_split(setup.run.path / "split.json", examples.opened)


def _write_split(path: Path, splits: Splits) -> None:
    """Write which example is in which split, unless the file is up to date: ImageNet's has 49 MB."""
    content = json.dumps(table := manifest(splits)).encode()
    begin = json.dumps({"digest": table["digest"]}).encode().rstrip(b"}")
    with suppress(OSError):
        if path.lstat().st_size == len(content) and read_slice(path, 0, len(begin)) == begin:
            return
    write_atomically(path, content)


def plan(variables: Mapping[str, Any]) -> str:
    """Return a digest of the order, names, types and shapes of what each worker reduces."""
    lines = [f"{path} {v.dtype.name} {tuple(v.shape)}" for path, v in variables.items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def agree(parallel: DataParallel, facts: Mapping[str, Any]) -> None:
    """Compare `facts` over all workers; refuse (78) with the first rank and key that differ from rank 0."""
    mine = json.dumps(facts, sort_keys=True).encode()
    if len(set(parallel.gather(hashlib.sha256(mine).digest()))) == 1:
        return  # the facts themselves, some 15 KB per worker, travel only where they differ
    reports = [json.loads(text) for text in parallel.gather(mine)]
    for rank, theirs in enumerate(reports):
        for key in sorted(reports[0].keys() | theirs.keys()):
            if theirs.get(key) != reports[0].get(key):
                other, first = (shortened(json.dumps(report.get(key)), 80) for report in (theirs, reports[0]))
                what = f"rank {rank} and rank 0 disagree on {key}: {other} against {first}."
                fix = "run all workers from one environment, one checkout and one data directory."
                raise Refusal(what, fix=fix, code=ExitCode.UNSAFE)


def prove_rows(parallel: DataParallel, rows: range, global_batch: int) -> None:
    """Refuse (70) unless exactly one worker reads each row of the global batch; `rows` are this worker's."""
    readers = np.zeros(global_batch)
    readers[rows.start : rows.stop] += 1
    totals = parallel.total({"readers": readers, "rows": len(rows)})
    wrong = np.flatnonzero(np.rint(totals["readers"]) != 1)
    if wrong.size or round(float(totals["rows"])) != global_batch:
        row = int(wrong[0]) if wrong.size else global_batch
        raise Refusal(
            f"row {row} of each batch of {global_batch} is read by {round(float(totals['readers'][row]))} workers"
            if wrong.size
            else f"workers read {round(float(totals['rows']))} rows of each batch of {global_batch}.",
            fix="report this as a bug: the workers do not share the batch as they must.",
            code=ExitCode.INTERNAL,
        )


def compare_weights(parallel: DataParallel, rows: NDArray[np.float64], names: Sequence[str], step: int) -> None:
    """Refuse (76, to restart from the last checkpoint) when the weights of two replicas differ.

    `rows` is [replica of this process, variable]: checksums below 2**40. The refusal names the first replica that
    differs from replica 0, and its first variable. Traffic grows with the number of workers only where they differ.
    """
    # n numbers are equal if and only if n times the sum of their squares is the square of their sum. In two halves of
    # 20 bits, every sum is exact in float64, and its square in 64 bits, for up to 2,048 replicas.
    low, high = rows % 2**20, rows // 2**20
    sums = {"low": low.sum(0), "high": high.sum(0), "low2": (low**2).sum(0), "high2": (high**2).sum(0)}
    total = {key: np.rint(value).astype(np.int64) for key, value in parallel.total(sums).items()}
    if all(np.array_equal(parallel.num_replicas * total[f"{k}2"], total[k] ** 2) for k in ("low", "high")):
        return
    tables = [np.frombuffer(text).reshape(-1, len(names)) for text in parallel.gather(rows.tobytes())]
    checksums = np.concatenate(tables)
    different = np.argwhere(checksums != checksums[0])
    replica, variable = different[0]
    raise Refusal(
        f"after step {step} the weights of replica {replica} differ from those of replica 0, first in "
        f"{names[variable]} ({len(set(different[:, 1]))} of {len(names)} variables).",
        fix="the run resumes from its last checkpoint; if it happens again, suspect that host's memory or device.",
        code=ExitCode.PEER_LOST,
    )
