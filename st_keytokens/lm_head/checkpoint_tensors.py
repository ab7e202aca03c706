"""Single tensors of a safetensors checkpoint, sharded or not, read by byte range from wherever it is."""

from __future__ import annotations

import json
import logging
import math
import operator
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from st_keytokens.lm_head.checkpoint_sources import Source, open_source, read_whole

logger = logging.getLogger(__name__)

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_LONGEST_HEADER = 100_000_000  # the limit of the format
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class CheckpointTensors:
    """The tensors of one checkpoint. Reading one costs the file's header, once, and that tensor's bytes.

    Args:
        name_or_path: A local directory, an http(s) URL of a directory, or the id of a model on the Hub, whose cached
            files are used first.
        revision: Branch, tag or commit, for the Hub.
        token: For the Hub as in huggingface_hub; for a URL sent only where it is a string.
        cache_folder: Where files of the Hub may be cached; huggingface_hub's own place for None.

    Attributes:
        bytes_read: Bytes read so far.

    Raises:
        FileNotFoundError: If there is no safetensors checkpoint.
        ConnectionError: If the place cannot be reached.
        PermissionError: If reading is refused.
        ValueError: If name_or_path names no place, or the index or the header is malformed or truncated.

    Examples:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_file({"lm_head.weight": torch.eye(2)}, f"{directory}/model.safetensors")
        ...     checkpoint = CheckpointTensors(directory)
        ...     checkpoint.names, checkpoint.shape("lm_head.weight"), checkpoint.read("lm_head.weight")
        (['lm_head.weight'], (2, 2), tensor([[1., 0.],
                [0., 1.]]))
    """

    def __init__(
        self,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: bool | str | None = None,
        cache_folder: str | Path | None = None,
    ) -> None:
        self.name_or_path = name_or_path
        self.bytes_read = 0
        self._source: Source = open_source(name_or_path, revision=revision, token=token, cache_folder=cache_folder)
        self._headers: dict[str, tuple[int, dict[str, Any]]] = {}
        self._files = self._locate()

    @property
    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            ValueError: If there is no such tensor.
        """
        return self._entry(name)[2]

    def read(
        self, name: str, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Read one tensor.

        Args:
            name: Its name, one of `names`.
            device: Where to put it; the CPU for None.
            dtype: What to convert it to; as stored for None.

        Returns:
            The tensor.

        Raises:
            ConnectionError: If the connection is lost.
            ValueError: If there is no such tensor, its file is truncated, or it is not stored as floating point of 16
                bits or more.
        """
        start, stop, shape, stored = self._entry(name)
        file = self._files[name]
        buffer = bytearray(stop - start)
        position = 0

        def write(piece: bytes) -> None:
            nonlocal position
            buffer[position : position + len(piece)] = piece
            position += len(piece)

        if buffer:
            self._source.read(file, start, stop, write)
            self.bytes_read += len(buffer)
            tensor = torch.frombuffer(buffer, dtype=stored).reshape(shape)
        else:
            tensor = torch.empty(shape, dtype=stored)
        logger.info("Read %s %s, %d bytes, from %s.", name, tuple(shape), len(buffer), self._source.where(file))
        return tensor.to(device=device, dtype=dtype)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON file that lies beside the tensors.

        Args:
            name: Its name, such as ``"config.json"``.

        Returns:
            Its content, or None if there is no such file.

        Raises:
            ValueError: If it is not a JSON object.
        """
        content = read_whole(self._source, name)
        if content is None:
            return None
        self.bytes_read += len(content)
        return _parse_json(content, self._source.where(name))

    def _locate(self) -> dict[str, str]:
        """The file of every tensor."""
        index = self.read_json(_INDEX)
        if index is None:
            try:
                return dict.fromkeys(self._header(_SINGLE)[1], _SINGLE)
            except FileNotFoundError as err:
                files = self._source.files()
                found = "" if files is None else f", but it has {', '.join(files) or 'nothing'}"
                raise FileNotFoundError(
                    f"name_or_path must hold {_SINGLE} or {_INDEX}, got {str(self.name_or_path)!r}{found}. Convert "
                    "other formats with save_pretrained, or pass the checkpoint of the language model."
                ) from err
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(file, str) and file and PurePosixPath(file).name == file and "\\" not in file
            for file in weight_map.values()
        ):
            raise ValueError(f"{self._source.where(_INDEX)} must map tensor names to names of files beside it.")
        return weight_map

    def _header(self, file: str) -> tuple[int, dict[str, Any]]:
        """Where a file's data begins, and its entries."""
        if file not in self._headers:
            where = self._source.where(file)
            length = int.from_bytes(self._bytes(file, 0, 8), "little")
            if not 2 <= length <= _LONGEST_HEADER:
                raise ValueError(
                    f"{where} must be a safetensors file, got a header of {length} bytes. Check the file."
                )
            entries = _parse_json(self._bytes(file, 8, 8 + length), where)
            entries.pop("__metadata__", None)
            self._headers[file] = 8 + length, entries
        return self._headers[file]

    def _bytes(self, file: str, start: int, stop: int) -> bytes:
        content = bytearray()
        self._source.read(file, start, stop, content.extend)
        self.bytes_read += len(content)
        return bytes(content)

    def _entry(self, name: str) -> tuple[int, int, tuple[int, ...], torch.dtype]:
        """First and last byte + 1, shape and dtype of a tensor."""
        if name not in self._files:
            raise ValueError(f"name must be a tensor of {str(self.name_or_path)!r}, got {name!r}. {self.contents()}")
        where = self._source.where(self._files[name])
        data, entries = self._header(self._files[name])
        try:
            entry = entries[name]
            kind, shape = str(entry["dtype"]), tuple(operator.index(length) for length in entry["shape"])
            start, stop = (operator.index(offset) for offset in entry["data_offsets"])
            count = math.prod(shape)
            is_sound = min((0, *shape)) >= 0 and 0 <= start <= stop
        except (KeyError, TypeError, ValueError) as err:
            raise ValueError(f"{where} must describe {name!r} as safetensors files do. Check the file.") from err
        if kind not in _DTYPES:
            raise ValueError(
                f"{name} in {where} must be stored as {', '.join(_DTYPES)}, got {kind}. Pass a checkpoint that is not "
                "quantised."
            )
        if not is_sound or stop - start != count * _DTYPES[kind].itemsize:
            raise ValueError(
                f"{name} in {where} must take the bytes of its shape {shape} as {kind}, got {stop - start}. Check "
                "the file."
            )
        return data + start, data + stop, shape, _DTYPES[kind]

    def contents(self) -> str:
        """One sentence on which tensors there are, the least nested first."""
        names = sorted(self._files, key=lambda name: (name.count("."), name))
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return f"It holds {', '.join(names[:8])}{more}."


def _parse_json(content: bytes, where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError as err:
        raise ValueError(f"{where} must hold JSON, but it does not. Check the file.") from err
    if not isinstance(parsed, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(parsed).__name__}. Check the file.")
    return parsed
