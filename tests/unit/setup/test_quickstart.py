"""launch/quickstart and launch/test from a bare checkout: in any folder, by any user; what cannot be done is told.

Real are the shell scripts, `python -m venv` and launch/install_horovod; pip and the compiler are stubs.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
NOBODY = 65534
NAMES = ("project tl", "it's", "Büro", "$all \"of\" 'it', (ü) [1]; #2 & more")
# What the scripts call: PATH names a folder that has nothing else, whatever is installed on this machine.
TOOLS = "bash cat cp cut dirname env grep mkdir rm sh sha256sum tail touch tr"

# An interpreter whose environments have the stub for pip.
PYTHON = """#!/bin/bash
if [[ $1 == -m && $2 == venv ]]; then
  {python} -m venv --without-pip "$3" && cd "$3"/lib/python3.*/site-packages && mkdir pip && touch pip/__init__.py &&
    cp {stub} pip/__main__.py
else
  exec {python} "$@"
fi
"""
# As a compiler does it: what is neither an option nor a file is no input.
COMPILER = """#!/bin/bash
for word in "$@"; do
  [[ $word == -* || -e $word ]] || { echo "c++: error: $word: linker input file not found"; exit 1; }
done
echo "/usr/bin/ld: warning: nothing to see here"
if [[ -n $FAULT ]]; then echo "$FAULT"; exit 1; fi
"""


def interpreter() -> str:
    """The one that runs this, or where only root may read it (pyenv in /root), the system's."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        real = os.path.realpath(candidate)
        if all(os.stat(folder).st_mode & 0o005 == 0o005 for folder in (real, *Path(real).parents)):
            return real
    pytest.fail("no Python that every user may run. Fix: apt-get install python3")


class Checkout:
    """A copy of this repository's scripts in the folder `name`, and what somebody who works there has.

    `nobody` owns and uses it where these tests run as root, else whoever runs them.
    """

    def __init__(self, home: Path, name: str, *, nobody: bool = False) -> None:
        self.bin, own = home / "bin", home / name
        self.folder, self.cache, self.temporary = own / "checkout", own / "cache", own / "tmp"
        self.seen = own / "seen"
        for folder in (self.bin, self.temporary):
            folder.mkdir(parents=True)
        shutil.copytree(ROOT / "launch", self.folder / "launch", ignore=shutil.ignore_patterns("__pycache__"))
        (self.folder / "pyproject.toml").touch()
        stub = home / "stub_pip.py"
        shutil.copy(Path(__file__).with_name("stub_pip.py"), stub)
        for tool in TOOLS.split():
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        python = PYTHON.format(python=shlex.quote(interpreter()), stub=shlex.quote(str(stub)))
        commands = {"python3": python, "c++": COMPILER, "g++": COMPILER, "make": "#!/bin/sh\n"}
        for command, text in commands.items():
            (self.bin / command).write_text(text)
            (self.bin / command).chmod(0o755)
        self.environment = {
            "PATH": str(self.bin),
            "HOME": str(home),
            "XDG_CACHE_HOME": str(self.cache),
            "TMPDIR": str(self.temporary),
            "LAUNCH": str(self.folder / "launch"),
            "SEEN": str(self.seen),
            "FAULT": "",
        }
        self.user: dict[str, Any] = {}
        if nobody and os.geteuid() == 0:
            self.user = {"user": NOBODY, "group": NOBODY, "extra_groups": ()}
            subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(home)], check=True)

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "launch" / script), *arguments],
            cwd="/",
            env=self.environment | variables,
            text=True,
            capture_output=True,
            timeout=120,
            check=False,
            **self.user,
        )


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that every user may enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="tl_dist-setup-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("name", NAMES)
def test_quickstart_works_in_a_folder_of_any_name(home: Path, name: str) -> None:
    checkout = Checkout(home, name)
    done = checkout.run("quickstart", "epochs=1", "name=a b")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.endswith(f"tl-dist: {checkout.folder}: train configs/quickstart.yaml epochs=1 name=a b\n")
    assert len(list(checkout.cache.glob("tl_dist/wheels/*/horovod-*.whl"))) == 1
    for path in checkout.seen.read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9_./-]+", path)
    # A second call finds all of it.
    again = checkout.run("quickstart", "epochs=2")
    assert again.stdout.splitlines()[0].startswith("horovod: already installed: ")
    assert len(again.stdout.splitlines()) == 2


def test_without_horovod_nothing_is_compiled(home: Path) -> None:
    done = Checkout(home, "project tl").run("quickstart", "--strategy", "mirrored")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "horovod" not in done.stdout


@pytest.mark.parametrize(
    ("build", "gpus", "visible", "expected"),
    [
        ("cpu", 1, None, False),
        ("gpu", 0, None, False),
        ("gpu", 1, None, True),
        ("gpu", 2, None, False),
        ("gpu", 8, "3", True),
        ("gpu", 8, "0,1", False),
        ("gpu", 1, "-1", False),
        ("gpu", 1, "", False),
    ],
)
def test_quickstart_starts_one_worker_where_there_is_one_gpu(
    build: str, gpus: int, visible: str | None, expected: bool
) -> None:
    """Two would be refused."""
    listed = "".join(f"GPU {k}: X\\n" for k in range(gpus))
    script = (
        f"source {shlex.quote(str(ROOT / 'launch' / 'setup.sh'))}; accelerator() {{ echo {build}; }}; "
        f"nvidia-smi() {{ printf '{listed}'; }}; one_gpu"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": "/"}
    environment |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    done = subprocess.run(["bash", "-c", script], env=environment, check=False, capture_output=True)
    assert (done.returncode == 0) == expected, done.stderr


@pytest.mark.parametrize(("gpus", "workers"), [(0, ""), (1, "workers=1 "), (2, ""), (8, "")])
def test_quickstart_takes_the_workers_of_its_config_but_on_one_gpu(home: Path, gpus: int, workers: str) -> None:
    """What its arguments say comes later, and takes precedence."""
    checkout = Checkout(home, "own")
    driver = checkout.bin / "nvidia-smi"
    driver.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {k}: X'\n" for k in range(gpus)) + f"exit {not gpus:d}\n")
    driver.chmod(0o755)
    done = checkout.run("quickstart", "--strategy", "collective")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"installing packages [{'gpu' if gpus else 'cpu'}]" in done.stdout
    assert done.stdout.endswith(f": train configs/quickstart.yaml {workers}--strategy collective\n")


def test_after_a_fault_of_the_compiler_which_is_shown_tensorflows_own_sums_take_over(home: Path) -> None:
    checkout = Checkout(home, "project tl")
    fault = "mpi_ops.cc:7:10: fatal error: tensorflow/core/framework/op.h: No such file or directory"
    done = checkout.run("quickstart", "epochs=1", FAULT=fault)
    assert done.returncode == 0
    assert done.stdout.endswith(": train configs/quickstart.yaml epochs=1 --strategy collective\n")
    refusal, going_on = done.stderr.splitlines()
    (log,) = re.findall(r"\(log: (.*\.log)\)", refusal)
    assert refusal.startswith(f"horovod: compiling Horovod failed: {fault} (log: ")
    assert "error.cc.o" in Path(log).read_text()  # a line before, with the word in a file's name
    assert re.search(r"\. Fix: [^.]+$", refusal)
    assert going_on == "going on without Horovod: --strategy collective; to have it, follow the Fix above"


def test_any_user_sets_up_and_starts(home: Path) -> None:
    checkout = Checkout(home, "own", nobody=True)
    done = checkout.run("quickstart")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("tl-dist: ")
    assert (checkout.folder / ".venv").stat().st_uid == (NOBODY if checkout.user else os.geteuid())


def test_a_user_who_is_not_root_is_told_which_packages_the_tests_need(home: Path) -> None:
    checkout = Checkout(home, "own", nobody=True)
    done = checkout.run("test")
    assert done.returncode == 69
    needed = re.search(r"Fix: sudo apt-get install ([^(]*) \(or TL_DIST_SKIP_DEBIAN=1 ", done.stderr)
    assert needed and {"openmpi-bin", "libopenmpi-dev", "strace"} <= set(needed.group(1).split())
    assert done.stderr.count("\n") == 1


def test_without_the_packages_the_tests_that_need_none_run(home: Path) -> None:
    done = Checkout(home, "own", nobody=True).run("test", "-k", "order", TL_DIST_SKIP_DEBIAN="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pytest: [" in done.stdout and "'-k', 'order'" in done.stdout


@pytest.mark.parametrize("script", ["quickstart", "test"])
@pytest.mark.parametrize("folder", ["", ".cache/tl_dist/logs"])
def test_a_home_that_cannot_be_written_is_refused(home: Path, script: str, folder: str) -> None:
    checkout = Checkout(home, "own", nobody=True)
    shut = home / folder
    shut.mkdir(parents=True, exist_ok=True)
    shut.chmod(0o555)
    done = checkout.run(script, XDG_CACHE_HOME="")
    assert done.returncode == 73
    expected = f"tl_dist: cannot write to {home}/.cache/tl_dist/logs. Fix: set XDG_CACHE_HOME to a folder of yours\n"
    assert done.stderr == expected
    assert checkout.run(script, "--strategy=mirrored", TL_DIST_SKIP_DEBIAN="1").returncode == 0


def test_a_checkout_of_somebody_else_is_refused(home: Path) -> None:
    checkout = Checkout(home, "own", nobody=True)
    checkout.folder.chmod(0o555)
    done = checkout.run("quickstart")
    assert done.returncode == 73
    assert done.stderr == f"tl_dist: cannot write to {checkout.folder}. Fix: work in a clone of your own\n"
