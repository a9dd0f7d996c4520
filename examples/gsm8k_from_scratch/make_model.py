"""A model of about a million random parameters that can read GSM8K: byte-level BPE trained on the problems themselves.

python make_model.py TRAIN.parquet FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gmpo.backends.tiny_model import bpe_tokenizer, make_model
from gmpo.data.problems import load_problems


def main(train_file: str, folder: str) -> None:
    problems = load_problems([train_file])
    texts = [text for p in problems for text in (p.prompt[0]["content"], str(p.extra.get("answer", "")))]
    parameters = make_model(
        Path(folder),
        bpe_tokenizer(texts, size=2048),
        seed=1,
        hidden=128,
        layers=4,
        heads=4,
        kv_heads=2,
        head_dim=32,
        intermediate=384,
        max_positions=1024,
    )
    print(f"{parameters:,} parameters -> {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_file", metavar="TRAIN.parquet", help="rows of `gmpo data gsm8k`")
    parser.add_argument("folder", metavar="FOLDER", help="where the model goes")
    main(**vars(parser.parse_args()))
