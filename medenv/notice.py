"""The sentence that stands under everything a person reads.

Does not cover: where it is shown (`medenv.cli`, `medenv.envs.rendering`, `medenv.runs.demo`).
"""

from __future__ import annotations

NOTICE = "medenv is a research simulator: not medical advice, not for use with patients."
