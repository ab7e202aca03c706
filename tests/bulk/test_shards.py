from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import ClassVar

import numpy as np
import pytest
from encoder_checks import assert_close

from st_keytokens import SparseEmbeddings
from st_keytokens.bulk import (
    KeyTokenBatchEncoder,
    Manifest,
    Shard,
    ShardWriter,
    collect_shards,
    read_batches,
    read_manifest,
    verify,
)

arrow = pytest.importorskip("pyarrow", reason="the contract on disk needs pyarrow")
parquet = pytest.importorskip("pyarrow.parquet", reason="the contract on disk needs pyarrow")

VOCAB_SIZE = 1000


def sample(rows, seed=0):
    """Ids and sparse rows of 0 to 12 terms."""
    random = np.random.default_rng(seed)
    dicts = []
    for _ in range(rows):
        terms = random.choice(VOCAB_SIZE, random.integers(0, 13), replace=False)
        dicts.append({int(t): float(np.float32(random.uniform(0.1, 9))) for t in terms})
    return [f"d{seed}-{i}" for i in range(rows)], SparseEmbeddings.from_dicts(dicts, VOCAB_SIZE)


def write(path, batches, **options):
    with ShardWriter(path, vocab_size=VOCAB_SIZE, fingerprint="f", **options) as writer:
        for number, (ids, sparse) in enumerate(batches):
            writer.add(ids, sparse, number + 1)
        return writer.finish()


def read(path, batch_size=7, **options):
    parts = list(read_batches(path, batch_size, **options))
    return [i for ids, _ in parts for i in ids], SparseEmbeddings.concatenate([sparse for _, sparse in parts])


@pytest.fixture
def batches():
    return [sample(10, seed) for seed in range(5)]


@pytest.fixture
def folder(tmp_path, batches):
    """Fifty rows in two shards of 30 and 20."""
    write(tmp_path / "sparse", batches, shard_rows=25)
    return tmp_path / "sparse"


class TestContract:
    def test_round_trip(self, folder, batches):
        ids, sparse = read(folder)
        assert ids == [i for part, _ in batches for i in part]
        assert sparse == SparseEmbeddings.concatenate([part for _, part in batches])

    def test_plain_pyarrow(self, folder, batches):
        table = arrow.concat_tables([parquet.read_table(path) for path in sorted(folder.glob("*.parquet"))])
        assert [(field.name, str(field.type)) for field in table.schema] == [
            ("id", "string"),
            ("indices", "list<element: int32>"),
            ("values", "list<element: float>"),
        ]
        ids, sparse = batches[0]
        expected = [dict(zip(i.tolist(), v.tolist(), strict=True)) for i, v in sparse]
        rows = table.slice(0, 10).to_pylist()
        assert [row["id"] for row in rows] == ids
        assert [dict(zip(row["indices"], row["values"], strict=True)) for row in rows] == expected

    def test_manifest(self, folder, batches):
        content = json.loads((folder / "manifest.json").read_text())
        assert content["format"] == "st-keytokens sparse embeddings" and content["format_version"] == 1
        assert (content["rows"], content["vocab_size"], content["fingerprint"]) == (50, VOCAB_SIZE, "f")
        assert content["terms"] == sum(sparse.nnz for _, sparse in batches)
        assert content["is_complete"] is True and content["position"] is None
        assert [shard["rows"] for shard in content["shards"]] == [30, 20]
        for shard in content["shards"]:
            data = (folder / shard["name"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        assert content["bytes"] == sum(path.stat().st_size for path in folder.glob("*.parquet"))
        assert sorted(path.name for path in folder.iterdir()) == [
            "manifest.json",
            "part-00000.parquet",
            "part-00001.parquet",
        ]

    @pytest.mark.parametrize("start", [0, 1, 29, 30, 31, 49, 50])
    def test_start(self, folder, batches, start):
        whole = SparseEmbeddings.concatenate([part for _, part in batches])
        parts = list(read_batches(folder, 4, start=start))
        assert [i for ids, _ in parts for i in ids] == [i for part, _ in batches for i in part][start:]
        joined = SparseEmbeddings.concatenate(
            [SparseEmbeddings.empty(0, VOCAB_SIZE), *(sparse for _, sparse in parts)]
        )
        assert joined == whole[start:]

    def test_no_rows(self, tmp_path):
        assert write(tmp_path / "none", []).rows == 0
        assert list(read_batches(tmp_path / "none")) == []
        assert verify(tmp_path / "none").is_complete

    def test_many_row_groups(self, tmp_path):
        ids, sparse = sample(20_000)
        write(tmp_path / "sparse", [(ids[i : i + 5000], sparse[i : i + 5000]) for i in range(0, 20_000, 5000)])
        assert parquet.ParquetFile(tmp_path / "sparse" / "part-00000.parquet").num_row_groups == 2
        assert read(tmp_path / "sparse", 3000) == (ids, sparse)


class TestGoingOn:
    @pytest.mark.parametrize("stopped", [0, 1, 3, 4])
    def test_goes_on_from_the_position(self, tmp_path, batches, stopped):
        options = {"vocab_size": VOCAB_SIZE, "fingerprint": "f", "shard_rows": 20, "source": {"name": "x"}}
        with ShardWriter(tmp_path / "sparse", **options) as writer:
            for number, (ids, sparse) in enumerate(batches[:stopped]):
                writer.add(ids, sparse, number + 1)
        with ShardWriter(tmp_path / "sparse", **options) as writer:
            assert writer.rows == 10 * (writer.position or 0) == 20 * (stopped // 2)
            with pytest.raises(ValueError, match="must be complete, got the first"):
                read_batches(tmp_path / "sparse")
            for number, (ids, sparse) in list(enumerate(batches))[writer.position or 0 :]:
                writer.add(ids, sparse, number + 1)
            writer.finish()
        ids, sparse = read(tmp_path / "sparse")
        assert ids == [i for part, _ in batches for i in part]
        assert sparse == SparseEmbeddings.concatenate([part for _, part in batches])

    def test_a_shard_that_no_manifest_names_is_written_again(self, tmp_path, batches):
        options = {"vocab_size": VOCAB_SIZE, "fingerprint": "f", "shard_rows": 10}
        with ShardWriter(tmp_path / "sparse", **options) as writer:
            writer.add(*batches[0], 1)
        (tmp_path / "sparse" / "part-00001.parquet").write_bytes(b"left by a killed run")
        (tmp_path / "sparse" / ".part-00001.parquet.123.tmp").write_bytes(b"left by a killed run")
        with ShardWriter(tmp_path / "sparse", **options) as writer:
            writer.add(*batches[1], 2)
            writer.finish()
        assert read(tmp_path / "sparse")[0] == batches[0][0] + batches[1][0]
        assert not list((tmp_path / "sparse").glob(".*"))

    def test_killed_at_any_moment(self, tmp_path):
        script = tmp_path / "writes.py"
        script.write_text(
            "import sys\n"
            "from test_shards import ShardWriter, VOCAB_SIZE, sample\n"
            "with ShardWriter(sys.argv[1], vocab_size=VOCAB_SIZE, fingerprint='f', shard_rows=40) as writer:\n"
            "    for number in range(writer.position or 0, 60):\n"
            "        writer.add(*sample(10, number), number + 1)\n"
            "        print(number, flush=True)\n"
            "    writer.finish()\n"
        )
        command = [sys.executable, str(script), str(tmp_path / "sparse")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        for lines in (7, 23):
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
                for _ in range(lines):
                    process.stdout.readline()
                process.send_signal(signal.SIGKILL)
            assert not read_manifest(tmp_path / "sparse").is_complete
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        ids, sparse = read(tmp_path / "sparse", 50)
        assert ids == [f"d{seed}-{i}" for seed in range(60) for i in range(10)]
        assert sparse == SparseEmbeddings.concatenate([sample(10, seed)[1] for seed in range(60)])

    def test_a_complete_directory_is_left_as_it_is(self, folder, batches):
        before = (folder / "manifest.json").read_bytes()
        with ShardWriter(folder, vocab_size=VOCAB_SIZE, fingerprint="f") as writer:
            assert writer.is_complete and writer.finish().rows == 50
            with pytest.raises(ValueError, match="must not be complete to be added to, got 50 rows"):
                writer.add(*batches[0])
        assert (folder / "manifest.json").read_bytes() == before

    def test_a_directory_that_another_host_wrote_into(self, tmp_path, batches):
        """Where a file system has no locks, the manifest tells."""
        options = {"vocab_size": VOCAB_SIZE, "fingerprint": "f", "shard_rows": 10}
        with ShardWriter(tmp_path / "sparse", **options) as writer:
            shutil.copytree(tmp_path / "sparse", tmp_path / "other", ignore=shutil.ignore_patterns(".*"))
            write(tmp_path / "other", batches[:1])
            shutil.copy(tmp_path / "other" / "manifest.json", tmp_path / "sparse")
            with pytest.raises(ValueError, match="must be written by one process at a time, got another"):
                writer.add(*batches[1])


def state(folder):
    """Names, contents and times of the files."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}


class TestTwoWriters:
    OPTIONS: ClassVar = {"vocab_size": VOCAB_SIZE, "fingerprint": "f", "shard_rows": 10}
    HOLDS = (
        "import os, sys, time\n"
        "from st_keytokens.bulk import ShardWriter\n"
        "writer = ShardWriter(sys.argv[1], vocab_size=1000, fingerprint='f', shard_rows=10)\n"
        "child = os.fork() if sys.argv[2:] else None\n"
        "if child != 0:\n"  # one process writes: two lines at once may mix
        "    print(child or 'open', flush=True)\n"
        "time.sleep(60)\n"
    )

    def holder(self, folder, *arguments):
        command = [sys.executable, "-c", self.HOLDS, str(folder), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def test_the_second_is_refused_before_anything_is_touched(self, tmp_path, batches):
        folder = tmp_path / "sparse"
        with ShardWriter(folder, **self.OPTIONS) as one:
            one.add(*batches[0], 1)
            one.add(batches[1][0][:5], batches[1][1][:5], 2)
            (folder / ".part-00001.parquet.1.tmp").write_bytes(b"what the first is writing")
            before = state(folder)
            with pytest.raises(ValueError, match="must be written by one process at a time, got another at work"):
                ShardWriter(folder, **self.OPTIONS)
            assert state(folder) == before
            one.add(batches[1][0][5:], batches[1][1][5:], 3)
            assert one.finish().rows == 20
        assert read(folder)[0] == batches[0][0] + batches[1][0]
        assert sorted(path.name for path in folder.glob("[!.]*")) == [
            "manifest.json",
            "part-00000.parquet",
            "part-00001.parquet",
        ]

    def test_the_next_goes_on_when_the_first_is_closed(self, tmp_path, batches):
        folder = tmp_path / "sparse"
        one = ShardWriter(folder, **self.OPTIONS)
        one.add(*batches[0], 1)
        one.close()
        one.close()
        for refused in (lambda: one.add(*batches[1], 2), one.finish):
            with pytest.raises(ValueError, match="got a closed writer"):
                refused()
        with ShardWriter(folder, **self.OPTIONS) as other:
            one.close()
            with pytest.raises(ValueError, match="one process at a time"):
                ShardWriter(folder, **self.OPTIONS)
            assert (other.rows, other.position) == (10, 1)
            other.finish()
            assert ShardWriter(folder, **self.OPTIONS).is_complete  # one that writes nothing needs no lock

    @pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
    def test_a_lock_dies_with_its_process(self, tmp_path, batches):
        folder = tmp_path / "sparse"
        with self.holder(folder) as process:
            assert process.stdout.readline() == "open\n"
            before = state(folder)
            with pytest.raises(ValueError, match="one process at a time"):
                ShardWriter(folder, **self.OPTIONS)
            assert state(folder) == before
            process.send_signal(signal.SIGKILL)
            process.wait()
        with ShardWriter(folder, **self.OPTIONS) as writer:
            writer.add(*batches[0], 1)
            assert writer.finish().rows == 10
        assert not (folder / ".writer.lock").exists()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_child_does_not_keep_it(self, tmp_path):
        folder = tmp_path / "sparse"
        with self.holder(folder, "fork") as process:
            child = int(process.stdout.readline())
            try:
                process.send_signal(signal.SIGKILL)
                process.wait()
                ShardWriter(folder, **self.OPTIONS).close()
            finally:
                os.kill(child, signal.SIGKILL)

    def test_of_many_at_once_one_gets_it(self, tmp_path):
        got, start = [], threading.Barrier(8)

        def opens():
            start.wait()
            try:
                got.append(ShardWriter(tmp_path / "sparse", **self.OPTIONS))
            except ValueError as err:
                got.append(str(err))

        threads = [threading.Thread(target=opens) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(isinstance(one, ShardWriter) for one in got) == 1
        assert sum("one process at a time" in str(one) for one in got) == 7

    def test_what_a_writer_left_that_died_at_once(self, tmp_path):
        for name in (".writer.lock", ".manifest.json.7.7.tmp"):
            (tmp_path / name).touch()
        with ShardWriter(tmp_path, **self.OPTIONS) as writer:
            assert writer.rows == 0

    def test_collecting_beside_a_writer(self, tmp_path, batches):
        folder = tmp_path / "sparse"
        with ShardWriter(folder, **self.OPTIONS) as writer:
            writer.add(*batches[0], 1)
            with pytest.raises(ValueError, match="one process at a time"):
                collect_shards(folder, vocab_size=VOCAB_SIZE, fingerprint="f")


class TestManifestsThatLie:
    def change(self, folder, change, *, has_checksum=False):
        """Alter the manifest, as one who makes its sums fit."""
        content = json.loads((folder / "manifest.json").read_text())
        change(content)
        for name in ("rows", "terms", "bytes"):
            content[name] = sum(shard[name] for shard in content["shards"])
        if not has_checksum:
            del content["checksum"]
        (folder / "manifest.json").write_text(json.dumps(content))

    def test_older_ones_without_a_checksum_open(self, folder):
        self.change(folder, lambda content: None)
        assert verify(folder).rows == 50

    def test_a_shard_twice(self, folder):
        self.change(folder, lambda content: content["shards"].append(content["shards"][0]))
        for reads in (read_manifest, read_batches, verify):
            with pytest.raises(ValueError, match=r"must be a manifest .* names 'part-00000\.parquet' twice"):
                reads(folder)

    def test_a_shard_twice_by_another_spelling(self, folder):
        def twice(content):
            content["shards"].append({**content["shards"][0], "name": "./part-00000.parquet"})

        self.change(folder, twice)
        with pytest.raises(ValueError, match="must be a manifest as it was written"):
            read_manifest(folder)

    @pytest.mark.parametrize("left_out", [0, 1])
    def test_a_shard_left_out(self, folder, left_out):
        self.change(folder, lambda content: content["shards"].pop(left_out))
        message = f"must have no shard that its manifest.json does not name, got 'part-0000{left_out}.parquet'"
        for reads in (read_batches, verify, lambda path: ShardWriter(path, vocab_size=VOCAB_SIZE, fingerprint="f")):
            with pytest.raises(ValueError, match=message):
                reads(folder)
        assert len(list(folder.glob("*.parquet"))) == 2

    def test_left_out_of_one_that_is_not_complete(self, tmp_path, batches):
        with ShardWriter(tmp_path, vocab_size=VOCAB_SIZE, fingerprint="f", shard_rows=10) as writer:
            for number, (ids, sparse) in enumerate(batches[:3]):
                writer.add(ids, sparse, number + 1)
        self.change(tmp_path, lambda content: content["shards"].pop(0))
        before = state(tmp_path)
        with pytest.raises(ValueError, match=r"does not name, got 'part-00000\.parquet'"):
            ShardWriter(tmp_path, vocab_size=VOCAB_SIZE, fingerprint="f", shard_rows=10)
        assert state(tmp_path) == before

    @pytest.mark.parametrize(
        "change",
        [
            {"is_complete": False, "position": 5},
            {"fingerprint": "g"},
            {"vocab_size": VOCAB_SIZE + 1},
            {"source": {"kind": "other"}},
        ],
    )
    def test_what_was_altered_has_another_checksum(self, folder, change):
        self.change(folder, lambda content: content.update(change), has_checksum=True)
        with pytest.raises(ValueError, match=r"must be a manifest .* its checksum is another"):
            read_manifest(folder)

    def test_complete_with_a_place_to_go_on(self, folder):
        self.change(folder, lambda content: content.update(position=3))
        with pytest.raises(ValueError, match="it is complete, and to be read on from 3"):
            read_manifest(folder)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("vocab_size", 0),
            ("vocab_size", True),
            ("vocab_size", 1000.0),
            ("vocab_size", 2**40),
            ("fingerprint", None),
            ("is_complete", 1),
            ("source", []),
            ("shards", {}),
            ("shards", ["part-00000.parquet"]),
        ],
    )
    def test_values_of_another_type(self, folder, name, value):
        content = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**content, name: value}))
        with pytest.raises(ValueError, match="must be a manifest as it was written, got something else: "):
            read_manifest(folder)

    @pytest.mark.parametrize("change", [{"rows": -1}, {"rows": 30.0}, {"sha256": "x"}, {"name": ""}, {"more": 1}])
    def test_shards_of_another_type(self, folder, change):
        self.change(folder, lambda content: content["shards"][0].update(change))
        with pytest.raises(ValueError, match="must be a manifest as it was written, got something else: "):
            read_manifest(folder)


class TestDamage:
    def test_truncated(self, folder):
        file = folder / "part-00001.parquet"
        size = file.stat().st_size
        os.truncate(file, size - 1)
        with pytest.raises(ValueError, match=f"part-00001.parquet must have {size} bytes .* got {size - 1}"):
            read(folder)

    def test_altered(self, folder):
        file = folder / "part-00000.parquet"
        data = bytearray(file.read_bytes())
        data[100] ^= 1
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"part-00000.parquet must have the SHA-256 [0-9a-f]{64} of the manifest"):
            verify(folder)

    def test_missing(self, folder):
        (folder / "part-00000.parquet").unlink()
        with pytest.raises(FileNotFoundError, match="must be there as the manifest says, got none"):
            read(folder)
        (folder / "manifest.json").unlink()
        with pytest.raises(FileNotFoundError, match="must be a directory of sparse embeddings with manifest"):
            read_batches(folder)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format_version": 2}, "must be of format .* in version 1, got .* in version 2"),
            ({"format": "other"}, "must be of format"),
            ({"rows": 51}, "must be a manifest as it was written"),
            ({"shards": [{"name": "a"}]}, "must be a manifest as it was written"),
            ({"shards": None}, "must be a manifest as it was written"),
        ],
    )
    def test_changed_manifest(self, folder, changes, message):
        content = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**content, **changes}))
        with pytest.raises(ValueError, match=message):
            read_manifest(folder)

    def test_no_json(self, folder):
        (folder / "manifest.json").write_text("{")
        with pytest.raises(ValueError, match="must be a manifest as it was written"):
            read_manifest(folder)

    @pytest.mark.parametrize("name", ["../other.parquet", "/tmp/other.parquet"])
    def test_shards_outside(self, folder, name):
        content = json.loads((folder / "manifest.json").read_text())
        content["shards"][0]["name"] = name
        (folder / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="must be a manifest as it was written"):
            read_manifest(folder)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"id": ["a"], "indices": [[2, 1]], "values": [[1.0, 1.0]]}, "indices must increase in each row"),
            ({"id": ["a"], "indices": [[1, 2000]], "values": [[1.0, 1.0]]}, r"indices must be in 0\.\.999"),
            ({"id": ["a"], "indices": [[1]], "values": [[-1.0]]}, "values must be > 0"),
            ({"id": ["a"], "indices": [[1, 2]], "values": [[1.0]]}, "values must be as many as indices in every row"),
            ({"id": [None], "indices": [[1]], "values": [[1.0]]}, "id must have no nulls, got 1"),
            ({"id": ["a"], "indices": [[1]]}, "column 'values' must be list<item: float>, got none"),
        ],
    )
    def test_rows_that_break_the_contract(self, tmp_path, columns, message):
        types = {"id": arrow.string(), "indices": arrow.list_(arrow.int32()), "values": arrow.list_(arrow.float32())}
        file = tmp_path / "part-00000.parquet"
        parquet.write_table(arrow.table({name: arrow.array(columns[name], types[name]) for name in columns}), file)
        data = file.read_bytes()
        shard = Shard(file.name, 1, 2, len(data), hashlib.sha256(data).hexdigest())
        manifest = Manifest(VOCAB_SIZE, "f", (shard,), is_complete=True)
        content = {"format": "st-keytokens sparse embeddings", "format_version": 1, "rows": 1, "terms": 2}
        content |= {"bytes": len(data), "shards": [vars(shard)], "vocab_size": VOCAB_SIZE, "fingerprint": "f"}
        content |= {"is_complete": True, "source": {}, "position": None}
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        assert read_manifest(tmp_path) == manifest
        with pytest.raises(ValueError, match=f"part-00000.parquet: {message}|{message}"):
            verify(tmp_path)


class TestValidation:
    def test_another_encoder_or_source(self, folder, tmp_path):
        with pytest.raises(ValueError, match="must hold rows of this encoder, g, got f"):
            ShardWriter(folder, vocab_size=VOCAB_SIZE, fingerprint="g")
        with pytest.raises(ValueError, match="must hold rows of this vocabulary size, 5, got 1000"):
            ShardWriter(folder, vocab_size=5, fingerprint="f")
        with pytest.raises(ValueError, match=r"must hold rows of this source, \{'name': 'x'\}, got \{\}"):
            ShardWriter(folder, vocab_size=VOCAB_SIZE, fingerprint="f", source={"name": "x"})
        (tmp_path / "other.txt").write_text("text")
        with pytest.raises(ValueError, match="must be a new directory or one of sparse embeddings"):
            ShardWriter(tmp_path, vocab_size=5, fingerprint="f")

    def test_rows(self, tmp_path, batches):
        with ShardWriter(tmp_path / "sparse", vocab_size=VOCAB_SIZE, fingerprint="f") as writer:
            with pytest.raises(ValueError, match="sparse must have vocab_size 1000, got 5"):
                writer.add(["a"], SparseEmbeddings.empty(1, 5))
            with pytest.raises(ValueError, match="ids must be one for each row, got 1 for 10 rows"):
                writer.add(["a"], batches[0][1])
            with pytest.raises(TypeError, match="ids must be strings, got int 3"):
                writer.add([3], SparseEmbeddings.empty(1, VOCAB_SIZE))

    def test_reading(self, folder):
        with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
            read_batches(folder, 0)
        with pytest.raises(ValueError, match="start must be between 0 and 50, got 51"):
            read_batches(folder, start=51)

    def test_copies_of_a_directory_are_read(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "copy")
        assert verify(tmp_path / "copy") == read_manifest(folder)

    def test_what_json_changes_is_the_same_source(self, tmp_path, batches):
        options = {"vocab_size": VOCAB_SIZE, "fingerprint": "f", "shard_rows": 10, "source": {"parts": ("a", "b")}}
        with ShardWriter(tmp_path / "sparse", **options) as writer:
            writer.add(*batches[0], (1, 2))
            writer.add(*batches[1], (3, 4))
        with ShardWriter(tmp_path / "sparse", **options) as writer:
            assert (writer.rows, writer.position) == (20, [3, 4])
            with pytest.raises(TypeError, match="not JSON serializable"):
                writer.add(*batches[2], np.int64(5))


class TestCollectShards:
    @pytest.fixture
    def collected(self, model, sentences, tmp_path):
        """Rows as a cluster writes them, in two files in folders of their own."""
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

    def test_read_as_shards(self, collected, encoder, sentences):
        manifest = collect_shards(collected, vocab_size=2**29, fingerprint=encoder.fingerprint)
        assert [shard.name for shard in manifest.shards] == ["chunk-0/part-0.parquet", "chunk-1/part-1.parquet"]
        ids, parts = zip(*read_batches(collected, 20), strict=True)
        assert [i for part in ids for i in part] == list(map(str, range(50)))
        found = SparseEmbeddings.concatenate(parts)
        expected = encoder.encode(sentences).sparse
        assert_close(found, expected)
        assert manifest.terms == found.nnz

    def test_refusals(self, collected, tmp_path):
        with pytest.raises(ValueError, match=r"part-0.parquet: indices must be in 0\.\.4"):
            collect_shards(collected, vocab_size=5, fingerprint="f")
        collect_shards(collected, vocab_size=2**29, fingerprint="f")
        with pytest.raises(ValueError, match=r"must have no manifest.json, got one"):
            collect_shards(collected, vocab_size=2**29, fingerprint="f")
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match="must hold Parquet files, got none"):
            collect_shards(tmp_path / "empty", vocab_size=640, fingerprint="f")

    def test_other_types(self, tmp_path):
        parquet.write_table(arrow.table({"id": ["a"], "indices": [[1]], "values": [[0.5]]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=r"column 'indices' must be list<.*int32>, got list<.*int64>"):
            collect_shards(tmp_path, vocab_size=5, fingerprint="f")
