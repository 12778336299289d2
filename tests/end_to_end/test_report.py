"""`tl-dist report` and `explain`: the page says what the run found, obeys no name in it, and points at the cause."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

import tl_dist as tl
from tests.end_to_end.harness import TL_DIST
from tl_dist.datasets.division import open_splits
from tl_dist.launcher.task import Computation
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores import explanations, figures, predictions
from tl_dist.tools.explain import Request
from tl_dist.tools.explain.command import explain
from tl_dist.tools.explain.work import explained
from tl_dist.tools.report import command as cli_report
from tl_dist.trainer.load_model import loaded, process_as_it_was

SIDE, MARKER = 64, 14
CLASSES = ("<script>alert(1)", "<img src=x onerror=alert(1)>")
CONFIG = """\
steps: 120
global_batch: 32
precision: float32
data: {{name: image_folder, path: '{path}', image_size: 64, test_fraction: 0.3, validation_fraction: 0.1}}
model: {{backbone: tiny, weights: random, train_from: all}}
optimizer: {{name: adam, learning_rate: 0.003}}
evaluation: {{every_epochs: 3}}
report: {{tensorboard: false, every_steps: 10}}
runtime: {{threads: 1}}
"""
MISLABELLED = 8


class Markers(NamedTuple):
    """Noise with a red or a green square, on which the label depends; a few lie in the other folder."""

    root: Path
    places: dict[str, tuple[int, int]]
    """top and left of the square, by file"""


@pytest.fixture(scope="module")
def markers(tmp_path_factory: pytest.TempPathFactory) -> Markers:
    root = tmp_path_factory.mktemp("markers") / "images"
    rng = np.random.default_rng(0)
    found: dict[str, tuple[int, int]] = {}
    for k in range(240):
        number = k % 2
        pixels = rng.integers(60, 190, (SIDE, SIDE, 3)).astype(np.uint8)
        top, left = (int(v) for v in rng.integers(0, SIDE - MARKER, 2))
        pixels[top : top + MARKER, left : left + MARKER] = (255, 0, 0) if number == 0 else (0, 255, 0)
        name = Path(CLASSES[number ^ (k < MISLABELLED)]) / f"{k} &'\"<b>.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
        found[str(name)] = (top, left)
    return Markers(root, found)


@pytest.fixture(scope="module")
def run(markers: Markers) -> tl.Run:
    root = markers.root.parent
    config = root / "markers.yaml"
    config.write_text(CONFIG.format(path=markers.root))
    made = tl.train(tl.load_config(config), runs=root / "runs", here=True)
    assert made.scores["test"]["accuracy"] > 0.85  # else a map could point anywhere
    return made


@pytest.fixture(scope="module")
def page(run: tl.Run) -> Path:
    """By the command line, with heat maps by a worker."""
    done = subprocess.run([TL_DIST, "report", str(run.path)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    return run.path / "report.html"


def test_a_map_points_at_what_the_label_depends_on(run: tl.Run, markers: Markers) -> None:
    """The pointing game of Zhang et al. (arXiv 1608.00507): its largest value lies on the marker."""
    source = open_splits(run.config.data)[0]["test"]
    with process_as_it_was():
        model = loaded(RunDir.open(run.path), cores=None, overrides=("strategy=single", "workers=1"))
        every = np.arange(source.num_examples)
        request = Request(cam="layercam", integrated=False)
        found = explained(model, source, every, np.full(len(every), -1, np.int32), request)
        few = explained(model, source, every[:6], np.full(6, -1, np.int32), Request(cam="gradcam", integrated=True))
        # Adebayo et al. (arXiv 1810.03292): a map that stays when the weights are shuffled explains nothing.
        for variable in model.model.moving.values():
            values = np.random.default_rng(0).permutation(variable.numpy().ravel())
            variable.assign(values.reshape(variable.shape))
        random = explained(model, source, every[:6], found.classes[:6].copy(), Request(cam="layercam", integrated=True))
    np.testing.assert_allclose(found.logits[:6], few.logits, atol=1e-5)
    assert (few.gaps <= 0.01).all()
    for trained, shuffled in ((found.cam[:6], random.cam), (few.integrated, random.integrated)):
        alike = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(trained, shuffled, strict=True)]
        assert abs(np.mean(alike)) < 0.5
    hits = [_is_on(found.cam[k], markers.places[source.ids[k]]) for k in every]
    assert np.mean(hits) >= 0.9
    assert np.mean([_is_on(few.cam[k], markers.places[source.ids[k]]) for k in range(6)]) >= 0.8
    inside = [_share_on(np.abs(few.integrated[k]), markers.places[source.ids[k]]) for k in range(6)]
    assert np.mean(inside) > 4 * (MARKER / SIDE) ** 2  # noise says less, for its place


def _is_on(cam: np.ndarray, place: tuple[int, int]) -> bool:
    """Within half a cell of the coarse map that was drawn large."""
    row, column = np.unravel_index(cam.argmax(), cam.shape)
    return all(begin - 4 <= at < begin + MARKER + 4 for at, begin in zip((row, column), place, strict=True))


def _share_on(values: np.ndarray, place: tuple[int, int]) -> float:
    top, left = place
    return float(values[top : top + MARKER, left : left + MARKER].sum() / values.sum())


def test_the_page_says_what_the_run_found(page: Path, run: tl.Run) -> None:
    text = page.read_text()
    scores = run.scores["test"]
    assert f"<strong>{100 * scores['accuracy']:.1f}\N{NO-BREAK SPACE}%</strong>" in text
    assert f"{100 * scores['interval'][0]:.1f}\N{NO-BREAK SPACE}%" in text
    assert "tl-dist train markers.yaml" in text and "learning_rate: 0.003" in text
    assert "What stands out" in text and "Worst errors" in text and text.count('<svg class="chart"') == 6
    assert page.stat().st_size < 2_000_000


def test_no_name_becomes_markup_and_nothing_is_loaded(page: Path) -> None:
    text = page.read_text()
    assert "<script>alert" not in text and "<img src=x" not in text and "<b>.png" not in text
    assert "&lt;script&gt;alert(1)" in text and "\\u003cscript\\u003ealert(1)" in text
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)""", text)
    assert addresses and all(one.startswith(("data:image/webp;base64,", "#")) for one in addresses)
    assert "default-src 'none'" in text and "@import" not in text


def opened(browser: Any, page: Path, said: list[str], **settings: Any) -> Any:
    """The page in a tab of its own; `said` gets errors, messages and requests to elsewhere."""
    tab = browser.new_context(**settings).new_page()
    tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: said.append(f"error: {error}"))
    tab.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    tab.on("request", lambda one: None if one.url.startswith(("file:", "data:")) else said.append(one.url))
    tab.goto(page.as_uri())
    return tab


def test_a_number_of_the_confusion_matrix_shows_its_images(browser: Any, page: Path, run: tl.Run) -> None:
    said: list[str] = []
    tab = opened(browser, page, said, viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390  # a phone scrolls down alone
    names = tab.locator(".sortable tbody th").first.bounding_box()
    assert names is not None and names["width"] > 100  # not one letter below the other
    cell = tab.locator(".confusion button[data-label='0'][data-predicted='0']")
    number = int(cell.inner_text())
    found = run.predictions("test")
    predicted = found.probabilities.argmax(axis=1)
    assert number == int(((found.labels == 0) & (predicted == 0)).sum()) > 10
    errors = tab.locator("#gallery .tile").count()
    assert errors == int((found.labels != predicted).sum()) > 0
    cell.click()
    assert tab.locator("#gallery .tile").count() == number != errors
    assert cell.get_attribute("aria-pressed") == "true"
    cell.press("ArrowDown")
    assert tab.evaluate("document.activeElement.dataset.label") == "1"
    tab.keyboard.press("Enter")
    confused = int(((found.labels == 1) & (predicted == 0)).sum())
    assert tab.locator("#gallery .tile").count() == confused > 0
    first = tab.locator("#gallery .tile").first.inner_text()
    assert first.startswith(found.class_names[0]) and f"label: {found.class_names[1]}" in first
    tab.locator(".gallery.wide .tile").first.click()
    assert tab.locator("#viewer").is_visible() and tab.locator("#viewer-heat").is_visible()
    tab.keyboard.press("Escape")
    assert not tab.locator("#viewer").is_visible()
    assert tab.locator("#gallery img").first.evaluate("image => image.naturalWidth") > 0
    tab.locator(".sortable thead button").first.click()
    assert tab.locator("th[aria-sort]").count() == 1
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, page: Path, scheme: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra `test`")
    said: list[str] = []
    tab = opened(browser, page, said, color_scheme=scheme, bypass_csp=True)
    found = axe.Axe().run(tab).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert not serious, [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in serious]


def test_two_runs_are_compared_on_the_same_examples(run: tl.Run, browser: Any, tmp_path: Path) -> None:
    """The second is a copy that has thrown a coin for half of the images."""
    other = run.path.with_name("coin")
    shutil.copytree(run.path, other)
    file = predictions.file_of(other, "test")
    known = predictions.load(file)
    probabilities = known.probabilities.copy()
    probabilities[::2] = probabilities[::2, ::-1]
    coin = replace(known, probabilities=probabilities)
    coin.save(file)
    out = tmp_path / "both.html"
    assert run.report(out, against=[tl.Run(other)]) == out  # as by the command line
    said: list[str] = []
    tab = opened(browser, out, said)
    row = tab.locator("#tests tbody tr").first.inner_text()
    paired = figures.paired(known.labels, known.probabilities, probabilities)
    assert f"{100 * paired['difference']:+.1f} points" in row and "coin" in row
    assert "More than chance explains" in tab.locator("#verdict").inner_text()
    apart = paired["only_first"] + paired["only_second"]
    assert tab.locator("#gallery .tile").count() == min(apart, 48)
    tab.locator("button[data-show='run-1']").click()
    assert tab.locator("#gallery .tile").count() == min(paired["only_second"], 48)
    assert said == []
    replace(coin, ids=known.ids[::-1]).save(file)
    with pytest.raises(Refusal, match="not evaluated on the same examples") as refused:
        cli_report.report(cli_report.Request([run.path, other], out), lambda text: None)
    assert refused.value.code == ExitCode.DATA


def test_pictures_of_what_speaks_for_a_class(run: tl.Run, markers: Markers, tmp_path: Path) -> None:
    names = list(markers.places)[:2]
    files = [str(shutil.copy(markers.root / name, tmp_path)) for name in names]
    done = subprocess.run(
        [TL_DIST, "explain", str(run.path), *files], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    for file in files:
        with Image.open(f"{file}.explained.png") as picture:
            assert explanations.is_side_by_side(*picture.size)
    with pytest.raises(Refusal, match="would be trained on") as refused:
        explain(RunDir.open(run.path), [str(markers.root / names[0])], Computation(), lambda text: None)
    assert refused.value.code == ExitCode.USAGE
