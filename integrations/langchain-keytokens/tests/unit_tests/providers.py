"""An embedder behind an API, as a class of LangChain: it counts what it is asked for, and fails when it is told to."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
from langchain_core.embeddings import Embeddings


class Provider(Embeddings):
    """Sums of random vectors of words."""

    def __init__(self, dimension=48, length=1.0, model="text-embedding-x"):
        self.model, self.dimension, self.length = model, dimension, length
        self.documents, self.queries = Counter(), Counter()
        self.calls, self.fails_at = 0, None

    def embed_documents(self, texts):
        self._called()
        self.documents.update(texts)
        return [self.vector(text) for text in texts]

    def embed_query(self, text):
        self._called()
        self.queries[text] += 1
        return self.vector(text)

    def vector(self, text):
        total = np.full(self.dimension, 0.01)
        for word in text.lower().replace(".", "").replace(",", "").split():
            seed = int.from_bytes(hashlib.sha1(word.encode()).digest()[:4], "big")
            total = total + np.random.default_rng(seed).normal(size=self.dimension)
        return (self.length * total / np.linalg.norm(total)).tolist()

    def _called(self):
        self.calls += 1
        if self.fails_at is not None and self.calls >= self.fails_at:
            raise ConnectionError("429: too many requests")

    def most(self):
        """How often the text was sent that was sent most often."""
        return max([*self.documents.values(), *self.queries.values()])


class Asynchronous(Provider):
    """One whose synchronous methods are not there."""

    def embed_documents(self, texts):
        raise NotImplementedError

    def embed_query(self, text):
        raise NotImplementedError

    async def aembed_documents(self, texts):
        return super().embed_documents(texts)

    async def aembed_query(self, text):
        return super().embed_query(text)
