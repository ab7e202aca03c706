"""What MkDocs does not do itself: the changelog and the notebooks as pages, links out of ``docs/``, docstrings."""

from __future__ import annotations

import base64
import json
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
NOTEBOOKS = "examples/notebooks/"
LINK = re.compile(r"(\]\()([^)\s:#]+)((?:#[^)\s]*)?\))")
ROLE = re.compile(r":(?:attr|class|func|meth|mod):`([^`]+)`")
DOCTEST = re.compile(r"^( *)>>> .*\n?(?:^ *\S.*\n?)*", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds CHANGELOG.md, which lies beside ``docs/``, and a page for each notebook with its pictures."""
    content = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    content = LINK.sub(lambda link: link[1] + posixpath.relpath(link[2], "docs") + link[3], content)
    files.append(File.generated(config, "changelog.md", content=content))
    for path in sorted((ROOT / NOTEBOOKS).glob("*.ipynb")):
        content, pictures = notebook_page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=content))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to files outside of ``docs/`` to the repository, and to a notebook's page if it has one.

    A link to what is not there stays, and is a warning.
    """
    folder = posixpath.dirname(page.file.src_uri)

    def lead(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, link[2]))
        if not (ROOT / path).exists() or (path.startswith("docs/") and not os.path.isdir(ROOT / path)):
            return link[0]
        if path.startswith(NOTEBOOKS) and path.endswith(".ipynb") and not folder.startswith("notebooks"):
            return f"{link[1]}{posixpath.relpath(f'notebooks/{Path(path).stem}.md', folder or '.')}{link[3]}"
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{link[1]}{config.repo_url}/{kind}/main/{path}{link[3]}"

    return LINK.sub(lead, markdown)


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook with what it shows, as Markdown, and its pictures by file name."""
    blocks: list[str] = []
    pictures: dict[str, bytes] = {}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        blocks.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for place, output in enumerate(cell.get("outputs", [])):
            data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
            if picture := data.get("image/png"):
                name = f"{path.stem}-{number}-{place}.png"
                pictures[name] = base64.b64decode(picture)
                blocks.append(f"![What the cell above draws]({name})")
            elif html := data.get("text/html"):
                blocks.append(re.sub(r"\n\s*\n", "\n", f"<div>\n{html.strip()}\n</div>"))
            elif output["output_type"] == "stream":
                blocks.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            else:
                blocks.append(data["text/markdown"].strip())
    title, rest = blocks[0].split("\n", 1)
    notebook = f"*This page is a notebook: [{path.name}](../../{NOTEBOOKS}{path.name}).*"
    return "\n\n".join([title, notebook, rest.strip(), *blocks[1:], ""]), pictures


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
