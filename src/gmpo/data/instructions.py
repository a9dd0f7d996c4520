r"""How a prompt asks for its answer, and how to remove that instruction in order to ask for what another scorer reads.

The wording is that of verl's preprocessing and of the published data sets, word for word, because released models were
trained with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Instruction:
    """What stands before and after a question in the prompt."""

    before: str = ""
    after: str = ""

    def ask(self, question: str) -> str:
        """The prompt for a question."""
        return f"{self.before}{question}{self.after}"


HASH, BOXED, ANSWER_LINE, TAG = "hash", "boxed", "answer_line", "tag"

INSTRUCTIONS: Mapping[str, Instruction] = {
    HASH: Instruction(after=' Let\'s think step by step and output the final answer after "####".'),
    BOXED: Instruction(after=" Let's think step by step and output the final answer within \\boxed{}."),
    ANSWER_LINE: Instruction(
        before="Solve the following math problem step by step. The last line of your response should be of the form "
        "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n",
        after='\n\nRemember to put your answer on its own line after "Answer:".',
    ),
    TAG: Instruction(
        after=" Show your work in <think> </think> tags. And return the final answer in <answer> </answer> tags, for "
        "example <answer> (1 + 2) / 3 </answer>."
    ),
}
"""Answer format -> the instruction that asks for it: GSM8K's, MATH's, DAPO's, and the countdown game's."""


def bare_question(prompt: str) -> tuple[str, str | None]:
    """The question without its instruction, and the instruction's answer format; None when there is no known one."""
    for form, instruction in INSTRUCTIONS.items():
        question = prompt.strip()
        before, after = instruction.before.strip(), instruction.after.strip()
        if question.startswith(before) and question.endswith(after):
            return question.removeprefix(before).removesuffix(after).strip(), form
    return prompt.strip(), None
