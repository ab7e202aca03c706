from __future__ import annotations

import numpy as np

from st_keytokens.analysis.alignment import document_frequencies, frequency_order


class TestDocumentFrequencies:
    def test_a_text_counts_a_term_once(self):
        found = document_frequencies([np.array([2, 2, 0]), np.array([], dtype=int), np.array([2])], 4)
        assert found.tolist() == [1, 0, 2, 0]

    def test_no_texts(self):
        assert document_frequencies([], 2).tolist() == [0, 0]


class TestFrequencyOrder:
    def test_most_frequent_first_and_terms_that_do_not_occur_are_left_out(self):
        assert frequency_order(np.array([1, 0, 3, 1])).tolist() == [2, 0, 3]
