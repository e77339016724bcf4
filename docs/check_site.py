"""Look at the built documentation as a reader does, in a headless browser.

    python docs/check_site.py [--site FOLDER] [--screenshots FOLDER]

Opens every page in Chromium, as wide as a desk and as narrow as a phone. It fails if a picture or a
link is broken, if a script fails, if a page is wider than a phone, if code or a table is cut off,
if the top bar of a desk needs two lines, or if the search does not find a class of the package. On
a phone a table may scroll in its own box; code may not, and on a desk neither may. Needs Chromium
with its driver, and `pip install --group site`. The browser asks no other site: links to other
sites are left out, and equations stay as they are written.
"""

import argparse
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from threading import Thread
from urllib.parse import unquote, urldefrag

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

SITE = Path(__file__).parent / "_build" / "html"
PHONE, DESK = (390, 844), (1280, 900)
BARS = (960, 1020, 1180, 1240, 1280, 1420)  # widths between which the top bar changes
SEARCHED = "EnsembleKalmanSampler"

LINKS = "return [...document.querySelectorAll('a[href]')].map(a => a.href)"
ANCHORS = "return [...document.querySelectorAll('[id]')].map(e => e.id)"
BROKEN_PICTURES = """
for (const img of document.images) img.loading = 'eager';
await Promise.all([...document.images].map(img => img.decode().catch(() => null)));
return [...document.images].filter(img => !img.naturalWidth).map(img => img.src)
"""
WIDE = """
const wide = document.documentElement.scrollWidth - window.innerWidth;
if (wide <= 0) return null;
const found = [...document.querySelectorAll('main *')].find(
    e => e.getBoundingClientRect().right > window.innerWidth + 1);
return wide + ' pixels too wide: ' + (found ? found.outerHTML.slice(0, 120) : 'outside of main')
"""
TWO_LINES = """
const of = name => document.querySelector('.bd-header .navbar-header-items__' + name);
const [links, search] = [of('center'), of('end')].map(e => e.getBoundingClientRect());
return search.top >= links.bottom || [...of('center').querySelectorAll('li')].some(
    e => e.getBoundingClientRect().top >= search.bottom)
"""
CUT_OFF = """
const found = [];
for (const e of document.querySelectorAll('.bd-article pre, .bd-article table, .bd-article code')) {
    const phone = window.innerWidth < 500;
    for (let box = e; box && box.tagName !== 'MAIN'; box = box.parentElement) {
        if (getComputedStyle(box).overflowX === 'visible') continue;
        const right = e.getBoundingClientRect().left + Math.max(e.scrollWidth, e.offsetWidth);
        const beyond = Math.max(right - box.getBoundingClientRect().right, box === e
            ? e.scrollWidth - e.clientWidth : 0);
        const scrolls = box.closest('table') || box.classList.contains('table');
        if (beyond > 1 && !(phone && scrolls)) {
            found.push(Math.round(beyond) + ' pixels of ' + e.tagName.toLowerCase() + ' "'
                + e.innerText.trim().slice(0, 50).replace(/\\s+/g, ' ') + '" are cut off');
        }
        break;
    }
}
return found
"""


class Quiet(SimpleHTTPRequestHandler):
    """Serve files without a word."""

    def log_message(self, *_):
        """Say nothing."""


def open_browser():
    """Start Chromium, which reaches this machine alone."""
    options = webdriver.ChromeOptions()
    options.binary_location = which("chromium") or which("google-chrome") or ""
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        "host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    return webdriver.Chrome(options, webdriver.ChromeService(which("chromedriver")))


def resize(browser, size):
    """Make the window as large as a device."""
    width, height = size
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE},
    )


def look_at(browser, name, root, screenshots):
    """Complaints about one page, its links and its anchors."""
    complaints = []
    for size in (PHONE, DESK):
        resize(browser, size)
        browser.get(root + name)
        if size == PHONE and (wide := browser.execute_script(WIDE)):
            complaints.append(f"{name} is {wide}")
        cut_off = browser.execute_script(CUT_OFF)
        complaints += [f"{name}, {size[0]} pixels wide: {what}" for what in cut_off]
        if screenshots:
            picture = f"{name.replace('/', '.')}-{size[0]}.png"
            browser.save_screenshot(str(screenshots / picture))
    for width in BARS:
        resize(browser, (width, DESK[1]))
        if browser.execute_script(TWO_LINES):
            complaints.append(f"{name}: the top bar needs two lines, {width} pixels wide")
    broken = browser.execute_script(f"return (async () => {{{BROKEN_PICTURES}}})()")
    complaints += [f"{name}: the picture {src} is broken" for src in broken]
    for entry in browser.get_log("browser"):
        if entry["source"] != "network" or root in entry["message"]:
            complaints.append(f"{name}: {entry['message']}")
    return complaints, browser.execute_script(LINKS), set(browser.execute_script(ANCHORS))


def broken_links(links, anchors, root, site):
    """Complaints about links within the site."""
    complaints = []
    for page, targets in links.items():
        for link in sorted(set(targets)):
            url, anchor = urldefrag(link)
            if not url.startswith(root):
                continue
            target = unquote(url.removeprefix(root).split("?")[0]) or "index.html"
            if not (site / target).is_file():
                complaints.append(f"{page}: {link} leads nowhere")
            elif anchor and unquote(anchor) not in anchors.get(target, {unquote(anchor)}):
                complaints.append(f"{page}: {link} leads to no place on its page")
    return complaints


def search(browser, root):
    """Complaints about the search."""
    browser.get(f"{root}search.html?q={SEARCHED}")
    WebDriverWait(browser, 30).until(
        lambda b: (
            b.find_elements(By.CSS_SELECTOR, "#search-results .search-summary")
            and "Search finished" in b.find_element(By.ID, "search-results").text
        )
    )
    results = browser.find_elements(By.CSS_SELECTOR, "#search-results li a")
    found = [result.get_attribute("href") for result in results]
    if not any(f"pymc_ensemble.{SEARCHED}.html" in link for link in found):
        return [f"the search for {SEARCHED} found {len(found)} pages, but not its own"]
    return []


def main():
    """Look at all pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of every page")
    parser.add_argument("--site", type=Path, default=SITE, help="folder of the built site")
    options = parser.parse_args()
    site = options.site
    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    pages = sorted(page for page in site.rglob("*.html") if "_static" not in page.parts)
    if not pages:
        sys.exit(f"There is no site in {site}: build it first.")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}/"
    complaints, links, anchors = [], {}, {}
    browser = open_browser()
    try:
        for page in pages:
            name = page.relative_to(site).as_posix()
            new, links[name], anchors[name] = look_at(browser, name, root, options.screenshots)
            complaints += new
        complaints += search(browser, root)
    finally:
        browser.quit()
        server.shutdown()
    complaints += broken_links(links, anchors, root, site)
    print("\n".join(complaints))
    n_links = sum(len(targets) for targets in links.values())
    print(f"{len(pages)} pages, {n_links} links, {len(complaints)} complaints")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
