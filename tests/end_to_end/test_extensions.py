"""A data set, a backbone and a strategy of another package: by entry point or by module, and bound to their code."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.harness import TL_DIST, Workspace, bits, losses
from tests.other_package import installed, written

BY_MODULE = ("data.name=tl_shapes:SHAPES", "model.backbone=tl_shapes:ONE_CONV", "strategy=tl_shapes:LOGGED")
PLAIN = ("precision=float32", "report.every_steps=1", "report.tensorboard=false", "runtime.threads=1")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package of docs/pages/extending.md is installed."""
    folder = tmp_path_factory.mktemp("package")
    return installed(written(folder / "source"), folder / "site")


@pytest.fixture(scope="module")
def workspace(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("reader"), (site.parent / "source" / "shapes.yaml").read_text())


@pytest.fixture(autouse=True)
def _found(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(site))


def said(workspace: Workspace, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [TL_DIST, *arguments],
        cwd=workspace.directory,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


def test_both_ways_to_name_them_give_the_same_bits(workspace: Workspace) -> None:
    shown = workspace.train("point", *PLAIN)
    assert "point: one_conv on shapes | logged |" in shown
    workspace.train("module", *PLAIN, *BY_MODULE)
    point, module = workspace.run("point"), workspace.run("module")
    assert bits(point) == bits(module)
    assert losses(point) == losses(module)
    first_loss, *_, last_loss = losses(point).values()
    assert last_loss < 0.5 < first_loss
    assert "reducing 4 gradients" in point.rank_log(0).read_text()
    first, second = (json.loads(run.identity_file.read_text())["extensions"] for run in (point, module))
    assert first["dataset"] == second["dataset"] | {"distribution": "tl-shapes 1.0"}
    assert first["backbone"] == second["backbone"] | {"distribution": "tl-shapes 1.0"}


def test_changed_code_is_refused_by_a_run_that_began_with_other(workspace: Workspace, site: Path) -> None:
    """By training and by evaluation."""
    workspace.run("point").done_file.unlink()
    file = site / "tl_shapes" / "data.py"
    before = file.read_text()
    file.write_text(before.replace("+= 100", "+= 101"))
    for command in (("train", "trial.yaml", "name=point", *PLAIN), ("eval", "runs/point")):
        code, text = said(workspace, *command)
        (line,) = (line for line in text.splitlines() if line.startswith("error: "))
        assert "code of other packages has changed since the run began" in line
        assert code == 78 and "extensions.dataset.code: " in line and "Fix: install the version" in line
    file.write_text(before)


def test_commands_name_what_other_packages_offer(workspace: Workspace) -> None:
    (workspace.directory / "nothing").mkdir(exist_ok=True)
    (workspace.directory / "nothing" / "file").touch()
    for arguments, code, text in (
        (("env",), 0, "dataset shapes     tl-shapes 1.0"),
        (("data", "inspect", "trial.yaml"), 0, "shapes in "),
        (("data", "inspect", "nothing"), 65, "; shapes of other packages need a config."),
        (("config", "show", "trial.yaml", "data.name=shape"), 64, "Fix: write 'name: shapes'."),
        (("config", "show", "trial.yaml", "data.options.num_examples=9"), 0, "    num_examples: 9"),
    ):
        found = said(workspace, *arguments)
        assert found[0] == code and text in found[1], found


def test_who_only_looks_runs_no_code_of_a_config(workspace: Workspace, site: Path) -> None:
    """A package that leaves a mark when it is imported, named by a config and by runs."""
    mark, init = site.parent / "imported", site / "tl_shapes" / "__init__.py"
    before = init.read_text()
    init.write_text(f"open({os.fspath(mark)!r}, 'w').close()\n{before}")
    try:
        for arguments in (
            ("runs",),
            ("compare", "runs/point", "runs/module"),
            ("config", "show", "trial.yaml"),
        ):
            code, text = said(workspace, *arguments)
            assert code == 0, text
        said(workspace, "features", "list")
        assert "logged" in said(workspace, "runs")[1]
        assert not mark.exists()
        assert said(workspace, "data", "inspect", "trial.yaml", "--json")[0] == 0
        assert mark.exists()  # by who opens the data set
    finally:
        init.write_text(before)
