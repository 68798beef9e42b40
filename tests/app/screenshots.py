"""Pictures of the page for the docs: python -m tests.app.screenshots docs/images"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.app.make import find_chromium, serving

MINUTE = 60_000  # ms


def main(output: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as site, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1360, "height": 900})
        tab.set_default_timeout(4 * MINUTE)
        tab.goto(site)
        tab.wait_for_selector("#cam_a img")
        shoot(tab, output / "app.jpg")
        tab.locator("#compare input").check()
        tab.wait_for_selector("#cam_b img")
        shoot(tab, output / "app_compare.jpg")
        browser.close()


def shoot(tab, path: Path) -> None:
    tab.wait_for_timeout(2000)  # ms: until pictures have faded in
    tab.screenshot(path=path, type="jpeg", quality=88, full_page=True)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
