"""A SentenceTransformer with a head that decodes it: its parts, the names of what they are, and its calibration."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, Literal, get_args

import numpy as np
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder

from st_keytokens.cache import EmbeddingCache
from st_keytokens.calibration import Calibration
from st_keytokens.checks import check_choice
from st_keytokens.fingerprint import encoder_fingerprint, scoring_state
from st_keytokens.hashes import fingerprint, module_settings, weights_hash
from st_keytokens.first_component import as_tensor
from st_keytokens.forward_pass import ForwardPass, Role, find_head, resolve_prompt
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.lm_head import LMHead
from st_keytokens.pool import start_pool
from st_keytokens.texts import LiteralTokenizer, check_texts
from st_keytokens.vocabulary import Vocabulary
from st_keytokens.weighting import METHODS, Weighting, check_method

Query = Literal["encode", "lookup"]
QUERIES: tuple[Query, ...] = get_args(Query)


class HeadedModel:
    """What an encoder is made of, and the vectors that its head sees. Use it through :class:`KeyTokenEncoder`.

    Attributes:
        lock: Held by whoever runs the model or its head, so that threads share them.
    """

    def __init__(
        self,
        model: SentenceTransformer | str | PathLike[str],
        *,
        head: KeyTokenHead | None = None,
        backbone: str | PathLike[str] | LMHead | None = None,
        calibration: Calibration | None = None,
        method: str = "default",
        weighting: Weighting | None = None,
        query: Query = "encode",
        cache_size: int = 1024,
        max_active_dims: int | None = None,
        query_max_active_dims: int | None = None,
    ) -> None:
        check_method(method)
        check_choice("query", query, QUERIES)
        self.model = model if isinstance(model, SentenceTransformer) else SentenceTransformer(str(model))
        self.weighting = METHODS[method].weighting if weighting is None else weighting
        self.query: Query = query
        dims = without_none(max_active_dims=max_active_dims, query_max_active_dims=query_max_active_dims)
        settings = {**without_none(backbone=backbone), **dims, **({"method": method} if METHODS[method].head else {})}
        existing = find_head(self.model)
        if existing is not None:
            if extra := sorted({**without_none(head=head, calibration=calibration), **settings}):
                raise ValueError(
                    f"model must not hold a KeyTokenHead where settings for one are given, got {', '.join(extra)}. "
                    "Change the head in the model, or remove it."
                )
            existing.on_model_ready(self.model)
            self.head = existing
        else:
            if head is None:
                if backbone is None or isinstance(backbone, LMHead):
                    lm_head = backbone
                else:
                    lm_head = LMHead.from_checkpoint(str(backbone))
                head = KeyTokenHead(lm_head, **{**METHODS[method].head, **dims})
            elif settings:
                raise ValueError(
                    f"head must not be given together with settings for one, got {', '.join(sorted(settings))}. "
                    "Give them to the head."
                )
            head.bind(self.model)
            self.head = head
        self.head.eval()
        self.forward_pass = ForwardPass(self.model, self.head)
        self.vocabulary: Vocabulary = self.head.bound_vocabulary
        self.literal_terms = LiteralTokenizer(self.model.tokenizer, self.vocabulary)
        self.cache = EmbeddingCache(cache_size)
        self.lock = threading.RLock()
        self._weights_hash: str | None = None
        self._fingerprint: tuple[Any, str] | None = None
        if calibration is not None:
            self.calibration = calibration
        elif existing is None:
            self._check_calibration(self.head.calibration)

    @property
    def calibration(self) -> Calibration | None:
        """The calibration in force; set it, or fit one with :meth:`calibrate`."""
        return self.head.calibration

    @calibration.setter
    def calibration(self, calibration: Calibration | None) -> None:
        self._check_calibration(calibration)
        with self.lock:
            self.head.set_calibration(calibration)
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
        if self._weights_hash is None:
            self._weights_hash = weights_hash(self.forward_pass.headless)
        return self._weights_hash

    def keep_weights_hash(self, value: str) -> None:
        """Takes the hash that the weights were saved under, which 16-bit rounding would change."""
        self._weights_hash, self._fingerprint = value, None

    @property
    def fingerprint(self) -> str:
        """Names everything that changes a score: weights, modules, tokenizer, calibration, settings, prompts."""
        state = scoring_state(self)
        if self._fingerprint is None or self._fingerprint[0] != state:
            frozen = {id(self.weighting): self.weighting}  # compared by identity first, which a copy would prevent
            self._fingerprint = copy.deepcopy(state, frozen), encoder_fingerprint(self, state)
        return self._fingerprint[1]

    @property
    def fusion_weights(self) -> dict[str, float]:
        """How much each side of a hybrid search counts, by ``"dense"`` and ``"sparse"``.

        1 for the sparse side, and for the dense one the calibration's ``decoded_trust``, which says how far the
        embedder finds documents beside literal terms; 1 where there is none.
        """
        trust = None if self.calibration is None else self.calibration.decoded_trust
        return {"dense": 1.0 if trust is None else trust, "sparse": 1.0}

    def get_embedding_dimension(self) -> int:
        """Dimension of the dense vectors."""
        return self.forward_pass.embedding_dimension

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
            batch_size: Texts a forward pass.
            show_progress_bar: Whether to show one.

        Returns:
            float32 ``(N, pooled_dimension)``.

        Raises:
            TypeError: If a text is not a string.
            ValueError: If role is unknown, or batch_size is below 1.
        """
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
            batch_size: Texts a forward pass.
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

    def to_sparse_encoder(self) -> SparseEncoder:
        """A genuine ``SparseEncoder`` of the decoded terms, for its evaluators and search helpers.

        It shares the model's modules, and has a head of its own with the settings as they are now. Literal terms and
        weighting are not part of it.

        Returns:
            The encoder, on the model's device, with its prompts; its vectors are ``(N, vocab_size)``.
        """
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
        sentence-transformers leaves it; move it back with ``encoder.model.to(device)``. A script that calls this
        needs ``if __name__ == "__main__":``, since each worker imports it anew.

        Args:
            target_devices: A device for each worker; None for every GPU, or four on the CPU.

        Returns:
            The pool, for the argument ``pool`` of the encoding methods.
        """
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


def without_none(**settings: Any) -> dict[str, Any]:
    """The settings that are given, where None stands for not given."""
    return {name: value for name, value in settings.items() if value is not None}
