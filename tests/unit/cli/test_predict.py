"""What `tl-dist predict` reads and writes: every name that a user may give, and no file of somebody else's lost."""

import csv
import glob
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tl_dist.cli.main import main
from tl_dist.datasets.unlabelled import listed, matching, unreadable
from tl_dist.refusal import Refusal
from tl_dist.tools.predict.sorting import Folders
from tl_dist.tools.predict.table import Row, columns, written

P = np.array([0.1, 1 / 3, 1e-9, 0.9], np.float32)
ROWS = [
    Row("a,b.png", ("cat", 'the "dog"'), P[:2]),
    Row("line\nbreak.png", error="is empty"),
    Row(os.fsdecode(b"\xff.png"), ("owl", "cat"), P[2:]),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())


def test_files_folders_patterns_and_standard_input_each_once_and_in_order() -> None:
    touch("b/2.png", "b/deep/1.JPG", "b/3.tif", "b/notes.txt", "b/.hidden.png", "a.dat", "c/x.png", "c/y.png")
    named = ["a.dat", "b/", "c/[xy].png", "b/2.png", "-"]
    stdin = io.BytesIO(b"gone.png\nc/x.png\n\nspace .png \n" + b"\xff.png")
    expected = [
        "a.dat",
        "b/2.png",
        "b/3.tif",
        "b/deep/1.JPG",
        "c/x.png",
        "c/y.png",
        "gone.png",
        "space .png ",
    ]
    assert listed(named, stdin) == [*expected, os.fsdecode(b"\xff.png")]
    assert listed(["-"], io.BytesIO(b"two\nlines.png\0b/2.png\0"), null=True) == ["two\nlines.png", "b/2.png"]
    assert listed(["**/*.png"]) == ["b/2.png", "c/x.png", "c/y.png"]
    Path("b/[1].png").touch()
    assert listed(["b/[1].png"]) == ["b/[1].png"]
    assert listed(["*"]) == ["a.dat", *listed(["b", "c"])]


PATTERNS = (
    *(
        "**",
        "*",
        "**/*",
        "*/**",
        "a/**/*.png",
        "**/b/*",
        "**/**/x*",
        "a/*/[0-9].png",
        ".h*/*",
        "./a/../a/*.png",
    ),
    *("**/.hidden", "*/b", "a/b/?.png", "**/b/**/*.png", "a**", "no/*", "a/1.png/*", "**/[!0-9].png"),
)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_pattern_matches_what_pythons_own_glob_does(here: Path, pattern: str, absolute: bool) -> None:
    touch("a/1.png", "a/x.png", "a/b/1.png", "a/b/c/b/2.png", ".h/1.png", "a/.hidden", "b/x.png", "a/.h/x.png")
    named = f"{here}/{pattern}" if absolute else pattern
    expected = [name for name in glob.glob(named, recursive=True) if name and not name.endswith("/")]
    assert sorted(matching(named)) == sorted(set(expected))


def test_a_folder_to_which_many_links_lead_is_listed_once(here: Path) -> None:
    """Thirty folders with two links each to the next have 2**30 paths; two links to where they are have more."""
    for k in range(31):
        Path(f"diamond/n{k}").mkdir(parents=True)
        for name in ("l", "r") if k < 30 else ():
            Path(f"diamond/n{k}/{name}").symlink_to(f"../n{k + 1}")
    touch("diamond/n30/x.png", "loops/a.png", "elsewhere/cat/1.png", "photos/dog/2.png")
    for name in ("a", "b"):
        Path("loops", name).symlink_to(".")
    Path("photos/cat").symlink_to("../elsewhere/cat")
    assert [Path(name).name for name in listed(["diamond/n0"])] == ["x.png"]
    assert listed(["diamond/**/*.png", "loops/**/*.png"]) == ["diamond/n30/x.png", "loops/a.png"]
    assert len(listed(["loops/" + "*/" * 40 + "*.png"])) == len(listed(["diamond/*"])) == 1
    assert listed(["photos"]) == ["photos/cat/1.png", "photos/dog/2.png"] == listed(["photos/**/*.png"])
    assert listed(["photos/cat", "elsewhere", "photos"]) == ["photos/cat/1.png", "photos/dog/2.png"]


@pytest.mark.parametrize(
    ("names", "stdin", "what"),
    [
        (["typo.png"], b"", "nothing is at typo.png"),
        (["*.jpg"], b"", r"nothing matches \*.jpg"),
        (["-"], b"\n\n", "there is no image in -"),
        (["empty"], b"", "there is no image in empty"),
        (["-"], b"a\0b", "holds a NUL, .* Fix: add -0"),
    ],
)
def test_what_names_nothing_is_refused(names: list[str], stdin: bytes, what: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(Refusal, match=what):
        listed(names, io.BytesIO(stdin))


def test_a_run_behind_the_images_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/config.yaml").touch()
    assert main(["predict", "a.png", "runs/x"]) == 64
    said = capsys.readouterr().err
    assert (
        said == "error: a.png is not a run, and runs/x is one. Fix: name the run first: tl-dist predict RUN PATH...\n"
    )


def test_each_of_many_files_is_looked_at() -> None:
    touch("text.png")
    paths = [*["text.png"] * 5000, "gone.png"]
    found = {k: reason for some in unreadable(paths) for k, reason in some.items()}
    assert len(found) == len(paths) and "is no image" in found[4999] and "No such file" in found[5000]


def write(path: Path, rows: Sequence[Row] = ROWS, names: Sequence[str] = tuple(columns(2))) -> None:
    with written(path, names) as write_rows:
        write_rows(rows[:1])
        write_rows(rows[1:])


def test_csv_has_every_row_and_every_bit() -> None:
    write(Path("o.csv"))
    with open("o.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *lines = csv.reader(file)
    assert header == columns(2) == ["path", "class", "probability", "class_2", "probability_2", "error"]
    assert [line[0] for line in lines] == [row.path for row in ROWS]
    assert [np.float32(line[k]) for line in (lines[0], lines[2]) for k in (2, 4)] == P.tolist()
    assert lines[1][1:] == ["", "", "", "", "is empty"]


def test_json_lines_leave_out_what_there_is_not() -> None:
    write(Path("o.jsonl"))
    records = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert [record["path"] for record in records] == [row.path for row in ROWS]
    assert records[1].keys() == {"path", "error"} and records[0].keys() == {*columns(2)} - {"error"}
    assert [np.float32(r[k]) for r in records[::2] for k in ("probability", "probability_2")] == P.tolist()


def test_parquet_is_read_back_by_its_library() -> None:
    from pyarrow import parquet

    write(Path("o.parquet"))
    table = parquet.read_table("o.parquet").to_pydict()
    assert list(table) == columns(2) and table["error"] == [None, "is empty", None]
    assert [table["probability"][0], table["probability_2"][2]] == [P[0], P[3]]
    assert table["path"][2] == "\\udcff.png"
    write(Path("o.parquet"))
    parquet.write_table(parquet.read_table("o.parquet").select(["class"]), "theirs.parquet")
    with pytest.raises(Refusal, match="exists already"):
        write(Path("theirs.parquet"))


def test_sets_and_what_is_unknown_in_every_format() -> None:
    from pyarrow import parquet

    of_all = [
        Row("a.png", ("cat",), P[:1], in_set=("cat", "a|b"), p_known=np.float32(0.004), unknown=True),
        Row("b.png", ("owl",), P[1:2], in_set=("owl",), p_known=np.float32(0.5), unknown=False),
        Row("c.png", error="is empty"),
    ]
    for suffix in ("csv", "jsonl", "parquet"):
        write(Path(f"o.{suffix}"), of_all, columns(1, sets=True, unknown=True))
    with open("o.csv", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["path", "class", "probability", "set", "p_known", "unknown", "error"]
    assert [line[3:] for line in lines] == [
        [r"cat|a\|b", "0.004", "True", ""], ["owl", "0.5", "False", ""], ["", "", "", "is empty"],
    ]  # fmt: skip
    first, second, third = (json.loads(line) for line in Path("o.jsonl").read_text().splitlines())
    assert first["set"] == ["cat", "a|b"] and second["unknown"] is False and third.keys() == {"path", "error"}
    table = parquet.read_table("o.parquet").to_pydict()
    assert table["set"] == [["cat", "a|b"], ["owl"], None] and table["unknown"] == [True, False, None]
    assert np.float32(table["p_known"][0]) == np.float32(0.004)


def test_parquet_without_its_library_is_refused_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refusal, match=r"pyarrow, which is not installed. Fix: pip install 'pyarrow>=\d+'\.$"):
        write(Path("o.parquet"))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_file_is_replaced_if_it_is_one_of_these_and_whole_at_the_end(suffix: str) -> None:
    path = Path("o" + suffix)
    path.touch()
    write(path, ROWS[:1])
    first = path.read_bytes()
    unfinished = written(path, columns(2))
    unfinished.__enter__()(ROWS)
    assert not unfinished.__exit__(KeyError, KeyError(), None)
    assert path.read_bytes() == first and os.listdir() == [path.name]
    write(path)
    assert path.read_bytes().startswith(first) and len(path.read_bytes()) > len(first)
    path.write_text("years,of,work\n")
    with pytest.raises(Refusal, match=r"exists already, .* Fix: name another file with --out"):
        write(path)
    assert path.read_text() == "years,of,work\n"


def test_places_where_no_file_can_be_are_refused() -> None:
    Path("link.csv").symlink_to("elsewhere")
    for name, what in (
        ("o.xml", "no format"),
        ("no/o.csv", "No such file"),
        ("link.csv", "exists already"),
    ):
        with pytest.raises(Refusal, match=what):
            write(Path(name))


def put(folders: Folders, path: str, class_name: str) -> None:
    folders.take([Row(path, (class_name,), P[:1])])


def contents(root: str) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in Path(root).rglob("*") if p.is_file()}


def test_images_of_one_name_are_all_kept_and_the_same_command_adds_none() -> None:
    touch("x/1.png", "y/1.png", "z/1.png", "z/2.png")
    touch("to/cat/1.png")
    for expected in ("3 images copied", "0 images copied, 3 were there already"):
        folders = Folders(Path("to"), ("cat", "dog"))
        for path in ("x/1.png", "y/1.png", "z/1.png"):
            put(folders, path, "dog" if path[0] == "z" else "cat")
        folders.take([Row("z/2.png", error="is empty")])
        assert folders.summary == expected
        found = contents("to")
        assert found == {
            "cat/1.png": b"to/cat/1.png",
            "cat/1-2.png": b"x/1.png",
            "cat/1-3.png": b"y/1.png",
            "dog/1.png": b"z/1.png",
        }


def test_no_class_leads_out_of_the_folder() -> None:
    touch("1.png", "outside/years.tex")
    names = ("../outside", "..", "", "a/b", "a_b", "n" * 300, "link")
    folders = Folders(Path("to"), names)
    Path("to/link").symlink_to(Path("outside").absolute())
    for name in names[:-1]:
        put(folders, "1.png", name)
    assert {Path(name).parent.name for name in contents("to")} == {
        ".._outside", "class 1", "class 2", "a_b", "a_b_", "class 5",
    }  # fmt: skip
    with pytest.raises(Refusal, match=r"symbolic link.* \(6 images copied\)"):
        put(folders, "1.png", "link")
    assert os.listdir("outside") == ["years.tex"]
