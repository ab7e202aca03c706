"""What the tests of retrieval share: texts, and a counter of forward passes."""

from __future__ import annotations

from small_models import SENTENCES

TEXTS = list(SENTENCES[:12])
IDS = [f"d{number}" for number in range(len(TEXTS))]
METADATA = [{"number": number} for number in range(len(TEXTS))]


class Passes:
    """A hook that counts the texts that go through a transformer."""

    def __init__(self):
        self.texts = 0

    def __call__(self, module, arguments, output):
        self.texts += len(arguments[0]["input_ids"])

    def take(self):
        """The count since the last call."""
        texts, self.texts = self.texts, 0
        return texts
