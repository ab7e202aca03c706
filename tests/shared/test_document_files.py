from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from st_keytokens.shared.document_files import Record, read_documents


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def pack_zstd(content: bytes) -> bytes:
    packed: bytes = pytest.importorskip("zstandard").compress(content)
    return packed


def set_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(content)))


class TestJsonLines:
    def test_id_title_text_and_metadata(self, tmp_path):
        path = write(
            tmp_path / "a.jsonl", '{"_id": "x", "title": "Mice", "text": "and men", "year": 1937, "tags": ["a"]}\n'
        )
        assert list(read_documents(path)) == [Record("x", "Mice and men", {"year": 1937, "tags": ["a"]})]

    @pytest.mark.parametrize("title", ['""', "null"])
    def test_empty_title_adds_nothing(self, tmp_path, title):
        path = write(tmp_path / "a.jsonl", f'{{"id": "x", "title": {title}, "text": " and men"}}')
        assert list(read_documents(path)) == [Record("x", " and men")]

    def test_numbers_become_ids_and_id_may_be_absent(self, tmp_path):
        path = write(tmp_path / "a.jsonl", '{"id": 7, "text": "a"}\n{"_id": 1.5, "text": "b"}\n{"text": "c"}\n')
        assert [record.id for record in read_documents(path)] == ["7", "1.5", None]

    def test_underscored_id_goes_before_the_other(self, tmp_path):
        path = write(tmp_path / "a.jsonl", '{"id": "other", "_id": "x", "text": "a"}')
        assert list(read_documents(path)) == [Record("x", "a", {"id": "other"})]

    def test_named_fields(self, tmp_path):
        path = write(tmp_path / "a.jsonl", '{"key": 3, "id": 4, "title": "T", "text": "a", "body": "b"}')
        expected = Record("3", "b", {"id": 4, "title": "T", "text": "a"})
        assert list(read_documents(path, text_field="body", id_field="key")) == [expected]

    def test_blank_lines_are_left_out_and_empty_texts_kept(self, tmp_path):
        path = write(tmp_path / "a.jsonl", '\n{"id": "x", "text": ""}\n   \r\n{"id": "y", "text": " "}\n\n')
        assert list(read_documents(path)) == [Record("x", ""), Record("y", " ")]

    def test_line_separator_within_a_text_ends_no_line(self, tmp_path):
        path = write(tmp_path / "a.jsonl", '{"text": "a\u2028b\u0085c"}\r\n{"text": "d"}')
        assert [record.text for record in read_documents(path)] == ["a\u2028b\u0085c", "d"]

    def test_a_line_of_megabytes(self, tmp_path):
        text = "wörd " * 500_000
        path = write(tmp_path / "a.jsonl", json.dumps({"id": "x", "text": text}, ensure_ascii=False) + "\n{}\n")
        records = read_documents(path)
        assert next(records) == Record("x", text)
        with pytest.raises(ValueError, match=r"a\.jsonl:2: must have the field 'text'"):
            next(records)

    def test_an_id_twice_is_read_twice(self, tmp_path):
        path = write(tmp_path / "a.jsonl", '{"id": "x", "text": "a"}\n{"id": "x", "text": "b"}\n')
        assert list(read_documents(path)) == [Record("x", "a"), Record("x", "b")]

    def test_records_come_while_reading(self, tmp_path):
        path = write(tmp_path / "a.jsonl", '{"text": "a"}\nno JSON\n')
        records = read_documents(path)
        assert next(records).text == "a"
        with pytest.raises(ValueError, match=r"a\.jsonl:2: "):
            next(records)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"text": "a"', r"must be one JSON object a line, got an error: Expecting ',' delimiter at column 13\."),
            ('["a"]', r"must be one JSON object a line, got an array\."),
            ('"a"', r"must be one JSON object a line, got a string\."),
            ('{"text": "a", "score": NaN}', r"must be one JSON object a line, got an error: NaN is not JSON\."),
            ("[" * 200_000, r"must be one JSON object a line, got an error: "),
            (
                '{"text": "a\0b"}',
                r"must be one JSON object a line, got an error: Invalid control character at column 12",
            ),
            ('{"text": "cut \\ud8', r"must be one JSON object a line, got an error: Invalid \\uXXXX escape at column"),
            (
                '{"text": "a", "n": ' + "9" * 5000 + "}",
                r"must be one JSON object a line, got an error: Exceeds the limit",
            ),
            ('\ufeff{"text": "a"}', r"must be one JSON object a line, got an error: Unexpected UTF-8 BOM"),
            (
                '{"id": "x", "body": "b"}',
                r"must have the field 'text', got 'id', 'body'\. Name the field .*text_field",
            ),
            ("{}", r"must have the field 'text', got no field\."),
            ('{"text": null}', r"'text' must be a string, got null\."),
            ('{"text": "a", "title": 3}', r"'title' must be a string, got a number\."),
            ('{"text": "a", "id": null}', r"'id' must be a string or a number, got null\. Name the field: id_field"),
            ('{"text": "a", "_id": {"$oid": "1"}}', r"'_id' must be a string or a number, got an object\."),
            ('{"text": "a", "id": true}', r"'id' must be a string or a number, got true or false\."),
            ('{"text": "a", "id": ""}', r"'id' must be a string or a number, got an empty string\."),
        ],
        ids=lambda value: value[:20],
    )
    def test_wrong_line_is_named(self, tmp_path, line, message):
        path = write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n\n{line}\n')
        with pytest.raises(ValueError, match=rf"a\.jsonl:3: {message}"):
            list(read_documents(path))

    def test_named_id_field_must_be_there(self, tmp_path):
        path = write(tmp_path / "a.jsonl", '{"id": "x", "text": "a"}')
        with pytest.raises(ValueError, match=r"a\.jsonl:1: must have the field 'key', got 'id', 'text'\."):
            list(read_documents(path, id_field="key"))

    @given(
        st.lists(
            st.builds(
                Record,
                st.one_of(st.none(), st.text(min_size=1)),
                st.text(),
                st.dictionaries(
                    st.text().filter(lambda name: name not in ("_id", "id", "text", "title")),
                    st.one_of(
                        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
                    ),
                    max_size=3,
                ),
            ),
            max_size=5,
        ),
        st.booleans(),
    )
    def test_what_is_written_is_read(self, tmp_path_factory, records, is_ascii):
        path = tmp_path_factory.mktemp("round-trip") / "a.jsonl"
        lines = [
            json.dumps(
                {**({} if r.id is None else {"_id": r.id}), "text": r.text, **r.metadata}, ensure_ascii=is_ascii
            )
            for r in records
        ]
        path.write_bytes("".join(line + "\n" for line in lines).encode())
        assert list(read_documents(path)) == records


class TestCsv:
    def test_header_names_the_fields(self, tmp_path):
        path = write(tmp_path / "a.csv", 'id,title,text,year\n1,Mice,"and ""men"", too",1937\n\n2,,"two\nlines",\n')
        assert list(read_documents(path)) == [
            Record("1", 'Mice and "men", too', {"year": "1937"}),
            Record("2", "two\nlines", {"year": ""}),
        ]

    def test_tab_separated(self, tmp_path):
        path = write(tmp_path / "a.tsv", "key\tbody\r\n1\ta, b\r\n")
        assert list(read_documents(path, text_field="body", id_field="key")) == [Record("1", "a, b")]

    def test_huge_field(self, tmp_path):
        before = csv.field_size_limit()
        path = write(tmp_path / "a.csv", "text\n" + "word " * 100_000 + "\n")
        records = read_documents(path)
        assert len(next(records).text) == 500_000
        assert csv.field_size_limit() == before

    def test_line_ends_within_quotes_are_kept(self, tmp_path):
        path = write(tmp_path / "a.csv", 'text,year\r\n"two\r\nlines",1937\r\n')
        assert list(read_documents(path)) == [Record(None, "two\r\nlines", {"year": "1937"})]

    def test_header_alone_and_empty_file(self, tmp_path):
        assert list(read_documents(write(tmp_path / "a.csv", "id,text\n"))) == []
        assert list(read_documents(write(tmp_path / "b.csv", ""))) == []

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("id,text\n1,a\n2,b,c\n", r"a\.csv:3: must have 2 fields as the header has, got 3\."),
            ('id,text\n1,"two\nlines"\n2\n', r"a\.csv:4: must have 2 fields as the header has, got 1\."),
            ('id,text\n1,"open\nand so on\n', r"a\.csv:2: must be CSV, got an error: unexpected end of data\."),
            ('id,text\n1,"quoted" and more\n', r"a\.csv:2: must be CSV, got an error: .* double the quotes"),
            ("id,text,id\n", r"a\.csv:1: must name each field once, got 'id' twice\."),
            ("id,body\n1,a\n", r"a\.csv:2: must have the field 'text', got 'id', 'body'\."),
            ("id,text\n,a\n", r"a\.csv:2: 'id' must be a string or a number, got an empty string\."),
        ],
    )
    def test_wrong_row_is_named(self, tmp_path, content, message):
        path = write(tmp_path / "a.csv", content)
        with pytest.raises(ValueError, match=message):
            list(read_documents(path))


class TestText:
    def test_one_document_a_line(self, tmp_path):
        path = write(tmp_path / "a.txt", "first \r\n\n  \n{second}\nthird")
        assert list(read_documents(path)) == [Record(None, "first"), Record(None, "{second}"), Record(None, "third")]

    def test_one_document_a_file(self, tmp_path):
        write(tmp_path / "b.txt", "one\n\ntwo\n")
        write(tmp_path / "a" / "deep.md", "# Title")
        write(tmp_path / "c.txt.gz", gzip.compress(b"packed"))
        write(tmp_path / "empty.txt", "")
        write(tmp_path / "picture.png", b"\x89PNG")
        assert list(read_documents(tmp_path)) == [
            Record("a/deep.md", "# Title"),
            Record("b.txt", "one\n\ntwo"),
            Record("c.txt.gz", "packed"),
            Record("empty.txt", ""),
        ]

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_line_ends(self, tmp_path, end):
        lines = ["one", "", "two \u2028 \x85 still", "three"]
        expected = [Record(None, line) for line in lines if line]
        for text in (end.join(lines), end.join(lines) + end):
            assert list(read_documents(write(tmp_path / "a.txt", text))) == expected
        table = write(tmp_path / "a.csv", f"id,text{end}1,a{end}2,b{end}")
        assert list(read_documents(table)) == [Record("1", "a"), Record("2", "b")]
        objects = write(tmp_path / "a.jsonl", f'{{"text": "a"}}{end}{{"text": "b"}}{end}')
        assert list(read_documents(objects)) == [Record(None, "a"), Record(None, "b")]

    def test_line_end_where_a_block_ends(self, tmp_path):
        for size in range(2**16 - 2, 2**16 + 3):
            path = write(tmp_path / "a.txt", b"a" * size + b"\r\nb\rc")
            assert [len(record.text) for record in read_documents(path)] == [size, 1, 1]
            path = write(tmp_path / "a.txt", b"a" * size + "é".encode() + b"\nb\n\xff")
            with pytest.raises(
                ValueError, match=rf"a\.txt:3: must be UTF-8, got the byte 0xff at position {size + 5} "
            ):
                list(read_documents(path))

    def test_hidden_files_are_left_out(self, tmp_path):
        for name in (".hidden.txt", ".git/a.txt", "b/.c/d.txt", "b/._e.md"):
            write(tmp_path / name, "hidden")
        with pytest.raises(FileNotFoundError, match=r"text files \(\.txt, \.md\) that are not hidden, got neither"):
            list(read_documents(tmp_path))
        write(tmp_path / "b" / "f.txt", "seen")
        assert list(read_documents(tmp_path)) == [Record("b/f.txt", "seen")]
        assert list(read_documents(tmp_path / ".git")) == [Record("a.txt", "hidden")]  # named, so wanted

    @pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes")
    def test_file_name_that_is_no_utf_8(self, tmp_path):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("one")
        assert list(read_documents(tmp_path)) == [Record("caf\\xe9.txt", "one")]

    def test_directory_without_documents(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"must hold corpus\.jsonl \(BEIR\) or text files"):
            list(read_documents(tmp_path))


class TestBeir:
    @pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
    def test_corpus_and_queries(self, tmp_path, ending, pack):
        write(tmp_path / f"corpus.jsonl{ending}", pack(b'{"_id": "d", "title": "", "text": "document"}\n'))
        write(tmp_path / f"queries.jsonl{ending}", pack(b'{"_id": "q", "text": "query", "metadata": {}}\n'))
        write(tmp_path / "notes.txt", "not a document")
        assert list(read_documents(tmp_path)) == [Record("d", "document")]
        assert list(read_documents(str(tmp_path), part="queries")) == [Record("q", "query", {"metadata": {}})]

    def test_no_queries(self, tmp_path):
        write(tmp_path / "corpus.jsonl", "")
        with pytest.raises(FileNotFoundError, match=r"must hold queries\.jsonl to be read as a directory, got none"):
            read_documents(tmp_path, part="queries")


class TestEncoding:
    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
    def test_byte_order_mark_is_dropped(self, tmp_path, name):
        content = {"a.jsonl": '{"text": "é"}', "a.csv": "text\né\n", "a.txt": "é"}[name]
        path = write(tmp_path / name, b"\xef\xbb\xbf" + content.encode())
        assert list(read_documents(path)) == [Record(None, "é")]

    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
    def test_other_encoding_is_named_with_its_position(self, tmp_path, name):
        content = {"a.jsonl": '{"text": "à"}\n{"text": "', "a.csv": "text\nà\n", "a.txt": "à\n"}[name].encode()
        path = write(tmp_path / name, content + b"\xe9t\xe9")
        line = content.count(b"\n") + 1
        message = rf"{name}:{line}: must be UTF-8, got the byte 0xe9 at position {len(content)} of the file\."
        with pytest.raises(ValueError, match=message):
            list(read_documents(path))

    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
    def test_utf_16_and_32_with_a_byte_order_mark(self, tmp_path, name, encoding):
        content = {"a.jsonl": '{"text": "é 星🧬"}\r\n', "a.csv": "text\r\né 星🧬\r\n", "a.txt": "é 星🧬"}[name]
        path = write(tmp_path / name, ("\ufeff" + content).encode(encoding))
        assert list(read_documents(path)) == [Record(None, "é 星🧬")]

    def test_utf_16_cut_short(self, tmp_path):
        path = write(tmp_path / "a.txt", "a\nbc".encode("utf-16")[:-1])
        with pytest.raises(ValueError, match=r"a\.txt:2: must be UTF-16-LE, got the byte 0x63 at position 8 of the"):
            list(read_documents(path))

    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
    def test_a_byte_order_mark_alone_is_an_empty_file(self, tmp_path, name):
        assert list(read_documents(write(tmp_path / name, b"\xef\xbb\xbf"))) == []

    @pytest.mark.parametrize(
        "cut", [b"caf\xc3", b"a\xed\xa0\x80", b"a\xf0\x9f\x98"], ids=["cut", "surrogate", "emoji"]
    )
    def test_half_a_character_is_refused(self, tmp_path, cut):
        with pytest.raises(ValueError, match=r"a\.txt:2: must be UTF-8, got the byte 0x.. at position "):
            list(read_documents(write(tmp_path / "a.txt", b"fine\n" + cut)))

    def test_lone_surrogates_and_nul_stay_as_they_are(self, tmp_path):
        path = write(tmp_path / "a.jsonl", r'{"id": "x\ud800", "text": "a\udc00 b\u0000"}')
        assert list(read_documents(path)) == [Record("x\ud800", "a\udc00 b\0")]
        assert list(read_documents(write(tmp_path / "a.txt", "a\0b\n"))) == [Record(None, "a\0b")]

    def test_nul_in_csv(self, tmp_path):
        path = write(tmp_path / "a.csv", "text\na\0b\n")
        if sys.version_info >= (3, 11):
            assert list(read_documents(path)) == [Record(None, "a\0b")]
        else:
            with pytest.raises(ValueError, match=r"a\.csv:2: must be CSV, got an error: line contains NUL"):
                list(read_documents(path))


class TestCompression:
    @pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a"])
    def test_by_the_files_name(self, tmp_path, name, ending, pack):
        content = {"a.jsonl": b'{"text": "one"}', "a.csv": b"text\none\n"}.get(name, b"one\n")
        assert list(read_documents(write(tmp_path / (name + ending), pack(content)))) == [Record(None, "one")]

    @pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
    def test_truncated_or_not_compressed(self, tmp_path, ending, pack):
        content = pack(" ".join(map(str, range(10_000))).encode() + b"\n")
        for size in (len(content) // 2, len(content) - 1):
            path = write(tmp_path / f"a.txt{ending}", content[:size])
            with pytest.raises(ValueError, match=rf"a\.txt\{ending} must be a whole compressed file, got an error"):
                list(read_documents(path))
        path = write(tmp_path / f"b.txt{ending}", b"not compressed")
        assert list(read_documents(path)) == [Record(None, "not compressed")]

    @pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, lambda data: pack_zstd(data)])
    @pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zip", "a.jsonl.gz", "a.jsonl.zst", "a", "a.csv"])
    def test_under_any_name(self, tmp_path, name, pack):
        path = write(tmp_path / name, pack(pack(b'{"text": "one"}\n') if name == "a" else b'{"text": "one"}\n'))
        assert list(read_documents(path, file_format="jsonl")) == [Record(None, "one")]

    def test_of_a_directory(self, tmp_path):
        write(tmp_path / "a.txt", gzip.compress("é".encode("utf-16")))
        assert list(read_documents(tmp_path)) == [Record("a.txt", "é")]

    def test_of_standard_input(self, monkeypatch):
        set_stdin(monkeypatch, gzip.compress(b'{"text": "one"}'))
        assert list(read_documents("-")) == [Record(None, "one")]

    def test_zstandard_cut_short_and_in_several_frames(self, tmp_path):
        content = pack_zstd(b"one\n" * 50_000)
        path = write(tmp_path / "a.txt", content + b"\x50\x2a\x4d\x18\x02\x00\x00\x00xx" + pack_zstd(b"two\n"))
        assert [record.text for record in read_documents(path)] == ["one"] * 50_000 + ["two"]
        for size in (6, len(content) // 2, len(content) - 1):
            path = write(tmp_path / "a.txt", content[:size])
            with pytest.raises(
                ValueError, match=r"a\.txt must be a whole compressed file, got an error: it ends before"
            ):
                list(read_documents(path))

    def test_zstandard_without_a_package(self, tmp_path, monkeypatch):
        path = write(tmp_path / "a.txt", b"\x28\xb5\x2f\xfd content")
        monkeypatch.setitem(sys.modules, "zstandard", None)
        monkeypatch.setitem(sys.modules, "compression.zstd", None)
        with pytest.raises(ImportError, match=r"a\.txt is compressed with Zstandard, .* 'st-keytokens\[zstandard\]'"):
            list(read_documents(path))

    @pytest.mark.parametrize(
        ("content", "what"), [(b"PK\x03\x04rest", "a zip archive"), (b"%PDF-1.7\n", "a PDF")], ids=["zip", "pdf"]
    )
    def test_what_is_no_text(self, tmp_path, content, what):
        with pytest.raises(ValueError, match=rf"a\.txt must be text, got {what}\. Unpack or convert it first\."):
            list(read_documents(write(tmp_path / "a.txt", content)))

    @pytest.mark.parametrize("text", ["B", "BZ", "BZh", "BZh9", "BZh9 is", "BZhello", "P", "PK", "%PD", "(", "7z"])
    def test_text_that_begins_as_what_is_none(self, tmp_path, text):
        assert list(read_documents(write(tmp_path / "a.txt", text))) == [Record(None, text)]


class TestSource:
    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"must be a file or directory that exists, got '.*none\.jsonl'"):
            read_documents(tmp_path / "none.jsonl")

    def test_unknown_ending_wants_a_format(self, tmp_path):
        path = write(tmp_path / "a.xml", "one\n")
        with pytest.raises(ValueError, match=r"a\.xml must have a name that ends in .* got \.xml\. .*file_format"):
            read_documents(path)
        assert list(read_documents(path, file_format="text")) == [Record(None, "one")]

    def test_unknown_format(self, tmp_path):
        with pytest.raises(ValueError, match=r"file_format must be one of 'jsonl', 'csv', 'tsv', 'text', got 'xml'\."):
            read_documents(tmp_path, file_format="xml")

    def test_unknown_part(self, tmp_path):
        with pytest.raises(ValueError, match=r"part must be one of 'corpus', 'queries', got 'qrels'\."):
            read_documents(tmp_path, part="qrels")

    def test_format_goes_before_the_name(self, tmp_path):
        path = write(tmp_path / "a.txt", "id,text\n1,a\n")
        assert list(read_documents(path, file_format="csv")) == [Record("1", "a")]

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b'\n  {"id": 1, "text": "a"}\n', [Record("1", "a")]),
            (b"\n a \n{b}\n", [Record(None, "a"), Record(None, "{b}")]),
            (b"\n \n", []),
            (b"", []),
        ],
    )
    def test_standard_input_is_looked_at(self, monkeypatch, content, expected):
        set_stdin(monkeypatch, content)
        assert list(read_documents("-")) == expected

    def test_standard_input_of_a_named_format(self, monkeypatch):
        set_stdin(monkeypatch, b"{a}\n")
        assert list(read_documents("-", file_format="text")) == [Record(None, "{a}")]
        set_stdin(monkeypatch, b"{a}\n")
        with pytest.raises(ValueError, match=r"standard input:1: must be one JSON object a line"):
            list(read_documents("-"))
