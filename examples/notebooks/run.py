"""Runs the notebooks of this folder and writes what they show into them, ready to commit.

    pip install -e ".[dev]" -e integrations/langchain-keytokens
    python examples/notebooks/run.py [NOTEBOOK ...]

What goes to stderr, such as progress bars and warnings with paths, is left out, and so are execution times and the
plain text beside a picture or a table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook as it is after all of its cells have been run in its own folder, in a fresh kernel.

    Raises:
        CellExecutionError: If a cell fails; the message holds the cell and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", record_timing=False, coalesce_streams=True, resources=resources
    ).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # without the version that happened to run it
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if output.get("data", {}).keys() & {"text/html", "text/markdown", "image/png"}:
                    output["data"].pop("text/plain", None)  # a repr, which no front end shows beside the other
    nbformat.validate(notebook)
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: all of this folder")
    for path in parser.parse_args().notebooks or sorted(HERE.glob("*.ipynb")):
        text = json.dumps(run(path.resolve()), indent=1, ensure_ascii=False, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8", newline="\n")
        print(f"{path.name}: {len(text) / 1024:.0f} kB")


if __name__ == "__main__":
    main()
