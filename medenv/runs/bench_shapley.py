"""How fast exact Shapley values are: one game of n players and 49 conditions, and a batch, beside shapiq's exact computer on the same game.

Does not cover: credits inside the engine (`rewards` of `medenv.runs.bench`).
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np

from medenv.rewards.shapley import shapley_values
from medenv.runs.bench import Row, _megabytes, _rates, _row, _run


def shapley() -> list[Row]:
    """The rows, see the module."""
    memory = _row("shapley", "24 players, peak memory", "MB", [_megabytes(int(_run(_PEAK)))])  # first: a child inherits its parent's peak
    rng, rows = np.random.default_rng(0), []
    for n, batch in ((12, 1), (12, 256), (14, 1), (16, 1), (20, 1), (24, 1)):
        prior, players = np.log(rng.dirichlet(np.ones(49), batch)), np.log(rng.uniform(0.05, 1.0, (batch, n, 49)))

        def run(prior: Any = prior, players: Any = players) -> int:
            shapley_values(prior, players, 0, dtype=np.float32)
            return len(prior)

        row = _row("shapley", f"{n} players" + (f", each of {batch}" if batch > 1 else ""), "ms", [1000.0 / rate for rate in _rates(run)])
        exact = shapley_values(prior, players, 0)
        error = np.abs(shapley_values(prior, players, 0, dtype=np.float32) - exact).max(1) / np.abs(exact.sum(1))
        rows.append(row | {"note": f"float32, error <= {error.max():.0e} of the gain"})
        if batch == 1 and n <= 14:
            rows += _shapiq(prior[0], players[0], rows[-1])
    return [*rows, memory]


_PEAK = (
    "import resource, numpy as np\n"
    "from medenv.rewards.shapley import shapley_values\n"
    "shapley_values(np.zeros(49), np.log(np.random.default_rng(0).uniform(0.05, 1.0, (24, 49))), 0, dtype=np.float32)\n"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def _shapiq(prior: Any, players: Any, ours: Row) -> list[Row]:
    """The same game in shapiq's exact computer, all coalitions in one call; none, and a note on our row, where shapiq is missing."""
    if find_spec("shapiq") is None:
        ours["note"] += "; shapiq is not installed"
        return []
    from shapiq import ExactComputer

    def game(inside: Any) -> Any:
        scores = inside @ players
        scores += prior
        scores -= scores[:, :1].copy()
        return -np.log(np.exp(scores, out=scores).sum(1))  # log p(condition 0)

    def run() -> int:
        ExactComputer(game, n_players=len(players))(index="SV", order=1)
        return 1

    row = _row("shapley", f"{len(players)} players, shapiq {version('shapiq')}", "ms", [1000.0 / rate for rate in _rates(run)])
    return [row | {"note": f"{row['median'] / ours['median']:,.0f} x medenv's time"}]
