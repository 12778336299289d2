"""Turn an exception that ends a command into one line on standard error and an exit code."""

import os
import sys
import tempfile
import traceback
from contextlib import suppress

import typer

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.terminal.console import Console, plain

INTERRUPTED = 130  # 128 + SIGINT


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
