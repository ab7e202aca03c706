"""What an application needs of a retriever, in five kinds, each found out by doing it through the framework's calls.

Each kind has a few checks. A check answers "yes" or "no", and says what it saw; a call that a framework has not is a
no, and so is an error of one of its own classes. Errors of ours are not caught.
"""

from __future__ import annotations

import asyncio
import copy
import datetime
import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_index.core.instrumentation as instrumentation
import numpy as np
from langchain_classic.retrievers import EnsembleRetriever
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_keytokens import KeyTokensEmbeddings, KeyTokensVectorStore
from llama_index.core import Document as LlamaIndexDocument
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.indices.query.query_transform.base import IdentityQueryTransform
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import TransformRetriever
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.retrievers import keytokens
from retriever_contenders import Contender, Found, LangChain, Missing, Passage, as_documents, call
from retriever_probes import PASSAGES, QUERIES, Answer

Check = Callable[[Contender], Answer]
NEW, CHANGED = "Zebras graze on the savanna.", "The delta of this water is wide, and full of reeds."
GONE, OLD = PASSAGES[0].text, PASSAGES[2].text
THINGS = (
    "apples boats chairs drums engines forks guitars hammers islands jackets kettles lamps mirrors nails ovens pianos "
    "quilts rockets saddles tables umbrellas violins wagons yachts"
)
MANY = [
    Passage(f"m{number}", f"{word.capitalize()} are item {number}.", "ab"[number % 2])
    for number, word in enumerate(THINGS.split())
]
QUESTIONS = [f"where are {passage.text.split()[0].lower()}" for passage in MANY[:8]]
DATED = datetime.datetime(2024, 5, 1, 0, 30, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))  # April in UTC


# -- documents change and go ------------------------------------------------------------------------------------------


def _indexed(cleanup: str) -> Check:
    """LangChain's index(), twice: then a text is another one, one is gone, and one is new."""

    def check(side: Contender) -> Answer:
        if not isinstance(side, LangChain):
            raise Missing("a call of LangChain")
        before = [Document(page_content=p.text, metadata={"source": "s"}) for p in PASSAGES]
        after = [d for d in before if d.page_content not in (GONE, OLD)]
        after += [Document(page_content=text, metadata={"source": "s"}) for text in (CHANGED, NEW)]
        retriever = side.make(PASSAGES, k=6)
        store: Any = retriever
        if side.is_ours:
            store = KeyTokensVectorStore(retriever)
            store.delete()
        elif isinstance(retriever, EnsembleRetriever):
            store = retriever.retrievers[1].vectorstore
            store.delete(ids=list(store.index_to_docstore_id.values()))
        records = InMemoryRecordManager("passages")
        records.create_schema()
        options = {"cleanup": cleanup, "source_id_key": "source", "key_encoder": "sha256"}
        for documents in (before, after):
            index(documents, records, store, **options)
        return _in_step(lambda query: [hit.text for hit in side.search(retriever, query)])

    return check


def _in_step(texts: Callable[[str], list[str]]) -> Answer:
    """Whether what is new is found first, and what is gone not at all."""
    seen = [texts(query) for query in ("Zebras graze", "reeds in a wide delta", QUERIES[0], "the river carries sand")]
    is_first = [bool(seen[0]) and seen[0][0] == NEW, bool(seen[1]) and seen[1][0] == CHANGED]
    left = sum(text in (GONE, OLD) for found in seen for text in found)
    return _answer(all(is_first) and not left, f"new and changed found first: {is_first}; gone ones found: {left}")


def _through_index(change: str) -> Check:
    """What LlamaIndex's index is told, its retriever knows."""

    def check(side: Contender) -> Answer:
        if isinstance(side, LangChain):
            raise Missing("a call of LlamaIndex")
        if side.make_over is None:
            raise Missing("it takes no index")
        model = MockEmbedding(embed_dim=8) if side.encoder is None else keytokens.KeyTokensEmbedding(side.encoder)
        documents = [LlamaIndexDocument(id_=p.id, text=p.text) for p in PASSAGES]
        source = VectorStoreIndex.from_documents(documents, embed_model=model)
        retriever = side.make_over(source, k=4)
        if change == "insert":
            source.insert(LlamaIndexDocument(id_="zebra", text=NEW))
            found = [hit.text for hit in side.search(retriever, "Zebras graze")]
            return _answer(found[:1] == [NEW], f"first: {found[:1]}")
        if change == "delete":
            source.delete_ref_doc("stars", delete_from_docstore=True)
            found = [hit.text for hit in side.search(retriever, QUERIES[0])]
            return _answer(GONE not in found, f"found: {found[:2]}")
        documents[2] = LlamaIndexDocument(id_="river", text=CHANGED)
        refreshed = source.refresh_ref_docs(documents)
        found = [hit.text for hit in side.search(retriever, "reeds in a wide delta")]
        old = [hit.text for hit in side.search(retriever, "the river carries sand")]
        is_right = found[:1] == [CHANGED] and OLD not in old
        return _answer(is_right, f"{sum(refreshed)} refreshed; first: {found[:1]}; the old text found: {OLD in old}")

    return check


# -- filters hold -----------------------------------------------------------------------------------------------------


def _filter(side: Contender, key: str, value: Any, operator: str = "==") -> dict[str, Any]:
    """The argument of one condition, as the framework writes it."""
    if isinstance(side, LangChain):
        names = {"==": "$eq", ">=": "$gte", "contains": "$contains"}
        return {"filter": {key: value if operator == "==" else {names[operator]: value}}}
    wanted = value.isoformat() if isinstance(value, datetime.datetime) else value
    wanted = int(value) if isinstance(value, bool) else wanted  # MetadataFilter takes no booleans; 1 finds true
    condition = MetadataFilter(key=key, value=wanted, operator=FilterOperator(operator))
    return {"filters": MetadataFilters(filters=[condition])}


def when_made(side: Contender) -> Answer:
    retriever = side.make(PASSAGES, k=6, **_filter(side, "group", "b"))
    groups = [hit.group for query in QUERIES for hit in side.search(retriever, query)]
    return _only_b(groups)


def in_a_call(side: Contender) -> Answer:
    retriever = side.make(PASSAGES, k=6)
    return _only_b([hit.group for query in QUERIES for hit in side.filtered(retriever, query, "b")])


def under_another(side: Contender) -> Answer:
    """A filter of one question, where something else asks the retriever."""
    retriever = side.make(PASSAGES, k=6)
    if isinstance(side, LangChain):
        chain = RunnableLambda(str.strip) | retriever.bind(**_filter(side, "group", "b"))
        return _only_b([document.metadata["group"] for query in QUERIES for document in chain.invoke(query)])
    if not side.is_ours:
        raise Missing("the framework's queries carry no filters")
    outer = TransformRetriever(retriever, IdentityQueryTransform())
    filters = _filter(side, "group", "b")["filters"]
    bundles = [keytokens.KeyTokensQueryBundle(query, filters=filters) for query in QUERIES]
    return _only_b([hit.node.metadata["group"] for bundle in bundles for hit in outer.retrieve(bundle)])


def _only_b(groups: Sequence[str | None]) -> Answer:
    return _answer(bool(groups) and set(groups) == {"b"}, f"groups of the hits for group b: {sorted(set(groups))}")


def _values(key: str, value: Any, operator: str) -> Check:
    """Passages whose metadata have one kind of value; those of even number pass."""

    def check(side: Contender) -> Answer:
        more = {
            "public": lambda even: even,
            "at": lambda even: DATED if even else DATED - datetime.timedelta(hours=1),
            "tags": lambda even: ["x", "y"] if even else ["y"],
        }[key]
        passages = [replace(p, more={key: more(number % 2 == 0)}) for number, p in enumerate(PASSAGES)]
        retriever = side.make(passages, k=6, **_filter(side, key, value, operator))
        found = {hit.id for query in QUERIES for hit in side.search(retriever, query)}
        right = {passage.id for passage in PASSAGES[::2]}
        seen = f"found {len(found & right)} that pass, {len(found - right)} others"
        return _answer(bool(found) and found <= right, seen)

    return check


# -- the next day -----------------------------------------------------------------------------------------------------

OPEN = """
import json, sys, warnings
warnings.simplefilter("ignore")
{imports}
retriever = {line}
def ids(found): return [getattr(hit, "node_id", None) or hit.id for hit in found]
print(json.dumps([ids(retriever.{ask}(query)) for query in {queries!r}]))
"""


def another_process(side: Contender) -> Answer:
    """Another process opens what was saved, by one line, and answers the same, with settings that are no defaults."""
    retriever = side.make(PASSAGES, k=3, **side.settings)
    kind = type(retriever)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "saved")
        imports = f"from {kind.__module__.rpartition('.')[0] or kind.__module__} import {kind.__name__}"
        if isinstance(side, LangChain):
            call(retriever, "save_local", folder, with_encoder=True)
            line = f"{kind.__name__}.load_local({str(folder)!r})"
        else:
            call(retriever, "persist", str(folder))
            line = f"{kind.__name__}.from_persist_dir({str(folder)!r})"
            if side.encoder is not None:
                side.encoder.save_pretrained(folder / "encoder")
                line = (
                    f"{kind.__name__}.from_persist_dir({str(folder)!r}, KeyTokenEncoder({str(folder / 'encoder')!r}))"
                )
                imports += "\nfrom st_keytokens import KeyTokenEncoder"
        ask = "invoke" if isinstance(side, LangChain) else "retrieve"
        script = OPEN.format(imports=imports, line=line, ask=ask, queries=QUERIES)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        if done.returncode:
            return "no", done.stderr.strip().splitlines()[-1]
        answers = json.loads(done.stdout.splitlines()[-1])
    same = sum(ids == [hit.id for hit in side.search(retriever, q)] for q, ids in zip(QUERIES, answers, strict=True))
    return _answer(same == len(QUERIES), f"same answers to {same} of {len(QUERIES)} queries in another process")


def run_twice(side: Contender) -> Answer:
    """A script that makes a retriever of documents without ids, and keeps it in a folder, is run twice."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "kept")
        kind = None
        for _ in range(2):
            kind = _script(side, folder)
        retriever = side.load(kind, folder)
        twice = []
        for query in QUERIES:
            texts = [hit.text for hit in side.search(retriever, query)]
            twice += [text for text in texts if texts.count(text) > 1]
    return _answer(not twice, f"{len(set(twice))} documents are there twice")


def _script(side: Contender, folder: Path) -> type:
    if isinstance(side, LangChain):
        documents = [Document(page_content=p.text, metadata=p.metadata) for p in PASSAGES]
        if side.is_ours:
            kind = type(side.make(PASSAGES[:2]))
            kind.from_documents(documents, side.encoder, path=folder, k=6).close()
            return kind
        retriever = side.make(PASSAGES, k=6)
        call(retriever, "save_local", folder)
        return type(retriever)
    nodes = [TextNode(text=p.text, metadata=p.metadata, excluded_embed_metadata_keys=["group"]) for p in PASSAGES]
    if side.is_ours:
        kind = type(side.make(PASSAGES[:2]))
        kind(side.encoder, nodes, path=folder, similarity_top_k=6).close()
        return kind
    retriever = side.make(PASSAGES, k=6)
    call(retriever, "persist", str(folder))
    return type(retriever)


def pickled(side: Contender) -> Answer:
    return _copied(side, lambda retriever: pickle.loads(pickle.dumps(retriever)))


def deep_copied(side: Contender) -> Answer:
    return _copied(side, copy.deepcopy)


def _copied(side: Contender, how: Callable[[Any], Any]) -> Answer:
    retriever = side.make(PASSAGES, k=4)
    copied = how(retriever)
    same = sum(_ids(side.search(copied, query)) == _ids(side.search(retriever, query)) for query in QUERIES)
    return _answer(same == len(QUERIES), f"the copy gives the same answers to {same} of {len(QUERIES)} queries")


# -- nothing is embedded twice ----------------------------------------------------------------------------------------


@contextmanager
def _passes(side: Contender) -> Iterator[list[int]]:
    """The number of texts of each forward pass."""
    if side.encoder is None:
        raise Missing("it embeds nothing")
    seen: list[int] = []

    def note(module: Any, inputs: Any) -> None:
        seen.append(len(inputs[0]["input_ids"]))

    handle = side.encoder.model[0].register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def _named(name: str) -> list[Passage]:
    """Passages that no check before has embedded."""
    return [replace(passage, text=f"{passage.text[:-1]} in {name}.") for passage in MANY]


def build_once(side: Contender) -> Answer:
    passages = _named(f"the build of {side.framework} {side.name}")
    with _passes(side) as seen:
        side.make(passages, k=4)
    return _answer(sum(seen) == len(passages), f"{sum(seen)} texts embedded for {len(passages)} documents")


def carried(side: Contender) -> Answer:
    """Vectors that nodes or a store hold are used; one text may be embedded, to see whose they are."""
    passages = _named(f"the hold of {side.framework} {side.name}")
    if side.encoder is None:
        raise Missing("it embeds nothing")
    vectors = np.asarray(side.encoder.model.encode([p.text for p in passages], show_progress_bar=False))
    with _passes(side) as seen:
        if isinstance(side, LangChain) and side.is_ours:
            store = InMemoryVectorStore(KeyTokensEmbeddings(side.encoder))
            for document, vector in zip(as_documents(passages), vectors.tolist(), strict=True):
                held = {"id": document.id, "text": document.page_content, "metadata": document.metadata}
                store.store[document.id] = {**held, "vector": vector}
            if side.make_over is None:
                raise Missing("it takes no store")
            side.make_over(store, k=4)
        else:
            side.known(passages, vectors, 4)
    return _answer(sum(seen) <= 1, f"{sum(seen)} of {len(passages)} texts embedded again")


def one_pass(side: Contender) -> Answer:
    retriever = side.make(MANY, k=4)
    with _passes(side) as seen:
        side.search(retriever, f"what nobody has asked {side.framework} {side.name}")
    return _answer(sum(seen) == 1, f"{sum(seen)} texts embedded for one query")


def one_batch(side: Contender) -> Answer:
    retriever = side.make(MANY, k=4)
    questions = [f"{question} of {side.name}" for question in QUESTIONS]
    with _passes(side) as seen:
        call(retriever, "batch" if isinstance(side, LangChain) else "retrieve_batch", questions)
    return _answer(len(seen) == 1, f"{len(seen)} forward passes for {len(questions)} queries")


def opened(side: Contender) -> Answer:
    retriever = side.make(MANY, k=4)
    with tempfile.TemporaryDirectory() as name:
        side.save(retriever, Path(name, "saved"))
        with _passes(side) as seen:
            loaded = side.load(type(retriever), Path(name, "saved"))
            side.search(loaded, f"the first thing asked of {side.framework} {side.name}")
    return _answer(sum(seen) <= 1, f"{sum(seen)} texts embedded to open and to answer one query")


# -- every route is the same route ------------------------------------------------------------------------------------


class _Noted(BaseCallbackHandler):
    def __init__(self) -> None:
        self.count = 0

    def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
        self.count += 1


class _NotedEvents(BaseEventHandler):
    count: int = 0

    @classmethod
    def class_name(cls) -> str:
        return "Noted"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.count += isinstance(event, RetrievalEndEvent)


def _route(name: str) -> Check:
    def check(side: Contender) -> Answer:
        return (_langchain_route if isinstance(side, LangChain) else _llama_index_route)(side, name)

    return check


def _langchain_route(side: Contender, name: str) -> Answer:
    retriever, noted = side.make(PASSAGES, k=4), _Noted()
    config: Any = {"callbacks": [noted]}
    expected = [[document.id for document in retriever.invoke(query)] for query in QUERIES]

    async def each(ask: Callable[[str], Any]) -> list[Any]:
        return [await ask(query) for query in QUERIES]

    async def astreamed(query: str) -> Any:
        return [chunk async for chunk in retriever.astream(query, config)][-1]

    queries = list(QUERIES)
    routes: dict[str, Callable[[], Any]] = {
        "asynchronous": lambda: asyncio.run(each(lambda query: retriever.ainvoke(query, config))),
        "batch": lambda: retriever.batch(queries, config),
        "asynchronous batch": lambda: asyncio.run(retriever.abatch(queries, config)),
        "stream": lambda: [list(retriever.stream(query, config))[-1] for query in queries],
        "asynchronous stream": lambda: asyncio.run(each(astreamed)),
    }
    if name not in routes:
        raise Missing("a call of LlamaIndex")
    found = [[document.id for document in documents] for documents in routes[name]()]
    return _same_route(found == expected, noted.count, len(queries))


def _llama_index_route(side: Contender, name: str) -> Answer:
    retriever, noted = side.make(PASSAGES, k=4), _NotedEvents()
    expected = [_ids(side.search(retriever, query)) for query in QUERIES]
    queries, dispatcher = list(QUERIES), instrumentation.get_dispatcher()

    def engine() -> RetrieverQueryEngine:
        return RetrieverQueryEngine(retriever, get_response_synthesizer(llm=MockLLM()))

    async def each(ask: Callable[[str], Any]) -> list[Any]:
        return [await ask(query) for query in queries]

    routes: dict[str, Callable[[], Any]] = {
        "asynchronous": lambda: asyncio.run(each(retriever.aretrieve)),
        "batch": lambda: call(retriever, "retrieve_batch", queries),
        "asynchronous batch": lambda: asyncio.run(call(retriever, "aretrieve_batch", queries)),
        "query engine": lambda: [engine().retrieve(QueryBundle(query)) for query in queries],
        "asynchronous query engine": lambda: asyncio.run(each(lambda q: engine().aretrieve(QueryBundle(q)))),
    }
    if name not in routes:
        raise Missing("a call of LangChain")
    dispatcher.add_event_handler(noted)
    try:
        found = [[hit.node.node_id for hit in hits] for hits in routes[name]()]
    finally:
        dispatcher.event_handlers = [handler for handler in dispatcher.event_handlers if handler is not noted]
    return _same_route(found == expected, noted.count, len(queries))


def _same_route(is_same: bool, told: int, asked: int) -> Answer:
    """Callbacks and events may tell of more: a retriever that asks others tells of these too."""
    return _answer(is_same and told >= asked, f"same answers: {is_same}; callbacks tell of {told} for {asked} queries")


def an_empty_text(side: Contender) -> Answer:
    retriever = side.make([*PASSAGES, Passage("empty", "", "a")], k=4)
    found = [hit.id for hit in side.search(retriever, QUERIES[0])]
    return _answer(found[:1] == ["stars"], f"found {found} beside an empty text")


KINDS: dict[str, dict[str, Check]] = {
    "documents change and go": {
        **{f"index(), {cleanup} cleanup": _indexed(cleanup) for cleanup in ("incremental", "full", "scoped_full")},
        "index.insert": _through_index("insert"),
        "index.delete_ref_doc": _through_index("delete"),
        "index.refresh_ref_docs": _through_index("refresh"),
    },
    "filters hold": {
        "when it is made": when_made,
        "in a call": in_a_call,
        "where something else asks": under_another,
        "booleans": _values("public", True, "=="),
        "dates as instants": _values("at", datetime.datetime(2024, 4, 30, 22, 0, tzinfo=datetime.timezone.utc), ">="),
        "lists": _values("tags", "x", "contains"),
    },
    "the next day": {
        "another process": another_process,
        "a script run twice": run_twice,
        "pickle": pickled,
        "deep copy": deep_copied,
    },
    "nothing is embedded twice": {
        "a document, when built": build_once,
        "vectors that are there": carried,
        "a query": one_pass,
        "a batch in one pass": one_batch,
        "when opened": opened,
    },
    "every route is the same": {
        **{
            name: _route(name)
            for name in (
                "asynchronous",
                "batch",
                "asynchronous batch",
                "stream",
                "asynchronous stream",
                "query engine",
                "asynchronous query engine",
            )
        },
        "an empty text loses nothing": an_empty_text,
    },
}
OTHERS = {  # the beginnings of the names of checks that are calls of the other framework, and left out
    "LangChain": ("index.", "query engine", "asynchronous query engine"),
    "LlamaIndex": ("index()", "stream", "asynchronous stream"),
}


def examine(side: Contender, kind: str) -> dict[str, Any]:
    """Does all of a kind. The cell is "yes", "no", or how many of how many; "-" where there is nothing to do wrong."""
    checks = {}
    for name, check in KINDS[kind].items():
        if name.startswith(OTHERS[side.framework]):
            continue
        try:
            cell, evidence = check(side)
        except Missing as error:
            cell, evidence = "no", str(error)
        except Exception as error:
            if side.is_ours:
                raise
            cell, evidence = "no", f"{type(error).__name__}: {error}"
        checks[name] = {"cell": cell, "evidence": (evidence.splitlines() or [""])[0][:200]}
    if side.encoder is None and kind == "nothing is embedded twice":
        return {"cell": "-", "checks": {name: {"cell": "-", "evidence": "it embeds nothing"} for name in checks}}
    right = sum(seen["cell"] == "yes" for seen in checks.values())
    cell = {0: "no", len(checks): "yes"}.get(right, f"{right} of {len(checks)}")
    return {"cell": cell, "checks": checks}


def _ids(hits: Sequence[Found]) -> list[str]:
    return [hit.id for hit in hits]


def _answer(is_right: bool, evidence: str) -> Answer:
    return ("yes" if is_right else "no"), evidence
