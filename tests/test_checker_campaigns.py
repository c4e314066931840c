"""A small, seeded slice of benchmarks/checking.py: planted mistakes, and right gradients."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "checking.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="a script of the repository")


@pytest.fixture(scope="module")
def campaigns():
    specification = importlib.util.spec_from_file_location("campaigns", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_planted_mistakes_are_found_or_not_judged(campaigns):
    found = campaigns.planted_mistakes(4)
    assert found["planted"] > 20
    assert found["passed"] == 0, found["missed"]


def test_right_gradients_are_not_called_wrong(campaigns):
    found = campaigns.right_gradients(20)
    assert found["judged"] > 40
    assert found["called wrong"] == 0, found["examples"]


def test_nothing_unseen_passes(campaigns):
    assert campaigns.unseen(3)["passed"] == 0
