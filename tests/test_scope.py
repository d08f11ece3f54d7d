"""Scopes: a few conditions of a larger base.

Does not cover: doctors trained on them.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import tiny_base

from medenv.envs.vector import ConsultVectorEnv
from medenv.errors import KnowledgeError, UnknownName
from medenv.knowledge.files import builtin
from medenv.knowledge.named import knowledge_base
from medenv.knowledge.restricted import restricted, scope
from medenv.testing import check_base


def test_scope__is_the_commonest_conditions_and_what_bears_on_them() -> None:
    whole, part = builtin(), scope(builtin(), 12)
    share = {
        c.id: sum(w * c.prior.get(s, 0.0) / sum(d.prior.get(s, 0.0) for d in whole.conditions) for s, w in whole.settings.items())
        for c in whole.conditions
    }
    kept = {c.id for c in part.conditions}
    assert len(kept) == 12 and min(share[c] for c in kept) >= max(share[c.id] for c in whole.conditions if c.id not in kept)
    assert all(whole.condition(c.id) == c for c in part.conditions) and all(whole.finding(f.id) == f for f in part.findings)
    assert list(part.links) == [link for link in whole.links if link.condition in kept] and len(part.links) > 50
    linked = {link.finding for link in part.links}
    assert linked <= {f.id for f in part.findings} and len(part.findings) < len(whole.findings)
    extra = {f.id for f in part.findings} - linked
    assert extra <= {f.parent for f in part.findings} | {q for table in part.complaints.values() for q in table}
    assert part.id == "scope-12@0" and part.fingerprint != whole.fingerprint


def test_scope__is_a_base_like_any_other() -> None:
    check_base("scope:12")
    assert knowledge_base("scope:12").fingerprint == scope(builtin(), 12).fingerprint
    env = ConsultVectorEnv(64, knowledge="scope:12")
    env.reset(seed=0)
    assert env.num_conditions == 12 and np.unique(env.engine.truth).size > 5


def test_scope__of_another_base() -> None:
    check_base("scope:4:synthetic:9x30", consultations=5_000)
    assert knowledge_base("scope:4:synthetic:9x30").fingerprint == scope(knowledge_base("synthetic:9x30"), 4).fingerprint
    assert knowledge_base("scope:3:scope:4:synthetic:9x30").id == "scope-3@0"


def test_restricted__keeps_the_parents_of_its_findings() -> None:
    part = restricted(tiny_base(), ["flu", "cold"], "two")
    assert [c.id for c in part.conditions] == ["flu", "cold"] and [f.id for f in part.findings] == ["fever", "cough", "cough_type"]
    assert set(part.complaints) == {"flu", "cold"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scope:1", "from 2 to 106"),
        ("scope:500", "from 2 to 106"),
        ("scope:many", "write scope:CONDITIONS"),
        ("scope:3:", "write scope:CONDITIONS"),
        ("scope::builtin", "write scope:CONDITIONS"),
        ("scope:3:synthetic:2x9", "from 2 to 2"),
    ],
)
def test_bad_scope__is_a_clear_error(name: str, words: str) -> None:
    with pytest.raises(KnowledgeError, match=words):
        knowledge_base(name)


def test_restricted__refuses_what_it_cannot_keep() -> None:
    with pytest.raises(UnknownName, match="did you mean 'flu'"):
        restricted(tiny_base(), ["flue", "cold"], "two")
