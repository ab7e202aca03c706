"""Any embedder as a SentenceTransformer: functions from texts to vectors, and the objects of other libraries."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule

from st_keytokens.shared.checks import checked_int

__all__ = ["EmbedFunction", "FunctionEmbedder", "as_sentence_transformer"]

EmbedFunction = Callable[[list[str]], Any]
"""From texts to their vectors, an array, tensor or lists of shape ``(N, d)``; a coroutine function gives the same."""

_REMEMBERED_BYTES = 1 << 29  # of vectors
_PROBE = "dimension"
_NAMES = ("model_name", "model", "model_id", "deployment", "deployment_name")


class FunctionEmbedder(InputModule):  # type: ignore[misc]  # untyped for mypy, see pyproject.toml
    """The one module of a SentenceTransformer that embeds by calling functions.

    A text is embedded once: its vector is remembered, up to half a gigabyte of them, so that a call that failed midway
    goes on from there, and texts that are calibrated on are not embedded again to be indexed.

    Args:
        embed_documents: Embeds documents. None: there are only stored vectors, and to embed is an error.
        embed_queries: Embeds queries. None: as documents.
        dimension: Width ``d`` of the vectors. None: one query is embedded now, to know it.
        name: Names the embedder and its version: part of what tells calibrations and indexes of other embedders apart.

    Attributes:
        dimension: As given, or found.
        name: As given.

    Raises:
        TypeError: If something is not a function, or there is neither a function nor a dimension.
        ValueError: If ``dimension`` is below 1, or see :meth:`forward`.

    Example:
        >>> module = FunctionEmbedder(lambda texts: [[len(text), 1.0] for text in texts], name="length")
        >>> SentenceTransformer(modules=[module], device="cpu").encode(["four", "seven"]).tolist()
        [[4.0, 1.0], [5.0, 1.0]]
    """

    forward_kwargs: ClassVar[set[str]] = {"task"}
    config_keys: ClassVar[list[str]] = ["name", "dimension"]
    tokenizer = None
    max_seq_length = None

    def __init__(
        self,
        embed_documents: EmbedFunction | None = None,
        embed_queries: EmbedFunction | None = None,
        *,
        dimension: int | None = None,
        name: str = "functions",
    ) -> None:
        super().__init__()
        for label, function in (("embed_documents", embed_documents), ("embed_queries", embed_queries)):
            if function is not None and not callable(function):
                raise TypeError(f"{label} must be a function of a list of texts, got {type(function).__name__}.")
        if embed_documents is None and (embed_queries is not None or dimension is None):
            raise TypeError("embed_documents must be a function, got None. Without one, give dimension alone.")
        self._documents, self._queries = embed_documents, embed_queries
        self.name = name
        self._remembered: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()
        self.dimension: int | None = None if dimension is None else checked_int("dimension", dimension, minimum=1)
        if self.dimension is None:
            self.dimension = self._embed([_PROBE], is_query=True).shape[1]

    def get_embedding_dimension(self) -> int | None:
        """Width of the vectors."""
        return self.dimension

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """The texts themselves, after the prompt."""
        return {"texts": [(prompt or "") + text for text in inputs], "task": kwargs.get("task")}

    def forward(self, features: dict[str, Any], task: str | None = None) -> dict[str, Any]:
        """Adds ``sentence_embedding``, float32 ``(N, d)``.

        What a function raises goes through; the vectors of the calls before are kept.

        Args:
            features: What :meth:`preprocess` gave.
            task: ``"query"`` or anything else, over what :meth:`preprocess` was told.

        Returns:
            The same dictionary.

        Raises:
            ValueError: If there is no function, or one gives other than a vector a text, or one of another dimension.
        """
        is_query = (task or features.get("task")) == "query" and self._queries is not None
        features["sentence_embedding"] = torch.from_numpy(self._embed(features["texts"], is_query=is_query))
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Writes name and dimension; functions cannot be written, see :meth:`KeyTokenEncoder.from_sidecar`."""
        self.save_config(output_path)

    def _embed(self, texts: list[str], *, is_query: bool) -> NDArray[np.float32]:
        keys = [_key(text, is_query) for text in texts]
        with self._lock:
            found = {key: self._remembered[key] for key in keys if key in self._remembered}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if missing:
            found |= zip(missing, self._called(list(missing.values()), is_query=is_query), strict=True)
            with self._lock:
                self._remembered.update((key, found[key]) for key in missing)
                while len(self._remembered) * found[keys[0]].nbytes > _REMEMBERED_BYTES:
                    self._remembered.popitem(last=False)
        return np.stack([found[key] for key in keys])

    def _called(self, texts: list[str], *, is_query: bool) -> NDArray[np.float32]:
        function = self._queries if is_query and self._queries is not None else self._documents
        if function is None:
            raise ValueError(
                "embedder must be given to embed texts, but there are only stored vectors. Pass embeddings=..., use "
                "query='lookup', or give KeyTokenEncoder a function."
            )
        given = function(texts)
        if inspect.isawaitable(given):
            given = _result_of(given)
        rows = given.detach().float().cpu().numpy() if isinstance(given, torch.Tensor) else given
        try:
            vectors = np.array(rows, dtype=np.float32)
        except (TypeError, ValueError) as err:
            raise ValueError(f"{self.name} must give a vector of numbers for each text, got {err}.") from err
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(
                f"{self.name} must give one vector a text, got shape {vectors.shape} for {len(texts)} texts."
            )
        if self.dimension is not None and vectors.shape[1] != self.dimension:
            raise ValueError(
                f"{self.name} must give vectors of dimension {self.dimension}, as before, got {vectors.shape[1]}. "
                "Use the embedder, and the version, that the rest was made with."
            )
        return vectors

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_remembered": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def as_sentence_transformer(embedder: Any) -> SentenceTransformer:
    """A SentenceTransformer that embeds as another object does.

    Args:
        embedder: A SentenceTransformer, which is given back; a :class:`FunctionEmbedder`; a function from a list of
            texts to vectors, or a pair of them, for documents and for queries; or an object with the methods of
            LangChain's ``Embeddings`` (``embed_documents``, ``embed_query``), of LlamaIndex's ``BaseEmbedding``
            (``get_text_embedding_batch``, ``get_query_embedding``), or with ``encode``. Synchronous or not.

    Returns:
        The model, on the CPU where it is a new one.

    Raises:
        TypeError: If it is nothing of that kind.
        ValueError: See :class:`FunctionEmbedder`.
    """
    if isinstance(embedder, SentenceTransformer):
        return embedder
    module = embedder if isinstance(embedder, FunctionEmbedder) else _module(embedder)
    return SentenceTransformer(modules=[module], device="cpu", similarity_fn_name="cosine")


def _module(embedder: Any) -> FunctionEmbedder:
    if isinstance(embedder, tuple) and len(embedder) == 2:
        return FunctionEmbedder(*embedder, name="+".join(map(_name, embedder)))
    for documents, query in (
        ("embed_documents", "embed_query"),
        ("aembed_documents", "aembed_query"),
        ("get_text_embedding_batch", "get_query_embedding"),
        ("aget_text_embedding_batch", "aget_query_embedding"),
    ):
        of_documents, of_query = getattr(embedder, documents, None), getattr(embedder, query, None)
        if callable(of_documents) and callable(of_query):
            return FunctionEmbedder(of_documents, _Each(of_query), name=_name(embedder))
    if callable(encode := getattr(embedder, "encode", None)):
        return FunctionEmbedder(encode, name=_name(embedder))
    if callable(embedder) and not isinstance(embedder, type):
        return FunctionEmbedder(embedder, name=_name(embedder))
    raise TypeError(
        "model must be a SentenceTransformer, its name or path, a function from texts to vectors, a pair of such "
        f"functions, or an object that embeds as those of LangChain and LlamaIndex do, got {type(embedder).__name__}."
    )


class _Each:
    """A function of one query as a function of several."""

    def __init__(self, embed_query: Callable[[str], Any]) -> None:
        self._embed_query = embed_query

    def __call__(self, texts: list[str]) -> Any:
        found = [self._embed_query(text) for text in texts]
        return _all(found) if found and inspect.isawaitable(found[0]) else found


async def _all(coroutines: Sequence[Any]) -> list[Any]:
    return [await coroutine for coroutine in coroutines]


def _result_of(awaitable: Any) -> Any:
    """What a coroutine gives, in a loop of its own; on another thread where one is running here."""

    async def awaited() -> Any:
        return await awaitable

    coroutine: Coroutine[Any, Any, Any] = awaited()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def _name(embedder: Any) -> str:
    kind = getattr(embedder, "__qualname__", type(embedder).__name__)
    model = next((str(value) for name in _NAMES if (value := getattr(embedder, name, None)) is not None), "")
    return f"{kind} {model}".rstrip()


def _key(text: str, is_query: bool) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=b"q" * is_query).digest()
