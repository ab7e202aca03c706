"""The spectrum of embeddings, streamed, and how an embedder's vectors vary from its backbone's along it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, tee, zip_longest
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor
from tqdm.auto import tqdm

from st_keytokens.calibration.moments import SecondMoments
from st_keytokens.decoding.first_component import Dense, FirstComponent, as_tensor, check_embeddings
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.encoder.forward_pass import head_place, resolve_prompt
from st_keytokens.shared.checks import checked_float, checked_int
from st_keytokens.shared.markdown import markdown_table
from st_keytokens.terms.literal_terms import check_texts

__all__ = ["Spectrum", "Variation", "blocks_of", "check_comparable", "measure_spectrum", "measure_variation"]

Model: TypeAlias = KeyTokenEncoder | SentenceTransformer
Source: TypeAlias = KeyTokenEncoder | SentenceTransformer | Dense | Iterable[Dense]
"""A model, or its stored embeddings: one matrix, or an iterable of matrices."""

_BLOCK_ROWS = 512  # texts that are held at a time; the model sorts them by length before it forms batches
_ZERO_COEFFICIENT = 1e-9  # as in FirstComponent: of the root mean square projection


def measure_spectrum(
    source: Source,
    texts: Iterable[str] | None = None,
    *,
    prompt: str | None = None,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> Spectrum:
    """Singular values and right singular vectors of uncentred embeddings, in one pass and ``O(d²)`` memory.

    Args:
        source: A ``KeyTokenEncoder`` or ``SentenceTransformer``, whose vectors are taken right after pooling, not
            normalised; or stored embeddings, shape ``(N, d)``, in one matrix or an iterable of matrices.
        texts: The texts, for a model; may be a generator. None for stored embeddings.
        prompt: Put before each text. None: the model's own for documents.
        batch_size: Texts a forward pass at most.
        show_progress_bar: Whether to show one.

    Returns:
        The spectrum. Fewer texts than dimensions, one text and identical texts have one too, of lower rank.

    Raises:
        TypeError: If a text is not a string, or embeddings are no floating-point arrays or tensors.
        ValueError: If there is no text, one is blank, a value is not finite, a shape is wrong, or all embeddings are
            zero.

    Source:
        Nie et al. 2025 (arXiv 2406.17378). Differs from it in streaming, and in fixing the signs.

    Example:
        >>> spectrum = measure_spectrum(np.array([[2.0, 0.0], [2.0, 1.0], [2.0, -1.0]]))
        >>> (spectrum.singular_values**2).round(6).tolist(), spectrum.coefficients.round(6).tolist()
        ([12.0, 2.0], [2.0, 0.0])
    """
    blocks = blocks_of(source, texts, prompt=prompt, batch_size=batch_size, show_progress_bar=show_progress_bar)
    (moments,) = _moments((block,) for block in blocks)
    return Spectrum.from_moments(moments)


def measure_variation(
    embedder: Source,
    backbone: Source,
    texts: Iterable[str] | None = None,
    *,
    prompt: str | None = None,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> Variation:
    """How an embedder's vectors differ from its backbone's along each of the backbone's components.

    One pass and ``O(d²)`` memory for any number of texts. The two models must differ in nothing but their weights:
    texts, prompt, pooling, maximum length and, up to tokens added to one of them, vocabulary are the same.

    Args:
        embedder: A ``KeyTokenEncoder`` or ``SentenceTransformer``, whose vectors are taken right after pooling, not
            normalised; or stored embeddings, shape ``(N, d)``, in one matrix or an iterable of matrices.
        backbone: The language model that it was made from, pooled alike, in any of these forms.
        texts: The texts; may be a generator. None where both embeddings are stored.
        prompt: Put before each text for both. None: the embedder's own for documents.
        batch_size: Texts a forward pass at most.
        show_progress_bar: Whether to show one.

    Returns:
        The variation. One text has no standard errors; identical texts have standard errors of zero; fewer texts than
        dimensions leave components beyond the rank of the backbone's embeddings, which are then arbitrary.

    Raises:
        TypeError: If a text is not a string, or embeddings are no floating-point arrays or tensors.
        ValueError: If there is no text, one is blank, a value is not finite, all of the backbone's embeddings are
            zero, or the two differ in dimension, number of rows, vocabulary, pooling or maximum length.

    Source:
        Nie et al. 2025 (arXiv 2406.17378). Differs from it in streaming, in fixing the signs, and in the errors.

    Example:
        >>> backbone = np.array([[3.0, 0.0], [3.0, 1.0], [3.0, -1.0]])
        >>> embedder = np.array([[1.0, 0.5], [1.0, 1.0], [0.4, -1.5]])
        >>> measure_variation(embedder, backbone).variations.round(6).tolist()
        [-2.2, 0.0]
    """
    pairs = _paired_blocks(embedder, backbone, texts, prompt, batch_size, show_progress_bar)
    moments, change = _moments((block, changed.double() - block.double()) for changed, block in pairs)
    spectrum = Spectrum.from_moments(moments)
    components, count = spectrum.components, change.count
    matrix = change.second_moment.cpu().numpy()
    variations = components @ change.mean.cpu().numpy()
    energies = np.einsum("ij,jk,ik->i", components, matrix, components, optimize=True) / count
    spread = energies - variations**2
    # Differences of equal numbers leave their rounding, of either sign: nothing that small is measured.
    rounding = np.finfo(np.float64).eps * (len(matrix) + count) * matrix.trace() / count
    spread = np.where(spread > rounding, spread, 0.0)
    errors = np.sqrt(spread / (count - 1)) if count > 1 else np.full(len(spread), math.nan)
    return Variation(spectrum, variations, errors, energies)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular value decomposition of the uncentred matrix of embeddings ``H``, shape ``(N, d)``.

    The sign of each right singular vector is fixed as that of
    :class:`~st_keytokens.decoding.first_component.FirstComponent`: the mean of the embeddings projects positively on
    it; where the mean projection is zero, the entry of largest magnitude is positive. Vectors of equal singular
    values, and so those beyond the rank, are any orthonormal basis of their space.

    Attributes:
        count: Number ``N`` of embeddings.
        singular_values: Descending, shape ``(d,)``, zero beyond the rank. Being roots of eigenvalues in float64, those
            below some 1e-7 of the first cannot be told from zero, and are zero.
        components: Right singular vectors ``u_j``, one a row, shape ``(d, d)``, float64.
        coefficients: Mean projection of the embeddings on each of them, shape ``(d,)``, zero or positive.
    """

    count: int
    singular_values: NDArray[np.float64]
    components: NDArray[np.float64]
    coefficients: NDArray[np.float64]

    @classmethod
    def from_moments(cls, moments: SecondMoments) -> Spectrum:
        """The spectrum of embeddings whose second moments are known.

        Args:
            moments: Of at least one embedding. Not modified.

        Returns:
            The spectrum.

        Raises:
            ValueError: If there is no embedding, or all are zero vectors.

        Example:
            >>> moments = SecondMoments(2)
            >>> moments.update(np.array([[-3.0, 0.0], [0.0, 2.0]]))
            >>> spectrum = Spectrum.from_moments(moments)
            >>> spectrum.singular_values.tolist(), spectrum.components.tolist()
            ([3.0, 2.0], [[-1.0, 0.0], [0.0, 1.0]])
        """
        mean = moments.mean.cpu().numpy()
        matrix = moments.second_moment.cpu().numpy()
        if not matrix.any():
            raise ValueError(
                f"embeddings must not all be zero, got {moments.count} zero vectors: they have no components. Check "
                "the model's pooling."
            )
        values, vectors = np.linalg.eigh(matrix)
        values, components = values[::-1], vectors.T[::-1]
        rounding = np.finfo(np.float64).eps * len(values) * values[0]
        singular_values = np.sqrt(np.where(values > rounding, values, 0.0))
        coefficients = components @ mean
        # Beyond the rank a projection is rounding, whose size the root mean square of all embeddings bounds.
        typical = np.where(singular_values > 0, singular_values, singular_values[0]) / moments.count**0.5
        is_zero = np.abs(coefficients) <= _ZERO_COEFFICIENT * typical
        sizes = np.abs(components)
        largest = np.argmax(sizes >= (1 - 1e-6) * sizes.max(axis=1, keepdims=True), axis=1)
        deciding = np.where(is_zero, components[np.arange(len(largest)), largest], coefficients)
        components = np.copysign(1.0, deciding)[:, None] * components + 0.0  # + 0: no negative zeros
        return cls(moments.count, singular_values, components, np.where(is_zero, 0.0, np.abs(coefficients)))

    @property
    def rank(self) -> int:
        """Number of singular values that are not zero."""
        return int(np.count_nonzero(self.singular_values))

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of each component in the sum of the embeddings' squared lengths, shape ``(d,)``; they sum to 1."""
        energies = self.singular_values**2
        shares: NDArray[np.float64] = energies / energies.sum()
        return shares

    @property
    def first_component(self) -> FirstComponent:
        """The first component, as corrections and heads take it."""
        direction = torch.from_numpy(self.components[0].astype(np.float32))
        return FirstComponent(direction, float(self.coefficients[0]), float(self.singular_values[0]))

    def to_dict(self) -> dict[str, Any]:
        """All but the components after the first as JSON values."""
        return {
            "count": self.count,
            "rank": self.rank,
            "singular_values": self.singular_values.tolist(),
            "shares": self.shares.tolist(),
            "coefficients": self.coefficients.tolist(),
            "first_component": self.components[0].tolist(),
        }

    def table(self, rows: int = 10) -> str:
        """The first components as Markdown.

        Args:
            rows: How many.
        """
        columns = [column[:rows].tolist() for column in (self.singular_values, self.shares, self.coefficients)]
        return markdown_table(
            ["component", "singular value", "share of squared length", "mean projection"],
            [[place, *cells] for place, cells in enumerate(zip(*columns, strict=True), start=1)],
        )


@dataclass(frozen=True, eq=False)
class Variation:
    """The change from a backbone's embeddings ``h`` to its embedder's ``ĥ``, by components ``u_j`` of the backbone's.

    ``v_j`` is the mean over texts of ``(ĥ − h)ᵀ u_j``. The backbone's mean projection on every ``u_j`` is positive or
    zero, so a positive ``v_j`` is a growth of the component, and ``v_1`` is what the first one is shifted by: a shift
    means something only beside this ``u_1``.

    Standard errors and intervals are those of a mean over independent texts, with the components as they were found
    on these texts.

    Attributes:
        spectrum: Of the backbone.
        variations: ``v_j``, in embedding units, shape ``(d,)``.
        standard_errors: Of each ``v_j``, shape ``(d,)``; NaN for a single text.
        energies: Mean of ``((ĥ − h)ᵀ u_j)²``, shape ``(d,)``: what also holds changes that differ from text to text.
    """

    spectrum: Spectrum
    variations: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    energies: NDArray[np.float64]

    @property
    def count(self) -> int:
        """Number of texts."""
        return self.spectrum.count

    @property
    def mean_change_shares(self) -> NDArray[np.float64]:
        """Share of each component in the squared length of the mean change, ``v_j² / Σ v²``; NaN without a change."""
        return _shares(self.variations**2)

    @property
    def change_shares(self) -> NDArray[np.float64]:
        """Share of each component in the mean squared length of the texts' changes; NaN without a change."""
        return _shares(self.energies)

    @property
    def largest(self) -> int:
        """Which component varies most, counted from 1."""
        return int(np.argmax(np.abs(self.variations))) + 1

    def intervals(self, confidence: float = 0.95) -> NDArray[np.float64]:
        """Confidence intervals of the variations, by Student's t.

        Args:
            confidence: Between 0 and 1.

        Returns:
            Lower and upper ends, shape ``(d, 2)``; NaN for a single text.

        Raises:
            ValueError: If confidence is not between 0 and 1.
        """
        confidence = checked_float("confidence", confidence, minimum=0, maximum=1)
        if self.count == 1:
            return np.full((len(self.variations), 2), np.nan)
        width = stdtrit(self.count - 1, (1 + confidence) / 2) * self.standard_errors
        return np.stack([self.variations - width, self.variations + width], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the backbone's later components as JSON values; what is not defined is None."""
        ends = self.intervals()
        return {
            "count": self.count,
            "largest": self.largest,
            "variations": self.variations.tolist(),
            "standard_errors": _json(self.standard_errors),
            "lows": _json(ends[:, 0]),
            "highs": _json(ends[:, 1]),
            "mean_change_shares": _json(self.mean_change_shares),
            "change_shares": _json(self.change_shares),
            "backbone": self.spectrum.to_dict(),
        }

    def table(self, rows: int = 10) -> str:
        """The components that vary most, and the first one, as Markdown.

        Args:
            rows: How many.
        """
        order = np.argsort(-np.abs(self.variations), kind="stable")[:rows]
        chosen = sorted({0, *order.tolist()}, key=lambda j: (-abs(self.variations[j]), j))
        columns = {
            "variation": self.variations,
            "low": self.intervals()[:, 0],
            "high": self.intervals()[:, 1],
            "backbone's projection": self.spectrum.coefficients,
            "share of mean change": self.mean_change_shares,
            "share of change": self.change_shares,
        }
        cells = [[place + 1 for place in chosen], *(_json(column[chosen]) for column in columns.values())]
        return markdown_table(["component", *columns], list(zip(*cells, strict=True)))


def blocks_of(
    source: Source,
    texts: Iterable[str] | None,
    *,
    name: str = "model",
    prompt: str | None = None,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> Iterator[Tensor]:
    """Pooled embeddings in blocks of equal size, whatever they come in.

    Args:
        source: A model, whose vectors are taken right after pooling, before any normalisation; or stored embeddings,
            shape ``(N, d)``, or an iterable of such matrices.
        texts: The texts, for a model.
        name: What errors call the source.
        prompt: Put before each text. None: the model's own for documents.
        batch_size: Texts a forward pass at most.
        show_progress_bar: Whether to show one.

    Yields:
        Float tensors ``(512, d)`` on the CPU, the last one shorter.

    Raises:
        TypeError: If a text is not a string, or embeddings are no floating-point arrays or tensors.
        ValueError: If a text is blank, texts are missing for a model, or a shape is wrong.
    """
    parts: Iterable[Dense]
    if isinstance(source, KeyTokenEncoder | SentenceTransformer):
        if texts is None:
            raise ValueError(f"texts must be given where {name} is a model, got None. Pass the texts to embed.")
        parts = _embedded(source, texts, prompt, checked_int("batch_size", batch_size, minimum=1), show_progress_bar)
    elif isinstance(source, Tensor | np.ndarray):
        matrix = source
        check_embeddings(matrix)
        parts = (matrix[start : start + _BLOCK_ROWS] for start in range(0, len(matrix), _BLOCK_ROWS))
    elif isinstance(source, Iterable) and not isinstance(source, str | bytes | dict):
        parts = source
    else:
        raise TypeError(
            f"{name} must be a KeyTokenEncoder, a SentenceTransformer or embeddings, got {type(source).__name__}. "
            "Load the model first."
        )
    return _equal_blocks(parts)


def check_comparable(embedder: Model, backbone: Model) -> None:
    """Check that two models may be compared text by text: that only their weights differ.

    Args:
        embedder: A model.
        backbone: Another one.

    Raises:
        ValueError: If a token of both has two ids, or pooling or the maximum length differ.
    """
    one, two = _sentence_transformer(embedder), _sentence_transformer(backbone)
    smaller, larger = sorted((model.tokenizer.get_vocab() for model in (one, two)), key=len)
    differing = next((token for token, number in smaller.items() if larger.get(token) != number), None)
    if differing is not None:
        raise ValueError(
            "embedder and backbone must have the same vocabulary, up to tokens that were added to one, got "
            f"{differing!r} with ids {smaller[differing]} and {larger.get(differing)}. Use the language model that "
            "the embedder was made from."
        )
    settings = [[m.get_config_dict() for m in model if isinstance(m, Pooling)] for model in (one, two)]
    if settings[0] != settings[1]:
        raise ValueError(
            f"embedder and backbone must be pooled alike, got {settings[0]} and {settings[1]}. Build the backbone "
            "with the embedder's pooling: SentenceTransformer(modules=[Transformer(...), Pooling(...)])."
        )
    if one.max_seq_length != two.max_seq_length:
        raise ValueError(
            "embedder and backbone must have the same max_seq_length, got "
            f"{one.max_seq_length} and {two.max_seq_length}. Set model.max_seq_length of one of them."
        )


def _paired_blocks(
    embedder: Source,
    backbone: Source,
    texts: Iterable[str] | None,
    prompt: str | None,
    batch_size: int,
    show_progress_bar: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeddings of the same texts by two models, side by side, in blocks of one shape; either may be stored."""
    models = [source for source in (embedder, backbone) if isinstance(source, KeyTokenEncoder | SentenceTransformer)]
    if texts is not None and not models:
        raise ValueError("texts must be None where both embeddings are stored, got some. Leave them out.")
    if len(models) == 2:
        check_comparable(*models)
    if models and prompt is None:
        prompt = resolve_prompt(_sentence_transformer(models[0]), "document", None, None) or ""
    copies: tuple[Iterable[str] | None, ...] = (None, None) if texts is None else tee(texts, 2)
    bars = show_progress_bar, False  # the backbone's would say the same
    streams = [
        blocks_of(source, copy, name=name, prompt=prompt, batch_size=batch_size, show_progress_bar=bar)
        for source, copy, name, bar in zip((embedder, backbone), copies, ("embedder", "backbone"), bars, strict=True)
    ]
    rows = [0, 0]
    for one, two in zip_longest(*streams):
        rows = [count + (0 if block is None else len(block)) for count, block in zip(rows, (one, two), strict=True)]
        if rows[0] != rows[1]:
            raise ValueError(
                f"embedder and backbone must have a row for each text, got {rows[0]} rows and {rows[1]} rows (counted "
                "as far as they were read). Give both the same texts in the same order."
            )
        if one.shape != two.shape:
            raise ValueError(
                f"embedder and backbone must have the same embedding dimension, got {one.shape[1]} and "
                f"{two.shape[1]}. Use the language model that the embedder was made from."
            )
        yield one, two


def _moments(blocks: Iterable[tuple[Tensor, ...]]) -> list[SecondMoments]:
    """Second moments of embeddings that come side by side."""
    moments: list[SecondMoments] = []
    for parts in blocks:
        moments = moments or [SecondMoments(part.shape[1]) for part in parts]
        for total, part in zip(moments, parts, strict=True):
            total.update(part)
    if not moments:
        raise ValueError("texts or embeddings must hold at least one item, got none.")
    return moments


def _embedded(
    model: Model, texts: Iterable[str], prompt: str | None, batch_size: int, show_progress_bar: bool
) -> Iterator[NDArray[np.float32]]:
    source = _sentence_transformer(model)
    prompt = resolve_prompt(source, "document", prompt, None)
    modules = list(source)
    place = len(model.forward_pass.before) if isinstance(model, KeyTokenEncoder) else head_place(modules)
    to_pooled = SentenceTransformer(modules=modules[:place], device=str(source.device))
    iterator, count = iter([texts] if isinstance(texts, str) else texts), 0
    with tqdm(unit="text", desc="Embedding", disable=not show_progress_bar) as bar:
        while chunk := list(islice(iterator, _BLOCK_ROWS)):
            chunk = check_texts(chunk)
            blank = next((position for position, text in enumerate(chunk) if not text.strip()), None)
            if blank is not None:
                raise ValueError(
                    f"texts must not be blank, got {chunk[blank]!r} at position {count + blank}. Leave it out."
                )
            yield to_pooled.encode(chunk, prompt=prompt, batch_size=batch_size, show_progress_bar=False)
            count += len(chunk)
            bar.update(len(chunk))


def _sentence_transformer(model: Model) -> SentenceTransformer:
    return model.model if isinstance(model, KeyTokenEncoder) else model


def _equal_blocks(parts: Iterable[Dense]) -> Iterator[Tensor]:
    held: list[Tensor] = []
    count = 0
    for part in parts:
        check_embeddings(part, held[0].shape[1] if held else None)
        for start in range(0, len(part), _BLOCK_ROWS):
            held.append(as_tensor(part[start : start + _BLOCK_ROWS]).cpu())
            count += len(held[-1])
            if count >= _BLOCK_ROWS:
                joined = torch.cat(held)
                yield joined[:_BLOCK_ROWS]
                held = [joined[_BLOCK_ROWS:]]
                count -= _BLOCK_ROWS
    if count:
        yield torch.cat(held)


def _shares(energies: NDArray[np.float64]) -> NDArray[np.float64]:
    total = energies.sum()
    return energies / total if total > 0 else np.full(len(energies), math.nan)


def _json(values: NDArray[np.float64]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]
