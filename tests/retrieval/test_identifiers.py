"""Identifiers and codes in long chunks are found as BM25 finds them, whatever the calibration was fitted on."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from st_keytokens import KeyTokenEncoder
from st_keytokens.retrieval import Retriever, SearchSettings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
KINDS = ("QX-48213-ZT", "a7f3c09e", "ISO 48213", "model_48213b", "48213.77")


def code(rng: random.Random, kind: str) -> str:
    """Another of a kind: each digit and each letter by chance, beside the words that stay."""
    other = [rng.choice("0123456789") if c.isdigit() else c for c in kind]
    return "".join(rng.choice("BCDFGHJKLMNP") if c in "QXZT" else c for c in other)


@pytest.fixture(scope="module")
def abstracts():
    with (EXAMPLES / "data" / "arxiv-abstracts" / "corpus.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(next(lines))["text"] for _ in range(210)]


@pytest.fixture(scope="module")
def chunks(abstracts):
    """Thirty of some 1,000 words, a code at the end of each."""
    rng = random.Random(1)
    codes = [code(rng, KINDS[number % len(KINDS)]) for number in range(30)]
    assert len(set(codes)) == 30
    texts = [" ".join(abstracts[n * 7 : n * 7 + 7]) + f" The part has the number {codes[n]}." for n in range(30)]
    return codes, texts


def corpora(abstracts, texts):
    short = [text.split(". ")[0] for text in abstracts]
    return {"first sentences": short, "the chunks": texts, "other words": ["Proteins fold.", "Stars shine."] * 20}


def found_first(encoder, texts, queries):
    with Retriever(encoder) as retriever:
        retriever.add(texts, ids=[str(n) for n in range(len(texts))])
        found = retriever.search(queries, SearchSettings(mode="sparse", top_k=1))
    return [bool(hits) and hits[0].id == str(number) for number, hits in enumerate(found)]


def found_first_by_bm25(texts, queries):
    rank_bm25 = pytest.importorskip("rank_bm25")
    bm25 = rank_bm25.BM25Okapi([re.findall(r"\w+", text.lower()) for text in texts])
    scores = [bm25.get_scores(re.findall(r"\w+", query.lower())) for query in queries]
    return [int(row.argmax()) == number for number, row in enumerate(scores)]


@pytest.mark.parametrize("query", ["encode", "lookup"])
@pytest.mark.parametrize("fitted_on", ["first sentences", "the chunks", "other words"])
def test_a_code_is_found_first_whatever_the_calibration_was_fitted_on(abstracts, chunks, fitted_on, query):
    codes, texts = chunks
    assert all(found_first_by_bm25(texts, codes))
    encoder = KeyTokenEncoder(EXAMPLES / "tiny-embedder" / "embedder", query=query)
    encoder.calibrate(corpora(abstracts, texts)[fitted_on], show_progress_bar=False)
    assert all(found_first(encoder, texts, codes))


@pytest.mark.parametrize("query", ["encode", "lookup"])
@pytest.mark.parametrize("fitted_on", ["first sentences", "the chunks", "other words"])
def test_a_code_among_words_is_found_first(abstracts, chunks, fitted_on, query):
    """Words that the calibration has hardly seen, such as "part" or even "the", are common in the index."""
    codes, texts = chunks
    queries = [f"the part {name}" for name in codes]
    assert all(found_first_by_bm25(texts, queries))
    encoder = KeyTokenEncoder(EXAMPLES / "tiny-embedder" / "embedder", query=query)
    encoder.calibrate(corpora(abstracts, texts)[fitted_on], show_progress_bar=False)
    assert all(found_first(encoder, texts, queries))
