"""A report is made of what a run keeps, whatever is missing; no text in it is obeyed, and no other file is replaced."""

import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special

from tl_dist.config import file as config_file
from tl_dist.datasets.division import open_splits
from tl_dist.files.npz import save_npz
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores import calibration, cross_validation, predictions, robustness
from tl_dist.scores.cross_validation import OUT_OF_FOLD, OutOfFold
from tl_dist.scores.label_errors import Suspects
from tl_dist.tools.report import charted, charts, facts, single
from tl_dist.tools.report.command import Request, report
from tl_dist.tools.report.examples import MAX_PICTURES, Cards, examples_of
from tl_dist.tools.report.images import held_out_by
from tl_dist.tools.report.page import Section, render

HOSTILE = "</script><script>alert(1)</script>\x1b[31m\u202egnp"
CONFIG = """\
steps: 10
data: {name: synthetic, num_examples: 20, test_fraction: 0.3}
model: {backbone: tiny, weights: random}
optimizer: {name: sgd, learning_rate: 0.1}
"""


def kept(root: Path, name: str = "trial", *, num: int = 60, seed: int = 0) -> RunDir:
    """A run that has ended, with predictions of made-up examples of two classes, and nothing else."""
    (root / "trial.yaml").write_text(CONFIG)
    cfg = config_file.load(root / "trial.yaml", [f"name={name}"])
    run = RunDir.create(root / "runs", cfg)
    rng = np.random.default_rng(seed)
    labels = (np.arange(num) % 2).astype(np.int32)
    sure = np.clip(rng.normal(0.75, 0.2, num), 0.02, 0.98)
    probabilities = np.where(labels[:, None] == [0, 1], sure[:, None], 1 - sure[:, None])
    save_npz(
        predictions.file_of(run.path, "test"),
        ids=np.array([f"{HOSTILE}{k}" for k in range(num)]),
        labels=labels,
        probabilities=probabilities.astype(np.float32),
        class_names=np.array([HOSTILE, "$x_1$"]),
        step=10,
        types=np.array(["mono", "poly"] * (num // 2)),
        groups=np.array([], np.str_),
    )
    run.mark_done({"step": 10, "figures": {}})
    return run


def test_a_page_of_nothing_but_predictions(tmp_path: Path) -> None:
    run = kept(tmp_path)
    out = report(Request([run.path]), lambda text: None)
    text = out.read_text()
    said = predictions.load(predictions.file_of(run.path, "test"))
    accuracy = (said.probabilities.argmax(axis=1) == said.labels).mean()
    assert f"<strong>{100 * accuracy:.1f}\N{NO-BREAK SPACE}%" in text
    assert "By type" in text and "Learning curves" not in text and "Worst errors" not in text
    assert "backbone: tiny" in text and "tl-dist train trial.yaml" in text


def test_a_page_without_pictures_opens_no_data_set_and_says_what_adds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kept(tmp_path)
    monkeypatch.delattr("tl_dist.tools.report.images.open_splits")
    text = report(Request([run.path], pictures=False), lambda text: None).read_text()
    assert f"tl-dist report {run.path} adds them" in text


def test_no_text_is_obeyed(tmp_path: Path) -> None:
    text = report(Request([kept(tmp_path).path]), lambda text: None).read_text()
    assert text.count("<script") == 2 and "alert(1)</script>" not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    assert "\x1b" not in text and "\u202e" not in text and r"\x1b[31m\u202egnp" in text
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and "default-src 'none'" in policy[1] and "script-src 'sha256-" in policy[1]


def test_the_script_that_may_run_is_the_one_in_the_page(tmp_path: Path) -> None:
    import base64
    import hashlib

    text = render("t", "k", [Section("a", "A", "facts", {"parts": []})], {"examples": []}).decode()
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[-1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_only_a_report_is_replaced(tmp_path: Path) -> None:
    run = kept(tmp_path)
    out = report(Request([run.path]), lambda text: None)
    first = out.read_bytes()
    assert report(Request([run.path]), lambda text: None) == out and out.read_bytes() == first
    other = tmp_path / "letter.html"
    other.write_text("<!doctype html>\n<p>mine")
    for place in (other, tmp_path):
        with pytest.raises(Refusal, match="not a report that this command made") as refused:
            report(Request([run.path], place), lambda text: None)
        assert refused.value.code == ExitCode.CANNOT_CREATE
    assert other.read_text().endswith("mine")


def test_the_surest_errors_come_first_and_the_least_sure_follow(tmp_path: Path) -> None:
    run = kept(tmp_path, num=3000)
    found = examples_of(facts.gather(run.path, None))
    confidence, labels = found.confidence, found.facts.predictions.labels
    assert (np.diff(confidence[found.errors]) <= 0).all()
    assert set(found.errors.tolist()) == set(np.flatnonzero(found.predicted != labels).tolist())
    shown = found.pictured()
    assert len(shown) == len(set(shown.tolist())) == MAX_PICTURES
    assert set(found.errors.tolist()) <= set(shown.tolist())
    right = np.setdiff1d(np.arange(3000), found.errors)
    assert right[confidence[right].argmin()] in shown
    cards = Cards(found)
    assert cards.all == [] and cards.for_script()["orders"]["errors"] == []  # there is no picture


def test_labels_are_looked_at_out_of_fold_where_cv_ran(tmp_path: Path) -> None:
    run = kept(tmp_path)
    said = predictions.load(predictions.file_of(run.path, "test"))
    assert facts.gather(run.path, None).out_of_fold is None
    crossed = run.path.with_name("trial-cv")
    crossed.mkdir()
    found = OutOfFold(
        said.ids,
        said.labels,
        said.types,
        said.class_names,
        np.zeros((2, 60), int),
        np.stack([said.probabilities] * 2),
    )
    found.save(crossed / OUT_OF_FOLD)
    own = facts.gather(run.path, None)
    assert own.out_of_fold is not None and own.split == "test"
    other = OutOfFold(said.ids, 1 - said.labels, said.types, said.class_names, found.fold, found.probabilities)
    other.save(crossed / OUT_OF_FOLD)  # of other labels: it is of another data set
    assert facts.gather(run.path, None).out_of_fold is None
    (crossed / OUT_OF_FOLD).write_bytes(b"nothing")
    with pytest.raises(Refusal, match="no out-of-fold predictions"):
        facts.gather(run.path, None)


@pytest.mark.parametrize(
    ("by", "told", "of"),
    [
        (None, "--folds 2 --seeds 2", "2 folds x 2 seeds"),
        ("(.)$", "--by '(.)$'", "2 groups by (.)$, each held out once"),
    ],
)
def test_a_page_of_folds_is_of_single_models_and_says_how_they_were_made(
    tmp_path: Path, by: str | None, told: str, of: str
) -> None:
    """Not of the mean over seeds, which is that of an ensemble; and each group held out once has a command, too."""
    run = kept(tmp_path, cross_validation.name_of("trial", by))
    said = predictions.load(predictions.file_of(run.path, "test"))
    seeds = 1 if by else 2
    second = np.where(said.labels[:, None] == [0, 1], 0.9, 0.1)  # always right, so that the mean is so more often
    found = OutOfFold(
        said.ids,
        said.labels,
        said.types,
        said.class_names,
        np.stack([np.arange(60) % 4 // 2] * seeds),
        np.stack([said.probabilities, second][:seeds]).astype(np.float64),
        held_out=(by, ["0", "1"]) if by else None,
    )
    found.save(run.path / OUT_OF_FOLD)
    result = cross_validation.summary(found)
    run.mark_done({"cross_validation": result})
    text = html.unescape(report(Request([run.path]), lambda text: None).read_text())
    assert f"tl-dist cv {run.name}.yaml name=trial {told}</code>" in text and f"mean of {of};" in text
    assert f"<strong>{100 * result['accuracy']:.1f}\N{NO-BREAK SPACE}%" in text
    wrong = (said.probabilities.argmax(axis=1) != said.labels).sum()
    assert wrong and f"{wrong} of 60 images are classified as another class" in text
    assert ("Everything below is from the first seed" in text) == (seeds == 2)
    assert "Report of a run, out-of-fold predictions" in text


def test_maps_are_beside_the_worst_errors_alone(tmp_path: Path) -> None:
    """In the narrow tiles of doubtful labels, which may be the same images, two pictures would be too small."""
    found = examples_of(facts.gather(kept(tmp_path).path, None))
    worst, ids = found.errors[:1], found.facts.predictions.ids
    picture = {str(ids[worst[0]]): "data:,x"}
    suspects = Suspects(worst, found.predicted[worst])
    shown = replace(found, images=picture, heat=picture, suspects=suspects)
    text = single.page(shown, twins=None, notes=[]).decode()
    sections = dict(re.findall(r'<section id="(\w+)"(.*?)</section>', text, re.DOTALL))
    assert [sections[name].count("<img") for name in ("worst", "labels")] == [2, 1]


def test_a_tile_says_what_its_own_predictions_do(tmp_path: Path) -> None:
    """Those out of fold, not those of the split, where the same image is shown already."""
    found = examples_of(facts.gather(kept(tmp_path).path, None))
    said = found.facts.predictions
    other = predictions.Predictions(
        said.ids, said.labels, said.probabilities[:, ::-1].copy(), said.class_names, 0, said.types
    )
    k = int(found.errors[0])
    cards = Cards(replace(found, images={str(said.ids[k]): "data:,x"}))
    assert [tile["right"] for one in (said, other) for tile in cards.tiles(one, [k])] == [False, True]
    assert len(cards.all) == 1


def test_near_duplicates_of_folds_are_sought_between_the_folds(tmp_path: Path) -> None:
    """Not between the splits of the config, which `cv` has not made use of."""
    run = kept(tmp_path, "trial-cv")
    splits = open_splits(config_file.load(run.config_file).data)[0]
    train = splits["train"]
    fold = np.arange(train.num_examples)[None] % 3
    probabilities = np.full((1, train.num_examples, train.num_classes), 1 / train.num_classes)
    ids, names = np.array(train.ids), np.array(train.class_names)
    OutOfFold(ids, train.labels, np.array([], np.str_), names, fold, probabilities).save(run.path / OUT_OF_FOLD)
    run.mark_done({"cross_validation": {}})
    found = held_out_by(facts.gather(run.path, None), splits)
    assert {name: list(source.ids) for name, source in found.items()} == {
        **({"test": list(splits["test"].ids)} if "test" in splits else {}),
        **{f"fold {k}": ids[fold[0] == k].tolist() for k in range(3)},
    }


def test_the_temperature_of_the_run_is_shown_beside_what_it_changes(tmp_path: Path) -> None:
    run = kept(tmp_path)
    said = predictions.load(predictions.file_of(run.path, "test"))
    made = calibration.Calibration(
        10, "a" * 64, np.array([], np.str_), 0.5, said.labels, np.full(60, 0.5), np.array([], np.str_)
    )
    save_npz(run.path / calibration.FILE, **made.arrays())
    logits = np.log(said.probabilities.astype(np.float64))
    sharper = scipy.special.softmax(2 * logits + 3, axis=1)
    bins = np.clip(np.ceil(15 * sharper.max(axis=1)).astype(int), 1, 15)
    hits = sharper.argmax(axis=1) == said.labels
    ece = sum(abs((hits - sharper.max(axis=1))[bins == k].sum()) for k in range(1, 16)) / 60
    text = report(Request([run.path]), lambda text: None).read_text()
    assert "Temperature 0.500 changes the ECE from 0." in text
    assert f"to {ece:.3f}." in text and text.count('aria-label="Calibrated of 60 images"') == 1
    save_npz(run.path / calibration.FILE, **made.arrays() | {"step": 9})  # of another checkpoint
    assert "Temperature" not in report(Request([run.path]), lambda text: None).read_text()


def test_robustness_is_shown_and_compared_where_both_runs_have_it(tmp_path: Path) -> None:
    runs = [kept(tmp_path), kept(tmp_path, "other", seed=1)]
    ids = predictions.load(predictions.file_of(runs[0].path, "test")).ids
    names, severities = np.array(["fog", "contrast", "shift"]), np.array([1, 3])
    for run, wrong in zip(runs, (12, 6), strict=True):
        clean, right = np.ones(60, bool), np.ones((3, 2, 60), bool)
        clean[:6], right[:2, :, :wrong], right[2, 1] = False, False, False
        hits = robustness.Hits(ids, names, severities, clean, right, 10, 32)
        save_npz(robustness.file_of(run.path, "test"), **vars(hits))
    text = report(Request([runs[0].path]), lambda text: None).read_text()
    assert "raise its error from 10.0\N{NO-BREAK SPACE}% to 20.0\N{NO-BREAK SPACE}%" in text
    assert re.search(r">shift</td><td[^>]*>1.000</td><td[^>]*>0.000<", text)
    both = report(Request([run.path for run in runs], tmp_path / "both.html"), lambda text: None).read_text()
    assert "<td>0.500</td><td>-10.0 points</td>" in both
    robustness.file_of(runs[1].path, "test").unlink()
    alone = report(Request([run.path for run in runs], tmp_path / "both.html"), lambda text: None).read_text()
    assert "Robustness" not in alone


def grouped(run: RunDir) -> None:
    """Its 60 examples are of 12 patients, of whom each has one type."""
    file = predictions.file_of(run.path, "test")
    with np.load(file) as arrays:
        kept_ = dict(arrays)
    of = np.array([f"patient {k // 5}" for k in range(60)])
    save_npz(file, **kept_ | {"groups": of, "types": np.array(["mono"] * 30 + ["poly"] * 30)})


def test_intervals_and_tests_name_the_groups_that_they_are_over(tmp_path: Path) -> None:
    runs = [kept(tmp_path, "one"), kept(tmp_path, "two", seed=1)]
    plain = report(Request([runs[0].path]), lambda text: None).read_text()
    compared = report(Request([run.path for run in runs], tmp_path / "c.html"), lambda text: None).read_text()
    assert "Wilson: how well" in plain and "design effect" not in plain
    assert "paired bootstrap, 95 %" in compared and "p (McNemar)" in compared
    grouped(runs[0])  # the other was evaluated before groups were kept
    text = report(Request([runs[0].path], pictures=False), lambda text: None).read_text()
    assert "Wilson, by the design effect of 12 groups: how well" in text and "By group" in text
    assert text.count("Intervals: Wilson, by the design effect of 12 groups.") == 2  # by class and by type
    text = report(Request([run.path for run in runs], tmp_path / "c.html"), lambda text: None).read_text()
    assert "p (sign-flip test over 12 groups)" in text and "t over 12 groups, 95 %" in text
    assert "McNemar" not in text and "bootstrap" not in text


def test_of_geometry_alone_no_difference_is_shown(tmp_path: Path) -> None:
    runs = [kept(tmp_path, "one"), kept(tmp_path, "two", seed=1)]
    for share, run in zip((0.2, 0.7), runs, strict=True):
        said = predictions.load(predictions.file_of(run.path, "test"))
        right = np.broadcast_to(np.arange(60) < 60 * share, (1, 2, 60))
        hits = robustness.Hits(said.ids, np.array(["rotate"]), np.array([1, 2]), right[0, 0], right, 10, 16)
        save_npz(robustness.file_of(run.path, "test"), **vars(hits))
    text = report(Request([run.path for run in runs], tmp_path / "c.html"), lambda text: None).read_text()
    assert "difference of the mean error" in text and "+0.0" not in text.split("Robustness")[-1].split("</table>")[0]


def test_a_run_without_predictions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="holds no predictions"):
        report(Request([kept(tmp_path).path], split="validation"), lambda text: None)


def test_records_become_curves(tmp_path: Path) -> None:
    run = kept(tmp_path)
    records: list[dict[str, Any]] = [
        {"event": "train", "step": step, "epoch": step / 5, "loss": 1 / step, "accuracy": step / 10,
         "data_wait_share": 0.25, "reduction_share": 0.25, "step_s": 0.01, "examples_per_s": 100.0, "workers": 2}
        for step in range(1, 11)
    ]  # fmt: skip
    records.append({"event": "evaluation", "step": 10, "split": "validation", "accuracy": 0.4, "loss": 1.5})
    layers = [
        {"layer": f"bn{k}", "trainable": True, "mode": "sync", "statistics_moved": True, "spread": 0.0} for k in (1, 2)
    ]
    records.append({"event": "batch_norm", "policy": "auto", "layers": layers})
    run.metrics_file.write_text("".join(json.dumps(one) + "\n" for one in records))
    text = report(Request([run.path]), lambda text: None).read_text()
    assert "Learning curves" in text and "2: bn1 to bn2" in text and "on 2 workers" in text
    assert "50 % computing, 25 % waiting for data, 25 % reducing over workers" in text
    assert "Training accuracy was 80.0" in text  # of the last five, and far from 40


def test_each_of_several_runs_has_one_curve_in_the_colour_of_its_name(tmp_path: Path) -> None:
    """Also one that has nothing to draw: those after it keep theirs."""
    runs = [kept(tmp_path, name) for name in ("first", "second", "third")]
    for run in (runs[0], runs[2]):
        rows: list[dict[str, Any]] = [{"event": "train", "step": 10, "epoch": 2.0, "loss": 1.0, "accuracy": 0.5}]
        for step, split in ((5, "validation"), (10, "validation"), (10, "test")):
            rows.append({"event": "evaluation", "step": step, "split": split, "accuracy": 0.4, "loss": step})
        run.metrics_file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    found = charted.curves_of([facts.gather(run.path, None) for run in runs], "loss")
    assert found == {
        "first, validation": ([1.0, 2.0], [5, 10]),
        "second": ([], []),
        "third, validation": ([1.0, 2.0], [5, 10]),
    }
    assert list(charted.curves_of([facts.gather(runs[0].path, None)], "loss")) == [
        "train",
        "validation",
        "test",
    ]


def test_a_chart_takes_its_colours_from_the_page_and_its_names_as_they_are() -> None:
    svg = charts.lines({"$x_1$ <b>": ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}, x="x", y="y", what='a "<i>"')
    assert "$x_1$ &lt;b&gt;" in svg and "<i>" not in svg and "#010101" not in svg
    assert "currentColor" in svg and "var(--series-1)" in svg and "var(--series-2)" in svg
    again = charts.lines({"a": ([0, 1], [0, 1])}, x="x", y="y", what="another")
    names = [set(re.findall(r'id="([^"]*)"', one)) for one in (svg, again)]
    assert names[0] and not names[0] & names[1]


def test_no_framework_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from tl_dist.cli.main import main; code = main(sys.argv[1:])\n"
        "print({'tensorflow', 'keras', 'horovod'} & sys.modules.keys()); sys.exit(code)"
    )
    command = [sys.executable, "-P", "-c", code, "report", str(kept(tmp_path).path), "--heat-maps", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == ExitCode.DONE and done.stdout.endswith("set()\n"), done.stderr
