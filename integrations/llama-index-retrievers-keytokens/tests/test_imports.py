from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import get_type_hints

import pytest

pytest.importorskip("llama_index.core")

from llama_index.retrievers import keytokens
from llama_index.retrievers.keytokens import KeyTokensHybridRetriever, KeyTokensRetriever
from llama_index.retrievers.keytokens.hybrid_retriever import HybridArguments
from llama_index.retrievers.keytokens.retriever import LiveArguments, RetrieverArguments

PUBLIC = ("st_keytokens", "st_keytokens.retrieval", "st_keytokens.index", "st_keytokens.engines")


def imports(source):
    """The module and the name of each import, None for the name where the module itself is imported."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_public_names():
    assert sorted(keytokens.__all__) == [
        "KeyTokensEmbedding",
        "KeyTokensHybridRetriever",
        "KeyTokensNodeWithScore",
        "KeyTokensQueryBundle",
        "KeyTokensRetriever",
        "KeyTokensSparseEmbedding",
        "KeyTokensVectorStore",
        "qdrant_sparse_functions",
    ]


def test_only_public_names_of_st_keytokens_are_imported():
    files = Path(keytokens.__file__).parent.rglob("*.py")
    pairs = {pair for file in files for pair in imports(file.read_text(encoding="utf-8"))}
    ours = {(module, name) for module, name in pairs if module.split(".")[0] == "st_keytokens"}
    assert ("st_keytokens.retrieval", "Retriever") in ours
    private = {
        (module, name)
        for module, name in ours
        if module not in PUBLIC or name not in importlib.import_module(module).__all__
    }
    assert private == set()


@pytest.mark.parametrize(
    ("kind", "arguments", "passed_on"),
    [
        (KeyTokensRetriever, RetrieverArguments, LiveArguments),
        (KeyTokensHybridRetriever, HybridArguments, RetrieverArguments),
    ],
)
def test_the_typed_arguments_are_those_of_the_constructor(kind, arguments, passed_on):
    hints = get_type_hints(kind.__init__)
    own = [name for name, one in inspect.signature(kind).parameters.items() if one.kind is one.KEYWORD_ONLY]
    assert {name: hints[name] for name in own} | get_type_hints(passed_on) == get_type_hints(arguments)
