from __future__ import annotations

import copy
import dataclasses
import json
import logging
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from evaluation_samples import build_collection, build_encoder, count_passes, tables_of
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from st_keytokens.evaluation.collections import Collection
from st_keytokens.evaluation.comparison import (
    Comparison,
    Evaluation,
    _commit,
    describe_environment,
    evaluate,
    run_comparison,
)
from st_keytokens.evaluation.measures import MEASURES, bootstrap_interval, holm, randomization_test
from st_keytokens.shared.document_files import Record

METHODS = ["dense", "bm25-words", "key-tokens", "key-tokens-lookup", "dense+bm25-words-rrf"]
AVERAGED = ["dense", "bm25-words", "key-tokens"]


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    return build_encoder(llama_embedder)


@pytest.fixture(scope="module")
def comparison(encoder) -> Comparison:
    return run_comparison(build_collection(), encoder, methods=METHODS)


class TestResults:
    def test_bm25_finds_what_shares_words(self, comparison):
        values = comparison.methods["bm25-words"].per_query
        assert comparison.collection.query_ids == ["wolves", "bread", "stars", "law", "nothing"]
        assert values["MRR@10"].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
        assert values["R@100"].tolist() == [0.5, 1.0, 0.5, 1.0, 0.0]
        assert comparison.methods["bm25-words"].means["MRR@10"] == pytest.approx(0.8)

    def test_differences_are_those_of_the_values(self, comparison):
        others = METHODS[1:]
        for measure in MEASURES:
            theirs = comparison.methods["dense"].per_query[measure]
            tests = [randomization_test(comparison.methods[name].per_query[measure], theirs) for name in others]
            for name, p, p_holm in zip(others, tests, holm(tests), strict=True):
                ours = comparison.methods[name].per_query[measure]
                found = comparison.methods[name].differences[measure]
                assert found.mean == pytest.approx(ours.mean() - theirs.mean())
                assert (found.p, found.p_holm) == (p, p_holm)
                assert (found.low, found.high) == bootstrap_interval(ours, theirs)
        assert comparison.methods["dense"].differences == {}

    def test_the_baseline_is_run_even_where_it_is_not_named(self, encoder):
        made = run_comparison(build_collection(), encoder, methods=["bm25-words"], baseline="bm25-tokens")
        assert list(made.methods) == ["bm25-tokens", "bm25-words"]
        assert made.baseline == "bm25-tokens"

    def test_same_again(self, comparison, encoder):
        again = run_comparison(build_collection(), encoder, methods=METHODS)
        for name, result in comparison.methods.items():
            assert again.methods[name].means == result.means
            assert again.methods[name].differences == result.differences

    def test_what_is_odd_is_logged(self, encoder, caplog):
        with caplog.at_level(logging.WARNING, logger="st_keytokens.evaluation.comparison"):
            run_comparison(build_collection(), encoder, methods=["dense"])
        assert "tiny: queries_empty: 1 (nothing)" in caplog.text
        assert "tiny: judgements_of_absent_documents: 1 (stars absent)" in caplog.text

    def test_refuses(self, encoder):
        with pytest.raises(ValueError, match="methods must be named once, got 'dense' twice"):
            run_comparison(build_collection(), encoder, methods=["dense", "dense"])
        with pytest.raises(ValueError, match=r"methods must be among dense, .*, got 'splade'"):
            run_comparison(build_collection(), encoder, methods=["splade"])
        with pytest.raises(ValueError, match=r"methods must be among dense, .*, got 'none'"):
            run_comparison(build_collection(), encoder, methods=["dense"], baseline="none")

    def test_without_bm25s_the_error_says_what_to_install(self, encoder, monkeypatch):
        monkeypatch.setitem(sys.modules, "bm25s", None)
        with pytest.raises(ImportError, match=r'needs bm25s: pip install "st-keytokens\[evaluation\]"'):
            run_comparison(build_collection(), encoder, methods=["dense+bm25-words-rrf"])

    @pytest.mark.parametrize(("module", "name"), [("rank_bm25", "rank-bm25"), ("ir_measures", "ir-measures")])
    def test_missing_packages_are_found_before_anything_is_embedded(self, encoder, monkeypatch, module, name):
        monkeypatch.setitem(sys.modules, module, None)
        passes = count_passes(encoder.model)
        with pytest.raises(ImportError, match=rf'needs {name}: pip install "st-keytokens\[evaluation\]"'):
            run_comparison(build_collection(), encoder, methods=["bm25-words"])
        assert passes == []

    def test_a_wrong_depth_is_found_before_anything_is_embedded(self, encoder):
        passes = count_passes(encoder.model)
        for name in ("depth", "fusion_depth"):
            with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
                run_comparison(build_collection(), encoder, methods=["dense"], **{name: 0})
        assert passes == []

    def test_cache_embeds_once_for_all_runs(self, encoder, tmp_path):
        passes = count_passes(encoder.model)  # the empty document needs none
        first = run_comparison(build_collection(), encoder, methods=["dense", "key-tokens"], cache=tmp_path)
        assert sum(passes) == 49 + 5
        again = run_comparison(build_collection(), encoder, methods=["dense", "promptreps"], cache=tmp_path)
        assert sum(passes) == 49 + 5
        assert again.methods["dense"].means == first.methods["dense"].means
        for part in ("encode_documents", "encode_queries"):  # what the passes took, not what reading takes
            assert again.seconds[part] == pytest.approx(first.seconds[part], abs=0.05)
        assert sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir()) == ["tiny-document", "tiny-query"]
        encoder.model.max_seq_length, before = 4, encoder.model.max_seq_length
        try:
            run_comparison(build_collection(), encoder, methods=["dense"], cache=tmp_path)
        finally:
            encoder.model.max_seq_length = before
        assert sum(passes) == 2 * (49 + 5)

    def test_models_with_a_projection_behind_pooling(self, llama_embedder):
        modules = [*copy.deepcopy(llama_embedder), Dense(32, 8), Normalize()]
        encoder = build_encoder(SentenceTransformer(modules=modules, device="cpu"))
        made = run_comparison(build_collection(), encoder, methods=["dense", "key-tokens"])
        assert made.settings["embedding_dimension"] == 8
        assert made.methods["dense"].run.index_bytes == 50 * 8 * 4
        assert made.methods["key-tokens"].means["MRR@10"] > 0


class TestWriting:
    def test_json_holds_everything_but_the_rankings(self, comparison):
        read = json.loads(comparison.to_json())
        assert list(read["methods"]) == METHODS
        lookup = read["methods"]["key-tokens-lookup"]
        assert lookup["per_query"]["MAP"] == comparison.methods["key-tokens-lookup"].per_query["MAP"].tolist()
        assert set(lookup["differences"]["nDCG@10"]) == {"mean", "low", "high", "p", "p_holm"}
        assert lookup["costs"]["forward_passes"] == 0
        assert "rankings" not in lookup["costs"]
        assert read["query_ids"] == comparison.collection.query_ids
        assert read["collection"]["report"]["documents_empty"] == {"count": 1, "examples": ["d49"]}
        assert read["settings"]["calibration"] == "collection"
        assert set(read["seconds"]) == {"encode_documents", "encode_queries", "calibrate"}
        environment = read["environment"]
        assert environment["packages"]["torch"] is not None
        assert environment["date"].endswith("+00:00")
        assert environment["device"] == "cpu"
        assert set(read["bm25_checks"]) == {"bm25-words"}
        assert read["bm25_checks"]["bm25-words"]["queries"] == 5

    def test_table_puts_losses_first(self, comparison):
        reached, costs = tables_of(comparison.to_markdown())
        assert set(reached) == set(METHODS) and list(reached) == list(costs)
        means = [comparison.methods[name].means["nDCG@10"] for name in reached]
        assert means == sorted(means)
        for name, row in reached.items():
            assert {measure: row[measure] for measure in MEASURES} == {
                measure: f"{value:.3f}" for measure, value in comparison.methods[name].means.items()
            }
        assert (reached["dense"]["difference"], reached["dense"]["p"]) == ("baseline", "")
        found = comparison.methods["bm25-words"].differences["nDCG@10"]
        assert reached["bm25-words"]["difference"] == f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        assert reached["bm25-words"]["p"] == f"{found.p_holm:.4f}"

    def test_table_of_costs(self, comparison):
        _, costs = tables_of(comparison.to_markdown())
        assert (costs["dense"]["passes/query"], costs["bm25-words"]["passes/query"]) == ("1", "0")
        assert (costs["dense"]["terms/document"], costs["dense"]["fuse, s"]) == ("", "")
        for name, row in costs.items():
            run = comparison.methods[name].run
            assert row["queries without terms"] == str(run.queries_without_terms)
            assert row["index MB"] == f"{run.index_bytes / 1e6:.1f}"
            for part in ("weigh documents", "index", "weigh queries", "score", "fuse"):
                seconds = run.seconds.get(part.replace(" ", "_"))
                assert row[f"{part}, s"] == ("" if seconds is None else f"{seconds:.2f}")
        assert costs["bm25-words"]["queries without terms"] == "1"

    def test_table_names_what_is_odd(self, comparison):
        text = comparison.to_markdown()
        assert "50 documents, 5 queries" in text
        assert "- queries empty: 1 (for instance nothing)" in text
        check = comparison.checks["bm25-words"]
        assert (
            f"rank-bm25 over the same terms as bm25-words, first 5 queries: nDCG@10 {check.rank_bm25['nDCG@10']:.3f} "
            f"(bm25s {check.bm25s['nDCG@10']:.3f}), {check.overlap:.1%} of bm25s' ten best documents in common."
        ) in text
        assert "- judgements of absent documents: 1 (for instance stars absent)" in text
        assert "- documents empty: 1 (for instance d49)" in text

    def test_time_for_a_query_holds_the_pass_only_where_there_is_one(self, comparison):
        _, rows = tables_of(comparison.to_markdown())
        for name in ("key-tokens", "key-tokens-lookup"):
            run = comparison.methods[name].run
            spent = run.seconds["weigh_queries"] + run.seconds["score"]
            spent += comparison.seconds["encode_queries"] * run.forward_passes
            assert float(rows[name]["ms/query"]) == pytest.approx(1000 * spent / 5, abs=0.006)

    def test_evaluate_reads_and_writes(self, comparison, encoder, tmp_path):
        folder = tmp_path / "small"
        (folder / "qrels").mkdir(parents=True)
        source = comparison.collection
        for name, ids, texts in (
            ("corpus", source.doc_ids, source.documents),
            ("queries", source.query_ids, source.queries),
        ):
            lines = [json.dumps({"_id": i, "text": text}) for i, text in zip(ids, texts, strict=True)]
            (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        judged = [f"{q}\t{d}\t{grade}" for q, docs in source.qrels.items() for d, grade in docs.items()]
        (folder / "qrels/dev.tsv").write_text("\n".join(judged), encoding="utf-8")
        made = evaluate(folder, encoder, split="dev", methods=METHODS, samples=100, output=tmp_path / "out")
        assert {name: result.means for name, result in made.methods.items()} == {
            name: pytest.approx(result.means) for name, result in comparison.methods.items()
        }
        assert (tmp_path / "out/small.json").read_text(encoding="utf-8") == made.to_json()
        assert (tmp_path / "out/small.md").read_text(encoding="utf-8") == made.to_markdown()
        assert json.loads(made.to_json())["settings"]["samples"] == 100


class TestValues:
    def test_values_are_numpy(self, comparison):
        for values in comparison.methods["dense"].per_query.values():
            assert values.dtype == np.float64 and values.shape == (5,)


@pytest.fixture(scope="module")
def comparisons(llama_embedder):
    """Of collections with five queries and with one, whose answer every method finds at once or never."""
    encoder = build_encoder(llama_embedder)
    documents = [Record("a", "Wolves hunt deer."), Record("b", "Bread of flour."), Record("c", "Stars of dust.")]
    single = Collection.build("single", documents, [Record("q", "wolves")], [("q", "a", 1)])
    return [
        run_comparison(collection, encoder, methods=AVERAGED, samples=2000)
        for collection in (build_collection(), single)
    ]


@pytest.fixture(scope="module")
def evaluation(comparisons):
    return Evaluation(comparisons)


class TestMacroAverage:
    def test_collections_count_alike(self, evaluation, comparisons):
        for name in AVERAGED:
            for measure in MEASURES:
                tiny, single = (comparison.methods[name].per_query[measure] for comparison in comparisons)
                expected = (tiny.sum() / 5 + single[0]) / 2
                assert evaluation.macro[name].means[measure] == pytest.approx(expected)

    def test_differences(self, evaluation, comparisons):
        assert evaluation.macro["dense"].differences == {}
        weights = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.5])
        for measure in MEASURES:
            values = {
                name: np.concatenate([comparison.methods[name].per_query[measure] for comparison in comparisons])
                for name in AVERAGED
            }
            tests = [
                randomization_test(values[name] * weights, values["dense"] * weights, samples=2000)
                for name in AVERAGED[1:]
            ]
            for name, p, p_holm in zip(AVERAGED[1:], tests, holm(tests), strict=True):
                found = evaluation.macro[name].differences[measure]
                assert found.mean == pytest.approx(((values[name] - values["dense"]) * weights).sum())
                means = evaluation.macro[name].means[measure], evaluation.macro["dense"].means[measure]
                assert found.mean == pytest.approx(means[0] - means[1])
                assert (found.p, found.p_holm) == (p, p_holm)
                assert found.low <= found.mean <= found.high

    def test_of_one_collection_is_its_own(self, comparisons):
        alone = Evaluation(comparisons[:1]).macro
        for name, result in comparisons[0].methods.items():
            assert alone[name].means == pytest.approx(result.means)
            for measure, difference in result.differences.items():
                found = alone[name].differences[measure]
                assert vars(found) == pytest.approx(vars(difference), abs=1e-12)


class TestEvaluation:
    def test_refuses(self, comparisons):
        with pytest.raises(ValueError, match=r"comparisons must be of one or more collections .* got \[\]"):
            Evaluation([])
        with pytest.raises(ValueError, match=r"of different names, got \['tiny', 'tiny'\]"):
            Evaluation([comparisons[0], comparisons[0]])
        other = dataclasses.replace(comparisons[1], baseline="bm25-words")
        with pytest.raises(ValueError, match="comparisons must have the same methods and baseline, got"):
            Evaluation([comparisons[0], other])


class TestEvaluationWriting:
    def test_json(self, evaluation, comparisons):
        read = json.loads(evaluation.to_json())
        assert list(read) == ["environment", "baseline", "macro_average", "collections"]
        assert read["macro_average"]["key-tokens"]["means"] == evaluation.macro["key-tokens"].means
        for found, comparison in zip(read["collections"], comparisons, strict=True):
            expected = json.loads(comparison.to_json())
            assert expected.pop("environment")["packages"] == read["environment"]["packages"]
            assert found == expected

    def test_tables(self, evaluation, comparisons):
        macro, *others = tables_of(evaluation.to_markdown())
        assert len(others) == 4
        means = [evaluation.macro[name].means["nDCG@10"] for name in macro]
        assert means == sorted(means)
        for name, row in macro.items():
            assert row["macro average"] == f"{evaluation.macro[name].means['nDCG@10']:.3f}"
            assert row["macro MAP"] == f"{evaluation.macro[name].means['MAP']:.3f}"
            for comparison in comparisons:
                expected = f"{comparison.methods[name].means['nDCG@10']:.3f}"
                assert row[comparison.collection.name] == expected
        assert macro["dense"]["difference"] == "baseline"
        for comparison in comparisons:
            assert comparison.to_markdown() in evaluation.to_markdown()

    def test_one_collection_has_no_average(self, comparisons):
        text = Evaluation(comparisons[:1]).to_markdown()
        assert "Macro" not in text
        assert text.startswith(comparisons[0].to_markdown())
        assert text.splitlines()[-1].startswith(f"Measured {comparisons[0].environment['date']} on cpu (")

    def test_save(self, evaluation, tmp_path):
        evaluation.save(tmp_path / "a.json")
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
        evaluation.save(tmp_path / "a.json", tmp_path / "a.md")
        assert (tmp_path / "a.json").read_text(encoding="utf-8") == evaluation.to_json()
        assert (tmp_path / "a.md").read_text(encoding="utf-8") == evaluation.to_markdown()


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with one commit of one package; and a function that runs git in it."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")

    def git(*words):
        options = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        found = subprocess.run(
            ["git", "-C", str(tmp_path), *options, *words], check=True, capture_output=True, text=True
        )
        return found.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return package, git


class TestCommit:
    def test_of_a_checkout(self, checkout):
        package, git = checkout
        assert _commit(package) == git("rev-parse", "HEAD")
        (package / "__init__.py").write_text("changed = True\n")
        assert _commit(package) == git("rev-parse", "HEAD") + "+"

    def test_installed_below_somebody_elses_checkout(self, checkout):
        package, _ = checkout
        other = package / "site-packages" / "other"
        other.mkdir(parents=True)
        (other / "__init__.py").write_text("")
        assert _commit(other) is None

    def test_no_checkout(self, tmp_path):
        (tmp_path / "__init__.py").write_text("")
        assert _commit(tmp_path) is None

    def test_no_git(self, checkout, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert _commit(checkout[0]) is None


class TestEnvironment:
    def test_is_ready_for_json(self):
        found = json.loads(json.dumps(describe_environment()))
        assert set(found) == {
            *("date", "commit", "python", "platform", "cpu", "cpu_count", "threads", "device", "packages")
        }
        assert found["packages"]["rank-bm25"] == version("rank-bm25")
