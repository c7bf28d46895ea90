"""Measure imds.py beside plain http.server and urllib, in one run, because absolute numbers say little.

    python3 tests/bench.py              the whole table, in less than a minute
    python3 tests/bench.py --quick      fewer rounds, less exact
    python3 tests/bench.py --check      end with exit code 1 when a goal is missed

What is compared takes turns, and of all turns the median counts: machines are noisy. Requests come from
wrk where it is installed, else from processes of our own; both only ever talk to this machine.
"""

import argparse
import contextlib
import functools
import http.server
import multiprocessing
import os
import py_compile
import random
import re
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

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CORES = os.cpu_count() or 1
GENERATORS = min(2, CORES)  # processes of ours, or threads of wrk
CONNECTIONS = 8
IDLE_CONNECTIONS = 500
TIMEOUT = 10  # seconds for anything that is waited for, so that nothing here can hang
TARGET = "/metadata/instance?api-version=2025-04-07"
LAYOUT = "%-46s %12s %12s %9s  %-15s %s"


class Failed(Exception):
    """What was to be measured did not work."""


def median_pair(count, ours, baseline):
    """Call both in turn, ``count`` times; return the median of what each returned."""
    pairs = [(ours(), baseline()) for _ in range(count)]
    return [statistics.median(results) for results in zip(*pairs)]


def seconds(action, *arguments):
    """How long an action takes."""
    begun = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - begun


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


def read_answer(client):
    """Read one answer, of the length that its head tells; return the sizes of its head and its body."""
    data = receive(client)
    while b"\r\n\r\n" not in data:
        data += receive(client)
    head, body = data.split(b"\r\n\r\n", 1)
    length = re.search(br"(?i)\r\ncontent-length: *(\d+)", head)
    if head.split(b" ", 2)[1] != b"200" or not length:
        raise Failed("the answer was %r" % data[:80])
    while len(body) < int(length.group(1)):
        body += receive(client)
    return len(head) + 4, len(body)


def ask(port, request=request_for(close=True)):
    """One request over a connection of its own, and its answer."""
    with contextlib.closing(send(port, request)) as client:
        return read_answer(client)


# --- the servers ---------------------------------------------------------------------------------

class Constant(http.server.BaseHTTPRequestHandler):
    """The baseline: http.server as fast as it goes, with the headers of the service and a constant body."""

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


def free_port():
    """A free port below those that the system gives to outgoing connections: while a server starts,
    one of ours could otherwise take the port, or even reach itself."""
    for port in random.sample(range(20000, 30000), 100):
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as trial:
            try:
                trial.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise Failed("no port is free")


class Lab:
    """A directory with a copy of imds.py and its bytecode, as after a first run, and the means to run in it."""

    def __init__(self, directory):
        self.directory = directory
        shutil.copy(os.path.join(ROOT, "imds.py"), directory)
        py_compile.compile(os.path.join(directory, "imds.py"), doraise=True)
        self.environment = dict(os.environ)
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def start(self, arguments):
        return subprocess.Popen([sys.executable] + list(arguments), cwd=self.directory, env=self.environment,
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def run(self, *arguments):
        """Run Python to its end. A wait with a timeout would look for that end only now and then: the
        time measured would be one of 31, 63, 113 ms."""
        process = self.start(arguments)
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        try:
            if process.wait():
                raise Failed("exit code %d from %s" % (process.returncode, " ".join(arguments)))
        finally:
            watchdog.cancel()
            process.kill()

    @contextlib.contextmanager
    def server(self, port, target, *arguments):
        """Run Python as a server; begin the block as soon as it has answered, kill it after the block."""
        process, deadline = self.start(arguments), time.perf_counter() + TIMEOUT
        try:
            while True:
                try:
                    ask(port, request_for(target, close=True))
                    break
                except OSError as error:  # it does not listen yet
                    if time.perf_counter() > deadline or process.poll() is not None:
                        raise Failed("no answer from %s: %s" % (" ".join(arguments), error)) from None
                    time.sleep(0.001)
            yield process
        finally:
            process.kill()
            process.wait()

    def emulator(self, port):
        return self.server(port, TARGET, "-m", "imds", "serve", "--port", str(port), "--quiet")

    def file_server(self, port):
        return self.server(port, "/", "-m", "http.server", "--bind", "127.0.0.1", str(port))

    def constant_server(self, port, size):
        return self.server(port, "/", os.path.abspath(__file__), "--constant", str(port), str(size))


def serve_constant(port, size):
    Constant.body = b"x" * size
    ThreadingServer(("127.0.0.1", port), Constant).serve_forever()


# --- load ----------------------------------------------------------------------------------------

def load(port, connections, duration, close):
    """Send requests over some connections; return how many were answered a second. Runs in a process
    of its own. It does next to nothing per answer: count the bytes, of which the first had as many."""
    request = request_for(close=close)
    size = sum(ask(port, request))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(send(port, request))) for _ in range(connections)]
        answered, begun = 0, time.perf_counter()
        while time.perf_counter() < begun + duration:
            for index, client in enumerate(clients):  # the server works on the others meanwhile
                got = len(client.recv(65536))
                while got < size:
                    got += len(receive(client))
                if got > size or close and client.recv(1):
                    raise Failed("an answer has more bytes than the %d of the first" % size)
                if close:
                    client.close()
                    clients[index] = send(port, request)
                else:
                    client.sendall(request)
            answered += connections
        return answered / (time.perf_counter() - begun)


def load_by_processes(pool, duration, port, close):
    """Requests a second that a server answers to processes of ours."""
    work = [(port, CONNECTIONS // GENERATORS, duration, close)] * GENERATORS
    return sum(pool.starmap_async(load, work, chunksize=1).get(duration + 2 * TIMEOUT))


def load_by_wrk(wrk, duration, port, close):
    """Requests a second that a server answers to wrk."""
    command = [wrk, "-t%d" % GENERATORS, "-c%d" % CONNECTIONS, "-d%ds" % round(duration), "-H", "Metadata: true"]
    command += ["-H", "Connection: close"] * close
    report = subprocess.run(command + ["http://127.0.0.1:%d%s" % (port, TARGET)], check=True, universal_newlines=True,
                            stdout=subprocess.PIPE, timeout=duration + TIMEOUT).stdout
    if "Non-2xx" in report or "Socket errors" in report:
        raise Failed("wrk says: " + " ".join(report.split()))
    return float(re.search(r"Requests/sec: *([\d.]+)", report).group(1))


@contextlib.contextmanager
def load_generator(wrk, duration):
    """Give the function of a port and of ``close`` that returns requests a second."""
    if wrk:
        yield functools.partial(load_by_wrk, wrk, duration)
        return
    with multiprocessing.Pool(GENERATORS, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as pool:
        yield functools.partial(load_by_processes, pool, duration)


# --- the figures: each yields rows of LAYOUT, whose last item is whether the goal is met ---------

def compared(what, ours, baseline, form, goal, met):
    return what, form % ours, form % baseline, "%.3g x" % (ours / baseline), goal, met


def throughput(lab, quick):
    """Requests a second, over connections that stay and over one for each request."""
    wrk = shutil.which("wrk")
    rounds, duration = (3, 0.6) if quick else (7, 1)
    port, other = free_port(), free_port()
    with lab.emulator(port):
        _, size = ask(port)
        with lab.constant_server(other, size), load_generator(wrk, duration) as generate:
            for close, what, goal in ((False, "keep-alive", 4), (True, "a connection each", 1.5)):
                median_pair(1, lambda: generate(port, close), lambda: generate(other, close))  # to warm up
                ours, baseline = median_pair(rounds, lambda: generate(port, close), lambda: generate(other, close))
                yield compared("requests a second, " + what, ours, baseline, "%.0f", "at least %g x" % goal,
                               ours >= goal * baseline)


def in_process(lab, quick):
    """Start, first answer and stop in this process, as in a test."""
    sys.path.insert(0, lab.directory)
    import imds

    def emulator():
        with imds.Emulator() as vm:
            ask(vm.port)

    def plain():
        server = ThreadingServer(("127.0.0.1", 0), Constant)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ask(server.server_address[1])
        server.shutdown()
        server.server_close()

    emulator()  # the first one imports
    ours = 1000 * statistics.median(seconds(emulator) for _ in range(50))
    baseline = 1000 * statistics.median(seconds(plain) for _ in range(3))
    yield compared("start, answer and stop in process, http.server", ours, baseline, "%.2f ms", "under 5 ms", ours < 5)


def starting(lab, quick):
    """From the start of a server's process to its first answer."""
    def time_to_answer(server):
        begun = time.perf_counter()
        with server(free_port()):
            return 1000 * (time.perf_counter() - begun)

    turns = functools.partial(median_pair, ours=lambda: time_to_answer(lab.emulator),
                              baseline=lambda: time_to_answer(lab.file_server))
    turns(1)  # to warm up
    ours, baseline = turns(7 if quick else 15)
    yield compared("serve to its first answer, -m http.server", ours, baseline, "%.1f ms", "at most 1.2 x",
                   ours <= 1.2 * baseline)


def getting(lab, quick):
    """The whole process of one get."""
    port = free_port()
    get = "-m", "imds", "get", "--endpoint", "http://127.0.0.1:%d" % port, "compute/vmId"
    imports = "-c", "import urllib.request, json, argparse"
    with lab.emulator(port):
        turns = functools.partial(median_pair, ours=lambda: 1000 * seconds(lab.run, *get),
                                  baseline=lambda: 1000 * seconds(lab.run, *imports))
        turns(1)  # to warm up
        ours, baseline = turns(7 if quick else 15)
    yield compared("get compute/vmId, its imports alone", ours, baseline, "%.1f ms", "at most 1.2 x",
                   ours <= 1.2 * baseline)


def memory(lab, quick):
    """What serve keeps in memory."""
    def row(what, goal):
        try:
            with open("/proc/%d/status" % process.pid) as status:
                used = int(re.search(r"VmRSS:\s*(\d+) kB", status.read()).group(1)) / 1024
        except (OSError, AttributeError):
            return what, "not measured", "", "", "under %d MiB" % goal, None
        return what, "%.1f MiB" % used, "", "", "under %d MiB" % goal, used < goal

    port = free_port()
    with lab.emulator(port) as process, contextlib.ExitStack() as clients:
        yield row("memory of serve, idle", 25)
        for _ in range(IDLE_CONNECTIONS):
            read_answer(clients.enter_context(contextlib.closing(send(port, request_for()))))
        yield row("memory of serve, %d idle connections" % IDLE_CONNECTIONS, 45)


def main():
    parser = argparse.ArgumentParser(description="Measure imds.py beside http.server and urllib.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--check", action="store_true", help="end with exit code 1 when a goal is missed")
    parser.add_argument("--constant", metavar=("PORT", "SIZE"), nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.constant:
        return serve_constant(*options.constant)
    os.environ["AZURE_IMDS_ENDPOINT"] = "http://127.0.0.1:9"  # nothing here may ask a real service by accident
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the default would leave the servers running
    begun, missed = time.perf_counter(), 0
    print("Python %s, %d cores, load from %s" % (sys.version.split()[0], CORES, "wrk (%d threads)" % GENERATORS
          if shutil.which("wrk") else "%d Python processes" % GENERATORS), flush=True)
    print(LAYOUT % ("what", "ours", "baseline", "ratio", "goal", ""), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        lab = Lab(directory)
        for figure in (throughput, in_process, starting, getting, memory):
            try:
                for row in figure(lab, options.quick):
                    missed += row[-1] is False
                    verdict = {True: "ok", False: "MISSED", None: ""}[row[-1]]
                    print(LAYOUT % (row[:-1] + (verdict,)), flush=True)
            except (Failed, OSError, subprocess.SubprocessError, multiprocessing.TimeoutError) as error:
                missed += 1
                print("%s: MISSED, %s: %s" % (figure.__name__, type(error).__name__, error), flush=True)
    print("%d missed, %.0f seconds" % (missed, time.perf_counter() - begun))
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
