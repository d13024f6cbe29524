"""No operation and no layer is left out of the comparison."""

from __future__ import annotations

import ast
from pathlib import Path

from vitkit import nn, ops
from vitkit.nn.module import Module
from vitkit.ops._op import Op

# Compared to torch.optim and to their papers in tests/ops/test_updates.py.
ELSEWHERE = "_update_inplace"


def attributes_used(of: str) -> set[str]:
    """Return the names used as ``of.<name>`` in the tests of this folder."""
    nodes = (
        node
        for path in Path(__file__).parent.glob("test_torch_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    )
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == of
    }


def test_every_operation_is_compared() -> None:
    public = {name for name, value in vars(ops).items() if isinstance(value, Op)}
    assert {name for name in public if not name.endswith(ELSEWHERE)} <= attributes_used("ops")


def test_every_layer_is_compared() -> None:
    public = {
        name
        for name, value in vars(nn).items()
        if isinstance(value, type) and issubclass(value, Module) and value is not Module
    }
    watching = {"Timed"}  # changes nothing of what it wraps: tests/nn/test_wrappers.py
    assert public - watching <= attributes_used("nn")
