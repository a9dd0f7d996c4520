"""Geometric-Mean Policy Optimization in one file: a policy, a task, a rule, and the loss written out.

    python examples/gmpo_in_one_file.py

Needs torch and transformers only, and less than a minute on one core. Nothing is imported from `gmpo`; a test of the
repository holds the loss below, and its gradient, against the package's.

The task. The prompt is two digits and `=`. The answer is the different digits in rising order and an end token: `7 2 =`
asks for `2 7 <end>`, and `4 4 =` for `4 <end>`. Nobody shows the policy an answer: it starts from random weights, and a
rule scores what it tries. So answers differ in length, some are cut at the limit, and the reward says how good an
answer is, never what would have been right.

The loop, which is the same for a model of 7 billion parameters:

    1  sample G answers to each of Q prompts, and keep the log-probs of the sampled tokens
    2  score every answer by the rule
    3  advantage: how much better than the other answers to the same prompt
    4  several optimizer updates on these answers, each on a part of the prompts
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

# Ten digits are the tokens 0 to 9.
EQUALS, END, VOCABULARY = 10, 11, 12
DIGITS, PROMPT, LONGEST = 2, 3, 5
"""Digits and tokens of a prompt, and the length at which an answer is cut."""


def make_policy(seed: int) -> Qwen3ForCausalLM:
    """A transformer of 83,136 random weights, without dropout: with it, a token's log-prob would not be one number."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=128,
            max_position_embeddings=PROMPT + LONGEST,
            tie_word_embeddings=True,
            attention_dropout=0.0,
            initializer_range=0.05,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=END,
        )
    )


# --- the task ---------------------------------------------------------------------------------------------------------


def make_prompts(n: int, generator: torch.Generator) -> Tensor:
    """`[n, 3]`: two random digits and the equals sign."""
    digits = torch.randint(0, 10, (n, DIGITS), generator=generator)
    return torch.cat([digits, torch.full((n, 1), EQUALS)], dim=1)


def score(prompt: list[int], answer: list[int]) -> float:
    """The rule: matching positions as a share of the longer of given and right answer; 1 for exactly the right one."""
    right = [*sorted(set(prompt[:DIGITS])), END]
    matches = sum(a == b for a, b in zip(answer, right, strict=False))
    return matches / max(len(answer), len(right))


# --- 1: sampling ------------------------------------------------------------------------------------------------------


@dataclass
class Rollout:
    """B = Q x G answers, those to one prompt in consecutive rows; T answer positions."""

    tokens: Tensor
    """[B, 3 + T] prompt and answer; behind the end token, end tokens again."""
    mask: Tensor
    """[B, T] true on the tokens that were sampled, the end token included. Only these may enter the loss."""
    old_logp: Tensor
    """[B, T] log-probs of the answer's tokens under the policy that sampled them: pi_old."""


@torch.no_grad()
def sample(policy: Qwen3ForCausalLM, prompts: Tensor, answers: int, generator: torch.Generator) -> Rollout:
    """`answers` answers to each prompt, at temperature 1. (A real sampler caches keys and values.)"""
    tokens = prompts.repeat_interleave(answers, dim=0)
    running = torch.ones(len(tokens), dtype=torch.bool)
    masks, logps = [], []
    for _ in range(LONGEST):
        logp = policy(tokens, use_cache=False).logits[:, -1].log_softmax(-1)
        token = torch.multinomial(logp.exp(), 1, generator=generator)
        token = token.masked_fill(~running.unsqueeze(1), END)
        masks.append(running)
        logps.append(logp.gather(1, token).squeeze(1))
        tokens = torch.cat([tokens, token], dim=1)
        running = running & (token.squeeze(1) != END)
    return Rollout(tokens, torch.stack(masks, dim=1), torch.stack(logps, dim=1))


def answer_logp(policy: Qwen3ForCausalLM, tokens: Tensor) -> Tensor:
    """`[B, T]` log-probs of the answers' tokens under the current policy, with gradients."""
    # The logits that predict a token stand one position before it.
    logits = policy(tokens, use_cache=False).logits[:, PROMPT - 1 : -1]
    return logits.log_softmax(-1).gather(-1, tokens[:, PROMPT:].unsqueeze(-1)).squeeze(-1)


# --- 3: the advantage -------------------------------------------------------------------------------------------------


def group_advantage(rewards: Tensor, answers: int) -> Tensor:
    """`[B]` rewards -> `[B]` advantages: each group's rewards to mean 0 and deviation 1 (GRPO, arXiv 2402.03300).

    Where all answers to a prompt score alike there is nothing to learn from: exactly 0.
    """
    groups = rewards.view(-1, answers)
    advantage = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
    same = groups.amax(1, keepdim=True) == groups.amin(1, keepdim=True)
    return advantage.masked_fill(same, 0.0).flatten()


# --- 4: the loss ------------------------------------------------------------------------------------------------------


def gmpo_loss(logp: Tensor, old_logp: Tensor, advantage: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The GMPO loss of a mini-batch: `logp`, `old_logp` and `mask` are `[B, T]`, `advantage` is `[B]`.

    GRPO averages the ratios pi / pi_old of an answer's tokens arithmetically. GMPO takes their geometric mean, which is
    the exponential of the mean log-ratio, so that one token with a huge ratio cannot dominate:

        ratio_i = exp( 1/|o_i| sum_t m_it ),        loss = mean over answers of  -A_i ratio_i

    The bound m is on one side: a log-ratio counts up to +clip where the answer was good (A > 0) and down to -clip where
    it was bad. The policy has then moved as far as one rollout justifies, and the token's gradient is cut. On the other
    side, where it moved against the advantage, nothing is ever cut.

    (The package also holds the exponent at 20: with A < 0 the ratio has no upper bound. Below that both are equal.)
    """
    log_ratio = logp - old_logp
    good = advantage.unsqueeze(1) > 0
    bounded = torch.where(good, log_ratio.clamp(max=clip), log_ratio.clamp(min=-clip))
    length = mask.sum(dim=1)
    mean = bounded.masked_fill(~mask, 0.0).sum(dim=1) / length.clamp(min=1)
    loss = -advantage * mean.exp()
    # An empty answer has nothing to say: it counts neither above nor below the line.
    return loss.masked_fill(length == 0, 0.0).sum() / (length > 0).sum().clamp(min=1)


# --- the loop ---------------------------------------------------------------------------------------------------------


def train(
    *,
    steps: int = 120,
    prompts: int = 64,
    answers: int = 8,
    updates: int = 4,
    clip: float = 0.4,
    lr: float = 1e-3,
    seed: int = 0,
    every: int = 10,
) -> list[float]:
    """Train a fresh policy and return the mean reward of each step.

    Several updates on each rollout are the point. At the first one pi = pi_old: all ratios are 1, no bound binds, and
    the gradient of GMPO is that of GRPO. They differ from the second one on.
    """
    generator = torch.Generator().manual_seed(seed)
    policy = make_policy(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    history = []
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - (step - 1) / steps)
        asked = make_prompts(prompts, generator)
        rollout = sample(policy, asked, answers, generator)
        lengths = rollout.mask.sum(dim=1).tolist()
        rows = rollout.tokens.tolist()
        scores = [score(row[:PROMPT], row[PROMPT : PROMPT + n]) for row, n in zip(rows, lengths, strict=True)]
        advantage = group_advantage(torch.tensor(scores), answers)
        low, high, cut = 0.0, 0.0, []
        # Whole groups in each update: rows of a group stand together.
        for part in torch.arange(len(rows)).chunk(updates):
            logp = answer_logp(policy, rollout.tokens[part])
            mask, signs = rollout.mask[part], advantage[part].sign().unsqueeze(1)
            loss = gmpo_loss(logp, rollout.old_logp[part], advantage[part], mask, clip)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            log_ratio = (logp.detach() - rollout.old_logp[part])[mask]
            low, high = min(low, float(log_ratio.min())), max(high, float(log_ratio.max()))
            cut.append((log_ratio * signs.expand_as(mask)[mask] > clip).float().mean())
        history.append(sum(scores) / len(scores))
        if step % every == 0 or step == 1:
            exact = sum(s == 1.0 for s in scores) / len(scores)
            print(
                f"step {step:3d}   reward {history[-1]:.3f}   exactly right {exact:4.0%}   "
                f"log-ratio {low:+.2f}..{high:+.2f}   tokens cut {float(torch.stack(cut).mean()):.1%}"
            )
    return history


def main() -> None:
    parser = argparse.ArgumentParser(description="GMPO in one file: sort two digits, from scratch, by reward alone.")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument(
        "--updates", type=int, default=4, help="optimizer updates per rollout; with 1 the gradient is that of GRPO"
    )
    parser.add_argument("--clip", type=float, default=0.4, help="bound on log-ratios")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    history = train(steps=arguments.steps, updates=arguments.updates, clip=arguments.clip, seed=arguments.seed)
    print(f"mean reward: first step {history[0]:.3f}, last step {history[-1]:.3f}")


if __name__ == "__main__":
    main()
