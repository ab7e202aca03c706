"""What an LM head computes: logits from embeddings."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from st_keytokens.lm_head.head_parts import (
    DTYPES,
    HeadParts,
    HeadTransform,
    check_loaded,
    check_parts,
    tensors_by_name,
    tensors_of,
    without_autocast,
)


class HeadLogits(nn.Module):
    """The arithmetic of an `LMHead`; see there."""

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
        return tensors_of(self.parts.output)[0]

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
        """SHA-256, hexadecimal, of a sample of the values as bfloat16, and of all else that changes a logit."""
        transform = self.parts.transform
        settings = [self.scale, self.soft_cap, self.compute_dtype_name]
        settings += [] if transform is None else [transform.activation, transform.norm_eps]
        digest = hashlib.sha256(repr(settings).encode())
        for name, tensor in tensors_by_name(self.parts).items():
            sample = tensor.detach()[:: max(1, len(tensor) // 64)].to("cpu", torch.bfloat16)
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(sample.contiguous().view(torch.int16).numpy().tobytes())
        return digest.hexdigest()

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
