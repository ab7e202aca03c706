"""KeyTokenEncoder: one forward pass, a dense and a sparse vector."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from tqdm.auto import tqdm

from st_keytokens import sidecar
from st_keytokens.cache import EmbeddingCache, Row
from st_keytokens.calibration import Calibration
from st_keytokens.fingerprint import (
    SCORING_VERSION,
    fingerprint,
    lm_head_hash,
    module_settings,
    tokenizer_hash,
    weights_hash,
)
from st_keytokens.first_component import as_tensor, check_embeddings
from st_keytokens.forward_pass import ForwardPass, Role, as_sparse, find_head, resolve_prompt
from st_keytokens.key_token_head import KeyTokenHead, check_finite
from st_keytokens.lm_head import LMHead
from st_keytokens.pool import encode_with_pool, start_pool
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings
from st_keytokens.texts import LiteralTokenizer, check_texts
from st_keytokens.vocabulary import Vocabulary
from st_keytokens.weighting import DEFAULT_LENGTH, METHODS, Weighting, check_method

Query = Literal["encode", "lookup"]


class KeyTokenEncoder:
    """Gives a SentenceTransformer a second, sparse output, without touching the first.

    Args:
        model: A loaded SentenceTransformer, or its name or path. It is not modified, and may already hold a
            :class:`KeyTokenHead`, which is then used.
        backbone: Where the LM head is, if the model cannot tell: name, directory or URL of the language model that
            it was made from. Only the LM head is read.
        lm_head: The LM head itself, instead of ``backbone``.
        calibration: First component, logit statistics and document frequencies, see :meth:`calibrate`.
        method: Name of a method (see ``weighting.METHODS``).
        weighting: Overrides the method's weighting.
        query: ``"encode"``: queries take a forward pass; ``"lookup"``: they are their literal terms times idf.
        cache_size: Texts whose embeddings are remembered, so that asking for dense and for sparse vectors separately
            costs one pass.
        **head: Settings of the :class:`KeyTokenHead`, over the method's.

    Attributes:
        model: As given.
        head: The head.
        vocabulary: The terms of the sparse vectors.
        weighting: As given, or the method's.
        query: As given.
        cache: The embeddings that are remembered.

    Raises:
        ValueError: If a setting is not one of its choices, or the LM head cannot be known from the model alone.
    """

    def __init__(
        self,
        model: SentenceTransformer | str | Path,
        *,
        backbone: str | Path | None = None,
        lm_head: LMHead | None = None,
        calibration: Calibration | None = None,
        method: str = "default",
        weighting: Weighting | None = None,
        query: Query = "encode",
        cache_size: int = 1024,
        **head: Any,
    ) -> None:
        check_method(method)
        self.model = model if isinstance(model, SentenceTransformer) else SentenceTransformer(str(model))
        self.weighting = METHODS[method].weighting if weighting is None else weighting
        self.query = _check_query(query)
        existing = find_head(self.model)
        if existing is not None:
            given = {"backbone": backbone, "lm_head": lm_head, "calibration": calibration, **head}
            given["method"] = method if METHODS[method].head else None
            if extra := sorted(name for name, value in given.items() if value is not None):
                raise ValueError(
                    f"model must not hold a KeyTokenHead where settings for one are given, got {', '.join(extra)}. "
                    "Change the head in the model, or remove it."
                )
            existing.on_model_ready(self.model)
            self.head = existing
        else:
            if backbone is not None:
                lm_head = LMHead.from_checkpoint(str(backbone))
            self.head = KeyTokenHead(lm_head, **{**METHODS[method].head, **head})
            self.head.bind(self.model)
        self.head.eval()
        self.forward_pass = ForwardPass(self.model, self.head)
        self.vocabulary: Vocabulary = self.head.bound_vocabulary
        self.literal_terms = LiteralTokenizer(self.model.tokenizer, self.vocabulary)
        self.cache = EmbeddingCache(cache_size)
        self._lock = threading.RLock()
        self._weights_hash: str | None = None
        self._fingerprint: tuple[tuple[Any, ...], str] | None = None
        if calibration is not None:
            self.calibration = calibration

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def calibration(self) -> Calibration | None:
        """The calibration in force; set it, or fit one with :meth:`calibrate`."""
        return self.head.calibration

    @calibration.setter
    def calibration(self, calibration: Calibration | None) -> None:
        fitted_for = None if calibration is None else calibration.model_name
        if fitted_for not in (None, self.model_name):
            raise ValueError(
                f"calibration must be fitted on this model's embeddings, {self.model_name}, got one of {fitted_for}. "
                "Fit one with calibrate, or load the model that it belongs to."
            )
        with self._lock:
            self.head.set_calibration(calibration)
            self.cache.clear()

    @property
    def model_name(self) -> str:
        """Identifies the vectors that the head sees: the model's weights and settings, prompt and normalisation."""
        return fingerprint(
            {
                "weights": self.weights_hash,
                "modules": module_settings(self.forward_pass.before),
                "prompt": resolve_prompt(self.model, "document", None, None),
                "is_normalizing": self.head.is_normalizing,
            }
        )

    @property
    def weights_hash(self) -> str:
        """Identifies the model's weights; a model loaded with its sidecar keeps the one that it was saved with."""
        if self._weights_hash is None:
            self._weights_hash = weights_hash(self.model)
        return self._weights_hash

    def keep_weights_hash(self, value: str) -> None:
        """Takes the hash that the weights were saved under, which 16-bit rounding would change."""
        self._weights_hash, self._fingerprint = value, None

    @property
    def fingerprint(self) -> str:
        """Names everything that changes a score: weights, modules, tokenizer, calibration, settings, prompts."""
        model, head = self.model, self.head
        state = (
            SCORING_VERSION,
            tuple(head.get_config_dict().values()),
            self.weighting,
            None if self.calibration is None else self.calibration.hash,
            tuple(model.prompts.items()),
            model.default_prompt_name,
            model.truncate_dim,
            module_settings([*self.forward_pass.before, *self.forward_pass.after]),
        )
        if self._fingerprint is None or self._fingerprint[0] != state:
            parts = {
                "state": repr(state),
                "weights": self.weights_hash,
                "lm_head": lm_head_hash(head),
                "vocabulary": self.vocabulary.hash,
                "tokenizer": tokenizer_hash(model.tokenizer),
            }
            self._fingerprint = state, fingerprint(parts)
        return self._fingerprint[1]

    def get_embedding_dimension(self) -> int:
        """Dimension of the dense vectors."""
        return self.forward_pass.embedding_dimension

    # -- encoding --------------------------------------------------------------------------------------------------

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
            batch_size: Texts a forward pass.
            show_progress_bar: Whether to show one.
            pool: From :meth:`start_multi_process_pool`.

        Returns:
            ``HybridEmbeddings`` with ``dense`` float32 ``(N, embedding_dimension)``, what the model's own
            ``encode_document`` or ``encode_query`` gives, and ``sparse`` ``(N, vocab_size)``. A text without a single
            token has a zero vector and no terms.

        Raises:
            TypeError: If a text is not a string.
            ValueError: If role or prompt_name is unknown.
        """
        texts = check_texts(texts)
        prompt = resolve_prompt(self.model, role, prompt, prompt_name)
        if len(texts) > self.cache.size:
            return self._encode(texts, role, prompt, batch_size, show_progress_bar, pool)
        state = self.fingerprint
        keys = [(state, role, prompt, text) for text in texts]
        rows = self.cache.get(keys)
        missing = list(dict.fromkeys(key for key in keys if key not in rows))
        if missing:
            new = self._encode([key[3] for key in missing], role, prompt, batch_size, show_progress_bar, pool)
            made: dict[Any, Row] = {
                key: (None if new.dense is None else new.dense[i].copy(), *(a.copy() for a in new.sparse.row(i)))
                for i, key in enumerate(missing)
            }
            self.cache.put(made)
            rows |= made
        return self._assemble([rows[key] for key in keys])

    def encode_document(self, texts: str | Sequence[str], **arguments: Any) -> HybridEmbeddings:
        """:meth:`encode` with ``role="document"``."""
        return self.encode(texts, role="document", **arguments)

    def encode_query(
        self, texts: str | Sequence[str], *, query: Query | None = None, **arguments: Any
    ) -> HybridEmbeddings:
        """:meth:`encode` with ``role="query"``; or, with ``query="lookup"``, no forward pass and ``dense`` None."""
        if _check_query(self.query if query is None else query) == "encode":
            return self.encode(texts, role="query", **arguments)
        return HybridEmbeddings(dense=None, sparse=self._weigh(check_texts(texts), None, "query"))

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
            role: See :meth:`encode`.
            batch_size: Rows decoded at a time; bounds the memory.
            show_progress_bar: Whether to show one.

        Returns:
            ``SparseEmbeddings``, one row an embedding.

        Raises:
            ValueError: If the dimension is wrong, a value is not finite, or texts and embeddings differ in number.
        """
        check_embeddings(embeddings, self.head.lm_head_dimension)
        self.forward_pass.check_stored()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if isinstance(texts, str) or (texts is not None and len(texts) != len(embeddings)):
            given = "one string" if isinstance(texts, str) else len(texts or ())
            raise ValueError(f"texts must be one for each embedding, got {given} for {len(embeddings)}.")
        parts = [SparseEmbeddings.empty(0, self.vocabulary.vocab_size)]
        with tqdm(total=len(embeddings), disable=not show_progress_bar) as bar:
            for start in range(0, len(embeddings), batch_size):
                rows = as_tensor(embeddings[start : start + batch_size])
                check_finite(rows, start)
                with self._lock, torch.inference_mode():
                    self.head.to(self.model.device)
                    decoded = as_sparse(self.head.decode(rows, task=role), self.vocabulary)
                part = [""] * len(rows) if texts is None else check_texts(texts[start : start + batch_size])
                parts.append(self._weigh(part, decoded, role))
                bar.update(len(rows))
        return SparseEmbeddings.concatenate(parts)

    def key_tokens(
        self, texts: str | Sequence[str], top_k: int = 10, *, role: Role = "document", **head: Any
    ) -> list[list[tuple[str, float]]]:
        """What the embeddings say: the strongest decoded terms of each text, readable, with their scores.

        Args:
            texts: One text or several.
            top_k: Terms of each.
            role: See :meth:`encode`.
            **head: Settings of the head to change for this call, such as ``correction="none", standardize=False``.

        Returns:
            For each text a list of ``(token, weight)``, strongest first.
        """
        decoder = self.head.with_settings(**head) if head else self.head
        with self._lock, torch.inference_mode():
            pooled = self.forward_pass.pooled(check_texts(texts), role)
            return as_sparse(decoder.decode(pooled, max_active_dims=top_k), self.vocabulary).decode(self.vocabulary)

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        role: Role = "document",
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> np.ndarray:
        """The vectors that a calibration is fitted on: pooled, and of length 1 where the head normalises.

        Returns:
            float32 ``(N, embedding_dimension)``.
        """
        with self._lock, torch.inference_mode():
            pooled = self.forward_pass.pooled(check_texts(texts), role, batch_size, show_progress_bar)
            return self.head.prepare_embeddings(pooled).numpy()

    def prepare_embeddings(self, embeddings: np.ndarray | torch.Tensor) -> np.ndarray:
        """What :meth:`embed` gives, of vectors as the model gives them, float32 ``(N, embedding_dimension)``."""
        return self.head.prepare_embeddings(as_tensor(embeddings)).cpu().numpy()

    def calibrate(
        self, texts: Iterable[str], *, embeddings: np.ndarray | torch.Tensor | None = None, **arguments: Any
    ) -> Calibration:
        """Fits a calibration on texts and uses it from now on.

        Args:
            texts: Unlabelled texts, best those that will be searched; two at the least.
            embeddings: Their vectors, where they are stored, shape ``(N, embedding_dimension)``: as the model gives
                them, of any length where the head normalises. None: the texts are embedded.
            **arguments: See :meth:`Calibration.fit`.

        Returns:
            The calibration.

        Raises:
            ValueError: If there is nothing to fit on; the old calibration stays.
        """
        if embeddings is not None:
            self.forward_pass.check_stored()
        calibration = Calibration.fit(self, texts, embeddings=embeddings, **arguments)
        if calibration.document_count < 2:
            raise ValueError(
                f"texts must be two at the least, got {calibration.document_count}. Some thousands are good."
            )
        self.calibration = calibration
        return calibration

    # -- saving and sharing ----------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Saves the model as it is, and beside it the folder ``key_tokens``, which others ignore."""
        sidecar.save(self, Path(path))

    @classmethod
    def from_pretrained(cls, path: str | Path, **arguments: Any) -> KeyTokenEncoder:
        """Loads what :meth:`save_pretrained` wrote, or attaches to any model by its name or path.

        Args:
            path: Directory, or name on the Hub.
            **arguments: Of the class, over those that were saved; ``model_arguments`` is a dictionary for
                ``SentenceTransformer``.

        Raises:
            ValueError: If the saved key tokens belong to other weights or another vocabulary.
        """
        return sidecar.load(cls, str(path), **arguments)

    def to_sparse_encoder(self) -> SparseEncoder:
        """A genuine ``SparseEncoder`` that shares this model's modules; its vectors are the decoded terms."""
        head = self.head.with_settings(output_mode="sparse")
        return SparseEncoder(
            modules=[*self.forward_pass.before, head],
            device=str(self.model.device),
            prompts=dict(self.model.prompts),
            default_prompt_name=self.model.default_prompt_name,
            similarity_fn_name="dot",
        )

    def start_multi_process_pool(self, target_devices: list[str] | None = None) -> dict[str, Any]:
        """Starts worker processes for :meth:`encode`; stop them with :meth:`stop_multi_process_pool`.

        The workers have the encoder as it is now. The model itself stays on the CPU afterwards, as
        sentence-transformers leaves it; move it back with ``encoder.model.to(device)``.

        Args:
            target_devices: A device for each worker; None for every GPU, or four on the CPU.
        """
        return start_pool(self.forward_pass, target_devices, self.fingerprint)

    @staticmethod
    def stop_multi_process_pool(pool: dict[str, Any]) -> None:
        """Stops the workers."""
        SentenceTransformer.stop_multi_process_pool(pool)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _encode(
        self,
        texts: list[str],
        role: Role,
        prompt: str | None,
        batch_size: int,
        progress: bool,
        pool: dict[str, Any] | None,
    ) -> HybridEmbeddings:
        if pool is None:
            with self._lock, torch.inference_mode():
                dense, decoded = self.forward_pass.both(texts, role, prompt, batch_size, progress)
        else:
            if pool.get("fingerprint") not in (None, self.fingerprint):
                raise ValueError(
                    "pool must have been started with the encoder as it is now, got an older one. Start a new pool."
                )
            dense, decoded = encode_with_pool(pool, self.forward_pass, texts, role, prompt, batch_size, progress)
        return HybridEmbeddings(dense=dense, sparse=self._weigh(texts, decoded, role))

    def _weigh(self, texts: list[str], decoded: SparseEmbeddings | None, role: Role) -> SparseEmbeddings:
        literal, size, calibration = self.literal_terms(texts), self.vocabulary.vocab_size, self.calibration
        counted = calibration if calibration is not None and calibration.document_frequencies is not None else None
        if role == "query":
            return self.weighting.query(literal, decoded, size, None if counted is None else counted.idf)
        average = DEFAULT_LENGTH if counted is None else counted.average_length
        return self.weighting.document(literal, decoded, size, average)

    def _assemble(self, rows: list[Row]) -> HybridEmbeddings:
        lengths = [len(ids) for _, ids, _ in rows]
        sparse = SparseEmbeddings(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.concatenate([np.zeros(0, np.int32), *(ids for _, ids, _ in rows)]).astype(np.int32),
            np.concatenate([np.zeros(0, np.float32), *(weights for _, _, weights in rows)]).astype(np.float32),
            self.vocabulary.vocab_size,
        )
        dense = [row for row, _, _ in rows if row is not None]
        width = self.get_embedding_dimension()
        return HybridEmbeddings(dense=np.stack(dense) if dense else np.zeros((0, width), np.float32), sparse=sparse)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()


def _check_query(query: str) -> Query:
    if query not in ("encode", "lookup"):
        raise ValueError(f"query must be 'encode' or 'lookup', got {query!r}.")
    return query  # type: ignore[return-value]
