"""A scope: a few conditions of a larger base, and the findings that bear on them. For doctors that are trained from nothing in minutes.

Priors, links and backgrounds stay as they are; within each setting the conditions that are left share its patients. So cases, belief
and engine need to know nothing of it: a scope is a base like any other, with a fingerprint of its own.

Does not cover: merging bases, leaving single findings out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from medenv.errors import KnowledgeError
from medenv.knowledge.base import KnowledgeBase


def restricted(base: KnowledgeBase, conditions: Iterable[str], name: str) -> KnowledgeBase:
    """The base called `name` of these conditions, the findings linked to any of them, and those findings' parents; all in `base`'s order.

    UnknownName for an id that `base` does not have, KnowledgeError for a setting that nobody is left in.
    """
    kept = {base.condition(c).id for c in conditions}
    links = tuple(link for link in base.links if link.condition in kept)
    complaints = {c: table for c, table in base.complaints.items() if c in kept}
    linked = {link.finding for link in links}.union(*complaints.values())
    for finding in list(linked):
        while (parent := base.finding(finding).parent) is not None:
            linked.add(parent)
            finding = parent
    for setting in base.settings:
        if not any(base.condition(c).prior.get(setting) for c in kept):
            raise KnowledgeError(f"none of the {len(kept)} conditions is met in the setting {setting!r}: add one that is")
    return replace(
        base,
        name=name,
        conditions=tuple(c for c in base.conditions if c.id in kept),
        findings=tuple(f for f in base.findings if f.id in linked),
        links=links,
        complaints=complaints,
    )


def scope(base: KnowledgeBase, count: int) -> KnowledgeBase:
    """The `count` conditions (>= 2) that are met most often over all settings, of equal ones the first by id, as a base `scope-COUNT`."""
    if not 2 <= count <= len(base.conditions):
        raise KnowledgeError(f"a scope of {count} conditions of {base.id}: give a number from 2 to {len(base.conditions)}")
    totals = {s: sum(c.prior.get(s, 0.0) for c in base.conditions) for s in base.settings}
    share = {c.id: sum(base.settings[s] * c.prior.get(s, 0.0) / totals[s] for s in base.settings) for c in base.conditions}
    return restricted(base, sorted(share, key=lambda c: (-share[c], c))[:count], f"scope-{count}")
