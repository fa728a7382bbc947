"""One HTML file from runs and records: it loads nothing, runs offline, and is whole without its script.

The page's own style and script are inside; a content security policy lets the browser run that script, by its
hash, and nothing else. Names come from recipes and paths, so everything is escaped but the drawings, which
escape what they are given.
"""

from __future__ import annotations

import base64
import hashlib
import pkgutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Sequence

from benchmarks.page.blocks import Article, Page
from benchmarks.page.overview import names_of, overview, trade_off
from benchmarks.page.reading import read_sources
from benchmarks.page.record_sections import record_article
from benchmarks.page.run_article import run_article
from deploy.errors import MissingDependency
from deploy.whole_file import write_whole

TEMPLATE, STYLE, SCRIPT = "page.html.j2", "page.css", "page.js"


def write_page(sources: Sequence[Path], out: Path) -> Path:
    """The page of these run folders and record files; it appears whole or not at all.

    Raises:
        ConfigError: A source holds neither a run nor a record.
        StorageError, DataError: A source cannot be read, or the page not written.
        MissingDependency: jinja2 or onnx is not installed.
    """
    return write_whole(
        out,
        rendered(page_of(sources)),
        "the page",
        "free some space or choose another place with --out",
    )


def page_of(sources: Sequence[Path]) -> Page:
    """What the page says, before it is HTML."""
    found = read_sources(sources)
    names = names_of(found.runs, found.records)
    anchors = [f"part-{index + 1}" for index in range(len(names))]
    count = len(found.runs)
    named = list(zip(anchors, names, found.runs))
    records = list(zip(anchors[count:], names[count:], found.records))
    articles: list[Article] = []
    if len(names) > 1:
        articles.append(overview(named, records))
    for anchor, name, run in named:
        plot = trade_off([(anchor, name, run)]) if len(names) == 1 else []
        articles.append(run_article(run, anchor, name, plot))
    articles += [record_article(record, anchor, name) for anchor, name, record in records]
    title = names[0] if len(names) == 1 else f"{len(names)} results"
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return Page(title, articles, made)


def rendered(page: Page) -> str:
    """The page as HTML.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependency(
            "report: the package jinja2 is not installed; install compress-deploy[report]"
        ) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = _packaged(SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return environment.from_string(_packaged(TEMPLATE)).render(
        page=page, style=_packaged(STYLE), script=script, script_sha256=digest
    )


def _packaged(name: str) -> str:
    """A file beside this one, also where the package is zipped."""
    data = pkgutil.get_data("benchmarks.page", name)
    assert data is not None, f"{name} is missing from the package"
    return data.decode("utf-8").strip()
