"""HTML that needs nothing but itself: a page or a notebook's output, whatever characters the texts hold."""

from __future__ import annotations

import html
import unicodedata
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

__all__ = ["HtmlView", "escaped"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # no script and no network, whatever slips in

_STYLE = """
.keytokens{--back:#fff;--text:#1b1b1b;--faint:#5c5c5c;--line:#cfcfcf;--heat:0,114,178;--for:#0072b2;--against:#b34700;
--other:#7a7a7a;--c0:#0072b2;--c1:#b34700;--c2:#007a59;--c3:#a8447f;background:var(--back);color:var(--text);
font:15px/1.55 system-ui,sans-serif;padding:1rem;max-width:75rem;margin:0 auto;box-sizing:border-box}
@media(prefers-color-scheme:dark){.keytokens{--back:#16181c;--text:#ececec;--faint:#b0b0b0;--line:#454a52;
--heat:86,180,233;--for:#56b4e9;--against:#f08a3c;--other:#9a9a9a;--c0:#56b4e9;--c1:#f08a3c;--c2:#3ccfa3;--c3:#e79cc4}}
.keytokens h1{font-size:1.25rem;margin:0 0 .6rem}.keytokens h2{font-size:1rem;margin:1.2rem 0 .3rem}
.keytokens .texts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1.5rem}
.keytokens .words{white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid var(--line);border-radius:4px;
padding:.6rem .7rem;margin:.3rem 0;line-height:1.9;background:none;color:inherit}
.keytokens mark{background:rgba(var(--heat),calc(var(--w)*.5));color:inherit;border-radius:2px;padding:.08em 0;
-webkit-print-color-adjust:exact;print-color-adjust:exact}
.keytokens .shared{border-bottom:3px solid}.keytokens sup{font-size:.7em;font-weight:700;line-height:1}
.keytokens mark.k0{border-color:var(--c0)}.keytokens mark.k1{border-color:var(--c1);border-bottom-style:dashed}
.keytokens mark.k2{border-color:var(--c2);border-bottom-style:dotted}
.keytokens mark.k3{border-color:var(--c3);border-bottom-style:double}
.keytokens sup.k0{color:var(--c0)}.keytokens sup.k1{color:var(--c1)}
.keytokens sup.k2{color:var(--c2)}.keytokens sup.k3{color:var(--c3)}
.keytokens table{border-collapse:collapse;width:100%;font-size:.9em;background:none;color:inherit}
.keytokens caption{text-align:start;color:var(--faint);padding:.2rem 0}
.keytokens th,.keytokens td{padding:.1rem .5rem .1rem 0;text-align:start;vertical-align:middle;
font-weight:400;background:none;color:inherit;border:0}
.keytokens thead th,.keytokens thead td{color:var(--faint);border-bottom:1px solid var(--line)}
.keytokens tbody tr{background:none}
.keytokens .number{text-align:end;font-variant-numeric:tabular-nums;white-space:nowrap;width:1%}
.keytokens .token{width:1%;white-space:nowrap;max-width:14rem;overflow:hidden;text-overflow:ellipsis}
.keytokens .bar{display:flex;direction:ltr;height:.8em;min-width:6rem}
.keytokens .bar i{display:block;height:100%;background:var(--for);-webkit-print-color-adjust:exact;
print-color-adjust:exact}
.keytokens .bar i.gap{background:none}.keytokens .bar i.rest{background:var(--other)}
.keytokens .bar i.other,.keytokens .bar i.against{background:repeating-linear-gradient(135deg,var(--against) 0 4px,
transparent 4px 6px)}
.keytokens .note{color:var(--faint);font-size:.9em;margin:.3rem 0}
.keytokens details{margin:.4rem 0}.keytokens summary{cursor:pointer;color:var(--faint)}
.keytokens summary:focus-visible{outline:2px solid var(--for)}
.keytokens img{margin-top:1rem;max-width:100%;height:auto;background:#fff;border-radius:4px}
.keytokens .wide{overflow-x:auto}
"""


@dataclass(frozen=True)
class HtmlView:
    """A view for notebooks, which show it as it is, and for files.

    Attributes:
        title: Of the page.
        body: HTML without anything that needs escaping.
    """

    title: str
    body: str

    def _repr_html_(self) -> str:
        heading = f"<h1>{escaped(self.title)}</h1>"
        return f'<style>{_STYLE}</style><article class="keytokens">{heading}{self.body}</article>'

    def __str__(self) -> str:
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            f"<title>{escaped(self.title)}</title></head><body>{self._repr_html_()}</body></html>\n"
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a page that needs no other file and no network.

        Args:
            path: The file; an existing one is replaced.

        Raises:
            OSError: If it cannot be written.
        """
        Path(path).write_text(str(self), encoding="utf-8", newline="\n")


def escaped(text: str) -> str:
    r"""A text as HTML shows it: markup escaped; control characters and lone surrogates, one by one, as U+FFFD.

    >>> escaped("<b> & \x00")
    '&lt;b&gt; &amp; \ufffd'
    """
    kept = (c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text)
    return html.escape("".join(kept))
