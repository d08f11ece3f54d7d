"""Looking into a knowledge base from the command line: in numbers, one entry with its links and their sources, by part of a name.

Does not cover: judging a base (`medenv.testing.check_base`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from importlib import resources
from typing import Any

from medenv.errors import unknown
from medenv.knowledge.base import KnowledgeBase, Link
from medenv.knowledge.files import load_sources
from medenv.knowledge.named import knowledge_base
from medenv.runs.play import search

MATCHES = 20


def overview(source: str) -> dict[str, Any]:
    """The base in numbers."""
    base = knowledge_base(source)
    return {
        "base": base.id,
        "fingerprint": base.fingerprint,
        "conditions": len(base.conditions),
        "must_not_miss": sum(c.must_not_miss for c in base.conditions),
        "findings": len(base.findings),
        "kinds": dict(Counter(f.kind for f in base.findings)),
        "types": dict(Counter(f.type for f in base.findings)),
        "openings": sum(f.complaint > 0 for f in base.findings),
        "links": len(base.links),
        "settings": dict(base.settings),
        "age_bands": list(base.age_bands),
        "notes": list(base.notes),
    }


def describe(source: str, name: str) -> dict[str, Any]:
    """One condition with its findings, or one finding with its conditions. UnknownName proposes the closest id.

    Each link has `probabilities`, `fixed`, `grade` and `source`; `sources` holds the citations of the source ids, where the base comes
    with any (the built-in one, and files with a sources.csv).
    """
    base = knowledge_base(source)
    if name in base.condition_index:
        c = base.condition(name)
        about: dict[str, Any] = {"kind": "condition", "id": c.id, "name": c.name, "icd10": c.icd10, "prior": dict(c.prior)}
        about |= {"age": list(c.age), "sex": list(c.sex), "severity": c.severity, "triage": c.triage}
        links = {link.finding: _link(link) for link in base.links if link.condition == name}
        about |= {"must_not_miss": c.must_not_miss, "source": c.source, "findings": links}
        return about | {"sources": _citations(source, base, [c.source, *(link["source"] for link in links.values())])}
    if name in base.finding_index:
        f = base.finding(name)
        about = {"kind": f.kind, "id": f.id, "name": f.name, "type": f.type, "values": list(f.values), "question": f.question}
        about |= {"background": list(f.background), "parent": f.parent, "cost": f.cost, "reliability": f.reliability}
        about |= {"money": f.money, "delay": f.delay, "invasiveness": f.invasiveness}
        links = {link.condition: _link(link) for link in base.links if link.finding == name}
        about |= {"red_flag": f.red_flag, "source": f.source, "conditions": links}
        return about | {"sources": _citations(source, base, [f.source, *(link["source"] for link in links.values())])}
    near = [*_near(base.condition_index, name), *_near(base.finding_index, name)]
    raise unknown("condition or finding", name, near or base.condition_index)


def find(source: str, text: str) -> list[dict[str, str]]:
    """Up to 20 conditions and findings whose names or ids are like `text`, best first."""
    base = knowledge_base(source)
    entries = [("condition", c.id, c.name) for c in base.conditions] + [(f.kind, f.id, f.name) for f in base.findings]
    found = search(text, [f"{name} {id_}" for _, id_, name in entries], MATCHES)
    return [dict(zip(("kind", "id", "name"), entries[i], strict=True)) for i in found]


def _link(link: Link) -> dict[str, Any]:
    return {"probabilities": dict(link.probabilities), "fixed": link.fixed, "grade": link.grade, "source": link.source}


def _citations(source: str, base: KnowledgeBase, used: Iterable[str]) -> dict[str, str]:
    kind, _, rest = source.partition(":")
    if base is knowledge_base("builtin"):
        known = load_sources(resources.files("medenv.knowledge").joinpath("builtin"))
    else:
        known = load_sources(rest) if kind == "files" else {}
    return {s: known[s] for s in dict.fromkeys(used) if s in known}


def _near(ids: dict[str, int], name: str) -> list[str]:
    names = list(ids)
    return [names[i] for i in search(name, names, 5)]
