"""Hybrid retrieval in LlamaIndex from one embedder: fused, filtered, explained, kept. Runs offline in about a minute.

pip install "st-keytokens[llama-index]"
python examples/llama_index_hybrid.py
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import textwrap
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from llama_index.retrievers.keytokens import KeyTokensEmbedding, KeyTokensHybridRetriever

from st_keytokens import KeyTokenEncoder

HERE = Path(__file__).resolve().parent
QUESTION = "random walks on graphs"
ABSTRACTS = 300


def read_nodes() -> list[TextNode]:
    with (HERE / "data" / "arxiv-abstracts" / "corpus.jsonl").open(encoding="utf-8") as lines:
        documents = [json.loads(line) for line, _ in zip(lines, range(ABSTRACTS), strict=False)]
    return [
        TextNode(
            id_=document["_id"],
            text=document["text"],
            metadata={"words": len(document["text"].split())},
            excluded_embed_metadata_keys=["words"],
        )
        for document in documents
    ]


def show(hits) -> None:
    for hit in hits:
        scores = ", ".join(f"{side} {score:.2f}" for side, score in hit.scores.items())
        print(f"  {hit.score:.3f} ({scores})  {textwrap.shorten(hit.node.get_content(), 70)}")
        print(f"        matched: {', '.join(f'{token} {part:.2f}' for token, part in hit.matches[:5])}")


def main() -> None:
    nodes = read_nodes()
    encoder = KeyTokenEncoder(HERE / "tiny-embedder" / "embedder")
    encoder.calibrate([node.text for node in nodes], show_progress_bar=False)
    texts = []
    encoder.model[0].register_forward_hook(lambda module, inputs, output: texts.extend(inputs[0]["input_ids"]))

    # 1. The index that you have, with the embedder that you have.
    index = VectorStoreIndex(nodes, embed_model=KeyTokensEmbedding(encoder))

    # 2. Its retriever, hybrid. The sparse vectors came with the dense ones: nothing is embedded again.
    retriever = KeyTokensHybridRetriever.from_defaults(index=index, encoder=encoder, similarity_top_k=3, explain=True)
    print(f"{len(texts)} forward passes for {len(nodes)} abstracts, dense and sparse")
    texts.clear()
    print(f"\n{QUESTION}")
    show(retriever.retrieve(QUESTION))
    print(f"{len(texts)} forward pass for the question")

    # 3. Filters of one call.
    short = MetadataFilters(filters=[MetadataFilter(key="words", value=100, operator="<")])
    print(f"\n{QUESTION}, in fewer than 100 words")
    show(retriever.retrieve(QUESTION, filters=short))

    # 4. In a query engine. No model is asked anything here: the MockLLM repeats its prompt.
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    response = engine.query(QUESTION)
    print(
        f"\nA query engine gets {len(response.source_nodes)} nodes into a prompt of {len(str(response)):,} characters"
    )

    # 5. Many questions at once, while the event loop goes on.
    async def ask(questions: list[str]) -> list[list[NodeWithScore]]:
        return await asyncio.gather(*map(retriever.aretrieve, questions))

    questions = ["how neural networks learn", "superconductivity at high temperature"]
    for question, hits in zip(questions, asyncio.run(ask(questions)), strict=True):
        print(f"\n{question}")
        show(hits[:1])

    # 6. Kept in a directory, and opened with all settings.
    own = KeyTokensHybridRetriever(encoder, nodes, similarity_top_k=3, explain=True, weights={"sparse": 2.0})
    with tempfile.TemporaryDirectory() as folder:
        own.persist(Path(folder) / "retriever")
        opened = KeyTokensHybridRetriever.from_persist_dir(Path(folder) / "retriever", encoder)
        opened.delete_nodes([opened.retrieve(QUESTION)[0].node.node_id])
        print(f"\nKept, opened with {opened.weights}, and its best node deleted: {len(opened)} nodes")
        show(opened.retrieve(QUESTION)[:1])
        opened.close()


if __name__ == "__main__":
    main()
