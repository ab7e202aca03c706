"""KeyTokenHead: the module that decodes a pooled embedding into key tokens.

Three ways to use it, all with the same scores:

1. ``SentenceTransformer(modules=[transformer, pooling, KeyTokenHead.for_model(transformer)])``;
2. ``model.insert(2, KeyTokenHead.for_model(model))`` on a model that is already loaded (before ``Normalize``, if any);
3. :class:`~st_keytokens.encoder.encoder.KeyTokenEncoder`, which leaves the model itself as it is.

The dotted path ``st_keytokens.key_token_head.KeyTokenHead`` is what saved models name, and is permanent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, get_args, get_type_hints

import torch
from sentence_transformers.base.modules import Module
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor

from st_keytokens.calibration import Calibration
from st_keytokens.calibration.standardization import STATISTICS_FILE, LogitStatistics, scale_and_offset
from st_keytokens.decoding.decoding import Activation, Decoding, prepared
from st_keytokens.decoding.first_component import Correction
from st_keytokens.decoding.head_parts import DTYPES
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.shared.checks import check_choice, checked_float, checked_int
from st_keytokens.shared.files import read_json
from st_keytokens.terms.vocabulary import Vocabulary
from st_keytokens.terms.words import WordVocabulary

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Activation", "HeadCorrection", "HeadSettings", "KeyTokenHead", "OutputMode"]

logger = logging.getLogger(__name__)

HeadCorrection = Literal["auto", "none", "remove", "shift", "center"]
OutputMode = Literal["pairs", "sparse"]
DecoderName = Literal["auto", "lm_head", "ridge"]
ComputeDtype = Literal["float64", "float32", "float16", "bfloat16"]


class HeadSettings(TypedDict, total=False):
    """Keyword arguments of :class:`KeyTokenHead`; see there."""

    max_active_dims: int
    query_max_active_dims: int
    decode_with: DecoderName
    correction: HeadCorrection
    shift: float
    standardize: bool | None
    activation: Activation
    normalize: bool | None
    fold: bool
    output_mode: OutputMode
    compute_dtype: ComputeDtype | None


_DEFAULTS = HeadSettings(
    max_active_dims=256,
    query_max_active_dims=96,
    decode_with="auto",
    correction="auto",
    shift=0.0,
    standardize=None,
    activation="relu",
    normalize=None,
    fold=True,
    output_mode="pairs",
    compute_dtype=None,
)
_TYPES = get_type_hints(HeadSettings)
_FILES = ("calibration.json", "calibration.safetensors", "lm_head.json", "lm_head.safetensors", STATISTICS_FILE)


def _checked(name: str, value: Any) -> Any:
    """A setting, checked by its type in :class:`HeadSettings`, numbers as Python's own."""
    wanted = _TYPES[name]
    if wanted is int:
        return checked_int(name, value, minimum=1)
    if wanted is float:
        return checked_float(name, value)
    kinds = get_args(wanted) or (wanted,)
    if bool in kinds:
        if not isinstance(value, bool) and (value is not None or type(None) not in kinds):
            raise TypeError(f"{name} must be {'a bool' if wanted is bool else 'a bool or None'}, got {value!r}.")
        return value
    is_optional = type(None) in kinds
    check_choice(name, value, (None, *get_args(kinds[0])) if is_optional else kinds)
    return value


class KeyTokenHead(Module):  # type: ignore[misc]  # untyped for mypy, see pyproject.toml
    """Decodes ``sentence_embedding`` through the backbone's LM head and keeps the strongest terms.

    Adds ``key_token_ids`` (int64) and ``key_token_weights`` (float32), both of shape ``(batch_size, K)``, to the
    features: ids ascending, weights positive, padded at the end of a row with id 0 and weight 0.
    ``sentence_embedding`` is left as it is, except with ``output_mode="sparse"``, where it becomes the
    ``(batch_size, vocab_size)`` weights that a ``SparseEncoder`` expects.

    Args:
        lm_head: The LM head of the backbone. None: bound later, by :meth:`bind` or by sentence-transformers >= 6 when
            the head is part of ``modules=[...]``.
        vocabulary: The tokenizer's vocabulary. None: built by :meth:`bind`; words where the calibration has words.
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
    config_keys: ClassVar[list[str]] = list(_DEFAULTS)

    def __init__(
        self,
        lm_head: LMHead | None = None,
        vocabulary: Vocabulary | WordVocabulary | None = None,
        calibration: Calibration | None = None,
        **settings: Unpack[HeadSettings],
    ) -> None:
        super().__init__()
        if unknown := sorted(settings.keys() - _DEFAULTS.keys()):
            raise TypeError(f"KeyTokenHead got an unexpected keyword argument {unknown[0]!r}.")
        for name, value in {**_DEFAULTS, **settings}.items():
            setattr(self, f"_{name}" if name in ("fold", "compute_dtype") else name, _checked(name, value))
        if lm_head is not None and self._compute_dtype is not None:
            lm_head = lm_head.sharing(compute_dtype=DTYPES[self._compute_dtype])
        self.lm_head = lm_head
        self.vocabulary = vocabulary
        self.calibration = calibration
        self.register_buffer("_place", torch.zeros(0), persistent=False)  # follows .to() where there is no LM head
        self._width: int | None = None if lm_head is None else lm_head.embedding_dimension
        self._why_no_lm_head = ""
        self._tokenizer: Any = None
        self._statistics = LogitStatistics()
        self._ready: tuple[tuple[Any, ...], Decoding] | None = None  # a state, and what decodes in it
        check_fit(lm_head, vocabulary, calibration)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _DEFAULTS:
            value = _checked(name, value)
        if name in _DEFAULTS or name in ("lm_head", "vocabulary", "calibration"):
            super().__setattr__("_ready", None)  # what decodes is made anew
        super().__setattr__(name, value)

    @classmethod
    def for_model(
        cls, model: torch.nn.Module, calibration: Calibration | None = None, **settings: Unpack[HeadSettings]
    ) -> Self:
        """A head bound to a loaded model.

        Args:
            model: SentenceTransformer, or its Transformer module.
            calibration: See the class.
            **settings: The class's keyword arguments.

        Returns:
            The head, on the model's device.

        Raises:
            TypeError: See the class.
            ValueError: See the class, or see :meth:`bind`.
        """
        head = cls(calibration=calibration, **settings)
        head.bind(model)
        return head

    def with_settings(self, **settings: Unpack[HeadSettings]) -> Self:
        """A head like this one, with other settings.

        Args:
            **settings: The class's keyword arguments.

        Returns:
            The head. It shares weights of the LM head, calibration and, unless ``fold`` changes, vocabulary.

        Raises:
            TypeError: See the class.
            ValueError: See the class, or if ``fold`` changes and the vocabulary was given, or the calibration was
                fitted for the old one.
        """
        config: Any = {**self.get_config_dict(), **settings}
        vocabulary = self.vocabulary
        if vocabulary is not None and vocabulary.fold != config["fold"]:
            if self._tokenizer is None:
                raise ValueError(
                    f"fold must be that of the vocabulary that was given, {vocabulary.fold}, got {config['fold']!r}. "
                    "Give a new head a vocabulary with the other one."
                )
            vocabulary = Vocabulary.from_tokenizer(self._tokenizer, vocabulary.vocab_size, fold=config["fold"])
        head = self._sharing(vocabulary, self.calibration, config)
        head.take_statistics(self)
        return head

    def with_vocabulary(self, vocabulary: Vocabulary | WordVocabulary) -> Self:
        """A head like this one over other terms.

        Args:
            vocabulary: The terms.

        Returns:
            The head. It shares weights of the LM head; of a calibration that was fitted for other terms, it has what
            that says of embeddings.
        """
        calibration = self.calibration
        if calibration is not None and calibration.vocabulary_hash not in (None, vocabulary.hash):
            calibration = calibration.of_embeddings()
        return self._sharing(vocabulary, calibration, self.get_config_dict())

    def _sharing(
        self, vocabulary: Vocabulary | WordVocabulary | None, calibration: Calibration | None, config: dict[str, Any]
    ) -> Self:
        """A head with the LM head and what is known of the model."""
        head = type(self)(self.lm_head, vocabulary, calibration, **config)
        head._tokenizer, head._width, head._why_no_lm_head = self._tokenizer, self._width, self._why_no_lm_head
        head._place = self._place
        head.train(self.training)
        return head

    @property
    def fold(self) -> bool:
        """Whether variants of a token are one term: the vocabulary's, where there is one."""
        return self._fold if self.vocabulary is None else self.vocabulary.fold

    @property
    def compute_dtype(self) -> str | None:
        """Name of the dtype of the product, None for the weight's own: the LM head's, where there is one."""
        return self._compute_dtype if self.lm_head is None else self.lm_head.compute_dtype_name

    @property
    def is_bound(self) -> bool:
        """Whether the head belongs to a model: it knows the vocabulary, and how wide the vectors are."""
        return self.vocabulary is not None and self._width is not None

    def bind(self, model: torch.nn.Module, *, needs_lm_head: bool | None = None) -> None:
        """Takes from ``model`` what is missing: the LM head that it holds, and the vocabulary.

        Args:
            model: SentenceTransformer, or its Transformer module. The routes of a ``Router`` may share one.
            needs_lm_head: Whether a model whose LM head cannot be known is refused. None: unless the calibration has
                a ridge decoder, which needs none. Without an LM head, decoding fails until there is such a
                calibration.

        Raises:
            TypeError: If the model inside is not PyTorch's.
            ValueError: If the LM head or the vocabulary cannot be known from the model alone, or the parts do not
                fit; the head stays as it was.
        """
        names = ("lm_head", "vocabulary", "_tokenizer", "_width", "_why_no_lm_head")
        before = {name: getattr(self, name) for name in names}
        if needs_lm_head is None:
            needs_lm_head = self.calibration is None or not self.calibration.has_cross_moments
        try:
            rows = self._bind_lm_head(model, needs_lm_head)
            if self.vocabulary is None:
                self._tokenizer = tokenizer_of(model, self)
                tokens = Vocabulary.from_tokenizer(self._tokenizer, rows, fold=self._fold)
                seen = None if self.calibration is None else self.calibration.names
                self.vocabulary = tokens if seen is None else WordVocabulary(seen.words, tokens, seen.best())
            check_fit(self.lm_head, self.vocabulary, self.calibration)
        except Exception:
            for name, value in before.items():
                setattr(self, name, value)
            raise

    def _bind_lm_head(self, model: torch.nn.Module, is_needed: bool) -> int | None:
        """Finds the LM head, or why there is none; returns how many tokens the model has."""
        if self.lm_head is None:
            name = self._compute_dtype
            try:
                self.lm_head = lm_head_of(model, self, None if name is None else DTYPES[name])
            except (TypeError, ValueError) as err:
                if is_needed or len(transformers_of(model, self)) > 1:
                    raise
                self._why_no_lm_head = str(err)
                self._width, rows = width_and_rows(model, self)
                return rows
        elif self.lm_head.is_tied and not is_own_lm_head(self.lm_head, model, self):  # but to another model
            self.lm_head = self.lm_head.sharing(is_tied=False)
        self._width = self.lm_head.embedding_dimension
        return self.lm_head.vocab_size

    def on_model_ready(self, model: torch.nn.Module) -> None:
        """Called by sentence-transformers >= 6 when the model that holds this head is complete.

        Args:
            model: See :meth:`bind`.

        Raises:
            TypeError: See :meth:`bind`.
            ValueError: See :meth:`bind`.
        """
        self.bind(model)

    def set_calibration(self, calibration: Calibration | None) -> None:
        """Replaces the calibration; scores change accordingly.

        Args:
            calibration: The new one; None for none.

        Raises:
            ValueError: If it was fitted for another dimension or vocabulary, or on nothing; the old one stays.
        """
        check_fit(self.lm_head, self.vocabulary, calibration)
        self.calibration = calibration
        self._statistics = LogitStatistics()

    def take_statistics(self, other: KeyTokenHead) -> None:
        """Takes over the logit statistics that another head knows; those that do not apply here do no harm.

        Args:
            other: The other head.
        """
        self._statistics = other._statistics

    @property
    def decoder(self) -> LMHead:
        """The LM head.

        Raises:
            RuntimeError: If the head is not bound to a model.
            ValueError: If the model's LM head is not known.
        """
        self._check_bound()
        if self.lm_head is None:
            raise ValueError(
                f"The model's LM head must be known to decode without data, but it is not: {self._why_no_lm_head} "
                "What needs no LM head is a calibration: KeyTokenEncoder.calibrate(texts)."
            )
        return self.lm_head

    @property
    def bound_vocabulary(self) -> Vocabulary | WordVocabulary:
        """The vocabulary of a bound head."""
        return self._check_bound()

    @property
    def token_vocabulary(self) -> Vocabulary:
        """The vocabulary of the model's tokenizer, whatever the terms are; ValueError where there is none."""
        vocabulary = self._check_bound()
        if not isinstance(vocabulary, WordVocabulary):
            return vocabulary
        if vocabulary.tokens is None:
            raise ValueError("model must have a tokenizer for its tokens to be terms, got one without.")
        return vocabulary.tokens

    @property
    def vocab_size(self) -> int:
        """Number of terms that there can be."""
        return self._check_bound().vocab_size

    @property
    def lm_head_dimension(self) -> int:
        """Dimension of the vectors that it decodes."""
        self._check_bound()
        return self._width or 0

    @property
    def device(self) -> torch.device:
        """Where it decodes."""
        place: Tensor = self._place
        return place.device if self.lm_head is None else self.lm_head.device

    @property
    def is_ridge(self) -> bool:
        """Whether the calibration's ridge decoder decodes: ``decode_with`` with ``"auto"`` resolved."""
        if self.decode_with != "auto":
            return bool(self.decode_with == "ridge")
        is_default = self.lm_head is None or (self.correction == "auto" and self.standardize is None)
        return is_default and self.calibration is not None and self.calibration.has_cross_moments

    @property
    def active_correction(self) -> Correction:
        """The correction in force: ``correction`` with ``"auto"`` resolved."""
        correction: HeadCorrection = self.correction
        if correction != "auto":
            return correction
        return "none" if self.calibration is None else "remove"

    @property
    def is_normalizing(self) -> bool:
        """Whether embeddings are decoded at length 1: ``normalize`` with None resolved."""
        self._check_bound()
        if self.normalize is not None:
            return bool(self.normalize)
        return self.lm_head is None or self.lm_head.is_scale_free

    def get_config_dict(self) -> dict[str, Any]:
        """Settings as they are now, as JSON values.

        Returns:
            The value of each of the class's keyword arguments.
        """
        return {name: getattr(self, name) for name in self.config_keys}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None}

    def _check_bound(self) -> Vocabulary | WordVocabulary:
        if self.vocabulary is None or self._width is None:
            raise RuntimeError(
                "KeyTokenHead is not bound to a model, so it has no LM head. Call head.bind(model) once after the "
                "model is complete, or build it with KeyTokenHead.for_model(model)."
            )
        return self.vocabulary

    @property
    def terms(self) -> Tensor:
        """Term of each token, int64, shape ``(vocab_size,)``, on the device of the logits."""
        return torch.from_numpy(self._check_bound().terms).to(self.device)

    def get_embedding_dimension(self) -> int | None:
        """Dimension of ``sentence_embedding`` after this module; None where it is not known yet."""
        if self.output_mode == "sparse" and self.vocabulary is not None:
            return self.vocabulary.vocab_size
        return None if self._width is None else int(self._width)

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
        if isinstance(self.vocabulary, WordVocabulary):
            raise ValueError("decode_scores gives scores of tokens, but terms are words here. Use terms='tokens'.")
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

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # what it decodes with is made on first use, which no graph holds
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
        embeddings = features["sentence_embedding"]
        is_finite = torch.isfinite(embeddings).all(dim=1, keepdim=True)
        if not is_finite.all():  # the dense vector stays what it is without the head
            logger.warning("%d of %d embeddings are not finite and have no key tokens.", *_counts(is_finite))
            embeddings = torch.where(is_finite, embeddings, 0.0)
        ids, weights = self.decode(embeddings, task=task, max_active_dims=max_active_dims)
        features["key_token_ids"], features["key_token_weights"] = ids, weights
        if self.output_mode == "sparse":
            if isinstance(self.vocabulary, WordVocabulary):
                raise ValueError(
                    "terms must be tokens for output_mode='sparse', got words, of which there is no fixed number. "
                    "Use KeyTokenEncoder.over_tokens(), or output_mode='pairs'."
                )
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
            TypeError: If a setting is of another type.
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
        settings = read_json(path / cls.config_file_name)
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
            ValueError: If the parts do not fit, or a setting needs a calibration or an LM head that is not there.
        """
        like = self._place if self.lm_head is None else self.lm_head.weight
        state = (None if self.calibration is None else self.calibration.hash, like.device, like.dtype)
        if self._ready is None or self._ready[0] != state:
            vocabulary = self._check_bound()
            check_fit(self.lm_head, vocabulary, self.calibration)
            with torch.inference_mode(False), torch.no_grad():  # the tensors outlive the call, maybe with gradients
                self._ready = state, self._by_ridge() if self.is_ridge else self._by_lm_head(vocabulary)
        return self._ready[1]

    def _by_lm_head(self, vocabulary: Vocabulary | WordVocabulary) -> Decoding:
        calibration, lm_head, correction = self.calibration, self.decoder, self.active_correction
        if calibration is None and (correction != "none" or self.standardize):
            raise ValueError(
                f"correction={self.correction!r}, standardize={self.standardize!r} need a calibration, got None. "
                "Fit one with KeyTokenEncoder.calibrate or Calibration.fit, or use correction='none'."
            )
        direction = mean = None
        masked = torch.from_numpy(vocabulary.is_masked)
        scale, offset = torch.ones(len(masked)), torch.zeros(len(masked))
        if calibration is not None:
            direction = calibration.first_component.direction.to(torch.float32, copy=True).to(lm_head.device)
            mean = calibration.moments.mean.to(torch.float32, copy=True).to(lm_head.device)
            if self.standardize is not False:
                statistics = self._statistics.get(calibration, lm_head, correction=correction, shift=self.shift)
                scale, offset = scale_and_offset(*statistics, masked)
        return Decoding(
            lm_head,
            self.is_normalizing,
            correction,
            direction,
            mean,
            self.shift,
            scale.masked_fill(masked, 0.0).to(lm_head.device),
            offset.masked_fill(masked, float("-inf")).to(lm_head.device),
            torch.from_numpy(vocabulary.terms).to(lm_head.device),
        )

    def _by_ridge(self) -> Decoding:
        if self.calibration is None:
            raise ValueError(
                "decode_with='ridge' needs a calibration, got None. Fit one with KeyTokenEncoder.calibrate, or use "
                "decode_with='lm_head'."
            )
        vocabulary = self._check_bound()
        terms_of_rows = vocabulary.terms if isinstance(vocabulary, WordVocabulary) else None
        ridge = self.calibration.ridge_decoder(lm_head=self.lm_head, lm_head_terms=terms_of_rows)
        ridge = ridge.with_normalized_terms()
        dtype = DTYPES[self._compute_dtype or "float32"] if self.lm_head is None else self.lm_head.compute_dtype
        ridge = ridge.to(self.device, dtype)
        terms = torch.from_numpy(ridge.term_ids).to(self.device)
        scale, offset = torch.ones(len(terms), device=terms.device), torch.zeros(len(terms), device=terms.device)
        return Decoding(ridge, self.is_normalizing, "none", None, None, 0.0, scale, offset, terms)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeyTokenHead:
        """Moves, but never casts, an LM head of its own: it keeps the dtype that it was read in."""
        parameters = [(parameter, parameter.data) for parameter in self.parameters()]
        super()._apply(fn, recurse)
        for parameter, data in parameters:
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)
        return self


def transformers_of(model: torch.nn.Module, head: torch.nn.Module) -> list[Any]:
    """The modules with a transformers model that may feed a head."""
    route = next((module for module in model.modules() if any(part is head for part in module.children())), model)
    found = {id(module.auto_model): module for module in route.modules() if hasattr(module, "auto_model")}
    return list(found.values())


def lm_head_of(model: torch.nn.Module, head: torch.nn.Module, compute_dtype: torch.dtype | None) -> LMHead:
    """The LM head that a model itself holds."""
    transformers = transformers_of(model, head)
    if len(transformers) != 1:
        inside = ", ".join(type(module.auto_model).__name__ for module in transformers) or "none"
        first = type(model[0] if isinstance(model, torch.nn.Sequential) else model).__name__
        raise ValueError(
            f"model must hold exactly one transformers model for its LM head to be known, got {inside} in {first}. "
            "Pass lm_head, which LMHead.from_checkpoint reads from the language model behind the embeddings."
        )
    return LMHead.from_model(transformers[0].auto_model, compute_dtype=compute_dtype)


def is_own_lm_head(lm_head: LMHead, model: torch.nn.Module, head: torch.nn.Module) -> bool:
    """Whether an LM head's weight is that of a model's own input embeddings."""
    bodies = [module.auto_model for module in transformers_of(model, head)]
    return len(bodies) == 1 and lm_head.weight is getattr(bodies[0].get_input_embeddings(), "weight", None)


def tokenizer_of(model: torch.nn.Module, head: torch.nn.Module) -> Any:
    """The tokenizer of the texts that a head sees."""
    modules: list[Any] = transformers_of(model, head) or [model]
    tokenizers = [tokenizer for module in modules if (tokenizer := getattr(module, "tokenizer", None)) is not None]
    hashes = {Vocabulary.from_tokenizer(tokenizer).hash for tokenizer in tokenizers} if len(tokenizers) > 1 else ()
    if not tokenizers or len(hashes) > 1:
        found = f"{len(hashes)} different ones" if hashes else "none"
        raise ValueError(
            f"model must have one tokenizer, got {found}. Pass vocabulary, which Vocabulary.from_tokenizer makes of "
            "the LM head's tokenizer, to KeyTokenHead."
        )
    return tokenizers[0]


def check_fit(
    lm_head: LMHead | None, vocabulary: Vocabulary | WordVocabulary | None, calibration: Calibration | None
) -> None:
    """Check that the parts of a head, as far as they are there, are one model's.

    Args:
        lm_head: The LM head.
        vocabulary: The vocabulary.
        calibration: The calibration.

    Raises:
        ValueError: If they are of different sizes or vocabularies, or the calibration is empty.
    """
    if lm_head is not None and vocabulary is not None and vocabulary.token_count != lm_head.vocab_size:
        raise ValueError(
            f"vocabulary has {vocabulary.token_count} tokens, but the LM head has {lm_head.vocab_size} rows. "
            "Pass Vocabulary.from_tokenizer(tokenizer, lm_head.vocab_size) with the model's own tokenizer."
        )
    if calibration is None:
        return
    if calibration.document_count == 0:
        raise ValueError("calibration must be fitted on at least one embedding, got none. Fit it first.")
    dimension, fitted_for = calibration.embedding_dimension, calibration.vocabulary_hash
    if lm_head is not None and dimension != lm_head.embedding_dimension:
        raise ValueError(
            f"calibration was fitted on embeddings of dimension {dimension}, but the LM head decodes dimension "
            f"{lm_head.embedding_dimension}. Fit a calibration with this model."
        )
    if vocabulary is not None and fitted_for is not None and fitted_for != vocabulary.hash:
        raise ValueError(
            f"calibration was fitted for the vocabulary {fitted_for[:12]}, but the model has {vocabulary.hash[:12]}. "
            "Fit a calibration with this model and these folding settings."
        )


def width_and_rows(model: torch.nn.Module, head: torch.nn.Module) -> tuple[int, int | None]:
    """The width of the vectors that a head without an LM head decodes, and the rows of the model's embedding matrix.

    Raises:
        ValueError: If the model does not tell its width.
    """
    before = list(model) if isinstance(model, torch.nn.Sequential) else [model]
    if head in before:
        before = before[: before.index(head)]
    pooled = [module for module in before if isinstance(module, Pooling)] or before
    widths = [get() for module in pooled if callable(get := getattr(module, "get_embedding_dimension", None))]
    if not widths or widths[-1] is None:
        raise ValueError("model must tell the dimension of its embeddings, got None. Pass lm_head.")
    bodies = [module.auto_model for module in transformers_of(model, head)]
    matrix = getattr(bodies[0].get_input_embeddings(), "weight", None) if len(bodies) == 1 else None
    return int(widths[-1]), None if matrix is None else len(matrix)


def _counts(is_finite: Tensor) -> tuple[int, int]:
    return int((~is_finite).sum()), len(is_finite)
