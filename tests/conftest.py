"""Fixtures shared by all tests. Everything runs offline and on one thread."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings
from small_models import (
    SENTENCES,
    build_bert,
    build_byte_level_tokenizer,
    build_llama,
    build_sentence_transformer,
    build_wordpiece_tokenizer,
    save_language_model,
)

torch.set_num_threads(1)
settings.register_profile("any-machine", deadline=None)  # an example is not wrong for being slow
settings.load_profile("any-machine")


@pytest.fixture(scope="session")
def sentences():
    """Fifty English sentences."""
    return list(SENTENCES)


@pytest.fixture(scope="session")
def byte_level_tokenizer():
    return build_byte_level_tokenizer()


@pytest.fixture(scope="session")
def wordpiece_tokenizer():
    return build_wordpiece_tokenizer()


@pytest.fixture(scope="session")
def llama():
    """A tied LlamaForCausalLM. Copy it before changing it."""
    return build_llama()


@pytest.fixture(scope="session")
def untied_llama():
    """An untied LlamaForCausalLM. Copy it before changing it."""
    return build_llama(is_tied=False)


@pytest.fixture(scope="session")
def bert():
    """A BertForMaskedLM. Copy it before changing it."""
    return build_bert()


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """A folder with the checkpoint of ``llama`` and its tokenizer. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("llama")
    save_language_model(folder, "llama")
    return folder


@pytest.fixture(scope="session")
def untied_llama_folder(tmp_path_factory):
    """A folder with the checkpoint of ``untied_llama`` and its tokenizer. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("untied-llama")
    save_language_model(folder, "llama-untied")
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    """A folder with the checkpoint of ``bert`` and its tokenizer. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("bert")
    save_language_model(folder, "bert")
    return folder


@pytest.fixture(scope="session")
def llama_embedder(llama_folder):
    """A mean-pooled SentenceTransformer on the tied Llama. Copy it before changing it."""
    return build_sentence_transformer(llama_folder, "llama")


@pytest.fixture(scope="session")
def untied_llama_embedder(untied_llama_folder):
    """A mean-pooled SentenceTransformer on the untied Llama. Copy it before changing it."""
    return build_sentence_transformer(untied_llama_folder, "llama-untied")


@pytest.fixture(scope="session")
def bert_embedder(bert_folder):
    """A mean-pooled SentenceTransformer on BERT. Copy it before changing it."""
    return build_sentence_transformer(bert_folder, "bert")
