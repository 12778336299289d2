"""No config file and no command line runs code, hangs, takes the machine's memory or ends in a traceback."""

import os
from collections.abc import Sequence

from tests.hostile.arena import Arena, Case, Cases

CASES = Cases()

CONFIG = """\
steps: 2
global_batch: 4
data: {name: digits}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: sgd, learning_rate: 0.1}
"""
SHOW = ("config", "show", "a.yaml")


def test_config(case: Case, arena: Arena) -> None:
    arena.check(case)


def text(name: str, content: str | bytes, *, code: int = 64, says: str, always: bool = True) -> None:
    """A case of one file that `config show` reads."""

    @CASES.add(name, code=code, says=says, always=always)
    def _(arena: Arena) -> Sequence[str]:
        arena.file("a.yaml", content)
        return SHOW


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 9)
)
DIGITS = "9" * 5000

text(
    "a tag that makes a Python object",
    "name: !!python/object/apply:os.system ['touch $RAN/yaml']\n",
    says="!!python",
)
text("an escape beyond Unicode", 'name: "\\UFFFFFFFF"\n', says="a.yaml:1: an escape .* too large")
text("a version of 5,000 digits", f"%YAML 1.{DIGITS}\n---\nsteps: 1\n", says="a.yaml:1: .* version")
text(
    "the home of nobody",
    CONFIG.replace("digits}", "csv, path: ~nosuchuser/x}"),
    says="a.yaml:3: data.path begins",
)
text(
    "weights in the home of nobody",
    CONFIG.replace("random", "~nosuchuser/x.safetensors"),
    says="a.yaml:4: model.weights begins",
    always=False,
)
text(
    "NUL in a path, by an escape",
    CONFIG.replace("digits}", 'csv, path: "a\\0b"}'),
    says=r"a.yaml:3: an unpr.* 'a\\x00b'",
)
text("half a surrogate pair", CONFIG.replace("digits}", 'csv, path: "a\\uDC80b"}'), says=r"'a\\udc80b'")
text("a title in a key, by an escape", '"\\e]0;PWNED\\a": 1\n', says=r"'\\x1b\]0;PWNED\\x07'")
text(
    "a C1 control in a value",
    'name: "\\x9b31m"\n',
    says=r"an unprintable character in '\\x9b31m'",
    always=False,
)
text("a control character as it is", b"name: \x1b[31m\n", says="a.yaml:1: an unprintable character")
text("500,000 values in a line", "a: [" + "1," * 499_000 + "1]", says="a.yaml:1: more than 10,000 values")
text(
    "300,000 keys",
    "".join(f"k{k:x}: 1\n" for k in range(90_000)),
    says="more than 10,000 values",
    always=False,
)
text("an alias bomb", BOMB, says="more than 10,000 values|more than 50 aliases")
text("100,000 brackets", "a: " + "[" * 100_000, says="nested deeper than 20 levels", always=False)
text("an alias to itself", "a: &a [*a]\n", says="nested deeper than 20 levels", always=False)
text("a whole number of 5,000 digits", CONFIG.replace("steps: 2", f"steps: {DIGITS}"), says='steps is "9999')
text("a learning rate beyond all numbers", CONFIG.replace("0.1", "1e999"), says="learning_rate", always=False)
text("a key of 900,000 characters", "? " + "x" * 900_000 + "\n: 1\n", says="is not a key of a config")
text("a name of 900,000 characters", CONFIG + "name: " + "x!" * 450_000 + "\n", says="a.yaml:6: name is")
text("a value of 900,000 characters", CONFIG.replace("tiny", "x" * 900_000), says="backbone", always=False)
text("a key twice", "steps: 1\nsteps: 2\n", says="steps is given twice", always=False)
text("a merge of another section", "a: &a {steps: 1}\n<<: *a\n", says="is not a key|not text", always=False)
text("UTF-16", "steps: 1\n".encode("utf-16"), says="byte 0 is not UTF-8", always=False)
text("nothing but a list", "[1, 2]\n", says="the file is a list", always=False)
text("140,000 directives", "%FOO a\n" * 140_000 + "---\nsteps: 1\n", says="a.yaml", always=False)
text(
    "a bidirectional control in a value that is shown",
    CONFIG.replace("digits}", 'csv, path: "/data/\u202egnp.exe"}'),
    code=0,
    says=r"/data/\\u202Egnp.exe",
)


@CASES.add("a file that is too large, alone in its folder", code=64, says=r"larger than .* Fix: give the path")
def _(arena: Arena) -> Sequence[str]:
    with arena.file("a.yaml").open("wb") as file:
        file.truncate(50 << 30)
    return SHOW


@CASES.add("a named pipe", code=64, says=r"a.yaml is not a regular file. Fix: give the path of a YAML file")
def _(arena: Arena) -> Sequence[str]:
    os.mkfifo(arena.folder / "a.yaml")
    return SHOW


@CASES.add("a link to a device without end", code=64, says="is not a regular file")
def _(arena: Arena) -> Sequence[str]:
    (arena.folder / "a.yaml").symlink_to("/dev/zero")
    return SHOW


@CASES.add("an override of 100,000 characters", code=64, says="override 'nosuchkey=xxx")
def _(arena: Arena) -> Sequence[str]:
    arena.file("a.yaml", CONFIG)
    return *SHOW, "nosuchkey=" + "x" * 100_000


@CASES.add("an override of brackets", code=64, says="nested deeper", always=False)
def _(arena: Arena) -> Sequence[str]:
    arena.file("a.yaml", CONFIG)
    return *SHOW, "data.augment=" + "[" * 100_000


@CASES.add(
    "variables that a launcher has left over",
    code=78,
    says=r"would be rank 5 of 2 \(HOROVOD_RANK\)",
    environment={"HOROVOD_RANK": "5", "HOROVOD_SIZE": "2"},
)
def _(arena: Arena) -> Sequence[str]:
    arena.file("a.yaml", CONFIG)
    return "train", "a.yaml"


@CASES.add(
    "a rendezvous that nobody listens at",
    code=76,
    says=r"rank 0 waits for an answer from the rendezvous at 127.0.0.1:1, at most 8 s",
    worker=True,
    environment={
        "HOROVOD_RANK": "0",
        "HOROVOD_SIZE": "2",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": "1",
    },
)
def _(arena: Arena) -> Sequence[str]:
    arena.file("a.yaml", CONFIG + "safety: {first_step_s: 8}\n")
    return "train", "a.yaml"
