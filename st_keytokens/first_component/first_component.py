"""The first right singular vector of uncentred embeddings, with a sign that is fixed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

_ZERO_COEFFICIENT = 1e-9  # a mean projection below this share of the root mean square projection counts as zero


@dataclass(frozen=True, eq=False)
class FirstComponent:
    """First right singular vector of uncentred embeddings.

    Its sign is fixed: the mean of the embeddings projects positively on it. Where the mean projection is zero (below
    1e-9 of the root mean square projection), the entry of largest magnitude is positive, the first of equals. If the
    largest singular value is repeated, every unit vector of its space is a first component and one of them is taken.

    Attributes:
        direction: Unit vector, shape ``(embedding_dimension,)``, float32, on the CPU.
        coefficient: Mean projection of the embeddings on it, in embedding units, zero or positive.
        singular_value: Largest singular value of the uncentred matrix of embeddings; it grows with their number.
    """

    direction: Tensor
    coefficient: float
    singular_value: float

    @classmethod
    def from_moments(cls, second_moment: NDArray[np.float64], mean: NDArray[np.float64], count: int) -> FirstComponent:
        """The top eigenpair of a second-moment matrix.

        Args:
            second_moment: ``XᵀX`` of embeddings ``X``, not all zero, shape ``(d, d)``. Not modified.
            mean: Their mean, shape ``(d,)``.
            count: Their number.

        Returns:
            The first component.

        Source:
            Nie et al. 2025 (arXiv 2406.17378): singular value decomposition of the uncentred embeddings. Differs from
            it in working from the streamed second moments and in fixing the sign.

        Example:
            >>> component = FirstComponent.from_moments(np.diag([9.0, 4.0]), np.array([-1.5, 1.0]), 2)
            >>> component.direction.tolist(), component.coefficient, component.singular_value
            ([-1.0, 0.0], 1.5, 3.0)
        """
        last = len(mean) - 1
        values, vectors = scipy.linalg.eigh(second_moment, subset_by_index=[last, last])
        vector = vectors[:, 0] / np.linalg.norm(vectors[:, 0])
        singular_value = float(np.sqrt(values[0]))
        coefficient = float(vector @ mean)
        if abs(coefficient) <= _ZERO_COEFFICIENT * singular_value / count**0.5:
            coefficient = 0.0
            largest = int(np.argmax(np.abs(vector) >= (1 - 1e-6) * np.abs(vector).max()))
            sign = np.copysign(1.0, vector[largest])
        else:
            sign = np.copysign(1.0, coefficient)
        direction = torch.from_numpy((sign * vector).astype(np.float32) + np.float32(0))  # + 0: no negative zeros
        return cls(direction, abs(coefficient), singular_value)
