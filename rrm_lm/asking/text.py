"""Text of models and people on a page: escaped, and with the characters shown that a browser would hide or obey."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

# Line ends, tabs and the joiners of emoji and of many scripts stay as they are.
_KEPT = "\n\t\u200c\u200d"
_HIDDEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")


def visible(text: str) -> Markup:
    """HTML of a text in which control, direction and zero-width characters are marks that name them."""
    if text.replace("\n", "").isprintable():
        return escape(text)
    mark = Markup('<span class="hidden-character" title="{}">U+{:04X}</span>')
    return Markup("").join(
        mark.format(unicodedata.name(character, "control character").lower(), ord(character))
        if _is_hidden(character)
        else escape(character)
        for character in text
    )


def clean(text: str) -> str:
    """A text without these characters, for a field in which it is edited."""
    return "".join(character for character in text if not _is_hidden(character))


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN and character not in _KEPT


def with_quotes(note: str, response: str) -> Markup:
    """HTML of a note in which parts that it quotes from the response are highlighted."""
    parts = re.split(r'("[^"]{3,}"|“[^”]{3,}”)', note)
    return Markup("").join(
        Markup("<mark>{}</mark>").format(visible(part)) if part[1:-1] and place % 2 and part[1:-1] in response
        else visible(part)
        for place, part in enumerate(parts)
    )  # fmt: skip


def marked(text: str, quotes: Iterable[str]) -> Markup:
    """HTML of a response in which the first place of each quote is highlighted."""
    for quote in quotes:
        if quote and (place := text.find(quote)) >= 0:
            inside = Markup("<mark>{}</mark>").format(visible(quote))
            return visible(text[:place]) + inside + visible(text[place + len(quote) :])
    return visible(text)


def markdown(text: str) -> Markup:
    """HTML of Markdown by who asks. HTML in it is shown as text, pictures too, and links are web links only."""
    return Markup(MarkdownIt("js-default", {"html": False, "linkify": False}).disable("image").render(text))
