"""LM heads: held by a model, read from a checkpoint, saved and loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from st_keytokens.decoding.checkpoint import CheckpointTensors
from st_keytokens.decoding.head_layouts import HeadLayout, head_layout
from st_keytokens.decoding.head_parts import (
    DTYPES,
    HeadParts,
    HeadTransform,
    check_loaded,
    check_parts,
    input_embeddings,
    parts_of_checkpoint,
    parts_of_model,
    parts_of_tensors,
    tensors_by_name,
    tensors_of,
    without_autocast,
)
from st_keytokens.shared.files import file_hash, read_json, read_tensors, write_atomically
from st_keytokens.shared.hashes import fingerprint, tensors_hash

_SETTINGS_FILE = "lm_head.json"
_TENSORS_FILE = "lm_head.safetensors"
_FORMAT_VERSION = 1


class LMHead(nn.Module):
    """Decodes embeddings as their language model would: ``cap(scale * (transform(x) @ weight.T + bias))``.

    Made by `from_model`, `from_checkpoint`, `from_input_embeddings` or `load`. Parts that belong to a model are
    *held*, not registered: they add nothing to ``state_dict``, follow whatever is done to the model, and stay shared
    when a container of model and head is pickled or copied; ``.to()`` of the head alone does not move them.

    Args:
        output: Module with a weight, shape ``(vocab_size, hidden_size)``, and maybe a bias, shape ``(vocab_size,)``.
        transform: What comes before the product, or None.
        scale: Factor of the logits.
        soft_cap: ``c`` in ``c * tanh(logits / c)``, or None.
        compute_dtype: Dtype of the product, None for the weight's own. For another one a converted copy of the
            weight is kept.
        is_held: Whether the parts belong to a model.
        is_tied: Whether `from_model` makes the same head of the body alone, so that nothing of it needs to be saved.

    Attributes:
        parts: Output layer and transform.
        scale: As above.
        soft_cap: As above.
        is_held: As above.
        is_tied: As above.

    Raises:
        TypeError: If a weight is no floating-point tensor of 16 bits or more.
        ValueError: If shapes do not fit together, a setting is out of range, or a weight is on the meta device.

    Examples:
        >>> head = LMHead(torch.nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])))
        >>> head.logits(torch.tensor([[3.0, 1.0]]))
        tensor([[3., 2., 4.]])
    """

    def __init__(
        self,
        output: nn.Module,
        transform: HeadTransform | None = None,
        *,
        scale: float = 1.0,
        soft_cap: float | None = None,
        compute_dtype: torch.dtype | None = None,
        is_held: bool = True,
        is_tied: bool = False,
    ) -> None:
        super().__init__()
        if compute_dtype is not None and compute_dtype not in DTYPES.values():
            raise ValueError(f"compute_dtype must be None or one of {', '.join(DTYPES)}, got {compute_dtype}.")
        if soft_cap is not None and not soft_cap > 0:
            raise ValueError(f"soft_cap must be None or above 0, got {soft_cap}.")
        self.scale = float(scale)
        self.soft_cap = soft_cap
        self.is_tied = is_tied
        self._compute_dtype = compute_dtype
        self._converted: tuple[tuple[Any, ...], torch.Tensor] | None = None
        self.is_held = is_held
        self.parts = HeadParts(output, transform)
        if not is_held:
            self.output = output
            self.transform = transform
        check_parts(self.parts)

    @property
    def weight(self) -> torch.Tensor:
        """The weight of the output layer, shape ``(vocab_size, hidden_size)``."""
        weight: torch.Tensor = self.parts.output.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the output layer, shape ``(vocab_size,)``, or None."""
        return tensors_of(self.parts.output)[1]

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self.weight.shape[0]

    @property
    def embedding_dimension(self) -> int:
        """Width of the embeddings that go in."""
        transform = self.parts.transform
        return (self.weight if transform is None else tensors_of(transform.dense)[0]).shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the weight, and of the logits."""
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weight."""
        return self.weight.dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of the product."""
        return self._compute_dtype or self.dtype

    @property
    def compute_dtype_name(self) -> str | None:
        """The ``compute_dtype`` that was asked for, as ``"float32"``; None for the weight's own."""
        return next((name for name, dtype in DTYPES.items() if dtype == self._compute_dtype), None)

    @property
    def hash(self) -> str:
        """Names all that changes a logit: the tensors, the same in bfloat16 as in float32, and the settings."""
        return fingerprint({"head": self._hash(has_tensors=True), "compute_dtype": self.compute_dtype_name})

    @property
    def hash_beside_model(self) -> str:
        """:attr:`hash` but for the dtype of the product, and for the tensors where they are the model's own (tied)."""
        return self._hash(has_tensors=not self.is_tied)

    def _hash(self, *, has_tensors: bool) -> str:
        transform = self.parts.transform
        settings: list[Any] = [self.is_tied, self.scale, self.soft_cap, repr(transform)]
        if transform is not None and (transform.activation, transform.norm_eps) != ("gelu", 1e-12):
            settings += [transform.activation, transform.norm_eps]  # what a transform's repr does not show
        tensors = tensors_by_name(self.parts) if has_tensors else {}
        named = {name.replace(".", "-"): tensor for name, tensor in tensors.items()}
        return fingerprint({"tensors": tensors_hash(named), "settings": settings})

    @property
    def is_scale_free(self) -> bool:
        """Whether an embedding twice as long has logits twice as high, so that its length changes no ranking."""
        return self.is_affine and self.bias is None

    @property
    def is_affine(self) -> bool:
        """Whether logits are ``scale * (x @ weight.T + bias)``: neither transform nor soft cap."""
        return self.parts.transform is None and self.soft_cap is None

    def hidden_states(self, embeddings: torch.Tensor) -> torch.Tensor:
        """What the weight is multiplied with: the embeddings after the transform.

        Args:
            embeddings: Shape ``(batch_size, embedding_dimension)``, float, any device. Not modified.

        Returns:
            Shape ``(batch_size, hidden_size)``, float32, on the head's device.

        Raises:
            TypeError: If embeddings are no floating-point tensor.
            ValueError: If their shape does not fit, or the weight is on the meta device.
        """
        if not isinstance(embeddings, torch.Tensor) or not embeddings.is_floating_point():
            got = f"dtype {embeddings.dtype}" if isinstance(embeddings, torch.Tensor) else type(embeddings).__name__
            raise TypeError(f"embeddings must be a floating-point tensor, got {got}.")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dimension:
            raise ValueError(
                f"embeddings must have shape (batch_size, {self.embedding_dimension}), got {tuple(embeddings.shape)}. "
                "Pass the pooled embeddings of the model that the LM head belongs to, not truncated."
            )
        check_loaded(self.weight)
        hidden = embeddings.to(device=self.device, dtype=torch.float32)
        return hidden if self.parts.transform is None else self.parts.transform(hidden)

    def rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows of weight and bias, with the values that `logits` computes with: rounded to ``compute_dtype``, if any.

        Args:
            start: The first token.
            stop: The last token + 1; beyond the vocabulary, its end.

        Returns:
            Rows of the weight, shape ``(rows, hidden_size)``, and of ``scale * bias``, shape ``(rows,)``, or None
            without a bias; both float32, on the head's device. Logits before the soft cap are
            ``scale * hidden_states @ weight.T + bias``.

        Raises:
            ValueError: If the weight is on the meta device.
        """
        check_loaded(self.weight)
        weight = self.weight[start:stop].to(self.compute_dtype).float()
        bias = self._compute_bias()
        return weight, None if bias is None else bias[start:stop].float()

    def logits(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Decode embeddings.

        Args:
            embeddings: Shape ``(batch_size, embedding_dimension)``, float, any device. Not modified.

        Returns:
            Logits, shape ``(batch_size, vocab_size)``, on the head's device; ``compute_dtype``, or float32 where the
            head has a soft cap.

        Raises:
            TypeError: If embeddings are no floating-point tensor.
            ValueError: If their shape does not fit, or the weight is on the meta device.
        """
        hidden = self.hidden_states(embeddings) * self.scale
        with without_autocast(self.device):
            logits = functional.linear(hidden.to(self.compute_dtype), self._compute_weight(), self._compute_bias())
        return logits if self.soft_cap is None else torch.tanh(logits.float() / self.soft_cap) * self.soft_cap

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Decode embeddings, as `logits`."""
        return self.logits(embeddings)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_converted": None}

    def extra_repr(self) -> str:
        """Sizes, and whether the parts belong to a model."""
        owner = "tied" if self.is_tied else "held" if self.is_held else "owned"
        return f"embedding_dimension={self.embedding_dimension}, vocab_size={self.vocab_size}, {owner}"

    def _compute_weight(self) -> torch.Tensor:
        """The weight in the dtype of the product, converted once for as long as it does not change."""
        weight, dtype = self.weight, self.compute_dtype
        if weight.dtype == dtype or weight.is_inference() or (weight.requires_grad and torch.is_grad_enabled()):
            return weight.to(dtype)
        version = (weight.data_ptr(), weight._version, weight.dtype, weight.device, dtype)
        if self._converted is None or self._converted[0] != version:
            with torch.inference_mode(False):
                self._converted = version, weight.detach().to(dtype)
        return self._converted[1]

    def _compute_bias(self) -> torch.Tensor | None:
        return None if self.bias is None else (self.bias.float() * self.scale).to(self.compute_dtype)

    @classmethod
    def from_model(cls, model: Any, *, compute_dtype: torch.dtype | None = None) -> LMHead:
        """Hold the LM head of a model.

        Args:
            model: A ``transformers`` model with an LM head; or a body, such as the ``auto_model`` in a
                SentenceTransformer, whose LM head is its input embeddings (tied).
            compute_dtype: Dtype of the product, None for the weight's own.

        Returns:
            The head.

        Raises:
            TypeError: If model is no ``transformers`` model.
            ValueError: If a body does not hold its LM head, or the architecture's cannot decode its embeddings.
        """
        inputs = input_embeddings(model)
        layout = head_layout(model.config)
        parts = parts_of_model(model, layout)
        is_tied = not layout.missing_in_body and tensors_of(parts.output)[0] is tensors_of(inputs)[0]
        return cls._build(parts, layout, compute_dtype=compute_dtype, is_held=True, is_tied=is_tied)

    @classmethod
    def from_input_embeddings(cls, model: Any, *, compute_dtype: torch.dtype | None = None) -> LMHead:
        """Hold a model's input embeddings as a bare head, whatever LM head the model was trained with.

        Args:
            model: A ``transformers`` model.
            compute_dtype: Dtype of the product, None for the weight's own.

        Returns:
            The head, without transform, bias, scale or soft cap.

        Raises:
            TypeError: If model is no ``transformers`` model.
        """
        return cls(input_embeddings(model), compute_dtype=compute_dtype)

    @classmethod
    def from_checkpoint(
        cls,
        name_or_path: str | Path,
        *,
        config: Any = None,
        revision: str | None = None,
        token: bool | str | None = None,
        cache_folder: str | Path | None = None,
        tensor_name: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> LMHead:
        """Read an LM head, and nothing else, from a safetensors checkpoint.

        Args:
            name_or_path: A local directory, an http(s) URL of a directory, or the id of a model on the Hub, whose
                cached files are used first. What is downloaded is not kept; `save` keeps it.
            config: The backbone's configuration, or a mapping; its ``config.json`` for None.
            revision: Branch, tag or commit, for the Hub.
            token: For the Hub as in huggingface_hub; for a URL sent only where it is a string.
            cache_folder: Where files of the Hub may be cached; huggingface_hub's own place for None.
            tensor_name: Name of the output weight, where it is not the usual one. With ``config={}`` the head is the
                bare product with that tensor.
            device: Where to put the head; the CPU for None.
            dtype: What to convert it to; as stored for None.
            compute_dtype: Dtype of the product, None for the weight's own.

        Returns:
            The head, owning its tensors.

        Raises:
            FileNotFoundError: If there is no safetensors checkpoint.
            ConnectionError: If the place cannot be reached.
            PermissionError: If reading is refused.
            ValueError: If a tensor is missing, quantised or of a wrong shape, a file is malformed or truncated, or the
                architecture's LM head cannot decode its embeddings.
        """
        checkpoint = CheckpointTensors(name_or_path, revision=revision, token=token, cache_folder=cache_folder)
        config = checkpoint.read_json("config.json") if config is None else config
        if config is None:
            raise ValueError(
                f"config must be given where there is no config.json, as in {str(name_or_path)!r}, got None. Pass the "
                "configuration of the language model."
            )
        try:
            layout = head_layout(config)
            parts = parts_of_checkpoint(checkpoint, layout, tensor_name=tensor_name, device=device, dtype=dtype)
            return cls._build(parts, layout, compute_dtype=compute_dtype, is_held=False, is_tied=False)
        except (ValueError, OSError):
            raise
        except Exception as err:  # of transformers, whose configurations calculate with what they are given
            raise ValueError(
                f"config must be the configuration of a language model, got an error with that of "
                f"{str(name_or_path)!r}: {err!r:.200}. Check its config.json."
            ) from err

    @classmethod
    def _build(cls, parts: HeadParts, layout: HeadLayout, **settings: Any) -> LMHead:
        head = cls(*parts, scale=layout.scale, soft_cap=layout.soft_cap, **settings)
        if layout.input_dimension not in (None, head.embedding_dimension):
            raise ValueError(
                f"LM head must take the {layout.input_dimension} dimensions of the configuration, got a weight for "
                f"{head.embedding_dimension}. Pass the checkpoint or the tensor_name that belongs to it."
            )
        return head

    def sharing(self, *, compute_dtype: torch.dtype | None = None, is_tied: bool | None = None) -> LMHead:
        """A head of the same parts, scale and soft cap.

        Args:
            compute_dtype: See the class; None for this head's.
            is_tied: See the class; None for this head's.

        Returns:
            The head; its weights are this head's own.

        Raises:
            ValueError: If compute_dtype is out of range.
        """
        return LMHead(
            *self.parts,
            scale=self.scale,
            soft_cap=self.soft_cap,
            compute_dtype=self._compute_dtype if compute_dtype is None else compute_dtype,
            is_held=self.is_held,
            is_tied=self.is_tied if is_tied is None else is_tied,
        )

    def save(self, directory: str | Path) -> None:
        """Write all tensors to ``lm_head.safetensors`` and the settings to ``lm_head.json``, each atomically.

        Args:
            directory: Made if it is not there.

        Raises:
            OSError: If the directory cannot be written.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        transform = self.parts.transform
        settings = {
            "format_version": _FORMAT_VERSION,
            "scale": self.scale,
            "soft_cap": self.soft_cap,
            "activation": None if transform is None else transform.activation,
            "norm_eps": None if transform is None else transform.norm_eps,
            "compute_dtype": self.compute_dtype_name,
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors_by_name(self.parts).items()}
        write_atomically(directory / _TENSORS_FILE, safetensors.torch.save(tensors))
        settings["checksum"] = _checksum(settings, directory / _TENSORS_FILE)
        write_atomically(directory / _SETTINGS_FILE, (json.dumps(settings, indent=2) + "\n").encode())

    @classmethod
    def load(cls, directory: str | Path, *, device: str | torch.device | None = None) -> LMHead:
        """Read what `save` wrote.

        Args:
            directory: Where it was written.
            device: Where to put the head; the CPU for None.

        Returns:
            The head, owning its tensors.

        Raises:
            FileNotFoundError: If there is no saved head.
            ValueError: If a file is malformed or truncated, or of another format.
        """
        directory = Path(directory)
        try:
            settings = read_json(directory / _SETTINGS_FILE)
            if type(settings["format_version"]) is int and settings["format_version"] == _FORMAT_VERSION:
                if "checksum" in settings and settings["checksum"] != _checksum(settings, directory / _TENSORS_FILE):
                    raise ValueError("other tensors or settings than were saved")  # earlier versions wrote no checksum
                tensors, _ = read_tensors(directory / _TENSORS_FILE)
                placed = {name: tensor.to(device) for name, tensor in tensors.items()}
                return cls(
                    *parts_of_tensors(placed, settings["activation"], settings["norm_eps"]),
                    scale=settings["scale"],
                    soft_cap=settings["soft_cap"],
                    compute_dtype=None if settings["compute_dtype"] is None else DTYPES[settings["compute_dtype"]],
                    is_held=False,
                )
        except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as err:
            raise ValueError(f"{directory} must hold a saved LM head, got {err!r}. Save it again.") from err
        raise ValueError(
            f"{directory} must be of format {_FORMAT_VERSION}, got {settings['format_version']!r}. Install the "
            "st-keytokens that wrote it."
        )


def _checksum(settings: dict[str, Any], tensors: Path) -> str:
    """SHA-256 over a saved head: its settings and the file of its tensors."""
    kept = {name: value for name, value in settings.items() if name != "checksum"}
    content = json.dumps(kept, sort_keys=True) + file_hash(tensors)
    return hashlib.sha256(content.encode()).hexdigest()
