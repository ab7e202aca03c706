"""What a head is made of: its settings, LM head, vocabulary and calibration, and the model that they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from sentence_transformers.base.modules import Module

from st_keytokens.binding import check_fit, is_own_lm_head, lm_head_of, tokenizer_of
from st_keytokens.calibration import Calibration
from st_keytokens.decoder import Decoder
from st_keytokens.decoding import Activation, Decoding
from st_keytokens.first_component import Correction
from st_keytokens.head_settings import (
    ComputeDtype,
    DecoderName,
    HeadCorrection,
    HeadSettings,
    OutputMode,
    checked_settings,
)
from st_keytokens.lm_head import LMHead
from st_keytokens.lm_head.head_parts import DTYPES
from st_keytokens.standardization import LogitStatistics
from st_keytokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class BoundHead(Module):  # type: ignore[misc]  # untyped for mypy, see pyproject.toml
    """Settings and parts of a :class:`~st_keytokens.key_token_head.KeyTokenHead`; see there."""

    config_keys: ClassVar[list[str]] = [
        "max_active_dims",
        "query_max_active_dims",
        "decode_with",
        "correction",
        "shift",
        "standardize",
        "activation",
        "normalize",
        "fold",
        "output_mode",
        "compute_dtype",
    ]

    def __init__(
        self,
        lm_head: LMHead | None = None,
        vocabulary: Vocabulary | None = None,
        calibration: Calibration | None = None,
        *,
        max_active_dims: int = 256,
        query_max_active_dims: int = 96,
        decode_with: DecoderName = "auto",
        correction: HeadCorrection = "auto",
        shift: float = 0.0,
        standardize: bool | None = None,
        activation: Activation = "relu",
        normalize: bool | None = None,
        fold: bool = True,
        output_mode: OutputMode = "pairs",
        compute_dtype: ComputeDtype | None = None,
    ) -> None:
        super().__init__()
        self.max_active_dims = max_active_dims
        self.query_max_active_dims = query_max_active_dims
        self.decode_with = decode_with
        self.correction = correction
        self.shift = shift
        self.standardize = standardize
        self.activation = activation
        self.normalize = normalize
        self.output_mode = output_mode
        self._fold = fold
        self._compute_dtype = compute_dtype
        self.lm_head: LMHead | None = None
        self.vocabulary = vocabulary
        self.calibration = calibration
        self._tokenizer: Any = None
        self._statistics = LogitStatistics()
        self._ready: tuple[tuple[Any, ...], Decoding] | None = None  # a state, and what decodes in it
        self.get_config_dict()  # checks the settings
        if lm_head is not None:
            self.lm_head = lm_head if compute_dtype is None else lm_head.sharing(compute_dtype=DTYPES[compute_dtype])
        check_fit(self.lm_head, self.vocabulary, self.calibration)

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
            ValueError: See the class, or if the model's LM head cannot be known from the model alone.
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
        head = type(self)(self.lm_head, vocabulary, self.calibration, **config)
        head._tokenizer = self._tokenizer
        head.take_statistics(self)
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
        """Whether the head has its LM head and vocabulary."""
        return self.lm_head is not None and self.vocabulary is not None

    def bind(self, model: torch.nn.Module) -> None:
        """Takes from ``model`` what is missing: the LM head tied to its input embeddings, and the vocabulary.

        Args:
            model: SentenceTransformer, or its Transformer module. The routes of a ``Router`` may share one.

        Raises:
            TypeError: If the model inside is not PyTorch's.
            ValueError: If the LM head or the vocabulary cannot be known from the model alone, or the parts do not
                fit; the head stays as it was.
        """
        before = self.lm_head, self.vocabulary, self._tokenizer
        try:
            if self.lm_head is None:
                name = self._compute_dtype
                self.lm_head = lm_head_of(model, self, None if name is None else DTYPES[name])
            elif self.lm_head.is_tied and not is_own_lm_head(self.lm_head, model, self):  # but to another model
                self.lm_head = self.lm_head.sharing(is_tied=False)
            if self.vocabulary is None:
                self._tokenizer = tokenizer_of(model, self)
                self.vocabulary = Vocabulary.from_tokenizer(self._tokenizer, self.lm_head.vocab_size, fold=self._fold)
            check_fit(self.lm_head, self.vocabulary, self.calibration)
        except Exception:
            self.lm_head, self.vocabulary, self._tokenizer = before
            raise

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

    def take_statistics(self, other: BoundHead) -> None:
        """Takes over the logit statistics that another head knows; those that do not apply here do no harm.

        Args:
            other: The other head.
        """
        self._statistics = other._statistics

    @property
    def decoder(self) -> Decoder:
        """What turns embeddings into logits: the LM head."""
        return self._bound()[0]

    @property
    def bound_vocabulary(self) -> Vocabulary:
        """The vocabulary of a bound head."""
        return self._bound()[1]

    @property
    def vocab_size(self) -> int:
        """Number of tokens that it decodes to."""
        return self.decoder.vocab_size

    @property
    def lm_head_dimension(self) -> int:
        """Dimension of the vectors that it decodes."""
        return self.decoder.embedding_dimension

    @property
    def is_ridge(self) -> bool:
        """Whether the calibration's ridge decoder decodes: ``decode_with`` with ``"auto"`` resolved."""
        if self.decode_with != "auto":
            return self.decode_with == "ridge"
        is_default = self.correction == "auto" and self.standardize is None
        return is_default and self.calibration is not None and self.calibration.has_cross_moments

    @property
    def active_correction(self) -> Correction:
        """The correction in force: ``correction`` with ``"auto"`` resolved."""
        if self.correction != "auto":
            return self.correction
        return "none" if self.calibration is None else "remove"

    @property
    def is_normalizing(self) -> bool:
        """Whether embeddings are decoded at length 1: ``normalize`` with None resolved."""
        return self.decoder.is_scale_free if self.normalize is None else self.normalize

    def get_config_dict(self) -> dict[str, Any]:
        """Settings as they are now, as JSON values.

        Returns:
            The value of each of the class's keyword arguments.

        Raises:
            TypeError: If a setting was changed to another type.
            ValueError: If a setting was changed to what is not one of its choices.
        """
        return {**checked_settings({name: getattr(self, name) for name in self.config_keys})}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None}

    def _bound(self) -> tuple[LMHead, Vocabulary]:
        if self.lm_head is None or self.vocabulary is None:
            raise RuntimeError(
                "KeyTokenHead is not bound to a model, so it has no LM head. Call head.bind(model) once after the "
                "model is complete, or build it with KeyTokenHead.for_model(model)."
            )
        return self.lm_head, self.vocabulary
