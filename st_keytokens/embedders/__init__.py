"""Known embedders: how each is built and decoded."""

from __future__ import annotations

from st_keytokens.embedders.function_embedder import (
    EmbedFunction,
    FunctionEmbedder,
    as_sentence_transformer,
    is_embedder,
)
from st_keytokens.embedders.loading import load_embedder, load_saved, open_embedder
from st_keytokens.embedders.recipes import EmbedderRecipe, known_embedders
from st_keytokens.embedders.template_transformer import TemplateTransformer

__all__ = [
    "EmbedFunction",
    "EmbedderRecipe",
    "FunctionEmbedder",
    "TemplateTransformer",
    "as_sentence_transformer",
    "is_embedder",
    "known_embedders",
    "load_embedder",
    "load_saved",
    "open_embedder",
]
