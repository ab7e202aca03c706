"""A Transformer module with templates around a text, and attention in both directions for causal models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, ClassVar, NamedTuple

import torch
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor

from st_keytokens.embedders.recipes import PooledTokens, Template
from st_keytokens.shared.checks import check_choice

__all__ = ["TemplateTransformer", "bidirectional_mask"]


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


_POOLED = ("all", "after_prompt", "mask")
_MASKABLE = ("eager", "sdpa")


def bidirectional_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores so that every token sees every other that is not padding.

    Args:
        attention_mask: 1 for tokens, 0 for padding, shape ``(batch_size, length)``.
        dtype: Floating-point type of the scores.

    Returns:
        Shape ``(batch_size, 1, length, length)``: 0 where a token is seen, the type's lowest number elsewhere.

    >>> bidirectional_mask(torch.tensor([[1, 0]]), torch.float32)[0, 0].eq(0)
    tensor([[ True, False],
            [ True, False]])
    """
    hidden = torch.zeros(attention_mask.shape, dtype=dtype, device=attention_mask.device)
    hidden = hidden.masked_fill(attention_mask == 0, torch.finfo(dtype).min)
    return hidden[:, None, None, :].expand(-1, 1, attention_mask.shape[1], -1).contiguous()


class TemplateTransformer(Transformer):  # type: ignore[misc]  # untyped for mypy, see pyproject.toml
    """A transformers model in a SentenceTransformer, with templates, attention and pooled tokens as a recipe says.

    A text that is too long loses its own end, never the template around it.

    Args:
        model_name_or_path: As in ``Transformer``.
        templates: What is before and after prompt and text, by task; texts without a task are documents.
        joins_tokens: Tokenise what is before, the text, and what is after, separately, and join the tokens.
        ends_with_eos: Add an end-of-sequence token where the tokenizer adds none.
        pooled_tokens: ``"all"``; ``"after_prompt"``: those of the text and what is after it; ``"mask"``: the last
            mask token alone.
        is_bidirectional: Let every token see all others, whatever the model was made for. Needs the attention
            implementation ``"sdpa"`` or ``"eager"``.
        **arguments: Those of ``Transformer``.

    Raises:
        TypeError: If the tokenizer is not a fast one where templates need it.
        ValueError: If a choice is unknown, or the tokenizer lacks the token that a setting needs.
    """

    config_keys: ClassVar[list[str]] = [
        *Transformer.config_keys,
        "templates",
        "joins_tokens",
        "ends_with_eos",
        "pooled_tokens",
        "is_bidirectional",
    ]

    def __init__(
        self,
        model_name_or_path: str,
        *,
        templates: Mapping[str, Template] | None = None,
        joins_tokens: bool = False,
        ends_with_eos: bool = False,
        pooled_tokens: PooledTokens = "all",
        is_bidirectional: bool = False,
        **arguments: Any,
    ) -> None:
        check_choice("pooled_tokens", pooled_tokens, _POOLED)
        for task in templates or ():
            check_choice("a task of templates", task, ("query", "document"))
        super().__init__(model_name_or_path, **arguments)
        self.templates = {task: [before, after] for task, (before, after) in (templates or {}).items()}
        self.joins_tokens = joins_tokens
        self.ends_with_eos = ends_with_eos
        self.pooled_tokens: PooledTokens = pooled_tokens
        self.is_bidirectional = is_bidirectional
        tokenizer = self.tokenizer
        if not tokenizer.is_fast:
            raise TypeError(
                f"tokenizer must be a fast one, got {type(tokenizer).__name__}. Save tokenizer.json beside the model."
            )
        needed = {"eos_token": ends_with_eos, "mask_token": pooled_tokens == "mask"}
        if missing := [name for name, is_needed in needed.items() if is_needed and getattr(tokenizer, name) is None]:
            raise ValueError(f"tokenizer must have a {missing[0]}, got none. Pass the embedder's own tokenizer.")
        if tokenizer.pad_token is None:  # padding is never seen: any token will do
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Tokens of texts in their templates.

        Args:
            inputs: Texts; anything else than strings is left to sentence-transformers.
            prompt: Put between the template's beginning and the text.
            **arguments: ``task`` chooses the template; the rest as in ``Transformer``.

        Returns:
            ``input_ids`` and ``attention_mask``, and ``pooling_mask`` where not all tokens are pooled.

        Raises:
            ValueError: If ``max_seq_length`` leaves no room for a token of the text.
        """
        is_plain = not (self.templates or self.ends_with_eos or self.pooled_tokens != "all")
        if is_plain or not inputs or not all(isinstance(text, str) for text in inputs):
            features: dict[str, Any] = super().preprocess(inputs, prompt=prompt, **arguments)
            return features
        task = "query" if arguments.get("task") == "query" else "document"
        before, after = self.templates.get(task) or self.templates.get("document") or ("", "")
        texts = templated_texts(
            self.tokenizer,
            list(inputs),
            before=before,
            after=after,
            prompt=prompt or "",
            joins_tokens=self.joins_tokens,
            ends_with_eos=self.ends_with_eos,
            max_length=self.max_seq_length,
        )
        return self._padded(texts)

    def forward(self, features: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        """Token embeddings; the ``attention_mask`` that comes out is that of the tokens to pool.

        Args:
            features: From :meth:`preprocess`.
            **arguments: As in ``Transformer``.

        Returns:
            The features with ``token_embeddings``.

        Raises:
            ValueError: If the attention implementation cannot look in both directions.
        """
        given = {name: value for name, value in features.items() if name != "pooling_mask"}
        mask = given.get("attention_mask")
        if self.is_bidirectional and mask is not None:
            implementation = getattr(self.auto_model.config, "_attn_implementation", None) or "eager"
            if implementation not in _MASKABLE:
                raise ValueError(
                    f"attn_implementation must be one of {', '.join(map(repr, _MASKABLE))} for attention in both "
                    f"directions, got {implementation!r}. Load with model_kwargs={{'attn_implementation': 'sdpa'}}."
                )
            given["attention_mask"] = bidirectional_mask(mask, self.auto_model.dtype)
        found: dict[str, Any] = super().forward(given, **arguments)
        if mask is not None:
            found["attention_mask"] = features.get("pooling_mask", mask)
        return found

    def _padded(self, texts: list[TemplatedText]) -> dict[str, Any]:
        batch = self.tokenizer.pad({"input_ids": [text.ids for text in texts]}, padding=True, return_tensors="pt")
        features: dict[str, Any] = {**batch, "modality": "text"}
        if self.pooled_tokens == "all":
            return features
        tokens = features["attention_mask"].bool()
        pooled = torch.zeros_like(features["attention_mask"])
        for row, text in enumerate(texts):
            places = tokens[row].nonzero()[:, 0]
            if self.pooled_tokens == "after_prompt":
                pooled[row, places[text.before :]] = 1
            else:
                is_mask = features["input_ids"][row, places] == self.tokenizer.mask_token_id
                pooled[row, places[is_mask][-1:]] = 1
        return {**features, "pooling_mask": pooled}
