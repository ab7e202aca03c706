"""The retrievers that are compared, each asked through its own framework's calls."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from langchain_classic.retrievers import EnsembleRetriever
from langchain_core.documents import Document
from langchain_keytokens import KeyTokensEmbeddings, KeyTokensHybridRetriever, KeyTokensRetriever
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from llama_index.retrievers import keytokens
from llama_index.retrievers.bm25 import BM25Retriever as LlamaIndexBM25

from st_keytokens import KeyTokenEncoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # langchain-community says that it is being sunset
    from langchain_community.retrievers import BM25Retriever as LangChainBM25
    from langchain_community.vectorstores import FAISS

DEPTH = 100
REFERENCE = ("LlamaIndex", "BM25Retriever")  # what the times of queries are compared with


class Missing(Exception):
    """The framework has no such call."""


def call(owner: Any, name: str, *arguments: Any, **settings: Any) -> Any:
    """Calls a method.

    Raises:
        Missing: If there is none, or it knows no such argument.
    """
    if not hasattr(owner, name):
        raise Missing(f"{owner.__name__ if isinstance(owner, type) else type(owner).__name__} has no {name}")
    try:
        return getattr(owner, name)(*arguments, **settings)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise Missing(str(error)) from error
        raise


@dataclass(frozen=True)
class Passage:
    """A text to index."""

    id: str
    text: str
    group: str = "a"


@dataclass(frozen=True)
class Found:
    """A hit in the same words for both frameworks; ``details`` is what came with it besides text and score."""

    id: str
    group: str | None
    score: float | None
    details: dict[str, Any]


@dataclass
class Contender(ABC):
    """A way to make a retriever, and the calls of its framework."""

    name: str
    make: Callable[..., Any]
    encoder: KeyTokenEncoder | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # other than the defaults, for the probe that keeps them
    explaining: dict[str, Any] = field(default_factory=dict)  # what makes hits say why, where something does
    shares: Contender | None = None  # whose index is opened with this encoder, in place of one of its own
    framework = ""

    @abstractmethod
    def search(self, retriever: Any, query: str) -> list[Found]: ...

    @abstractmethod
    async def asearch(self, retriever: Any, query: str) -> list[Found]: ...

    @abstractmethod
    def add(self, retriever: Any, passage: Passage) -> None: ...

    @abstractmethod
    def delete(self, retriever: Any, id: str) -> None: ...

    @abstractmethod
    def filtered(self, retriever: Any, query: str, group: str) -> list[Found]: ...

    @abstractmethod
    def save(self, retriever: Any, folder: Path) -> None: ...

    @abstractmethod
    def load(self, kind: type, folder: Path) -> Any: ...

    @contextmanager
    def held(self, retriever: Any, hold: Callable[[], None]) -> Iterator[None]:
        """Calls a function in the middle of every search: in each forward pass, and wherever words are made."""
        sides = retriever.retrievers if isinstance(retriever, EnsembleRetriever) else [retriever]
        for side in sides:
            if isinstance(side, LangChainBM25):
                words = side.preprocess_func
                side.preprocess_func = lambda text, words=words: (hold(), words(text))[1]
            elif isinstance(side, LlamaIndexBM25):
                side.stemmer = _HeldStemmer(side.stemmer, hold)
        handles = []
        if self.encoder is not None:
            handles = [self.encoder.model[0].register_forward_pre_hook(lambda module, inputs: hold())]
        yield
        for handle in handles:
            handle.remove()


class _HeldStemmer:
    def __init__(self, stemmer: Any, hold: Callable[[], None]) -> None:
        self.stemmer, self.hold = stemmer, hold

    def stemWords(self, words: list[str]) -> list[str]:  # PyStemmer's name
        self.hold()
        return self.stemmer.stemWords(words)


class LangChain(Contender):
    framework = "LangChain"

    def search(self, retriever: Any, query: str) -> list[Found]:
        return _documents(retriever.invoke(query))

    async def asearch(self, retriever: Any, query: str) -> list[Found]:
        return _documents(await retriever.ainvoke(query))

    def add(self, retriever: Any, passage: Passage) -> None:
        call(retriever, "add_documents", as_documents([passage]))

    def delete(self, retriever: Any, id: str) -> None:
        call(retriever, "delete", [id])

    def filtered(self, retriever: Any, query: str, group: str) -> list[Found]:
        return _documents(call(retriever, "invoke", query, filter={"group": group}))

    def save(self, retriever: Any, folder: Path) -> None:
        call(retriever, "save_local", folder)

    def load(self, kind: type, folder: Path) -> Any:
        return call(kind, "load_local", folder, self.encoder)


class LlamaIndex(Contender):
    framework = "LlamaIndex"

    def search(self, retriever: Any, query: str) -> list[Found]:
        return _nodes(retriever.retrieve(query))

    async def asearch(self, retriever: Any, query: str) -> list[Found]:
        return _nodes(await retriever.aretrieve(query))

    def add(self, retriever: Any, passage: Passage) -> None:
        call(retriever, "add_nodes", as_nodes([passage]))

    def delete(self, retriever: Any, id: str) -> None:
        call(retriever, "delete_nodes", [id])

    def filtered(self, retriever: Any, query: str, group: str) -> list[Found]:
        filters = MetadataFilters(filters=[MetadataFilter(key="group", value=group)])
        return _nodes(call(retriever, "retrieve", query, filters=filters))

    def save(self, retriever: Any, folder: Path) -> None:
        call(retriever, "persist", str(folder))

    def load(self, kind: type, folder: Path) -> Any:
        arguments = () if self.encoder is None else (self.encoder,)
        return call(kind, "from_persist_dir", str(folder), *arguments)


def as_documents(passages: Sequence[Passage]) -> list[Document]:
    return [Document(id=p.id, page_content=p.text, metadata={"group": p.group}) for p in passages]


def as_nodes(passages: Sequence[Passage]) -> list[TextNode]:
    return [
        TextNode(id_=p.id, text=p.text, metadata={"group": p.group}, excluded_embed_metadata_keys=["group"])
        for p in passages
    ]


def _documents(documents: Sequence[Document]) -> list[Found]:
    return [Found(d.id, d.metadata.get("group"), d.metadata.get("score"), dict(d.metadata)) for d in documents]


def _nodes(hits: Sequence[Any]) -> list[Found]:
    return [Found(h.node.node_id, h.node.metadata.get("group"), h.score, dict(vars(h))) for h in hits]


def lower_cased_words(text: str) -> list[str]:
    """What the documentation of rank-bm25 does, and punctuation off."""
    return re.findall(r"\w+", text.lower())


def _langchain_bm25(passages: Sequence[Passage], k: int = 10, **settings: Any) -> LangChainBM25:
    return LangChainBM25.from_documents(as_documents(passages), k=k, **settings)


def _ensemble(encoder: KeyTokenEncoder, passages: Sequence[Passage], k: int = 10) -> EnsembleRetriever:
    """BM25 and dense, each as deep as ours; it returns all that both found, whatever ``k``."""
    depth = min(DEPTH, len(passages))
    store = FAISS.from_documents(as_documents(passages), KeyTokensEmbeddings(encoder), normalize_L2=True)
    words = _langchain_bm25(passages, depth, preprocess_func=lower_cased_words)
    return EnsembleRetriever(retrievers=[words, store.as_retriever(search_kwargs={"k": depth})], weights=[0.5, 0.5])


def contenders(new_encoder: Callable[..., KeyTokenEncoder]) -> list[Contender]:
    """All of them, each with an encoder of its own, so that none finds another's embeddings in a cache."""
    made: list[Contender] = []

    def ours(
        side: type[Contender], name: str, kind: type, settings: dict[str, Any], explaining: dict[str, Any]
    ) -> None:
        def make(encoder: KeyTokenEncoder, passages: Sequence[Passage], k: int = 10, **given: Any) -> Any:
            if side is LangChain:
                return kind.from_documents(as_documents(passages), encoder, k=k, score_key="score", **given)
            return kind(encoder, as_nodes(passages), similarity_top_k=k, **given)

        for query, label in (("encode", name), ("lookup", f"{name}, lookup")):
            encoder = new_encoder(query=query)
            shares = made[-1] if query == "lookup" else None
            made.append(side(label, partial(make, encoder), encoder, settings, explaining, shares))

    sparse, hybrid = "KeyTokensRetriever", "KeyTokensHybridRetriever"
    weights = {"weights": {"dense": 1.0, "sparse": 2.0}}
    group = {"filter": {"group": "a"}}
    ours(LangChain, sparse, KeyTokensRetriever, group, {"matches_key": "matches"})
    ours(LangChain, hybrid, KeyTokensHybridRetriever, {**group, **weights}, {"matches_key": "matches"})
    group = {"filters": MetadataFilters(filters=[MetadataFilter(key="group", value="a")])}
    ours(LlamaIndex, sparse, keytokens.KeyTokensRetriever, group, {"explain": True})
    ours(LlamaIndex, hybrid, keytokens.KeyTokensHybridRetriever, {**group, **weights}, {"explain": True})
    made += [
        LangChain("BM25Retriever", _langchain_bm25, settings={"preprocess_func": str.split}),
        LangChain(
            "BM25Retriever, lower-cased words",
            lambda passages, k=10, **settings: _langchain_bm25(
                passages, k, **{"preprocess_func": lower_cased_words, **settings}
            ),
        ),
    ]
    encoder = new_encoder()
    made.append(
        LangChain(
            "EnsembleRetriever: BM25Retriever, lower-cased words + dense, FAISS",
            partial(_ensemble, encoder),
            encoder,
        )
    )
    made.append(
        LlamaIndex(
            REFERENCE[1],
            lambda passages, k=10, **settings: LlamaIndexBM25.from_defaults(
                nodes=as_nodes(passages), similarity_top_k=k, **settings
            ),
            settings={"skip_stemming": True},
        )
    )
    return made
