"""The written reference and the names that other packages share with the schema."""

from __future__ import annotations

from pathlib import Path

from gmpo.config import Config
from gmpo.config.reference import markdown
from gmpo.config.schema_sft import SftConfig
from gmpo.config.tree import leaves

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_reference_is_what_the_schema_says() -> None:
    assert DOCUMENT.read_text("utf-8") == markdown(), "run: python -m gmpo.config.reference > docs/configuration.md"


def test_every_setting_has_a_row_in_the_reference() -> None:
    text = markdown()
    for root in (Config, SftConfig):
        for path, leaf in leaves(root).items():
            assert f"### `{path.rpartition('.')[0]}`" in text
            assert f"| `{leaf.name}`" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 2  # tables of four and of two columns
