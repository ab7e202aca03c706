"""The one forward pass: a model up to its pooled vectors, what the head decodes of them, and the modules behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sentence_transformers.util import batch_to_device, truncate_embeddings
from torch import Tensor
from tqdm.auto import tqdm

from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.shared.checks import check_choice, checked_int
from st_keytokens.sparse_embeddings import SparseEmbeddings
from st_keytokens.terms.vocabulary import ReadableTerms

Role = Literal["query", "document"]
_THREAD_CHARACTERS = 4096  # some 1,000 tokens: more leave a processor's caches, and are padded more
_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}  # as sentence-transformers looks


class ForwardPass:
    """Runs a model up to its pooled vectors, decodes those, and runs what comes after the head's place.

    The model itself is not changed. Callers hold a lock and ``torch.inference_mode``.

    Args:
        model: The SentenceTransformer.
        head: A bound head, in the model or not. Its place is that of the model's head, or else right after pooling,
            whose vectors the LM head decodes.

    Attributes:
        before: The modules up to pooling.
        after: The modules behind the head's place.
    """

    def __init__(self, model: SentenceTransformer, head: KeyTokenHead) -> None:
        self.model = model
        self.head = head
        modules, held = list(model), find_head(model)
        place = head_place(modules) if held is None else modules.index(held)
        self.before = modules[:place]
        self.after = [module for module in modules[place:] if module is not held]
        self._rows = head.bound_vocabulary.token_count
        self._unknown_token = make_usable(model, head.bound_vocabulary.token_count)
        self._to_pooled = model if place == len(modules) else self.chain(self.before)
        widths = [m.get_embedding_dimension() for m in self.before if hasattr(m, "get_embedding_dimension")]
        if widths and widths[-1] not in (None, self.pooled_dimension):
            raise ValueError(
                f"lm_head must decode vectors of dimension {widths[-1]}, which the model pools, got one for dimension "
                f"{self.pooled_dimension}. Use the LM head of the model's own backbone."
            )

    def check_stored(self) -> None:
        """Checks that the model's final vectors are what the head decodes, so that stored ones can be decoded.

        Raises:
            ValueError: If more than a normalisation follows pooling.
        """
        others = [type(module).__name__ for module in self.after if not isinstance(module, Normalize)]
        if others:
            raise ValueError(
                f"embeddings must be pooled vectors, but in this model {', '.join(others)} follows pooling, and what "
                "it gives has no LM head. Encode the texts instead."
            )

    @property
    def headless(self) -> torch.nn.Sequential:
        """The modules without the head, whose tensors are named as those of the model that is saved."""
        modules = [*self.before, *self.after]
        return self.model if len(modules) == len(self.model) else torch.nn.Sequential(*modules)

    @property
    def can_embed(self) -> bool:
        """Whether there is a model, or functions, and not just vectors that are given."""
        return self._has_functions is not False

    @property
    def _has_functions(self) -> bool | None:
        """Whether functions embed; None for a model."""
        return getattr(self.before[0], "has_functions", None)

    @property
    def embedding_dimension(self) -> int:
        """Width of the dense vectors, after truncation where the model truncates."""
        full = self.model.get_embedding_dimension() or self.pooled_dimension
        return full if self.model.truncate_dim is None else min(full, self.model.truncate_dim)

    @property
    def pooled_dimension(self) -> int:
        """Width of the pooled vectors."""
        return self.head.lm_head_dimension

    def chain(self, modules: Sequence[torch.nn.Module]) -> SentenceTransformer:
        """A SentenceTransformer of these modules, sharing them, with the model's prompts and on its device."""
        return SentenceTransformer(
            modules=list(modules),
            device=str(self.model.device),
            prompts=dict(self.model.prompts),
            default_prompt_name=self.model.default_prompt_name,
            similarity_fn_name=self.model.similarity_fn_name,
        )

    def both(
        self,
        texts: list[str],
        role: Role,
        prompt: str | None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        *,
        numbers: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, SparseEmbeddings]:
        """Dense vectors, float32 ``(N, embedding_dimension)``, and decoded terms, one row per text.

        ``numbers`` is what errors call the texts; None: their places.
        """
        named = np.arange(len(texts)) if numbers is None else np.asarray(numbers)
        dense = np.zeros((len(texts), self.embedding_dimension), dtype=np.float32)
        decoded, order = [], []
        for positions, passes in self._batches(texts, role, prompt, batch_size, show_progress_bar):
            pooled = joined_vectors(passes)
            check_finite_vectors(pooled, named[positions])
            decoded.append(as_sparse(self.head.decode(pooled, task=role), self.head.vocabulary))
            order.append(positions)
            for module in self.after:
                passes = [module(features) for features in passes]
            vectors = truncate_embeddings(joined_vectors(passes), self.model.truncate_dim)
            if self.after:
                check_finite_vectors(vectors, named[positions])
            dense[positions] = vectors.float().cpu().numpy()
        if len(texts) == 1:
            return dense, decoded[0]
        none = SparseEmbeddings.empty(0, self.head.vocab_size)
        return dense, SparseEmbeddings.concatenate([none, *decoded])[np.argsort(np.concatenate([[], *order]))]

    def pooled(self, texts: list[str], role: Role, batch_size: int = 32, show_progress_bar: bool = False) -> Tensor:
        """Pooled vectors as the head sees them come in, float32 ``(N, pooled_dimension)``, on the CPU."""
        vectors = torch.zeros(len(texts), self.pooled_dimension)
        prompt = resolve_prompt(self.model, role, None, None)
        for positions, passes in self._batches(texts, role, prompt, batch_size, show_progress_bar):
            vectors[torch.from_numpy(positions)] = joined_vectors(passes).float().cpu()
        return vectors

    def has_tokens(self, texts: list[str], prompt: str | None) -> np.ndarray:
        """Whether the model sees a token in each text, bool ``(N,)``. Anything with a letter or digit has one."""
        found = np.ones(len(texts), dtype=bool)
        for i, text in enumerate(texts):
            if not any(character.isalnum() for character in text):
                mask = self.model.preprocess([text], prompt=prompt).get("attention_mask")
                found[i] = mask is None or bool(mask.sum() > 0)
        return found

    def passes(self, texts: list[str]) -> Iterator[list[str]]:
        """Texts, longest first, by forward passes: a GPU takes all at once, a CPU what its caches hold."""
        is_whole = self.model.device.type != "cpu" or self._has_functions is not None
        room, start = _THREAD_CHARACTERS * torch.get_num_threads(), 0
        while start < len(texts):
            count = len(texts) if is_whole else max(1, room // max(1, len(texts[start])))
            yield texts[start : start + count]
            start += count

    def _batches(
        self, texts: list[str], role: Role, prompt: str | None, batch_size: int, show_progress_bar: bool
    ) -> Iterator[tuple[np.ndarray, list[dict[str, Any]]]]:
        """Yields positions and pooled features of batches, longest texts first, as sentence-transformers does."""
        checked_int("batch_size", batch_size, minimum=1)
        self.model.eval()
        self.head.to(self.model.device)
        order = np.argsort([-len(text) for text in texts], kind="stable")
        with tqdm(total=len(texts), desc="Texts", disable=not show_progress_bar) as bar:
            for start in range(0, len(texts), batch_size):
                positions = order[start : start + batch_size]
                passes = self.passes([texts[i] for i in positions])
                yield positions, [self._features(part, role, prompt) for part in passes]
                bar.update(len(positions))

    def _features(self, texts: list[str], role: Role, prompt: str | None) -> dict[str, Any]:
        """What one forward pass gives."""
        features = self.model.preprocess(texts, prompt=prompt, task=role)
        if self._unknown_token is not None and "input_ids" in features:
            ids = features["input_ids"]
            features["input_ids"] = ids.masked_fill(ids >= self._rows, self._unknown_token)
        return self._run(batch_to_device(features, self.model.device), role)

    def _run(self, features: dict[str, Any], role: Role) -> dict[str, Any]:
        """The pass itself. A text without a single token, which no model can run, gets the zero vector."""
        mask = features.get("attention_mask")
        is_empty = None if mask is None else mask.sum(dim=1) == 0
        if is_empty is None or not is_empty.any():
            pooled: dict[str, Any] = self._to_pooled(features, task=role)
            return pooled
        vectors = torch.zeros(len(is_empty), self.pooled_dimension, device=is_empty.device)
        if not is_empty.all():
            full = {
                name: value[~is_empty] if isinstance(value, Tensor) and len(value) == len(is_empty) else value
                for name, value in features.items()
            }
            vectors[~is_empty] = self._to_pooled(full, task=role)["sentence_embedding"].to(vectors.dtype)
        return {**features, "sentence_embedding": vectors}


def joined_vectors(passes: Sequence[dict[str, Any]]) -> Tensor:
    """The vectors of several passes."""
    return torch.cat([features["sentence_embedding"] for features in passes])


def check_finite_vectors(vectors: Tensor, numbers: np.ndarray) -> None:
    """Raises ValueError, naming the first text, if a vector is not finite."""
    is_finite = torch.isfinite(vectors).all(dim=1).cpu().numpy()
    if not is_finite.all():
        text = int(numbers[~is_finite].min())
        raise ValueError(
            f"the model must give finite vectors, got NaN or infinity for text {text}. Run it in float32 or bfloat16, "
            "or leave that text out."
        )


def make_usable(model: SentenceTransformer, rows: int) -> int | None:
    """Gives a tokenizer without one a padding token, which is never seen, so that several texts make a batch.

    Returns:
        What stands in for tokens beyond the model's rows of embeddings, which no text is meant to hold; None where
        the tokenizer has none of these.

    Raises:
        ValueError: If there is no token to pad with.
    """
    tokenizer: Any = getattr(model, "tokenizer", None)
    if not callable(getattr(tokenizer, "get_vocab", None)) or not hasattr(tokenizer, "pad_token"):
        return None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
        if tokenizer.pad_token is None:
            raise ValueError(
                "model must have a tokenizer with a token to pad with, got none. Set model.tokenizer.pad_token."
            )
    if max(tokenizer.get_vocab().values(), default=0) < rows:
        return None
    stand_in = next((i for i in (tokenizer.unk_token_id, tokenizer.pad_token_id) if i is not None and i < rows), 0)
    return int(stand_in)


def head_place(modules: list[torch.nn.Module]) -> int:
    """Where the head goes: after the last pooling, or before a closing normalisation."""
    for position in range(len(modules), 0, -1):
        if isinstance(modules[position - 1], Pooling):
            return position
    place = len(modules)
    while place and isinstance(modules[place - 1], Normalize):
        place -= 1
    return place


def as_sparse(pairs: tuple[Tensor, Tensor], vocabulary: ReadableTerms | None) -> SparseEmbeddings:
    """Sparse rows of what ``KeyTokenHead.decode`` gives."""
    ids, weights = pairs[0].cpu().numpy(), pairs[1].detach().cpu().numpy()
    is_term = weights > 0
    indptr = np.concatenate([[0], np.count_nonzero(is_term, axis=1)]).cumsum()
    size = 0 if vocabulary is None else vocabulary.vocab_size
    return SparseEmbeddings.trusted(indptr, ids[is_term].astype(np.int32), weights[is_term], size)


def find_head(model: SentenceTransformer) -> KeyTokenHead | None:
    """The head that a model already holds."""
    return next((module for module in model if isinstance(module, KeyTokenHead)), None)


def resolve_prompt(model: SentenceTransformer, role: str, prompt: str | None, prompt_name: str | None) -> str | None:
    """The prompt for a role, chosen as sentence-transformers chooses it."""
    check_choice("role", role, _PROMPT_NAMES)
    prompts: dict[str, str] = model.prompts
    if prompt is not None:
        return prompt
    if prompt_name is None:
        known = [name for name in _PROMPT_NAMES[role] if name in prompts]
        prompt_name = known[0] if known else model.default_prompt_name
    elif prompt_name not in prompts:
        raise ValueError(f"prompt_name must be one of the model's prompts {sorted(prompts)}, got {prompt_name!r}.")
    return None if prompt_name is None else prompts[prompt_name]
