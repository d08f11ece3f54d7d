"""A small invented release in DDXPlus's formats: 4 conditions, 11 evidences, patients drawn by a seeded generator.

Everything in it is made up. The French form has other codes, values and names, as the real French release does.
"""

from __future__ import annotations

import csv
import json
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEADER = ("AGE", "DIFFERENTIAL_DIAGNOSIS", "SEX", "PATHOLOGY", "EVIDENCES", "INITIAL_EVIDENCE")

# English code, French code, type, parent, history, default, values (French spelling -> English meaning)
_EVIDENCES: tuple[tuple[str, str, str, str, bool, Any, dict[Any, str]], ...] = (
    ("E_1", "fievre", "B", "E_1", False, 0, {}),
    ("E_2", "toux", "B", "E_2", False, 0, {}),
    ("E_3", "douleurxx", "B", "E_3", False, 0, {}),
    ("E_4", "douleurxx_carac", "C", "E_3", False, "NA", {"NA": "NA", "vive": "sharp", "sourde": "dull"}),
    (
        "E_5",
        "douleurxx_endroit",
        "M",
        "E_3",
        False,
        "nulle_part",
        {"nulle_part": "nowhere", "front": "forehead", "bas_du_thorax": "lower chest", "l'aine": "groin"},
    ),
    ("E_6", "douleurxx_intens", "C", "E_3", False, 0, {0: "", 1: "", 2: "", 3: ""}),
    ("E_7", "vertige", "B", "E_7", False, 0, {}),
    ("E_8", "fatigue", "B", "E_8", False, 0, {}),
    ("E_9", "trav1", "C", "E_9", True, "N", {"N": "N", "nord": "North", "sud": "South"}),
    ("E_10", "atcd_asthme", "B", "E_10", True, 0, {}),
    ("E_11", "z77.22", "B", "E_99", True, 0, {}),  # its parent is not in the release
)
_CODES = {e[0]: e[1] for e in _EVIDENCES} | {"E_99": "absent_du_jeu"}
_CONDITIONS: tuple[tuple[str, str, str, int, float], ...] = (
    ("Red fever", "Fièvre rouge", "a01, B02", 1, 0.4),
    ("Blue cough", "Toux bleue", "j20.9", 3, 0.3),
    ("Grey ache", "Douleur grise", "R52", 4, 0.2),
    ("Green spin", "Vertige vert", "h81", 5, 0.1),
)
_PRESENT = {
    "Red fever": {"E_1": 0.95, "E_2": 0.3, "E_3": 0.6, "E_8": 0.7, "E_11": 0.2},
    "Blue cough": {"E_1": 0.4, "E_2": 1.0, "E_8": 0.3, "E_10": 0.5},
    "Grey ache": {"E_3": 1.0, "E_7": 0.2, "E_8": 0.4},
    "Green spin": {"E_3": 0.25, "E_7": 0.9, "E_8": 0.5, "E_1": 0.05},
}
_GIVEN: dict[str, dict[str, dict[Any, float]]] = {
    "Red fever": {
        "E_4": {"vive": 0.2, "sourde": 0.8},
        "E_5": {"front": 1.0},
        "E_6": {0: 0.25, 1: 0.5, 2: 0.25},
        "E_9": {"N": 0.7, "sud": 0.3},
    },
    "Blue cough": {"E_9": {"N": 1.0}},
    "Grey ache": {
        "E_4": {"vive": 1.0},
        "E_5": {"bas_du_thorax": 0.5, "l'aine": 0.5},
        "E_6": {2: 0.5, 3: 0.5},
        "E_9": {"N": 0.9, "nord": 0.1},
    },
    "Green spin": {"E_4": {"NA": 0.5, "sourde": 0.5}, "E_5": {"front": 0.8, "nulle_part": 0.2}, "E_9": {"N": 1.0}},  # no E_6: its default
}


def write_release(directory: Path, *, french: bool = False, tables: bool = True, training: str = "", rows: int = 1200) -> Path:
    """Write the release and return its directory. `training`: "" for none, else the suffix ".zip", ".csv" or "bare"."""
    directory.mkdir(parents=True, exist_ok=True)
    evidences = {}
    for code, french_code, kind, parent, history, default, values in _EVIDENCES:
        own = french_code if french else code
        names = {v: _value(code, v, french) for v in values}
        evidences[own] = {
            "name": own,
            "code_question": _CODES[parent] if french else parent,
            "question_fr": f"Avez-vous {french_code}?",
            "question_en": f"Do you have {code}?",
            "is_antecedent": history,
            "default_value": names.get(default, default),
            "value_meaning": {names[v]: {"fr": v, "en": meaning} for v, meaning in values.items() if isinstance(v, str)},
            "possible-values": list(names.values()),
            "data_type": kind,
        }
    conditions = {}
    for english, name_fr, icd, severity, _ in _CONDITIONS:
        name = name_fr if french else english
        conditions[name] = {
            "condition_name": name,
            "cond-name-fr": name_fr,
            "cond-name-eng": english,
            "icd10-id": icd,
            "symptoms": {},
            "antecedents": {},
            "severity": severity,
        }
    _dump(directory / "release_conditions.json", conditions)
    _dump(directory / "release_evidences.json", evidences)
    if tables:
        _dump(directory / "conditional_tables.json", _tables(french))
    if training:
        write_patients(directory / f"release_train_patients{'' if training == 'bare' else training}", draw_rows(rows, 0, french))
    return directory


def write_patients(path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = HEADER) -> Path:
    """Write a patients file; `.zip` holds one file without suffix, as in the real release."""
    plain = path.with_suffix("")
    target = plain if path.suffix == ".zip" else path
    with target.open("w", encoding="utf-8", newline="") as text:
        csv.writer(text).writerows([header, *rows])
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(target, plain.name)
        target.unlink()
    return path


def row(evidences: Sequence[str], opening: str = "E_1", condition: str = "Red fever", age: Any = 40, sex: str = "F") -> list[Any]:
    """One patient as a line of the CSV."""
    return [age, str([[condition, 1.0]]), sex, condition, str(list(evidences)), opening]


def draw_rows(n: int, seed: int, french: bool = False) -> list[list[Any]]:
    """`n` patients; the opening is uniform among the present binary symptoms without parent."""
    rng = random.Random(seed)
    out: list[list[Any]] = []
    while len(out) < n:
        (english, name_fr, *_), *_rest = rng.choices(_CONDITIONS, [c[4] for c in _CONDITIONS])
        present = [c for c, p in _PRESENT[english].items() if rng.random() < p]
        openings = [c for c in present if c not in ("E_10", "E_11")]
        if not openings:
            continue
        tokens = []
        for code, _, kind, parent, *_more in _EVIDENCES:
            table = _GIVEN[english].get(code)
            if kind == "B":
                tokens += [_token(code, None, french)] if code in present else []
            elif table and (parent == code or parent in present):
                tokens.append(_token(code, rng.choices(list(table), list(table.values()))[0], french))
        opening = _token(rng.choice(openings), None, french)
        sex = "F" if english == "Green spin" or rng.random() < 0.5 else "M"
        out.append(row(tokens, opening, name_fr if french else english, rng.randint(20, 109), sex))
    return out


def _value(code: str, value: Any, french: bool) -> Any:
    return value if french or isinstance(value, int) else f"V_{code[2:]}{value[:3].upper()}"


def _token(code: str, value: Any, french: bool) -> str:
    own = _CODES[code] if french else code
    return own if value is None else f"{own}_@_{_value(code, value, french)}"


def _tables(french: bool) -> dict[str, Any]:
    """The exact tables; a child's default takes in the patients without the parent."""
    out: dict[str, Any] = {}
    for english, name_fr, _, _, prior in _CONDITIONS:
        findings: dict[str, Any] = {(_CODES[c] if french else c): p for c, p in _PRESENT[english].items()}
        for code, _, kind, parent, _, default, values in _EVIDENCES:
            table = _GIVEN[english].get(code)
            if kind == "B" or table is None:
                continue
            active = 1.0 if parent == code else _PRESENT[english].get(parent, 0.0)
            shares = {v: table.get(v, 0.0) * active + (1.0 - active) * (v == default) for v in values}
            findings[_CODES[code] if french else code] = {str(_value(code, v, french)): p for v, p in shares.items()}
        out[name_fr if french else english] = {"prior": prior, "findings": findings}
    return out


def _dump(path: Path, body: Any) -> None:
    path.write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
