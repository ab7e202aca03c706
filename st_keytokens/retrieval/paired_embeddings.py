"""Dense and sparse vectors asked for one after the other, as frameworks do, from one forward pass."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from st_keytokens.encoder.cache import Row, join_rows, split_rows
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.index.documents import checked_strings
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_keytokens.encoder.forward_pass import Role
    from st_keytokens.index.search import Side

__all__ = ["IndicesValues", "PairedEmbeddings"]

IndicesValues = tuple[list[int], list[float]]  # of one text, by ascending token id
Key = tuple[str, str, str, str]

logger = logging.getLogger(__name__)

_SAME_VECTOR = 0.99  # cosine of a stored vector with the same text's: rounding and batches change less
WAITING_BYTES = 1 << 26  # 64 MiB: sparse vectors of some 50,000 texts, or 16,000 dense ones of dimension 1,024


class PairedEmbeddings:
    """The vectors of one encoder in the plain forms that stores take.

    A framework asks for the dense vectors of a batch, and then for the sparse ones of the same texts, or the other way
    round. Whichever comes first runs the model, and the half that was not asked for waits until it is, once, whatever
    the size of the encoder's cache. All pairs of one encoder share what waits, and threads that ask for the same text
    at the same time wait for one pass.

    Args:
        encoder: The encoder.

    Raises:
        TypeError: If it is no ``KeyTokenEncoder``.
    """

    def __init__(self, encoder: KeyTokenEncoder) -> None:
        if not isinstance(encoder, KeyTokenEncoder):
            raise TypeError(
                f"encoder must be a KeyTokenEncoder, got {type(encoder).__name__}. "
                "Make one with KeyTokenEncoder(model)."
            )
        self.encoder = encoder
        with _SHARED_LOCK:
            self._waiting = _SHARED.setdefault(encoder, _Waiting())

    def dense_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Dense vectors of documents, as the model gives them."""
        return self.dense(texts, "document").tolist()  # type: ignore[no-any-return]

    def dense_query(self, text: str) -> list[float]:
        """Dense vector of a query."""
        return self.dense([text], "query")[0].tolist()  # type: ignore[no-any-return]

    def sparse_documents(self, texts: Sequence[str]) -> list[IndicesValues]:
        """Token ids and weights of documents; two empty lists for a text without a term."""
        return _as_lists(self.sparse(texts, "document"))

    def sparse_query(self, text: str) -> IndicesValues:
        """Token ids and weights of a query, made as the encoder's ``query`` says."""
        return _as_lists(self.sparse([text], "query"))[0]

    def dense(self, texts: Sequence[str], role: Role) -> NDArray[np.float32]:
        """Dense vectors, float32 ``(N, embedding_dimension)``; also of an encoder that has to be calibrated first.

        Raises:
            TypeError: If ``texts`` is one string, or holds something else than strings.
        """
        if self.encoder.needs_calibration:
            names = checked_strings("texts", texts)
            embed = self.encoder.model.encode_query if role == "query" else self.encoder.model.encode_document
            with self.encoder.lock:
                found = embed(names, show_progress_bar=False, convert_to_numpy=True)
            return np.asarray(found, np.float32).reshape(len(names), -1)
        vectors = [row[0] for row in self._half(texts, role, "dense")]
        return np.stack(vectors) if vectors else np.zeros((0, self.encoder.get_embedding_dimension()), np.float32)

    def sparse(self, texts: Sequence[str], role: Role) -> SparseEmbeddings:
        """Sparse vectors, ``(N, vocab_size)``.

        Raises:
            TypeError: If ``texts`` is one string, or holds something else than strings.
        """
        if role == "query" and self.encoder.query == "lookup":
            return self.encoder.encode_query(checked_strings("texts", texts), query="lookup").sparse
        rows = self._half(texts, role, "sparse")
        return join_rows(rows, 0, self.encoder.vocabulary.vocab_size).sparse

    def prepare(self, texts: Sequence[str], role: Role) -> None:
        """Embed texts in one batch; both halves wait, so that asking for the texts one by one takes no pass.

        Raises:
            TypeError: If ``texts`` is one string, or holds something else than strings.
        """
        names = list(dict.fromkeys(checked_strings("texts", texts)))
        with self._waiting.locks[role]:
            state = self.encoder.fingerprint
            for text, (vector, ids, weights) in zip(
                names, split_rows(self.encoder.encode(names, role=role)), strict=True
            ):
                self._waiting.put((state, role, text, "dense"), (vector, ids[:0], weights[:0]))
                self._waiting.put((state, role, text, "sparse"), (vector[:0], ids, weights))

    def hybrid_documents(self, texts: Sequence[str], embeddings: Sequence[Sequence[float] | None]) -> HybridEmbeddings:
        """Dense and sparse vectors of documents, some of whose dense vectors are known already.

        Known ones are taken, and their sparse halves are those that wait, or are made without a forward pass. As a
        vector does not say whose it is, one of them is compared with the encoder's own, which costs at most one pass.
        Where that differs, or has another dimension, or the model has more than a normalisation behind its pooling,
        all are embedded.

        Args:
            texts: The texts.
            embeddings: A dense vector or None for each.

        Returns:
            Both vectors of each text.

        Raises:
            TypeError: If ``texts`` is one string, or holds something else than strings.
            ValueError: If the lengths differ.
        """
        names, dense, known = self._known(texts, embeddings)
        vocab_size = self.encoder.vocabulary.vocab_size
        rows: dict[int, Row] = {}
        state = self.encoder.fingerprint
        for number in known:
            waiting = self._waiting.take((state, "document", names[number], "sparse"))
            if waiting is not None:
                rows[number] = waiting
        unmade = [number for number in known if number not in rows]
        if unmade and self._are_own(names, dense, unmade):
            sparse = self.encoder.sparsify(dense[unmade], [names[number] for number in unmade])
            made = HybridEmbeddings(np.zeros((len(unmade), 0), np.float32), sparse)
            rows |= dict(zip(unmade, split_rows(made), strict=True))
        missing = [number for number in range(len(names)) if number not in rows]
        if missing:
            made = self.encoder.encode_document([names[number] for number in missing])
            for number, row in zip(missing, split_rows(made), strict=True):
                dense[number], rows[number] = row[0], (row[0][:0], *row[1:])
        return HybridEmbeddings(dense, join_rows([rows[n] for n in range(len(names))], 0, vocab_size).sparse)

    def dense_known(self, texts: Sequence[str], embeddings: Sequence[Sequence[float] | None]) -> NDArray[np.float32]:
        """The dense vectors of :meth:`hybrid_documents`, for an encoder that is to be calibrated on them."""
        names, dense, known = self._known(texts, embeddings)
        missing = set(range(len(names)))
        if known and self._are_own(names, dense, known):
            missing.difference_update(known)
        if missing:
            numbers = sorted(missing)
            dense[numbers] = self.dense([names[number] for number in numbers], "document")
        return dense

    def _known(
        self, texts: Sequence[str], embeddings: Sequence[Sequence[float] | None]
    ) -> tuple[list[str], NDArray[np.float32], list[int]]:
        """The texts, their vectors as far as they are known and of the right dimension, and which these are."""
        names = checked_strings("texts", texts)
        if len(embeddings) != len(names):
            raise ValueError(f"embeddings must be one for each of {len(names)} texts, got {len(embeddings)}.")
        dimension = self.encoder.get_embedding_dimension()
        dense = np.zeros((len(names), dimension), np.float32)
        known = []
        for number, vector in enumerate(embeddings):
            if vector is not None and len(vector) == dimension:
                dense[number] = vector
                known.append(number)
        return names, dense, known

    def _are_own(self, texts: list[str], dense: NDArray[np.float32], numbers: list[int]) -> bool:
        """Whether stored vectors are this encoder's, and such that sparse ones can be made of them."""
        try:
            self.encoder.forward_pass.check_stored()
        except ValueError:
            return False
        if dense.shape[1] != self.encoder.head.lm_head_dimension:
            return False  # truncated
        number = next((n for n in reversed(numbers) if texts[n].strip()), numbers[-1])  # the last may be in the cache
        own, found = self.dense([texts[number]], "document")[0], dense[number]
        lengths = float(np.linalg.norm(own) * np.linalg.norm(found))
        cosine = float(own @ found) / lengths if lengths else 0.0
        if cosine < _SAME_VECTOR:
            logger.warning(
                "%d texts come with vectors, but these are not this encoder's: the cosine of one with its own is %.3f "
                "and must be at least %.2f. They are embedded.",
                len(numbers),
                cosine,
                _SAME_VECTOR,
            )
        return cosine >= _SAME_VECTOR

    def _half(self, texts: Sequence[str], role: Role, side: Side) -> list[Row]:
        names = checked_strings("texts", texts)
        with self._waiting.locks[role]:
            state = self.encoder.fingerprint
            found = {text: self._waiting.take((state, role, text, side)) for text in dict.fromkeys(names)}
            missing = [text for text, row in found.items() if row is None]
            if missing:
                made = self.encoder.encode(missing, role=role)
                for text, (vector, ids, weights) in zip(missing, split_rows(made), strict=True):
                    dense, sparse = (vector, ids[:0], weights[:0]), (vector[:0], ids, weights)
                    found[text], other = (dense, sparse) if side == "dense" else (sparse, dense)
                    self._waiting.put((state, role, text, "sparse" if side == "dense" else "dense"), other)
        return [row for row in map(found.get, names) if row is not None]

    def __getstate__(self) -> dict[str, Any]:
        return {"encoder": self.encoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["encoder"])  # type: ignore[misc]


class _Waiting:
    """Halves that nobody has asked for yet, the oldest of which go first above a number of bytes."""

    def __init__(self) -> None:
        self.locks = {"document": threading.Lock(), "query": threading.Lock()}  # a query need not wait for documents
        self._lock = threading.Lock()
        self._rows: OrderedDict[Key, Row] = OrderedDict()
        self._bytes = 0

    def put(self, key: Key, row: Row) -> None:
        with self._lock:
            self._drop(self._rows.pop(key, None))
            self._rows[key] = row
            self._bytes += _size(row)
            while self._bytes > WAITING_BYTES:
                self._drop(self._rows.popitem(last=False)[1])

    def take(self, key: Key) -> Row | None:
        with self._lock:
            return self._drop(self._rows.pop(key, None))

    def _drop(self, row: Row | None) -> Row | None:
        self._bytes -= 0 if row is None else _size(row)
        return row


def _as_lists(sparse: SparseEmbeddings) -> list[IndicesValues]:
    """The rows as lists of token ids and weights."""
    return [(ids.tolist(), weights.tolist()) for ids, weights in sparse]


def _size(row: Row) -> int:
    return sum(array.nbytes for array in row)


_SHARED: WeakKeyDictionary[KeyTokenEncoder, _Waiting] = WeakKeyDictionary()
_SHARED_LOCK = threading.Lock()
