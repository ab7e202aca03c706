from __future__ import annotations

import pickle

import numpy as np
import pytest

from st_keytokens import SparseEmbeddings
from st_keytokens.bulk import KeyTokenBatchEncoder, collect_shards, read_batches


@pytest.fixture(scope="module")
def model(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    encoder.save_pretrained(folder)
    return folder


def sparse_of(rows, vocab_size=640):
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


class TestCollectShards:
    @pytest.fixture
    def folder(self, model, sentences, tmp_path):
        """Rows as a cluster writes them, in two files in folders of their own."""
        arrow = pytest.importorskip("pyarrow", reason="the contract on disk needs pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet", reason="the contract on disk needs pyarrow")
        made = KeyTokenBatchEncoder(model, device="cpu")
        item = arrow.list_(arrow.field("item", arrow.int32())), arrow.list_(arrow.field("item", arrow.float32()))
        schema = arrow.schema([("id", arrow.string()), ("indices", item[0]), ("values", item[1])])
        for number, (start, stop) in enumerate([(0, 30), (30, 50)]):
            rows = made({"id": range(start, stop), "text": sentences[start:stop]})
            (tmp_path / f"chunk-{number}").mkdir()
            table = arrow.table({name: column.tolist() for name, column in rows.items()}, schema=schema)
            parquet.write_table(table, tmp_path / f"chunk-{number}" / f"part-{number}.parquet")
        (tmp_path / "chunk-0" / "_SUCCESS").touch()
        (tmp_path / "_temporary").mkdir()
        (tmp_path / "_temporary" / "left.parquet").write_bytes(b"left by a killed task")
        return tmp_path

    def test_read_as_shards(self, folder, encoder, sentences):
        manifest = collect_shards(folder, vocab_size=640, fingerprint=encoder.fingerprint)
        assert [shard.name for shard in manifest.shards] == ["chunk-0/part-0.parquet", "chunk-1/part-1.parquet"]
        ids, parts = zip(*read_batches(folder, 20), strict=True)
        assert [i for part in ids for i in part] == list(map(str, range(50)))
        found = SparseEmbeddings.concatenate(parts)
        expected = encoder.encode(sentences).sparse
        np.testing.assert_allclose(found.to_scipy().toarray(), expected.to_scipy().toarray(), rtol=1e-3, atol=1e-4)
        assert manifest.terms == found.nnz

    def test_refusals(self, folder, tmp_path):
        with pytest.raises(ValueError, match=r"part-0.parquet: indices must be in 0\.\.4"):
            collect_shards(folder, vocab_size=5, fingerprint="f")
        collect_shards(folder, vocab_size=640, fingerprint="f")
        with pytest.raises(ValueError, match=r"must have no manifest.json, got one"):
            collect_shards(folder, vocab_size=640, fingerprint="f")
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match="must hold Parquet files, got none"):
            collect_shards(tmp_path / "empty", vocab_size=640, fingerprint="f")

    def test_other_types(self, tmp_path):
        arrow = pytest.importorskip("pyarrow", reason="the contract on disk needs pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet", reason="the contract on disk needs pyarrow")
        parquet.write_table(arrow.table({"id": ["a"], "indices": [[1]], "values": [[0.5]]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=r"column 'indices' must be list<.*int32>, got list<.*int64>"):
            collect_shards(tmp_path, vocab_size=5, fingerprint="f")
