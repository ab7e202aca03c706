"""What MkDocs does not do itself: the changelog as a page, links out of ``docs/``, and docstrings in Markdown."""

from __future__ import annotations

import os
import posixpath
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import griffe
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)\s:#]+)((?:#[^)\s]*)?\))")
ROLE = re.compile(r":(?:attr|class|func|meth|mod):`([^`]+)`")
DOCTEST = re.compile(r"^( *)>>> .*\n?(?:^ *\S.*\n?)*", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds CHANGELOG.md, which lies beside ``docs/``."""
    content = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    content = LINK.sub(lambda link: link[1] + posixpath.relpath(link[2], "docs") + link[3], content)
    files.append(File.generated(config, "changelog.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to files outside of ``docs/`` to the repository. One that is not there stays, and is a warning."""
    folder = posixpath.dirname(page.file.src_uri)

    def lead(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, link[2]))
        if not (ROOT / path).exists() or (path.startswith("docs/") and not os.path.isdir(ROOT / path)):
            return link[0]
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{link[1]}{config.repo_url}/{kind}/main/{path}{link[3]}"

    return LINK.sub(lead, markdown)


class PlainDocstrings(griffe.Extension):
    """Makes Markdown of docstrings: doctests are code, and what a Sphinx role names is in code type."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each object."""
        if obj.docstring is not None:
            text = DOCTEST.sub(_as_code, obj.docstring.value)
            obj.docstring.value = ROLE.sub(lambda role: f"`{role[1].removeprefix('~')}`", text)


def _as_code(example: re.Match[str]) -> str:
    lines = textwrap.indent(textwrap.dedent(example[0]).strip("\n"), example[1])
    return f"{example[1]}```pycon\n{lines}\n{example[1]}```\n"
