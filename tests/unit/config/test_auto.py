"""Every recipe in configs/ is valid, says how it is run, and says what comes of it or that nobody has run it."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from tl_dist.cli.main import app
from tl_dist.config import file as config_file
from tl_dist.launcher.train import Request

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
COMMAND = re.compile(r"#   (tl-dist .+)|#   \S+ +\(or: (tl-dist .+)\)")


def header(recipe: Path) -> list[str]:
    lines = recipe.read_text().splitlines()
    return lines[: next(k for k, line in enumerate(lines) if not line.startswith("#"))]


def commands(recipe: Path) -> list[list[str]]:
    found = [COMMAND.fullmatch(line) for line in header(recipe)]
    return [shlex.split(match[1] or match[2]) for match in found if match]


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)
    found: Path = request.param
    return found


def test_a_recipe_loads_as_its_command_says(recipe: Path) -> None:
    (_, verb, file, *rest), *_ = commands(recipe)
    assert file == f"configs/{recipe.name}"
    cfg = Request(Path(file), [text for text in rest if "=" in text]).load()
    assert cfg.name == recipe.stem
    assert cfg.classifier.computed == (verb == "cv")
    assert config_file.load(file) is not None


def test_every_command_of_its_header_is_one(recipe: Path) -> None:
    group = typer.main.get_command(app)
    for _, verb, *rest in commands(recipe):
        with group.make_context("tl-dist", [verb, *rest]) as context:
            name, command, arguments = group.resolve_command(context, [verb, *rest])  # type: ignore[attr-defined]
            command.make_context(name, arguments, parent=context).close()  # refuses unknown options


def test_its_header_says_what_comes_of_it(recipe: Path) -> None:
    said = "\n".join(header(recipe))
    measured = re.search(r"(Measured|Expected|measured).*\d\.\d\d", said, re.DOTALL)
    assert measured or "Not run here" in said
    assert all(len(line) <= 130 for line in header(recipe))
