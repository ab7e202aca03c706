"""Recipes of embedders: how each is built and decoded. The known ones are data, in ``recipes.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["RECIPES", "find_recipe", "known_embedders"]


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
        backbone: Id of the checkpoint that holds the LM head. ``""``: the embedder's own, which is tied to its input
            embeddings or stored in its checkpoint.
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

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> EmbedderRecipe:
        """A recipe from JSON values, as in ``recipes.json``; what is left out has its default.

        Args:
            facts: Attributes by name; a template is a list of what comes before and after.

        Returns:
            The recipe.

        Raises:
            TypeError: If a name is unknown, or one without a default is missing.

        >>> EmbedderRecipe.from_dict({"name": "me/mine", "backbone": "", "pooling": "mean", "source": ""}).pooling
        'mean'
        """
        values = dict(facts)
        values["adapters"] = tuple(facts.get("adapters", ()))
        values["prompts"] = MappingProxyType(dict(facts.get("prompts", {})))
        templates = {task: (before, after) for task, (before, after) in facts.get("templates", {}).items()}
        values["templates"] = MappingProxyType(templates)
        return cls(**values)


def _read() -> Mapping[str, EmbedderRecipe]:
    facts = json.loads(Path(__file__).with_name("recipes.json").read_text(encoding="utf-8"))
    return MappingProxyType({each["name"]: EmbedderRecipe.from_dict(each) for each in facts})


RECIPES = _read()
"""The recipes of ``recipes.json`` by id, in the order of the documentation."""


def known_embedders(*, is_decodable: bool | None = None) -> tuple[EmbedderRecipe, ...]:
    """The embedders that :func:`load_embedder` builds by their ids.

    Args:
        is_decodable: Only those that an LM head decodes right, or only those that none does; None for all.

    Returns:
        Their recipes, in the order of the documentation.

    >>> "GritLM/GritLM-7B" in {recipe.name for recipe in known_embedders(is_decodable=True)}
    True
    """
    return tuple(recipe for recipe in RECIPES.values() if is_decodable in (None, not recipe.why_not))


def find_recipe(name: str, *, is_needed: bool = False) -> EmbedderRecipe | None:
    """The recipe of an id.

    Args:
        name: The id, in any case.
        is_needed: Whether an unknown one is an error.

    Returns:
        The recipe, or None.

    Raises:
        ValueError: If an unknown one is needed, or the known one cannot be decoded right.
    """
    recipe = RECIPES.get(name) or next((each for each in RECIPES.values() if each.name.lower() == name.lower()), None)
    if recipe is None and is_needed:
        raise ValueError(
            f"recipe must be the id of a known embedder, got {name!r}. known_embedders() lists them; leave it out, "
            "and name the backbone, for any other."
        )
    if recipe is not None and recipe.why_not:
        raise ValueError(
            f"name_or_path must be an embedder that an LM head decodes right, got {recipe.name}: {recipe.why_not}."
        )
    return recipe
