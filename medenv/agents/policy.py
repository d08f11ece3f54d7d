"""The PPO doctor's network, and the directory that a trained one is saved in.

The policy is factored: P(stop) · P(question | ask) · P(diagnosis | stop). It decides from a belief over conditions. With the
belief observed that is the environment's; without, it is the policy's own `Tracker`, a log-linear model of the evidence that is
fitted to the diagnoses of training cases and knows nothing of the base's tables. Referring is left out: it never pays.

A policy directory holds `policy.json` (format, version, base fingerprint, environment arguments, architecture) and `weights.pt`.

Does not cover: learning (`ppo`), checkpoints with optimiser and environment state (`medenv.runs.training`).
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import log_softmax, logsigmoid

import medenv
from medenv.belief.posterior import observed_scores, posterior
from medenv.errors import RunError
from medenv.knowledge.compiled import Compiled

FORMAT = 1  # of the policy directory
FLOOR = 1e-6  # of a belief inside a logarithm
DECADES = 12  # age groups that the tracker tells apart
FORCED = 30.0  # the gate's logit where no question is open
DAMAGED = (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError, ValueError)  # reading a cut file
CLOSED = -60.0  # logit of a masked question: e-27 and no less, because exp of far smaller numbers is ten times slower


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network: S slots, Q questions, D conditions, the width of its hidden layer, and how it starts."""

    num_slots: int
    num_questions: int
    num_conditions: int
    num_settings: int
    max_turns: int
    observe_belief: bool
    hidden: int
    gate_start: float
    sharpness_start: float


class Heads(NamedTuple):
    """What the network says of N states; probabilities are logarithms."""

    gate: Tensor  # [N] logit of stopping
    question: Tensor  # [N, Q] log P(question | ask), masked
    diagnosis: Tensor  # [N, D] log P(diagnosis | stop)
    value: Tensor  # [N]
    open: Tensor  # [N, Q] bool, the questions that may be asked


class Policy(nn.Module):
    """Belief [N, D], context [N, 4 + settings] (see `context`) and open questions bool [N, Q] -> `Heads`.

    Question logits are a linear function of the belief plus one of a hidden layer; diagnosis logits are sharpness · log belief
    plus a residual; the value is the likeliest condition's probability plus a correction.
    """

    def __init__(self, architecture: Architecture, generator: torch.Generator | None = None) -> None:
        super().__init__()
        a = self.architecture = architecture
        D, Q, H = a.num_conditions, a.num_questions, a.hidden
        self.inputs = _linear(2 * D + 6 + a.num_settings, H, 1.0, generator)
        self.question = _linear(H, Q, 0.01, generator)
        self.question_belief = _linear(D, Q, 0.1, generator)
        self.gate = _linear(H, 1, 0.01, generator)
        self.diagnosis = _linear(H, D, 0.01, generator)
        self.critic = _linear(2 * D + 6 + a.num_settings, H, 1.0, generator)
        self.value = _linear(H, 1, 0.01, generator)
        self.likeliest = nn.Parameter(torch.ones(()))
        self.sharpness = nn.Parameter(torch.tensor(float(a.sharpness_start)))
        with torch.no_grad():
            self.gate.bias.fill_(a.gate_start)

    def forward(self, belief: Tensor, context: Tensor, open_: Tensor) -> Heads:
        """Logits and values; see the class."""
        log_belief = belief.clamp_min(FLOOR).log_()
        top = belief.amax(1, keepdim=True)
        entropy = -(belief * log_belief).sum(1, keepdim=True)
        x = torch.cat([belief, log_belief * 0.2 + 1.0, top, entropy, context], 1)
        h = torch.relu(self.inputs(x))
        question = (self.question(h) + self.question_belief(belief)).masked_fill(~open_, CLOSED)
        gate = torch.where(open_.any(1), self.gate(h).squeeze(1), FORCED)
        diagnosis = self.sharpness * log_belief + self.diagnosis(h)
        value = self.likeliest * top.squeeze(1) + self.value(torch.relu(self.critic(x))).squeeze(1)
        return Heads(gate, log_softmax(question, 1), log_softmax(diagnosis, 1), value, open_)


class Tracker(nn.Module):
    """The policy's own belief where the environment's is not observed: log-linear in the evidence, as naive Bayes is.

    `forward(evidence int8 [N, S], complaint [N], demographics [N, 3])` -> log-probabilities [N, D].
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        cells = DECADES * 2 * a.num_settings
        self.evidence = nn.Parameter(torch.zeros(2 * a.num_slots, a.num_conditions))  # yes, then no
        self.complaint = nn.Parameter(torch.zeros(a.num_questions + 1, a.num_conditions))
        self.cell = nn.Parameter(torch.zeros(cells, a.num_conditions))

    def forward(self, evidence: Tensor, complaint: Tensor, demographics: Tensor) -> Tensor:
        """Log-probabilities; see the class."""
        channels = torch.cat([evidence == 1, evidence == 0], 1).to(self.evidence.dtype)
        decade = (demographics[:, 0] / 10).long().clamp(0, DECADES - 1)
        cell = (demographics[:, 2].long() * DECADES + decade) * 2 + demographics[:, 1].long()
        return log_softmax(channels @ self.evidence + self.complaint[complaint] + self.cell[cell], 1)


def context(observation: Mapping[str, NDArray], architecture: Architecture) -> NDArray[np.float32]:
    """float32 [N, 4 + settings]: turns left as a share, last question, age / 100, sex, setting one-hot."""
    who = np.asarray(observation["demographics"], np.float32)
    left = np.asarray(observation["turns_left"], np.float32).reshape(-1)
    out = np.zeros((len(who), 4 + architecture.num_settings), np.float32)
    out[:, 0], out[:, 1], out[:, 2], out[:, 3] = left / architecture.max_turns, left == 2, who[:, 0] / 100, who[:, 1]
    out[np.arange(len(who)), 4 + who[:, 2].astype(np.int64)] = 1.0
    return out


def believe(observation: Mapping[str, NDArray], tracker: Tracker | None) -> Tensor:
    """[N, D]: the observed belief, or the tracker's (without gradient)."""
    if tracker is None:
        return torch.from_numpy(np.ascontiguousarray(observation["belief"]))
    with torch.no_grad():
        return tracker(*tracked(observation)).exp()


def tracked(observation: Mapping[str, NDArray]) -> tuple[Tensor, Tensor, Tensor]:
    """What a tracker reads: evidence, complaint, demographics."""
    complaint = torch.from_numpy(np.asarray(observation["complaint"], np.int64).reshape(-1))
    demographics = torch.from_numpy(np.asarray(observation["demographics"], np.float32))
    return torch.from_numpy(np.asarray(observation["evidence"], np.int8)), complaint, demographics


def open_questions(observation: Mapping[str, NDArray], num_questions: int) -> NDArray[np.bool_]:
    """bool [N, Q]: the questions that the action mask leaves open."""
    return np.asarray(observation["action_mask"])[:, :num_questions] == 1


def decide(heads: Heads) -> NDArray[np.int64]:
    """Greedy actions [N]: stop where P(stop) > 1/2, with the likeliest diagnosis, else ask the likeliest question."""
    Q = heads.question.shape[1]
    question = heads.question.masked_fill(~heads.open, -torch.inf).argmax(1)
    return torch.where(heads.gate > 0, Q + heads.diagnosis.argmax(1), question).numpy()


def sample(heads: Heads, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Actions int64 [N] drawn from the factored policy, and their log-probabilities."""
    n, Q = heads.question.shape
    u = torch.rand((2, n), generator=generator)
    stop = u[0] < torch.sigmoid(heads.gate)
    action = torch.where(stop, Q + _draw(heads.diagnosis.exp(), u[1]), _draw(heads.question.exp() * heads.open, u[1]))
    return action, log_probability_of(heads, action)


def log_probability_of(heads: Heads, action: Tensor) -> Tensor:
    """log P(action) [N] = log P(stop) + log P(d | stop), or log P(ask) + log P(q | ask)."""
    Q, D = heads.question.shape[1], heads.diagnosis.shape[1]
    stop = action >= Q
    question = heads.question.gather(1, action.clamp(max=Q - 1)[:, None]).squeeze(1)
    diagnosis = heads.diagnosis.gather(1, (action - Q).clamp(0, D - 1)[:, None]).squeeze(1)
    return torch.where(stop, logsigmoid(heads.gate) + diagnosis, logsigmoid(-heads.gate) + question)


def entropy_of(heads: Heads) -> Tensor:
    """Entropy [N] of the whole policy in nats: H(gate) + P(ask) H(question) + P(stop) H(diagnosis)."""
    stop = torch.sigmoid(heads.gate)
    gate = -(stop * logsigmoid(heads.gate) + (1 - stop) * logsigmoid(-heads.gate))
    return gate + (1 - stop) * _entropy(heads.question) + stop * _entropy(heads.diagnosis)


class PolicyDoctor:
    """A trained policy as a doctor: greedy and deterministic. The differential is its diagnosis distribution without the sharpening.

    It computes in float64, so that what a matrix product rounds otherwise in another batch decides nothing. A policy that was
    trained with the belief observed works it out from the tables where an observation does not hold it.
    """

    name = "ppo"
    gives_differential = True
    fingerprint: str | None = None  # of the weights it was loaded from

    def __init__(self, policy: Policy, tracker: Tracker | None, tables: Compiled) -> None:
        self.policy, self.tracker, self.tables = policy.double(), None if tracker is None else tracker.double(), tables

    @torch.no_grad()
    def act(self, observation: Mapping[str, NDArray]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Actions [N] and a differential float64 [N, D]."""
        a = self.policy.architecture
        if a.observe_belief and "belief" not in observation:
            observation = {**observation, "belief": posterior(observed_scores(self.tables, observation))[0]}
        seen, about = believe(observation, self.tracker).double(), torch.from_numpy(context(observation, a)).double()
        heads = self.policy(seen, about, torch.from_numpy(open_questions(observation, a.num_questions)))
        return decide(heads), torch.softmax(heads.diagnosis / self.policy.sharpness.clamp_min(1.0), 1).numpy()


def policy_files(policy: Policy, tracker: Tracker | None, fingerprint: str, base: str, env: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a policy directory, by name. Write each atomically: within one run any two versions of them fit together."""
    weights = {f"policy.{k}": v for k, v in policy.state_dict().items()}
    if tracker is not None:
        weights |= {f"tracker.{k}": v for k, v in tracker.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    about = {
        "format": FORMAT,
        "version": medenv.__version__,
        "base": base,
        "fingerprint": fingerprint,
        "env": {k: v if isinstance(v, str | int | float | bool | dict | list | None) else str(v) for k, v in env.items()},
        "architecture": asdict(policy.architecture),
    }
    return {"weights.pt": buffer.getvalue(), "policy.json": (json.dumps(about, indent=2) + "\n").encode()}


def load_doctor(run_dir: str | Path, tables: Compiled) -> PolicyDoctor:
    """The doctor of a run directory (or of a policy directory itself). RunError if it is none, damaged, or was trained on another base."""
    where = Path(run_dir) / "policy" if (Path(run_dir) / "policy").is_dir() else Path(run_dir)
    reading = where / "policy.json"
    try:
        about = dict(json.loads(reading.read_text()))
        if about["format"] != FORMAT:
            found = f"{about['format']!r}, written by medenv {about['version']}"
            raise RunError(f"{where}: policy format {found}; medenv {medenv.__version__} reads format {FORMAT}: use that version")
        if about["fingerprint"] != tables.base.fingerprint:
            trained, seen = f"{about['base']} ({about['fingerprint']})", f"{tables.base.id} ({tables.base.fingerprint})"
            raise RunError(f"{where}: trained on base {trained}, but this environment has {seen}: use the same base")
        architecture = Architecture(**about["architecture"])
        policy = Policy(architecture)
        tracker = None if architecture.observe_belief else Tracker(architecture)
        reading = where / "weights.pt"
        content = io.BytesIO(reading.read_bytes())  # given the file, torch raises OSError for a cut one too
        weights = torch.load(content, map_location="cpu", weights_only=True)
        for name, module in (("policy", policy), ("tracker", tracker)):
            if module is not None:
                module.load_state_dict({k.partition(".")[2]: v for k, v in weights.items() if k.startswith(f"{name}.")})
    except RunError:
        raise
    except FileNotFoundError:
        raise RunError(f"{run_dir}: no trained policy here ({reading.name} is missing): give the directory that training wrote") from None
    except DAMAGED as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        raise RunError(f"{reading} is damaged ({why}): train again, or put back a copy of it") from error
    doctor = PolicyDoctor(policy, tracker, tables)
    doctor.fingerprint = hashlib.sha256(content.getvalue()).hexdigest()[:16]
    return doctor


def _linear(inputs: int, outputs: int, gain: float, generator: torch.Generator | None) -> nn.Linear:
    """A layer with its own source of chance: torch's global one is not touched."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        layer.weight.normal_(0.0, gain * inputs**-0.5, generator=generator or torch.Generator())
        layer.bias.zero_()
    return layer


def _draw(weights: Tensor, u: Tensor) -> Tensor:
    """Categories [N] by inversion of uniform numbers [N]; a category of weight 0 is never drawn."""
    total = weights.cumsum(1)
    last = total[:, -1]
    below = torch.minimum(u * last, torch.nextafter(last, torch.zeros_like(last)))  # rounded up to `last`, it would pass every category
    return torch.searchsorted(total, below[:, None], right=True).squeeze(1).clamp(max=weights.shape[1] - 1)


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(1)
