"""Texts to dense and sparse vectors, from one forward pass."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch

from st_keytokens.cache import Row, join_rows, split_rows
from st_keytokens.checks import check_choice
from st_keytokens.forward_pass import Role, resolve_prompt
from st_keytokens.headed_model import QUERIES, HeadedModel, Query
from st_keytokens.pool import check_pool, encode_with_pool
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings
from st_keytokens.texts import check_texts
from st_keytokens.weighting import Corpus


class TextEncoder(HeadedModel):
    """Encodes texts, with a cache or a pool of processes. Use it through :class:`KeyTokenEncoder`."""

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        role: Role = "document",
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        pool: dict[str, Any] | None = None,
    ) -> HybridEmbeddings:
        """Dense and sparse vectors of texts from one forward pass.

        Args:
            texts: One text (a batch of one) or several.
            role: ``"document"`` or ``"query"``: decides the default prompt, the number of terms and their weights.
            prompt: Put before each text for the model; never becomes a literal term.
            prompt_name: Name of a prompt of the model.
            batch_size: Texts a forward pass.
            show_progress_bar: Whether to show one.
            pool: From :meth:`start_multi_process_pool`.

        Returns:
            ``HybridEmbeddings`` with ``dense`` float32 ``(N, embedding_dimension)``, what the model's own
            ``encode_document`` or ``encode_query`` gives, and ``sparse`` ``(N, vocab_size)``. A text that the model
            sees no token of, not even of a prompt, has a zero vector; one without a term of its own has no terms.

        Raises:
            TypeError: If a text is not a string.
            ValueError: If role or prompt_name is unknown, batch_size is below 1, the model gives a vector that is not
                finite, or the pool is not of this encoder as it is now.
        """
        texts = check_texts(texts)
        prompt = resolve_prompt(self.model, role, prompt, prompt_name)
        if len(texts) > self.cache.size:
            return self._encode(texts, role, prompt, batch_size, show_progress_bar, pool)
        state = self.fingerprint
        keys = [(state, role, prompt, text) for text in texts]
        rows = self.cache.get(keys)
        missing = list(dict.fromkeys(key for key in keys if key not in rows))
        if missing:
            new = self._encode([key[3] for key in missing], role, prompt, batch_size, show_progress_bar, pool)
            made: dict[Hashable, Row] = dict(zip(missing, split_rows(new), strict=True))
            self.cache.put(made)
            rows |= made
        return join_rows([rows[key] for key in keys], self.get_embedding_dimension(), self.vocabulary.vocab_size)

    def encode_document(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        pool: dict[str, Any] | None = None,
    ) -> HybridEmbeddings:
        """:meth:`encode` with ``role="document"``; arguments, result and errors are its."""
        return self.encode(
            texts,
            role="document",
            prompt=prompt,
            prompt_name=prompt_name,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            pool=pool,
        )

    def encode_query(
        self,
        texts: str | Sequence[str],
        *,
        query: Query | None = None,
        is_hybrid: bool = False,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        pool: dict[str, Any] | None = None,
    ) -> HybridEmbeddings:
        """:meth:`encode` with ``role="query"``; or the literal terms alone, without a forward pass.

        ``query`` is ``"encode"`` or ``"lookup"``, None as the encoder is set (anything else: ValueError). A lookup
        looks at no other argument, and its ``dense`` is None. With ``is_hybrid``, for a search by both vectors, the
        sparse one holds the literal terms alone, unless the weighting is for decoded ones only: what the embedding
        says is in the dense one, and would count twice. All else is as in :meth:`encode`.
        """
        query = self.query if query is None else query
        check_choice("query", query, QUERIES)
        if query == "lookup":
            return HybridEmbeddings(dense=None, sparse=self.weigh(check_texts(texts), None, "query"))
        embeddings = self.encode(
            texts,
            role="query",
            prompt=prompt,
            prompt_name=prompt_name,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            pool=pool,
        )
        if is_hybrid and self.weighting.query_terms == "both":
            return HybridEmbeddings(embeddings.dense, self.weigh(check_texts(texts), None, "query"))
        return embeddings

    def _encode(
        self,
        texts: list[str],
        role: Role,
        prompt: str | None,
        batch_size: int,
        progress: bool,
        pool: dict[str, Any] | None,
    ) -> HybridEmbeddings:
        if pool is None:
            with self.lock, torch.inference_mode():
                dense, decoded = self.forward_pass.both(texts, role, prompt, batch_size, progress)
        else:
            check_pool(pool, self.fingerprint)
            dense, decoded = encode_with_pool(pool, self.forward_pass, texts, role, prompt, batch_size, progress)
        return HybridEmbeddings(dense=dense, sparse=self.weigh(texts, decoded, role))

    def weigh(self, texts: list[str] | None, decoded: SparseEmbeddings | None, role: Role) -> SparseEmbeddings:
        """Sparse vectors of literal and decoded terms; the last step of :meth:`encode` and :meth:`sparsify`.

        Args:
            texts: For the literal terms; None for none.
            decoded: Decoded terms, one row a text; None for none.
            role: ``"document"`` or ``"query"``.

        Returns:
            ``SparseEmbeddings`` ``(N, vocab_size)``.
        """
        size, calibration = self.vocabulary.vocab_size, self.calibration
        if texts is None:
            literal = [np.empty(0, np.int64)] * len(decoded or ())
        else:
            literal = self.literal_terms(texts)
            decoded = None if decoded is None else without_silent(decoded, literal)
        corpus = Corpus() if calibration is None else calibration.corpus
        weigh = self.weighting.query if role == "query" else self.weighting.document
        return weigh(literal, decoded, size, corpus)


def without_silent(decoded: SparseEmbeddings, literal: list[np.ndarray]) -> SparseEmbeddings:
    """Decoded terms, but none of a text without literal ones, of which a model sees the prompt at the most."""
    silent = [row for row, terms in enumerate(literal) if not len(terms)]
    if not silent:
        return decoded
    rows = np.arange(len(decoded))
    rows[silent] = len(decoded)
    return SparseEmbeddings.concatenate([decoded, SparseEmbeddings.empty(1, decoded.vocab_size)])[rows]
