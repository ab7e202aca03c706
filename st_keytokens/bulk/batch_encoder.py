"""Encoding texts on a cluster: a callable that Ray Data and Spark carry to their workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import numpy as np

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.encoder.forward_pass import Role
from st_keytokens.shared.checks import checked_int
from st_keytokens.sparse_embeddings import SparseEmbeddings

__all__ = ["KeyTokenBatchEncoder"]


class KeyTokenBatchEncoder:
    """Encodes batches of texts into the columns of the contract; loads its model on the worker, at the first batch.

    It is pickled as its arguments, a few hundred bytes, and knows neither Ray nor Spark. The same texts give the same
    rows on every worker.

    Args:
        model: Directory or name of a model, with its calibration beside it, see ``KeyTokenEncoder.from_pretrained``.
            A directory must be there on every worker.
        role: Of the texts.
        batch_size: Texts a forward pass at most.
        id_column: Of the ids, in what comes in.
        text_column: Of the texts.
        device: ``"cuda"``, ``"cpu"``, ... None: the best that the worker has.
        settings: More for ``KeyTokenEncoder.from_pretrained``, such as ``{"method": "decoded"}``.

    Raises:
        TypeError: If batch_size is not an integer.
        ValueError: If it is below 1.

    Example:
        ``dataset.map_batches(KeyTokenBatchEncoder("model"), batch_size=256)`` in Ray Data; with ``concurrency=4,
        num_gpus=1`` and ``fn_constructor_args=["model"]`` the class itself is given, and each actor loads the model
        once.

    >>> KeyTokenBatchEncoder("model", device="cpu")
    KeyTokenBatchEncoder('model')
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        role: Role = "document",
        batch_size: int = 32,
        id_column: str = "id",
        text_column: str = "text",
        device: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = str(model)
        self.role: Role = role
        self.batch_size = checked_int("batch_size", batch_size, minimum=1)
        self.id_column = id_column
        self.text_column = text_column
        self.device = device
        self.settings = dict(settings or {})
        self._encoder: KeyTokenEncoder | None = None

    @property
    def encoder(self) -> KeyTokenEncoder:
        """The encoder, loaded in this process at the first use.

        Raises:
            OSError: If there is no such model here.
            ValueError: If a setting is wrong.
        """
        if self._encoder is None:
            options = {} if self.device is None else {"device": self.device}
            given = {"cache_size": 0, **self.settings}
            self._encoder = KeyTokenEncoder.from_pretrained(self.model, model_arguments=options, **given)
        return self._encoder

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Encodes a batch.

        Args:
            batch: Arrays or lists by column, as ``map_batches`` gives them.

        Returns:
            ``id``: array of strings; ``indices`` and ``values``: arrays of lists, ascending token ids and their
            weights. Plain lists, which every framework writes as lists.

        Raises:
            ValueError: If a column is missing.
        """
        for name in (self.id_column, self.text_column):
            if name not in batch:
                raise ValueError(f"batch must have the column {name!r}, got {', '.join(map(repr, batch))}.")
        ids = [str(identifier) for identifier in batch[self.id_column]]
        indices, values = _lists(self._encoded(batch[self.text_column]))
        return {"id": np.array(ids, dtype=object), "indices": indices, "values": values}

    def make_predict_fn(self) -> Callable[[Any], list[dict[str, Any]]]:
        """For Spark's ``predict_batch_udf``: loads the model, and gives the function from texts to rows.

        Returns:
            A function of an array of texts that gives a dictionary per text, with the arrays ``indices`` and
            ``values``; its type in Spark is a ``StructType`` of ``ArrayType(IntegerType())`` and
            ``ArrayType(FloatType())``.
        """
        _ = self.encoder

        def predict(texts: Any) -> list[dict[str, Any]]:
            return [{"indices": indices, "values": values} for indices, values in self._encoded(texts)]

        return predict

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    def _encoded(self, texts: Any) -> SparseEmbeddings:
        strings = ["" if text is None else str(text) for text in texts]
        return self.encoder.encode(strings, role=self.role, batch_size=self.batch_size).sparse


def _lists(sparse: SparseEmbeddings) -> tuple[Any, Any]:
    """Indices and values of each row as lists in arrays of objects; numpy would make matrices of equal ones."""
    parts = []
    for flat in (sparse.indices, sparse.values):
        column = np.empty(len(sparse), dtype=object)
        column[:] = [part.tolist() for part in np.split(flat, sparse.indptr[1:-1])] if len(sparse) else []
        parts.append(column)
    return parts[0], parts[1]
