"""A small HTTP server that keeps the documented contracts of OpenSearch and Elasticsearch, as far as they are used.

It checks documents against mappings, keeps weights in the servers' number formats, shows what was written after a
refresh only, really ranks, and can be told to refuse requests or single documents. What is approximate in a server
(HNSW, clusters of postings) is exact here.
"""

from __future__ import annotations

import json
import struct
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

TINY = float(np.finfo(np.float32).tiny)


class ServerError(Exception):
    def __init__(self, status, kind, reason):
        super().__init__(reason)
        self.status, self.kind, self.reason = status, kind, reason

    def body(self):
        cause = {"type": self.kind, "reason": self.reason}
        return {"error": {**cause, "root_cause": [cause]}, "status": self.status}


def feature_value(weight):
    """What FeatureField keeps: the upper 17 bits of a float32, of which 9 are significant."""
    if not np.isfinite(weight) or np.float32(weight) < TINY:
        raise ServerError(400, "illegal_argument_exception", f"featureValue must be a positive normal float: {weight}")
    (bits,) = struct.unpack("<I", struct.pack("<f", weight))
    return struct.unpack("<f", struct.pack("<I", bits >> 15 << 15))[0]


def byte_value(weight, ceiling):
    return int(np.float32(min(max(weight, 0.0), ceiling)) * 255 / np.float32(ceiling) + 0.5)


class Document:
    """A document, parsed by a mapping: ``fields`` has what filters look at."""

    def __init__(self, source, mappings, flavour):
        self.source, self.fields, self.flavour = source, {}, flavour
        self.sparse, self.raw, self.dense = {}, {}, None
        self.templates = [next(iter(template.values())) for template in mappings.get("dynamic_templates", [])]
        for name, value in source.items():
            field = mappings.get("properties", {}).get(name)
            if field is None:
                raise ServerError(400, "strict_dynamic_mapping_exception", f"introducing of [{name}] is not allowed")
            self.parse(name, value, field)

    def parse(self, name, value, field):
        kind = field["type"]
        if kind in ("sparse_vector", "rank_features"):
            if not isinstance(value, dict):
                raise ServerError(400, "mapper_parsing_exception", f"[{name}] must be a json object")
            for token, weight in value.items():
                if "." in token and self.flavour == "elasticsearch":
                    raise ServerError(400, "mapper_parsing_exception", f"no dots in feature names, found [{token}]")
                if kind == "sparse_vector" and self.flavour == "opensearch":
                    int(token)
                self.sparse[token], self.raw[token] = feature_value(weight), weight
        elif kind in ("dense_vector", "knn_vector"):
            if len(value) != field.get("dims", field.get("dimension")):
                raise ServerError(400, "mapper_parsing_exception", f"[{name}] has {len(value)} dimensions")
            self.dense = np.array(value, np.float32)
        elif kind == "object":
            if field.get("enabled", True):
                for key, part in value.items():
                    self.parse_dynamic(f"{name}.{key}", part)
        elif isinstance(value, dict):
            raise ServerError(400, "mapper_parsing_exception", f"failed to parse field [{name}] of type [{kind}]")
        elif field.get("index", True):
            values = value if isinstance(value, list) else [value]
            kept = [v for v in values if not isinstance(v, str) or len(v) <= field.get("ignore_above", 8191)]
            self.fields[name] = [float(v) if kind == "double" else v for v in kept]

    def parse_dynamic(self, path, value):
        parent, _, key = path.partition(".")
        if not key.strip() or "." in key:
            raise ServerError(400, "mapper_parsing_exception", f"field name is blank or leads into objects: [{path}]")
        for template in self.templates:
            if template["path_match"] == f"{parent}.*":
                self.parse(path, value, template["mapping"])
                return
        raise AssertionError(f"no template for {path}")


def matches(query, id, document):
    (kind, body), *more = query.items()
    assert not more, query
    if kind == "bool":
        should = body.get("should", [])
        return (
            all(matches(part, id, document) for part in [*body.get("filter", []), *body.get("must", [])])
            and not any(matches(part, id, document) for part in body.get("must_not", []))
            and (not should or any(matches(part, id, document) for part in should))
        )
    if kind in ("match_none", "match_all"):
        return kind == "match_all"
    if kind == "ids":
        return id in body["values"]
    ((field, wanted),) = body.items()
    values = document.fields.get(field, [])
    if kind == "term":
        return wanted in values
    if kind == "terms":
        return any(value in wanted for value in values)
    assert kind == "range", query

    def key(value):
        return value.encode() if isinstance(value, str) else value

    compare = {"gt": "__gt__", "gte": "__ge__", "lt": "__lt__", "lte": "__le__"}
    return any(all(getattr(key(v), compare[op])(key(bound)) for op, bound in wanted.items()) for v in values)


class Index:
    def __init__(self, flavour, settings, mappings):
        self.flavour, self.settings, self.mappings = flavour, settings.get("index", {}), mappings
        self.documents, self.visible = {}, {}
        field = mappings.get("properties", {}).get("sparse", {})
        if flavour == "opensearch" and field.get("type") == "sparse_vector" and not self.settings.get("sparse"):
            raise ServerError(400, "illegal_argument_exception", "index.sparse must be true")
        if flavour == "opensearch" and "dense" in mappings.get("properties", {}) and not self.settings.get("knn"):
            raise ServerError(400, "illegal_argument_exception", "index.knn must be true")

    def search(self, body):
        if body.get("size", 10) > 10_000:
            raise ServerError(400, "illegal_argument_exception", "Result window is too large")
        scores = self.scores(body["query"]) if "query" in body else self.knn(body["knn"], body["knn"]["query_vector"])
        order = sorted(scores, key=lambda id: -scores[id])[: body.get("size", 10)]
        hits = []
        for id in order:
            source = self.visible[id].source
            kept = {name: value for name, value in source.items() if name in body.get("_source", source)}
            hits.append({"_id": id, "_score": scores[id], "_source": kept})
        return {
            "took": 1,
            "timed_out": False,
            "_shards": {"total": 1, "successful": 1, "skipped": 0, "failed": 0},
            "hits": {"max_score": hits[0]["_score"] if hits else None, "hits": hits},
            "status": 200,
        }

    def scores(self, query):
        ((kind, body),) = query.items()
        if kind == "bool":
            (must,) = body["must"]
            filters = {"bool": {"filter": body.get("filter", [])}}
            found = self.scores(must)
            return {id: score for id, score in found.items() if matches(filters, id, self.visible[id])}
        if kind == "sparse_vector":
            assert self.flavour == "elasticsearch"
            field = self.mappings["properties"][body["field"]]
            is_pruned = body.get("prune", field.get("index_options", {}).get("prune", True))
            return self.dot(self.pruned(body["query_vector"]) if is_pruned else body["query_vector"])
        if kind == "neural_sparse":
            assert self.flavour == "opensearch"
            ((name, query),) = body.items()
            return self.neural_sparse(self.mappings["properties"][name], query)
        if kind == "knn":
            assert self.flavour == "opensearch"
            return self.knn(body["dense"], body["dense"]["vector"])
        raise ServerError(400, "parsing_exception", f"unknown query [{kind}]")

    def dot(self, query):
        found = {}
        for id, document in self.visible.items():
            shared = [weight * document.sparse[token] for token, weight in query.items() if token in document.sparse]
            if shared:
                found[id] = float(np.float32(sum(shared)))
        return found

    def pruned(self, query):
        """Without tokens that are light in the query and more than five times as frequent as the average."""
        frequencies = Counter(token for document in self.visible.values() for token in document.sparse)
        average = sum(frequencies.values()) / max(1, len(frequencies))
        light = 0.4 * max(query.values())
        return {t: w for t, w in query.items() if frequencies[t] <= 5 * average or w >= light}

    def neural_sparse(self, field, query):
        tokens = query["query_tokens"]
        for weight in tokens.values():
            if not 0 < weight <= 64:
                raise ServerError(400, "illegal_argument_exception", f"weight must be in (0, 64.0], got: {weight}")
        if len(tokens) > 1024:
            raise ServerError(400, "too_many_clauses", "maxClauseCount is set to 1024")
        method = query.get("method_parameters")
        if method is None or field["type"] != "sparse_vector":
            return self.dot(tokens)
        filter = method.get("filter", {"bool": {}})
        parameters = field["method"]["parameters"]
        if len(self.visible) < parameters.get("approximate_threshold", 1_000_000):
            found = self.dot(tokens)
        else:
            found = self.quantized(tokens, parameters, method)
        kept = {id: score for id, score in found.items() if matches(filter, id, self.visible[id])}
        return {id: kept[id] for id in sorted(kept, key=lambda id: -kept[id])[: method.get("k", 10)]}

    def quantized(self, tokens, parameters, method):
        """Bytes under 15 bits of the token's number; candidates have one of the heaviest tokens of the query."""
        ingest = parameters.get("quantization_ceiling_ingest", 3.0)
        search = parameters.get("quantization_ceiling_search", 16.0)

        def as_bytes(weights, ceiling):
            folded = {}
            for token, weight in weights.items():
                number = int(token) % 32_768
                folded[number] = max(folded.get(number, 0), byte_value(weight, ceiling))
            return folded

        query = as_bytes(tokens, search)
        heaviest = sorted(query, key=lambda token: -query[token])[: method.get("top_n", 10)]
        found = {}
        for id, document in self.visible.items():
            weights = as_bytes(document.raw, ingest)
            if any(token in weights for token in heaviest):
                score = sum(weight * weights.get(token, 0) for token, weight in query.items())
                found[id] = float(np.float32(score * ingest * search / 255 / 255))
        return found

    def knn(self, body, vector):
        filter = body.get("filter", {"bool": {}})
        found = {}
        for id, document in self.visible.items():
            if document.dense is not None and matches(filter, id, document):
                product = float(np.dot(document.dense, np.array(vector, np.float32)))
                found[id] = float(np.float32(product + 1 if product >= 0 else 1 / (1 - product)))
        return {id: found[id] for id in sorted(found, key=lambda id: -found[id])[: body["k"]]}


class FakeSearchServer:
    """Use as a context manager. ``refuse_requests`` and ``refuse_items`` say how many of the next are answered 429."""

    def __init__(self, flavour):
        self.flavour = flavour
        self.indices, self.requests = {}, []
        self.refuse_requests = self.refuse_items = self.drop_connections = 0
        self.max_content_length = 100 << 20
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"fake": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, method, path, lines):
        """The body of an answer."""
        name, _, action = unquote(path).strip("/").partition("/")
        if method == "PUT" and not action:
            if name in self.indices:
                raise ServerError(400, "resource_already_exists_exception", f"index [{name}] already exists")
            body = lines[0] if lines else {}
            self.indices[name] = Index(self.flavour, body.get("settings", {}), body.get("mappings", {}))
            return {"acknowledged": True, "shards_acknowledged": True, "index": name}
        if name not in self.indices:
            raise ServerError(404, "index_not_found_exception", f"no such index [{name}]")
        index = self.indices[name]
        if method == "DELETE":
            del self.indices[name]
            return {"acknowledged": True}
        if action == "_mapping":
            return {name: {"mappings": index.mappings}}
        if action == "_refresh":
            index.visible = dict(index.documents)
            return {"_shards": {"total": 1, "successful": 1, "failed": 0}}
        if action == "_count":
            return {"count": len(index.visible), "_shards": {"total": 1, "successful": 1, "failed": 0}}
        if action == "_search":
            return index.search(lines[0])
        if action == "_msearch":
            return {"took": 1, "responses": [self.one(lambda body=body: index.search(body)) for body in lines[1::2]]}
        assert action == "_bulk", path
        items, queue = [], iter(lines)
        for line in queue:
            ((kind, header),) = line.items()
            source = next(queue) if kind == "index" else None
            result = self.one(lambda header=header, source=source: self.write(index, header["_id"], source))
            items.append({kind: {"_id": header["_id"], **result}})
        return {"took": 1, "errors": any("error" in next(iter(item.values())) for item in items), "items": items}

    def write(self, index, id, source):
        if not 0 < len(id.encode()) <= 512:
            raise ServerError(400, "illegal_argument_exception", f"id must be 1 to 512 bytes, was {len(id.encode())}")
        if self.refuse_items:
            self.refuse_items -= 1
            raise ServerError(429, "rejected_execution_exception", "rejected execution of coordinating operation")
        is_there = id in index.documents
        if source is None:
            index.documents.pop(id, None)
            return {"result": "deleted" if is_there else "not_found", "status": 200 if is_there else 404}
        index.documents[id] = Document(source, index.mappings, self.flavour)
        return {"result": "updated" if is_there else "created", "status": 200 if is_there else 201}

    @staticmethod
    def one(function):
        try:
            return function()
        except ServerError as err:
            return err.body()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        fake = self.fake
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length)
        with fake.lock:
            parts = urlsplit(self.path)
            fake.requests.append((self.command, parts.path, parse_qs(parts.query), length))
            if fake.drop_connections:
                fake.drop_connections -= 1
                self.close_connection = True
                return
            try:
                if length > fake.max_content_length:
                    raise ServerError(413, "content_too_long", "entity content is too long")
                if fake.refuse_requests:
                    fake.refuse_requests -= 1
                    raise ServerError(429, "circuit_breaking_exception", "[parent] Data too large")
                lines = [json.loads(line) for line in data.decode().split("\n") if line.strip()]
                status, body = 200, fake.answer(self.command, parts.path, lines)
            except ServerError as err:
                status, body = err.status, err.body()
        encoded = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        if fake.flavour == "elasticsearch":
            self.send_header("X-Elastic-Product", "Elasticsearch")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(encoded)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any

    def log_message(self, *arguments):
        pass
