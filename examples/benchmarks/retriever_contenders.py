"""The retrievers that are compared, each asked through its own framework's calls."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langchain_classic.retrievers import EnsembleRetriever
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_keytokens import KeyTokensEmbeddings, KeyTokensHybridRetriever, KeyTokensRetriever
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from llama_index.retrievers import keytokens
from llama_index.retrievers.bm25 import BM25Retriever as LlamaIndexBM25

from st_keytokens import KeyTokenEncoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # langchain-community says that it is being sunset
    from langchain_community.retrievers import BM25Retriever as LangChainBM25

DEPTH = 100


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
        """Calls a function in the middle of every search, wherever it runs."""
        if self.encoder is not None and not isinstance(retriever, EnsembleRetriever):
            handle = self.encoder.model[0].register_forward_pre_hook(lambda module, inputs: hold())
            yield
            handle.remove()
            return
        words = retriever.retrievers[0] if isinstance(retriever, EnsembleRetriever) else retriever
        if isinstance(words, LangChainBM25):
            words.preprocess_func = lambda text: (hold(), text.split())[1]
        else:
            words.stemmer = _HeldStemmer(words.stemmer, hold)
        yield


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
        retriever.add_documents(as_documents([passage]))

    def delete(self, retriever: Any, id: str) -> None:
        retriever.delete([id])

    def filtered(self, retriever: Any, query: str, group: str) -> list[Found]:
        return _documents(retriever.invoke(query, filter={"group": group}))

    def save(self, retriever: Any, folder: Path) -> None:
        retriever.save_local(folder)

    def load(self, kind: type, folder: Path) -> Any:
        return kind.load_local(folder, self.encoder)


class LlamaIndex(Contender):
    framework = "LlamaIndex"

    def search(self, retriever: Any, query: str) -> list[Found]:
        return _nodes(retriever.retrieve(query))

    async def asearch(self, retriever: Any, query: str) -> list[Found]:
        return _nodes(await retriever.aretrieve(query))

    def add(self, retriever: Any, passage: Passage) -> None:
        retriever.add_nodes(as_nodes([passage]))

    def delete(self, retriever: Any, id: str) -> None:
        retriever.delete_nodes([id])

    def filtered(self, retriever: Any, query: str, group: str) -> list[Found]:
        filters = MetadataFilters(filters=[MetadataFilter(key="group", value=group)])
        return _nodes(retriever.retrieve(query, filters=filters))

    def save(self, retriever: Any, folder: Path) -> None:
        retriever.persist(str(folder))

    def load(self, kind: type, folder: Path) -> Any:
        arguments = () if self.encoder is None else (self.encoder,)
        return kind.from_persist_dir(str(folder), *arguments)


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


def _langchain_bm25(passages: Sequence[Passage], k: int = 10, **settings: Any) -> LangChainBM25:
    return LangChainBM25.from_documents(as_documents(passages), k=k, **settings)


def _ensemble(encoder: KeyTokenEncoder, passages: Sequence[Passage], k: int = 10) -> EnsembleRetriever:
    store = InMemoryVectorStore(KeyTokensEmbeddings(encoder))
    store.add_documents(as_documents(passages))
    depth = min(DEPTH, len(passages))
    dense = store.as_retriever(search_kwargs={"k": depth})
    return EnsembleRetriever(retrievers=[_langchain_bm25(passages, depth), dense], weights=[0.5, 0.5])


def contenders(new_encoder: Callable[..., KeyTokenEncoder]) -> list[Contender]:
    """All of them, each with an encoder of its own, so that none finds another's embeddings in a cache."""
    made: list[Contender] = []

    def ours(side: type[Contender], name: str, make: Callable[..., Any], settings: dict[str, Any], **how: Any) -> None:
        encoder = new_encoder(**how)
        made.append(side(name, lambda passages, **given: make(encoder, passages, **given), encoder, settings))

    def langchain(kind: type) -> Callable[..., Any]:
        return lambda encoder, passages, k=10, **settings: kind.from_documents(
            as_documents(passages), encoder, k=k, matches_key="matches", **settings
        )

    def llama_index(kind: type) -> Callable[..., Any]:
        return lambda encoder, passages, k=10, **settings: kind(
            encoder, as_nodes(passages), similarity_top_k=k, explain=True, **settings
        )

    group = {"filter": {"group": "a"}}
    groups = {"filters": MetadataFilters(filters=[MetadataFilter(key="group", value="a")])}
    sparse, hybrid = "KeyTokensRetriever", "KeyTokensHybridRetriever"
    ours(LangChain, sparse, langchain(KeyTokensRetriever), group)
    ours(LangChain, f"{sparse}, queries without a pass", langchain(KeyTokensRetriever), group, query="lookup")
    ours(LangChain, hybrid, langchain(KeyTokensHybridRetriever), {**group, "weights": {"sparse": 2.0}})
    ours(LlamaIndex, sparse, llama_index(keytokens.KeyTokensRetriever), groups)
    ours(
        LlamaIndex,
        hybrid,
        llama_index(keytokens.KeyTokensHybridRetriever),
        {**groups, "weights": {"dense": 1.0, "sparse": 2.0}},
    )
    made.append(LangChain("BM25Retriever", _langchain_bm25, settings={"preprocess_func": str.split}))
    ours(LangChain, "EnsembleRetriever: BM25Retriever + dense", _ensemble, {})
    made.append(
        LlamaIndex(
            "BM25Retriever",
            lambda passages, k=10, **settings: LlamaIndexBM25.from_defaults(
                nodes=as_nodes(passages), similarity_top_k=k, **settings
            ),
            settings={"skip_stemming": True},
        )
    )
    return made
