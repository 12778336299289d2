"""The progress of a run fits its terminal, stays plain in a log, and comes from the records on disk."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from tl_dist.terminal.progress import Progress, confusion_table, evaluation_line, progress_line

RECORD: dict[str, Any] = {
    "event": "train",
    "step": 120,
    "total_steps": 3900,
    "epoch": 2.3,
    "epochs": 10.0,
    "loss": 0.41234,
    "accuracy": 0.8709,
    "learning_rate": 3e-4,
    "examples_per_s": 2310.2,
    "data_wait_share": 0.03,
    "reduction_share": 0.11,
    "skipped": 0,
    "loss_scale": 1.0,
    "eta_s": 372.0,
    "workers": 4,
}
EVALUATION: dict[str, Any] = {
    "event": "evaluation",
    "split": "test",
    "step": 390,
    "num_correct": 12,
    "num_examples": 13,
    "accuracy": 12 / 13,
    "loss": 0.25,
    "confusion": [[5, 1], [0, 7]],
    "class_names": ["[red]cat", "dog"],
}


def test_a_progress_line_says_all_of_it() -> None:
    assert progress_line(RECORD) == (
        "epoch 3/10 step 120/3,900 | loss 0.412 acc 0.871 | lr 3.0e-4 | 2,310 img/s (4 workers) | "
        "data 3 % reduce 11 % | ETA 00:06:12"
    )


def test_one_worker_has_no_reduction_and_trouble_is_shown() -> None:
    line = progress_line(RECORD | {"workers": 1, "skipped": 2, "loss_scale": 1024.0, "eta_s": None})
    assert line.endswith("| 2,310 img/s | data 3 % | skipped 2 | scale 1024")


def test_the_rank_that_waits_for_data_is_named() -> None:
    few = progress_line(RECORD | {"data_wait_shares": [0.01, 0.03, 0.0]})
    assert "| data 1/3/0 % reduce" in few
    many = progress_line(RECORD | {"data_wait_shares": [0.01, 0.0, 0.03, 0.0, 0.02]})
    assert "| data 3 % (rank 2) reduce" in many


def test_the_last_epoch_is_not_counted_beyond_the_end() -> None:
    assert progress_line(RECORD | {"epoch": 10.0}).startswith("epoch 10/10 ")
    assert progress_line(RECORD | {"epoch": 0.4, "epochs": 0.5}).startswith("epoch 1/0.5 ")


@pytest.mark.parametrize("width", range(20, 140, 7))
def test_a_line_fits_any_width_and_keeps_its_place(width: int) -> None:
    line = progress_line(RECORD, width)
    assert len(line) <= width
    assert line.startswith("epoch 3/10 step")


def test_eighty_columns_hold_what_matters_most() -> None:
    assert progress_line(RECORD, 80) == (
        "epoch 3/10 step 120/3,900 | loss 0.412 acc 0.871 | 2,310 img/s | ETA 00:06:12"
    )


@pytest.mark.parametrize("missing", [key for key in RECORD if key != "event"])
def test_a_record_without_some_key_is_still_shown(missing: str) -> None:
    assert progress_line({key: value for key, value in RECORD.items() if key != missing})


def test_not_finite_numbers_are_shown_as_such() -> None:
    line = progress_line(RECORD | {"loss": float("nan"), "eta_s": float("inf")})
    assert "loss nan" in line
    assert "ETA ?" in line


def test_an_evaluation_says_how_many_of_how_many() -> None:
    assert evaluation_line(EVALUATION) == "test accuracy 12 of 13 (0.9231) | loss 0.25 | step 390"


def shown(renderable: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_confusion_matrix_has_names_that_are_no_markup() -> None:
    text = shown(confusion_table(EVALUATION))
    assert "[red]cat" in text
    assert "│ 5 │" in " ".join(text.split()) and "│ · │" in " ".join(text.split())


def test_a_matrix_that_does_not_fit_becomes_its_largest_errors() -> None:
    counts = [[0] * 100 for _ in range(100)]
    counts[3][5], counts[7][1], counts[2][2] = 9, 4, 100
    text = shown(confusion_table({"confusion": counts}))
    assert "of 13 errors" in text
    rows = [line.split("│")[1:4] for line in text.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [["3", "5", "9"], ["7", "1", "4"]]
    narrow = shown(confusion_table(EVALUATION, width=20))
    assert "errors" in narrow


def test_without_counts_there_is_no_table() -> None:
    assert confusion_table({"confusion": []}) is None
    assert (
        confusion_table({"confusion": [[int(k == true) for k in range(40)] for true in range(40)]}) is None
    )  # no error to be shown


def plain(records: list[dict[str, Any]], times: list[float]) -> list[str]:
    """What a log gets to see; `times` are those of the train records."""
    file = io.StringIO()
    clock = iter(times)
    with Progress(Console(file=file), every_s=10, clock=lambda: next(clock)) as progress:
        for record in records:
            progress.show(record)
    return file.getvalue().splitlines()


def test_a_log_gets_whole_lines_now_and_then_and_the_last_step() -> None:
    records = [RECORD | {"step": step} for step in (10, 20, 30, 3900)]
    lines = plain(records, [0.0, 5.0, 11.0, 12.0])
    assert [line.split()[3] for line in lines] == ["10/3,900", "30/3,900", "3,900/3,900"]
    assert all(len(line) > 80 for line in lines)  # not wrapped, not cut


def test_notes_and_evaluations_are_always_shown_as_text() -> None:
    note = {"event": "note", "text": "resumed from [bold]step[/] 7 " + "x" * 100}
    resumed = [{"event": "resumed", "step": step} for step in (0, 1200)]
    lines = plain([note, EVALUATION, {"event": "checkpoint", "step": 3}, {"event": "?"}, *resumed], [])
    assert lines == [note["text"], evaluation_line(EVALUATION), "resumed from step 1,200"]


def test_a_terminal_has_one_live_line_with_notes_above(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, height=20, _environ={"NO_COLOR": "1", "TERM": "xterm"})
    with Progress(console) as progress:
        progress.show(RECORD)
        progress.show({"event": "note", "text": "saved"})
        progress.show(RECORD | {"step": 130})
    text = file.getvalue()
    assert text.count("step 130/3,900") >= 2  # live, and for good at the end
    assert "saved" in text
    assert "\x1b[1;3" not in text and "\x1b[3" not in text  # no colour
    assert text.rstrip().splitlines()[-1].endswith("ETA 00:06:12")


def test_a_dumb_terminal_gets_plain_lines() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=200, _environ={"TERM": "dumb"})
    with Progress(console) as progress:
        progress.show(RECORD)
    assert "\x1b[2K" not in file.getvalue()


class Closed(io.StringIO):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "Input/output error")])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_outlives_the_terminal_that_it_was_shown_on(error: OSError, terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, _environ={"TERM": "xterm"})
    with Progress(console) as progress:
        console.file = Closed(error)
        progress.show(RECORD)
        progress.show(EVALUATION)


def lines_of(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
