"""An embedder with a second, sparse output."""

from __future__ import annotations
