"""Embedders of today; of none of them does the paper report anything."""

from __future__ import annotations

from st_keytokens.embedders.embedder_recipe import EmbedderRecipe

_HUB = "https://huggingface.co"
_MISTRAL = "mistralai/Mistral-7B-v0.1"
_MODERNBERT = "answerdotai/ModernBERT-base"
_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
_E5_PROMPTS = {"query": f"Instruct: {_WEB_SEARCH}\nQuery: ", "document": ""}


def _of_e5_mistral(name: str) -> EmbedderRecipe:
    return EmbedderRecipe(
        name=name,
        backbone=_MISTRAL,
        pooling="lasttoken",
        source=f"{_HUB}/{name}",
        is_normalized=True,
        prompts=_E5_PROMPTS,
        ends_with_eos=True,
        max_seq_length=4096,
        notes="Tuned from e5-mistral-7b-instruct, whose closing </s> it keeps",
    )


def _qwen3(size: str, backbone: str = "", notes: str = "") -> EmbedderRecipe:
    return EmbedderRecipe(
        name=f"Qwen/Qwen3-Embedding-{size}",
        backbone=backbone,
        pooling="lasttoken",
        source=f"{_HUB}/Qwen/Qwen3-Embedding-{size}",
        is_normalized=True,
        is_saved_whole=True,
        notes=notes,
    )


def _kalm(name: str, *, is_bidirectional: bool, source: str, is_card_normalizing: bool = False) -> EmbedderRecipe:
    return EmbedderRecipe(
        name=name,
        backbone="",
        pooling="mean",
        source=source,
        attention="bidirectional" if is_bidirectional else "causal",
        is_normalized=True,
        max_seq_length=512,
        notes="Made from Qwen2-0.5B, whose input embeddings are its LM head. The repository's own code is not run"
        + ("" if is_card_normalizing else ". Not confirmed: that vectors are normalised, as v1's card has it"),
    )


CURRENT: tuple[EmbedderRecipe, ...] = (
    _qwen3("0.6B"),
    _qwen3("4B"),
    _qwen3("8B", "Qwen/Qwen3-8B-Base", "The only size whose LM head is not tied to its input embeddings"),
    EmbedderRecipe(
        name="google/embeddinggemma-300m",
        backbone="",
        pooling="mean",
        source="https://ai.google.dev/gemma/docs/embeddinggemma/model_card",
        attention="bidirectional",
        is_normalized=True,
        is_saved_whole=True,
        notes="Two dense layers follow pooling; the head decodes the vector before them",
    ),
    _of_e5_mistral("Linq-AI-Research/Linq-Embed-Mistral"),
    _of_e5_mistral("Salesforce/SFR-Embedding-Mistral"),
    EmbedderRecipe(
        name="BAAI/bge-en-icl",
        backbone=_MISTRAL,
        pooling="lasttoken",
        source="https://github.com/FlagOpen/FlagEmbedding",
        is_normalized=True,
        prompts={"query": f"<instruct>{_WEB_SEARCH}\n<query>", "document": ""},
        templates={"query": ("", "\n<response>"), "document": ("", "")},
        ends_with_eos=True,
        max_seq_length=512,
        notes="Without examples. Its added tokens have no row in the backbone's LM head and are never decoded. Not "
        "confirmed: the backbone's version; the configuration is that of Mistral 7B v0.1",
    ),
    EmbedderRecipe(
        name="BAAI/bge-multilingual-gemma2",
        backbone="",
        pooling="lasttoken",
        source="https://github.com/FlagOpen/FlagEmbedding",
        is_normalized=True,
        is_saved_whole=True,
        notes="Made from Gemma 2 9B. Not confirmed: that its modules normalise, as its authors' code does",
    ),
    _kalm(
        "HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v1",
        is_bidirectional=False,
        source=f"{_HUB}/HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v1",
        is_card_normalizing=True,
    ),
    _kalm(
        "HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v2",
        is_bidirectional=True,
        source="https://arxiv.org/abs/2506.20923",
    ),
    _kalm(
        "KaLM-Embedding/KaLM-embedding-multilingual-mini-instruct-v2.5",
        is_bidirectional=True,
        source="https://arxiv.org/abs/2506.20923",
    ),
    EmbedderRecipe(
        name="jinaai/jina-embeddings-v5-text-small-retrieval",
        backbone="Qwen/Qwen3-0.6B-Base",
        pooling="lasttoken",
        source="https://jina.ai/models/jina-embeddings-v5-text-small",
        is_normalized=True,
        is_saved_whole=True,
        notes="The retrieval adapter, merged; prompts Query: and Document:. Not confirmed: that its modules normalise",
    ),
    EmbedderRecipe(
        name="nvidia/llama-embed-nemotron-8b",
        backbone="meta-llama/Llama-3.1-8B",
        pooling="mean",
        source="https://docs.nvidia.com/nemo/automodel/model-coverage/embedding-models/nvidia/llama-embed-nemotron-8b",
        attention="bidirectional",
        is_normalized=True,
        is_saved_whole=True,
        needs_remote_code=True,
        notes="Not confirmed: that its modules normalise",
        verified="facts only",
    ),
    EmbedderRecipe(
        name="Alibaba-NLP/gte-modernbert-base",
        backbone=_MODERNBERT,
        pooling="cls",
        source=f"{_HUB}/Alibaba-NLP/gte-modernbert-base",
        attention="encoder",
        is_saved_whole=True,
    ),
    EmbedderRecipe(
        name="nomic-ai/modernbert-embed-base",
        backbone=_MODERNBERT,
        pooling="mean",
        source=f"{_HUB}/nomic-ai/modernbert-embed-base",
        attention="encoder",
        is_normalized=True,
        is_saved_whole=True,
        notes="Prompts search_query: and search_document:",
    ),
    EmbedderRecipe(
        name="nvidia/NV-Embed-v2",
        backbone=_MISTRAL,
        pooling="mean",
        source="https://arxiv.org/abs/2405.17428",
        attention="bidirectional",
        is_normalized=True,
        is_saved_whole=True,
        why_not=(
            "it pools what a latent attention layer makes of the hidden states, and no LM head ever read that; it "
            "needs trust_remote_code as well"
        ),
        needs_remote_code=True,
        verified="facts only",
    ),
)
