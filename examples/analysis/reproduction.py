"""The claims of Nie et al. 2025, measured on published models and on the pairs of backbone and embedder made here.

    python examples/analysis/reproduction.py --data ../shared/data --models models --cache vectors

``--models`` is a folder with smollm2-135m and smollm2-embedder (examples/smollm2-embedder), minilm and
embeddinggemma-300m (their published files); what is not there is left out. Writes reproduction.json, model by model,
and the tables of docs/results/reproduction.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from st_keytokens import Calibration, KeyTokenEncoder, KeyTokenHead, LMHead
from st_keytokens.analysis import (
    compare_instructions,
    measure_alignment,
    measure_contribution,
    measure_spectrum,
    measure_variation,
    sweep_shift,
)
from st_keytokens.analysis.alignment import VARIANTS, document_frequencies
from st_keytokens.encoder.pooled_vectors import pooled_vectors
from st_keytokens.evaluation import read_collection
from st_keytokens.evaluation.encoded import encode_collection, with_settings
from st_keytokens.evaluation.measures import measure_collection
from st_keytokens.evaluation.methods import run_methods

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(EXAMPLES / "benchmarks"))
from environment import RESULTS, environment  # noqa: E402 - beside the other scripts
from instructions import INSTRUCTIONS, TEXTS  # noqa: E402
from reproduction_page import filled  # noqa: E402

CONTENT = 0.1  # content terms are those of at most a tenth of the texts
COLLECTIONS = ("cranfield", "dbpedia-entity-sub")
SENTIMENT = frozenset(
    "good bad great best worst better worse nice poor fine positive negative happy sad love hate like dislike joy fun "
    "terrible horrible awful wonderful excellent amazing fantastic disappointing disappointed boring dull brilliant "
    "beautiful ugly pleased unhappy angry glad delighted enjoyed satisfied upset annoying pleasant unpleasant".split()
)
PAIR = ("I like apple", "I do not like apple", "I like banana")
REFUSAL = frozenset("dislike hate not no never don refuse disgust unlike cannot nothing without".split())


def by_input_embeddings(path: Path) -> KeyTokenEncoder:
    """An encoder model, whose own LM head is not published with it."""
    model = SentenceTransformer(str(path))
    return KeyTokenEncoder(model, head=KeyTokenHead(LMHead.from_input_embeddings(model[0].auto_model)))


def published(path: Path, **settings: Any) -> KeyTokenEncoder:
    return KeyTokenEncoder.from_pretrained(path, model_arguments={"model_kwargs": {"dtype": "bfloat16"}}, **settings)


def loaders(models: Path) -> dict[str, tuple[Callable[[], KeyTokenEncoder], Callable[[], KeyTokenEncoder] | None]]:
    """Each model, with the language model that it was made from where both are pooled alike."""
    tiny, smol = EXAMPLES / "tiny-embedder", models / "smollm2-135m"

    def untuned() -> KeyTokenEncoder:
        return published(smol, recipe="prompteol")

    found: dict[str, Any] = {
        "SmolLM2 embedder": (models / "smollm2-embedder", lambda: published(models / "smollm2-embedder"), untuned),
        "SmolLM2, one-word prompt, untuned": (smol, untuned, None),
        "tiny embedder": (
            tiny,
            lambda: KeyTokenEncoder(tiny / "embedder"),
            lambda: KeyTokenEncoder(tiny / "backbone"),
        ),
        "EmbeddingGemma 300M": (
            models / "embeddinggemma-300m",
            lambda: published(models / "embeddinggemma-300m"),
            None,
        ),
        "all-MiniLM-L6-v2": (models / "minilm", lambda: by_input_embeddings(models / "minilm"), None),
    }
    return {name: (load, backbone) for name, (path, load, backbone) in found.items() if path.exists()}


def sentences(data: Path) -> list[str]:
    """Distinct sentences of the STS benchmark, in the order of the files."""
    found: dict[str, None] = {}
    for part in ("dev", "test"):
        with (data / "analysis" / "sts-benchmark" / f"{part}.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                found[json.loads(line)["sentence1"]] = None
    return list(found)


def alignment(texts: list[str], encoders: dict[str, KeyTokenEncoder], embeddings: dict[str, np.ndarray]) -> dict:
    """The paper's three measures, as published, clean, and clean of content terms."""
    raw = {"raw": VARIANTS["raw"], "corrected": VARIANTS["corrected"]}
    kinds: dict[str, dict[str, Any]] = {
        "as published": {"definition": "nie2025", "variants": raw},
        "all terms": {"variants": raw},
        "content terms": {"variants": raw, "max_document_share": CONTENT},
    }
    return {
        kind: measure_alignment(texts, encoders, embeddings=embeddings, **how).to_dict() for kind, how in kinds.items()
    }


def spectra(texts: list[str], encoders: dict[str, KeyTokenEncoder], embeddings: dict[str, np.ndarray]) -> dict:
    """What the first component feeds; and, beside a backbone, where the change is and what a shift along it does.

    Vectors are those right after pooling, not normalised.
    """
    found: dict[str, Any] = {"first_share": {}, "frequency_correlations": {}, "most_fed": {}}
    for name, encoder in encoders.items():
        spectrum = measure_spectrum(embeddings[name])
        found["first_share"][name] = float(spectrum.shares[0])
        contribution = measure_contribution(
            encoder, texts, embeddings=embeddings[name], component=spectrum, examples=0
        )
        tokens = encoder.over_tokens()
        frequencies = document_frequencies(tokens.literal_terms(texts), len(tokens.vocabulary))
        found["frequency_correlations"][name] = contribution.frequency_correlations(frequencies)
        found["most_fed"][name] = {
            part: [token.token for token in contribution.mean_tokens(part)] for part in ("first", "rest")
        }
    if "backbone" in encoders:
        variation = measure_variation(embeddings["embedder"], embeddings["backbone"])
        found["variation"] = {
            "v": variation.variations[:20].tolist(),
            "largest": variation.largest,
            "next_largest": float(np.sort(np.abs(variation.variations))[-2]),
            "mean_change_share": float(variation.mean_change_shares[0]),
            "change_share": float(variation.change_shares[0]),
            "mean_projection": float(variation.spectrum.first_component.coefficient),
        }
        shifts = [0.0, float(variation.variations[0])]
        found["shift"] = {
            kind: sweep_shift(
                encoders["backbone"],
                texts,
                embeddings=embeddings["backbone"],
                component=variation,
                shifts=shifts,
                max_document_share=share,
            ).to_dict()["rows"]
            for kind, share in (("all terms", 1.0), ("content terms", CONTENT))
        }
    return found


def retrieval(encoder: KeyTokenEncoder, data: Path, cache: Path) -> dict:
    """nDCG@10 of dense vectors and of the paper's method."""
    found = {}
    for name in COLLECTIONS:
        collection = read_collection(data / "collections" / name)
        encoded = encode_collection(collection, encoder, calibrate=True, cache=cache)
        runs = run_methods(encoded, ["dense", "nie2025", "nie2025-remove"])
        found[name] = {
            method: float(np.mean(measure_collection(collection, run.rankings)["nDCG@10"]))
            for method, run in runs.items()
        }
    return found


def instructions(encoder: KeyTokenEncoder) -> dict:
    """Shares of ten key tokens that stay, and of texts with a word of sentiment that is not the prompt's."""
    compared = compare_instructions(encoder, TEXTS, INSTRUCTIONS)
    rows = {}
    for name, texts in compared.by_text.items():
        effect = compared.effects[name]
        words = [{token.strip().lower() for token, _ in text.tokens} for text in texts]
        wanted = SENTIMENT - set(INSTRUCTIONS.get(name, "").lower().strip(": ").split())
        rows[name] = {
            "kept": effect.kept,
            "cosine": effect.cosine,
            "texts_with_sentiment": float(np.mean([bool(tokens & wanted) for tokens in words])),
            "first_text": [token for token, _ in texts[0].tokens],
        }
    return {"rows": rows}


def negation(encoder: KeyTokenEncoder) -> dict:
    """Key tokens and cosines of the paper's pair, beside another fruit."""
    vectors = encoder.model.encode(list(PAIR), normalize_embeddings=True, convert_to_numpy=True).astype(np.float64)
    tokens = [[token for token, _ in row] for row in encoder.key_tokens(list(PAIR), top_k=10)]
    refused = [sorted({token.strip().lower() for token in row} & REFUSAL) for row in tokens]
    return {"cosines": (vectors[0] @ vectors[1:].T).tolist(), "key_tokens": tokens, "refusal": refused}


def measure(
    load: Callable[[], KeyTokenEncoder], backbone: Callable[[], KeyTokenEncoder] | None, texts: list[str], count: int
) -> tuple[dict[str, Any], KeyTokenEncoder]:
    """All claims but retrieval of one model, and the model."""
    encoders = {"embedder": load()}
    if backbone is not None:
        encoders["backbone"] = backbone()
    pooled, embeddings = {}, {}
    for name, encoder in encoders.items():
        pooled[name], _ = pooled_vectors(encoder, texts[:count])
        embeddings[name] = encoder.prepare_embeddings(pooled[name])
        encoder.calibration = Calibration.fit_embeddings(encoder.embed(texts[count:]), show_progress_bar=False)
    tokens = encoders["embedder"].over_tokens()  # a model may hold a head already
    settings = {**tokens.head.get_config_dict(), **VARIANTS["standardized"]}
    shown = with_settings(tokens, tokens.weighting, tokens.calibration, **settings)
    found = {
        "alignment": alignment(texts[:count], encoders, embeddings),
        "spectrum": spectra(texts[:count], encoders, pooled),
        "instructions": instructions(shown),
        "negation": negation(shown),
    }
    return found, encoders["embedder"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds collections/ and analysis/")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="keep the embeddings of collections here")
    parser.add_argument("--only", nargs="*", help="names of models; the others stay as they were measured")
    parser.add_argument("--texts", type=int, default=1000, help="sentences; as many others for the calibration")
    arguments = parser.parse_args()
    path = RESULTS / "reproduction.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"models": {}}
    texts = sentences(arguments.data)[: 2 * arguments.texts]
    for name, (load, backbone) in loaders(arguments.models).items():
        if arguments.only is not None and name not in arguments.only:
            continue
        began = time.monotonic()
        found, encoder = measure(load, backbone, texts, arguments.texts)
        encoder.calibration = None
        found["retrieval"] = retrieval(encoder, arguments.data, arguments.cache)
        results["models"][name] = found | {"seconds": round(time.monotonic() - began)}
        results |= {"environment": environment(), "sentences": arguments.texts}
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    page = path.with_suffix(".md")
    page.write_text(filled(page.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
