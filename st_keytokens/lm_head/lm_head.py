"""LM heads: held by a model, read from a checkpoint, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from st_keytokens.lm_head.checkpoint_tensors import CheckpointTensors
from st_keytokens.lm_head.head_layouts import HeadLayout, head_layout
from st_keytokens.lm_head.head_logits import HeadLogits
from st_keytokens.lm_head.head_parts import (
    HeadParts,
    input_embeddings,
    parts_of_checkpoint,
    parts_of_model,
    tensors_of,
)
from st_keytokens.lm_head.saved_head import SavedHead, read_head, write_head


class LMHead(HeadLogits):
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
        layout = head_layout(config)
        parts = parts_of_checkpoint(checkpoint, layout, tensor_name=tensor_name, device=device, dtype=dtype)
        return cls._build(parts, layout, compute_dtype=compute_dtype, is_held=False, is_tied=False)

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
        """Write all tensors to ``lm_head.safetensors`` and the settings to ``lm_head.json``.

        Args:
            directory: Made if it is not there.

        Raises:
            OSError: If the directory cannot be written.
        """
        write_head(Path(directory), SavedHead(self.parts, self.scale, self.soft_cap, self._compute_dtype))

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
        parts, scale, soft_cap, compute_dtype = read_head(Path(directory), device)
        return cls(*parts, scale=scale, soft_cap=soft_cap, compute_dtype=compute_dtype, is_held=False)
