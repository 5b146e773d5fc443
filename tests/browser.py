"""Checks the page of `sparsekit explore` in a real browser: `make browser`.

It needs playwright and a Chromium, which the test suite does not need: `pip install playwright`, and a Chromium from
the system's package manager or from `playwright install chromium`. It writes pictures of the page to FOLDER.

    python tests/browser.py [FOLDER]
"""

import shutil
import sys
import tempfile
from pathlib import Path

from sparsekit.explore import explore, pieces, write_page
from sparsekit.testbed import ByteTokenizer, load_model, read_text

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SPECS = {
    "first": "token_coverage(tau=0.2, voters=16, min_tokens=64, sinks=2) | decompress(fill=sliding_window(16))",
    "second": "streaming(sinks=16, window=64, block_size=16)",
}
HOSTILE = (
    "</script><script>document.title = 'mine'</script><img src=x onerror=\"document.title = 'mine'\"> & é ".encode()
)
TOKENS = 2300  # more than a page of text holds


def main(folder: Path) -> None:
    """Write a page, open it wide and narrow, light and dark, and use it by mouse and keyboard."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("browser: playwright is not installed: pip install playwright")
    prompt = list((HOSTILE + read_text())[:TOKENS])
    found = explore(load_model(), prompt, SPECS, cells=32)
    page = write_page(found, folder / "explore.html", pieces(ByteTokenizer(), prompt), model="<b>embedded</b>")
    one = explore(load_model(), prompt[:40], {"dense": "dense"})
    own = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        except Exception as error:
            sys.exit(f"browser: no Chromium starts: install one, or run playwright install chromium ({error})")
        for width in (1400, 390):
            for scheme in ("light", "dark"):
                look(browser, page, width, scheme, folder / f"{width}-{scheme}.png")
        use(browser, page)
        alone(
            browser, write_page(one, folder / "alone.html", pieces(ByteTokenizer(), prompt[:40])), folder / "alone.png"
        )
        browser.close()
    print(f"browser: all as it should be; pictures in {folder}")


def opened(browser, page, width, scheme="light"):
    """Open the page in a new tab; return it with the list to which it adds each error and each request."""
    size, wrong = {"width": width, "height": 900}, []
    tab = browser.new_page(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda request: None if request.url == page.as_uri() else wrong.append(request.url))
    tab.goto(page.as_uri())
    tab.evaluate("window.ready")
    return tab, wrong


def look(browser, page, width, scheme, picture):
    """Check the page before any click: it requests nothing from the network, and nothing is wider than the window."""
    tab, wrong = opened(browser, page, width, scheme)
    assert not wrong, wrong
    assert tab.title() == "<b>embedded</b>: what sparse attention does", tab.title()
    for shown in (True, False):
        tab.set_checked("#numbers", shown)
        assert tab.evaluate("document.documentElement.scrollWidth") == width, (width, shown)
    tab.set_checked("#numbers", True)
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    unnamed = tab.evaluate(
        """[...document.querySelectorAll("button, select, input, canvas, [role=grid], [role=region], td[data-key]")]
        .filter(one => !(one.textContent.trim() || one.getAttribute("aria-label") || one.getAttribute("aria-labelledby")
        || (one.labels && one.labels.length))).map(one => one.outerHTML)"""
    )
    assert not unnamed, unnamed
    tab.screenshot(path=picture, full_page=True)
    tab.close()


def use(browser, page):
    """Check the page's answers to the keyboard and the mouse."""
    tab, wrong = opened(browser, page, 1400)
    data = tab.evaluate("D")
    cells = tab.locator("#grid0 td[data-head]")
    assert cells.count() == data["heads"] and tab.locator("#grid0 td[tabindex='0']").count() == 1, "one tab stop"
    for measure in ("kept", "density", "mass", "error", "sinks"):
        tab.select_option("#measure", measure)
        layer = data["layers"][3]
        wanted = layer["sinks"][5] if measure == "sinks" else layer["runs"][1]["heads"][measure][5]
        said = tab.locator("#grid1 td[data-key='3 5']").get_attribute("aria-label").split()[-1]
        assert abs(float(said) - wanted) <= 5e-4 + wanted * 5e-3, (measure, said, wanted)
    tab.select_option("#measure", "ms")
    assert tab.locator("#grid0 td[data-key]").count() == 2 * len(data["layers"])
    tab.select_option("#measure", "density")

    tab.locator("#grid0 td[data-key='2 3']").click()
    tab.locator("#head-title", has_text="Layer 2, head 3").wait_for()
    tab.locator("#grid0 td[data-key='2 3']").focus()
    for key in ("ArrowDown", "ArrowRight", "Enter"):
        tab.keyboard.press(key)
    tab.locator("#head-title:focus").wait_for()
    assert tab.inner_text("#head-title") == "Layer 3, head 4" and tab.locator("#pictures canvas").count() == 3
    assert tab.locator("#grid1 td[aria-selected=true]").get_attribute("data-key") == "3 4", "both sides show the same"
    tab.keyboard.press("Escape")
    assert tab.evaluate("document.activeElement.dataset.key") == "3 4"

    # the picture's description names the part it shows: the last queries, the first keys
    tab.locator("#query").focus()
    tab.keyboard.press("End")
    tab.locator("#key").focus()
    tab.keyboard.press("Home")
    said = tab.inner_text("#cell")
    assert f"keys 0 to {data['cell'] - 1}:" in said and "A computes" in said, said
    assert f"B computes about {1600 / data['cell']:.0f}%" in said, "16 sinks of the keys in a cell"
    colours = tab.evaluate(
        """[...document.querySelectorAll("#pictures canvas")].map(one => new Set(new Uint32Array(one.getContext("2d")
        .getImageData(0, 0, one.width, one.height).data.buffer)).size)"""
    )
    assert min(colours) > 3, colours
    canvas = tab.locator("#pictures canvas").first
    canvas.hover(position={"x": canvas.bounding_box()["width"] - 5, "y": 5})
    assert "no query sees these keys" in tab.inner_text("#cell")

    tab.select_option("#right", "0")
    assert "A" in tab.inner_text("#grid-title1") and tab.locator("#grid-title1 code").inner_text() == "first"
    tab.select_option("#right", "")
    assert tab.locator("table.grid").count() == 1

    assert "page 1 of 2" in tab.inner_text("#where") and tab.locator("#text i").count() == 2000
    tab.click("#after")
    assert tab.locator("#text i").count() == TOKENS - 2000 and tab.is_disabled("#after")
    tab.fill("#token", "2")
    tab.keyboard.press("Enter")
    assert "Token 2" in tab.inner_text("#said") and "page 1 of 2" in tab.inner_text("#where")
    text = "".join(tab.locator("#text i").all_inner_texts())
    assert HOSTILE.decode()[:60] in text and tab.locator("main img, main script").count() == 0
    assert tab.title().startswith("<b>embedded</b>") and not wrong, wrong
    tab.close()


def alone(browser, page, picture):
    """Check a short page of one pipeline: it has no choice for the right side, and one page of text."""
    tab, wrong = opened(browser, page, 390, "dark")
    assert tab.locator("table.grid").count() == 1 and not tab.locator("#right").is_visible()
    assert not tab.locator("#after").is_visible() and tab.inner_text("#where") == "all 40 tokens"
    assert tab.evaluate("document.documentElement.scrollWidth") == 390 and not wrong, wrong
    tab.screenshot(path=picture, full_page=True)
    tab.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        main(Path(sys.argv[1]).absolute())
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
