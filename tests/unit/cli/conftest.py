"""The command line, called in this process, and what stands for `os.execv`."""

from pathlib import Path
from typing import NoReturn

import pytest

from tl_dist.cli.main import main


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


class Became(Exception):
    """In the place of os.execv."""


def become(run: Path) -> NoReturn:
    raise Became(run)


def ranks(size: int) -> list[dict[str, str]]:
    return [{"HOROVOD_RANK": str(rank), "HOROVOD_SIZE": str(size)} for rank in range(size)]
