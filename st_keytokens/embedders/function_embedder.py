"""Any embedder as a SentenceTransformer: functions from texts to vectors, and the objects of other libraries."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import inspect
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import MethodType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule

from st_keytokens.shared.checks import checked_int

__all__ = ["EmbedFunction", "FunctionEmbedder", "as_sentence_transformer", "is_embedder"]

EmbedFunction = Callable[[list[str]], Any]
"""From texts to their vectors, an array, tensor or lists of shape ``(N, d)``; a coroutine function gives the same."""

_REMEMBERED_BYTES = 1 << 29  # of vectors
_PROBE = "dimension"
_NAMES = ("model_name", "model", "model_id", "deployment", "deployment_name")
_SIZES = ("dimensions", "dimension", "output_dimensionality")  # what changes the vectors of one model


class FunctionEmbedder(InputModule):  # type: ignore[misc]  # untyped for mypy, see pyproject.toml
    """The one module of a SentenceTransformer that embeds by calling functions.

    A text is embedded once: its vector is remembered, up to half a gigabyte of them, so that a call that failed midway
    goes on from there, and texts that are calibrated on are not embedded again to be indexed. What
    :func:`as_sentence_transformer` makes of one embedder remembers together, for as long as the embedder is there.

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
        self._source: tuple[Any, ...] = ()  # not as a module of this one
        self._memory = _Memory()
        self.dimension: int | None = None if dimension is None else checked_int("dimension", dimension, minimum=1)
        if self.dimension is None:
            self._find_dimension()

    @property
    def has_functions(self) -> bool:
        """Whether it can embed; otherwise it stands for vectors that are given."""
        return self._documents is not None

    def is_of(self, embedder: Any) -> bool:
        """Whether the functions are those of an embedder, or of an equal one of the same kind."""
        if not self._source or type(self._source[0]) is not type(embedder):
            return False
        try:
            return self._source[0] is embedder or bool(self._source[0] == embedder)
        except Exception:  # what cannot be compared is another one
            return False

    def remember(self, texts: Sequence[str], vectors: Sequence[Sequence[float] | None]) -> None:
        """Takes vectors of documents that the functions gave before, of which those of another dimension are not.

        Args:
            texts: The documents.
            vectors: The vector of each, or None.
        """
        known = [(text, row) for text, row in zip(texts, vectors, strict=True) if row is not None]
        self._memory.put(
            {_key(text, False): np.asarray(row, np.float32) for text, row in known if len(row) == self.dimension}
        )

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

    @classmethod
    def of(cls, embedder: Any, documents: EmbedFunction, queries: EmbedFunction | None, name: str) -> FunctionEmbedder:
        """The functions of an embedder, which remembers what an earlier one of the same embedder was given.

        Args:
            embedder: Whose functions they are.
            documents: As for the class.
            queries: As for the class.
            name: As for the class.

        Raises:
            ValueError: As for the class.
        """
        module = cls(documents, queries, dimension=1, name=name)
        module._source, module.dimension = (embedder,), None
        module._memory = _memory_of(embedder, name)
        module._find_dimension()
        return module

    def _find_dimension(self) -> None:
        self.dimension = self._embed([_PROBE], is_query=True).shape[1]

    def _embed(self, texts: list[str], *, is_query: bool) -> NDArray[np.float32]:
        keys = [_key(text, is_query) for text in texts]
        found = self._memory.get(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        function = self._queries if is_query and self._queries is not None else self._documents
        size = getattr(function, "texts_a_call", None) or len(missing)
        asked = list(missing.items())
        for start in range(0, len(asked), max(1, size)):  # what a call gave is kept, whatever the next one does
            part = dict(asked[start : start + size])
            made = dict(zip(part, self._called(function, list(part.values())), strict=True))
            found |= made
            self._memory.put(made)
        return np.stack([found[key] for key in keys])

    def _called(self, function: EmbedFunction | None, texts: list[str]) -> NDArray[np.float32]:
        if function is None:
            raise ValueError(
                "embedder must be given to embed texts, but there are only stored vectors. Pass embeddings=..., use "
                "query='lookup', or give KeyTokenEncoder a function."
            )
        given = _result_of(function(texts))
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
        return {**self.__dict__, "_memory": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._memory = _Memory()


class _Memory:
    """Vectors by what they are of, the oldest of which go first."""

    def __init__(self) -> None:
        self._rows: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, keys: Iterable[bytes]) -> dict[bytes, NDArray[np.float32]]:
        with self._lock:
            return {key: self._rows[key] for key in keys if key in self._rows}

    def put(self, rows: dict[bytes, NDArray[np.float32]]) -> None:
        with self._lock:
            for key, row in rows.items():
                if np.isfinite(row).all():  # others are an error, which may be gone the next time
                    self._rows[key] = row.copy()
            while self._rows and len(self._rows) * next(reversed(self._rows.values())).nbytes > _REMEMBERED_BYTES:
                self._rows.popitem(last=False)


_MEMORIES: dict[tuple[Any, ...], _Memory] = {}
_MEMORIES_LOCK = threading.Lock()


def _memory_of(embedder: Any, name: str) -> _Memory:
    """What is remembered of an embedder as it is named and set, until it is gone; nothing where none can tell that."""
    parts = embedder if isinstance(embedder, tuple) else (embedder,)
    owners = [part.__self__ if isinstance(part, MethodType) else part for part in parts]
    sizes = [repr(getattr(owner, size, None)) for owner in owners for size in _SIZES]
    key = (name, *map(id, owners), *(getattr(part, "__name__", "") for part in parts), *sizes)
    with _MEMORIES_LOCK:
        if key not in _MEMORIES:
            memory = _Memory()
            try:
                for owner in owners:
                    weakref.finalize(owner, _MEMORIES.pop, key, None).atexit = False
            except TypeError:
                return memory
            _MEMORIES[key] = memory
        return _MEMORIES[key]


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


def is_embedder(embedder: Any) -> bool:
    """Whether :func:`as_sentence_transformer` takes an object."""
    return isinstance(embedder, (SentenceTransformer, FunctionEmbedder)) or _functions(embedder) is not None


def _module(embedder: Any) -> FunctionEmbedder:
    functions = _functions(embedder)
    if functions is None:
        raise TypeError(
            "model must be a SentenceTransformer, its name or path, a function from texts to vectors, a pair of such "
            "functions, or an object that embeds as those of LangChain and LlamaIndex do, got "
            f"{type(embedder).__name__}."
        )
    name = "+".join(map(_name, embedder)) if isinstance(embedder, tuple) else _name(embedder)
    return FunctionEmbedder.of(embedder, *functions, name)


def _functions(embedder: Any) -> tuple[EmbedFunction, EmbedFunction | None] | None:
    """The functions of documents and of queries; None where there are none."""
    if isinstance(embedder, (type, str)):
        return None
    if isinstance(embedder, tuple):
        return embedder if len(embedder) == 2 and all(map(callable, embedder)) else None
    for documents, query in (("embed_documents", "embed_query"), ("get_text_embedding_batch", "get_query_embedding")):
        of_documents, of_query = (
            [method for prefix in ("", "a") if callable(method := getattr(embedder, prefix + kind, None))]
            for kind in (documents, query)
        )
        if of_documents and of_query:
            size = getattr(embedder, "embed_batch_size", None)  # LlamaIndex makes a call of its own for so many
            return _Methods(of_documents, size if isinstance(size, int) else None), _Each(of_query)
    if callable(encode := getattr(embedder, "encode", None)):
        return encode, None
    return (embedder, None) if callable(embedder) else None


class _Methods:
    """A synchronous method or, where there is none or it is not implemented, the asynchronous one beside it."""

    def __init__(self, methods: Sequence[Callable[[Any], Any]], texts_a_call: int | None = None) -> None:
        self._methods, self.texts_a_call = methods, texts_a_call

    def __call__(self, texts: Any) -> Any:
        for method in self._methods[:-1]:
            try:
                return _result_of(method(texts))
            except NotImplementedError:
                continue
        return _result_of(self._methods[-1](texts))


class _Each(_Methods):
    """Methods of one query as a function of several, one a call, so that none is lost where the next one fails."""

    def __init__(self, methods: Sequence[Callable[[str], Any]]) -> None:
        super().__init__(methods, texts_a_call=1)

    def __call__(self, texts: list[str]) -> Any:
        return [super(_Each, self).__call__(text) for text in texts]


class _Loop:
    """An event loop on a thread of its own, the same for all calls: clients keep connections that belong to one."""

    _lock = threading.Lock()
    _running: ClassVar[dict[int, asyncio.AbstractEventLoop]] = {}  # by process: a fork has no threads

    @classmethod
    def run(cls, coroutine: Coroutine[Any, Any, Any]) -> Any:
        with cls._lock:
            loop = cls._running.get(os.getpid())
            if loop is None:
                loop = cls._running[os.getpid()] = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="keytokens-embed", daemon=True).start()
        context = contextvars.copy_context()

        async def within() -> Any:
            return await context.run(asyncio.ensure_future, coroutine)

        future = asyncio.run_coroutine_threadsafe(within(), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _result_of(given: Any) -> Any:
    """What is given or, of something to be awaited, what that gives."""
    if not inspect.isawaitable(given):
        return given

    async def awaited() -> Any:
        return await given

    return _Loop.run(awaited())


def _name(embedder: Any) -> str:
    kind = getattr(embedder, "__qualname__", type(embedder).__name__)
    models = (getattr(embedder, name, None) for name in _NAMES)  # a client or a loaded model is no name
    return f"{kind} {next((model for model in models if isinstance(model, str)), '')}".rstrip()


def _key(text: str, is_query: bool) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=b"q" * is_query).digest()
