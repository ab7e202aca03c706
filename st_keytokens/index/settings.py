"""Settings of an index: what was asked for, what is saved, and whether embeddings fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from st_keytokens.checks import check_choice, checked_int
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

__all__ = ["Encoder", "as_hybrid", "check_embeddings", "check_settings", "given_settings", "settled"]

_CHOICES = {"similarity": ("cosine", "dot"), "dense_dtype": ("float32", "float16")}
_SMALLEST = {"vocab_size": 1, "embedding_dimension": 0}


class Encoder(Protocol):
    """What an index asks of an encoder; ``KeyTokenEncoder`` is one."""

    @property
    def fingerprint(self) -> str:
        """Names everything that changes a score."""

    @property
    def vocabulary(self) -> Any:
        """With ``vocab_size``, and ``strings``: a readable token for each term id."""

    @property
    def fusion_weights(self) -> Mapping[str, float]:
        """Factors of ``"sparse"`` and ``"dense"`` in a hybrid search."""

    def encode_document(self, texts: list[str]) -> HybridEmbeddings:
        """Embed documents."""

    def encode_query(self, texts: list[str], *, is_hybrid: bool) -> HybridEmbeddings:
        """Embed queries, for a search by both vectors or by one of them."""


def given_settings(encoder: Encoder | None, **given: Any) -> dict[str, Any]:
    """Check the settings of a constructor call, and take from the encoder what it knows.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a value is not allowed, or is not the encoder's.
    """
    for name, smallest in _SMALLEST.items():
        if given[name] is not None:
            given[name] = checked_int(name, given[name], minimum=smallest)
    for name, choices in _CHOICES.items():
        if given[name] is not None:
            check_choice(name, given[name], choices)
    if encoder is not None:
        own = {"vocab_size": encoder.vocabulary.vocab_size, "fingerprint": encoder.fingerprint}
        check_settings(own, given, "the encoder has")
        given.update(own)
    return given


def check_settings(saved: Mapping[str, Any], given: Mapping[str, Any], owner: str) -> None:
    """Compare what is given with what is saved, where both are known.

    Raises:
        ValueError: If they differ.
    """
    for name, value in saved.items():
        if value is not None and given[name] is not None and value != given[name]:
            raise ValueError(
                f"{name} must be {value!r}, which {owner}, got {given[name]!r}. "
                "Use what it was made with, or make a new index."
            )


def settled(saved: Mapping[str, Any], given: Mapping[str, Any], embeddings: HybridEmbeddings) -> dict[str, Any]:
    """The settings after documents were added: what was open is what was asked for, or what the embeddings have."""
    found = {
        "vocab_size": embeddings.sparse.vocab_size,
        "embedding_dimension": 0 if embeddings.dense is None else embeddings.dense.shape[1],
    }
    known = {name: given[name] if value is None else value for name, value in saved.items()}
    return {name: found.get(name) if value is None else value for name, value in known.items()}


def check_embeddings(
    name: str, embeddings: HybridEmbeddings, settings: Mapping[str, Any], *, needs_dense: bool
) -> None:
    """Check that embeddings are over the index's vocabulary and, where dense rows matter, in its dimension.

    What is not settled yet, before the first documents, fits all.

    Raises:
        ValueError: If they are not.
    """
    vocab_size, dimension = settings["vocab_size"], settings["embedding_dimension"]
    if vocab_size not in (None, embeddings.sparse.vocab_size):
        raise ValueError(
            f"{name} must have vocab_size {vocab_size}, as the index has, got {embeddings.sparse.vocab_size}. "
            "Use the encoder that the index was made with."
        )
    found = 0 if embeddings.dense is None else embeddings.dense.shape[1]
    is_empty = embeddings.dense is not None and not found
    if needs_dense and (dimension not in (None, found) or is_empty):
        raise ValueError(f"{name} must have dense rows of dimension {dimension}, got {found} (0 stands for none).")


def as_hybrid(name: str, embeddings: HybridEmbeddings | SparseEmbeddings) -> HybridEmbeddings:
    """Embeddings of either kind as :class:`HybridEmbeddings`.

    Raises:
        TypeError: If they are something else.
    """
    if isinstance(embeddings, SparseEmbeddings):
        return HybridEmbeddings(None, embeddings)
    if not isinstance(embeddings, HybridEmbeddings):
        raise TypeError(f"{name} must be HybridEmbeddings or SparseEmbeddings, got {type(embeddings).__name__}.")
    return embeddings
