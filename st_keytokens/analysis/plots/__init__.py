"""Pictures of the analyses; each module holds one, and needs matplotlib (``pip install "st-keytokens[analysis]"``)."""

from __future__ import annotations
