"""The command calibrate, and what other commands say and ask of a calibration."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_keytokens.cli.console import Console, UserError, one_line
from st_keytokens.cli.inputs import CorpusTexts, InputCorpus
from st_keytokens.cli.options import (
    add_batch_size,
    add_command,
    add_input,
    add_input_options,
    add_model,
    add_model_options,
    model_path,
    run_again,
)

if TYPE_CHECKING:
    from st_keytokens.calibration import Calibration
    from st_keytokens.encoder.encoder import KeyTokenEncoder


def add_calibrate_command(commands: Any) -> None:
    """Adds the command ``calibrate``."""
    command = add_command(
        commands,
        "calibrate",
        "fit a model's corrections on texts, and save both",
        "st-keytokens calibrate MODEL corpus.jsonl --output calibrated",
        _run,
        how_to_go_on=lambda arguments: run_again(arguments) if arguments.state else "nothing was kept without --state",
    )
    add_model(command)
    add_input(command)
    command.add_argument(
        "--output",
        metavar="DIR",
        required=True,
        help="where the model and its key_tokens folder go; where this is the directory MODEL, only the folder",
    )
    command.add_argument(
        "--state", metavar="FILE", help="save progress here; run again to go on after an interruption"
    )
    add_batch_size(command)
    add_input_options(command)
    add_model_options(command)


def _run(arguments: Namespace, console: Console) -> None:
    """Fits a calibration on texts and saves it with the model."""
    from st_keytokens.cli.encoders import load_encoder
    from st_keytokens.encoder import sidecar

    output = Path(arguments.output)
    is_in_place = output.is_dir() and str(output.resolve()) == model_path(arguments.model)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output must be a directory, got the file {output}.")
    if not is_in_place and output.exists() and any(output.iterdir()) and not (output / sidecar.FOLDER).exists():
        raise UserError(f"--output must be a new directory or one of an earlier calibration, got {output}.")
    with InputCorpus(arguments.input, arguments) as corpus:
        corpus.check_not_empty()
        check_can_calibrate(corpus)
        encoder = load_encoder(arguments)
        output.mkdir(parents=True, exist_ok=True)
        calibration = encoder.calibrate(
            CorpusTexts(corpus),
            batch_size=arguments.batch_size,
            show_progress_bar=console.has_progress,
            resume_from=arguments.state,
        )
    if is_in_place:
        encoder.save_sidecar(output / sidecar.FOLDER)
    elif any(output.iterdir()):
        encoder.save_pretrained(output)
    else:
        _save_whole(encoder, output)
    tokens = _fed_tokens(encoder, calibration)
    found = describe_calibration(calibration) | {"first_component_tokens": tokens, "output": str(output)}
    console.result(
        found,
        [
            f"Calibrated on {found['documents']:,} documents of {found['average_length']:.1f} terms on average.",
            f"The first component holds {found['first_component_share']:.1%} of the embeddings' squared length,"
            f" and feeds: {' '.join(map(one_line, tokens))}",
            f"Saved in {output}.",
        ],
    )


def _save_whole(encoder: KeyTokenEncoder, output: Path) -> None:
    """Saves a model into an empty directory; after an interruption, that is still empty."""
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        encoder.save_pretrained(temporary)
        output.rmdir()
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_can_calibrate(corpus: InputCorpus) -> None:
    """Refuses a corpus that is too small for a calibration."""
    if len(corpus) < 2:
        raise UserError(
            f"{corpus.name} must hold at least two documents to calibrate on, got {len(corpus)}; thousands are good."
        )


def describe_calibration(calibration: Calibration) -> dict[str, Any]:
    """What a calibration found."""
    component = calibration.first_component
    return {
        "documents": calibration.document_count,
        "average_length": calibration.average_length if calibration.terms is not None else None,
        "first_component_share": component.singular_value**2 / float(calibration.moments.second_moment.trace()),
    }


def _fed_tokens(encoder: KeyTokenEncoder, calibration: Calibration, top_k: int = 10) -> list[str]:
    """The tokens that the first component raises most."""
    decoder = encoder.head.with_settings(decode_with="lm_head", correction="none", standardize=False, normalize=False)
    ids, weights = decoder.decode(calibration.first_component.direction[None], max_active_dims=top_k)
    order = weights[0].argsort(descending=True).tolist()
    return [encoder.vocabulary.strings[int(ids[0, i])] for i in order if weights[0, i] > 0]
