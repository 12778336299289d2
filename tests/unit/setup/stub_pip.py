"""What `python -m pip` runs in the environments of test_quickstart.py: it downloads nothing and compiles with a stub.

`wheel` does as Horovod's setup.py and CMake files do: TensorFlow's folder, which the interpreter reports, becomes
words of one command line that a shell splits. What they would see is left in $SEEN, one path a line.
"""

import io
import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

PACKAGES = Path(sysconfig.get_path("purelib"))
HOROVOD = """
__version__ = "0.28.1"
def mpi_built(): return False
def gloo_built(): return True
def nccl_built(): return False
"""


def add(module: str, project: str, version: str, text: str = "") -> None:
    (PACKAGES / module).mkdir()
    (PACKAGES / module / "__init__.py").write_text(text)
    information = PACKAGES / f"{project}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")


def add_command(name: str) -> None:
    """A command that prints where it was started, and with what."""
    file = Path(sys.executable).parent / name
    file.write_text(f'#!/bin/sh\necho "{name}: $PWD: $*"\n')
    file.chmod(0o755)


def install(what: list[str]) -> None:
    if what[0] == "--editable":
        add("tensorflow", "tensorflow" if "[gpu" in what[1] else "tensorflow_cpu", "2.21.0")
        add("pytest", "pytest", "8.2", 'import sys\nprint("pytest:", sys.argv[1:])')
        (PACKAGES / "pytest" / "__main__.py").touch()
        for name in ("tl-dist", "ruff", "codespell", "mypy", "lint-imports"):
            add_command(name)
    elif what[0].endswith(".whl"):
        add("horovod", "horovod", Path(what[0]).name.split("-")[1], HOROVOD)
        (PACKAGES / "horovod" / "tensorflow.py").write_text(HOROVOD)


def download(folder: Path) -> None:
    """The source archive, of the files that are edited alone: each with the text that its edits look for."""
    sys.path.insert(0, os.environ["LAUNCH"])
    from horovod_build.edits import EDITS

    with tarfile.open(folder / "horovod-0.28.1.tar.gz", "w:gz") as archive:
        for edit in EDITS:
            member = tarfile.TarInfo(f"horovod-0.28.1/{edit.path}")
            member.size = len(edit.old)
            archive.addfile(member, io.BytesIO(edit.old.encode()))


def wheel(folder: Path, source: Path) -> None:
    import tensorflow

    include = Path(tensorflow.__file__).parent / "include"
    include.mkdir(exist_ok=True)
    os.chdir(source)
    tools = os.environ["PATH"].split(os.pathsep)[:2]  # what is behind them is the caller's
    temporary = [os.environ["CMAKE_TOOLCHAIN_FILE"], os.environ["TMPDIR"]]
    seen = [sys.executable, os.getcwd(), str(include), str(folder), *tools, *temporary]
    Path(os.environ["SEEN"]).write_text("\n".join(seen))
    print("  [ 31%] Building CXX object gloo/transport/tcp/error.cc.o", flush=True)
    if subprocess.run(f"c++ -I{include} -c horovod/tensorflow/mpi_ops.cc", shell=True, check=False).returncode:
        sys.exit("error: subprocess-exited-with-error\nERROR: Failed building wheel for horovod")
    folder.mkdir()
    (folder / f"horovod-0.28.1+{os.environ['HOROVOD_LOCAL_VERSION']}-py3-none-any.whl").touch()


if __name__ == "__main__":
    command, *arguments = [word for word in sys.argv[1:] if word not in ("--disable-pip-version-check", "--no-input")]
    if command == "install":
        install(arguments)
    elif command == "download":
        download(Path(arguments[arguments.index("--dest") + 1]))
    elif command == "wheel":
        wheel(Path(arguments[arguments.index("-w") + 1]), Path(arguments[-1]))
