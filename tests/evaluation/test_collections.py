from __future__ import annotations

import gzip
import json

import pytest

from st_keytokens.evaluation.collections import Collection, Report, read_collection
from st_keytokens.shared.document_files import Record


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture(params=["", ".gz"])
def folder(tmp_path, request):
    """A good collection of two documents and two queries."""
    folder, ending = tmp_path / "good", request.param
    write_lines(
        folder / f"corpus.jsonl{ending}",
        [{"_id": "d1", "title": "Mice", "text": "and men"}, {"_id": "d2", "text": "Wolves"}],
    )
    write_lines(folder / f"queries.jsonl{ending}", [{"_id": "q1", "text": "mouse"}, {"_id": "q2", "text": "wolf"}])
    write_lines(
        folder / f"qrels/test.tsv{ending}", ["query-id\tcorpus-id\tscore", "q1\td1\t2", "q2\td2\t1", "q2\td1\t0"]
    )
    return folder


def counts(report: Report) -> dict[str, int]:
    return {name: finding.count for name, finding in report.findings.items()}


class TestReading:
    def test_a_good_collection_has_nothing_odd(self, folder):
        collection = read_collection(folder)
        assert collection.name == "good"
        assert collection.doc_ids == ["d1", "d2"]
        assert collection.documents == ["Mice and men", "Wolves"]
        assert collection.query_ids == ["q1", "q2"]
        assert collection.queries == ["mouse", "wolf"]
        assert collection.qrels == {"q1": {"d1": 2}, "q2": {"d2": 1, "d1": 0}}
        report = collection.report
        assert (report.documents, report.queries, report.judgements) == (2, 2, 3)
        assert report.findings == {}

    def test_split_and_file_of_queries_can_be_chosen(self, folder):
        write_lines(folder / "train.jsonl", [{"_id": "t", "text": "men"}])
        write_lines(folder / "qrels/train.tsv", ["t\td1\t1.0"])
        collection = read_collection(folder, split="train", queries="train.jsonl", name="mine")
        assert (collection.name, collection.queries, collection.qrels) == ("mine", ["men"], {"t": {"d1": 1}})

    @pytest.mark.parametrize(
        "line", ["q1\td1", "q1 d1 1", "q1\td1\tyes", "q1\td1\t0.5", "q1\td1\tinf", "q1\td1\t1\t1"]
    )
    def test_bad_judgements_name_file_and_line(self, folder, line):
        write_lines(folder / "qrels/bad.tsv", ["query-id\tcorpus-id\tscore", "q1\td1\t1", line])
        with pytest.raises(ValueError, match=r"bad\.tsv:3: must be query id, document id and a whole number"):
            read_collection(folder, split="bad")

    def test_quotes_in_ids_are_plain(self, folder):
        write_lines(folder / "queries2.jsonl", [{"_id": '"q', "text": "x"}])
        write_lines(folder / "qrels/quoted.tsv", ['"q\td1\t1'])
        assert read_collection(folder, split="quoted", queries="queries2.jsonl").qrels == {'"q': {"d1": 1}}

    def test_missing_files_are_named_with_what_is_there(self, folder, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"must hold qrels/dev\.tsv or qrels/dev\.tsv\.gz, got corpus"):
            read_collection(folder, split="dev")
        with pytest.raises(FileNotFoundError, match="collection must be a directory that exists"):
            read_collection(tmp_path / "nowhere")


class TestReport:
    def test_every_oddity_is_counted(self):
        collection = Collection.build(
            "odd",
            [Record("d1", "one"), Record(None, "lost"), Record("d1", "again"), Record("d3", " ")],
            [
                Record("q1", "one"),
                Record("q1", "two"),
                Record(None, "x"),
                Record("q2", ""),
                Record("q3", "never judged"),
                Record("q4", "only irrelevant"),
                Record("q5", "only absent"),
            ],
            [("q1", "d1", 1), ("q1", "d1", 0), ("q2", "d3", 1), ("q4", "d1", 0), ("q5", "gone", 1), ("q9", "d1", 1)],
        )
        assert counts(collection.report) == {
            "documents_without_id": 1,
            "documents_twice": 1,
            "documents_empty": 1,
            "queries_without_id": 1,
            "queries_twice": 1,
            "queries_empty": 1,
            "queries_unjudged": 1,
            "queries_without_relevant": 1,
            "queries_unanswerable": 1,
            "judgements_twice": 1,
            "judgements_of_absent_queries": 1,
            "judgements_of_absent_documents": 1,
        }
        assert collection.doc_ids == ["d1", "#2", "d3"]
        assert collection.documents == ["one", "lost", " "]
        assert collection.query_ids == ["q1", "q2", "q5"]
        assert collection.queries == ["one", "", "only absent"]
        assert collection.qrels == {"q1": {"d1": 1}, "q2": {"d3": 1}, "q5": {"gone": 1}}
        report = collection.report
        assert (report.documents, report.queries, report.judgements) == (3, 3, 3)
        assert report.documents_without_id.examples == ["#2"]
        assert report.queries_unanswerable.examples == ["q5"]
        assert report.judgements_of_absent_queries.examples == ["q9 d1"]

    def test_what_was_read_is_all_accounted_for(self):
        documents = [Record(f"d{i % 7}", "x") for i in range(20)]
        report = Collection.build("n", documents, [Record("q", "x")], [("q", "d1", 1)]).report
        assert report.documents + report.documents_twice.count == 20
        assert len(report.documents_twice.examples) == 10

    def test_to_dict_holds_zeros(self):
        found = Collection.build("n", [Record("d", "x")], [Record("q", "x")], [("q", "d", 1)]).report.to_dict()
        assert found["documents_empty"] == {"count": 0, "examples": []}
        assert found["documents"] == 1

    def test_nothing_to_search_or_measure_is_an_error(self):
        with pytest.raises(ValueError, match="must hold at least one document, got none in n"):
            Collection.build("n", [], [Record("q", "x")], [("q", "d", 1)])
        with pytest.raises(ValueError, match="must hold a query with a relevant document, got none in n"):
            Collection.build("n", [Record("d", "x")], [Record("q", "x")], [("q", "d", 0)])
