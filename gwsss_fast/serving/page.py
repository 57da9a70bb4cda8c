"""The page: one HTML text with its style and script inside, which loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from gwsss_fast.serving.limits import Limits


@dataclass(frozen=True)
class Page:
    """content_policy: the header that lets the browser run this page's own style and script, and nothing else."""

    html: str
    content_policy: str


def build_page(classes: Sequence[str], group: bool, limits: Limits, version: str) -> Page:
    """The page for a segmenter of these classes; group: whether there is a classifier."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gwsss_fast.serving"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("page.html").render(classes=classes, group=group, limits=limits, version=version)
    style, script = _hash(html, "style"), _hash(html, "script")
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(html, policy)


def _hash(html: str, tag: str) -> str:
    """The content of the page's only such element, as a source of the content policy."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
