"""`tl-dist config VERB`: show a config, or every key that a config may hold."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tl_dist.cli.arguments import ConfigFile, Overrides
from tl_dist.refusal import ExitCode

config_app = typer.Typer(help="Show a config, or every key that a config may hold.", no_args_is_help=True)


@config_app.command()
def show(config: ConfigFile, overrides: Overrides = None) -> int:
    """Print a config with every default filled in. Imports no package that it names."""
    from tl_dist.config.file import dump
    from tl_dist.launcher.train import Request

    print(dump(Request(config, overrides or ()).load(imports=False)), end="")
    return ExitCode.DONE


@config_app.command()
def schema(
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON schema, for editors")] = False,
) -> int:
    """List every key that a config may hold, with its type, default and meaning."""
    from tl_dist.config import file as config_file
    from tl_dist.terminal.console import Console
    from tl_dist.terminal.tables import show_schema

    if as_json:
        print(json.dumps(config_file.schema(), indent=1))
    else:
        show_schema(Console())
    return ExitCode.DONE
