"""Ids of fixed size, for engines that take no others, in place of the documents' own, which are kept beside them."""

from __future__ import annotations

import uuid

__all__ = ["point_id"]

_NAMESPACE = uuid.UUID("6f1c5b0e-3f5d-5a0e-9b1a-0d2f7a6c4e11")  # never change it: ids depend on it


def point_id(id: str) -> str:
    """The UUID (version 5) that stands for a document's id.

    >>> point_id("arXiv:2406.17378")
    '55a22039-368f-5a94-b3f2-40d813251f09'
    """
    return str(uuid.uuid5(_NAMESPACE, id))
