"""Encodes texts with Spark into sharded Parquet, and goes on where a killed run stopped.

pip install "st-keytokens[bulk]" pyspark "pandas<3"
python examples/distributed/spark_encode.py --output sparse-texts

Spark runs the tasks of a dead worker again, and commits the files of a job when all of its tasks are done. Each input
file is a job of its own here, so that a killed run loses no more than one: a new run passes over those that have
Spark's mark of success. At the end the files are checked and come under one manifest.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from abstracts import MODEL, write_input
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.functions import col
from pyspark.sql.types import ArrayType, FloatType, IntegerType, StructField, StructType
from tqdm.auto import tqdm

from st_keytokens.bulk import KeyTokenBatchEncoder, Manifest, collect_shards, read_manifest

INDICES, VALUES = ArrayType(IntegerType()), ArrayType(FloatType())
ROW_TYPE = StructType([StructField("indices", INDICES), StructField("values", VALUES)])


def encode(spark: SparkSession, arguments: argparse.Namespace) -> Manifest:
    output, encoder = Path(arguments.output), KeyTokenBatchEncoder(arguments.model, device=arguments.device)
    here = KeyTokenBatchEncoder(arguments.model, device="cpu").encoder  # for its names only
    check_model(output, here.fingerprint)
    if (output / "manifest.json").exists():
        return read_manifest(output)
    predict = predict_batch_udf(encoder.make_predict_fn, return_type=ROW_TYPE, batch_size=4 * encoder.batch_size)
    files = sorted(Path(arguments.input).glob("*.parquet"))
    for file in tqdm(files, unit="file"):
        folder = output / file.stem
        if (folder / "_SUCCESS").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        texts = spark.read.parquet(str(file)).repartition(arguments.tasks)
        rows = texts.select("id", predict(col("text")).alias("sparse"))
        rows.select("id", "sparse.indices", "sparse.values").write.parquet(str(folder))
    source = {"files": [file.name for file in files]}
    return collect_shards(output, vocab_size=here.vocabulary.vocab_size, fingerprint=here.fingerprint, source=source)


def check_model(output: Path, fingerprint: str) -> None:
    """Rows of two models must not come together: the first run says whose the directory is."""
    mark = output / "_fingerprint"  # names with _ are no shards
    if mark.exists() and mark.read_text() != fingerprint:
        sys.exit(f"{output} must hold rows of the encoder {fingerprint}, got {mark.read_text()}. Use a new directory.")
    output.mkdir(parents=True, exist_ok=True)
    mark.write_text(fingerprint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--input", help="directory of Parquet files with the columns id and text")
    parser.add_argument("--output", required=True, help="directory of the shards")
    parser.add_argument("--master", default="local[2,4]", help="here: two workers, each task tried four times")
    parser.add_argument("--tasks", type=int, default=2, help="that a file is divided into")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.input is None:
        arguments.input = f"{arguments.output}-input"
        if not Path(arguments.input).exists():
            write_input(Path(arguments.input))
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # of the workers; Spark's default is any python3
    manifest = encode(SparkSession.builder.master(arguments.master).appName("st-keytokens").getOrCreate(), arguments)
    print(f"{manifest.rows} rows, {manifest.terms} terms, {len(manifest.shards)} shards in {arguments.output}")


if __name__ == "__main__":
    main()
