"""The wheel, installed beside no checkout, has all that a user needs; the sdist builds the same one."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def build(source: Path, target: Path, kind: str) -> Path:
    argv = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(target)]
    subprocess.run(argv, cwd=source, check=True, capture_output=True, text=True, timeout=120)
    (path,) = target.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel, and of the environment of these tests only the packages."""
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True, timeout=120)
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-compile", str(wheel)], check=True, timeout=120)
    # A .pth adds the directory, but not what the .pth files in it add, such as a checkout.
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place


def tl_dist(installed: Path, *arguments: str, cwd: Path) -> str:
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables["XDG_CACHE_HOME"] = str(cwd / "cache")
    argv = [str(installed / "bin" / "tl-dist"), *arguments]
    done = subprocess.run(argv, cwd=cwd, env=variables, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_trains_predicts_reports_and_submits_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [str(installed / "bin" / "python"), "-P", "-c", "import tl_dist; print(tl_dist.__file__)"],
        cwd=tmp_path, env={}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(installed)
    tl_dist(installed, "train", "configs/smoke.yaml", "epochs=1", "report.tensorboard=false", cwd=tmp_path)
    assert (tmp_path / "runs" / "smoke" / "DONE").is_file()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    assert "a.png" in tl_dist(installed, "predict", "runs/smoke", "a.png", cwd=tmp_path)
    tl_dist(installed, "report", "runs/smoke", "--heat-maps", "0", cwd=tmp_path)
    assert (tmp_path / "runs" / "smoke" / "report.html").stat().st_size > 10_000
    script = tl_dist(installed, "submit", "configs/smoke.yaml", "name=b", "--nodes", "2", "--dry-run", cwd=tmp_path)
    assert "#SBATCH --nodes=2" in script and str(installed) in script
    usage = tl_dist(installed, "install-horovod", "--help", cwd=tmp_path)
    assert usage.startswith("usage: tl-dist install-horovod")


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(ROOT, tmp_path / "sdist", "sdist")) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    names = [
        {entry.filename: entry.CRC for entry in zipfile.ZipFile(path).infolist()}
        for path in (wheel, build(source, tmp_path / "again", "wheel"))
    ]
    assert names[0] == names[1]
    assert {f"tl_dist/shipped/{path.relative_to(ROOT)}" for path in (ROOT / "configs").iterdir()} <= names[0].keys()
