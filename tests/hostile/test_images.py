"""No image in a data set hangs a command, takes the machine's memory or ends it: it is named, or left out."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

import tl_dist as tl
from tests.damaged_images import BOMBS
from tests.hostile.arena import SECONDS, WORKER_SECONDS, Arena, Case, Cases
from tests.image_kinds import jpeg

CASES = Cases()
MANY = 64 << 20  # bytes
CONFIG = """\
recipe: auto
data: {name: image_folder, path: set, test_fraction: 0, validation_fraction: 0}
model: {backbone: tiny, weights: random, train_from: all}
steps: 3
global_batch: 8
strategy: single
workers: 1
"""


def png(side: int = 24) -> bytes:
    return saved(Image.radial_gradient("L").resize((side, side)).convert("RGB"), "PNG")


def saved(image: Image.Image, kind: str) -> bytes:
    target = io.BytesIO()
    image.save(target, kind)
    return target.getvalue()


def gif(width: int, height: int) -> tuple[bytes, bytes, int]:
    """What comes before the first frame, that frame, and the place of its size in it."""
    data = saved(Image.new("P", (width, height)), "GIF")
    at = data.index(b"," + struct.pack("<HHHH", 0, 0, width, height))
    return data[:at], data[at:-1], 5


# Each puts one image, or several, into a folder; what a look at its header says of it, or None for one that is used.
HOSTILE: dict[str, tuple[Callable[[Path], object], str | None]] = {}


def hostile(name: str, why: str | None) -> Callable[[Callable[[Path], object]], None]:
    return lambda make: HOSTILE.update({name: (make, why)})


@hostile("a link to a device without end", "is no regular file")
def _(folder: Path) -> None:
    (folder / "zero.png").symlink_to("/dev/zero")


@hostile("a named pipe", "is no regular file")
def _(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")


@hostile("a JPEG of empty segments", "JPEG has more than 10,000 segments")
def _(folder: Path) -> None:
    (folder / "segments.jpg").write_bytes(b"\xff\xd8" + b"\xff\xe0\0\x02" * (MANY // 4) + b"\xff\xd9")


@hostile("a JPEG of fill bytes", "its header has more than")
def _(folder: Path) -> None:
    (folder / "fill.jpg").write_bytes(b"\xff\xd8" + b"\xff" * MANY + b"\xff\xd9")


@hostile("a PNG of empty chunks", "PNG has more than 10,000 chunks")
def _(folder: Path) -> None:
    data = png()
    chunk = bytes(4) + b"zzZz" + struct.pack(">I", zlib.crc32(b"zzZz"))
    (folder / "chunks.png").write_bytes(data[:33] + chunk * (MANY // 12) + data[33:])


@hostile("eight PNGs of three gigabytes", "is larger than")
def _(folder: Path) -> None:
    for k in range(8):
        with (folder / f"long{k}.png").open("wb") as file:
            file.write(png())
            file.truncate(3 << 30)


@hostile("a GIF of empty comments", "GIF has more than 10,000 blocks")
def _(folder: Path) -> None:
    before, frame, _ = gif(9, 9)
    comment = b"\x21\xfe" + b"\x01x" * (MANY // 8) + b"\0"
    (folder / "comments.gif").write_bytes(before + comment + frame + b";")


@hostile("a GIF whose frame is larger than its canvas", "GIF of 65535 x 65535 pixels")
def _(folder: Path) -> None:
    before, frame, size = gif(9, 9)
    (folder / "frame.gif").write_bytes(before + frame[:size] + b"\xff" * 4 + frame[size + 4 :] + b";")


@hostile("a GIF of 1,200 frames of 2,893 x 2,893", None)
def _(folder: Path) -> None:
    before, frame, _ = gif(2893, 2893)
    (folder / "frames.gif").write_bytes(before + frame * 1200 + b";")


@hostile("a JPEG whose EXIF data lie", None)
def _(folder: Path) -> None:
    data = jpeg(9)
    at = data.index(b"MM\0*")
    (folder / "lies.jpg").write_bytes(data[: at + 8] + b"\xff\xff" + data[at + 10 :])
    (folder / "beyond.jpg").write_bytes(data[: at + 4] + b"\xff\xff\xff\xf0" + data[at + 8 :])


@hostile("a TIFF of more pixels than it has", "TIFF whose strips do not fill it")
def _(folder: Path) -> None:
    data = bytearray(saved(Image.new("L", (24, 20)), "TIFF"))
    at = data.index(struct.pack("<HHI", 257, 4, 1)) + 8
    data[at : at + 4] = struct.pack("<I", 7_000_000)
    (folder / "tall.tif").write_bytes(data)


def bomb(what: str) -> None:
    suffix, content, why = BOMBS[what]
    kept = cache(content)  # some take a second to make
    hostile(f"a {what}", why)(lambda folder: (folder / f"{what.replace(' ', '-')}{suffix}").write_bytes(kept()))


for _name in BOMBS:
    bomb(_name)


def data_set(arena: Arena, names: Sequence[str]) -> None:
    """Two classes of honest images, and these hostile ones in the first."""
    for k in range(8):
        arena.file(f"set/{'ab'[k % 2]}/{k}.png", png(20 + k))
    for name in names:
        HOSTILE[name][0](arena.folder / "set" / "a")


def bad(names: Sequence[str]) -> int:
    return sum(8 if name.startswith("eight") else 1 for name in names if HOSTILE[name][1] is not None)


def copied(name: str) -> bool:
    """Whether packing, which looks at no header, copies it."""
    return HOSTILE[name][1] not in ("is no regular file", "is larger than")


def add(label: str, names: Sequence[str], always: bool) -> None:
    """The cases of one data set: each command on it."""
    unreadable = f"; {bad(names)} unreadable" if bad(names) else "1 GIF|2 JPEG"
    is_packed = all(map(copied, names))
    is_small = [HOSTILE[name][1] for name in names] == [None]

    def case(command: str, code: int, says: str, arguments: Sequence[str], worker: bool = False) -> None:
        @CASES.add(f"{label}: {command}", code=code, says=says, worker=worker, always=always)
        def _(arena: Arena) -> Sequence[str]:
            data_set(arena, names)
            arena.file("a.yaml", CONFIG)
            return arguments

    case("inspect", 0, unreadable, ["data", "inspect", "set"])
    case(
        "pack",
        0 if is_packed else 65,
        "images, " if is_packed else "cannot be packed",
        ["data", "pack", "set", "to"],
    )
    scaled = ["data", "pack", "set", "to", "--size", "16"]
    case("scale", 0 if is_small else 65, "images, " if is_small else "cannot be packed", scaled)
    case("split", 0, "data.split=", ["data", "split", "set", "--folds", "2"])
    lost = f"{bad(names)} bad example" if bad(names) else "step 3 saved"
    case("train", 0, lost, ["train", "a.yaml"], worker=True)


add("all of them", list(HOSTILE), always=True)
for _name in HOSTILE:
    add(_name, [_name], always=False)


def test_command(case: Case, arena: Arena) -> None:
    arena.check(case)


def test_verification_names_each(arena: Arena) -> None:
    data_set(arena, list(HOSTILE))
    done = arena.run(["data", "verify", "set"], seconds=SECONDS, environment={})
    said = done.stdout.decode()
    assert done.returncode == 65, said + done.stderr.decode()
    assert f"{bad(list(HOSTILE))} bad" in said and "Traceback" not in said
    for _, why in HOSTILE.values():
        assert why is None or why in said


def test_prediction_has_the_reason_in_the_row_of_each(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set(arena, [])
    arena.file("a.yaml", CONFIG)
    monkeypatch.chdir(arena.folder)
    tl.train(tl.load_config("a.yaml", "steps=1"), here=True)
    data_set(arena, list(HOSTILE))
    arguments = ["predict", "runs/a", "set", "--out", "rows.csv"]
    done = arena.run(arguments, seconds=WORKER_SECONDS, environment={})
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0 and "Traceback" not in said, said
    rows = (arena.folder / "rows.csv").read_text().splitlines()[1:]
    assert len(rows) == 11 + bad(list(HOSTILE)) and f"{bad(list(HOSTILE))} of {len(rows)} files" in said
    for _, why in HOSTILE.values():
        assert why is None or any(why in row for row in rows)
