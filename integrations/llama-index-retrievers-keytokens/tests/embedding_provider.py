"""An embedder behind an API, as a class of LlamaIndex: it counts what it is asked for, and fails when told to."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr


class Provider(BaseEmbedding):
    """Sums of random vectors of words."""

    dimension: int = 48
    length: float = 1.0
    _state: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __init__(self, model_name="text-embedding-x", **settings):
        super().__init__(model_name=model_name, **settings)
        self._state = {"documents": Counter(), "queries": Counter(), "calls": 0, "fails_at": None}

    @property
    def documents(self):
        return self._state["documents"]

    @property
    def queries(self):
        return self._state["queries"]

    @property
    def calls(self):
        return self._state["calls"]

    def fail_at(self, call):
        self._state["fails_at"] = call

    def most(self):
        """How often the text was sent that was sent most often."""
        return max([*self.documents.values(), *self.queries.values()])

    def _get_text_embeddings(self, texts):
        self._called()
        self.documents.update(texts)
        return [self.vector(text) for text in texts]

    def _get_text_embedding(self, text):
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query):
        self._called()
        self.queries[query] += 1
        return self.vector(query)

    async def _aget_query_embedding(self, query):
        return Provider._get_query_embedding(self, query)

    async def _aget_text_embeddings(self, texts):
        return Provider._get_text_embeddings(self, texts)

    def vector(self, text):
        total = np.full(self.dimension, 0.01)
        for word in text.lower().replace(".", "").replace(",", "").split():
            seed = int.from_bytes(hashlib.sha1(word.encode()).digest()[:4], "big")
            total = total + np.random.default_rng(seed).normal(size=self.dimension)
        return (self.length * total / np.linalg.norm(total)).tolist()

    def _called(self):
        self._state["calls"] += 1
        if self._state["fails_at"] is not None and self.calls >= self._state["fails_at"]:
            raise ConnectionError("429: too many requests")


class Asynchronous(Provider):
    """One whose synchronous methods are not there."""

    def _get_text_embeddings(self, texts):
        raise NotImplementedError

    def _get_query_embedding(self, query):
        raise NotImplementedError
