"""A small, seeded part of benchmarks/checking.py: planted mistakes, and right gradients."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "checking.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="a script of the repository")


@pytest.fixture(scope="module")
def campaigns():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent.parent))
        return importlib.import_module("benchmarks.checking")


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


def test_twenty_kinds_of_models(campaigns):
    found = campaigns.right_models(42)
    assert found["called wrong"] == 0, found["which"]
    assert found["unresolved"] <= 1, found["which unresolved"]
    found = campaigns.wrong_models(21)
    assert found["planted"] > 100
    assert found["passed"] == 0, found["which"]


def test_auto_on_models(campaigns):
    found = campaigns.auto_on_models(42)
    assert found["largest error beside the largest entry above 1e-6"] == []
    assert found["median"] < 8e-12
    assert found["evaluations an entry"] < 12
    assert found["by more than a factor of 3"] == 0


def test_float32_models(campaigns):
    found = campaigns.float32_models(13)
    assert found["passed"] >= 10
    assert found["called wrong"] == 0


def test_suspects(campaigns):
    found = campaigns.suspects(20)
    assert found["which"] == []
    assert found["which not"] == []
