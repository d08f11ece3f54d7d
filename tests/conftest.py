"""Shared by the tests: small invented bases, and Hypothesis without clock or memory so that every run is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ddxplus_fixture import write_release
from hypothesis import HealthCheck, settings

from medenv.knowledge.base import Condition, Finding, KnowledgeBase, Link

settings.register_profile(
    "medenv",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.load_profile("medenv")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: threads that wait for each other on a busy machine take 20 times as long for models this small."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_base() -> KnowledgeBase:
    """Three conditions, six findings, two age bands: small enough to enumerate every patient that it can make.

    It has what the enumeration must get right: a child, a multi-choice finding, one that a sex rules out, a risk that depends on
    the cell, a reliable test, and opening statements whose choice tells something.
    """
    return KnowledgeBase(
        name="tiny",
        version=1,
        conditions=(
            Condition("flu", "Flu", {"primary": 0.5}, age=(1.0, 0.7), severity=2),
            Condition("cold", "Cold", {"primary": 0.4}, age=(0.8, 1.0), sex=(1.0, 0.5)),
            Condition("rare", "Rare", {"primary": 0.1}, age=(0.1, 1.0), severity=5, must_not_miss=True),
        ),
        findings=(
            Finding("fever", "fever", background=(0.95, 0.05), complaint=1.0),
            Finding("cough", "cough", background=(0.9, 0.1), complaint=1.0),
            Finding(
                "cough_type",
                "cough type",
                "categorical",
                ("dry", "wet", "barking"),
                parent="cough",
                activated_by=("yes",),
                background=(0.5, 0.4, 0.1),
            ),
            Finding("spots", "spots", "multi_choice", ("none", "face", "back"), background=(0.8, 0.1, 0.1)),
            Finding("pregnant", "pregnant", sex="female", background=(0.9, 0.1)),
            Finding(
                "smoker",
                "smoker",
                group="risk",
                kind="order",
                cost=3.0,
                reliability=0.5,
                background=(0.7, 0.3),
                background_by_cell={("male", 1): (0.4, 0.6), ("female", 1): (0.6, 0.4)},
            ),
        ),
        links=(
            Link("flu", "fever", {"yes": 0.8}),
            Link("flu", "cough", {"yes": 0.5}),
            Link("flu", "cough_type", {"dry": 0.6}),
            Link("cold", "cough", {"yes": 0.97}),
            Link("cold", "cough_type", {"wet": 0.7, "dry": 0.1}),
            Link("rare", "fever", {"yes": 0.6}),
            Link("rare", "cough", {"yes": 0.5}),
            Link("rare", "spots", {"face": 0.5, "back": 0.3}),
            Link("rare", "smoker", {"yes": 0.5}),
            Link("rare", "pregnant", {"yes": 0.3}),
        ),
        age_bands=(0, 40),
        oldest=90,
        complaints={"flu": {"fever": 0.7, "cough": 0.3}, "cold": {"cough": 0.96, "fever": 0.04}, "rare": {"fever": 0.5, "cough": 0.5}},
    )


def strict_base() -> KnowledgeBase:
    """Two conditions with probabilities that are exactly 0 and 1, so that answers can contradict every condition."""
    return KnowledgeBase(
        name="strict",
        version=1,
        conditions=(Condition("one", "One", {"primary": 1.0}, age=(1.0,)), Condition("two", "Two", {"primary": 1.0}, age=(1.0,))),
        findings=(
            Finding("hello", "hello", complaint=1.0),
            Finding("a", "a"),
            Finding("b", "b"),
            Finding("c", "c", background=(0.5, 0.5)),
            Finding("set", "set", "multi_choice", ("x", "y", "z"), background=(0.2, 0.3, 0.5)),
        ),
        links=(
            Link("one", "hello", {"yes": 1.0}),
            Link("two", "hello", {"yes": 1.0}),
            Link("one", "a", {"yes": 1.0}),
            Link("two", "b", {"yes": 1.0}),
            Link("one", "set", {"x": 0.8}),
        ),
    )


@pytest.fixture
def tiny() -> KnowledgeBase:
    return tiny_base()


@pytest.fixture
def strict() -> KnowledgeBase:
    return strict_base()


@pytest.fixture(scope="session")
def ddxplus_release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small invented release in DDXPlus's formats; MEDENV_DDXPLUS points at it for the rest of the run."""
    release = write_release(tmp_path_factory.mktemp("ddxplus") / "release")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDENV_DDXPLUS", str(release))
        yield release
