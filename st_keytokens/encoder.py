"""KeyTokenEncoder: one forward pass, a dense and a sparse vector."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tqdm.auto import tqdm

from st_keytokens import sidecar
from st_keytokens.calibration import Calibration
from st_keytokens.checks import check_choice, checked_int
from st_keytokens.decoding import Activation, check_finite
from st_keytokens.first_component import as_tensor, check_embeddings
from st_keytokens.forward_pass import Role, as_sparse
from st_keytokens.head_settings import DecoderName, HeadCorrection
from st_keytokens.headed_model import Query, without_none
from st_keytokens.sparse_embeddings import SparseEmbeddings
from st_keytokens.text_encoder import TextEncoder, without_silent
from st_keytokens.texts import check_texts
from st_keytokens.weighting import Weighting


class KeyTokenEncoder(TextEncoder):
    """Gives a SentenceTransformer a second, sparse output, without touching the first.

    A text without a single term of its own, as white space, has an empty sparse vector, whatever a prompt says.

    Args:
        model: A loaded ``SentenceTransformer``, or its name or path. It is not modified, and may already hold a
            :class:`KeyTokenHead`, which is then used.
        head: A :class:`KeyTokenHead` with settings or an LM head of its own, such as
            ``KeyTokenHead(correction="center")``; bound to the model here. None: the method's.
        backbone: Where the LM head is, if the model cannot tell: name, directory or URL of the language model that
            it was made from. Only the LM head is read.
        calibration: First component, logit statistics and document frequencies, see :meth:`calibrate`.
        method: Name of a method (see ``weighting.METHODS``).
        weighting: Overrides the method's weighting.
        query: ``"encode"``: queries take a forward pass; ``"lookup"``: they are their literal terms.
        cache_size: Texts whose embeddings are remembered, so that asking for dense and for sparse vectors separately
            costs one pass.
        max_active_dims: Decoded terms kept of a document. None: the method's.
        query_max_active_dims: Decoded terms kept of a query. None: the method's.

    Attributes:
        model: As given.
        head: The head. Most of its settings may be changed at any time.
        vocabulary: The terms of the sparse vectors.
        literal_terms: Finds the literal terms of texts.
        weighting: As given, or the method's.
        query: As given.
        cache: The embeddings that are remembered.

    Raises:
        ValueError: If a setting is not one of its choices, or the LM head cannot be known from the model alone.
    """

    def sparsify(
        self,
        embeddings: np.ndarray | torch.Tensor,
        texts: Sequence[str] | None = None,
        *,
        role: Role = "document",
        batch_size: int = 256,
        show_progress_bar: bool = False,
    ) -> SparseEmbeddings:
        """Sparse vectors of dense ones that were stored earlier; nothing is embedded.

        Args:
            embeddings: Shape ``(N, embedding_dimension)``, numpy (also memory-mapped) or torch, as this model gives
                them, not truncated. Where the head normalises, stored length does not matter.
            texts: The texts they belong to, for the literal terms. None: decoded terms only.
            role: ``"document"`` or ``"query"``: decides the number of terms and their weights.
            batch_size: Rows decoded at a time; bounds the memory.
            show_progress_bar: Whether to show one.

        Returns:
            ``SparseEmbeddings`` ``(N, vocab_size)``; with texts, the same as :meth:`encode` gives.

        Raises:
            TypeError: If embeddings are no floating-point array or tensor, or a text is not a string.
            ValueError: If the dimension is wrong, a value is not finite, texts and embeddings differ in number, role
                is unknown, batch_size is below 1, or more than a normalisation follows pooling in the model.
        """
        check_embeddings(embeddings, self.head.lm_head_dimension)
        self.forward_pass.check_stored()
        check_choice("role", role, get_args(Role))
        checked_int("batch_size", batch_size, minimum=1)
        if isinstance(texts, str) or (texts is not None and len(texts) != len(embeddings)):
            given = "one string" if isinstance(texts, str) else len(texts or ())
            raise ValueError(f"texts must be one for each embedding, got {given} for {len(embeddings)}.")
        parts = [SparseEmbeddings.empty(0, self.vocabulary.vocab_size)]
        with tqdm(total=len(embeddings), disable=not show_progress_bar) as bar:
            for start in range(0, len(embeddings), batch_size):
                rows = as_tensor(embeddings[start : start + batch_size])
                check_finite(rows, start)
                with self.lock, torch.inference_mode():
                    self.head.to(self.model.device)
                    decoded = as_sparse(self.head.decode(rows, task=role), self.vocabulary)
                part = None if texts is None else check_texts(texts[start : start + batch_size])
                parts.append(self.weigh(part, decoded, role))
                bar.update(len(rows))
        return SparseEmbeddings.concatenate(parts)

    def key_tokens(
        self,
        texts: str | Sequence[str],
        top_k: int = 10,
        *,
        role: Role = "document",
        decode_with: DecoderName | None = None,
        correction: HeadCorrection | None = None,
        shift: float | None = None,
        standardize: bool | None = None,
        activation: Activation | None = None,
        normalize: bool | None = None,
    ) -> list[list[tuple[str, float]]]:
        """What the embeddings say: the strongest decoded terms of each text, readable, with their scores.

        Args:
            texts: One text or several.
            top_k: At most so many terms of each.
            role: ``"document"`` or ``"query"``: decides the prompt.
            decode_with: This and what follows change a setting of the head for this call; None: as the head is set.
            correction: What is done to an embedding before it is decoded.
            shift: Signed amount for ``correction="shift"``.
            standardize: Whether logits are standardised over the calibration's texts.
            activation: Turns scores into weights.
            normalize: Whether embeddings are decoded at length 1.

        Returns:
            For each text a list of ``(token, weight)``, strongest first; empty for a text without a term of its own.

        Raises:
            TypeError: If a text is not a string, or ``top_k`` not an integer.
            ValueError: If a setting is not one of its choices or needs a calibration, or ``top_k`` is below 1.
        """
        changes = without_none(
            decode_with=decode_with,
            correction=correction,
            shift=shift,
            standardize=standardize,
            activation=activation,
            normalize=normalize,
        )
        decoder = self.head.with_settings(**changes) if changes else self.head
        texts = check_texts(texts)
        with self.lock, torch.inference_mode():
            pooled = self.forward_pass.pooled(texts, role)
            decoded = as_sparse(decoder.decode(pooled, max_active_dims=top_k), self.vocabulary)
        return without_silent(decoded, self.literal_terms(texts)).decode(self.vocabulary)

    # -- saving and sharing ----------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Saves the model as it is, and beside it the folder ``key_tokens``, which others ignore.

        The folder holds all that changes a score: settings, calibration and, unless it is the model's own, the LM
        head. A :class:`KeyTokenHead` among the modules is saved there too, so that any sentence-transformers loads
        the model, without ``trust_remote_code``. What an earlier save left there is replaced.

        Args:
            path: Directory; made where it is missing.

        Raises:
            OSError: If it cannot be written.
        """
        sidecar.save(self, Path(path))

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        *,
        model_arguments: dict[str, Any] | None = None,
        backbone: str | PathLike[str] | None = None,
        calibration: Calibration | None = None,
        method: str | None = None,
        weighting: Weighting | None = None,
        query: Query | None = None,
        cache_size: int = 1024,
        max_active_dims: int | None = None,
        query_max_active_dims: int | None = None,
    ) -> KeyTokenEncoder:
        """Loads what :meth:`save_pretrained` wrote, or attaches to any model by its name or path.

        What is None is as it was saved or, where nothing was, as in the class. Other settings are changed afterwards,
        in ``head``.

        Args:
            path: Directory, or name on the Hub.
            model_arguments: For ``SentenceTransformer``, such as ``{"device": "cuda"}``. Its ``token``,
                ``cache_folder``, ``revision`` and ``local_files_only`` hold for the folder ``key_tokens`` as well.
            backbone: See the class, as for the rest.
            calibration: Instead of the saved one.
            method: Replaces all saved settings of the head and the weighting.
            weighting: Over the method's.
            query: How queries are encoded.
            cache_size: Texts that are remembered; never saved.
            max_active_dims: Decoded terms kept of a document.
            query_max_active_dims: Decoded terms kept of a query.

        Returns:
            The encoder.

        Raises:
            OSError: If there is no such model.
            ValueError: If the saved key tokens are damaged or belong to other weights or another vocabulary, or if an
                argument is not one of its choices.
        """
        changes = without_none(
            backbone=backbone,
            calibration=calibration,
            method=method,
            weighting=weighting,
            query=query,
            max_active_dims=max_active_dims,
            query_max_active_dims=query_max_active_dims,
        )
        return sidecar.load(cls, str(path), model_arguments or {}, changes, cache_size=cache_size)
