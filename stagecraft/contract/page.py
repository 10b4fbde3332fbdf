"""Self-contained HTML pages: one look for all reports, figures inside the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render_page(template: Path, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """A page that extends `page.html.j2`, as HTML that is well-formed XML too. The filter `printable` is always there."""
    environment = Environment(loader=FileSystemLoader([template.parent, Path(__file__).parent]), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters, printable=printable)
    return environment.get_template(template.name).render(**values)


def inline_svg(text: str, prefix: str, title: str) -> str:
    """An SVG file's text fit to stand inside a page: no prolog, an accessible name, identifiers that clash with no other figure's."""
    body = text[text.index("<svg"):]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = re.sub(r'href="#', f'href="#{prefix}', body)
    body = body.replace("url(#", f"url(#{prefix}")
    return body.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def printable(text: str) -> str:
    """Text from anywhere without the control characters that no page may hold."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
