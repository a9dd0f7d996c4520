"""The configuration of gmpo: verl's key tree, typed and checked. Imports no torch."""

from gmpo.config.load import load, load_sft
from gmpo.config.resolved import Resolved
from gmpo.config.schema import Config
from gmpo.config.schema_sft import SftConfig

__all__ = ["Config", "Resolved", "SftConfig", "load", "load_sft"]
