from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_checks import assert_close

from st_keytokens import KeyTokenEncoder, SparseEmbeddings
from st_keytokens.bulk import EmbeddingBatch, convert, open_source, read_batches, read_manifest
from st_keytokens.bulk.conversion import prefetched, sparse_rows, sparsify_batches
from st_keytokens.shared.document_files import read_documents

needs_arrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="the contract on disk needs pyarrow")


class Source:
    """Vectors with ids, in memory; an error after some rows, where that is wanted."""

    def __init__(self, ids, dense, fails_after=None, texts=None):
        self.name, self.identity, self.rows, self.has_ids = "memory", {"kind": "memory"}, len(dense), ids is not None
        self.ids, self.dense, self.fails_after, self.texts = ids, dense, fails_after, texts
        self.starts = []

    def batches(self, batch_size, position=None):
        self.starts.append(position)
        for start in range(position or 0, len(self.dense), batch_size):
            stop = min(len(self.dense), start + batch_size)
            if self.fails_after is not None and stop > self.fails_after:
                raise OSError("the disk is gone")
            ids = None if self.ids is None else self.ids[start:stop]
            texts = None if self.texts is None else self.texts[start:stop]
            yield EmbeddingBatch(ids, self.dense[start:stop].copy(), stop, texts)


def read(path):
    parts = list(read_batches(path, 9))
    return [i for ids, _ in parts for i in ids], SparseEmbeddings.concatenate([sparse for _, sparse in parts])


def joined(batches):
    return SparseEmbeddings.concatenate([batch.sparse for batch in batches])


def assert_same(found, expected):
    """The same terms and weights, up to the rounding of another batch size."""
    assert_close(found, expected, rtol=1e-3, atol=1e-4)


class TestPipeline:
    @pytest.mark.parametrize("role", ["document", "query"])
    def test_same_as_sparsify(self, encoder, ids, dense, sentences, role):
        for texts in (None, sentences):
            found = list(sparsify_batches(encoder, Source(ids, dense, texts=texts).batches(16), role=role))
            assert joined(found) == encoder.sparsify(dense, texts, role=role, batch_size=16)
            assert [i for batch in found for i in batch.ids] == ids
            assert [batch.position for batch in found] == [16, 32, 48, 50]

    @pytest.mark.slow
    def test_no_slower_on_the_cpu(self):
        """With the tiny embedder, the stages side by side take no more of the processor than ``sparsify``.

        A margin is left for the hand-over of the batches, which is all that is added.
        """
        encoder = KeyTokenEncoder.from_pretrained(
            Path(__file__).resolve().parents[2] / "examples" / "tiny-embedder" / "embedder",
            model_arguments={"device": "cpu"},
            cache_size=0,
        )
        rows = np.random.default_rng(0).standard_normal((20_000, encoder.get_embedding_dimension()), dtype=np.float32)
        names = [str(i) for i in range(len(rows))]

        def seconds(work):
            start = time.process_time()
            work()
            return time.process_time() - start

        both = [
            (
                seconds(lambda: encoder.sparsify(rows, batch_size=256)),
                seconds(lambda: list(sparsify_batches(encoder, Source(names, rows).batches(256)))),
            )
            for _ in range(3)
        ]
        alone, side_by_side = map(min, zip(*both, strict=True))
        assert side_by_side < 1.25 * alone

    def test_rows_without_ids_have_numbers(self, encoder, dense):
        found = list(sparsify_batches(encoder, Source(None, dense).batches(20, 10), start=10))
        assert [i for batch in found for i in batch.ids] == [str(i) for i in range(10, 50)]

    def test_refusals(self, encoder, ids, dense):
        wrong = dense.copy()
        wrong[33, 3] = np.nan
        with pytest.raises(ValueError, match="embeddings must be finite, got NaN or infinity in row 133"):
            list(sparsify_batches(encoder, Source(ids, wrong).batches(16), start=100))
        with pytest.raises(ValueError, match=r"embeddings must have shape \(batch_size, 32\), got \(16, 31\)"):
            list(sparsify_batches(encoder, Source(ids, dense[:, 1:]).batches(16)))
        assert not [thread for thread in threading.enumerate() if "prefetch" in thread.name]

    def test_reading_runs_ahead_of_the_caller(self, encoder, ids, dense):
        source, read_rows = Source(ids, dense), []

        def noted():
            for batch in source.batches(5):
                read_rows.append(batch.position)
                yield batch

        rows = sparsify_batches(encoder, noted())
        next(rows)
        deadline = time.monotonic() + 20
        while len(read_rows) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 5 <= len(read_rows) <= 8  # two before each stage, one in each, and the caller's
        rows.close()
        assert not [thread for thread in threading.enumerate() if "prefetch" in thread.name]


class TestPrefetched:
    def test_errors_come_in_their_place(self):
        def numbers():
            yield 1
            yield 2
            raise KeyError("three")

        found = []
        with pytest.raises(KeyError, match="three"):
            for number in prefetched(numbers(), 5):
                found.append(number)
        assert found == [1, 2]

    def test_closing_ends_an_endless_source(self):
        is_closed = threading.Event()

        def numbers():
            try:
                while True:
                    yield 1
            finally:
                is_closed.set()

        ones = prefetched(numbers())
        assert next(ones) == 1
        ones.close()
        assert is_closed.is_set()


class TestTexts:
    def test_joined_by_id(self, encoder, ids, dense, sentences, corpus, tmp_path):
        rows = sparse_rows(
            encoder, Source(ids, dense), texts=lambda: read_documents(corpus), batch_size=8, folder=tmp_path
        )
        assert joined(rows) == encoder.sparsify(dense, sentences, batch_size=8)
        assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]

    def test_joined_by_number(self, encoder, dense, sentences, tmp_path):
        path = tmp_path / "corpus.txt"
        path.write_text("".join(f"{text}\n" for text in sentences))
        options = {"texts": lambda: read_documents(path), "batch_size": 8}
        found = list(sparse_rows(encoder, Source(None, dense), **options))
        assert joined(found) == encoder.sparsify(dense, sentences, batch_size=8)
        assert [i for batch in found for i in batch.ids] == [str(i) for i in range(50)]
        later = list(sparse_rows(encoder, Source(None, dense), start=24, position=24, **options))
        assert [i for batch in later for i in batch.ids] == [str(i) for i in range(24, 50)]
        assert joined(later) == joined(found)[24:]

    def test_ids_of_the_texts(self, encoder, dense, sentences, tmp_path):
        path = tmp_path / "corpus.jsonl"
        path.write_text("".join(json.dumps({"_id": f"x{i}", "text": t}) + "\n" for i, t in enumerate(sentences)))
        found = sparse_rows(encoder, Source(None, dense), texts=lambda: read_documents(path))
        assert [i for batch in found for i in batch.ids] == [f"x{i}" for i in range(50)]

    def test_texts_that_do_not_fit(self, encoder, ids, dense, corpus, tmp_path):
        def rows(path, ids=ids):
            return list(sparse_rows(encoder, Source(ids, dense), texts=lambda: read_documents(path), batch_size=8))

        lines = corpus.read_text().splitlines(keepends=True)
        few, twice, bare = (tmp_path / name for name in ("few.jsonl", "twice.jsonl", "bare.jsonl"))
        few.write_text("".join(lines[:-1]))
        with pytest.raises(ValueError, match="texts must have a text for every embedding, got none with the id 's0'"):
            rows(few)
        with pytest.raises(ValueError, match="texts must be one for each embedding, got only 49 texts"):
            rows(few, None)
        twice.write_text("".join([*lines, lines[7]]))
        with pytest.raises(ValueError, match="texts must have every id once, got one twice"):
            rows(twice)
        with pytest.raises(ValueError, match="texts must be one for each embedding, got more than 50 texts"):
            rows(twice, None)
        bare.write_text('{"text": "x"}\n')
        with pytest.raises(ValueError, match="texts must have an id for every text, got none"):
            rows(bare)


@needs_arrow
class TestConvert:
    def test_same_as_sparsify(self, encoder, ids, dense, sentences, corpus, tmp_path):
        source = Source(ids, dense)
        made = convert(encoder, source, tmp_path / "out", texts=lambda: read_documents(corpus), batch_size=8)
        found_ids, found = read(tmp_path / "out")
        assert found_ids == ids and found == encoder.sparsify(dense, sentences, batch_size=8)
        assert (made.rows, made.manifest.rows, made.manifest.fingerprint) == (50, 50, encoder.fingerprint)
        assert made.rows_per_second == 50 / made.seconds > 0
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "part-00000.parquet"]
        again = convert(encoder, Source(ids, dense), tmp_path / "out", texts=lambda: read_documents(corpus))
        assert again.rows == 0 and again.manifest == made.manifest

    def test_two_conversions_of_one_directory(self, encoder, ids, dense, tmp_path):
        class Meanwhile(Source):
            def batches(self, batch_size, position=None):
                with pytest.raises(ValueError, match="must be written by one process at a time, got another at work"):
                    convert(encoder, Source(ids, dense), tmp_path / "out", batch_size=8)
                yield from super().batches(batch_size, position)

        assert convert(encoder, Meanwhile(ids, dense), tmp_path / "out", batch_size=8).rows == 50
        assert read(tmp_path / "out")[0] == ids

    def test_a_manifest_that_lies_about_how_far_it_is(self, encoder, ids, dense, tmp_path):
        options = {"batch_size": 8, "shard_rows": 16}
        with pytest.raises(OSError, match="the disk is gone"):
            convert(encoder, Source(ids, dense, 40), tmp_path / "out", **options)
        file = tmp_path / "out" / "manifest.json"
        content = json.loads(file.read_text())
        assert (content["rows"], content.pop("checksum") != "", content["position"]) == (32, True, 32)

        def refused(**changes):
            file.write_text(json.dumps({**content, **changes}))
            with pytest.raises(ValueError) as caught:
                convert(encoder, Source(ids, dense), tmp_path / "out", **options)
            return str(caught.value)

        assert "must get the 50 rows of memory, got 32" in refused(is_complete=True, position=None)
        assert "must say where to go on after its 32 rows, got the position None" in refused(position=None)
        file.write_text(json.dumps(content))
        shorter = Source(ids[:20], dense[:20])
        with pytest.raises(ValueError, match="memory must have the 32 rows that an earlier run wrote, got 20"):
            convert(encoder, shorter, tmp_path / "out", **options)
        assert "must get the 50 rows of memory, got 66" in refused(position=16)

    @pytest.mark.parametrize("fails_after", [7, 8, 30, 49])
    def test_goes_on(self, encoder, ids, dense, tmp_path, fails_after):
        options = {"batch_size": 8, "shard_rows": 10}
        with pytest.raises(OSError, match="the disk is gone"):
            convert(encoder, Source(ids, dense, fails_after), tmp_path / "out", **options)
        written = read_manifest(tmp_path / "out").rows
        assert written == 16 * (fails_after // 16)
        source = Source(ids, dense)
        made = convert(encoder, source, tmp_path / "out", **options)
        assert source.starts == [written or None] and made.rows == 50 - written
        found_ids, found = read(tmp_path / "out")
        assert found_ids == ids and found == encoder.sparsify(dense, batch_size=8)

    def test_another_role_or_encoder(self, encoder, ids, dense, tmp_path):
        convert(encoder, Source(ids, dense), tmp_path / "out")
        with pytest.raises(ValueError, match=r"must hold rows of this source, .*'role': 'query'"):
            convert(encoder, Source(ids, dense), tmp_path / "out", role="query")
        with pytest.raises(ValueError, match="must hold rows of this encoder"):
            convert(KeyTokenEncoder(encoder.model, cache_size=0), Source(ids, dense), tmp_path / "out")
        with pytest.raises(ValueError, match="role must be one of"):
            convert(encoder, Source(ids, dense), tmp_path / "new", role="title")

    @pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident memory is read from /proc")
    def test_constant_memory(self, encoder, tmp_path):
        """170,000 more rows, of which vectors and results are 40 MB, take at most 15 MB more."""
        encoder.save_pretrained(tmp_path / "model")
        script = (
            "import sys, numpy as np, re, torch\n"
            "from st_keytokens import KeyTokenEncoder\n"
            "from st_keytokens.bulk import convert, open_source\n"
            "torch.set_num_threads(1)\n"
            "model, dense, output = sys.argv[1:]\n"
            "encoder = KeyTokenEncoder.from_pretrained(model, model_arguments={'device': 'cpu'}, cache_size=0)\n"
            "convert(encoder, open_source(dense), output, batch_size=512, shard_rows=10_000)\n"
            "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        )
        peaks = []
        for rows in (30_000, 200_000):
            path = tmp_path / f"dense{rows}.parquet"
            write_vectors(path, rows)
            command = [sys.executable, "-c", script, tmp_path / "model", path, tmp_path / f"out{rows}"]
            # one heap for all threads: which of several heaps a thread happens to use is worth some 20 MB
            env = {**os.environ, "MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
            run = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, env=env)
            peaks.append(int(run.stdout) / 1024)
            assert read_manifest(tmp_path / f"out{rows}").rows == rows
        assert peaks[1] - peaks[0] < 15


def write_vectors(path, rows, dimension=32):
    """A Parquet file of ids and random vectors, written piece by piece."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    random = np.random.default_rng(0)
    schema = arrow.schema([("id", arrow.string()), ("embedding", arrow.list_(arrow.float32(), dimension))])
    with parquet.ParquetWriter(path, schema) as file:
        for start in range(0, rows, 10_000):
            flat = arrow.array(random.normal(size=10_000 * dimension).astype(np.float32))
            names = arrow.array([f"d{i}" for i in range(start, start + 10_000)])
            vectors = arrow.FixedSizeListArray.from_arrays(flat, dimension)
            file.write_table(arrow.table([names, vectors], schema=schema), row_group_size=10_000)


@pytest.mark.gpu
class TestOnCuda:
    def test_same_as_on_the_cpu(self, encoder, ids, dense, sentences, tmp_path):
        expected = encoder.sparsify(dense, sentences)
        encoder.save_pretrained(tmp_path / "model")
        on_cuda = KeyTokenEncoder.from_pretrained(tmp_path / "model", model_arguments={"device": "cuda"}, cache_size=0)
        found = list(sparsify_batches(on_cuda, Source(ids, dense, texts=sentences).batches(8)))
        assert [i for batch in found for i in batch.ids] == ids
        assert_same(joined(found), expected)

    def test_bfloat16_near_float32(self, encoder, ids, dense, tmp_path):
        expected = encoder.sparsify(dense)
        encoder.save_pretrained(tmp_path / "model")
        on_cuda = KeyTokenEncoder.from_pretrained(tmp_path / "model", model_arguments={"device": "cuda"}, cache_size=0)
        on_cuda.head.lm_head = on_cuda.head.lm_head.sharing(compute_dtype=torch.bfloat16)
        found = joined(sparsify_batches(on_cuda, Source(ids, dense).batches(8)))
        overlap = [len(np.intersect1d(a, b)) / max(1, len(b)) for (a, _), (b, _) in zip(found, expected, strict=True)]
        assert np.mean(overlap) > 0.9


class TestSourceOfFiles:
    def test_npy_end_to_end(self, encoder, dense, tmp_path):
        np.save(tmp_path / "dense.npy", dense)
        rows = joined(sparse_rows(encoder, open_source(tmp_path / "dense.npy"), batch_size=8))
        assert rows == encoder.sparsify(dense, batch_size=8)
