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

import numpy as np
import Stemmer
from bm25s.stopwords import STOPWORDS_EN
from langchain_classic.retrievers import EnsembleRetriever
from langchain_core.documents import Document
from langchain_keytokens import KeyTokensEmbeddings, KeyTokensHybridRetriever, KeyTokensRetriever
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from llama_index.retrievers import keytokens
from llama_index.retrievers.bm25 import BM25Retriever as LlamaIndexBM25

from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import Retriever

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
    more: dict[str, Any] = field(default_factory=dict)  # metadata beside the group

    @property
    def metadata(self) -> dict[str, Any]:
        return {"group": self.group, **self.more}


@dataclass(frozen=True)
class Found:
    """A hit in the same words for both frameworks; ``details`` is what came with it besides text and score."""

    id: str
    text: str
    group: str | None
    score: float | None
    details: dict[str, Any]


@dataclass
class Contender(ABC):
    """A way to make a retriever, and the calls of its framework."""

    name: str
    make: Callable[..., Any]  # of passages
    make_known: Callable[..., Any] | None = None  # of passages and their dense vectors; None: it knows no vectors
    make_over: Callable[..., Any] | None = None  # of an index or a store of the framework, where it takes one
    encoder: KeyTokenEncoder | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # other than the defaults, for the probe that keeps them
    explaining: dict[str, Any] = field(default_factory=dict)  # what makes hits say why, where something does
    shares: Contender | None = None  # whose index is opened with this encoder, in place of one of its own
    framework = ""

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("KeyTokens")

    def known(self, passages: Sequence[Passage], vectors: np.ndarray, k: int = 10) -> Any:
        """A retriever over documents whose dense vectors are known."""
        return self.make(passages, k=k) if self.make_known is None else self.make_known(passages, vectors, k)

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
        for side in sides_of(retriever):
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


def sides_of(retriever: Any) -> list[Any]:
    """The retrievers that one of the frameworks fuses; the retriever itself where it fuses none."""
    if isinstance(retriever, EnsembleRetriever):
        return list(retriever.retrievers)
    return list(retriever._retrievers) if isinstance(retriever, QueryFusionRetriever) else [retriever]


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
    return [Document(id=p.id, page_content=p.text, metadata=p.metadata) for p in passages]


def as_nodes(passages: Sequence[Passage], vectors: np.ndarray | None = None) -> list[TextNode]:
    rows = [None] * len(passages) if vectors is None else vectors.tolist()
    return [
        TextNode(id_=p.id, text=p.text, metadata=p.metadata, embedding=row, excluded_embed_metadata_keys=[*p.metadata])
        for p, row in zip(passages, rows, strict=True)
    ]


def _documents(documents: Sequence[Document]) -> list[Found]:
    return [
        Found(d.id, d.page_content, d.metadata.get("group"), d.metadata.get("score"), dict(d.metadata))
        for d in documents
    ]


def _nodes(hits: Sequence[Any]) -> list[Found]:
    return [
        Found(h.node.node_id, h.node.get_content(), h.node.metadata.get("group"), h.score, dict(vars(h))) for h in hits
    ]


def lower_cased_words(text: str) -> list[str]:
    """What the documentation of rank-bm25 does, and punctuation off."""
    return re.findall(r"\w+", text.lower())


STEMMER = Stemmer.Stemmer("english")


def stemmed_words(text: str) -> list[str]:
    """What LlamaIndex's BM25Retriever does by itself: stop words left out, the others stemmed."""
    return STEMMER.stemWords([word for word in lower_cased_words(text) if word not in STOPWORDS_EN])


def _langchain_bm25(passages: Sequence[Passage], k: int = 10, **settings: Any) -> LangChainBM25:
    return LangChainBM25.from_documents(as_documents(passages), k=k, **settings)


def _ensemble(
    encoder: KeyTokenEncoder, passages: Sequence[Passage], k: int = 10, vectors: np.ndarray | None = None, **given: Any
) -> EnsembleRetriever:
    """BM25 and dense, each as deep as ours; it returns all that both found, whatever ``k``."""
    depth, documents = min(DEPTH, len(passages)), as_documents(passages)
    embeddings = KeyTokensEmbeddings(encoder)
    if vectors is None:
        store = FAISS.from_documents(documents, embeddings, normalize_L2=True)
    else:
        pairs = list(zip((d.page_content for d in documents), vectors.tolist(), strict=True))
        metadatas, ids = [d.metadata for d in documents], [d.id for d in documents]
        store = FAISS.from_embeddings(pairs, embeddings, metadatas=metadatas, ids=ids, normalize_L2=True)
    words = _langchain_bm25(passages, depth, preprocess_func=stemmed_words, **given)
    dense = store.as_retriever(search_kwargs={"k": depth, **given})
    return EnsembleRetriever(retrievers=[words, dense], weights=[0.5, 0.5])


def _llama_index_bm25(passages: Sequence[Passage], k: int = 10, **settings: Any) -> LlamaIndexBM25:
    return LlamaIndexBM25.from_defaults(nodes=as_nodes(passages), similarity_top_k=k, **settings)


def _query_fusion(index: VectorStoreIndex, k: int = 10, depth: int = DEPTH, **given: Any) -> QueryFusionRetriever:
    """BM25 and dense of one index, joined by their scores, without questions that a language model makes up."""
    dense = index.as_retriever(similarity_top_k=depth, **given)
    words = LlamaIndexBM25.from_defaults(index=index, similarity_top_k=depth, **given)
    how = {"mode": "relative_score", "num_queries": 1, "use_async": False, "llm": MockLLM()}
    return QueryFusionRetriever([words, dense], similarity_top_k=k, **how)


def contenders(new_encoder: Callable[..., KeyTokenEncoder]) -> list[Contender]:
    """All of them, each with an encoder of its own, so that none finds another's embeddings in a cache."""
    made: list[Contender] = []

    def ours(
        side: type[Contender],
        name: str,
        kind: type,
        settings: dict[str, Any],
        explaining: dict[str, Any],
        *,
        has_lookup: bool = False,
    ) -> None:
        def make(encoder: KeyTokenEncoder, passages: Sequence[Passage], k: int = 10, **given: Any) -> Any:
            if side is LangChain:
                return kind.from_documents(as_documents(passages), encoder, k=k, score_key="score", **given)
            return kind(encoder, as_nodes(passages), similarity_top_k=k, **given)

        def make_known(encoder: KeyTokenEncoder, passages: Sequence[Passage], vectors: np.ndarray, k: int) -> Any:
            if side is LlamaIndex:
                return kind(encoder, as_nodes(passages, vectors), similarity_top_k=k)
            inner = Retriever(encoder, has_dense=kind is KeyTokensHybridRetriever)
            texts, ids = [p.text for p in passages], [p.id for p in passages]
            inner.add(texts, ids=ids, metadata=[p.metadata for p in passages], embeddings=vectors)
            return kind(retriever=inner, k=k, score_key="score")

        def make_over(encoder: KeyTokenEncoder, source: Any, k: int = 10) -> Any:
            if side is LlamaIndex:
                return kind.from_defaults(index=source, encoder=encoder, similarity_top_k=k)
            if kind is KeyTokensRetriever:
                raise Missing("a sparse retriever takes no vector store")
            return kind.from_vectorstore(source, encoder, k=k, score_key="score")

        for query, label in [("encode", name)] + [("lookup", f"{name}, lookup")] * has_lookup:
            encoder = new_encoder(query=query)
            known, over = partial(make_known, encoder), partial(make_over, encoder)
            shares = made[-1] if query == "lookup" else None
            made.append(side(label, partial(make, encoder), known, over, encoder, settings, explaining, shares))

    sparse, hybrid = "KeyTokensRetriever", "KeyTokensHybridRetriever"
    weights = {"weights": {"dense": 1.0, "sparse": 2.0}}
    group = {"filter": {"group": "a"}}
    ours(LangChain, sparse, KeyTokensRetriever, group, {"matches_key": "matches"}, has_lookup=True)
    explaining = {"matches_key": "matches", "scores_key": "scores"}
    ours(LangChain, hybrid, KeyTokensHybridRetriever, {**group, **weights}, explaining)
    group = {"filters": MetadataFilters(filters=[MetadataFilter(key="group", value="a")])}
    ours(LlamaIndex, sparse, keytokens.KeyTokensRetriever, group, {"explain": True}, has_lookup=True)
    ours(LlamaIndex, hybrid, keytokens.KeyTokensHybridRetriever, {**group, **weights}, {"explain": True})

    for name, words in (("lower-cased words", lower_cased_words), ("stemmed words", stemmed_words)):
        made.append(
            LangChain(
                f"BM25Retriever, {name}",
                lambda passages, k=10, words=words, **settings: _langchain_bm25(
                    passages, k, **{"preprocess_func": words, **settings}
                ),
            )
        )
    made.append(LangChain("BM25Retriever", _langchain_bm25, settings={"preprocess_func": str.split}))
    encoder = new_encoder()
    made.append(
        LangChain(
            "EnsembleRetriever: BM25Retriever, stemmed words + dense, FAISS",
            partial(_ensemble, encoder),
            lambda passages, vectors, k, encoder=encoder: _ensemble(encoder, passages, k, vectors),
            encoder=encoder,
        )
    )
    made.append(
        LlamaIndex(
            REFERENCE[1],
            _llama_index_bm25,
            make_over=lambda index, k=10: LlamaIndexBM25.from_defaults(index=index, similarity_top_k=k),
            settings={"skip_stemming": True},
        )
    )
    encoder = new_encoder()

    def index_of(passages: Sequence[Passage], vectors: np.ndarray | None = None) -> VectorStoreIndex:
        return VectorStoreIndex(as_nodes(passages, vectors), embed_model=keytokens.KeyTokensEmbedding(encoder))

    made.append(
        LlamaIndex(
            "QueryFusionRetriever: BM25Retriever + dense, VectorStoreIndex",
            lambda passages, k=10, **given: _query_fusion(index_of(passages), k, min(DEPTH, len(passages)), **given),
            lambda passages, vectors, k: _query_fusion(index_of(passages, vectors), k, min(DEPTH, len(passages))),
            lambda index, k=10: _query_fusion(index, k, min(DEPTH, len(index.docstore.docs))),
            encoder=encoder,
        )
    )
    return made
