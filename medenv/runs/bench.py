"""How fast: the step loop, information gain, importing. Each benchmark runs in a fresh process with one thread for linear algebra.

- `vector`: steps/s of `gym.make_vec` with 1,024 consultations, NEXT_STEP autoreset, observations copied. Actions are drawn beforehand,
  uniformly over all of them, invalid ones included, so consultations end and begin all the time. Beside it Gymnasium's own
  SyncVectorEnv of 128 CartPoles, in the same process; `ratio` is against that.
- `rewards`: steps/s of the same batch on the built-in base with rewards that look at the whole consultation, credits handed out; for
  the actions of `vector`, under which a consultation ends after three questions on average, and for others that ask eight.
- `scalar`: steps/s of `gym.make`, and of CartPole.
- `text`: steps/s of `MedConsultText-v0`, one consultation and batches; random questions in the environment's own wordings (which it
  remembers having read), eight on average before a diagnosis.
- `gain`: beliefs/s for the exact information gain of all questions, 1,024 beliefs at once from consultations at mixed turns.
- `shapley`: milliseconds for the exact Shapley values of one game of n players and 49 conditions, float32, and each in a batch of 256;
  beside them shapiq's exact computer on the very same game, where shapiq is installed.
- `import`: seconds that `import medenv` takes, and which heavy packages it loads (none).
- `ppo`: environment steps/s of PPO with its updates, belief observed, in runs of 30 s, on one thread and on all cores. Left out, unless
  named, without torch.
- `generation`: tokens/s that a language model writes in consultations, in lock step with one cache, and every turn apart; see
  `medenv.runs.bench_generation`. Left out, unless named, without transformers.
- `memory`: peak resident memory in MB of a process with 1,024 consultations.
- `demo_memory`: the same of `medenv demo`, training for 20 s and 200 test cases, or of the largest process that it starts, once. Left
  out, unless named, where what it needs (torch, matplotlib, Pillow) is not installed.

Every other figure is the median of several repeats, with the smallest and the largest beside it.

Does not cover: GPUs, several machines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from medenv.errors import MedenvError, unknown
from medenv.runs.provenance import commit, cores, hardware, versions

BASES = ("builtin", "synthetic:200x500")
NUM, CARTPOLES, REPEATS = 1024, 128, 5
SECONDS = 1.0  # at least, for one repeat
DEMO = ("--seconds", "20", "--episodes", "200")
NEEDS = {"ppo": ("torch",), "generation": ("torch", "transformers"), "demo_memory": ("torch", "matplotlib", "PIL")}
PPO_SECONDS = 30.0
HEAVY = ("torch", "ray", "transformers", "trl", "scipy", "matplotlib", "pandas", "rich", "click")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

Row = dict[str, Any]


def bench(names: Sequence[str] = (), progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Run benchmarks (none named: all): {command, commit, hardware, versions, rows}. UnknownName for another name.

    A row: `benchmark`, `case`, `unit`, `median`, `min`, `max`, `repeats`, and `ratio` or `note` where there is one.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise unknown("benchmark", name, BENCHMARKS)
    chosen = [n for n in BENCHMARKS if n in names or (not names and all(find_spec(p) for p in NEEDS.get(n, ())))]
    rows: list[Row] = []
    for done, name in enumerate(chosen, 1):
        rows += _in_a_fresh_process(name)
        if progress is not None:
            progress(done, len(chosen))
    return {
        "command": " ".join(["medenv bench", *names]),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions("numpy", "gymnasium"),
        "rows": rows,
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a Markdown table with what it was measured on."""
    lines = [f"`{report['command']}` at commit {report['commit']}", ""]
    lines += [f"{report['hardware']}, one thread used; {report['versions']}", ""]
    lines += ["| benchmark | case | median | min | max | unit | note |", "| --- | --- | --: | --: | --: | --- | --- |"]
    for r in report["rows"]:
        note = r.get("note") or (f"{r['ratio']:.3g} x CartPole" if "ratio" in r else "")
        numbers = " | ".join(_number(r[k]) for k in ("median", "min", "max"))
        lines.append(f"| {r['benchmark']} | {r['case']} | {numbers} | {r['unit']} | {note} |")
    return "\n".join([*lines, ""])


def vector() -> list[Row]:
    """See the module."""
    import gymnasium as gym

    import medenv  # noqa: F401  (registers the environments)

    cartpole = gym.make_vec("CartPole-v1", CARTPOLES, vectorization_mode="sync")
    reference = _row("vector", f"CartPole-v1 SyncVectorEnv n={CARTPOLES}", "steps/s", _steps(cartpole, CARTPOLES))
    rows = [reference]
    for base in BASES:
        env = gym.make_vec("MedConsult-v0", NUM, knowledge=base)
        row = _row("vector", f"MedConsult-v0 {base} n={NUM}", "steps/s", _steps(env, NUM))
        rows.append(row | {"ratio": row["median"] / reference["median"]})
    return rows


def rewards() -> list[Row]:
    """See the module."""
    import gymnasium as gym

    import medenv  # noqa: F401  (registers the environments)

    rows: list[Row] = []
    for name in ("information_gain", "shapley_credit", "shapley"):
        env = gym.make_vec("MedConsult-v0", NUM, reward=f"accuracy + 0.1*{name} - 0.01*question_cost - 0.1*invalid_action")
        for questions, case in ((None, "random actions"), (8, "8 questions each")):
            rows.append(_row("rewards", f"{name}, {case}", "steps/s", _steps(env, NUM, questions)))
    return rows


def _steps(env: Any, num: int, questions: int | None = None, turns: int = 200) -> list[float]:
    """Steps/s with actions drawn beforehand: uniformly over all, or random questions, `questions` on average before a diagnosis."""
    import numpy as np

    rng = np.random.Generator(np.random.PCG64(0))
    actions = rng.integers(env.single_action_space.n, size=(turns, num))
    if questions is not None:
        Q, D = env.num_questions, env.num_conditions
        closing = rng.random((turns, num)) < 1 / (questions + 1)
        actions = np.where(closing, rng.integers(Q, Q + D, size=(turns, num)), rng.integers(Q, size=(turns, num)))
    env.reset(seed=0)

    def run() -> int:
        for action in actions:
            env.step(action)
        return turns * num

    return _rates(run)


def scalar() -> list[Row]:
    """See the module."""
    import gymnasium as gym
    import numpy as np

    import medenv  # noqa: F401  (registers the environments)

    rows: list[Row] = []
    for name, arguments in (("CartPole-v1", {}), *(("MedConsult-v0", {"knowledge": base}) for base in BASES)):
        env = gym.make(name, **arguments)  # type: ignore[arg-type]
        assert isinstance(env.action_space, gym.spaces.Discrete)
        actions = np.random.Generator(np.random.PCG64(0)).integers(int(env.action_space.n), size=2000)
        env.reset(seed=0)

        def run(env: gym.Env[Any, Any] = env, actions: Any = actions) -> int:
            for action in actions:
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
            return len(actions)

        row = _row("scalar", f"{name} {arguments.get('knowledge', '')}".strip(), "steps/s", _rates(run))
        rows.append(row | {"ratio": row["median"] / rows[0]["median"]} if rows else row)
    return rows


def text() -> list[Row]:
    """See the module."""
    import gymnasium as gym
    import numpy as np

    import medenv  # noqa: F401  (registers the environments)

    rng = np.random.Generator(np.random.PCG64(0))
    one: Any = gym.make("MedConsultText-v0").unwrapped
    rows: list[Row] = []
    for num in (1, 64, 512):
        Q, D = one.num_questions, one.num_conditions
        actions = np.where(rng.random((100, num)) < 1 / 9, rng.integers(Q, Q + D, (100, num)), rng.integers(Q, size=(100, num)))
        messages = [[one.write(int(a), turn) for a in row] for turn, row in enumerate(actions)]
        env: Any = one if num == 1 else gym.make_vec("MedConsultText-v0", num)
        env.reset(seed=0)

        def run(env: Any = env, messages: Any = messages, num: int = num) -> int:
            for said in messages:
                if num > 1:
                    env.step(said)
                elif env.step(said[0])[2]:
                    env.reset()
            return num * len(messages)

        rows.append(_row("text", f"MedConsultText-v0 builtin n={num}", "steps/s", _rates(run)))
    return rows


def gain() -> list[Row]:
    """See the module."""
    import numpy as np

    from medenv.belief.gain import InformationGain
    from medenv.envs.setup import Setup

    rows: list[Row] = []
    for base in BASES:
        setup = Setup(knowledge=base)
        engine = setup.engine(NUM)
        engine.seed(list(range(NUM)))
        engine.begin()
        rng = np.random.Generator(np.random.PCG64(0))
        stop_at = rng.integers(setup.max_turns - 1, size=NUM)
        belief = engine.belief.copy()
        for turn in range(setup.max_turns - 1):
            open_ = engine.buffer[:, engine.mask_at : engine.mask_at + engine.Q] == 1
            engine.step(np.argmax(rng.random(open_.shape) * open_, axis=1))
            belief[stop_at > turn] = engine.belief[stop_at > turn]
        measure, cell = InformationGain(setup.tables), engine.cell

        def run(measure: InformationGain = measure, belief: Any = belief, cell: Any = cell) -> int:
            measure(belief, cell)
            return NUM

        size = f"{setup.num_conditions} conditions, {setup.num_questions} questions"
        rows.append(_row("gain", f"{base} n={NUM}", "beliefs/s", _rates(run)) | {"note": size})
    return rows


def shapley() -> list[Row]:
    """See the module."""
    from medenv.runs.bench_shapley import shapley as rows

    return rows()


def importing() -> list[Row]:
    """See the module."""
    code = "import sys, time; t = time.perf_counter(); import medenv; t = time.perf_counter() - t; print(t, *sys.modules)"
    seconds, loaded = [], set()
    for _ in range(REPEATS):
        first, *modules = _run(code).split()
        seconds.append(float(first))
        loaded |= set(modules) & set(HEAVY)
    note = f"loads {', '.join(sorted(loaded))}" if loaded else "nothing heavy loaded"
    return [_row("import", "import medenv", "s", seconds) | {"note": note}]


def ppo() -> list[Row]:
    """See the module."""
    from medenv.agents.ppo import PPOSettings
    from medenv.runs.run_directory import read_metrics
    from medenv.runs.training import train

    rows = []
    for threads in sorted({1, cores()}):
        with tempfile.TemporaryDirectory() as folder:
            settings = PPOSettings(env={"observe_belief": True}, seconds=PPO_SECONDS, threads=threads, evaluate_every=10_000)
            train(settings, Path(folder) / "run")
            rates = [r["steps_per_second"] for r in read_metrics(Path(folder) / "run" / "metrics.jsonl") if "steps_per_second" in r]
        rows.append(_row("ppo", f"builtin, {threads} thread{'s' if threads > 1 else ''}", "steps/s", rates[1:]))
    return rows


def generation() -> list[Row]:
    """See the module."""
    from medenv.runs.bench_generation import generation as rows

    return rows()


def memory() -> list[Row]:
    """See the module."""
    code = (
        "import resource, gymnasium as gym, medenv, numpy as np\n"
        "env = gym.make_vec('MedConsult-v0', {num}, knowledge='{base}'); env.reset(seed=0)\n"
        "for _ in range(50): env.step(env.action_space.sample())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    return [_row("memory", f"{base} n={NUM}", "MB", [_megabytes(int(_run(code.format(num=NUM, base=base))))]) for base in BASES]


def demo_memory() -> list[Row]:
    """See the module."""
    code = (
        "import resource, subprocess, sys\n"
        "command = [sys.executable, '-m', 'medenv', 'demo', '--output', *sys.argv[1:]]\n"
        "ran = subprocess.run(command, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(ran.returncode)"
    )
    with tempfile.TemporaryDirectory() as folder:
        peak = int(_run(code, str(Path(folder) / "demo"), *DEMO))
    return [_row("demo_memory", " ".join(("medenv demo", *DEMO)), "MB", [_megabytes(peak)])]


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "vector": vector,
    "rewards": rewards,
    "scalar": scalar,
    "text": text,
    "gain": gain,
    "shapley": shapley,
    "import": importing,
    "ppo": ppo,
    "generation": generation,
    "memory": memory,
    "demo_memory": demo_memory,
}


def _in_a_fresh_process(name: str) -> list[Row]:
    ran = subprocess.run([sys.executable, "-m", "medenv.runs.bench", name], capture_output=True, text=True, env=_environment())
    if ran.returncode:
        raise MedenvError(f"benchmark {name!r} failed: {(ran.stderr.strip().splitlines() or ['no message'])[-1]}")
    rows: list[Row] = json.loads(ran.stdout.splitlines()[-1])
    return rows


def _run(code: str, *arguments: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=_environment())
    if ran.returncode:
        sys.exit((ran.stderr.strip().splitlines() or ["no message"])[-1])
    return ran.stdout


def _megabytes(maxrss: int) -> float:
    """`ru_maxrss` is in bytes on macOS, in kilobytes on Linux."""
    return maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _environment() -> dict[str, str]:
    """One thread each; this very package, however it was found."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": path}


def _rates(run: Callable[[], int]) -> list[float]:
    """Units per second of `REPEATS` repeats, each at least `SECONDS` long, after one that does not count."""
    run()
    rates = []
    for _ in range(REPEATS):
        count, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < SECONDS:
            count += run()
        rates.append(count / spent)
    return rates


def _row(benchmark: str, case: str, unit: str, values: Sequence[float]) -> Row:
    return {
        "benchmark": benchmark,
        "case": case,
        "unit": unit,
        "median": median(values),
        "min": min(values),
        "max": max(values),
        "repeats": len(values),
    }


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"


if __name__ == "__main__":
    print(json.dumps(BENCHMARKS[sys.argv[1]]()))
