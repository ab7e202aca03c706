"""Commands on a model: tokens, calibrate, info."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_keytokens.calibration import Calibration
from st_keytokens.cli.console import Console, UserError, one_line, table
from st_keytokens.cli.inputs import Corpus, read_texts
from st_keytokens.cli.models import load_encoder
from st_keytokens.cli.parser import model_path
from st_keytokens.encoder import sidecar
from st_keytokens.encoder.encoder import KeyTokenEncoder


@dataclass(frozen=True)
class Texts:
    """The texts of a corpus, as often as they are wanted.

    Attributes:
        corpus: The corpus.
    """

    corpus: Corpus

    def __len__(self) -> int:
        return len(self.corpus)

    def __iter__(self) -> Iterator[str]:
        return (document.text or "" for document in self.corpus)


def check_can_calibrate(corpus: Corpus) -> None:
    """Refuses a corpus that is too small for a calibration.

    Raises:
        UserError: If there are fewer than two documents.
    """
    if len(corpus) < 2:
        raise UserError(
            f"{corpus.name} must hold at least two documents to calibrate on, got {len(corpus)}; thousands are good."
        )


def calibrate_on(
    encoder: KeyTokenEncoder,
    corpus: Corpus,
    console: Console,
    *,
    batch_size: int,
    state: str | Path | None = None,
    vectors: NDArray[np.float32] | None = None,
) -> Calibration:
    """Fits a calibration, and sets it in the encoder.

    Args:
        encoder: The encoder.
        corpus: Documents to fit it on.
        console: Whether there is a progress bar.
        batch_size: Texts a forward pass.
        state: See ``Calibration.fit(resume_from=...)``.
        vectors: The documents' pooled vectors. None: the documents are embedded.

    Returns:
        The calibration.

    Raises:
        ValueError: See ``Calibration.fit``.
    """
    encoder.calibration = Calibration.fit(
        encoder,
        Texts(corpus),
        embeddings=vectors,
        batch_size=batch_size,
        show_progress_bar=console.has_progress,
        resume_from=state,
    )
    return encoder.calibration


_WIDTH = 100  # characters of a text that are shown


def tokens(arguments: Namespace, console: Console) -> None:
    """Shows the key tokens of texts."""
    batches = read_texts(arguments, "corpus", arguments.batch_size)
    encoder = load_encoder(arguments)
    for batch in batches:
        found = encoder.key_tokens(
            [record.text for record in batch],
            arguments.top_k,
            role=arguments.role,
            decode_with="lm_head" if arguments.raw else None,
            correction="none" if arguments.raw else None,
            standardize=False if arguments.raw else None,
        )
        for record, pairs in zip(batch, found, strict=True):
            console.result(
                {"id": record.id, "text": record.text, "tokens": [{"token": t, "weight": w} for t, w in pairs]},
                [
                    one_line(record.text, _WIDTH),
                    *table(["weight", "token"], [[w, one_line(t)] for t, w in pairs], "  "),
                ],
            )


def calibrate(arguments: Namespace, console: Console) -> None:
    """Fits a calibration on texts and saves it with the model."""
    output = Path(arguments.output)
    is_in_place = output.is_dir() and str(output.resolve()) == model_path(arguments.model)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output must be a directory, got the file {output}.")
    if not is_in_place and output.exists() and any(output.iterdir()) and not (output / sidecar.FOLDER).exists():
        raise UserError(f"--output must be a new directory or one of an earlier calibration, got {output}.")
    with Corpus(arguments.input, arguments) as corpus:
        corpus.check_not_empty()
        check_can_calibrate(corpus)
        encoder = load_encoder(arguments)
        output.mkdir(parents=True, exist_ok=True)
        calibration = calibrate_on(encoder, corpus, console, batch_size=arguments.batch_size, state=arguments.state)
    if is_in_place:
        encoder.save_sidecar(output / sidecar.FOLDER)
    else:
        encoder.save_pretrained(output)
    found = describe_calibration(calibration) | {"first_component_tokens": _fed_tokens(encoder), "output": str(output)}
    console.result(
        found,
        [
            f"Calibrated on {found['documents']:,} documents of {found['average_length']:.1f} terms on average.",
            f"The first component holds {found['first_component_share']:.1%} of the embeddings' squared length,"
            f" and feeds: {' '.join(map(one_line, found['first_component_tokens']))}",
            f"Saved in {output}.",
        ],
    )


def describe_model(arguments: Namespace, console: Console) -> None:
    """Describes a model."""
    encoder = load_encoder(arguments)
    lm_head, vocabulary = encoder.head.lm_head, encoder.vocabulary
    found: dict[str, Any] = {
        "model": arguments.model,
        "embedding_dimension": encoder.get_embedding_dimension(),
        "vocab_size": vocabulary.vocab_size,
        "terms": len(np.unique(vocabulary.terms[~vocabulary.is_masked])),
        "lm_head": "tied" if lm_head is not None and lm_head.is_tied else "untied",
        "correction": encoder.head.active_correction,
        "max_active_dims": encoder.head.max_active_dims,
        "query_max_active_dims": encoder.head.query_max_active_dims,
        "prompts": encoder.model.prompts,
        "calibration": None if encoder.calibration is None else describe_calibration(encoder.calibration),
        "fingerprint": encoder.fingerprint,
    }
    console.result(found, describe(found))


def describe_calibration(calibration: Calibration) -> dict[str, Any]:
    """What a calibration found."""
    component = calibration.first_component
    return {
        "documents": calibration.document_count,
        "average_length": calibration.average_length if calibration.document_frequencies is not None else None,
        "first_component_share": component.singular_value**2 / float(calibration.moments.second_moment.trace()),
    }


def describe(found: dict[str, Any], indent: str = "") -> list[str]:
    """Lines of names and values."""
    lines = []
    for name, value in found.items():
        label = f"{indent}{name.replace('_', ' ')}:"
        if isinstance(value, dict) and value:
            lines += [label, *describe(value, indent + "  ")]
            continue
        lines.append(f"{label:<{24 + len(indent)}} {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else one_line(str(value))


def _fed_tokens(encoder: KeyTokenEncoder, top_k: int = 10) -> list[str]:
    """The tokens that the first component raises most."""
    calibration = encoder.calibration
    if calibration is None:
        return []
    decoder = encoder.head.with_settings(decode_with="lm_head", correction="none", standardize=False, normalize=False)
    ids, weights = decoder.decode(calibration.first_component.direction[None], max_active_dims=top_k)
    order = weights[0].argsort(descending=True).tolist()
    return [encoder.vocabulary.strings[int(ids[0, i])] for i in order if weights[0, i] > 0]
