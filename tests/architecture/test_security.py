"""What SECURITY.md promises and the code can be asked: nothing is evaluated, unpickled or opened to other machines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "gmpo"
FILES = {str(path.relative_to(SOURCE)): path.read_text() for path in sorted(SOURCE.rglob("*.py"))}

EVALUATES = {"eval", "exec", "compile", "__import__"}
UNPICKLES = {
    ("pickle", "load"),
    ("pickle", "loads"),
    ("pickle", "Unpickler"),
    ("cloudpickle", "load"),
    ("cloudpickle", "loads"),
    ("torch", "load"),
    ("marshal", "loads"),
    ("shelve", "open"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
}
MAY_UNPICKLE = {"rewards/worker.py": "what the trainer itself wrote, over a socket pair"}
SWITCHES = {
    "shell": True,
    "allow_pickle": True,
    "weights_only": False,
    "trust_remote_code": True,
    "use_safetensors": False,
}
"""Keyword -> the value that no call may give."""
OPEN_ADDRESSES = ("0.0.0.0", "::")


def offences(source: str, file: str) -> Iterator[str]:
    """What a module does that it must not, a sentence each."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in OPEN_ADDRESSES:
            yield f"{file}:{node.lineno} names the address {node.value}"
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in EVALUATES:
            yield f"{file}:{node.lineno} calls {called.id}"
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            name = (called.value.id, called.attr)
            if name in UNPICKLES and file not in MAY_UNPICKLE:
                yield f"{file}:{node.lineno} calls {'.'.join(name)}"
            if name in {("os", "system"), ("os", "popen")}:
                yield f"{file}:{node.lineno} calls {'.'.join(name)}"
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg in SWITCHES and isinstance(value, ast.Constant) and value.value is SWITCHES[keyword.arg]:
                yield f"{file}:{node.lineno} gives {keyword.arg}={value.value}"
            if keyword.arg == "trust_remote_code" and not _is_a_setting(value):
                yield f"{file}:{node.lineno} gives trust_remote_code a value that is no setting"


def _is_a_setting(value: ast.expr) -> bool:
    """It is handed on under its own name: a parameter, or an attribute of a section or of a model's source."""
    return (isinstance(value, ast.Name) and value.id == "trust_remote_code") or (
        isinstance(value, ast.Attribute) and value.attr == "trust_remote_code"
    )


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_evaluated_unpickled_or_opened_to_others(file: str) -> None:
    assert not list(offences(FILES[file], file))


def test_every_exception_is_needed() -> None:
    for file in MAY_UNPICKLE:
        assert list(offences(FILES[file], "another.py")), f"{file} unpickles nothing"


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "pickle.loads(reply)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "subprocess.run(words, shell=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=not safe)",
        "server.bind(('0.0.0.0', 80))",
        "os.system(command)",
    ],
)
def test_each_of_these_lines_would_be_found(line: str) -> None:
    assert list(offences(line, "x.py"))


def test_code_of_a_model_is_off_in_every_section() -> None:
    from gmpo.config import Config, SftConfig
    from gmpo.config.resolved import as_tree
    from gmpo.config.tree import leaves

    for root in (Config, SftConfig):
        for path in leaves(root):
            if path.endswith("trust_remote_code"):
                value: object = as_tree(root())
                for name in path.split("."):
                    value = value[name]  # type: ignore[index]
                assert value in (False, None), path  # null follows the policy's
