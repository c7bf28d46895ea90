"""Measure imds.py beside http.server, urllib and a bare loop, in one run, because absolute numbers say little.

    python3 tests/bench.py              the whole table, in less than two minutes
    python3 tests/bench.py --quick      fewer and shorter rounds, less exact
    python3 tests/bench.py --check      end with exit code 1 when a goal is missed

What is compared takes turns, and of all turns the median counts: machines are noisy. Requests come from
wrk where it is installed, else from processes of our own; both only ever talk to this machine.

"loop" answers every read with the same constant bytes, from one thread: as fast as Python can be.
"http.server" is a handler of the standard library made as fast as it goes.
"""

import argparse
import collections
import contextlib
import functools
import http.client
import http.server
import itertools
import json
import math
import multiprocessing
import os
import py_compile
import random
import re
import select
import selectors
import shutil
import signal
import socket
import socketserver
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.abspath(__file__)
CORES = os.cpu_count() or 1
GENERATORS = min(2, CORES)  # processes of ours, or threads of wrk
CONNECTIONS, IDLE_CONNECTIONS, HUNG_CONNECTIONS = 8, 500, 500
EVENTS, IDENTITIES, SCALE_SET = 10000, 1000, 200
BATCH = 64  # requests in one packet, where they are to cost little
TIMEOUT = 10  # seconds that a socket, a server or a generator is waited for, so that nothing here hangs
GIVE_UP = 3  # seconds after which it is known that what should take one does not
LAYOUT = "%-52s %11s %11s %9s  %-20s  %s"

TARGET = "/metadata/instance?api-version=2025-04-07"
LEAF = "/metadata/instance/compute/name?api-version=2025-04-07&format=text"
TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
ATTESTED = "/metadata/attested/document?api-version=2025-04-07"
SCHEDULED = "/metadata/scheduledevents?api-version=2020-07-01"

# What is asked for as often as the whole document: what, target, status, at least so much of its rate.
ENDPOINTS = (
    ("a text leaf", LEAF, 200, 0.8),
    ("a token", TOKEN, 200, 0.8),
    ("the attested document", ATTESTED, 200, 0.8),
    ("a 404", "/metadata/instance/nope?api-version=2025-04-07", 404, 0.8),
    ("a 400", "/metadata/instance", 400, 0.8),
    ("50 events", SCHEDULED, 200, 0.5),
)

# What is answered in process, each time to a target never seen before, so that no memo can help:
# what, target, status, requests in a block, at most so many microseconds.
UNCACHED = (
    ("a refusal", "/metadata/instance/nope%d?api-version=2025-04-07", 404, 200, 25),
    ("a token", TOKEN + "&n=%d", 200, 200, 25),
    ("the attested document", ATTESTED + "&nonce=%d", 200, 5, 6000),
)

# Whole processes of the client, beside one that only imports what they need: what, arguments.
COMMANDS = (
    ("get compute/vmId", ("get", "compute/vmId")),
    ("token", ("token", "https://vault.azure.net")),
)
IMPORTS = "import urllib.request, json, argparse"

Measured = collections.namedtuple("Measured", "rate p99")  # requests a second; milliseconds
NUMBERS = itertools.count()  # what makes a target one that was never asked for before


# --- HTTP over plain sockets ---------------------------------------------------------------------

def request_for(target=TARGET, close=False):
    """A request as it is sent."""
    lines = ["GET %s HTTP/1.1" % target, "Host: 127.0.0.1", "Metadata: true"] + ["Connection: close"] * close
    return "\r\n".join(lines + ["", ""]).encode()


def send(port, request):
    """Connect to a server on this machine and send a request; return the socket."""
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        client.settimeout(TIMEOUT)
        client.connect(("127.0.0.1", port))
        client.sendall(request)
    except OSError:
        client.close()
        raise
    return client


def receive(client):
    data = client.recv(65536)
    if not data:
        raise ConnectionResetError("the connection ended before the answer did")
    return data


def read_answer(client, status=200):
    """Read one answer, of the length that its head tells; return its size."""
    data = receive(client)
    while b"\r\n\r\n" not in data:
        data += receive(client)
    head = data[:data.index(b"\r\n\r\n") + 4]
    length = re.search(br"(?i)\r\ncontent-length: *(\d+)", head)
    if head.split(b" ", 2)[1] != b"%d" % status or not length:
        raise RuntimeError("the answer was %r" % data[:80])
    while len(data) < len(head) + int(length.group(1)):
        data += receive(client)
    return len(data)


def ask(port, target=TARGET, close=True):
    """One request over a connection of its own; return the size of its answer."""
    with contextlib.closing(send(port, request_for(target, close))) as client:
        return read_answer(client)


# --- the servers ---------------------------------------------------------------------------------

class Constant(http.server.BaseHTTPRequestHandler):
    """A baseline: http.server as fast as it goes, with the headers of the service and a constant body."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "IMDS/150.870.65.1854", ""
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet; the handler flushes after each request
    body = b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("x-ms-request-id", "00000000-0000-4000-8000-000000000000")
        self.send_header("Content-Length", str(len(self.body)))
        if self.close_connection:  # as the service does; wrk would wait for more without it
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


class ThreadingServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """http.server.ThreadingHTTPServer, which Python 3.6 lacks."""

    daemon_threads = True
    request_queue_size = 512


def run_handler(port, size):
    """The baseline "http.server", with answers of so many bytes, of which the head takes 211."""
    Constant.body = b"x" * (size - 211)
    ThreadingServer(("127.0.0.1", port), Constant).serve_forever()


def run_loop(port, size):
    """The baseline "loop": whatever is read, an answer of so many bytes follows."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n"
    length = size - len(head % size)
    answer = (head % length).encode() + b"x" * length
    clients = {}
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen(512)
        watch, unwatch, ready = watcher()
        watch(listener.fileno())
        while True:
            for number in ready():
                client = clients.get(number)
                if not client:
                    client = listener.accept()[0]
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    clients[client.fileno()] = client
                    watch(client.fileno())
                    continue
                try:
                    if client.recv(65536):
                        client.send(answer)
                        continue
                except OSError:  # it is gone
                    pass
                unwatch(number)
                clients.pop(number).close()


def watcher():
    """Functions that watch a file descriptor, watch it no longer, and return those that can be read: by epoll
    where there is one."""
    if hasattr(select, "epoll"):
        poll = select.epoll()
        return (lambda number: poll.register(number, select.EPOLLIN)), poll.unregister, (
            lambda: [number for number, _ in poll.poll()])
    selector = selectors.DefaultSelector()
    return (lambda number: selector.register(number, selectors.EVENT_READ)), selector.unregister, (
        lambda: [key.fd for key, _ in selector.select()])


def serve_forgetful(port, size):
    """The emulator, but that it keeps no journal."""
    sys.path.insert(0, os.getcwd())
    import imds

    def repeat(self, exchange, peer):
        self.service.count += 1
        return self.service.request_id(self.service.count)

    imds.Bench.repeat, imds.Bench._note = repeat, lambda self, exchange: None
    imds.main(["serve", "--port", str(port), "--quiet"])


BASELINES = {"forgetful": serve_forgetful, "handler": run_handler, "loop": run_loop}


def free_port():
    """A free port below those that the system gives to outgoing connections: while a server starts,
    one of ours could otherwise take its port, or even reach itself."""
    for port in random.sample(range(20000, 30000), 100):
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as trial:
            with contextlib.suppress(OSError):
                trial.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no port is free")


class Lab:
    """A directory with a copy of imds.py and its bytecode, as after a first run, and the means to run in it.

    rounds    how many turns count
    load      a function that asks a server as fast as it answers: see ``generator``
    """

    def __init__(self, directory, rounds, load):
        self.directory, self.rounds, self.load = directory, rounds, load
        shutil.copy(os.path.join(os.path.dirname(os.path.dirname(HERE)), "imds.py"), directory)
        py_compile.compile(os.path.join(directory, "imds.py"), doraise=True)
        sys.path.insert(0, directory)  # for what is measured in this process
        self.environment = {name: os.environ[name] for name in os.environ if name != "PYTHONDONTWRITEBYTECODE"}

    @contextlib.contextmanager
    def process(self, arguments, log=subprocess.DEVNULL):
        """Run Python for the block and kill it after the block."""
        process = subprocess.Popen([sys.executable] + list(arguments), cwd=self.directory, env=self.environment,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run_time(self, *arguments):
        """How long Python runs, in milliseconds."""
        begun = time.perf_counter()
        with self.process(arguments) as process:
            if process.wait():  # without a timeout: with one it looks only at 31, 63, 113 ms whether it is over
                raise RuntimeError("exit code %d from %s" % (process.returncode, " ".join(arguments)))
            return 1000 * (time.perf_counter() - begun)

    @contextlib.contextmanager
    def server(self, port, target, arguments, log=subprocess.DEVNULL):
        """As ``process``, for a server: the block begins as soon as it has answered."""
        deadline = time.perf_counter() + TIMEOUT
        with self.process(arguments, log) as process:
            while True:
                try:
                    ask(port, target)
                    break
                except OSError as error:  # it does not listen yet
                    if time.perf_counter() > deadline or process.poll() is not None:
                        raise RuntimeError("no answer from %.100s: %s" % (" ".join(arguments), error)) from None
                    time.sleep(0.001)
            yield process

    def emulator(self, port, *options):
        return self.server(port, TARGET, ("-m", "imds", "serve", "--port", str(port), "--quiet") + options)

    def logging_emulator(self, port, log):
        return self.server(port, TARGET, ("-m", "imds", "serve", "--port", str(port)), log)

    def baseline(self, name, port, size, target="/"):
        return self.server(port, target, (HERE, "--baseline", name, str(port), str(size)))

    def file_server(self, port):
        return self.server(port, "/", ("-m", "http.server", "--bind", "127.0.0.1", str(port)))


# --- load: how many requests a second a server answers, and how soon -----------------------------

def generator(stack, duration):
    """Return a function that keeps a server busy for so many seconds and returns what was Measured: by wrk where
    it is installed, else by processes of ours, which live as long as ``stack``."""
    wrk = shutil.which("wrk")
    if wrk:
        return functools.partial(load_by_wrk, wrk, duration)
    # The processes must not inherit what main does on SIGTERM, which is how a pool ends them.
    pool = multiprocessing.Pool(GENERATORS, signal.signal, (signal.SIGTERM, signal.SIG_DFL))
    return functools.partial(load_by_processes, stack.enter_context(pool), duration)


def load(duration, port, target, status, connections, close):
    """Send requests over our share of the connections. Runs in a process of its own and does next to nothing
    per answer: counts its bytes, as many as the first had, and notes the time."""
    request = request_for(target, close)
    with contextlib.closing(send(port, request)) as client:
        size = read_answer(client, status)
    clients = [send(port, request) for _ in range(connections)]
    begun = now = time.perf_counter()
    sent, seconds = [begun] * connections, []
    try:
        while now < begun + duration:
            for index, client in enumerate(clients):  # the server works on the others meanwhile
                got = len(receive(client))
                while got < size:
                    got += len(receive(client))
                if got > size or close and client.recv(1):
                    raise RuntimeError("an answer has more bytes than the %d of the first" % size)
                now = time.perf_counter()
                seconds.append(now - sent[index])
                sent[index] = now
                if close:
                    client.close()
                    clients[index] = send(port, request)
                else:
                    client.sendall(request)
        return Measured(len(seconds) / (now - begun), 1000 * sorted(seconds)[len(seconds) * 99 // 100])
    finally:
        for client in clients:
            client.close()


def load_by_processes(pool, duration, port, target=TARGET, status=200, connections=CONNECTIONS, close=False):
    """What processes of ours measure, each with its share of the connections."""
    share = duration, port, target, status, connections // GENERATORS, close
    measured = pool.starmap_async(load, [share] * GENERATORS, chunksize=1).get(duration + 2 * TIMEOUT)
    return Measured(sum(each.rate for each in measured), max(each.p99 for each in measured))


def load_by_wrk(wrk, duration, port, target=TARGET, status=200, connections=CONNECTIONS, close=False):
    """What wrk measures. It knows whole seconds only, but reports early when it is interrupted."""
    command = [wrk, "-t%d" % GENERATORS, "-c%d" % connections, "-d%d" % TIMEOUT, "--latency", "-H", "Metadata: true"]
    command += ["-H", "Connection: close"] * close + ["http://127.0.0.1:%d%s" % (port, target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, universal_newlines=True)
    try:
        time.sleep(duration)
        process.send_signal(signal.SIGINT)
        report = process.communicate(timeout=2 * TIMEOUT)[0]
    finally:
        process.kill()
        process.wait()
    found = re.search(r"99%\s+([\d.]+)(us|ms|s)\s+(\d+) requests.*?(?:Non-2xx or 3xx responses: (\d+).*?)?"
                      r"Requests/sec: *([\d.]+)", report, re.S)
    if not found or "Socket errors" in report or found.group(4) != (None if status == 200 else found.group(3)):
        raise RuntimeError("wrk says: " + " ".join(report.split()))
    return Measured(float(found.group(5)), float(found.group(1)) * {"us": 0.001, "ms": 1, "s": 1000}[found.group(2)])


def ask_many(port, count):
    """Ask for a leaf ``count`` times, BATCH requests a packet, for when it matters only that they are answered.
    One of each batch was never asked before: no memo may keep all of those."""
    with contextlib.closing(send(port, request_for(LEAF))) as client:
        size = BATCH * read_answer(client)
    with contextlib.ExitStack() as stack:
        def batch():
            return request_for(LEAF) * (BATCH - 1) + request_for("%s&n=%d" % (LEAF, next(NUMBERS)))

        clients = [stack.enter_context(contextlib.closing(send(port, batch()))) for _ in range(2)]
        for number in range(math.ceil(count / BATCH)):  # of the two, the server always has one to work on
            got = 0
            while got < size:
                got += len(receive(clients[number % 2]))
            clients[number % 2].sendall(batch())


# --- rows of LAYOUT, whose last item is whether the goal is met ----------------------------------

def turns(count, *works):
    """Do all of these in turn, after a first turn that warms up; return a list of the results of each."""
    return list(zip(*[[work() for work in works] for _ in range(count + 1)][1:]))


def compared(what, form, ours, baseline, least=None, most=None, more=0):
    """The row of what was measured in turns, with the goal of its ratio; ``more``: milliseconds on top of it.
    The ratio is the median of those of the turns: what slows a whole turn down is not in it."""
    pairs = list(zip(ours, baseline))
    ratio = statistics.median(one / other for one, other in pairs)
    if least:
        goal, met = "at least %g x" % least, ratio >= least
    elif more:
        goal = "at most %g x + %g ms" % (most, more)
        met = statistics.median(one - most * other for one, other in pairs) <= more
    else:
        goal, met = "at most %g x" % most, ratio <= most
    return what, form % statistics.median(ours), form % statistics.median(baseline), "%.2f x" % ratio, goal, met


def limited(what, unit, value, limit, digits=1):
    """The row of what has a limit of its own; None: it can't be measured here, infinity: it was given up."""
    goal = "under %g %s" % (limit, unit)
    if value is None:
        return what, "unmeasured", "", "", goal, None
    return what, "given up" if value == math.inf else "%.*f %s" % (digits, value, unit), "", "", goal, value < limit


def spread(*results):
    """The row of the slowest and the fastest rounds of two."""
    ours, baseline = ("%.0fk-%.0fk" % (min(each) / 1000, max(each) / 1000) for each in results)
    return "  slowest and fastest round", ours, baseline, "", "", None


def rates(measured):
    return [each.rate for each in measured]


def resident(process):
    """How many MiB of memory a process has, or None where nothing tells."""
    with contextlib.suppress(OSError), open("/proc/%d/status" % process.pid) as status:
        return int(re.search(r"VmRSS:\s*(\d+) kB", status.read()).group(1)) / 1024
    return None


@contextlib.contextmanager
def time_limit(seconds):
    """Raise TimeoutError in the block when that is over, where the system has such a timer."""
    def give_up(*_):
        raise TimeoutError

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- the figures over sockets: each yields rows --------------------------------------------------

def keep_alive(lab, quick):
    """The whole document over connections that stay, and how soon it comes when there are many."""
    port, loop, handler = free_port(), free_port(), free_port()
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab.emulator(port))
        size = ask(port, close=False)
        stack.enter_context(lab.baseline("loop", loop, size))
        stack.enter_context(lab.baseline("handler", handler, size))
        for connections in (CONNECTIONS, 64):
            works = [functools.partial(lab.load, each, connections=connections) for each in (port, loop, handler)]
            works.append(functools.partial(time.sleep, 0.1))  # until the handler's threads have ended
            ours, loops, handlers, _ = turns(lab.rounds, *works)
            what = "requests a second, %d connections; " % connections
            yield compared(what + "loop", "%.0f", rates(ours), rates(loops), least=0.75)
            yield spread(rates(ours), rates(loops))
            yield compared(what + "http.server", "%.0f", rates(ours), rates(handlers), least=8)
        late, loops_late = ([each.p99 for each in measured] for measured in (ours, loops))
        yield compared("p99 at 64 connections; loop", "%.2f ms", late, loops_late, most=1.5, more=1)


def endpoints(lab, quick):
    """All else that is asked for, beside the whole document of the same emulator."""
    port = free_port()
    with lab.emulator(port, *["--event", "Reboot"] * 50):
        asked = [(target, status) for _, target, status, _ in ENDPOINTS]
        whole, *others = turns(lab.rounds, *[functools.partial(lab.load, port, *each)
                                             for each in [(TARGET, 200)] + asked])
        for (what, _, _, goal), measured in zip(ENDPOINTS, others):
            yield compared("%s; the whole document" % what, "%.0f", rates(measured), rates(whole), least=goal)


def access_log(lab, quick):
    """The whole document with the access log in a file."""
    port, quiet = free_port(), free_port()
    with tempfile.TemporaryFile() as log, lab.logging_emulator(port, log), lab.emulator(quiet):
        logged, unlogged = turns(lab.rounds, *[functools.partial(lab.load, each) for each in (port, quiet)])
        yield compared("access log in a file; without", "%.0f", rates(logged), rates(unlogged), least=0.6)


def connections_each(lab, quick):
    """The whole document over a connection for each request."""
    port, handler = free_port(), free_port()
    with lab.emulator(port), lab.baseline("handler", handler, ask(port, close=False)):
        ours, handlers = turns(lab.rounds, *[functools.partial(lab.load, each, close=True) for each in (port, handler)])
        yield compared("a connection each; http.server", "%.0f", rates(ours), rates(handlers), least=6)


def start_and_stop(lab, quick):
    """Start, first answer and stop in this process, as in a test."""
    import imds

    def emulator():
        begun = time.perf_counter()
        with imds.Emulator() as vm:
            ask(vm.port)
        return 1000 * (time.perf_counter() - begun)

    def plain():
        begun = time.perf_counter()
        server = ThreadingServer(("127.0.0.1", 0), Constant)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ask(server.server_address[1])
        time.sleep(0.01)  # until its thread is back in its wait, where it mostly is; not counted
        server.shutdown()
        server.server_close()
        return 1000 * (time.perf_counter() - begun - 0.01)

    emulator()  # the first one imports
    ours = statistics.median(emulator() for _ in range(50))
    baseline = statistics.median(plain() for _ in range(2))
    yield ("start, answer and stop in process; http.server", "%.2f ms" % ours, "%.0f ms" % baseline,
           "%.4f x" % (ours / baseline), "under 1.5 ms", ours < 1.5)


def processes(lab, quick):
    """A server's process up to its first answer, and whole processes of the client."""
    def time_to_answer(server):
        begun = time.perf_counter()
        with server(free_port()):
            return 1000 * (time.perf_counter() - begun)

    count, port = 7 if quick else 25, free_port()
    servers = [functools.partial(time_to_answer, server) for server in (lab.emulator, lab.file_server)]
    yield compared("serve to its first answer; -m http.server", "%.1f ms", *turns(count, *servers), most=1.2)
    with lab.emulator(port):
        where = "--endpoint", "http://127.0.0.1:%d" % port
        commands = [functools.partial(lab.run_time, "-m", "imds", *arguments + where) for _, arguments in COMMANDS]
        *ours, imports = turns(count, *commands + [functools.partial(lab.run_time, "-c", IMPORTS)])
        for (what, _), times in zip(COMMANDS, ours):
            yield compared(what + "; its imports alone", "%.1f ms", times, imports, most=1.2)


def get_in_process(lab, quick):
    """imds.get of a leaf, beside http.client, which only fetches the document that it is in."""
    import imds

    def get():
        begun = time.perf_counter()
        imds.get("compute/vmId", endpoint="http://127.0.0.1:%d" % port)
        return 1e6 * (time.perf_counter() - begun)

    def fetch():
        begun = time.perf_counter()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as connection:
            connection.request("GET", TARGET, headers={"Metadata": "true"})
            connection.getresponse().read()
        return 1e6 * (time.perf_counter() - begun)

    port = free_port()
    with lab.emulator(port):
        yield compared("imds.get in process; http.client", "%.0f us", *turns(500, get, fetch), most=1.3)


def memory(lab, quick):
    """What serve keeps in memory."""
    port = free_port()
    with lab.emulator(port) as process, contextlib.ExitStack() as clients:
        yield limited("memory of serve, idle", "MiB", resident(process), 25)
        for _ in range(IDLE_CONNECTIONS):
            read_answer(clients.enter_context(contextlib.closing(send(port, request_for()))))
        yield limited("memory of serve, %d idle connections" % IDLE_CONNECTIONS, "MiB", resident(process), 45)


def flat_memory(lab, quick):
    """What serve keeps of requests, once there were so many that all it ever keeps is full."""
    port, more = free_port(), 200000 if quick else 1000000
    with lab.emulator(port) as process:
        ask_many(port, 100000)
        before = resident(process)
        ask_many(port, more)
        grown = None if before is None else resident(process) - before
        yield limited("memory of serve grows in %d requests" % more, "MiB", grown, 2)


# --- the figures of the service alone: in this process, without sockets --------------------------

def in_process(verb, target, body=b""):
    """A request as the room that knows no sockets takes it."""
    import imds

    return imds.Request(verb, target, {"host": "127.0.0.1", "metadata": "true"}, body)


def answers(bench, requests, status=200):
    """The answers to requests, all of this status, and how many microseconds each took."""
    begun = time.perf_counter()
    exchanges = [bench.respond(request, peer="127.0.0.1") for request in requests]
    cost = 1e6 * (time.perf_counter() - begun) / len(exchanges)
    for request, exchange in zip(requests, exchanges):
        if exchange.response.status != status:
            raise RuntimeError("the answer to %s was %d" % (request.target, exchange.response.status))
    return [exchange.response for exchange in exchanges], cost


def uncached_cost(bench, target, status, count):
    """Microseconds for each of so many requests for a target with a number in it that was in none before."""
    return answers(bench, [in_process("GET", target % next(NUMBERS)) for _ in range(count)], status)[1]


def uncached(lab, quick):
    """What is asked for the first time: add rows to UNCACHED."""
    import imds

    bench = imds.Bench(imds.Clock())
    costs = turns(4 * lab.rounds, *[functools.partial(uncached_cost, bench, target, status, count)
                                    for _, target, status, count, _ in UNCACHED])
    for (what, _, _, _, limit), cost in zip(UNCACHED, costs):
        yield limited("uncached: %s" % what, "us", statistics.median(cost), limit)


def many_identities(lab, quick):
    """A token of the last of many identities."""
    import imds

    def work(count):
        names = ["%08x-0000-4000-8000-000000000000" % number for number in range(count)]
        bench = imds.Bench(imds.Clock(), identities=[
            {"type": "user", "clientId": name, "objectId": name, "resourceId": "/subscriptions/x/" + name}
            for name in names])
        return functools.partial(uncached_cost, bench, "%s&client_id=%s&n=%%d" % (TOKEN, names[-1]), 200, 100)

    many, one = turns(4 * lab.rounds, work(IDENTITIES), work(1))
    yield compared("uncached: a token among %d identities; among one" % IDENTITIES, "%.1f us", many, one, most=1.5)


def many_events(lab, quick):
    """What can be done to many events at once."""
    import imds

    clock = imds.Clock()

    def schedule(bench):
        return [bench.schedule("Reboot") for _ in range(EVENTS)]

    def approve(bench, ids):
        body = json.dumps({"StartRequests": [{"EventId": each} for each in ids]}).encode()
        answers(bench, [in_process("POST", SCHEDULED, body)])

    def settle(bench, ids):
        clock.advance(86400)  # each of them starts, and is over
        answers(bench, [in_process("GET", SCHEDULED)])

    def statuses(bench):
        (shown,), _ = answers(bench, [in_process("GET", SCHEDULED)])
        return [event["EventStatus"] for event in json.loads(shown.body)["Events"]]

    for what, work, left in (("scheduled", None, ["Scheduled"] * EVENTS), ("approved", approve, ["Started"] * EVENTS),
                             ("settled", settle, [])):
        bench, seconds = imds.Bench(clock), math.inf
        with contextlib.suppress(TimeoutError), time_limit(GIVE_UP):
            begun = time.perf_counter()
            ids = schedule(bench)
            if work:
                begun = time.perf_counter()
                work(bench, ids)
            seconds = time.perf_counter() - begun
        if seconds < math.inf and statuses(bench) != left:
            raise RuntimeError("not all of %d events were %s" % (EVENTS, what))
        yield limited("%d events %s" % (EVENTS, what), "s", seconds, 1, digits=2)


def journal(lab, quick):
    """The whole document beside a service that keeps no record of a request."""
    port, other = free_port(), free_port()
    with lab.emulator(port), lab.baseline("forgetful", other, 0, TARGET):
        ours, without = turns(2 * lab.rounds, *[functools.partial(lab.load, each) for each in (port, other)])
        yield compared("with a journal; without one", "%.0f", rates(ours), rates(without), least=0.95)


# --- the figures of faults and scale sets --------------------------------------------------------

def inactive_fault(lab, quick):
    """The whole document where a fault waits for requests of another kind."""
    port, plain = free_port(), free_port()
    with lab.emulator(port, "--fault", "identity: 500 x2"), lab.emulator(plain):
        works = [functools.partial(lab.load, each) for each in (port, plain)]
        ours, without = turns(2 * lab.rounds, *works)  # more rounds, for it is the closest of all goals
        yield compared("a fault that does not apply; without", "%.0f", rates(ours), rates(without), least=0.95)


def hung_clients(lab, quick):
    """The whole document while a fault leaves many others without an answer."""
    port, plain = free_port(), free_port()
    fault = "--fault", "identity: hang always"
    with lab.emulator(port, *fault), lab.emulator(plain, *fault), contextlib.ExitStack() as clients:
        hung = [clients.enter_context(contextlib.closing(send(port, request_for(TOKEN))))
                for _ in range(HUNG_CONNECTIONS)]
        ours, without = turns(lab.rounds, *[functools.partial(lab.load, each) for each in (port, plain)])
        for client in hung:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                raise RuntimeError("a client that should hang got %r" % client.recv(80))
        yield compared("beside %d hung clients; without" % len(hung), "%.0f", rates(ours), rates(without), least=0.9)


def scale_set_memory(lab, quick):
    """What serve keeps in memory for each VM of a scale set."""
    port, single = free_port(), free_port()
    with lab.emulator(port, "--scale-set", str(SCALE_SET)) as process, lab.emulator(single) as one:
        used = resident(process)
        each = "unmeasured" if used is None else "%.0f KiB" % (1024 * (used - resident(one)) / (SCALE_SET - 1))
        yield "memory of serve --scale-set %d, for each VM" % SCALE_SET, each, "", "", "", None


def scale_set_start(lab, quick):
    """A scale set in this process, from nothing until all its VMs listen."""
    import imds

    def start():
        begun = time.perf_counter()
        with imds.ScaleSet(SCALE_SET):
            return time.perf_counter() - begun

    times, = turns(2, start)
    yield limited("start of ScaleSet(%d)" % SCALE_SET, "s", statistics.median(times), 0.3, digits=2)


FIGURES = (
    keep_alive, endpoints, access_log, connections_each, start_and_stop, processes, get_in_process, memory, flat_memory,
    uncached, many_identities, many_events, journal, inactive_fault, hung_clients, scale_set_memory, scale_set_start,
)


def main():
    parser = argparse.ArgumentParser(description="Measure imds.py beside http.server, urllib and a bare loop.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--check", action="store_true", help="end with exit code 1 when a goal is missed")
    parser.add_argument("--baseline", nargs=3, help=argparse.SUPPRESS)  # its name, a port, the size of an answer
    options = parser.parse_args()
    if options.baseline:
        name, port, size = options.baseline
        BASELINES[name](int(port), int(size))
    os.environ["AZURE_IMDS_ENDPOINT"] = "http://127.0.0.1:9"  # nothing here may ask a real service by accident
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the default would leave the servers running
    begun, missed = time.perf_counter(), 0
    by = "wrk" if shutil.which("wrk") else "%d Python process%s" % (GENERATORS, "es" * (GENERATORS > 1))
    print("Python %s, %d cores, load from %s" % (sys.version.split()[0], CORES, by))
    print(LAYOUT % ("what; baseline", "ours", "baseline", "ratio", "goal", ""), flush=True)
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        rounds, duration = (3, 0.25) if options.quick else (5, 0.4)
        lab = Lab(directory, rounds, generator(stack, duration))
        for figure in FIGURES:
            try:
                for row in figure(lab, options.quick):
                    missed += row[-1] is False
                    print(LAYOUT % (row[:-1] + ({True: "ok", False: "MISSED", None: ""}[row[-1]],)), flush=True)
            except Exception as error:  # of whatever kind: the others are still worth measuring
                missed += 1
                print("%s: MISSED, %s: %s" % (figure.__name__, type(error).__name__, error), flush=True)
    print("%d missed, %.0f seconds" % (missed, time.perf_counter() - begun))
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
