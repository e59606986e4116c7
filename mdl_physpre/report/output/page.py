"""The page of a report: sections in the order of a paper, put into one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mdl_physpre import __version__
from mdl_physpre.report.figures.structure_pictures import Failed
from mdl_physpre.report.figures.style import Figure, for_page
from mdl_physpre.report.tables.page import Table

logger = logging.getLogger(__name__)
WIDE = 420  # CSS pixels: a wider figure can be scrolled on a phone
DOWNLOAD_AT_MOST = 300_000  # bytes of a file that is put into the page


@dataclass
class Section:
    """A part of the page: paragraphs, what is missing, and items, see :func:`table_item` and its neighbours."""

    id: str
    title: str
    text: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)

    def add(self, *found: Figure | Table | None) -> None:
        """Add figures and tables, leaving out those that are not there."""
        for one in found:
            if isinstance(one, Figure):
                self.items.append(figure_item(one))
            elif one is not None:
                self.items.append({"kind": "table", "table": one})


def drawn(section: Section, what: str, draw: Callable[..., Figure], *arguments: Any) -> None:
    """Add a figure; one that cannot be drawn is named, and costs no other."""
    try:
        section.add(draw(*arguments))
    except Exception as error:
        logger.warning("%s is not in the report: %s: %s", what, type(error).__name__, error)
        section.missing.append(f"{what} could not be drawn ({type(error).__name__}: {error}).")


def figure_item(figure: Figure) -> dict[str, Any]:
    """A figure with its picture inside."""
    text = figure.svg.read_text(encoding="utf-8")
    sizes = (re.search(rf'<svg\b[^>]*?{side}="([\d.]+)pt"', text) for side in ("width", "height"))
    width, height = (float(found.group(1)) * 4 / 3 if found else 0.0 for found in sizes)
    return {
        "kind": "figure",
        "figure": figure,
        "source": data_uri(for_page(text).encode(), "image/svg+xml"),
        "width": round(width),
        "height": round(height),
        "wide": width > WIDE,
    }


def data_uri(content: bytes, kind: str) -> str:
    """Content as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def text_item(summary: str, content: str) -> dict[str, Any]:
    """Text that is unfolded on demand."""
    return {"kind": "text", "summary": summary, "content": content}


def downloads_item(failed: Sequence[Failed]) -> dict[str, Any] | None:
    """The files of structures that failed, inside the page."""
    links = []
    for one in failed:
        if one.path.stat().st_size > DOWNLOAD_AT_MOST:
            continue
        safe = re.sub(r"[^\w.+-]+", "_", f"{one.simulation}-{one.verdict.structure_id}")[:80]
        title = f"{one.simulation}, {one.verdict.structure_id}"
        content = data_uri(one.path.read_bytes(), "text/plain")
        links.append({"source": content, "file": f"{safe}.extxyz", "title": title})
    summary = "Start and failing frames as extended XYZ, which ASE opens (ase gui FILE):"
    return {"kind": "downloads", "summary": summary, "links": links} if links else None


def page(
    *,
    name: str,
    facts: str,
    missing: Sequence[str],
    sentences: Sequence[str],
    verdict: Table,
    cautions: Sequence[str],
    sections: Sequence[Section],
    beside: bool,
) -> str:
    """The HTML of a report. All text is escaped; nothing in it is run.

    ``beside`` : whether figures and tables lie beside the page, in ``report``, so that it can link them.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    values: Mapping[str, Any] = {
        "name": name, "facts": facts, "missing": missing, "sentences": sentences, "verdict": verdict,
        "cautions": cautions, "sections": sections, "beside": beside, "version": __version__,
        "made": time.strftime("%Y-%m-%d %H:%M %Z"),
    }  # fmt: skip
    return template.render(values)
