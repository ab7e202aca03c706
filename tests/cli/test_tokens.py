from __future__ import annotations

import pytest
from cli_samples import set_stdin

from st_keytokens import KeyTokenEncoder


class TestTokens:
    def test_same_as_the_library(self, rows, model):
        (row,) = rows("tokens", model, "The genome of a mouse", "--top-k", 5)
        expected = KeyTokenEncoder(str(model)).key_tokens("The genome of a mouse", 5)[0]
        assert len(expected) == 5
        assert row["id"] is None and row["text"] == "The genome of a mouse"
        assert [(token["token"], token["weight"]) for token in row["tokens"]] == expected

    def test_table(self, run, model):
        code, out, err = run("tokens", model, "The genome\nof a mouse", "Stars", "--top-k", 2)
        pairs = KeyTokenEncoder(str(model)).key_tokens(["The genome\nof a mouse", "Stars"], 2)
        expected = [
            "The genome of a mouse",
            "  weight  token",
            *(f"  {weight:.4f}  {token}" for token, weight in pairs[0]),
            "Stars",
            "  weight  token",
            *(f"  {weight:.4f}  {token}" for token, weight in pairs[1]),
        ]
        assert (code, out.splitlines(), err) == (0, expected, "")

    def test_options_between_texts(self, rows, model):
        found = rows("tokens", model, "one", "--top-k", 1, "two", "three")
        assert [row["text"] for row in found] == ["one", "two", "three"]
        assert [len(row["tokens"]) for row in found] == [1, 1, 1]

    def test_raw_is_before_correction(self, rows, model, index, calibrated, tmp_path):
        calibrated.save_pretrained(tmp_path)
        (plain,) = rows("tokens", model, "Stars form when clouds collapse.")
        (raw,) = rows("tokens", tmp_path, "Stars form when clouds collapse.", "--raw")
        (corrected,) = rows("tokens", tmp_path, "Stars form when clouds collapse.")
        assert raw["tokens"] == plain["tokens"]
        assert [t["token"] for t in corrected["tokens"]] != [t["token"] for t in raw["tokens"]]

    def test_input_file_and_ids(self, rows, model, corpus, sentences):
        found = rows("tokens", model, "--input", corpus, "--top-k", 3)
        assert [row["id"] for row in found] == [f"s{i}" for i in range(50)]
        expected = KeyTokenEncoder(str(model)).key_tokens(sentences[40], 3)[0]
        assert [
            (token["token"], pytest.approx(token["weight"], rel=1e-4)) for token in found[40]["tokens"]
        ] == expected

    def test_standard_input(self, rows, monkeypatch, model):
        set_stdin(monkeypatch, b"one\n\ntwo\n")
        assert [row["text"] for row in rows("tokens", model)] == ["one", "two"]
        set_stdin(monkeypatch, b'{"id": 3, "text": "three"}\n')
        assert [row["id"] for row in rows("tokens", model, "-")] == ["3"]

    def test_texts_are_wanted_once(self, fails, monkeypatch, model, corpus):
        assert "got both" in fails("tokens", model, "text", "--input", corpus)
        set_stdin(monkeypatch, b"", is_terminal=True)
        assert "texts must be given as arguments, with --input or on standard input" in fails("tokens", model)

    def test_input_without_texts_is_said(self, run, model, tmp_path):
        path = tmp_path / "empty.txt"
        path.touch()
        assert run("tokens", model, "--input", path) == (0, "", f"{path} holds no text.\n")
        assert run("tokens", model, "--input", path, "--quiet") == (0, "", "")

    def test_unusual_texts(self, rows, model):
        texts = ["", "   ", "a\x00b", "\ud800", "🧬", "שלום", "ge" * 5000]
        assert [row["text"] for row in rows("tokens", model, *texts, "--top-k", 1)] == texts

    def test_role_and_method(self, rows, model):
        (row,) = rows("tokens", model, "Stars", "--role", "query", "--method", "nie2025")
        expected = KeyTokenEncoder(str(model), method="nie2025").key_tokens("Stars", role="query")[0]
        assert [(token["token"], token["weight"]) for token in row["tokens"]] == expected
