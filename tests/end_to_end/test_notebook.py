"""The notebooks of the docs run from first cell to last, in kernels of their own; the interrupt button saves."""

import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

PAGES = Path(__file__).parents[2] / "docs" / "pages"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of Jupyter's own


def read(name: str) -> Any:
    notebook = nbformat.read(PAGES / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    return notebook


def played(notebook: Any, directory: Path) -> str:
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(directory)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_every_cell_of_the_first_steps_runs(tmp_path: Path) -> None:
    text = played(read("first_steps"), tmp_path)
    rest = text.partition(" right: ")[2]
    assert float(rest[:5]) > 0.85, text
    assert "step-000" in str(sorted((tmp_path / "runs" / "digits" / "checkpoints").iterdir()))


@pytest.mark.parametrize("strategy", ["collective", pytest.param("horovod", marks=pytest.mark.full)])
def test_a_model_of_ones_own_is_killed_resumes_and_has_the_losses_of_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    notebook = read("your_model")
    for cell in notebook.cells:
        cell.source = cell.source.replace('"collective"', f'"{strategy}"')
    monkeypatch.setenv("TL_ALLOW_FAILPOINTS", "1")
    monkeypatch.setenv("TL_FAILPOINT", "train.chunk_done:13=kill")
    text = played(notebook, tmp_path)
    assert strategy in text
    assert "SIGKILL" in text and "resumed from step 10" in text
    assert float(text.partition("largest relative difference: ")[2].split()[0]) < 1e-5, text
    assert float(text.partition("accuracy on the test split: ")[2].split()[0]) > 0.8, text


def test_the_interrupt_button_saves_and_the_cell_again_goes_on(tmp_path: Path) -> None:
    before, train, _ = [cell.source for cell in read("your_model").cells if cell.cell_type == "code"]
    train = train.replace('"steps": 20', '"steps": 80')
    manager, client = start_new_kernel(cwd=str(tmp_path))
    shown: list[str] = []

    def show(message: Any) -> None:
        content = message["content"]
        shown.append(content.get("text", "") or content.get("data", {}).get("text/plain", ""))

    try:
        client.execute_interactive(before, timeout=120, output_hook=show)
        waits_for = client.execute(train)
        while not any("/80 | loss" in text for text in shown):
            show(client.get_iopub_msg(timeout=120))
        time.sleep(1)  # a button is pressed later than the line is shown
        manager.interrupt_kernel()
        while client.get_shell_msg(timeout=120)["parent_header"].get("msg_id") != waits_for:
            pass
        client.execute_interactive("print(run.done, len(run.history()))", timeout=60, output_hook=show)
        reply = client.execute_interactive(train + "\nprint(run.done)", timeout=200, output_hook=show)
        assert reply["content"]["status"] == "ok", shown
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    text = "".join(shown)
    assert (
        "False " in text and "False 0" not in text and "resumed from step" in text and text.rstrip().endswith("True")
    ), text
