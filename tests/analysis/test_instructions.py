from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_models import build_sentence_transformer

from st_keytokens import KeyTokenEncoder
from st_keytokens.analysis.instructions import compare_instructions

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny-embedder" / "embedder"
TEXTS = ["The genome of a mouse is about as long as the genome of a human.", "Bread is baked from flour and water."]
PROMPT = "The climate of the ocean: "


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    return KeyTokenEncoder(llama_embedder)


@pytest.fixture(scope="module")
def found(encoder):
    return compare_instructions(encoder, TEXTS, {"climate": PROMPT, "empty": ""}, top_k=6)


class TestComparison:
    def test_the_key_tokens_are_those_of_the_prompted_text(self, found, llama_embedder, encoder):
        for name, prompt in {"none": "", "climate": PROMPT}.items():
            vectors = llama_embedder.encode([prompt + text for text in TEXTS], convert_to_tensor=True)
            ids, weights = encoder.head.decode(vectors, max_active_dims=6)
            for i, row in enumerate(found.by_text[name]):
                said = {
                    encoder.vocabulary.strings[t]: w for t, w in zip(ids[i].tolist(), weights[i].tolist(), strict=True)
                }
                assert dict(row.tokens) == pytest.approx(said, rel=1e-3)
                in_order = [w for _, w in row.tokens]
                assert in_order == sorted(in_order, reverse=True)

    def test_what_enters_and_leaves(self, found):
        for before, now in zip(found.by_text["none"], found.by_text["climate"], strict=True):
            base, said = dict(before.tokens), dict(now.tokens)
            assert {t for t, _ in now.entered} == said.keys() - base.keys()
            assert dict(now.left) == {t: w for t, w in base.items() if t not in said}
            assert now.kept == pytest.approx(len(base.keys() & said.keys()) / len(base))
        assert any(row.entered for row in found.by_text["climate"])

    def test_the_cosine_is_that_of_the_dense_vectors(self, found, llama_embedder):
        plain, prompted = llama_embedder.encode(TEXTS), llama_embedder.encode(TEXTS, prompt=PROMPT)
        cosines = (plain * prompted).sum(1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(prompted, axis=1)
        assert [row.cosine for row in found.by_text["climate"]] == pytest.approx(cosines.tolist(), rel=1e-4)
        assert found.effects["climate"].cosine == pytest.approx(cosines.mean(), rel=1e-4)

    def test_an_empty_instruction_changes_nothing(self, found):
        effect = found.effects["empty"]
        assert (effect.kept, effect.entered, effect.left, effect.own_words) == (1, (), (), None)
        assert found.by_text["empty"] == found.by_text["none"]

    def test_counts_over_texts(self, found):
        effect = found.effects["climate"]
        for name in ("entered", "left"):
            tokens = [t for row in found.by_text["climate"] for t, _ in getattr(row, name)]
            assert dict(getattr(effect, name)) == {t: tokens.count(t) for t in tokens}
            counts = [count for _, count in getattr(effect, name)]
            assert counts == sorted(counts, reverse=True)

    def test_own_words_of_a_real_embedder(self):
        encoder = KeyTokenEncoder(TINY)
        prompt = "What is the sentiment of this text?"
        found = compare_instructions(encoder, [*TEXTS, "The film was a wonderful surprise."], [f"{prompt} "])
        (effect,) = [effect for name, effect in found.effects.items() if name != "none"]
        entered = [t for row in found.by_text[prompt] for t, _ in row.entered]
        own = {"what", "is", "the", "sentiment", "of", "this", "text", "?"}
        assert found.pools_prompt
        assert effect.own_words == pytest.approx(sum(t in own for t in entered) / len(entered))
        assert "sentiment" in entered  # which a mean over the prompt's tokens brings in

    def test_pooling_without_the_prompt_is_told(self, tmp_path):
        model = build_sentence_transformer(tmp_path)
        model[1].include_prompt = False
        assert not compare_instructions(KeyTokenEncoder(model), TEXTS, [PROMPT]).pools_prompt

    def test_a_named_baseline(self, encoder, found):
        turned = compare_instructions(encoder, TEXTS, {"none": "", "climate": PROMPT}, baseline="climate", top_k=6)
        assert turned.baseline == "climate" and list(turned.effects) == ["climate", "none"]
        assert [t for t, _ in turned.by_text["none"][0].entered] == [t for t, _ in found.by_text["climate"][0].left]

    def test_one_text_without_a_term(self, encoder):
        found = compare_instructions(encoder, " ", [PROMPT])
        (row,) = found.by_text[PROMPT.strip()]
        assert (row.tokens, row.entered, row.left, row.kept) == ((), (), (), 1)
        (row,) = compare_instructions(encoder, "", [PROMPT]).by_text[PROMPT.strip()]
        assert (row.tokens, row.cosine) == ((), 0)  # without a prompt the model sees no token


class TestWritten:
    def test_json(self, found):
        content = json.loads(json.dumps(found.to_dict()))
        assert content["effects"]["climate"]["prompt"] == PROMPT
        assert [text["text"] for text in content["texts"]] == TEXTS
        assert content["texts"][0]["instructions"]["none"]["kept"] == 1

    def test_tables(self, found):
        lines = found.table().splitlines()
        assert [line.split(" | ")[0] for line in lines[2:]] == ["| climate", "| empty"]
        marked = found.text_table(1).splitlines()[3]
        assert marked.count("+") >= len(found.by_text["climate"][1].entered)


class TestValidation:
    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            (([], [PROMPT]), r"texts must hold at least one text, got none"),
            ((TEXTS, []), r"instructions must hold at least one, got none"),
            ((TEXTS, [PROMPT, PROMPT]), r"instructions must differ from one another"),
            ((TEXTS, {"none": PROMPT}), r"instructions must not be named 'none'"),
        ],
    )
    def test_values(self, encoder, arguments, match):
        with pytest.raises(ValueError, match=match):
            compare_instructions(encoder, *arguments)

    def test_others(self, encoder):
        with pytest.raises(TypeError, match=r"instructions must be a string or a sequence of strings, got int"):
            compare_instructions(encoder, TEXTS, {"a": 3})
        with pytest.raises(ValueError, match=r"baseline must be one of 'a', got 'b'"):
            compare_instructions(encoder, TEXTS, {"a": PROMPT}, baseline="b")
        with pytest.raises(ValueError, match=r"top_k must be between 1 and 256, got 257"):
            compare_instructions(encoder, TEXTS, [PROMPT], top_k=257)
