"""The file of results of the benchmarks holds the newest result of each comparison, under the machine that gave it."""

from pathlib import Path

from benchmarks import results
from benchmarks.comparison import Comparison

SLOW, FAST = "A CPU with bfloat16, 2 cores | Python 3.11.7", "Another CPU, 64 cores | Python 3.12.1"


def cells(name: str, ours: float) -> tuple[str, ...]:
    return Comparison(name, "images/s", ours, "plain Keras", 200.0, bar=0.9, note="a note").cells


def test_a_newer_result_replaces_an_older_one_on_any_machine(tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    results.record([cells("step[8, x]", 100.0), cells("input", 190.0)], SLOW, file)
    results.record([cells("input", 210.0)], FAST, file)
    tables = results.read(file)
    assert {machine: list(rows) for machine, rows in tables.items()} == {
        SLOW: ["step[8, x]"],
        FAST: ["input"],
    }
    ours, rival, ratio, bar, verdict, date, commit = tables[FAST]["input"]
    assert (ours, rival, ratio, bar, verdict) == (
        "210 images/s", "plain Keras 200 images/s", "1.050", ">= 0.9", "holds",
    )  # fmt: skip
    assert len(date) == 10 and commit == results.commit()
    assert tables[SLOW]["step[8, x]"][4] == "falls short"
    before = file.read_text()
    results.record([], SLOW, file)
    assert file.read_text() == before
