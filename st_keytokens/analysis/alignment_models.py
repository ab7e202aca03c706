"""What measuring alignment needs of embedders: encoders that fit together, ids of their texts, scores of a variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_keytokens.analysis.alignment_terms import Definition
from st_keytokens.calibration import Calibration
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.first_component import correct
from st_keytokens.head_settings import HeadSettings
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.texts import LiteralTokenizer
from st_keytokens.vocabulary import Vocabulary

__all__ = [
    "VARIANTS",
    "fitted_calibration",
    "headed_encoders",
    "ids_of_texts",
    "needs_calibration",
    "scores_of",
    "vocabulary_of",
]

VARIANTS: dict[str, HeadSettings] = {
    "raw": {"decode_with": "lm_head", "correction": "none", "standardize": False},
    "corrected": {"decode_with": "lm_head", "correction": "remove", "standardize": False},
    "standardized": {"decode_with": "lm_head", "correction": "remove", "standardize": True},
}
"""Settings of a head by name: as it comes; without the first component; that, with logits standardised over texts."""

_FLAT = 1e-9  # share of the embeddings' squares outside the first component, below which nothing is left without it


def headed_encoders(
    encoders: KeyTokenEncoder | SentenceTransformer | Mapping[str, KeyTokenEncoder | SentenceTransformer],
) -> dict[str, KeyTokenEncoder]:
    """Encoders by name, whose key tokens can be compared.

    Args:
        encoders: One, called ``"embedder"``, or several by name; a SentenceTransformer is given its own LM head.

    Returns:
        The encoders.

    Raises:
        TypeError: If one is neither.
        ValueError: If there is none, their vocabularies differ, or a model's LM head cannot be known from it alone.
    """
    named = encoders if isinstance(encoders, Mapping) else {"embedder": encoders}
    headed: dict[str, KeyTokenEncoder] = {}
    for name, encoder in named.items():
        if not isinstance(encoder, KeyTokenEncoder | SentenceTransformer):
            raise TypeError(
                f"encoders must be KeyTokenEncoders or SentenceTransformers, got {type(encoder).__name__} for "
                f"{name!r}. Load the model first."
            )
        headed[name] = encoder if isinstance(encoder, KeyTokenEncoder) else KeyTokenEncoder(encoder)
    if not headed:
        raise ValueError("encoders must hold at least one, got none.")
    (first, known), *others = ((name, vocabulary_of(encoder, fold=False)) for name, encoder in headed.items())
    for name, vocabulary in others:
        if vocabulary.hash != known.hash:
            raise ValueError(
                f"encoders must have one vocabulary, got {known.vocab_size} tokens ({known.hash[:12]}) for {first!r} "
                f"and {vocabulary.vocab_size} ({vocabulary.hash[:12]}) for {name!r}. Measure them one by one."
            )
    return headed


def vocabulary_of(encoder: KeyTokenEncoder, *, fold: bool) -> Vocabulary:
    """An encoder's vocabulary with folded terms, or with raw tokens."""
    if encoder.vocabulary.fold == fold:
        return encoder.vocabulary
    return Vocabulary.from_tokenizer(encoder.model.tokenizer, encoder.vocabulary.vocab_size, fold=fold)


def ids_of_texts(
    encoder: KeyTokenEncoder, vocabulary: Vocabulary, texts: Sequence[str], definition: Definition
) -> list[NDArray[np.int64]]:
    """Ids of the texts' own terms, with repetition.

    Args:
        encoder: Whose tokenizer.
        vocabulary: The terms.
        texts: The texts, without a prompt.
        definition: ``"clean"``: of the whole texts, without special tokens. ``"nie2025"``: what the tokenizer gives
            the model, special tokens among them, cut at the model's maximum length.

    Returns:
        One array a text.
    """
    if definition == "clean":
        return LiteralTokenizer(encoder.model.tokenizer, vocabulary)(texts)
    if not texts:
        return []
    longest = encoder.model.max_seq_length
    cut = {} if longest is None else {"truncation": True, "max_length": longest}
    return [np.array(ids, dtype=np.int64) for ids in encoder.model.tokenizer(list(texts), **cut)["input_ids"]]


def needs_calibration(settings: HeadSettings) -> bool:
    """Whether a head with these settings needs first component, mean or logit statistics."""
    return settings.get("correction", "auto") not in ("auto", "none") or settings.get("standardize") is True


def fitted_calibration(embeddings: NDArray[np.float32], name: str) -> Calibration:
    """First component and logit statistics of the texts that are measured themselves.

    Args:
        embeddings: As ``KeyTokenEncoder.embed`` gives them, shape ``(N, pooled_dimension)``.
        name: Of the encoder, for the error.

    Returns:
        The calibration.

    Raises:
        ValueError: If the embeddings have one direction, so that nothing is left without it.
    """
    calibration = Calibration.fit_embeddings(embeddings, show_progress_bar=False)
    squares = float(calibration.moments.second_moment.trace())
    if squares - calibration.first_component.singular_value**2 <= _FLAT * squares:
        raise ValueError(
            f"texts must have embeddings of more than one direction for a first component to be fitted on them, got "
            f"{len(embeddings)} of one direction for {name!r}. Give more texts, an encoder with a calibration, or "
            "only variants without a correction."
        )
    return calibration


def scores_of(
    encoder: KeyTokenEncoder, settings: HeadSettings, calibration: Calibration | None, definition: Definition
) -> Callable[[Tensor], Tensor]:
    """Scores of all tokens under a variant.

    Args:
        encoder: Whose head; it is left as it is.
        settings: Of the variant.
        calibration: For a head without one.
        definition: By ``"nie2025"`` no token is masked, and logits are as they come.

    Returns:
        A function from embeddings ``(batch_size, pooled_dimension)`` to scores ``(batch_size, vocab_size)``.

    Raises:
        TypeError: If a setting is of a wrong type.
        ValueError: If a setting is not one of its choices, or ``"nie2025"`` is to be standardised or decoded by ridge.
    """
    head: KeyTokenHead = encoder.head.with_settings(**settings)
    if head.calibration is None and calibration is not None:
        head.set_calibration(calibration)
    if definition == "clean":
        return head.decode_scores
    if head.is_ridge or (head.standardize is not False and head.calibration is not None):
        raise ValueError(
            "variants must have decode_with='lm_head' and standardize=False for definition='nie2025', got "
            f"decode_with={head.decode_with!r}, standardize={head.standardize!r}."
        )

    def logits(embeddings: Tensor) -> Tensor:
        direction = mean = None
        if head.calibration is not None:
            direction = head.calibration.first_component.direction
            mean = head.calibration.moments.mean.float()
        vectors = head.prepare_embeddings(embeddings)
        corrected = correct(vectors, head.active_correction, direction=direction, mean=mean, amount=head.shift)
        return head.decoder.logits(corrected).float()

    return logits
