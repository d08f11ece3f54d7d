"""What is one more question paid, where the doctor could stop? Realised information gain against Shapley credit of the last answer.

`greedy` consults until it would diagnose, then asks `more` further questions, each the best by information gain, and diagnoses. The last is
paid by information gain what the belief's entropy fell by, by Shapley credit its share of everything that was gained. Both sum to the same
over a consultation, so the difference is what the earlier answers lose, after their turns: a policy that is paid each turn
does not see that loss where it decides to ask.

Does not cover: what a learner makes of it (`experiments/ablations`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medenv.agents.greedy import CONFIDENCE, Greedy
from medenv.envs.setup import Setup
from medenv.errors import RunError
from medenv.runs.evaluate import assign

COST = 0.1  # nats that a question must earn where nats are paid .1 and a question costs .01


def one_more(
    arguments: Mapping[str, Any], more: Sequence[int], consultations: int, confidence: float = CONFIDENCE, seed: int = 0
) -> list[dict[str, Any]]:
    """A row for each number of further questions in `more` (>= 1): means in nats over the consultations that had room for them.

    `gain`, `credit` of the last question's answer, `lost` by the earlier ones (credit - gain), and the shares of consultations where gain
    or credit of that answer is over COST. `credit_error`: standard error. RunError where no consultation has room.
    """
    setup = Setup(**{**arguments, "split": "validation", "reward": "shapley_credit"})
    chosen = assign(setup.source, seed, consultations)
    stop, on = Greedy(setup.tables, confidence), Greedy(setup.tables, confidence=1.0, min_gain=0.0)
    rows = []
    for count in more:
        engine = setup.engine(consultations)
        engine.begin(handles=chosen)
        asked, gain, credit = np.zeros((3, consultations))  # asked: further questions so far
        settled = np.zeros(consultations, bool)
        for turn in range(setup.max_turns):
            seen = engine.views()
            action, belief = stop.act(seen)
            settled |= action >= setup.num_questions
            open_ = np.asarray(seen["action_mask"])[:, : setup.num_questions] == 1
            goes_on = settled & (asked < count) & open_.any(1)
            best = on.act(seen)[0]
            best = np.where(best >= setup.num_questions, np.argmax(open_, axis=1), best)  # sure beyond any gain: the first that is open
            action = np.where(settled, setup.num_questions + belief.argmax(1), action)  # also where the further answers raised a doubt
            step = engine.step(np.where(goes_on, best, action)).transition
            last = goes_on & step.asked
            asked += last
            gain[last] = (step.entropy_before - step.entropy_after)[last]
            given = setup.rewards.credits(step)
            if given is not None:
                who = np.flatnonzero(step.ended & (asked == count))
                credit[who] = given[who, turn - 1]
        room = asked == count
        if not room.any():
            raise RunError(f"no consultation has room for {count} further questions within {setup.max_turns} turns: raise max_turns")
        g, c = gain[room], credit[room]
        over = (float(np.mean(x > COST)) for x in (g, c))
        means = {"gain": g.mean(), "credit": c.mean(), "lost": (c - g).mean()}
        errors = {"credit_error": c.std() / np.sqrt(c.size)}
        rows.append(
            {"more": count, "consultations": int(room.sum())}
            | {k: round(float(v), 4) for k, v in (means | errors).items()}
            | {f"{name}_over_cost": round(x, 4) for name, x in zip(("gain", "credit"), over, strict=True)}
        )
    return rows
