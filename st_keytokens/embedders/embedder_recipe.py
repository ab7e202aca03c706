"""What is known of one embedder: how it is built, how it is read, and where that is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Attention = Literal["causal", "bidirectional", "encoder"]
PooledTokens = Literal["all", "after_prompt", "mask"]
PoolingMode = Literal["lasttoken", "mean", "weightedmean", "cls", "pooler"]
Finding = Literal["aligned", "not aligned", "not reported"]
Verified = Literal["decoding parity", "facts only"]
Template = tuple[str, str]

_NO_TEMPLATES: Mapping[str, Template] = MappingProxyType({})
_NO_PROMPTS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class EmbedderRecipe:
    """How an embedder is built and which LM head decodes it.

    An embedder is either loaded as sentence-transformers saved it (``is_saved_whole``), or built from a language
    model, adapters, template and pooling.

    Attributes:
        name: Id on the Hub; the key of the table.
        backbone: Id of the checkpoint that holds the LM head. ``""``: the embedder's own input embeddings, to which
            its LM head is tied.
        pooling: How token embeddings become one vector; ``"pooler"`` is the model's own tanh pooler.
        source: Where these facts are written: a URL.
        attention: ``"bidirectional"`` where a model that was causal lets every token see all others; ``"encoder"``
            where it always did.
        is_normalized: Whether the vectors have length 1.
        is_saved_whole: Whether the repository has the modules, so that sentence-transformers alone builds it right.
        tensor_name: Name of the LM head's weight in the backbone, where it is not the usual one.
        base: Id of the language model that adapters belong to, or ``""`` for ``name`` itself.
        adapters: Ids of PEFT adapters, merged in this order.
        prompts: What is put before a text, by name; ``"document"`` without a name given.
        templates: What is around prompt and text, by task (``"query"``, ``"document"``); the document's without one.
        joins_tokens: Whether the template's parts are tokenised alone and joined as tokens, not as text.
        ends_with_eos: Whether an end-of-sequence token closes every text, also where the tokenizer does not add it.
        pooled_tokens: ``"all"``; ``"after_prompt"``: not those of template and prompt before the text; ``"mask"``:
            the last mask token alone.
        max_seq_length: Tokens of a text at most, where the tokenizer does not say.
        finding: What the paper's authors report of it.
        why_not: Why it cannot be decoded right; ``""`` where it can.
        needs_remote_code: Whether it loads only with ``trust_remote_code=True``.
        notes: What else a user should know.
        verified: ``"decoding parity"``: on a random checkpoint of its architecture and file layout, pooled vectors
            and decoded tokens are those of an independent computation. ``"facts only"``: nothing was run.
            The published weights were loaded for none.
    """

    name: str
    backbone: str
    pooling: PoolingMode
    source: str
    attention: Attention = "causal"
    is_normalized: bool = False
    is_saved_whole: bool = False
    tensor_name: str | None = None
    base: str = ""
    adapters: tuple[str, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=lambda: _NO_PROMPTS)
    templates: Mapping[str, Template] = field(default_factory=lambda: _NO_TEMPLATES)
    joins_tokens: bool = False
    ends_with_eos: bool = False
    pooled_tokens: PooledTokens = "all"
    max_seq_length: int | None = None
    finding: Finding = "not reported"
    why_not: str = ""
    needs_remote_code: bool = False
    notes: str = ""
    verified: Verified = "decoding parity"

    @property
    def repositories(self) -> tuple[str, ...]:
        """Ids of all repositories that are read."""
        named = (self.base or self.name, *self.adapters, self.backbone)
        return tuple(dict.fromkeys(name for name in named if name))
