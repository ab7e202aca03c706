"""Published models, from folders below the one that ``ST_KEYTOKENS_MODELS`` names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from st_keytokens import KeyTokenEncoder


class Published(NamedTuple):
    """A published model: its folder, how it embeds, and what is known of it."""

    path: str
    recipe: str | None
    has_lm_head: bool
    has_dense_layers: bool

    def encoder(self, **arguments):
        return KeyTokenEncoder(self.path, recipe=self.recipe, model_arguments={"device": "cpu"}, **arguments)


KNOWN = {
    "smollm2-135m": ("prompteol", True, False),
    "gemma3-270m": ("prompteol", True, False),
    "embeddinggemma-300m": (None, True, True),
    "minilm": (None, False, False),
}


@pytest.fixture(scope="session", params=list(KNOWN))
def published(request):
    root = os.environ.get("ST_KEYTOKENS_MODELS")
    if not root:
        pytest.skip("ST_KEYTOKENS_MODELS must name a folder of published models; see CONTRIBUTING.md")
    path = Path(root, request.param)
    if not path.is_dir():
        pytest.skip(f"{path.name} is not among the published models that are here")
    return Published(str(path), *KNOWN[request.param])


@pytest.fixture(scope="session")
def calibrated(published, sentences):
    """An encoder, calibrated on fifty sentences. Its settings must not be changed."""
    encoder = published.encoder()
    encoder.calibrate(sentences, show_progress_bar=False)
    return encoder
