"""A small RAG loop in LangChain on hybrid retrieval from one embedder. Runs offline in about a minute.

pip install "st-keytokens[langchain]"
python examples/langchain_hybrid.py
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import textwrap
from operator import itemgetter
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_keytokens import KeyTokensEmbeddings, KeyTokensHybridRetriever

from st_keytokens import KeyTokenEncoder

HERE = Path(__file__).resolve().parent
ABSTRACTS = 300
QUESTIONS = ("How do random walks on graphs mix?", "What do neural networks learn from images?")
SCRIPT = (
    "A walk mixes as fast as the gap of its matrix is wide [1].",
    "Features, layer after layer [1].",
)


def read_documents() -> list[Document]:
    with (HERE / "data" / "arxiv-abstracts" / "corpus.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(ABSTRACTS), strict=False)]
    return [
        Document(id=row["_id"], page_content=row["text"], metadata={"words": len(row["text"].split())}) for row in rows
    ]


def numbered(documents: list[Document]) -> str:
    return "\n".join(f"[{number}] {document.page_content}" for number, document in enumerate(documents, start=1))


def show(documents: list[Document]) -> None:
    for document in documents:
        scores = ", ".join(f"{side} {score:.2f}" for side, score in document.metadata["scores"].items())
        print(f"  {document.metadata['score']:.3f} ({scores})  {textwrap.shorten(document.page_content, 70)}")
        matches = document.metadata["matches"][:5]
        matched = ", ".join("{token} {contribution:.2f}".format(**match) for match in matches)
        print(f"        matched: {matched}")


def main() -> None:
    documents = read_documents()
    encoder = KeyTokenEncoder(HERE / "tiny-embedder" / "embedder")
    encoder.calibrate([document.page_content for document in documents], show_progress_bar=False)
    texts = []
    encoder.model[0].register_forward_hook(lambda module, inputs, output: texts.extend(inputs[0]["input_ids"]))

    # 1. The vector store that you have, with the embedder that you have, and a hybrid retriever on both.
    store = InMemoryVectorStore(KeyTokensEmbeddings(encoder))
    retriever = KeyTokensHybridRetriever.from_documents(
        documents, encoder, vectorstore=store, k=3, score_key="score", scores_key="scores", matches_key="matches"
    )
    print(f"{len(texts)} forward passes for {len(documents)} abstracts, dense in the store and sparse in the index")

    # 2. A chain that answers from what was found. The model is a script; put yours in its place.
    prompt = ChatPromptTemplate.from_template("Answer from these sources.\n\n{context}\n\nQuestion: {question}")
    model = FakeListChatModel(responses=list(SCRIPT))
    answer = {
        "context": itemgetter("sources") | RunnableLambda(numbered),
        "question": itemgetter("question"),
    }
    chain = {"sources": retriever, "question": RunnablePassthrough()} | RunnablePassthrough.assign(
        answer=answer | prompt | model | StrOutputParser()
    )
    for question in QUESTIONS:
        texts.clear()
        result = chain.invoke(question)
        print(f"\n{question}\n  -> {result['answer']}")
        show(result["sources"])
        print(f"  {len(texts)} forward pass for the question")

    # 3. Number and filter of one call.
    print(f"\n{QUESTIONS[1]} In fewer than 150 words:")
    show(retriever.invoke(QUESTIONS[1], k=1, filter={"words": {"$lt": 150}}))

    # 4. Documents come and go; the next question finds them, or does not.
    (new,) = retriever.add_documents([Document("Zebras graze on the savanna.", metadata={"words": 5})])
    print("\nAfter adding a document: where do zebras graze?")
    show(retriever.invoke("where do zebras graze?", k=1))
    retriever.delete([new])

    # 5. Many questions at once, while the event loop goes on.
    batches = asyncio.run(retriever.abatch(list(QUESTIONS)))
    print(f"\n{len(batches)} questions at once, {sum(map(len, batches))} sources")

    # 6. Kept in a folder, and opened with all settings; dense from its own index this time.
    keys = {"score_key": "score", "scores_key": "scores", "matches_key": "matches"}
    settings = {"k": 2, "weights": {"sparse": 2.0}, **keys}
    own = KeyTokensHybridRetriever.from_documents(documents, encoder, **settings)
    with tempfile.TemporaryDirectory() as folder:
        own.save_local(Path(folder) / "retriever")
        opened = KeyTokensHybridRetriever.load_local(Path(folder) / "retriever", encoder)
        print(f"\nOpened with k={opened.k} and {opened.weights}: {QUESTIONS[0]}")
        show(opened.invoke(QUESTIONS[0]))
        opened.retriever.close()


if __name__ == "__main__":
    main()
