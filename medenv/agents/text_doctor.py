"""A language-model doctor on disk and by name: RUN/policy is an ordinary model directory of Hugging Face's plus `doctor.json`.

`doctor.json` holds the base (id, fingerprint) that the doctor was trained on, its environment's arguments, the instructions in front of
every consultation, and the longest turn. A directory without one (any causal model) is a doctor too: it gets `instructions`.

Does not cover: training (`sft`, `grpo`), what is written in a consultation (`generation`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

import medenv
from medenv.agents.conversation import Conversation, Reply
from medenv.agents.doctor import TEXT_KINDS
from medenv.agents.generation import Sampling, converse
from medenv.agents.language_model import LanguageModel, load_model
from medenv.envs.setup import Setup
from medenv.errors import RunError, unknown
from medenv.knowledge.base import KnowledgeBase
from medenv.language.formats import Format
from medenv.language.understanding import ASK, DIAGNOSE, Intent, language

FORMAT = 1  # of doctor.json
FILE, POLICY = "doctor.json", "policy"
MAX_NEW_TOKENS = 48
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class About:
    """What `doctor.json` says. `system`: instructions in front of every consultation, None for none."""

    base: str = ""
    fingerprint: str = ""  # of the base; empty: any base will do
    env: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    max_new_tokens: int = MAX_NEW_TOKENS


class TextDoctor:
    """A doctor that writes its messages. Greedy decoding unless `temperature` is above 0."""

    gives_differential = False

    def __init__(self, name: str, lm: LanguageModel, max_new_tokens: int = MAX_NEW_TOKENS, temperature: float = 0.0) -> None:
        self.name, self.lm = name, lm
        self.sampling = Sampling(max_new_tokens, temperature)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits over weights, instructions and sampling."""
        digest = hashlib.sha256(f"{self.sampling} {self.lm.chat.system}".encode())
        for name, tensor in sorted(self.lm.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else str(tensor).encode())
        return digest.hexdigest()[:12]

    def write(self, openings: Sequence[str], reply: Reply, seeds: Sequence[int]) -> list[Conversation]:
        """Hold one conversation for each opening; see `converse`."""
        return converse(self.lm, openings, reply, self.sampling, seeds)


def instructions(base: KnowledgeBase, format: str | Format = "any") -> str:
    """What a doctor that was not trained on the base is told: its task, how to say things in this format, and the conditions' names."""
    words = language(base, format)
    shown: dict[str, str] = {}
    for finding in base.findings:
        shown.setdefault(finding.kind, words.write(Intent(ASK, finding.id)))
    ways = " ".join(f"To {kind}: {text}" for kind, text in shown.items())
    names = ", ".join(c.name for c in base.conditions)
    end = words.write(Intent(DIAGNOSE, base.conditions[0].id))
    return (
        "You are the doctor in a simulated consultation (research, no medical advice). Ask about one thing at a time, in one short "
        f"sentence, and write nothing else. {ways} When you are sure enough, or one turn is left, end with the diagnosis alone: {end} "
        f"It is one of: {names}."
    )


def save_doctor(folder: str | Path, lm: LanguageModel, about: About) -> None:
    """Write a policy directory. Each file replaces the one before it whole; RunError when there is no room."""
    folder = Path(folder)
    fresh = folder.with_name(f"{folder.name}.tmp")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        lm.save(fresh)
        said = {"format": FORMAT, "version": medenv.__version__, **about.__dict__, "env": dict(about.env)}
        (fresh / FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        for file in sorted(p for p in fresh.iterdir() if p.is_file()):
            with file.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(file, folder / file.name)
        shutil.rmtree(fresh)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise RunError(
            f"could not write {folder}: {getattr(error, 'strerror', None) or error}; what was there is kept, make room"
        ) from error


def read_about(source: str | Path) -> About | None:
    """What the `doctor.json` of a run or a policy directory says; None where there is none (a bare model, or a model's name)."""
    file = policy_folder(source) / FILE
    if not file.is_file():
        return None
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        found = said.pop("format")
        said.pop("version")
        about = About(**said)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise RunError(f"{file} can't be read ({type(error).__name__}: {error}): put back a copy of it, or train again") from None
    if found != FORMAT:
        raise RunError(f"{file}: its format is {found!r}, this one's is {FORMAT}: use the medenv that wrote it, or train again")
    return about


def policy_folder(source: str | Path) -> Path:
    """RUN/policy of a run directory, else the path itself."""
    inner = Path(source) / POLICY
    return inner if inner.is_dir() else Path(source)


def load_doctor(source: str | Path, base: KnowledgeBase | None = None, format: str | Format = "any", **how: Any) -> LanguageModel:
    """The language model of a run directory, of a policy or model directory, or of a name on Hugging Face.

    `base`: what it is to talk about; RunError where the doctor was trained on another one. A doctor without `doctor.json` is given
    `instructions` about it. `how` as in `load_model` (`context`, `lora`, `system`, `device`, ...), whose errors it raises too.
    """
    about, folder = read_about(source), policy_folder(source)
    if Path(source).is_dir() and (Path(source) / "run.json").is_file() and about is None:
        raise RunError(f"{source} is a run without a doctor in {POLICY}/: let it reach its first checkpoint")
    if about is not None and base is not None and about.fingerprint not in ("", base.fingerprint):
        seen = f"{about.base} ({about.fingerprint}), not for {base.id} ({base.fingerprint})"
        wanted = f"--knowledge {about.env['knowledge']}" if isinstance(about.env.get("knowledge"), str) else "that base"
        raise RunError(f"{source}: this doctor was trained for {seen}: give {wanted}, or another doctor")
    if how.get("system") is None:
        how["system"] = about.system if about is not None else instructions(base, format) if base is not None else None
    name = folder if folder.is_dir() else str(source)
    if folder.is_dir() and (folder / _ADAPTER).is_file() and not (folder / "config.json").is_file():
        return _with_adapter(folder, how)
    return load_model(name, **how)


def _with_adapter(folder: Path, how: dict[str, Any]) -> LanguageModel:
    """A LoRA adapter on top of the model that it names: as such with `lora`, its rank, to go on training it, else merged into the model."""
    try:
        import peft

        named = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except ImportError:
        raise RunError(f"{folder} holds a LoRA adapter, and peft is not installed: pip install 'medenv[trl]'") from None
    except (ValueError, LookupError) as error:
        raise RunError(f"{folder / _ADAPTER} can't be read ({error}): put back a copy of it, or train again") from None
    rank = how.pop("lora", None)
    lm = load_model(named, **how, tokenizer_from=folder)
    try:
        model = peft.PeftModel.from_pretrained(lm.model, str(folder), is_trainable=rank is not None).eval()
    except Exception as error:  # whatever peft and safetensors raise on a cut or foreign file
        raise RunError(f"{folder}: its adapter does not fit {named} ({f'{error}'.splitlines()[0][:100]}): put back a copy of it") from error
    own = model.peft_config["default"].r
    if rank is not None and rank != own:
        raise RunError(
            f"{folder} holds an adapter of rank {own}, and lora is {rank}: give lora={own}, or none to train the merged model whole"
        )
    return replace(lm, model=model if rank is not None else model.merge_and_unload().requires_grad_(True))


def make_text_doctor(name: str, setup: Setup, format: str | Format = "any", temperature: float = 0.0) -> TextDoctor:
    """The doctor that `sft:RUN_DIR`, `grpo:RUN_DIR` or `lm:DIR_OR_NAME` names, for one setup."""
    kind, _, rest = name.partition(":")
    if kind not in TEXT_KINDS or not rest:
        raise unknown("agent in words", name, [f"{k}:..." for k in TEXT_KINDS])
    about = read_about(rest)
    if kind != "lm" and about is None:
        raise RunError(f"{rest!r} holds no {FILE}: name the run directory of `medenv train {kind}`, or write lm:{rest} for a bare model")
    longest = MAX_NEW_TOKENS if about is None else about.max_new_tokens
    return TextDoctor(name, load_doctor(rest, setup.base, format), longest, temperature)
