"""A collection small enough to know by heart, over the sentences of tests/small_models.py."""

from __future__ import annotations

import copy

from small_models import SENTENCES

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.evaluation.collections import Collection
from st_keytokens.shared.document_files import Record

QUERIES = {
    "wolves": "Where do wolves hunt deer?",
    "bread": "flour and yeast for bread",
    "stars": "gas and dust of stars",
    "law": "a law about taxes",
    "nothing": "\u3000",
}


def build_collection() -> Collection:
    """Fifty documents, the last one without text; five queries, the last one without text."""
    documents = [Record(f"d{i:02}", text) for i, text in enumerate(SENTENCES[:49])] + [Record("d49", "")]

    def find(word: str) -> str:
        return next(record.id for record in documents if word in record.text)

    judgements = [
        ("wolves", find("Wolves"), 2),
        ("wolves", find("Whales"), 1),
        ("bread", find("Bread"), 1),
        ("stars", find("Stars"), 1),
        ("stars", "absent", 1),
        ("law", find("Parliament"), 1),
        ("nothing", "d49", 1),
    ]
    return Collection.build("tiny", documents, [Record(*query) for query in QUERIES.items()], judgements)


def build_encoder(embedder, **settings) -> KeyTokenEncoder:
    """An encoder of few terms on a copy of an embedder."""
    return KeyTokenEncoder(copy.deepcopy(embedder), max_active_dims=20, query_max_active_dims=6, **settings)


def count_passes(model) -> list[int]:
    """Grows by the batch size of every forward pass of the language model."""
    batches: list[int] = []
    embeddings = model[0].auto_model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    return batches


def tables_of(text: str) -> list[dict[str, dict[str, str]]]:
    """The tables of a Markdown text: for each its rows by their first cell, as cells by column."""
    tables: list[dict[str, dict[str, str]]] = []
    header: list[str] | None = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if not cells:
            header = None
        elif header is None:
            header = cells
            tables.append({})
        elif cells[0] != "---":
            tables[-1][cells[0]] = dict(zip(header, cells, strict=True))
    return tables
