"""YAML is plain data with lines; whatever could surprise or harm is refused in one line."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_dist.config import yaml_text
from tl_dist.refusal import ExitCode, Refusal, is_printable


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),  # text under YAML 1.1, and so for yaml.safe_load
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3.", -3.0),
        ("+7", 7),
        ("007", 7),
        ("true", True),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("True", "True"),
        ("~", None),
        ("null", None),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("1:30", "1:30"),  # 90 under YAML 1.1
        ("2026-01-02", "2026-01-02"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("'1'", "1"),
        ("9" * 64, "9" * 64),  # a digest stays text
        ("${HOME}", "${HOME}"),
        ("=", "="),
    ],
)
def test_a_scalar_is_what_it_looks_like(text: str, value: Any) -> None:
    found = yaml_text.parse(f"key: {text}", "x.yaml").data["key"]
    assert found == value
    assert type(found) is type(value)


def test_every_key_and_item_has_its_line() -> None:
    document = yaml_text.parse("a: 1\nb:\n  c: [x,\n      y]\n  d:\n    e: 2\n", "x.yaml")
    assert document.data == {"a": 1, "b": {"c": ["x", "y"], "d": {"e": 2}}}
    lines = {"a": 1, "b": 2, "b.c": 3, "b.c.0": 3, "b.c.1": 4, "b.d": 5, "b.d.e": 6}
    assert {key: document.lines[key] for key in lines} == lines


def test_aliases_are_written_out() -> None:
    assert yaml_text.parse("a: &x [1, 2]\nb: *x\n", "x.yaml").data == {"a": [1, 2], "b": [1, 2]}


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 6)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "x.yaml:3: a is given twice (first on line 1). Fix: keep one of them."),
        ("b:\n  c: 1\n  c: 2", "x.yaml:3: b.c is given twice (first on line 2). Fix: keep one of them."),
        ("a:\n\tb: 1", "x.yaml:2: a tab where YAML wants spaces. Fix: indent with spaces."),
        ("\ta: 1", "x.yaml:1: a tab where YAML wants spaces. Fix: indent with spaces."),
        (
            "a: !!python/object/apply:os.system [id]",
            "x.yaml:1: the tag '!!python/object/apply:os.system' is not allowed. Fix: use plain values.",
        ),
        ("a: !!str 1", "x.yaml:1: the tag '!!str' is not allowed. Fix: use plain values."),
        ("a: !local 1", "x.yaml:1: the tag '!local' is not allowed. Fix: use plain values."),
        ("1: a", "x.yaml:1: the key '1' is not text. Fix: use names as keys."),
        ("? [a, b]\n: c", "x.yaml:1: the key 'list' is not text. Fix: use names as keys."),
        ("true: a", "x.yaml:1: the key 'true' is not text. Fix: use names as keys."),
        ("a: *b", "x.yaml:1: undefined alias 'b'. Fix: quote text that begins with '*'."),
        ("--- a\n--- b", "x.yaml:2: a second document begins. Fix: keep one document per file."),
        (
            "a: b: c",
            "x.yaml:1: a ':' where no key can be. Fix: check the indentation, or quote text that contains ': '.",
        ),
        (
            "a: [1",
            "x.yaml:1: not valid YAML: expected ',' or ']', but got '<stream end>'. "
            "Fix: check indentation, brackets and quotes.",
        ),
        ("a: 1\nb: \x00", "x.yaml:2: an unprintable character. Fix: remove it."),
        (r'b: "a\0"', r"x.yaml:1: an unprintable character in 'a\x00'. Fix: remove it."),
        ('a: 1\n"\\N": 2', r"x.yaml:2: an unprintable character in '\x85'. Fix: remove it."),
        (
            r'a: "\UFFFFFFFF"',
            "x.yaml:1: an escape or a version with a number that is too large. Fix: correct it.",
        ),
        ("[" + "1, " * 300_000 + "]", "x.yaml:1: more than 10,000 values. Fix: shorten the file."),
        ("[" * 2000, "x.yaml:1: nested deeper than 20 levels. Fix: a config has three."),
        ("a: &a [*a]", "x.yaml:1: nested deeper than 20 levels. Fix: a config has three."),
        ("x: &x 1\ny: [" + "*x, " * 51 + "]", "x.yaml:2: more than 50 aliases. Fix: write the values out."),
        (BOMB, "x.yaml:1: more than 10,000 values. Fix: shorten the file."),
        ("#" * 1_000_001, "x.yaml has more than 1,000,000 characters. Fix: shorten it."),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, message: str) -> None:
    with pytest.raises(Refusal) as refused:
        yaml_text.parse(text, "x.yaml")
    assert str(refused.value) == message
    assert refused.value.code == ExitCode.USAGE


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "right.yaml").write_text("a: 1")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_000_001)
    os.mkfifo(tmp_path / "pipe.yaml")
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, message in {
        tmp_path / "rigth.yaml": f"{tmp_path}/rigth.yaml does not exist. Fix: use '{tmp_path}/right.yaml'.",
        tmp_path / "none" / "x.yaml": f"{tmp_path}/none/x.yaml does not exist. Fix: give the path of a YAML file.",
        folder: f"{folder} is a directory, not a YAML file. Fix: give the path of a YAML file.",
        tmp_path / "latin.yaml": f"{tmp_path}/latin.yaml: byte 3 is not UTF-8. Fix: save the file as UTF-8.",
    }.items():
        with pytest.raises(Refusal) as refused:
            yaml_text.read(path)
        assert str(refused.value) == message
    for name, words in {
        "pipe.yaml": "is not a regular file",
        "big.yaml": "is larger than 1,000,000 bytes",
    }.items():
        with pytest.raises(Refusal, match=words):
            yaml_text.read(tmp_path / name)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert yaml_text.read(tmp_path / "x.yaml").data == {"a": 1}


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**17), 10**17),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["C"]), max_size=30),
    st.sampled_from(["1e5", "1e-4", "yes", "null", "~", "", " ", "1:30", "0o7", "a: b", "- a", "*x", "#", "true"]),
)
KEYS = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=10)


@pytest.mark.parametrize("text", ["\u202egnp.exe", "\u2066Kätzchen\u2069", "a\u2028b", "a\nb\tc", "👩\u200d🔬"])
def test_what_is_dumped_obeys_no_terminal_and_is_read_back(text: str) -> None:
    dumped = yaml_text.dump({"path": text})
    assert is_printable(dumped)
    assert yaml_text.parse(dumped, "x.yaml").data == {"path": text}


@given(st.dictionaries(KEYS, st.one_of(SCALARS, st.lists(SCALARS, max_size=4), st.dictionaries(KEYS, SCALARS))))
def test_what_is_dumped_is_read_back(data: dict[str, Any]) -> None:
    assert yaml_text.parse(yaml_text.dump(data), "x.yaml").data == data
