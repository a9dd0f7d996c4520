"""A saved configuration says what was set, so that reading it again gives the same account of it.

It holds the whole tree, and under `given` the paths that were set. Read again, these count as set; the others are
defaults, or follow from what is set and go on doing so. One whose value is neither, because the file was edited or is
of a version with other defaults, counts as set too: the file alone always gives what stands in it.
"""

from __future__ import annotations

from collections.abc import Callable

from gmpo.config.fields import Section
from gmpo.config.tree import get


def only_shown(
    written: Section,
    paths: frozenset[str],
    given: frozenset[str],
    complete: Callable[[frozenset[str]], Section],
) -> frozenset[str]:
    """The paths of a saved configuration that need not be set: they get their value without.

    Args:
        written: the values as they stand in the file.
        paths: those that stand in it.
        given: those that it says were set.
        complete: the configuration of some of its paths alone, with everything that follows from them.
    """
    chosen = given & paths
    while True:
        config = complete(chosen)
        others = frozenset(path for path in paths - chosen if get(config, path) != get(written, path))
        if not others:
            return paths - chosen
        chosen |= others
