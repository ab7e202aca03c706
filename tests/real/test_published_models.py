"""Every documented route, on published models."""

from __future__ import annotations

import json

import numpy as np
import pytest
from encoder_checks import assert_close
from sentence_transformers import SentenceTransformer

from st_keytokens import HybridIndex, KeyTokenEncoder, KeyTokenHead
from st_keytokens.cli import main
from st_keytokens.embedders import load_embedder
from st_keytokens.engines import QdrantEdgeEngine, Records, load

pytestmark = pytest.mark.real
TEXT = (
    "Recently, a precise measurement on the bound electron g factor in hydrogen-like carbon was performed. We "
    "consider the present status of the theory of the g factor of an electron bound in a hydrogen-like atom."
)
QUERY = "How do proteins and genes work?"


def test_decodes_without_data_or_says_what_it_lacks(published):
    encoder = published.encoder()
    if not published.has_lm_head:
        with pytest.raises(ValueError, match=r"calibrate\(texts\)"):
            encoder.key_tokens(TEXT)
        return
    ((*tokens,),) = encoder.key_tokens(TEXT, top_k=20)
    assert len(tokens) == 20 and all(weight > 0 for _, weight in tokens)
    if published.path.endswith("smollm2-135m"):  # asked for one word, it says what the text is about
        assert {"hydrogen", "electron", "precise", "measurement"} & {token.lower() for token, _ in tokens}


def test_one_pass_gives_both_vectors(published, calibrated, sentences):
    embeddings = calibrated.encode_document(sentences[:8])
    expected = calibrated.model.encode_document(sentences[:8])
    np.testing.assert_allclose(embeddings.dense, expected, rtol=1e-3, atol=1e-4)
    assert (embeddings.sparse.active_dims > 10).all()
    found = dict(embeddings.sparse.decode(calibrated.vocabulary)[0])
    assert "proteins" in found and "genes" in found


def test_a_text_with_a_token_beyond_the_matrix_is_a_text_as_any(calibrated):
    tokenizer = calibrated.model.tokenizer
    beyond = [token for token, row in tokenizer.get_vocab().items() if row >= calibrated.vocabulary.token_count]
    embeddings = calibrated.encode([TEXT, f"An apple {' '.join(beyond)} on a tree"])
    assert np.isfinite(embeddings.dense).all() and (embeddings.sparse.active_dims > 3).all()


def test_head_as_a_module(published, sentences):
    if published.recipe:
        model = load_embedder(published.path, recipe=published.recipe)
    elif published.has_lm_head:
        model = load_embedder(published.path)
    else:
        pytest.skip("a head without a calibration needs an LM head")
    ids = model.encode(sentences[:4], output_value="key_token_ids")
    assert all(len(row) == 256 for row in ids)
    assert model.encode(sentences[:1]).shape == (1, model.get_embedding_dimension())


def test_calibrated_head_in_a_model_saved_and_loaded(calibrated, tmp_path, sentences):
    model = calibrated.forward_pass.chain([*calibrated.forward_pass.before, *calibrated.forward_pass.after])
    head = KeyTokenHead.for_model(model, calibrated.calibration)
    model.insert(len(calibrated.forward_pass.before), head)
    model.save_pretrained(str(tmp_path / "with-head"))
    loaded = KeyTokenEncoder(tmp_path / "with-head", model_arguments={"device": "cpu"})
    expected = calibrated.encode_document(sentences[:3]).sparse
    found = loaded.encode_document(sentences[:3]).sparse
    assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_saved_encoder_comes_back_whole(published, calibrated, tmp_path, sentences):
    calibrated.save_pretrained(tmp_path / "saved")
    loaded = KeyTokenEncoder(tmp_path / "saved", model_arguments={"device": "cpu"})
    assert loaded.fingerprint == calibrated.fingerprint
    assert loaded.calibration.document_count == len(sentences)
    assert_close(loaded.encode(sentences[:2]).sparse, calibrated.encode(sentences[:2]).sparse)
    if not published.recipe:  # the module of a recipe asks for trust_remote_code, everything else opens anywhere
        assert SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(sentences[:1]).shape[0] == 1


def test_stored_vectors(published, calibrated, sentences):
    stored = calibrated.model.encode_document(sentences[:6])
    if published.has_dense_layers:
        with pytest.raises(ValueError, match="Dense, Dense follows pooling"):
            calibrated.sparsify(stored, sentences[:6])
        return
    expected = calibrated.encode_document(sentences[:6]).sparse
    assert_close(calibrated.sparsify(stored, sentences[:6]), expected, rtol=1e-2, atol=1e-2)


def test_index(calibrated, tmp_path, sentences):
    with HybridIndex(tmp_path / "index", encoder=calibrated) as index:
        index.add([str(i) for i in range(len(sentences))], sentences)
        for mode in ("dense", "sparse", "hybrid"):
            hits = index.search(QUERY, top_k=3, mode=mode)
            assert len(hits) == 3
            if mode != "dense":
                assert hits[0].id == "0"
        assert index.explain(QUERY, index.search(QUERY, top_k=1)[0])


def test_command_line(published, tmp_path, sentences, capsys):
    recipe = ["--recipe", published.recipe] if published.recipe else []
    if published.has_lm_head:
        assert main(["tokens", published.path, TEXT, "--top-k", "3", *recipe]) == 0
        assert "weight" in capsys.readouterr().out
    lines = [json.dumps({"_id": str(i), "text": text}) for i, text in enumerate(sentences)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    calibrate = ["--calibrate"]
    words = ["index", published.path, str(tmp_path / "corpus.jsonl"), str(tmp_path / "index"), "--quiet"]
    assert main([*words, *calibrate, *recipe]) == 0, capsys.readouterr().err
    assert main(["search", str(tmp_path / "index"), QUERY, "--json"]) == 0
    assert '"0"' in capsys.readouterr().out


def test_adapters(calibrated, sentences):
    langchain = pytest.importorskip("langchain_keytokens")
    llama_index = pytest.importorskip("llama_index.retrievers.keytokens")
    from langchain_core.documents import Document
    from llama_index.core.schema import TextNode

    documents = [Document(page_content=text, id=str(i)) for i, text in enumerate(sentences)]
    retriever = langchain.KeyTokensRetriever.from_documents(documents, calibrated, k=2)
    assert retriever.invoke(QUERY)[0].id == "0"
    nodes = [TextNode(text=text, id_=str(i)) for i, text in enumerate(sentences)]
    other = llama_index.KeyTokensRetriever.from_defaults(nodes=nodes, encoder=calibrated, similarity_top_k=2)
    assert other.retrieve(QUERY)[0].node.node_id == "0"


def test_engine(calibrated, tmp_path, sentences):
    pytest.importorskip("qdrant_edge")
    ids = [str(i) for i in range(len(sentences))]
    with QdrantEdgeEngine(tmp_path / "sentences", encoder=calibrated) as engine:
        engine.create(embedding_dimension=calibrated.get_embedding_dimension())
        records = Records(ids, calibrated.encode_document(sentences), sentences)
        assert load(engine, records.split(max_rows=20, max_bytes=10**8)).num_loaded == len(sentences)
        ((first, *_),) = engine.search([QUERY], top_k=2)
    assert first.id == "0"
