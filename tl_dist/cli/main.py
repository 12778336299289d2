"""The entry point, which loads all commands and turns errors into exit codes; `tl-dist doctor` and `env`.

Each command imports what it needs, so that `--help` answers at once.
"""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import typer

from tl_dist.cli.app import AsJson, app
from tl_dist.files.process import elsewhere
from tl_dist.refusal import ExitCode, Refusal, printable
from tl_dist.terminal.console import Console, plain

INTERRUPTED = 130  # 128 + SIGINT

for _module in ("train", "use", "trust", "choose", "data"):  # the order of the help
    import_module(f"tl_dist.cli.{_module}")
add_command = partial(app.command, rich_help_panel="Machine")


@add_command()
def doctor() -> int:
    """Check this installation, including a sum over two workers. Exit with 1 if something is broken."""
    from tl_dist.tools.doctor.command import examine

    console = Console()
    healthy = True
    for finding in examine():
        style = "" if finding.ok else "dim" if finding.ok is None else "bold red"
        console.say(str(finding), style=style)
        healthy = healthy and finding.ok is not False
    return 0 if healthy else 1


@add_command()
def env(as_json: AsJson = False) -> None:
    """Describe this machine and installation for a bug report."""
    from tl_dist.tools.doctor.environment import as_text, collect

    facts = collect()
    print(json.dumps(facts, indent=1) if as_json else printable(as_text(facts), lines=True))


@add_command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
def install_horovod(ctx: typer.Context) -> None:
    """Build Horovod for the TensorFlow that is installed here, and install it. --help lists its options."""
    from tl_dist.files.packages import shipped

    script = str(shipped("launch/install_horovod"))
    os.execv(sys.executable, [sys.executable, script, "--python", sys.executable, *ctx.args])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Any error is one line on standard error."""
    if arguments is None:
        _import_nothing_from_here()
    try:
        command = typer.main.get_command(app)
        code = int(command.main(arguments, prog_name="tl-dist", standalone_mode=False) or 0)
        if code == INTERRUPTED:  # Typer has answered Ctrl-C by it, and by nothing else
            raise KeyboardInterrupt
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains once more on exit
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return complain(error)


def _import_nothing_from_here() -> None:
    """Keep the working directory off every search path, also of the programs that this process starts.

    It may hold a random.py, a libz.so, or an ssh. A checkout that `python -m` has found there is named by its path.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    here = {os.path.abspath(entry) for entry in entries if not os.path.isabs(entry)}
    package = str(Path(__file__).parents[2])
    if sys.path[0] == package:
        os.environ["PYTHONPATH"] = os.pathsep.join([package, *entries])
    if "PYTHONPATH" in os.environ:
        sys.path[:] = [entry for entry in sys.path if entry == package or entry not in here]
    os.environ.update(elsewhere(os.environ))
    os.environ["PYTHONSAFEPATH"] = "1"


def complain(error: BaseException) -> int:
    """Print what went wrong and how to fix it; return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":  # the help of a command that was given nothing
        sys.stdout.write(f"{_message(error)}\n")
        return ExitCode.USAGE
    refusal = _as_refusal(error)
    line = plain(f"error: {refusal}")
    line.stylize("bold red", 0, len("error:"))
    Console(stderr=True).print(line, soft_wrap=True)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt | typer.Abort) else refusal.code


def _as_refusal(error: BaseException) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Refusal("interrupted.", fix="run the same command again.", code=ExitCode.REQUEUE)
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        fix = f"see {context.command_path if context else 'tl-dist'} --help."
        what = _message(error).strip().rstrip(".?").replace(" Value error, ", " ")  # Pydantic's word for ours
        return Refusal(f"{what}.", fix=fix, code=ExitCode.USAGE)
    from tl_dist.files.atomic import of_the_machine

    if (refusal := of_the_machine(error)) is not None:
        return refusal
    fix = f"report it, with {_traceback_file(error)} and 'tl-dist env'."
    return Refusal(f"{type(error).__name__}: {error}", fix=fix, code=ExitCode.INTERNAL)


def _message(error: BaseException) -> str:
    return str(getattr(error, "format_message", lambda: error)())


def _traceback_file(error: BaseException) -> str:
    with suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="tl-dist-traceback-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
        return path
    return "the command line"


if __name__ == "__main__":
    sys.exit(main())
