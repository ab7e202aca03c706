"""What an earlier version saved still opens, and answers as it did then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from st_keytokens import Calibration, HybridIndex, KeyTokenEncoder
from st_keytokens.bulk import read_batches, verify

SAVED = Path(__file__).parent / "fixtures" / "first-formats"
EXPECTED = json.loads((SAVED / "expected.json").read_text(encoding="utf-8"))
QUERY = "genes and proteins"


@pytest.fixture
def saved(tmp_path):
    """A copy: opening an index may write."""
    return Path(shutil.copytree(SAVED, tmp_path / "saved"))


@pytest.fixture
def encoder(saved):
    return KeyTokenEncoder.from_pretrained(saved / "encoder")


class TestFirstFormats:
    def test_encoder_comes_back_calibrated(self, encoder):
        assert encoder.calibration.document_count == EXPECTED["calibration_document_count"]

    def test_calibration_is_the_encoders(self, saved, encoder):
        loaded = Calibration.load(saved / "calibration")
        np.testing.assert_array_equal(loaded.document_frequencies, encoder.calibration.document_frequencies)

    @pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
    def test_index_answers_as_it_did(self, saved, encoder, mode):
        with HybridIndex(saved / "index", encoder=encoder) as index:
            hits = index.search(QUERY, top_k=5, mode=mode, fusion="score")  # as it was then
        assert [hit.id for hit in hits] == [id_ for id_, _ in EXPECTED["hits"][mode]]
        np.testing.assert_allclose(
            [hit.score for hit in hits], [score for _, score in EXPECTED["hits"][mode]], rtol=1e-4
        )

    def test_filter_and_deletion_hold(self, saved, encoder):
        with HybridIndex(saved / "index", encoder=encoder) as index:
            hits = index.search(QUERY, top_k=3, filter={"even": True})
            assert [hit.id for hit in hits] == EXPECTED["filtered"]
            assert "d3" not in {hit.id for hit in index.search(QUERY, top_k=30)}
            index.verify()

    def test_segments_that_are_written_anew_keep_metadata(self, saved, encoder):
        with HybridIndex(saved / "index", encoder=encoder) as index:
            index.compact()
            assert [hit.id for hit in index.search(QUERY, top_k=3, filter={"even": True})] == EXPECTED["filtered"]
        assert list((saved / "index").glob("segments/*/columns.npy"))

    def test_index_takes_another_document(self, saved, encoder):
        with HybridIndex(saved / "index", encoder=encoder) as index:
            index.add(["new"], ["Genes encode proteins in every cell."])
            assert "new" in {hit.id for hit in index.search(QUERY, top_k=3)}

    def test_conversion_is_read(self, saved):
        pytest.importorskip("pyarrow")
        verify(saved / "shards")
        ids, sparse = next(iter(read_batches(saved / "shards", 30)))
        assert ids[:3] == EXPECTED["first_shard_ids"]
        sums = np.asarray(sparse.to_scipy().sum(axis=1)).ravel()
        np.testing.assert_allclose(sums[:3], EXPECTED["sparse_sums"], rtol=1e-3)
