"""Weights & Biases: write a whole run as one file of its offline mode, again if there is more, and upload that file.

The library sends the API key to whatever server the file `wandb/settings` in the working directory names. That file may
have come with a data set, so the library works in an empty directory.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.files.private import scratch
from tl_dist.tools.track import Copied, Keep, NotTaken

_PROJECT = "tl_dist"
_UPLOAD_S = 300.0


def send(copied: Copied, known: dict[str, Any], keep: Keep, *, live: bool) -> str:
    """Write the copy, upload it unless the library is set to work offline, and return where it is.

    Each upload replaces the whole run, so it waits for the end of an attempt.
    """
    place = copied.place / "wandb"
    if live:
        return f"at the end of the run, in {place}"
    content = _content(copied)
    # Outside the run, where nothing may be a link: the library leaves some.
    with scratch(Path(tempfile.gettempdir()), "tl-dist-wandb") as empty, chdir(empty):
        import wandb

        offline = wandb.setup().settings.mode in ("offline", "disabled", "dryrun")
        current = known.get("content") == content and _files_in(place)
        # Upload only what was just written: a file that came with the run could name others to be sent along.
        if not current or not (offline or known.get("uploaded") == content):
            _write(copied, place, empty)
            known["content"] = content
            keep()
        if not offline and known.get("uploaded") != content:
            _upload(place)
            known["uploaded"] = content
    return f"offline in {place}" if offline else f"run {copied.id}, and in {place}"


def _content(copied: Copied) -> str:
    digest = hashlib.sha256(copied.state.encode())
    for row in copied.rows():
        digest.update(json.dumps([row.key, row.step, row.values]).encode())
    for path in copied.files:
        digest.update(hashlib.sha256(read_file(path, max_bytes=limits.REPORT)).digest())
    return digest.hexdigest()


def _write(copied: Copied, place: Path, empty: Path) -> None:
    """Replace the file in `place` by one of the whole run, which is first written in the directory `empty`."""
    import wandb

    # Send nothing about this machine, its packages or its repository: the run may have been trained elsewhere.
    on = ("disable_git", "silent", "x_disable_meta", "x_disable_machine_info", "x_disable_stats")
    off = ("save_code", "symlink", "x_save_requirements")
    settings = wandb.Settings(console="off", **dict.fromkeys(on, True), **dict.fromkeys(off, False))
    project = wandb.setup().settings.project or _PROJECT
    run = wandb.init(
        id=copied.id, name=copied.run.name, project=project, config=copied.parameters, dir=str(empty),
        mode="offline", settings=settings,
    )  # fmt: skip
    run.define_metric("*", step_metric="step")
    for row in copied.rows():
        if row.key == "done":
            run.summary.update(row.values)
        else:
            run.log({"step": row.step, **row.values})
    for path in copied.files:
        if path.suffix == ".html":
            page = read_file(path, max_bytes=limits.REPORT).decode("utf-8", "replace")
            run.log({"report": wandb.Html(page, inject=False)})
    run.finish(exit_code=int(copied.state == "failed"))
    wandb.teardown()  # `finish` does not wait for the process that writes the file
    (written,) = empty.glob("wandb/offline-run-*")
    fresh = place.with_name("wandb.new")  # readers find the old copy until then
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(written, fresh / written.name, ignore=_links_in)
    shutil.rmtree(place, ignore_errors=True)
    fresh.rename(place)


def _links_in(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if os.path.islink(os.path.join(folder, name))]


def _files_in(place: Path) -> list[Path]:
    return sorted(place.glob("offline-run-*/run-*.wandb"))


def _upload(place: Path) -> None:
    """Upload the file. Raises NotTaken if that fails or takes too long."""
    (file,) = _files_in(place)
    argv = [sys.executable, "-m", "wandb", "sync", str(file.parent)]
    with tempfile.TemporaryFile() as log:
        try:
            subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=_UPLOAD_S, check=False)
        except subprocess.TimeoutExpired:
            raise NotTaken(f"no answer within {_UPLOAD_S:.0f} s") from None
        log.seek(0)
        lines = log.read().decode("utf-8", "replace").splitlines()
    if not file.with_name(f"{file.name}.synced").exists():
        errors = [line for line in lines if line.strip() and file.name not in line and "Syncing" not in line]
        raise NotTaken(errors[-1].removeprefix("Error: ") if errors else "its server did not take the upload")
