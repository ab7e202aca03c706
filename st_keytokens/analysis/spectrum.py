"""The spectrum of embeddings: singular values and right singular vectors of their uncentred matrix, streamed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from st_keytokens.analysis.spectrum_inputs import Source, blocks_of
from st_keytokens.analysis.tables import markdown_table
from st_keytokens.first_component import FirstComponent, SecondMoments

__all__ = ["Spectrum", "measure_spectrum"]

_ZERO_COEFFICIENT = 1e-9  # as in FirstComponent: of the root mean square projection


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular value decomposition of the uncentred matrix of embeddings ``H``, shape ``(N, d)``.

    The sign of each right singular vector is fixed as that of
    :class:`~st_keytokens.first_component.FirstComponent`: the mean of the embeddings projects positively on it; where
    the mean projection is zero, the entry of largest magnitude is positive. Vectors of equal singular values, and so
    those beyond the rank, are any orthonormal basis of their space.

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
        columns = self.singular_values, self.shares, self.coefficients
        return markdown_table(
            ["component", "singular value", "share of squared length", "mean projection"],
            [[j, *(float(column[j - 1]) for column in columns)] for j in range(1, min(rows, len(columns[0])) + 1)],
        )


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
        batch_size: Texts a forward pass.
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
    moments: SecondMoments | None = None
    for block in blocks_of(source, texts, prompt=prompt, batch_size=batch_size, show_progress_bar=show_progress_bar):
        moments = SecondMoments(block.shape[1]) if moments is None else moments
        moments.update(block)
    if moments is None:
        raise ValueError("texts or embeddings must hold at least one item, got none.")
    return Spectrum.from_moments(moments)
