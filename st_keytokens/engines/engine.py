"""Engine: one collection of a vector or search engine, behind one small interface."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, ClassVar, TypeVar, get_args

from typing_extensions import Self

from st_keytokens.engines.records import Records
from st_keytokens.engines.retrying import Retry
from st_keytokens.index.dense import Similarity, checked_dense
from st_keytokens.index.documents import Hit, checked_strings
from st_keytokens.index.filters import Condition
from st_keytokens.index.fusion import FUSIONS, FusionFunction
from st_keytokens.index.search import SIDES, Mode, SearchPlan, Side, embedded_queries
from st_keytokens.index.store import Encoder, check_settings, check_sizes
from st_keytokens.shared.checks import check_choice, checked_int
from st_keytokens.sparse_embeddings import MAX_VOCAB_SIZE, HybridEmbeddings, SparseEmbeddings

__all__ = ["CollectionSettings", "Engine"]


@dataclass(frozen=True)
class CollectionSettings:
    """What a collection is made with.

    Attributes:
        vocab_size: Number of terms.
        embedding_dimension: Dimension of the dense rows, 0 for none.
        similarity: ``"cosine"`` or ``"dot"`` for dense rows.
        fingerprint: Names what made the embeddings; None where nobody said.

    Raises:
        TypeError: If a size is not an integer, or the fingerprint no string.
        ValueError: If a size is out of range, or the similarity unknown.

    >>> settings = CollectionSettings(vocab_size=9, fingerprint="ab12")
    >>> CollectionSettings.from_json(settings.to_json(), "collection 'a'") == settings
    True
    """

    vocab_size: int
    embedding_dimension: int = 0
    similarity: Similarity = "cosine"
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        checked_int("vocab_size", self.vocab_size, minimum=1, maximum=MAX_VOCAB_SIZE)
        checked_int("embedding_dimension", self.embedding_dimension, minimum=0)
        check_choice("similarity", self.similarity, get_args(Similarity))
        if not isinstance(self.fingerprint, str | None):
            raise TypeError(f"fingerprint must be a string or None, got {type(self.fingerprint).__name__}.")

    def to_dict(self) -> dict[str, Any]:
        """All of them by name."""
        return asdict(self)

    def to_json(self) -> str:
        """One line of JSON, for engines that keep a comment or a description beside a collection."""
        return json.dumps({"keytokens": self.to_dict()})

    @classmethod
    def from_dict(cls, saved: Any, where: str) -> CollectionSettings:
        """What :meth:`to_dict` gave.

        Args:
            saved: What was kept, which may be anything where somebody else made the collection.
            where: What errors call the collection.

        Raises:
            ValueError: If it is something else.
        """
        try:
            return cls(**saved)
        except (TypeError, ValueError) as err:
            raise ValueError(
                f"{where} must be one that create() made, got settings {saved!r:.80}. Choose another name."
            ) from err

    @classmethod
    def from_json(cls, text: str | None, where: str) -> CollectionSettings:
        """What :meth:`to_json` gave; see :meth:`from_dict`."""
        try:
            saved = json.loads(text or "")["keytokens"]
        except (ValueError, TypeError, KeyError, RecursionError):
            saved = text
        return cls.from_dict(saved, where)


Rankings = list[list[Hit]]
Result = TypeVar("Result")

_MAX_QUERIES = 64  # of one request


class Engine(ABC):
    """One collection of an engine: sparse and dense embeddings, texts and metadata under the documents' own ids.

    What all engines share is here: arguments are checked, large batches are split into requests, temporary errors are
    tried again, and rankings are fused where the engine does not do it. An implementation fills in the methods whose
    names begin with an underscore, and :meth:`smallest_wait`; they get checked arguments.

    Args:
        collection: Its name in the engine.
        encoder: Turns texts of queries into embeddings, under the collection's fingerprint. None: pass embeddings.
        retry: How to try again what failed for the moment.

    Attributes:
        max_rows: At most so many documents in a request.
        max_bytes: About so many bytes in a request, counted as JSON.
        server_fusions: The names of the fusions that the engine does itself.
        weighs_ranks: Whether its own ``"rrf"`` takes weights that mean what they mean in our index.
    """

    server_fusions: ClassVar[tuple[str, ...]] = ()
    weighs_ranks: ClassVar[bool] = False

    def __init__(self, collection: str, *, encoder: Encoder | None = None, retry: Retry | None = None) -> None:
        (self.collection,) = checked_strings("collection", [collection])
        self.encoder = encoder
        self.retry = Retry() if retry is None else retry
        self.max_rows, self.max_bytes = 512, 8 << 20
        self._settings: CollectionSettings | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def settings(self) -> CollectionSettings:
        """What the collection was made with.

        Raises:
            ValueError: If it is not there, was not made by :meth:`create`, or has another fingerprint than the
                encoder.
        """
        if self._settings is None:
            saved = self._try(self._read_settings)
            if saved is None:
                raise ValueError(f"{self._where} must be there, got none. Call create() first.")
            self._check_encoder(saved)
            self._settings = saved
        return self._settings

    def create(
        self,
        *,
        vocab_size: int | None = None,
        embedding_dimension: int = 0,
        similarity: Similarity = "cosine",
        fingerprint: str | None = None,
    ) -> None:
        """Make the collection. Where it is there already with the same settings, nothing happens.

        Args:
            vocab_size: Number of terms; by default the encoder's.
            embedding_dimension: Dimension of the dense rows, 0 for none.
            similarity: ``"cosine"`` or ``"dot"`` for dense rows.
            fingerprint: Names what made the embeddings; by default the encoder's. Kept with the collection.

        Raises:
            TypeError: If an argument is of the wrong type, or no number of terms is known.
            ValueError: If an argument is not allowed, or the collection is there with other settings.
        """
        if self.encoder is not None:
            vocab_size = self.encoder.vocabulary.vocab_size if vocab_size is None else vocab_size
            fingerprint = self.encoder.fingerprint if fingerprint is None else fingerprint
        if vocab_size is None:
            raise TypeError("vocab_size must be given where there is no encoder, got None.")
        wanted = CollectionSettings(vocab_size, embedding_dimension, similarity, fingerprint)
        self._check_encoder(wanted)
        self._check_settings(wanted)
        self._settings = None
        saved = self._try(self._read_settings)
        if saved is None:
            self._try(lambda: self._create(wanted))
            saved = self._try(self._read_settings) or wanted
        check_settings(saved.to_dict(), wanted.to_dict(), f"{self._where} has")
        self._settings = saved

    def upsert(self, records: Records) -> None:
        """Write documents; those whose ids are there already are replaced in full.

        Doing it again changes nothing, so that what was interrupted can be repeated.

        Raises:
            RuntimeError: If the engine refuses for too long.
            TypeError: If they are no Records.
            ValueError: If the embeddings are not over the collection's vocabulary or dimension, or a document is
                beyond a limit of the engine. What came before it in the batch may be written.
        """
        if not isinstance(records, Records):
            raise TypeError(f"records must be Records, got {type(records).__name__}.")
        check_sizes(
            "embeddings", records.hybrid, self.settings.vocab_size, self.settings.embedding_dimension, needs_dense=True
        )
        for part in records.split(self.max_rows, self.max_bytes):
            self._try(lambda part=part: self._upsert(part))  # type: ignore[misc]  # bound now

    def delete(self, ids: Collection[str]) -> None:
        """Delete documents; ids that are not there are passed over.

        Raises:
            RuntimeError: If the engine refuses for too long.
            TypeError: If it is a single string, or holds something else than strings.
        """
        names = list(dict.fromkeys(checked_strings("ids", ids)))
        _ = self.settings
        for start in range(0, len(names), self.max_rows):
            part = names[start : start + self.max_rows]
            self._try(lambda part=part: self._delete(part))  # type: ignore[misc]  # bound now

    def search(
        self,
        queries: Sequence[str] | HybridEmbeddings | SparseEmbeddings,
        *,
        mode: Mode | None = None,
        top_k: int = 10,
        filter: Mapping[str, Any] | Collection[str] | None = None,
        fusion: str | FusionFunction = "adaptive",
        weights: Mapping[str, float] | None = None,
        depth: int | None = None,
    ) -> Rankings:
        """Find the best documents for each query.

        Args:
            queries: Embeddings, or a list of texts where there is an encoder.
            mode: ``"sparse"``: documents that share a term, by the sum of the products of weights. ``"dense"``: all,
                by similarity. ``"hybrid"``: both, fused. None: ``"hybrid"`` where collection and queries have dense
                rows, else ``"sparse"``.
            top_k: At most so many hits per query.
            filter: Which documents may be found: a dictionary over the metadata (see
                :mod:`st_keytokens.index.filters`), or a collection of ids.
            fusion: ``"adaptive"``, ``"score"``, ``"rrf"`` or a function, all as in our index, or another one of
                ``server_fusions``. What the engine does itself comes in one request, and without the scores of the
                sides; for the rest both rankings are fetched and fused here. Only for hybrid.
            weights: Factors of ``"sparse"`` and ``"dense"`` in the fusion. None: the encoder's ``fusion_weights`` for
                the fusions of our index, else those of the engine.
            depth: How many hits of each side are fused; by default ``max(100, 10 * top_k)``.

        Returns:
            A list of hits for each query, best first; the order of ties is the engine's.

        Raises:
            RuntimeError: If the engine refuses for too long.
            TypeError: If an argument is of the wrong type, or texts are given and there is no encoder.
            ValueError: If a number is below 1, a name or an operator is not allowed, the queries are not over the
                collection's vocabulary or dimension, a dense value is not finite, or the engine cannot look for what
                the filter asks.
        """
        settings = self.settings
        plan = SearchPlan.checked(
            mode=mode,
            top_k=top_k,
            depth=depth,
            fusion=fusion,
            weights=weights,
            filter=filter,
            fusions=dict.fromkeys((*self.server_fusions, *FUSIONS)),
        )
        _ = plan.condition  # refuses a function
        is_hybrid = plan.is_hybrid(settings.embedding_dimension)
        batch = embedded_queries("queries", queries, self._checked_encoder, is_hybrid=is_hybrid)
        sizes = {"vocab_size": settings.vocab_size, "embedding_dimension": settings.embedding_dimension}
        plan = plan.settled(batch, **sizes, encoder=self.encoder)
        if plan.mode != "sparse" and batch.dense is not None:
            batch = HybridEmbeddings(checked_dense("queries", batch.dense, "float32").rows, batch.sparse)
        results: Rankings = []
        for start in range(0, len(batch), _MAX_QUERIES):
            part = batch[start : start + _MAX_QUERIES]
            if plan.mode == "dense" or plan.mode == "sparse":
                results += self._ranked(part, plan.mode, plan.top_k, plan.condition)
            else:
                results += self._hybrid(part, plan)
        return results

    def count(self) -> int:
        """How many documents the collection has, exactly, after :meth:`flush`."""
        _ = self.settings
        return self._try(self._count)

    def flush(self) -> None:  # noqa: B027  # most engines have nothing to do
        """Make all that was written safe and visible to searches, in engines that do so later on their own."""

    def close(self) -> None:  # noqa: B027  # most engines have nothing to do
        """Close what the engine opened itself; a client that was passed in stays open."""

    @abstractmethod
    def smallest_wait(self, error: Exception) -> float | None:
        """Of an error, the seconds to wait at least before trying again; None where trying again is no use."""

    @abstractmethod
    def _read_settings(self) -> CollectionSettings | None:
        """The settings kept with the collection; None where it is not there."""

    @abstractmethod
    def _create(self, settings: CollectionSettings) -> None:
        """Make the collection, and keep the settings with it. Somebody else may have made it just before."""

    @abstractmethod
    def _upsert(self, records: Records) -> None:
        """Write documents, at most ``max_rows``, replacing those that are there."""

    @abstractmethod
    def _delete(self, ids: list[str]) -> None:
        """Delete documents, at most ``max_rows``; some may not be there."""

    @abstractmethod
    def _search_side(self, queries: HybridEmbeddings, side: Side, limit: int, condition: Condition | None) -> Rankings:
        """Rank by one side; ``scores`` of a hit is ``{side: score}``. No query is without terms where it is sparse."""

    def _search_fused(self, queries: HybridEmbeddings, plan: SearchPlan) -> Rankings:
        """Rank by a fusion of the engine's own, where ``server_fusions`` names any. Queries may be without terms."""
        raise NotImplementedError

    @abstractmethod
    def _count(self) -> int:
        """How many documents there are."""

    def _check_settings(self, settings: CollectionSettings) -> None:  # noqa: B027  # most have no limits
        """Refuse settings that the engine cannot have, such as a dimension beyond its limit, with a ValueError."""

    @property
    def _where(self) -> str:
        return f"collection {self.collection!r}"

    def _try(self, function: Callable[[], Result]) -> Result:
        return self.retry.call(function, self.smallest_wait)

    def _check_encoder(self, settings: CollectionSettings) -> None:
        if self.encoder is not None:
            own = {"vocab_size": self.encoder.vocabulary.vocab_size, "fingerprint": self.encoder.fingerprint}
            check_settings(own, settings.to_dict(), "the encoder has")

    def _checked_encoder(self, name: str) -> Encoder:
        if self.encoder is None:
            raise TypeError(f"{name} must be embeddings where there is no encoder, got texts. Pass encoder=.")
        self._check_encoder(self.settings)
        return self.encoder

    def _hybrid(self, queries: HybridEmbeddings, plan: SearchPlan) -> Rankings:
        """Both sides fused, by the engine or here. Its own ranks may have no weights, or others than ours."""
        has_equal_weights = plan.weights is None or set(plan.weights.values()) == {1.0}
        means_the_same = plan.fusion != "rrf" or self.weighs_ranks or has_equal_weights
        if plan.fusion in self.server_fusions and means_the_same:
            results = self._try(lambda: self._search_fused(queries, plan))
            for hit in chain.from_iterable(results):
                hit.is_hybrid = True
            return results
        found = [self._ranked(queries, side, plan.depth, plan.condition) for side in SIDES]
        return [_fused_hits(plan, *rankings) for rankings in zip(*found, strict=True)]

    def _ranked(self, queries: HybridEmbeddings, side: Side, limit: int, condition: Condition | None) -> Rankings:
        """One side's rankings, without asking for queries that can find nothing."""
        asked = [row for row in range(len(queries)) if side == "dense" or queries.sparse.active_dims[row]]
        answers = self._try(lambda: self._search_side(queries[asked], side, limit, condition)) if asked else []
        found: Rankings = [[] for _ in range(len(queries))]
        for row, hits in zip(asked, answers, strict=True):
            found[row] = hits
        return found


def _fused_hits(plan: SearchPlan, *rankings: list[Hit]) -> list[Hit]:
    """The hits of both sides in one ranking, with what each side gave to a hit."""
    known = {hit.id: hit for ranking in rankings for hit in ranking}
    pairs: dict[str, list[tuple[str, float]]] = {
        side: [(hit.id, hit.score) for hit in ranking] for side, ranking in zip(SIDES, rankings, strict=True)
    }
    return [
        Hit(hit.id, hit.score, rank, known[hit.id].text, known[hit.id].metadata, hit.components, is_hybrid=True)
        for rank, hit in enumerate(plan.fused(pairs), 1)
    ]
