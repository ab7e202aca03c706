"""Key terms for an embedder behind an API: here a local server that speaks the embeddings API of many providers.

    pip install -c constraints.txt -e . && python examples/any_embedder.py

Nothing but ``embed`` knows of the server. Each text is sent once, to calibrate and to index; calibrating sends up to
600 short ones more, to learn how far the embedder can be trusted; the lookup sends nothing.
"""

from __future__ import annotations

import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_keytokens import HybridIndex, KeyTokenEncoder

EXAMPLES = Path(__file__).resolve().parent
ABSTRACTS = EXAMPLES / "data" / "arxiv-abstracts" / "corpus.jsonl"
QUESTION = "neural networks that parse images"


class Provider(BaseHTTPRequestHandler):
    """Answers as a provider of embeddings does."""

    model = SentenceTransformer(str(EXAMPLES / "tiny-embedder" / "embedder"), device="cpu")
    texts = 0

    def do_POST(self) -> None:
        """Embeds ``input``."""
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        type(self).texts += len(texts)
        rows = [{"index": i, "embedding": row} for i, row in enumerate(self.model.encode(texts).tolist())]
        answer = json.dumps({"data": rows}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def embed(texts: list[str]) -> list[list[float]]:
        content = json.dumps({"model": "tiny-embedder", "input": texts}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/v1/embeddings", content) as answer:
            return [row["embedding"] for row in json.load(answer)["data"]]

    with ABSTRACTS.open(encoding="utf-8") as lines:
        texts = [json.loads(next(lines))["text"] for _ in range(300)]

    encoder = KeyTokenEncoder(embed)
    encoder.calibrate(texts, show_progress_bar=False)
    index = HybridIndex(encoder=encoder)
    index.add(texts=texts)
    hits = index.search(QUESTION, top_k=3)
    for hit in hits:
        words = [match.token for match in index.explain(QUESTION, hit)[:4]]
        print(f"{hit.score:.2f}  {hit.text[:60]}  {words}")
    sent = Provider.texts
    index.search(encoder.encode_query(QUESTION, query="lookup"), mode="sparse")
    print(f"{sent} texts were embedded, {len(texts)} of them documents; {Provider.texts - sent} by a lookup.")
    server.shutdown()


if __name__ == "__main__":
    main()
