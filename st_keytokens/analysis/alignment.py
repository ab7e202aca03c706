"""Alignment of decoded terms with the texts' own: of embedders and backbones, or of stored embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_keytokens.analysis.estimates import Estimate, check_resampling, global_rate, mean_estimates
from st_keytokens.calibration import Calibration
from st_keytokens.decoding.decoding import Decoder, check_finite, top_terms
from st_keytokens.decoding.first_component import Dense, as_tensor, check_embeddings, correct
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.encoder.forward_pass import Role
from st_keytokens.key_token_head import HeadSettings
from st_keytokens.shared.checks import check_choice, checked_float, checked_int
from st_keytokens.shared.markdown import markdown_table
from st_keytokens.sparse_embeddings import check_range, integer_array
from st_keytokens.terms.literal_terms import LiteralTokenizer, check_texts
from st_keytokens.terms.vocabulary import Vocabulary

__all__ = [
    "BASELINE",
    "VARIANTS",
    "Alignment",
    "AlignmentComparison",
    "AlignmentTally",
    "Definition",
    "OwnTerms",
    "Rate",
    "TextAlignments",
    "alignment_of_embeddings",
    "decoded_terms",
    "document_frequencies",
    "measure_alignment",
    "own_terms",
]

Definition = Literal["clean", "nie2025"]
Rate = Literal["local_alignment_rate", "global_alignment_rate", "precision"]

VARIANTS: dict[str, HeadSettings] = {
    "raw": {"decode_with": "lm_head", "correction": "none", "standardize": False},
    "corrected": {"decode_with": "lm_head", "correction": "remove", "standardize": False},
    "standardized": {"decode_with": "lm_head", "correction": "remove", "standardize": True},
}
"""Settings of a head by name: as it comes; without the first component; that, with logits standardised over texts."""

BASELINE = "frequency baseline"
_KS = (1, 2, 3, 5, 10, 20, 50, 100)
_ROWS = 32  # embeddings decoded at a time
_FLAT = 1e-9  # share of the embeddings' squares outside the first component, below which nothing is left without it


def measure_alignment(
    texts: Sequence[str],
    encoders: KeyTokenEncoder | SentenceTransformer | Mapping[str, KeyTokenEncoder | SentenceTransformer],
    *,
    embeddings: Mapping[str, Dense] | None = None,
    variants: Mapping[str, HeadSettings] = VARIANTS,
    role: Role = "document",
    definition: Definition = "clean",
    fold: bool | None = None,
    max_document_share: float = 1.0,
    k: int = 10,
    ks: Sequence[int] = _KS,
    has_baseline: bool = True,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> AlignmentComparison:
    """How well the terms decoded from embeddings are the texts' own, beside an answer that looks at no text.

    Each embedder embeds the texts once, whatever the number of variants; its embeddings are held, and 32 of them at a
    time are decoded.

    Args:
        texts: The texts.
        encoders: One, called ``"embedder"``, or several by name, such as an embedder and its backbone, with one
            vocabulary; a SentenceTransformer is decoded with its own LM head. Their dimensions may differ.
        embeddings: The texts' vectors by the encoders' names, where they are stored, as ``KeyTokenEncoder.embed``
            gives them, shape ``(N, pooled_dimension)``. None: the texts are embedded.
        variants: Settings of the head by name, each of which every encoder is measured with. A first component or
            logit statistics are the calibration's of the encoder or, where it has none, fitted on the texts.
        role: ``"document"`` or ``"query"``: decides the prompt, which is never among the terms.
        definition: ``"clean"``: own terms are those of the whole text without special tokens, decoded ones any but
            special tokens, and the rates look at as many decoded terms as there are own ones. ``"nie2025"``, as the
            published code counts: raw tokens with the special ones, cut at the model's maximum length; the rates look
            at as many decoded tokens as the text has with repetition, yet no more than ``k``, over the number without
            repetition.
        fold: Whether tokens that differ in case and surrounding space are one term, on both sides. None: by
            ``"clean"``, which also knows raw tokens; ``"nie2025"`` does not fold.
        max_document_share: Only terms that occur in at most this share of the texts count, on both sides; below 1 it
            leaves out function words, which any answer hits.
        k: Of the definition ``"nie2025"``.
        ks: Numbers of decoded terms for Hit@k and shares.
        has_baseline: Whether the frequency baseline is measured. It answers every text with the terms that occur in
            the most texts, the text itself among them.
        confidence: Of the intervals, between 0 and 1.
        samples: Resamplings of the texts.
        seed: Of the random numbers.
        batch_size: Texts a forward pass at most.
        show_progress_bar: Whether to show one.

    Returns:
        An alignment for each encoder and variant, named ``"encoder, variant"``, and that of the baseline.

    Raises:
        TypeError: If a text is not a string, or an argument of another wrong type.
        ValueError: If no text has a term, a setting is out of its range or not one of its choices, the vocabularies
            differ, or a first component cannot be fitted since all embeddings have one direction.

    Source:
        Nie et al. 2025 (arXiv 2406.17378), Hit@k, local and global alignment rate. The clean definition differs from
        its code in masking, folding and cuts; the frequency baseline, shares and intervals are additions.
    """
    _check_settings(definition, k, ks, confidence, samples)
    fold = definition == "clean" if fold is None else fold
    if fold and definition == "nie2025":
        raise ValueError("fold must be None or False for definition='nie2025', whose tokens are raw, got True.")
    share = checked_float("max_document_share", max_document_share, minimum=0, maximum=1)
    texts, headed = check_texts(texts), _headed_encoders(encoders)
    if not variants:
        raise ValueError("variants must name at least one, got none.")
    first = next(iter(headed.values()))
    vocabulary = _vocabulary_of(first, fold=fold)
    ids = _ids_of_texts(first, vocabulary, texts, definition)
    frequencies = document_frequencies(ids, vocabulary.vocab_size)
    is_counted = frequencies <= share * len(texts)
    own = [own_terms(row[is_counted[row]], definition, k) for row in ids]
    tallies: dict[str, AlignmentTally] = {}
    fitted: dict[str, str] = {}
    for name, encoder in headed.items():
        if embeddings is None:
            rows: Dense = encoder.embed(texts, role=role, batch_size=batch_size, show_progress_bar=show_progress_bar)
        else:
            rows = _stored(embeddings, name, len(texts))
        calibration, fitted[name] = encoder.calibration, "calibration"
        if calibration is None:
            fitted[name] = "these texts" if any(map(_needs_calibration, variants.values())) else "none"
            if fitted[name] == "these texts":
                calibration = _fitted_calibration(encoder.prepare_embeddings(rows), name)
        for variant, settings in variants.items():
            score = _scores_of(encoder, settings, calibration, definition)
            decode = _decode_with(score, rows, vocabulary.terms, is_counted)
            tallies[f"{name}, {variant}"] = _tallied(own, ks, vocabulary.vocab_size, decode)
    if has_baseline:
        order = frequency_order(np.where(is_counted, frequencies, 0))
        answer = np.pad(order, (0, vocabulary.vocab_size - len(order)), constant_values=-1)
        tallies[BASELINE] = _tallied(
            own, ks, vocabulary.vocab_size, lambda rows, depth: np.tile(answer[:depth], (len(own[rows]), 1))
        )
    found = {
        name: tally.result(definition, confidence=confidence, samples=samples, seed=seed)
        for name, tally in tallies.items()
    }
    return AlignmentComparison(found, fold, share, fitted)


def alignment_of_embeddings(
    embeddings: Dense,
    decoder: Decoder,
    token_ids: Sequence[ArrayLike],
    *,
    vocabulary: Vocabulary | None = None,
    definition: Definition = "clean",
    k: int = 10,
    ks: Sequence[int] = _KS,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> Alignment:
    """Alignment of stored embeddings, by any decoder.

    Args:
        embeddings: Shape ``(N, embedding_dimension)``, numpy (also memory-mapped) or torch, as the decoder shall see
            them: ``st_keytokens.decoding.first_component.correct`` corrects them before. Not modified.
        decoder: Gives logits, such as an ``LMHead``; of 32 embeddings at a time.
        token_ids: Ids of each text's tokens, with repetition.
        vocabulary: Terms are its folded tokens without the masked ones, on both sides. None: terms are the raw tokens,
            special ones among them, on both sides.
        definition: See :func:`measure_alignment`; ``"nie2025"`` goes without a vocabulary, since its tokens are raw.
        k: See there, as for the rest.
        ks: Numbers of decoded terms for Hit@k and shares.
        confidence: Of the intervals, between 0 and 1.
        samples: Resamplings of the texts.
        seed: Of the random numbers.

    Returns:
        The alignment. Texts without a term are counted and left out.

    Raises:
        TypeError: If embeddings or ids are of a wrong type.
        ValueError: If the dimension is not the decoder's, a value is not finite, the numbers of embeddings and texts
            differ, an id is out of the vocabulary, a setting out of its range, or no text has a term.

    Source:
        See :func:`measure_alignment`.

    >>> from st_keytokens import LMHead
    >>> head = LMHead(torch.nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])))
    >>> found = alignment_of_embeddings(torch.tensor([[3.0, 1.0]]), head, [[0, 1]], ks=[1, 2])
    >>> found.hits[1].value, found.hits[2].value, found.local_alignment_rate.value
    (0.0, 1.0, 0.5)
    """
    _check_settings(definition, k, ks, confidence, samples)
    check_embeddings(embeddings, decoder.embedding_dimension)
    if len(token_ids) != len(embeddings):
        raise ValueError(f"token_ids must be one for each embedding, got {len(token_ids)} for {len(embeddings)}.")
    size = decoder.vocab_size
    if vocabulary is not None and definition == "nie2025":
        raise ValueError("vocabulary must be None for definition='nie2025', whose tokens are raw, got one.")
    if vocabulary is not None and vocabulary.vocab_size != size:
        raise ValueError(
            f"vocabulary must have the decoder's {size} tokens, got {vocabulary.vocab_size}. Pass the one of the "
            "decoder's own language model."
        )
    if vocabulary is None:
        terms, is_counted, ids = np.arange(size), np.ones(size, dtype=bool), [_raw_ids(row, size) for row in token_ids]
    else:
        terms, is_counted, ids = vocabulary.terms, ~vocabulary.is_masked, [*map(vocabulary.term_ids, token_ids)]

    def score(rows: Tensor) -> Tensor:
        check_finite(rows)
        return decoder.logits(rows).float()

    own = [own_terms(row, definition, k) for row in ids]
    tally = _tallied(own, ks, size, _decode_with(score, embeddings, terms, is_counted))
    return tally.result(definition, confidence=confidence, samples=samples, seed=seed)


@dataclass(frozen=True, eq=False)
class AlignmentComparison:
    """Alignment of the same texts under several embedders and settings.

    Attributes:
        rows: Alignments by name; the frequency baseline, which answers every text with the texts' own most frequent
            terms, is the last one where it was wanted.
        is_folded: Whether terms are tokens folded over case and space; otherwise they are raw tokens.
        max_document_share: Only terms that occur in at most this share of the texts were counted.
        calibration: For each embedder what its first component and logit statistics were fitted on:
            ``"calibration"``, the encoder's own, ``"these texts"``, or ``"none"`` where no variant needed any.
    """

    rows: dict[str, Alignment]
    is_folded: bool
    max_document_share: float
    calibration: dict[str, str]

    def to_dict(self, *, has_texts: bool = False) -> dict[str, Any]:
        """Everything as JSON values.

        Args:
            has_texts: Whether the values of each text are among them.
        """
        return {
            "terms": "folded" if self.is_folded else "raw tokens",
            "max_document_share": self.max_document_share,
            "calibration": self.calibration,
            "rows": {name: alignment.to_dict(has_texts=has_texts) for name, alignment in self.rows.items()},
        }

    def table(self) -> str:
        """A Markdown table, one row for each alignment: Hit@k and shares at 1 and 10 where they were measured.

        Precision has a column only where it differs from the local alignment rate.
        """
        measured = list(next(iter(self.rows.values())).hits)
        ks = [k for k in (1, 10) if k in measured] or measured[-1:]
        has_precision = any(row.precision != row.local_alignment_rate for row in self.rows.values())
        rates = {"local rate": "local_alignment_rate", "global rate": "global_alignment_rate"}
        rates |= {"precision": "precision"} if has_precision else {}
        return markdown_table(
            ["", *(f"Hit@{k}" for k in ks), *(f"share@{k}" for k in ks), *rates],
            [
                [
                    name,
                    *(row.hits[k] for k in ks),
                    *(row.shares[k] for k in ks),
                    *(vars(row)[r] for r in rates.values()),
                ]
                for name, row in self.rows.items()
            ],
        )


@dataclass(frozen=True, eq=False)
class Alignment:
    """How well decoded terms are the texts' own.

    Attributes:
        definition: ``"clean"`` or ``"nie2025"``.
        text_count: Texts that were measured.
        without_terms: Texts that were left out, since they have no terms.
        hits: Hit@k, by k: the share of texts with an own term among their first k decoded ones.
        shares: By k, own terms among the first k decoded ones over ``min(k, number of own terms)``, mean over texts.
        local_alignment_rate: Mean over texts of own terms among the decoded ones up to the cut over own terms.
        global_alignment_rate: The union of those over the union of all texts' own terms. It falls with the number of
            texts, so compare it on the same texts only.
        precision: Mean over texts of own terms among the decoded ones up to the cut over the number of those decoded
            ones. By the clean definition the cut is the number of own terms, and this is the local alignment rate
            wherever the vocabulary has that many terms.
        per_text: The values of each text.
    """

    definition: Definition
    text_count: int
    without_terms: int
    hits: dict[int, Estimate]
    shares: dict[int, Estimate]
    local_alignment_rate: Estimate
    global_alignment_rate: Estimate
    precision: Estimate
    per_text: TextAlignments

    def to_dict(self, *, has_texts: bool = False) -> dict[str, Any]:
        """Everything as JSON values.

        Args:
            has_texts: Whether the values of each text are among them.
        """
        content: dict[str, Any] = {
            "definition": self.definition,
            "text_count": self.text_count,
            "without_terms": self.without_terms,
            "hits": {str(k): asdict(found) for k, found in self.hits.items()},
            "shares": {str(k): asdict(found) for k, found in self.shares.items()},
            **{rate: asdict(getattr(self, rate)) for rate in get_args(Rate)},
        }
        if has_texts:
            content["per_text"] = {name: values.tolist() for name, values in vars(self.per_text).items()}
        return content

    def table(self) -> str:
        """A Markdown table of one row."""
        return AlignmentComparison({"": self}, False, 1.0, {}).table()


@dataclass(frozen=True, eq=False)
class TextAlignments:
    """Alignment of each text that has terms.

    Attributes:
        positions: Which of the texts given, int64 ``(N,)``; those without terms are left out.
        term_counts: Distinct own terms, int64 ``(N,)``.
        is_hit: Whether an own term is among the first k decoded ones, bool ``(N, len(ks))``.
        shares: Own terms among the first k, of as many as could be, float64 ``(N, len(ks))``.
        local_alignment_rates: Own terms among the decoded ones up to the cut, over ``term_counts``, float64 ``(N,)``.
        precisions: The same over the number of those decoded ones, float64 ``(N,)``.
    """

    positions: NDArray[np.int64]
    term_counts: NDArray[np.int64]
    is_hit: NDArray[np.bool_]
    shares: NDArray[np.float64]
    local_alignment_rates: NDArray[np.float64]
    precisions: NDArray[np.float64]


class OwnTerms(NamedTuple):
    """A text's own terms, and how many decoded ones are held against them.

    Attributes:
        ids: Distinct ids, ascending, int64.
        cut: Decoded terms that the alignment rates look at.
    """

    ids: NDArray[np.int64]
    cut: int


def own_terms(ids: NDArray[np.int64], definition: Definition = "clean", k: int = 10) -> OwnTerms:
    """The terms of a text and the cut of its decoded terms.

    Args:
        ids: Ids of the text's tokens or terms, with repetition.
        definition: ``"clean"`` cuts at the number of distinct ids. ``"nie2025"`` cuts where the published code does:
            at the number of ids with repetition, yet at ``k`` at most, since it keeps no more.
        k: Decoded ids that ``"nie2025"`` keeps.

    Returns:
        The terms.

    >>> own_terms(np.array([5, 3, 5, 5])).cut, own_terms(np.array([5, 3, 5, 5]), "nie2025").cut
    (2, 4)
    """
    distinct = np.unique(ids).astype(np.int64)
    return OwnTerms(distinct, len(distinct) if definition == "clean" else min(len(ids), k))


def document_frequencies(term_ids: Sequence[NDArray[np.int64]], vocab_size: int) -> NDArray[np.int64]:
    """In how many texts each term occurs.

    Args:
        term_ids: Term ids of each text; repetitions count once.
        vocab_size: Number of terms.

    Returns:
        int64, shape ``(vocab_size,)``.

    >>> document_frequencies([np.array([1, 1, 2]), np.array([1])], 4)
    array([0, 2, 1, 0])
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for ids in term_ids:
        counts[np.unique(ids)] += 1
    return counts


def frequency_order(frequencies: NDArray[np.int64]) -> NDArray[np.int64]:
    """The terms that occur, the most frequent one first, the smallest id first among equals."""
    found: NDArray[np.int64] = np.argsort(-frequencies, kind="stable")[: np.count_nonzero(frequencies)]
    return found


def decoded_terms(scores: Tensor, terms: Tensor, is_out: Tensor, k: int) -> Tensor:
    """The k best distinct terms of each row of scores.

    Args:
        scores: Score of each token, float ``(batch_size, vocab_size)``; -inf is never a term.
        terms: Term of each token, int64 ``(vocab_size,)``.
        is_out: Tokens that do not count, bool ``(vocab_size,)``.
        k: Terms wanted.

    Returns:
        int64 ``(batch_size, min(k, vocab_size))``, best first; -1 where a row has no more.

    >>> decoded_terms(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0, 1, 1]), torch.tensor([True, False, False]), 2)
    tensor([[ 1, -1]])
    """
    ids, best = top_terms(scores.masked_fill(is_out, float("-inf")), terms, k)
    return torch.where(best > float("-inf"), ids, -1)


class AlignmentTally:
    """Counts how many of each text's decoded terms are its own; holds a few numbers and the hit terms of each text.

    Args:
        vocab_size: Number of terms.
        ks: Numbers of decoded terms for Hit@k and shares.

    >>> tally = AlignmentTally(vocab_size=3, ks=[1, 2])
    >>> tally.update(np.array([[2, 0, 1]]), [OwnTerms(np.array([0, 1]), cut=2)])
    >>> tally.result("clean").table().splitlines()[-1]
    '|  | 0.000 | 0.000 | 0.500 | 0.500 |'
    """

    def __init__(self, vocab_size: int, ks: Sequence[int]) -> None:
        self._vocab_size = vocab_size
        self._ks = np.array(sorted(set(ks)), dtype=np.int64)
        self._count = 0
        self._positions: list[int] = []
        self._own: list[OwnTerms] = []
        self._hits: list[NDArray[np.int64]] = []  # own terms among the first k, (batch_size, len(ks))
        self._found: list[NDArray[np.int64]] = []  # own terms up to the cut
        self._answers: list[int] = []  # decoded terms up to the cut

    def update(self, decoded: NDArray[np.int64], own: Sequence[OwnTerms]) -> None:
        """Adds texts.

        Args:
            decoded: Distinct decoded ids of each text, best first, shape ``(batch_size, depth)``; -1 where a text has
                no more.
            own: The texts' own terms; a text without any is counted and left out.
        """
        rows = np.array([row for row, terms in enumerate(own) if len(terms.ids)], dtype=np.int64)
        texts = [own[row] for row in rows]
        self._positions += (rows + self._count).tolist()
        self._count += len(own)
        if not texts:
            return
        decoded = decoded[rows]
        is_own = np.zeros((len(rows), self._vocab_size + 1), dtype=bool)  # the last column is -1's
        for row, terms in enumerate(texts):
            is_own[row, terms.ids] = True
        is_hit = np.take_along_axis(is_own, decoded, axis=1)
        totals = np.pad(is_hit.cumsum(axis=1), ((0, 0), (1, 0)))
        self._hits.append(totals[:, np.minimum(self._ks, decoded.shape[1])])
        self._own += texts
        for ids, hits, terms in zip(decoded, is_hit, texts, strict=True):
            self._found.append(ids[: terms.cut][hits[: terms.cut]])
            self._answers.append(int((ids[: terms.cut] >= 0).sum()))

    def result(
        self, definition: Definition, *, confidence: float = 0.95, samples: int = 1000, seed: int = 0
    ) -> Alignment:
        """The rates of all texts so far.

        Args:
            definition: What the cuts were made by.
            confidence: Of the intervals, between 0 and 1.
            samples: Resamplings of the texts.
            seed: Of the random numbers.

        Returns:
            The alignment.

        Raises:
            ValueError: If no text has a term.
        """
        if not self._own:
            raise ValueError(
                f"texts must hold at least one with a term that counts, got {self._count} without any. Give texts "
                "with words, or raise max_document_share."
            )
        own = [terms.ids for terms in self._own]
        counts = np.array([len(ids) for ids in own], dtype=np.int64)
        hits = np.concatenate(self._hits)
        found = np.array([len(ids) for ids in self._found], dtype=np.float64)
        texts = TextAlignments(
            positions=np.array(self._positions, dtype=np.int64),
            term_counts=counts,
            is_hit=hits > 0,
            shares=hits / np.minimum(self._ks, counts[:, None]),
            local_alignment_rates=found / counts,
            precisions=found / np.maximum(self._answers, 1),
        )
        columns = [texts.is_hit, texts.shares, texts.local_alignment_rates[:, None], texts.precisions[:, None]]
        values = np.hstack(columns).astype(np.float64)
        estimates = mean_estimates(values, confidence=confidence, samples=samples, seed=seed)
        ks = self._ks.tolist()
        return Alignment(
            definition,
            text_count=len(counts),
            without_terms=self._count - len(counts),
            hits=dict(zip(ks, estimates[: len(ks)], strict=True)),
            shares=dict(zip(ks, estimates[len(ks) : -2], strict=True)),
            local_alignment_rate=estimates[-2],
            global_alignment_rate=global_rate(self._found, own, self._vocab_size, confidence=confidence),
            precision=estimates[-1],
            per_text=texts,
        )


def _headed_encoders(
    encoders: KeyTokenEncoder | SentenceTransformer | Mapping[str, KeyTokenEncoder | SentenceTransformer],
) -> dict[str, KeyTokenEncoder]:
    """Encoders by name, of one vocabulary; a SentenceTransformer is given its own LM head."""
    headed: dict[str, KeyTokenEncoder] = {}
    for name, encoder in (encoders if isinstance(encoders, Mapping) else {"embedder": encoders}).items():
        if not isinstance(encoder, KeyTokenEncoder | SentenceTransformer):
            raise TypeError(
                f"encoders must be KeyTokenEncoders or SentenceTransformers, got {type(encoder).__name__} for "
                f"{name!r}. Load the model first."
            )
        headed[name] = (encoder if isinstance(encoder, KeyTokenEncoder) else KeyTokenEncoder(encoder)).over_tokens()
    if not headed:
        raise ValueError("encoders must hold at least one, got none.")
    (first, known), *others = ((name, _vocabulary_of(encoder, fold=False)) for name, encoder in headed.items())
    for name, vocabulary in others:
        if vocabulary.hash != known.hash:
            raise ValueError(
                f"encoders must have one vocabulary, got {known.vocab_size} tokens ({known.hash[:12]}) for {first!r} "
                f"and {vocabulary.vocab_size} ({vocabulary.hash[:12]}) for {name!r}. Measure them one by one."
            )
    return headed


def _vocabulary_of(encoder: KeyTokenEncoder, *, fold: bool) -> Vocabulary:
    vocabulary = encoder.head.token_vocabulary
    if vocabulary.fold == fold:
        return vocabulary
    return Vocabulary.from_tokenizer(encoder.model.tokenizer, vocabulary.vocab_size, fold=fold)


def _ids_of_texts(
    encoder: KeyTokenEncoder, vocabulary: Vocabulary, texts: Sequence[str], definition: Definition
) -> list[NDArray[np.int64]]:
    """Ids of the texts' own terms; by ``"nie2025"`` of what the tokenizer gives the model, special tokens and all."""
    if definition == "clean":
        return LiteralTokenizer(encoder.model.tokenizer, vocabulary)(texts)
    if not texts:
        return []
    longest = encoder.model.max_seq_length
    cut = {} if longest is None else {"truncation": True, "max_length": longest}
    return [np.array(ids, dtype=np.int64) for ids in encoder.model.tokenizer(list(texts), **cut)["input_ids"]]


def _raw_ids(ids: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    array = integer_array("token_ids", ids, ndim=1)
    check_range("token_ids", array, vocab_size)
    return array.astype(np.int64)


def _stored(embeddings: Mapping[str, Dense], name: str, count: int) -> Dense:
    if name not in embeddings:
        raise ValueError(f"embeddings must hold those of every encoder, got none of {name!r}.")
    check_embeddings(embeddings[name])
    if len(embeddings[name]) != count:
        raise ValueError(f"embeddings must have one row a text, got {len(embeddings[name])} of {name!r} for {count}.")
    return embeddings[name]


def _needs_calibration(settings: HeadSettings) -> bool:
    return settings.get("correction", "auto") not in ("auto", "none") or settings.get("standardize") is True


def _fitted_calibration(embeddings: NDArray[np.float32], name: str) -> Calibration:
    """First component and logit statistics of the texts that are measured themselves."""
    calibration = Calibration.fit_embeddings(embeddings, show_progress_bar=False)
    squares = float(calibration.moments.second_moment.trace())
    if squares - calibration.first_component.singular_value**2 <= _FLAT * squares:
        raise ValueError(
            f"texts must have embeddings of more than one direction for a first component to be fitted on them, got "
            f"{len(embeddings)} of one direction for {name!r}. Give more texts, an encoder with a calibration, or "
            "only variants without a correction."
        )
    return calibration


def _scores_of(
    encoder: KeyTokenEncoder, settings: HeadSettings, calibration: Calibration | None, definition: Definition
) -> Callable[[Tensor], Tensor]:
    """From embeddings to scores of all tokens; by ``"nie2025"`` no token is masked, and logits are as they come."""
    head = encoder.head.with_settings(**settings)
    if head.calibration is None and calibration is not None:
        head.set_calibration(calibration)
    if definition == "clean":
        return head.decode_scores
    if head.is_ridge or (head.standardize is not False and head.calibration is not None):
        raise ValueError(
            "variants must have decode_with='lm_head' and standardize=False for definition='nie2025', got "
            f"decode_with={head.decode_with!r}, standardize={head.standardize!r}."
        )
    direction = mean = None
    if head.calibration is not None:
        direction, mean = head.calibration.first_component.direction, head.calibration.moments.mean.float()

    def logits(embeddings: Tensor) -> Tensor:
        vectors = head.prepare_embeddings(embeddings)
        corrected = correct(vectors, head.active_correction, direction=direction, mean=mean, amount=head.shift)
        return head.decoder.logits(corrected).float()

    return logits


_Decode = Callable[[slice, int], NDArray[np.int64]]  # from which texts, and how deep, to their decoded terms


def _decode_with(
    score: Callable[[Tensor], Tensor], embeddings: Dense, terms: NDArray[np.int64], is_counted: NDArray[np.bool_]
) -> _Decode:
    term_of, is_out = torch.from_numpy(terms), torch.from_numpy(~is_counted[terms])

    def decode(rows: slice, depth: int) -> NDArray[np.int64]:
        scores = score(as_tensor(embeddings[rows]))
        return decoded_terms(scores, term_of.to(scores.device), is_out.to(scores.device), depth).cpu().numpy()

    return decode


def _tallied(own: Sequence[OwnTerms], ks: Sequence[int], vocab_size: int, decode: _Decode) -> AlignmentTally:
    tally = AlignmentTally(vocab_size, ks)
    with torch.inference_mode():
        for start in range(0, len(own), _ROWS):
            rows = slice(start, start + _ROWS)
            tally.update(decode(rows, max([*ks, *(terms.cut for terms in own[rows])])), own[rows])
    return tally


def _check_settings(definition: str, k: int, ks: Sequence[int], confidence: float, samples: int) -> None:
    check_choice("definition", definition, get_args(Definition))
    checked_int("k", k, minimum=1)
    if not len(ks):
        raise ValueError("ks must hold at least one number of decoded terms, got none.")
    for number in ks:
        checked_int("ks", number, minimum=1)
    check_resampling(confidence, samples)
