"""Copy runs to MLflow or Weights & Biases: the run directory is the record, and copies are made from it.

Training knows nothing of trackers. A separate process copies a run while it trains, and `tl-dist sync RUN` does so at
any time. What has been sent is noted in RUN/track, so that nothing is sent twice. No password, query or key of an
address is written there or shown.
"""

import io
import json
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tl_dist.config import file as config_file
from tl_dist.config import registry
from tl_dist.files import packages
from tl_dist.files.atomic import reason, write_atomically
from tl_dist.files.private import refuse_unsafe
from tl_dist.launcher.companion import bytes_of, place_of, require_trackers
from tl_dist.refusal import ExitCode, Refusal, printable, shortened
from tl_dist.runs.directory import RunDir, read_json
from tl_dist.runs.records import records
from tl_dist.runs.table import state_of

MAX_VALUE = 500  # characters of a parameter
_MAX_NAME, _MAX_NUMBERS = 200, 500  # characters of a name, numbers of a record
_NOT_CURVES = {"step", "total_steps", "epochs", "eta_s", "figures"}
_NOT_IN_NAMES = re.compile(r"[^\w. /-]", re.ASCII)
_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*://)([^\s'\"<>/?#]*)([^\s'\"<>]*)")
_HOST = re.compile(r"(?:\[[^]]*\]|[^:]*)(?::\d*)?[.,:;)]*")
_AT = re.compile(r"/[^\s'\"<>()/]+@[^\s'\"<>()]*")
_QUERY = re.compile(r"\?[^\s'\"<>()]+")  # libraries also show an address without its host
_LOCK_WAIT_S = 10.0

Keep = Callable[[], None]  # writes to disk what a tracker has taken


class Row(NamedTuple):
    """The numbers of one record."""

    key: str  # train, SPLIT:STEP, or done; rows of training are told apart by their step
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Copied:
    """What a run has to copy, and where it is noted what has been sent."""

    run: RunDir
    id: str  # the id of this run in every tracker
    state: str  # running, done, stopped or failed
    place: Path  # the directory of the notes

    @property
    def parameters(self) -> dict[str, str]:
        """Return the config by dotted key."""
        values = config_file.flat(config_file.load(self.run.config_file, imports=False))
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
        return {name_of(key): printable(shortened(text, MAX_VALUE)) for key, text in texts.items()}

    @property
    def files(self) -> list[Path]:
        """List the existing files that are sent unchanged."""
        files = (self.run.config_file, self.run.path / "report.html")
        return [path for path in files if path.is_file() and not path.is_symlink()]

    def rows(self) -> Iterator[Row]:
        """Yield all numbers of the run in the order in which they were recorded, then its final figures."""
        for record in records(self.run.metrics_file):
            step, event, split = (record.get(key) for key in ("step", "event", "split"))
            if not isinstance(step, int) or abs(step) >= 2**63:
                continue
            if event == "train":
                yield Row("train", step, _numbers(record, "train/"))
            elif event == "evaluation":
                yield Row(f"{split}:{step}", step, _numbers(record, f"{split}/"))
        if (done := self.run.done) is not None:
            yield Row("done", done.get("step", 0), _numbers(done, "final/"))


class NotTaken(Exception):
    """A tracker has not taken a run; the message is the reason."""


def unsent(rows: Iterable[Row], sent: Mapping[str, int]) -> Iterator[tuple[Row, int]]:
    """Yield each row that `sent` does not count yet, with the count to note once it is sent.

    For training, this is the last step: a restart repeats the same steps, which are not sent again. For evaluations, it
    is how many there were of a split at a step.
    """
    counts, known = Counter[str](), dict(sent)
    for row in rows:
        counts[row.key] += 1
        number = row.step if row.key == "train" else counts[row.key]
        if number > known.get(row.key, 0):
            known[row.key] = number
            yield row, number


def sync(run: RunDir, trackers: Sequence[str], *, live: bool = False) -> list[str]:
    """Send each tracker what it does not have yet, and return a line on each. Refuses (75) if one did not take all.

    With `live`, the run still trains: a tracker that takes only whole runs is left for its end.
    """
    require_trackers(trackers)
    lines, failures = [], []
    absolute = RunDir(run.path.absolute())  # the working directory changes for some libraries
    with _place(absolute) as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # meant for the developers of the libraries
        for name in trackers:
            copied = Copied(absolute, _id(place), "running" if live else state_of(run), place)
            try:
                # MLflow prints the address.
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    lines.append(f"{name}: {without_secrets(_send(copied, name, live))}")
            except Refusal:
                raise
            except Exception as error:  # libraries, servers and networks raise what they like
                what = str(error) if isinstance(error, NotTaken) else reason(error)
                what = _AT.sub("/...", without_secrets(" ".join(what.split()))).rstrip(".")
                title = registry.TRACKERS[name].title
                failures.append(f"{title} has not taken all of {run.name}: {shortened(what, 300)}")
    if failures:
        what = f"{'; '.join(failures)}."
        fix = f"check that it can be reached, then: tl-dist sync {run.path}."
        raise Refusal(what, fix=fix, code=ExitCode.REQUEUE)
    return lines


def _send(copied: Copied, name: str, live: bool) -> str:
    """Send a run to one tracker, noting what it has taken as it goes, and return where the copy is."""
    file, size = copied.place / f"{name}.json", bytes_of(copied.run)
    known = read_json(file) or {}

    def keep() -> None:
        write_atomically(file, json.dumps(known, indent=1, sort_keys=True).encode() + b"\n")

    where: str = import_module(f"tl_dist.tools.track.to_{name}").send(copied, known, keep, live=live)
    known["seen"] = {} if live else {"bytes": size, "state": copied.state}
    keep()
    return where


def without_secrets(text: str) -> str:
    """Strip every address in the text of its user, its password, and all that follows a `?` or `#`."""
    return _QUERY.sub("", _ADDRESS.sub(_bare, text))


def _bare(match: re.Match[str]) -> str:
    scheme, server, rest = match.groups()
    host = server.rpartition("@")[2]
    if server and ("@" in rest or not _HOST.fullmatch(host)):  # the password has a / or ? in it
        return f"{scheme}..."
    return scheme + host + re.split("[?#]", rest, maxsplit=1)[0]


def name_of(key: str) -> str:
    """Make a name that every tracker takes: no part between slashes is empty or consists of dots."""
    name = shortened(_NOT_IN_NAMES.sub("_", key), _MAX_NAME)
    return "/".join(part if part.strip(".") else "_" * max(len(part), 1) for part in name.split("/"))


@contextmanager
def _place(run: RunDir) -> Iterator[Path]:
    """Lock the directory of the notes, with a umask that keeps new files private. Refuses (75) a second process."""
    place = place_of(run)
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    refuse_unsafe(place, instead="remove it")
    refuse_links(*place.iterdir())
    if (lock := place / "lock").exists() and not lock.is_file():
        raise Refusal(f"{lock} is not a file.", fix=f"remove {place}.", code=ExitCode.UNSAFE)
    mask, deadline = os.umask(0o077), time.monotonic() + _LOCK_WAIT_S
    try:
        while time.monotonic() < deadline:
            with packages.locked(lock, wait=False) as is_mine:
                if is_mine:
                    yield place
                    return
            time.sleep(0.1)
    finally:
        os.umask(mask)
    what = f"another process is sending {run.path}."
    raise Refusal(what, fix="run the same command again later.", code=ExitCode.REQUEUE)


def refuse_links(*paths: Path) -> None:
    """Refuse (78) symbolic links: somebody may have put them where copies are written."""
    for path in paths:
        if path.is_symlink():
            raise Refusal(f"{path} is a symbolic link.", fix="remove it.", code=ExitCode.UNSAFE)


def _id(place: Path) -> str:
    """Return the id of this run in trackers, which is made once."""
    file = place / "id.json"
    with suppress(FileExistsError):
        if not file.exists():
            write_atomically(file, json.dumps({"id": os.urandom(8).hex()}).encode(), exclusive=True)
    run_id = str((read_json(file) or {}).get("id"))
    if not re.fullmatch(r"[0-9a-f]{16}", run_id):
        raise Refusal(f"{file} holds no id.", fix=f"remove {place}.", code=ExitCode.UNSAFE)
    return run_id


def _numbers(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return at most _MAX_NUMBERS numbers of a record and of its figures, by names that trackers take."""
    figures = record.get("figures")
    values = {**record, **(figures if isinstance(figures, Mapping) else {})}
    plain = {key: value for key, value in values.items() if key not in _NOT_CURVES}
    return dict(islice(_all_numbers(plain, prefix), _MAX_NUMBERS))


def _all_numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers, also of nested sections and the two ends of intervals."""
    for key, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            with suppress(OverflowError):
                yield name_of(f"{prefix}{key}"), float(value)
        elif isinstance(value, Mapping):
            yield from _all_numbers(value, f"{prefix}{key}/")
        elif key == "interval" and isinstance(value, list):
            yield from _all_numbers(dict(zip(("low", "high"), value, strict=False)), f"{prefix}interval_")
