"""The patient server: consultations over HTTP equal those of the environment; whatever is sent, it answers and lives on."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import pytest

from medenv.errors import RunError, UnknownName
from medenv.runs.serve import LARGEST, PatientServer

ID = "MedConsultText-v0"
ARGUMENTS: dict[str, Any] = {"knowledge": "scope:6", "max_turns": 5, "reward": "accuracy + 0.1*shapley_credit - 0.01*question_cost"}
COMPLETIONS = "/v1/chat/completions"
SAID = ("Do you have a fever? Any cough?", "Have you lost your appetite?", "Diagnosis: cystitis")


@pytest.fixture(scope="module")
def server() -> Iterator[PatientServer]:
    with PatientServer(ID, ARGUMENTS) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def call(server: PatientServer, body: Any, path: str = COMPLETIONS, method: str = "POST", **headers: str) -> tuple[int, Any]:
    """Status and JSON of one request on a connection of its own; `body` as it is if it is bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, body if isinstance(body, bytes) or body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    raw = answer.read()
    connection.close()
    return answer.status, json.loads(raw)


def consultation(server: PatientServer, seed: int, **more: Any) -> list[dict[str, Any]]:
    """The answers to one consultation in which the doctor says SAID, opening first."""
    messages: list[dict[str, str]] = []
    answers = []
    for said in (None, *SAID):
        if said is not None:
            messages.append({"role": "user", "content": said})
        status, found = call(server, {"seed": seed, "messages": messages} | more)
        assert status == 200, found
        messages.append(found["choices"][0]["message"])
        answers.append(found)
    return answers


@pytest.mark.parametrize("seed", [0, 7, 2**63])
def test_consultation__is_the_environments(server: PatientServer, seed: int) -> None:
    env = gym.make(ID, **ARGUMENTS)
    expected = [env.reset(seed=seed)[0]]
    answers = consultation(server, seed, model=ID)
    total = 0.0
    for said, found in zip(SAID, answers[1:], strict=True):
        reply, reward, terminated, _, info = env.step(said)
        expected.append(reply)
        total += float(reward)
        told = found["medenv"]
        assert (told["reward"], told["return"], told["terminated"]) == (reward, pytest.approx(total), terminated)
        assert told["info"]["ledger"] == info["ledger"] and told["info"]["turns_left"] == info["turns_left"]
    assert [a["choices"][0]["message"] for a in answers] == [{"role": "assistant", "content": text} for text in expected]
    assert [("truth" in a["medenv"]["info"], "case_id" in a["medenv"]["info"]) for a in answers] == [(False, False)] * 3 + [(True, True)]
    last = answers[-1]["medenv"]["info"]
    assert last["truth"] == info["truth"] and last["credits"] == info["credits"].tolist() and len(last["belief"]) == 6


def test_case__is_met_again_by_its_id(server: PatientServer) -> None:
    first = consultation(server, 3)
    again = call(server, {"case": first[-1]["medenv"]["info"]["case_id"], "messages": []})[1]
    assert again["choices"] == first[0]["choices"]


def test_a_doctor_who_speaks_first__is_told_the_opening_and_loses_no_turn(server: PatientServer) -> None:
    opening = call(server, {"seed": 1, "messages": []})[1]["choices"][0]["message"]
    greeting = [{"role": "system", "content": "You are a patient."}, {"role": "user", "content": "Hello, what brings you here?"}]
    found = call(server, {"seed": 1, "messages": greeting})[1]
    assert found["choices"][0]["message"] == opening and "turns_left" not in found["medenv"]["info"]
    asked = [*greeting, opening, {"role": "user", "content": [{"type": "text", "text": SAID[1]}]}]
    assert call(server, {"seed": 1, "messages": asked})[1]["medenv"]["info"]["turns_left"] == 4


def test_many_at_once__are_each_their_own(server: PatientServer) -> None:
    alone = [consultation(server, seed) for seed in range(12)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda seed: consultation(server, seed), range(12))) == alone
    assert len({a[0]["choices"][0]["message"]["content"] for a in alone}) > 6
    assert 1 <= len(server.free) <= 6


def test_health_and_models(server: PatientServer) -> None:
    assert call(server, None, "/health", "GET")[1]["ok"] is True
    assert [m["id"] for m in call(server, None, "/v1/models", "GET")[1]["data"]] == [ID]


OPEN = {"role": "user", "content": "Hello"}
BAD: dict[str, tuple[Any, int, str]] = {
    "not JSON": (b"{", 400, "not JSON"),
    "not text": (b"\xff\xfe", 400, "not JSON"),
    "deep": (b"[" * 100_000, 400, "not JSON"),
    "a list": ([], 400, "a request is list"),
    "nobody": ({"messages": []}, 400, "seed (an integer) or case"),
    "two patients": ({"seed": 1, "case": "0" * 16, "messages": []}, 400, "not both"),
    "a seed in words": ({"seed": "one", "messages": []}, 400, "seed is 'one'"),
    "a seed below 0": ({"seed": -1, "messages": []}, 400, "seed is -1"),
    "true": ({"seed": True, "messages": []}, 400, "seed is True"),
    "a case that is none": ({"case": "abc", "messages": []}, 400, "'abc'"),
    "a case of another type": ({"case": ["0" * 16], "messages": []}, 400, "give a case id as text"),
    "no messages": ({"seed": 1}, 400, "messages is NoneType"),
    "a message that is none": ({"seed": 1, "messages": ["hello"]}, 400, "message 0 is 'hello'"),
    "a role": ({"seed": 1, "messages": [{"role": "doctor", "content": "x"}]}, 400, "give a role of"),
    "no content": ({"seed": 1, "messages": [{"role": "user"}]}, 400, "content of message 0"),
    "a picture": ({"seed": 1, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "content of message 0"),
    "a part without text": (
        {"seed": 1, "messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        400,
        "content of message 0",
    ),
    "twice in a row": ({"seed": 1, "messages": [OPEN, OPEN]}, 400, "messages 1 and the one before it are both user's"),
    "words put into a mouth": (
        {"seed": 1, "messages": [OPEN, {"role": "assistant", "content": "I have flu."}]},
        400,
        "message 1 is not what",
    ),
    "a stream": ({"seed": 1, "messages": [], "stream": True}, 400, "never streamed"),
    "two answers": ({"seed": 1, "messages": [], "n": 2}, 400, "one answer"),
    "another model": ({"seed": 1, "messages": [], "model": "gpt"}, 400, "unknown model 'gpt'"),
    "a model that is no name": ({"seed": 1, "messages": [], "model": [1]}, 400, "unknown model"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_request__is_answered_in_words(server: PatientServer, what: str) -> None:
    body, code, words = BAD[what]
    status, found = call(server, body)
    assert status == code and words in found["error"]["message"], found
    assert call(server, {"seed": 1, "messages": []})[0] == 200


def test_after_the_end__nothing_is_heard(server: PatientServer) -> None:
    answers = [a["choices"][0]["message"] for a in consultation(server, 5)]
    doctors = [{"role": "user", "content": said} for said in SAID]
    messages = [answers[0], *(m for pair in zip(doctors, answers[1:], strict=True) for m in pair)]
    status, found = call(server, {"seed": 5, "messages": messages})
    assert status == 400 and "the doctor has to speak" in found["error"]["message"]
    status, found = call(server, {"seed": 5, "messages": [*messages, OPEN]})
    assert status == 400 and "message 7 comes after the end" in found["error"]["message"]


def test_any_text__is_answered(server: PatientServer) -> None:
    opening = call(server, {"seed": 1, "messages": []})[1]["choices"][0]["message"]
    for text in ("", "\ud800 \u0000 \U0001f912", "x" * 50_000):
        raw = json.dumps({"seed": 1, "n": None, "model": None, "messages": [opening, {"role": "user", "content": text}]}).encode()
        assert call(server, raw)[0] == 200


def test_http__in_other_ways(server: PatientServer) -> None:
    assert call(server, None, "/nothing", "GET")[0] == 404
    assert call(server, {}, "/v1/completions")[0] == 404
    assert call(server, None, COMPLETIONS, "DELETE")[0] == 501
    for length in (str(LARGEST + 1), "9" * 5000, "²"):
        assert call(server, b"", **{"Content-Length": length})[0] in (411, 413)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as raw:
        raw.sendall(f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 50\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 100"), "told to go on before the body is there"
        raw.sendall(b"{")  # and goes away
    assert call(server, {"seed": 1, "messages": []})[0] == 200


def test_a_failure_of_the_server__is_told_and_outlived(
    server: PatientServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("medenv.runs.serve.converse", lambda env, body: 1 / 0)
        status, found = call(server, {"seed": 1, "messages": []})
    assert status == 500 and "log says why" in found["error"]["message"] and "ZeroDivisionError" in capfd.readouterr().err
    assert call(server, {"seed": 1, "messages": []})[0] == 200


def test_what_cannot_be_served__is_told_at_once(server: PatientServer) -> None:
    with pytest.raises(UnknownName, match="MedConsultText-v0"):
        PatientServer("MedConsult-v0", {})
    with pytest.raises(RunError, match=f"can't listen at 127.0.0.1 port {server.server_port}"):
        PatientServer(ID, ARGUMENTS, "127.0.0.1", server.server_port)


def test_command__serves_until_it_is_told_to_stop() -> None:
    command = [sys.executable, "-m", "medenv", "serve", "--knowledge", "scope:6", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("MedConsultText-v0 at http://127.0.0.1:") and "not medical advice" in first
        connection = http.client.HTTPConnection("127.0.0.1", int(first.split("/v1")[0].rsplit(":", 1)[1]), timeout=30)
        for _ in range(2):  # on one connection
            connection.request("GET", "/health")
            assert connection.getresponse().read()
        connection.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
