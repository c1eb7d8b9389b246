"""HTML elements as nested function calls; every text is escaped unless it is `Markup` already."""

from collections.abc import Iterable
from html import escape

VOID = ("input", "img", "meta", "br", "hr", "link")


class Markup(str):
    """Text that is HTML."""


def tag(name: str, /, *children, **attributes) -> Markup:
    """`tag("p", "a < b", class_="note")` → `<p class="note">a &lt; b</p>`.

    Children may be nested lists; None is left out. An attribute's trailing underscore goes, others become hyphens;
    None and False leave the attribute out, True gives it no value.
    """
    given = (
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    opening = f"<{name}{''.join(given)}>"
    return Markup(opening) if name in VOID else Markup(f"{opening}{join(children)}</{name}>")


def join(children) -> Markup:
    """Children one after the other."""
    return Markup("".join(_flatten(children)))


def bullets(lines: Iterable) -> Markup:
    """A list with a point for each line."""
    return tag("ul", [tag("li", line) for line in lines])


def _flatten(node) -> Iterable[str]:
    if node is None:
        return
    if isinstance(node, Markup):
        yield node
    elif isinstance(node, str | int | float):
        yield escape(str(node), quote=False)
    else:
        for child in node:
            yield from _flatten(child)
