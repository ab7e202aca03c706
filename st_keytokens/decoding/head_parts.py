"""The parts of an LM head, output layer and transform, taken from a model or read from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional

from st_keytokens.decoding.checkpoint import CheckpointTensors
from st_keytokens.decoding.head_layouts import HeadLayout, find_name

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class FrozenLayer(nn.Module):
    """A weight and a bias that are not trained, for parts that no model holds.

    Args:
        weight: Any shape.
        bias: One value per row of the weight, or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


class HeadTransform(nn.Module):
    """What masked language models do before the product: dense layer, activation, layer norm; in float32 throughout.

    Args:
        dense: Module with a weight, shape ``(hidden_size, embedding_dimension)``, and maybe a bias.
        norm: Module with a weight, shape ``(hidden_size,)``, and maybe a bias.
        activation: A name in ``transformers.activations.ACT2FN``.
        norm_eps: Epsilon of the norm.
    """

    def __init__(self, dense: nn.Module, norm: nn.Module, *, activation: str, norm_eps: float) -> None:
        super().__init__()
        self.dense = dense
        self.norm = norm
        self.activation = activation
        self.norm_eps = norm_eps

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Transform embeddings."""
        from transformers.activations import ACT2FN

        dense, dense_bias, norm, norm_bias = (
            None if tensor is None else tensor.to(embeddings.device, torch.float32)
            for tensor in (*tensors_of(self.dense), *tensors_of(self.norm))
        )
        with without_autocast(embeddings.device):
            hidden = ACT2FN[self.activation](functional.linear(embeddings, cast(torch.Tensor, dense), dense_bias))
            return functional.layer_norm(hidden, hidden.shape[-1:], norm, norm_bias, self.norm_eps)


def without_autocast(device: torch.device) -> torch.autocast:
    """A context in which autocast does not change the dtype of a computation on a device."""
    return torch.autocast("cuda" if device.type == "cuda" else "cpu", enabled=False)


class HeadParts(NamedTuple):
    """An output layer, and the transform before it, if any."""

    output: nn.Module
    transform: HeadTransform | None


def tensors_of(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight and the bias of a layer; the bias is None where it has none."""
    return cast(torch.Tensor, layer.weight), cast("torch.Tensor | None", getattr(layer, "bias", None))


def tensors_by_name(parts: HeadParts) -> dict[str, torch.Tensor]:
    """All tensors of the parts, as they are, under the names that `parts_of_tensors` knows."""
    layers = {"output": parts.output}
    if parts.transform is not None:
        layers |= {"transform.dense": parts.transform.dense, "transform.norm": parts.transform.norm}
    return {
        f"{name}.{kind}": tensor
        for name, layer in layers.items()
        for kind, tensor in zip(("weight", "bias"), tensors_of(layer), strict=True)
        if tensor is not None
    }


def parts_of_tensors(tensors: Mapping[str, torch.Tensor], activation: str | None, norm_eps: float | None) -> HeadParts:
    """Parts that own the given tensors; the inverse of `tensors_by_name`.

    Raises:
        KeyError: If a tensor is missing.
    """

    def layer(name: str) -> FrozenLayer:
        return FrozenLayer(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    if activation is None or norm_eps is None:
        return HeadParts(layer("output"), None)
    dense, norm = layer("transform.dense"), layer("transform.norm")
    return HeadParts(layer("output"), HeadTransform(dense, norm, activation=activation, norm_eps=norm_eps))


def check_parts(parts: HeadParts) -> None:
    """Check that the tensors of the parts can be multiplied.

    Raises:
        TypeError: If one is no floating-point tensor of 16 bits or more.
        ValueError: If one is on the meta device or has a shape that does not fit the others.
    """
    check_loaded(getattr(parts.output, "weight", None))
    tensors = tensors_by_name(parts)
    rows, hidden_size = (*tensors["output.weight"].shape, 0, 0)[:2]
    shapes: dict[str, tuple[int | None, ...]] = {
        "output.weight": (rows, None),
        "output.bias": (rows,),
        "transform.dense.weight": (hidden_size, None),
        "transform.dense.bias": (hidden_size,),
        "transform.norm.weight": (hidden_size,),
        "transform.norm.bias": (hidden_size,),
    }
    for name, tensor in tensors.items():
        check_loaded(tensor)
        shape = shapes[name]
        pairs = zip(shape, tensor.shape, strict=False)
        if len(shape) != tensor.ndim or any(size not in (None, got) for size, got in pairs):
            expected = " x ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(
                f"LM head must have {name} of shape {expected}, got {tuple(tensor.shape)}. Pass the tensor_name or "
                "the checkpoint that belongs to the model."
            )


def check_loaded(tensor: Any) -> None:
    """Check that a tensor is there and floating point.

    Raises:
        TypeError: If it is no floating-point tensor of 16 bits or more.
        ValueError: If it is on the meta device.
    """
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in DTYPES.values():
        raise TypeError(
            f"LM head must have tensors of {', '.join(DTYPES)}, got "
            f"{getattr(tensor, 'dtype', type(tensor).__name__)}. Load the model without quantisation, or use "
            "LMHead.from_checkpoint."
        )
    if tensor.is_meta:
        raise ValueError(
            "LM head must have its weights in memory, got one on the meta device (not loaded, or offloaded). Load the "
            "model without offloading its embeddings, or use LMHead.from_checkpoint."
        )


def input_embeddings(model: Any) -> nn.Module:
    """The input embeddings of a model.

    Raises:
        TypeError: If it is no ``transformers`` model.
    """
    if not hasattr(model, "config") or not hasattr(model, "get_input_embeddings"):
        raise TypeError(
            f"model must be a transformers model, got {type(model).__name__}. Pass the model inside, such as "
            "model[0].auto_model of a SentenceTransformer; for other backends use LMHead.from_checkpoint."
        )
    return cast(nn.Module, model.get_input_embeddings())


def parts_of_model(model: Any, layout: HeadLayout) -> HeadParts:
    """Find the LM head in a model, or the input embeddings of a body that are its LM head.

    Args:
        model: A ``transformers`` model.
        layout: The layout of its configuration.

    Returns:
        The model's own modules.

    Raises:
        ValueError: If a body does not hold its LM head.
    """
    output = model.get_output_embeddings()
    if output is None:  # a body
        if layout.missing_in_body:
            raise ValueError(
                f"model must hold its LM head, got the body {type(model).__name__} without the head's "
                f"{', '.join(layout.missing_in_body)}. Use LMHead.from_checkpoint with the name or path of the "
                "language model that it was made from."
            )
        return HeadParts(input_embeddings(model), None)
    if not layout.dense:
        return HeadParts(output, None)
    modules = dict(model.named_modules())
    dense, norm = (modules[_require(modules, [name], type(model).__name__)] for name in (layout.dense, layout.norm))
    return HeadParts(output, HeadTransform(dense, norm, activation=layout.activation, norm_eps=layout.norm_eps))


def parts_of_checkpoint(
    checkpoint: CheckpointTensors,
    layout: HeadLayout,
    *,
    tensor_name: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> HeadParts:
    """Read the parts of an LM head, and no other tensor.

    Args:
        checkpoint: Where to read.
        layout: The layout of its configuration.
        tensor_name: Name of the output weight, where it is not the usual one.
        device: Where to put them; the CPU for None.
        dtype: What to convert them to; as stored for None.

    Returns:
        Frozen layers that own what was read.

    Raises:
        ValueError: If a tensor is missing.
    """

    def layer(weights: Iterable[str], biases: Iterable[str], *, needs_bias: bool = False) -> FrozenLayer:
        names = [_require(checkpoint.names, weights, str(checkpoint.name_or_path), checkpoint.contents())]
        if needs_bias or find_name(checkpoint.names, biases):
            names.append(_require(checkpoint.names, biases, str(checkpoint.name_or_path), checkpoint.contents()))
        return FrozenLayer(*(checkpoint.read(name, device=device, dtype=dtype) for name in names))

    stems = list(layout.output) if tensor_name is None else [tensor_name.removesuffix(".weight")]
    weights = [f"{stem}.weight" for stem in stems] if tensor_name is None else [tensor_name]
    if tensor_name is None and layout.is_tied:
        weights += [f"{stem}.weight" for stem in layout.embeddings]
    output = layer(weights, [*(f"{stem}.bias" for stem in stems), *layout.bias], needs_bias=layout.has_bias)
    if not layout.dense:
        return HeadParts(output, None)
    dense = layer([f"{layout.dense}.weight"], [f"{layout.dense}.bias"])
    norm = layer(  # gamma and beta in checkpoints from before PyTorch
        [f"{layout.norm}.weight", f"{layout.norm}.gamma"], [f"{layout.norm}.bias", f"{layout.norm}.beta"]
    )
    return HeadParts(output, HeadTransform(dense, norm, activation=layout.activation, norm_eps=layout.norm_eps))


def _require(names: Iterable[str], wanted: Iterable[str], where: str, contents: str = "") -> str:
    wanted = list(wanted)
    name = find_name(names, wanted)
    if name is None:
        raise ValueError(
            f"{where} must hold the LM head, got none of {', '.join(wanted)}. {contents} Pass the language model "
            "that it was made from, or tensor_name."
        )
    return name
