from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

import langchain_keytokens

OPTIONAL = [
    ("KeyTokensSparseEmbeddings", "langchain_keytokens.qdrant", "langchain_qdrant", "qdrant"),
    ("KeyTokensMilvusSparseEmbeddings", "langchain_keytokens.milvus", "langchain_milvus", "milvus"),
]
PUBLIC = ("st_keytokens", "st_keytokens.retrieval", "st_keytokens.index", "st_keytokens.engines")


def imports(source):
    """The module and the name of each import, None for the name where the module itself is imported."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_only_public_names_of_st_keytokens_are_imported():
    files = Path(langchain_keytokens.__file__).parent.rglob("*.py")
    pairs = {pair for file in files for pair in imports(file.read_text(encoding="utf-8"))}
    ours = {(module, name) for module, name in pairs if module.split(".")[0] == "st_keytokens"}
    assert ("st_keytokens.retrieval", "Retriever") in ours
    private = {
        (module, name)
        for module, name in ours
        if module not in PUBLIC or name not in importlib.import_module(module).__all__
    }
    assert private == set()


def test_public_names():
    assert sorted(langchain_keytokens.__all__) == [
        "KeyTokensDocumentIndex",
        "KeyTokensEmbeddings",
        "KeyTokensHybridRetriever",
        "KeyTokensMilvusSparseEmbeddings",
        "KeyTokensRetriever",
        "KeyTokensSparseEmbeddings",
        "KeyTokensTranslator",
        "KeyTokensVectorStore",
        "__version__",
    ]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'KeyTokenRetriever'"):
        langchain_keytokens.KeyTokenRetriever  # noqa: B018


@pytest.mark.parametrize(("name", "module", "package", "extra"), OPTIONAL)
def test_a_missing_extra_is_an_import_error_with_the_pip_line(monkeypatch, name, module, package, extra):
    for loaded in [key for key in sys.modules if key == module or key.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)  # what Python does for a package that is not installed
    with pytest.raises(ImportError, match=rf'{name} needs .*: pip install "langchain-keytokens\[{extra}\]"'):
        getattr(langchain_keytokens, name)


@pytest.mark.parametrize(("name", "module", "package", "extra"), OPTIONAL)
def test_an_installed_extra_gives_the_class(name, module, package, extra):
    pytest.importorskip(package)
    assert getattr(langchain_keytokens, name) is getattr(importlib.import_module(module), name)
