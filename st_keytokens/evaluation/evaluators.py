"""Evaluators in sentence-transformers' own form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.evaluation.runs import FUSION_DEPTH, Ranking, dense_run, fused_run, sparse_run, tie_order
from st_keytokens.index.fusion import FUSIONS, FusionName
from st_keytokens.shared.checks import check_choice

__all__ = ["HybridInformationRetrievalEvaluator"]

View = Literal["dense", "sparse", "hybrid"]


class HybridInformationRetrievalEvaluator(InformationRetrievalEvaluator):  # type: ignore[misc]  # untyped for mypy
    """Measures dense, sparse and hybrid retrieval of one model, from a single pass over corpus and queries.

    The measures, the CSV file and the names are those of sentence-transformers' ``InformationRetrievalEvaluator``,
    with ``dense_``, ``sparse_`` and ``hybrid_`` where that has the similarity, such as ``hybrid_ndcg@10``; beside them
    ``query_active_dims`` and ``corpus_active_dims``, the mean numbers of terms, and ``queries_without_terms``.

    Args:
        queries: Queries by id. As with the host, those without a relevant document are left out.
        corpus: Documents by id.
        relevant_docs: Ids of the relevant documents for each query.
        mrr_at_k: Cuts of MRR.
        ndcg_at_k: Cuts of nDCG.
        accuracy_at_k: Cuts of accuracy.
        precision_recall_at_k: Cuts of precision and recall.
        map_at_k: Cuts of MAP.
        main: Whose nDCG, at the largest cut, is the primary metric.
        fusion: ``"adaptive"``, ``"score"`` or ``"rrf"``, with the encoder's ``fusion_weights`` and, in the hybrid,
            queries of literal terms, as in ``HybridIndex``.
        fusion_depth: How many documents of each side are fused, as many as for ten hits by default.
        show_progress_bar: Whether to show one.
        batch_size: Texts a forward pass at most.
        name: Put before the metrics and into the name of the file.
        write_csv: Whether to write the CSV file where an output path is given.

    Raises:
        ValueError: If main or fusion is not one of its choices, fusion_depth below 1, or no query has a relevant
            document.
    """

    def __init__(
        self,
        queries: dict[str, str],
        corpus: dict[str, str],
        relevant_docs: dict[str, set[str]],
        *,
        mrr_at_k: Sequence[int] = (10,),
        ndcg_at_k: Sequence[int] = (10,),
        accuracy_at_k: Sequence[int] = (1, 3, 5, 10),
        precision_recall_at_k: Sequence[int] = (1, 3, 5, 10),
        map_at_k: Sequence[int] = (100,),
        main: View = "hybrid",
        fusion: FusionName = "adaptive",
        fusion_depth: int = FUSION_DEPTH,
        show_progress_bar: bool = False,
        batch_size: int = 32,
        name: str = "",
        write_csv: bool = True,
    ) -> None:
        if main not in ("dense", "sparse", "hybrid"):
            raise ValueError(f"main must be 'dense', 'sparse' or 'hybrid', got {main!r}.")
        check_choice("fusion", fusion, tuple(FUSIONS))
        if fusion_depth < 1:
            raise ValueError(f"fusion_depth must be at least 1, got {fusion_depth}.")
        super().__init__(
            queries=queries,
            corpus=corpus,
            relevant_docs=relevant_docs,
            mrr_at_k=list(mrr_at_k),
            ndcg_at_k=list(ndcg_at_k),
            accuracy_at_k=list(accuracy_at_k),
            precision_recall_at_k=list(precision_recall_at_k),
            map_at_k=list(map_at_k),
            show_progress_bar=show_progress_bar,
            batch_size=batch_size,
            name=name,
            write_csv=write_csv,
            score_functions=dict.fromkeys(("dense", "sparse", "hybrid")),  # only their names are used
        )
        if not self.queries:
            raise ValueError("relevant_docs must name a document for at least one of the queries, got none.")
        self.main = main
        self.fusion = fusion
        self.fusion_depth = fusion_depth
        self.csv_file = f"Hybrid-Information-Retrieval_evaluation{'_' + name if name else ''}_results.csv"
        self.sparsity: dict[str, float] = {}

    def __call__(
        self,
        model: KeyTokenEncoder | SentenceTransformer,
        output_path: str | None = None,
        epoch: int = -1,
        steps: int = -1,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, float]:
        """Measures a model.

        Args:
            model: A KeyTokenEncoder, or a SentenceTransformer that holds a KeyTokenHead or can be given one.
            output_path: Directory of the CSV file. None: not written.
            epoch: A column of it; -1 after training.
            steps: A column of it; -1 at the end of an epoch.
            *args: Passed on to the host.
            **kwargs: Passed on to the host.

        Returns:
            The metrics by name.
        """
        encoder = model if isinstance(model, KeyTokenEncoder) else KeyTokenEncoder(model)
        self.primary_metric = f"{self.main}_ndcg@{max(self.ndcg_at_k)}"
        metrics: dict[str, float] = super().__call__(
            encoder.model, output_path, epoch, steps, *args, encoder=encoder, **kwargs
        )
        metrics |= self.prefix_name_to_metrics(self.sparsity, self.name)
        self.store_metrics_in_model_card_data(encoder.model, metrics, epoch, steps)
        return metrics

    def compute_all_metrics(
        self, model: SentenceTransformer, *, encoder: KeyTokenEncoder, output_path: str | None = None
    ) -> dict[str, dict[str, dict[int, float]]]:
        """The host's metrics of each view, from one pass; called by the host.

        Args:
            model: The encoder's model.
            encoder: Embeds both sides, each text once.
            output_path: Not used.

        Returns:
            For each view the host's metrics.
        """
        arguments = {"batch_size": self.batch_size, "show_progress_bar": self.show_progress_bar}
        documents = encoder.encode_document(self.corpus, **arguments)
        queries = encoder.encode(self.queries, role="query", **arguments)
        ties = tie_order(self.corpus_ids)
        cuts = (self.mrr_at_k, self.ndcg_at_k, self.accuracy_at_k, self.precision_recall_at_k, self.map_at_k)
        depth = max(self.fusion_depth, *(k for cut in cuts for k in cut))
        dense = dense_run(model, _rows(documents.dense), _rows(queries.dense), ties, depth)
        matrix = documents.sparse.to_scipy()
        sparse = sparse_run(matrix, queries.sparse.to_scipy(), ties, depth, forward_passes=1, seconds={})
        terms = encoder.hybrid_query(self.queries, queries.sparse).to_scipy()
        beside_dense = sparse_run(matrix, terms, ties, depth, forward_passes=1, seconds={})
        hybrid = fused_run(
            dense, beside_dense, FUSIONS[self.fusion], ties, depth, self.fusion_depth, encoder.fusion_weights
        )
        self.sparsity = {
            "query_active_dims": float(sparse.query_active_dims or 0),
            "corpus_active_dims": float(sparse.document_active_dims or 0),
            "queries_without_terms": float(sparse.queries_without_terms),
        }
        views = {"dense": dense, "sparse": sparse, "hybrid": hybrid}
        return {
            view: self.compute_metrics([self._hits(ranking) for ranking in run.rankings])
            for view, run in views.items()
        }

    def get_config_dict(self) -> dict[str, Any]:
        """Settings for the model card."""
        return {"main": self.main, "fusion": self.fusion, "fusion_depth": self.fusion_depth}

    def _hits(self, ranking: Ranking) -> list[dict[str, Any]]:
        rows, scores = ranking
        return [
            {"corpus_id": self.corpus_ids[row], "score": score}
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        ]


def _rows(dense: NDArray[Any] | None) -> NDArray[np.float32]:
    if dense is None:
        raise ValueError("model must give dense vectors, got none. Use an encoder whose queries take a pass.")
    return dense
