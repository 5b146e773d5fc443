"""Checks the built site in a real browser, as tests/browser.py checks one page: `make docs browser`.

It opens every page wide and narrow, light and dark. No page requests anything from the network, no picture is broken,
and only elements with a scroll bar are wider than the window. It writes pictures of the pages to FOLDER.

    python tests/browser_site.py [FOLDER]
"""

import shutil
import sys
from pathlib import Path

SITE = Path(__file__).parent.parent / "docs" / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (1400, 400)
EXPLORED = "explore-embedded.html"  # tests/browser.py looks at such a page
BROKEN = "[...document.images].filter(one => !one.complete || !one.naturalWidth).map(one => one.src)"
LOADED = "Promise.all([...document.images].map(one => { one.loading = 'eager'; return one.decode().catch(() => 0); }))"


def main(folder: Path | None) -> None:
    """Check every page; exit with the list of faults."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("browser: playwright is not installed: pip install playwright")
    pages = sorted(page for page in SITE.rglob("*.html") if page.name != EXPLORED)
    if not pages:
        sys.exit("browser: there is no site: run make docs")
    own, wrong = next((path for name in BROWSERS if (path := shutil.which(name))), None), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                for page in pages:
                    picture = folder / f"{page.stem}-{width}-{scheme}.png" if folder else None
                    wrong += [
                        f"{page.name}, {width}, {scheme}: {one}" for one in look(browser, page, width, scheme, picture)
                    ]
        browser.close()
    sys.exit("\n".join(wrong) if wrong else f"browser: {len(pages)} pages as they should be")


def look(browser, page, width, scheme, picture):
    """Return the faults of a page."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    wrong = []
    tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url))
    tab.goto(page.as_uri())
    tab.evaluate(LOADED)
    wrong += [f"broken picture {one}" for one in tab.evaluate(BROKEN)]
    if (wide := tab.evaluate("document.documentElement.scrollWidth")) > width:
        wrong.append(f"{wide} pixels wide")
    if picture:
        tab.screenshot(path=picture, full_page=True)
    tab.close()
    return wrong


if __name__ == "__main__":
    target = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else None
    if target:
        target.mkdir(parents=True, exist_ok=True)
    main(target)
