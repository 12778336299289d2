"""From a survey to a wheel in the cache."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from horovod_build import edits, refusal
from horovod_build.progress import Progress, build_failure
from horovod_build.survey import TOOLCHAIN, Nccl, Recipe, Survey

# What compiling needs and running does not: installed into a throw-away folder, never into the environment.
# setuptools is capped because Horovod's setup.py predates the removal of pkg_resources.
BUILD_TOOLS = ("setuptools>=70,<81", "wheel", "cmake>=3.26")
# Horovod's setup.py imports its own package, and its runtime needs with it.
RUNTIME_NEEDS = ("cloudpickle", "psutil", "pyyaml", "packaging")
# Horovod's CMake files hand TensorFlow's folders on as words of one string, and what reads it splits at blanks; make
# and the shell take quotes, `$` and `#` for their own. Only paths of these characters come through whole.
PLAIN = re.compile(r"[\w./-]+", re.ASCII)


def cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "tl_dist"


def cached_wheel(recipe: Recipe) -> Path | None:
    return next(iter(sorted((cache_folder() / "wheels" / recipe.key).glob("*.whl"))), None)


@contextlib.contextmanager
def build_lock(recipe: Recipe, progress: Progress) -> Iterator[None]:
    """One process of this user builds a given wheel; the others wait for it, then find it in the cache."""
    wheels = cache_folder() / "wheels"
    try:
        wheels.mkdir(parents=True, exist_ok=True)
        file = (wheels / f"{recipe.key}.lock").open("w")
    except OSError as error:
        raise refusal.Refusal(
            f"cannot write to {wheels}: {error.strerror}. Fix: set XDG_CACHE_HOME to a folder of yours",
            refusal.CANNOT_CREATE,
        ) from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"another process is building the same wheel, waiting for it ({file.name})")
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a filesystem without locks: the rename at the end still keeps the cache whole
        yield


def require_compiler() -> None:
    missing = [tool for tool in ("g++", "make") if not shutil.which(tool)]
    if missing:
        raise refusal.Refusal(
            f"Horovod must be compiled and there is no {' and no '.join(missing)} here; {refusal.MEANWHILE}. "
            f"Fix: apt-get install {' '.join(missing)}",
            refusal.UNAVAILABLE,
        )


def num_jobs() -> int:
    """Compilers at once: one per usable core, each with about 1.5 GB, at most 16."""
    stated = os.environ.get("TL_DIST_BUILD_JOBS", "")
    if stated.isdecimal() and int(stated):
        return int(stated)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), int(memory / 1.5e9), 16))


def work_folder(progress: Progress) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder with a plain path. CMake works with resolved paths: here a link would not help."""
    stated = tempfile.gettempdir()
    for folder in map(os.path.realpath, (stated, "/tmp", "/var/tmp")):
        if PLAIN.fullmatch(folder) and os.access(folder, os.W_OK | os.X_OK):
            if folder != os.path.realpath(stated):
                progress.say(f"compiling in {folder}: Horovod does not compile in {stated!r}")
            return tempfile.TemporaryDirectory(prefix="tl_dist-horovod-", dir=folder, ignore_cleanup_errors=True)
    raise refusal.Refusal(
        f"Horovod does not compile in {stated!r}, and /tmp and /var/tmp cannot be written. "
        "Fix: set TMPDIR to a folder of yours whose path has only letters, digits, '.', '_' and '-'",
        refusal.CANNOT_CREATE,
    )


def plain(path: Path, link: Path) -> Path:
    """The path itself where it is plain, else `link`, made to point to it."""
    if PLAIN.fullmatch(str(path)):
        return path
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(path)
    return link


def plain_paths(found: Survey, work: Path) -> Survey:
    """The survey with every path that CMake sees plain.

    An interpreter that is started through a link to its environment reports its packages below the link. A
    TensorFlow elsewhere, in a user's own site-packages, gets a link that PYTHONPATH finds first.
    """
    home = found.python.parent.parent
    if not found.tensorflow.is_relative_to(home):
        plain(found.tensorflow, work / "packages" / "tensorflow")
    return dataclasses.replace(
        found,
        python=plain(home, work / "environment") / found.python.relative_to(home),
        cuda_home=found.cuda_home and plain(found.cuda_home, work / "cuda"),
    )


def build_environment(found: Survey, work: Path) -> dict[str, str]:
    """The environment of the compile, without the caller's HOROVOD_* settings: the key does not show them."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HOROVOD_")}
    tools = work / "tools"
    (work / "toolchain.cmake").write_text(TOOLCHAIN)
    env |= {
        "PATH": os.pathsep.join([str(tools / "bin"), str(found.python.parent), env.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([str(tools), str(work / "packages"), *filter(None, [env.get("PYTHONPATH")])]),
        "TMPDIR": str(work),
        "CMAKE_GENERATOR": "Unix Makefiles",  # setup.py passes VERBOSE=1, which only make understands
        "CMAKE_TOOLCHAIN_FILE": str(work / "toolchain.cmake"),
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",  # Gloo's CMake file asks for 2.8.12, which CMake 4 refuses
        "MAKEFLAGS": f"-j{num_jobs()}",  # unset, setup.py takes -j8
        "LDFLAGS": f"{env.get('LDFLAGS', '')} -Wl,--strip-debug".strip(),
        "HOROVOD_WITH_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_PYTORCH": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITHOUT_MPI" if found.recipe.mpi == "none" else "HOROVOD_WITH_MPI": "1",
    }
    if found.nccl:
        env |= nccl_settings(found.nccl, work) | {"HOROVOD_CUDA_HOME": str(found.cuda_home)}
        if found.nccl.from_wheel:  # found again at run time where pip put it, beside horovod
            env["LDFLAGS"] += " -Wl,-rpath,'$ORIGIN/../../nvidia/nccl/lib'"
    return env


def nccl_settings(nccl: Nccl, work: Path) -> dict[str, str]:
    """A private folder in the shape Horovod expects, with the libnccl.so link that NVIDIA's wheel lacks."""
    home = work / "nccl"
    (home / "lib").mkdir(parents=True)
    (home / "include").symlink_to(nccl.include)
    for name in ("libnccl.so", "libnccl.so.2"):
        (home / "lib" / name).symlink_to(nccl.library)
    return {
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_NCCL_INCLUDE": str(home / "include"),
        "HOROVOD_NCCL_LIB": str(home / "lib"),
        "HOROVOD_NCCL_LINK": "SHARED",
    }


def build(found: Survey, progress: Progress) -> Path:
    """Compile, and put the wheel into the cache by one rename. Returns its path there."""
    logs = cache_folder() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{found.recipe.key}.log"
    log.write_text(f"{found.recipe.summary}\n")
    phase = "preparing"
    try:
        with work_folder(progress) as folder:
            work = Path(folder)
            found = plain_paths(found, work)
            env = build_environment(found, work)
            pip = [found.python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
            phase = "fetching the build tools"
            # --ignore-installed: pip would otherwise leave out what the environment has.
            target = ["--ignore-installed", "--target", work / "tools"]
            command = [*pip, "install", *target, *BUILD_TOOLS, *RUNTIME_NEEDS]
            progress.run(phase, command, log, dict(os.environ))
            phase = f"fetching Horovod {edits.VERSION}"
            pinned = work / "horovod.txt"
            pinned.write_text(f"horovod=={edits.VERSION} --hash=sha256:{edits.SHA256}\n")
            exactly = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "-r", pinned]
            progress.run(phase, [*pip, "download", "--dest", work, *exactly], log, env)
            source = unpack(work)
            edits.apply_edits(source)
            phase = "compiling Horovod"
            # Only now: pip refuses a downloaded archive that gives itself another version than its file name.
            env["HOROVOD_LOCAL_VERSION"] = found.recipe.label
            expect = f"once per machine, a few minutes, {num_jobs()} jobs; log: {log}"
            command = [*pip, "wheel", "-v", "--no-build-isolation", "--no-deps", "-w", work / "out", source]
            progress.run(phase, command, log, env, expect)
            (wheel,) = (work / "out").glob("horovod-*.whl")
            return keep(wheel, found.recipe)
    except subprocess.CalledProcessError as error:
        raise build_failure(phase, log, log.read_text(errors="replace")) from error
    except OSError as error:
        raise refusal.Refusal(
            f"{phase} failed: {error} (log: {log}). Fix: free space or set TMPDIR; {refusal.MEANWHILE}",
            refusal.INTERNAL,
        ) from error


def unpack(work: Path) -> Path:
    (archive,) = work.glob("horovod-*.tar.gz")
    with tarfile.open(archive) as opened:
        if hasattr(tarfile, "data_filter"):
            opened.extractall(work, filter="data")
        else:
            opened.extractall(work)
    return work / archive.name.removesuffix(".tar.gz")


def keep(wheel: Path, recipe: Recipe) -> Path:
    """Into the cache by rename: a reader sees the whole wheel or none."""
    home = cache_folder() / "wheels" / recipe.key
    home.mkdir(parents=True, exist_ok=True)
    part = home / f".part-{os.getpid()}"
    shutil.copyfile(wheel, part)
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(part, home / wheel.name)
    return home / wheel.name
