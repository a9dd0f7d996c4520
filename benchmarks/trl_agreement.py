"""gmpo's losses and gradients against TRL's trainers on the same model and tensors, where the definitions agree.

    python benchmarks/trl_agreement.py [--env FOLDER] [--json FILE]

Builds an environment with TRL and this checkout (a few minutes, once), and runs the comparison in it: TRL's own
`_compute_loss` of `GRPOTrainer` and `GMPOTrainer`, gmpo's learner, a tiny random Qwen3 in float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peers

LENGTHS, WIDTH, PROMPT, TEMPERATURE = (7, 3, 5, 7, 1, 6), 7, 4, 1.0
ADVANTAGES = (1.2, -0.7, 0.4, -1.3, 0.9, 0.0)

CASES: Mapping[str, Mapping[str, Any]] = {
    "GRPO, mean over sequences": {"trl": {"loss_type": "grpo"}, "loss": "vanilla", "mode": "seq-mean-token-mean"},
    "GRPO, higher upper bound": {
        "trl": {"loss_type": "grpo", "epsilon_high": 0.28},
        "loss": "vanilla",
        "mode": "seq-mean-token-mean",
        "numbers": {"clip_high": 0.28},
    },
    "GRPO, mean over tokens (BNPO)": {"trl": {"loss_type": "bnpo"}, "loss": "vanilla", "mode": "token-mean"},
    "Dr.GRPO": {"trl": {"loss_type": "dr_grpo"}, "loss": "vanilla", "mode": "seq-mean-token-sum-norm"},
    "GRPO with KL 0.1, uncorrected": {
        "trl": {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False},
        "loss": "vanilla",
        "mode": "seq-mean-token-mean",
    },
    "GRPO with KL 0.1, TRL's default": {
        "trl": {"loss_type": "grpo", "beta": 0.1},
        "loss": "vanilla",
        "mode": "seq-mean-token-mean",
        "differs": "TRL multiplies the KL estimate by the token's ratio (use_bias_correction_kl); verl and gmpo do not",
    },
    "GSPO": {
        "trl": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-2},
        "loss": "gspo",
        "mode": "seq-mean-token-mean",
        "numbers": {"clip_low": 3e-2, "clip_high": 3e-2},
    },
    "GMPO, 0.4": {
        "trl": {"epsilon": 0.4},
        "trainer": "gmpo",
        "loss": "geo_mean",
        "mode": "seq-mean-token-mean",
        "numbers": {"clip_low": 0.4, "clip_high": 0.4},
    },
    "GMPO, 0.4, with KL 0.1": {
        "trl": {"epsilon": 0.4, "beta": 0.1},
        "trainer": "gmpo",
        "loss": "geo_mean",
        "mode": "seq-mean-token-mean",
        "numbers": {"clip_low": 0.4, "clip_high": 0.4},
    },
    "GMPO, A = 0 and a log-ratio of 200": {
        "trl": {"epsilon": 0.4},
        "trainer": "gmpo",
        "loss": "geo_mean",
        "mode": "seq-mean-token-mean",
        "numbers": {"clip_low": 0.4, "clip_high": 0.4},
        "far": True,
        "differs": "TRL takes exp of an unbounded mean: 0 x inf is NaN. Here A = 0 gives 0 exactly",
    },
    "GMPO, a row without any token": {
        "trl": {"epsilon": 0.4},
        "trainer": "gmpo",
        "loss": "geo_mean",
        "mode": "seq-mean-token-mean",
        "numbers": {"clip_low": 0.4, "clip_high": 0.4},
        "empty": True,
        "differs": "TRL divides by all rows and gives the empty one the loss -A; here it counts nowhere",
    },
}


def compare(work: Path) -> list[dict[str, Any]]:
    """Every case, in the environment that has both."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

    from gmpo.algo.losses import POLICY_LOSSES
    from gmpo.algo.objective import Objective
    from gmpo.backends.devices import pick_device
    from gmpo.backends.learner import LocalLearner
    from gmpo.backends.tiny_model import make_model, word_tokenizer
    from gmpo.backends.trainable import MicroBatching, OptimizerSettings
    from gmpo.records.batch import Batch

    make_model(work / "model", word_tokenizer(list("abcdefgh")), seed=0, hidden=32, layers=2, heads=2, intermediate=64)
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    generator = torch.Generator().manual_seed(0)
    rows = len(LENGTHS)
    prompts = torch.randint(4, 12, (rows, PROMPT), generator=generator)
    answers = torch.randint(4, 12, (rows, WIDTH), generator=generator)
    noise = torch.randn(rows, WIDTH, generator=generator)
    advantage = torch.tensor(ADVANTAGES)

    def fresh() -> Any:
        return AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)

    def gradient(model: Any) -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    def mine(case: Mapping[str, Any], old: torch.Tensor, ref: torch.Tensor, mask: torch.Tensor) -> Any:
        model, beta = fresh(), case["trl"].get("beta", 0.0)
        numbers = {"clip_low": 0.2, "clip_high": 0.2, "clip_dual": 1e9, **case.get("numbers", {})}
        learner = LocalLearner(
            model,
            tokenizer,
            device=pick_device("cpu", "fp32"),
            objective=Objective(
                POLICY_LOSSES[case["loss"]], numbers, case["mode"], WIDTH, TEMPERATURE, kl_coef=beta, kl_kind="k3"
            ),
            optimizer=OptimizerSettings(lambda step: 0.0, (0.9, 0.999), 1e-8, 0.0, 1e9, 1),
            update_split=MicroBatching(rows=2),
            score_split=MicroBatching(rows=2),
        )
        batch = Batch(
            prompt_ids=prompts,
            prompt_mask=torch.ones_like(prompts, dtype=torch.bool),
            response_ids=answers,
            response_mask=mask,
            sampled_mask=mask,
            group=torch.arange(rows),
            index=torch.arange(rows),
            rewards=advantage,
            rollout_logp=old,
            learner_logp=old,
            ref_logp=ref,
            entropy=torch.zeros_like(old),
            advantage=advantage.unsqueeze(1) * mask,
        )
        update = learner.update(batch, step=0)
        return update.scalars["pg_loss"] + beta * update.scalars.get("kl_loss", 0.0), gradient(model)

    def theirs(case: Mapping[str, Any], old: torch.Tensor, ref: torch.Tensor, mask: torch.Tensor) -> Any:
        gmpo = case.get("trainer") == "gmpo"
        config = (GMPOConfig if gmpo else GRPOConfig)(
            output_dir=str(work / "out"),
            per_device_train_batch_size=rows,
            num_generations=rows,
            max_completion_length=WIDTH,
            temperature=TEMPERATURE,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            **{"epsilon": 0.2, "beta": 0.0, **case["trl"]},
        )
        trainer = (GMPOTrainer if gmpo else GRPOTrainer)(
            model=fresh(),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "a b c d"}] * rows),
            processing_class=tokenizer,
        )
        trainer.model.train()
        trainer.model.zero_grad()
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer._compute_loss(
            trainer.model,
            {
                "prompt_ids": prompts,
                "prompt_mask": torch.ones_like(prompts),
                "completion_ids": answers,
                "completion_mask": mask.long(),
                "advantages": advantage,
                "old_per_token_logps": old,
                "ref_per_token_logps": ref,
                "num_items_in_batch": mask.sum(),
            },
        )
        loss.backward()
        return float(loss.detach()), gradient(trainer.model)

    found = []
    for name, case in CASES.items():
        lengths = torch.tensor([0 if case.get("empty") and i == 0 else n for i, n in enumerate(LENGTHS)])
        mask = torch.arange(WIDTH) < lengths.unsqueeze(1)
        with torch.no_grad():
            logits = fresh()(torch.cat([prompts, answers], 1)).logits[:, PROMPT - 1 : -1]
            now = logits.log_softmax(-1).gather(-1, answers.unsqueeze(-1)).squeeze(-1)
        old, ref = now - 0.5 * noise, now + 0.2 * noise.flip(0)
        if case.get("far"):
            old = old.clone()
            old[-1] -= 200.0
        (a, ga), (b, gb) = theirs(case, old, ref, mask), mine(case, old, ref, mask)
        error = float((ga - gb).norm() / gb.norm())
        agrees = abs(a - b) < 1e-5 and error < 1e-4
        why = case.get("differs", "")
        found.append({"case": name, "trl": a, "gmpo": b, "gradient_error": error, "agrees": agrees, "why": why})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_option(parser)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.inside:
        (a.inside / "found.json").write_text(json.dumps(compare(a.inside)))
        return
    with tempfile.TemporaryDirectory() as folder:
        python = peers.trl(a.env)
        subprocess.run([str(python), __file__, "--inside", folder], check=True)
        found = json.loads((Path(folder) / "found.json").read_text())
    print(f"{'case':38} {'TRL ' + peers.TRL:>12} {'gmpo':>12} {'gradient':>9}")
    for row in found:
        verdict = "agrees" if row["agrees"] else row["why"] or "DIFFERS"
        print(f"{row['case']:38} {row['trl']:12.7f} {row['gmpo']:12.7f} {row['gradient_error']:9.1e}  {verdict}")
    if a.json:
        peers.record(a.json, found)
    if any(not row["agrees"] and not row["why"] for row in found):
        sys.exit("some cases differ without a known reason")


if __name__ == "__main__":
    main()
