"""The sentences of the findings, in English and Chinese: what it is, what shows it, what to try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gmpo.records.run_folder import KILLED
from gmpo.report.verdicts import Finding

LANGUAGES = ("en", "zh")
LR = "actor_rollout_ref.actor.optim.lr{now}"
Numbers = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Words:
    """A finding in one language. `evidence` and `advice` are formats of its numbers."""

    title: str
    evidence: str
    advice: str = ""


WORDS: Mapping[str, tuple[Words, Words]] = {
    "learning": (
        Words("Learning", "pass@1 rose from {before} to {after}: the 95 % intervals do not overlap."),
        Words("在学习", "pass@1 从 {before} 升到 {after}：两个 95 % 区间不重叠。"),
    ),
    "reward_rose": (
        Words(
            "Reward rises",
            "Mean reward {reward_before:.3f} in the first steps, {reward_after:.3f} in the last. No two validations "
            "show whether that holds on other problems.",
            "Give data.val_files and trainer.test_freq.",
        ),
        Words(
            "奖励上升",
            "平均奖励开头为 {reward_before:.3f}，末尾为 {reward_after:.3f}。"
            "没有两次验证，无法知道在其他题目上是否成立。",
            "设置 data.val_files 与 trainer.test_freq。",
        ),
    ),
    "flat": (
        Words(
            "No change that can be told",
            "pass@1 {before} before, {after} after step {step}: the 95 % intervals overlap.",
            f"More steps; more validation problems or answers to each, for a narrower interval; a higher {LR}, while "
            "the log-ratios stay well inside the bounds.",
        ),
        Words(
            "看不出变化",
            "pass@1 之前为 {before}，第 {step} 步之后为 {after}：两个 95 % 区间重叠。",
            f"更多步数；更多验证题目或每题更多回答，使区间变窄；在对数比仍远在界内时提高 {LR}。",
        ),
    ),
    "reward_flat": (
        Words(
            "Reward does not rise",
            "Mean reward {reward_before:.3f} in the first steps, {reward_after:.3f} in the last: within its noise.",
            f"More steps, or a higher {LR} while the log-ratios stay well inside the bounds.",
        ),
        Words(
            "奖励没有上升",
            "平均奖励开头为 {reward_before:.3f}，末尾为 {reward_after:.3f}：不超过其噪声。",
            f"更多步数，或在对数比仍远在界内时提高 {LR}。",
        ),
    ),
    "fell": (
        Words(
            "Worse than it was",
            "pass@1 was {best} after step {best_step}, and is {after} after step {step}: more than chance explains.",
            f"Take a checkpoint of then (trainer.save_freq); a lower {LR}, or fewer updates per rollout.",
        ),
        Words(
            "比之前差",
            "第 {best_step} 步之后 pass@1 为 {best}，第 {step} 步之后为 {after}：超出偶然所能解释。",
            f"取当时的检查点（trainer.save_freq）；降低 {LR}，或减少每次采样后的更新次数。",
        ),
    ),
    "collapsed": (
        Words(
            "Collapsed",
            "Since step {step} no problem had a right answer: 0 of {after} in {steps} steps, {solved} of {before} "
            "before. {signs}",
            f"Look at the samples around step {{step}}. Go on from a checkpoint before it, with a lower {LR}.",
        ),
        Words(
            "已崩溃",
            "从第 {step} 步起没有题目得到正确回答：{steps} 步中 {after} 题里 0 题，"
            "此前 {before} 题里 {solved} 题。{signs}",
            f"查看第 {{step}} 步附近的样本。从它之前的检查点继续，并降低 {LR}。",
        ),
    ),
    "stalled": (
        Words(
            "Nothing is learned any more",
            "Since step {step} the answers to each problem had the same reward, so that nothing tells them apart.",
            f"Look at the samples. A lower {LR} keeps answers different for longer; so do an entropy or a KL term.",
        ),
        Words(
            "不再学到任何东西",
            "从第 {step} 步起每道题的各回答奖励相同，无从区分。",
            f"查看样本。降低 {LR} 可使回答更久地保持差异；熵项或 KL 项亦然。",
        ),
    ),
    "nothing": (
        Words(
            "Nothing could be learned",
            "In every step the answers to each problem had the same reward: {wrong:.0%} of the problems wrong ones "
            "only, {right:.0%} right ones only.",
            "Problems between too hard and solved; more answers to each (actor_rollout_ref.rollout.n); a warm-up with "
            "gmpo sft; see in the samples whether the scorer reads the answers.",
        ),
        Words(
            "无从学习",
            "每一步中每道题的各回答奖励都相同：{wrong:.0%} 的题目全错，{right:.0%} 全对。",
            "选难度居中的题目；每题更多回答（actor_rollout_ref.rollout.n）；用 gmpo sft 热身；"
            "在样本中看评分器是否读得懂回答。",
        ),
    ),
    "no_rate": (
        Words("The learning rate was 0", "actor/lr was 0 in every step, so that no weight moved.", f"Set {LR}."),
        Words("学习率为 0", "每一步的 actor/lr 都是 0，权重没有变化。", f"设置 {LR}。"),
    ),
    "off_policy": (
        Words(
            "Too far from the policy that sampled",
            "In {steps} of {of} steps, most of all step {step}: log-ratios of tokens from {low:.1f} to {high:.1f}, "
            "effective sample size down to {ess:.2f}, up to {held:.1%} of the tokens of a sign cut by the bound.",
            f"A lower {LR}; fewer updates per rollout (larger actor_rollout_ref.actor.ppo_mini_batch_size, fewer "
            "ppo_epochs).",
        ),
        Words(
            "离采样策略太远",
            "{of} 步中有 {steps} 步，第 {step} 步最甚：词元对数比从 {low:.1f} 到 {high:.1f}，有效样本量低至 {ess:.2f}，"
            "同号词元中至多 {held:.1%} 被界截断。",
            f"降低 {LR}；减少每次采样后的更新次数（增大 actor_rollout_ref.actor.ppo_mini_batch_size，"
            "减少 ppo_epochs）。",
        ),
    ),
    "cut": (
        Words(
            "Answers are cut",
            "{share:.0%} of the answers in the last steps were cut at the length limit (mean {length:.0f} tokens); "
            "what is cut rarely holds its result.",
            "Raise data.max_response_length; read cut samples: does the model ever end an answer by itself?",
        ),
        Words(
            "回答被截断",
            "最后几步中 {share:.0%} 的回答在长度上限处被截断（平均 {length:.0f} 个词元）；被截断的回答很少含有结果。",
            "提高 data.max_response_length；阅读被截断的样本：模型是否会自行结束回答？",
        ),
    ),
    "unreadable": (
        Words(
            "Answers cannot be read",
            "The scorer found no answer in {share:.0%} of the last answers.",
            "Compare samples with the scorer's rule: the form that the prompt asks for, a warm-up with gmpo sft, "
            "reward_model.scorer.",
        ),
        Words(
            "读不出答案",
            "评分器在最后 {share:.0%} 的回答中找不到答案。",
            "将样本与评分规则对照：提示词所要求的格式、用 gmpo sft 热身、reward_model.scorer。",
        ),
    ),
    "grader": (
        Words(
            "Grading fails",
            "{share:.1%} of all answers ended in a timeout or an error of the grader; they count as reward 0.",
            "Read `reason` in the samples; correct the function, or raise reward_model.grader_timeout_s.",
        ),
        Words(
            "评分失败",
            "全部回答中 {share:.1%} 以评分超时或评分器错误告终，按奖励 0 计。",
            "看样本中的 `reason`；修正函数，或提高 reward_model.grader_timeout_s。",
        ),
    ),
    "hacking": (
        Words(
            "Reward hacking suspected",
            "Mean reward rose from {reward_before:.3f} to {reward_after:.3f}, right answers did not: {solved_text}.",
            "Read samples of high reward that are wrong; change what the reward counts.",
        ),
        Words(
            "疑似奖励作弊",
            "平均奖励从 {reward_before:.3f} 升到 {reward_after:.3f}，而正确回答没有增加：{solved_text}。",
            "阅读奖励高却错误的样本；修改奖励所计的内容。",
        ),
    ),
    "too_easy": (
        Words(
            "Data too easy",
            "In the last steps only {tell:.0%} of the problems had answers of different rewards; {right:.0%} were "
            "solved by all their answers.",
            "Harder problems; algorithm.filter_groups.enable or data.pass_rate_range leave out what is solved.",
        ),
        Words(
            "数据太容易",
            "最后几步中只有 {tell:.0%} 的题目其回答奖励不同；{right:.0%} 的题目所有回答都对。",
            "换更难的题目；algorithm.filter_groups.enable 或 data.pass_rate_range 可略去已解决的题目。",
        ),
    ),
    "too_hard": (
        Words(
            "Data too hard",
            "In the last steps only {tell:.0%} of the problems had answers of different rewards; {wrong:.0%} had no "
            "right answer.",
            "Easier problems, a warm-up with gmpo sft, more answers to each problem (actor_rollout_ref.rollout.n).",
        ),
        Words(
            "数据太难",
            "最后几步中只有 {tell:.0%} 的题目其回答奖励不同；{wrong:.0%} 的题目没有正确回答。",
            "换更容易的题目，用 gmpo sft 热身，每题更多回答（actor_rollout_ref.rollout.n）。",
        ),
    ),
    "crashed": (
        Words(
            "The run broke off",
            "After step {step}: {reason}.",
            "The same command goes on from the newest checkpoint; without one it begins again (trainer.save_freq).",
        ),
        Words(
            "训练中断",
            "第 {step} 步之后：{reason}。",
            "同一命令会从最新的检查点继续；没有检查点则从头开始（trainer.save_freq）。",
        ),
    ),
    "empty": (
        Words("Nothing is recorded yet", "There is no step in metrics.jsonl. {reason}"),
        Words("尚无记录", "metrics.jsonl 中没有任何一步。{reason}"),
    ),
    "supervised": (
        Words("Supervised training", "Loss {before:.3f} in the first step, {after:.3f} in the last."),
        Words("监督训练", "损失在第一步为 {before:.3f}，最后一步为 {after:.3f}。"),
    ),
    "unclear": (
        Words("Too early to tell", "There are too few steps, and no two validations."),
        Words("为时过早", "步数太少，也没有两次验证。"),
    ),
}
"""Kind of finding -> its words in each of `LANGUAGES`."""


SIGNS = {
    "tokens an answer": "回答词元数",
    "cut at the limit": "在上限处截断",
    "without a readable answer": "读不出答案",
    "gradient 0": "梯度为 0",
    "entropy": "熵",
    "; ": "；",
}
"""Words of `metrics.collapse.Collapse.signs`."""


def sentences(finding: Finding) -> dict[str, dict[str, str]]:
    """Language -> title, evidence and advice."""
    filled: dict[str, dict[str, str]] = {}
    for language, words in zip(LANGUAGES, WORDS[finding.kind], strict=True):
        numbers = {**finding.numbers, **_texts(finding.numbers, language)}
        filled[language] = {
            "title": words.title,
            "evidence": words.evidence.format(**numbers).strip(),
            "advice": words.advice.format(**numbers),
        }
    return filled


def _texts(numbers: Numbers, language: str) -> dict[str, Any]:
    """Rates as `0.312 (0.270-0.356)`, and what depends on which numbers there are."""
    texts: dict[str, Any] = {
        name: "{:.3f} ({:.3f}-{:.3f})".format(*numbers[name])
        for name in ("before", "after", "best")
        if isinstance(numbers.get(name), tuple)
    }
    if "solved" in numbers and isinstance(numbers["solved"], tuple):
        arrow = "share of right answers {:.2f} -> {:.2f}" if language == "en" else "正确回答的比例 {:.2f} -> {:.2f}"
        texts["solved_text"] = arrow.format(*numbers["solved"])
    elif "before" in texts and "after" in texts:
        texts["solved_text"] = f"pass@1 {texts['before']} -> {texts['after']}"
    rate, now = numbers.get("rate"), " (now {:g})" if language == "en" else "（现为 {:g}）"
    texts["now"] = "" if not isinstance(rate, int | float) else now.format(rate)
    if language == "zh" and "signs" in numbers:
        texts["signs"] = numbers["signs"]
        for english, chinese in SIGNS.items():
            texts["signs"] = texts["signs"].replace(english, chinese)
    if "alike" in numbers:
        texts["tell"] = 1.0 - numbers["alike"]
    if numbers.get("reason") is not None:
        reason = str(numbers["reason"]).rstrip(".")
        texts["reason"] = (
            "没有留下任何话就结束了：被杀死，或机器停机" if language == "zh" and reason == KILLED else reason
        )
    return texts
