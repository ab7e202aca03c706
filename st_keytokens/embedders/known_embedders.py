"""The table of known embedders."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from st_keytokens.embedders.current_embedders import CURRENT
from st_keytokens.embedders.embedder_recipe import EmbedderRecipe
from st_keytokens.embedders.encoder_embedders import ENCODERS
from st_keytokens.embedders.paper_embedders import PAPER

__all__ = ["RECIPES", "find_recipe", "known_embedders"]

RECIPES: Mapping[str, EmbedderRecipe] = MappingProxyType(
    {recipe.name: recipe for recipe in (*PAPER, *ENCODERS, *CURRENT)}
)


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
