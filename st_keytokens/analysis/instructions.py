"""The same texts under several instructions: what enters and what leaves their key tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.modules import Pooling

from st_keytokens.encoder.encoder import KeyTokenEncoder, without_silent
from st_keytokens.encoder.forward_pass import Role
from st_keytokens.shared.checks import checked_int
from st_keytokens.shared.markdown import markdown_table
from st_keytokens.terms.literal_terms import check_texts
from st_keytokens.terms.vocabulary import TermStrings

__all__ = ["InstructedText", "InstructionComparison", "InstructionEffect", "compare_instructions"]

Pairs = tuple[tuple[str, float], ...]
_SHOWN = 8  # tokens of an instruction in a table


def compare_instructions(
    encoder: KeyTokenEncoder,
    texts: str | Sequence[str],
    instructions: Mapping[str, str] | Sequence[str],
    *,
    baseline: str | None = None,
    top_k: int = 10,
    role: Role = "document",
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> InstructionComparison:
    """Embeds the same texts under several instructions, and compares their key tokens.

    Args:
        encoder: The encoder, whose head says what the key tokens are.
        texts: One text or several.
        instructions: What is put before each text for the model, exactly as given, by name; a list names each by its
            own words.
        baseline: Name of the instruction that the others are compared with. None: no prompt at all, named ``"none"``.
        top_k: Key tokens of a text, at most as many as the head keeps.
        role: ``"document"`` or ``"query"``: how the model treats the texts, where it treats them differently.
        batch_size: Texts a forward pass at most.
        show_progress_bar: Whether to show one for each instruction.

    Returns:
        The comparison.

    Raises:
        TypeError: If a text or an instruction is not a string, or ``top_k`` no integer.
        ValueError: If there is no text or no instruction, a name is given twice, the baseline is none of the names, or
            ``top_k`` is out of range.

    Source:
        Nie et al. 2025 (arXiv 2406.17378), instruction following: the same text under different instructions decodes
        to different tokens. Differs from it in counting, and in setting the instruction's own words apart.
    """
    given = check_texts(texts)
    if not given:
        raise ValueError("texts must hold at least one text, got none.")
    prompts = _named(instructions, baseline)
    base = next(iter(prompts))
    limit = encoder.head.query_max_active_dims if role == "query" else encoder.head.max_active_dims
    top_k = checked_int("top_k", top_k, minimum=1, maximum=limit)
    literal, dense, key_tokens = encoder.literal_terms(given), {}, {}
    for name, prompt in prompts.items():
        with encoder.lock, torch.inference_mode():
            dense[name], decoded = encoder.forward_pass.both(given, role, prompt, batch_size, show_progress_bar)
        key_tokens[name] = [_strongest(*row) for row in without_silent(decoded.prune(top_k), literal)]
    strings = encoder.vocabulary.strings
    by_text = {
        name: tuple(map(_compared, key_tokens[base], key_tokens[name], dense[base], dense[name], repeat(strings)))
        for name in prompts
    }
    effects = {name: _effect(encoder, prompt, by_text[name]) for name, prompt in prompts.items()}
    pools_prompt = all(
        getattr(module, "include_prompt", True)
        for module in encoder.forward_pass.before
        if isinstance(module, Pooling)
    )
    return InstructionComparison(tuple(given), base, top_k, pools_prompt, effects, by_text)


@dataclass(frozen=True)
class InstructionComparison:
    """Texts under instructions.

    Attributes:
        texts: The texts.
        baseline: Name of the instruction that all are compared with.
        top_k: Key tokens of a text, at most.
        pools_prompt: Whether the tokens of the prompt themselves are part of the pooled vector: then an instruction's
            own words are mixed into every text's vector, which is no sign that it was followed.
        effects: By name of the instruction, the baseline first.
        by_text: By name, one for each text.
    """

    texts: tuple[str, ...]
    baseline: str
    top_k: int
    pools_prompt: bool
    effects: Mapping[str, InstructionEffect]
    by_text: Mapping[str, tuple[InstructedText, ...]]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "baseline": self.baseline,
            "top_k": self.top_k,
            "pools_prompt": self.pools_prompt,
            "effects": {name: asdict(effect) for name, effect in self.effects.items()},
            "texts": [
                {"text": text, "instructions": {name: asdict(rows[i]) for name, rows in self.by_text.items()}}
                for i, text in enumerate(self.texts)
            ],
        }

    def table(self) -> str:
        """The effects as Markdown; after each token that enters or leaves, in how many texts it does."""
        rows: list[list[object]] = [
            [name, effect.kept, effect.cosine, effect.own_words, _counted(effect.entered), _counted(effect.left)]
            for name, effect in self.effects.items()
            if name != self.baseline
        ]
        return markdown_table(["instruction", "kept", "cosine", "own words", "enter", "leave"], rows)

    def text_table(self, position: int = 0) -> str:
        """One text's key tokens under each instruction as Markdown, strongest first; what entered is marked with +.

        Raises:
            IndexError: If there is no such text.
        """
        rows: list[list[object]] = []
        for name, texts in self.by_text.items():
            entered = dict(texts[position].entered)
            tokens = [f"+{token}" if token in entered else token for token, _ in texts[position].tokens]
            rows.append([name, " ".join(tokens), " ".join(token for token, _ in texts[position].left)])
        return markdown_table(["instruction", "key tokens", "left"], rows)


@dataclass(frozen=True)
class InstructedText:
    """A text under an instruction, beside the same text under the baseline.

    Attributes:
        tokens: Key tokens with their weights, strongest first.
        entered: Those of them that the baseline lacks.
        left: Key tokens of the baseline that are not among them, with their weights there.
        kept: Share of the baseline's key tokens that stayed; 1 where it had none.
        cosine: Of the two dense vectors.
    """

    tokens: Pairs
    entered: Pairs
    left: Pairs
    kept: float
    cosine: float


@dataclass(frozen=True)
class InstructionEffect:
    """What an instruction does to all texts.

    Attributes:
        prompt: Its words.
        kept: Mean share of the baseline's key tokens that stay.
        cosine: Mean cosine of a text's two dense vectors.
        entered: Tokens with the number of texts whose key tokens they enter, most first.
        left: Tokens with the number of texts whose key tokens they leave, most first.
        own_words: Share of all that enters which are the instruction's own words; None where nothing enters.
    """

    prompt: str
    kept: float
    cosine: float
    entered: tuple[tuple[str, int], ...]
    left: tuple[tuple[str, int], ...]
    own_words: float | None


def _named(instructions: Mapping[str, str] | Sequence[str], baseline: str | None) -> dict[str, str]:
    """Prompts by name, the baseline first."""
    if not isinstance(instructions, Mapping):
        listed = check_texts(instructions, "instructions")
        if len(set(listed)) < len(listed):
            raise ValueError(f"instructions must differ from one another, got {listed!r}.")
        instructions = {prompt.strip() or "empty": prompt for prompt in listed}
    if not instructions:
        raise ValueError("instructions must hold at least one, got none.")
    prompts = dict(zip(instructions, check_texts(list(instructions.values()), "instructions"), strict=True))
    if baseline is None:
        if "none" in prompts:
            raise ValueError("instructions must not be named 'none', which is the baseline. Name it with baseline=.")
        return {"none": "", **prompts}
    if baseline not in prompts:
        raise ValueError(f"baseline must be one of {', '.join(map(repr, prompts))}, got {baseline!r}.")
    return {baseline: prompts[baseline], **prompts}


def _strongest(ids: NDArray[np.int32], weights: NDArray[np.float32]) -> dict[int, float]:
    order = np.argsort(-weights, kind="stable")
    return dict(zip(ids[order].tolist(), weights[order].tolist(), strict=True))


def _compared(
    before: dict[int, float],
    now: dict[int, float],
    vector_before: NDArray[np.float32],
    vector_now: NDArray[np.float32],
    strings: TermStrings,
) -> InstructedText:
    def pairs(terms: dict[int, float], others: Container[int] = ()) -> Pairs:
        return tuple((strings[term], weight) for term, weight in terms.items() if term not in others)

    a, b = vector_now.astype(np.float64), vector_before.astype(np.float64)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    left = pairs(before, now)
    return InstructedText(
        tokens=pairs(now),
        entered=pairs(now, before),
        left=left,
        kept=1 - len(left) / len(before) if before else 1.0,
        cosine=float(a @ b) / lengths if lengths else 0.0,
    )


def _effect(encoder: KeyTokenEncoder, prompt: str, rows: Sequence[InstructedText]) -> InstructionEffect:
    entered = Counter(token for row in rows for token, _ in row.entered)
    left = Counter(token for row in rows for token, _ in row.left)
    own = {encoder.vocabulary.strings[term] for term in encoder.literal_terms([prompt])[0].tolist()}
    total = entered.total()
    return InstructionEffect(
        prompt,
        kept=float(np.mean([row.kept for row in rows])),
        cosine=float(np.mean([row.cosine for row in rows])),
        entered=tuple(entered.most_common()),
        left=tuple(left.most_common()),
        own_words=sum(count for token, count in entered.items() if token in own) / total if total else None,
    )


def _counted(tokens: Sequence[tuple[str, int]]) -> str:
    return " ".join(f"{token} {count}" for token, count in tokens[:_SHOWN])
