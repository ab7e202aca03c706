from __future__ import annotations

import pickle

import numpy as np
import pytest

from st_keytokens import SparseEmbeddings
from st_keytokens.bulk import KeyTokenBatchEncoder


def sparse_of(rows, vocab_size=2**29):
    dicts = [dict(zip(*pair, strict=True)) for pair in zip(rows["indices"], rows["values"], strict=True)]
    return SparseEmbeddings.from_dicts(dicts, vocab_size)


class TestCall:
    @pytest.mark.parametrize("role", ["document", "query"])
    def test_same_as_encode(self, encoder, model, sentences, role):
        made = KeyTokenBatchEncoder(model, role=role, batch_size=8, device="cpu")
        rows = made({"id": np.arange(50), "text": np.array(sentences, dtype=object), "other": np.ones(50)})
        assert list(rows) == ["id", "indices", "values"]
        assert rows["id"].tolist() == list(map(str, range(50)))
        assert sparse_of(rows) == encoder.encode(sentences, role=role, batch_size=8).sparse

    def test_plain_lists(self, model):
        made = KeyTokenBatchEncoder(model, id_column="key", text_column="body", device="cpu")
        rows = made({"key": ["a", "b", "c"], "body": ["a genome", "a genome", None]})
        for name, kind in (("indices", int), ("values", float)):
            assert rows[name].dtype == object and rows[name].shape == (3,)
            assert all(type(row) is list for row in rows[name])
            assert all(type(value) is kind for row in rows[name] for value in row)
        assert rows["indices"][0] == rows["indices"][1] != [] and rows["indices"][2] == []

    def test_no_rows(self, model):
        rows = KeyTokenBatchEncoder(model, device="cpu")({"id": [], "text": []})
        assert all(len(column) == 0 for column in rows.values())

    def test_settings(self, model):
        made = KeyTokenBatchEncoder(model, device="cpu", settings={"method": "literal"})
        rows = made({"id": ["a"], "text": ["the genome of a mouse"]})
        terms = made.encoder.literal_terms(["the genome of a mouse"])[0]
        assert set(rows["indices"][0]) <= set(np.asarray(terms).tolist())

    def test_missing_column(self, model):
        with pytest.raises(ValueError, match="batch must have the column 'text', got 'id', 'body'"):
            KeyTokenBatchEncoder(model)({"id": ["a"], "body": ["b"]})
        with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
            KeyTokenBatchEncoder(model, batch_size=0)


class TestPickle:
    def test_without_the_model(self, model, sentences):
        made = KeyTokenBatchEncoder(model, device="cpu")
        small = pickle.dumps(made)
        batch = {"id": list(range(50)), "text": sentences}
        rows = made(batch)
        assert pickle.dumps(made) == small and len(small) < 1000
        again = pickle.loads(small)(batch)
        assert all(again[name].tolist() == rows[name].tolist() for name in rows)

    def test_predict_function(self, model, sentences):
        made = KeyTokenBatchEncoder(model, device="cpu")
        predict = pickle.loads(pickle.dumps(made.make_predict_fn))()
        rows = predict(np.array(sentences, dtype=object))
        expected = made({"id": range(50), "text": sentences})
        for name, dtype in (("indices", np.int32), ("values", np.float32)):
            assert all(row[name].dtype == dtype and row[name].ndim == 1 for row in rows)
            assert [row[name].tolist() for row in rows] == expected[name].tolist()
