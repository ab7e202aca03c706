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
from typing import Any, ClassVar, Literal, get_args

import safetensors.torch
import torch
from safetensors import safe_open
from sentence_transformers.base.modules import Module
from torch import Tensor

from st_keytokens.atomic_files import write_atomically
from st_keytokens.calibration import Calibration
from st_keytokens.first_component import Correction, check_embeddings, correct
from st_keytokens.lm_head import LMHead
from st_keytokens.top_terms import top_terms
from st_keytokens.vocabulary import Vocabulary

HeadCorrection = Literal["auto", "none", "remove", "shift", "center"]
Activation = Literal["relu", "log1p", "softplus"]
OutputMode = Literal["pairs", "sparse"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "log1p": lambda scores: torch.log1p(torch.relu(scores)),
    "softplus": torch.nn.functional.softplus,
}

SHRINKAGE = 2.0  # of the standard deviations, in units of their median: rare tokens' small ones are mostly noise
_STATISTICS = "logit_statistics.safetensors"
_FILES = ("calibration.json", "calibration.safetensors", "lm_head.json", "lm_head.safetensors", _STATISTICS)
_BLOCK_SCORES = 1_250_000  # 5 MB of float32


class KeyTokenHead(Module):  # type: ignore[misc]  # untyped for mypy, see pyproject.toml
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
        correction: What is done to the embedding before it is decoded: ``"remove"`` the first component, ``"shift"``
            along it by ``shift``, ``"center"`` (subtract the mean), ``"none"``; ``"auto"`` is ``"remove"`` with a
            calibration and ``"none"`` without.
        shift: Signed amount for ``correction="shift"``, in units of the embedding that is decoded.
        standardize: Subtract each token's mean logit over the calibration's texts, and divide by the root of its
            variance plus the square of ``SHRINKAGE`` median standard deviations. None: where there is a calibration.
        activation: Turns scores into weights; what it leaves at zero is dropped.
        normalize: Decode embeddings of length 1, so that vectors stored after a ``Normalize`` module give the same
            key tokens. None: unless the head has a bias or a transform, whose effect depends on the length.
        fold: Whether variants of a token in case and leading space are one term; only where the vocabulary is not
            given.
        output_mode: ``"pairs"`` or ``"sparse"``, see above.

    Settings may be changed on a living head; the next decoding uses the new ones.

    Raises:
        ValueError: If a setting is not one of its choices, or lm_head, vocabulary and calibration do not fit.

    Source:
        Nie et al. 2025 (arXiv 2406.17378) for decoding and the shift. Differs from it in standardising the logits,
        in folding case and space variants into one term, and in keeping one set of terms for both sides.
    """

    config_keys: ClassVar[list[str]] = [
        "max_active_dims",
        "query_max_active_dims",
        "correction",
        "shift",
        "standardize",
        "activation",
        "normalize",
        "fold",
        "output_mode",
    ]
    forward_kwargs: ClassVar[set[str]] = {"max_active_dims", "task"}

    def __init__(
        self,
        lm_head: LMHead | None = None,
        vocabulary: Vocabulary | None = None,
        calibration: Calibration | None = None,
        *,
        max_active_dims: int = 256,
        query_max_active_dims: int = 64,
        correction: HeadCorrection = "auto",
        shift: float = 0.0,
        standardize: bool | None = None,
        activation: Activation = "relu",
        normalize: bool | None = None,
        fold: bool = True,
        output_mode: OutputMode = "pairs",
    ) -> None:
        super().__init__()
        for name, flag in (("standardize", standardize), ("normalize", normalize), ("fold", fold)):
            if not isinstance(flag, bool) and (flag is not None or name == "fold"):
                raise TypeError(f"{name} must be a bool, got {flag!r}.")
        for name, value, choices in (
            ("correction", correction, get_args(HeadCorrection)),
            ("activation", activation, get_args(Activation)),
            ("output_mode", output_mode, get_args(OutputMode)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
        self.max_active_dims = _positive(max_active_dims, "max_active_dims")
        self.query_max_active_dims = _positive(query_max_active_dims, "query_max_active_dims")
        self.correction = correction
        self.shift = float(shift)
        self.standardize = standardize
        self.activation = activation
        self.normalize = normalize
        self.fold = fold if vocabulary is None else vocabulary.fold
        self.output_mode = output_mode
        self.calibration = calibration
        self.lm_head = lm_head
        self.vocabulary = vocabulary
        self._statistics: dict[tuple[str, float], tuple[Tensor, Tensor]] = {}  # of the logits, by correction and shift
        self._prepared_for: tuple[Any, ...] | None = None
        for name in ("direction", "mean", "score_scale", "score_offset", "terms"):
            self.register_buffer(name, None, persistent=False)
        if lm_head is not None and vocabulary is not None:
            self._prepare()

    @classmethod
    def for_model(
        cls, model: torch.nn.Module, calibration: Calibration | None = None, **settings: Any
    ) -> KeyTokenHead:
        """A head bound to a loaded model, from a SentenceTransformer or its Transformer module.

        Args:
            model: SentenceTransformer, or its first module.
            calibration: See the class.
            **settings: The class's keyword arguments.

        Returns:
            The head, on the model's device.

        Raises:
            ValueError: If the model's LM head cannot be known from the model alone (see ``LMHead.from_model``).
        """
        head = cls(calibration=calibration, **settings)
        head.bind(model)
        return head

    def with_settings(self, **settings: Any) -> KeyTokenHead:
        """A head like this one that shares its LM head, vocabulary and calibration, with other settings."""
        config = {**self.get_config_dict(), **settings}
        vocabulary = self.vocabulary if config["fold"] == self.fold else None
        head = KeyTokenHead(self.lm_head, vocabulary, **config)
        head.calibration, head._statistics = self.calibration, self._statistics
        head.train(self.training)
        return head

    @property
    def is_bound(self) -> bool:
        """Whether the head has its LM head and vocabulary."""
        return self.lm_head is not None and self.vocabulary is not None

    def bind(self, model: torch.nn.Module) -> None:
        """Takes from ``model`` what is missing: the LM head tied to its input embeddings, and the vocabulary.

        Args:
            model: SentenceTransformer, or its Transformer module.

        Raises:
            ValueError: If the model has no LM head of its own, or not the dimension or vocabulary that is needed.
        """
        transformer = model[0] if isinstance(model, torch.nn.Sequential) else model
        if self.lm_head is None:
            body = getattr(transformer, "auto_model", None)
            self.lm_head = LMHead.from_model(transformer if body is None else body)
        if self.vocabulary is None:
            self.vocabulary = Vocabulary.from_tokenizer(transformer.tokenizer, self.lm_head.vocab_size, fold=self.fold)
        self._prepare()

    def on_model_ready(self, model: torch.nn.Module) -> None:
        """Called by sentence-transformers >= 6 when the model that holds this head is complete."""
        if not self.is_bound:
            self.bind(model)

    def set_calibration(self, calibration: Calibration | None) -> None:
        """Replaces the calibration; scores change accordingly.

        Raises:
            ValueError: If it was fitted for another dimension or vocabulary, or on nothing; the old one stays.
        """
        before = self.calibration, self._statistics
        self.calibration, self._statistics = calibration, {}
        try:
            if calibration is not None and self.is_bound:
                self._check_calibration(calibration, *self._bound())
        except ValueError:
            self.calibration, self._statistics = before
            raise

    @property
    def vocab_size(self) -> int:
        """Number of tokens that it decodes to."""
        return self._bound()[0].vocab_size

    @property
    def bound_vocabulary(self) -> Vocabulary:
        """The vocabulary of a bound head."""
        return self._bound()[1]

    @property
    def lm_head_dimension(self) -> int:
        """Dimension of the vectors that it decodes."""
        return self._bound()[0].embedding_dimension

    def take_statistics(self, other: KeyTokenHead) -> None:
        """Takes over the logit statistics of a head with the same LM head and calibration, instead of computing."""
        self._statistics = other._statistics

    @property
    def active_correction(self) -> Correction:
        """The correction in force: ``correction`` with ``"auto"`` resolved."""
        if self.correction != "auto":
            return self.correction
        return "none" if self.calibration is None else "remove"

    def get_embedding_dimension(self) -> int | None:
        """Dimension of ``sentence_embedding`` after this module."""
        if self.lm_head is None:
            return None
        return self.lm_head.vocab_size if self.output_mode == "sparse" else self.lm_head.embedding_dimension

    def get_sentence_embedding_dimension(self) -> int | None:
        """The older name of :meth:`get_embedding_dimension`."""
        return self.get_embedding_dimension()

    @property
    def is_normalizing(self) -> bool:
        """Whether embeddings are decoded at length 1: ``normalize`` with None resolved."""
        return self._bound()[0].is_scale_free if self.normalize is None else self.normalize

    def prepare_embeddings(self, embeddings: Tensor) -> Tensor:
        """The vector that the calibration sees: float32, of length 1 where the head normalises.

        Args:
            embeddings: Pooled embeddings, shape ``(batch_size, embedding_dimension)``. Not modified.

        Returns:
            float32 tensor of the same shape. An all-zero row stays zero.
        """
        embeddings = embeddings.float()
        return torch.nn.functional.normalize(embeddings, dim=-1) if self.is_normalizing else embeddings

    def decode_scores(self, embeddings: Tensor) -> Tensor:
        """Scores of all tokens, before folding, activation and top-k.

        Args:
            embeddings: Pooled embeddings, shape ``(batch_size, embedding_dimension)``, float, any device.

        Returns:
            float32 tensor ``(batch_size, vocab_size)``; masked tokens are ``-inf``.

        Raises:
            RuntimeError: If the head is not bound to a model.
            ValueError: If the dimension differs from the LM head's, a value is not finite, or a setting needs a
                calibration that is not there.
        """
        return self._standardized(self._logits(embeddings))

    def _logits(self, embeddings: Tensor) -> Tensor:
        lm_head, _ = self._bound()
        if self.calibration is None and (self.active_correction != "none" or self.standardize):
            raise ValueError(
                f"correction={self.correction!r}, standardize={self.standardize!r} need a calibration, got None. "
                "Fit one with KeyTokenEncoder.calibrate or Calibration.fit, or use correction='none'."
            )
        if self._prepared_for is None or any(
            a is not b and a != b for a, b in zip(self._prepared_for, self._state(), strict=True)
        ):
            self._prepare()
        check_embeddings(embeddings, lm_head.embedding_dimension)
        check_finite(embeddings)
        vectors = self.prepare_embeddings(embeddings).to(lm_head.device)
        vectors = correct(
            vectors,
            correction=self.active_correction,
            direction=self.direction,
            mean=self.mean,
            amount=self.shift,
        )
        return lm_head.logits(vectors)

    def _standardized(self, logits: Tensor) -> Tensor:
        return torch.addcmul(self.score_offset, logits, self.score_scale)

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
            ``(key_token_ids, key_token_weights)``, int64 and float32, both ``(batch_size, K)``, see the class.

        Raises:
            RuntimeError: If the head is not bound to a model.
            ValueError: If max_active_dims is not positive, or see :meth:`decode_scores`.
        """
        if max_active_dims is None:
            max_active_dims = self.query_max_active_dims if task == "query" else self.max_active_dims
        k = _positive(max_active_dims, "max_active_dims")
        if len(embeddings) == 0:
            empty = torch.zeros(0, k, device=embeddings.device)
            return empty.long(), empty
        logits = self._logits(embeddings)
        # On the CPU in blocks that stay in its cache: what follows the product is bound by memory, not by arithmetic.
        rows = max(1, _BLOCK_SCORES // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
        best = [top_terms(self._standardized(block), self.terms, k) for block in torch.split(logits, rows)]
        ids, scores = (torch.cat(parts) for parts in zip(*best, strict=True))
        is_text = embeddings.ne(0).any(dim=1, keepdim=True).to(scores.device)  # a zero vector says nothing
        weights = torch.where(is_text, _ACTIVATIONS[self.activation](scores), 0.0)
        ids = torch.where(weights > 0, ids, torch.iinfo(torch.int64).max)
        ids, order = ids.sort(dim=1)
        weights = weights.gather(1, order)
        return torch.where(weights > 0, ids, 0), weights

    def forward(
        self,
        features: dict[str, Any],
        task: str | None = None,
        max_active_dims: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Adds the key tokens of ``features["sentence_embedding"]``, see the class."""
        ids, weights = self.decode(features["sentence_embedding"], task=task, max_active_dims=max_active_dims)
        features["key_token_ids"], features["key_token_weights"] = ids, weights
        if self.output_mode == "sparse":
            lm_head, _ = self._bound()
            rows = torch.zeros(len(ids), lm_head.vocab_size, device=weights.device)
            features["sentence_embedding"] = rows.scatter_add_(1, ids, weights)
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Writes settings, calibration and, unless it is tied to the model, the LM head."""
        folder = Path(output_path)
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:  # of an earlier save with other parts
            (folder / name).unlink(missing_ok=True)
        self.save_config(output_path)
        if self.calibration is not None:
            self.calibration.save(folder)
        if self.lm_head is not None and not self.lm_head.is_tied:
            self.lm_head.save(folder)
        if self.calibration is not None and self._statistics:
            tensors = {
                f"{correction}|{shift}|{name}": tensor.contiguous()
                for (correction, shift), pair in self._statistics.items()
                for name, tensor in zip(("mean", "deviation"), pair, strict=True)
            }
            write_atomically(
                folder / _STATISTICS, safetensors.torch.save(tensors, {"calibration": self.calibration.hash})
            )

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> KeyTokenHead:
        """Reads what :meth:`save` wrote. A tied head still has to be bound, see :meth:`bind`."""
        hub = {k: v for k, v in kwargs.items() if k in ("token", "cache_folder", "revision", "local_files_only")}
        path = Path(model_name_or_path, subfolder)
        if not path.is_dir():
            path = Path(cls.load_dir_path(model_name_or_path, subfolder=subfolder, **hub))
        config = json.loads((path / cls.config_file_name).read_text(encoding="utf-8"))
        lm_head = LMHead.load(path) if (path / "lm_head.json").exists() else None
        head = cls(lm_head, **config)
        if (path / "calibration.json").exists():
            head.calibration = Calibration.load(path)
            head._statistics = _read_statistics(path / _STATISTICS, head.calibration)
        return head

    def _bound(self) -> tuple[LMHead, Vocabulary]:
        if self.lm_head is None or self.vocabulary is None:
            raise RuntimeError(
                "KeyTokenHead is not bound to a model, so it has no LM head. Call head.bind(model) once after the "
                "model is complete, or build it with KeyTokenHead.for_model(model)."
            )
        return self.lm_head, self.vocabulary

    def _state(self) -> tuple[Any, ...]:
        """What the derived tensors depend on."""
        lm_head, vocabulary = self._bound()
        settings = (self.correction, self.shift, self.standardize, self.normalize)
        return (*settings, self.calibration, vocabulary, lm_head, lm_head.device)

    @torch.inference_mode(False)  # the tensors outlive the call, and may be used with gradients
    @torch.no_grad()
    def _prepare(self) -> None:
        """Derives everything that decoding needs from LM head, vocabulary, calibration and settings."""
        lm_head, vocabulary = self._bound()
        if vocabulary.vocab_size != lm_head.vocab_size:
            raise ValueError(
                f"vocabulary has {vocabulary.vocab_size} tokens, but the LM head has {lm_head.vocab_size} rows. "
                "Pass Vocabulary.from_tokenizer(tokenizer, lm_head.vocab_size) with the model's own tokenizer."
            )
        device = lm_head.device
        masked = torch.from_numpy(vocabulary.is_masked)
        offset = torch.zeros(lm_head.vocab_size)
        scale = torch.ones(lm_head.vocab_size)
        if self.calibration is not None:
            self._check_calibration(self.calibration, lm_head, vocabulary)
            self.direction = self.calibration.first_component.direction.float().to(device)
            self.mean = self.calibration.moments.mean.float().to(device)
            if self.standardize is not False:
                mean, deviation = self._logit_statistics(self.calibration, lm_head)
                typical = deviation[~masked].median() if len(deviation[~masked]) else deviation.new_zeros(())
                spread = torch.sqrt(deviation**2 + (SHRINKAGE * typical) ** 2)
                scale = torch.where(spread > 0, 1 / spread.clamp_min(1e-30), 0.0)
                offset = -mean * scale
        self.score_scale = scale.masked_fill(masked, 0.0).to(device)
        self.score_offset = offset.masked_fill(masked, float("-inf")).to(device)
        self.terms = torch.from_numpy(vocabulary.terms).to(device)
        self._prepared_for = self._state()

    def _logit_statistics(self, calibration: Calibration, lm_head: LMHead) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each token's logit; computed once for each correction."""
        key = (self.active_correction, self.shift if self.active_correction == "shift" else 0.0)
        if key not in self._statistics:
            found = calibration.logit_statistics(lm_head, correction=self.active_correction, shift=self.shift)
            self._statistics[key] = tuple(torch.as_tensor(values).float() for values in found)  # type: ignore[assignment]
        return self._statistics[key]

    @staticmethod
    def _check_calibration(calibration: Calibration, lm_head: LMHead, vocabulary: Vocabulary) -> None:
        dimension = calibration.moments.embedding_dimension
        if dimension != lm_head.embedding_dimension:
            raise ValueError(
                f"calibration was fitted on embeddings of dimension {dimension}, but the LM head decodes dimension "
                f"{lm_head.embedding_dimension}. Fit a calibration with this model."
            )
        if calibration.vocabulary_hash is not None and calibration.vocabulary_hash != vocabulary.hash:
            raise ValueError(
                f"calibration was fitted for the vocabulary {calibration.vocabulary_hash[:12]}, but the model has "
                f"{vocabulary.hash[:12]}. Fit a calibration with this model and these folding settings."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeyTokenHead:
        """Moves, but never casts: neither the float32 statistics nor an LM head of its own to the backbone's dtype."""
        buffers = {name: buffer for name, buffer in self.named_buffers(recurse=False) if buffer is not None}
        parameters = [(parameter, parameter.data) for parameter in self.parameters()]
        super()._apply(fn, recurse)
        for name, buffer in buffers.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        for parameter, data in parameters:
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)
        return self


def _read_statistics(path: Path, calibration: Calibration) -> dict[tuple[str, float], tuple[Tensor, Tensor]]:
    """Saved logit statistics, where there are some and they are this calibration's."""
    if not path.exists():
        return {}
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("calibration") != calibration.hash:
            return {}
        names = {name.rpartition("|")[0] for name in file.keys()}  # no mapping
        pairs = {n: (file.get_tensor(f"{n}|mean"), file.get_tensor(f"{n}|deviation")) for n in names}
    return {(n.split("|")[0], float(n.split("|")[1])): pair for n, pair in pairs.items()}


def check_finite(embeddings: Tensor, first_row: int = 0) -> None:
    """Checks that no value is NaN or infinite.

    Args:
        embeddings: Shape ``(batch_size, embedding_dimension)``.
        first_row: What the first row is called.

    Raises:
        ValueError: Naming the first row that is not finite.
    """
    finite = torch.isfinite(embeddings).all(dim=1)
    if not finite.all():
        row = first_row + int((~finite).nonzero()[0])
        raise ValueError(f"embeddings must be finite, got NaN or infinity in row {row}. Embed that text again.")


def _positive(value: int, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")
    return value
