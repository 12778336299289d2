"""docs/ builds as a site of its own without a warning, agrees with the schema and configs, and names what exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

from tl_dist.config import Config, problems, reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TEXTS = [*ROOT.glob("*.md"), *sorted(DOCS.glob("pages/*.md"))]
LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?((?:https?:)?//[^\"> ]*)")
CONFIGS = re.compile(r"\| \[(\w+\.yaml)\]\(\S+\) \|(.*)\|")


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    argv = [
        sys.executable,
        "-P",
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        DOCS / "mkdocs.yml",
        "-d",
        tmp_path,
    ]
    environment = dict(os.environ, NO_MKDOCS_2_WARNING="1")
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(list(DOCS.glob("pages/*.md")))
    for page in pages:
        loaded = LOADED.findall(page.read_text())
        assert not loaded, page


def test_the_reference_is_that_of_the_schema() -> None:
    """`python -m tl_dist.config.reference > docs/pages/reference.md` writes it anew."""
    assert (DOCS / "pages" / "reference.md").read_text() == reference.page()


def test_the_reference_has_every_key() -> None:
    rows = {row.key for row in reference.rows()}
    assert rows == {".".join(path) for path in problems.key_paths(Config)}
    page = reference.page()
    missing = [key for key in rows if f"| `{key}` |" not in page]
    assert all(key.startswith(("source.data.", "source.optimizer.")) for key in missing)
    assert "`source.data` holds the keys of `data`." in page
    assert "`source.optimizer` holds the keys of `optimizer`." in page


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
