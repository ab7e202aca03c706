"""The table of known embedders in Markdown, for the documentation."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from st_keytokens.embedders.recipes import EmbedderRecipe, known_embedders
from st_keytokens.shared.markdown import preformatted_table

__all__ = ["embedder_table", "update_table"]


_BEGIN, _END = "<!-- table of known embedders: begin -->", "<!-- table of known embedders: end -->"
_HEADER = ("embedder", "LM head", "how it embeds", "the paper's finding", "verified here", "notes")
_POOLED = {"all": "", "after_prompt": ", without the prompt's tokens", "mask": ", the mask token alone"}


def embedder_table() -> str:
    """The table, one row per embedder.

    Returns:
        Markdown.

    >>> embedder_table().splitlines()[0]
    "| embedder | LM head | how it embeds | the paper's finding | verified here | notes |"
    """
    return preformatted_table(_HEADER, [_cells(recipe) for recipe in known_embedders()], left=None)


def update_table(path: str | PathLike[str]) -> None:
    """Replaces the table in a page, between its two marks.

    Args:
        path: The page.

    Raises:
        OSError: If it cannot be read or written.
        ValueError: If it lacks a mark.
    """
    page = Path(path).read_text(encoding="utf-8")
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"path must hold the marks {_BEGIN} and {_END}, got {str(path)!r} without. Add them.")
    Path(path).write_text(f"{before}{_BEGIN}\n{embedder_table()}{_END}{after}", encoding="utf-8")


def _cells(recipe: EmbedderRecipe) -> tuple[str, ...]:
    finding = recipe.finding if recipe.finding != "not reported" else ""
    notes = [f"**Refused**: {recipe.why_not}"] if recipe.why_not else []
    notes += ["Needs `trust_remote_code`"] if recipe.needs_remote_code and not recipe.why_not else []
    notes += [recipe.notes] if recipe.notes else []
    return (
        f"[{recipe.name}]({recipe.source})",
        _lm_head(recipe),
        _how(recipe),
        finding,
        "" if recipe.verified == "facts only" else recipe.verified,
        ". ".join(notes),
    )


def _lm_head(recipe: EmbedderRecipe) -> str:
    if recipe.why_not:
        return "none"
    own = "tied to its input embeddings" if not recipe.backbone else "its own"
    return own if recipe.backbone in ("", recipe.name) else recipe.backbone


def _how(recipe: EmbedderRecipe) -> str:
    parts = [f"{recipe.pooling}{_POOLED[recipe.pooled_tokens]}", recipe.attention]
    parts += ["normalised"] if recipe.is_normalized else []
    parts += [f"adapters {', '.join(recipe.adapters)} on {recipe.base}"] if recipe.adapters else []
    around = {task: f"{left}…{right}" for task, (left, right) in recipe.templates.items() if left or right}
    parts += [f"{task} {_code(template)}" for task, template in around.items()]
    parts += ["closed by its end-of-sequence token"] if recipe.ends_with_eos else []
    parts += [f"prompt of a {name} {_code(prompt)}" for name, prompt in recipe.prompts.items() if prompt]
    return "; ".join(parts)


def _code(text: str) -> str:
    escaped = text.replace("\n", "\\n").replace("|", "\\|")
    return f"`{escaped}`"
