"""Knowledge bases by name, as the environments and the command line spell them.

`builtin` or `builtin@0` · `ddxplus:DIR` (a DDXPlus release) · `files:DIR` (a base in medenv's own plain-text format) ·
`synthetic:CONDITIONSxFINDINGS` (invented, for benchmarks and tests) · `scope:CONDITIONS` (the commonest conditions of `builtin`) ·
`scope:CONDITIONS:SOURCE` (of any of these).

Does not cover: cases (`medenv.cases.named`).
"""

from __future__ import annotations

import re
from functools import lru_cache

from medenv.errors import KnowledgeError, unknown
from medenv.knowledge.base import KnowledgeBase

KINDS = ("builtin", "ddxplus:DIR", "files:DIR", "synthetic:CONDITIONSxFINDINGS", "scope:CONDITIONS", "scope:CONDITIONS:SOURCE")


def knowledge_base(source: str | KnowledgeBase) -> KnowledgeBase:
    """The base that `source` names (or is). Each is read once; UnknownName proposes the closest kind."""
    if isinstance(source, KnowledgeBase):
        return source
    if not isinstance(source, str):
        raise KnowledgeError(f"knowledge is {source!r:.80}: give a KnowledgeBase or one of {', '.join(KINDS)}")
    return _load(source)


@lru_cache(maxsize=16)
def _load(source: str) -> KnowledgeBase:
    kind, _, rest = source.partition(":")
    name, _, version = kind.partition("@")
    if name == "builtin" and not rest:
        from medenv.knowledge.files import builtin

        base = builtin()
        if version and version != str(base.version):
            raise KnowledgeError(f"knowledge {source!r}: this release ships {base.id}, no other version")
        return base
    if kind == "ddxplus" and rest:
        from medenv.knowledge.ddxplus import load_knowledge

        return load_knowledge(rest)
    if kind == "files" and rest:
        from medenv.knowledge.files import load_base

        return load_base(rest)
    if kind == "synthetic" and rest:
        from medenv.knowledge.synthetic import synthetic

        size = re.fullmatch(r"(\d+)x(\d+)(?:@(\d+))?", rest)
        if size is None:
            raise KnowledgeError(f"knowledge {source!r}: write synthetic:CONDITIONSxFINDINGS, such as synthetic:12x30")
        return synthetic(int(size[1]), int(size[2]), int(size[3] or 0))
    if kind == "scope" and rest:
        from medenv.knowledge.restricted import scope

        count, colon, whole = rest.partition(":")
        if not count.isdecimal() or (colon and not whole):
            raise KnowledgeError(f"knowledge {source!r}: write scope:CONDITIONS, such as scope:12, or scope:12:ddxplus:DIR")
        return scope(_load(whole or "builtin"), int(count))
    raise unknown("knowledge source", source, KINDS)
