"""KeyTokenHead: the module that decodes a pooled embedding into key tokens.

Three ways to use it, all with the same scores:

1. ``SentenceTransformer(modules=[transformer, pooling, KeyTokenHead.for_model(transformer)])``;
2. ``model.insert(2, KeyTokenHead.for_model(model))`` on a model that is already loaded (before ``Normalize``, if any);
3. :class:`~st_keytokens.encoder.KeyTokenEncoder`, which leaves the model itself as it is.

The dotted path ``st_keytokens.key_token_head.KeyTokenHead`` is what saved models name, and is permanent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from st_keytokens.binding import check_fit
from st_keytokens.bound_head import BoundHead
from st_keytokens.calibration import Calibration
from st_keytokens.checks import checked_int
from st_keytokens.decoding import Activation, Decoding, check_finite, prepared
from st_keytokens.head_decoding import decoding_of
from st_keytokens.head_settings import HeadCorrection, HeadSettings, OutputMode
from st_keytokens.lm_head import LMHead
from st_keytokens.standardization import STATISTICS_FILE, LogitStatistics

__all__ = ["Activation", "HeadCorrection", "HeadSettings", "KeyTokenHead", "OutputMode", "check_finite"]

_FILES = ("calibration.json", "calibration.safetensors", "lm_head.json", "lm_head.safetensors", STATISTICS_FILE)


class KeyTokenHead(BoundHead):
    """Decodes ``sentence_embedding`` through the backbone's LM head and keeps the strongest terms.

    Adds ``key_token_ids`` (int64) and ``key_token_weights`` (float32), both of shape ``(batch_size, K)``, to the
    features: ids ascending, weights positive, padded at the end of a row with id 0 and weight 0.
    ``sentence_embedding`` is left as it is, except with ``output_mode="sparse"``, where it becomes the
    ``(batch_size, vocab_size)`` weights that a ``SparseEncoder`` expects.

    Args:
        lm_head: The LM head of the backbone. None: bound later, by :meth:`bind` or by sentence-transformers >= 6 when
            the head is part of ``modules=[...]``.
        vocabulary: The tokenizer's vocabulary. None: built by :meth:`bind`.
        calibration: First component and logit statistics. None: no correction and no standardisation.
        max_active_dims: Terms kept of a document, and of a text without a task.
        query_max_active_dims: Terms kept of a query.
        decode_with: ``"lm_head"``; or ``"ridge"``, the calibration's linear map to the terms of its own texts, to
            which correction and standardisation do not apply; ``"auto"`` is ``"ridge"`` where the calibration has one
            and neither of the two is set.
        correction: What is done to the embedding before the LM head decodes it: ``"remove"`` the first component,
            ``"shift"`` along it by ``shift``, ``"center"`` (subtract the mean), ``"none"``; ``"auto"`` is
            ``"remove"`` with a calibration and ``"none"`` without.
        shift: Signed amount for ``correction="shift"``, in units of the embedding that is decoded.
        standardize: Subtract each token's mean logit over the calibration's texts, and divide by the root of its
            variance plus the square of ``SHRINKAGE`` median standard deviations. None: where there is a calibration.
        activation: Turns scores into weights; what it leaves at zero is dropped.
        normalize: Decode embeddings of length 1, so that vectors stored after a ``Normalize`` module give the same
            key tokens. None: unless the head has a bias or a transform, whose effect depends on the length.
        fold: Whether variants of a token in case and leading space are one term; only where the vocabulary is not
            given.
        output_mode: ``"pairs"`` or ``"sparse"``, see above.
        compute_dtype: Dtype of the product with the LM head's weight. None: as ``lm_head`` is set.

    Settings but ``fold`` and ``compute_dtype`` may be changed on a living head; the next decoding uses the new ones.

    Raises:
        TypeError: If a setting is of another type.
        ValueError: If a setting is not one of its choices, or lm_head, vocabulary and calibration do not fit.

    Source:
        Nie et al. 2025 (arXiv 2406.17378) for decoding and the shift. Differs from it in standardising the logits,
        in folding case and space variants into one term, and in keeping one set of terms for both sides.
    """

    forward_kwargs: ClassVar[set[str]] = {"max_active_dims", "task"}

    @property
    def terms(self) -> Tensor:
        """Term of each token, int64, shape ``(vocab_size,)``, on the device of the logits."""
        lm_head, vocabulary = self._bound()
        return torch.from_numpy(vocabulary.terms).to(lm_head.device)

    def get_embedding_dimension(self) -> int | None:
        """Dimension of ``sentence_embedding`` after this module; None where there is no LM head yet."""
        if self.lm_head is None:
            return None
        return self.lm_head.vocab_size if self.output_mode == "sparse" else self.lm_head.embedding_dimension

    def prepare_embeddings(self, embeddings: Tensor) -> Tensor:
        """The vector that the calibration sees: float32, of length 1 where the head normalises.

        Args:
            embeddings: Pooled embeddings, shape ``(batch_size, embedding_dimension)``. Not modified.

        Returns:
            float32 tensor of the same shape. An all-zero row stays zero.

        Raises:
            RuntimeError: If the head is not bound to a model.
        """
        return prepared(embeddings, self.is_normalizing)

    def decode_scores(self, embeddings: Tensor) -> Tensor:
        """Scores of all tokens, before folding, activation and top-k.

        Args:
            embeddings: Pooled embeddings, shape ``(batch_size, embedding_dimension)``, float, any device.

        Returns:
            float32 tensor ``(batch_size, vocab_size)``; masked tokens, and those that the ridge decoder does not know,
            are ``-inf``.

        Raises:
            RuntimeError: If the head is not bound to a model.
            TypeError: If embeddings are no floating-point tensor.
            ValueError: If the dimension differs from the LM head's, a value is not finite, or a setting needs a
                calibration that is not there.
        """
        decoding = self.decoding()
        scores = decoding.scores(embeddings)
        if not self.is_ridge:
            return scores
        every = scores.new_full((len(scores), self.vocab_size), float("-inf"))
        return every.index_copy_(1, decoding.terms, scores)

    def decode(
        self, embeddings: Tensor, *, task: str | None = None, max_active_dims: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Key tokens of pooled embeddings.

        Args:
            embeddings: Shape ``(batch_size, embedding_dimension)``, as pooled or as stored. A zero row, as an empty
                text has, has no key tokens.
            task: ``"query"`` keeps ``query_max_active_dims`` terms, anything else ``max_active_dims``.
            max_active_dims: Overrides both.

        Returns:
            ``(key_token_ids, key_token_weights)``, int64 and float32, both ``(batch_size, K)``, see the class; ``K``
            is at most ``vocab_size``.

        Raises:
            RuntimeError: If the head is not bound to a model.
            TypeError: If max_active_dims is no integer, or see :meth:`decode_scores`.
            ValueError: If max_active_dims is not positive, or see :meth:`decode_scores`.
        """
        if max_active_dims is None:
            max_active_dims = self.query_max_active_dims if task == "query" else self.max_active_dims
        k = checked_int("max_active_dims", max_active_dims, minimum=1)
        return self.decoding().key_tokens(embeddings, k, self.activation)

    def forward(
        self, features: dict[str, Any], task: str | None = None, max_active_dims: int | None = None
    ) -> dict[str, Any]:
        """Adds the key tokens of ``features["sentence_embedding"]``.

        Args:
            features: What the modules before gave.
            task: See :meth:`decode`.
            max_active_dims: See :meth:`decode`.

        Returns:
            The same dictionary, see the class.

        Raises:
            RuntimeError: See :meth:`decode`.
            TypeError: See :meth:`decode`.
            ValueError: See :meth:`decode`.
        """
        ids, weights = self.decode(features["sentence_embedding"], task=task, max_active_dims=max_active_dims)
        features["key_token_ids"], features["key_token_weights"] = ids, weights
        if self.output_mode == "sparse":
            rows = torch.zeros(len(ids), self.vocab_size, device=weights.device)
            features["sentence_embedding"] = rows.scatter_add_(1, ids, weights)
        return features

    def save(self, output_path: str, safe_serialization: bool = True) -> None:
        """Writes settings, calibration with logit statistics and, unless it is tied to the model, the LM head.

        Args:
            output_path: Directory, made if it is not there. Parts of an earlier save go.
            safe_serialization: Given by sentence-transformers; tensors are always safetensors.

        Raises:
            OSError: If the directory cannot be written.
            TypeError: See :meth:`get_config_dict`.
            ValueError: See :meth:`get_config_dict`.
        """
        folder = Path(output_path)
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        self.save_config(output_path)
        if self.calibration is not None:
            if self.is_bound:
                self.decoding()  # its statistics, so that another machine need not compute them otherwise
            self.calibration.save(folder)
            self._statistics.save(folder)
        if self.lm_head is not None and not self.lm_head.is_tied:
            self.lm_head.save(folder)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **of_other_modules: Any,
    ) -> KeyTokenHead:
        """Reads what :meth:`save` wrote. A tied head still has to be bound, see :meth:`bind`.

        Args:
            model_name_or_path: Directory, or id of a model on the Hub.
            subfolder: Where in it the head is.
            token: For the Hub.
            cache_folder: For the Hub.
            revision: For the Hub.
            local_files_only: For the Hub.
            **of_other_modules: Given by sentence-transformers to all modules, and not used.

        Returns:
            The head.

        Raises:
            OSError: If there is no saved head.
            TypeError: If the settings are malformed.
            ValueError: If the settings, or a file, are malformed or truncated, or of another format.
        """
        path = Path(model_name_or_path, subfolder)
        if not path.is_dir():
            path = Path(
                cls.load_dir_path(
                    model_name_or_path,
                    subfolder=subfolder,
                    token=token,
                    cache_folder=cache_folder,
                    revision=revision,
                    local_files_only=local_files_only,
                )
            )
        settings = json.loads((path / cls.config_file_name).read_text(encoding="utf-8"))
        lm_head = LMHead.load(path) if (path / "lm_head.json").exists() else None
        calibration = Calibration.load(path) if (path / "calibration.json").exists() else None
        head = cls(lm_head, None, calibration, **settings)
        head._statistics = LogitStatistics.load(path)
        return head

    def decoding(self) -> Decoding:
        """What decodes, made anew where a setting, a part or the device has changed.

        Returns:
            Decoder, correction and statistics, as they are now.

        Raises:
            RuntimeError: If the head is not bound to a model.
            ValueError: If the parts do not fit, or a setting needs a calibration that is not there.
        """
        lm_head, vocabulary = self._bound()
        calibration = None if self.calibration is None else self.calibration.hash
        state = (self.get_config_dict(), calibration, vocabulary, lm_head, lm_head.device)
        if self._ready is None or self._ready[0] != state:
            check_fit(lm_head, vocabulary, self.calibration)
            self._ready = state, decoding_of(self, lm_head, vocabulary, self._statistics)
        return self._ready[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeyTokenHead:
        """Moves, but never casts, an LM head of its own: it keeps the dtype that it was read in."""
        parameters = [(parameter, parameter.data) for parameter in self.parameters()]
        super()._apply(fn, recurse)
        for parameter, data in parameters:
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)
        return self
