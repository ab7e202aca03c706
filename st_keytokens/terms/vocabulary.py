"""The vocabulary as people read it: token strings, tokens that are never terms, and variants that are one term."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["ReadableTerms", "TermStrings", "TokenKind", "Vocabulary"]

logger = logging.getLogger(__name__)


TokenKind = Literal["byte-level", "metaspace", "wordpiece", "plain"]

_BYTE_LEVEL_SPACE, _METASPACE, _CONTINUATION = "Ġ", "▁", "##"

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTROL = re.compile(
    r"""<[|\uff5c].*[|\uff5c]>  # <|endoftext|>, and with the full-width bars that DeepSeek uses
    | [<\[](?:unused|control|reserved|special|extra_id|dummy)[_-]?\d+[>\]]  # [unused12], <extra_id_5>, <SPECIAL_3>
    | </?s>
    | [<\[]/?(?:pad|unk|mask|bos|eos|cls|sep|eod|eot)[>\]]
    | .*reserved_special_token.*
    | <?madeupword\d+>?""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_ADDED_CONTROL = re.compile(r"<.+>|\[.+\]|\|\|\|.+\|\|\|", re.DOTALL)  # <think>, [INST], |||EMAIL_ADDRESS|||


class TermStrings(Protocol):
    """Readable terms by id."""

    def __getitem__(self, term: int, /) -> str:
        """The term with an id."""


class ReadableTerms(Protocol):
    """What reading sparse embeddings asks of a vocabulary."""

    vocab_size: int

    @property
    def strings(self) -> TermStrings:
        """Readable terms by id."""


class Vocabulary:
    """What each row of an LM head stands for.

    A token is *masked* when it can never be a term: special and control tokens, unused and padding rows, rows without
    a token, and tokens of white space or invisible characters only. Punctuation is a term (how much it counts is the
    weighting's business), and so are single bytes and parts of characters, since some scripts consist of them.

    Terms *fold* tokens that differ only in case and in the white space around them: " Gene", "gene" and "GENE" are one
    term, represented by the variant with the smallest id among those that start with a space, else by the smallest id
    (ids of BPE vocabularies are by frequency). The comparison is Unicode case folding, nothing more: compatibility
    normalisation would also merge characters that mean different things, "x²" and "x2". WordPiece continuations
    ("##gene") fold among themselves, not with word starts. In the other kinds, a piece without a space also starts
    words (at the start of a text, after a bracket), so it folds with the one that has a space. Masked tokens, single
    bytes and parts of characters fold with nothing.

    Args:
        tokens: Raw token of each row as the tokenizer stores it, None for a row without a token.
        kind: How raw tokens write text: "byte-level" (GPT-2's alphabet of bytes), "metaspace" (SentencePiece: "▁" is a
            space, ``<0xE4>`` a byte), "wordpiece" ("##" continues a word) or "plain".
        special_ids: Rows of special tokens, masked.
        added_ids: Rows of tokens added to the model's own: their text is literal, and they are masked where they
            look like markup, such as ``<think>``.
        fold: Whether variants fold into one term.

    Attributes:
        vocab_size: Number of rows.
        kind: As given.
        fold: As given.
        strings: Readable string of each row: no marker of a leading space, "##" kept, a token that is not valid UTF-8
            with its bytes as ``<0xE4><0xB8>``, a row without a token as ``<unassigned 7>``.
        is_masked: bool, shape ``(vocab_size,)``.
        terms: Row of each token's term, int64, shape ``(vocab_size,)``; ``terms[terms]`` equals ``terms``.
        hash: SHA-256 in hexadecimal of the arguments: the same on every machine, different for any other vocabulary.

    Raises:
        ValueError: If there is no token, the kind is unknown, or an id is not a row.

    >>> vocabulary = Vocabulary(["<s>", "Gene", "Ġgene", "ä¸", None], kind="byte-level", special_ids=[0])
    >>> vocabulary.strings
    ['<s>', 'Gene', 'gene', '<0xE4><0xB8>', '<unassigned 4>']
    >>> vocabulary.terms
    array([0, 2, 2, 3, 4])
    >>> vocabulary.is_masked
    array([ True, False, False, False,  True])
    """

    def __init__(
        self,
        tokens: Sequence[str | None],
        *,
        kind: TokenKind,
        special_ids: Collection[int] = (),
        added_ids: Collection[int] = (),
        fold: bool = True,
    ) -> None:
        if not tokens:
            raise ValueError("tokens must hold at least one token, got none.")
        if kind not in get_args(TokenKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(TokenKind))}, got {kind!r}.")
        for name, ids in (("special_ids", special_ids), ("added_ids", added_ids)):
            if ids and not 0 <= min(ids) <= max(ids) < len(tokens):
                raise ValueError(f"{name} must be in 0..{len(tokens) - 1}, got {min(ids)} to {max(ids)}.")
        special, added = frozenset(special_ids), frozenset(added_ids)
        self.vocab_size = len(tokens)
        self.kind = kind
        self.fold = fold
        self.hash = _hash([kind, fold, sorted(special), sorted(added), list(tokens)])
        rows = [_read(row, token, kind, row in special, row in added) for row, token in enumerate(tokens)]
        self.strings = [row.string for row in rows]
        self.is_masked: NDArray[np.bool_] = np.array([row.is_masked for row in rows])
        is_marked = kind in ("byte-level", "metaspace")  # by a space before a word; else by what continues one
        self.begins_word: NDArray[np.bool_] = np.array(
            [row.has_space if is_marked else not (row.fold_key or (False,))[0] for row in rows]
        )
        self.terms = _fold(rows) if fold else np.arange(self.vocab_size, dtype=np.int64)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, vocab_size: int | None = None, *, fold: bool = True) -> Vocabulary:
        """Read a tokenizer's vocabulary.

        The kind is read off a fast tokenizer's decoder, pre-tokenizer and normalizer. A slow tokenizer, or a fast one
        whose parts do not tell, has the kind whose marker ("Ġ", "▁", "##") starts the most tokens; without any
        marker its tokens are plain text.

        Args:
            tokenizer: A transformers tokenizer, fast or slow, or a ``tokenizers.Tokenizer``.
            vocab_size: Rows of the LM head, often more than the tokenizer has tokens: the rest is masked. Tokens
                beyond them, which no text can use, are left out. None for as many rows as the tokenizer's largest id
                asks for.
            fold: Whether variants fold into one term.

        Raises:
            TypeError: If it is not a tokenizer.
        """
        if not callable(getattr(tokenizer, "get_vocab", None)):
            raise TypeError(
                f"tokenizer must be a transformers or tokenizers tokenizer, got {type(tokenizer).__name__}. "
                "Of a processor, pass its tokenizer attribute."
            )
        row_of: Mapping[str, int] = tokenizer.get_vocab()
        if isinstance(tokenizer, Tokenizer):
            backend: Any = tokenizer
            added, special = tokenizer.get_added_tokens_decoder(), set()
        else:
            backend = getattr(tokenizer, "backend_tokenizer", None)
            added, special = getattr(tokenizer, "added_tokens_decoder", {}), set(tokenizer.all_special_ids)
        special |= {row for row, token in added.items() if token.special}
        size = max(row_of.values(), default=-1) + 1 if vocab_size is None else vocab_size
        tokens: list[str | None] = [None] * size
        for token, row in row_of.items():
            if row < size:
                tokens[row] = token
        if lost := sum(row >= size and row not in added for row in row_of.values()):
            logger.warning(
                "%d tokens of the tokenizer lie beyond the %d rows of the model and are left out. If the tokenizer is "
                "another model's, pass the model's own.",
                lost,
                size,
            )
        kind = (_kind_of_parts(backend) if isinstance(backend, Tokenizer) else None) or _kind_of_tokens(row_of)
        special_ids, added_ids = ([row for row in rows if row < size] for rows in (special, added))
        return cls(tokens, kind=kind, special_ids=special_ids, added_ids=added_ids, fold=fold)

    @property
    def token_count(self) -> int:
        """Number of rows of the LM head: here, of terms as well."""
        return self.vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return (
            f"Vocabulary(vocab_size={self.vocab_size}, kind={self.kind!r}, fold={self.fold}, "
            f"terms={len(np.unique(self.terms[~self.is_masked]))}, hash={self.hash[:12]!r})"
        )

    def term_ids(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Terms of a text's tokens, in order and with repetition, masked tokens left out.

        Args:
            ids: Token ids, shape ``(num_tokens,)``, integer.

        Returns:
            int64 array of shape ``(num_terms,)``, ``num_terms <= num_tokens``.

        Raises:
            TypeError: If ids are not integers.
            ValueError: If they are not one-dimensional, or one is not a row.

        >>> Vocabulary(["<s>", "a", "A"], kind="plain", special_ids=[0]).term_ids([0, 2, 1, 2])
        array([1, 1, 1])
        """
        array = np.asarray(ids)
        if array.size and array.dtype.kind not in "iu":
            raise TypeError(f"ids must be integers, got dtype {array.dtype}.")
        if array.ndim != 1:
            raise ValueError(f"ids must have one dimension, got shape {array.shape}.")
        array = array.astype(np.int64)
        if array.size and not 0 <= array.min() <= array.max() < self.vocab_size:
            raise ValueError(f"ids must be in 0..{self.vocab_size - 1}, got {array.min()} to {array.max()}.")
        terms: NDArray[np.int64] = self.terms[array[~self.is_masked[array]]]
        return terms


class _Row(NamedTuple):
    """One token as read: what is shown, whether it is masked, and what folds with it (None: nothing)."""

    string: str
    is_masked: bool
    has_space: bool = False
    fold_key: tuple[bool, str] | None = None


def _read(row: int, token: str | None, kind: TokenKind, is_special: bool, is_added: bool) -> _Row:
    if token is None:
        return _Row(f"<unassigned {row}>", is_masked=True)
    byte = _BYTE_TOKEN.fullmatch(token) if kind == "metaspace" else None
    if byte:
        code = int(byte[1], 16)
        return _Row(token, is_masked=is_special or (code < 0x80 and not _has_content(chr(code))))
    if is_special or _CONTROL.fullmatch(token.lstrip(_METASPACE)) or (is_added and _ADDED_CONTROL.fullmatch(token)):
        return _Row(token, is_masked=True)
    is_continuation = kind == "wordpiece" and len(token) > len(_CONTINUATION) and token.startswith(_CONTINUATION)
    if is_continuation:
        text = token[len(_CONTINUATION) :]
    elif kind == "metaspace":
        text = token.replace(_METASPACE, " ")
    elif kind == "byte-level" and not is_added and _BYTE_ALPHABET.issuperset(token):
        text = token.translate(_BYTE_OF_CHARACTER).encode("latin-1").decode("utf-8", errors="surrogateescape")
    else:
        text = token
    if not _has_content(text):
        return _Row(text, is_masked=True)
    bare = text.strip()
    if _UNDECODABLE.search(bare):
        return _Row(_UNDECODABLE.sub(lambda match: f"<0x{ord(match[0]) - 0xDC00:02X}>", bare), is_masked=False)
    string = _CONTINUATION + bare if is_continuation else bare
    return _Row(string, False, text[0].isspace(), (is_continuation, bare.casefold()))


def _fold(rows: Sequence[_Row]) -> NDArray[np.int64]:
    """Smallest id with a leading space, else smallest id, for each fold key."""
    best: dict[tuple[bool, str], int] = {}
    for has_space in (True, False):
        for number, row in enumerate(rows):
            if row.has_space is has_space and row.fold_key is not None:
                best.setdefault(row.fold_key, number)
    return np.array(
        [number if row.fold_key is None else best[row.fold_key] for number, row in enumerate(rows)], dtype=np.int64
    )


def _has_content(text: str) -> bool:
    """Whether anything in it is neither white space nor a control or format character."""
    if not text or text.isspace():
        return False
    return text.isprintable() or any(
        not character.isspace() and unicodedata.category(character) not in ("Cc", "Cf") for character in text
    )


def _byte_of_character() -> dict[int, int]:
    """GPT-2's alphabet of bytes, from the code point that stands for a byte to the byte.

    Printable Latin-1 characters stand for themselves, the other 68 bytes in order for U+0100 and up.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {0x100 + rank: byte for rank, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()
_BYTE_ALPHABET = frozenset(map(chr, _BYTE_OF_CHARACTER))
_UNDECODABLE = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of a byte that is not valid UTF-8


def _parts(component: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of a tokenizer's component and, where it is a sequence, of its members."""
    if component is None:
        return
    queue = [json.loads(component.__getstate__())]
    while queue:
        settings = queue.pop()
        yield settings
        for members in ("decoders", "pretokenizers", "normalizers"):
            queue.extend(settings.get(members, ()))


def _kind_of_parts(backend: Tokenizer) -> TokenKind | None:
    components = (backend.decoder, backend.pre_tokenizer, backend.normalizer)
    parts = [part for component in components for part in _parts(component)]
    types = {part["type"] for part in parts}
    if "ByteLevel" in types:
        return "byte-level"
    replaced = [(part["pattern"].get("String"), part["content"]) for part in parts if part["type"] == "Replace"]
    if "Metaspace" in types or (_METASPACE, " ") in replaced or (" ", _METASPACE) in replaced:
        return "metaspace"
    if "WordPiece" in types or getattr(backend.model, "continuing_subword_prefix", None) == _CONTINUATION:
        return "wordpiece"
    return None


def _kind_of_tokens(tokens: Collection[str]) -> TokenKind:
    """The kind whose marker starts the most tokens."""
    markers: dict[TokenKind, str] = {
        "byte-level": _BYTE_LEVEL_SPACE,
        "metaspace": _METASPACE,
        "wordpiece": _CONTINUATION,
    }
    counts = {kind: sum(token.startswith(marker) for token in tokens) for kind, marker in markers.items()}
    kind = max(counts, key=lambda kind: counts[kind])
    return kind if counts[kind] else "plain"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")).hexdigest()
