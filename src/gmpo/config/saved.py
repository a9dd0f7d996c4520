"""A saved configuration says what was set, so that reading it again gives the same account of it.

It holds the whole tree, and under `given` what was set, with the values of that time. From these alone follows the tree
as it was saved; where the file differs from it, it was edited. Read again, what was set and what was edited count as
set. The others are defaults, or follow from what is set and go on doing so: an edited seed reaches the seeds that
followed it. A default or a derivation of another version differs as well: the file gives what stands in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

from gmpo.config.fields import Section
from gmpo.config.tree import get


def unedited(
    written: Section, paths: Set[str], given: Mapping[str, Any], complete: Callable[[Mapping[str, Any]], Section]
) -> frozenset[str]:
    """The paths of a saved configuration at which it stands as it was saved.

    Args:
        written: the values as they stand in the file.
        paths: those that stand in it.
        given: what was set when it was saved.
        complete: the configuration of some settings, with everything that follows from them.
    """
    then = complete(given)
    return frozenset(path for path in paths if get(then, path) == get(written, path))
