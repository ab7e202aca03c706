"""What embeddings say: the analyses of the paper, for every embedder, with tables and pictures."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

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
    from st_keytokens.analysis.alignment import alignment_of_embeddings, measure_alignment
    from st_keytokens.analysis.alignment_evaluator import KeyTokenAlignmentEvaluator
    from st_keytokens.analysis.alignment_result import Alignment, AlignmentComparison
    from st_keytokens.analysis.contribution import measure_contribution
    from st_keytokens.analysis.contribution_result import Contribution
    from st_keytokens.analysis.html_bars import html_report
    from st_keytokens.analysis.html_page import HtmlView
    from st_keytokens.analysis.html_text_view import html_view
    from st_keytokens.analysis.instructions import InstructionComparison, compare_instructions
    from st_keytokens.analysis.keyphrases import KeyphraseComparison, measure_keyphrases
    from st_keytokens.analysis.keyphrases_candidates import candidate_phrases
    from st_keytokens.analysis.keyphrases_rankings import rank_by_embedding, rank_by_key_tokens, rank_by_tfidf
    from st_keytokens.analysis.pair import PairExplanation, explain_pair
    from st_keytokens.analysis.pair_comparison import PairComparison, compare_pair
    from st_keytokens.analysis.pair_scores import SparseExplanation, explain_sparse_pair
    from st_keytokens.analysis.relatedness import Relatedness, compare_with_judgements
    from st_keytokens.analysis.shift_result import ShiftSweep
    from st_keytokens.analysis.shift_sweep import sweep_shift
    from st_keytokens.analysis.spectrum import Spectrum, measure_spectrum
    from st_keytokens.analysis.variation import Variation, measure_variation
else:  # on first use, as in the package above
    _MODULES = {
        "Alignment": "alignment_result",
        "AlignmentComparison": "alignment_result",
        "Contribution": "contribution_result",
        "HtmlView": "html_page",
        "InstructionComparison": "instructions",
        "KeyTokenAlignmentEvaluator": "alignment_evaluator",
        "KeyphraseComparison": "keyphrases",
        "PairComparison": "pair_comparison",
        "PairExplanation": "pair",
        "Relatedness": "relatedness",
        "ShiftSweep": "shift_result",
        "SparseExplanation": "pair_scores",
        "Spectrum": "spectrum",
        "Variation": "variation",
        "alignment_of_embeddings": "alignment",
        "candidate_phrases": "keyphrases_candidates",
        "compare_instructions": "instructions",
        "compare_pair": "pair_comparison",
        "compare_with_judgements": "relatedness",
        "explain_pair": "pair",
        "explain_sparse_pair": "pair_scores",
        "html_report": "html_bars",
        "html_view": "html_text_view",
        "measure_alignment": "alignment",
        "measure_contribution": "contribution",
        "measure_keyphrases": "keyphrases",
        "measure_spectrum": "spectrum",
        "measure_variation": "variation",
        "rank_by_embedding": "keyphrases_rankings",
        "rank_by_key_tokens": "keyphrases_rankings",
        "rank_by_tfidf": "keyphrases_rankings",
        "sweep_shift": "shift_sweep",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
