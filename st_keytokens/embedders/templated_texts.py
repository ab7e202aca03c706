"""Tokens of texts in a template: the template stays whole, a long text loses its end."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import Any, NamedTuple


class TemplatedText(NamedTuple):
    """The tokens of one text in its template.

    Attributes:
        ids: All of them.
        before: How many of the first belong to special tokens, template and prompt before the text.
    """

    ids: list[int]
    before: int


def templated_texts(
    tokenizer: Any,
    texts: list[str],
    *,
    before: str,
    after: str,
    prompt: str,
    joins_tokens: bool,
    ends_with_eos: bool,
    max_length: int,
) -> list[TemplatedText]:
    """Tokenises ``before + prompt + text + after``.

    Args:
        tokenizer: A fast tokenizer of transformers.
        texts: The texts.
        before: The template's beginning.
        after: Its end.
        prompt: What comes between the template's beginning and the text.
        joins_tokens: Tokenise ``before`` and ``after`` alone; else all of it is one string, and a token may belong
            to text and template.
        ends_with_eos: Add the end-of-sequence token where it is not the last one.
        max_length: Tokens at most.

    Returns:
        For each text its tokens.

    Raises:
        ValueError: If the template alone takes ``max_length`` tokens or more.
    """
    head, tail = ("", "") if joins_tokens else (before, after)
    opening, closing = (_bare(tokenizer, part) if joins_tokens else [] for part in (before, after))
    encoded = tokenizer(
        [head + prompt + text + tail for text in texts],
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,  # it would warn of lengths that are cut below
    )
    start = len(head + prompt)
    found = []
    for text, ids, offsets, special in zip(
        texts, encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
    ):
        tokens = list(zip(offsets, special, strict=True))
        end = start + len(text)
        first = _count(is_special or right <= start for (_, right), is_special in tokens)
        last = min(
            len(tokens) - first, _count(is_special or right > end for (_, right), is_special in reversed(tokens))
        )
        ending = [*ids[len(ids) - last :], *closing]
        if ends_with_eos and (not ending or ending[-1] != tokenizer.eos_token_id):
            ending.append(tokenizer.eos_token_id)
        room = max_length - len(opening) - len(ending)
        if room <= first:
            raise ValueError(
                f"max_seq_length must be > {len(opening) + first + len(ending)}, the tokens of prompt and template, "
                f"got {max_length}. Raise it, or shorten the prompt."
            )
        middle = ids[: len(ids) - last][:room]
        found.append(TemplatedText([*opening, *middle, *ending], len(opening) + first))
    return found


def _bare(tokenizer: Any, part: str) -> list[int]:
    return list(tokenizer(part, add_special_tokens=False)["input_ids"]) if part else []


def _count(conditions: Iterable[bool]) -> int:
    """How many hold before the first that does not."""
    return sum(1 for _ in takewhile(bool, conditions))
