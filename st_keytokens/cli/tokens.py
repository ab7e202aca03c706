"""The command tokens: what the embeddings of texts say."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from st_keytokens.cli.console import Console, one_line, table
from st_keytokens.cli.inputs import read_texts
from st_keytokens.cli.options import (
    add_batch_size,
    add_command,
    add_input_options,
    add_model,
    add_model_options,
    add_role,
    add_texts,
    add_top_k,
)

_WIDTH = 100  # characters of a text that are shown


def add_tokens_command(commands: Any) -> None:
    """Adds the command ``tokens``."""
    command = add_command(
        commands,
        "tokens",
        "show what the embeddings of texts say",
        'st-keytokens tokens MODEL "The genome of a mouse" --top-k 5',
        _run,
        is_streaming=True,
    )
    add_model(command)
    add_texts(command)
    add_top_k(command, "key tokens a text")
    command.add_argument(
        "--raw", action="store_true", help="as they are before the correction of a calibration, if there is one"
    )
    add_role(command)
    add_batch_size(command)
    add_input_options(command)
    add_model_options(command)


def _run(arguments: Namespace, console: Console) -> None:
    """Shows the key tokens of texts."""
    from st_keytokens.cli.encoders import load_encoder

    batches = read_texts(arguments, "corpus", arguments.batch_size, console)
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
