"""What the tests of the command line write, type and expect."""

from __future__ import annotations

import io
import json
import sys
import types

WHEAT = "Farmers plant wheat in autumn"  # sentence s38


def write_jsonl(path, objects):
    path.write_text("".join(json.dumps(value) + "\n" for value in objects), encoding="utf-8")
    return path


def set_stdin(monkeypatch, content: bytes, is_terminal: bool = False) -> None:
    stdin = types.SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: is_terminal)
    monkeypatch.setattr(sys, "stdin", stdin)


def texts(corpus):
    return [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
