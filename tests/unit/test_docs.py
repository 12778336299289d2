"""docs/ builds as a site of its own without a warning, agrees with the schema and configs, and names what exists."""

import os
import re
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer

from tests import api_page, config_reference, models_page
from tl_dist.cli.main import app
from tl_dist.config import Config, problems, reference, registry
from tl_dist.config import file as config_file
from tl_dist.datasets import formats
from tl_dist.datasets.division import open_splits
from tl_dist.models import backbones
from tl_dist.refusal import Refusal

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TEXTS = [*ROOT.glob("*.md"), *sorted(DOCS.glob("pages/*.md"))]
EXTENDING = (DOCS / "pages" / "extending.md").read_text()
LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?((?:https?:)?//[^\"> ]*)")
CONFIGS = re.compile(r"\| \[(\w+\.yaml)\]\(\S+\) \|(.*)\|")


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    options = ["--strict", "-f", DOCS / "mkdocs.yml", "-d", tmp_path]
    argv = [sys.executable, "-P", "-m", "mkdocs", "build", *options]
    environment = dict(os.environ, NO_MKDOCS_2_WARNING="1")
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(list(DOCS.glob("pages/*.md")))
    for page in pages:
        loaded = LOADED.findall(page.read_text())
        assert not loaded, page


def test_the_reference_is_that_of_the_schema() -> None:
    """`python -m tests.config_reference > docs/pages/reference.md` writes it again."""
    assert (DOCS / "pages" / "reference.md").read_text() == config_reference.page()


def test_the_page_of_networks_is_that_of_the_registry() -> None:
    """`python -m tests.models_page > docs/pages/models.md` writes it again."""
    assert (DOCS / "pages" / "models.md").read_text() == models_page.page()


def test_the_page_of_the_python_api_is_that_of_its_signatures_and_docstrings() -> None:
    """`python -m tests.api_page > docs/pages/api.md` writes it again."""
    assert (DOCS / "pages" / "api.md").read_text() == api_page.page()


def test_the_reference_has_every_key() -> None:
    rows = {row.key for row in reference.rows()}
    assert rows == {".".join(path) for path in problems.key_paths(Config)}
    page = config_reference.page()
    missing = [key for key in rows if f"| `{key}` |" not in page]
    assert all(key.startswith(("source.data.", "source.optimizer.")) for key in missing)
    assert "`source.data` holds the keys of `data`." in page
    assert "`source.optimizer` holds the keys of `optimizer`." in page


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that extending.md shows, found as if they lay in the folders that it names."""
    for name, code in re.findall(r"```python\n# tl_dist/\w+/\w+/(\w+)\.py\n(.*?)```", EXTENDING, re.DOTALL):
        (tmp_path / f"{name}.py").write_text(code)
    for folder in (formats, backbones):
        monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])


@pytest.mark.usefixtures("written")
def test_a_data_set_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that extending.md shows."""
    config = tmp_path / "grey.yaml"
    config.write_text(
        "{epochs: 1, data: {name: grey_digits, folds: 3, fold: 0}, optimizer: {learning_rate: 0.1},"
        "model: {backbone: tiny, weights: random, train_from: all}}"
    )
    with pytest.raises(Refusal, match="'grey_digits' is not known"):
        config_file.load(config)
    (line,) = re.findall(r"^DATASETS = \{\.\.\., \"grey_digits\": (.*)\}$", EXTENDING, re.MULTILINE)
    monkeypatch.setitem(registry.DATASETS, "grey_digits", eval(line, vars(registry)))  # type: ignore[arg-type]
    splits, _ = open_splits(config_file.load(config).data)
    assert {name: split.num_examples for name, split in splits.items()} == {"train": 1198, "test": 599}


@pytest.mark.usefixtures("written")
def test_a_backbone_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "again.yaml"
    config.write_text(
        "{epochs: 1, data: {name: digits}, optimizer: {learning_rate: 0.1},"
        "model: {backbone: vgg16again, train_from: block5}}"
    )
    with pytest.raises(Refusal, match="'vgg16again' is not known"):
        config_file.load(config)
    monkeypatch.setitem(registry.BACKBONES, "vgg16again", "tl_dist.models.backbones.vgg_again:VGG16AGAIN")  # type: ignore[arg-type]
    assert config_file.load(config).model.backbone == "vgg16again"
    shown, own = (registry.backbone(name) for name in ("vgg16again", "vgg16"))
    for field in ("input_size", "min_size", "preprocessing", "stages", "block", "batch_norm"):
        assert getattr(shown, field) == getattr(own, field)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_each_command_in_the_text_has_the_verbs_and_options_that_it_is_shown_with(path: Path) -> None:
    """Those in the middle of a sentence; whole lines are run by tests/end_to_end/test_readme.py."""
    for span in re.findall(r"`(?:\w+ -np \d )?(tl-dist [^`]+)`", path.read_text()):
        command: Any = typer.main.get_command(app)
        words = shlex.split(span)[1:]
        while words and words[0] != "VERB" and hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, span


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_file_that_is_named_or_linked_to_exists(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / target).exists(), target
    if path.name != "CHANGELOG.md":  # it names what has been
        for name in re.findall(r"`((?:tests|configs|launch|tl_dist|slurm|docs|benchmarks)/[\w./*-]+)`", text):
            assert list(ROOT.glob(name.rstrip("/"))), name
    if path.name == "how-a-run-works.md":
        for name in re.findall(r"`((?:data|training|runs|worker|parallel)/(?:\w+\.py)?)`", text):
            assert (ROOT / "tl_dist" / name).exists(), name


def heading(config: str) -> str:
    """The comment at the top of an example config."""
    lines = (ROOT / "configs" / config).read_text().splitlines()
    return "\n".join(takewhile(lambda line: line.startswith("#"), lines))


def test_figures_and_times_are_those_in_the_first_lines_of_the_configs() -> None:
    rows = CONFIGS.findall((DOCS / "pages" / "settings.md").read_text())
    assert len(rows) >= 5
    for name, row in rows:
        head = heading(name)
        for count in re.findall(r"\d+ of \d+|\d+ min", row):
            assert re.search(count.replace(" of ", " of (the )?"), head), f"{name}: {count}"
        measured = re.findall(r"\b0\.\d{3,}", head)
        for figure in re.findall(r"\b0\.\d{3}\b", row):
            assert any(abs(float(each) - float(figure)) <= 0.0005 for each in measured), f"{name}: {figure}"
    (accuracy,) = re.findall(r"measured: (0\.\d+)", (ROOT / "README.md").read_text())
    assert accuracy in heading("quickstart.yaml")
