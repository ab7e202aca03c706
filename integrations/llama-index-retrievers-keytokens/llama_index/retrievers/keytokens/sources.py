"""Where an application keeps its nodes, and what has changed there."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.simple import SimpleVectorStore

if TYPE_CHECKING:
    from llama_index.core.indices.base import BaseIndex
    from llama_index.core.storage.docstore.types import BaseDocumentStore

__all__ = ["Drift", "NodeSource"]


@dataclass(frozen=True)
class Drift:
    """What tells an application's nodes and a retriever's apart.

    Attributes:
        source_count: How many nodes the application has.
        count: How many the retriever has.
        missing: Ids that only the application has.
        gone: Ids that only the retriever has.
        changed: Ids of nodes that differ.
    """

    source_count: int
    count: int
    missing: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.gone or self.changed)


class NodeSource:
    """An index or a docstore of an application, whose nodes a retriever follows.

    Args:
        index: An index; its own nodes count, and not what else is in its docstore.
        docstore: A docstore, all of whose nodes count.
    """

    def __init__(self, index: BaseIndex[Any] | None = None, docstore: BaseDocumentStore | None = None) -> None:
        self.index = index
        self._docstore = docstore if index is None else index.docstore
        self._lock = threading.Lock()
        self._seen = dict(self._listed or {})

    @property
    def _listed(self) -> dict[str, str] | None:
        """The node ids that an index lists by what its vector store calls them; None where it lists none."""
        if self.index is None:
            return None
        store = getattr(self.index, "vector_store", None)
        if store is not None and store.stores_text and not getattr(self.index, "_store_nodes_override", False):
            return None  # but images and index nodes, which are not all
        return getattr(self.index.index_struct, "nodes_dict", None)

    def ids(self) -> list[str] | None:
        """The ids of all its nodes; None where it cannot tell, as a vector store keeps them."""
        if (listed := self._listed) is not None:
            return list(dict.fromkeys(listed.values()))
        if self.index is not None and getattr(self.index, "vector_store", None) is not None:
            return None
        return [] if self._docstore is None else list(self._docstore.docs)

    def nodes(self, ids: Sequence[str], *, has_vectors: bool) -> list[BaseNode]:
        """Nodes by id; those that it does not have are left out.

        Args:
            ids: Their ids.
            has_vectors: Whether vectors that LlamaIndex's own store keeps are put into the nodes.
        """
        if self._docstore is None or not ids:
            return []
        found = self._docstore.get_nodes(list(ids), raise_error=False)
        store = getattr(self.index, "vector_store", None)
        if not has_vectors or not isinstance(store, SimpleVectorStore):
            return found
        vectors = store.data.embedding_dict
        return [
            node.model_copy(update={"embedding": vectors.get(node.node_id, node.embedding)}) if node else node
            for node in found
        ]

    @contextmanager
    def changes(self) -> Iterator[tuple[list[str], list[str]]]:
        """Ids that an index has listed, and has ceased to list, since this was left without an error for last.

        One thread at a time; the others wait, so that none searches before what has changed is there.
        """
        listed = self._listed
        if listed is None:
            yield [], []
            return
        with self._lock:
            if len(listed) == len(self._seen) and listed.keys() == self._seen.keys():
                yield [], []
                return
            now, before = dict(listed), self._seen
            yield (
                [node_id for key, node_id in now.items() if key not in before],
                [node_id for key, node_id in before.items() if key not in now],
            )
            self._seen = now

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
