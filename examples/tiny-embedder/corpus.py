"""The training data of the tiny embedder: read, split, tokenised, and cut into batches, all of it seeded."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
VOCAB_SIZE = 16_384
WINDOW_CHARACTERS = 900  # long plain text is cut into windows of this size, each a positive of its own


@dataclass(frozen=True)
class TokenList:
    """Many token sequences in one flat array: ``ids[offsets[i]:offsets[i + 1]]`` is the i-th."""

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


@dataclass(frozen=True)
class Corpus:
    """Tokenised pairs (``anchors[i]`` asks for ``positives[i]``) with the source of each, and held-out texts."""

    anchors: TokenList  # empty where the text has no anchor of its own: then a span of it becomes the anchor
    positives: TokenList
    sources: np.ndarray  # (N,) int
    held_out: TokenList


def is_held_out(text: str) -> bool:
    """One text in a hundred, chosen by its own hash, so that the choice never depends on order or seed."""
    return int(hashlib.sha1(text.encode()).hexdigest(), 16) % 100 == 0


def read_records(data: Path) -> Iterator[tuple[str, str, str]]:
    """Yields (anchor, positive, source) of every pair and every window of plain text."""
    with lzma.open(data / "training" / "pairs.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield record["anchor"], record["positive"], record["source"]
    with lzma.open(data / "training" / "text.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            text = record["text"]
            for start in range(0, len(text), WINDOW_CHARACTERS):
                window = text[start : start + WINDOW_CHARACTERS]
                if len(window) > WINDOW_CHARACTERS // 3:
                    yield "", window, "text:" + record["source"]


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """An uncased byte-level BPE: with 16k tokens, one form of a word is worth more than two."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=[END_OF_TEXT, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: list[str], description: str) -> TokenList:
    pieces: list[np.ndarray] = []
    for start in tqdm(range(0, len(texts), 2000), desc=f"tokenize {description}", leave=False):
        pieces += [np.array(e.ids, dtype=np.int32) for e in tokenizer.encode_batch(texts[start : start + 2000])]
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in pieces])])
    return TokenList(np.concatenate(pieces) if pieces else np.zeros(0, np.int32), offsets)


def load_corpus(data: Path, work: Path) -> tuple[Tokenizer, Corpus]:
    """Trains the tokenizer and tokenises everything once; later calls read what the first one left in ``work``."""
    tokenizer_file, tokens_file = work / "tokenizer.json", work / "tokens.npz"
    if not tokens_file.exists():
        records = sorted(set(read_records(data)))
        train = [r for r in records if not is_held_out(r[1])]
        names = sorted({source for _, _, source in train})
        tokenizer = train_tokenizer(text for a, p, _ in train for text in (a, p) if text)
        tokenizer.save(str(tokenizer_file))
        lists = {
            "anchors": tokenize(tokenizer, [a for a, _, _ in train], "anchors"),
            "positives": tokenize(tokenizer, [p for _, p, _ in train], "positives"),
            "held_out": tokenize(tokenizer, [p for _, p, _ in records if is_held_out(p)], "held-out"),
        }
        arrays = {f"{k}_{field}": getattr(v, field) for k, v in lists.items() for field in ("ids", "offsets")}
        np.savez(tokens_file, sources=np.array([names.index(s) for _, _, s in train]), **arrays)
    saved = np.load(tokens_file)
    anchors, positives, held_out = (
        TokenList(saved[f"{k}_ids"], saved[f"{k}_offsets"]) for k in ("anchors", "positives", "held_out")
    )
    return Tokenizer.from_file(str(tokenizer_file)), Corpus(anchors, positives, saved["sources"], held_out)


def language_model_batch(corpus: Corpus, step: int, batch_size: int, length: int, seed: int) -> np.ndarray:
    """Shape ``(batch_size, length + 1)``: windows of the texts' token stream, in an order fixed by ``seed``."""
    ids = corpus.positives.ids
    windows = len(ids) // (length + 1)
    epoch, index = divmod(step, windows // batch_size)
    rng = np.random.default_rng([seed, epoch])
    shift = int(rng.integers(0, length))
    order = rng.permutation(windows - 1)[index * batch_size : (index + 1) * batch_size]
    return np.stack([ids[shift + w * (length + 1) : shift + (w + 1) * (length + 1)] for w in order])


def topics(vectors: np.ndarray, members: np.ndarray, largest: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Groups of at most ``largest`` members with vectors alike: halves of halves, along two random members each."""
    if len(members) <= largest:
        return [rng.permutation(members)]
    one, other = vectors[rng.choice(members, 2, replace=False)].astype(np.float32)
    ordered = members[np.argsort(vectors[members].astype(np.float32) @ (one - other), kind="stable")]
    halves = ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]
    return [group for half in halves for group in topics(vectors, half, largest, rng)]


def pair_batches(
    corpus: Corpus, epoch: int, batch_size: int, seed: int, vectors: np.ndarray | None = None
) -> list[np.ndarray]:
    """Indices of every batch of an epoch. A batch has one source: its negatives are not told apart by style.

    With vectors of the pairs, batches come from groups of texts alike: their negatives are not told apart by topic.
    """
    rng = np.random.default_rng([seed, 1, epoch])
    batches = []
    for source in np.unique(corpus.sources):
        members = np.flatnonzero(corpus.sources == source)
        if vectors is None:
            ordered = rng.permutation(members)
        else:
            ordered = np.concatenate(topics(vectors, members, 4 * batch_size, rng))
        batches += [ordered[i : i + batch_size] for i in range(0, len(ordered) - batch_size + 1, batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def pair_batch(
    corpus: Corpus, members: np.ndarray, rng: np.random.Generator, span_probability: float, max_length: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids of the anchors and positives of one batch; some anchors are spans of the positive itself."""
    anchors, positives = [], []
    for i in members:
        positive, anchor = corpus.positives[i], corpus.anchors[i]
        if len(anchor) == 0 or (len(positive) >= 48 and rng.random() < span_probability):
            length = int(rng.integers(6, 25))
            start = int(rng.integers(0, max(1, len(positive) - length)))
            anchor = positive[start : start + length]
        anchors.append(anchor[:64])
        positives.append(positive[:max_length])
    return anchors, positives


def pad(sequences: list[np.ndarray], pad_id: int, multiple: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded ids and mask, both ``(len(sequences), longest rounded up to a multiple)``."""
    longest = -(-max(map(len, sequences)) // multiple) * multiple
    ids = np.full((len(sequences), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return ids, mask
