"""The page: whole, escaped, in one file, for every reader, and for many structures."""

from __future__ import annotations

import csv
import re
import resource
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from ase.io import read

from mdl_physpre.report.figures import structure_pictures
from mdl_physpre.report.figures.style import ON_DARK, for_page
from mdl_physpre.report.output.write import write_report
from mdl_physpre.runs import layout
from mdl_physpre.runs.read import read_run
from tests.helpers.made_up_runs import make_run, verdict, verdicts

EVIL = [
    '<script>document.title="taken"</script>',
    '"><img src=x onerror=alert(1)>',
    "$x_1$ & a",
    "../../etc",
    "{{ 7*7 }}",
]


class Read(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose name and structures are called what nobody should call them."""
    folder = tmp_path_factory.mktemp("runs") / "evil"
    found = [verdict(k, 300 if k % 2 else None, "overlap", name) for k, name in enumerate(EVIL * 2)]
    make_run(folder, {"baseline": [found], "pretrain": [verdicts(10, 0.1, 1, EVIL)]}, name=EVIL[0])
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(evil: Path) -> Read:
    return Read((evil / "report.html").read_text())


def test_names_from_data_do_nothing(evil: Path, page: Read) -> None:
    assert not page.all("script")
    assert not [a for _, a in page.tags if any(key.startswith("on") for key in a)]
    words = "".join(page.words)
    assert EVIL[0] in words and EVIL[1] in words and "{{ 7*7 }}" in words
    assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    for link in page.all("a"):
        assert re.match(r"(#|report/[\w.-]+$|data:)", str(link["href"])), link
        assert "/" not in str(link.get("download", ""))


def test_one_file_that_loads_nothing(evil: Path, page: Read) -> None:
    text = re.sub(r'(src|href)="data:[^"]*"', "", (evil / "report.html").read_text())
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")


def test_what_a_screen_reader_finds(page: Read) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("main")) == len(page.all("h1")) == 1 and page.all("nav")[0]["aria-label"]
    assert all(len(str(image["alt"])) > 40 for image in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table")) > 3
    assert all(head["scope"] in ("col", "row") for head in page.all("th"))
    ids = {a["id"] for _, a in page.tags if "id" in a}
    targets = {str(link["href"])[1:] for link in page.all("a") if str(link["href"]).startswith("#")}
    assert targets <= ids and {"verdict", "stability", "errors", "making"} <= ids


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2.1)."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_words_and_of_curves(evil: Path) -> None:
    text = (evil / "report.html").read_text()
    light, dark = (dict(re.findall(r"--(\w+):(#\w+)", rules)) for rules in re.findall(r":root\{(--paper[^}]*)\}", text))
    for colours in (light, dark):
        for name in ("ink", "soft", "accent"):
            assert contrast(colours[name], colours["paper"]) > 4.5 and contrast(colours[name], colours["shade"]) > 4.5
        assert contrast(colours["note"], colours["noteback"]) > 4.5
    for name, turned in list(ON_DARK.items())[4:]:  # the shades of grey are backgrounds
        assert contrast(turned, dark["paper"]) > 4.5, name


def test_figures_turn_with_the_page() -> None:
    turned = for_page('<?xml?><svg width="1pt"><path style="fill: none; stroke: #1a1f24"/></svg>')
    assert turned.index("<style>") > turned.index("<svg") and "prefers-color-scheme: dark" in turned
    assert '[style*="stroke: #1a1f24"]{stroke:#e8eaed !important}' in turned


def test_tables_as_files(evil: Path) -> None:
    with open(evil / "report" / "structures.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and {row["structure"] for row in rows} >= set(EVIL)
    failed = [row for row in rows if row["network"] == "baseline" and row["status"] == "failed"]
    assert [(row["first_failing_step"], row["reasons"]) for row in failed] == [("300", "overlap")] * 5
    with open(evil / "report" / "table-1-stability.csv", newline="", encoding="utf-8") as file:
        counts = {(row["arm"], row["reason"]): row["count"] for row in csv.DictReader(file)}
    assert counts["baseline", "overlap"] == "5"


def test_failed_structures_are_drawn_and_open_in_ase(evil: Path, page: Read) -> None:
    failed, missing = structure_pictures.failed_structures(read_run(evil).simulated())
    assert not missing
    pair = structure_pictures.closest_pair(failed[0].frames[-1])
    assert pair is not None and sorted(pair[:2]) == [0, 1] and pair[2] == pytest.approx(0.64)
    assert (evil / "report" / "failed-structures.png").stat().st_size > 5000
    link = next(a for a in page.all("a") if "download" in a)
    import base64

    kept = evil / "downloaded.extxyz"
    kept.write_bytes(base64.b64decode(str(link["href"]).partition(",")[2]))
    start, end = read(kept, ":")
    assert (start.info["step"], end.info["step"]) == (0, 300)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path, {"baseline": [verdicts(6, 1.0, 0)], "pretrain": [verdicts(6, 0.5, 1)]}, frames=False)
    shutil.rmtree(folder / layout.NETWORKS / "pretrain" / layout.DYNAMICS)
    write_report(folder, formats=["html"])
    words = "".join(Read((folder / "report.html").read_text()).words)
    assert "pretrain: verdicts.json is missing" in words
    assert "no frames of its 6 failed structures were kept" in words
    assert "Radial distribution functions were not sampled" in words and "There is no pretraining set" in words
    assert not list((folder / "report").glob("*.svg")), "figures were not asked for as files"
    assert 'href="report/' not in (folder / "report.html").read_text()


def test_many_structures(tmp_path: Path) -> None:
    """The page stays small whatever the number of structures; how long it takes is in the docs, not here."""
    n = 4000
    folder = make_run(tmp_path, {"baseline": [verdicts(n, 0.7, 0)], "pretrain": [verdicts(n, 0.2, 1)]})
    start = time.process_time()
    write_report(folder)
    size = (folder / "report.html").stat().st_size
    print(f"{time.process_time() - start:.1f} s of processor, {size / 1e6:.2f} MB, "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")  # fmt: skip
    assert size < 20e6
    assert (folder / "report" / "structures.csv").read_text().count("\n") == 2 * n + 1
    assert "The first 100 of 4,000 structures" in (folder / "report.html").read_text()


NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
HARNESS = """<!doctype html><body><pre id="found">nothing</pre><script>
const widths = [360, 800, 1400], found = [];
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.style.border = 0;
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    const lost = [...page.images].filter(image => !image.naturalWidth).length;
    const wide = [...page.querySelectorAll("h1,h2,h3,p,figcaption,.verdict,.note")].filter(
      e => e.getBoundingClientRect().right > width + 1).length;
    found.push([width, root.scrollWidth <= width, lost, page.images.length, wide, page.title].join("|"));
    if (found.length == widths.length) document.getElementById("found").textContent = found.sort().join("\\n");
  };
  frame.srcdoc = atob64("PAGE");
  document.body.append(frame);
}
function atob64(text) { return new TextDecoder().decode(Uint8Array.from(atob(text), c => c.charCodeAt(0))); }
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_in_a_browser_at_three_widths(evil: Path, tmp_path: Path) -> None:
    """No overflow, no missing picture, nothing said on the console, and no script of the data has run."""
    import base64

    content = base64.b64encode((evil / "report.html").read_bytes()).decode()
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS.replace("PAGE", content))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += ["--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert found is not None, done.stderr[-2000:]
    rows = [line.split("|") for line in found.group(1).splitlines()]
    assert {row[0] for row in rows} == {"360", "800", "1400"}, done.stderr[-2000:]
    for width, fits, lost, images, wide, title in rows:
        assert fits == "true" and wide == "0", f"something is wider than {width} pixels"
        assert lost == "0" and int(images) >= 3
        assert title != "taken"
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
