"""MLflow: send a run's numbers row by row, to the server in MLflow's own variables, else a database beside the runs."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.tools.track import Copied, Keep, NotTaken, Row, refuse_links, unsent, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = ("", "-journal", "-wal", "-shm")
_TAG = "tl_dist.id"
_EXPERIMENT = "tl_dist"
_STATUS = {"running": "RUNNING", "done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_MOST_METRICS, _MOST_PARAMETERS = 1_000, 100  # of one request


def send(copied: Copied, known: dict[str, Any], keep: Keep, *, live: bool) -> str:
    """Send what is new, and return where it is. `known` holds by address what earlier calls have sent."""
    import mlflow
    from mlflow.entities import Param
    from mlflow.utils.file_utils import local_file_uri_to_path

    for name in ("mlflow", "alembic", "urllib3"):
        # The user did not ask how a database is created, and a server's address may hold a token.
        logging.getLogger(name).setLevel(logging.ERROR)
    beside = copied.run.path.parent
    own = mlflow.is_tracking_uri_set()
    address = mlflow.get_tracking_uri() if own else f"sqlite:///{beside}/mlflow.db"
    sent = known.setdefault(without_secrets(address), {})
    if not own:
        refuse_links(*(beside / name for name in ("mlflow", *(f"mlflow.db{end}" for end in _SQLITE))))
    client = mlflow.MlflowClient(tracking_uri=address)
    if "run" not in sent:
        sent["run"] = _run(client, copied, None if own else f"file://{beside}/mlflow")
        keep()
    number = sent["run"]
    if not own:
        place = local_file_uri_to_path(client.get_run(number).info.artifact_uri)
        if (beside / "mlflow").resolve() not in Path(place).resolve().parents:
            raise NotTaken(f"{beside}/mlflow.db keeps files outside {beside}/mlflow: move it away")
    if not sent.get("parameters"):
        # The config as it is now: MLflow's parameters cannot change later; the file config.yaml can.
        there = client.get_run(number).data.params
        new = [Param(key, value) for key, value in copied.parameters.items() if key not in there]
        for first in range(0, len(new), _MOST_PARAMETERS):
            client.log_batch(number, params=new[first : first + _MOST_PARAMETERS])
        sent["parameters"] = True
    _send_rows(client, number, copied, sent, keep)
    if (status := _STATUS[copied.state]) != sent.get("status"):
        if copied.state == "running":
            client.update_run(number, status=status)
        else:
            client.set_terminated(number, status)
        sent["status"] = status
    files = sent.setdefault("files", {})
    for path in copied.files:
        digest = hashlib.sha256(read_file(path, max_bytes=limits.REPORT)).hexdigest()
        if files.get(path.name) != digest:
            client.log_artifact(number, str(path))
            files[path.name] = digest
            keep()
    return f"run {number} at {address}"


def _run(client: MlflowClient, copied: Copied, artifacts: str | None) -> str:
    """Return MLflow's run with this id; create it, unless an earlier call did so and was cut off before noting it."""
    import mlflow.environment_variables as variables

    name = variables.MLFLOW_EXPERIMENT_NAME.get() or _EXPERIMENT
    experiment = client.get_experiment_by_name(name)
    number = client.create_experiment(name, artifacts) if experiment is None else experiment.experiment_id
    runs = client.search_runs([number], f"tags.`{_TAG}` = '{copied.id}'", max_results=1)
    run = runs[0] if runs else client.create_run(number, run_name=copied.run.name, tags={_TAG: copied.id})
    return str(run.info.run_id)


def _send_rows(client: MlflowClient, number: str, copied: Copied, sent: dict[str, Any], keep: Keep) -> None:
    """Send rows in large requests. Rows not noted as sent are sent again with the same time: MLflow drops them."""
    from mlflow.entities import Metric

    rows: dict[str, int] = sent.setdefault("rows", {})
    for batch in _batches(unsent(copied.rows(), rows)):
        sent.setdefault("at", round(time.time() * 1000))
        keep()
        metrics = [Metric(*item, sent["at"], row.step) for row, _ in batch for item in row.values.items()]
        client.log_batch(number, metrics=metrics)
        rows.update((row.key, count) for row, count in batch)  # only after the server has confirmed them
        del sent["at"]


def _batches(rows: Iterable[tuple[Row, int]]) -> Iterator[list[tuple[Row, int]]]:
    batch, room = list[tuple[Row, int]](), _MOST_METRICS
    for row, count in rows:
        if batch and len(row.values) > room:
            yield batch
            batch, room = [], _MOST_METRICS
        batch.append((row, count))
        room -= len(row.values)
    if batch:
        yield batch
