"""KeyTokenEncoder: one forward pass, a dense and a sparse vector."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Hashable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from tokenizers import Tokenizer
from tqdm.auto import tqdm

from st_keytokens.calibration import Calibration
from st_keytokens.decoding.decoding import Activation, check_finite
from st_keytokens.decoding.first_component import as_tensor, check_embeddings
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.embedders import EmbedderRecipe, FunctionEmbedder, as_sentence_transformer, open_embedder
from st_keytokens.encoder import sidecar
from st_keytokens.encoder.cache import EmbeddingCache, Row, join_rows, split_rows
from st_keytokens.encoder.forward_pass import ForwardPass, Role, as_sparse, find_head, resolve_prompt
from st_keytokens.encoder.pool import check_pool, encode_with_pool, start_pool
from st_keytokens.encoder.sidecar import Sidecar
from st_keytokens.key_token_head import DecoderName, HeadCorrection, KeyTokenHead
from st_keytokens.shared.checks import check_choice, checked_int
from st_keytokens.shared.hashes import (
    WeightsWatch,
    fingerprint,
    is_same_sample,
    module_settings,
    tokenizer_hash,
    weights_sample,
)
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings
from st_keytokens.terms.literal_terms import LiteralTokenizer, TokenSplit, check_texts
from st_keytokens.terms.vocabulary import Vocabulary
from st_keytokens.terms.weighting import METHODS, Corpus, Weighting, check_method, with_less_decoded
from st_keytokens.terms.words import Words, WordVocabulary

logger = logging.getLogger(__name__)

# Of a query's decoded terms in a hybrid, at a trust of 1. Chosen on docs/results/quality.md's collections from 0, 1/4,
# 1/3, 1/2 and 1: more helps a strong embedder and costs a weaker one, whose dense vectors already say too much.
_HYBRID_SHARE = 0.25
# Of trust, as the weight of dense hits: sentences, with which it is measured, flatter embedders trained on such pairs.
# Chosen on docs/results/quality.md's embedders from 0.7, 0.75, 0.8, 0.9 and 1, whose means differ by 0.003.
_TRUSTED = 0.75
SCORING_VERSION, PRUNED_SCORING_VERSION = 3, 5  # count up whenever the same settings give other scores than before

Query = Literal["encode", "lookup"]
Terms = Literal["tokens", "words"]
QUERIES: tuple[Query, ...] = get_args(Query)


class KeyTokenEncoder:
    """Gives a SentenceTransformer a second, sparse output, without touching the first.

    A text without a single term of its own, as white space, has an empty sparse vector, whatever a prompt says.

    Args:
        model: A loaded ``SentenceTransformer``, or its name or path. It is not modified, and may already hold a
            :class:`KeyTokenHead`, which is then used. A name or path is loaded as ``from_pretrained`` says; what
            :meth:`save_pretrained` wrote comes back whole, calibration included. Or any other embedder: a function
            from a list of texts to vectors, a pair of them for documents and for queries, an ``Embeddings`` of
            LangChain, a ``BaseEmbedding`` of LlamaIndex, a
            :class:`~st_keytokens.embedders.function_embedder.FunctionEmbedder`. It decodes once it is calibrated.
        head: A :class:`KeyTokenHead` with settings or an LM head of its own, such as
            ``KeyTokenHead(correction="center")``; bound to the model here. None: the method's.
        backbone: Where the LM head is, if the model cannot tell: name, directory or URL of the language model that
            it was made from. Only the LM head is read. An embedder whose LM head is not known decodes as soon as it
            is calibrated.
        recipe: How the model at the name or path embeds, by the id of a known embedder
            (``st_keytokens.embedders.known_embedders``), such as ``"prompteol"`` for any causal language model.
        terms: What a term is: ``"words"``, ``"tokens"``, those of the model's tokenizer, or a
            :class:`~st_keytokens.terms.words.Words` of your own, such as one with stop words. None: as the
            calibration has them, and without one words; tokens for ``method="nie2025"``. A head in the model stays
            over tokens; beside words the encoder has one of its own, with the same settings.
        language: Of the words' stemmer, one of Snowball's, such as ``"german"``, or ``"none"``: words as they are,
            in lower case. None: ``"english"``.
        calibration: First component, logit statistics and document frequencies, see :meth:`calibrate`.
        method: Name of a method (see ``weighting.METHODS``).
        weighting: Overrides the method's weighting.
        query: ``"encode"``: queries take a forward pass; ``"lookup"``: they are their literal terms.
        cache_size: Texts whose embeddings are remembered, so that asking for dense and for sparse vectors separately
            costs one pass.
        max_active_dims: Decoded terms kept of a document. None: the method's.
        query_max_active_dims: Decoded terms kept of a query. None: the method's.
        model_arguments: For ``SentenceTransformer`` where it loads the model, such as ``{"device": "cuda"}``. Its
            ``token``, ``cache_folder``, ``revision`` and ``local_files_only`` hold for a saved encoder's folder as
            well.

    Attributes:
        model: The model.
        head: The head. Most of its settings may be changed at any time.
        vocabulary: The terms of the sparse vectors.
        literal_terms: Finds the literal terms of texts.
        weighting: As given, or the method's.
        query: As given.
        cache: The embeddings that are remembered.
        lock: Held by whoever runs the model or its head, so that threads share them.

    Raises:
        OSError: If there is no such model.
        ValueError: If a setting is not one of its choices, or what was saved is damaged or belongs to other weights.
    """

    def __init__(
        self,
        model: SentenceTransformer | str | PathLike[str] | Any,
        *,
        head: KeyTokenHead | None = None,
        backbone: str | PathLike[str] | LMHead | None = None,
        recipe: str | EmbedderRecipe | None = None,
        terms: Terms | Words | None = None,
        language: str | None = None,
        calibration: Calibration | None = None,
        method: str | None = None,
        weighting: Weighting | None = None,
        query: Query | None = None,
        cache_size: int = 1024,
        max_active_dims: int | None = None,
        query_max_active_dims: int | None = None,
        model_arguments: dict[str, Any] | None = None,
    ) -> None:
        changes = without_none(
            head=head,
            backbone=backbone,
            terms=terms,
            language=language,
            calibration=calibration,
            method=method,
            weighting=weighting,
            query=query,
            max_active_dims=max_active_dims,
            query_max_active_dims=query_max_active_dims,
        )
        saved = None
        if isinstance(model, str | PathLike):
            arguments = model_arguments or {}
            given = None if isinstance(backbone, LMHead) else backbone
            path = str(model)
            if sidecar.stands_alone(path):
                raise ValueError(
                    f"{path} must be opened with the embedder that it was saved with, which no folder holds. Use "
                    "KeyTokenEncoder.from_sidecar(embedder, folder) with the folder key_tokens in it."
                )
            model, lm_head = open_embedder(path, recipe=recipe, backbone=given, model_arguments=arguments)
            if head is None and lm_head is not None:
                changes["backbone"] = lm_head
            folder = None if head is not None else sidecar.find_folder(path, arguments)
            saved = None if folder is None else Sidecar.load(folder)
            is_changed = bool(changes.keys() - {"backbone"}) or backbone is not None
        elif recipe is not None or model_arguments is not None:
            name = "recipe" if recipe is not None else "model_arguments"
            raise ValueError(f"{name} must be given with a model's name or path, got a loaded model. Leave it out.")
        else:
            model = as_sentence_transformer(model)
        if saved is None:
            self._set_up(model, cache_size, **changes)
        else:
            self._set_up_as_saved(model, cache_size, saved, changes, is_changed=is_changed)

    def _set_up(
        self,
        model: SentenceTransformer,
        cache_size: int,
        *,
        head: KeyTokenHead | None = None,
        backbone: str | PathLike[str] | LMHead | None = None,
        terms: Terms | Words | None = None,
        language: str | None = None,
        calibration: Calibration | None = None,
        method: str = "default",
        weighting: Weighting | None = None,
        query: Query = "encode",
        **dims: int,
    ) -> None:
        check_method(method)
        existing = find_head(model)
        words = chosen_words(terms, language, existing if head is None else head, calibration, method)
        check_choice("query", query, QUERIES)
        self.model = model
        self.weighting = METHODS[method].weighting if weighting is None else weighting
        self.query: Query = query
        settings = {**without_none(backbone=backbone), **dims, **({"method": method} if METHODS[method].head else {})}
        if existing is not None:
            if extra := sorted({**without_none(head=head, calibration=calibration), **settings}):
                raise ValueError(
                    f"model must not hold a KeyTokenHead where settings for one are given, got {', '.join(extra)}. "
                    "Change the head in the model, or remove it."
                )
            existing.bind(model, needs_lm_head=False)
            is_used = words is None or isinstance(existing.bound_vocabulary, WordVocabulary)
            self.head = existing if is_used else existing.with_vocabulary(existing.token_vocabulary)
        else:
            if head is None:
                lm_head = backbone
                if not (lm_head is None or isinstance(lm_head, LMHead)):
                    lm_head = LMHead.from_checkpoint(str(lm_head))
                head = KeyTokenHead(lm_head, **{**METHODS[method].head, **dims})
            elif settings:
                raise ValueError(
                    f"head must not be given together with settings for one, got {', '.join(sorted(settings))}. "
                    "Give them to the head."
                )
            self.head = head
        if words is not None and model.tokenizer is None and self.head.vocabulary is None:
            self.head.vocabulary = WordVocabulary(words)
        self.head.bind(model, needs_lm_head=False)
        self.head.eval()
        self.vocabulary: Vocabulary | WordVocabulary = self.head.bound_vocabulary
        self.literal_terms: LiteralTokenizer | Words
        if not isinstance(self.vocabulary, Vocabulary):
            self.literal_terms = self.vocabulary.words
        elif words is not None:
            self._use_words(words)
        else:
            self.literal_terms = LiteralTokenizer(model.tokenizer, self.vocabulary)
        self.forward_pass = ForwardPass(model, self.head)
        self.cache = EmbeddingCache(cache_size)
        self.lock = threading.RLock()
        self._weights = WeightsWatch(self.forward_pass.headless)
        self._weights_hash: str | None = None
        self._fingerprint: tuple[Any, str] | None = None
        self._outdated: Calibration | None = None  # the calibration, if the weights have changed since
        if calibration is not None:
            self.calibration = calibration
        elif self.head is not existing:
            self._check_calibration(self.head.calibration)

    def _use_words(self, words: Words) -> None:
        """Makes the terms words, of the head's decoded tokens too."""
        backend = getattr(self.model.tokenizer, "backend_tokenizer", None)
        words = words.with_split(TokenSplit(backend) if isinstance(backend, Tokenizer) else None)
        vocabulary = WordVocabulary(words, self.head.token_vocabulary)
        self.head.vocabulary = self.vocabulary = vocabulary
        self.literal_terms = words

    def _set_up_as_saved(
        self, model: SentenceTransformer, cache_size: int, saved: Sidecar, changes: dict[str, Any], *, is_changed: bool
    ) -> None:
        arguments = saved.arguments(changes)
        calibration = arguments.pop("calibration", None)
        self._set_up(model, cache_size, **arguments)
        for name, is_same in (
            ("vocabulary", saved.vocabulary_hash == self.vocabulary.hash or is_changed),
            ("model weights", is_same_sample(saved.weights_sample, weights_sample(self.forward_pass.headless))),
        ):
            if not is_same:
                raise ValueError(
                    f"{saved.folder} must belong to this model, got one with other {name}. "
                    "Fit and save the key tokens of this model again."
                )
        self._weights_hash, self._fingerprint = saved.weights_hash, None  # 16-bit rounding would change it
        if calibration is not None:
            self.calibration = calibration
        elif saved.head.calibration is not None:
            self.calibration = saved.head.calibration
            self.head.take_statistics(saved.head)
        if not is_changed and self.fingerprint != saved.fingerprint:
            raise ValueError(
                f"{saved.folder} must give the encoder that was saved, {saved.fingerprint[:12]}, got "
                f"{self.fingerprint[:12]}. A file in it was changed, or the model's tokenizer or modules were; save "
                "the encoder again."
            )

    @property
    def calibration(self) -> Calibration | None:
        """The calibration in force; set it, or fit one with :meth:`calibrate`."""
        return self.head.calibration

    @calibration.setter
    def calibration(self, calibration: Calibration | None) -> None:
        self._check_calibration(calibration)
        with self.lock:
            self.head.set_calibration(calibration)
            if (
                isinstance(self.vocabulary, WordVocabulary)
                and calibration is not None
                and calibration.names is not None
            ):
                self.vocabulary.take(calibration.names)
                self.literal_terms = self.vocabulary.words
            self.cache.clear()

    def _check_calibration(self, calibration: Calibration | None) -> None:
        fitted_for = None if calibration is None else calibration.model_name
        if fitted_for is not None and fitted_for != self.model_name:
            raise ValueError(
                f"calibration must be fitted on this model's embeddings, {self.model_name}, got one of {fitted_for}. "
                "Fit one with calibrate, or load the model that it belongs to."
            )

    @property
    def model_name(self) -> str:
        """Identifies the vectors that the head sees: the model's weights and settings, prompt and normalisation."""
        return fingerprint(
            {
                "weights": self.weights_hash,
                "modules": repr(module_settings(self.forward_pass.before)),
                "prompt": resolve_prompt(self.model, "document", None, None),
                "is_normalizing": self.head.is_normalizing,
            }
        )

    @property
    def weights_hash(self) -> str:
        """Identifies the model's weights without its head's; one with a sidecar keeps what it was saved with."""
        return self._weights_hash or self._weights.hash

    def refresh(self) -> None:
        """Looks whether the model's weights have changed, by training or otherwise; encoding does so by itself.

        If they have, remembered embeddings are forgotten, and :attr:`fingerprint` is another one, so that an index of
        the old weights refuses this encoder. A calibration that was fitted with the old weights is refused by the next
        encoding: fit one anew with :meth:`calibrate`, or set :attr:`calibration` to None.
        """
        with self.lock:
            if not self._weights.has_changed():
                return
            logger.warning(
                "The model's weights have changed under the encoder (%s now): embeddings made from here on are those "
                "of the new weights.",
                str(self._weights.dtype).removeprefix("torch."),
            )
            self._weights_hash = self._fingerprint = None
            self.cache.clear()
            calibration = self.calibration
            is_outdated = calibration is not None and calibration.model_name != self.model_name
            self._outdated = calibration if is_outdated else None

    def _check_weights(self) -> None:
        """Looks at the weights, and refuses a calibration that was fitted with older ones."""
        self.refresh()
        if self._outdated is not None and self.calibration is self._outdated:
            raise ValueError(
                "calibration must be fitted with the model's weights, which have changed since. Fit one with "
                "calibrate, or set encoder.calibration = None."
            )

    @property
    def needs_calibration(self) -> bool:
        """Whether it decodes nothing before it is calibrated, as its model has no LM head."""
        return self.calibration is None and self.head.lm_head is None

    @property
    def fingerprint(self) -> str:
        """Names everything that changes a score: weights, modules, tokenizer, calibration, settings, prompts."""
        state = self._scoring_state()
        if self._fingerprint is None or self._fingerprint[0] != state:
            frozen = {id(self.weighting): self.weighting}  # compared by identity first, which a copy would prevent
            parts = {
                "state": repr(state),
                "weights": self.weights_hash,
                "lm_head": "" if self.head.lm_head is None else self.head.lm_head.hash_beside_model,
                "vocabulary": self.vocabulary.hash,
                "tokenizer": "" if self.model.tokenizer is None else tokenizer_hash(self.model.tokenizer),
            }
            self._fingerprint = copy.deepcopy(state, frozen), fingerprint(parts)
        return self._fingerprint[1]

    def _scoring_state(self) -> tuple[Any, ...]:
        """All settings that change a score, as they are now; cheap, so that it can be compared before each use."""
        model, calibration, forward_pass = self.model, self.calibration, self.forward_pass
        return (
            SCORING_VERSION if self.weighting.max_document_terms is None else PRUNED_SCORING_VERSION,
            [getattr(self.head, name) for name in self.head.config_keys],
            self.weighting,
            None if calibration is None else calibration.hash,
            sorted(model.prompts.items()),
            model.default_prompt_name,
            model.truncate_dim,
            module_settings((*forward_pass.before, *forward_pass.after)),
        )

    @property
    def fusion_weights(self) -> dict[str, float]:
        """How much each side of a hybrid search counts, by ``"dense"`` and ``"sparse"``.

        1 for the sparse side, and for the dense one 3/4 of the calibration's ``decoded_trust``, which says how far
        the embedder finds documents beside literal terms; 1 where there is none.
        """
        trust = None if self.calibration is None else self.calibration.decoded_trust
        return {"dense": 1.0 if trust is None else _TRUSTED * trust, "sparse": 1.0}

    @property
    def can_embed(self) -> bool:
        """Whether texts can be embedded; False over a :class:`FunctionEmbedder` of vectors that are given."""
        return self.forward_pass.can_embed

    def get_embedding_dimension(self) -> int:
        """Dimension of the dense vectors."""
        return self.forward_pass.embedding_dimension

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        role: Role = "document",
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        pool: dict[str, Any] | None = None,
    ) -> HybridEmbeddings:
        """Dense and sparse vectors of texts from one forward pass.

        Args:
            texts: One text (a batch of one) or several.
            role: ``"document"`` or ``"query"``: decides the default prompt, the number of terms and their weights.
            prompt: Put before each text for the model; never becomes a literal term.
            prompt_name: Name of a prompt of the model.
            batch_size: Texts a forward pass at most.
            show_progress_bar: Whether to show one.
            pool: From :meth:`start_multi_process_pool`.

        Returns:
            ``HybridEmbeddings`` with ``dense`` float32 ``(N, embedding_dimension)``, what the model's own
            ``encode_document`` or ``encode_query`` gives, and ``sparse`` ``(N, vocab_size)``. A text that the model
            sees no token of, not even of a prompt, has a zero vector; one without a term of its own has no terms.

        Raises:
            TypeError: If a text is not a string.
            ValueError: If role or prompt_name is unknown, batch_size is below 1, the model gives a vector that is not
                finite, or the pool is not of this encoder as it is now.
        """
        texts = check_texts(texts)
        prompt = resolve_prompt(self.model, role, prompt, prompt_name)
        self._check_weights()
        if len(texts) > self.cache.size:
            return self._encode(texts, role, prompt, batch_size, show_progress_bar, pool)
        state = self.fingerprint
        keys = [(state, role, prompt, text) for text in texts]
        rows = self.cache.get(keys)
        missing = list(dict.fromkeys(key for key in keys if key not in rows))
        if missing:
            asked = [key[3] for key in missing]
            numbers = [texts.index(text) for text in asked] if len(asked) < len(texts) else None
            new = self._encode(asked, role, prompt, batch_size, show_progress_bar, pool, numbers)
            made: dict[Hashable, Row] = dict(zip(missing, split_rows(new), strict=True))
            self.cache.put(made)
            rows |= made
        return join_rows([rows[key] for key in keys], self.get_embedding_dimension(), self.vocabulary.vocab_size)

    def encode_document(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        pool: dict[str, Any] | None = None,
    ) -> HybridEmbeddings:
        """:meth:`encode` with ``role="document"``; arguments, result and errors are its."""
        return self.encode(
            texts,
            role="document",
            prompt=prompt,
            prompt_name=prompt_name,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            pool=pool,
        )

    def encode_query(
        self,
        texts: str | Sequence[str],
        *,
        query: Query | None = None,
        is_hybrid: bool = False,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        pool: dict[str, Any] | None = None,
    ) -> HybridEmbeddings:
        """:meth:`encode` with ``role="query"``; or the literal terms alone, without a forward pass.

        ``query`` is ``"encode"`` or ``"lookup"``, None as the encoder is set (anything else: ValueError). A lookup
        looks at no other argument, and its ``dense`` is None. With ``is_hybrid``, for a search by both vectors, the
        sparse one is :meth:`hybrid_query`'s. All else is as in :meth:`encode`.
        """
        query = self.query if query is None else query
        check_choice("query", query, QUERIES)
        if query == "lookup":
            return HybridEmbeddings(dense=None, sparse=self.weigh(check_texts(texts), None, "query"))
        embeddings = self.encode(
            texts,
            role="query",
            prompt=prompt,
            prompt_name=prompt_name,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            pool=pool,
        )
        if is_hybrid:
            return HybridEmbeddings(embeddings.dense, self.hybrid_query(check_texts(texts), embeddings.sparse))
        return embeddings

    def hybrid_query(self, texts: list[str], sparse: SparseEmbeddings) -> SparseEmbeddings:
        """Queries' sparse vectors for a search by both vectors: with less of their decoded terms.

        What the embedding says is in the dense vector as well. Decoded terms have a quarter of their weight, times the
        calibration's ``decoded_trust``, and none without one, times the share of the query's own words that are among
        them (``weighting.with_less_decoded``); see ``docs/results/quality.md``. A weighting for decoded or for literal
        terms only stays as it is.

        Args:
            texts: The queries.
            sparse: What :meth:`encode` gave for them.

        Returns:
            ``SparseEmbeddings`` ``(N, vocab_size)``.
        """
        if self.weighting.query_terms != "both":
            return sparse
        literal, calibration = self.weigh(texts, None, "query"), self.calibration
        trust = None if calibration is None else calibration.decoded_trust
        if calibration is None or trust is None or self.weighting.is_binary_query:
            return literal
        return with_less_decoded(sparse, literal, min(1.0, _HYBRID_SHARE * trust), calibration.corpus.idf)

    def _encode(
        self,
        texts: list[str],
        role: Role,
        prompt: str | None,
        batch_size: int,
        progress: bool,
        pool: dict[str, Any] | None,
        numbers: list[int] | None = None,
    ) -> HybridEmbeddings:
        if pool is None:
            with self.lock, torch.inference_mode():
                dense, decoded = self.forward_pass.both(texts, role, prompt, batch_size, progress, numbers=numbers)
        else:
            check_pool(pool, self.fingerprint)
            dense, decoded = encode_with_pool(pool, self.forward_pass, texts, role, prompt, batch_size, progress)
        return HybridEmbeddings(dense=dense, sparse=self.weigh(texts, decoded, role))

    def weigh(self, texts: list[str] | None, decoded: SparseEmbeddings | None, role: Role) -> SparseEmbeddings:
        """Sparse vectors of literal and decoded terms; the last step of :meth:`encode` and :meth:`sparsify`.

        Args:
            texts: For the literal terms; None for none.
            decoded: Decoded terms, one row a text; None for none.
            role: ``"document"`` or ``"query"``.

        Returns:
            ``SparseEmbeddings`` ``(N, vocab_size)``.
        """
        size, calibration = self.vocabulary.vocab_size, self.calibration
        if texts is None:
            literal = [np.empty(0, np.int64)] * len(decoded or ())
        else:
            literal = self.literal_terms(texts)
            decoded = None if decoded is None else without_silent(decoded, literal)
        corpus = Corpus() if calibration is None else calibration.corpus
        weigh = self.weighting.query if role == "query" else self.weighting.document
        return weigh(literal, decoded, size, corpus)

    def sparsify(
        self,
        embeddings: np.ndarray | torch.Tensor,
        texts: Sequence[str] | None = None,
        *,
        role: Role = "document",
        batch_size: int = 256,
        show_progress_bar: bool = False,
    ) -> SparseEmbeddings:
        """Sparse vectors of dense ones that were stored earlier; nothing is embedded.

        Args:
            embeddings: Shape ``(N, embedding_dimension)``, numpy (also memory-mapped) or torch, as this model gives
                them, not truncated. Where the head normalises, stored length does not matter.
            texts: The texts they belong to, for the literal terms. None: decoded terms only.
            role: ``"document"`` or ``"query"``: decides the number of terms and their weights.
            batch_size: Rows decoded at a time; bounds the memory.
            show_progress_bar: Whether to show one.

        Returns:
            ``SparseEmbeddings`` ``(N, vocab_size)``; with texts, the same as :meth:`encode` gives.

        Raises:
            TypeError: If embeddings are no floating-point array or tensor, or a text is not a string.
            ValueError: If the dimension is wrong, a value is not finite, texts and embeddings differ in number, role
                is unknown, batch_size is below 1, or more than a normalisation follows pooling in the model.
        """
        check_embeddings(embeddings, self.head.lm_head_dimension)
        self._check_weights()
        self.forward_pass.check_stored()
        check_choice("role", role, get_args(Role))
        checked_int("batch_size", batch_size, minimum=1)
        if isinstance(texts, str) or (texts is not None and len(texts) != len(embeddings)):
            given = "one string" if isinstance(texts, str) else len(texts or ())
            raise ValueError(f"texts must be one for each embedding, got {given} for {len(embeddings)}.")
        parts = [SparseEmbeddings.empty(0, self.vocabulary.vocab_size)]
        with tqdm(total=len(embeddings), disable=not show_progress_bar) as bar:
            for start in range(0, len(embeddings), batch_size):
                rows = as_tensor(embeddings[start : start + batch_size])
                check_finite(rows, start)
                with self.lock, torch.inference_mode():
                    self.head.to(self.model.device)
                    decoded = as_sparse(self.head.decode(rows, task=role), self.vocabulary)
                part = None if texts is None else check_texts(texts[start : start + batch_size])
                parts.append(self.weigh(part, decoded, role))
                bar.update(len(rows))
        return SparseEmbeddings.concatenate(parts)

    def key_tokens(
        self,
        texts: str | Sequence[str],
        top_k: int = 10,
        *,
        role: Role = "document",
        decode_with: DecoderName | None = None,
        correction: HeadCorrection | None = None,
        shift: float | None = None,
        standardize: bool | None = None,
        activation: Activation | None = None,
        normalize: bool | None = None,
    ) -> list[list[tuple[str, float]]]:
        """What the embeddings say: the strongest decoded terms of each text, readable, with their scores.

        Args:
            texts: One text or several.
            top_k: At most so many terms of each.
            role: ``"document"`` or ``"query"``: decides the prompt.
            decode_with: This and what follows change a setting of the head for this call; None: as the head is set.
            correction: What is done to an embedding before it is decoded.
            shift: Signed amount for ``correction="shift"``.
            standardize: Whether logits are standardised over the calibration's texts.
            activation: Turns scores into weights.
            normalize: Whether embeddings are decoded at length 1.

        Returns:
            For each text a list of ``(token, weight)``, strongest first; empty for a text without a term of its own.

        Raises:
            TypeError: If a text is not a string, or ``top_k`` not an integer.
            ValueError: If a setting is not one of its choices or needs a calibration, or ``top_k`` is below 1.
        """
        changes = without_none(
            decode_with=decode_with,
            correction=correction,
            shift=shift,
            standardize=standardize,
            activation=activation,
            normalize=normalize,
        )
        decoder = self.head.with_settings(**changes) if changes else self.head
        texts = check_texts(texts)
        self._check_weights()
        with self.lock, torch.inference_mode():
            pooled = self.forward_pass.pooled(texts, role)
            decoded = as_sparse(decoder.decode(pooled, max_active_dims=top_k), self.vocabulary)
        return without_silent(decoded, self.literal_terms(texts)).decode(self.vocabulary)

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        role: Role = "document",
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> np.ndarray:
        """The vectors that a calibration is fitted on: pooled, and of length 1 where the head normalises.

        Args:
            texts: One text or several.
            role: ``"document"`` or ``"query"``: decides the prompt.
            batch_size: Texts a forward pass at most.
            show_progress_bar: Whether to show one.

        Returns:
            float32 ``(N, pooled_dimension)``.

        Raises:
            TypeError: If a text is not a string.
            ValueError: If role is unknown, or batch_size is below 1.
        """
        self.refresh()
        with self.lock, torch.inference_mode():
            pooled = self.forward_pass.pooled(check_texts(texts), role, batch_size, show_progress_bar)
            return self.head.prepare_embeddings(pooled).numpy()

    def prepare_embeddings(self, embeddings: np.ndarray | torch.Tensor) -> np.ndarray:
        """What :meth:`embed` gives, from vectors that are stored.

        Args:
            embeddings: As the model gives them, shape ``(N, pooled_dimension)``. Not modified.

        Returns:
            float32, the same shape.
        """
        return self.head.prepare_embeddings(as_tensor(embeddings)).cpu().numpy()

    def calibrate(
        self,
        texts: Iterable[str],
        *,
        embeddings: np.ndarray | torch.Tensor | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = True,
        resume_from: str | PathLike[str] | None = None,
        save_every: int = 10_000,
    ) -> Calibration:
        """Fits a calibration on texts and uses it from now on.

        Args:
            texts: Unlabelled texts, best those that will be searched; two at the least. May be a generator.
            embeddings: Their vectors, where they are stored, shape ``(N, pooled_dimension)``: as the model gives them,
                of any length where the head normalises. None: the texts are embedded.
            batch_size: Texts a forward pass at most.
            show_progress_bar: Whether to show one.
            resume_from: Path of a file that keeps the state, so that an interrupted run goes on from there, see
                :meth:`Calibration.fit`.
            save_every: Texts between two writes of that file, at least.

        Returns:
            The calibration.

        Raises:
            TypeError: If ``texts`` is one string, or holds something else than strings.
            ValueError: If there is nothing to fit on, or see :meth:`Calibration.fit`; the old calibration stays.
        """
        self.refresh()
        if embeddings is not None:
            self.forward_pass.check_stored()
        calibration = Calibration.fit(
            self,
            texts,
            embeddings=embeddings,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            resume_from=resume_from,
            save_every=save_every,
        )
        if calibration.document_count < 2:
            raise ValueError(
                f"texts must be two at the least, got {calibration.document_count}. Some thousands are good."
            )
        self.calibration = calibration
        return calibration

    def over_tokens(self) -> KeyTokenEncoder:
        """The same embedder with the tokenizer's tokens as terms, as the paper and its analyses have them.

        What a calibration says of embeddings holds for it, too; what it says of words does not.

        Returns:
            An encoder that shares model and LM head; itself where its terms are tokens.

        Raises:
            ValueError: If the model has no tokenizer.
        """
        if not isinstance(self.vocabulary, WordVocabulary):
            return self
        encoder = copy.copy(self)
        encoder.head = self.head.with_vocabulary(self.head.token_vocabulary)
        encoder.head.eval()
        encoder.vocabulary = vocabulary = self.head.token_vocabulary
        encoder.literal_terms = LiteralTokenizer(self.model.tokenizer, vocabulary)
        encoder.forward_pass = ForwardPass(self.model, encoder.head)
        encoder.cache = EmbeddingCache(self.cache.size)
        encoder._fingerprint = None
        return encoder

    def to_sparse_encoder(self) -> SparseEncoder:
        """A genuine ``SparseEncoder`` of the decoded terms, for its evaluators and search helpers.

        It shares the model's modules, and has a head of its own with the settings as they are now. Literal terms and
        weighting are not part of it. Its terms are the tokenizer's tokens, as of all SparseEncoders: where this
        encoder's are words, those of :meth:`over_tokens`.

        Returns:
            The encoder, on the model's device, with its prompts; its vectors are ``(N, vocab_size)``.
        """
        tokens = self.over_tokens()
        return SparseEncoder(
            modules=[*self.forward_pass.before, tokens.head.with_settings(output_mode="sparse")],
            device=str(self.model.device),
            prompts=dict(self.model.prompts),
            default_prompt_name=self.model.default_prompt_name,
            similarity_fn_name="dot",
        )

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Saves the model as it is, and beside it the folder ``key_tokens``, which others ignore.

        The folder holds all that changes a score: settings, calibration and, unless it is the model's own, the LM
        head. A :class:`KeyTokenHead` among the modules is saved there too, so that any sentence-transformers loads
        the model, without ``trust_remote_code``. What an earlier save left there is replaced. Of an embedder of
        functions there is the folder alone, for :meth:`from_sidecar`.

        Args:
            path: Directory; made where it is missing.

        Raises:
            OSError: If it cannot be written.
        """
        self.save_sidecar(Path(path, sidecar.FOLDER))
        forward_pass = self.forward_pass
        if isinstance(forward_pass.before[0], FunctionEmbedder):
            return
        is_plain = find_head(self.model) is None
        model = self.model if is_plain else forward_pass.chain([*forward_pass.before, *forward_pass.after])
        model.save_pretrained(str(path))

    def save_sidecar(self, folder: str | PathLike[str]) -> None:
        """Saves all but the model, for :meth:`from_sidecar`.

        Args:
            folder: Made where it is missing. What an earlier save left there is replaced.

        Raises:
            OSError: If it cannot be written.
        """
        words = self.vocabulary.words if isinstance(self.vocabulary, WordVocabulary) else None
        Sidecar(
            folder=Path(folder),
            head=self.head,
            query=self.query,
            terms="tokens" if words is None else "words",
            language=None if words is None else words.language,
            stop_words=[] if words is None else sorted(words.stop_words),
            weighting=sidecar.weighting_fields(self.weighting),
            fingerprint=self.fingerprint,
            vocabulary_hash=self.vocabulary.hash,
            weights_hash=self.weights_hash,
            weights_sample=weights_sample(self.forward_pass.headless),
        ).save()

    @classmethod
    def from_sidecar(
        cls, model: SentenceTransformer | Any, folder: str | PathLike[str], *, cache_size: int = 1024
    ) -> KeyTokenEncoder:
        """The encoder of a loaded model and what :meth:`save_sidecar` wrote.

        Args:
            model: The model, or other embedder, that it was saved with.
            folder: The folder.
            cache_size: See the class.

        Returns:
            The encoder.

        Raises:
            ValueError: If the folder is damaged, or belongs to other weights or another vocabulary.
        """
        encoder = cls.__new__(cls)
        encoder._set_up_as_saved(
            as_sentence_transformer(model), cache_size, Sidecar.load(Path(folder)), {}, is_changed=False
        )
        return encoder

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        *,
        model_arguments: dict[str, Any] | None = None,
        backbone: str | PathLike[str] | None = None,
        recipe: str | EmbedderRecipe | None = None,
        calibration: Calibration | None = None,
        method: str | None = None,
        weighting: Weighting | None = None,
        query: Query | None = None,
        terms: Terms | Words | None = None,
        language: str | None = None,
        cache_size: int = 1024,
        max_active_dims: int | None = None,
        query_max_active_dims: int | None = None,
    ) -> KeyTokenEncoder:
        """Loads what :meth:`save_pretrained` wrote, or attaches to any model by its name or path.

        What is None is as it was saved or, where nothing was, as in the class. Other settings are changed afterwards,
        in ``head``.

        Args:
            path: Directory, or name on the Hub.
            model_arguments: For ``SentenceTransformer``, such as ``{"device": "cuda"}``. Its ``token``,
                ``cache_folder``, ``revision`` and ``local_files_only`` hold for the folder ``key_tokens`` as well.
            backbone: See the class, as for the rest.
            recipe: How a model embeds that is not known by its name.
            calibration: Instead of the saved one.
            method: Replaces all saved settings of the head and the weighting.
            weighting: Over the method's.
            query: How queries are encoded.
            terms: What a term is.
            language: Of the words' stemmer.
            cache_size: Texts that are remembered; never saved.
            max_active_dims: Decoded terms kept of a document.
            query_max_active_dims: Decoded terms kept of a query.

        Returns:
            The encoder.

        Raises:
            OSError: If there is no such model.
            ValueError: If the saved key tokens are damaged or belong to other weights or another vocabulary, or if an
                argument is not one of its choices.
        """
        return cls(
            path,
            backbone=backbone,
            recipe=recipe,
            calibration=calibration,
            method=method,
            weighting=weighting,
            query=query,
            terms=terms,
            language=language,
            cache_size=cache_size,
            max_active_dims=max_active_dims,
            query_max_active_dims=query_max_active_dims,
            model_arguments=model_arguments or {},
        )

    def start_multi_process_pool(self, target_devices: list[str] | None = None) -> dict[str, Any]:
        """Starts worker processes for :meth:`encode`; stop them with :meth:`stop_multi_process_pool`.

        The workers have the encoder as it is now. The model itself stays on the CPU afterwards, as
        sentence-transformers leaves it; move it back with ``encoder.model.to(device)``. A script that calls this
        needs ``if __name__ == "__main__":``, since each worker imports it anew.

        Args:
            target_devices: A device for each worker; None for every GPU, or four on the CPU.

        Returns:
            The pool, for the argument ``pool`` of the encoding methods.
        """
        self._check_weights()
        return start_pool(self.forward_pass, target_devices, self.fingerprint)

    @staticmethod
    def stop_multi_process_pool(pool: dict[str, Any]) -> None:
        """Stops the workers.

        Args:
            pool: From :meth:`start_multi_process_pool`.
        """
        SentenceTransformer.stop_multi_process_pool(pool)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock = threading.RLock()


def chosen_words(
    terms: Terms | Words | None,
    language: str | None,
    head: KeyTokenHead | None,
    calibration: Calibration | None,
    method: str,
) -> Words | None:
    """The words that are terms, or None where tokens are; arguments are those of the class."""
    if head is not None and calibration is None:
        calibration = head.calibration
    if isinstance(terms, Words):
        if language is not None:
            raise ValueError(f"language must not be given with terms of your own, got {language!r}. Leave it out.")
        return terms
    if terms is None and language is None and head is not None and not head.fold:
        return None
    if terms is None and language is None and calibration is not None and calibration.vocabulary_hash is not None:
        return None if calibration.names is None else calibration.names.words
    if terms is not None:
        check_choice("terms", terms, get_args(Terms))
    if terms == "tokens" and language is not None:
        raise ValueError(f"language must not be given where terms are tokens, got {language!r}. Leave it out.")
    if (terms or ("words" if language else METHODS[method].terms)) == "tokens":
        return None
    return Words(None if language == "none" else language or "english")


def without_none(**settings: Any) -> dict[str, Any]:
    """The settings that are given, where None stands for not given."""
    return {name: value for name, value in settings.items() if value is not None}


def without_silent(decoded: SparseEmbeddings, literal: list[np.ndarray]) -> SparseEmbeddings:
    """Decoded terms, but none of a text without literal ones, of which a model sees the prompt at the most."""
    silent = [row for row, terms in enumerate(literal) if not len(terms)]
    if not silent:
        return decoded
    rows = np.arange(len(decoded))
    rows[silent] = len(decoded)
    return SparseEmbeddings.concatenate([decoded, SparseEmbeddings.empty(1, decoded.vocab_size)])[rows]
