"""The input of the examples beside it: real abstracts as Parquet files, as a user has them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet

from st_keytokens.shared.document_files import read_documents

EXAMPLES = Path(__file__).resolve().parents[1]
MODEL = EXAMPLES / "tiny-embedder" / "embedder"
CORPUS = EXAMPLES / "data" / "arxiv-abstracts" / "corpus.jsonl"


def write_input(folder: Path, rows_per_file: int = 500) -> None:
    """The abstracts with the columns id and text, in a new directory."""
    folder.mkdir(parents=True)
    records = list(read_documents(CORPUS))
    for start in range(0, len(records), rows_per_file):
        part = records[start : start + rows_per_file]
        table = arrow.table({"id": [record.id for record in part], "text": [record.text for record in part]})
        parquet.write_table(table, folder / f"texts-{start // rows_per_file:05d}.parquet")
