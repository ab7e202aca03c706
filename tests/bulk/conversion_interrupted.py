"""A conversion, interrupted at any of its audit events, and run again."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
from interrupter import INTERRUPTER, evenly

from st_keytokens.bulk import convert, open_source, read_batches, read_manifest, verify
from st_keytokens.shared.document_files import read_documents
from st_keytokens.shared.files import file_hash

ROWS, WIDTH = 40, 32


def fill_source(folder):
    """Vectors with ids in a Parquet file, and their texts in another, as a conversion joins them."""
    import pyarrow
    import pyarrow.parquet

    dense = np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32)
    ids = [f"d{number}" for number in range(ROWS)]
    table = pyarrow.table({"id": ids, "embedding": dense.tolist()})
    pyarrow.parquet.write_table(table, folder / "vectors.parquet", row_group_size=16)
    rows = [{"_id": name, "text": f"gas and stars {name}"} for name in reversed(ids)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def converted(encoder, source, output):
    """Convert; what the directory holds then."""
    convert(
        encoder,
        open_source(source / "vectors.parquet"),
        output,
        texts=lambda: read_documents(source / "texts.jsonl"),
        batch_size=8,
        shard_rows=16,
    )
    return content(output)


def content(output):
    verify(output)
    rows = [(ids, list(map(str, sparse.to_dicts()))) for ids, sparse in read_batches(output, 100)]
    return rows, sorted(path.name for path in output.iterdir())


def count_threads():
    """Those that run. Python goes on listing one that an interrupt kept from starting."""
    return sum(thread.is_alive() for thread in threading.enumerate())


def interrupted_conversion(encoder, source, wanted, output, number):
    """Interrupt a conversion at an audit event; how many events there were if it was not, else None."""
    num_threads = count_threads()
    was_interrupted, count = INTERRUPTER.run("audit", number, lambda: converted(encoder, source, output))
    assert count_threads() == num_threads
    if (output / "manifest.json").exists():  # what it names is whole
        for shard in read_manifest(output).shards:
            assert file_hash(output / shard.name) == shard.sha256
    assert converted(encoder, source, output) == wanted  # the lock is free, and a second run goes on
    shutil.rmtree(output)
    return None if was_interrupted else count


def interrupt_conversion_at(encoder, source, folder, most):
    """Interrupt it at so many of its events, or at all; how often it was."""
    wanted = converted(encoder, source, folder / "wanted")
    count = interrupted_conversion(encoder, source, wanted, folder / "part", None)
    numbers = evenly(count, most)
    results = [interrupted_conversion(encoder, source, wanted, folder / "part", number) for number in numbers]
    return len(numbers), sum(result is None for result in results)
