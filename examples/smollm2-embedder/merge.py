"""Saves the embedder as one folder, which sentence-transformers and every command of st-keytokens read.

python examples/smollm2-embedder/base.py models/smollm2-135m
python examples/smollm2-embedder/merge.py models/smollm2-135m models/smollm2-embedder
"""

from __future__ import annotations

import sys
from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_keytokens.embedders import EmbedderRecipe, known_embedders, load_embedder

ADAPTER = Path(__file__).parent / "adapter"


def load(base: Path, adapter: Path | None = ADAPTER) -> SentenceTransformer:
    """The one-word prompt on the language model, with an adapter or without."""
    (prompteol,) = (recipe for recipe in known_embedders() if recipe.name == "prompteol")
    if adapter is None:
        return load_embedder(base, recipe=prompteol)
    recipe = EmbedderRecipe(
        name="adapter", base="base", adapters=("adapter",), backbone="", pooling="lasttoken", source="",
        templates=prompteol.templates,
    )  # fmt: skip
    return load_embedder(adapter, recipe=recipe, backbone=base, places={"adapter": adapter})


if __name__ == "__main__":
    load(Path(sys.argv[1])).save_pretrained(sys.argv[2])
