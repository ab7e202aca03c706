from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from st_keytokens import KeyTokenEncoder
from st_keytokens.analysis.html_pages import HtmlView, bar_table, escaped, html_report, html_view, literal_spans
from st_keytokens.analysis.pair import explain_pair, explain_sparse_pair
from st_keytokens.analysis.plots import plot_token_bars
from st_keytokens.shared.markdown import markdown_table

A = "Stars form when clouds of gas and dust collapse under their own gravity."
B = "The telescope measured the light of distant galaxies and of nearby stars."
ODD = [
    "<script>alert(1)</script> stars & \"quotes\" 'n' </p></div><img src=x onerror=alert(2)>",
    "银河系中的恒星 stars",
    "مرحبا بالعالم stars \u202e reversed",
    "👩‍🔬 measures 🌍 stars",
    "lone \ud800 surrogate and control \x00\x1b characters\r\n\tstars",
    "  stars   with   space  ",
]
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "article", "section", "div", "h1", "h2", "p", "mark", "sup"),
    *("bdi", "table", "caption", "thead", "tbody", "tr", "th", "td", "span", "i", "details", "summary", "img"),
}
VOID = {"meta", "img"}


class Page(HTMLParser):
    """A page taken apart; refuses tags that do not fit together."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict]] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert tag in ALLOWED
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append((tuple(f"{tag}.{attributes.get('class', '')}" for tag, attributes in self.open), data))

    def words(self) -> list[str]:
        """The texts that are shown, without the numbers of shared tokens."""
        found: list[str] = []
        for path, data in self.texts:
            if "p.words" in path and not any(step.startswith("sup") for step in path):
                found.append(data)
        return found


@pytest.fixture(scope="module")
def llama(llama_embedder):
    return KeyTokenEncoder(llama_embedder)


@pytest.fixture(scope="module", params=["llama", "bert"])
def encoder(request, llama, bert_embedder):
    if request.param == "llama":
        return llama
    from st_keytokens import KeyTokenHead, LMHead

    return KeyTokenEncoder(bert_embedder, head=KeyTokenHead(LMHead.from_input_embeddings(bert_embedder[0].auto_model)))


class TestLiteralSpans:
    @pytest.mark.parametrize("text", [A, "Stars", *(text.replace("\ud800", "\ufffd") for text in ODD)])
    def test_they_are_the_literal_terms_in_order(self, encoder, text):
        spans = literal_spans(encoder, text)
        assert [term for span in spans for term in span.terms] == encoder.literal_terms([text])[0].tolist()
        end = 0
        for span in spans:
            part = text[span.start : span.end]
            assert span.start >= end and part == part.strip() and part
            end = span.end

    def test_the_characters_are_those_of_the_token(self, encoder):
        for span in literal_spans(encoder, A):
            strings = [encoder.vocabulary.strings[term].removeprefix("##") for term in span.terms]
            assert "".join(strings).lower() == A[span.start : span.end].lower()

    def test_none_without_a_text_or_a_fast_tokenizer(self, encoder):
        assert literal_spans(encoder, " \n") == []
        slow = SimpleNamespace(model=SimpleNamespace(tokenizer=object()))
        assert literal_spans(slow, A) == []


class TestEscaping:
    @pytest.mark.parametrize("text", ODD)
    def test_the_text_is_shown_as_it_is(self, encoder, text):
        page = Page(str(html_view(encoder, text)))
        shown = re.sub("[\ud800-\udfff\x00\x1b\r]", "\ufffd", text)
        assert "".join(page.words()) == shown

    def test_nothing_of_it_becomes_markup(self, llama):
        for content in (str(html_view(llama, ODD[0], ODD[1])), html_view(llama, ODD[0])._repr_html_()):
            page = Page(content)
            assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
            assert "script" not in {tag for tag, _ in page.tags} and "<script" not in content

    def test_titles_tables_and_pictures(self):
        evil = '"><script>alert(1)</script>|x'
        report = html_report(evil, [(evil, markdown_table([evil], [[evil], ["\\"]]))])
        page = Page(str(report))
        assert [data for path, data in page.texts if path and path[-1].startswith("td")] == [evil, "\\"]
        assert [data for path, data in page.texts if path[-1:] == ("title.",)] == [evil]
        assert escaped("\x7f\ud800\n") == "\ufffd\ufffd\n"


class TestPage:
    def test_it_needs_nothing_else(self, llama):
        content = str(html_view(llama, A, B))
        assert content.startswith("<!doctype html>") and '<meta charset="utf-8">' in content
        assert "default-src 'none'" in content
        assert not re.search(r"https?:|//|@import|url\(|<link|<iframe|\ssrc=", content)

    def test_light_and_dark(self, llama):
        content = html_view(llama, A)._repr_html_()
        assert "prefers-color-scheme:dark" in content and "<html" not in content

    def test_saved(self, llama, tmp_path):
        view = html_view(llama, ODD[4])
        view.save(tmp_path / "view.html")
        assert (tmp_path / "view.html").read_bytes().decode("utf-8") == str(view)
        assert str(view) == str(html_view(llama, ODD[4]))  # the same each time

    def test_what_is_seen_is_also_said(self, llama):
        page = Page(str(html_view(llama, A, B)))
        for tag, attributes in page.tags:
            if attributes.get("class") == "bar":
                assert tag == "span"
            if attributes.get("class") == "words":
                assert attributes["dir"] == "auto" and attributes["lang"] == ""
        headed = [attributes for tag, attributes in page.tags if tag == "th"]
        assert headed and all("scope" in attributes for attributes in headed)
        assert [tag for tag, _ in page.tags].count("caption") == [tag for tag, _ in page.tags].count("table")


class TestContent:
    def test_the_bars_are_the_key_tokens(self, llama):
        page = Page(str(html_view(llama, A, top_k=5)))
        (expected,) = llama.key_tokens([A], 5)
        tokens = [data for path, data in page.texts if "th.token" in path and path[-1] == "bdi."]
        weights = [data for path, data in page.texts if path[-1:] == ("td.number",)]
        assert tokens[:5] == [token for token, _ in expected]
        assert weights[:5] == [f"{weight:.3f}" for _, weight in expected]

    @pytest.mark.parametrize("shading", ["decoded", "sparse"])
    def test_the_shading_is_the_weight(self, llama, shading):
        page = Page(str(html_view(llama, A, shading=shading)))
        spans = literal_spans(llama, A)
        if shading == "sparse":
            weights = llama.encode([A]).sparse.to_dicts()[0]
        else:
            ids, found = llama.head.decode(llama.model.encode([A], convert_to_tensor=True).detach())
            weights = {int(t): float(w) for t, w in zip(ids[0].tolist(), found[0].tolist(), strict=True) if w > 0}
        of_spans = [max(weights.get(term, 0.0) for term in span.terms) for span in spans]
        shades = [float(attributes["style"][4:]) for tag, attributes in page.tags if tag == "mark"]
        assert shades == pytest.approx([w / max(of_spans) for w in of_spans if w > 0], abs=6e-4)

    def test_shared_tokens_have_one_number_in_both(self, llama):
        content = str(html_view(llama, A, B))
        columns = [Page(part) for part in re.findall(r"<section><h2>(?:First|Second) text.*?</section>", content)]
        numbers = []
        for page in columns:
            found = [data for path, data in page.texts if path and path[-1].startswith("sup.")]
            numbers.append(set(found))
        assert len(columns) == 2 and numbers[0] == numbers[1] != set()

    def test_the_pair_is_explained(self, llama):
        content = str(html_view(llama, A, B, top_k=4))
        dense, sparse = explain_pair(llama, A, B, top_k=4), explain_sparse_pair(llama, A, B)
        assert f"Dense similarity: cosine {dense.value:.3f}" in content
        assert f"Sparse score: {sparse.score:.3f}" in content
        for share in dense.tokens:
            assert f"{share.contribution:.3f}" in content

    def test_a_text_without_terms(self, llama):
        content = str(html_view(llama, " ", A))
        assert "No key tokens." in content and "The sparse vectors share no term." in content
        Page(content)

    def test_bars_of_both_signs(self):
        page = Page(bar_table("x", [("up", 3.0, ""), ("down", -1.0, "")]))
        bars = [attributes for tag, attributes in page.tags if tag == "i"]
        assert [bar["style"] for bar in bars] == ["width:25.00%", "width:75.00%", "width:0.00%", "width:25.00%"]
        assert bars[3]["class"] == "against"

    def test_refused(self, llama):
        with pytest.raises(TypeError, match=r"texts must be a string or a sequence of strings, got int"):
            html_view(llama, 3)
        with pytest.raises(ValueError, match=r"shading must be one of 'decoded', 'sparse', got 'all'"):
            html_view(llama, A, shading="all")
        with pytest.raises(ValueError, match=r"top_k must be >= 1, got 0"):
            html_view(llama, A, top_k=0)

    def test_a_notebook_shows_it(self):
        assert HtmlView("A & B", "<p>x</p>")._repr_html_().endswith("<h1>A &amp; B</h1><p>x</p></article>")

    def test_pictures_are_part_of_the_page(self):
        pytest.importorskip("matplotlib", reason="pictures need the extra analysis")
        content = str(html_report("t", [], [("a & b", plot_token_bars([("a", 1.0)]))]))
        assert '<img alt="a &amp; b" src="data:image/svg+xml;base64,' in content


class TestNames:
    def test_a_function_of_the_package_is_no_module(self):
        code = "from st_keytokens.analysis import HtmlView, html_view; html_view.__call__; HtmlView('t', '').save"
        subprocess.run([sys.executable, "-c", code], check=True)
