"""Score saved trajectories again with another reward mix, without the doctor.

The engine meets the same cases and takes the same actions; every reply must be the one on record, else the run is not
reproducible here and an error says where. With the original mix the returns are equal bit for bit.

Does not cover: what the doctor would have done under the other mix (train it again), and consultations that failed (left out).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import batched, groupby
from pathlib import Path
from typing import Any
