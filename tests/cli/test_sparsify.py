from __future__ import annotations

import io
import sys
import types

import numpy as np
import pytest
import scipy.sparse
from cli_samples import texts
from encoder_checks import assert_close

from st_keytokens import SparseEmbeddings
from st_keytokens.bulk import read_batches


class TestSparsify:
    @pytest.mark.parametrize("has_texts", [False, True])
    @pytest.mark.parametrize("role", ["document", "query"])
    def test_same_as_the_library(self, rows, calibrated, corpus, tmp_path, has_texts, role):
        calibrated.save_pretrained(tmp_path / "model")
        dense = calibrated.model.encode(texts(corpus))
        np.save(tmp_path / "dense.npy", dense)
        words = ["--role", role, "--batch-size", 16, *(["--texts", corpus] if has_texts else [])]
        arguments = [tmp_path / "model", tmp_path / "dense.npy", "--output", tmp_path / "out.npz", *words]
        (found,) = rows("sparsify", *arguments)
        expected = calibrated.sparsify(dense, texts(corpus) if has_texts else None, role=role)
        saved = SparseEmbeddings.from_scipy(scipy.sparse.load_npz(tmp_path / "out.npz"))
        assert saved.shape == expected.shape == (50, 2**29)
        assert_close(saved, expected)
        assert (found["rows"], found["vocab_size"], found["terms"]) == (50, 2**29, saved.nnz)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.npy", "model", "out.npz"]

    def test_no_rows(self, run, model, tmp_path):
        np.save(tmp_path / "dense.npy", np.zeros((0, 32), np.float32))
        code, out, _ = run("sparsify", model, tmp_path / "dense.npy", "--output", tmp_path / "out.npz")
        assert (code, out) == (
            0,
            f"Saved 0 rows of 0.0 terms on average, out of 536,870,912, in {tmp_path / 'out.npz'}.\n",
        )

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.ones((2, 3), np.float32), r"got (2, 3)"),
            (np.ones((2, 32), np.int64), "must hold a matrix of floats, one row a text, got int64 of shape (2, 32)"),
            (np.ones(32, np.float32), "must hold a matrix of floats, one row a text, got float32 of shape (32,)"),
            (np.full((2, 32), np.nan, np.float32), "embeddings must be finite"),
            (np.array([{}]), "must be a .npy file of numbers"),
        ],
        ids=["dimension", "integers", "vector", "nan", "objects"],
    )
    def test_wrong_array(self, fails, model, tmp_path, array, message):
        np.save(tmp_path / "dense.npy", array, allow_pickle=True)
        assert message in fails("sparsify", model, tmp_path / "dense.npy", "--output", tmp_path / "out.npz")
        assert not (tmp_path / "out.npz").exists()

    def test_wrong_files(self, fails, model, corpus, tmp_path):
        output = ["--output", tmp_path / "out.npz"]
        assert "must be a file or directory that exists" in fails("sparsify", model, tmp_path / "none.npy", *output)
        (tmp_path / "text.npy").write_text("text")
        assert "must be a .npy file of numbers" in fails("sparsify", model, tmp_path / "text.npy", *output)
        np.savez(tmp_path / "many.npz", np.ones(3))
        assert "must be a file that ends in .npy, " in fails("sparsify", model, tmp_path / "many.npz", *output)
        (tmp_path / "many.npz").rename(tmp_path / "many.npy")
        assert "got an .npz archive" in fails("sparsify", model, tmp_path / "many.npy", *output)
        np.save(tmp_path / "two.npy", np.ones((2, 32), np.float32))
        message = fails("sparsify", model, tmp_path / "two.npy", *output, "--texts", corpus)
        assert message == f"--texts must be one for each embedding, got 50 texts for 2 rows of {tmp_path / 'two.npy'}."
        message = fails("sparsify", model, tmp_path / "two.npy", "--output", tmp_path / "out.npy")
        assert message.startswith("--output must end in .npz, got ")
        message = fails("sparsify", model, tmp_path / "two.npy", "--output", tmp_path / "none" / "out.npz")
        assert message.startswith("--output must be in a directory that exists, got ")

    def test_shards(self, run, rows, calibrated, corpus, sentences, tmp_path):
        arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
        calibrated.save_pretrained(tmp_path / "model")
        dense = calibrated.model.encode(texts(corpus))
        names = [f"s{i}" for i in reversed(range(50))]
        table = arrow.table({"key": names, "vec": list(dense[::-1]), "body": list(reversed(sentences))})
        parquet.write_table(table, tmp_path / "dense.parquet")
        columns = ["--id-column", "key", "--vector-column", "vec", "--batch-size", 16]
        arguments = [tmp_path / "model", tmp_path / "dense.parquet", *columns, "--shard-rows", 20]
        (found,) = rows("sparsify", *arguments, "--texts", corpus, "--output", tmp_path / "joined")
        assert (found["rows"], found["new_rows"], found["shards"], found["vocab_size"]) == (50, 50, 2, 2**29)
        assert found["rows_per_second"] == pytest.approx(50 / found["seconds"])
        (other,) = rows("sparsify", *arguments, "--text-column", "body", "--output", tmp_path / "column")
        expected = calibrated.sparsify(np.ascontiguousarray(dense[::-1]), texts(corpus)[::-1], batch_size=16)
        for name in ("joined", "column"):
            ids, parts = zip(*read_batches(tmp_path / name), strict=True)
            assert [i for part in ids for i in part] == names
            assert_close(SparseEmbeddings.concatenate(parts), expected)
        assert found["terms"] == other["terms"] and found["bytes"] == other["bytes"]
        code, out, _ = run("sparsify", *arguments, "--texts", corpus, "--output", tmp_path / "joined")
        first, second = out.splitlines()
        assert code == 0 and second == "50 of them were there."
        assert first.startswith("Saved 50 rows of ") and f" in {tmp_path / 'joined'}: 2 shards, 0." in first

    def test_standard_input_and_dtype(self, rows, calibrated, sentences, tmp_path, monkeypatch):
        calibrated.save_pretrained(tmp_path / "model")
        dense = calibrated.model.encode(sentences)
        np.save(tmp_path / "dense.npy", dense)
        lines = "".join(f"{text}\n" for text in sentences).encode()
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(lines)))
        arguments = [tmp_path / "model", tmp_path / "dense.npy", "--texts", "-", "--output", tmp_path / "out.npz"]
        rows("sparsify", *arguments, "--dtype", "bfloat16")
        saved = SparseEmbeddings.from_scipy(scipy.sparse.load_npz(tmp_path / "out.npz"))
        expected = calibrated.sparsify(dense, sentences)
        assert saved.shape == expected.shape and saved != expected  # other roundings
        difference = abs(saved.to_scipy() - expected.to_scipy()) - 0.05 * expected.to_scipy()
        assert (difference > 0.05).nnz < 0.01 * expected.nnz

    def test_wrong_sources(self, fails, model, tmp_path):
        output = ["--output", tmp_path / "out"]
        (tmp_path / "a.csv").write_text("a,b")
        assert "embeddings must be a file that ends in .npy, " in fails("sparsify", model, tmp_path / "a.csv", *output)
        np.save(tmp_path / "a.npy", np.ones((2, 32), np.float32))
        message = fails("sparsify", model, tmp_path / "a.npy", *output, "--id-column", "key")
        assert message == "--id-column must not be given for a source of kind npy, got 'key'."
        message = fails("sparsify", model, "postgresql://user:secret@host/base", *output)
        assert message == "table must be the name of one in postgresql://host/base, got none."
