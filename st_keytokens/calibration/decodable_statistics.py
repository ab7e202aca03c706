"""Statistics of a corpus that its ridge decoder can be solved from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn import ParameterDict

from st_keytokens.calibration.corpus_statistics import CorpusStatistics
from st_keytokens.calibration.ridge_decoder import RidgeDecoder
from st_keytokens.calibration.ridge_regression import RidgeRegression, RidgeSolution
from st_keytokens.calibration.state_files import State
from st_keytokens.checks import checked_float, checked_int
from st_keytokens.hashes import fingerprint, weights_hash
from st_keytokens.lm_head import LMHead

if TYPE_CHECKING:
    from typing_extensions import Self

ENOUGH_DOCUMENTS = 1000  # with fewer, it is shrunk: docs/results/quality.md, calibrated elsewhere
_SHRINKAGE = 3.0


class DecodableStatistics(CorpusStatistics):
    """Statistics of a corpus that its ridge decoder can be solved from. Use it through :class:`Calibration`."""

    _solution: tuple[str, RidgeSolution] | None = None  # the last one, and a name for what it follows from
    _decoder: tuple[str, RidgeDecoder] | None = None

    @property
    def decoder(self) -> RidgeDecoder | None:
        """:meth:`ridge_decoder` as it is without an LM head; None where the calibration has no cross moments."""
        return self.ridge_decoder() if self.has_cross_moments else None

    def ridge_decoder(
        self,
        *,
        regularization: float = 0.3,
        spectral_power: float = 0.5,
        min_document_frequency: int = 1,
        lm_head: LMHead | None = None,
        lm_head_shrinkage: float | None = None,
        show_progress_bar: bool = False,
    ) -> RidgeDecoder:
        """The linear map from embeddings to the corpus's own terms, solved in closed form; the last one is kept.

        Ridge regression, with ``X`` the centred embeddings and ``T`` the centred saturated frequencies of the literal
        terms times their idf: ``B = (XᵀX + λI)⁻¹ (XᵀT + λ c Wᵀ)``, its singular values raised to a power afterwards.
        It belongs to its corpus: for texts of another kind it is worse than the LM head.

        Args:
            regularization: ``λ`` in units of the mean eigenvalue of ``XᵀX``.
            spectral_power: Power of the singular values of ``B``, 0 to 1. 1: the plain regression; less: directions
                that predict rare or weakly expressed terms count more.
            min_document_frequency: Terms in fewer documents are left out.
            lm_head: Decodes embeddings of this calibration's model. Wanted for ``lm_head_shrinkage`` above 0.
            lm_head_shrinkage: ``c``: the solution is shrunk towards so much of the LM head's rows ``W`` of the terms,
                which are scaled to the Frobenius norm of the solution without them. 0: towards zero. None: 3 for fewer
                than 1,000 documents, where there is an affine LM head; else 0.
            show_progress_bar: Whether to show progress.

        Returns:
            The decoder, float32, on the CPU. All its weights are zero where there is one text only, or all are
            identical.

        Raises:
            TypeError: If a setting is of another type.
            ValueError: If the calibration has no cross moments or is empty, a setting is out of range, or ``lm_head``
                is missing, does not fit or is not affine.
        """
        regularization = checked_float("regularization", regularization, minimum=1e-9)
        spectral_power = checked_float("spectral_power", spectral_power, minimum=0, maximum=1)
        min_document_frequency = checked_int("min_document_frequency", min_document_frequency, minimum=1)
        if lm_head_shrinkage is None:
            is_shrunk = lm_head is not None and lm_head.is_affine and self.document_count < ENOUGH_DOCUMENTS
            lm_head_shrinkage = _SHRINKAGE if is_shrunk else 0.0
        lm_head_shrinkage = checked_float("lm_head_shrinkage", lm_head_shrinkage, minimum=0)
        if self.cross_moments is None:
            raise ValueError(
                "calibration must have cross moments, got one fitted without texts or with fit_decoder=False. Use "
                "Calibration.fit with the texts."
            )
        if lm_head_shrinkage == 0:
            lm_head = None
        elif lm_head is None or not lm_head.is_affine:
            raise ValueError(
                f"lm_head must be affine for lm_head_shrinkage={lm_head_shrinkage}, got "
                f"{'none' if lm_head is None else 'one with a transform or soft cap'}. Use lm_head_shrinkage=0."
            )
        else:
            self._check_fits(lm_head)
        settings = {
            "regularization": regularization,
            "spectral_power": spectral_power,
            "min_document_frequency": min_document_frequency,
            "lm_head_shrinkage": lm_head_shrinkage,
            "lm_head": None if lm_head is None else weights_hash(ParameterDict({"weight": lm_head.weight})),
        }
        name = fingerprint({"settings": settings, "document_count": self.document_count})
        if self._decoder is None or self._decoder[0] != name:
            frequencies = self._check_has_terms().document_frequencies
            regression = RidgeRegression(
                self.moments,
                self.cross_moments,
                self.idf,
                np.flatnonzero(frequencies >= min_document_frequency),
                prior=None if lm_head is None else lm_head.weight.detach(),
                show_progress_bar=show_progress_bar,
            )
            if self._solution is None or self._solution[0] != name:
                self._solution = name, regression.solve(regularization, spectral_power, lm_head_shrinkage)
            self._decoder = name, regression.decoder(self._solution[1])
        return self._decoder[1]

    def _check_fits(self, lm_head: LMHead) -> None:
        for name in ("embedding_dimension", "vocab_size"):
            mine, others = (getattr(part, name) for part in (self, lm_head))
            if mine is not None and mine != others:
                raise ValueError(f"lm_head must have {name} {mine}, got {others}. Use the calibration of this model.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoder": None}  # made from the solution sooner than sent

    def to_state(self, *, has_first_component: bool = True, has_solution: bool = False) -> State:
        """Everything as tensors, named after their statistic, and JSON values.

        Args:
            has_first_component: See :meth:`CorpusStatistics.to_state`.
            has_solution: Whether the last solution is among them. It follows from the rest, but takes time.

        Returns:
            Tensors and settings.
        """
        tensors, settings = super().to_state(has_first_component=has_first_component)
        if has_solution and self._solution is not None:
            name, solution = self._solution
            tensors["solution.projection"] = solution.projection
            settings["solution"] = {"name": name, "prior_factor": solution.prior_factor}
        return tensors, settings

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_state`; see :meth:`CorpusStatistics.from_state`."""
        calibration = super().from_state(tensors, settings)
        if "solution" in settings:
            kept = settings["solution"]
            solution = RidgeSolution(tensors["solution.projection"], kept["prior_factor"])
            calibration._solution = kept["name"], solution
        return calibration
