"""Ids of documents, for OpenSearch and Elasticsearch."""

from __future__ import annotations

import hashlib

__all__ = ["document_id"]

_MAX_ID_BYTES = 512
_HASHED = "sha256:"


def document_id(id: str) -> str:
    """The ``_id`` of a document: its id, or a hash of it where the server would refuse it.

    ``_id`` has 1 to 512 bytes. The id itself is kept in the document as well, and is what hits have.

    >>> document_id("doc-7"), len(document_id("x" * 600))
    ('doc-7', 71)
    """
    encoded = id.encode()
    if 0 < len(encoded) <= _MAX_ID_BYTES and not id.startswith(_HASHED):
        return id
    return _HASHED + hashlib.sha256(encoded).hexdigest()
