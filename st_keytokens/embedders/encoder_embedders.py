"""Encoder models that the paper's authors tried, with masked-language-model heads."""

from __future__ import annotations

from st_keytokens.embedders.embedder_recipe import EmbedderRecipe

_AUTHORS = "https://github.com/Arthurizijar/Text_aligns_tokens"
_BERT = "google-bert/bert-base-uncased"
_PROMPTBERT = {"document": ('This sentence : "', '" means [MASK].')}
_TANH = "The LM head reads hidden states; this vector went through a dense layer and tanh, which may be why"
_UNIT = "Normalised, which the head's bias does not know; the head decodes the vector before that"


def _promptbert(name: str) -> EmbedderRecipe:
    return EmbedderRecipe(
        name=name,
        backbone=_BERT,
        attention="encoder",
        pooling="mean",
        source=_AUTHORS,
        templates=_PROMPTBERT,
        pooled_tokens="mask",
        finding="aligned",
        notes="Give recipe= with google-bert/bert-base-uncased for the same prompt without training",
    )


ENCODERS: tuple[EmbedderRecipe, ...] = (
    _promptbert("royokong/unsup-PromptBERT"),
    _promptbert("royokong/sup-PromptBERT"),
    EmbedderRecipe(
        name="sentence-transformers/facebook-dpr-ctx_encoder-single-nq-base",
        backbone=_BERT,
        attention="encoder",
        pooling="cls",
        source="https://huggingface.co/sentence-transformers/facebook-dpr-ctx_encoder-single-nq-base",
        is_saved_whole=True,
        finding="aligned",
        notes="DPR's passage encoder as sentence-transformers ships it",
    ),
    EmbedderRecipe(
        name="sentence-transformers/facebook-dpr-question_encoder-single-nq-base",
        backbone=_BERT,
        attention="encoder",
        pooling="cls",
        source="https://huggingface.co/sentence-transformers/facebook-dpr-question_encoder-single-nq-base",
        is_saved_whole=True,
        finding="aligned",
        notes="DPR's question encoder as sentence-transformers ships it",
    ),
    EmbedderRecipe(
        name="sentence-transformers/all-mpnet-base-v2",
        backbone="microsoft/mpnet-base",
        attention="encoder",
        pooling="mean",
        source="https://huggingface.co/sentence-transformers/all-mpnet-base-v2",
        is_normalized=True,
        is_saved_whole=True,
        finding="aligned",
    ),
    EmbedderRecipe(
        name=_BERT,
        backbone=_BERT,
        attention="encoder",
        pooling="pooler",
        source=_AUTHORS,
        finding="not aligned",
        notes=_TANH,
    ),
    EmbedderRecipe(
        name="princeton-nlp/sup-simcse-bert-base-uncased",
        backbone=_BERT,
        attention="encoder",
        pooling="pooler",
        source=_AUTHORS,
        finding="not aligned",
        notes=_TANH,
    ),
    EmbedderRecipe(
        name="facebook/contriever",
        backbone=_BERT,
        attention="encoder",
        pooling="mean",
        source="https://huggingface.co/facebook/contriever",
        finding="not aligned",
    ),
    EmbedderRecipe(
        name="thenlper/gte-base",
        backbone=_BERT,
        attention="encoder",
        pooling="mean",
        source="https://huggingface.co/thenlper/gte-base",
        is_normalized=True,
        finding="not aligned",
        notes=_UNIT,
    ),
    EmbedderRecipe(
        name="intfloat/e5-base-v2",
        backbone=_BERT,
        attention="encoder",
        pooling="mean",
        source="https://huggingface.co/intfloat/e5-base-v2",
        is_normalized=True,
        prompts={"query": "query: ", "document": "passage: "},
        max_seq_length=512,
        finding="not aligned",
        notes=_UNIT,
    ),
    EmbedderRecipe(
        name="sentence-transformers/sentence-t5-base",
        backbone="",
        attention="encoder",
        pooling="mean",
        source=_AUTHORS,
        is_normalized=True,
        is_saved_whole=True,
        finding="not aligned",
        why_not=(
            "T5's LM head reads the decoder's hidden states and never meets the encoder's, and a dense layer follows "
            "pooling"
        ),
        verified="facts only",
    ),
)
