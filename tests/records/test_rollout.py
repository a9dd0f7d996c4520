"""One answer as a record: it stays what it is, wherever it is carried."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from gmpo.records.rollout import Completion


@pytest.mark.parametrize("carried", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
@pytest.mark.parametrize("sampled", [None, [True, False]])
def test_the_arrays_of_a_copy_are_as_read_only_as_the_first_ones(
    carried: Callable[[Completion], Completion], sampled: list[bool] | None
) -> None:
    first = Completion([7, 2], [-0.5, 0.0], "stop", (3, 4), sampled)
    again = carried(first)
    assert again == first
    assert (again.sampled is None) == (sampled is None)
    for array in (again.token_ids, again.logprobs, *([] if again.sampled is None else [again.sampled])):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
