"""Candidate phrases of texts in order: by key tokens, by TF-IDF, by similarity to the text's embedding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from st_keytokens.analysis.keyphrases_candidates import words_of
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.head_settings import HeadSettings

__all__ = ["rank_by_embedding", "rank_by_key_tokens", "rank_by_tfidf"]

_ROWS = 32  # embeddings decoded at a time


def rank_by_key_tokens(
    encoder: KeyTokenEncoder,
    texts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    *,
    embeddings: NDArray[np.float32] | None = None,
    settings: HeadSettings | None = None,
    batch_size: int = 32,
) -> list[list[str]]:
    """Candidates by what the text's embedding is decoded to.

    A word weighs the mean score of its tokens, a phrase the sum over its words of what is above zero.

    Args:
        encoder: Embeds and decodes the texts.
        texts: The texts.
        candidates: Phrases of each.
        embeddings: The texts' vectors, as ``KeyTokenEncoder.embed`` gives them. None: they are embedded.
        settings: Of the head, such as ``{"decode_with": "lm_head"}``. None: as it is set.
        batch_size: Texts a forward pass.

    Returns:
        The phrases of each text, the heaviest first; equal ones stay in order.

    Raises:
        TypeError: If a text is not a string.
        ValueError: If texts, candidates and embeddings differ in number, or see :meth:`KeyTokenEncoder.encode`.
    """
    _check_same_number(texts, candidates)
    rows = torch.from_numpy(encoder.embed(texts, batch_size=batch_size) if embeddings is None else embeddings)
    if len(rows) != len(texts):
        raise ValueError(f"embeddings must have one row a text, got {len(rows)} for {len(texts)}.")
    head = encoder.head.with_settings(**(settings or {}))
    ranked: list[list[str]] = []
    with torch.inference_mode():
        for start in range(0, len(texts), _ROWS):
            scores = head.decode_scores(rows[start : start + _ROWS]).cpu().numpy()
            for row, phrases in zip(scores, candidates[start : start + _ROWS], strict=True):
                words = list(dict.fromkeys(word for phrase in phrases for word in words_of(phrase)))
                weights = dict(zip(words, _word_weights(encoder, words, row), strict=True))
                ranked.append(_by_sum(phrases, weights))
    return ranked


def rank_by_tfidf(texts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[str]]:
    """Candidates by TF-IDF of their words over these texts (scikit-learn's), a phrase the sum over its words.

    Args:
        texts: The texts, which also give the document frequencies.
        candidates: Phrases of each.

    Returns:
        The phrases of each text, the heaviest first; equal ones stay in order.

    Raises:
        ValueError: If texts and candidates differ in number.

    >>> rank_by_tfidf(["a cat, a dog and a cat", "one dog"], [["dog", "cat"], ["dog"]])
    [['cat', 'dog'], ['dog']]
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    _check_same_number(texts, candidates)
    vectorizer = TfidfVectorizer(analyzer=_folded_words)
    rows = vectorizer.fit_transform(texts)
    names = vectorizer.get_feature_names_out()
    ranked = []
    for number, phrases in enumerate(candidates):
        row = rows[number]
        ranked.append(_by_sum(phrases, dict(zip(names[row.indices], row.data.tolist(), strict=True))))
    return ranked


def rank_by_embedding(
    encoder: KeyTokenEncoder, texts: Sequence[str], candidates: Sequence[Sequence[str]], *, batch_size: int = 32
) -> list[list[str]]:
    """Candidates by the cosine of their own embedding with the text's, as KeyBERT ranks without diversification.

    Args:
        encoder: Whose dense embeddings; each distinct phrase is embedded once.
        texts: The texts.
        candidates: Phrases of each.
        batch_size: Texts a forward pass.

    Returns:
        The phrases of each text, the most similar first; equal ones stay in order.

    Raises:
        TypeError: If a text is not a string.
        ValueError: If texts and candidates differ in number, or see :meth:`KeyTokenEncoder.encode`.

    Source:
        Grootendorst, KeyBERT, https://github.com/MaartenGr/KeyBERT.
    """
    _check_same_number(texts, candidates)
    places = {phrase: place for place, phrase in enumerate(dict.fromkeys(p for row in candidates for p in row))}

    def directions(items: list[str]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = encoder.model.encode(
            items, batch_size=batch_size, convert_to_numpy=True, show_progress_bar=False
        )
        lengths = np.linalg.norm(rows, axis=-1, keepdims=True).astype(np.float32)
        found: NDArray[np.float32] = rows / np.maximum(lengths, np.float32(1e-12))
        return found

    if not places:
        return [[] for _ in texts]
    whole, parts = directions(list(texts)), directions(list(places))
    ranked = []
    for vector, phrases in zip(whole, candidates, strict=True):
        scores = parts[[places[phrase] for phrase in phrases]] @ vector if phrases else np.zeros(0)
        ranked.append([phrases[i] for i in np.argsort(-scores, kind="stable")])
    return ranked


def _word_weights(encoder: KeyTokenEncoder, words: Sequence[str], scores: NDArray[np.float32]) -> list[float]:
    found = []
    for ids in encoder.literal_terms(words):
        values = scores[ids]
        values = values[np.isfinite(values)]  # the ridge decoder does not know every term
        found.append(max(0.0, float(values.mean())) if len(values) else 0.0)
    return found


def _by_sum(phrases: Sequence[str], weights: dict[str, float]) -> list[str]:
    scores = [sum(weights.get(word, 0.0) for word in words_of(phrase)) for phrase in phrases]
    return [phrases[i] for i in sorted(range(len(phrases)), key=lambda i: -scores[i])]


def _folded_words(text: str) -> list[str]:
    return [word.casefold() for word in words_of(text)]


def _check_same_number(texts: Sequence[str], candidates: Sequence[Sequence[str]]) -> None:
    if isinstance(texts, str) or len(texts) != len(candidates):
        got = "one string" if isinstance(texts, str) else f"{len(candidates)} for {len(texts)}"
        raise ValueError(f"candidates must be one list for each text, got {got}.")
