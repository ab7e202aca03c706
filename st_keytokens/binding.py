"""What a head takes from the model that it is in, the LM head and the vocabulary, and whether its parts fit."""

from __future__ import annotations

from typing import Any

import torch

from st_keytokens.calibration import Calibration
from st_keytokens.lm_head import LMHead
from st_keytokens.vocabulary import Vocabulary


def transformers_of(model: torch.nn.Module, head: torch.nn.Module) -> list[Any]:
    """The modules with a transformers model that may feed a head.

    Args:
        model: A SentenceTransformer, or its Transformer module.
        head: The head; where it is in a route of a ``Router``, only that route counts.

    Returns:
        One module for each transformers model.
    """
    route = next((module for module in model.modules() if any(part is head for part in module.children())), model)
    found = {id(module.auto_model): module for module in route.modules() if hasattr(module, "auto_model")}
    return list(found.values())


def lm_head_of(model: torch.nn.Module, head: torch.nn.Module, compute_dtype: torch.dtype | None) -> LMHead:
    """The LM head that a model itself holds.

    Args:
        model: A SentenceTransformer, or its Transformer module.
        head: See :func:`transformers_of`.
        compute_dtype: Dtype of the product, None for the weight's own.

    Returns:
        The LM head, held.

    Raises:
        TypeError: If the model inside is not PyTorch's.
        ValueError: If there is not exactly one model inside, or it does not hold its LM head.
    """
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
    """Whether an LM head's weight is that of a model's own input embeddings.

    Args:
        lm_head: The LM head.
        model: A SentenceTransformer, or its Transformer module.
        head: See :func:`transformers_of`.

    Returns:
        False also where the model has no single transformers model.
    """
    bodies = [module.auto_model for module in transformers_of(model, head)]
    return len(bodies) == 1 and lm_head.weight is getattr(bodies[0].get_input_embeddings(), "weight", None)


def tokenizer_of(model: torch.nn.Module, head: torch.nn.Module) -> Any:
    """The tokenizer of the texts that a head sees.

    Args:
        model: A SentenceTransformer, or its Transformer module.
        head: See :func:`transformers_of`.

    Returns:
        The tokenizer.

    Raises:
        ValueError: If there is none, or there are several with different vocabularies.
    """
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


def check_fit(lm_head: LMHead | None, vocabulary: Vocabulary | None, calibration: Calibration | None) -> None:
    """Check that the parts of a head, as far as they are there, are one model's.

    Args:
        lm_head: The LM head.
        vocabulary: The vocabulary.
        calibration: The calibration.

    Raises:
        ValueError: If they are of different sizes or vocabularies, or the calibration is empty.
    """
    if lm_head is not None and vocabulary is not None and vocabulary.vocab_size != lm_head.vocab_size:
        raise ValueError(
            f"vocabulary has {vocabulary.vocab_size} tokens, but the LM head has {lm_head.vocab_size} rows. "
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
