"""Alignment as an evaluator in sentence-transformers' own form."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from st_keytokens.analysis.alignment import BASELINE, VARIANTS, Alignment, Definition, Rate, measure_alignment
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.encoder.forward_pass import Role
from st_keytokens.shared.checks import check_choice, checked_int
from st_keytokens.terms.literal_terms import check_texts

__all__ = ["KeyTokenAlignmentEvaluator"]

Main = Literal["hit", "share", "local_alignment_rate", "global_alignment_rate", "precision"]
Variant = Literal["raw", "corrected", "standardized"]


class KeyTokenAlignmentEvaluator(SentenceEvaluator):  # type: ignore[misc]  # untyped for mypy, see pyproject.toml
    """Measures how well the key tokens of a model's embeddings are the texts' own, as it is trained or afterwards.

    The metrics are ``hit@k``, ``share@k``, ``local_alignment_rate``, ``global_alignment_rate`` and ``precision``, see
    :class:`~st_keytokens.analysis.alignment.Alignment`, and the same with ``frequency_`` before them, of an
    answer that looks at no text.

    Args:
        texts: The texts.
        variant: What is done to the embeddings, a name of ``VARIANTS``. First component and logit statistics are
            those of the model's calibration or, where it has none, are fitted on the texts at each call.
        definition: ``"clean"`` or ``"nie2025"``.
        k: Decoded terms for Hit@k and share, and of the definition ``"nie2025"``.
        max_document_share: Only terms that occur in at most this share of the texts count.
        role: ``"document"`` or ``"query"``: decides the prompt.
        main: Which metric is the primary one.
        batch_size: Texts a forward pass at most.
        show_progress_bar: Whether to show one.
        name: Put before the metrics and into the name of the file.
        write_csv: Whether to write the CSV file where an output path is given.

    Raises:
        TypeError: If a text is not a string.
        ValueError: If there is no text, or variant, main or k is out of its range.
    """

    def __init__(
        self,
        texts: Sequence[str],
        *,
        variant: Variant = "raw",
        definition: Definition = "clean",
        k: int = 10,
        max_document_share: float = 1.0,
        role: Role = "document",
        main: Main = "local_alignment_rate",
        batch_size: int = 32,
        show_progress_bar: bool = False,
        name: str = "",
        write_csv: bool = True,
    ) -> None:
        super().__init__()
        check_choice("variant", variant, VARIANTS)
        check_choice("main", main, get_args(Main))
        self.texts = check_texts(texts)
        if not self.texts:
            raise ValueError("texts must hold at least one, got none.")
        self.variant = variant
        self.k = checked_int("k", k, minimum=1)
        self.main = main
        self.name = name
        self.write_csv = write_csv
        self._arguments: dict[str, Any] = {
            "definition": definition,
            "max_document_share": max_document_share,
            "role": role,
            "batch_size": batch_size,
            "show_progress_bar": show_progress_bar,
        }
        self.csv_file = f"Key-Token-Alignment_evaluation{'_' + name if name else ''}_results.csv"

    def __call__(
        self,
        model: KeyTokenEncoder | SentenceTransformer,
        output_path: str | None = None,
        epoch: int = -1,
        steps: int = -1,
    ) -> dict[str, float]:
        """Measures a model.

        Args:
            model: A KeyTokenEncoder, or a SentenceTransformer that holds a KeyTokenHead or can be given one.
            output_path: Directory of the CSV file. None: not written.
            epoch: A column of it; -1 after training.
            steps: A column of it; -1 at the end of an epoch.

        Returns:
            The metrics by name.

        Raises:
            ValueError: See :func:`~st_keytokens.analysis.alignment.measure_alignment`.
        """
        encoder = model if isinstance(model, KeyTokenEncoder) else KeyTokenEncoder(model)
        variants = {self.variant: VARIANTS[self.variant]}
        arguments = {"variants": variants, "k": self.k, "ks": [self.k], "samples": 1, **self._arguments}
        found = measure_alignment(self.texts, encoder, **arguments).rows
        metrics = self._metrics(found[f"embedder, {self.variant}"])
        metrics |= {f"frequency_{name}": value for name, value in self._metrics(found[BASELINE]).items()}
        if output_path is not None and self.write_csv:
            self._write(Path(output_path), {"epoch": epoch, "steps": steps, **metrics})
        self.primary_metric = f"{self.main}@{self.k}" if self.main in ("hit", "share") else self.main
        named: dict[str, float] = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(encoder.model, named, epoch, steps)
        return named

    def get_config_dict(self) -> dict[str, Any]:
        """Settings for the model card."""
        settings = ("definition", "max_document_share")
        return {"variant": self.variant, "k": self.k, **{name: self._arguments[name] for name in settings}}

    def _metrics(self, alignment: Alignment) -> dict[str, float]:
        return {
            f"hit@{self.k}": alignment.hits[self.k].value,
            f"share@{self.k}": alignment.shares[self.k].value,
            **{rate: getattr(alignment, rate).value for rate in get_args(Rate)},
        }

    def _write(self, folder: Path, row: dict[str, float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.csv_file
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if is_new:
                writer.writeheader()
            writer.writerow(row)
