"""What a collection is made with, and how it is kept beside the collection."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, get_args

from st_keytokens.checks import check_choice, checked_int
from st_keytokens.index.dense import Similarity
from st_keytokens.sparse_embeddings.sparse_rows import MAX_VOCAB_SIZE

__all__ = ["CollectionSettings"]


@dataclass(frozen=True)
class CollectionSettings:
    """What a collection is made with.

    Attributes:
        vocab_size: Number of terms.
        embedding_dimension: Dimension of the dense rows, 0 for none.
        similarity: ``"cosine"`` or ``"dot"`` for dense rows.
        fingerprint: Names what made the embeddings; None where nobody said.

    Raises:
        TypeError: If a size is not an integer, or the fingerprint no string.
        ValueError: If a size is out of range, or the similarity unknown.

    >>> settings = CollectionSettings(vocab_size=9, fingerprint="ab12")
    >>> CollectionSettings.from_json(settings.to_json(), "collection 'a'") == settings
    True
    """

    vocab_size: int
    embedding_dimension: int = 0
    similarity: Similarity = "cosine"
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        checked_int("vocab_size", self.vocab_size, minimum=1, maximum=MAX_VOCAB_SIZE)
        checked_int("embedding_dimension", self.embedding_dimension, minimum=0)
        check_choice("similarity", self.similarity, get_args(Similarity))
        if not isinstance(self.fingerprint, str | None):
            raise TypeError(f"fingerprint must be a string or None, got {type(self.fingerprint).__name__}.")

    def to_dict(self) -> dict[str, Any]:
        """All of them by name."""
        return asdict(self)

    def to_json(self) -> str:
        """One line of JSON, for engines that keep a comment or a description beside a collection."""
        return json.dumps({"keytokens": self.to_dict()})

    @classmethod
    def from_dict(cls, saved: Any, where: str) -> CollectionSettings:
        """What :meth:`to_dict` gave.

        Args:
            saved: What was kept, which may be anything where somebody else made the collection.
            where: What errors call the collection.

        Raises:
            ValueError: If it is something else.
        """
        try:
            return cls(**saved)
        except (TypeError, ValueError) as err:
            raise ValueError(
                f"{where} must be one that create() made, got settings {saved!r:.80}. Choose another name."
            ) from err

    @classmethod
    def from_json(cls, text: str | None, where: str) -> CollectionSettings:
        """What :meth:`to_json` gave; see :meth:`from_dict`."""
        try:
            saved = json.loads(text or "")["keytokens"]
        except (ValueError, TypeError, KeyError):
            saved = text
        return cls.from_dict(saved, where)
