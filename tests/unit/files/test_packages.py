"""Packages are fetched once, by exact version, through pip; nothing in them runs or leaves its directory."""

import importlib.util
import io
import os
import re
import shlex
import stat
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tl_dist.files import packages
from tl_dist.files.packages import fetch, unpack, user_cache
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.tools.serve.command import PACKAGES

ROOT = Path(__file__).parents[3]
BY_NAME = re.compile(r"pip install (?!-e)[^`]*\btl[-_]dist\b|\btl[-_]dist\[")
HOSTILE_CODE = "import pathlib; pathlib.Path({canary!r}).touch()\n"


def write_zip(path, members):
    """A zip archive; a member is (name, data) or (ZipInfo, data)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def wheel(directory, name="solar-cells", version="1.2", **files):
    """A valid wheel with `files` in its package."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    members = [(f"{name.replace('-', '_')}/{file.replace('__', '.')}", data) for file, data in files.items()]
    members += [
        (f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"),
        (f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        (f"{info}/RECORD", ""),
    ]
    return write_zip(directory / f"{stem}-py3-none-any.whl", members)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A directory that pip uses as its only index."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_user_cache_follows_xdg(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/me")
    assert user_cache() == Path("/scratch/me/tl_dist")
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert user_cache() == Path.home() / ".cache" / "tl_dist"


@pytest.mark.parametrize(
    "requirement",
    [
        "numpy",
        "numpy>=1",
        "numpy==1.*",
        "numpy===1",
        "--index-url=http://x/==1",
        "-rfile==1",
        "a==1 --pre",
        "a @ file:///x==1",
        "a[b]==1",
        "../a==1",
        "a==../1",
        "a==1\n",
        "a==1;b",
        "==1",
        "",
    ],
)
def test_only_an_exact_version_is_accepted(requirement, cache):
    with pytest.raises(Refusal, match="NAME==VERSION") as refusal:
        fetch(requirement, cache=cache)
    assert refusal.value.code == ExitCode.USAGE
    assert not cache.exists()


def test_fetch_downloads_unpacks_and_remembers(index, cache):
    wheel(index, data__csv="a,b\n")
    home = fetch("solar-cells==1.2", cache=cache)
    assert home == cache / "packages" / "solar-cells-1.2"
    assert (home / "solar_cells" / "data.csv").read_text() == "a,b\n"
    for file in index.iterdir():
        file.unlink()  # from here on there is no index
    # PEP 503: these are one name.
    assert fetch("Solar_Cells==1.2", "solar_cells/data.csv", cache=cache).read_text() == "a,b\n"
    assert sorted(p.name for p in home.parent.iterdir()) == [".solar-cells-1.2.lock", "solar-cells-1.2"]


def test_fetch_refuses_a_member_that_is_not_there(index, cache):
    wheel(index, data__csv="a,b\n")
    for member in ("solar_cells/none.csv", "../solar-cells-1.2/solar_cells", "/etc/passwd", "", "."):
        with pytest.raises(Refusal, match="has no file") as refusal:
            fetch("solar-cells==1.2", member, cache=cache)
        assert refusal.value.code == ExitCode.DATA


def test_no_code_of_a_package_runs(index, cache, tmp_path):
    canary = tmp_path / "canary"
    code = HOSTILE_CODE.format(canary=str(canary))
    wheel(index, __init____py=code)
    fetch("solar-cells==1.2", cache=cache)
    # A source distribution: pip would run its setup.py only to learn what it is called.
    with tarfile.open(index / "wind_farms-3.0.tar.gz", "w:gz") as archive:
        for name, text in [
            ("setup.py", code),
            ("PKG-INFO", "Metadata-Version: 2.1\nName: wind-farms\nVersion: 3.0\n"),
        ]:
            member = tarfile.TarInfo(f"wind_farms-3.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    with pytest.raises(Refusal, match="pip says"):
        fetch("wind-farms==3.0", cache=cache)
    assert not canary.exists()


def test_without_index_the_wheel_can_be_brought_by_hand(index, cache, tmp_path):
    with pytest.raises(Refusal) as refusal:
        fetch("solar-cells==1.2", cache=cache)
    assert refusal.value.code == ExitCode.DATA
    assert "pip download --no-deps --only-binary=:all: solar-cells==1.2" in refusal.value.fix
    assert str(cache / "packages") in refusal.value.fix
    assert "\n" not in str(refusal.value)
    assert [p for p in (cache / "packages").iterdir() if p.suffix != ".lock"] == []
    wheel(cache / "packages", data__csv="by hand\n")
    wheel(cache / "packages", version="1.20", data__csv="another version\n")
    assert fetch("solar-cells==1.2", "solar_cells/data.csv", cache=cache).read_text() == "by hand\n"


def test_an_index_that_does_not_answer_is_named(monkeypatch, cache):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(Refusal, match="the package index cannot be reached") as refusal:
        fetch("solar-cells==1.2", cache=cache)
    assert refusal.value.code == ExitCode.DATA


def test_python_without_pip_is_named(monkeypatch, cache):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match="this Python has no pip"):
        fetch("solar-cells==1.2", cache=cache)


def test_a_cache_that_cannot_be_written_is_named(index, tmp_path):
    wheel(index, data__csv="a\n")
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match="cannot be stored") as refusal:
        fetch("solar-cells==1.2", cache=tmp_path / "file")
    assert refusal.value.code == ExitCode.STORAGE


def link_member(name, target):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry, target


def hostile_archives():
    return {
        "parent": [("a/../../outside", "x")],
        "parent_first": [("../outside", "x")],
        "absolute": [("/tmp/outside", "x")],
        "backslash": [("..\\outside", "x")],
        "drive": [("C:/outside", "x")],
        "dot": [("./outside", "x")],
        "empty_part": [("a//outside", "x")],
        "control": [("a\n/outside", "x")],
        "symlink": [link_member("a", "/etc"), ("b", "x")],
        "through_symlink": [link_member("a", ".."), ("a/outside", "x")],
        "file_and_directory": [("a", "x"), ("a/b", "x")],
        "directory_and_file": [("a/b", "x"), ("a", "x")],
        "too_large": [("a", "x" * 2000)],
    }


@pytest.mark.parametrize("kind", hostile_archives())
def test_hostile_archives_are_refused_and_write_nothing_outside(kind, tmp_path):
    archive = write_zip(tmp_path / "hostile.whl", hostile_archives()[kind])
    inner = tmp_path / "deep" / "inner"
    inner.mkdir(parents=True)
    before = {p for p in tmp_path.rglob("*") if inner not in p.parents}
    with pytest.raises(Refusal, match="is not unpacked") as refusal:
        unpack(archive, inner / "target", max_bytes=1000)
    assert refusal.value.code == ExitCode.UNSAFE
    assert {p for p in tmp_path.rglob("*") if inner not in p.parents} == before
    assert not any(p.is_symlink() for p in inner.rglob("*"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_a_name_twice_is_refused(tmp_path):
    archive = write_zip(tmp_path / "hostile.whl", [("a", "x"), ("a", "y")])
    with pytest.raises(Refusal, match="occurs twice"):
        unpack(archive, tmp_path / "target")


def test_damaged_archives_are_refused_and_leave_no_directory(cache):
    path = wheel(cache / "packages", data__csv="a,b\n" * 1000)
    sound = path.read_bytes()
    start = sound.index(b"data.csv") + 12  # inside the compressed data of the first member
    flipped = sound[:start] + bytes([sound[start] ^ 0xFF]) + sound[start + 1 :]
    for damaged in (flipped, sound[:-40], b"", b"<html>moved</html>"):
        path.write_bytes(damaged)
        with pytest.raises(Refusal, match="is not unpacked"):
            fetch("solar-cells==1.2", cache=cache)
        assert not (cache / "packages" / "solar-cells-1.2").exists()
        assert not list((cache / "packages").glob(".incoming-*"))


FETCH_AND_COUNT = """
import sys
from pathlib import Path
from tl_dist.files import packages
original = packages.unpack
def counted(*args):
    with open(sys.argv[2], "a") as log:
        log.write("unpacked\\n")
    original(*args)
packages.unpack = counted
print(packages.fetch("solar-cells==1.2", "solar_cells/data.csv", cache=Path(sys.argv[1])).read_text())
assert not {"tensorflow", "keras", "numpy", "solar_cells"} & set(sys.modules)
"""


def test_of_four_processes_one_does_the_work(cache, tmp_path):
    wheel(cache / "packages", data__csv="a,b\n" * 200_000)
    log = tmp_path / "log"
    command = [sys.executable, "-c", FETCH_AND_COUNT, str(cache), str(log)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert log.read_text() == "unpacked\n"


def test_where_locks_do_nothing_the_second_one_to_finish_takes_what_is_there(cache, monkeypatch):
    wheel(cache / "packages", data__csv="a,b\n")
    unpack_alone = packages.unpack

    def unpack_last(archive, target):
        unpack_alone(archive, target)
        unpack_alone(archive, cache / "packages" / "solar-cells-1.2")  # another process is quicker

    monkeypatch.setattr(packages, "unpack", unpack_last)
    monkeypatch.setattr(packages.fcntl, "flock", lambda *args: (_ for _ in ()).throw(OSError("no locks")))
    assert fetch("solar-cells==1.2", "solar_cells/data.csv", cache=cache).read_text() == "a,b\n"
    assert not list((cache / "packages").glob(".incoming-*"))


EXTRAS = {
    "parquet": ("pyarrow",),
    "serve": PACKAGES,
    "export": ("tf2onnx", "onnx", "onnxruntime", "ai_edge_litert"),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "wandb": ("wandb",),
}
"""by extra what is imported of it"""


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("is_installed", [True, False], ids=["installed", "a checkout alone"])
def test_a_fix_names_the_packages_with_the_floors_of_pyproject(
    extra: str, is_installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if not is_installed:
        monkeypatch.setattr(packages, "requires", missing)
    with pytest.raises(Refusal) as refused:
        packages.require(EXTRAS[extra], extra=extra)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    words = shlex.split(refused.value.fix.removesuffix("."))
    assert words[:2] == ["pip", "install"] and refused.value.code == ExitCode.USAGE
    if is_installed:
        assert words[2:] == declared
    else:
        assert words[2:] == [name if name != "mlflow" else "mlflow-skinny" for name in EXTRAS[extra]]


def missing(name: str) -> list[str]:
    raise metadata.PackageNotFoundError(name)


def test_one_of_several_packages_is_named_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else real(name))
    with pytest.raises(Refusal, match=r"^onnx is not installed. Fix: pip install 'onnx>=[\d.]+'\.$"):
        packages.require(EXTRAS["export"], extra="export")


def test_no_text_tells_to_install_this_package_from_an_index() -> None:
    """Its name there may be anybody's. Of a checkout it is `-e '.[EXTRA]'`; a fix names what is missing."""
    places = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "tl_dist").rglob("*.*")]
    places = [path for path in places if path.suffix in (".py", ".md", ".html", ".js", ".ipynb")]
    assert len(places) > 200
    said = {path.name: line for path in places for line in path.read_text().splitlines() if BY_NAME.search(line)}
    assert said == {}
    written = [path.name for path in places if path.suffix == ".py" and "pip install" in path.read_text()]
    assert written == ["packages.py"]  # in `require` alone
