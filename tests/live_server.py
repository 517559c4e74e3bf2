"""A live server in a thread of the test, on a free port of loopback."""

import contextlib
import http.client
import json
import shutil
import socket
import threading
import time

import uvicorn

import sparse_circuits as sc
from sparse_circuits.viewer.data import view_model
from sparse_circuits.viewer.live import Session
from sparse_circuits.viewer.server import HOST, make_app

TOKEN = "the-token-of-the-test"


class Live:
    """Where it listens, and how it is asked."""

    def __init__(self, port, session):
        self.port, self.session = port, session
        self.url = f"http://{HOST}:{port}/?token={TOKEN}"

    def ask(self, method, path, body=None, **headers):
        """Send a request; return its status and what was answered."""
        sent = {"Host": f"{HOST}:{self.port}", "X-Token": TOKEN} | {k.replace("_", "-"): v for k, v in headers.items()}
        connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, {name: value for name, value in sent.items() if value is not None})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, json.loads(text) if text.startswith("{") else text


@contextlib.contextmanager
def live_server(folder):
    """Serve a copy of the shipped circuit, so that notes can be written; no prompts, no corpus."""
    run = folder / "run"
    shutil.copytree(sc.example(), run)
    circuit_folder = run / "circuits/single_double_quote"
    circuit = sc.Circuit.load(circuit_folder)
    session = Session(circuit, circuit_folder)
    view = view_model(circuit, folder=circuit_folder, n_token=0)
    listening = socket.socket()
    listening.bind((HOST, 0))
    port = listening.getsockname()[1]
    config = uvicorn.Config(make_app(session, view, token=TOKEN, port=port), log_level="critical", access_log=False)
    holder = uvicorn.Server(config)
    thread = threading.Thread(target=holder.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not holder.started:
        time.sleep(0.01)
    try:
        yield Live(port, session)
    finally:
        holder.should_exit = True
        thread.join(10)
        listening.close()
