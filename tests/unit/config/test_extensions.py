"""Names of other packages in a config: whatever is wrong with one is a single line, and nothing else is run."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import build, given_to, setup_of
from tests.other_package import ROOT, written
from tl_dist.config import Config, extensions, registry
from tl_dist.config import file as config_file
from tl_dist.datasets.division import open_splits
from tl_dist.models import weights
from tl_dist.parallel import DataParallel, started
from tl_dist.parallel.single import SingleDevice
from tl_dist.refusal import Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.trainer import agreement, cached, setup

CONFIG = """\
steps: 1
data:
  name: shapes
  options:
    num_examples: 40
model: {backbone: one_conv, weights: random, train_from: all}
optimizer: {learning_rate: 0.1}
"""
POINTS = {
    "tl_dist.datasets": {"shapes": "tl_shapes:SHAPES"},
    "tl_dist.backbones": {"one_conv": "tl_shapes:ONE_CONV"},
}


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the path with the package of docs/pages/extending.md, and a config that uses it."""
    known = set(sys.modules)
    folder = written(tmp_path / "site")
    offer(folder, "tl-shapes", POINTS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(CONFIG)
    yield folder
    for name in set(sys.modules) - known:
        if name.startswith(("tl_shapes", "other")):
            del sys.modules[name]


def offer(site: Path, name: str, points: dict[str, dict[str, str]]) -> None:
    """A distribution with these entry points, as pip leaves it."""
    folder = site / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in of.items()) for group, of in points.items()]
    (folder / "entry_points.txt").write_text("\n".join(lines))


def load(*overrides: str, imports: bool = True) -> Config:
    return config_file.load("x.yaml", overrides, imports=imports)


def refused(*overrides: str) -> str:
    with pytest.raises(Refusal) as caught:
        load(*overrides)
    return str(caught.value)


def test_an_entry_point_leads_to_a_record_and_its_options_to_the_data_set() -> None:
    cfg = load("data.options.num_examples=60")
    splits, _ = open_splits(cfg.data)
    assert {name: source.num_examples for name, source in splits.items()} == {"train": 45, "test": 15}
    assert config_file.trajectory(cfg)["data"]["options"] == {"num_examples": 60}
    Path("again.yaml").write_text(config_file.dump(cfg))
    assert config_file.load("again.yaml", ["name=x"]) == cfg


def test_packages_are_looked_at_once_and_again_when_one_is_installed(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As into the kernel of a notebook."""
    assert "shapes" in extensions.offers(registry.DATASET.group)
    with monkeypatch.context() as patch:
        patch.setattr(extensions, "entry_points", None)
        assert set(extensions.offers(registry.BACKBONE.group)) == set(POINTS[registry.BACKBONE.group])
    offer(site, "tl-more", {registry.DATASET.group: {"more": "tl_more:MORE"}})
    assert {"shapes", "more"} <= extensions.offers(registry.DATASET.group).keys()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.name=shaped", "dataset 'shaped' is not known. Fix: write 'name: shapes'."),
        ("data.name=os:path", "os is a module of Python itself. Fix: name a module of an installed package."),
        (
            "data.name=nowhere.at_all:X",
            "there is no module nowhere in this Python environment. Fix: install the",
        ),
        (
            "data.name=tl_shapes.at_all:X",
            "there is no module tl_shapes.at_all in this Python environment. Fix: ",
        ),
        ("data.name=tl_shapes:SHAPE", "the module tl_shapes has no SHAPE. Fix: correct the name after"),
        (
            "data.name=tl_shapes:ONE_CONV",
            "is of type Backbone, not Dataset. Fix: make it a tl_dist.config.registry.",
        ),
        (
            "model.backbone=tl_shapes:SHAPES",
            "is of type Dataset, not Backbone. Fix: make it a tl_dist.models.backbo",
        ),
        (
            "strategy=tl_shapes:Options",
            "is of type ModelMetaclass, not Strategy. Fix: make it a tl_dist.config.re",
        ),
        (
            "data.name=other_divides:X",
            "other_divides cannot be imported (ZeroDivisionError: division by zero).",
        ),
        (
            "data.name=other_leaves:X",
            "other_leaves cannot be imported (SystemExit: 3). Fix: correct that package",
        ),
        (
            "data.name=other_lacks:X",
            "other_lacks cannot be imported (ModuleNotFoundError: No module named 'nope')",
        ),
        (
            "data.options.num=60",
            "data.options.num is not a key of a config. Fix: write 'data.options.num_examples'.",
        ),
        (
            "data.options.num_examples=few",
            'data.options.num_examples is "few", but must be a whole number. Fix: ',
        ),
        ("data.options=few", 'data.options is "few", but must be a section. Fix: '),
        ("data.name=digits", "x.yaml:4: dataset 'digits' has no options. Fix: remove 'options'."),
        ("workers=2", "strategy 'tl_shapes:LOGGED' has one worker, not 2."),
        ("data.image_size=4", "data.image_size is 4, but one_conv needs at least 8."),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line_with_a_fix(site: Path, override: str, says: str) -> None:
    (site / "other_divides.py").write_text("1 / 0\n")
    (site / "other_leaves.py").write_text("raise SystemExit(3)\n")
    (site / "other_lacks.py").write_text("import nope\n")
    found = refused("strategy=tl_shapes:LOGGED", override)
    assert says in found and " Fix: " in found
    assert found.startswith(("x.yaml:", "override '"))


WRONG = {
    "options": "Dataset('x:y', options=5)",
    "opener": "Dataset(5)",
    "keys": "Dataset('x:y', keys=5)",
    "workers": "Strategy('x:y', workers='many')",
    "build": "Backbone('x', 5, 32, 8, 'tf', {})",
    "stages": "Backbone('x', print, 32, 8, 'tf', 5)",
    "preprocessing": "Backbone('x', print, 32, 8, 'mine', {})",
}


@pytest.mark.parametrize("field", WRONG)
def test_a_record_with_a_field_of_another_type_is_refused(site: Path, field: str) -> None:
    (site / "other_wrong.py").write_text(
        "from tl_dist.config.registry import Dataset, Strategy\n"
        f"from tl_dist.models.backbones import Backbone\nX = {WRONG[field]}\n"
    )
    sys.modules.pop("other_wrong", None)
    key = {"D": "data.name", "S": "strategy", "B": "model.backbone"}[WRONG[field][0]]
    said = refused(f"{key}=other_wrong:X", *(["data.options={}"] if key == "data.name" else []))
    assert f"'{field}' of other_wrong:X has a type that " in said and " Fix: correct it as tl_dist." in said


@pytest.mark.parametrize(
    "code",
    [
        "def __getattr__(name): raise ValueError(name)",
        "def __getattr__(name): raise SystemExit(3)",
        "def __getattr__(name): return __getattr__(name)",
        "class X:\n    @property\n    def __class__(self): raise ValueError\nX = X()",
    ],
)
def test_a_module_that_does_harm_when_it_is_asked_is_refused(site: Path, code: str) -> None:
    (site / "other_asked.py").write_text(code + "\n")
    sys.modules.pop("other_asked", None)
    said = refused("data.name=other_asked:X", "data.options={}")
    assert "dataset 'other_asked:X': other_asked:X " in said and " Fix: " in said


def test_a_name_that_two_have_is_refused_not_guessed(site: Path) -> None:
    offer(site, "other", {"tl_dist.datasets": {"digits": "other:X", "shapes": "other:X"}})
    assert "dataset 'digits' is offered by tl_dist and by other 1.0. Fix: uninstall the other" in refused(
        "data.name=digits", "data.options={}"
    )
    assert "dataset 'shapes' is offered by " in refused()
    assert load("data.name=tl_shapes:SHAPES").data.name == "tl_shapes:SHAPES"


def test_a_module_of_the_working_directory_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where Python itself would find it."""
    Path("other_here.py").write_text("raise AssertionError\n")
    monkeypatch.syspath_prepend("")
    assert "there is no module other_here in this Python environment" in refused("data.name=other_here:X")


def test_a_record_whose_module_imports_a_framework_is_refused_before_that_is_imported(site: Path) -> None:
    (site / "other_heavy.py").write_text("import tensorflow.nn\n")
    code = (
        "import sys\nfrom tl_dist.config import file\nfrom tl_dist.refusal import Refusal\n"
        "file.load('x.yaml')\n"
        "try: file.load('x.yaml', ['data.name=other_heavy:X'])\nexcept Refusal as refusal: print(refusal)\n"
        "assert not {'tensorflow', 'keras', 'horovod'} & sys.modules.keys()"
    )
    environment = {"PYTHONPATH": f"{site}:{ROOT}"}
    argv = [sys.executable, "-P", "-c", code]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert "other_heavy imports tensorflow at its top" in done.stdout
    assert "Fix: import tensorflow inside the functions that use it." in done.stdout


def test_without_imports_nothing_of_another_package_is(site: Path) -> None:
    for file in (site / "tl_shapes").glob("*.py"):
        file.write_text("raise AssertionError\n")
    cfg = load(imports=False)
    assert cfg.data.options == {"num_examples": 40}
    assert config_file.load("x.yaml", ["data.options.num=1"], imports=False).data.options["num"] == 1
    with pytest.raises(Refusal, match="'shaped' is not known"):
        load("data.name=shaped", imports=False)
    run = RunDir.create("runs", cfg)
    RunDir.create("runs", cfg)
    run.refuse_other_config(cfg)
    with pytest.raises(Refusal, match="AssertionError"):
        load()


def test_what_a_function_of_another_package_returns_is_checked(site: Path) -> None:
    (site / "tl_shapes" / "data.py").write_text("def open_shapes(data, options): return {'training': 1}\n")
    with pytest.raises(Refusal, match=r"'shapes' opened as a dict without a Source under .* Fix: return"):
        open_splits(load().data)
    (site / "tl_shapes" / "data.py").unlink()
    for name in ("tl_shapes", "tl_shapes.data"):
        sys.modules.pop(name, None)
    with pytest.raises(Refusal, match=r"there is no module tl_shapes\.data .* Fix: install"):
        open_splits(load().data)


def test_a_strategy_that_lacks_a_part_is_refused() -> None:
    class Half:
        rank = 0

        def gather(self, text: bytes) -> list[bytes]:
            return [text]

    with pytest.raises(Refusal, match=r"strategy 'half' has no world_size, num_replicas, .* Fix: implement all"):
        started(Half(), "half")
    whole = registry.strategy("tl_shapes:LOGGED").start(load())
    assert started(whole, "whole") is whole
    assert isinstance(whole, DataParallel)


def test_the_digest_is_of_all_code_of_the_package_and_of_nothing_else(site: Path) -> None:
    cfg = load("strategy=tl_shapes:LOGGED")
    first = registry.code_of_others(cfg)
    assert first.keys() == {"dataset", "backbone"}  # a run may change its strategy
    assert first["dataset"]["distribution"] == "tl-shapes 1.0"
    package = site / "tl_shapes"
    (package / "notes.txt").write_text("no code")
    (package / "__pycache__").mkdir(exist_ok=True)
    (package / "__pycache__" / "more.py").write_text("")
    assert registry.code_of_others(cfg) == first
    (package / "compiled.so").write_bytes(b"\0")
    assert registry.code_of_others(cfg)["dataset"]["code"] != first["dataset"]["code"]
    (package / "compiled.so").rename(package / "moved.so")
    assert registry.code_of_others(cfg)["dataset"]["code"] != first["dataset"]["code"]
    (package / "moved.so").unlink()
    assert registry.code_of_others(cfg) == first


def test_a_module_without_a_package_and_one_in_a_namespace_have_digests_of_their_own(site: Path) -> None:
    record = "from tl_dist.config.registry import Dataset\nX = Dataset('x:y', needs_path=False)\n"
    for name in ("other_alone.py", "other_space/first/__init__.py", "other_space/second/__init__.py"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(record)
    names = ("other_alone:X", "other_space.first:X", "other_space.second:X")
    before = [registry.code_of(registry.DATASET, name)["code"] for name in names]
    (site / "other_space" / "first" / "more.py").write_text("")
    (site / "other_new.py").write_text("")
    after = [registry.code_of(registry.DATASET, name)["code"] for name in names]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_a_run_is_bound_to_the_code_that_it_began_with(site: Path) -> None:
    cfg = load()
    run = RunDir.create("runs", cfg)
    made = setup_of(cfg, open_splits(cfg.data)[0], build(), run=run)
    for _ in range(2):
        setup.refuse_changed_code(run, cfg)
        agreement.prove(made)
    (site / "tl_shapes" / "more.py").write_text("")
    with pytest.raises(Refusal, match=r"extensions\.dataset\.code: \w{16} -> \w{16}.* Fix: install the version"):
        setup.refuse_changed_code(run, cfg)
    with pytest.raises(Refusal, match=r"the run was started with something else: .*extensions\.dataset\.code: "):
        agreement.prove(made)


OWN = ("data.name=digits", "data.options={}", "model.backbone=tiny")


@pytest.mark.parametrize(("key", "overrides"), [("extensions", ()), ("versions", (*OWN, "strategy=tl_shapes:LOGGED"))])
def test_workers_whose_code_of_another_package_differs_are_refused(
    site: Path, key: str, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load(*overrides)
    compared: list[bytes] = []
    agree = agreement.agree

    def noted(parallel: Any, facts: Mapping[str, Any]) -> None:
        compared.append(json.dumps(facts, sort_keys=True).encode())
        agree(parallel, facts)

    class Beside(SingleDevice):
        """Rank 0 beside a worker whose facts stay what they were at first."""

        def gather(self, text: bytes) -> list[bytes]:
            alike = {sha256(new).digest(): sha256(compared[0]).digest() for new in compared}
            return [text, {**alike, **dict.fromkeys(compared, compared[0])}.get(text, text)] if compared else [text] * 2

    monkeypatch.setattr(agreement, "agree", noted)
    made = setup_of(cfg, open_splits(cfg.data)[0], build(), parallel=Beside(cfg))
    made.run.path.mkdir(parents=True)
    agreement.prove(made)
    (site / "tl_shapes" / "more.py").write_text("")
    with pytest.raises(Refusal, match=f"rank 1 and rank 0 disagree on {key}: "):
        agreement.prove(made)


def test_a_run_of_our_own_names_has_nothing_of_other_packages_in_its_identity() -> None:
    cfg = load(*OWN)
    assert registry.code_of_others(cfg) == {}


def test_what_is_cached_of_a_backbone_is_of_its_code(site: Path) -> None:
    """Converted weights and features: other code may make other values of the same files."""
    file = Path("weights.safetensors")
    file.touch()

    def keys() -> tuple[object, object]:
        cfg = load()
        made = setup_of(cfg, open_splits(cfg.data)[0], build())
        prefix = cached.prefix_of(made, given_to(made))
        request = weights._request(str(file), "one_conv", None, Path("cache"))
        assert request is not None
        return prefix.facts, request.record.name

    before = keys()
    assert keys() == before
    (site / "tl_shapes" / "more.py").write_text("")
    assert all(old != new for old, new in zip(before, keys(), strict=True))
