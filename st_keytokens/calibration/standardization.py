"""Standardised logits: each token's mean and spread over a corpus, taken out of its scores."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from st_keytokens.calibration import Calibration
from st_keytokens.calibration.fitting import state_hash
from st_keytokens.decoding.first_component import Correction
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.shared.files import read_tensors, write_atomically
from st_keytokens.shared.hashes import fingerprint

SHRINKAGE = 2.0  # of the standard deviations, in units of their median: rare tokens' small ones are mostly noise
STATISTICS_FILE = "logit_statistics.safetensors"
_CHECKSUM = "checksum"  # in the file's metadata


class LogitStatistics:
    """Mean and standard deviation of every token's logit, computed once for all that they depend on."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def get(
        self, calibration: Calibration, lm_head: LMHead, *, correction: Correction, shift: float
    ) -> tuple[Tensor, Tensor]:
        """Statistics that are known, or those that the calibration gives."""
        name = fingerprint(
            {
                "calibration": calibration.hash,
                "lm_head": lm_head.hash,
                "correction": correction,
                "shift": shift if correction == "shift" else 0.0,
            }
        )
        if name not in self._known:
            mean, deviation = calibration.logit_statistics(lm_head, correction=correction, shift=shift)
            self._known[name] = torch.from_numpy(mean), torch.from_numpy(deviation)
        return self._known[name]

    def save(self, directory: Path) -> None:
        """Write what is known, if anything.

        Args:
            directory: One that is there.
        """
        tensors = {f"{name}.{i}": tensor for name, pair in self._known.items() for i, tensor in enumerate(pair)}
        if tensors:
            content = safetensors.torch.save(tensors, {_CHECKSUM: state_hash(tensors, {})})
            write_atomically(directory / STATISTICS_FILE, content)

    @classmethod
    def load(cls, directory: Path) -> LogitStatistics:
        """Read what :meth:`save` wrote.

        Args:
            directory: Where it was written; without the file, nothing is known.

        Returns:
            The statistics.

        Raises:
            ValueError: If the file is truncated or altered.
        """
        statistics = cls()
        if (directory / STATISTICS_FILE).exists():
            tensors, metadata = read_tensors(directory / STATISTICS_FILE)
            if metadata.get(_CHECKSUM, wanted := state_hash(tensors, {})) != wanted:  # earlier versions wrote none
                raise ValueError(
                    f"{directory / STATISTICS_FILE} must be as it was written, got it altered. Delete it."
                )
            try:
                names = {name.partition(".")[0] for name in tensors}
                statistics._known = {name: (tensors[f"{name}.0"], tensors[f"{name}.1"]) for name in names}
            except KeyError as err:
                raise ValueError(
                    f"{directory / STATISTICS_FILE} must hold pairs of tensors, got no {err}. Delete it."
                ) from err
        return statistics


def scale_and_offset(mean: Tensor, deviation: Tensor, is_masked: Tensor) -> tuple[Tensor, Tensor]:
    """Turns statistics into what logits are multiplied with and what is added then.

    Args:
        mean: Of each token's logit, shape ``(vocab_size,)``.
        deviation: Standard deviation of each token's logit, shape ``(vocab_size,)``. It counts as the root of its
            square plus that of ``SHRINKAGE`` times the median of the tokens that are not masked.
        is_masked: bool, shape ``(vocab_size,)``.

    Returns:
        Scale and offset, shape ``(vocab_size,)``; a token whose logit nowhere varies scores 0.

    >>> mean, deviation = torch.tensor([1.0, 9.0, 4.0]), torch.tensor([0.0, 1.5, 0.0])
    >>> scale_and_offset(mean, deviation, torch.tensor([True, False, True]))
    (tensor([0.3333, 0.2981, 0.3333]), tensor([-0.3333, -2.6833, -1.3333]))
    """
    seen = deviation[~is_masked]
    typical = seen.median() if len(seen) else deviation.new_zeros(())
    spread = torch.sqrt(deviation**2 + (SHRINKAGE * typical) ** 2)
    scale = torch.where(spread > 0, 1 / spread.clamp_min(1e-30), 0.0)
    return scale, -mean * scale
