"""Nothing in a name, a key or a record is obeyed by the terminal, and Ctrl-C is answered at once."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.hostile.arena import SECONDS, TL_DIST, Arena, Case, Cases
from tl_dist.config import file as config_file
from tl_dist.runs.directory import RunDir
from tl_dist.runs.lock.owner import encoded, this_process

CASES = Cases()

TITLE = "\x1b]0;PWNED\x07"  # renames the window
TITLE_SHOWN = r"\\x1b\]0;PWNED\\x07"
CONFIG = """\
steps: 2
global_batch: 4
data: {name: image_folder, path: images, image_size: 32, test_fraction: 0.5}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: sgd, learning_rate: 0.1}
"""


def test_what_is_shown(case: Case, arena: Arena) -> None:
    arena.check(case)


def on_a_terminal(
    arena: Arena, *arguments: str, interrupt_at: bytes | None = None
) -> tuple[int, str, float, list[psutil.Process]]:
    """Exit code, output, seconds that it took, or took after Ctrl-C, and what is left of its session.

    Ctrl-C is typed a second after the output holds `interrupt_at`: the terminal sends SIGINT to all processes of the
    command.
    """
    ours, theirs = pty.openpty()

    def begin() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests in the background ignores it
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    environment = arena.environment | {"TERM": "xterm"}
    command = subprocess.Popen(
        [TL_DIST, *arguments], cwd=arena.folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=begin,
    )  # fmt: skip
    os.close(theirs)
    output, began = b"", time.monotonic()
    try:
        while command.poll() is None and time.monotonic() - began < SECONDS:
            if select.select([ours], [], [], 0.05)[0]:
                with suppress(OSError):  # the other end was closed
                    output += os.read(ours, 1 << 16)
            if interrupt_at is not None and interrupt_at in output:
                time.sleep(1)
                os.write(ours, b"\x03")
                interrupt_at, began = None, time.monotonic()
        took = time.monotonic() - began
        left = [one for one in psutil.process_iter() if in_session(one, command.pid)]
        psutil.wait_procs(left, timeout=5)
        return command.wait(1), output.decode(), took, [one for one in left if one.is_running()]
    finally:
        command.kill()
        os.close(ours)


def in_session(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session and process.pid != session
    except ProcessLookupError:
        return False


@pytest.mark.timing
def test_ctrl_c_ends_a_pool_at_once_and_says_so(arena: Arena) -> None:
    """`data verify` went on for 18 s, and said nothing."""
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    for label in "ab":
        arena.file(f"images/{label}/0.png")
    Image.fromarray(noise).save(arena.folder / "images/a/0.png", "JPEG")
    for k in range(1, 300):
        os.link(arena.folder / "images/a/0.png", arena.folder / f"images/a/{k}.png")
    code, output, seconds, left = on_a_terminal(
        arena, "data", "verify", "images", "--workers", "2", interrupt_at=b"decoding"
    )
    assert code == 130, output
    assert re.sub(r"\x1b\[[0-9;]*m", "", output).count("error: interrupted. Fix: run the same command again.") == 1
    assert "Traceback" not in output
    assert seconds < 4
    assert not left


def test_a_status_line_is_no_markup(arena: Arena) -> None:
    code, output, *_ = on_a_terminal(arena, "eval", f"x/[/red]{TITLE}")
    assert code == 64 and "MarkupError" not in output
    assert r"evaluating x/[/red]\x1b]0;PWNED\x07" in output
    assert "\x07" not in output


def png(shade: int = 0, side: int = 8) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(target, "PNG")
    return target.getvalue()


def folder(arena: Arena, *classes: str, each: int = 2) -> str:
    """A folder of images with these classes; no two images are alike."""
    for label, name in enumerate(classes):
        for k in range(each):
            arena.file(f"images/{name}/{k}.png", png(label * 10 + k))
    return "images"


def inspected(name: str, *classes: str, says: str, always: bool = True) -> None:
    """A case of a folder with these classes that `data inspect` reads."""

    @CASES.add(name, code=0, says=says, always=always)
    def _(arena: Arena) -> Sequence[str]:
        return "data", "inspect", folder(arena, "a", *classes)


inspected("a class that renames the window", TITLE, says=TITLE_SHOWN)
inspected("a class with C1 controls", "\x9b31mred", says=r"\\x9b31mred")
inspected("a class in a bidirectional override", "\u202egnp.exe", says=r"\\u202egnp\.exe")
inspected("a class of two lines", "b\nerror: c", says=r"b\\nerror: c")
inspected("a class that is not UTF-8", os.fsdecode(b"caf\xe9"), says=r"caf\\udce9")
inspected("a class that is markup", "[red]b[", "[bold]", says=r"\[red\]b\[ .*\n.*\[bold\]|\[bold\].*\n.*\[red\]b\[")
inspected("honest names", "Kätzchen", "写真", "👩‍🔬", ":smile:", says=r"(?s)Kätzchen.*写真|写真.*Kätzchen")


@CASES.add("labels of a table", code=0, says=TITLE_SHOWN)
def _(arena: Arena) -> Sequence[str]:
    rows = [f'{k}.png,"{label}"' for k, label in enumerate([TITLE, TITLE, "\u2066b", "\u2066b"])]
    for k in range(4):
        arena.file(f"{k}.png", png(k))
    arena.file("x.csv", "path,label\n" + "\n".join(rows) + "\n")
    return "data", "split", "x.csv", "--test", "0.5"


@CASES.add("a column of a table", code=65, says=r"\\x1b\]0;")
def _(arena: Arena) -> Sequence[str]:
    arena.file("x.csv", f"file,{TITLE}\na.png,1\n")
    return "data", "inspect", "x.csv"


@CASES.add("files that are listed", code=0, says=rf"{TITLE_SHOWN}\.png")
def _(arena: Arena) -> Sequence[str]:
    folder(arena, "a", "b")
    for name in (TITLE, "\x9bJ"):
        arena.file(f"images/a/{name}.png", png(200))
    return "data", "verify", "images"


@CASES.add("the name of a run", code=0, says=TITLE_SHOWN)
def _(arena: Arena) -> Sequence[str]:
    arena.file(f"runs/{TITLE}/config.yaml", CONFIG)
    return ("runs",)


@CASES.add("a directory that is markup", code=0, says=r"x\[/red\]: 4 images")
def _(arena: Arena) -> Sequence[str]:
    return "data", "pack", folder(arena, "a", "b"), "x[/red]"


@CASES.add("a run that is markup", code=64, says=r"x/\[/red\]x")
def _(arena: Arena) -> Sequence[str]:
    return "eval", "x/[/red]x"


@CASES.add("a path of a config", code=64, says=rf"{TITLE_SHOWN}\.yaml does not exist")
def _(arena: Arena) -> Sequence[str]:
    return "config", "show", f"{TITLE}.yaml"


@CASES.add("a neighbour that a message proposes", code=64, says=r"Fix: use 'conf\\x1b\[31mig\.yaml'")
def _(arena: Arena) -> Sequence[str]:
    arena.file("conf\x1b[31mig.yaml", CONFIG)
    return "config", "show", "config.yaml"


@CASES.add("a key with a bidirectional control", code=64, says=r"a\\u202eb is not a key")
def _(arena: Arena) -> Sequence[str]:
    arena.file("a.yaml", CONFIG + "a\u202eb: 1\n")
    return "config", "show", "a.yaml"


@CASES.add("an override", code=64, says=rf"override '{TITLE_SHOWN}=1'")
def _(arena: Arena) -> Sequence[str]:
    arena.file("a.yaml", CONFIG)
    return "config", "show", "a.yaml", f"{TITLE}=1"


@CASES.add("a command that there is none of", code=64, says=TITLE_SHOWN)
def _(arena: Arena) -> Sequence[str]:
    return (TITLE,)


@CASES.add("an option that there is none of", code=64, says=r"\\x1b\[31m")
def _(arena: Arena) -> Sequence[str]:
    return "runs", "--\x1b[31m"


@CASES.add("a data set that is not there", code=65, says=TITLE_SHOWN)
def _(arena: Arena) -> Sequence[str]:
    return "data", "inspect", f"/nowhere/{TITLE}"


@CASES.add("a data set whose name is not UTF-8", code=65, says=r"caf\\udce9")
def _(arena: Arena) -> Sequence[str]:
    return "data", "inspect", os.fsdecode(b"caf\xe9")


@CASES.add("runs that are not there", code=65, says=TITLE_SHOWN, always=False)
def _(arena: Arena) -> Sequence[str]:
    return "compare", TITLE, "b"


@CASES.add("a root that is not there", code=64, says=TITLE_SHOWN, always=False)
def _(arena: Arena) -> Sequence[str]:
    return "runs", TITLE


@CASES.add("facts of a feature set", code=0, says=r"\\x1b\]0;")
def _(arena: Arena) -> Sequence[str]:
    facts = {"backbone": TITLE, "cut": "\u202ecut", "image_size": 8}
    shard = {"file": "shard-0000.npy", "rows": 1, "sha256": "0" * 64}
    manifest = {"facts": facts, "shape": [4], "dtype": "float32", "computed": "float32", "shards": [shard]}
    arena.file(f"runs/features/{'0' * 32}/manifest.json", json.dumps(manifest))
    return "features", "list"


@CASES.add("the environment", code=0, says=TITLE_SHOWN, environment={"CUDA_VISIBLE_DEVICES": TITLE}, always=False)
def _(arena: Arena) -> Sequence[str]:
    return ("env",)


@CASES.add("tensors of a file of weights", code=78, says=r"\\x1b\]0;", worker=True)
def _(arena: Arena) -> Sequence[str]:
    from safetensors.numpy import save

    arena.file("x.safetensors", save({f"{TITLE}/kernel": np.zeros((3, 3), np.float32)}))
    arena.file("a.yaml", CONFIG.replace("random", "x.safetensors"))
    folder(arena, "a", "b")
    return "train", "a.yaml"


@CASES.add("classes of a whole run", code=0, says=TITLE_SHOWN, worker=True)
def _(arena: Arena) -> Sequence[str]:
    folder(arena, TITLE, r"$\frac$", os.fsdecode(b"caf\xe9"), "\u202e[/red]", each=4)
    arena.file("a.yaml", CONFIG)
    return "train", "a.yaml"


@CASES.add("the owner of a run", code=73, says=rf"run 'a' is in use by {TITLE_SHOWN}x")
def _(arena: Arena) -> Sequence[str]:
    arena.file("a.yaml", CONFIG)
    folder(arena, "a", "b")
    cfg = config_file.load(arena.folder / "a.yaml", [f"data.path={arena.folder}/images"])
    RunDir.create(arena.folder / "runs", cfg)
    owner = encoded(this_process(f"{TITLE}x", None, 5.0))  # of the tests, which are alive
    arena.file("runs/a/lock/owner-00000001.json", owner).chmod(0o600)
    return "train", "a.yaml"
