"""Graded groups -> tensors for the learner, and their division into mini- and micro-batches.

Shapes: B responses, P prompt positions (left-padded), T response positions (right-padded). A row is
`[pad.. prompt | response pad..]`, so response position t of every row stands in column P + t.

Masks: a token is real (`prompt_mask`, `response_mask`: the model reads it, it has a position and counts in lengths),
sampled (`sampled_mask`: the policy chose it, so it has a log-prob, an entropy, a value, an advantage), in the loss
(`loss_mask`: it has a gradient and counts in the denominators). Each is a part of the one before it, and none stands
for another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gmpo.algo.groups import unanimous
from gmpo.algo.masks import Counts, count
from gmpo.errors import DataError
from gmpo.records.rollout import Group, number_of, numbers_of
from gmpo.streams import permutation

Ids = Sequence[int] | npt.NDArray[np.integer[Any]]
"""Token ids of one sequence."""


PER_RESPONSE = ("weight_versions", "components")
"""Fields of two dimensions whose second one is no position."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one rollout phase gives the learner. Rows of a group stand together, groups in the order they were drawn.

    Example: 2 problems with 3 answers each make B = 6 and `group = [0, 0, 0, 1, 1, 1]`.
    """

    prompt_ids: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    response_ids: Int[Tensor, "B T"]
    response_mask: Bool[Tensor, "B T"]
    """The real tokens of the response, the stop token included: the first ones of a row, without holes."""
    sampled_mask: Bool[Tensor, "B T"]
    """The real tokens that the policy chose itself. A hole among them is what a tool or an environment said: the policy
    reads it and is not asked about it."""
    group: Int[Tensor, " B"]
    """Index of the problem within the step's batch."""
    index: Int[Tensor, " B"]
    """Row number within the step's batch; a mini-batch keeps its rows' numbers."""
    rewards: Float[Tensor, " B"]
    """Reward of each response, before any KL term."""
    rollout_logp: Float[Tensor, "B T"]
    """The sampler's log-probs; 0 where nothing was sampled."""
    weight_versions: Int[Tensor, "B 2"] | None = None
    """Training steps behind the weights that sampled each response's first and last token; None where nothing was
    sampled."""
    finished: Bool[Tensor, " B"] | None = None
    """The response ended by itself; false where it was cut at the length limit. None where all did."""
    learner_logp: Float[Tensor, "B T"] | None = None
    """The learner's log-probs at the start of the step; None where they were not computed."""
    old_is_rollout: bool = False
    """The old policy is the sampler's: `old_logp` is `rollout_logp`, and not `learner_logp`."""
    ref_logp: Float[Tensor, "B T"] | None = None
    """The reference model's log-probs; None without a KL term."""
    entropy: Float[Tensor, "B T"] | None = None
    """Entropy of the learner's distribution at the start of the step, in nats; None when it was not computed."""
    score_norm: Float[Tensor, "B T"] | None = None
    """Squared norm of the derivative of each token's log-prob by the logits, at the start of the step; None where no
    estimator asks for it."""
    loss_mask: Bool[Tensor, "B T"] = None  # type: ignore[assignment]  # filled in by __post_init__
    """The sampled tokens that take part in the loss: all of them where no mask is given. Rejected and masked ones leave
    it, and so the loss's denominators, while the policy still reads them."""
    weights: Float[Tensor, "B T"] | None = None
    """Constants that multiply the gradient of each token; None weights all alike."""
    values: Float[Tensor, "B T"] | None = None
    """The critic's estimate of the reward still to come, before each token; None without a critic."""
    returns: Float[Tensor, "B T"] | None = None
    """What the critic is fitted to."""
    greedy_reward: Float[Tensor, " B"] | None = None
    """Reward of the greedy answer to the same problem; None where none was asked for."""
    components: Float[Tensor, "B K"] | None = None
    """Several rewards of each response, where advantages are made of them; None where they are made of `rewards`."""
    selected: Bool[Tensor, "B T"] | None = None
    """Tokens that the loss treats differently, chosen from the whole mini-batch."""
    token_rewards: Float[Tensor, "B T"] | None = None
    """Rewards per token, the KL term included: what advantages are made of."""
    advantage: Float[Tensor, "B T"] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError where one mask stands for another."""
        if self.loss_mask is None:
            object.__setattr__(self, "loss_mask", self.sampled_mask)
        real = self.response_mask
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise ValueError("response_mask has a hole: what the policy did not sample leaves sampled_mask only")
        if bool((self.sampled_mask & ~real).any()):
            raise ValueError("sampled_mask has tokens outside response_mask: padding cannot have been sampled")
        if bool((self.loss_mask & ~self.sampled_mask).any()):
            raise ValueError("loss_mask has tokens outside sampled_mask: only what was sampled can be in the loss")

    @property
    def unanimous(self) -> Bool[Tensor, " B"]:
        """The answers to the same problem have equal rewards, bit for bit: each of several where there are such."""
        return unanimous([self.rewards] if self.components is None else self.components.unbind(1), self.group)

    @property
    def rows(self) -> int:
        return self.response_ids.shape[0]

    @property
    def groups(self) -> int:
        """Number of problems."""
        return int(self.group.unique().numel())

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        """Tokens of each row, prompt and response."""
        return self.prompt_mask.sum(1) + self.response_mask.sum(1)

    @property
    def old_logp(self) -> Float[Tensor, "B T"] | None:
        """The log-probs that ratios are taken against; None where one update makes them equal to the current ones."""
        return self.rollout_logp if self.old_is_rollout else self.learner_logp

    def counts(self) -> Counts:
        """Tokens and responses in the loss: the two denominators a mini-batch can have."""
        return count(self.loss_mask)

    def replace(self, **fields: Any) -> Batch:
        """A copy with some fields exchanged."""
        return dataclasses.replace(self, **fields)

    def select(self, rows: Int[Tensor, " R"]) -> Batch:
        """The given rows, in the given order, with padding that no row needs cut away."""
        taken = self.take(rows)
        picked = {f.name: getattr(taken, f.name) for f in dataclasses.fields(self)}
        prompt = int(self.prompt_mask[rows].sum(1).max()) if len(rows) else 0
        response = int(self.response_mask[rows].sum(1).max()) if len(rows) else 0
        start = self.prompt_mask.shape[1] - prompt
        for name, value in picked.items():
            if isinstance(value, Tensor) and value.dim() == 2 and name not in PER_RESPONSE:
                picked[name] = value[:, start:] if name.startswith("prompt_") else value[:, :response]
        return Batch(**picked)

    def take(self, rows: Int[Tensor, " R"]) -> Batch:
        """The given rows with all their padding: response positions stay where they are."""
        return Batch(**{f.name: _rows(getattr(self, f.name), rows) for f in dataclasses.fields(self)})

    def mini_batches(self, problems: int, *, epochs: int, shuffle_seed: int | None) -> Iterator[Int[Tensor, " R"]]:
        """Row indices of each optimizer update: `problems` whole groups at a time, the last slice possibly smaller.

        Membership never depends on lengths or on the number of ranks.

        Args:
            epochs: passes over the batch (`ppo_epochs`).
            shuffle_seed: None keeps the order of the groups; a number permutes them anew in each epoch.
        """
        order = torch.unique(self.group)
        for epoch in range(epochs):
            if shuffle_seed is not None:
                order = order[torch.tensor(permutation(len(order), shuffle_seed, epoch))]
            for start in range(0, len(order), problems):
                members = order[start : start + problems]
                yield torch.cat([(self.group == g).nonzero().squeeze(1) for g in members])


def _rows(value: Any, rows: Tensor) -> Any:
    return value[rows] if isinstance(value, Tensor) else value


def micro_batches(
    prompt_lengths: Int[Tensor, " B"],
    response_lengths: Int[Tensor, " B"],
    *,
    rows: int | None = None,
    tokens: int | None = None,
) -> list[Int[Tensor, " R"]]:
    """Indices of micro-batches, rows of similar length together so that little padding is computed.

    Args:
        prompt_lengths, response_lengths: tokens of each row.
        rows: at most so many rows each (`ppo_micro_batch_size_per_gpu`), or
        tokens: at most so many tokens each, padding included (`ppo_max_token_len_per_gpu`); a single longer row still
            makes a micro-batch of its own. Exactly one of the two is given.
    """
    order = np.lexsort((prompt_lengths.numpy(), response_lengths.numpy()))
    cuts: list[list[int]] = []
    prompt = response = 0
    for index in order.tolist():
        prompt = max(prompt, int(prompt_lengths[index]))
        response = max(response, int(response_lengths[index]))
        if not cuts or not _fits(len(cuts[-1]) + 1, prompt + response, rows, tokens):
            cuts.append([])
            prompt, response = int(prompt_lengths[index]), int(response_lengths[index])
        cuts[-1].append(index)
    return [torch.tensor(cut, dtype=torch.long) for cut in cuts]


def _fits(members: int, width: int, rows: int | None, tokens: int | None) -> bool:
    if rows is not None:
        return members <= rows
    assert tokens is not None
    return members * width <= tokens


def pad_left(sequences: Sequence[Ids], pad_id: int) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """Ids `[B, P]` with padding in front, and the mask of real tokens."""
    width = max((len(s) for s in sequences), default=0)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        if len(sequence):
            ids[row, width - len(sequence) :] = torch.as_tensor(np.asarray(sequence), dtype=torch.long)
            mask[row, width - len(sequence) :] = True
    return ids, mask


def pad_right(sequences: Sequence[Ids], pad_id: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Ids `[B, T]` with padding behind, and the mask of real tokens."""
    width = max((len(s) for s in sequences), default=0)
    lengths = torch.tensor([len(s) for s in sequences], dtype=torch.long)
    mask = torch.arange(width).unsqueeze(0) < lengths.unsqueeze(1)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    if len(sequences):
        ids[mask] = torch.from_numpy(np.concatenate([np.asarray(s, dtype=np.int64) for s in sequences]))
    return ids, mask


def collate(groups: Sequence[Group], *, pad_id: int, components: Sequence[str] = ()) -> Batch:
    """The tensors of a rollout phase, on the CPU in float32.

    Args:
        pad_id: any id of the vocabulary; padded positions never reach a loss.
        components: names of the rewards of which advantages are made; none where the reward is one number.

    Raises:
        DataError: the grading of an answer gives no number of such a name.
    """
    answers = [(index, group, graded) for index, group in enumerate(groups) for graded in group.graded]
    prompt_ids, prompt_mask = pad_left([group.prompt_ids for _, group, _ in answers], pad_id)
    response_ids, response_mask = pad_right([g.completion.token_ids for _, _, g in answers], pad_id)
    sampled_mask, rollout_logp = torch.zeros_like(response_mask), torch.zeros(response_ids.shape)
    if answers:
        sampled = np.concatenate([g.completion.sampled_mask for _, _, g in answers])
        logprobs = np.concatenate([g.completion.logprobs for _, _, g in answers])
        sampled_mask[response_mask] = torch.from_numpy(sampled)
        # What stands where nothing was sampled has no meaning, and may be no number.
        rollout_logp[sampled_mask] = torch.from_numpy(logprobs[sampled])
    return Batch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids,
        response_mask=response_mask,
        sampled_mask=sampled_mask,
        group=torch.tensor([index for index, _, _ in answers], dtype=torch.long),
        index=torch.arange(len(answers)),
        rewards=torch.tensor([g.reward for _, _, g in answers], dtype=torch.float32),
        weight_versions=torch.tensor([g.completion.weight_versions for _, _, g in answers]).reshape(-1, 2).long(),
        finished=torch.tensor([g.completion.finish_reason == "stop" for _, _, g in answers]),
        greedy_reward=_greedy_rewards(groups),
        rollout_logp=rollout_logp,
        components=_components(groups, components),
    )


def _components(groups: Sequence[Group], names: Sequence[str]) -> Float[Tensor, "B K"] | None:
    """Each answer's rewards by name; all 0 for an answer without a judgement, as its reward is."""
    if not names:
        return None
    rows = []
    for group in groups:
        for graded in group.graded:
            found = {name: number_of(graded, name) for name in names}
            missing = [name for name, value in found.items() if value is None]
            if missing and graded.grade.reason is None:
                raise DataError(
                    f"algorithm.gdpo_reward_keys names {', '.join(missing)}, and the grading of an answer to "
                    f"{group.problem.id} gives no such number. There are {', '.join(numbers_of(graded))}: have the "
                    "reward function return it, or name one of these."
                )
            rows.append([0.0 if graded.grade.reason is not None else value for value in found.values()])
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(names))


def _greedy_rewards(groups: Sequence[Group]) -> Float[Tensor, " B"] | None:
    rewards = [g.baseline.reward for g in groups if g.baseline is not None for _ in g.graded]
    return torch.tensor(rewards, dtype=torch.float32) if rewards else None
