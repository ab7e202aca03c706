"""Contribution of the first component, and of the rest of an embedding, to each decoded token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

from st_keytokens.analysis.alignment import decoded_terms
from st_keytokens.analysis.spectrum import Spectrum, blocks_of
from st_keytokens.decoding.decoding import check_finite
from st_keytokens.decoding.first_component import Dense, FirstComponent, check_embeddings, remove
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.shared.checks import check_choice, checked_int
from st_keytokens.shared.markdown import markdown_table, single_line
from st_keytokens.terms.vocabulary import Vocabulary

__all__ = [
    "Contribution",
    "Part",
    "TextContribution",
    "TokenContribution",
    "bound_lm_head",
    "fed_logits",
    "float32_logits",
    "measure_contribution",
]

Part = Literal["logit", "first", "rest"]
_PARTS: tuple[Part, ...] = get_args(Part)
_SHOWN = 60  # characters of a text in a table
_BLOCK_ROWS = 16_384  # of the head's weight, upcast at a time
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
        batch_size: Texts a forward pass at most.
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
    vocabulary, lm_head = head.token_vocabulary, bound_lm_head(head)
    tally = _Tally(lm_head, vocabulary, _direction(component, head), top_k)
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


@dataclass(frozen=True, eq=False)
class Contribution:
    """What the first component and the rest of embeddings feed to the LM head, by token.

    Attributes:
        count: Number of texts.
        top_k: Tokens of each text that are looked at.
        texts: The first texts in detail.
        mean_projection: Of all embeddings on the first component, in embedding units.
        mean_first: Mean contribution of the first component to each token's logit, float64, shape ``(V,)``.
        mean_rest: The same of the rest.
        counts: For ``"logit"``, ``"first"`` and ``"rest"``, in how many texts each term is among the ``top_k`` that
            the whole embedding, or this part alone, decodes to; int64, shape ``(V,)``.
        overlaps: For ``"first"`` and ``"rest"``, the mean share of a text's ``top_k`` decoded terms that are among
            the ``top_k`` of this part alone.
        vocabulary: Whose rows the tokens are.
    """

    count: int
    top_k: int
    texts: tuple[TextContribution, ...]
    mean_projection: float
    mean_first: NDArray[np.float64]
    mean_rest: NDArray[np.float64]
    counts: dict[Part, NDArray[np.int64]]
    overlaps: dict[Part, float]
    vocabulary: Vocabulary

    def mean_tokens(self, part: Part = "first") -> tuple[TokenContribution, ...]:
        """The ``top_k`` tokens that a part feeds most on average, with their mean logits, best first.

        Args:
            part: ``"first"``, ``"rest"``, or ``"logit"`` for both together.

        Raises:
            ValueError: If there is no such part.
        """
        check_choice("part", part, _PARTS)
        return _best_tokens(part, self.mean_first, self.mean_rest, self.vocabulary, self.top_k)

    def frequency_correlations(self, frequencies: NDArray[np.int64]) -> dict[Part, float]:
        """Spearman's rank correlation of the terms' frequencies with what they are fed on average.

        Args:
            frequencies: In how many texts each term occurs, shape ``(V,)``; terms that do not occur are left out.

        Returns:
            For each part the correlation with the mean of the term's own token; NaN for fewer than two terms.

        Raises:
            ValueError: If the shape is wrong.
        """
        if np.shape(frequencies) != self.mean_first.shape:
            raise ValueError(
                f"frequencies must have shape {self.mean_first.shape}, got {np.shape(frequencies)}. Count the terms "
                "of this vocabulary."
            )
        occurs = (frequencies > 0) & ~self.vocabulary.is_masked
        means: dict[Part, NDArray[np.float64]] = {
            "logit": self.mean_first + self.mean_rest,
            "first": self.mean_first,
            "rest": self.mean_rest,
        }
        if occurs.sum() < 2:
            return dict.fromkeys(means, float("nan"))
        return {part: float(spearmanr(mean[occurs], frequencies[occurs]).statistic) for part, mean in means.items()}

    def to_dict(self) -> dict[str, Any]:
        """Averages, counts and texts as JSON values, the ``top_k`` tokens of each."""
        return {
            "count": self.count,
            "top_k": self.top_k,
            "mean_projection": self.mean_projection,
            "overlaps": self.overlaps,
            "mean_tokens": {part: [asdict(token) for token in self.mean_tokens(part)] for part in _PARTS},
            "most_texts": {
                part: {self.vocabulary.strings[term]: count for term, count in _most(self.counts[part], self.top_k)}
                for part in _PARTS
            },
            "texts": [asdict(text) for text in self.texts],
        }

    def table(self) -> str:
        """What is decoded as a whole and from either part, on average and for the texts in detail, as Markdown."""
        rows = [["(average)", *(_names(self.mean_tokens(part)) for part in _PARTS)]]
        for number, text in enumerate(self.texts, 1):
            name = f"(text {number})" if text.text is None else single_line(text.text, _SHOWN)
            rows.append([name, *map(_names, (text.tokens, text.first_tokens, text.rest_tokens))])
        return markdown_table(["text", "decoded", "first component alone", "rest alone"], rows)


@dataclass(frozen=True)
class TokenContribution:
    """A token's logit in two parts.

    Attributes:
        token_id: Row of the LM head.
        token: Readable.
        logit: ``first + rest``.
        first: What the first component adds to it.
        rest: The logit of the embedding without its first component.
    """

    token_id: int
    token: str
    logit: float
    first: float
    rest: float


@dataclass(frozen=True)
class TextContribution:
    """The tokens that a text decodes to, and those that either part of its embedding alone decodes to, best first.

    Attributes:
        text: The text; None for a stored embedding without one.
        projection: Of the embedding on the first component, in embedding units.
        tokens: Of the whole embedding.
        first_tokens: Of the first component alone.
        rest_tokens: Of the rest alone.
    """

    text: str | None
    projection: float
    tokens: tuple[TokenContribution, ...]
    first_tokens: tuple[TokenContribution, ...]
    rest_tokens: tuple[TokenContribution, ...]


def _best_tokens(
    part: Part, first: NDArray[np.floating], rest: NDArray[np.floating], vocabulary: Vocabulary, k: int
) -> tuple[TokenContribution, ...]:
    """The k tokens with the highest value of a part; of tokens that fold into one term only the best one."""
    values = {"logit": first + rest, "first": first, "rest": rest}[part]
    order = np.argsort(-values, kind="stable")
    order = order[~vocabulary.is_masked[order]]
    _, places = np.unique(vocabulary.terms[order], return_index=True)
    return tuple(
        TokenContribution(i, vocabulary.strings[i], float(first[i] + rest[i]), float(first[i]), float(rest[i]))
        for i in order[np.sort(places)[:k]].tolist()
    )


def _most(counts: NDArray[np.int64], k: int) -> list[tuple[int, int]]:
    return [(term, int(counts[term])) for term in np.argsort(-counts, kind="stable")[:k].tolist() if counts[term]]


def _names(tokens: tuple[TokenContribution, ...]) -> str:
    return ", ".join(token.token for token in tokens)


def float32_logits(lm_head: LMHead, embeddings: Tensor) -> Tensor:
    """Logits as an LM head gives them, but not rounded to its dtype.

    Args:
        lm_head: The LM head.
        embeddings: Shape ``(batch_size, embedding_dimension)``, float, any device. Not modified.

    Returns:
        float32, shape ``(batch_size, vocab_size)``, on the head's device.

    Raises:
        TypeError: If embeddings are no floating-point tensor.
        ValueError: If their shape does not fit.

    >>> head = LMHead(torch.nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [0.0, 2.0]]).bfloat16()))
    >>> float32_logits(head, torch.tensor([[1.001, 1.0]]))
    tensor([[1.0010, 2.0000]])
    """
    hidden = lm_head.hidden_states(embeddings) * lm_head.scale
    starts = range(0, lm_head.vocab_size, _BLOCK_ROWS)
    logits = torch.cat([functional.linear(hidden, *lm_head.rows(i, i + _BLOCK_ROWS)) for i in starts], dim=1)
    return logits if lm_head.soft_cap is None else torch.tanh(logits / lm_head.soft_cap) * lm_head.soft_cap


def fed_logits(lm_head: LMHead, direction: Tensor) -> Tensor:
    """What a unit of a direction adds to each logit; an LM head that is affine adds it whatever the embedding.

    Args:
        lm_head: The LM head, affine.
        direction: Unit vector, shape ``(embedding_dimension,)``, float, any device.

    Returns:
        float32, shape ``(vocab_size,)``, on the head's device; a bias is not part of it.

    >>> head = LMHead(torch.nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [1.0, 2.0]])))
    >>> fed_logits(head, torch.tensor([0.0, 1.0]))
    tensor([0., 2.])
    """
    unit = direction.float()[None]
    return (float32_logits(lm_head, unit) - float32_logits(lm_head, torch.zeros_like(unit)))[0]


def bound_lm_head(head: KeyTokenHead) -> LMHead:
    """A head's LM head; RuntimeError if it has none."""
    if head.lm_head is None:
        raise RuntimeError("KeyTokenHead must be bound to a model, got one without an LM head. Call head.bind(model).")
    return head.lm_head


def split_logits(lm_head: LMHead, embeddings: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and what is missing to them where a direction is projected out: ``(batch_size, vocab_size)`` both."""
    embeddings = embeddings.float()
    rest = remove(embeddings, direction)
    logits = float32_logits(lm_head, embeddings)
    if not lm_head.is_affine:
        return logits, logits - float32_logits(lm_head, rest)
    direction = direction.to(embeddings)
    fed = fed_logits(lm_head, direction)
    return logits, (embeddings @ direction).to(fed.device)[:, None] * fed


def _direction(component: FirstComponent | Spectrum | Tensor | None, head: KeyTokenHead) -> Tensor:
    """The unit vector that a component, or the head's calibration, stands for."""
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
        self._counts = {part: np.zeros(len(vocabulary), dtype=np.int64) for part in _PARTS}
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
            found[part] = decoded_terms(values, self._terms, self._is_masked, self._top_k)
            terms = found[part][found[part] >= 0].cpu().numpy()
            self._counts[part] += np.bincount(terms, minlength=len(self._vocabulary))
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
        tokens = (_best_tokens(part, *pair, self._vocabulary, self._top_k) for part in _PARTS)
        return TextContribution(text, projection, *tokens)

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
