"""The report in a browser: what is measured is the page as laid out, not its text."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.report_run import EVIL, complete_run, energy, make_bare, settings, write
from tser.deploy.report import write_report
from tser.deploy.report_results import read_results

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
    pytest.mark.slow,
]

MEASURE = """<!doctype html><body style="margin:0">
<iframe src="report.html" style="width:WIDTHpx;height:900px;border:0"></iframe>
<pre id="found">nothing</pre>
<script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  const size = (element) => {
    const box = element.getBoundingClientRect();
    return [box.width, box.height];
  };
  for (const details of page.querySelectorAll("details")) details.open = true;
  const all = (selector) => [...page.querySelectorAll(selector)];
  const scrolled = all("*").filter((e) => e.scrollWidth > e.clientWidth + 1 &&
    ["auto", "scroll"].includes(getComputedStyle(e).overflowX));
  document.getElementById("found").textContent = JSON.stringify({
    sections: Object.fromEntries(all("section").map((s) => [s.id, size(s)])),
    charts: all("svg").map((s) => [...size(s), s.querySelectorAll("path, text").length]),
    images: all("img").map((i) => [i.complete && i.naturalWidth, i.alt]),
    details: all("details").map((d) => size(d)[1] - size(d.querySelector("summary"))[1]),
    wide: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    scrolled: scrolled.length,
    unfocused: scrolled.filter((e) => e.tabIndex < 0).map((e) => e.outerHTML.slice(0, 99)),
    unnamed: all("[role=region], [role=img], nav").filter((e) => {
      const named = page.getElementById(e.getAttribute("aria-labelledby") || "-");
      return !(e.getAttribute("aria-label") || (named && named.textContent.trim()));
    }).length,
    small: all("p, li, td, th, dt, dd, figcaption, summary").filter(
      (e) => parseFloat(getComputedStyle(e).fontSize) < 12).length,
  });
});
</script>"""
SERVE = "--allow-file-access-from-files"  # the page around may look into the report

Open = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def browse(tmp_path: Path) -> Open:
    """Open a file in a browser without a window and without network."""

    def call(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [
                str(BROWSER),
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--host-resolver-rules=MAP * ~NOTFOUND",
                "--enable-logging=stderr",
                "--v=0",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--virtual-time-budget=20000",
                *options,
                path.as_uri(),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done

    return call


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The report of a run that has everything."""
    run = complete_run(make_bare(tmp_path / "run"))
    write(run.energy, energy(read_results(run).digest) | {"settings": settings()})
    return write_report(run)


def console(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the browser says on its console: errors, warnings and refusals alike."""
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def measured(browse: Open, page: Path, width: int) -> dict[str, Any]:
    around = page.with_name("around.html")
    around.write_text(MEASURE.replace("WIDTH", str(width)), encoding="utf-8")
    done = browse(around, SERVE, "--dump-dom", "--window-size=1400,1000")
    assert console(done) == []
    found = re.search('<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[:2000]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


@pytest.mark.parametrize("width", [390, 1200])
def test_everything_is_seen(browse: Open, page: Path, width: int) -> None:
    found = measured(browse, page, width)
    wanted = re.findall('<section id="([^"]*)"', page.read_text(encoding="utf-8"))
    assert list(found["sections"]) == wanted
    assert "settings" in wanted
    assert len(wanted) == 16
    assert all(w > 0.8 * min(width, 1000) and h > 60 for w, h in found["sections"].values())
    assert len(found["charts"]) == 17
    assert all(w > 200 and h > 80 and drawn > 5 for w, h, drawn in found["charts"])
    assert len(found["images"]) == 2
    assert all(loaded and description for loaded, description in found["images"])
    assert found["details"]
    assert min(found["details"]) > 20  # open, each shows something
    assert found["wide"] <= 0  # tables and drawings scroll, the page does not
    assert found["scrolled"] > 0
    assert found["unfocused"] == []  # what scrolls is reached by the keyboard
    assert found["unnamed"] == 0
    assert found["small"] == 0


def test_the_console_stays_silent(browse: Open, page: Path) -> None:
    done = browse(page, "--dump-dom")
    assert console(done) == []
    assert '<section id="reproduce"' in done.stdout
    loud = page.with_name("loud.html")  # so that silence means something
    policy = 'http-equiv="Content-Security-Policy" content="default-src \'none\'"'
    loud.write_text(f"<meta {policy}><img src='data:image/png;base64,AA'>", encoding="utf-8")
    assert console(browse(loud, "--dump-dom"))


def test_no_name_runs_a_script(browse: Open, page: Path) -> None:
    """Names of classes that are scripts, in a page whose own policy is taken away as well."""
    shown = page.read_text(encoding="utf-8")
    assert html.escape(EVIL) in shown
    bare = page.with_name("bare.html")
    bare.write_text(shown.replace("Content-Security-Policy", "Nothing"), encoding="utf-8")
    done = browse(bare, "--dump-dom")
    assert console(done) == []
    assert "<script" not in done.stdout
    probe = shown.replace(html.escape(EVIL), "<script>console.log('it ran')</script>", 1)
    bare.write_text(probe.replace("Content-Security-Policy", "Nothing"), encoding="utf-8")
    assert any("it ran" in line for line in console(browse(bare, "--dump-dom")))


def test_both_themes_are_drawn(browse: Open, page: Path, tmp_path: Path) -> None:
    shades = {}
    for theme, scheme in (("light", 1), ("dark", 0)):
        picture = tmp_path / f"{theme}.png"
        theming = f"--blink-settings=preferredColorScheme={scheme}"
        browse(page, theming, f"--screenshot={picture}", "--window-size=1000,1600")
        grey = np.asarray(Image.open(picture).convert("L"), np.int64)
        shades[theme] = float(np.median(grey))
        assert len(np.unique(grey)) > 50
        assert (abs(grey - shades[theme]) > 60).mean() > 0.02  # letters stand out from the paper
    assert shades["light"] > 200
    assert shades["dark"] < 60


def test_it_prints_with_every_detail(browse: Open, page: Path, tmp_path: Path) -> None:
    printed = tmp_path / "report.pdf"
    browse(page, f"--print-to-pdf={printed}")
    pages = len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes()))
    assert pages > 5
