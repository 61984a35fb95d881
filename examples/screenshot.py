"""Take pictures of a report with a Chromium that stands on this machine: on a desktop, and on a phone in the dark.

python examples/screenshot.py RUN/report.html examples/report.png examples/report-phone.png
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)
DARK = "--blink-settings=preferredColorScheme=0"


def take(page: Path, picture: Path, *, width: int, height: int, more: tuple[str, ...] = ()) -> None:
    """Write what a browser of this size shows of the page's beginning; exits where there is no browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"no browser: install one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as profile:
        size, place = f"--window-size={width},{height}", f"--screenshot={picture.resolve()}"
        words = [browser, *FLAGS, *more, f"--user-data-dir={profile}", size, place, page.resolve().as_uri()]
        subprocess.run(words, check=True, capture_output=True, timeout=60)
    if not picture.is_file():
        raise SystemExit(f"no picture came of {page}")
    print(f"{picture}: {picture.stat().st_size // 1024} kB")


if __name__ == "__main__":
    report, desktop, phone = map(Path, sys.argv[1:])
    take(report, desktop, width=1160, height=880)
    take(report, phone, width=360, height=900, more=(DARK,))
