"""Keys of trackers go to the servers that the user names, and copies of a run lead nowhere else, whatever lies near."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.end_to_end.harness import wait_for
from tests.hostile.arena import TL_DIST, Arena, Warm
from tests.unit.tools.mlflow_server import mlflow_server
from tl_dist.config import Config
from tl_dist.runs.directory import RunDir

KEY = "S3CR3T".ljust(40, "0")
BOUND_S = 120.0
"""10 s on an idle machine: the server answers at once"""


class Server(ThreadingHTTPServer):
    """Answers everything by 400, and keeps who asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        assert isinstance(self.server, Server)
        self.server.asked.append(self.headers.get("Authorization", ""))
        self.send_response(400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_PUT = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def warm(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm | None]:
    """Has MLflow, whose import is most of a command's time."""
    if pytestconfig.option.full:
        yield None
        return
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("MLFLOW", "WANDB"))]:
            patch.delenv(name)
        made = Warm(tmp_path_factory.mktemp("warm"), "mlflow", "sqlalchemy", "alembic")
    yield made
    made.close()


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    """The user's, and another."""
    own, other = Server(), Server()
    yield own, other
    for server in (own, other):
        server.shutdown()
        server.server_close()


def tracked(arena: Arena, *trackers: str) -> RunDir:
    """A run that is to be copied."""
    cfg = Config.model_validate(
        {
            "name": "digits",
            "steps": 30,
            "data": {"name": "digits", "image_size": 8},
            "model": {"backbone": "tiny", "weights": "random", "train_from": "all"},
            "optimizer": {"name": "sgd", "learning_rate": 0.1},
            "report": {"track": trackers},
        }
    )
    run = RunDir.create(arena.folder / "runs", cfg)
    lines: list[dict[str, object]] = [{"event": "train", "step": k, "loss": 1 / k} for k in (10, 20, 30)]
    lines.append({"event": "evaluation", "step": 30, "split": "validation", "accuracy": 0.5})
    run.metrics_file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    run.mark_done({"step": 30, "figures": {"test": {"accuracy": 0.75}}})
    return run


def sync(arena: Arena, **environment: str) -> subprocess.CompletedProcess[bytes]:
    _forget_servers(arena)
    if "WANDB_API_KEY" in environment:  # a program of its own: it looks around as it starts
        arena.warm = None
    return arena.run(("sync", "runs/digits"), seconds=300, environment=environment)


def sync_beside(arena: Arena, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Copy as beside a training that lasts until the first line of the log; then 15 s are left for the rest."""
    _forget_servers(arena)
    log = arena.home / "track.out"
    argv = [TL_DIST, "sync", "runs/digits", "--beside"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv,
            cwd=arena.folder,
            env=arena.environment | environment,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    with process:
        assert process.stdin
        try:
            wait_for(lambda: log.stat().st_size or process.poll() is not None, "a copy beside a run", BOUND_S)
            process.stdin.close()
            code = process.wait(BOUND_S)
        finally:
            process.kill()
    return subprocess.CompletedProcess(argv, code, log.read_bytes(), b"")


def _forget_servers(arena: Arena) -> None:
    for name in [name for name in arena.environment if name.startswith(("MLFLOW", "WANDB"))]:
        del arena.environment[name]


def one_line(done: subprocess.CompletedProcess[bytes], code: int, says: str) -> None:
    assert done.returncode == code, done
    (line,) = done.stderr.decode().splitlines()
    assert says in line and " Fix: " in line, line


def everything_in(folder: Path, done: subprocess.CompletedProcess[bytes]) -> bytes:
    """What was shown, and all files below a folder."""
    held = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return held + done.stdout + done.stderr


SETTINGS = ("wandb", ".wandb", "runs/digits/track/wandb", "runs/digits/track/wandb.new/wandb")
"""where a settings file may lie that is not the user's: the working directory, the run, and below WANDB_DIR"""


@pytest.mark.parametrize("beside", [False, True], ids=["sync", "as train starts it"])
def test_the_key_goes_to_the_users_own_server_whatever_a_settings_file_says(
    arena: Arena, servers: tuple[Server, Server], beside: bool
) -> None:
    """All such files name another server, so that one that is read shows; an answer of 500 is given up soon."""
    own, other = servers
    run = tracked(arena, "wandb")
    (run.path / "track").mkdir(mode=0o700)
    for place in SETTINGS:
        arena.file(f"{place}/settings", f"[default]\nbase_url = {other.address}\nmode = online\n")
    (arena.home / ".config" / "wandb").mkdir(parents=True)
    (arena.home / ".config" / "wandb" / "settings").write_text(f"[default]\nbase_url = {own.address}\n")
    began, variables = time.monotonic(), {"WANDB_API_KEY": KEY, "WANDB_DIR": "."}
    done = sync_beside(arena, **variables) if beside else sync(arena, **variables)
    assert time.monotonic() - began < BOUND_S
    while beside and not own.asked and time.monotonic() - began < BOUND_S:
        # It ends itself within 15 s, which a busy machine needs for the copy alone: the upload is for the next one.
        done = sync_beside(arena, **variables)
    assert other.asked == []
    assert own.asked, done
    if not beside:
        one_line(done, 75, "Weights & Biases has not taken all of digits")


def test_settings_that_the_environment_names_by_a_relative_path_are_the_users(
    arena: Arena, servers: tuple[Server, Server]
) -> None:
    own, other = servers
    tracked(arena, "wandb")
    arena.file("mine/settings", f"[default]\nbase_url = {own.address}\n")
    arena.file("wandb/settings", f"[default]\nbase_url = {other.address}\n")
    sync(arena, WANDB_API_KEY=KEY, WANDB_CONFIG_DIR="mine")
    assert own.asked and other.asked == []


def test_what_is_uploaded_is_never_a_file_that_came_with_the_run(arena: Arena, servers: tuple[Server, Server]) -> None:
    """It could name any file of the user, to be sent with it, and its author's account as the place."""
    run = tracked(arena, "wandb")
    assert sync(arena, WANDB_MODE="offline").returncode == 0
    (file,) = (run.path / "track" / "wandb").glob("offline-run-*/run-*.wandb")
    file.write_bytes(b"forged")
    sync(arena, WANDB_API_KEY=KEY, WANDB_BASE_URL=servers[0].address)
    held = [path.read_bytes() for path in (run.path / "track" / "wandb").glob("offline-run-*/run-*.wandb")]
    assert held and b"forged" not in held


@pytest.mark.parametrize(
    ("address", "beside"),
    [
        ("http://bob:S3C@R3T-S3CR3T@{host}", False),
        pytest.param("http://{host}/?token=S3CR3T", False, marks=pytest.mark.full),
        ("http://{host}/base?token=S3C@S3CR3T#S3CR3T", False),
        ("http://bob:S3C?S3CR3T@{host}/", False),
        pytest.param("http://bob:S3C#S3CR3T@{host}", False, marks=pytest.mark.full),
        ("http://bob:12/S3CR3T@{host}", False),
        ("http://bob:S3C@R3T-S3CR3T@{host}/?token=S3CR3T", True),  # into logs/track.out
    ],
)
def test_no_password_and_no_token_of_an_address_is_shown_or_kept(arena: Arena, address: str, beside: bool) -> None:
    run = tracked(arena, "mlflow")
    (run.path / "report.html").write_bytes(b"<p>")
    with mlflow_server() as server:
        server.hangs = beside
        variables = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
        variables["MLFLOW_TRACKING_URI"] = address.format(host=server.address.removeprefix("http://"))
        done = sync_beside(arena, **variables) if beside else sync(arena, **variables)
        server.released.set()
    assert done.stdout or done.stderr
    for secret in (b"S3CR3T", b"R3T-", b"S3C@"):
        assert secret not in everything_in(run.path, done), done


def test_a_copy_in_files_is_for_its_owner_alone(arena: Arena) -> None:
    run = tracked(arena, "mlflow", "wandb")
    (run.path / "report.html").write_bytes(b"<p>")
    (run.path / "report.html").chmod(0o600)  # as it is written
    arena.warm = None  # a process that inherits the mask
    mask = os.umask(0)  # as in many containers
    try:
        done = sync(arena, WANDB_MODE="offline")
    finally:
        os.umask(mask)
    assert done.returncode == 0, done
    root = arena.folder / "runs"
    places = [root / "mlflow.db", root / "mlflow", *(root / "mlflow").rglob("*")]
    places += (run.path / "track").rglob("*")
    assert len(places) > 6
    assert {path.name: oct(path.stat().st_mode) for path in places if path.stat().st_mode & 0o077} == {}


def test_a_record_of_any_split_is_sent(arena: Arena) -> None:
    """By an escaped name: MLflow takes none that leads out of a folder, and the copy was never done."""
    run = tracked(arena, "mlflow")
    splits = ["../x", "/x", "x/../../y", "..", ".", "", "x//y", "x/", "\x1b]0;x", ["x"], None, "x" * 1000]
    with open(run.metrics_file, "a") as file:
        for split in splits:
            record = {"event": "evaluation", "step": 6, "split": split, "accuracy": 0.5, "../y": 1, "": 2}
            file.write(f"{json.dumps(record)}\n")
        file.write(json.dumps({"event": "train", "step": 10**30, "loss": 1.0}) + "\n")
    done = sync(arena)
    assert done.returncode == 0, done


@pytest.mark.parametrize("name", ["lock", "id.json", "mlflow.json", "wandb", "wandb.new"])
def test_a_link_where_notes_lie_is_refused(arena: Arena, name: str) -> None:
    run = tracked(arena, "mlflow")
    (run.path / "track").mkdir(mode=0o700)
    (run.path / "track" / name).symlink_to(arena.outside / "thesis.tex")
    one_line(sync(arena), 78, "symbolic link")
    assert (arena.outside / "thesis.tex").read_text() == "years of work\n"


def test_a_lock_that_is_no_file_is_refused(arena: Arena) -> None:
    run = tracked(arena, "mlflow")
    (run.path / "track" / "lock").mkdir(parents=True)
    (run.path / "track").chmod(0o700)
    one_line(sync(arena), 78, "is not a file")


@pytest.mark.parametrize("name", ["mlflow", "mlflow.db", "mlflow.db-journal", "mlflow.db-wal"])
def test_a_link_in_place_of_mlflows_database_is_refused(arena: Arena, name: str) -> None:
    tracked(arena, "mlflow")
    (arena.folder / "runs" / name).symlink_to(arena.outside / "directory")
    one_line(sync(arena), 78, "symbolic link")
    assert os.listdir(arena.outside / "directory") == ["data.json"]


def test_a_database_that_came_with_the_runs_says_not_where_files_go(arena: Arena) -> None:
    run = tracked(arena, "mlflow")
    code = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).create_experiment('tl_dist', sys.argv[2])"
    places = f"sqlite:///{arena.folder}/runs/mlflow.db", f"file://{arena.outside}/directory"
    environment: Mapping[str, str] = arena.environment
    subprocess.run([sys.executable, "-P", "-c", code, *places], check=True, env=environment, timeout=120)
    one_line(sync(arena), 75, "keeps files outside")
    assert os.listdir(arena.outside / "directory") == ["data.json"]
    assert run.config_file.is_file()
