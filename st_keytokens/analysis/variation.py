"""Variation: how far an embedder's vectors lie from its backbone's, along each component of the backbone's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from st_keytokens.analysis.spectrum import Source, Spectrum, paired_blocks
from st_keytokens.analysis.tables import markdown_table
from st_keytokens.calibration.moments import SecondMoments
from st_keytokens.checks import checked_float

__all__ = ["Variation", "measure_variation"]


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
        ends = self.intervals()
        columns = self.spectrum.coefficients, self.mean_change_shares, self.change_shares
        return markdown_table(
            [
                "component",
                "variation",
                "low",
                "high",
                "backbone's projection",
                "share of mean change",
                "share of change",
            ],
            [
                [
                    j + 1,
                    float(self.variations[j]),
                    *_json(ends[j]),
                    *(_json(column[j : j + 1])[0] for column in columns),
                ]
                for j in chosen
            ],
        )


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
        batch_size: Texts a forward pass.
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
    moments: tuple[SecondMoments, SecondMoments] | None = None
    for changed, block in paired_blocks(
        embedder, backbone, texts, prompt=prompt, batch_size=batch_size, show_progress_bar=show_progress_bar
    ):
        if moments is None:
            moments = SecondMoments(block.shape[1]), SecondMoments(block.shape[1])
        moments[0].update(block)
        moments[1].update(changed.double() - block.double())
    if moments is None:
        raise ValueError("texts or embeddings must hold at least one item, got none.")
    return _variation(*moments)


def _variation(backbone: SecondMoments, change: SecondMoments) -> Variation:
    spectrum = Spectrum.from_moments(backbone)
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


def _shares(energies: NDArray[np.float64]) -> NDArray[np.float64]:
    total = energies.sum()
    return energies / total if total > 0 else np.full(len(energies), math.nan)


def _json(values: NDArray[np.float64]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]
