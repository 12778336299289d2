"""An export removes nothing that it has not written, publishes no place of this machine, and obeys no name."""

import json
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from tests.hostile.arena import WORKER_SECONDS, Arena, Case, Cases
from tl_dist.config import file as config_file
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.tools.export import model_card, place

CASES = Cases()
CONFIG = """\
steps: 1
global_batch: 4
data: {name: synthetic, image_size: 32}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: adam, learning_rate: 3e-3}
report: {tensorboard: false}
"""
REPORT = {"run": "x", "step": 1, "to": "savedmodel", "numbers": "float32", "file": "savedmodel"}


def test_an_export(case: Case, arena: Arena) -> None:
    arena.check(case)


def trained(arena: Arena) -> RunDir:
    arena.file("run.yaml", CONFIG)
    done = arena.run(("train", "run.yaml"), seconds=WORKER_SECONDS, environment={})
    assert done.returncode == 0, done.stderr.decode()
    return RunDir(arena.folder / "runs" / "run")


def kept(arena: Arena) -> None:
    assert (arena.folder / "project" / "thesis.tex").read_text() == "years of work"
    assert sorted(os.listdir(arena.folder / "project")) == ["export.json", "thesis.tex"]
    assert not list(arena.folder.glob(".tmp-*"))


@CASES.add(
    "a project that has an export.json",
    code=73,
    says="is not what this command made",
    worker=True,
    always=True,
    after=kept,
)
def _(arena: Arena) -> Sequence[str]:
    trained(arena)
    arena.file("project/export.json", '{"jira": true}')
    arena.file("project/thesis.tex", "years of work")
    return "export", "runs/run", "--to", "keras", "--check", "none", "--out", "project"


@CASES.add("exports is a link", code=78, says="exports is a symbolic link")
def _(arena: Arena) -> Sequence[str]:
    cfg = config_file.load(arena.file("run.yaml", CONFIG))
    run = RunDir.create(arena.folder / "runs", cfg)
    (run.path / "exports").symlink_to(arena.outside / "directory")
    return "export", "runs/run", "--to", "keras", "--check", "none"


def export(target: Path, text: str = "model") -> None:
    """What a worker does, with a model of a few files in it."""
    with place.directory(target) as made:
        (made / "savedmodel" / "assets").mkdir(parents=True)
        (made / "savedmodel" / "saved_model.pb").write_text(text)
        (made / "classes.json").write_text("{}")
        (made / "MODEL_CARD.md").write_text("card")
        place.write_report(made, REPORT)


def refused(target: Path) -> str:
    before = {path: path.read_bytes() for path in target.parent.rglob("*") if path.is_file()}
    with pytest.raises(Refusal) as caught:
        export(target, "new")
    assert caught.value.code == ExitCode.CANNOT_CREATE
    assert {path: path.read_bytes() for path in target.parent.rglob("*") if path.is_file()} == before
    return caught.value.what


def test_an_earlier_export_is_replaced_and_leaves_nothing(tmp_path: Path) -> None:
    export(tmp_path / "e")
    export(tmp_path / "e", "new")
    assert (tmp_path / "e" / "savedmodel" / "saved_model.pb").read_text() == "new"
    assert os.listdir(tmp_path) == ["e"]


FOREIGN: dict[str, Callable[[Path], object]] = {
    "notes.md": lambda at: (at / "notes.md").write_text("mine"),
    "savedmodel/assets/words.txt": lambda at: (at / "savedmodel/assets/words.txt").write_text("mine"),
    "sub": lambda at: (at / "sub").mkdir(),
    "MODEL_CARD.md": lambda at: (at / "MODEL_CARD.md").write_text("card, and what I found out myself"),
    "classes.json": lambda at: [(at / "classes.json").unlink(), (at / "classes.json").mkdir()],
    "link": lambda at: (at / "link").symlink_to("/etc/passwd"),
    "pipe": lambda at: os.mkfifo(at / "pipe"),
    ".git": lambda at: (at / ".git").write_text("gitdir: x"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_foreign_in_it_is_named_and_stays(tmp_path: Path, name: str) -> None:
    export(tmp_path / "e")
    FOREIGN[name](tmp_path / "e")
    assert f"holds {name}, which" in refused(tmp_path / "e")


def test_what_comes_while_it_is_made_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the last look, and behind it."""
    target = tmp_path / "e"
    export(target)

    def comes() -> None:
        with place.directory(target):
            (target / "notes.md").write_text("mine")

    with pytest.raises(Refusal, match=r"notes\.md"):
        comes()
    assert (target / "notes.md").read_text() == "mine"
    monkeypatch.setattr(place, "_refuse_foreign", lambda target: None)
    with pytest.raises(Refusal, match="added to it meanwhile") as caught:
        export(target, "new")
    (left,) = tmp_path.glob(".tmp-e-*")
    assert str(left) in str(caught.value) and (left / "notes.md").read_text() == "mine"


@pytest.mark.parametrize(
    "report",
    [
        {"jira": True}, [], {**REPORT, "entries": []}, {**REPORT, "to": ["x"], "entries": {}},
        {**REPORT, "file": "../thesis.tex", "entries": {}}, {**REPORT}, None,
    ],
)  # fmt: skip
def test_a_report_that_is_not_ours_proves_nothing(tmp_path: Path, report: Any) -> None:
    target = tmp_path / "e"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    if report is not None:
        (target / "export.json").write_text(json.dumps(report))
    assert "is not what this command made" in refused(target)


def test_names_in_a_report_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    target = tmp_path / "e"
    export(target)
    report = json.loads((target / "export.json").read_text())
    report["entries"] |= {"../thesis.tex": "x", str(tmp_path / "thesis.tex"): "x", "..": "directory"}
    (target / "export.json").write_text(json.dumps(report))
    export(target, "new")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("to", ["outside", "nowhere", "file"])
def test_a_link_is_not_replaced(tmp_path: Path, to: str) -> None:
    export(tmp_path / "outside")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "e").symlink_to(to)
    assert "is not what this command made" in refused(tmp_path / "e")
    assert (tmp_path / "e").is_symlink()


NAMES = [
    "<img src=x onerror=alert(1)>",
    "\x1b]0;x\x07",
    "two\nlines",
    "a|b`c*[d](e)",
    "\u202ecod",
    "\udcff",
    "# x",
]


def card(tmp_path: Path, **changes: Any) -> str:
    config = {
        "name": "run", "strategy": "single", "steps": 1, "optimizer": {"learning_rate": 0.1},
        "data": {"name": "image_folder", "path": "/home/me/S3CR3T/photos", "split": "/home/me/S3CR3T/split.json"},
        "model": {"backbone": "tiny", "weights": "~/S3CR3T/w.h5"},
        "distill": {"teacher": "/mnt/S3CR3T/runs/big"},
    }  # fmt: skip
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(config | changes))
    cfg = config_file.load(file)
    run = RunDir.create(tmp_path / "runs", cfg)
    run.identity_file.write_text(json.dumps({"class_names": NAMES, "data": {"te`s<b>t": "1234"}}))
    run.done_file.write_text(json.dumps({"figures": {"<script>": {"accuracy": 0.5}}}))
    model = SimpleNamespace(input_shape=(None, 8, 8, 3), count_params=lambda: 5)
    own: Any = SimpleNamespace(config=cfg, class_names=NAMES, model=model, temperature=None)
    own.checkpoint = SimpleNamespace(step=1)
    own.decision = SimpleNamespace(aim="recall of " + " ".join(NAMES))  # a rule names its class
    return model_card.text(run, own, {**REPORT, "bytes": 1, "versions": {}})


def test_a_card_names_no_place_of_this_machine(tmp_path: Path) -> None:
    said = card(tmp_path)
    assert "S3CR3T" not in said and "/home" not in said
    for name in ("photos", "split.json", "w.h5", "big"):
        assert name in said


def test_a_card_shows_names_and_obeys_none(tmp_path: Path) -> None:
    said = card(tmp_path)
    said.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066]", said)
    text = re.sub("`[^`\n]*`", "", said.partition("```yaml")[0])  # where nothing is markup
    assert "<" not in text.replace("&lt;", "") and "&lt;img src=x onerror=alert(1)&gt;" in text
    assert r"two\\nlines" in text and r"a\|b\`c\*\[d\](e)" in text
    assert "\n# x" not in text


def test_the_labels_of_a_tflite_file_are_as_many_as_the_classes(tmp_path: Path) -> None:
    """The reader is another's: zipfile, and `splitlines` as the strictest that there is."""
    from tl_dist.models.export import write

    class Model:
        def export(self, target: str, **how: Any) -> None:
            with zipfile.ZipFile(target, "w"):
                pass

    names = [*NAMES, "a\x0bb", "a\x85b", "a\u2028b", "a\r\nb", "last"]
    read: Any = None
    write(Model(), tmp_path / "m.tflite", to="litert", class_names=names, read=read)
    with zipfile.ZipFile(tmp_path / "m.tflite") as found:
        labels = found.read("labels.txt").decode().splitlines()
    assert len(labels) == len(names) and labels[-1] == "last"
    assert np.char.find(np.array(labels), "\\").astype(bool).any()
