"""What the tests share: requests without a socket, clocks that a test sets, servers that follow a script, processes."""

import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import imds

FILE = os.path.abspath(imds.__file__)
ROOT = os.path.dirname(FILE)
CLOSED = "http://127.0.0.1:9"  # nobody listens there
JSON, TEXT, HTML, XML = ("application/json; charset=utf-8", "text/plain; charset=utf-8", "text/html",
                         "text/xml; charset=utf-8")
OK = {"metadata": "true"}
V = "?api-version=2021-02-01"
VAULT = "&resource=https%3A%2F%2Fvault.azure.net"
TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
NOW = 1770462286  # Sat, 07 Feb 2026 11:04:46 GMT, when the header block of test_service was recorded
DOCUMENT = json.dumps(imds.make_vm("linux")).encode()


# --- a service without a socket

class Steps:
    """A clock that stands still until a test steps it on; what Clock can, for a Bench."""

    def __init__(self, now=NOW):
        self.now = now

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds

    def freeze(self):
        pass

    def resume(self, scale=None):
        pass


def service(instance=None, *, clock=None, **settings):
    """A Service at NOW, or of a clock."""
    return imds.Service(clock or Steps(), instance, **settings)


def bench(instance=None, *, clock=None, **settings):
    """A Bench at NOW, or of a clock."""
    return imds.Bench(clock or Steps(), instance, **settings)


def ask(target, headers=OK, verb="GET", body=b"", of=None):
    """The Response of a Service, or of a Bench, to one request."""
    of = of or service()
    answer = of.respond(imds.Request(verb, target, dict(headers), body))
    return answer.response if isinstance(of, imds.Bench) else answer


def page(target, of=None, **settings):
    """The body of a good answer, as text."""
    response = ask(target, of=of or service(**settings))
    if response.status != 200:
        raise AssertionError("%s is answered %d %s" % (target, response.status, response.body[:200]))
    return response.body.decode()


def document(target, of=None, **settings):
    """The body of a good answer, as JSON parsed."""
    return json.loads(page(target, of, **settings))


# --- documents

def names(node, path=""):
    """Every leaf's path, list indexes as []."""
    return [name for name, _ in leaves(node, path)]


def leaves(node, path=""):
    """Every leaf's path, list indexes as [], and its value."""
    if isinstance(node, dict):
        for name in node:
            yield from leaves(node[name], path + "." + name if path else name)
    elif isinstance(node, list):
        for item in node:
            yield from leaves(item, path + "[]")
    else:
        yield path, node


def claims(token):
    """The header and the claims of a JWT."""
    return [json.loads(base64.urlsafe_b64decode(part + "==").decode()) for part in token.split(".")[:2]]


def files(folder, **documents):
    """Write documents as files of JSON; return their names."""
    paths = []
    for name, content in documents.items():
        paths.append(os.path.join(folder, name + ".json"))
        with open(paths[-1], "w") as file:
            json.dump(content, file)
    return paths


# --- servers that misbehave, and the patience of a client

def reply(status=200, body=DOCUMENT, content_type=JSON, headers=()):
    """An answer as bytes; ``headers``: more lines."""
    lines = ["HTTP/1.1 %d X" % status, "Content-Type: " + content_type, "Content-Length: %d" % len(body)]
    return "\r\n".join(lines + list(headers) + ["", ""]).encode() + body


class Script:
    """A server that gives each connection in turn the next of its answers, the last one for ever.

    An answer is bytes; None resets the connection; a list of bytes is sent a piece every ``pace`` seconds; a function
    of the request returns one of these.
    ``requests``: what was asked, as text.
    """

    def __init__(self, *answers, pace=0.2):
        self.answers, self.requests, self.pace, self.stopping = list(answers), [], pace, threading.Event()
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(50)
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        with contextlib.suppress(OSError):
            socket.create_connection(self.listener.getsockname()).close()
        self.thread.join()
        self.listener.close()

    def run(self):
        while not self.stopping.is_set():
            client, _ = self.listener.accept()
            with client, contextlib.suppress(OSError):
                client.settimeout(5)
                self.answer(client)

    def answer(self, client):
        request = b""
        while b"\r\n\r\n" not in request:
            chunk = client.recv(65536)
            if not chunk:
                break
            request += chunk
        if not request:
            return
        length = re.search(rb"(?i)content-length: (\d+)", request)
        while length and len(request.partition(b"\r\n\r\n")[2]) < int(length.group(1)):
            request += client.recv(65536)
        self.requests.append(request.decode())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        answer = answer(self.requests[-1]) if callable(answer) else answer
        for piece in answer if isinstance(answer, list) else [answer or b""]:
            client.sendall(piece)
            if isinstance(answer, list) and self.stopping.wait(self.pace):
                break


class Patient:
    """The time of a client: a timer and a clock that only its sleep moves, and the pauses that it made."""

    def __init__(self, since_1970=1.7e9):
        self.now, self.since_1970, self.pauses = 0.0, since_1970, []

    def timer(self):
        return self.now

    def clock(self):
        return self.since_1970 + self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        if len(self.pauses) > 1000:
            raise AssertionError("it waits on and on: %r" % self.pauses[-3:])
        self.now += seconds

    def client(self, url, **settings):
        return imds.Client(url, **dict({"clock": self.clock, "timer": self.timer, "sleep": self.sleep}, **settings))


# --- processes

def run(*arguments, python=None, env=None):
    """Run the command line; (exit code, standard output, standard error). ``env`` is added to the environment; a
    ``python`` gets the file as its argument, else it is run as a module, whose bytecode is at hand."""
    command = list(python) + [FILE] if python else [sys.executable, "-W", "error", "-m", "imds"]
    done = subprocess.run(command + list(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
                          env=dict(os.environ, **(env or {})), cwd=ROOT)
    return done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")


class Serve:
    """A serve process: url, and finish() for the exit code, the rest of standard output, and standard error."""

    def __init__(self, *arguments, **settings):
        environment = dict(os.environ, **settings.pop("env", {}))
        self.process = subprocess.Popen([sys.executable, "-W", "error", FILE, "serve", "--port", "0"] + list(arguments),
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **settings)
        self.url = self.process.stdout.readline().decode().strip()

    def __enter__(self):
        return self

    def finish(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        rest, errors = self.process.communicate(timeout=10)
        return self.process.returncode, rest.decode(), errors.decode()

    def __exit__(self, *_):
        if self.process.returncode is None:
            self.process.kill()
            self.process.communicate()


def most_files():
    """How many files, sockets among them, this process may have open."""
    try:
        import resource

        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except ImportError:  # Windows
        return 512


def is_root():
    return hasattr(os, "getuid") and os.getuid() == 0


def own_network():
    """The words before a command that is to have a network namespace of its own, or None where that is not allowed."""
    words = ["unshare", "-n" if is_root() else "-rn"]
    try:
        done = subprocess.run(words + ["true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else words


# --- the README, and what is run of it

def readme():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return file.read()


def named_files():
    """The blocks of the README that are files: {name: content}."""
    return dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", readme(), re.M | re.S))


def lay_out(folder):
    """Put into a folder what a session or an example needs: imds.py, the files of the README, this Python as python3."""
    with open(FILE, encoding="utf-8") as file:
        source = file.read()
    pause = "last + 0.25"  # of verify, between two requests: nobody is to be spared here
    if pause not in source:
        raise AssertionError("verify waits in other words: %r is not in imds.py" % pause)
    files = dict(named_files(), **{"imds.py": source.replace(pause, "last"),
                                   "python3": '#!/bin/sh\nexec "%s" "$@"\n' % sys.executable})
    for name, content in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(content)
    os.chmod(os.path.join(folder, "python3"), 0o755)


# --- HTTP without a socket

TARGET = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
REQUEST = ("GET %s HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n\r\n" % TARGET).encode()
POST = b"POST /metadata/instance?api-version=2021-02-01 HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n"


def conversation(of=None, **settings):
    """A Conversation with a Bench: ``of``, or a new one with these settings."""
    return imds.Conversation(of or bench(**settings))


def answers(talk, data=b""):
    """The bytes that go back for what a client sent, when all that is pipelined in it was answered."""
    sent = b"".join(part for _, part in talk.receive(data))
    while talk.pending:
        sent += b"".join(part for _, part in talk.receive())
    return sent


def status(sent):
    """The status of the first answer in some bytes, or None."""
    return int(sent.split(b" ", 2)[1]) if sent else None


class Jump:
    """Time that a test lets go on at once: while it lasts, jump(seconds) moves time.monotonic of this process."""

    def __init__(self):
        self.ahead, self.monotonic = 0.0, time.monotonic

    def __enter__(self):
        self.patch = mock.patch("time.monotonic", lambda: self.monotonic() + self.ahead)
        self.patch.start()
        return self

    def __exit__(self, *_):
        self.patch.stop()

    def __call__(self, seconds):
        self.ahead += seconds


# --- the command line, in this process

@contextlib.contextmanager
def signals_kept():
    """Put back what signals do, which the command line changes."""
    numbers = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]
    in_main = threading.current_thread() is threading.main_thread()
    handlers = [(number, signal.getsignal(number)) for number in numbers if in_main]
    try:
        yield
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


def call(*arguments):
    """Run the command line in this process; (exit code, standard output, standard error), without what children print."""
    out, errors = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with signals_kept(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = imds.main(list(arguments))
        except SystemExit as end:
            code = end.code
    out.flush()
    return code, out.buffer.getvalue().decode("utf-8"), errors.getvalue()


def reserved_port(case):
    """A port at which nobody listens, and which nobody else gets while the test lasts; an Emulator may have it."""
    holder = socket.socket()
    if os.name == "posix":  # elsewhere it could not be had by an Emulator either
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port = holder.getsockname()[1]
    if os.name == "posix":
        case.addCleanup(holder.close)
    else:
        holder.close()
    return port
