"""What GRPO of a named model would need on 1, 8 and 64 GPUs: memory, tokens a second, hours. Estimated from assumptions, not run.

    python -m medenv.runs.estimates          # experiments/cluster/gpu*.toml -> experiments/cluster/estimates.csv and .md

Every number in the table follows from the settings file, the model's shape as published, the GPU's data sheet, and `Assumed`: shares of
peak that a run may reach, and how long consultations are. Sums, not a model of the hardware: they may be wrong by a factor of two or three.

Does not cover: how runs scale over nodes (`medenv.runs.scaling`), prices, other models.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from medenv.agents.grpo import GRPOSettings
from medenv.runs.settings import read_settings

FOLDER = Path("experiments/cluster")
SETTINGS = ("gpu1.toml", "gpu8.toml", "gpu64.toml")


@dataclass(frozen=True)
class GPU:
    """NVIDIA H100 SXM, as its data sheet has it."""

    flops: float = 989e12  # bfloat16, dense
    bandwidth: float = 3.35e12  # bytes a second of its own memory
    memory: float = 80e9  # bytes


@dataclass(frozen=True)
class Assumed:
    """What no data sheet says. Each is an assumption."""

    mfu: float = 0.3  # share of `flops` that learning reaches
    mbu: float = 0.4  # share of `bandwidth` that writing a token reaches
    turns: float = 10.0  # messages of the doctor in a consultation
    longest: float = 16.0  # ... in the longest of a GPU's, which all others wait for
    written: float = 24.0  # tokens of one message
    read: float = 30.0  # tokens of one answer with its markup
    opening: float = 300.0  # tokens in front of the first message
    logit_bytes: float = 10.0  # of one logit in learning: bfloat16, float32 and its gradient
    network: float = 25e9  # bytes a second between nodes, for gradients
    other: float = 4e9  # bytes: CUDA context, buffers, fragmentation


@dataclass(frozen=True)
class Shape:
    """A decoder as its published configuration has it (Qwen3: untied heads of 128, grouped keys and values, gated MLP)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    tied: bool
    head_dim: int = 128
    vocabulary: int = 151_936

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's matrices."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        mlp = [(self.hidden, self.inner), (self.hidden, self.inner), (self.inner, self.hidden)]
        return [(self.hidden, q), (self.hidden, kv), (self.hidden, kv), (q, self.hidden), *mlp]

    @property
    def parameters(self) -> int:
        """All of them, but for the norms."""
        return self.layers * sum(i * o for i, o in self.linears) + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter on every matrix of the layers."""
        return self.layers * sum(rank * (i + o) for i, o in self.linears)

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token, bfloat16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


SHAPES = {
    "Qwen/Qwen3-1.7B": Shape(2048, 28, 16, 8, 6144, True),
    "Qwen/Qwen3-4B": Shape(2560, 36, 32, 8, 9728, True),
    "Qwen/Qwen3-8B": Shape(4096, 36, 32, 8, 12288, False),
}


@dataclass(frozen=True)
class Estimate:
    """One update of GRPO on `gpus` GPUs. Seconds of its parts; tokens over all GPUs; bytes on each GPU by what they hold."""

    gpus: int
    settings: GRPOSettings
    rollout: float
    learn: float
    exchange: float
    written: float
    read: float
    memory: dict[str, float]

    @property
    def update(self) -> float:
        """Seconds of an update."""
        return self.rollout + self.learn + self.exchange


def estimate(settings: GRPOSettings, gpus: int, gpu: GPU = GPU(), assumed: Assumed = Assumed()) -> Estimate:
    """The sums. KeyError for a model whose shape is not in `SHAPES`."""
    shape, a = SHAPES[settings.model], assumed
    each = settings.batch / gpus  # consultations of a GPU
    length = a.opening + a.turns * (a.written + a.read)
    trained = shape.adapter(settings.lora) if settings.lora else shape.parameters
    weights, cache = 2.0 * shape.parameters, each * length * shape.cache_bytes
    # A step writes one token of every open consultation: it reads the weights and their caches once, or is bound by its arithmetic.
    step = max((weights + cache) / (gpu.bandwidth * a.mbu), 2 * shape.parameters * each / (gpu.flops * a.mfu))
    reading = 2 * shape.parameters * each * length / (gpu.flops * a.mfu)  # the patient's tokens, once each
    rollout = a.longest * a.written * step + reading
    # Learning: 2 flops a parameter and token forward, as many again for checkpointing, 2 for activations backward, 2 for full weights
    flops = (6 if settings.lora else 8) * shape.parameters * each * length
    exchange = 0.0 if gpus == 1 else 2 * (gpus - 1) / gpus * 4.0 * trained / a.network
    micro = min(settings.micro_batch, each)
    memory = {
        "weights": weights if settings.lora else 4.0 * shape.parameters,
        "trained": 16.0 * trained if settings.lora else 12.0 * shape.parameters,  # float32: (weights,) gradients, two moments
        "activations": micro * length * shape.hidden * 2.0 * (shape.layers + 16),  # a layer's input each, and one layer whole
        "logits": micro * length * shape.vocabulary * a.logit_bytes,
        "cache": cache if settings.vllm == "off" else max(settings.vllm_memory * gpu.memory, weights + cache),  # vLLM has its own weights
        "other": a.other,
    }
    written = settings.batch * a.turns * a.written
    return Estimate(gpus, settings, rollout, flops / (gpu.flops * a.mfu), exchange, written, settings.batch * length, memory)


def row(name: str, found: Estimate, gpu: GPU = GPU()) -> dict[str, Any]:
    """A line of the table."""
    s = found.settings
    validations = (s.steps or 0) // s.evaluate_every + 1
    validation = found.rollout * s.evaluate_episodes / (s.batch / found.gpus)  # the first process validates alone
    seconds = (s.steps or 0) * found.update + validations * validation
    return {
        "settings": name,
        "GPUs": found.gpus,
        "model": s.model,
        "trained": f"LoRA, rank {s.lora}" if s.lora else "all weights",
        "consultations an update": s.batch,
        "GB on each GPU": round(sum(found.memory.values()) / 1e9, 1),
        "of it": ", ".join(f"{k} {v / 1e9:.1f}" for k, v in found.memory.items()),
        "fits 80 GB": "yes" if sum(found.memory.values()) < gpu.memory else "no",
        "tokens/s written": round(found.written / found.rollout),
        "tokens/s learned": round(found.read / (found.learn + found.exchange)),
        "seconds of rollouts": round(found.rollout, 1),
        "seconds of learning": round(found.learn, 1),
        "seconds of exchange": round(found.exchange, 2),
        "updates": s.steps,
        "hours": round(seconds / 3600, 1),
        "of it validation": round(validations * validation / 3600, 1),
        "status": "estimated, not run",
    }


def load(name: str) -> tuple[GRPOSettings, int]:
    """The settings of one of the files, and its number of GPUs."""
    table = tomllib.loads((FOLDER / name).read_text(encoding="utf-8"))
    gpus = round(table.pop("workers") * table.pop("gpus_per_worker"))
    return read_settings(GRPOSettings, table), gpus


def main() -> None:
    """Write the table."""
    from medenv.runs.experiments import _write as write_table

    rows = [row(name, estimate(*load(name))) for name in SETTINGS]
    told = "; ".join(f"{type(x).__name__}: {', '.join(f'{f.name} {getattr(x, f.name):g}' for f in fields(x))}" for x in (GPU(), Assumed()))
    notes = [
        "**Estimated, not run: no such GPU was at hand.** The formulas are in `medenv/runs/estimates.py`.",
        "",
        f"They rest on {told}.",
    ]
    write_table(FOLDER / "estimates", rows, notes, "python -m medenv.runs.estimates")


if __name__ == "__main__":
    main()
