"""What embeddings say: the analyses of the paper, for every embedder, with tables and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st_keytokens.shared.imports import lazy_names

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
    from st_keytokens.analysis.html_pages import HtmlView, html_report, html_view
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
    from st_keytokens.analysis.spectrum import Spectrum, Variation, measure_spectrum, measure_variation
else:
    _MODULES = {
        "alignment": ["Alignment", "AlignmentComparison", "alignment_of_embeddings", "measure_alignment"],
        "alignment_evaluator": ["KeyTokenAlignmentEvaluator"],
        "contribution": ["Contribution", "measure_contribution"],
        "html_pages": ["HtmlView", "html_report", "html_view"],
        "instructions": ["InstructionComparison", "compare_instructions"],
        "keyphrases": [
            *("KeyphraseComparison", "candidate_phrases", "measure_keyphrases"),
            *("rank_by_embedding", "rank_by_key_tokens", "rank_by_tfidf"),
        ],
        "pair": [
            *("PairComparison", "PairExplanation", "SparseExplanation"),
            *("compare_pair", "explain_pair", "explain_sparse_pair"),
        ],
        "relatedness": ["Relatedness", "compare_with_judgements"],
        "shift": ["ShiftSweep", "sweep_shift"],
        "spectrum": ["Spectrum", "Variation", "measure_spectrum", "measure_variation"],
    }
    _PLACES = {name: module for module, names in _MODULES.items() for name in names}
    __getattr__, __dir__ = lazy_names(__name__, _PLACES)
