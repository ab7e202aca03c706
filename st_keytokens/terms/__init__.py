"""What a term is: a vocabulary's readable entries, a text's own terms, and their weights."""

from __future__ import annotations
