from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from embedder_checkpoints import (
    build_byte_level_tokenizer,
    build_language_model,
    build_metaspace_tokenizer,
    build_wordpiece_tokenizer,
    save,
    save_adapter,
    save_modules,
)
from reference_models import mistral_hidden_states, tensors_of, with_adapter
from transformers import AutoModel

from st_keytokens.embedders import EmbedderRecipe, known_embedders, load_embedder
from st_keytokens.encoder.encoder import KeyTokenEncoder

TEXTS = ["The genome of a mouse.", "Stars", "Antibodies bind to proteins on the surface of the virus and block it."]
WEB = "Given a web search query, retrieve relevant passages that answer the query"
EOL = 'This sentence : "{}" means in one word:"'
OPT, LLAMA = "facebook/opt-1.3b", "huggyllama/llama-7b"
HIDDEN = "last_hidden_state"
CPU = {"device": "cpu"}


def tokenizer_of(model_type):
    if model_type in ("bert", "mpnet", "modernbert"):
        return build_wordpiece_tokenizer()
    return build_metaspace_tokenizer() if model_type in ("llama", "mistral") else build_byte_level_tokenizer()


class Folders:
    """One random checkpoint of each architecture and seed, made when it is first asked for."""

    def __init__(self, root) -> None:
        self.root, self.made = root, {}

    def __call__(self, model_type, seed=0, pooling=None, *, normalizes=False, shard=None, config=None, **settings):
        key = (model_type, seed, pooling, normalizes, repr(settings), repr(config))
        if key not in self.made:
            folder = self.root / str(len(self.made))
            model = build_language_model(model_type, seed=seed, **settings)
            model = model.model if model_type == "gemma3_text" else model  # as EmbeddingGemma, without its head
            save(folder, model, tokenizer_of(model_type), shard=shard)
            if config is not None:
                path = folder / "config.json"
                path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
            if pooling is not None:
                save_modules(folder, pooling, normalizes=normalizes)
            self.made[key] = folder
        return self.made[key]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("checkpoints"))


def hidden_states(folder, ids, output=HIDDEN):
    """Of one text, without padding, from plain transformers."""
    with torch.inference_mode():
        given = torch.tensor([ids])
        return AutoModel.from_pretrained(folder)(input_ids=given, attention_mask=torch.ones_like(given))[output][0]


def check(model, texts, expected, lm_head, *, task="document", biased=False):
    """Pooled vectors and logits of a model against expected ones, in batches and alone."""
    encode = model.encode_query if task == "query" else model.encode_document
    for batch_size in (1, len(texts)):
        np.testing.assert_allclose(encode(texts, batch_size=batch_size), expected, rtol=1e-3, atol=1e-4)
    encoder = KeyTokenEncoder(model, terms="tokens")  # the head in the model itself
    vectors = torch.as_tensor(np.asarray(expected)).float()
    scores = encoder.head.decode_scores(vectors)
    with torch.inference_mode():
        logits = lm_head(torch.nn.functional.normalize(vectors, dim=1) if not biased else vectors)
    seen = torch.isfinite(scores)
    assert seen.float().mean() > 0.3
    torch.testing.assert_close(scores[seen], logits[seen], rtol=1e-3, atol=1e-3)
    best = logits.masked_fill(~seen, -torch.inf).argmax(dim=1)
    for row, tokens in enumerate(encoder.key_tokens(texts, top_k=2, role=task)):
        wanted = encoder.vocabulary.strings[encoder.vocabulary.terms[best[row]]]
        assert not tokens or wanted in [token for token, _ in tokens]


def linear(weight):
    return lambda vectors: vectors @ weight.float().T


def unit(vectors):
    return torch.nn.functional.normalize(torch.stack(list(vectors)).float(), dim=1)


class TestSGPT:
    NLI = "Muennighoff/SGPT-1.3B-weightedmean-nli"
    MSMARCO = "Muennighoff/SGPT-1.3B-weightedmean-msmarco-specb-bitfit"

    def expected(self, folder, ids):
        hidden = hidden_states(folder, ids)
        weights = torch.arange(1, len(ids) + 1).float()
        return (hidden * weights[:, None]).sum(dim=0) / weights.sum()

    def test_position_weighted_mean(self, folders):
        embedder, backbone = folders("gpt_neo", 1), folders("gpt_neo", 2)
        model = load_embedder(embedder, recipe=self.NLI, backbone=backbone, model_arguments=CPU)
        tokenizer = build_byte_level_tokenizer()
        expected = torch.stack([self.expected(embedder, tokenizer(text)["input_ids"]) for text in TEXTS])
        check(model, TEXTS, expected, linear(tensors_of(backbone)["transformer.wte.weight"]))

    @pytest.mark.parametrize(("task", "brackets"), [("query", "[]"), ("document", "{}")])
    def test_brackets_are_tokens_of_their_own(self, folders, task, brackets):
        embedder, backbone = folders("gpt_neo", 1), folders("gpt_neo", 2)
        model = load_embedder(embedder, recipe=self.MSMARCO, backbone=backbone, model_arguments=CPU)
        tokenizer = build_byte_level_tokenizer()
        opening, closing = (tokenizer(bracket)["input_ids"] for bracket in brackets)
        ids = [[*opening, *tokenizer(text)["input_ids"], *closing] for text in TEXTS]
        expected = torch.stack([self.expected(embedder, each) for each in ids])
        head = linear(tensors_of(backbone)["transformer.wte.weight"])
        check(model, TEXTS, expected, head, task=task)
        unknown = model.preprocess(TEXTS)["input_ids"]  # without a task: documents
        assert unknown[0, 0] == tokenizer("{")["input_ids"][0]


class TestEOL:
    def expected(self, folder, tokenizer, texts=TEXTS):
        return torch.stack([hidden_states(folder, tokenizer(EOL.format(text))["input_ids"])[-1] for text in texts])

    def test_opt(self, folders):
        folder = folders("opt", 1)
        model = load_embedder(folder, recipe=OPT, model_arguments=CPU)
        expected = self.expected(folder, build_byte_level_tokenizer())
        weight = tensors_of(folder)["model.decoder.embed_tokens.weight"]
        for task in ("document", "query"):
            check(model, TEXTS, expected, linear(weight), task=task)

    @pytest.mark.parametrize("name", [LLAMA, "meta-llama/Llama-2-7b-hf"])
    def test_llama(self, folders, name):
        folder = folders("llama", 1, is_tied=False, shard="60KB")
        model = load_embedder(folder, recipe=name, model_arguments=CPU)
        expected = self.expected(folder, build_metaspace_tokenizer())
        check(model, TEXTS, expected, linear(tensors_of(folder)["lm_head.weight"]))

    @pytest.mark.parametrize("is_tied", [True, False])
    @pytest.mark.parametrize("architecture", ["opt", "llama"])
    def test_the_prompt_for_any_language_model(self, folders, architecture, is_tied):
        folder = folders(architecture, 1, is_tied=is_tied)
        model = load_embedder(folder, recipe="prompteol", model_arguments=CPU)
        tensors = tensors_of(folder)
        names = ["lm_head.weight", "model.embed_tokens.weight", "model.decoder.embed_tokens.weight"]
        weight = next(tensors[name] for name in names[is_tied:] if name in tensors)
        check(model, TEXTS, self.expected(folder, tokenizer_of(architecture)), linear(weight))

    def test_a_recipe_of_ones_own(self, folders):
        folder = folders("opt", 1)
        facts = {"name": "me/mine", "backbone": "", "pooling": "lasttoken", "source": "https://example.org"}
        template = {"document": ['This sentence : "', '" means in one word:"']}
        model = load_embedder(folder, recipe=EmbedderRecipe.from_dict({**facts, "templates": template}))
        weight = tensors_of(folder)["model.decoder.embed_tokens.weight"]
        check(model, TEXTS, self.expected(folder, build_byte_level_tokenizer()), linear(weight))

    @pytest.mark.parametrize(
        ("name", "architecture"), [("royokong/prompteol-opt-1.3b", "opt"), ("royokong/prompteol-llama-7b", "llama")]
    )
    def test_adapter_of_the_whole_language_model(self, folders, tmp_path, name, architecture):
        pytest.importorskip("peft", reason="adapters are merged by peft")
        is_tied = architecture == "opt"
        base = folders(architecture, 3, is_tied=is_tied)
        language_model = build_language_model(architecture, seed=3, is_tied=is_tied)
        adapter = save_adapter(tmp_path / "adapter", language_model, seed=4, base="base", task_type="CAUSAL_LM")
        model = load_embedder(adapter, recipe=name, backbone=base, model_arguments=CPU)
        merged = build_language_model(architecture, seed=3, is_tied=is_tied)
        merged.load_state_dict(with_adapter(tensors_of(base), adapter, scale=2.0), strict=False)
        tokenizer = tokenizer_of(architecture)
        with torch.inference_mode():
            states = [
                merged(
                    torch.tensor([tokenizer(EOL.format(text))["input_ids"]]), output_hidden_states=True
                ).hidden_states[-1][0, -1]
                for text in TEXTS
            ]
        weight = tensors_of(base)["model.decoder.embed_tokens.weight" if is_tied else "lm_head.weight"]
        check(model, TEXTS, torch.stack(states), linear(weight))

    def test_a_long_text_loses_its_end_and_not_the_template(self, folders):
        folder = folders("llama", 1, is_tied=False)
        model = load_embedder(folder, recipe=LLAMA, model_arguments=CPU)
        model.max_seq_length = 40
        ids = model.preprocess([" ".join(TEXTS) * 5])["input_ids"][0].tolist()
        whole = build_metaspace_tokenizer()(EOL.format(TEXTS[0]))["input_ids"]
        assert len(ids) == 40
        assert ids[-6:] == whole[-6:]
        assert ids[:12] == whole[:12]
        model.max_seq_length = 10
        with pytest.raises(ValueError, match=r"max_seq_length must be > \d+, the tokens of prompt and template"):
            model.preprocess(TEXTS)

    def test_template_is_no_literal_term(self, folders):
        folder = folders("opt", 1)
        encoder = KeyTokenEncoder(load_embedder(folder, recipe=OPT, model_arguments=CPU))
        plain = KeyTokenEncoder(load_embedder(folder, recipe="Qwen/Qwen3-Embedding-0.6B", model_arguments=CPU))
        assert [t.tolist() for t in encoder.literal_terms(TEXTS)] == [t.tolist() for t in plain.literal_terms(TEXTS)]


class TestLastToken:
    @pytest.mark.parametrize(
        "name",
        [
            "intfloat/e5-mistral-7b-instruct",
            "Linq-AI-Research/Linq-Embed-Mistral",
            "Salesforce/SFR-Embedding-Mistral",
            "BAAI/bge-en-icl",
        ],
    )
    def test_mistral_with_its_closing_token(self, folders, name):
        embedder = folders("mistral", 5, is_tied=False, sliding_window=None)
        backbone = folders("mistral", 6, is_tied=False, sliding_window=None)
        model = load_embedder(embedder, recipe=name, backbone=backbone, model_arguments=CPU)
        tokenizer = build_metaspace_tokenizer()
        before, after = f"Instruct: {WEB}\nQuery: ", ""
        if "icl" in name:
            before, after = f"<instruct>{WEB}\n<query>", "\n<response>"
        for task, (left, right) in {"query": (before, after), "document": ("", "")}.items():
            ids = [[*tokenizer(left + text + right)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]
            expected = unit(mistral_hidden_states(tensors_of(embedder), each, is_causal=True)[-1] for each in ids)
            check(model, TEXTS, expected, linear(tensors_of(backbone)["lm_head.weight"]), task=task)

    def test_tokens_that_the_backbone_never_had(self, folders, tmp_path):
        tokenizer = copy.deepcopy(build_metaspace_tokenizer())
        embedder = build_language_model("mistral", seed=5, is_tied=False, vocab_size=650)
        tokenizer.add_tokens([f"<added{number}>" for number in range(645 - len(tokenizer))])
        save(tmp_path / "wide", embedder, tokenizer)
        backbone = folders("mistral", 6, is_tied=False, sliding_window=None)
        model = load_embedder(tmp_path / "wide", recipe="BAAI/bge-en-icl", backbone=backbone, model_arguments=CPU)
        lm_head = KeyTokenEncoder(model).head.lm_head
        assert lm_head.vocab_size == 645
        torch.testing.assert_close(lm_head.weight[:640], tensors_of(backbone)["lm_head.weight"])
        assert not lm_head.weight[640:].any()

    @pytest.mark.parametrize(
        ("name", "architecture"),
        [
            ("Qwen/Qwen3-Embedding-0.6B", "qwen3"),
            ("Qwen/Qwen3-Embedding-4B", "qwen3"),
            ("BAAI/bge-multilingual-gemma2", "gemma2"),
        ],
    )
    def test_saved_whole_and_tied(self, folders, name, architecture):
        folder = folders(architecture, 7, "lasttoken", normalizes=True, is_tied=True)
        model = load_embedder(folder, recipe=name, model_arguments=CPU)
        tokenizer = build_byte_level_tokenizer()
        expected = unit(hidden_states(folder, tokenizer(text)["input_ids"])[-1] for text in TEXTS)
        weight = tensors_of(folder)["model.embed_tokens.weight"].float()
        cap = 30.0 if architecture == "gemma2" else None
        head = linear(weight) if cap is None else lambda vectors: cap * torch.tanh(vectors @ weight.T / cap)
        check(model, TEXTS, expected, head)

    @pytest.mark.parametrize("is_tied", [False, True])
    def test_saved_whole_with_the_backbones_lm_head(self, folders, is_tied):
        folder = folders("qwen3", 8, "lasttoken", normalizes=True, is_tied=False)
        backbone = folders("qwen3", 9, is_tied=is_tied)
        name = "jinaai/jina-embeddings-v5-text-small-retrieval" if is_tied else "Qwen/Qwen3-Embedding-8B"
        model = load_embedder(folder, recipe=name, backbone=backbone, model_arguments=CPU)
        tokenizer = build_byte_level_tokenizer()
        expected = unit(hidden_states(folder, tokenizer(text)["input_ids"])[-1] for text in TEXTS)
        tensor = "model.embed_tokens.weight" if is_tied else "lm_head.weight"
        check(model, TEXTS, expected, linear(tensors_of(backbone)[tensor]))


class TestBidirectional:
    @pytest.mark.parametrize("name", ["Alibaba-NLP/gte-Qwen2-7B-instruct", "Alibaba-NLP/gte-Qwen2-1.5B-instruct"])
    def test_qwen2_with_its_closing_token(self, folders, name):
        folder = folders("qwen2", 10, is_tied="1.5B" in name)
        model = load_embedder(folder, recipe=name, model_arguments=CPU)
        tokenizer, tensors = build_byte_level_tokenizer(), tensors_of(folder)
        for task, prompt in {"query": f"Instruct: {WEB}\nQuery: ", "document": ""}.items():
            ids = [[*tokenizer(prompt + text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]
            expected = [mistral_hidden_states(tensors, each, is_causal=False)[-1] for each in ids]
            weight = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
            check(model, TEXTS, torch.stack(expected), linear(weight), task=task)

    @pytest.mark.parametrize("version", ["v1", "v2", "v2.5"])
    def test_kalm(self, folders, version):
        folder = folders("qwen2", 11, is_tied=True)
        owner = "KaLM-Embedding" if version == "v2.5" else "HIT-TMG"
        name = f"{owner}/KaLM-embedding-multilingual-mini-instruct-{version}"
        model = load_embedder(folder, recipe=name, model_arguments=CPU)
        tokenizer, tensors = build_byte_level_tokenizer(), tensors_of(folder)
        ids = [tokenizer(text)["input_ids"] for text in TEXTS]
        states = [mistral_hidden_states(tensors, each, is_causal=version == "v1") for each in ids]
        expected = unit(each.mean(dim=0) for each in states)
        check(model, TEXTS, expected, linear(tensors["model.embed_tokens.weight"]))

    def test_embeddinggemma(self, folders):
        config = {"use_bidirectional_attention": True}
        folder = folders("gemma3_text", 12, "mean_tokens", normalizes=True, config=config, is_tied=True)
        model = load_embedder(folder, recipe="google/embeddinggemma-300m", model_arguments=CPU)
        tokenizer = build_byte_level_tokenizer()
        expected = unit(hidden_states(folder, tokenizer(text)["input_ids"]).mean(dim=0) for text in TEXTS)
        check(model, TEXTS, expected, linear(tensors_of(folder)["embed_tokens.weight"]))


def masked_lm_head(architecture, seed, **settings):
    """The whole head: transform, norm, product, bias."""
    model = build_language_model(architecture, seed=seed, **settings)
    if architecture == "bert":
        return model.cls
    return model.lm_head if architecture == "mpnet" else lambda vectors: model.decoder(model.head(vectors))


class TestEncoders:
    @pytest.mark.parametrize("name", ["royokong/unsup-PromptBERT", "royokong/sup-PromptBERT"])
    def test_promptbert_pools_its_last_mask(self, folders, name):
        embedder, backbone = folders("bert", 13), folders("bert", 14)
        model = load_embedder(embedder, recipe=name, backbone=backbone, model_arguments=CPU)
        tokenizer = build_wordpiece_tokenizer()
        texts = [*TEXTS, "a [MASK] of its own"]
        expected = []
        for text in texts:
            ids = tokenizer(f'This sentence : "{text}" means [MASK].')["input_ids"]
            place = max(i for i, token in enumerate(ids) if token == tokenizer.mask_token_id)
            expected.append(hidden_states(embedder, ids)[place])
        check(model, texts, torch.stack(expected), masked_lm_head("bert", 14), biased=True)

    @pytest.mark.parametrize(
        ("name", "pooling"),
        [
            ("google-bert/bert-base-uncased", "pooler"),
            ("princeton-nlp/sup-simcse-bert-base-uncased", "pooler"),
            ("facebook/contriever", "mean"),
            ("thenlper/gte-base", "unit"),
            ("intfloat/e5-base-v2", "unit"),
        ],
    )
    def test_built_from_bert(self, folders, tmp_path, name, pooling):
        backbone = folders("bert", 14)
        body = AutoModel.from_pretrained(backbone, add_pooling_layer=True)
        embedder = save(tmp_path / "bert", body, build_wordpiece_tokenizer())
        model = load_embedder(embedder, recipe=name, backbone=backbone, model_arguments=CPU)
        tokenizer = build_wordpiece_tokenizer()
        prompts = {"query": "query: ", "document": "passage: "} if "e5" in name else {"document": ""}
        for task, prompt in prompts.items():
            ids = [tokenizer(prompt + text)["input_ids"] for text in TEXTS]
            if pooling == "pooler":
                expected = torch.stack([hidden_states(embedder, each, "pooler_output") for each in ids])
            else:
                expected = torch.stack([hidden_states(embedder, each).mean(dim=0) for each in ids])
            np.testing.assert_allclose(
                model.encode(TEXTS, prompt_name=task if "e5" in name else None),
                unit(expected) if pooling == "unit" else expected,
                rtol=1e-3,
                atol=1e-4,
            )
            encoder = KeyTokenEncoder(model)
            pooled = encoder.forward_pass.pooled(TEXTS, task)
            torch.testing.assert_close(pooled, expected, rtol=1e-3, atol=1e-4)
            scores = encoder.head.decode_scores(pooled)
            with torch.inference_mode():
                logits = masked_lm_head("bert", 14)(expected)
            seen = torch.isfinite(scores)
            torch.testing.assert_close(scores[seen], logits[seen], rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(
        ("name", "architecture", "pooling"),
        [
            ("sentence-transformers/facebook-dpr-ctx_encoder-single-nq-base", "bert", "cls_token"),
            ("sentence-transformers/facebook-dpr-question_encoder-single-nq-base", "bert", "cls_token"),
            ("sentence-transformers/all-mpnet-base-v2", "mpnet", "mean_tokens"),
            ("Alibaba-NLP/gte-modernbert-base", "modernbert", "cls_token"),
            ("nomic-ai/modernbert-embed-base", "modernbert", "mean_tokens"),
        ],
    )
    def test_saved_whole(self, folders, name, architecture, pooling):
        embedder, backbone = folders(architecture, 15, pooling), folders(architecture, 16)
        model = load_embedder(embedder, recipe=name, backbone=backbone, model_arguments=CPU)
        states = [hidden_states(embedder, build_wordpiece_tokenizer()(text)["input_ids"]) for text in TEXTS]
        expected = torch.stack([each[0] if pooling == "cls_token" else each.mean(dim=0) for each in states])
        check(model, TEXTS, expected, masked_lm_head(architecture, 16), biased=True)


def test_every_recipe_with_parity_is_tested():
    """The ids in this file and its neighbour are those that the table says were verified."""
    import test_bidirectional_recipes
    import test_recipes

    text = "".join(
        open(module.__file__, encoding="utf-8").read() for module in (test_recipes, test_bidirectional_recipes)
    )
    for recipe in known_embedders():
        tail = recipe.name.rpartition("/")[2]
        is_named = any(part in text for part in (tail, tail.rpartition("-")[0], tail.rpartition("-mntp")[2]))
        assert is_named == (recipe.verified == "decoding parity"), recipe.name
