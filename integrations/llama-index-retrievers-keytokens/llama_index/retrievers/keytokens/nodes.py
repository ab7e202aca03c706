"""Nodes as documents of our index, and back as they were."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llama_index.core.constants import DATA_KEY
from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import BaseNode, IndexNode, MetadataMode
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc
from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import is_embedder_of, remember_vectors

from llama_index.retrievers.keytokens.sources import NodeSource

__all__ = [
    "NODE_KEY",
    "StoredNode",
    "checked_nodes",
    "filterable_metadata",
    "index_objects",
    "restored_node",
    "source_filter",
    "source_nodes",
    "stored_node",
    "take_vectors",
]

SOURCE_KEY = "_keytokens_source"  # the source's id, where the metadata take all names below
NODE_KEY = "_keytokens_node"  # beside the metadata: all else of a node, as JSON
_SOURCE_KEYS = ("ref_doc_id", "doc_id", "document_id")  # what filters of vector stores call the source document


class StoredNode(NamedTuple):
    """A node as the index keeps it.

    Attributes:
        id: The node's id.
        text: Its text.
        embedded_text: What is embedded: with the metadata that ``MetadataMode.EMBED`` adds.
        metadata: Its metadata, which filters see, the id of its source, and the rest of it as JSON.
        embedding: The vector that it carries, or None.
    """

    id: str
    text: str
    embedded_text: str
    metadata: dict[str, Any]
    embedding: list[float] | None = None


def stored_node(node: BaseNode) -> StoredNode:
    """What the index keeps of a node. The node is not modified; its embedding and an object in it are not kept.

    Raises:
        TypeError: If it is no node.
        ValueError: If its metadata have the key that is used for the rest of the node.
    """
    if not isinstance(node, BaseNode):
        raise TypeError(f"nodes must be LlamaIndex nodes, got {type(node).__name__} {node!r:.60}.")
    if NODE_KEY in node.metadata:
        raise ValueError(f"metadata must not have the key {NODE_KEY!r}, which is used inside. Rename it.")
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    bare = node.model_copy(update={"metadata": {}, "embedding": None})
    if isinstance(bare, IndexNode) and not isinstance(bare.obj, BaseNode):
        bare.obj = None  # a retriever or query engine: the retriever holds it
    content = doc_to_json(bare)
    if content[DATA_KEY].get("text"):
        content[DATA_KEY]["text"] = ""  # kept once
    elif content[DATA_KEY].get("text_resource"):
        content[DATA_KEY]["text_resource"]["text"] = ""
    metadata = filterable_metadata(node)
    if node.ref_doc_id and all(key in node.metadata for key in _SOURCE_KEYS):
        metadata[SOURCE_KEY] = node.ref_doc_id
    rest = {"node": content, "added": [key for key in metadata if key not in node.metadata]}
    metadata[NODE_KEY] = json.dumps(rest, ensure_ascii=False)
    embedded_text = node.get_content(metadata_mode=MetadataMode.EMBED)
    return StoredNode(node.node_id, text, embedded_text, metadata, node.embedding)


def source_filter(ref_doc_id: str) -> dict[str, Any]:
    """A filter that lets pass all nodes of a source document, and few others; :func:`restored_node` tells them."""
    return {"$or": [{key: ref_doc_id} for key in (*_SOURCE_KEYS, SOURCE_KEY)]}


def filterable_metadata(node: BaseNode) -> dict[str, Any]:
    """What filters see of a node: its metadata and, under keys that these leave free, the id of its source."""
    return {**(dict.fromkeys(_SOURCE_KEYS, node.ref_doc_id) if node.ref_doc_id else {}), **node.metadata}


def restored_node(text: str | None, metadata: Mapping[str, Any]) -> BaseNode:
    """The node of a document in the index.

    Raises:
        ValueError: If the document is no node, as in an index that something else filled.
    """
    if NODE_KEY not in metadata:
        raise ValueError("the index must hold nodes, got a document that is none. Fill it with add_nodes.")
    rest = json.loads(metadata[NODE_KEY])
    node = json_to_doc(rest["node"])
    left_out = {NODE_KEY, *rest["added"]}
    node.metadata = {key: value for key, value in metadata.items() if key not in left_out}
    if text:
        node.set_content(text)
    return node


def take_vectors(encoder: KeyTokenEncoder, index: BaseIndex[Any] | None, nodes: Sequence[BaseNode | None]) -> None:
    """Has an encoder of an index's own embedding model know the vectors that the index's nodes carry."""
    if index is None or not is_embedder_of(getattr(index, "_embed_model", None), encoder):
        return
    carrying = [node for node in nodes if node is not None and node.embedding is not None]
    texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in carrying]
    remember_vectors(encoder, texts, [node.embedding for node in carrying])


def index_objects(nodes: Sequence[BaseNode]) -> dict[str, Any]:
    """The objects of index nodes by ``index_id``."""
    return {node.index_id: node.obj for node in nodes if isinstance(node, IndexNode) and node.obj is not None}


def checked_nodes(nodes: Sequence[BaseNode]) -> Sequence[BaseNode]:
    """Nodes that are a sequence.

    Raises:
        TypeError: If they are an index, a generator, a single node or something else.
    """
    if isinstance(nodes, BaseIndex):
        raise TypeError(
            f"nodes must be a list of nodes, got {type(nodes).__name__}. Give an index to from_defaults(index=...)."
        )
    if isinstance(nodes, str) or not isinstance(nodes, Sequence):
        raise TypeError(f"nodes must be a list of nodes, got {type(nodes).__name__}. Give list(nodes).")
    return nodes


def source_nodes(
    index: BaseIndex[Any] | None,
    nodes: Sequence[BaseNode] | None,
    docstore: BaseDocumentStore | None,
    *,
    has_vectors: bool,
) -> tuple[Sequence[BaseNode], NodeSource | None]:
    """The nodes of whichever is given, an index's own ones, and what is to be followed.

    Raises:
        TypeError: If one is of the wrong type.
        ValueError: If not exactly one is given, or an index has an empty docstore as its vector store keeps the text.
    """
    given = [name for name, value in (("index", index), ("nodes", nodes), ("docstore", docstore)) if value is not None]
    if len(given) != 1:
        raise ValueError(f"exactly one of index, nodes and docstore must be given, got {', '.join(given) or 'none'}.")
    if nodes is not None:
        return checked_nodes(nodes), None
    if index is not None and not isinstance(index, BaseIndex):
        raise TypeError(f"index must be a LlamaIndex index, got {type(index).__name__}. Nodes are given as nodes=.")
    if docstore is not None and not isinstance(docstore, BaseDocumentStore):
        raise TypeError(f"docstore must be a LlamaIndex docstore, got {type(docstore).__name__}.")
    source = NodeSource(index, docstore)
    ids = source.ids()
    if ids is None and index is not None:
        if index.storage_context.vector_store.class_name() == "KeyTokensVectorStore":
            raise ValueError(
                "index must be over another store, got a KeyTokensVectorStore, which has both vectors itself. "
                'Use index.as_retriever(vector_store_query_mode="hybrid").'
            )
        ids = list(index.docstore.docs)
        if not ids:
            raise ValueError(
                "index must keep its nodes in its docstore, got an empty one, as its vector store keeps the text. "
                "Give nodes, or make the index with store_nodes_override=True."
            )
    return source.nodes(ids or [], has_vectors=has_vectors), source
