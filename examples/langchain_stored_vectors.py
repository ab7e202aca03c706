"""Key terms and hybrid search for vectors that are there already: a file of them, in a vector store of LangChain.

    pip install "st-keytokens[langchain]"
    python examples/langchain_stored_vectors.py [embeddings.npy texts.jsonl model]

``embeddings.npy`` holds a row for each line of ``texts.jsonl`` (``{"_id": ..., "text": ...}``), made by any embedder,
such as EmbeddingGemma; ``model`` embeds the questions. Without arguments the tiny embedder makes the file first. No
document is embedded again. Runs offline in about a minute.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_keytokens import KeyTokensHybridRetriever
from sentence_transformers import SentenceTransformer

EXAMPLES = Path(__file__).resolve().parent
QUESTION = "neural networks that parse images"


class Provider(Embeddings):
    """Stands for OpenAIEmbeddings, HuggingFaceEmbeddings and the like; notes what is sent to it."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.sent: list[str] = []
        self._embedder = SentenceTransformer(model, device="cpu")

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embeds documents."""
        self.sent += texts
        return self._embedder.encode_document(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Embeds a query."""
        self.sent.append(text)
        return self._embedder.encode_query(text).tolist()


def write_file(folder: Path, texts_file: Path, model: str) -> Path:
    """What a job on a GPU does once."""
    texts = [json.loads(line)["text"] for line in texts_file.open(encoding="utf-8")]
    np.save(folder / "embeddings.npy", SentenceTransformer(model, device="cpu").encode_document(texts))
    return folder / "embeddings.npy"


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments:
            vectors_file, texts_file, model = Path(arguments[0]), Path(arguments[1]), arguments[2]
        else:
            model, texts_file = str(EXAMPLES / "tiny-embedder" / "embedder"), folder / "texts.jsonl"
            lines = (EXAMPLES / "data" / "arxiv-abstracts" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
            texts_file.write_text("\n".join(lines[:300]) + "\n", encoding="utf-8")
            vectors_file = write_file(folder, texts_file, model)

        provider = Provider(model)
        store = InMemoryVectorStore(provider)
        vectors, rows = np.load(vectors_file), map(json.loads, texts_file.open(encoding="utf-8"))
        for row, vector in zip(rows, vectors.tolist(), strict=True):
            store.store[row["_id"]] = {"id": row["_id"], "vector": vector, "text": row["text"], "metadata": {}}

        retriever = KeyTokensHybridRetriever.from_vectorstore(store, path=folder / "index", k=3, matches_key="matches")
        for document in retriever.invoke(QUESTION):
            words = [match["token"] for match in document.metadata["matches"][:4]]
            print(f"{document.page_content[:60]}  {words}")
        documents = {document["text"] for document in store.store.values()}
        print(f"{len(documents & set(provider.sent))} of {len(documents)} documents were embedded again.")
        retriever.close()

        store.dump(str(folder / "store.json"))
        tomorrow = Provider(model)
        store = InMemoryVectorStore.load(str(folder / "store.json"), tomorrow)
        retriever = KeyTokensHybridRetriever.load_local(folder / "index", tomorrow, vectorstore=store)
        retriever.invoke(QUESTION)
        print(f"The next day, for one question, these texts are sent: {tomorrow.sent}")
        retriever.close()


if __name__ == "__main__":
    main(sys.argv[1:])
