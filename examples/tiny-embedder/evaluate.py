"""Measures the tiny embedder: dense retrieval beside BM25, and how its embeddings align with key tokens.

    python examples/tiny-embedder/evaluate.py --data ../shared/data

Writes ``results.json`` beside the model and prints the tables of the model card.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from pathlib import Path

import bm25s
import ir_measures
import numpy as np
import torch
from ir_measures import R, nDCG
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from st_keytokens import KeyTokenEncoder

COLLECTIONS = ("scifact", "arxiv-heldout", "squad-dev", "cranfield", "dbpedia-entity-sub")
ALIGNMENT_TEXTS = 1000


def read_jsonl(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_collection(folder: Path) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    """Documents, queries that have judgements, and judgements."""
    documents = {d["_id"]: f"{d['title']} {d['text']}".strip() for d in read_jsonl(folder / "corpus.jsonl")}
    judgements: dict[str, dict[str, int]] = {}
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            judgements.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    queries = {q["_id"]: q["text"] for q in read_jsonl(folder / "queries.jsonl") if q["_id"] in judgements}
    return documents, queries, judgements


def run_of(doc_ids: list[str], query_ids: list[str], scores: np.ndarray, depth: int = 100) -> dict:
    top = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return {q: {doc_ids[j]: float(scores[i, j]) for j in top[i]} for i, q in enumerate(query_ids)}


def dense_run(model: SentenceTransformer, documents: dict[str, str], queries: dict[str, str]) -> dict:
    corpus = model.encode_document(list(documents.values()), normalize_embeddings=True, batch_size=64)
    asked = model.encode_query(list(queries.values()), normalize_embeddings=True, batch_size=64)
    return run_of(list(documents), list(queries), asked @ corpus.T)


def bm25_run(documents: dict[str, str], queries: dict[str, str]) -> dict:
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(documents.values()), show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(queries.values()), show_progress=False, return_ids=False)
    scores = np.stack([retriever.get_scores(t) if t else np.zeros(len(documents)) for t in tokens])
    return run_of(list(documents), list(queries), scores)


def measure(judgements: dict, run: dict) -> dict[str, float]:
    values = ir_measures.calc_aggregate([nDCG @ 10, R @ 100], judgements, run)
    return {str(name): round(value, 4) for name, value in values.items()}


def alignment(encoder: KeyTokenEncoder, texts: list[str], frequencies: np.ndarray, **head: object) -> dict:
    """Hit@10 and local alignment rate with the texts' own terms, of all terms and of content terms only.

    Content terms occur in at most a tenth of the corpus: function words, which are in every text, are none. Without
    settings of a head the answer is always the corpus's most frequent terms, which is the baseline.
    """
    decoder = encoder.head.with_settings(**head) if head else None
    pooled = torch.from_numpy(encoder.embed(texts, batch_size=64)) if decoder else None
    is_content = frequencies <= 0.1 * encoder.calibration.document_count
    by_frequency = np.argsort(-frequencies, kind="stable")
    hits: dict[str, list[bool]] = {"all": [], "content": []}
    rates: dict[str, list[float]] = {"all": [], "content": []}
    for i, literal in enumerate(encoder.literal_terms(texts)):
        ranked = by_frequency
        if decoder is not None:
            order = decoder.decode_scores(pooled[i : i + 1])[0].argsort(descending=True).numpy()
            terms, first = np.unique(encoder.vocabulary.terms[order], return_index=True)
            ranked = terms[np.argsort(first)]
        own = np.unique(literal)
        for kind, wanted, found in (
            ("all", own, ranked),
            ("content", own[is_content[own]], ranked[is_content[ranked]]),
        ):
            if len(wanted):
                hits[kind].append(bool(np.isin(found[:10], wanted).any()))
                rates[kind].append(float(np.isin(found[: len(wanted)], wanted).mean()))
    return {
        kind: {
            "hit@10": round(float(np.mean(hits[kind])), 4),
            "local_alignment_rate": round(float(np.mean(rates[kind])), 4),
        }
        for kind in hits
    }


def tables(results: dict) -> str:
    """The model card's tables, in Markdown."""
    methods = [name for name in next(iter(results["retrieval"].values())) if name not in ("documents", "queries")]
    lines = ["| nDCG@10 | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for collection, row in results["retrieval"].items():
        lines.append(f"| {collection} | " + " | ".join(f"{row[m]['nDCG@10']:.3f}" for m in methods) + " |")
    for kind in ("all", "content"):
        lines += ["", f"| Hit@10 / local alignment rate, {kind} terms | " + " | ".join(results["alignment"]) + " |"]
        lines.append("|---" * (len(results["alignment"]) + 1) + "|")
        for name in next(iter(results["alignment"].values())):
            cells = [row[name][kind] for row in results["alignment"].values()]
            numbers = (f"{cell['hit@10']:.3f} / {cell['local_alignment_rate']:.3f}" for cell in cells)
            lines.append(f"| {name} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds collections/")
    parser.add_argument("--models", type=Path, default=here, help="folder that holds backbone/ and embedder/")
    parser.add_argument("--collections", nargs="*", default=COLLECTIONS)
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()

    results: dict = {"retrieval": {}, "alignment": {}}
    models = {name: SentenceTransformer(str(arguments.models / name)) for name in ("embedder", "backbone")}
    for name in tqdm(arguments.collections, desc="collections"):
        documents, queries, judgements = read_collection(arguments.data / "collections" / name)
        results["retrieval"][name] = {
            "documents": len(documents),
            "queries": len(queries),
            "bm25 (bm25s, English stop words)": measure(judgements, bm25_run(documents, queries)),
            "embedder, dense": measure(judgements, dense_run(models["embedder"], documents, queries)),
            "backbone, mean-pooled": measure(judgements, dense_run(models["backbone"], documents, queries)),
        }

    # A calibration on one half of the abstracts, alignment on texts of the other half.
    documents, _, _ = read_collection(arguments.data / "collections" / "arxiv-heldout")
    ordered = sorted(documents, key=lambda i: hashlib.sha1(i.encode()).hexdigest())
    held = [documents[i] for i in ordered[:ALIGNMENT_TEXTS]]
    other = [documents[i] for i in ordered[len(ordered) // 2 :]]
    for name, model in models.items():
        encoder = KeyTokenEncoder(model)
        encoder.calibrate(other[:5000], show_progress_bar=False)
        frequent = encoder.calibration.document_frequencies
        results["alignment"][name] = {
            "frequency baseline": alignment(encoder, held, frequent),
            "raw": alignment(encoder, held, frequent, correction="none", standardize=False),
            "first component removed": alignment(encoder, held, frequent, correction="remove", standardize=False),
            "centred": alignment(encoder, held, frequent, correction="center", standardize=False),
            "removed and standardised": alignment(encoder, held, frequent, correction="remove", standardize=True),
        }
    output = arguments.output or arguments.models / "results.json"
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(tables(results))


if __name__ == "__main__":
    main()
