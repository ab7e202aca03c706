"""Single tensors of a safetensors checkpoint, sharded or not, read by byte range from wherever it is."""

from __future__ import annotations

import logging
import math
import operator
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.utils import HFValidationError, build_hf_headers, get_session

from st_keytokens.shared.files import is_path, parse_json

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20  # bytes read from a connection at a time
_ATTEMPTS = 3  # in a row without a byte gained
_LONGEST_JSON = 1 << 27

Write = Callable[[bytes], Any]


class Source(Protocol):
    """Files beside each other, readable by byte range."""

    def where(self, name: str) -> str:
        """The path or URL of a file, for messages."""

    def files(self) -> list[str] | None:
        """The names of the files that are there; None where they cannot be listed."""

    def read(self, name: str, start: int, stop: int | None, write: Write) -> None:
        """Hand the bytes from start to stop, or to the end for None, to write, piece by piece.

        Raises:
            FileNotFoundError: If there is no such file.
            OSError: If the file cannot be read.
            ValueError: If it ends before stop.
        """


def source_of(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | Path | None = None,
) -> Source:
    """Open a place that holds a checkpoint.

    Args:
        name_or_path: A local directory, an http(s) URL of a directory, or the id of a model on the Hub.
        revision: Branch, tag or commit, for the Hub.
        token: For the Hub as in huggingface_hub; for a URL sent only where it is a string.
        cache_folder: Where files of the Hub may be cached; huggingface_hub's own place for None.

    Returns:
        The source; nothing is read yet.

    Raises:
        ValueError: If name_or_path is none of the three.
    """
    name = str(name_or_path)
    if name.startswith(("http://", "https://")):
        url = name.rstrip("/")
        return UrlSource(lambda file: f"{url}/{file}", token=token if isinstance(token, str) else False)
    if name and Path(name_or_path).is_dir():
        return LocalSource(Path(name_or_path))
    try:
        huggingface_hub.hf_hub_url(name, "config.json")
        return HubSource(name, revision=revision, token=token, cache_folder=cache_folder)
    except HFValidationError as err:
        raise ValueError(
            "name_or_path must be a directory, an http(s) URL of a directory or the id of a model on the Hub, "
            f"got {name!r}. Check the path."
        ) from err


class LocalSource:
    """A local directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def where(self, name: str) -> str:
        """The path of a file."""
        return str(self.directory / name)

    def files(self) -> list[str] | None:
        """The names of the files in the directory."""
        return sorted(path.name for path in self.directory.iterdir())

    def read(self, name: str, start: int, stop: int | None, write: Write) -> None:
        """Read a range of a file."""
        with (self.directory / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            stop = size if stop is None else stop
            if stop > size:
                raise ValueError(_truncated(self.where(name), stop))
            file.seek(start)
            for position in range(start, stop, _CHUNK):
                write(file.read(min(_CHUNK, stop - position)))


class UrlSource:
    """A directory under an http(s) URL, read by range requests; servers that ignore them are read through.

    Requests go through huggingface_hub's client, with its proxies, certificates, time limit and offline mode.
    """

    def __init__(
        self,
        where: Callable[[str], str],
        *,
        token: bool | str | None = False,
        answered: Callable[[Mapping[str, str]], None] | None = None,
    ) -> None:
        self.where = where  # the URL of a file
        self.answered = answered  # sees the headers of a good answer
        self.headers: dict[str, str] = {
            **build_hf_headers(token=token, library_name="st-keytokens"),
            "Accept-Encoding": "identity",
        }

    def files(self) -> list[str] | None:
        """Unknown."""
        return None

    def read(self, name: str, start: int, stop: int | None, write: Write) -> None:
        """Read a range of a file; a broken connection is taken up again where it broke."""
        url = self.where(name)
        position = start
        failures = 0
        while failures < _ATTEMPTS:
            reached = position
            try:
                for piece in self._pieces(url, position, stop):
                    write(piece)
                    position += len(piece)
                if stop is None or position == stop:
                    return
                problem: Exception = ConnectionError(f"the answer ended at byte {position} of {stop}")
            except (FileNotFoundError, PermissionError):
                raise
            except _request_errors() as err:
                problem = err
            if stop is None and position > start:
                break  # without a range, an answer can only be read from its beginning
            failures = 1 if position > reached else failures + 1
            if failures < _ATTEMPTS:
                time.sleep(0.25 * failures)
        raise ConnectionError(
            f"{url} must be reachable, got {type(problem).__name__}: {problem}. Check the address and the network, or "
            "pass a local directory."
        ) from problem

    def _pieces(self, url: str, start: int, stop: int | None) -> Iterator[bytes]:
        headers = dict(self.headers)
        if stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        with _get(url, headers) as (status, answer, content):
            if status == 404:
                raise FileNotFoundError(f"{url} must exist, got HTTP status 404. Check the address.")
            if status in (401, 403):
                raise PermissionError(
                    f"{url} must be readable, got HTTP status {status}. Check the name, or pass a token that may read."
                )
            sent = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.get("Content-Range", ""))
            if status == 416 or (sent and stop is not None and sent[2] != "*" and int(sent[2]) < stop):
                raise ValueError(_truncated(url, stop))
            if status not in (200, 206) or (status == 206 and not (sent and sent[1] == str(start))):
                raise ConnectionError(f"HTTP status {status}, Content-Range {answer.get('Content-Range')!r}")
            if self.answered is not None:
                self.answered(answer)
            skip = start if status == 200 else 0
            wanted = None if stop is None else stop - start
            if skip > _CHUNK:
                logger.warning("%s ignores range requests: reading %d MB to reach a tensor.", url, skip >> 20)
            for chunk in content:
                piece = chunk[skip:] if wanted is None else chunk[skip : skip + wanted]
                skip -= min(skip, len(chunk))
                if piece:
                    yield piece
                if wanted is not None:
                    wanted -= len(piece)
                    if not wanted:
                        return
            if status == 200 and wanted:
                raise ValueError(_truncated(url, stop))


class HubSource:
    """A model on the Hub: files of the local cache first, everything else by range requests, at one commit."""

    def __init__(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        token: bool | str | None = None,
        cache_folder: str | Path | None = None,
    ) -> None:
        self.remote = UrlSource(self.where, token=token, answered=self._stay)
        self.repo_id = repo_id
        self.cache_folder = cache_folder
        self.commit: str | None = None
        self.revision = revision
        cached = self._cached("config.json")
        self.commit = Path(cached).parent.name if isinstance(cached, str) else None

    def where(self, name: str) -> str:
        """The URL of a file on the Hub."""
        return str(huggingface_hub.hf_hub_url(self.repo_id, name, revision=self.commit or self.revision))

    def files(self) -> list[str] | None:
        """Unknown."""
        return None

    def _stay(self, headers: Mapping[str, str]) -> None:
        """Stay at the commit that the first answer came from."""
        self.commit = self.commit or headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)

    def read(self, name: str, start: int, stop: int | None, write: Write) -> None:
        """Read a range of a file."""
        cached = self._cached(name)
        if isinstance(cached, str):
            LocalSource(Path(cached).parent).read(name, start, stop, write)
        elif cached is not None:
            raise FileNotFoundError(f"{self.where(name)} must exist, but the local cache says that it does not.")
        else:
            self.remote.read(name, start, stop, write)

    def _cached(self, name: str) -> Any:
        """The path of a cached file, None for an unknown one, or the mark of one that the Hub does not have."""
        return huggingface_hub.try_to_load_from_cache(
            self.repo_id, name, cache_dir=self.cache_folder, revision=self.commit or self.revision
        )


def read_whole(source: Source, name: str) -> bytes | None:
    """Read a whole small file."""
    content = bytearray()

    def write(piece: bytes) -> None:
        content.extend(piece)
        if len(content) > _LONGEST_JSON:
            raise ValueError(f"{source.where(name)} must have at most {_LONGEST_JSON} bytes, got more.")

    try:
        source.read(name, 0, None, write)
    except FileNotFoundError:
        return None
    return bytes(content)


def _truncated(where: str, stop: int | None) -> str:
    return f"{where} must have at least {stop} bytes, but it is truncated. Download or save the checkpoint again."


@contextmanager
def _get(url: str, headers: dict[str, str]) -> Iterator[tuple[int, Mapping[str, str], Iterator[bytes]]]:
    """Request a URL with huggingface_hub's client."""
    session = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(getattr(session, "stream", None)):  # httpx, from huggingface_hub 1.0; requests before
        with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            yield response.status_code, response.headers, response.iter_bytes(_CHUNK)
    else:
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            yield response.status_code, response.headers, response.iter_content(_CHUNK)


def _request_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub's client raises: OSErrors from requests, another family from httpx."""
    packages = {cls.__module__.partition(".")[0] for cls in type(get_session()).__mro__}
    return (OSError, *(sys.modules[name].HTTPError for name in sorted(packages & {"httpx", "httpx2"})))


_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_BYTES = 1 << 62  # of a file
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
        self._source: Source = source_of(name_or_path, revision=revision, token=token, cache_folder=cache_folder)
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
        """Read a JSON file that lies beside the tensors."""
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
            isinstance(file, str) and is_path(file) and PurePosixPath(file).name == file != ".." and "\\" not in file
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
            is_sound = min((0, *shape)) >= 0 and 0 <= start <= stop <= data + _MAX_BYTES
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
        return parse_json(content, where)
    except ValueError as err:
        raise ValueError(f"{err} Check the file.") from err
