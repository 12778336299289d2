"""The same command under horovodrun and mpirun; a process that a launcher has started is a worker."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.harness import BIN, CONFIG, Workspace, losses, records
from tests.parallel.launch import MPIRUN

SHORT = ("steps=20", "checkpoint.every_steps=10")
LAUNCHERS = {
    "horovodrun": [str(BIN / "horovodrun"), "-np", "2", "--gloo"],
    "mpirun": [*MPIRUN, "-np", "2"],
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("launchers"))
    made.train_here("reference", *SHORT)
    return made


@pytest.mark.parametrize("name", list(LAUNCHERS))
def test_a_launchers_workers_train_the_run_of_a_single_worker(workspace: Workspace, name: str) -> None:
    said = workspace.train(name, *SHORT, launcher=LAUNCHERS[name])
    run = workspace.run(name)
    assert "test accuracy" in said
    assert run.done is not None
    assert {record["workers"] for record in records(run, "train")} == {2}
    found, expected = losses(run), losses(workspace.run("reference"))
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
    assert run.rank_log(1).exists()


@pytest.mark.full
def test_a_launchers_processes_share_out_the_packing(tmp_path: Path) -> None:
    """The bytes of one command alone; only the first process reports."""
    config = tmp_path / "digits.yaml"
    config.write_text(CONFIG)
    pack = [str(BIN / "tl-dist"), "data", "pack", str(config)]
    said = {
        name: subprocess.run(
            [*launcher, *pack, str(tmp_path / name), "-n", "1"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for name, launcher in {"alone": [], "horovodrun": LAUNCHERS["horovodrun"]}.items()
    }
    expected = {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()}
    assert expected
    for name, text in said.items():
        assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == expected
        assert text.count("use it with data.name=packed") == 1
