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

HERE = os.path.abspath(__file__)
CORES = os.cpu_count() or 1
GENERATORS = min(2, CORES)  # processes of ours, or threads of wrk
CONNECTIONS, IDLE_CONNECTIONS = 8, 500
TIMEOUT = 10  # seconds that a socket, a server or a generator is waited for, so that nothing here hangs
TARGET = "/metadata/instance?api-version=2025-04-07"
LAYOUT = "%-49s %12s %12s %9s  %-14s  %s"


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
        raise RuntimeError("the answer was %r" % data[:80])
    while len(body) < int(length.group(1)):
        body += receive(client)
    return len(head) + 4, len(body)


def ask(port, target=TARGET):
    """One request over a connection of its own, and its answer."""
    with contextlib.closing(send(port, request_for(target, close=True))) as client:
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
    one of ours could otherwise take its port, or even reach itself."""
    for port in random.sample(range(20000, 30000), 100):
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as trial:
            with contextlib.suppress(OSError):
                trial.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no port is free")


class Lab:
    """A directory with a copy of imds.py and its bytecode, as after a first run, and the means to run in it."""

    def __init__(self, directory):
        self.directory = directory
        shutil.copy(os.path.join(os.path.dirname(os.path.dirname(HERE)), "imds.py"), directory)
        py_compile.compile(os.path.join(directory, "imds.py"), doraise=True)
        self.environment = {name: os.environ[name] for name in os.environ if name != "PYTHONDONTWRITEBYTECODE"}

    @contextlib.contextmanager
    def process(self, arguments):
        """Run Python for the block and kill it after the block."""
        process = subprocess.Popen([sys.executable] + list(arguments), cwd=self.directory, env=self.environment,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
    def server(self, port, target, *arguments):
        """As ``process``, for a server: the block begins as soon as it has answered."""
        deadline = time.perf_counter() + TIMEOUT
        with self.process(arguments) as process:
            while True:
                try:
                    ask(port, target)
                    break
                except OSError as error:  # it does not listen yet
                    if time.perf_counter() > deadline or process.poll() is not None:
                        raise RuntimeError("no answer from %s: %s" % (" ".join(arguments), error)) from None
                    time.sleep(0.001)
            yield process

    def emulator(self, port):
        return self.server(port, TARGET, "-m", "imds", "serve", "--port", str(port), "--quiet")

    def file_server(self, port):
        return self.server(port, "/", "-m", "http.server", "--bind", "127.0.0.1", str(port))


# --- load ----------------------------------------------------------------------------------------

def load(port, close, duration):
    """Send requests over our share of the connections; return how many were answered a second. Runs in a
    process of its own and does next to nothing per answer: counts its bytes, as many as the first had."""
    request, connections = request_for(close=close), CONNECTIONS // GENERATORS
    with contextlib.closing(send(port, request)) as client:
        size = sum(read_answer(client))
    clients = [send(port, request) for _ in range(connections)]
    answered, begun = 0, time.perf_counter()
    try:
        while time.perf_counter() < begun + duration:
            for index, client in enumerate(clients):  # the server works on the others meanwhile
                got = len(receive(client))
                while got < size:
                    got += len(receive(client))
                if got > size or close and client.recv(1):
                    raise RuntimeError("an answer has more bytes than the %d of the first" % size)
                if close:
                    client.close()
                    clients[index] = send(port, request)
                else:
                    client.sendall(request)
            answered += connections
        return answered / (time.perf_counter() - begun)
    finally:
        for client in clients:
            client.close()


def load_by_processes(pool, duration, port, close):
    """Requests a second that a server answers to processes of ours."""
    shares = pool.starmap_async(load, [(port, close, duration)] * GENERATORS, chunksize=1)
    return sum(shares.get(duration + 2 * TIMEOUT))


def load_by_wrk(wrk, duration, port, close):
    """Requests a second that a server answers to wrk."""
    command = [wrk, "-t%d" % GENERATORS, "-c%d" % CONNECTIONS, "-d%ds" % round(duration), "-H", "Metadata: true"]
    command += ["-H", "Connection: close"] * close
    report = subprocess.run(command + ["http://127.0.0.1:%d%s" % (port, TARGET)], check=True, universal_newlines=True,
                            stdout=subprocess.PIPE, timeout=duration + TIMEOUT).stdout
    if "Non-2xx" in report or "Socket errors" in report:
        raise RuntimeError("wrk says: " + " ".join(report.split()))
    return float(re.search(r"Requests/sec: *([\d.]+)", report).group(1))


# --- the figures: each yields rows of LAYOUT, whose last item is whether the goal is met ---------

def turns(count, ours, baseline):
    """Measure both in turn, after a first turn that warms up; return pairs."""
    return [(ours(), baseline()) for _ in range(count + 1)][1:]


def compared(what, form, pairs, least=None, most=None):
    """The row of what was measured in turns, with the goal of its ratio."""
    ours, baseline = (statistics.median(results) for results in zip(*pairs))
    ratio = ours / baseline
    goal, met = ("at least %g x" % least, ratio >= least) if least else ("at most %g x" % most, ratio <= most)
    return what, form % ours, form % baseline, "%.2f x" % ratio, goal, met


def throughput(lab, quick):
    """Requests a second, over connections that stay and over one for each request."""
    wrk, (rounds, duration) = shutil.which("wrk"), (3, 0.6) if quick else (7, 1)
    port, other = free_port(), free_port()
    with contextlib.ExitStack() as stack:
        if wrk:
            rate = functools.partial(load_by_wrk, wrk, duration)
        else:  # the processes must not inherit what main does on SIGTERM, which is how a pool ends them
            pool = multiprocessing.Pool(GENERATORS, signal.signal, (signal.SIGTERM, signal.SIG_DFL))
            rate = functools.partial(load_by_processes, stack.enter_context(pool), duration)
        stack.enter_context(lab.emulator(port))
        stack.enter_context(lab.server(other, "/", HERE, "--constant", str(other), str(ask(port)[1])))
        for close, what, goal in ((False, "keep-alive", 4), (True, "a connection each", 1.5)):
            pairs = turns(rounds, functools.partial(rate, port, close), functools.partial(rate, other, close))
            yield compared("requests a second, %s; http.server" % what, "%.0f", pairs, least=goal)
            spread = ["%.0f-%.0f" % (min(rates), max(rates)) for rates in zip(*pairs)]
            yield "  slowest and fastest round", spread[0], spread[1], "", "", None


def in_process(lab, quick):
    """Start, first answer and stop in this process, as in a test."""
    sys.path.insert(0, lab.directory)
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
    baseline = statistics.median(plain() for _ in range(3))
    yield ("start, answer and stop in process; http.server", "%.2f ms" % ours, "%.2f ms" % baseline,
           "%.4f x" % (ours / baseline), "under 5 ms", ours < 5)


def processes(lab, quick):
    """A server's process up to its first answer, and the whole process of one get."""
    count, port = 7 if quick else 15, free_port()

    def time_to_answer(server):
        begun = time.perf_counter()
        with server(free_port()):
            return 1000 * (time.perf_counter() - begun)

    pairs = turns(count, lambda: time_to_answer(lab.emulator), lambda: time_to_answer(lab.file_server))
    yield compared("serve to its first answer; -m http.server", "%.1f ms", pairs, most=1.2)
    get = "-m", "imds", "get", "--endpoint", "http://127.0.0.1:%d" % port, "compute/vmId"
    imports = "-c", "import urllib.request, json, argparse"
    with lab.emulator(port):
        pairs = turns(count, lambda: lab.run_time(*get), lambda: lab.run_time(*imports))
    yield compared("get compute/vmId; its imports alone", "%.1f ms", pairs, most=1.2)


def memory(lab, quick):
    """What serve keeps in memory."""
    def row(what, limit):
        used, met = "not measured", None
        with contextlib.suppress(OSError), open("/proc/%d/status" % process.pid) as status:
            mebibytes = int(re.search(r"VmRSS:\s*(\d+) kB", status.read()).group(1)) / 1024
            used, met = "%.1f MiB" % mebibytes, mebibytes < limit
        return what, used, "", "", "under %d MiB" % limit, met

    port = free_port()
    with lab.emulator(port) as process, contextlib.ExitStack() as clients:
        yield row("memory of serve, idle", 25)
        for _ in range(IDLE_CONNECTIONS):
            read_answer(clients.enter_context(contextlib.closing(send(port, request_for()))))
        yield row("memory of serve, %d idle connections" % IDLE_CONNECTIONS, 45)


def main():
    parser = argparse.ArgumentParser(description="Measure imds.py beside plain http.server and urllib.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--check", action="store_true", help="end with exit code 1 when a goal is missed")
    parser.add_argument("--constant", nargs=2, type=int, help=argparse.SUPPRESS)  # a port, and the size of the body
    options = parser.parse_args()
    if options.constant:
        port, size = options.constant
        Constant.body = b"x" * size
        ThreadingServer(("127.0.0.1", port), Constant).serve_forever()
    os.environ["AZURE_IMDS_ENDPOINT"] = "http://127.0.0.1:9"  # nothing here may ask a real service by accident
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the default would leave the servers running
    begun, missed = time.perf_counter(), 0
    generator = "wrk" if shutil.which("wrk") else "%d Python processes" % GENERATORS
    print("Python %s, %d cores, load from %s" % (sys.version.split()[0], CORES, generator))
    print(LAYOUT % ("what; baseline", "ours", "baseline", "ratio", "goal", ""), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        lab = Lab(directory)
        for figure in (throughput, in_process, processes, memory):
            try:
                for row in figure(lab, options.quick):
                    missed += row[-1] is False
                    print(LAYOUT % (row[:-1] + ({True: "ok", False: "MISSED", None: ""}[row[-1]],)), flush=True)
            except (RuntimeError, OSError, subprocess.SubprocessError, multiprocessing.TimeoutError) as error:
                missed += 1
                print("%s: MISSED, %s: %s" % (figure.__name__, type(error).__name__, error), flush=True)
    print("%d missed, %.0f seconds" % (missed, time.perf_counter() - begun))
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
