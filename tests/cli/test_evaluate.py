from __future__ import annotations

import json
import sys

import pytest
from cli_samples import write_jsonl

from st_keytokens import KeyTokenEncoder
from st_keytokens.evaluation import COMPARED_METHODS, read_collection, run_comparison

METHODS = "dense,bm25-words,key-tokens,key-tokens-lookup"


@pytest.fixture(scope="module")
def collections(sentences, tmp_path_factory):
    """Two collections: one with everything that can be odd, one without."""
    folder = tmp_path_factory.mktemp("collections")
    documents = [{"_id": f"s{i}", "text": text} for i, text in enumerate(sentences)]
    odd = [*documents, {"_id": "s0", "text": "again"}, {"text": "no id"}, {"_id": "blank", "text": " "}]
    queries = {
        "q1": "Farmers plant wheat",
        "q2": "immune system",
        "q3": "galaxies",
        "q4": "of other splits",
        "q5": "　",
    }
    relevant = ["q1\ts38\t1", "q2\ts4\t2", "q2\tabsent\t1", "q3\ts1\t0", "q5\ts2\t1", "q9\ts1\t1", "q1\ts38\t1"]
    made = {"odd": (odd, queries, relevant), "plain": (documents, {"q1": "wheat"}, ["q1\ts38\t1"])}
    for name, (corpus, texts, judgements) in made.items():
        (folder / name / "qrels").mkdir(parents=True)
        write_jsonl(folder / name / "corpus.jsonl", corpus)
        write_jsonl(folder / name / "queries.jsonl", [{"_id": key, "text": text} for key, text in texts.items()])
        content = "query-id\tcorpus-id\tscore\n" + "\n".join(judgements) + "\n"
        (folder / name / "qrels" / "test.tsv").write_text(content)
    return folder


class TestResults:
    def test_same_as_the_library(self, run, model, collections, tmp_path):
        words = ["--methods", METHODS, "--samples", 200, "--output", tmp_path / "out.json"]
        code, _, _ = run("evaluate", collections / "odd", collections / "plain", "--model", model, *words)
        found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        assert code == 0
        encoder = KeyTokenEncoder(str(model))
        means = {}
        for name, value in zip(("odd", "plain"), found["collections"], strict=True):
            collection = read_collection(collections / name)
            expected = run_comparison(collection, encoder, methods=METHODS.split(","), samples=200)
            assert value["query_ids"] == collection.query_ids
            assert value["settings"]["model"] == model.name
            for method, result in expected.methods.items():
                saved = value["methods"][method]
                assert saved["means"] == pytest.approx(result.means)
                assert saved["per_query"]["MAP"] == pytest.approx(result.per_query["MAP"].tolist())
                assert saved["costs"]["forward_passes"] == result.run.forward_passes
                means.setdefault(method, []).append(saved["means"]["nDCG@10"])
        for method, pair in means.items():
            assert found["macro_average"][method]["means"]["nDCG@10"] == pytest.approx(sum(pair) / 2)

    def test_json_lines(self, run, model, collections, tmp_path):
        words = ["--methods", "dense,bm25-words", "--output", tmp_path / "out.json", "--json", "--quiet"]
        code, out, err = run("evaluate", collections / "plain", collections / "odd", "--model", model, *words)
        plain, odd, macro = map(json.loads, out.splitlines())
        saved = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        assert (code, err) == (0, "")
        for row, whole in zip((plain, odd), saved["collections"], strict=True):
            assert row["collection"] == whole["collection"]
            for method in ("dense", "bm25-words"):
                result = whole["methods"][method]
                del result["per_query"]
                assert row["methods"][method] == result
        assert macro["macro_average"] == saved["macro_average"]
        assert macro["collections"] == ["plain", "odd"]
        assert (macro["output"], macro["table"]) == (str(tmp_path / "out.json"), None)

    def test_readable(self, run, model, collections, tmp_path):
        files = ["--output", tmp_path / "out.json", "--table", tmp_path / "out.md"]
        words = ["--model", model, "--methods", "dense,bm25-words", *files]
        code, out, _ = run("evaluate", collections / "plain", collections / "odd", *words)
        lines = out.splitlines()
        saved = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        assert code == 0
        assert lines[0] == "plain: 50 documents, 1 queries"
        assert lines[1].split() == [
            *("nDCG@10", "R@100", "MRR@10", "MAP", "difference", "p", "queries", "without", "terms", "method")
        ]
        assert [line.split()[-1] for line in lines[2:4]] == ["dense", "bm25-words"]
        bm25 = saved["collections"][0]["methods"]["bm25-words"]
        assert lines[3].split()[:6] == [
            *(f"{value:.4f}" for value in bm25["means"].values()),
            f"{bm25['differences']['nDCG@10']['mean']:+.4f}",
            f"{bm25['differences']['nDCG@10']['p_holm']:.4f}",
        ]
        assert lines[4] == "odd: 52 documents, 3 queries"
        assert lines[8] == "Macro average of 2 collections"
        assert lines[-1] == f"Saved in {tmp_path / 'out.json'} and {tmp_path / 'out.md'}."
        assert (tmp_path / "out.md").read_text(encoding="utf-8").startswith("## Macro average\n")

    def test_all_methods_are_the_default(self, run, model, collections, tmp_path):
        words = ["--model", model, "--output", tmp_path / "out.json", "--samples", 10]
        assert run("evaluate", collections / "plain", *words)[0] == 0
        saved = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        assert list(saved["collections"][0]["methods"]) == list(COMPARED_METHODS)


class TestOddCollections:
    def test_are_reported_and_counted(self, run, model, collections, tmp_path):
        files = ["--output", tmp_path / "out.json", "--table", tmp_path / "out.md"]
        code, out, err = run("evaluate", collections / "odd", "--model", model, "--methods", METHODS, *files)
        assert code == 0
        assert err.splitlines() == [
            "odd: documents without id: 1 (#52)",
            "odd: documents twice: 1 (s0)",
            "odd: documents empty: 1 (blank)",
            "odd: queries empty: 1 (q5)",
            "odd: queries unjudged: 1 (q4)",
            "odd: queries without relevant: 1 (q3)",
            "odd: judgements twice: 1 (q1 s38)",
            "odd: judgements of absent queries: 1 (q9 s1)",
            "odd: judgements of absent documents: 1 (q2 absent)",
        ]
        (saved,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["collections"]
        text = (tmp_path / "out.md").read_text(encoding="utf-8")
        for line in err.splitlines():
            label = line.split(": ")[1]
            assert f"- {label}: 1 (for instance " in text
            assert saved["collection"]["report"][label.replace(" ", "_")]["count"] == 1
        without = {name: method["costs"]["queries_without_terms"] for name, method in saved["methods"].items()}
        assert (without["bm25-words"], without["dense"]) == (1, 0)
        (row,) = [line for line in out.splitlines() if line.endswith(" bm25-words")]
        assert row.split()[-2] == "1"

    def test_quiet(self, run, model, collections, tmp_path):
        words = ["--model", model, "--methods", "dense", "--output", tmp_path / "out.json", "--quiet"]
        assert run("evaluate", collections / "odd", *words)[2] == ""


class TestOptions:
    def test_cache(self, run, model, collections, passes, tmp_path):
        words = ["--model", model, "--output", tmp_path / "out.json", "--cache", tmp_path / "cache"]
        assert run("evaluate", collections / "plain", *words, "--methods", "dense,key-tokens")[0] == 0
        assert sum(passes) == 51
        first = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["collections"][0]["methods"]
        assert run("evaluate", collections / "plain", *words, "--methods", "dense,promptreps")[0] == 0
        assert sum(passes) == 51
        again = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["collections"][0]["methods"]
        assert again["dense"]["means"] == first["dense"]["means"]

    @pytest.mark.parametrize(("fusion_depth", "words"), [(7, []), (3, ["--fusion-depth", 3])])
    def test_settings_reach_the_comparison(self, run, model, collections, tmp_path, fusion_depth, words):
        (collections / "plain" / "qrels" / "dev.tsv").write_text("d1\ts4\t1\n")
        write_jsonl(collections / "plain" / "queries_dev.jsonl", [{"_id": "d1", "text": "immune system"}])
        words += ["--split", "dev", "--queries", "queries_dev.jsonl", "--baseline", "bm25-words", "--depth", 7]
        words += ["--seed", 3, "--samples", 20, "--no-calibrate", "--methods", "dense", "--batch-size", 5]
        code, _, _ = run(
            "evaluate", collections / "plain", "--model", model, *words, "--output", tmp_path / "out.json"
        )
        found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        (collection,) = found["collections"]
        assert (code, found["baseline"], collection["query_ids"]) == (0, "bm25-words", ["d1"])
        assert list(collection["methods"]) == ["bm25-words", "dense"]
        expected = {"depth": 7, "fusion_depth": fusion_depth, "seed": 3, "samples": 20, "batch_size": 5}
        expected["calibration"] = "encoder"
        assert {name: collection["settings"][name] for name in expected} == expected
        assert "calibrate" not in collection["seconds"]

    def test_unfinished_runs_keep_what_they_measured(self, run, model, collections, monkeypatch, tmp_path):
        def stop_at_the_second(collection, *arguments, **options):
            if collection.name == "odd":
                raise KeyboardInterrupt
            return run_comparison(collection, *arguments, **options)

        monkeypatch.setattr("st_keytokens.evaluation.comparison.run_comparison", stop_at_the_second)
        words = ["--model", model, "--methods", "dense", "--output", tmp_path / "out.json"]
        assert run("evaluate", collections / "plain", collections / "odd", *words)[0] == 130
        saved = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        assert [value["collection"]["name"] for value in saved["collections"]] == ["plain"]


class TestErrors:
    @pytest.fixture
    def fails(self, run, model, collections, tmp_path):
        """Evaluates, which must fail by the user's fault; gives the one line on stderr."""

        def fails(*words, paths=(collections / "plain",), output=tmp_path / "out.json"):
            code, out, err = run("evaluate", *paths, "--model", model, "--output", output, "--quiet", *words)
            assert (code, out) == (2, "")
            assert err.startswith("st-keytokens: error: ") and err.count("\n") == 1
            return err.removeprefix("st-keytokens: error: ")[:-1]

        return fails

    def test_collections(self, fails, collections, tmp_path):
        message = fails(paths=[tmp_path / "none"])
        assert message == f"COLLECTION must be a directory that exists, got '{tmp_path / 'none'}'."
        message = fails(paths=[collections / "odd", collections / "plain" / ".." / "odd"])
        assert message == "COLLECTION must be named once, got two directories of the name 'odd'."
        assert fails("--split", "none").startswith(
            f"{collections / 'plain'} must hold qrels/none.tsv or qrels/none.tsv"
        )
        (tmp_path / "empty").mkdir()
        assert "must hold corpus.jsonl" in fails(paths=[tmp_path / "empty"])

    def test_output(self, fails, tmp_path):
        assert fails(output=tmp_path / "out.txt") == f"--output must end in .json, got {tmp_path / 'out.txt'}."
        message = fails(output=tmp_path / "none" / "out.json")
        assert message == f"--output must be in a directory that exists, got {tmp_path / 'none' / 'out.json'}."
        assert fails("--table", tmp_path / "out.json").startswith("--table must end in .md, got ")

    def test_methods(self, fails):
        assert fails("--methods", "dense,splade") == (
            f"methods must be among {', '.join(COMPARED_METHODS)}, got 'splade'."
        )
        assert fails("--methods", "dense, dense") == "methods must be named once, got 'dense' twice."
        assert fails("--baseline", "none").endswith("got 'none'.")
        assert fails("--methods", "").endswith("got ''.")

    @pytest.mark.parametrize("module", ["ir_measures", "bm25s", "rank_bm25"])
    def test_missing_package(self, fails, monkeypatch, passes, module):
        monkeypatch.setitem(sys.modules, module, None)
        assert fails("--methods", "bm25-words").endswith(
            f'needs {module.replace("_", "-")}: pip install "st-keytokens[evaluation]"'
        )
        assert passes == []

    def test_damaged_cache(self, fails, run, model, collections, tmp_path):
        words = ["--methods", "dense", "--cache", tmp_path / "cache"]
        run("evaluate", collections / "plain", "--model", model, "--output", tmp_path / "out.json", *words)
        (about,) = (tmp_path / "cache").glob("plain-document-*/about.json")
        about.write_text("{")
        assert fails(*words) == f"{about.parent} must hold stored vectors, got something else. Delete it."
