"""Trajectories on disk: whole lines, torn lines, full disks, and scoring them again."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from medenv.errors import RewardError, RunError
from medenv.runs.evaluate import evaluate, score_row, summarise
from medenv.runs.records import SCHEMA, TRAJECTORIES, Writer, read_trajectories, write_atomically
from medenv.runs.replay import replay

SMALL = {"knowledge": "synthetic:12x30", "max_turns": 8}
MIX = "accuracy + 0.137*information_gain(value=log_probability) - 0.013*question_cost - 0.1*invalid_action"


def line(number: int) -> dict[str, Any]:
    return {"schema": SCHEMA, "episode": number, "text": "é" * 10}


def no_report(message: str) -> None:
    raise AssertionError(message)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "greedy"
    evaluate("MedConsult-v0", "greedy", 60, 3, folder, SMALL | {"reward": MIX}, batch=16)
    return folder


def test_writer__round_trip(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "er" / TRAJECTORIES
    with Writer(file) as writer:
        writer.write([line(0), line(1)])
    with Writer(file) as writer:
        writer.write([line(2)])
    assert list(read_trajectories(file, no_report)) == list(read_trajectories(file.parent, no_report)) == [line(0), line(1), line(2)]


@pytest.mark.parametrize("tail", [b'{"schema": 1, "epis', b'{"schema": 1, "episode": 9}', b"\x00\x00\x00\n", b'{"schema":1,"x":"\xc3'])
def test_reader__drops_a_torn_last_line_and_says_so(tmp_path: Path, tail: bytes) -> None:
    file = tmp_path / TRAJECTORIES
    with Writer(file) as writer:
        writer.write([line(0), line(1)])
    file.write_bytes(file.read_bytes() + tail)
    said: list[str] = []
    assert list(read_trajectories(file, said.append)) == [line(0), line(1)]
    assert len(said) == 1 and "torn" in said[0] and f"{len(tail)} bytes" in said[0]
    with pytest.warns(UserWarning, match="torn"):
        list(read_trajectories(file))
    with Writer(file) as writer:  # appending after it starts on a line of its own
        writer.write([line(2)])
    assert list(read_trajectories(file, no_report)) == [line(0), line(1), line(2)]


def test_reader__refuses_damage_elsewhere_and_other_schemas(tmp_path: Path) -> None:
    file = tmp_path / TRAJECTORIES
    file.write_text(json.dumps(line(0)) + "\nnot json\n" + json.dumps(line(1)) + "\n")
    with pytest.raises(RunError, match="line 2: not JSON"):
        list(read_trajectories(file))
    file.write_text(json.dumps(line(0) | {"schema": 99}) + "\n")
    with pytest.raises(RunError, match="schema 99"):
        list(read_trajectories(file))
    with pytest.raises(RunError, match="no such file"):
        list(read_trajectories(tmp_path / "nowhere.jsonl"))
    file.write_text("")
    assert list(read_trajectories(file, no_report)) == []


class FullDisk:
    """A file that takes half of the next write, then refuses, as a full disk does."""

    def __init__(self, file: Any) -> None:
        self.file, self.half = file, True

    def write(self, body: Any) -> int:
        if self.half:
            self.half = False
            return int(self.file.write(bytes(body)[: len(body) // 2]))
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_writer__a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / TRAJECTORIES
    writer = Writer(file)
    writer.write([line(0), line(1)])
    writer._file = FullDisk(writer._file)  # type: ignore[assignment]
    with pytest.raises(RunError, match=r"No space left on device; 2 consultations .* are kept"):
        writer.write([line(2), line(3)])
    writer.close()
    assert list(read_trajectories(file, no_report)) == [line(0), line(1)]


def test_writer__one_run_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with Writer(tmp_path / TRAJECTORIES), pytest.raises(RunError, match="another run"):
        Writer(tmp_path / TRAJECTORIES)


def test_write_atomically__leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.json"
    write_atomically(file, "old")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(RunError, match="No space left on device; check the folder"):
        write_atomically(file, "new")
    with pytest.raises(RunError, match="No space left on device; go away"):
        write_atomically(file, b"new", "go away")
    assert file.read_text() == "old" and [f.name for f in tmp_path.iterdir()] == ["summary.json"]


def test_record__holds_everything(run: Path) -> None:
    records = list(read_trajectories(run, no_report))
    assert [r["episode"] for r in records] == list(range(60)) and len({r["case_id"] for r in records}) == 60
    for r in records:
        assert r["schema"] == SCHEMA and r["arguments"]["reward"] == MIX and r["arguments"]["noise"] == 0.02 and r["failure"] is None
        assert r["turns"][-1]["kind"] in ("diagnose", "refer") and {t["kind"] for t in r["turns"][:-1]} <= {"ask", "order"}
        assert sum(t["reward"] for t in r["turns"]) == r["end"]["return"]
        for before, after in zip(r["turns"], r["turns"][1:], strict=False):
            assert before["entropy"][1] == after["entropy"][0]
        for t in r["turns"]:
            assert sum(t["components"].values()) == pytest.approx(t["reward"])
            assert len(t["belief"]) == 3 and t["belief"][0][1] >= t["belief"][1][1] >= t["belief"][2][1]
            assert bool(t["ledger"]["values"]) == (t["kind"] in ("ask", "order")) == bool(t["reply"])
        given = list(r["end"]["differential"].values())
        assert given == sorted(given, reverse=True) and sum(given) == pytest.approx(1, abs=1e-5)
        assert next(iter(r["end"]["differential"])) == r["end"]["diagnosis"]


def test_summary__is_computed_from_the_records_alone(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    again = summarise([score_row(r) for r in read_trajectories(run)], summary["seed"])
    assert {k: summary[k] for k in again} == again


def test_replay__original_mix_gives_equal_bits(run: Path, tmp_path: Path) -> None:
    result = replay(run, MIX, tmp_path / "again", batch=7)
    assert result["changed"] == 0 and result["mean_return"] == result["recorded_mean_return"]
    old, new = list(read_trajectories(run)), list(read_trajectories(tmp_path / "again"))
    assert [r["turns"] for r in old] == [r["turns"] for r in new] and [r["end"] for r in old] == [r["end"] for r in new]


def test_replay__another_mix_equals_a_run_under_it(run: Path, tmp_path: Path) -> None:
    other = "accuracy - 0.05*question_cost"
    result = replay(run, other, tmp_path / "other")
    fresh = evaluate("MedConsult-v0", "greedy", 60, 3, env_arguments=SMALL | {"reward": other})  # greedy does not look at rewards
    assert result["mean_return"] == fresh["mean_return"] and result["mean_return_ci"] == pytest.approx(fresh["mean_return_ci"])
    assert result["changed"] > 0 and sum(result["components"].values()) == pytest.approx(result["mean_return"])
    back = replay(tmp_path / "other", MIX)
    assert back["mean_return"] == result["recorded_mean_return"]


def test_replay__refuses_another_base_or_another_patient(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="fingerprint"):
        replay(run, MIX, env_arguments={"knowledge": "synthetic:12x30@7"})
    with pytest.raises(RunError, match="turn 1: the"):
        replay(run, MIX, env_arguments={"persona": "brief"})
    records = list(read_trajectories(run))
    records[4]["turns"][0]["reply"] = "Maybe."
    with Writer(tmp_path / "forged.jsonl") as writer:
        writer.write(records)
    with pytest.raises(RunError, match=r"turn 1: the reply is .* here, 'Maybe\.' on record"):
        replay(tmp_path / "forged.jsonl", MIX)
    records[4]["turns"] = records[4]["turns"][1:]
    with Writer(tmp_path / "cut.jsonl") as writer:
        writer.write(records)
    with pytest.raises(RunError):
        replay(tmp_path / "cut.jsonl", MIX)


def test_replay__refuses_bad_input(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError):
        replay(run, "acuracy")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(RunError, match="no trajectory"):
        replay(tmp_path / "empty.jsonl", MIX)
    with pytest.raises(RunError, match="there already"):
        replay(run, MIX, run)


def test_replay__the_oracle_takes_no_turns(tmp_path: Path) -> None:
    evaluate("MedConsult-v0", "oracle", 5, 0, tmp_path / "oracle", SMALL)
    with pytest.raises(RunError, match="takes no turns"):
        replay(tmp_path / "oracle", MIX)
