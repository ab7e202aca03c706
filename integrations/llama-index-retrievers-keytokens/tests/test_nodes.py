from __future__ import annotations

import datetime

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)

from llama_index.retrievers.keytokens.nodes import NODE_KEY, restored_node, stored_node

SOURCE = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="source")}


@pytest.mark.parametrize(
    "node",
    [
        TextNode(text="a", metadata={"year": 2024, "tags": ["x"]}, relationships=SOURCE, start_char_idx=3),
        TextNode(text="a", metadata={"secret": 1}, excluded_embed_metadata_keys=["secret"]),
        TextNode(text="", metadata={"date": datetime.date(2024, 5, 1)}),
        Document(text="a document"),
        Node(text_resource=MediaResource(text="a resource"), metadata={"year": 2024}),
        Node(),
        ImageNode(text="a picture", image_path="x.png"),
        IndexNode(text="points", index_id="i", obj=TextNode(text="inner", id_="inner")),
    ],
    ids=lambda node: f"{type(node).__name__}-{node.get_content()[:8]}",
)
def test_a_node_comes_back_as_it_was(node):
    before = node.model_copy(deep=True)
    stored = stored_node(node)
    restored = restored_node(stored.text, stored.metadata)
    assert restored == node == before
    assert type(restored) is type(node)
    assert restored.hash == node.hash


def test_filters_see_the_metadata_and_the_source():
    stored = stored_node(TextNode(text="a", metadata={"year": 2024, "doc_id": "mine"}, relationships=SOURCE))
    seen = {key: value for key, value in stored.metadata.items() if key != NODE_KEY}
    assert seen == {"year": 2024, "doc_id": "mine", "ref_doc_id": "source", "document_id": "source"}


def test_the_text_is_kept_once_and_the_embedding_not_at_all():
    stored = stored_node(TextNode(text="once and only", embedding=[0.25, 0.5]))
    assert stored.text == "once and only"
    assert "once and only" not in stored.metadata[NODE_KEY]
    assert "0.25" not in stored.metadata[NODE_KEY]


def test_what_is_embedded_has_the_metadata_that_is_not_excluded():
    node = TextNode(text="text", metadata={"title": "T", "path": "/p"}, excluded_embed_metadata_keys=["path"])
    assert stored_node(node).embedded_text == "title: T\n\ntext"
    assert stored_node(node).text == "text"


def test_an_object_that_is_no_node_is_left_to_the_retriever():
    node = IndexNode(text="points", index_id="i", obj=object())
    stored = stored_node(node)
    assert restored_node(stored.text, stored.metadata).obj is None
    assert node.obj is not None


class TestValidation:
    def test_no_node(self):
        with pytest.raises(TypeError, match="nodes must be LlamaIndex nodes, got str"):
            stored_node("text")

    def test_reserved_key(self):
        with pytest.raises(ValueError, match="must not have the key '_keytokens_node'"):
            stored_node(TextNode(text="a", metadata={NODE_KEY: 1}))

    def test_document_that_is_no_node(self):
        with pytest.raises(ValueError, match="the index must hold nodes"):
            restored_node("a", {"year": 2024})
