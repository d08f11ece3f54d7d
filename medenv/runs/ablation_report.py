"""An ablation as one page: report.html holds its tables, pictures and sources, and asks no other place for anything.

Does not cover: what stands in the tables (`ablation_tables`) and pictures (`ablation_plots`).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from medenv.notice import NOTICE
from medenv.runs.ablation_tables import Outcomes, Rows
from medenv.runs.tables import cell_text, columns_of

CAPTIONS = {
    "curves": "The judge's return on validation cases while training: mean over seeds with its 95 % band, and the level of greedy.",
    "profile": "Performance profile: the share of runs that score above each normalised score, over all environments, with 95 % bands. "
    "A line that lies higher everywhere is better everywhere.",
    "front": "Accuracy against questions and against their cost. Small dots are runs, large ones means; the square is the reference "
    "doctor greedy. The line joins what no other beats.",
}
NAMES = re.compile(r"^(environment|mix|baseline|reward)$")

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); }
table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th { background: var(--soft); } .name { text-align: left; }
td.reward { white-space: normal; min-width: 16rem; font-family: ui-monospace, monospace; font-size: 11.5px; }
.notice, .unfinished { padding: .6rem 1rem; border-left: 4px solid #888; background: var(--soft); }
.unfinished { border-color: #c33; } figure { margin: 1.5rem 0; } img { max-width: 100%; background: #fff; }
figcaption { font-size: 13px; opacity: .8; } code { font-size: .92em; overflow-wrap: anywhere; }
"""


def page(
    found: Outcomes,
    tables: Mapping[str, tuple[Rows, Sequence[str]]],
    drawn: Mapping[str, bytes],
    made: Sequence[str],
) -> str:
    """The page. `tables`: rows and notes by title; `drawn`: PNG files by name; `made`: lines that say where the numbers come from."""
    plan = found.plan
    body = [f"<h1>{escape(plan.title)}</h1>", f'<p class="notice">{escape(NOTICE)}</p>']
    if found.missing:
        body += [
            f'<div class="unfinished"><p><strong>Unfinished.</strong> Missing cells: {len(found.missing)} of {len(plan.cells())}. They are '
            "left out, never counted as 0.</p><ul>",
            *(f"<li>{escape(found.why(name))}</li>" for name in found.missing),
            "</ul></div>",
        ]
    body += ["<h2>How to read this</h2>", *_how_to_read(found)]
    for name, png in drawn.items():
        image = base64.b64encode(png).decode()
        body.append(f'<figure><img alt="{name}" src="data:image/png;base64,{image}"><figcaption>{CAPTIONS[name]}</figcaption></figure>')
    for title, (rows, notes) in tables.items():
        body += [f"<h2>{escape(title)}</h2>", *_notes(notes), _table(rows)]
    body += ["<h2>Where the numbers come from</h2>", "<ul>", *(f"<li>{_inline(line)}</li>" for line in made), "</ul>"]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(plan.title)}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _how_to_read(found: Outcomes) -> list[str]:
    plan = found.plan
    mixes = "".join(f"<li>{escape(name)}: {_inline(_trained_on(about))}</li>" for name, about in plan.mixes.items())
    return [
        f"<p>Each mix is what a doctor was trained on. What it earned is always counted by one judge, <code>{escape(plan.judge)}</code>, "
        "on cases that every doctor shares. <code>random</code> acts at random, <code>greedy</code> asks what tells most per cost under "
        "the exact belief; a normalised score of 0 is as good as the one, 1 as good as the other. Two mixes differ where the interval of "
        "their difference leaves out 0. Bands and other intervals are bootstrapped, and too narrow where seeds are few.</p>",
        f"<ul>{mixes}</ul>",
    ]


def _trained_on(about: Mapping[str, Any]) -> str:
    settings = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in about.get("settings", {}).items())
    return f"`{about['reward']}`" + (f", with {settings}" if settings else "")


def _notes(notes: Sequence[str]) -> list[str]:
    """Notes in the Markdown of the tables: list items, `code`, **bold**."""
    return [f"<p>{_inline(line.removeprefix('- '))}</p>" for line in notes if line]


def _inline(text: str) -> str:
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]*)\*\*", r"<strong>\1</strong>", text)


def _table(rows: Rows) -> str:
    """The rows, each number with its interval in brackets."""
    columns = [c for c in columns_of(rows) if not c.endswith("_ci")]
    kinds = [" ".join(("name", c) if NAMES.match(c) else ()) for c in columns]
    head = "".join(f'<th class="{k}">{escape(c.replace("_", " "))}</th>' for c, k in zip(columns, kinds, strict=True))
    lines = ["".join(f'<td class="{k}">{escape(_with_interval(r, c))}</td>' for c, k in zip(columns, kinds, strict=True)) for r in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _with_interval(row: Mapping[str, object], column: str) -> str:
    interval = row.get(f"{column}_ci")
    return cell_text(row.get(column)) + ("" if interval is None else f" [{interval}]")
