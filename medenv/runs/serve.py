"""Patients over HTTP, spoken to as any chat model is: for trainers, benchmarks and agents that are not written for Gymnasium.

    GET  /health                  200 while the server is up
    GET  /v1/models               the environment that is served, as the one model
    POST /v1/chat/completions     {"seed": 7, "messages": [...]}: the patient's next message, in the form that OpenAI's clients read

The doctor's messages have the role `user`, the patient's `assistant`; `system` is not read. A consultation is in its request as a whole:
`seed` (or `case`, a case id) names the patient, and the messages so far are played again, so the server remembers nothing, may be started
again at any time, and equal requests get equal answers. The patient speaks first: a request without a message of the doctor, or with a
first one that nobody has spoken before, gets the opening statement and takes no turn. Beside `choices` an answer holds `medenv`: what the
environment tells of the last message (reward, terminated, info; the truth at the end only) and the return so far. `model` may be left out;
temperature, max_tokens and the like do not apply to patients and are not read; one answer (`n`), never streamed.

Who may see the answers may see the truth at the end and ask the same seed again, so the harness speaks to the server, not the doctor. A
`case` is met whatever its split.

What can't be understood is answered with 400 and {"error": {"message": ...}}. There is no authentication: patients are simulated, and
by default only this machine is listened to.

Does not cover: what a patient says (`medenv.envs.text`), encryption, more processes than one (start several, they share nothing).
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import socketserver
import threading
import traceback
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

import medenv
from medenv.envs.registration import TEXT_IDS
from medenv.envs.text import ConsultTextEnv
from medenv.errors import CaseError, MedenvError, RunError, unknown
from medenv.notice import NOTICE

LARGEST = 8 << 20  # bytes of a request: a consultation of some hundred long messages
TIMEOUT = 60.0  # seconds that a connection may be silent
ROLES = ("system", "developer", "user", "assistant")


def serve(env_id: str, arguments: Mapping[str, Any], host: str, port: int, tell: Callable[[str], None]) -> None:
    """Serve until SIGTERM or an interrupt. `port` 0: any that is free. RunError for an address that can't be had."""
    with PatientServer(env_id, arguments, host, port) as server:
        where = f"[{host}]" if ":" in host else host
        tell(f"{env_id} at http://{where}:{server.server_port}/v1. {NOTICE}")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


class PatientServer(ThreadingHTTPServer):
    """The server, listening from the start. A request takes an environment out of `free`, or makes one, and puts it back."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, env_id: str, arguments: Mapping[str, Any], host: str = "127.0.0.1", port: int = 0) -> None:
        if env_id not in TEXT_IDS:
            raise unknown("environment in words", env_id, TEXT_IDS)
        self.env_id, self.arguments = env_id, dict(arguments)
        self.free = [ConsultTextEnv(**self.arguments)]
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise RunError(f"can't listen at {host} port {port} ({error}): choose another --host or --port, 0 for any free one") from error

    def server_bind(self) -> None:
        """As TCPServer's: without asking a name server for our own name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def answer(self, body: Any) -> dict[str, Any]:
        """What a request's JSON is answered with."""
        if isinstance(body, dict) and body.get("model") not in (None, self.env_id):
            raise unknown("model", str(body["model"]), [self.env_id])
        try:
            env = self.free.pop()
        except IndexError:
            env = ConsultTextEnv(**self.arguments)
        try:
            text, told = converse(env, body)
        finally:
            self.free.append(env)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        about = {"id": "medenv", "object": "chat.completion", "created": 0, "model": self.env_id}
        return {**about, "choices": [choice], "medenv": told}


def converse(env: ConsultTextEnv, body: Any) -> tuple[str, dict[str, Any]]:
    """The patient's next message, and what the environment tells of the doctor's last one: see the module. MedenvError: a bad request."""
    seed, case, messages = _checked(body)
    said, info = env.reset(seed=seed, options=None if case is None else {"case": case})
    told: dict[str, Any] = {"reward": 0.0, "return": 0.0, "terminated": False, "truncated": False, "info": info}
    last, spoken = "", False  # the role that spoke last; whether the opening statement was made
    for place, (role, content) in enumerate(messages):
        if role in ("system", "developer"):
            continue
        if role == last:
            raise CaseError(f"messages {place} and the one before it are both {role}'s: send doctor and patient in turn, all they said")
        last = role
        if role == "assistant":
            if content.split() != said.split():
                raise CaseError(
                    f"message {place} is not what this patient said ({said[:60]!r} …): send back the patient's messages as they came, "
                    "with the same seed or case"
                )
            spoken = True
        elif spoken:
            if told["terminated"]:
                raise CaseError(f"message {place} comes after the end of the consultation: give another seed or case")
            said, reward, terminated, truncated, info = env.step(content)
            told |= {"reward": reward, "return": told["return"] + reward, "terminated": terminated, "truncated": truncated, "info": info}
    if last == "assistant":
        raise CaseError("the last message is the patient's: the doctor has to speak")
    return said, told


def _checked(body: Any) -> tuple[int, str | None, list[tuple[str, str]]]:
    if not isinstance(body, dict):
        raise CaseError(f"a request is {type(body).__name__}: give a JSON object with messages, and seed or case")
    seed, case = body.get("seed"), body.get("case")
    if (seed is None) == (case is None):
        raise CaseError("a request needs seed (an integer) or case (a case id), not both: it names the patient")
    if seed is not None and (type(seed) is not int or seed < 0):
        raise CaseError(f"seed is {seed!r}: give an integer of at least 0")
    if case is not None and not isinstance(case, str):
        raise CaseError(f"case is {case!r:.80}: give a case id as text")
    if body.get("stream") or body.get("n") not in (None, 1):
        raise CaseError("one answer, never streamed: leave out stream and n")
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise CaseError(f"messages is {type(messages).__name__}: give a list of {{role, content}}, empty for the opening statement")
    return seed or 0, case, [_message(place, m) for place, m in enumerate(messages)]


def _message(place: int, message: Any) -> tuple[str, str]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise CaseError(f"message {place} is {message!r:.80}: give a role of {', '.join(ROLES)}, and content")
    content = message.get("content")
    if isinstance(content, list):  # OpenAI's parts
        texts = [p["text"] for p in content if isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str)]
        content = "".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str):
        raise CaseError(f"the content of message {place} is no text: patients read nothing else")
    return message["role"], content


class Handler(BaseHTTPRequestHandler):
    """HTTP around `PatientServer.answer`."""

    server: PatientServer
    protocol_version = "HTTP/1.1"
    server_version = f"medenv/{medenv.__version__}"
    timeout = TIMEOUT
    wbufsize = -1  # head and body in one packet: two would wait for each other, 40 ms a request
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Health and models."""
        self.close_connection |= "Content-Length" in self.headers  # a body that nobody reads
        if self.path == "/health":
            self._send(200, _json({"ok": True, "medenv": medenv.__version__}))
        elif self.path == "/v1/models":
            model = {"id": self.server.env_id, "object": "model", "created": 0, "owned_by": "medenv"}
            self._send(200, _json({"object": "list", "data": [model]}))
        else:
            self._wrong(404, f"no {self.path} here: POST /v1/chat/completions, GET /v1/models, GET /health")

    def do_POST(self) -> None:
        """A patient's next message."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or len(length) > len(str(LARGEST)) or int(length) > LARGEST:
            self.close_connection = True  # what it has to say was not read
            self._wrong(413 if length.isdecimal() else 411, f"a request needs a Content-Length of at most {LARGEST} bytes")
            return
        raw = self.rfile.read(int(length))
        if self.path != "/v1/chat/completions":
            self._wrong(404, f"no {self.path} here: POST /v1/chat/completions")
            return
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            self._wrong(400, f"the request is not JSON ({error})")
            return
        try:
            found = _json(self.server.answer(body))
        except MedenvError as error:
            self._wrong(400, str(error))
        except Exception:
            traceback.print_exc()
            self._wrong(500, "the server failed: its log says why")
        else:
            self._send(200, found)

    def handle_expect_100(self) -> bool:
        """At once: in the buffer, the leave to go on would wait for the body that waits for it."""
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, in the same form."""
        self.close_connection = True
        self._wrong(code, message or self.responses[code][0])

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: a line for each turn of each consultation helps nobody."""

    def _wrong(self, code: int, message: str) -> None:
        kind = "invalid_request_error" if code < 500 else "server_error"
        self._send(code, _json({"error": {"message": message, "type": kind, "code": code}}))

    def _send(self, code: int, raw: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(raw)


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, default=_plain).encode("utf-8", "backslashreplace")


def _plain(value: Any) -> Any:
    """Arrays and their numbers as JSON's; not a number: null."""
    if isinstance(value, np.ndarray):
        return [None if x != x else x for x in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON's")
