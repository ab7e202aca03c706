from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from encoder_checks import count_passes
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from small_models import build_sentence_transformer

from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.encoder.forward_pass import ForwardPass, as_sparse, find_head, resolve_prompt
from st_keytokens.key_token_head import KeyTokenHead


@pytest.fixture
def embedder(llama_embedder):
    return copy.deepcopy(llama_embedder)


def build(model: SentenceTransformer, **settings) -> ForwardPass:
    return ForwardPass(model, KeyTokenHead.for_model(model, **settings).eval())


def names(modules) -> list[str]:
    return [type(module).__name__ for module in modules]


@torch.inference_mode()
def both(forward_pass: ForwardPass, texts, role="document", **arguments):
    return forward_pass.both(texts, role, None, **arguments)


class TestPlace:
    def test_right_after_pooling(self, embedder):
        embedder.append(Dense(32, 16))
        embedder.append(Normalize())
        forward_pass = build(embedder)
        assert names(forward_pass.before) == ["Transformer", "Pooling"]
        assert names(forward_pass.after) == ["Dense", "Normalize"]

    def test_before_a_closing_normalisation_where_nothing_pools(self, embedder):
        class Pool(torch.nn.Module):
            def forward(self, features):
                features["sentence_embedding"] = features["token_embeddings"].mean(1)
                return features

        model = SentenceTransformer(modules=[embedder[0], Pool(), Normalize()], device="cpu")
        forward_pass = build(model)
        assert names(forward_pass.before) == ["Transformer", "Pool"]
        assert names(forward_pass.after) == ["Normalize"]

    def test_of_a_head_in_the_model(self, embedder):
        head = KeyTokenHead.for_model(embedder)
        embedder.append(head)
        embedder.append(Normalize())
        assert find_head(embedder) is head
        forward_pass = ForwardPass(embedder, head)
        assert names(forward_pass.before) == ["Transformer", "Pooling"]
        assert names(forward_pass.after) == ["Normalize"]

    def test_a_model_without_head(self, embedder):
        assert find_head(embedder) is None

    def test_another_width(self, embedder):
        head = KeyTokenHead(LMHead(torch.nn.Embedding(640, 48)))
        head.bind(embedder)
        with pytest.raises(ValueError, match=r"lm_head must decode vectors of dimension 32, .* for dimension 48"):
            ForwardPass(embedder, head)


class TestBoth:
    def test_vectors_and_terms_are_those_of_the_modules_one_by_one(self, embedder, sentences):
        embedder.append(Dense(32, 16))
        forward_pass = build(embedder, max_active_dims=9, query_max_active_dims=4)
        for role, k in (("document", 9), ("query", 4)):
            dense, decoded = both(forward_pass, sentences, role, batch_size=7)
            np.testing.assert_allclose(dense, embedder.encode(sentences), rtol=1e-4, atol=1e-5)
            pooled = forward_pass.chain(forward_pass.before).encode(sentences, convert_to_tensor=True)
            expected = as_sparse(forward_pass.head.decode(pooled, max_active_dims=k), forward_pass.head.vocabulary)
            assert np.array_equal(decoded.indices, expected.indices)
            np.testing.assert_allclose(decoded.values, expected.values, rtol=1e-3)

    def test_longest_texts_run_first_and_come_back_in_place(self, embedder):
        lengths: list[int] = []
        embedder[0].auto_model.get_input_embeddings().register_forward_hook(
            lambda module, inputs, output: lengths.append(output.shape[1])
        )
        texts = ["wolf", "wolf " * 30, "a wolf", "wolf " * 60]
        dense, _ = both(build(embedder), texts, batch_size=1)
        assert lengths == sorted(lengths, reverse=True)
        np.testing.assert_allclose(dense, embedder.encode(texts, batch_size=1), rtol=1e-5, atol=1e-6)

    def test_no_texts(self, embedder):
        dense, decoded = both(build(embedder), [])
        assert dense.shape == (0, 32)
        assert decoded.shape == (0, 640)

    def test_batch_size(self, embedder):
        with pytest.raises(ValueError, match=r"batch_size must be >= 1, got 0"):
            both(build(embedder), ["a"], batch_size=0)

    def test_truncated(self, embedder, sentences):
        embedder.truncate_dim = 8
        forward_pass = build(embedder)
        assert (forward_pass.embedding_dimension, forward_pass.pooled_dimension) == (8, 32)
        np.testing.assert_allclose(both(forward_pass, sentences)[0], embedder.encode(sentences), rtol=1e-4, atol=1e-5)


class TestPasses:
    LENGTHS = [1500, 1000, 1000, 2500] + [12] * 60

    @pytest.fixture(params=[1, 2])
    def threads(self, request):
        before = torch.get_num_threads()
        torch.set_num_threads(request.param)
        yield request.param
        torch.set_num_threads(before)

    @pytest.fixture
    def texts(self):
        return [f"{number:02}{' deer' * length}"[:length] for number, length in enumerate(self.LENGTHS)]

    def test_a_cpu_takes_some_thousand_characters_at_a_time(self, embedder, texts, threads):
        ran = count_passes(embedder)
        both(build(embedder), texts, batch_size=64)
        assert ran == {1: [1, 2, 4, 57], 2: [3, 8, 53]}[threads]

    def test_batches_are_none_the_larger(self, embedder, texts, threads):
        ran = count_passes(embedder)
        both(build(embedder), texts, batch_size=3)
        assert sum(ran) == 64
        assert max(ran) == 3

    def test_vectors_and_terms_are_those_of_texts_alone(self, embedder, texts):
        embedder.append(Dense(32, 16))
        embedder.append(Normalize())
        forward_pass = build(embedder)
        dense, decoded = both(forward_pass, texts)
        np.testing.assert_allclose(dense, embedder.encode(texts), rtol=1e-4, atol=1e-6)
        for place in (0, 3, 5):
            (alone,) = both(forward_pass, [texts[place]])[1].to_dicts()
            assert decoded.to_dicts()[place] == pytest.approx(alone, rel=1e-3, abs=1e-5)

    def test_another_device_takes_a_batch_at_once(self, embedder, texts):
        forward_pass = build(embedder)
        embedder.to("meta")
        assert list(forward_pass.passes(texts)) == [texts]

    def test_a_provider_is_sent_a_batch_in_one_call(self, texts):
        calls: list[int] = []

        def embed(texts: list[str]) -> np.ndarray:
            calls.append(len(texts))
            return np.array([[len(text), 1.0] for text in texts])

        encoder = KeyTokenEncoder(embed)
        calls.clear()
        encoder.embed(texts, batch_size=64)
        assert calls == [64]


class TestTextsWithoutTokens:
    def test_get_zero_vectors_beside_others(self, embedder):
        dense, decoded = both(build(embedder), ["", "wolves", "", "deer hide"])
        assert not dense[[0, 2]].any()
        assert decoded.active_dims.tolist()[::2] == [0, 0]
        np.testing.assert_allclose(dense[[1, 3]], embedder.encode(["wolves", "deer hide"]), rtol=1e-5, atol=1e-6)

    def test_alone_do_not_run_the_model(self, embedder):
        runs: list[int] = []
        embedder[0].auto_model.get_input_embeddings().register_forward_hook(lambda *_: runs.append(1))
        dense, _ = both(build(embedder), ["", ""])
        assert not dense.any()
        assert runs == []

    def test_are_told_by_what_the_model_sees(self, embedder, bert_embedder):
        texts = ["", "...", "x", " "]
        assert build(embedder).has_tokens(texts, None).tolist() == [False, True, True, True]
        assert build(embedder).has_tokens(texts, "say: ").all()
        bert = copy.deepcopy(bert_embedder)
        head = KeyTokenHead(LMHead(torch.nn.Embedding(600, 32)))
        head.bind(bert)
        assert ForwardPass(bert, head).has_tokens(texts, None).all()  # [CLS] and [SEP]


class TestPooled:
    def test_is_what_pooling_gives_whatever_follows(self, embedder, sentences):
        plain = embedder.encode(sentences)
        embedder.append(Normalize())
        with torch.inference_mode():
            pooled = build(embedder).pooled(sentences, "document", 7)
        np.testing.assert_allclose(pooled.numpy(), plain, rtol=1e-4, atol=1e-5)

    def test_stored_vectors_must_be_pooled_ones(self, embedder):
        embedder.append(Normalize())
        build(embedder).check_stored()
        embedder.append(Dense(32, 16))
        with pytest.raises(ValueError, match=r"but in this model Dense follows pooling"):
            build(embedder).check_stored()


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompts", "default"),
        [
            ({}, None),
            ({"query": "q: ", "document": "d: "}, None),
            ({"passage": "p: ", "corpus": "c: "}, None),
            ({"query": "q: "}, "query"),
            ({"other": "o: ", "corpus": "c: "}, "other"),
        ],
    )
    def test_are_chosen_as_the_host_chooses(self, llama_folder, prompts, default):
        model = build_sentence_transformer(llama_folder, prompts=prompts)
        model.default_prompt_name = default
        for role, encode in (("query", model.encode_query), ("document", model.encode_document)):
            prompt = resolve_prompt(model, role, None, None)
            np.testing.assert_array_equal(model.encode("wolves", prompt=prompt or ""), encode("wolves"))

    def test_words_win_over_a_name(self, llama_folder):
        model = build_sentence_transformer(llama_folder, prompts={"query": "q: ", "other": "o: "})
        assert resolve_prompt(model, "query", None, "other") == "o: "
        assert resolve_prompt(model, "query", "x: ", "other") == "x: "
        assert resolve_prompt(model, "query", "", None) == ""

    def test_unknown_names(self, embedder):
        with pytest.raises(ValueError, match=r"role must be one of 'query', 'document', got 'passage'"):
            resolve_prompt(embedder, "passage", None, None)
        with pytest.raises(ValueError, match=r"prompt_name must be one of the model's prompts .*, got 'nosuch'"):
            resolve_prompt(embedder, "query", None, "nosuch")
