"""Qdrant's hybrid search through LlamaIndex, dense and sparse from one forward pass. Runs offline in about a minute.

pip install "st-keytokens[llama-index]" llama-index-vector-stores-qdrant
python examples/qdrant_hybrid.py
"""

from __future__ import annotations

import json
import textwrap
import uuid
import warnings
from pathlib import Path

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.retrievers.keytokens import KeyTokensEmbedding, KeyTokensHybridRetriever, qdrant_sparse_functions
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from st_keytokens import HybridIndex, KeyTokenEncoder

HERE = Path(__file__).resolve().parent
QUESTION = "random walks on graphs"
ABSTRACTS = 300


def read_nodes() -> list[TextNode]:
    with (HERE / "data" / "arxiv-abstracts" / "corpus.jsonl").open(encoding="utf-8") as lines:
        documents = [json.loads(line) for line, _ in zip(lines, range(ABSTRACTS), strict=False)]
    return [
        TextNode(id_=str(uuid.uuid5(uuid.NAMESPACE_URL, document["_id"])), text=document["text"])
        for document in documents
    ]


def show(label: str, hits) -> None:
    print(f"\n{label}: {QUESTION}")
    for hit in hits:
        print(f"  {hit.score:7.3f}  {textwrap.shorten(hit.node.get_content(), 90)}")


def main() -> None:
    warnings.filterwarnings("ignore", "Payload indexes have no effect")  # said by every client in memory
    nodes = read_nodes()
    encoder = KeyTokenEncoder(HERE / "tiny-embedder" / "embedder")
    encoder.calibrate([node.text for node in nodes], show_progress_bar=False)
    texts = []
    encoder.model[0].register_forward_hook(lambda module, inputs, output: texts.extend(inputs[0]["input_ids"]))

    # 1. LlamaIndex asks one function for dense vectors, and another for sparse ones of the same texts.
    document_function, query_function = qdrant_sparse_functions(encoder)
    store = QdrantVectorStore(
        "abstracts",
        client=QdrantClient(":memory:"),
        enable_hybrid=True,
        sparse_doc_fn=document_function,
        sparse_query_fn=query_function,
    )
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=KeyTokensEmbedding(encoder))
    print(f"{len(texts)} forward passes for {len(nodes)} abstracts, dense and sparse")

    # 2. Qdrant's own searches.
    texts.clear()
    show("Qdrant, hybrid", index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=3).retrieve(QUESTION))
    print(f"{len(texts)} forward pass for the question")
    sparse = index.as_retriever(vector_store_query_mode="sparse", similarity_top_k=10, sparse_top_k=10)
    hits = sparse.retrieve(QUESTION)
    show("Qdrant, sparse", hits[:3])

    # 3. The same sparse ranking as in our own index.
    with HybridIndex(encoder=encoder) as own:
        own.add([node.node_id for node in nodes], [node.text for node in nodes])
        ours = own.search(QUESTION, mode="sparse", top_k=10)
    differences = [abs(hit.score - other.score) for hit, other in zip(hits, ours, strict=True)]
    is_same = [hit.node.node_id for hit in hits] == [hit.id for hit in ours]
    print(f"\nThe same ten in the same order as in our index: {is_same}; scores within {max(differences):.0e}")

    # 4. Dense from Qdrant and sparse from our index, fused without an LLM, every hit with both its scores.
    retriever = KeyTokensHybridRetriever.from_defaults(nodes=nodes, dense=index, encoder=encoder, similarity_top_k=3)
    hits = retriever.retrieve(QUESTION)
    show("Dense from Qdrant, sparse from our index", hits)
    for hit in hits:
        print(f"  {hit.score:7.3f}  of {', '.join(f'{side} {score:.3f}' for side, score in hit.scores.items())}")


if __name__ == "__main__":
    main()
