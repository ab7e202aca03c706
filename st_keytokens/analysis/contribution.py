"""Contribution of the first component, and of the rest of an embedding, to each decoded token."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from st_keytokens.analysis.contribution_logits import split_logits
from st_keytokens.analysis.contribution_result import Contribution, Part, TextContribution, best_tokens
from st_keytokens.analysis.spectrum import Spectrum
from st_keytokens.analysis.spectrum_inputs import blocks_of
from st_keytokens.checks import checked_int
from st_keytokens.decoding import check_finite
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.first_component import Dense, FirstComponent, check_embeddings
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.lm_head import LMHead
from st_keytokens.top_terms import top_terms
from st_keytokens.vocabulary import Vocabulary

__all__ = ["component_direction", "measure_contribution"]

_BLOCK_LOGITS = 4_000_000  # 16 MB of float32


def measure_contribution(
    model: KeyTokenEncoder | KeyTokenHead,
    texts: Iterable[str] | None = None,
    *,
    embeddings: Dense | Iterable[Dense] | None = None,
    component: FirstComponent | Spectrum | Tensor | None = None,
    top_k: int = 10,
    examples: int = 5,
    prompt: str | None = None,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> Contribution:
    """Splits decoded logits into what the first component feeds and what the rest does, for each text and on average.

    An embedding ``h`` is ``(hᵀu) u`` plus a rest without the first component ``u``. The rest's contribution to a token
    is the rest's own logit, the first component's is what is missing to the logit of ``h``. Where the LM head is a
    product with a weight, that is ``(hᵀu) (w_t·u)``, and a bias counts with the rest; with a transform or a soft cap
    the parts still sum to the logit. Logits are those of the LM head, in float32, without correction or
    standardisation. Memory grows with the vocabulary, not with the number of texts.

    Args:
        model: An encoder; or a head alone, for stored embeddings.
        texts: The texts. With stored embeddings they are only shown, and may be left out.
        embeddings: Pooled embeddings, shape ``(N, d)``, or an iterable of such matrices. None: texts are embedded.
        component: The direction: a spectrum's, a calibration's, or a unit vector, shape ``(d,)``; its sign changes
            nothing. None: that of the model's calibration.
        top_k: Tokens of each text; of tokens that fold into one term only the best one.
        examples: How many texts, the first ones, are kept in detail.
        prompt: Put before each text. None: the model's own for documents.
        batch_size: Texts a forward pass.
        show_progress_bar: Whether to show one.

    Returns:
        The contribution. Special and control tokens are left out of all orders and counts.

    Raises:
        RuntimeError: If the head is not bound to a model.
        TypeError: If the model, a text, the component or the embeddings are of another type.
        ValueError: If there is no text, a value is not finite, a shape is wrong, or the component is missing or not
            of length 1.

    Source:
        Nie et al. 2025 (arXiv 2406.17378), where each part is decoded by itself.

    Example:
        >>> weight = torch.tensor([[4.0, 0.0], [1.0, 2.0], [1.0, -2.0]])
        >>> vocabulary = Vocabulary(["the", "cat", "dog"], kind="plain")
        >>> head = KeyTokenHead(LMHead(torch.nn.Embedding.from_pretrained(weight)), vocabulary)
        >>> found = measure_contribution(
        ...     head, embeddings=np.array([[2.0, 3.0]]), component=torch.tensor([1.0, 0.0]), top_k=2
        ... )
        >>> [(token.token, token.first, token.rest) for token in found.texts[0].tokens]
        [('the', 8.0, 0.0), ('cat', 2.0, 6.0)]
    """
    top_k, examples = checked_int("top_k", top_k, minimum=1), checked_int("examples", examples, minimum=0)
    head = model.head if isinstance(model, KeyTokenEncoder) else model
    if not isinstance(head, KeyTokenHead):
        raise TypeError(f"model must be a KeyTokenEncoder or a KeyTokenHead, got {type(model).__name__}.")
    if embeddings is None and not isinstance(model, KeyTokenEncoder):
        raise ValueError("embeddings must be given with a KeyTokenHead, got None. Pass a KeyTokenEncoder for texts.")
    vocabulary, lm_head = head.bound_vocabulary, head.lm_head
    if lm_head is None:
        raise RuntimeError("KeyTokenHead must be bound to a model, got one without an LM head. Call head.bind(model).")
    tally = _Tally(lm_head, vocabulary, component_direction(component, head), top_k)
    remaining = iter([texts] if isinstance(texts, str) else texts or ())
    shown = list(islice(remaining, examples))
    blocks = blocks_of(
        model if embeddings is None else embeddings,
        None if texts is None else chain(shown, remaining),
        prompt=prompt,
        batch_size=batch_size,
        show_progress_bar=show_progress_bar,
    )
    details: list[TextContribution] = []
    rows = max(1, _BLOCK_LOGITS // lm_head.vocab_size)
    for block in blocks:
        for part in torch.split(block, rows):
            wanted = range(len(details), min(examples, len(details) + len(part)))
            details += tally.update(part, [shown[i] if i < len(shown) else None for i in wanted])
    return tally.result(tuple(details))


def component_direction(component: FirstComponent | Spectrum | Tensor | None, head: KeyTokenHead) -> Tensor:
    """The unit vector that a component stands for.

    Args:
        component: See :func:`measure_contribution`.
        head: Whose calibration is asked for None.

    Returns:
        Shape ``(d,)``, float.

    Raises:
        TypeError: If it is of another type.
        ValueError: If it is None and there is no calibration.
    """
    if component is None:
        if head.calibration is None:
            raise ValueError(
                "component must be given where the model has no calibration, got None. Pass "
                "measure_spectrum(model, texts), or calibrate the model."
            )
        component = head.calibration.first_component
    if isinstance(component, Spectrum):
        component = component.first_component
    direction = component.direction if isinstance(component, FirstComponent) else component
    if not isinstance(direction, Tensor):
        raise TypeError(
            f"component must be a Spectrum, a FirstComponent or a unit vector, a tensor, got "
            f"{type(component).__name__}."
        )
    return direction


class _Tally:
    """Sums and counts of a stream of embeddings."""

    def __init__(self, lm_head: LMHead, vocabulary: Vocabulary, direction: Tensor, top_k: int) -> None:
        self._lm_head, self._vocabulary, self._top_k = lm_head, vocabulary, top_k
        self._direction = direction.to(lm_head.device, torch.float32)
        self._is_masked = torch.from_numpy(vocabulary.is_masked).to(lm_head.device)
        self._terms = torch.from_numpy(vocabulary.terms).to(lm_head.device)
        self._count, self._projection = 0, 0.0
        self._sums: dict[Part, NDArray[np.float64]] = {part: np.zeros(len(vocabulary)) for part in ("first", "rest")}
        self._counts: dict[Part, NDArray[np.int64]] = {
            part: np.zeros(len(vocabulary), dtype=np.int64) for part in get_args(Part)
        }
        self._shared: dict[Part, float] = {"first": 0.0, "rest": 0.0}

    @torch.no_grad()
    def update(self, embeddings: Tensor, texts: list[str | None]) -> list[TextContribution]:
        """Adds embeddings; gives the details of the first of them, one for each text."""
        check_embeddings(embeddings, self._lm_head.embedding_dimension)
        check_finite(embeddings, self._count)
        embeddings = embeddings.to(self._lm_head.device, torch.float32)
        logits, first = split_logits(self._lm_head, embeddings, self._direction)
        parts: dict[Part, Tensor] = {"logit": logits, "first": first, "rest": logits - first}
        projections = (embeddings @ self._direction).double().cpu()
        self._count += len(embeddings)
        self._projection += float(projections.sum())
        found: dict[Part, Tensor] = {}
        for part, values in parts.items():
            if part in self._sums:
                self._sums[part] += values.sum(dim=0, dtype=torch.float64).cpu().numpy()
            ids, best = top_terms(values.masked_fill(self._is_masked, float("-inf")), self._terms, self._top_k)
            found[part] = torch.where(best > float("-inf"), ids, -1)
            self._counts[part] += np.bincount(
                found[part][found[part] >= 0].cpu().numpy(), minlength=len(self._vocabulary)
            )
        is_term = found["logit"] >= 0
        for part in self._shared:
            is_shared = (found["logit"][:, :, None] == found[part][:, None, :]).any(dim=2) & is_term
            self._shared[part] += float((is_shared.sum(dim=1) / is_term.sum(dim=1).clamp(min=1)).sum())
        return [
            self._detail(text, float(projections[row]), first[row], parts["rest"][row])
            for row, text in enumerate(texts)
        ]

    def _detail(self, text: str | None, projection: float, first: Tensor, rest: Tensor) -> TextContribution:
        pair = first.cpu().numpy(), rest.cpu().numpy()
        whole, fed, others = (
            best_tokens(part, *pair, self._vocabulary, self._top_k) for part in ("logit", "first", "rest")
        )
        return TextContribution(text, projection, whole, fed, others)

    def result(self, texts: tuple[TextContribution, ...]) -> Contribution:
        """The averages of all embeddings so far."""
        if not self._count:
            raise ValueError("texts or embeddings must hold at least one item, got none.")
        return Contribution(
            self._count,
            self._top_k,
            texts,
            self._projection / self._count,
            self._sums["first"] / self._count,
            self._sums["rest"] / self._count,
            self._counts,
            {part: shared / self._count for part, shared in self._shared.items()},
            self._vocabulary,
        )
