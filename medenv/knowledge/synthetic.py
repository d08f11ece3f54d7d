"""Invented bases of any size, for benchmarks, tests and first experiments.

Does not cover: medicine. Names are numbers, probabilities are hashed, nothing here describes a disease.
"""

from __future__ import annotations

from medenv.errors import KnowledgeError
from medenv.hashing import draw, seed_for
from medenv.knowledge.base import YES, Condition, Finding, KnowledgeBase, Link


def synthetic(conditions: int = 12, findings: int = 30, seed: int = 0) -> KnowledgeBase:
    """A base of `conditions` (>= 2) and `findings` (>= 8), the same for the same arguments.

    One finding in ten is a child, one in ten categorical with four values, one in twenty multi-choice, one is a risk
    factor that depends on age and sex, one is limited to a sex. Costs, reliability, priors, age curves vary;
    money, delay and invasiveness are 0.
    """
    if conditions < 2 or findings < 8:
        raise KnowledgeError(f"synthetic({conditions}, {findings}): needs at least 2 conditions and 8 findings")
    key = seed_for(seed, "synthetic base")

    def u(*where: int) -> float:
        x = key
        for w in where:
            x = draw(x, w)
        return (x >> 11) / 2.0**53

    made: list[Finding] = []
    for q in range(findings):
        name = f"finding-{q:03d}"
        if q % 10 == 5:
            values = ("a", "b", "c", "d")
            parent = f"finding-{q - 5:03d}" if q % 20 == 5 else None
            kind = "multi_choice" if q % 40 == 15 else "categorical"
            active = (YES,) if parent else ()
            made.append(Finding(name, name, kind, values, parent=parent, activated_by=active, background=(0.4, 0.3, 0.2, 0.1)))
        elif q % 10 == 6:
            made.append(Finding(name, name, parent=f"finding-{q - 6:03d}", activated_by=(YES,), background=(0.8, 0.2)))
        elif q == 7:
            cells = {(sex, band): (1 - p, p) for band, p in enumerate((0.02, 0.2, 0.5)) for sex in ("female", "male")}
            made.append(Finding(name, name, group="risk", background=(0.8, 0.2), background_by_cell=cells, reliability=0.3))
        elif q == 3:
            made.append(Finding(name, name, sex="female", background=(0.9, 0.1)))
        else:
            rate = 0.01 + 0.1 * u(1, q)
            ordered = q % 10 in (8, 9)
            kind, cost, trust = ("order", 3.0, 0.9) if ordered else ("ask", 1.0, 0.0)
            salience = 0.0 if ordered else 0.5 + u(2, q)
            background = (1 - rate, rate)
            made.append(Finding(name, name, kind=kind, cost=cost, reliability=trust, background=background, complaint=salience))
    roots = [f.id for f in made if f.complaint]
    links: list[Link] = []
    for d in range(conditions):
        strong = {roots[(d * 7 + k * 3) % len(roots)] for k in range(min(4, len(roots)))}
        for q, f in enumerate(made):
            chosen = f.id in strong or u(3, d, q) < 0.12
            if f.type == "binary" and chosen:
                p = 0.55 + 0.4 * u(4, d, q) if f.id in strong else 0.05 + 0.9 * u(4, d, q)
                links.append(Link(f"condition-{d:03d}", f.id, {YES: round(p, 4)}))
            elif f.type != "binary" and u(3, d, q) < 0.6:
                top = f.values[int(4 * u(5, d, q))]
                links.append(Link(f"condition-{d:03d}", f.id, {top: round(0.3 + 0.6 * u(6, d, q), 4)}))
    ill = tuple(
        Condition(
            f"condition-{d:03d}",
            f"Condition {d}",
            prior={"primary": 0.2 + u(7, d), "emergency": 0.2 + u(8, d)},
            age=(0.2 + u(9, d), 0.2 + u(10, d), 0.2 + u(11, d)),
            sex=(0.5 + u(12, d), 0.5 + u(13, d)),
            severity=1 + int(5 * u(14, d)),
            must_not_miss=u(15, d) < 0.15,
        )
        for d in range(conditions)
    )
    return KnowledgeBase(
        name=f"synthetic-{conditions}x{findings}",
        version=seed,
        conditions=ill,
        findings=tuple(made),
        links=tuple(links),
        age_bands=(0, 18, 60),
        settings={"primary": 0.6, "emergency": 0.4},
    )
