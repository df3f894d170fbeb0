"""The report as one file: everything is inside it, and nothing of it is fetched."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.html_report import html_of, write_html

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")
TEXT = """# A < B

| Method | n |
| :-- | --: |
| **RobuQ** | <u>3</u> |

![curves](curves.png)

Loss by `step`. [data](curves.csv), [elsewhere](https://example.org/x)
"""


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "curves.png").write_bytes(PNG)
    (tmp_path / "curves.csv").write_text("step,loss\n1,2\n")
    (tmp_path / "report.md").write_text(TEXT)
    return tmp_path / "report.md"


def links(text: str) -> dict[str, dict[str, str | None]]:
    parser = Links()
    parser.feed(text)
    return dict(parser.found)


def test_pictures_and_files_are_inside(page: Path) -> None:
    text = write_html(page).read_text()
    found = links(text)
    kind, _, content = str(found["img"]["src"]).partition(";base64,")
    assert kind == "data:image/png"
    assert base64.b64decode(content) == PNG
    assert found["img"]["alt"] == "curves: Loss by step. data, elsewhere"
    csv = re.findall(r'href="data:text/csv;base64,([^"]+)" download="curves.csv"', text)
    assert base64.b64decode(csv[0]) == b"step,loss\n1,2\n"


def test_nothing_is_fetched(page: Path) -> None:
    parser = Links()
    parser.feed(write_html(page).read_text())
    sources = [attrs[name] for _, attrs in parser.found for name in ("src", "srcset", "data") if name in attrs]
    assert sources
    assert all(str(source).startswith("data:") for source in sources)
    assert not [tag for tag, _ in parser.found if tag in ("script", "link", "iframe", "object")]
    assert "url(" not in page.with_name("report.html").read_text()
    assert "@import" not in page.with_name("report.html").read_text()


def test_links_elsewhere_stay_and_titles_are_escaped(page: Path) -> None:
    text = html_of(page.read_text(), page.parent)
    assert 'href="https://example.org/x"' in text
    assert "<title>A &lt; B</title>" in text
    assert "<strong>RobuQ</strong>" in text


def test_equal_reports_give_equal_bytes(page: Path) -> None:
    assert write_html(page).read_bytes() == write_html(page).read_bytes()


def test_a_missing_picture_is_an_error(page: Path) -> None:
    (page.parent / "curves.png").unlink()
    with pytest.raises(FileNotFoundError):
        write_html(page)
