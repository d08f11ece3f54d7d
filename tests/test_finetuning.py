"""SFT and GRPO of language-model doctors through TRL: masks, token advantages, the loss, resuming, several processes, bad input."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="language models need torch")
pytest.importorskip("trl", reason="training needs trl")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of transformers, about what trl calls
    pytest.mark.usefixtures("one_thread"),
]

from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from medenv.agents.conversation import Conversation  # noqa: E402
from medenv.agents.credit import Paid  # noqa: E402
from medenv.agents.finetuning import make_room  # noqa: E402
from medenv.agents.generation import Sampling, converse_apart  # noqa: E402
from medenv.agents.grpo import ConsultGRPO, GRPOSettings, cut  # noqa: E402
from medenv.agents.language_model import load_model, train_tokenizer  # noqa: E402
from medenv.agents.rollouts import Held, Room  # noqa: E402
from medenv.agents.sft import SFTSettings, ShortFirst, collate, weighted_loss, weights  # noqa: E402
from medenv.agents.text_doctor import load_doctor, make_text_doctor, read_about  # noqa: E402
from medenv.cli import main  # noqa: E402
from medenv.errors import RunError  # noqa: E402
from medenv.runs.checkpoints import COMPLETE, last_checkpoint  # noqa: E402
from medenv.runs.evaluate import evaluate  # noqa: E402
from medenv.runs.finetuning import train  # noqa: E402
from medenv.runs.glossary import GLOSSARY  # noqa: E402
from medenv.runs.run_directory import read_metrics  # noqa: E402
from medenv.runs.updates import Updates  # noqa: E402

MIX = "accuracy + 0.1*shapley_credit - 0.01*question_cost - 0.1*invalid_action"
ENV = {"knowledge": "scope:12", "max_turns": 5, "reward": MIX}
SMALL: dict[str, Any] = {"env": ENV, "threads": 1, "evaluate_episodes": 16, "max_new_tokens": 20}
SFT = SFTSettings(
    **SMALL,
    demonstrations=400,
    steps=80,
    learning_rate=8e-3,
    learning_rate_end=0.3,
    hidden=48,
    layers=2,
    heads=2,
    vocabulary=400,
    warmup=4,
    evaluate_every=20,
    checkpoint_every=40,
)


def grpo(start: Path | str, **more: Any) -> GRPOSettings:
    small = SMALL | {"model": str(start), "batch": 16, "group": 4, "steps": 3, "warmup": 1, "evaluate_every": 3, "checkpoint_every": 1}
    return GRPOSettings(**(small | more))


@pytest.fixture(scope="module")
def sft_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("sft") / "run"
    train(SFT, run)
    return run


@pytest.fixture(scope="module")
def grpo_run(sft_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("grpo") / "run"
    train(grpo(sft_run), run)
    return run


@pytest.fixture
def trainer(sft_run: Path, tmp_path: Path) -> ConsultGRPO:
    settings = grpo(sft_run)
    room = make_room(settings, "train")
    made = ConsultGRPO(load_doctor(sft_run, room.setup.base), room, settings, tmp_path, 3, lambda update: 0.0)
    made.current_gradient_accumulation_steps = 1  # which `train` sets
    return made


def generated(trainer: ConsultGRPO) -> dict[str, Any]:
    """A batch as the trainer makes it: two groups of four."""
    trainer.model.train()
    return trainer._generate_and_score_completions([{"prompt": str(n)} for n in (0, 0, 0, 0, 1, 1, 1, 1)])


# Supervised


def test_sft__learns_and_leaves_a_doctor(sft_run: Path) -> None:
    lines = read_metrics(sft_run / "metrics.jsonl")
    assert [line["update"] for line in lines] == list(range(81))
    losses = [line["validation_loss"] for line in lines if line.get("validation_loss") is not None]
    assert losses[-1] < 0.7 * losses[0]
    about = read_about(sft_run)
    assert about is not None and about.env["knowledge"] == "scope:12" and about.max_new_tokens == 20
    assert {*lines[-1]} <= {*GLOSSARY} and (sft_run / "samples" / "000080.txt").read_text().count("case ") == 4
    assert json.loads((sft_run / "policy" / "config.json").read_text())["hidden_size"] == 48


def test_weights__patient_0_doctor_1_conclusion_heavier() -> None:
    c = Conversation()
    c.hear([9, 9])
    c.write([1, 2])
    c.hear([9])
    c.write([3, 4])
    assert weights(c, 3.0) == [0, 0, 1, 1, 0, 3, 3]


def test_weighted_loss__by_hand(trainer: ConsultGRPO) -> None:
    rows = [{"input_ids": [5, 6, 7, 8], "weights": [0.0, 1.0, 0.0, 3.0]}, {"input_ids": [5, 6], "weights": [0.0, 2.0]}]
    batch = collate(rows, trainer.lm.tokenizer.pad_token_id)
    model = trainer.lm.model.eval()
    with torch.no_grad():
        total, count = weighted_loss(model, batch)
        one = torch.log_softmax(model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0], 1)
        two = torch.log_softmax(model(input_ids=torch.tensor([[5, 6]])).logits[0], 1)
    assert float(count) == 6.0
    assert float(total) == pytest.approx(-float(one[0, 6] + 3 * one[2, 8] + 2 * two[0, 6]), rel=1e-4)


def test_sft__several_passes_learn_what_one_pass_learns(tmp_path: Path) -> None:
    settings = dataclasses.replace(SFT, demonstrations=64, steps=2, evaluate_every=9, checkpoint_every=9)
    for name, size in (("one", 32), ("four", 8)):
        train(dataclasses.replace(settings, micro_batch=size), tmp_path / name)
    lines = [read_metrics(tmp_path / name / "metrics.jsonl")[-1] for name in ("one", "four")]
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-4)
    assert lines[0]["grad_norm"] == pytest.approx(lines[1]["grad_norm"], rel=1e-3)


def test_sft__resumes_only_from_the_same_inputs(tmp_path: Path) -> None:
    arguments = {**ENV, "split": "train"}
    evaluate("MedConsultText-v0", "greedy", 40, 0, tmp_path / "records", arguments)
    settings = dataclasses.replace(SFT, trajectories=str(tmp_path / "records"), steps=1)
    train(settings, tmp_path / "run")
    with (tmp_path / "records" / "trajectories.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(RunError, match="the run's inputs is"):
        train(dataclasses.replace(settings, steps=2), tmp_path / "run", resume=True)


def test_order__short_first_then_every_row_once_a_pass() -> None:
    lengths = [5, 1, 4, 2, 3, 6, 8, 7]
    rows = list(ShortFirst(lengths, 2, 12, seed=0))
    assert len(rows) == 24 and [lengths[i] for i in rows[:8]] == sorted(lengths)
    assert sorted(rows[8:16]) == sorted(rows[16:24]) == list(range(8)) and rows[8:16] != rows[16:24]
    assert list(ShortFirst(lengths, 2, 12, seed=0)) == rows != list(ShortFirst(lengths, 2, 12, seed=1))


def test_sft__stops_at_its_plateau_and_keeps_the_best(tmp_path: Path) -> None:
    settings = dataclasses.replace(SFT, steps=200, demonstrations=16, patience=2, evaluate_every=10)
    final = train(settings, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    returns = [line["validation_return"] for line in lines if line.get("validation_return") is not None]
    assert final["plateau"] and final["update"] < 200 and max(returns) > max(returns[-2:]) and max(returns) == returns[-3]
    kept = make_text_doctor(f"sft:{tmp_path / 'run'}", Room(ENV, "validation").setup)
    best = Updates(settings, Room(ENV, "train"), None, tmp_path / "other", time.perf_counter(), lambda record: None)
    best.lm, best.held_out = kept.lm, []
    assert best._validated(10)["validation_return"] == pytest.approx(max(returns))
    again = train(settings, tmp_path / "run", resume=True)
    assert again["update"] == final["update"] and len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == len(lines)


def test_budget__that_a_validation_used_up_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validated = Updates._validated

    def slow(updates: Updates, update: int) -> dict[str, Any]:
        time.sleep(3.0 if update else 0.0)
        return validated(updates, update)

    monkeypatch.setattr(Updates, "_validated", slow)
    final = train(dataclasses.replace(SFT, steps=None, seconds=8.0, evaluate_every=2, demonstrations=16), tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert final["update"] % 2 == 0 and final["seconds"] >= 8.0
    assert [r["update"] for r in lines if r.get("validation_return") is not None] == list(range(2, final["update"] + 1, 2))


# What GRPO learns from


def test_batch__holds_each_group_about_one_patient(trainer: ConsultGRPO) -> None:
    generated(trainer)
    cases = [h.case for h in trainer.held]
    assert len(set(cases[:4])) == len(set(cases[4:])) == 1 and cases[0] != cases[4]
    assert len({tuple(h.conversation.ids) for h in trainer.held[:4]}) > 1


def test_masks_and_advantages__line_up_with_the_tokens(trainer: ConsultGRPO) -> None:
    batch = generated(trainer)
    rows, length = batch["completion_ids"].shape
    assert batch["advantages"].shape == batch["tool_mask"].shape == batch["completion_mask"].shape == (rows, length) and rows == 8
    own = (batch["completion_mask"] * batch["tool_mask"]).bool()
    found = trainer.advantages(trainer.held)
    for row, (h, turns, kept) in enumerate(zip(trainer.held, found.turns, found.kept, strict=True)):
        c, start = h.conversation, h.conversation.prompt_length
        assert batch["completion_ids"][row, : len(c.ids) - start].tolist() == c.ids[start:]
        expected = torch.zeros(length)
        for span, value in zip(c.spans, turns, strict=True):
            expected[span.start - start : span.stop - start] = value
        torch.testing.assert_close(batch["advantages"][row], expected)
        assert own[row].sum() == (sum(c.mask) if kept else 0)
        assert not batch["advantages"][row][~own[row]].any()
    assert int(batch["num_items_in_batch"]) == int(own.sum())


def test_patient_tokens__do_not_reach_the_loss(trainer: ConsultGRPO) -> None:
    """Whatever advantage the patient's tokens had, the loss is the same; with them in the mask it is another."""
    batch = generated(trainer)
    patient = (batch["completion_mask"].bool() & ~batch["tool_mask"].bool()).float()
    assert patient.sum() > 0
    with torch.no_grad():
        loss = trainer._compute_loss(trainer.model, batch)
        poisoned = trainer._compute_loss(trainer.model, batch | {"advantages": batch["advantages"] + 7.0 * patient})
        leaked = trainer._compute_loss(
            trainer.model, batch | {"advantages": batch["advantages"] + 7.0 * patient, "tool_mask": torch.ones_like(batch["tool_mask"])}
        )
    assert float(loss) == float(poisoned) and abs(float(leaked) - float(loss)) > 0.1


def test_loss__is_the_policy_gradient_by_hand(trainer: ConsultGRPO) -> None:
    """On policy the ratio is 1, so the gradient is that of -sum A log p / tokens."""
    batch = generated(trainer)
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, batch).backward()
    got = trainer.model.lm_head.weight.grad.clone()
    trainer.model.zero_grad()
    total, tokens = torch.zeros(()), 0
    found = trainer.advantages(trainer.held)
    for h, turns, kept in zip(trainer.held, found.turns, found.kept, strict=True):
        if not kept:
            continue
        logits = trainer.model(input_ids=torch.tensor([h.conversation.ids])).logits[0]
        for span, advantage in zip(h.conversation.spans, turns, strict=True):
            for at in range(span.start, span.stop):
                total = total - advantage * torch.log_softmax(logits[at - 1], 0)[h.conversation.ids[at]]
                tokens += 1
    (total / tokens).backward()
    torch.testing.assert_close(got, trainer.model.lm_head.weight.grad, rtol=1e-3, atol=1e-6)


def test_passes_without_padding__have_the_gradient_of_the_whole_batch(trainer: ConsultGRPO) -> None:
    batch = generated(trainer)
    gradients = []
    for parts in ([np.arange(8)], [np.array([0, 5]), np.array([1, 2, 7]), np.array([3, 4, 6])]):
        trainer.model.zero_grad()
        for rows in parts:
            trainer._compute_loss(trainer.model, cut(batch, rows)).backward()
        gradients.append(trainer.model.lm_head.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
    widths = {cut(batch, np.array([i]))["completion_ids"].shape[1] for i in range(8)}
    assert max(widths) == batch["completion_ids"].shape[1] and len(widths) > 1


def test_failed_rollouts__are_left_out_and_counted(trainer: ConsultGRPO, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Room.hold

    def spoilt(self: Room, *arguments: Any) -> list[Held]:
        held = hold(self, *arguments)
        held[2] = Held(held[2].case, failure="ValueError: boom")
        return held

    monkeypatch.setattr(Room, "hold", spoilt)
    batch = generated(trainer)
    assert trainer.told["failed"] == 1.0
    assert not (batch["completion_mask"] * batch["tool_mask"])[2].any() and not batch["advantages"][2].any()


def test_groups_without_spread__are_out_of_the_loss(trainer: ConsultGRPO, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Room.hold

    def flat(self: Room, *arguments: Any) -> list[Held]:
        held = hold(self, *arguments)
        for h in held[:4]:
            h.paid = Paid(1.0, [0.5] * len(h.paid.credits), h.paid.asks)
        return held

    monkeypatch.setattr(Room, "hold", flat)
    batch = generated(trainer)
    assert trainer.told["skipped_groups"] >= 1.0 and not batch["tool_mask"][:4].any() and not batch["advantages"][:4].any()


def test_a_mix_without_accuracy__teaches_no_diagnosis(trainer: ConsultGRPO) -> None:
    generated(trainer)
    trainer.settings = dataclasses.replace(trainer.settings, diagnosis_weight=4.0)
    weighed = trainer.advantages(trainer.held)
    trainer.room = Room({**ENV, "reward": "0.1*shapley_credit"}, "train")
    found = trainer.advantages(trainer.held)
    trainer.settings = dataclasses.replace(trainer.settings, diagnosis_weight=0.0)
    plain = trainer.advantages(trainer.held)
    assert all((a == b).all() for a, b in zip(found.turns, plain.turns, strict=True))
    assert any((a != b).any() for a, b in zip(weighed.turns, plain.turns, strict=True))


def test_rollouts__are_a_function_of_seed_and_update(trainer: ConsultGRPO) -> None:
    one = [h.conversation.ids for h in trainer.consult(["0"] * 4)]
    assert [h.conversation.ids for h in trainer.consult(["0"] * 4)] == one
    trainer.state.global_step = 1
    assert [h.conversation.ids for h in trainer.consult(["0"] * 4)] != one


# Runs


def test_grpo__logs_what_the_glossary_explains(grpo_run: Path) -> None:
    lines = read_metrics(grpo_run / "metrics.jsonl")
    assert [line["update"] for line in lines] == [0, 1, 2, 3]
    assert {k for line in lines for k in line} <= {*GLOSSARY}
    assert lines[-1]["kl"] > 0 and lines[1]["generated_tokens_per_second"] > 0 and lines[-1]["validation_return"] is not None
    assert [p.name for p in (grpo_run / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"] and (grpo_run / "final.json").exists()


def test_grpo__changes_the_weights_and_the_doctor_loads(grpo_run: Path, sft_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (make_text_doctor(f"{kind}:{run}", Room(ENV, "test").setup) for kind, run in (("grpo", grpo_run), ("sft", sft_run)))
    assert one.fingerprint != two.fingerprint
    command = ["evaluate", "MedConsultText-v0", "--agent", f"grpo:{grpo_run}", "--episodes", "8", "--knowledge", "scope:12", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["episodes"] == 8
    assert main([*command, "--knowledge", "scope:6"]) == 2
    assert "was trained for" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_and_resumed__equals_never_killed(grpo_run: Path, sft_run: Path, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint; the run that goes on ends with the weights of the one that was left alone."""
    run = tmp_path / "run"
    given = {k: v for k, v in dataclasses.asdict(grpo(sft_run)).items() if k != "env" and v is not None}
    keys = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in (given | {f"env.{k}": v for k, v in ENV.items()}).items()]
    command = [sys.executable, "-m", "medenv", "train", "grpo", *keys, "--output", str(run)]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((run / "checkpoints").glob(f"checkpoint-*/{COMPLETE}")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    kept = last_checkpoint(run / "checkpoints")
    assert kept is not None, errors
    assert not (run / "final.json").exists() and kept.name != "checkpoint-3"
    train(grpo(sft_run), run, resume=True)
    assert [line["update"] for line in read_metrics(run / "metrics.jsonl")] == [0, 1, 2, 3]
    one, two = (load_model(r / "policy").model.state_dict() for r in (run, grpo_run))
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def test_a_checkpoint_that_was_cut__is_not_resumed_from(grpo_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(grpo_run, tmp_path / "run")) / "checkpoints"
    shutil.copytree(folder / "checkpoint-3", folder / "checkpoint-9")
    (folder / "checkpoint-9" / COMPLETE).unlink()
    assert last_checkpoint(folder) == folder / "checkpoint-3" and not (folder / "checkpoint-9").exists()


@pytest.mark.slow
def test_full_disk__keeps_the_last_checkpoint(grpo_run: Path, sft_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system says it, and as torch does."""
    run, longer = Path(shutil.copytree(grpo_run, tmp_path / "run")), grpo(sft_run, steps=4)
    for error in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file data/0")):

        def full(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", full)
            with pytest.raises(RunError, match=r"could not write .*; the last checkpoint is kept, make room and give --resume"):
                train(longer, run, resume=True)
        assert last_checkpoint(run / "checkpoints") == run / "checkpoints" / "checkpoint-3"
    train(longer, run, resume=True)
    assert [line["update"] for line in read_metrics(run / "metrics.jsonl")] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_two_processes__learn_what_one_learns(grpo_run: Path, sft_run: Path, tmp_path: Path) -> None:
    """Two gloo processes with half of the groups each: the same patients, advantages and, to rounding, weights."""
    script = tmp_path / "two.py"
    settings = {k: v for k, v in dataclasses.asdict(grpo(sft_run)).items() if v is not None}
    script.write_text(
        "from pathlib import Path\nfrom medenv.agents.grpo import GRPOSettings\nfrom medenv.runs.finetuning import train\n"
        f"train(GRPOSettings(**{settings!r}), Path({str(tmp_path / 'run')!r}))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(20000 + os.getpid() % 20000)]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run([*command, str(script)], env=quiet, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (read_metrics(r / "metrics.jsonl")[1] for r in (grpo_run, tmp_path / "run"))
    for key in ("return", "accuracy", "questions", "skipped_groups", "learned_tokens"):
        assert one[key] == pytest.approx(two[key], rel=1e-6), key
    weights = [load_model(r / "policy").model.state_dict() for r in (grpo_run, tmp_path / "run")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=2e-3)


def test_lora__trains_an_adapter_that_loads(sft_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    train(grpo(sft_run / "policy", lora=4, steps=2), tmp_path / "run")
    assert (tmp_path / "run" / "policy" / "adapter_config.json").is_file() and not (tmp_path / "run" / "policy" / "config.json").exists()
    doctor = make_text_doctor(f"grpo:{tmp_path / 'run'}", Room(ENV, "test").setup)
    assert Room(ENV, "test").hold(Room(ENV, "test").cases(0, range(4)), doctor, range(4))[0].failure is None
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines[-1]["kl"] > 0
    with pytest.raises(RunError, match="holds an adapter of rank 4, and lora is 8: give lora=4"):
        train(grpo(tmp_path / "run", lora=8), tmp_path / "other")
    train(grpo(tmp_path / "run", lora=4, steps=1, learning_rate=1e-9), tmp_path / "on")  # its start is the adapter, not the bare base
    assert abs(read_metrics(tmp_path / "on" / "metrics.jsonl")[-1]["kl"]) < 1e-6 < lines[-1]["kl"]
    train(grpo(tmp_path / "run", steps=1), tmp_path / "whole")  # without lora the merged model is trained
    assert (tmp_path / "whole" / "policy" / "config.json").is_file()


def test_lora__keeps_its_own_tokenizer_and_template(sft_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    bare = Path(shutil.copytree(sft_run / "policy", tmp_path / "bare"))
    template = (bare / "chat_template.jinja").read_text()
    (bare / "chat_template.jinja").unlink()
    (bare / "doctor.json").unlink()
    settings = grpo(bare, lora=2, steps=1, chat_template=template, system="")
    train(settings, tmp_path / "run")
    assert make_text_doctor(f"grpo:{tmp_path / 'run'}", Room(ENV, "test").setup).lm.tokenizer.chat_template == template
    assert Path(json.loads((tmp_path / "run" / "policy" / "adapter_config.json").read_text())["base_model_name_or_path"]).is_absolute()


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("lora", [None, 2])
def test_a_checkpoint_of_another_kind__is_trained_by_the_same_path(lora: int | None, tmp_path: Path) -> None:
    """A Qwen2 with its ChatML template and its embeddings tied, from its directory: SFT, then GRPO, then its evaluation by name."""
    tokenizer = train_tokenizer(["Do you have a fever?", "Diagnosis: influenza"] * 4, 400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template, tokenizer.eos_token = CHATML, "<|im_end|>"
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(**shape, vocab_size=len(tokenizer), tie_word_embeddings=True, max_position_embeddings=6000)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    tokenizer.save_pretrained(tmp_path / "qwen")
    settings = SFTSettings(**SMALL | {"evaluate_episodes": 4}, model=str(tmp_path / "qwen"), lora=lora, demonstrations=32, steps=2)
    train(settings, tmp_path / "sft")
    about = read_about(tmp_path / "sft")
    assert about is not None and "You are the doctor in a simulated consultation" in str(about.system)
    train(grpo(tmp_path / "sft", steps=1, lora=lora, evaluate_episodes=4), tmp_path / "grpo")
    found = evaluate("MedConsultText-v0", f"grpo:{tmp_path / 'grpo'}", 4, 0, None, ENV)
    assert found["failures"] == 0 and found["accuracy"] is not None


def test_trackers__get_every_line(sft_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(grpo(sft_run, steps=1, tensorboard=True, wandb="offline"), tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").iterdir()) and list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_judge__scores_validation_and_nothing_else(grpo_run: Path, sft_run: Path, tmp_path: Path) -> None:
    train(grpo(sft_run, judge="accuracy"), tmp_path / "run")
    judged, own = (read_metrics(run / "metrics.jsonl") for run in (tmp_path / "run", grpo_run))
    assert [r["validation_return"] for r in (judged[0], judged[3])] == [r["validation_accuracy"] for r in (own[0], own[3])]
    assert own[3]["validation_return"] != own[3]["validation_accuracy"]
    assert [r["return"] for r in judged[1:]] == [r["return"] for r in own[1:]]


def test_several_minibatches__clip(sft_run: Path, tmp_path: Path) -> None:
    train(grpo(sft_run, minibatches=2, steps=4, checkpoint_every=2, learning_rate=3e-3, beta=0.02), tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines[2]["clip_fraction"] > 0 and lines[-1]["kl"] > 0 and lines[1]["return"] == lines[2]["return"] != lines[3]["return"]


def test_vllm__a_stand_in_of_its_interface_writes_the_consultations(trainer: ConsultGRPO) -> None:
    """`generate(prompts=ids, images, num_generations)` as TRL's wrapper has it; vLLM itself needs a GPU."""
    asked: list[int] = []
    lines = ["Do you have a fever?", "Diagnosis: influenza"]

    def generate(prompts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        asked.append(len(prompts))
        turns = [trainer.lm.chat.turn(lines[min(len(asked), 2) - 1]) for _ in prompts]
        return turns, [[-1.0] * len(t) for t in turns]

    class Apart:
        name = "apart"

        def write(self, openings: Any, reply: Any, seeds: Any) -> list[Conversation]:
            return converse_apart(generate, trainer.lm.chat, trainer.lm.context, openings, reply, Sampling(20))

    held = trainer.room.hold(trainer.room.cases(3, range(6)), Apart(), range(6))
    assert asked == [6, 6] and all(h.failure is None and not h.paid.asks[-1] for h in held)
    assert all(len(c.ids) == len(c.mask) == len(c.logprobs) and sum(c.logprobs) == -sum(c.mask) for c in (h.conversation for h in held))


# Bad input


@pytest.mark.parametrize(
    "more, says",
    [
        ({"group": 3}, "setting batch is 16, which groups of 3 do not divide: give a multiple of 3, such as 15"),
        ({"group": 1}, "setting group is 1"),
        ({"credit": "accuracy"}, "can't be scored per turn"),
        ({"credit": "nonsense"}, "is not in the mix"),
        ({"temperature": 0.0}, "setting temperature is 0.0: give a number above 0"),
        ({"vllm": "colocate"}, "vLLM is not installed"),
        ({"vllm": "yes"}, "choose off, colocate or server"),
        ({"minibatches": 8, "steps": 8, "checkpoint_every": 8}, "do not divide"),
        ({"minibatches": 2, "steps": 4}, "setting checkpoint_every is 1: give a multiple of minibatches"),
        ({"learning_rate": -1.0}, "setting learning_rate is -1.0"),
        ({"env": {**ENV, "split": "test"}}, "training uses train"),
        ({"env": {**ENV, "reward": "accuracy + brier_score"}}, "gives none"),
        ({"judge": "accuracy + brier_score"}, "gives none"),
        ({"env": {**ENV, "knowledge": "scope:6"}}, "was trained for"),
        ({"model": ""}, "setting model is empty"),
        ({"model": "/no/such/place"}, "there is no such directory"),
        ({"wandb": "maybe"}, "choose off, offline or online"),
        ({"max_new_tokens": 480}, "shorten `system`, or use another model"),
    ],
)
def test_bad_settings__are_one_clear_error_before_training(more: dict[str, Any], says: str, sft_run: Path, tmp_path: Path) -> None:
    if more.get("vllm") == "colocate" and importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed")
    started = time.monotonic()
    with pytest.raises(RunError, match=says.replace("(", r"\(")):
        train(grpo(sft_run, **more), tmp_path / "run")
    assert time.monotonic() - started < 20 and not (tmp_path / "run").exists(), "nothing is left in the way of the next try"


def test_a_model_without_chat_template_or_pad_token__is_a_clear_error(sft_run: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(sft_run / "policy", tmp_path / "bare"))
    (bare / "doctor.json").unlink()
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(RunError, match="no chat template"):
        train(grpo(bare), tmp_path / "run")
    config = json.loads((sft_run / "policy" / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    shutil.copy(sft_run / "policy" / "chat_template.jinja", bare)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="no pad token"):
        train(grpo(bare), tmp_path / "other")


def test_another_run_or_settings__are_not_resumed(grpo_run: Path, sft_run: Path) -> None:
    with pytest.raises(RunError, match="setting group is 4, this one's is 8"):
        train(grpo(sft_run, group=8), grpo_run, resume=True)
    with pytest.raises(RunError, match="kind is 'grpo', this one's is 'sft'"):
        train(SFT, grpo_run, resume=True)
    with pytest.raises(RunError, match="is not empty"):
        train(grpo(sft_run), grpo_run)


@pytest.mark.slow
def test_smoke__runs_the_whole_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "grpo", "--smoke", "--output", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["update"] == 4 and (tmp_path / "run-start" / "policy" / "doctor.json").is_file()
