from __future__ import annotations

import json
import logging
import os
import re
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.utils
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from st_keytokens.decoding.checkpoint import CheckpointTensors
from st_keytokens.decoding.lm_head import LMHead

CONFIG = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "tie_word_embeddings": False}
COMMIT, SERVED_COMMIT = "b" * 40, "a" * 40


def header_size(file: Path) -> int:
    """Bytes of a safetensors file before its data."""
    return 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]


def checkpoint_tensors(dtype=torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.layers.0.mlp.weight": (300, 400), "lm_head.weight": (50, 8), "model.norm.weight": (8,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.fixture
def directory(tmp_path):
    """A checkpoint in one file; the big tensor that nobody needs is far larger than the rest."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(checkpoint_tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def sharded(tmp_path):
    """The same in two files, the LM head in the second."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    tensors = checkpoint_tensors()
    head = {"lm_head.weight": tensors.pop("lm_head.weight")}
    weight_map = {}
    for number, part in enumerate((tensors, head), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


class Server(ThreadingHTTPServer):
    """Serves one directory under any path; counts what it sends; misbehaves on request."""

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.directory = directory
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.supports_ranges = True
        self.token: str | None = None
        self.redirect: str | None = None
        self.failures: list[int | str] = []  # an HTTP status, or "drop": half of the answer and a closed connection
        self.sent: dict[str, int] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        file = server.directory / self.path.rpartition("/")[2]
        failure = server.failures.pop(0) if server.failures and file.suffix == ".safetensors" else None
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
            failure = 401
        if isinstance(failure, int) or not file.exists():
            self.send_error(failure or 404)
            return
        content, status, headers = file.read_bytes(), 200, {"X-Repo-Commit": SERVED_COMMIT}
        if server.supports_ranges and (wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            start, stop = int(wanted[1]), int(wanted[2]) + 1
            if start >= len(content):
                self.send_error(416)
                return
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
            content, status = content[start:stop], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        content = content[: len(content) // 2] if failure == "drop" else content
        for start in range(0, len(content), 4096):
            piece = content[start : start + 4096]
            server.sent[file.name] = server.sent.get(file.name, 0) + len(piece)
            try:
                self.wfile.write(piece)
            except OSError:  # the client has what it wants
                break
        self.close_connection = True

    def log_message(self, *args) -> None:
        """Nothing."""


@pytest.fixture
def serve(monkeypatch):
    """Starts servers; huggingface_hub's client is let out of its offline mode for them."""
    reset = getattr(huggingface_hub.utils, "close_session", None) or huggingface_hub.utils.reset_sessions
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    reset()
    servers = []

    def start(directory: Path, **behaviour) -> Server:
        server = Server(directory)
        vars(server).update(behaviour)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
    reset()


class TestLocal:
    @pytest.mark.parametrize("fixture", ["directory", "sharded"])
    def test_every_tensor(self, request, fixture):
        checkpoint = CheckpointTensors(request.getfixturevalue(fixture))
        expected = checkpoint_tensors()
        assert checkpoint.names == sorted(expected)
        for name, tensor in expected.items():
            assert checkpoint.shape(name) == tuple(tensor.shape)
            assert torch.equal(checkpoint.read(name), tensor)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_dtypes(self, tmp_path, dtype):
        expected = checkpoint_tensors(dtype)["lm_head.weight"]
        save_file({"lm_head.weight": expected}, tmp_path / "model.safetensors")
        checkpoint = CheckpointTensors(str(tmp_path))
        assert checkpoint.read("lm_head.weight").dtype == dtype
        assert torch.equal(checkpoint.read("lm_head.weight"), expected)
        assert torch.equal(checkpoint.read("lm_head.weight", dtype=torch.float64), expected.double())

    @pytest.mark.parametrize("shape", [(), (0, 3), (1, 1, 1)])
    def test_shapes(self, tmp_path, shape):
        expected = torch.full(shape, 2.0)
        save_file({"t": expected}, tmp_path / "model.safetensors")
        assert torch.equal(CheckpointTensors(tmp_path).read("t"), expected)

    def test_reads_header_and_tensor_only(self, directory):
        checkpoint = CheckpointTensors(directory)
        checkpoint.read("lm_head.weight")
        assert checkpoint.bytes_read == header_size(directory / "model.safetensors") + 50 * 8 * 4

    def test_read_is_logged(self, directory, caplog):
        with caplog.at_level(logging.INFO, "st_keytokens"):
            CheckpointTensors(directory).read("lm_head.weight")
        assert "Read lm_head.weight (50, 8), 1600 bytes, from" in caplog.text

    def test_tensors_larger_than_a_chunk(self, tmp_path):
        expected = torch.arange(700_000, dtype=torch.float32)
        save_file({"a": expected, "b": expected + 1}, tmp_path / "model.safetensors")
        checkpoint = CheckpointTensors(tmp_path)
        assert torch.equal(checkpoint.read("b"), expected + 1)

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.dictionaries(st.text(min_size=1, max_size=5), st.lists(st.integers(0, 4), max_size=3), min_size=1))
    def test_any_names_and_shapes(self, tmp_path, shapes):
        shapes.pop("__metadata__", None)
        tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
        save_file(tensors, tmp_path / "model.safetensors")
        checkpoint = CheckpointTensors(tmp_path)
        assert checkpoint.names == sorted(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.read(name), tensor)


class TestMalformed:
    def test_no_safetensors(self, tmp_path):
        (tmp_path / "pytorch_model.bin").write_bytes(b"0")
        message = r"must hold model.safetensors or model.safetensors.index.json, got .* but it has pytorch_model.bin"
        with pytest.raises(FileNotFoundError, match=message):
            CheckpointTensors(tmp_path)

    def test_empty_directory(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"but it has nothing\. Convert"):
            CheckpointTensors(tmp_path)

    def test_missing_tensor(self, directory):
        message = r"got 'embed_out.weight'\. It holds lm_head.weight, model.norm.weight, model.layers.0.mlp.weight\."
        with pytest.raises(ValueError, match=message):
            CheckpointTensors(directory).read("embed_out.weight")

    def test_missing_shard(self, sharded):
        (sharded / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors"):
            CheckpointTensors(sharded).read("lm_head.weight")

    @pytest.mark.parametrize("kept", [0, 5, 8, 60, -1, -4])
    def test_truncated(self, tmp_path, kept):
        save_file({"lm_head.weight": torch.ones(50, 8)}, tmp_path / "model.safetensors")
        content = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"must have at least \d+ bytes, but it is truncated"):
            CheckpointTensors(tmp_path).read("lm_head.weight")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (struct.pack("<Q", 1 << 40), r"got a header of 1099511627776 bytes"),
            (struct.pack("<Q", 0), r"got a header of 0 bytes"),
            (struct.pack("<Q", 2) + b"no", r"must be JSON, got an error: .* Check the file"),
            (struct.pack("<Q", 2) + b"[]", r"must hold a JSON object, got list"),
        ],
    )
    def test_header(self, tmp_path, content, message):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            CheckpointTensors(tmp_path)

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}, r"must be stored as F64.*, got F8_E4M3"),
            ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, r"bytes of its shape \(3,\) as F32, got 8"),
            ({"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}, r"bytes of its shape \(-2, -1\) as F32"),
            ({"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}, r"bytes of its shape \(-2,\) as F32, got -8"),
            ({"dtype": "F32", "shape": [0.5], "data_offsets": [0, 2]}, r"must describe 't' as safetensors files do"),
            ({"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}, r"must describe 't' as safetensors files do"),
            ({"dtype": "F32", "shape": [2]}, r"must describe 't' as safetensors files do"),
            (5, r"must describe 't' as safetensors files do"),
        ],
    )
    def test_entry(self, tmp_path, entry, message):
        header = json.dumps({"t": entry}).encode()
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
        with pytest.raises(ValueError, match=message):
            CheckpointTensors(tmp_path).read("t")

    @pytest.mark.parametrize(
        "file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x", "http://x/y", "", 3, None]
    )
    def test_index_points_elsewhere(self, tmp_path, file):
        index = {"weight_map": {"lm_head.weight": file}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="must map tensor names to names of files beside it"):
            CheckpointTensors(tmp_path)

    def test_index_without_map(self, tmp_path):
        (tmp_path / "model.safetensors.index.json").write_text("{}")
        with pytest.raises(ValueError, match="must map tensor names to names of files beside it"):
            CheckpointTensors(tmp_path)

    @pytest.mark.parametrize("name", ["/no/such/place", "a/b/c", "", "no spaces"])
    def test_no_place(self, name):
        with pytest.raises(ValueError, match=r"name_or_path must be a directory, an http.* or the id of a"):
            CheckpointTensors(name)


class TestUrl:
    def test_only_header_and_tensor_are_sent(self, directory, serve):
        server = serve(directory)
        head = LMHead.from_checkpoint(server.url)
        weight = checkpoint_tensors()["lm_head.weight"]
        assert torch.equal(head.weight, weight)
        x = torch.randn(3, 8)
        torch.testing.assert_close(head.logits(x), x @ weight.T)
        file = directory / "model.safetensors"
        assert server.sent == {
            "model.safetensors": header_size(file) + weight.nbytes,
            "config.json": len((directory / "config.json").read_bytes()),
        }
        assert server.sent["model.safetensors"] < file.stat().st_size / 100

    def test_only_the_shard_with_the_tensor_is_read(self, sharded, serve):
        server = serve(sharded)
        head = LMHead.from_checkpoint(f"{server.url}/some/folder/")
        weight = checkpoint_tensors()["lm_head.weight"]
        assert torch.equal(head.weight, weight)
        shard = "model-00002-of-00002.safetensors"
        assert server.sent.pop(shard) == header_size(sharded / shard) + weight.nbytes
        assert set(server.sent) == {"config.json", "model.safetensors.index.json"}
        assert {path.rpartition("/")[0] for path, _ in server.requests} == {"/some/folder"}

    def test_server_without_ranges(self, directory, serve):
        server = serve(directory, supports_ranges=False)
        assert torch.equal(
            CheckpointTensors(server.url).read("lm_head.weight"), checkpoint_tensors()["lm_head.weight"]
        )

    def test_server_without_ranges_warns_of_long_ways(self, tmp_path, serve, caplog):
        save_file({"a": torch.zeros(1 << 20), "b": torch.full((3,), 7.0)}, tmp_path / "model.safetensors")
        server = serve(tmp_path, supports_ranges=False)
        assert CheckpointTensors(server.url).read("b").tolist() == [7, 7, 7]
        assert "ignores range requests: reading 4 MB to reach a tensor" in caplog.text

    @pytest.mark.parametrize("failures", [[503], [429, 500], ["drop"], ["drop", "drop"], [503, "drop"]])
    def test_broken_connection_is_taken_up_again(self, directory, serve, failures):
        server = serve(directory)
        checkpoint = CheckpointTensors(server.url)
        server.failures = list(failures)
        assert torch.equal(checkpoint.read("lm_head.weight"), checkpoint_tensors()["lm_head.weight"])
        assert server.failures == []

    def test_what_came_before_a_drop_is_kept(self, tmp_path, serve):
        expected = torch.arange(1 << 20, dtype=torch.float32)
        save_file({"t": expected}, tmp_path / "model.safetensors")
        server = serve(tmp_path)
        checkpoint = CheckpointTensors(server.url)
        server.sent.clear()
        server.failures = ["drop", "drop", "drop"]  # each comes further than the one before
        assert torch.equal(checkpoint.read("t"), expected)
        assert server.failures == []
        assert expected.nbytes <= server.sent["model.safetensors"] < 1.3 * expected.nbytes

    def test_server_that_stays_broken(self, directory, serve):
        server = serve(directory, failures=[503] * 9)
        with pytest.raises(ConnectionError, match=r"must be reachable, got ConnectionError: HTTP status 503"):
            CheckpointTensors(server.url)
        assert len(server.failures) == 6

    @pytest.mark.parametrize("supports_ranges", [True, False])
    @pytest.mark.parametrize("kept", [0, 5, 100, -500_000, -4])
    def test_truncated(self, directory, serve, kept, supports_ranges):
        file = directory / "model.safetensors"
        file.write_bytes(file.read_bytes()[:kept])
        server = serve(directory, supports_ranges=supports_ranges)
        with pytest.raises(ValueError, match=r"must have at least \d+ bytes, but it is truncated"):
            CheckpointTensors(server.url).read("model.norm.weight")

    def test_nothing_there(self, tmp_path, serve):
        with pytest.raises(FileNotFoundError, match=r"name_or_path must hold model.safetensors or .*, got 'http"):
            CheckpointTensors(serve(tmp_path).url)

    def test_unreachable(self, serve, tmp_path):
        server = serve(tmp_path)
        server.server_close()
        with pytest.raises(ConnectionError, match=r"model.safetensors.index.json must be reachable, got .*Connect"):
            CheckpointTensors(server.url)

    def test_offline_mode(self, directory, serve, monkeypatch):
        server = serve(directory)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        (getattr(huggingface_hub.utils, "close_session", None) or huggingface_hub.utils.reset_sessions)()
        with pytest.raises(ConnectionError, match="offline mode is enabled"):
            CheckpointTensors(server.url)
        assert server.requests == []

    def test_redirect_keeps_range_but_not_token(self, directory, serve):
        storage = serve(directory)
        server = serve(directory, redirect=storage.url)
        checkpoint = CheckpointTensors(server.url, token="mine")
        assert torch.equal(checkpoint.read("lm_head.weight"), checkpoint_tensors()["lm_head.weight"])
        assert all(headers["authorization"] == "Bearer mine" for _, headers in server.requests)
        assert all("authorization" not in headers for _, headers in storage.requests)
        assert storage.sent == {"model.safetensors": checkpoint.bytes_read}

    def test_token_is_sent_only_where_given(self, directory, serve, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        server = serve(directory)
        CheckpointTensors(server.url)
        CheckpointTensors(server.url, token=True)
        assert all("authorization" not in headers for _, headers in server.requests)
        server.token = "mine"
        CheckpointTensors(server.url, token="mine").read("lm_head.weight")
        with pytest.raises(PermissionError, match=r"must be readable, got HTTP status 401\. Check the name"):
            CheckpointTensors(server.url)


class TestHub:
    @pytest.fixture
    def cache(self, directory, tmp_path, monkeypatch):
        """Puts files of the checkpoint into a cache of huggingface_hub."""

        def fill(*files: str) -> None:
            repo = tmp_path / "cache" / "models--some--model"
            snapshot, absent = repo / "snapshots" / COMMIT, repo / ".no_exist" / COMMIT
            for folder in (repo / "refs", snapshot, absent):
                folder.mkdir(parents=True)
            (repo / "refs" / "main").write_text(COMMIT)
            (absent / "model.safetensors.index.json").touch()
            for file in files:
                (snapshot / file).write_bytes((directory / file).read_bytes())
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

        return fill

    def test_endpoint_and_token_at_one_commit(self, directory, serve, tmp_path):
        server = serve(directory, token="hf_mine")
        code = (
            "import json; from st_keytokens import LMHead\n"
            "head = LMHead.from_checkpoint('some/model', token='hf_mine', revision='v1')\n"
            "print(json.dumps(head.weight.tolist()))"
        )
        place = {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, **place}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert torch.equal(torch.tensor(json.loads(done.stdout)), checkpoint_tensors()["lm_head.weight"])
        prefix = "/some/model/resolve/"
        paths = [path.removeprefix(prefix) for path, _ in server.requests if path.startswith(prefix)]
        assert paths[:2] == ["v1/model.safetensors.index.json", "v1/model.safetensors"]
        assert set(paths[2:]) == {f"{SERVED_COMMIT}/config.json", f"{SERVED_COMMIT}/model.safetensors"}
        assert server.sent["model.safetensors"] == header_size(directory / "model.safetensors") + 50 * 8 * 4

    def test_cached_snapshot_needs_no_network(self, cache):
        cache("config.json", "model.safetensors")
        head = LMHead.from_checkpoint("some/model")
        assert torch.equal(head.weight, checkpoint_tensors()["lm_head.weight"])

    def test_another_cache_folder(self, cache, tmp_path, monkeypatch):
        cache("config.json", "model.safetensors")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
        with pytest.raises(ConnectionError, match="offline mode is enabled"):
            LMHead.from_checkpoint("some/model")
        head = LMHead.from_checkpoint("some/model", cache_folder=tmp_path / "cache")
        assert torch.equal(head.weight, checkpoint_tensors()["lm_head.weight"])

    def test_the_rest_of_a_cached_snapshot_is_of_its_commit(self, cache, directory, serve, monkeypatch):
        cache("config.json")
        server = serve(directory)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in ("constants", "file_download"):
            monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        head = LMHead.from_checkpoint("some/model")
        assert torch.equal(head.weight, checkpoint_tensors()["lm_head.weight"])
        assert {path for path, _ in server.requests} == {f"/some/model/resolve/{COMMIT}/model.safetensors"}

    def test_nothing_cached_and_offline(self, cache):
        cache("config.json")
        with pytest.raises(
            ConnectionError, match=r"model.safetensors must be reachable, got .*offline mode is enabled"
        ):
            LMHead.from_checkpoint("some/model")
