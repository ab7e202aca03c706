"""A sample of every kind of file that is read, and readings of it with bytes altered."""

from __future__ import annotations

import json
import random
import shutil
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from small_models import SENTENCES, build_sentence_transformer, save_language_model

from st_keytokens import HybridIndex, KeyTokenEncoder, SparseEmbeddings
from st_keytokens.bulk import ShardWriter, collect_shards, open_source, read_batches
from st_keytokens.calibration import Calibration
from st_keytokens.calibration.fitting import read_progress, write_progress
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.encoder.sidecar import Sidecar
from st_keytokens.retrieval import Retriever

VOCAB_SIZE = 300
ROWS = 40

FAISS = ("IDMap,Flat", "HNSW4", "IVF4,SQ8", "PCA4,IVF4,Flat")
DEEP = 100_000
NUMBERS: list[Any] = [True, -1, 0, 1.5, 2**63, 2**70, 10**400, 1e308]
NASTY: list[Any] = [*NUMBERS, None, "", "\0", "\ud800", "../x", [], {}, [[]], "x" * 9]
RAW = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b'"text"',
    b"1e999",
    b"NaN",
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b'{"format": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    b"9" * 10_000,
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b'{"a": "\xff"}',
    b"\x00" * 100,
    b'{"a": "\\ud800"}',
]
HEADERS = [
    "(" * 5000,
    "{'descr': '<f4, 'fortran_order': False, 'shape': (40, 8), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (40, 8",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (40, 8), } '''",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000, 8), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000000000000, 8), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-40, -8), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999999), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (40, 7), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': " + str((1,) * 70) + ", }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (40, 8), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (40, 8), }",
    "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (40, 8), }",
    "{'descr': '<U9999999999', 'fortran_order': False, 'shape': (40, 8), }",
    "{'descr': None, 'fortran_order': False, 'shape': (40, 8), }",
    "{'descr': '<f4', 'fortran_order': 2, 'shape': (40, 8), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 8), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': 40, }",
    "[" * 3000 + "]" * 3000,
    "-" * 9000 + "1",
    "\n\t 1",
    "  1\n 2",
    "{1: 2}",
    "\x00",
    "0777",
    "''' ",
]


@dataclass
class Case:
    """A folder, its files that are altered, how it is read, and whether what was altered is always noticed.

    ``allowed`` are contents that are not damage, but another file.
    """

    folder: Path
    files: list[str]
    read: Any
    is_checked: bool = False
    allowed: tuple[bytes, ...] = ()


def rows_of(sparse):
    return [(i.tolist(), v.tolist()) for i, v in sparse]


def sample():
    generator = np.random.default_rng(3)
    rows = [dict.fromkeys(generator.choice(VOCAB_SIZE, 5, False).tolist(), 0.5 + row) for row in range(ROWS)]
    return [f"d{i}" for i in range(ROWS)], SparseEmbeddings.from_dicts(rows, VOCAB_SIZE)


def read_source(name, **options):
    """Reads a source whole; as many rows as it says, all finite or not, of one width."""

    def read(folder):
        source = open_source(folder / name, **options)
        batches = list(source.batches(16))
        rows = np.concatenate([batch.embeddings for batch in batches]) if batches else np.zeros((0, 0), np.float32)
        assert len(rows) == source.rows and rows.dtype == np.float32 and rows.ndim == 2
        return source.rows, rows.shape[1], [batch.ids for batch in batches]

    return read


def read_shards(folder, **options):
    found = [(ids, rows_of(sparse)) for ids, sparse in read_batches(folder, 16, **options)]
    for _, rows in found:
        for indices, values in rows:
            assert indices == sorted(set(indices)) and all(0 < value <= 2.0**48 for value in values)
            assert not indices or 0 <= indices[0] <= indices[-1]
    return found


def read_collected(folder):
    (folder / "manifest.json").unlink(missing_ok=True)
    manifest = collect_shards(folder, vocab_size=VOCAB_SIZE, fingerprint="f")
    assert len(read_shards(folder)) >= 0
    return manifest.rows


def read_index(folder):
    with HybridIndex(folder / "index") as index:
        hits = index.search(sample()[1][:3], mode="sparse", top_k=5)
        return [[(hit.id, hit.score) for hit in row] for row in hits]


def read_head(folder):
    head = LMHead.load(folder)
    return head.weight.tolist(), head.scale, head.soft_cap, head.compute_dtype_name


def read_checkpoint(folder):
    head = LMHead.from_checkpoint(folder)
    assert head.weight.ndim == 2
    return head.weight.shape


def read_sidecar(folder):
    found = Sidecar.load(folder)
    kept = found.query, dict(found.weighting), found.fingerprint, found.weights_hash, found.weights_sample
    return json.dumps(kept, sort_keys=True)


def read_calibration(folder):
    return Calibration.load(folder).hash


def read_state(folder):
    tensors, settings = read_progress(folder / "state.safetensors")
    return sorted(tensors), settings["consumed"], settings["seen"]


def make_cases(root):
    """A case of each kind, by name, in folders under one."""
    made = {}
    llama_folder, untied_llama_folder = root / "llama", root / "untied"
    save_language_model(llama_folder, "llama")
    save_language_model(untied_llama_folder, "llama-untied")
    llama_embedder = build_sentence_transformer(llama_folder, "llama")

    def case(name, files, read, **options):
        folder = root / "cases" / name.replace(" ", "-")
        folder.mkdir(parents=True)
        made[name] = Case(folder, files, read, **options)
        return folder

    dense = np.random.default_rng(0).standard_normal((ROWS, 8), dtype=np.float32)
    ids, sparse = sample()
    np.save(case("npy", ["a.npy"], read_source("a.npy")) / "a.npy", dense)
    folder = case("safetensors", ["a.safetensors"], read_source("a.safetensors"))
    save_file({"a": torch.from_numpy(dense)}, folder / "a.safetensors")
    if find_spec("faiss"):
        import faiss

        for factory in FAISS:
            index = faiss.index_factory(8, factory)
            index.train(np.tile(dense, (8, 1)))
            index.add_with_ids(dense, np.arange(ROWS) + 5) if "IDMap" in factory else index.add(dense)
            name = f"faiss {factory}"
            folder = case(name, ["a.faiss"], read_source("a.faiss"))
            faiss.write_index(index, str(folder / "a.faiss"))
    if find_spec("pyarrow"):
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({"id": ids, "embedding": dense.tolist()})
        for name in ("parquet", "arrow"):
            folder = case(name, [f"a.{name}"], read_source(f"a.{name}"))
            if name == "parquet":
                pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=16)
            else:
                with pyarrow.ipc.new_file(str(folder / "a.arrow"), table.schema) as file:
                    file.write_table(table, max_chunksize=16)
        for name, files, read, is_checked in (
            ("manifest", ["manifest.json"], read_shards, True),
            ("old manifest", ["manifest.json"], read_shards, False),
            ("shards", ["part-00000.parquet", "part-00001.parquet"], read_shards, True),
            ("unverified", ["part-00000.parquet"], lambda folder: read_shards(folder, is_verifying=False), False),
            ("collected", ["part-00000.parquet"], read_collected, False),
        ):
            folder = case(name, files, read, is_checked=is_checked)
            with ShardWriter(folder, vocab_size=VOCAB_SIZE, fingerprint="f", shard_rows=20) as writer:
                for start in range(0, ROWS, 10):
                    writer.add(ids[start : start + 10], sparse[start : start + 10], start + 10)
                writer.finish()
        file = made["old manifest"].folder / "manifest.json"
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "checksum"}))
    folder = case("segments", [], read_index)
    with HybridIndex(folder / "index") as index:
        index.add(ids, embeddings=sparse)
    segment = next((folder / "index" / "segments").iterdir())
    made["segments"].files = [str(file.relative_to(folder)) for file in sorted(segment.glob("*.npy"))]
    encoder = KeyTokenEncoder(llama_embedder, cache_size=0, max_active_dims=12)
    encoder.calibrate(list(SENTENCES), show_progress_bar=False)
    folder = case("encoder", ["encoder.json"], read_sidecar, is_checked=True)
    encoder.save_pretrained(folder / "whole")
    shutil.copytree(folder / "whole" / "key_tokens", folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "whole")
    encoder.head.calibration.save(
        case("calibration", ["calibration.json", "calibration.safetensors"], read_calibration, is_checked=True)
    )
    tensors, settings = encoder.head.calibration.to_state()
    folder = case("progress", ["state.safetensors"], read_state, is_checked=True)
    write_progress(folder / "state.safetensors", tensors, settings, 40, "seen")
    head = LMHead.from_checkpoint(untied_llama_folder)
    head.save(case("lm_head", ["lm_head.json", "lm_head.safetensors"], read_head, is_checked=True))
    folder = case("checkpoint", ["model.safetensors", "config.json", "model.safetensors.index.json"], read_checkpoint)
    save_file({"lm_head.weight": head.weight.contiguous()}, folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "model.safetensors"}}')
    shutil.copy(untied_llama_folder / "config.json", folder)
    earlier = (b"{}", b'{"a": "\\ud800"}')  # files of an earlier version, which had no checksum
    folder = case("retriever", ["retriever.json"], Retriever.read_settings, is_checked=True, allowed=earlier)
    kept = {"search": {"top_k": 5}, "names": ["a", "b"]}
    with Retriever(encoder) as retriever:
        retriever.persist(root / "kept", kept)
    shutil.copy(root / "kept" / "retriever.json", folder)
    folder = case("old retriever", ["retriever.json"], Retriever.read_settings)
    (folder / "retriever.json").write_text(json.dumps(kept))
    return made


def flipped(content: bytes, chance: random.Random) -> bytes:
    """Altered in one to four places: bits, bytes, pieces taken out, doubled, zeroed or cut off, numbers made huge."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        # headers and footers are where structure is
        span = chance.choice([min(len(data), 200), len(data)]) or 1
        place = min(len(data), chance.randrange(span) if chance.random() < 0.7 else max(0, len(data) - span))
        kind = chance.randrange(8)
        length = chance.choice([1, 2, 8, 50])
        if kind == 0 and place < len(data):
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and place < len(data):
            data[place] = chance.randrange(256)
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        elif kind == 4:
            data[place : place + length] = bytes(len(data[place : place + length]))
        elif kind == 5:
            del data[place:]
        elif kind == 6:
            data[place : place + length] = b"\xff" * len(data[place : place + length])
        else:
            data[place : place + 1] = chance.choice([b"9" * 30, b"[" * 3000, b"\xc3", b"-", b'"', b"'", b"(", b"\n"])
    return bytes(data)


def restructured(value: Any, chance: random.Random) -> Any:
    """JSON with one value replaced, left out or doubled."""
    value = json.loads(json.dumps(value))
    places: list[tuple[Any, Any]] = []

    def walk(part):
        for key, item in part.items() if isinstance(part, dict) else enumerate(part):
            places.append((part, key))
            if isinstance(item, (dict, list)):
                walk(item)

    walk(value)
    part, key = chance.choice(places)
    kind = chance.randrange(4)
    if kind == 0:
        del part[key]
    elif kind == 1 and isinstance(part, list):
        part.append(part[key])
    else:
        part[key] = chance.choice(NASTY)
    return value


def mutations(name: str, content: bytes, chance: random.Random, count: int):
    """Altered contents of a file."""
    if name.endswith(".json"):
        yield from RAW
        value = json.loads(content)
        for _ in range(count):
            yield json.dumps(restructured(value, chance)).encode()
    elif name.endswith(".npy"):
        body = content[10 + int.from_bytes(content[8:10], "little") :]
        for header in HEADERS:
            for major in (1, 2, 3):
                text = header.encode() + b"\n"
                yield (
                    b"\x93NUMPY"
                    + bytes([major, 0])
                    + struct.pack("<H" if major == 1 else "<I", len(text))
                    + text
                    + body
                )
        yield b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + body
        yield b"PK\x03\x04" + body
        yield b"PK\x05\x06" + bytes(18)
    elif name.endswith(".safetensors"):
        length = int.from_bytes(content[:8], "little")
        value, body = json.loads(content[8 : 8 + length]), content[8 + length :]
        for raw in [*RAW, *(json.dumps(restructured(value, chance)).encode() for _ in range(count))]:
            yield struct.pack("<Q", len(raw)) + raw + body
        for claimed in (0, 2**32, 2**62, 2**64 - 1):
            yield struct.pack("<Q", claimed) + content[8:]
    for _ in range(count):
        yield flipped(content, chance)


def fuzz(case: Case, seed: int, count: int) -> tuple[dict[str, int], list[str]]:
    """Read a folder with each of its files altered; how many readings ended how, and what was wrong with any."""
    wanted, chance = case.read(case.folder), random.Random(seed)
    outcome: dict[str, int] = {"same": 0, "other": 0, "refused": 0}
    faults: list[str] = []
    for name in case.files:
        file = case.folder / name
        content = file.read_bytes()
        try:
            for number, altered in enumerate(mutations(name, content, chance, count)):
                file.write_bytes(altered)
                where = f"{name}, mutation {number} of seed {seed}"
                try:
                    found = case.read(case.folder)
                except (ValueError, FileNotFoundError) as err:
                    is_documented = type(err) in (ValueError, FileNotFoundError)
                    is_sentence = (len(str(err)) > 20 and str(err)[-1] in ".'") or "\n" in str(err)
                    if not is_documented or not is_sentence:
                        faults.append(f"{where}: {err!r:.300}")
                    outcome["refused"] += 1
                except Exception as err:
                    faults.append(f"{where}: {type(err).__name__}: {err!s:.300}")
                else:
                    is_same = found == wanted
                    outcome["same" if is_same else "other"] += 1
                    if not is_same and case.is_checked and altered not in case.allowed:
                        faults.append(f"{where}: another answer")
        finally:
            file.write_bytes(content)
    assert case.read(case.folder) == wanted
    return outcome, faults
