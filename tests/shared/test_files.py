from __future__ import annotations

import os
import threading

import pytest
import safetensors.torch
import torch

from st_keytokens.shared.files import read_tensors, write_atomically


class TestWriteAtomically:
    def test_creates_and_replaces(self, tmp_path):
        path = tmp_path / "file.json"
        write_atomically(path, b"old")
        assert path.read_bytes() == b"old"
        write_atomically(path, b"")
        assert path.read_bytes() == b""
        assert os.listdir(tmp_path) == ["file.json"]

    def test_a_failed_write_leaves_the_old_content_and_nothing_else(self, tmp_path):
        path = tmp_path / "file.json"
        write_atomically(path, b"old")
        with pytest.raises(TypeError, match="bytes-like"):
            write_atomically(path, "no bytes")  # type: ignore[arg-type]
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["file.json"]

    def test_a_failed_replacement_too(self, tmp_path):
        (tmp_path / "folder").mkdir()
        with pytest.raises(IsADirectoryError):
            write_atomically(tmp_path / "folder", b"new")
        assert os.listdir(tmp_path) == ["folder"]

    def test_a_missing_directory(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            write_atomically(tmp_path / "missing" / "file.json", b"new")

    def test_readers_see_old_or_new_whatever_several_writers_do(self, tmp_path):
        path, size = tmp_path / "file.bin", 200_000
        write_atomically(path, b"a" * size)
        threads = [
            threading.Thread(target=lambda letter=letter: [write_atomically(path, letter * size) for _ in range(20)])
            for letter in (b"b", b"c")
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            content = path.read_bytes()
            assert len(content) == size
            assert len(set(content)) == 1
        for thread in threads:
            thread.join()
        assert path.read_bytes() in (b"b" * size, b"c" * size)
        assert os.listdir(tmp_path) == ["file.bin"]


class TestReadTensors:
    def test_tensors_and_metadata(self, tmp_path):
        path = tmp_path / "file.safetensors"
        tensors = {"a": torch.arange(3), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
        write_atomically(path, safetensors.torch.save(tensors, {"hash": "x"}))
        found, metadata = read_tensors(path)
        assert metadata == {"hash": "x"}
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)

    def test_tensors_outlive_the_file(self, tmp_path):
        path = tmp_path / "file.safetensors"
        safetensors.torch.save_file({"a": torch.arange(3)}, path)
        found, metadata = read_tensors(path)
        path.write_bytes(b"\0" * path.stat().st_size)
        assert found["a"].tolist() == [0, 1, 2]
        assert metadata == {}

    @pytest.mark.parametrize("cut", [0, 4, 20, -1])
    def test_a_truncated_file(self, tmp_path, cut):
        path = tmp_path / "file.safetensors"
        path.write_bytes(safetensors.torch.save({"a": torch.arange(3)})[:cut])
        with pytest.raises(ValueError, match=r"file\.safetensors must be a whole safetensors file, got an error"):
            read_tensors(path)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            read_tensors(tmp_path / "missing.safetensors")
