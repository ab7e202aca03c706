"""The first component of a set of embeddings: fitted by streaming, then removed, shifted along or centred away.

The first component is the first right singular vector of the *uncentred* matrix of pooled embeddings. It is close to
their mean direction and feeds frequent words to the LM head; without it the key tokens surface.
"""

from __future__ import annotations

from st_keytokens.first_component.corrections import Correction, center, correct, remove, shift
from st_keytokens.first_component.dense_embeddings import Dense, as_tensor, check_embeddings
from st_keytokens.first_component.first_component import FirstComponent
from st_keytokens.first_component.second_moments import SecondMoments

__all__ = [
    "Correction",
    "Dense",
    "FirstComponent",
    "SecondMoments",
    "as_tensor",
    "center",
    "check_embeddings",
    "correct",
    "remove",
    "shift",
]
