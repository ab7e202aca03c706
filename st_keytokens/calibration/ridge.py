"""The ridge regression from embeddings to literal terms, solved from second and cross moments.

The solution is a ``d × d`` matrix times the right-hand side, so that terms are worked through in blocks, twice: for
the spectrum of the solution, and for its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from st_keytokens.calibration.moments import SecondMoments, TermCrossMoments
from st_keytokens.decoding.first_component import check_embeddings
from st_keytokens.terms.term_values import TermValues


@dataclass(frozen=True, eq=False)
class RidgeDecoder:
    """Decodes embeddings into terms of a corpus: ``(x − mean) @ weight.T``. See :meth:`Calibration.ridge_decoder`.

    Attributes:
        term_ids: The terms, ascending, int64, shape ``(n,)``; representatives, where variants are folded.
        weight: A row for each of them, shape ``(n, embedding_dimension)``.
        mean: Mean embedding of the corpus, float32, shape ``(embedding_dimension,)``.

    Example:
        >>> decoder = RidgeDecoder(np.array([3, 7]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 1.0]))
        >>> decoder.logits(torch.tensor([[4.0, 0.0]]))
        tensor([[ 3., -2.]])
    """

    term_ids: NDArray[np.int64]
    weight: Tensor
    mean: Tensor

    @property
    def vocab_size(self) -> int:
        """Number of terms that it decodes to, ``n``."""
        return len(self.term_ids)

    @property
    def is_scale_free(self) -> bool:
        """Whether an embedding twice as long has logits twice as high: no, for the mean is subtracted."""
        return False

    @property
    def embedding_dimension(self) -> int:
        """Width of the embeddings that go in."""
        return self.weight.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the logits are."""
        return self.weight.device

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> RidgeDecoder:
        """The decoder on another device, or with a weight of another dtype; the mean stays float32.

        Args:
            device: Where to put it; None: where it is.
            dtype: Floating-point dtype of the product; None: as it is.

        Returns:
            A decoder; tensors that need no change are shared.
        """
        return RidgeDecoder(self.term_ids, self.weight.to(device, dtype), self.mean.to(device))

    def with_normalized_terms(self) -> RidgeDecoder:
        """The decoder with each term's weights divided by their length plus the median length of all terms.

        So frequent terms do not win by the size of their weights, nor rare ones by that of their noise.

        Returns:
            A decoder. Where all weights are zero, they stay zero.

        Example:
            >>> decoder = RidgeDecoder(np.array([3, 7]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.zeros(2))
            >>> decoder.with_normalized_terms().weight
            tensor([[0.7500, 0.0000],
                    [0.0000, 0.5000]])
        """
        lengths = self.weight.float().norm(dim=1, keepdim=True)
        if not lengths.any():
            return self
        divisors = (lengths + lengths[lengths > 0].median()).to(self.weight.dtype)
        return RidgeDecoder(self.term_ids, self.weight / divisors, self.mean)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Decode embeddings.

        Args:
            embeddings: As the calibration sees them (``prepare_embeddings``), shape
                ``(batch_size, embedding_dimension)``, float, any device. Not modified.

        Returns:
            A logit for each of :attr:`term_ids`, shape ``(batch_size, n)``, of the weight's dtype, on its device.

        Raises:
            TypeError: If embeddings are no floating-point numbers.
            ValueError: If their shape is wrong.
        """
        check_embeddings(embeddings, self.embedding_dimension)
        centred = embeddings.to(self.device, torch.float32) - self.mean
        return centred.to(self.weight.dtype) @ self.weight.T


_BLOCK_TERMS = 4096
_SMALLEST_EIGENVALUE = 1e-9  # of the largest one
_ROUNDING = 1e-6  # share of what is subtracted below which a difference of float32 sums is their rounding


class RidgeSolution(NamedTuple):
    """What turns the right-hand side into the decoder's weight, ``(right + prior_factor · prior) @ projection.T``.

    Attributes:
        projection: float32, shape ``(d, d)``.
        prior_factor: Factor of the prior's rows; 0 without a prior.
    """

    projection: Tensor
    prior_factor: float


class RidgeRegression:
    """A ridge regression of centred saturated term frequencies times idf on centred embeddings.

    Args:
        moments: Of the embeddings; not empty.
        cross_moments: Of the same embeddings and their terms.
        idf: Of each term.
        term_ids: The terms wanted, of those that occur.
        prior: What the solution is shrunk towards, rows of shape ``(n, d)``, any float dtype and device, and the row
            of each term, -1 for none; None: zero.
        show_progress_bar: Whether to show progress.
    """

    def __init__(
        self,
        moments: SecondMoments,
        cross_moments: TermCrossMoments,
        idf: TermValues,
        term_ids: NDArray[np.int64],
        *,
        prior: tuple[Tensor, TermValues] | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        self._moments = moments
        self._cross_moments = cross_moments
        self._idf = idf
        self._term_ids = term_ids
        self._prior = prior
        self._show_progress_bar = show_progress_bar

    def solve(self, regularization: float, spectral_power: float, prior_scale: float) -> RidgeSolution:
        """Solve the regression.

        Args:
            regularization: Penalty, in units of the embeddings' mean variance a dimension; above 0.
            spectral_power: Power to which the solution's singular values are raised.
            prior_scale: Frobenius norm of the prior's rows for these terms, over that of the solution without a
                prior.

        Returns:
            The solution; zero where embeddings or terms do not vary.
        """
        moments, dimension = self._moments, self._moments.embedding_dimension
        nothing = RidgeSolution(torch.zeros(dimension, dimension), 0.0)
        centred = moments.second_moment - moments.count * torch.outer(moments.mean, moments.mean)
        rounding = torch.finfo(torch.float64).eps * moments.second_moment.trace() * (dimension + moments.count)
        if centred.trace() <= rounding:
            return nothing
        penalty = regularization * float(centred.trace()) / dimension
        values, vectors = torch.linalg.eigh(centred)
        inverse = (vectors / (values.clamp(min=0) + penalty)) @ vectors.T
        own, mixed, of_prior = (torch.zeros_like(inverse) for _ in range(3))
        for _, right, prior in self._blocks("Solving"):
            own.addmm_(right.T, right)
            if prior is not None:
                mixed.addmm_(right.T, prior)
                of_prior.addmm_(prior.T, prior)
        factor = 0.0
        if of_prior.any():
            norm = (inverse @ own @ inverse).trace().clamp(min=0).sqrt()
            factor = float(penalty * prior_scale * norm / of_prior.trace().sqrt())
        gram = inverse @ (own + factor * (mixed + mixed.T) + factor**2 * of_prior) @ inverse
        values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
        if values[-1] <= 0:
            return nothing
        values = values.clamp(min=_SMALLEST_EIGENVALUE * float(values[-1]))
        flattening = (vectors * values ** ((spectral_power - 1) / 2)) @ vectors.T
        return RidgeSolution((flattening @ inverse).float(), factor)

    def decoder(self, solution: RidgeSolution) -> RidgeDecoder:
        """The decoder of a solution of this regression, float32, on the CPU."""
        weight = torch.zeros(len(self._term_ids), self._moments.embedding_dimension)
        for start, right, prior in self._blocks("Decoder"):
            if prior is not None:
                right.add_(prior, alpha=solution.prior_factor)
            torch.mm(right.float(), solution.projection.T, out=weight[start : start + len(right)])
        return RidgeDecoder(self._term_ids, weight, self._moments.mean.float())

    def _blocks(self, description: str) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Position, rows of the right-hand side, and of the prior, float64, of blocks of terms."""
        mean = self._moments.mean
        count = len(self._term_ids)
        with tqdm(total=count, unit="term", desc=description, disable=not self._show_progress_bar) as progress:
            for start in range(0, count, _BLOCK_TERMS):
                terms = self._term_ids[start : start + _BLOCK_TERMS]
                expected = torch.outer(torch.from_numpy(self._cross_moments.weights[terms]), mean)
                right = torch.from_numpy(self._cross_moments.rows(terms)).double() - expected
                right[right.abs() <= _ROUNDING * expected.abs()] = 0
                right *= torch.from_numpy(self._idf[terms]).double()[:, None]
                prior = None
                if self._prior is not None:
                    matrix, row_of = self._prior
                    rows = torch.from_numpy(row_of[terms])
                    prior = matrix[rows.clamp(min=0).to(matrix.device)].cpu().double()
                    prior[rows < 0] = 0
                yield start, right, prior
                progress.update(len(terms))
