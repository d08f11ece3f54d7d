"""Conformance checks for parts of your own: bases, case sources, rewards, patients, environments, doctors.

Each check raises AssertionError that says what was expected and what was seen, and returns nothing otherwise:

    from medenv.testing import check_base, check_cases, check_doctor, check_environment, check_patient, check_reward

    check_base("files:my_base")                                     # tables, openings, calibration of the belief
    check_cases(LoadedCases(tables, cases), [LoadedCases(tables, cases, "test")])
    check_reward("accuracy + my_reward")                            # or a reward object
    check_patient(MyPatient(base), base)                            # the words of an answer: environments take it as `persona`
    check_environment("MedConsult-v0", knowledge="files:my_base")
    check_doctor(MyDoctor(tables), tables)

Every check draws its cases and actions from hashes of fixed keys: it says the same each time. They need numpy and gymnasium only.

Does not cover: whether a base is medically right, or a reward worth having.
"""

from __future__ import annotations

from medenv.testing.bases import BINS, CHUNK, ROUNDING, Calibration, calibration, check_base, check_calibration, check_opening, check_tables
from medenv.testing.batches import check_batch, check_split_batch
from medenv.testing.cases import check_cases
from medenv.testing.doctors import check_doctor
from medenv.testing.environments import check_environment, check_episode, check_gymnasium, check_pickling, check_seeds, check_snapshot
from medenv.testing.histories import check_equal_histories
from medenv.testing.patients import check_patient
from medenv.testing.rewards import FLAGS, check_reward, recorded_transitions
from medenv.testing.shared import difference, scripted_actions

__all__ = [
    "BINS",
    "CHUNK",
    "FLAGS",
    "ROUNDING",
    "Calibration",
    "calibration",
    "check_base",
    "check_batch",
    "check_calibration",
    "check_cases",
    "check_doctor",
    "check_environment",
    "check_episode",
    "check_equal_histories",
    "check_gymnasium",
    "check_opening",
    "check_patient",
    "check_pickling",
    "check_reward",
    "check_seeds",
    "check_snapshot",
    "check_split_batch",
    "check_tables",
    "difference",
    "recorded_transitions",
    "scripted_actions",
]
