"""What a head decodes with, by its settings: the LM head, corrected and standardised, or the ridge decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from st_keytokens.decoding import Decoding
from st_keytokens.standardization import LogitStatistics, scale_and_offset

if TYPE_CHECKING:
    from st_keytokens.bound_head import BoundHead
    from st_keytokens.lm_head import LMHead
    from st_keytokens.vocabulary import Vocabulary


@torch.inference_mode(False)  # the tensors outlive the call, and may be used with gradients
@torch.no_grad()
def decoding_of(
    head: BoundHead, lm_head: LMHead, vocabulary: Vocabulary, logit_statistics: LogitStatistics
) -> Decoding:
    """Make what a head decodes with.

    Args:
        head: Its settings and its calibration count.
        lm_head: Its LM head.
        vocabulary: Its vocabulary.
        logit_statistics: Where those of the LM head are kept, and computed at the first use.

    Returns:
        Decoder, correction and statistics, on the LM head's device.

    Raises:
        ValueError: If a setting needs a calibration that is not there.
    """
    if head.is_ridge:
        return _by_ridge(head, lm_head)
    calibration, correction, direction, mean = head.calibration, head.active_correction, None, None
    if calibration is None and (correction != "none" or head.standardize):
        raise ValueError(
            f"correction={head.correction!r}, standardize={head.standardize!r} need a calibration, got None. "
            "Fit one with KeyTokenEncoder.calibrate or Calibration.fit, or use correction='none'."
        )
    masked = torch.from_numpy(vocabulary.is_masked)
    scale, offset = torch.ones(len(masked)), torch.zeros(len(masked))
    if calibration is not None:
        direction = calibration.first_component.direction.to(torch.float32, copy=True).to(lm_head.device)
        mean = calibration.moments.mean.to(torch.float32, copy=True).to(lm_head.device)
        if head.standardize is not False:
            statistics = logit_statistics.get(calibration, lm_head, correction=correction, shift=head.shift)
            scale, offset = scale_and_offset(*statistics, masked)
    return Decoding(
        lm_head,
        head.is_normalizing,
        correction,
        direction,
        mean,
        head.shift,
        scale.masked_fill(masked, 0.0).to(lm_head.device),
        offset.masked_fill(masked, float("-inf")).to(lm_head.device),
        torch.from_numpy(vocabulary.terms).to(lm_head.device),
    )


def _by_ridge(head: BoundHead, lm_head: LMHead) -> Decoding:
    if head.calibration is None:
        raise ValueError(
            "decode_with='ridge' needs a calibration, got None. Fit one with KeyTokenEncoder.calibrate, or use "
            "decode_with='lm_head'."
        )
    ridge = head.calibration.ridge_decoder(lm_head=lm_head).with_normalized_terms()
    ridge = ridge.to(lm_head.device, lm_head.compute_dtype)
    terms = torch.from_numpy(ridge.term_ids).to(lm_head.device)
    scale, offset = torch.ones(len(terms), device=terms.device), torch.zeros(len(terms), device=terms.device)
    return Decoding(ridge, head.is_normalizing, "none", None, None, 0.0, scale, offset, terms)
