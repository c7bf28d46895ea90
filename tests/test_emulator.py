"""Room 8: the emulator, its sockets, threads, timers and clocks."""

import contextlib
import errno
import gc
import inspect
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest
import warnings
from unittest import mock

import imds
from tests.support import FILE, POST, REQUEST, TARGET, TOKEN, VAULT, Jump, most_files, reserved_port, status

WHOLE = REQUEST.replace(b"/compute/name", b"").replace(b"&format=text", b"")


def leftovers():
    """How many files and threads there are."""
    gc.collect()
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    return files, threading.active_count()


def read_all(client):
    """All that comes until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        for chunk in iter(lambda: client.recv(65536), b""):
            data += chunk
    return data


def read_answer(client):
    """One answer with a Content-Length, or what came of it."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = client.recv(65536)
        if not chunk:
            return data
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        chunk = client.recv(65536)
        if not chunk:
            break
        body += chunk
    return head + b"\r\n\r\n" + body


def in_thread(function, *arguments):
    """Start a thread that nobody has to wait for."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


class Case(unittest.TestCase):
    def connect(self, vm, **settings):
        client = socket.socket()
        for option, value in settings.items():
            client.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
        client.settimeout(10)
        client.connect(("127.0.0.1", vm.port))
        self.addCleanup(client.close)
        return client

    def start(self, *arguments, **settings):
        vm = imds.Emulator(*arguments, **settings).start()
        self.addCleanup(vm.stop)
        return vm

    def poke(self, vm):
        """Let the server come round: what was sent and what is due before this is seen."""
        client = socket.create_connection(("127.0.0.1", vm.port), 10)
        client.sendall(REQUEST)
        self.assertEqual(status(read_answer(client)), 200)
        client.close()

    def let_pass(self, vm, jump, seconds):
        """Let so much time pass: after what was sent so far, and seen by the server."""
        self.poke(vm)
        jump(seconds)
        self.poke(vm)

    def until(self, condition, seconds=5):
        """Wait until a condition is true, and fail when it never is."""
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end, "it never came")
            time.sleep(0.005)


class Fixture(Case):
    def test_with(self):
        with imds.Emulator() as vm:
            self.assertEqual(vm.url, "http://127.0.0.1:%d" % vm.port)
            self.assertEqual(vm.get("compute/name"), "avset2")
            self.assertEqual(imds.get("compute/name", endpoint=vm.url), "avset2")
        for name in ("url", "port", "environ"):
            with self.assertRaises(RuntimeError):
                getattr(vm, name)

    def test_start_and_stop(self):
        vm = imds.Emulator()
        vm.stop()
        self.assertIs(vm.start(), vm)
        with self.assertRaises(RuntimeError):
            vm.start()
        vm.stop()
        vm.stop()
        with vm:
            self.assertEqual(vm.get("compute/name"), "avset2")

    def test_it_may_be_about_to_end_by_itself(self):
        vm = self.start()
        thread, waker, case = vm._thread, vm._server.waker, self

        class Late:  # the server comes round before it is woken
            def send(self, data):
                with contextlib.suppress(OSError):
                    case.connect(vm).sendall(REQUEST)
                thread.join(0.5)
                return waker.send(data)

            close = waker.close

        vm._server.waker = Late()
        with mock.patch.object(imds.Emulator, "port", vm.port):
            vm.stop()
        self.assertFalse(thread.is_alive())

    def test_several_share_nothing(self):
        with imds.Emulator() as one, imds.Emulator() as other:
            one.update({"compute": {"name": "one"}})
            self.assertEqual((one.get("compute/name"), other.get("compute/name")), ("one", "avset2"))
        self.assertEqual(imds.Emulator().instance["compute"]["name"], "avset2")

    def test_instance_is_a_copy(self):
        vm = imds.Emulator({"compute": {"name": "x"}})
        vm.instance["compute"]["name"] = "y"
        self.assertEqual(vm.instance["compute"]["name"], "x")

    def test_operations_are_those_of_the_bench(self):
        for name in imds.OPERATIONS:
            with self.subTest(name=name):
                theirs, ours = getattr(imds.Bench, name), getattr(imds.Emulator, name)
                self.assertEqual(ours.__doc__, theirs.__doc__)
                if not isinstance(ours, property):
                    self.assertEqual(inspect.signature(ours), inspect.signature(theirs))

    def test_arguments_after_the_first_are_named(self):
        with self.assertRaises(TypeError):
            imds.Emulator(None, "127.0.0.1")

    def test_what_it_says_of_itself(self):
        with imds.Emulator(versions=["2019-06-01", "2017-04-02"], rate_limit=7) as vm:
            self.assertEqual((vm.versions, vm.rate_limit), (["2017-04-02", "2019-06-01"], 7))
        self.assertEqual((imds.Emulator().rate_limit, len(imds.Emulator().versions)), (0, 35))
        self.assertEqual(imds.Emulator(as_of="2018").rate_limit, 5)
        self.assertEqual(imds.Emulator(versions="2019-06-01").versions, ["2019-06-01"])

    def test_what_is_set_to_none_is_gone(self):
        vm = imds.Emulator(load_balancer=True)
        self.assertIsNotNone(vm.load_balancer)
        vm.load_balancer = None
        self.assertIsNone(vm.load_balancer)
        vm.load_balancer = {}
        self.assertEqual(vm.load_balancer["loadbalancer"]["inboundRules"], [])

    def test_the_environment_that_leads_to_it(self):
        with imds.Emulator() as vm:
            for before, after in (({}, "127.0.0.1"), ({"NO_PROXY": "a,b", "no_proxy": "a,b"}, "a,b,127.0.0.1"),
                                  ({"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1,"}, "127.0.0.1"),
                                  ({"NO_PROXY": "a"}, "a,127.0.0.1"), ({"no_proxy": "a"}, "a,127.0.0.1"),
                                  ({"NO_PROXY": "*"}, "*")):
                with mock.patch.dict(os.environ, before, clear=True):
                    self.assertEqual(vm.environ, {
                        "AZURE_IMDS_ENDPOINT": vm.url, "AZURE_POD_IDENTITY_AUTHORITY_HOST": vm.url,
                        "NO_PROXY": after, "no_proxy": after})
            with mock.patch.dict(os.environ, vm.environ):
                self.assertEqual(imds.get("compute/name"), "avset2")

    def test_get_fails_fast(self):
        self.assertEqual(inspect.signature(imds.Emulator.get).parameters["deadline"].default, 2)
        with imds.Emulator() as vm, mock.patch.object(imds, "get", return_value=5) as get:
            self.assertEqual(vm.get("x", format="text"), 5)
        self.assertEqual(get.call_args[0], ("x",))
        self.assertEqual(get.call_args[1]["deadline"], 2)

    def test_it_leaves_nothing_behind(self):
        with imds.Emulator() as vm:
            vm.get()
        before = leftovers()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(20):
                with imds.Emulator() as vm:
                    client = socket.create_connection(("127.0.0.1", vm.port))
                    client.sendall(REQUEST)
                    client.recv(1000)
                client.close()
        self.assertEqual(leftovers(), before)

    def test_it_stops_at_once_with_clients_connected(self):
        vm = imds.Emulator().start()
        clients = [self.connect(vm) for _ in range(20)]
        clients[0].sendall(REQUEST[:10])
        begun = time.monotonic()
        vm.stop()
        self.assertLess(time.monotonic() - begun, 1)
        self.assertEqual(read_all(clients[0]), b"")

    def test_a_port_that_is_taken(self):
        with imds.Emulator() as vm:
            before = leftovers()
            with self.assertRaises(OSError):
                imds.Emulator(port=vm.port).start()
            self.assertEqual(leftovers(), before)

    @unittest.skipUnless(socket.has_ipv6, "no IPv6 here")
    def test_ipv6(self):
        try:
            vm = self.start(host="::1")
        except OSError as error:
            self.skipTest("no ::1 here: %s" % error)
        self.assertEqual(vm.url, "http://[::1]:%d" % vm.port)
        self.assertEqual(vm.get("compute/name"), "avset2")
        with mock.patch.dict(os.environ, clear=True):
            self.assertEqual(vm.environ["NO_PROXY"], "::1")

    def test_url_of_all_addresses(self):
        self.assertEqual(self.start(host="0.0.0.0").url.rpartition(":")[0], "http://127.0.0.1")

    def test_wait(self):
        vm, joins = self.start(), []
        join, ended = vm._thread.join, threading.Event()
        with mock.patch.object(vm._thread, "join", lambda timeout=None: joins.append(timeout) or join(timeout)):
            waiting = in_thread(lambda: (vm.wait(), ended.set()))
            self.assertFalse(ended.wait(0.3))
            self.assertIn(len(joins), (1, 2, 3))  # it does not turn round and round
            vm.stop()
            self.assertTrue(ended.wait(5))
        waiting.join()
        vm.wait()  # it is stopped


class Threads(Case):
    def test_two_hundred_readers_and_a_writer(self):
        with imds.Emulator() as vm:
            names, threads = [], []
            for _ in range(200):
                threads.append(in_thread(lambda: names.append(vm.get("compute/name", deadline=20))))
            for number in range(50):
                vm.update({"compute": {"tags": str(number)}})
            for thread in threads:
                thread.join()
            self.assertEqual(names, ["avset2"] * 200)

    def test_start_and_stop_from_several_threads(self):
        before = leftovers()
        vm = imds.Emulator()

        def turn():
            for _ in range(15):
                with contextlib.suppress(RuntimeError):
                    vm.start()
                vm.stop()

        threads = [in_thread(turn) for _ in range(6)]
        for thread in threads:
            thread.join(20)
            self.assertFalse(thread.is_alive())
        vm.stop()
        self.until(lambda: leftovers() == before)

    def test_only_one_of_two_that_start_at_once(self):
        make, made, second = imds._server_class(), [], threading.Event()

        def slowly(*arguments):
            made.append(arguments)
            if len(made) == 1:  # let the other one come in, if it can
                in_thread(start)
                second.wait(0.3)
            else:
                second.set()
            return make(*arguments)

        outcomes = []

        def start():
            try:
                outcomes.append(vm.start())
            except RuntimeError as error:
                outcomes.append(str(error))

        vm = imds.Emulator()
        with mock.patch.object(imds, "_server_class", lambda: slowly):
            start()
            self.until(lambda: len(outcomes) == 2)
        self.addCleanup(vm.stop)
        self.assertEqual(len(made), 1)
        self.assertEqual(outcomes[0], vm)
        self.assertIn("is already started", outcomes[1])

    def test_a_stop_waits_for_the_start_before_it(self):
        make, stopped, early = imds._server_class(), threading.Event(), []

        def slowly(*arguments):
            in_thread(lambda: (vm.stop(), stopped.set()))
            early.append(stopped.wait(0.2))
            return make(*arguments)

        vm = imds.Emulator()
        with mock.patch.object(imds, "_server_class", lambda: slowly):
            vm.start()
        self.addCleanup(vm.stop)
        self.assertTrue(stopped.wait(5))
        self.assertEqual(early, [False])
        self.assertRaises(RuntimeError, lambda: vm.url)

    def test_a_start_waits_for_the_stop_before_it(self):
        port, held, go_on = reserved_port(self), threading.Event(), threading.Event()
        vm = imds.Emulator(port=port, log=lambda line: (held.set(), go_on.wait(5))).start()
        self.addCleanup(vm.stop)
        self.connect(vm).sendall(REQUEST)
        self.assertTrue(held.wait(5))
        stopping, started = in_thread(vm.stop), threading.Event()
        self.until(lambda: vm._server is None)
        starting = in_thread(lambda: (vm.start(), started.set()))
        self.assertFalse(started.wait(0.2))
        go_on.set()
        self.assertTrue(started.wait(5))
        stopping.join()
        starting.join()
        self.assertEqual(imds.get("compute/name", endpoint="http://127.0.0.1:%d" % port), "avset2")

    def test_no_thread_to_be_had(self):
        before = leftovers()
        vm = imds.Emulator()
        with mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
            with warnings.catch_warnings(record=True) as seen, self.assertRaises(OSError) as caught:
                warnings.simplefilter("always")
                vm.start()
                gc.collect()
        self.assertIn("can't start new thread", str(caught.exception))
        self.assertIsNone(caught.exception.__cause__)
        del caught
        self.assertEqual((leftovers(), seen), (before, []))
        with self.assertRaises(RuntimeError):
            vm.url  # noqa: B018
        with vm:
            self.assertEqual(vm.get("compute/name"), "avset2")

    def test_stop_from_within(self):
        vm = imds.Emulator(log=lambda line: vm.stop())
        vm.start()
        thread = vm._thread
        with contextlib.suppress(imds.Error):
            vm.get("compute/name")
        with self.assertRaises(RuntimeError):
            vm.url  # noqa: B018
        thread.join(5)
        self.assertFalse(thread.is_alive())

    def test_stop_and_start_from_within_on_a_fixed_port(self):
        port, lines = reserved_port(self), []

        def log(line):
            lines.append(line)
            if len(lines) == 1:
                vm.stop()
                vm.start()

        vm = self.start(port=port, log=log)
        with contextlib.suppress(imds.Error):
            vm.get("compute/name", deadline=1)
        self.assertEqual(vm.port, port)
        self.assertEqual(vm.get("compute/name"), "avset2")

    def test_a_stop_from_without_waits_for_one_from_within(self):
        stopped, go_on = threading.Event(), threading.Event()
        vm = imds.Emulator(log=lambda line: (vm.stop(), stopped.set(), go_on.wait(5))).start()
        thread = vm._thread
        self.connect(vm).sendall(REQUEST)
        self.assertTrue(stopped.wait(5))
        stopping = in_thread(vm.stop)
        stopping.join(0.2)
        self.assertTrue(stopping.is_alive())
        go_on.set()
        stopping.join(5)
        self.assertFalse(stopping.is_alive() or thread.is_alive())

    @unittest.skipUnless(hasattr(os, "fork"), "no fork here")
    def test_a_forked_child_that_stops_it(self):
        vm = self.start()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fork with threads
            child = os.fork()
        if child == 0:
            vm._server.shutdown()
            os._exit(0)
        os.waitpid(child, 0)
        self.assertEqual(vm.get("compute/name"), "avset2")
        begun, until = time.process_time(), time.monotonic() + 0.4
        while time.monotonic() < until:
            time.sleep(0.1)
        self.assertLess(time.process_time() - begun, 0.2)  # its loop does not turn round and round

    def test_stop_from_within_and_from_without(self):
        within = threading.Event()

        def log(line):
            within.set()
            self.until(lambda: vm._server is None)  # the other one is about to stop it
            vm.stop()

        vm = imds.Emulator(log=log).start()
        thread = vm._thread
        self.connect(vm).sendall(REQUEST)
        self.assertTrue(within.wait(5))
        stopping = in_thread(vm.stop)
        stopping.join(1)
        thread.join(1)
        self.assertFalse(stopping.is_alive() or thread.is_alive(), "they wait for each other")


class Locks(Case):
    """Each lock is needed: what another thread does waits until it is free."""

    OPERATIONS = {
        "now": lambda vm: vm.now(), "advance": lambda vm: vm.advance(5), "approve": lambda vm: vm.approve(vm.one),
        "attested": lambda vm: vm.attested("1234567890"), "cancel": lambda vm: vm.cancel(vm.other),
        "events": lambda vm: vm.events(), "fail": lambda vm: vm.fail("500"), "faults": lambda vm: vm.faults(),
        "freeze": lambda vm: vm.freeze(), "identities": lambda vm: vm.identities, "instance": lambda vm: vm.instance,
        "lint": lambda vm: vm.lint(), "load_balancer": lambda vm: vm.load_balancer, "play": lambda vm: vm.play("redeploy"),
        "recover": lambda vm: vm.recover(), "replace": lambda vm: vm.replace({"compute": {}}),
        "requests": lambda vm: vm.requests, "reset": lambda vm: vm.reset(), "resume": lambda vm: vm.resume(1),
        "schedule": lambda vm: vm.schedule("Reboot"), "update": lambda vm: vm.update({"compute": {"name": "x"}}),
        "assert_requested": lambda vm: vm.assert_requested("/metadata/instance"),
        "assert_not_requested": lambda vm: vm.assert_not_requested("/x"),
        "set identities": lambda vm: setattr(vm, "identities", ["user:one"]),
        "set load_balancer": lambda vm: setattr(vm, "load_balancer", True),
    }

    def test_operations_wait_for_the_end_of_a_request(self):
        self.assertEqual(set(imds.OPERATIONS).difference(self.OPERATIONS), set())
        ended, early = [], []

        def log(line):  # in the server's thread, in the midst of a request
            def attempt(name, operation):
                with contextlib.suppress(ValueError, AssertionError):  # what another one has done
                    operation(vm)
                ended.append(name)

            threads.extend(in_thread(attempt, *row) for row in self.OPERATIONS.items())
            time.sleep(0.2)
            early.extend(ended)

        threads = []
        vm = self.start(log=log)
        vm.one, vm.other = vm.schedule("Freeze"), vm.schedule("Freeze")
        client = self.connect(vm)
        client.sendall(REQUEST)
        self.assertEqual(status(read_answer(client)), 200)
        for thread in threads:
            thread.join(5)
        self.assertEqual((early, sorted(ended)), ([], sorted(self.OPERATIONS)))

    def test_a_request_waits_for_the_end_of_an_operation(self):
        vm = self.start()
        client = self.connect(vm)
        client.settimeout(0.2)
        early = []

        def names():  # in a thread of ours, in the midst of an operation
            client.sendall(REQUEST)
            with contextlib.suppress(socket.timeout):
                early.append(client.recv(1000))
            yield "avset2"

        vm.schedule("Reboot", resources=names())
        self.assertEqual(early, [])
        client.settimeout(10)
        self.assertEqual(status(client.recv(1000)), 200)

    def midst(self, vm, lines, word):
        """Whether another thread could change the VM while a line with ``word`` was logged."""
        early, ended = [], threading.Event()

        def log(line):
            lines.append(line)
            if word in line and not early:
                in_thread(lambda: (vm.update({"compute": {"name": "x"}}), ended.set()))
                early.append(ended.wait(0.2))

        vm._bench._log = log
        return early

    def test_a_time_out_waits_as_well(self):
        vm, lines = self.start(), []
        early = self.midst(vm, lines, " 408 ")
        client = self.connect(vm)
        client.sendall(REQUEST[:-2])
        with Jump() as jump:
            self.let_pass(vm, jump, 11)
            self.assertEqual(status(read_all(client)), 408)
        self.assertEqual(early, [False])

    def test_a_report_waits_as_well(self):
        vm, lines = self.start(), []
        early = self.midst(vm, lines, "Traceback")
        with mock.patch.object(imds.Conversation, "receive", side_effect=KeyError("boo")):
            self.connect(vm).sendall(REQUEST)
            self.until(lambda: early)
        self.assertEqual(early, [False])

    def test_clock(self):
        for change, expected in ((lambda clock: clock.advance(5), 105), (lambda clock: clock.resume(3), 100)):
            calls, early, threads = [], [], []

            def source():
                calls.append(None)  # noqa: B023
                if len(calls) == 4:  # noqa: B023  # the second of resume(), which has read what another thread may not change
                    changed = threading.Event()
                    threads.append(in_thread(lambda: (change(clock), changed.set())))  # noqa: B023
                    early.append(changed.wait(0.2))  # noqa: B023
                return 100.0

            clock = imds.Clock(source)
            clock()
            clock.resume(2)
            threads[0].join()
            self.assertEqual((early, clock()), ([False], expected))

    def test_clock_reset(self):
        class Slow(float):
            def __radd__(self, other):  # in the midst of advance()
                thread = in_thread(clock.reset)
                thread.join(0.2)
                return float(other) + float(self)

        clock = imds.Clock(lambda: 100.0)
        clock.advance(Slow(5))
        self.until(lambda: clock() == 100, 0.5)


class Connections(Case):
    def test_an_idle_or_stalled_client_holds_up_nobody(self):
        with imds.Emulator() as vm:
            for part in (b"", b"GET", REQUEST[:-2], POST + b"Content-Length: 9\r\n\r\n"):
                self.connect(vm).sendall(part)
            begun = time.monotonic()
            self.assertEqual(vm.get("compute/name"), "avset2")
            self.assertLess(time.monotonic() - begun, 1)

    def test_five_hundred_connections(self):
        if os.name == "posix" and most_files() < 1100:
            self.skipTest("too few descriptors here")
        with imds.Emulator() as vm:
            clients = [self.connect(vm) for _ in range(400 if os.name == "nt" else 500)]
            for client in clients:
                client.sendall(REQUEST)
            for client in clients:
                self.assertEqual(status(client.recv(1000)), 200)

    def test_the_rate_is_kept_with_many_clients_at_once(self):
        with imds.Emulator(rate_limit=5, clock=lambda: 0) as vm:
            seen, threads = [], []

            def burst():
                client = socket.create_connection(("127.0.0.1", vm.port))
                for _ in range(10):
                    client.sendall(REQUEST)
                    seen.append(status(client.recv(1000)))
                client.close()

            for _ in range(10):
                threads.append(in_thread(burst))
            for thread in threads:
                thread.join()
            self.assertEqual((seen.count(200), seen.count(429)), (5, 95))

    def test_half_closed(self):
        with imds.Emulator() as vm:
            client = self.connect(vm)
            client.sendall(REQUEST)
            client.shutdown(socket.SHUT_WR)
            self.assertTrue(read_all(client).endswith(b"avset2"))

    def test_resets_make_no_noise(self):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), imds.Emulator() as vm:
            for part in (b"", REQUEST[:20], REQUEST * 50):
                client = self.connect(vm)
                client.sendall(part)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            self.assertEqual(vm.get("compute/name"), "avset2")
        self.assertEqual(errors.getvalue(), "")

    def test_tls_is_answered_at_once(self):
        with imds.Emulator() as vm:
            client = self.connect(vm)
            client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            self.assertEqual(status(read_all(client)), 400)

    def test_a_refusal_is_read_before_the_connection_ends(self):
        with imds.Emulator() as vm:
            client = self.connect(vm)
            client.sendall(POST + b"Content-Length: 9999999\r\n\r\n" + b"a" * 200000)
            self.assertEqual(status(read_all(client)), 413)
            for _ in range(20):  # it goes on reading for a while, so that no reset overtakes the refusal
                client.sendall(b"a" * 1000)
                time.sleep(0.002)

    def test_a_large_answer_comes_whole_whatever_else_is_sent(self):
        target = b"GET /metadata/instance?api-version=2021-02-01 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nMetadata: true"
        with imds.Emulator() as vm:
            vm.update({"compute": {"userData": "a" * 3000000}})
            for tail in (b"\r\n\r\n", b"\r\n\r\n\r\n", b"\r\n\r\n" + REQUEST, b"\r\nX: " + b"x" * (16384 - len(target) - 9) + b"\r\n\r\nGET"):
                client = self.connect(vm, SO_RCVBUF=65536)
                client.sendall(target + tail)
                time.sleep(0.05)
                client.sendall(b"\r\n")
                self.assertGreater(len(read_all(client)), 3000000)

    def test_a_connection_ends_at_once_only_if_no_answer_can_be_lost(self):
        head = b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nMetadata: true\r\n"
        leaf = head % b"/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        large = head % b"/metadata/instance/compute/userData?api-version=2021-02-01&format=text"
        for request, size, lingers in (
            (leaf + b"\r\n", 6, False), (leaf + b"\r\n", 6, False), (leaf + b"\r\n\r\n", 6, True),
            (leaf + b"\r\n" + REQUEST, 6, True), (leaf + b"Content-Length: 1\r\n\r\na", 6, True),
            (large + b"\r\n", 9000, True), (large + b"\r\n", 9000, True), (REQUEST[:-4] + b"\r\nX Y\r\n\r\n", None, True),
        ):
            with self.subTest(request=request), imds.Emulator({"compute": {"name": "avset2", "userData": "a" * 9000}}) as vm:
                client = self.connect(vm)
                client.sendall(request)
                reply = read_all(client)
                self.assertEqual(len(reply.partition(b"\r\n\r\n")[2]), size or 26)
                self.poke(vm)
                ended = [each for each in vm._server.connections if each.conversation.ending]
                self.assertEqual([each.lingering for each in ended], [True] * lingers)

    def test_no_answer_is_lost_with_what_was_not_read(self):
        head = b"GET /metadata/instance/compute/name?api-version=2021-02-01&format=text HTTP/1.1\r\nHost: localhost\r\n" \
               b"Connection: close\r\nMetadata: true\r\nX: "
        with imds.Emulator() as vm:  # as much as is read at once, and more
            client = self.connect(vm)
            client.sendall(head + b"a" * (16384 - len(head) - 4) + b"\r\n\r\n" + b"more")
            self.assertTrue(read_all(client).endswith(b"avset2"))

    def test_who_goes_while_a_delayed_answer_is_to_be_the_last_is_forgotten(self):
        for fault in ("delay 100ms hang", "delay 100ms cut"):
            with self.subTest(fault=fault), imds.Emulator(faults=[fault]) as vm:
                client = self.connect(vm)
                client.sendall(REQUEST)
                vm.wait_for(TARGET)
                client.sendall(REQUEST)
                time.sleep(0.2)
                client.close()
                self.poke(vm)
                self.until(lambda: not vm._server.connections, 1)  # noqa: B023

    def test_but_not_for_ever(self):
        with imds.Emulator() as vm, Jump() as jump:
            client = self.connect(vm)
            client.sendall(POST + b"Content-Length: 9999999\r\n\r\n")
            self.assertEqual(status(read_all(client)), 413)
            client.sendall(b"a" * 1000)
            self.let_pass(vm, jump, 4)
            client.sendall(b"a" * 1000)  # which does not make it longer
            self.let_pass(vm, jump, 2)
            with self.assertRaises(OSError):
                for _ in range(100):
                    client.sendall(b"a" * 1000)
                    time.sleep(0.01)

    def test_answers_in_pieces_are_not_held_back(self):
        with imds.Emulator() as vm:
            client = self.connect(vm)
            client.sendall(REQUEST)
            client.recv(65536)
            connections = [each.socket for each in vm._server.connections]
            self.assertEqual([bool(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) for each in connections], [True])

    def test_one_that_is_gone_already(self):
        setblocking, failed = socket.socket.setblocking, []

        def fail_once(self, flag):
            if not flag and not failed:
                failed.append(self)
                raise OSError(errno.EINVAL, "Invalid argument")
            return setblocking(self, flag)

        with imds.Emulator() as vm:
            vm.get("compute/name")
            with mock.patch.object(socket.socket, "setblocking", fail_once):
                gone = self.connect(vm)
                self.assertEqual(read_all(gone), b"")
            self.assertEqual(failed[0].fileno(), -1)
            self.assertEqual(vm.get("compute/name"), "avset2")


class Fairness(Case):
    def test_pipelined_requests_let_others_in(self):
        for flood in (REQUEST * 500, b"".join(REQUEST.replace(b"localhost", b"localhost:%d" % each) for each in range(150))):
            lines, other = [], []

            def log(line):  # in the server's thread: somebody else comes after the first request of many
                lines.append(line)  # noqa: B023
                if len(lines) == 1:  # noqa: B023
                    other.append(self.connect(vm))  # noqa: B023
                    other[0].sendall(REQUEST.replace(b"compute/name", b"compute/zone"))  # noqa: B023

            vm = self.start(log=log)
            client = self.connect(vm)
            client.sendall(flood)
            self.assertEqual(status(other and other[0].recv(1000) or client.recv(1) and other[0].recv(1000)), 200)
            place = next(at for at, line in enumerate(lines) if "compute/zone" in line)
            self.assertLess(place, 70)
            count = flood.count(b"GET")
            self.until(lambda: len(lines) == count + 1)  # noqa: B023

    def test_who_comes_again_is_not_there_at_once(self):
        request = ("GET %s HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\nConnection: close\r\n\r\n" % (
            TOKEN + VAULT)).encode()
        got = []
        with imds.Emulator(rate_limit=1000, log=lambda line: time.sleep(0.002)) as vm:
            def ask_one_after_another():
                for _ in range(10):
                    with socket.create_connection(("127.0.0.1", vm.port), 5) as client:
                        client.sendall(request)
                        got.append(status(read_all(client)))

            threads = [in_thread(ask_one_after_another) for _ in range(2)]
            for thread in threads:
                thread.join()
        self.assertEqual(set(got), {200})

    def test_a_client_that_gave_up_is_not_kept(self):
        with imds.Emulator(faults=["delay 1h huge x3"]) as vm:
            server = vm._server
            for _ in range(3):
                client = self.connect(vm)
                client.sendall(REQUEST)
                vm.wait_for("instance/compute/name")
                client.close()
            self.until(lambda: len(server.timers) == 3 and not server.connections)
            self.assertEqual([len(connection.later) for _, _, connection in server.timers], [0, 0, 0])

    def test_newcomers_let_others_in(self):
        lines = []

        def log(line):  # in the server's thread: many come after the first request
            lines.append(line)
            if len(lines) == 1:
                for _ in range(200):
                    self.connect(vm).sendall(REQUEST)
                other.sendall(REQUEST.replace(b"compute/name", b"compute/zone"))

        vm = self.start(log=log)
        other = self.connect(vm)
        self.connect(vm).sendall(REQUEST)
        self.assertEqual(status(read_answer(other)), 200)
        self.assertLess(next(at for at, line in enumerate(lines) if "compute/zone" in line), 40)

    def test_a_client_that_does_not_read_is_not_read(self):
        answered = []
        with imds.Emulator({"compute": {"userData": "a" * 40000}}, log=answered.append) as vm:
            deaf = self.connect(vm, SO_RCVBUF=4096)
            sent, count = WHOLE * 1000, 1000
            thread = in_thread(deaf.sendall, sent)
            self.assertEqual(vm.get("compute/userData"), "a" * 40000)
            self.until(lambda: len(answered) > 10)
            before = -1
            while before != len(answered):
                before = len(answered)
                time.sleep(0.05)
            self.assertLess(len(answered), 400)  # what the system keeps for sockets, and a little
            connection, = [each for each in vm._server.connections if each.unsent]
            self.assertLess(len(connection.unsent), 200000)
            self.assertLess(len(connection.conversation._unread), 100000)
            data = 0
            while data < count * 40000:  # and it gets all when it reads
                data += len(deaf.recv(1 << 20))
            thread.join()

    def test_a_client_that_reads_slowly_is_not_cut(self):
        size = 12000000
        with imds.Emulator({"compute": {"userData": "a" * size}}) as vm, Jump() as jump:
            slow, stuck = self.connect(vm, SO_RCVBUF=65536), self.connect(vm, SO_RCVBUF=65536)
            for client in (slow, stuck):
                client.sendall(WHOLE)
            got = seconds = 0
            while got < size:
                until = got + 1500000  # more than the system keeps for one socket
                while got < min(until, size):
                    chunk = slow.recv(65536)
                    self.assertTrue(chunk, "cut after %d bytes and %d seconds" % (got, seconds))
                    got += len(chunk)
                self.let_pass(vm, jump, 25)  # so 60 kB a second are enough
                seconds += 25
            self.assertGreater(seconds, 150)
            self.assertLess(len(read_all(stuck)), size)


class Timers(Case):
    def setUp(self):
        self.vm = self.start()
        self.jump = Jump()
        self.jump.__enter__()
        self.addCleanup(self.jump.__exit__)

    def later(self, seconds):
        """Let so much time pass, and let the server see it."""
        self.let_pass(self.vm, self.jump, seconds)

    def is_open(self, client):
        client.setblocking(False)
        try:
            return client.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        finally:
            client.settimeout(2)  # what is due comes at once

    def test_an_idle_connection_has_two_minutes(self):
        idle, used = self.connect(self.vm), self.connect(self.vm)
        for seconds in (60, 58):
            self.later(seconds)
            used.sendall(REQUEST)
            self.assertEqual(status(read_answer(used)), 200)
            self.assertTrue(self.is_open(idle))
        self.later(3)
        self.assertEqual(read_all(idle), b"")
        self.later(115)
        self.assertTrue(self.is_open(used))
        self.later(5)
        self.assertEqual(read_all(used), b"")

    def test_a_request_has_ten_seconds(self):
        body = POST + b"Content-Length: 9\r\n\r\n"
        stalled, half, trickling = [self.connect(self.vm) for _ in range(3)]
        stalled.sendall(REQUEST[:-2])
        half.sendall(body)
        for at, seconds in enumerate((0, 3, 3, 3)):  # never silent for long, and never done
            trickling.sendall(REQUEST[at:at + 1])
            self.later(seconds)
            for client in (stalled, half, trickling):
                self.assertTrue(self.is_open(client))
        self.later(2)
        for client in (stalled, half, trickling):
            answer = read_all(client)
            self.assertEqual(status(answer), 408)
            self.assertTrue(answer.endswith(b'{ "error": "Request timeout" }'))

    def test_they_begin_anew_with_each_request(self):
        client = self.connect(self.vm)
        self.later(100)
        client.sendall(REQUEST[:-2])
        self.later(9)
        client.sendall(REQUEST[-2:] + REQUEST[:9])
        self.assertEqual(status(read_answer(client)), 200)
        self.later(9)
        self.assertTrue(self.is_open(client))
        self.later(2)
        self.assertEqual(status(read_all(client)), 408)

    def test_a_connection_is_not_ended_at_the_next_sweep(self):
        client = self.connect(self.vm)
        for _ in range(3):
            self.later(2)
            client.sendall(REQUEST)
            self.assertEqual(status(read_answer(client)), 200)


class Faults(Case):
    def test_a_fault_is_answered_and_a_log_may_fail(self):
        def fail(line):
            raise OSError("no space left")

        with imds.Emulator(log=fail) as vm:
            self.assertEqual(vm.get("compute/name"), "avset2")
            vm._bench.service.respond = None  # what no caller can do
            client = self.connect(vm)
            client.sendall(REQUEST)
            answer = read_answer(client)
            self.assertTrue(answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n"))
            self.assertTrue(answer.endswith(b'\r\n\r\n{ "error": "Server error" }'))

    def test_its_traceback_is_in_the_log(self):
        lines = []
        with imds.Emulator(log=lines.append) as vm:
            vm._bench.service.respond = None
            client = self.connect(vm)
            client.sendall(REQUEST)
            self.assertEqual(status(read_answer(client)), 500)
        self.assertEqual(lines[0], "imds: Traceback (most recent call last):")
        self.assertIn("imds: TypeError: 'NoneType' object is not callable", lines)
        self.assertTrue(lines[-1].endswith(' HTTP/1.1" 500 internal error'))

    def test_a_clock_that_raises_ends_one_conversation(self):
        moment, lines = [1e9], []

        def clock():
            if isinstance(moment[0], Exception):
                raise moment[0]
            return moment[0]

        with imds.Emulator(clock=clock, log=lines.append) as vm:
            other, hit = self.connect(vm), self.connect(vm)
            other.sendall(REQUEST)
            self.assertEqual(status(read_answer(other)), 200)
            moment[0] = OverflowError("no such year")
            hit.sendall(REQUEST)
            self.assertEqual(read_all(hit), b"")
            self.until(lambda: "imds: OverflowError: no such year" in lines)
            self.assertIn("imds: Traceback (most recent call last):", lines)
            moment[0] = 1e9
            other.sendall(REQUEST)
            self.assertEqual(status(read_answer(other)), 200)

    def test_or_shows_a_year_that_nobody_can_write(self):
        for moment in (1e18, float("nan"), float("inf"), -1e18, None, "soon"):
            now = [1e9]
            with imds.Emulator(clock=lambda: now[0]) as vm:  # noqa: B023
                other, hit, stalled = [self.connect(vm) for _ in range(3)]
                stalled.sendall(REQUEST[:-2])
                other.sendall(REQUEST)
                self.assertEqual(status(read_answer(other)), 200)
                now[0] = moment
                hit.sendall(REQUEST)
                self.assertIn(status(read_all(hit)), (None, 500))
                with Jump() as jump:
                    jump(11)
                    self.connect(vm).sendall(b"\r\n")
                    self.assertIn(status(read_all(stalled)), (None, 408))
                now[0] = 1e9
                other.sendall(REQUEST)
                self.assertEqual(status(read_answer(other)), 200)

    def test_whatever_raises_in_one_conversation(self):
        receive = imds.Conversation.receive

        def fail(talk, data=b""):
            if b"boo" in data:
                raise KeyError("boo")
            return receive(talk, data)

        lines = []
        with imds.Emulator(log=lines.append) as vm, mock.patch.object(imds.Conversation, "receive", fail):
            hit = self.connect(vm)
            hit.sendall(b"boo")
            self.assertEqual(read_all(hit), b"")
            self.assertEqual(vm.get("compute/name"), "avset2")
        self.assertIn("imds: KeyError: 'boo'", lines)


class Limits(Case):
    def serve(self, script, *arguments):
        """A server in a process of its own; its URL."""
        process = subprocess.Popen(list(script) + list(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(lambda: process.returncode is None and process.communicate())
        self.addCleanup(process.terminate)
        return process, process.stdout.readline().decode().strip()

    def end(self, process):
        process.terminate()
        errors = process.communicate(timeout=10)[1].decode()
        self.assertEqual((process.returncode, "Traceback" in errors), (0, False), errors)

    def connect_all(self, url, count):
        clients = []
        for _ in range(count):
            clients.append(socket.create_connection(url[7:].split(":"), 10))
            self.addCleanup(clients[-1].close)
        return clients

    @unittest.skipUnless(os.name == "posix", "no limits here")
    def test_more_clients_than_descriptors(self):
        limited = ["sh", "-c", 'ulimit -n 64; exec "$0" "$1" serve --port 0 --quiet', sys.executable, FILE]
        process, url = self.serve(limited)
        busy = self.connect_all(url, 10)
        for client in busy:
            client.sendall(REQUEST[:-2])
        idle = self.connect_all(url, 100)  # the last of them are not accepted yet
        for _ in range(3):
            self.assertEqual(imds.get("compute/name", endpoint=url, timeout=5, deadline=10), "avset2")
        for client in busy:  # only what is idle was dropped
            client.sendall(REQUEST[-2:])
            self.assertEqual(status(read_answer(client)), 200)
        ended = 0
        for client in idle:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                ended += client.recv(1) == b""
        self.assertGreater(ended, 20)
        self.end(process)

    def test_no_descriptor_and_nobody_idle(self):
        with imds.Emulator() as vm, Jump() as jump:
            busy, idle, used = [self.connect(vm) for _ in range(3)]
            busy.sendall(REQUEST[:-2])
            for client in (idle, used):
                client.sendall(REQUEST)
                self.assertEqual(status(read_answer(client)), 200)
            server = vm._server
            self.poke(vm)
            self.until(lambda: len(server.connections) == 3)
            jump(2)
            used.sendall(REQUEST)
            self.assertEqual(status(read_answer(used)), 200)
            accept, refused = type(server).get_request, []

            def no_descriptor(self):
                if len(refused) < 2:
                    refused.append(len(server.connections))
                    raise OSError(errno.EMFILE, "Too many open files")
                return accept(self)

            with mock.patch.object(type(server), "get_request", no_descriptor):
                newcomer = self.connect(vm)
                newcomer.sendall(REQUEST)
                self.until(lambda: len(refused) == 2)
                jump(2)  # it tries again once a second
                used.sendall(REQUEST)
                self.assertEqual(status(read_answer(used)), 200)
                self.assertEqual(status(read_answer(newcomer)), 200)
                self.assertEqual(refused[:2], [3, 2])  # one was dropped, and then there was nobody to drop
                self.assertEqual(read_all(idle), b"")
                for client in (busy, used):
                    client.sendall(REQUEST[-2:] if client is busy else REQUEST)
                    self.assertEqual(status(read_answer(client)), 200)

    @unittest.skipUnless(os.name == "posix" and os.path.isdir("/proc/self/fd"), "not to be tried here")
    def test_select_and_its_few_sockets(self):
        if most_files() < 700:
            self.skipTest("too few descriptors here")
        script = ("import selectors, sys; selectors.DefaultSelector = selectors.SelectSelector; sys.path.insert(0, %r);"
                  " import imds; imds.main(['serve', '--port', '0', '--quiet'])" % os.path.dirname(FILE))
        process, url = self.serve([sys.executable, "-W", "error", "-c", script])
        busy = self.connect_all(url, 20)
        for client in busy:
            client.sendall(REQUEST[:-2])
        clients = self.connect_all(url, 580)
        self.assertEqual(imds.get("compute/name", endpoint=url, timeout=5, deadline=10), "avset2")
        for client in busy:
            client.sendall(REQUEST[-2:])
            self.assertEqual(status(read_answer(client)), 200)
        clients[-1].sendall(REQUEST)
        self.assertEqual(status(read_answer(clients[-1])), 200)
        self.assertLess(len(os.listdir("/proc/%d/fd" % process.pid)), 512)
        self.end(process)


class Hosts(Case):
    """What a page in a browser can't do, whatever name it gives the emulator."""

    def ask(self, vm, host, verb="GET", target="/metadata/instance?api-version=2021-02-01", headers="Metadata: true\r\n"):
        client = self.connect(vm)
        client.sendall(("%s %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (verb, target, host, headers)).encode())
        return status(read_answer(client))

    def test_rebinding(self):
        vm = self.start()
        for host, expected in (
            ("127.0.0.1:%d" % vm.port, 200), ("localhost", 200), ("LOCALHOST:80", 200), ("169.254.169.254", 200),
            ("[::1]:8169", 200), ("[fe80::1]", 200), ("", 200), ("evil.example", 400), ("evil.example:%d" % vm.port, 400),
            ("127.0.0.1.evil.example", 400), ("localhost.evil.example", 400), ("metadata", 400),
        ):
            with self.subTest(host=host):
                self.assertEqual(self.ask(vm, host), expected)

    def test_elsewhere_any_name_may_read(self):
        self.assertEqual(self.ask(self.start(host="0.0.0.0"), "imds"), 200)

    def test_a_post_needs_the_header(self):
        vm = self.start()
        target = "/metadata/scheduledevents?api-version=2017-03-01"
        self.assertEqual(self.ask(vm, "localhost", target=target, headers=""), 200)
        event_id = vm.schedule("Reboot")
        body = '{"StartRequests":[{"EventId":"%s"}]}' % event_id
        for more, expected, state in (("Origin: http://evil.example\r\nContent-Type: text/plain\r\n", 400, "Scheduled"),
                                      ("Metadata: true\r\n", 200, "Started")):
            client = self.connect(vm)
            client.sendall(("POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n%s" % (
                target, more, len(body), body)).encode())
            self.assertEqual(status(read_answer(client)), expected)
            self.assertEqual(imds.scheduled_events(endpoint=vm.url)["Events"][0]["EventStatus"], state)

    def test_nothing_is_shared_with_other_origins(self):
        vm = self.start()
        client = self.connect(vm)
        client.sendall(REQUEST.replace(b"Host:", b"Origin: http://evil.example\r\nHost:"))
        self.assertNotIn(b"access-control", read_answer(client).lower())
        preflight = "Origin: http://evil.example\r\nAccess-Control-Request-Method: GET\r\n" \
                    "Access-Control-Request-Headers: metadata\r\n"
        self.assertEqual(self.ask(vm, "localhost", "OPTIONS", headers=preflight), 405)
