from __future__ import annotations

import copy

import pytest
import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Router, StaticEmbedding

from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.key_token_head import KeyTokenHead


@pytest.fixture
def transformer(llama_embedder):
    return copy.deepcopy(llama_embedder[0])


@pytest.fixture
def shared(transformer):
    """A model with two routes, different behind the one transformer."""
    query, document = (Pooling(32, pooling_mode=mode) for mode in ("lasttoken", "mean"))
    router = Router.for_query_document([transformer, query], [transformer, document])
    return SentenceTransformer(modules=[router, Normalize()], device="cpu")


@pytest.fixture
def different(transformer, bert_embedder):
    """A model with two routes of different transformers models."""
    modules = [[module, Pooling(32)] for module in (transformer, copy.deepcopy(bert_embedder[0]))]
    return SentenceTransformer(modules=[Router.for_query_document(*modules)], device="cpu")


class TestRouter:
    def test_routes_that_share_a_model(self, shared, transformer, sentences, tmp_path):
        plain = KeyTokenHead.for_model(transformer, max_active_dims=9, query_max_active_dims=4)
        shared.insert(1, KeyTokenHead.for_model(shared, max_active_dims=9, query_max_active_dims=4))
        assert shared[1].lm_head.is_tied
        assert shared[1].lm_head.weight is transformer.auto_model.get_input_embeddings().weight
        models = [shared]
        if int(sentence_transformers.__version__.partition(".")[0]) >= 6:  # before, each route loads its own model
            shared.save(str(tmp_path))
            models.append(SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True))
            models[1][1].bind(models[1])
        for model in models:
            documents = torch.stack(model.encode_document(sentences, output_value="key_token_ids"))
            queries = torch.stack(model.encode_query(sentences, output_value="key_token_ids"))
            vectors = model.encode_document(sentences, convert_to_tensor=True)
            assert torch.equal(documents, plain.decode(vectors)[0])
            vectors = model.encode_query(sentences, convert_to_tensor=True)
            assert torch.equal(queries, plain.decode(vectors, task="query")[0])

    def test_routes_of_different_models(self, different, transformer):
        message = (
            r"model must hold exactly one transformers model for its LM head to be known, got LlamaModel, BertModel "
            r"in Router\. Pass lm_head, which LMHead.from_checkpoint reads"
        )
        with pytest.raises(ValueError, match=message):
            KeyTokenHead.for_model(different)
        with pytest.raises(ValueError, match=message):
            KeyTokenEncoder(different)
        lm_head = LMHead.from_model(transformer.auto_model)
        with pytest.raises(ValueError, match=r"must have one tokenizer, got 2 different ones\. Pass vocabulary"):
            KeyTokenHead(lm_head).bind(different)
        vocabulary = KeyTokenHead.for_model(transformer).vocabulary
        head = KeyTokenHead(lm_head, vocabulary)
        head.bind(different)
        assert head.is_bound
        assert not head.lm_head.is_tied  # what the model holds does not tell which one it is

    def test_routes_with_one_vocabulary(self, transformer):
        routes = [[module, Pooling(32)] for module in (transformer, copy.deepcopy(transformer))]
        model = SentenceTransformer(modules=[Router.for_query_document(*routes)], device="cpu")
        with pytest.raises(
            ValueError, match=r"exactly one transformers model .* got LlamaModel, LlamaModel in Router"
        ):
            KeyTokenHead.for_model(model)
        head = KeyTokenHead(LMHead.from_model(transformer.auto_model))
        head.bind(model)
        assert head.vocabulary.hash == KeyTokenHead.for_model(transformer).vocabulary.hash

    def test_heads_in_the_routes(self, different, transformer, bert_folder):
        lm_head = LMHead.from_checkpoint(bert_folder)
        for route, head in (("query", KeyTokenHead()), ("document", KeyTokenHead(lm_head))):
            different[0].sub_modules[route].append(head)
            head.bind(different)
        llama, bert = (different[0].sub_modules[route][2] for route in ("query", "document"))
        assert llama.lm_head.weight is transformer.auto_model.get_input_embeddings().weight
        assert (llama.vocab_size, bert.vocab_size) == (640, lm_head.vocab_size)
        texts = ["genes and stars", "rivers"]
        ids = torch.stack(different.encode_query(texts, output_value="key_token_ids"))
        vectors = different.encode_query(texts, convert_to_tensor=True)
        assert torch.equal(ids, KeyTokenHead.for_model(transformer).decode(vectors, task="query")[0])


class TestNoTransformer:
    def test_says_what_to_pass(self, transformer):
        static = StaticEmbedding(transformer.tokenizer, embedding_dim=32)
        model = SentenceTransformer(modules=[static], device="cpu")
        with pytest.raises(ValueError, match=r"got none in StaticEmbedding\. Pass lm_head, which LMHead\."):
            KeyTokenHead.for_model(model)
        head = KeyTokenHead(LMHead(torch.nn.Embedding(640, 32)))
        head.bind(model)
        assert head.vocab_size == 640

    def test_no_tokenizer(self):
        model = SentenceTransformer(modules=[Normalize()], device="cpu")
        with pytest.raises(ValueError, match=r"model must have one tokenizer, got none"):
            KeyTokenHead(LMHead(torch.nn.Embedding(640, 32))).bind(model)
