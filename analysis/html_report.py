"""A report's page as one HTML file that needs nothing else: pictures and the linked files are inside it."""

from __future__ import annotations

import base64
import itertools
import mimetypes
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

FILE = "report.html"
OWN_MARKUP = ("<u>", "</u>")  # of the second best in a table
TYPES = {".tex": "text/plain", ".csv": "text/csv", ".md": "text/markdown", ".json": "application/json"}
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 Georgia, serif; max-width: 62rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }}
h1, h2, h3 {{ line-height: 1.2; margin-top: 2rem; }}
img {{ display: block; width: 34rem; max-width: 100%; background: white; padding: .5rem; box-sizing: border-box; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .85rem; border-block: 2px solid; }}
th {{ border-bottom: 1px solid; }}
th, td {{ padding: 2px 8px; white-space: nowrap; }}
code {{ font-size: .9em; }}
a:focus-visible, .wide:focus-visible {{ outline: 2px solid; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #16181d; color: #e6e6e6; }} a {{ color: #8ab8ff; }} }}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def write_html(page: Path) -> Path:
    """`report.html` beside the report's Markdown page. Equal reports give equal bytes.

    Raises:
        FileNotFoundError: the page shows or links a file that is not there.
    """
    file = page.with_name(FILE)
    file.write_text(html_of(page.read_text(encoding="utf-8"), page.parent), encoding="utf-8")
    return file


def html_of(text: str, folder: Path) -> str:
    """The Markdown `text`, its pictures and files taken from `folder`; links to other places stay links."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = parser.parse(text)
    _describe(tokens)
    for token in _all(tokens):
        _disarm(token)
        _inline(token, folder)
    body = parser.renderer.render(tokens, parser.options, {})
    wide = '<div class="wide" tabindex="0" role="region" aria-label="table">'  # scrolls by itself, also by keyboard
    body = body.replace("<table>", f"{wide}<table>").replace("</table>", "</table></div>")
    return PAGE.format(title=escape(_title(tokens)), body=body.strip())


def _all(tokens: list[Token]) -> list[Token]:
    return [one for token in tokens for one in (token, *_all(token.children or []))]


def _title(tokens: list[Token]) -> str:
    places = [place for place, token in enumerate(tokens) if token.type == "heading_open"]
    return tokens[places[0] + 1].content if places else "report"


def _describe(tokens: list[Token]) -> None:
    """A picture's alternative text: the caption, which is the paragraph after it."""
    texts = [token for token in tokens if token.type == "inline"]
    for own, after in itertools.pairwise(texts):
        for picture in (child for child in own.children or [] if child.type == "image"):
            words = "".join(child.content for child in after.children or [] if child.type in ("text", "code_inline"))
            picture.children = [Token("text", "", 0, content=f"{picture.content}: {words}")]


def _disarm(token: Token) -> None:
    """Names and descriptions are anybody's: markup in them is shown, not obeyed."""
    if token.type in ("html_inline", "html_block") and token.content not in OWN_MARKUP:
        token.content = escape(token.content)


def _inline(token: Token, folder: Path) -> None:
    name = {"image": "src", "link_open": "href"}.get(token.type)
    target: Any = token.attrGet(name) if name else None
    if not name or not target or ":" in str(target) or str(target).startswith("#"):
        return
    file = folder / unquote(str(target))
    if not file.resolve().is_relative_to(folder.resolve()):
        return  # a file of elsewhere is not taken along, whoever wrote the page
    token.attrSet(name, data_uri(file))
    if token.type == "link_open":
        token.attrSet("download", file.name)


def data_uri(file: Path) -> str:
    kind = TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
