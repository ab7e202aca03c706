"""Alignment of decoded terms with the texts' own: of embedders and backbones, or of stored embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_keytokens.analysis.alignment_models import (
    VARIANTS,
    fitted_calibration,
    headed_encoders,
    ids_of_texts,
    needs_calibration,
    scores_of,
    vocabulary_of,
)
from st_keytokens.analysis.alignment_result import Alignment, AlignmentComparison
from st_keytokens.analysis.alignment_tally import AlignmentTally
from st_keytokens.analysis.alignment_terms import Definition, OwnTerms, own_terms
from st_keytokens.analysis.frequency import document_frequencies, frequency_order
from st_keytokens.checks import check_choice, checked_float, checked_int
from st_keytokens.decoder import Decoder
from st_keytokens.decoding import check_finite
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.first_component import Dense, as_tensor, check_embeddings
from st_keytokens.forward_pass import Role
from st_keytokens.head_settings import HeadSettings
from st_keytokens.sparse_embeddings.array_checks import check_range, integer_array
from st_keytokens.texts import check_texts
from st_keytokens.top_terms import top_terms
from st_keytokens.vocabulary import Vocabulary

__all__ = ["BASELINE", "KS", "VARIANTS", "alignment_of_embeddings", "measure_alignment"]

BASELINE = "frequency baseline"
KS = (1, 2, 3, 5, 10, 20, 50, 100)
_ROWS = 32  # embeddings decoded at a time


def measure_alignment(
    texts: Sequence[str],
    encoders: KeyTokenEncoder | SentenceTransformer | Mapping[str, KeyTokenEncoder | SentenceTransformer],
    *,
    embeddings: Mapping[str, Dense] | None = None,
    variants: Mapping[str, HeadSettings] = VARIANTS,
    role: Role = "document",
    definition: Definition = "clean",
    fold: bool | None = None,
    max_document_share: float = 1.0,
    k: int = 10,
    ks: Sequence[int] = KS,
    has_baseline: bool = True,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> AlignmentComparison:
    """How well the terms decoded from embeddings are the texts' own, beside an answer that looks at no text.

    Each embedder embeds the texts once, whatever the number of variants; its embeddings are held, and 32 of them at a
    time are decoded.

    Args:
        texts: The texts.
        encoders: One, called ``"embedder"``, or several by name, such as an embedder and its backbone, with one
            vocabulary; a SentenceTransformer is decoded with its own LM head. Their dimensions may differ.
        embeddings: The texts' vectors by the encoders' names, where they are stored, as ``KeyTokenEncoder.embed``
            gives them, shape ``(N, pooled_dimension)``. None: the texts are embedded.
        variants: Settings of the head by name, each of which every encoder is measured with. A first component or
            logit statistics are the calibration's of the encoder or, where it has none, fitted on the texts.
        role: ``"document"`` or ``"query"``: decides the prompt, which is never among the terms.
        definition: ``"clean"``: own terms are those of the whole text without special tokens, decoded ones any but
            special tokens, and the rates look at as many decoded terms as there are own ones. ``"nie2025"``, as the
            published code counts: raw tokens with the special ones, cut at the model's maximum length; the rates look
            at as many decoded tokens as the text has with repetition, yet no more than ``k``, over the number without
            repetition.
        fold: Whether tokens that differ in case and surrounding space are one term, on both sides. None: by
            ``"clean"``, which also knows raw tokens; ``"nie2025"`` does not fold.
        max_document_share: Only terms that occur in at most this share of the texts count, on both sides; below 1 it
            leaves out function words, which any answer hits.
        k: Of the definition ``"nie2025"``.
        ks: Numbers of decoded terms for Hit@k and shares.
        has_baseline: Whether the frequency baseline is measured. It answers every text with the terms that occur in
            the most texts, the text itself among them.
        confidence: Of the intervals, between 0 and 1.
        samples: Resamplings of the texts.
        seed: Of the random numbers.
        batch_size: Texts a forward pass.
        show_progress_bar: Whether to show one.

    Returns:
        An alignment for each encoder and variant, named ``"encoder, variant"``, and that of the baseline.

    Raises:
        TypeError: If a text is not a string, or an argument of another wrong type.
        ValueError: If no text has a term, a setting is out of its range or not one of its choices, the vocabularies
            differ, or a first component cannot be fitted since all embeddings have one direction.

    Source:
        Nie et al. 2025 (arXiv 2406.17378), Hit@k, local and global alignment rate. The clean definition differs from
        its code in masking, folding and cuts; the frequency baseline, shares and intervals are additions.
    """
    _check_settings(definition, k, ks, confidence, samples)
    fold = definition == "clean" if fold is None else fold
    if fold and definition == "nie2025":
        raise ValueError("fold must be None or False for definition='nie2025', whose tokens are raw, got True.")
    share = checked_float("max_document_share", max_document_share, minimum=0, maximum=1)
    texts, headed = check_texts(texts), headed_encoders(encoders)
    if not variants:
        raise ValueError("variants must name at least one, got none.")
    first = next(iter(headed.values()))
    vocabulary = vocabulary_of(first, fold=fold)
    ids = ids_of_texts(first, vocabulary, texts, definition)
    frequencies = document_frequencies(ids, vocabulary.vocab_size)
    is_counted = frequencies <= share * len(texts)
    own = [own_terms(row[is_counted[row]], definition, k) for row in ids]
    tallies: dict[str, AlignmentTally] = {}
    fitted: dict[str, str] = {}
    for name, encoder in headed.items():
        if embeddings is None:
            rows: Dense = encoder.embed(texts, role=role, batch_size=batch_size, show_progress_bar=show_progress_bar)
        else:
            rows = _stored(embeddings, name, len(texts))
        calibration, fitted[name] = encoder.calibration, "calibration"
        if calibration is None:
            fitted[name] = "these texts" if any(map(needs_calibration, variants.values())) else "none"
            calibration = (
                fitted_calibration(encoder.prepare_embeddings(rows), name) if fitted[name] == "these texts" else None
            )
        for variant, settings in variants.items():
            score = scores_of(encoder, settings, calibration, definition)
            tallies[f"{name}, {variant}"] = _tally(rows, score, own, vocabulary.terms, is_counted, ks)
    if has_baseline:
        order = frequency_order(np.where(is_counted, frequencies, 0))
        tallies[BASELINE] = AlignmentTally(vocabulary.vocab_size, ks)
        depth = _depth(own, ks)
        answer = np.pad(order[:depth], (0, max(0, depth - len(order))), constant_values=-1)
        for start in range(0, len(own), _ROWS):
            part = own[start : start + _ROWS]
            tallies[BASELINE].update(np.tile(answer, (len(part), 1)), part)
    found = {
        name: tally.result(definition, confidence=confidence, samples=samples, seed=seed)
        for name, tally in tallies.items()
    }
    return AlignmentComparison(found, fold, share, fitted)


def alignment_of_embeddings(
    embeddings: Dense,
    decoder: Decoder,
    token_ids: Sequence[ArrayLike],
    *,
    vocabulary: Vocabulary | None = None,
    definition: Definition = "clean",
    k: int = 10,
    ks: Sequence[int] = KS,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> Alignment:
    """Alignment of stored embeddings, by any decoder.

    Args:
        embeddings: Shape ``(N, embedding_dimension)``, numpy (also memory-mapped) or torch, as the decoder shall see
            them: ``st_keytokens.first_component.correct`` corrects them before. Not modified.
        decoder: Gives logits, such as an ``LMHead``; of 32 embeddings at a time.
        token_ids: Ids of each text's tokens, with repetition.
        vocabulary: Terms are its folded tokens without the masked ones, on both sides. None: terms are the raw tokens,
            special ones among them, on both sides.
        definition: See :func:`measure_alignment`; ``"nie2025"`` goes without a vocabulary, since its tokens are raw.
        k: See there, as for the rest.
        ks: Numbers of decoded terms for Hit@k and shares.
        confidence: Of the intervals, between 0 and 1.
        samples: Resamplings of the texts.
        seed: Of the random numbers.

    Returns:
        The alignment. Texts without a term are counted and left out.

    Raises:
        TypeError: If embeddings or ids are of a wrong type.
        ValueError: If the dimension is not the decoder's, a value is not finite, the numbers of embeddings and texts
            differ, an id is out of the vocabulary, a setting out of its range, or no text has a term.

    Source:
        See :func:`measure_alignment`.

    >>> from st_keytokens import LMHead
    >>> head = LMHead(torch.nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])))
    >>> found = alignment_of_embeddings(torch.tensor([[3.0, 1.0]]), head, [[0, 1]], ks=[1, 2])
    >>> found.hits[1].value, found.hits[2].value, found.local_alignment_rate.value
    (0.0, 1.0, 0.5)
    """
    _check_settings(definition, k, ks, confidence, samples)
    check_embeddings(embeddings, decoder.embedding_dimension)
    if len(token_ids) != len(embeddings):
        raise ValueError(f"token_ids must be one for each embedding, got {len(token_ids)} for {len(embeddings)}.")
    size = decoder.vocab_size
    if vocabulary is not None and definition == "nie2025":
        raise ValueError("vocabulary must be None for definition='nie2025', whose tokens are raw, got one.")
    if vocabulary is not None and vocabulary.vocab_size != size:
        raise ValueError(
            f"vocabulary must have the decoder's {size} tokens, got {vocabulary.vocab_size}. Pass the one of the "
            "decoder's own language model."
        )
    terms, is_counted = np.arange(size), np.ones(size, dtype=bool)
    ids_of_text: Callable[[ArrayLike], NDArray[np.int64]] = partial(_raw_ids, vocab_size=size)
    if vocabulary is not None:
        terms, is_counted, ids_of_text = vocabulary.terms, ~vocabulary.is_masked, vocabulary.term_ids
    own = [own_terms(ids_of_text(ids), definition, k) for ids in token_ids]

    def score(rows: Tensor) -> Tensor:
        check_finite(rows)
        return decoder.logits(rows).float()

    tally = _tally(embeddings, score, own, terms, is_counted, ks)
    return tally.result(definition, confidence=confidence, samples=samples, seed=seed)


def _tally(
    embeddings: Dense,
    score: Callable[[Tensor], Tensor],
    own: Sequence[OwnTerms],
    terms: NDArray[np.int64],
    is_counted: NDArray[np.bool_],
    ks: Sequence[int],
) -> AlignmentTally:
    """Decodes embeddings in batches, and counts."""
    tally = AlignmentTally(len(terms), ks)
    with torch.inference_mode():
        for start in range(0, len(own), _ROWS):
            rows = own[start : start + _ROWS]
            scores = score(as_tensor(embeddings[start : start + _ROWS]))
            term_of = torch.from_numpy(terms).to(scores.device)
            scores = scores.masked_fill(~torch.from_numpy(is_counted).to(scores.device)[term_of], float("-inf"))
            ids, best = top_terms(scores, term_of, _depth(rows, ks))
            tally.update(torch.where(best > float("-inf"), ids, -1).cpu().numpy(), rows)
    return tally


def _stored(embeddings: Mapping[str, Dense], name: str, count: int) -> Dense:
    if name not in embeddings:
        raise ValueError(f"embeddings must hold those of every encoder, got none of {name!r}.")
    check_embeddings(embeddings[name])
    if len(embeddings[name]) != count:
        raise ValueError(f"embeddings must have one row a text, got {len(embeddings[name])} of {name!r} for {count}.")
    return embeddings[name]


def _raw_ids(ids: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    array = integer_array("token_ids", ids, ndim=1)
    check_range("token_ids", array, vocab_size)
    return array.astype(np.int64)


def _depth(own: Sequence[OwnTerms], ks: Sequence[int]) -> int:
    """Decoded terms that are looked at."""
    return max([*ks, *(terms.cut for terms in own)])


def _check_settings(definition: str, k: int, ks: Sequence[int], confidence: float, samples: int) -> None:
    check_choice("definition", definition, get_args(Definition))
    checked_int("k", k, minimum=1)
    if not len(ks):
        raise ValueError("ks must hold at least one number of decoded terms, got none.")
    for number in ks:
        checked_int("ks", number, minimum=1)
    if not 0 < checked_float("confidence", confidence) < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}.")
    checked_int("samples", samples, minimum=1)
