"""The embedder made from SmolLM2-135M: its adapter on the published model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from st_keytokens import KeyTokenEncoder

pytestmark = pytest.mark.real
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COUNT = 60


@pytest.fixture(scope="module")
def merge():
    sys.path.insert(0, str(EXAMPLES / "smollm2-embedder"))
    import merge

    sys.path.pop(0)
    return merge


@pytest.fixture(scope="module")
def base():
    root = os.environ.get("ST_KEYTOKENS_MODELS")
    if not root or not Path(root, "smollm2-135m").is_dir():
        pytest.skip("ST_KEYTOKENS_MODELS must name a folder that holds smollm2-135m; see CONTRIBUTING.md")
    return Path(root, "smollm2-135m")


@pytest.fixture(scope="module")
def papers():
    folder = EXAMPLES / "data" / "arxiv-abstracts"
    with (folder / "queries.jsonl").open(encoding="utf-8") as lines:
        titles = [json.loads(next(lines)) for _ in range(COUNT)]
    with (folder / "corpus.jsonl").open(encoding="utf-8") as lines:
        texts = {row["_id"]: row["text"] for row in map(json.loads, lines)}
    return [title["text"] for title in titles], [texts[title["_id"]][:300] for title in titles]


def test_tuning_made_an_embedder_of_the_language_model(merge, base, papers, tmp_path):
    found_first = {}
    for name, adapter in (("untuned", None), ("tuned", merge.ADAPTER)):
        model = merge.load(base, adapter)
        titles, texts = (model.encode(each, normalize_embeddings=True) for each in papers)
        found_first[name] = float(np.mean((titles @ texts.T).argmax(axis=1) == np.arange(COUNT)))
    assert found_first["tuned"] >= 0.85 > found_first["untuned"] + 0.2, found_first
    model.save_pretrained(str(tmp_path / "merged"))
    encoder = KeyTokenEncoder(str(tmp_path / "merged"))
    assert np.allclose(encoder.encode(papers[1][:2]).dense, model.encode(papers[1][:2]), rtol=1e-3, atol=1e-3)
    (tokens,) = encoder.key_tokens("Genes encode proteins.", top_k=20)
    assert {"genes", "proteins", "gene", "protein"} & {token.lower() for token, _ in tokens}
