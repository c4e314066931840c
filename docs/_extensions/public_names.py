"""Warns of a public name that has no page."""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import fastgrad

logger = logging.getLogger(__name__)


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Compare the documented names with ``fastgrad.__all__``."""
    documented = {entry[0] for entry in env.get_domain("py").get_objects()}
    for name in fastgrad.__all__:
        if f"fastgrad.{name}" not in documented:
            logger.warning("the public name %s must stand in a page of docs/api/", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the check."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
