"""The pages as a reader has them: the command that serves them, a tab of a real browser, and what every page is held
to there."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT = 90_000  # milliseconds, for a busy machine
SCREENS = {"wide": (1280, "light"), "phone": (390, "dark")}
TEXTS = Path(__file__).with_name("page_checks.js").read_text(encoding="utf-8")
Pixels = NDArray[np.uint8]
HEIGHT = "document.querySelector('.stMain').scrollHeight"
SECTIONS = "[...document.querySelectorAll('h3')].map(e => e.getBoundingClientRect().top)"
LONGEST = 2800  # pixels of a picture
LEAST = 4.5  # contrast of text, WCAG 2.2, 1.4.3


@contextmanager
def served(*words: object, folder: Path | None = None) -> Iterator[str]:
    """The address of the pages, as `robuq dashboard` with these words serves them from `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "experiments.cli", "dashboard", *map(str, words), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url == f"http://127.0.0.1:{port}"
        until(lambda: process.poll() is not None or answers(f"{url}/_stcore/health"), f"{url} does not answer")
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT / 1000
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.1)


class Tab:
    """A tab on a screen, and what its console and its network said that they should not."""

    def __init__(self, browser: Any, screen: str, scale: float = 1) -> None:
        self.width, self.scheme = SCREENS[screen]
        self._context = browser.new_context(
            viewport={"width": self.width, "height": 900}, color_scheme=self.scheme, device_scale_factor=scale
        )
        self.page = self._context.new_page()
        self.page.set_default_timeout(WAIT)
        self.errors: list[str] = []
        self.asked: list[str] = []  # addresses
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def open(self, address: str, title: str) -> None:
        """Until everything of the page is there."""
        self.page.goto(address)
        self.page.get_by_role("heading", name=title, level=1, exact=True).wait_for()
        self.settle()

    def settle(self) -> None:
        self.page.locator('.stApp[data-test-script-state="notRunning"]').wait_for()
        self.page.locator('[data-testid="stSpinner"]').wait_for(state="detached")

    def check(self, what: str) -> None:
        """Nothing broken, nothing wider than the screen, pictures with words, the colours that were asked for, and
        text that can be read."""
        page = self.page
        assert page.locator('[data-testid="stException"]').count() == 0, what
        assert page.evaluate("document.documentElement.scrollWidth") <= self.width, what
        pictures = page.locator("main img, section img")
        assert all((pictures.nth(n).get_attribute("alt") or "").strip() for n in range(pictures.count())), what
        colour = page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
        bright = sum(int(part) for part in colour.strip("rgba()").split(",")[:3]) / 3 > 128
        assert bright == (self.scheme == "light"), (what, colour)
        texts = page.evaluate(TEXTS)
        assert len(texts) > 5, what
        assert [text for text in texts if text["ratio"] < text["least"]] == [], what

    def keep(self, name: str) -> None:
        """A picture of the page, and not of what fits the window alone, for docs/dashboard.md. A long page ends where
        one of its sections does."""
        folder = os.environ.get("ROBUQ_SCREENSHOTS")
        if not folder:
            return
        page = self.page
        page.set_viewport_size({"width": self.width, "height": max(900, page.evaluate(HEIGHT))})
        self.settle()
        height = page.evaluate(HEIGHT)
        ends = [top for top in page.evaluate(SECTIONS) if top < LONGEST]
        clip = {"x": 0, "y": 0, "width": self.width, "height": ends[-1] - 4 if height > LONGEST else height}
        page.screenshot(path=f"{folder}/{name}.png", clip=clip)
        page.set_viewport_size({"width": self.width, "height": 900})


def picture_of(element: Any) -> Pixels:
    """(H, W, 3)"""
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB"))


def contrast_of(pixels: Pixels) -> float:
    """Of what is drawn with what is most of it, by WCAG's formula: a table is a canvas, which has no text to ask."""
    linear = pixels.reshape(-1, 3) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    light = np.round(linear @ np.array([0.2126, 0.7152, 0.0722]), 4)
    values, counts = np.unique(light, return_counts=True)
    ground = float(values[counts.argmax()])
    ink = max((float(value) for value in values), key=lambda value: abs(value - ground))
    return (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05)
