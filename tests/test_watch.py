"""Rooms 9 and 10: watching scheduled events, in a program and by `events --watch` with its handlers."""

import contextlib
import io
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
from unittest import mock

import imds
from tests.support import CLOSED, FILE, HTML, Patient, Script, reply, reserved_port

EVENT = ('{"EventId":"%s","EventStatus":"%s","EventType":"Reboot","ResourceType":"VirtualMachine","Resources":["avset2"],'
         '"NotBefore":"%s","Description":"%s","EventSource":"Platform","DurationInSeconds":-1}')
NOT_BEFORE = "Tue, 24 Nov 2099 18:00:00 GMT"
# The command line, but with less time between two looks, and less grace for a handler.
SCRIPT = ("import sys; sys.path.insert(0, %r); import imds; imds.RATE_LIMIT, imds.GRACE, imds.NOBODY = 100, 0.3, 0.3;"
          " imds.main()"
          % os.path.dirname(FILE))


def event(event_id="E1", status="Scheduled", not_before=NOT_BEFORE, description=""):
    return EVENT % (event_id, status, "" if status == "Started" else not_before, description)


def listed(*events, incarnation=1):
    """An answer with a list of events."""
    return reply(200, ('{"DocumentIncarnation":%d,"Events":[%s]}' % (incarnation, ",".join(events))).encode())


class Program(unittest.TestCase):
    """imds.watch_events, with a clock that only its pauses move."""

    def setUp(self):
        self.patient, self.said = Patient(), io.StringIO()

    def changes(self, url, count, patient=None, **settings):
        """The next so many lists, or the Error instead."""
        interval = settings.pop("interval", 1)
        lists = []
        with contextlib.redirect_stderr(self.said):
            try:
                for document in (patient or self.patient).client(url, **settings).watch_events(interval=interval):
                    lists.append(document)
                    if len(lists) == count:
                        break
            except imds.Error as error:
                lists.append(error)
        return lists

    def lines(self):
        return self.said.getvalue().splitlines()

    def test_it_yields_each_incarnation_once(self):
        with imds.Emulator() as vm:
            changes = self.patient.client(vm.url).watch_events(interval=0)
            self.assertEqual(next(changes)["Events"], [])
            vm.schedule("Reboot")
            self.assertEqual(len(next(changes)["Events"]), 1)
            vm.clock.advance(900)
            self.assertEqual(next(changes)["Events"][0]["EventStatus"], "Started")
            self.assertTrue(all(pause >= 0.2 for pause in self.patient.pauses))  # 5 requests a second at most

    def test_it_passes_over_what_is_the_same(self):
        same, other = listed(), listed(incarnation=2)
        with Script(same, same, same, other) as server:
            lists = self.changes(server.url, 2)
            self.assertEqual([document["DocumentIncarnation"] for document in lists], [1, 2])
            self.assertEqual(len(server.requests), 4)
        self.assertEqual(self.patient.pauses, [1, 1, 1])

    def test_what_a_program_does_to_a_list(self):
        with Script(listed(event()), listed(event()), listed(incarnation=2)) as server:
            lists = []
            for document in self.patient.client(server.url).watch_events():
                lists.append(len(document["Events"]))
                document["Events"].clear()
                if len(lists) == 2:
                    break
        self.assertEqual((lists, len(server.requests)), ([1, 0], 3))

    def test_its_interval(self):
        with imds.Emulator() as vm:
            for settings, expected in (({}, 1), ({"interval": 7}, 7), ({"interval": 0}, 0.2), ({"interval": 0.1}, 0.2)):
                patient = Patient()
                changes = patient.client(vm.url).watch_events(**settings)
                next(changes)
                vm.schedule("Reboot")
                next(changes)
                self.assertEqual(patient.pauses, [expected])

    def test_what_passes(self):
        cut = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n"
        for passing, word in (
            ([reply(200, b"<html>Log in</html>", HTML)], "an HTML page"), ([reply(200, b"{")], "broken JSON"),
            ([reply(200, b"[]")], "JSON of another shape"), ([reply(302, b"")], "a redirect"), ([b"SSH-2.0-x\r\n"], "not HTTP"),
            ([reply(400, b"{}")], "answered 400"), ([reply(404, b"{}")] * 2, "answered 404"),
            ([reply(500, b"")] * 3, None), ([reply(429, b"")], None), ([reply(410, b"")] * 5, None), ([None] * 3, None),
            ([cut], None), ([listed("[]", event("E2"), incarnation=5)], "an event that can't be read"),
        ):
            with self.subTest(passing=passing[0] and passing[0][:60]):
                self.setUp()
                with Script(listed(), *passing + [listed(event(), incarnation=9)]) as server:
                    lists = self.changes(server.url, 3 if b"E2" in (passing[0] or b"") else 2)
                self.assertEqual([document["DocumentIncarnation"] for document in (lists[0], lists[-1])], [1, 9])
                self.assertEqual(len(self.lines()), 1 if word else 0, self.lines())
                for line in self.lines():
                    self.assertIn(word, line)
                    self.assertTrue(line.startswith("imds: ") and line.endswith("; watching goes on"), line)

    def test_it_waits_as_long_as_the_service_asks_for(self):
        for seconds, statuses in ((7, 1), (15, 1), (60, 9)):
            self.setUp()
            with Script(listed(), *[reply(429, b"", headers=["Retry-After: %d" % seconds])] * statuses + [
                    listed(incarnation=2)]) as server:
                lists = self.changes(server.url, 2)
            if seconds == 7:  # within a call
                self.assertEqual([pause for pause in self.patient.pauses if pause > 5], [7])
                self.assertEqual(lists[-1]["DocumentIncarnation"], 2)
            elif seconds == 15:  # longer than it may be without a look
                self.assertEqual([pause for pause in self.patient.pauses if pause > 5], [10])
                self.assertEqual(lists[-1]["DocumentIncarnation"], 2)
            else:  # longer than a call may last
                self.assertIsInstance(lists[-1], imds.Unavailable)
                self.assertEqual(self.patient.pauses, [1, 10, 10])  # an event may have a notice of 30 seconds
                self.assertEqual(len(server.requests), 4)

    def test_who_moves_may_fail_meanwhile(self):
        moving, failing = (reply(status, b"", headers=["Retry-After: 15"]) for status in (410, 503))
        with Script(listed(), moving, moving, moving, failing, listed(incarnation=2)) as server:
            lists = self.changes(server.url, 2)
        self.assertEqual(lists[-1]["DocumentIncarnation"], 2)

    def test_one_that_can_not_be_read_for_a_while_is_not_gone(self):
        good, odd = listed(event("E1")), listed(event("E1").replace('["avset2"]', "null"))
        with Script(good, odd, odd, good, listed(incarnation=2)) as server:
            lists = self.changes(server.url, 2)
        self.assertEqual([[shown["EventId"] for shown in document["Events"]] for document in lists], [["E1"], []])
        with Script(odd, good, listed(incarnation=2)) as server:
            lists = self.changes(server.url, 3)
        self.assertEqual([[shown["EventId"] for shown in document["Events"]] for document in lists], [[], ["E1"], []])

    def test_what_is_gone_beside_one_that_can_not_be_read(self):
        odd = event("E1").replace('["avset2"]', "null")
        for unread, left in ((odd, ["E1"]), (odd.replace("E1", "e1"), ["E1"]), ("{}", ["E1", "E2"]), ('{"EventId":"E9"}', [])):
            with Script(listed(event("E1"), event("E2")), listed(unread, incarnation=2)) as server:
                lists = self.changes(server.url, 2)
            self.assertEqual([shown["EventId"] for shown in lists[1]["Events"]], left)

    def test_good_events_among_odd_ones(self):
        odd = [event("E2", not_before="soon"), event("E3", not_before="99999-01-01T00:00:00Z"),
               event("E4", description="\\ud800"), event("E5").replace('["avset2"]', '"avset2"'), '{"EventId":[]}']
        for each in odd:
            with Script(listed(event("E1"), each, event("E9"))) as server:
                document, = self.changes(server.url, 1)
            self.assertEqual([shown["EventId"] for shown in document["Events"]], ["E1", "E9"])

    def test_it_says_so_once(self):
        bad = reply(200, b"{")
        with Script(listed(), bad, bad, bad, listed(), bad, listed(incarnation=2)) as server:
            self.changes(server.url, 2)
        self.assertEqual(len(self.lines()), 2)  # again after it was well again

    def test_a_service_that_comes_back(self):
        port = reserved_port(self)
        vm = imds.Emulator(port=port)

        class Back(Patient):
            def sleep(self, seconds):
                super().sleep(seconds)
                if self.now > 15 and not started:
                    started.append(vm.start())

        started = []
        vm.schedule("Reboot")
        document, = self.changes("http://127.0.0.1:%d" % port, 1, Back())
        vm.stop()
        self.assertEqual(len(document["Events"]), 1)
        self.assertEqual(len(self.lines()), 1, self.lines())
        self.assertIn("nobody answers", self.lines()[0])

    def test_when_it_ends(self):
        for bad, least, most, kind, settings in (
            (reply(500, b""), 21, 24, imds.Unavailable, {}), (reply(200, b"{"), 21, 30, imds.NotIMDS, {}),
            (None, 21, 24, imds.Unreachable, {}), (reply(410, b""), 71, 74, imds.Unavailable, {}),
            (reply(400, b"{}"), 21, 30, imds.Refused, {}), (reply(200, b"{"), 6, 8, imds.NotIMDS, {"deadline": 5}),
            (reply(500, b""), 6, 9, imds.Unavailable, {"deadline": 5}), (None, 6, 9, imds.Unreachable, {"deadline": 5}),
        ):
            with self.subTest(bad=bad and bad[:60]):
                patient = Patient()
                with Script(listed(), bad) as server:
                    lists = self.changes(server.url, 99, patient, **settings)
                self.assertEqual([type(each) for each in lists], [dict, kind])
                self.assertTrue(least <= patient.now <= most, patient.now)

    def test_when_it_ends_without_a_first_list(self):
        for bad in (reply(500, b""), None, reply(410, b""), reply(429, b"", headers=["Retry-After: 9"])):
            patient = Patient()
            with Script(bad) as server:
                lists = self.changes(server.url, 1, patient)
            self.assertIsInstance(lists[0], (imds.Unavailable, imds.Unreachable))
            self.assertTrue(120 <= patient.now <= 124, patient.now)

    def test_who_is_gone_after_it_said_that_it_moves(self):
        patient = Patient()
        with Script(listed(), reply(410, b"", headers=["Retry-After: 15"]), None) as server:
            lists = self.changes(server.url, 2, patient)
        self.assertIsInstance(lists[-1], imds.Unreachable)
        self.assertTrue(21 <= patient.now <= 24, patient.now)

    def test_a_move_that_is_heard_of_between_failures(self):
        class Course(Patient):
            def answer(self, request):
                busy = reply(503, b"", headers=["Retry-After: 11"])
                return next(each for until, each in ((5, listed()), (6.5, busy), (17.5, reply(410, b"")), (28, reply(503, b"")),
                                                     (99, listed(incarnation=2))) if self.now < until)

        patient = Course()
        with Script(patient.answer) as server:
            lists = self.changes(server.url, 2, patient)
        self.assertEqual([each["DocumentIncarnation"] for each in lists], [1, 2])
        self.assertLess(patient.now, 40)

    def test_a_first_list_that_is_slow_after_the_service_was_away(self):
        patient = Patient()

        def answer(request):
            if patient.now < 5:
                return None
            patient.now += 118
            return listed()

        with Script(answer) as server:
            self.assertEqual(len(self.changes(server.url, 1, patient)), 1)
        self.assertGreater(patient.now, 118)

    def test_a_first_list_may_take_longer(self):
        patient = Patient()
        with Script(lambda request: listed() if patient.now > 100 else reply(500, b"")) as server:
            self.assertEqual(len(self.changes(server.url, 1, patient)), 1)


class Case(unittest.TestCase):
    def setUp(self):
        if os.name != "posix":
            self.skipTest("signals of POSIX")

    def watch(self, url, *arguments, **settings):
        """An `events --watch` process."""
        command = settings.pop("command", [sys.executable, "-W", "error", "-c", SCRIPT])
        process = subprocess.Popen(
            command + ["events", "--watch", "--interval", "0.05", "--endpoint", url] + list(arguments),
            stdout=settings.pop("stdout", subprocess.PIPE), stderr=subprocess.PIPE, bufsize=0, **settings)
        self.addCleanup(lambda: process.returncode is None and process.communicate())
        self.addCleanup(lambda: process.returncode is None and process.kill())
        return process

    def end(self, process, number=signal.SIGINT, code=130):
        """The rest of what it prints, and its standard error."""
        process.send_signal(number)
        out, errors = process.communicate(timeout=10)
        self.assertEqual(process.returncode, code, errors)
        self.assertNotIn(b"Traceback", errors)
        return (out or b"").decode(), errors.decode()

    def until(self, condition, seconds=8):
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end, "it never came")
            time.sleep(0.01)

    def line(self, pipe):
        """The next line that a process prints."""
        self.assertTrue(select.select([pipe], [], [], 8)[0], "it never came")
        return pipe.readline()

    def looks(self, vm, count):
        """Let it look so many times more."""
        before = vm.requests[-1].number if vm.requests else 0
        self.until(lambda: len(vm.requests) and vm.requests[-1].number >= before + count)


class Lines(Case):
    def test_what_comes_and_goes(self):
        with imds.Emulator() as vm:
            process = self.watch(vm.url)
            self.assertEqual(self.line(process.stderr), b"imds: no scheduled events yet\n")
            event_id = vm.schedule("Reboot")
            self.assertRegex(self.line(process.stdout).decode(), r"^Scheduled +Reboot +in 1[45]:\d\d +" + event_id)
            vm.clock.advance(900)
            self.assertRegex(self.line(process.stdout).decode(), "^Started +Reboot +" + event_id)
            vm.clock.advance(600)
            self.assertRegex(self.line(process.stdout).decode(), "^Gone +Reboot +" + event_id)
            self.assertEqual(self.end(process), ("", ""))

    def test_with_a_parent_that_ignores_interrupts(self):
        with imds.Emulator() as vm:
            command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", SCRIPT]
            process = self.watch(vm.url, command=command)
            self.line(process.stderr)
            self.end(process)

    def test_as_json(self):
        with imds.Emulator() as vm:
            process = self.watch(vm.url, "--json")
            self.assertEqual(json.loads(self.line(process.stdout).decode())["Events"], [])
            vm.schedule("Reboot")
            self.assertEqual(len(json.loads(self.line(process.stdout).decode())["Events"]), 1)
            self.looks(vm, 3)
            self.assertEqual(self.end(process), ("", ""))

    def test_no_terminal_obeys_them(self):
        with imds.Emulator() as vm:
            vm.schedule("Reboot", resources=["a\x1b[2J"], description="\x1b[31mboo\x07")
            process = self.watch(vm.url)
            self.assertTrue(self.line(process.stdout).endswith(b"  a?[2J  ?[31mboo?\n"))
            self.end(process)

    def test_half_a_character_and_much_text(self):
        with Script(lambda request: reply() if "/instance" in request else listed(
                event("E1", description="\\ud800"), event("E2", description="x" * 300000))) as server:
            process = self.watch(server.url, "--exec", "true")
            self.assertIn(b"E2", self.line(process.stdout))
            self.until(lambda: any(request.startswith("POST") for request in server.requests))
            self.end(process)

    def test_a_reader_that_has_enough(self):
        with imds.Emulator() as vm:
            vm.schedule("Reboot")
            process = self.watch(vm.url)
            self.line(process.stdout)
            process.stdout.close()
            self.assertEqual(process.wait(5), 0)
            self.assertEqual(process.stderr.read(), b"")
            process.stderr.close()

    def test_on_a_terminal(self):
        try:
            import pty
        except ImportError:
            self.skipTest("no pseudo-terminals here")
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        with imds.Emulator() as vm:
            event_id = vm.schedule("Reboot", resources=["w\u00fcb_2"], description="x" * 100)
            process = self.watch(vm.url, stdout=theirs, env=dict(os.environ, COLUMNS="60", PYTHONIOENCODING="ascii"))
            os.close(theirs)
            seen = b""
            while seen.count(b"\r\x1b[K") < 3:
                seen += os.read(ours, 10000)
            self.end(process)
        lines = [line for line in re.split("\r\x1b\\[K|\r\n", seen.decode()) if line]
        self.assertTrue(lines[0].startswith("Scheduled  Reboot"), lines)
        self.assertRegex(lines[1], "^Reboot of w\u00fcb_2 in 1[45]:[0-9]{2}$")
        self.assertIn(event_id[:8], lines[0])
        self.assertLess(max(map(len, lines)), 60)

    def test_how_often_it_looks(self):
        with imds.Emulator() as vm:
            process = self.watch(vm.url, command=[sys.executable, FILE])
            self.looks(vm, 2)
            self.end(process)
            times = [each.time for each in vm.requests]
        self.assertGreater(min(after - before for before, after in zip(times, times[1:])), 0.39)


class Handlers(Case):
    def setUp(self):
        super().setUp()
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def state(self, number):
        """What a process does, as in /proc: "S" if it waits in the system; "" where that can't be had."""
        try:
            with open("/proc/%d/stat" % number) as file:
                return file.read().rpartition(")")[2].split()[0]
        except OSError:
            return ""

    def has_ended(self, name):
        """Whether the process has whose id is in a file. Whoever adopted it may not have looked at its exit code yet."""
        try:
            os.kill(int(self.read(name)), 0)
        except OSError:
            return True
        return self.state(int(self.read(name))) in ("Z", "")

    def read(self, name):
        try:
            with open(self.path(name)) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def statuses(self, vm):
        return [each["EventStatus"] for each in vm.events()["Events"]]

    def test_watch_and_run(self):
        with imds.Emulator() as vm:
            good, bad, other = vm.schedule("Reboot"), vm.schedule("Freeze"), vm.schedule("Redeploy", resources=["other"])
            command = 'echo "$EVENT_ID $EVENT_STATUS $EVENT_RESOURCES" >>%s; test $EVENT_TYPE = Reboot' % self.path("marks")
            process = self.watch(vm.url, "--exec", command)
            self.until(lambda: self.statuses(vm)[0] == "Started")
            self.looks(vm, 5)  # at which none is run again
            self.assertEqual(self.statuses(vm), ["Started", "Scheduled", "Scheduled"])
            out, errors = self.end(process)
            self.assertRegex(errors, "ended with 1; event %s is not approved" % bad)
        lines = sorted(self.read("marks").splitlines())
        self.assertEqual(lines, sorted("%s Scheduled avset2" % event_id for event_id in (good, bad)))
        self.assertNotIn(other, "".join(lines))
        self.assertEqual(out.count("\n"), 4)
        self.assertEqual(len([each for each in vm.requests if each.request.verb == "POST"]), 1)

    def test_what_a_handler_is_told(self):
        with imds.Emulator() as vm:
            event_id = vm.schedule("Reboot", resources=["avset2", "b b"], duration=7, source="User", description='x "$y"\0z')
            not_before = vm.events()["Events"][0]["NotBefore"]
            process = self.watch(vm.url, "--exec", "env -0 >%s" % self.path("env"))
            self.until(lambda: self.statuses(vm) == ["Started"])
            self.end(process)
        told = dict(pair.partition("=")[::2] for pair in self.read("env").split("\0"))
        self.assertEqual({name: value for name, value in told.items() if name.startswith("EVENT_")}, {
            "EVENT_ID": event_id, "EVENT_STATUS": "Scheduled", "EVENT_TYPE": "Reboot", "EVENT_RESOURCES": "avset2 b b",
            "EVENT_NOT_BEFORE": not_before, "EVENT_DESCRIPTION": 'x "$y"z', "EVENT_SOURCE": "User", "EVENT_DURATION": "7"})

    def test_resources_that_are_no_list(self):
        with Script(lambda request: reply() if "/instance" in request else listed(
                event("E1").replace('["avset2"]', '"avset2 and others"'), event("E2"))) as server:
            process = self.watch(server.url, "--exec", "echo $EVENT_ID >>%s; false" % self.path("marks"))
            self.until(lambda: self.read("marks"))
            before = len(server.requests)
            self.until(lambda: len(server.requests) > before + 3)
            self.end(process)
        self.assertEqual(self.read("marks"), "E2\n")

    def test_the_end_of_a_handler(self):
        obeys = 'trap "echo termed >>%s; exit 3" TERM; echo $$ >>%s; for _ in $(seq 300); do sleep 0.05; done'
        ignores = 'trap "" TERM INT; : %s; echo $$ >>%s; for _ in $(seq 300); do sleep 0.05; done'
        rows = [(number, script, termed, in_a_shell) for number in (signal.SIGTERM, signal.SIGINT)
                for script, termed in ((obeys, "termed\n"), (ignores, "")) for in_a_shell in (True, False)]
        with imds.Emulator() as vm:
            vm.schedule("Reboot")
            processes = []
            for at, (_, script, _, in_a_shell) in enumerate(rows):
                script %= self.path("termed%d" % at), self.path("pid%d" % at)
                with open(self.path("script%d" % at), "w") as file:  # there the shell ends first
                    file.write(script)
                processes.append(self.watch(vm.url, "--exec", script if in_a_shell else "sh %s; true" % file.name))
            self.until(lambda: all(self.read("pid%d" % at) for at in range(len(rows))))
            self.looks(vm, 2 * len(processes))
            for at, (number, _, termed, _) in enumerate(rows):
                with self.subTest(number=number, termed=termed):
                    begun = time.monotonic()
                    errors = self.end(processes[at], number)[1]
                    self.assertLess(time.monotonic() - begun, 3)
                    self.assertIn("is not approved", errors)
                    self.assertEqual(self.read("termed%d" % at), termed)
                    self.assertTrue(self.has_ended("pid%d" % at))
            self.assertEqual(self.statuses(vm), ["Scheduled"])

    def test_two_signals_at_once(self):
        signals = imds._Signals.__new__(imds._Signals)
        signals.came = signals.held = False
        with mock.patch.object(sys, "unraisablehook", None, create=True):
            with self.assertRaises(KeyboardInterrupt):
                signals._interrupt()
        signals._interrupt()  # which must not interrupt the ending of handlers
        with imds.Emulator() as vm:
            vm.schedule("Reboot")
            process = self.watch(vm.url, "--exec", "echo $$ >%s; exec sleep 30" % self.path("pid"))
            self.until(lambda: self.read("pid"))
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                process.send_signal(number)
            self.assertIn("is not approved", self.end(process)[1])
            self.assertTrue(self.has_ended("pid"))

    def test_a_signal_at_any_line_of_a_request(self):
        # Python 3.13 tells of a socket's file and of an HTTPResponse that are closed before they are whole.
        script = textwrap.dedent("""
            import gc, sys; sys.path.insert(0, sys.argv[1])
            import imds
            signals = imds._Signals()
            imds.get("compute/vmId", endpoint=sys.argv[2])
            at = left = 0
            def trace(frame, event, argument):
                global left
                counts = event == "line" and frame.f_code.co_name != "__del__"  # Python itself tells of these, to 3.7
                left -= counts
                if counts and left == 0:
                    sys.settrace(None)
                    signals._interrupt()
                return trace
            while left <= 0:
                at += 1
                left, signals.came = at, False
                sys.settrace(trace)
                try:
                    imds.get("compute/vmId", endpoint=sys.argv[2])
                except KeyboardInterrupt:
                    pass
                sys.settrace(None)
            gc.collect()
            print(at > 500)
        """)
        with imds.Emulator() as vm:
            process = subprocess.Popen([sys.executable, "-W", "error", "-c", script, os.path.dirname(FILE), vm.url],
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            out, errors = process.communicate(timeout=60)
        self.assertEqual((out.decode().strip(), errors.decode()), ("True", ""))

    def test_a_signal_while_a_handler_is_being_started(self):
        script = SCRIPT.replace("imds.main()", (
            "import os, subprocess; popen = subprocess.Popen; subprocess.Popen = lambda *arguments, **settings: "
            "(popen(*arguments, **settings), os.kill(os.getpid(), 15))[0]; imds.main()"))
        with imds.Emulator() as vm:
            vm.schedule("Reboot")
            hangs = "echo $$ >>%s; for _ in $(seq 100); do sleep 0.05; done" % self.path("pid")
            process = self.watch(vm.url, "--exec", hangs, command=[sys.executable, "-c", script])
            process.communicate(timeout=10)
        self.assertEqual(process.returncode, 130)
        if self.read("pid"):  # else it came to nothing
            self.assertTrue(self.has_ended("pid"))

    def test_one_that_hangs_while_the_service_is_gone(self):
        with imds.Emulator() as vm:
            vm.schedule("Reboot")
            hangs = 'trap "" TERM; echo $$ >%s; for _ in $(seq 300); do sleep 0.05; done' % self.path("pid")
            process = self.watch(vm.url, "--timeout", "0.4", "--exec", hangs)
            self.until(lambda: self.read("pid"))
        errors = process.communicate(timeout=10)[1].decode()
        self.assertEqual(process.returncode, 3)
        self.assertEqual((errors.count("watching goes on"), "Traceback" in errors), (1, False), errors)
        self.assertTrue(self.has_ended("pid"))

    def test_the_name_may_come_later(self):
        with imds.Emulator(faults=["instance: portal x3"]) as vm:
            vm.schedule("Reboot")
            process = self.watch(vm.url, "--exec", "true")
            vm.wait_for("/metadata/scheduledevents", verb="POST")
            errors = self.end(process)[1]
        self.assertEqual(errors.count("watching goes on"), 1)

    def test_a_signal_while_the_name_is_asked_for(self):
        with imds.Emulator(faults=["instance: hang always"]) as vm:
            vm.schedule("Reboot")
            process = self.watch(vm.url, "--exec", "true")
            vm.wait_for("/metadata/instance")
            # Until it waits in the system: Python handles a signal just before that only after it.
            self.until(lambda: self.state(process.pid) in "S")
            begun = time.monotonic()
            self.end(process, signal.SIGTERM)
            self.assertLess(time.monotonic() - begun, 1)

    def test_or_never(self):
        with imds.Emulator(faults=["instance: portal always"]) as vm:
            vm.schedule("Reboot")
            process = self.watch(vm.url, "--exec", "true", "--timeout", "0.5")
            errors = process.communicate(timeout=10)[1].decode()
        self.assertEqual((process.returncode, errors.count("an HTML page")), (5, 2), errors)

    def test_an_approval_is_kept_while_the_service_is_away(self):
        vm = imds.Emulator(port=reserved_port(self)).start()
        vm.schedule("Reboot")
        waits = "touch %s; for _ in $(seq 500); do [ -e %s ] && break; sleep 0.02; done" % (self.path("begun"), self.path("go"))
        process = self.watch(vm.url, "--exec", waits, command=[
            sys.executable, "-c", SCRIPT.replace("imds.main()", "imds.MAX_DEAF = 1; imds.main()")])  # half of it for an approval
        self.until(lambda: os.path.exists(self.path("begun")))
        vm.stop()
        open(self.path("go"), "w").close()
        lines = []
        while not any("will be sent again" in line for line in lines):
            lines.append(self.line(process.stderr).decode())
            self.assertTrue(lines[-1], lines)
        vm.start()
        self.addCleanup(vm.stop)
        self.until(lambda: self.statuses(vm) == ["Started"])
        lines += self.end(process)[1].splitlines()
        self.assertEqual(len([line for line in lines if "will be sent again" in line]), 1, lines)

    def test_the_same_absence_is_said_once(self):
        away, gone = imds.Unreachable("nobody is there"), imds.Refused("no such event", 400)
        client = mock.Mock()
        client.approve.side_effect = [away, away, None, away, away, gone, away, away]
        handlers = imds._Handlers(None, client)
        said = []
        for _ in range(8):
            handlers.approvals = handlers.approvals or ["E1"]
            with mock.patch("imds.say", said.append):
                handlers.look({"E1": {"EventId": "E1", "EventStatus": "Scheduled"}})
        again = "imds: nobody is there; the approval will be sent again"
        self.assertEqual(said, [again, again, "imds: no such event", again])

    def test_only_400_says_that_there_is_no_such_event(self):
        for status, kept in ((400, []), (401, ["E1"]), (403, ["E1"]), (404, ["E1"]), (405, ["E1"])):
            client = mock.Mock()
            client.approve.side_effect = [(imds.NotFound if status == 404 else imds.Refused)("no", status), None]
            handlers, said = imds._Handlers(None, client), []
            handlers.approvals = ["E1"]
            for now, left, calls in ((100, kept, 1), (109, kept, 1), (110, [], 2)):  # it is no haste to be refused
                with mock.patch("imds.say", said.append), mock.patch("imds.time.monotonic", lambda: now):  # noqa: B023
                    handlers.look({"E1": {"EventId": "E1", "EventStatus": "Scheduled"}})
                self.assertEqual((handlers.approvals, client.approve.call_count), (left, calls if kept else 1))
            self.assertEqual(said, ["imds: no" + ("" if status == 400 else "; the approval will be sent again")])

    def test_one_refused_for_now_does_not_keep_back_the_others(self):
        client, taken = mock.Mock(), []

        def approve(*event_ids):
            if "E1" in event_ids:
                raise imds.Refused("not now", 403)
            taken.extend(event_ids)

        client.approve.side_effect = approve
        handlers = imds._Handlers(None, client)
        handlers.approvals = ["E1", "E2", "E3"]
        with mock.patch("imds.say"):
            handlers.look({each: {"EventId": each, "EventStatus": "Scheduled"} for each in handlers.approvals})
        self.assertEqual((taken, handlers.approvals), (["E2", "E3"], ["E1"]))

    def test_an_approval_waits_as_long_as_the_service_asks_for(self):
        for seconds, wait in ((8, 8), (10**9, 60)):  # but not for ever
            error, times, now = imds.Unavailable("throttled", 429), [], [100.0]
            error.retry_after = seconds
            client = mock.Mock()
            client.approve.side_effect = lambda *_: times.append(now[0]) or (_ for _ in ()).throw(error)  # noqa: B023
            handlers, said = imds._Handlers(None, client), []
            handlers.approvals = ["E1"]
            with mock.patch("imds.say", said.append), mock.patch("imds.time.monotonic", lambda: now[0]):  # noqa: B023
                for _ in range(2 * wait + 1):
                    handlers.look({"E1": {"EventId": "E1", "EventStatus": "Scheduled"}})
                    now[0] += 1
            self.assertEqual((times, len(said)), ([100, 100 + wait, 100 + 2 * wait], 1))

    def test_many_approvals_one_by_one_leave_time_for_the_list(self):
        client, now, ids = mock.Mock(), [100.0], ["E%d" % number for number in range(20)]

        def approve(*event_ids):
            if len(event_ids) > 1:
                raise imds.Refused("one of them has started", 400)
            now[0] += 1

        client.approve.side_effect = approve
        handlers = imds._Handlers(None, client)
        handlers.approvals = list(ids)
        with mock.patch("imds.say"), mock.patch("imds.time.monotonic", lambda: now[0]):
            for left in (15, 10, 5, 0):
                handlers.look({each: {"EventId": each, "EventStatus": "Scheduled"} for each in ids})
                self.assertEqual(len(handlers.approvals), left)

    def test_nothing_else_keeps_it_from_the_list_for_long(self):
        for deadline, most in ((None, 5), (3, 3), (60, 5)):
            watch = imds._Watch(imds.Client(CLOSED, deadline=deadline), mock.Mock(json=False))
            self.assertEqual((watch.client.deadline, watch.other.deadline), (deadline, most))

    def test_how_long_the_name_may_be_missing(self):
        for status, deadline, total in ((503, None, 20), (410, None, 70), (503, 3, 3)):
            now, said = [100.0], []
            watch = imds._Watch(imds.Client(CLOSED, deadline=deadline), mock.Mock(json=False))
            watch.other = mock.Mock()

            def get(path):
                now[0] += 5 if total > 5 else total  # noqa: B023
                raise imds.Unavailable("failing", status)  # noqa: B023

            watch.other.get.side_effect = get
            with mock.patch("imds.say", said.append), mock.patch("imds.time.monotonic", lambda: now[0]):  # noqa: B023
                with self.assertRaises(imds.Unavailable):
                    while now[0] < 1000:
                        self.assertIsNone(watch.own_name())
            self.assertEqual((now[0], len(said)), (100 + total, 1 if total > 5 else 0))

    def test_the_name_is_not_asked_for_before_the_service_wants(self):
        error, now, times = imds.Unavailable("throttled", 429), [100.0], []
        error.retry_after = 4
        watch = imds._Watch(imds.Client(CLOSED), mock.Mock(json=False))
        watch.other = mock.Mock()
        watch.other.get.side_effect = lambda path: times.append(now[0]) or (_ for _ in ()).throw(error)
        with mock.patch("imds.say"), mock.patch("imds.time.monotonic", lambda: now[0]):
            for _ in range(10):
                self.assertIsNone(watch.own_name())
                now[0] += 1
        self.assertEqual(times, [100, 104, 108])

    def test_a_vm_without_a_name(self):
        with imds.Emulator({"compute": {}}) as vm:
            vm.schedule("Reboot", resources=["x"])
            process = self.watch(vm.url, "--exec", "true", "--timeout", "0.5")
            errors = process.communicate(timeout=10)[1].decode()
        self.assertEqual((process.returncode, errors.count("this VM has no name")), (5, 2), errors)

    def test_an_event_is_the_same_in_any_case(self):
        posts = []

        def answer(request):
            if request.startswith("POST"):
                posts.append(json.loads(request.partition("\r\n\r\n")[2])["StartRequests"][0]["EventId"])
                return reply(200, b"")
            lists = [event("abc"), event("ABC"), event("Abc")]
            return reply() if "/instance" in request else listed(lists[len(server.requests) % 3])

        with Script(answer) as server:
            process = self.watch(server.url, "--exec", "echo $EVENT_ID >>%s" % self.path("marks"))
            self.until(lambda: posts)
            before = len(server.requests)
            self.until(lambda: len(server.requests) > before + 4)
            out = self.end(process)[0]
        self.assertEqual(len(self.read("marks").split()), 1)
        self.assertNotIn("Gone", out)
        self.assertIn(posts[0], ("abc", "ABC", "Abc"))

    def test_an_approval_outlives_a_list_that_lacks_its_event(self):
        client, handlers = mock.Mock(), None
        for passing in ({}, {"E1": {"EventId": "E1", "EventStatus": "Started"}}):
            client, ended = mock.Mock(), mock.Mock(returncode=0, poll=lambda: 0)
            handlers = imds._Handlers("x", client)
            handlers.running["E1"] = ended
            handlers.look(passing)
            self.assertEqual(client.approve.call_count, 0)
            for _ in range(2):
                handlers.look({"E1": {"EventId": "E1", "EventStatus": "Scheduled"}})
            client.approve.assert_called_once_with("E1")

    def test_one_that_can_not_be_started_is_tried_again(self):
        said, told = [], json.loads(event(description="\U0001f600" * 40000))
        with mock.patch("subprocess.Popen", side_effect=[OSError(11, "busy"), OSError(11, "busy"), mock.Mock()]) as started:
            handlers = imds._Handlers("x", mock.Mock())
            with mock.patch("imds.say", said.append):
                for _ in range(5):
                    handlers.begin(told)
        self.assertEqual((started.call_count, said), (3, ["imds: x can't be run (busy); event E1 is not approved"]))
        self.assertEqual(len(imds._event_environment(told)["EVENT_DESCRIPTION"]), 32768)

    def test_a_terminal_that_is_closed_ends_its_handlers(self):
        with imds.Emulator() as vm:
            vm.schedule("Reboot")
            script = "import signal; signal.signal(signal.SIGHUP, signal.SIG_%s); " + SCRIPT
            process = self.watch(vm.url, "--exec", "echo $$ >%s; exec sleep 30" % self.path("pid"),
                                 command=[sys.executable, "-c", script % "DFL"])
            self.until(lambda: self.read("pid").strip())
            self.end(process, signal.SIGHUP)
            self.until(lambda: self.has_ended("pid"))
            process = self.watch(vm.url, command=[sys.executable, "-c", script % "IGN"])  # as nohup has it
            self.looks(vm, 3)
            process.send_signal(signal.SIGHUP)
            self.looks(vm, 3)
            self.end(process)

    def test_not_all_at_once(self):
        with mock.patch("subprocess.Popen") as started:
            handlers = imds._Handlers("x", mock.Mock())
            for number in range(200):
                handlers.begin(dict(json.loads(event("E%d" % number))))
        self.assertEqual(started.call_count, 64)

    def test_a_description_in_any_locale(self):
        with imds.Emulator() as vm:
            vm.schedule("Reboot", description="h\u00e9")
            environment = dict(os.environ, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
            process = self.watch(vm.url, "--exec", 'echo "$EVENT_DESCRIPTION" >%s' % self.path("said"), env=environment)
            self.until(lambda: self.statuses(vm) == ["Started"])
            self.end(process)
        with open(self.path("said"), encoding="utf-8") as file:
            self.assertEqual(file.read(), "h\u00e9\n")

    def test_of_a_batch_one_is_refused(self):
        posts = []

        def answer(request):
            if request.startswith("POST"):
                body = request.partition("\r\n\r\n")[2]
                posts.append([each["EventId"] for each in json.loads(body)["StartRequests"]])
                return reply(400, b'{ "error": "Bad request" }') if "E2" in posts[-1] else reply(200, b"")
            return reply() if "/instance" in request else listed(event("E1"), event("E2"), event("E3"))

        with Script(answer) as server:
            waits = "echo $$ >%s/$EVENT_ID; for _ in $(seq 500); do [ -e %s ] && break; sleep 0.02; done" % (self.folder, self.path("go"))
            process = self.watch(server.url, "--exec", waits)
            self.until(lambda: all(map(self.read, ("E1", "E2", "E3"))))
            process.send_signal(signal.SIGSTOP)  # so that it sees all of them end at once
            open(self.path("go"), "w").close()
            self.until(lambda: all(map(self.has_ended, ("E1", "E2", "E3"))))
            process.send_signal(signal.SIGCONT)
            self.until(lambda: len(posts) >= 4)
            before = len(server.requests)
            self.until(lambda: len(server.requests) > before + 4)
            errors = self.end(process)[1]
        self.assertEqual(posts[0], ["E1", "E2", "E3"])
        self.assertEqual(sorted(posts[1:]), [["E1"], ["E2"], ["E3"]])
        self.assertEqual(len(errors.splitlines()), 1, errors)
        self.assertIn("answered 400", errors)

    def test_an_event_that_is_gone_needs_no_approval(self):
        with imds.Emulator() as vm:
            event_id = vm.schedule("Reboot")
            waits = "touch %s; for _ in $(seq 500); do [ -e %s ] && break; sleep 0.02; done" % (self.path("begun"), self.path("go"))
            process = self.watch(vm.url, "--exec", waits)
            self.until(lambda: os.path.exists(self.path("begun")))
            vm.cancel(event_id)
            self.looks(vm, 2)
            open(self.path("go"), "w").close()
            self.looks(vm, 4)
            self.assertEqual(self.end(process)[1], "")
            self.assertEqual([each for each in vm.requests if each.request.verb == "POST"], [])
