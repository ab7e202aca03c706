"""The five test collections: made from their public sources, in the BEIR layout, and checked.

    python examples/benchmarks/prepare_collections.py FOLDER                  # downloads and converts
    python examples/benchmarks/prepare_collections.py --verify FOLDER         # checks what is there

scifact: the CSV export of SciFact in sumithra-p-v/claimverifier; BEIR's test queries and judgements in
castorini/anserini-tools. cranfield: oussbenk/cranfield-trec-dataset. dbpedia-entity-sub: the subset of DBpedia-
Entity v2 in agentset-ai/embedding-leaderboard. These three are made here.

Two can only be verified, since how they were cut is not recorded. arxiv-heldout: 21,095 abstracts and 1,000 titles
of arXiv's metadata (CC0), papers whose sha1(id) falls in the lowest 3 %, from a dump that is not named. squad-dev:
the paragraphs of SQuAD 1.1's development set, from the pages of rajpurkar/SQuAD-explorer, and 1,500 of its 10,570
questions.

All sources are repositories on GitHub at a fixed commit. Each file is checked by SHA-256 before it is read, and each
result by SHA-256 of its normalised content: records in order of their ids, runs of white space as one space, Unicode
in NFC. So a copy with other white space, key order or line order is the same collection, and one with another word
is not.

What has been verified: from copies of these repositories at these commits, the conversions give the content whose
checksums stand here, which is that of the folders that the results pages were measured on. What has not: that GitHub
serves these addresses today. This script has only downloaded from a server on the same machine. The licences of
cranfield (none stated) and of dbpedia-entity-sub (CC BY-SA 3.0) allow measuring; neither is copied into this
repository.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import hashlib
import io
import json
import re
import sys
import unicodedata
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

SERVER = "https://raw.githubusercontent.com"
Rows = list[tuple[str, ...]]


class Source(NamedTuple):
    """A file of a repository on GitHub."""

    repository: str
    commit: str
    path: str
    sha256: str


class Content(NamedTuple):
    """Documents as (id, title, text), queries as (id, text), judgements as (query, document, relevance)."""

    corpus: Rows
    queries: Rows
    judgements: Rows


class Collection(NamedTuple):
    """Where a collection comes from and what it holds; without a conversion it can only be verified."""

    checksums: dict[str, str]
    sources: tuple[Source, ...] = ()
    convert: Callable[..., Content] | None = None
    missing: str = ""


def joined(text: str) -> str:
    return " ".join(text.split())


def cranfield(documents: bytes, queries: bytes, judgements: bytes) -> Content:
    corpus = []
    for block in re.findall(r"<doc>(.*?)</doc>", documents.decode("utf-8"), re.DOTALL):
        number, title, text = (
            joined(found.group(1)) if (found := re.search(f"<{tag}>(.*?)</{tag}>", block, re.DOTALL)) else ""
            for tag in ("docno", "title", "text")
        )
        corpus.append((number, title, text.removeprefix(title).strip()))  # the text begins with its title
    titles = re.findall(r"<num>.*?<title>(.*?)</title>", queries.decode("utf-8"), re.DOTALL)
    asked = [(str(number), joined(title)) for number, title in enumerate(titles, start=1)]  # as judgements count them
    lines = (line.split() for line in judgements.decode("utf-8").splitlines())
    return Content(corpus, asked, [(q, d, str(min(int(score), 1))) for q, _, d, score in lines])  # one is a 3


def dbpedia(documents: bytes, queries: bytes, judgements: bytes) -> Content:
    corpus = [(r["_id"], joined(r["title"]), joined(r["text"])) for r in map(json.loads, documents.splitlines())]
    found = [tuple(row) for row in csv.reader(io.StringIO(judgements.decode("utf-8")), delimiter="\t")][1:]
    known = {row[0] for row in corpus}
    found = [row for row in found if row[1] in known]
    answered = {query for query, _, score in found if int(score) > 0}
    asked = [(r["_id"], joined(r["text"])) for r in map(json.loads, queries.splitlines()) if r["_id"] in answered]
    return Content(corpus, asked, [row for row in found if row[0] in answered])


def scifact(archive: bytes, topics: bytes, judgements: bytes) -> Content:
    with zipfile.ZipFile(io.BytesIO(archive)) as files, files.open("corpus_train.csv") as lines:
        rows = list(csv.DictReader(io.TextIOWrapper(lines, encoding="utf-8", newline="")))
    corpus = [(row["doc_id"], joined(row["title"]), joined(" ".join(sentences(row["abstract"])))) for row in rows]
    asked = (line.split("\t", 1) for line in gzip.decompress(topics).decode("utf-8").splitlines())
    found = (line.split() for line in judgements.decode("utf-8").splitlines())
    return Content(corpus, [(n, joined(t)) for n, t in asked], [(q, d, s) for q, _, d, s in found])


def sentences(printed: str) -> Iterator[str]:
    """The strings of an array as numpy prints it."""
    for literal in re.findall(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", printed, re.DOTALL):
        yield ast.literal_eval(literal)


COLLECTIONS = {
    "scifact": Collection(
        checksums={
            "corpus": "967f5a2d873f80fb0eb2ab174e119078cb8763372c49e7f5eab116d505070fe4",
            "queries": "eede7b70f6f3c3d4e951dd548bd5eb87aa532847c6b693b8007354df7d85244c",
            "judgements": "74bfc85a4f511078bc80d303699c9523148354c53731412bcc7a5d102f1514d0",
        },
        sources=(
            Source(
                "sumithra-p-v/claimverifier",
                "b42f1c3444b28884ddcfadffafbfe223646c6c37",
                "data/scifact.zip",
                "a798a7046af0f6fa04476448459ce7cafeea5bd90d4d99c53a0e27dc5e1a4673",
            ),
            Source(
                "castorini/anserini-tools",
                "5b819c1a45c8a0a3ec9426f476694f44a29dfaf3",
                "topics/topics.beir-v1.0.0-scifact.test.tsv.gz",
                "a624d39fa2a41da44b0148ac2b1c2cb9856ece2c4afbb6ac9360e8e524d66b4f",
            ),
            Source(
                "castorini/anserini-tools",
                "5b819c1a45c8a0a3ec9426f476694f44a29dfaf3",
                "qrels/qrels.beir-v1.0.0-scifact.test.txt",
                "8b7315286f8dc823956025a1fc9c9ff0bfe142d7b409458ccd758cfa0713ccba",
            ),
        ),
        convert=scifact,
    ),
    "cranfield": Collection(
        checksums={
            "corpus": "372961831c48a81d748480d09ccd7f26606bb97949f6c150b560b4f228a48bfa",
            "queries": "9cefee8be92cb6e1d62935b22163eccaf21975689ca6cb18def01e6b1d234d8d",
            "judgements": "616ba82c9da913a1a741fa73141b67ae87253be264614679bedc07c02b123942",
        },
        sources=(
            Source(
                "oussbenk/cranfield-trec-dataset",
                "1208e6edfb6cb2527b2c44398d3d8fefd3249144",
                "cran.all.1400.xml",
                "369eb64e59d855b62463832f1338f471cede578571ee7fb33e3592a2a138ff47",
            ),
            Source(
                "oussbenk/cranfield-trec-dataset",
                "1208e6edfb6cb2527b2c44398d3d8fefd3249144",
                "cran.qry.xml",
                "b609a59e980857ba59d098f33433822a5c200bcf6836a320babf2b1a5e7545eb",
            ),
            Source(
                "oussbenk/cranfield-trec-dataset",
                "1208e6edfb6cb2527b2c44398d3d8fefd3249144",
                "cranqrel.trec.txt",
                "98a13b4913d61a02690725aee7ac4f6a1979c13fc9088ad9b4a81be58b1a6f11",
            ),
        ),
        convert=cranfield,
    ),
    "dbpedia-entity-sub": Collection(
        checksums={
            "corpus": "ce0009f38afc4ad2b9368a2695de889ac82f10cd0c4694ad98f1b73cb0290b53",
            "queries": "266839a10c15fcf8527e6bca807e25196fc883fb23a4da421136ca142db0df7f",
            "judgements": "69a07f44f6f0d2a93af83744f56a351d726e0314ecc310b918b8dca7e73649ad",
        },
        sources=(
            Source(
                "agentset-ai/embedding-leaderboard",
                "7a1376ca20a006b470e3bbb4a08b17affd380d90",
                "datasets/dbpedia/corpus.jsonl",
                "61b717c96ff548d27ad3d7fbfc2682c43daa538e3e9d0cd39d4ae9e99c1d306c",
            ),
            Source(
                "agentset-ai/embedding-leaderboard",
                "7a1376ca20a006b470e3bbb4a08b17affd380d90",
                "datasets/dbpedia/queries.jsonl",
                "93f48e1e465351fbb8d3b5c711c08034e1277e1225553230341bad7e39f16362",
            ),
            Source(
                "agentset-ai/embedding-leaderboard",
                "7a1376ca20a006b470e3bbb4a08b17affd380d90",
                "datasets/dbpedia/qrels/test.tsv",
                "e92204355209bd2c52eab3ae1b3e09819cd61f4b1f446e413a4872100519e3d0",
            ),
        ),
        convert=dbpedia,
    ),
    "arxiv-heldout": Collection(
        checksums={
            "corpus": "e74142083ce3fcf6890a43d96041b92ac2a8d6c310384eb68a79e792579523de",
            "queries": "6cb198d36c9da6b16345c413575f87e4077406b7fd33cb42c8dcbf4fc86f116b",
            "judgements": "7b329fe9588f922a095f9f57c8102212001186efa1952f7d7848fc3dba63215a",
        },
        missing="which dump of arXiv's metadata it was cut from is not recorded",
    ),
    "squad-dev": Collection(
        checksums={
            "corpus": "e738d9e85eb50bc740107395c9847bac95872519eab05340a151174e4c4197ee",
            "queries": "fd882010b8a16775389b711681903b0bdbd755563366922d5ee330e6c3cdaa83",
            "judgements": "0e9663d1c6cb194f376edd6400bf6ed5fb678db901857c0a205824d5813fced1",
        },
        missing="how its 1,500 questions were drawn is not recorded",
    ),
}


def checksum(rows: Rows) -> str:
    """SHA-256 of rows, whatever their order, white space and Unicode form."""
    lines = sorted(json.dumps([unicodedata.normalize("NFC", joined(str(c))) for c in row]) for row in rows)
    return hashlib.sha256("\n".join(lines).encode("ascii")).hexdigest()


def read(folder: Path) -> Content:
    def records(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (folder / name).read_bytes().splitlines() if line.strip()]

    corpus = [(r["_id"], r.get("title", ""), r["text"]) for r in records("corpus.jsonl")]
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as lines:
        judgements = [tuple(row) for row in csv.reader(lines, delimiter="\t")][1:]
    return Content(corpus, [(r["_id"], r["text"]) for r in records("queries.jsonl")], judgements)


def write(folder: Path, content: Content) -> None:
    def lines(names: tuple[str, ...], rows: Rows) -> bytes:
        texts = (json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows)
        return "".join(f"{text}\n" for text in texts).encode("utf-8")

    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_bytes(lines(("_id", "title", "text"), content.corpus))
    (folder / "queries.jsonl").write_bytes(lines(("_id", "text"), content.queries))
    judged = "".join("\t".join(row) + "\n" for row in [("query-id", "corpus-id", "score"), *content.judgements])
    (folder / "qrels" / "test.tsv").write_bytes(judged.encode("utf-8"))


def differences(content: Content, wanted: dict[str, str]) -> list[str]:
    """Names of the parts whose checksum is another one."""
    return [name for name, rows in content._asdict().items() if checksum(rows) != wanted[name]]


def download(source: Source, server: str) -> bytes:
    """A file of a repository, checked.

    Raises:
        ValueError: If it is not what it was.
        OSError: If it cannot be had.
    """
    url = f"{server}/{source.repository}/{source.commit}/{urllib.request.quote(source.path)}"
    with urllib.request.urlopen(url, timeout=120) as answer:
        content: bytes = answer.read()
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise ValueError(f"{url} must have the SHA-256 {source.sha256}, got {found}. The file has changed.")
    return content


def prepare(name: str, collection: Collection, folder: Path, server: str = SERVER) -> None:
    """Makes a collection in ``folder / name``; nothing is written unless its content is as it should be.

    Raises:
        ValueError: If it cannot be made, or a source or the result is not what it was.
        OSError: If a source cannot be had.
    """
    if collection.convert is None:
        raise ValueError(f"{name} must come from a copy, got none to convert: {collection.missing}")
    content = collection.convert(*(download(source, server) for source in collection.sources))
    if wrong := differences(content, collection.checksums):
        raise ValueError(f"{name} must have the content that was measured, got another {', '.join(wrong)}.")
    write(folder / name, content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds a folder for each collection")
    parser.add_argument("--verify", action="store_true", help="check what is there; download nothing")
    parser.add_argument("--only", action="append", choices=list(COLLECTIONS), metavar="NAME", help="may be repeated")
    parser.add_argument("--server", default=SERVER, help="of a mirror with the same paths (default: %(default)s)")
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.only or COLLECTIONS:
        try:
            if arguments.verify:
                wrong = differences(read(arguments.folder / name), COLLECTIONS[name].checksums)
                said = f"another {', '.join(wrong)}" if wrong else "as measured"
                failed += bool(wrong)
            elif COLLECTIONS[name].convert is None:
                said = f"left out, {COLLECTIONS[name].missing}"
            else:
                prepare(name, COLLECTIONS[name], arguments.folder, arguments.server)
                said = "made, as measured"
        except (OSError, ValueError, KeyError) as err:
            failed, said = failed + 1, f"failed: {err}"
        print(f"{name}: {said}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
