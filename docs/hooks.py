"""Lets pages link to files of the repository by the same relative path on the site as where the sources are read."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "configs/*.yaml")


def on_files(files: Files, config: Any) -> Files:
    """The site also has what is linked to and lies outside of docs/pages."""
    for path in (path for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern))):
        files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """All of it lies in one folder there: `../../SECURITY.md` and `docs/pages/extending.md` lose their folders."""
    return re.sub(r"\]\((?:\.\./\.\./|docs/pages/)", "](", markdown)
