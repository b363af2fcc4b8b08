"""HTML pages from templates, everything escaped; results as self-contained ones: no script, no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from tunesmith.storage import write_text


def write_page(
    path: Path,
    package: str,
    template: str,
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., str]] | None = None,
) -> None:
    """Fills a template that lies in a package; a name that it uses and that is not given is an error."""
    write_text(path, load_template(package, template, filters).render(**values))


def load_template(package: str, template: str, filters: Mapping[str, Callable[..., str]] | None = None) -> Template:
    """A template that lies in a package; everything that it is filled with is escaped."""
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= dict(filters or {})
    return environment.get_template(template)
