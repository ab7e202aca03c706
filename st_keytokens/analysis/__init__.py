"""What embeddings say: the analyses of the paper, for every embedder, with tables and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st_keytokens.imports import lazy_names

__all__ = [
    "Alignment",
    "AlignmentComparison",
    "Contribution",
    "HtmlView",
    "InstructionComparison",
    "KeyTokenAlignmentEvaluator",
    "KeyphraseComparison",
    "PairComparison",
    "PairExplanation",
    "Relatedness",
    "ShiftSweep",
    "SparseExplanation",
    "Spectrum",
    "Variation",
    "alignment_of_embeddings",
    "candidate_phrases",
    "compare_instructions",
    "compare_pair",
    "compare_with_judgements",
    "explain_pair",
    "explain_sparse_pair",
    "html_report",
    "html_view",
    "measure_alignment",
    "measure_contribution",
    "measure_keyphrases",
    "measure_spectrum",
    "measure_variation",
    "rank_by_embedding",
    "rank_by_key_tokens",
    "rank_by_tfidf",
    "sweep_shift",
]

if TYPE_CHECKING:
    from st_keytokens.analysis.alignment import (
        Alignment,
        AlignmentComparison,
        alignment_of_embeddings,
        measure_alignment,
    )
    from st_keytokens.analysis.alignment_evaluator import KeyTokenAlignmentEvaluator
    from st_keytokens.analysis.contribution import Contribution, measure_contribution
    from st_keytokens.analysis.html_view import HtmlView, html_report, html_view
    from st_keytokens.analysis.instructions import InstructionComparison, compare_instructions
    from st_keytokens.analysis.keyphrases import (
        KeyphraseComparison,
        candidate_phrases,
        measure_keyphrases,
        rank_by_embedding,
        rank_by_key_tokens,
        rank_by_tfidf,
    )
    from st_keytokens.analysis.pair import (
        PairComparison,
        PairExplanation,
        SparseExplanation,
        compare_pair,
        explain_pair,
        explain_sparse_pair,
    )
    from st_keytokens.analysis.relatedness import Relatedness, compare_with_judgements
    from st_keytokens.analysis.shift import ShiftSweep, sweep_shift
    from st_keytokens.analysis.spectrum import Spectrum, measure_spectrum
    from st_keytokens.analysis.variation import Variation, measure_variation
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Alignment": "alignment",
            "AlignmentComparison": "alignment",
            "Contribution": "contribution",
            "HtmlView": "html_view",
            "InstructionComparison": "instructions",
            "KeyTokenAlignmentEvaluator": "alignment_evaluator",
            "KeyphraseComparison": "keyphrases",
            "PairComparison": "pair",
            "PairExplanation": "pair",
            "Relatedness": "relatedness",
            "ShiftSweep": "shift",
            "SparseExplanation": "pair",
            "Spectrum": "spectrum",
            "Variation": "variation",
            "alignment_of_embeddings": "alignment",
            "candidate_phrases": "keyphrases",
            "compare_instructions": "instructions",
            "compare_pair": "pair",
            "compare_with_judgements": "relatedness",
            "explain_pair": "pair",
            "explain_sparse_pair": "pair",
            "html_report": "html_view",
            "html_view": "html_view",
            "measure_alignment": "alignment",
            "measure_contribution": "contribution",
            "measure_keyphrases": "keyphrases",
            "measure_spectrum": "spectrum",
            "measure_variation": "variation",
            "rank_by_embedding": "keyphrases",
            "rank_by_key_tokens": "keyphrases",
            "rank_by_tfidf": "keyphrases",
            "sweep_shift": "shift",
        },
    )
