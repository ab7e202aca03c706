"""The command info: a model or an index described."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from st_keytokens.cli.calibrate import describe_calibration
from st_keytokens.cli.console import Console, one_line
from st_keytokens.cli.options import MODEL, add_command, add_model_options, is_index


def add_info_command(commands: Any) -> None:
    """Adds the command ``info``."""
    command = add_command(commands, "info", "describe a model or an index", "st-keytokens info my-index --json", _run)
    command.add_argument("model", metavar="MODEL|INDEX_DIR", help=f"{MODEL}; or directory of an index")
    add_model_options(command)


def _run(arguments: Namespace, console: Console) -> None:
    """Describes an index or, where the path is none, a model."""
    found = _index_fields(arguments) if is_index(arguments.model) else _model_fields(arguments)
    console.result(found, _lines(found))


def _model_fields(arguments: Namespace) -> dict[str, Any]:
    import numpy as np

    from st_keytokens.cli.encoders import load_encoder

    encoder = load_encoder(arguments)
    lm_head, vocabulary = encoder.head.lm_head, encoder.vocabulary
    return {
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


def _index_fields(arguments: Namespace) -> dict[str, Any]:
    from st_keytokens.calibration import Calibration
    from st_keytokens.cli.encoders import StoredEncoder
    from st_keytokens.index import HybridIndex

    directory = Path(arguments.model)
    with HybridIndex(directory, read_only=True) as opened:
        found: dict[str, Any] = {
            "index": arguments.model,
            "documents": len(opened),
            "bytes": sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()),
            **opened.settings,
        }
    stored = StoredEncoder(directory)
    if stored.begun is not None:
        found["unfinished"] = stored.begun
    if stored.exists:
        found |= stored.origin
        has_calibration = (stored.sidecar / "calibration.json").is_file()
        found["calibration"] = describe_calibration(Calibration.load(stored.sidecar)) if has_calibration else None
    return found


def _lines(found: dict[str, Any], indent: str = "") -> list[str]:
    """Lines of names and values."""
    lines = []
    for name, value in found.items():
        label = f"{indent}{name.replace('_', ' ')}:"
        if isinstance(value, dict) and value:
            lines += [label, *_lines(value, indent + "  ")]
            continue
        lines.append(f"{label:<{24 + len(indent)}} {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else one_line(str(value))
