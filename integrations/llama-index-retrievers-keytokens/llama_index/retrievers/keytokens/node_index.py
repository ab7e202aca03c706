"""Nodes in an index of our own: added, deleted, kept."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from os import PathLike
from typing import Any, Literal

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import BaseNode, IndexNode
from llama_index.core.vector_stores.types import MetadataFilters
from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import Retriever

from llama_index.retrievers.keytokens.nodes import index_objects, stored_node

__all__ = ["NodeIndex", "OnConflict"]

OnConflict = Literal["error", "replace"]


class NodeIndex(BaseRetriever):
    """What a retriever does with its nodes. Use it through :class:`KeyTokensRetriever`."""

    def __init__(
        self,
        encoder: KeyTokenEncoder,
        *,
        path: str | PathLike[str] | None,
        has_dense: bool,
        similarity_top_k: int,
        filters: MetadataFilters | None,
        explain: bool,
        callback_manager: CallbackManager | None,
        objects: list[IndexNode] | None,
        object_map: dict[str, Any] | None,
        verbose: bool,
    ) -> None:
        super().__init__(callback_manager, object_map, objects, verbose)
        self.encoder = encoder
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self.explain = explain
        self._retriever = Retriever(encoder, path, has_dense=has_dense)

    def persist(self, path: str | PathLike[str]) -> None:
        """Keeps nodes, vectors and settings in a directory, without pickle; a retriever that is there is replaced.

        What is added afterwards is not in it, unless the retriever was opened there.

        Args:
            path: The directory, which holds nothing else.

        Raises:
            OSError: If it cannot be written; what was there is kept.
            ValueError: If the directory holds other files.
        """
        self._retriever.persist(path, self._persisted_settings())

    def add_nodes(self, nodes: Sequence[BaseNode], *, on_conflict: OnConflict = "replace") -> list[str]:
        """Adds nodes, all or none. They are embedded with the metadata that ``MetadataMode.EMBED`` adds.

        Args:
            nodes: Nodes; not modified.
            on_conflict: ``"replace"`` nodes whose id is there, or ``"error"``.

        Returns:
            The ids.

        Raises:
            TypeError: If one is no node, or metadata hold what cannot be kept; the error names the key.
            ValueError: If an id is twice among them, or is there and not to be replaced. Nothing is added.
        """
        stored = [stored_node(node) for node in nodes]
        ids = self._retriever.add(
            [node.text for node in stored],
            ids=[node.id for node in stored],
            metadata=[node.metadata for node in stored],
            embedded_texts=[node.embedded_text for node in stored],
            on_conflict=on_conflict,
        )
        self.object_map.update(index_objects(nodes))
        return ids

    async def aadd_nodes(self, nodes: Sequence[BaseNode], *, on_conflict: OnConflict = "replace") -> list[str]:
        """:meth:`add_nodes` in a thread."""
        return await asyncio.to_thread(self.add_nodes, nodes, on_conflict=on_conflict)

    def delete_nodes(self, node_ids: Collection[str]) -> int:
        """Deletes nodes by id; ids that are not there are passed over.

        Returns:
            How many were there.
        """
        return self._retriever.delete(node_ids)

    async def adelete_nodes(self, node_ids: Collection[str]) -> int:
        """:meth:`delete_nodes` in a thread."""
        return await asyncio.to_thread(self.delete_nodes, node_ids)

    def __len__(self) -> int:
        return len(self._retriever)

    def __bool__(self) -> bool:
        return True  # an empty retriever is one as well

    def close(self) -> None:
        """Closes the index; a temporary one is removed."""
        self._retriever.close()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _check_addable(self, nodes: Sequence[BaseNode], on_conflict: OnConflict) -> list[str]:
        """Checks what :meth:`add_nodes` would refuse, and gives the ids that are there and are to be replaced."""
        stored = [stored_node(node) for node in nodes]
        ids = self._retriever.check_addable(
            [node.text for node in stored],
            ids=[node.id for node in stored],
            metadata=[node.metadata for node in stored],
            on_conflict=on_conflict,
        )
        return self._retriever.known_ids(ids)

    def _persisted_settings(self) -> dict[str, Any]:
        return {
            "class": type(self).__name__,
            "similarity_top_k": self.similarity_top_k,
            "filters": None if self.filters is None else self.filters.model_dump(mode="json"),
            "explain": self.explain,
            "verbose": self._verbose,
        }

    @classmethod
    def _saved_settings(cls, path: str | PathLike[str]) -> dict[str, Any]:
        """What :meth:`_persisted_settings` gave, ``filters`` as such."""
        settings = Retriever.read_settings(path)
        if settings.get("class") != cls.__name__:
            raise ValueError(
                f"path must hold what {cls.__name__}.persist kept, got {path} of {settings.get('class')!r}. "
                "Open it with the class that kept it."
            )
        filters = settings["filters"]
        return {**settings, "filters": None if filters is None else MetadataFilters.model_validate(filters)}
