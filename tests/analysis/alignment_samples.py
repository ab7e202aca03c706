"""What the tests of alignment look at: a decoder of three tokens, and alignment counted one text at a time."""

from __future__ import annotations

import numpy as np
import torch

from st_keytokens import LMHead

THREE_TOKENS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])


def three_token_head() -> LMHead:
    """Two dimensions, three tokens: the first one for x, the second for y, the third for half of each."""
    return LMHead(torch.nn.Embedding.from_pretrained(THREE_TOKENS))


def naive_alignment(rankings, texts, k=10, is_published=False):
    """Hit@k, local and global rate of decoded ids against ids with repetition, by sets."""
    hits, local, found, own = [], [], set(), set()
    for ranked, ids in zip(rankings, texts, strict=True):
        wanted = set(ids)
        if is_published:
            ranked = ranked[:k]
        first = set(ranked[: len(ids) if is_published else len(wanted)]) & wanted
        hits.append(bool(set(ranked[:k]) & wanted))
        local.append(len(first) / len(wanted))
        found |= first
        own |= wanted
    return np.mean(hits), np.mean(local), len(found) / len(own)
