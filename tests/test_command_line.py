"""Room 10: the command line: what it prints, where, and how it ends."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import zipapp
from unittest import mock

import imds
from tests.support import CLOSED, FILE, HTML, Script, Serve, call, claims, files, reply, run, signals_kept

RESOURCE = "https://vault.azure.net"
# All that Debian's python3-minimal lacks and the file might ask for.
MINIMAL = r"""
import sys
sys.path.insert(0, %r)

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("http", "difflib", "html", "uuid", "socketserver") or name == "urllib.request":
            raise ModuleNotFoundError("No module named %%r" %% name, name=name)

sys.meta_path.insert(0, Missing())
import imds
for arguments in (["get", "compute/name"], ["events"], ["token", "x"], ["serve", "--port", "0"], ["exec", "--", "true"],
                  ["test-ca"], ["get", "--help"]):
    try:
        print(arguments[0], imds.main(arguments))
    except SystemExit as end:
        print(arguments[0], end.code)
    sys.stdout.flush()
""" % os.path.dirname(FILE)


@contextlib.contextmanager
def serving(*arguments):
    """`serve --quiet` on a free port, in a thread of this process: [its Emulator], and what call() returns at the end."""
    said, ready, over = [], threading.Event(), threading.Event()

    def wait(vm, seconds=None):
        said.append(vm)
        ready.set()
        over.wait(30)
        return False

    with mock.patch.object(imds.Emulator, "wait", wait):
        thread = threading.Thread(target=lambda: said.extend(call("serve", "--port", "0", "--quiet", *arguments)) or ready.set())
        thread.start()
        try:
            ready.wait(10)
            if not said or not isinstance(said[0], imds.Emulator):
                thread.join()
                raise AssertionError("it does not serve: %r" % said)
            yield said
        finally:
            over.set()
            thread.join()


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        patch = mock.patch.object(imds.Emulator, "wait", return_value=False)  # what serves here does not go on
        patch.start()
        self.addCleanup(patch.stop)

    def file(self, name, content):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.write(content)
        return path

    def check(self, rows):
        """Rows of (arguments, exit code, what is in standard error): nothing is printed, and no traceback."""
        for arguments, code, error in rows:
            with self.subTest(arguments=arguments):
                got = call(*arguments)
                self.assertEqual(got[:2], (code, ""), got)
                self.assertIn(error, got[2])
                self.assertNotIn("Traceback", got[2])
                if "usage:" not in got[2]:
                    self.assertEqual(got[2].count("\n"), 1, got[2])


class Get(Case):
    @classmethod
    def setUpClass(cls):
        cls.vm = imds.Emulator(profile="scaleset").start()
        cls.vm.update({"compute": {"tags": "caf\u00e9"}})

    @classmethod
    def tearDownClass(cls):
        cls.vm.stop()

    def test_rows(self):
        here = ["--endpoint", self.vm.url]
        for arguments, code, out, error in (
            (["compute/vmId"], 0, "1da71a3d-9b58-4520-abce-552bb5cfbd51\n", ""),
            (["compute/name", "compute/zone", "compute/licenseType"], 0, "web_1\n2\n\n", ""),
            (["compute/plan"], 0, '{"name":"","product":"","publisher":""}\n', ""),
            (["compute/plan", "--format", "text"], 0, "name\nproduct\npublisher\n", ""),
            (["compute/zone", "--format", "json"], 0, '"2"\n', ""),
            (["compute/tags"], 0, "caf\u00e9\n", ""),
            (["http://169.254.169.254/metadata/instance/compute/zone?api-version=2017-12-01&format=text"], 0, "2\n", ""),
            (["compute/zone?format=text"], 0, "2\n", ""),
            (["--api-version", "2017-04-02", "network/interface/1/macAddress"], 0, "002248A1B2C4\n", ""),
            (["compute/vmid"], 1, "", "imds: there is no 'compute/vmid'; did you mean 'compute/vmId'?"),
            (["compute/name", "compute/vmid"], 1, "", "did you mean 'compute/vmId'?"),
            (["--api-version", "2030-01-01"], 1, "", "newest-versions"),
            (["--api-version", "2017-08-01", "compute/zone"], 1, "", "no 'compute/zone' before api-version 2017-12-01"),
            (["/metadata/instance/compute/zone?api-version=2017-12-01"], 1, "", "answered 400"),
            (["http://example.com/metadata/instance"], 2, "", "is not at the endpoint"),
        ):
            with self.subTest(arguments=arguments):
                got = call("get", *arguments + here)
                self.assertEqual(got[:2], (code, out))
                self.assertIn(error, got[2])
                self.assertEqual(got[2].count("\n"), 1 if code else 0)
        self.assertEqual(json.loads(call("get", *here)[1]), self.vm.get())

    def test_as_a_process(self):
        here = ["get", "--endpoint", self.vm.url]
        for more, expected in ((["compute/tags"], (0, "caf\u00e9\n", "")), (["compute/vmid"], (1, "", None))):
            got = run(*here + more, env={"LC_ALL": "C", "PYTHONUTF8": "0"})
            self.assertEqual(got[:2], expected[:2])
            self.assertEqual(got[2].count("\n"), got[0])

    def test_nobody_there(self):
        with mock.patch.dict(os.environ, AZURE_IMDS_ENDPOINT=CLOSED), mock.patch.object(imds, "NOBODY", 0.2):
            begun = time.monotonic()
            code, out, error = call("get", "compute/vmId")
        self.assertEqual((code, out), (3, ""))
        self.assertIn("nobody answers at " + CLOSED, error)
        self.assertIn("AZURE_IMDS_ENDPOINT leads there", error)
        self.assertLess(time.monotonic() - begun, 2)

    def test_throttled_and_not_imds(self):
        with Script(reply(429, b"{}")) as server:
            begun = time.monotonic()
            code, _, error = call("get", "x", "--endpoint", server.url, "--timeout", "0.5")
            self.assertEqual(code, 4)
            self.assertTrue(error.endswith("; ask less often\n"), error)
            self.assertLess(time.monotonic() - begun, 1.5)
        with Script(reply(200, b"<html>", HTML)) as server:
            self.assertEqual(call("get", "x", "--endpoint", server.url)[0], 5)

    def test_the_time_out_is_for_all(self):
        with Script([reply()[:100]] + [b" "] * 100, pace=0.05) as server:
            begun = time.monotonic()
            self.assertEqual(call("get", "x", "--endpoint", server.url, "--timeout", "0.3")[0], 3)
            self.assertLess(time.monotonic() - begun, 1.5)

    def test_a_reader_that_has_enough(self):
        process = subprocess.Popen([sys.executable, FILE, "get", "--endpoint", self.vm.url],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        errors = process.stderr.read()
        process.stderr.close()
        self.assertEqual((process.wait(), errors), (0, b""))

    def test_what_can_not_be_printed(self):
        for system, number, code, error in (("nt", 22, 0, ""), ("posix", 22, 1, "imds: no luck\n"), ("nt", 28, 1, "imds: no luck\n")):
            out = mock.Mock(**{"fileno.return_value": -1})  # argparse of 3.14 looks whether it is a terminal
            out.buffer.write.side_effect = OSError(number, "no luck")  # 22 is what Windows says of a reader that is gone
            with mock.patch.object(imds.os, "name", system), mock.patch.object(imds.os, "dup2"):
                errors = io.StringIO()
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
                    self.assertEqual(imds.main(["get", "compute/name", "--endpoint", self.vm.url]), code)
            self.assertEqual(errors.getvalue(), error)

    def test_an_answer_of_many_levels(self):
        for levels, codes in ((60, (0, 0)), (900, (0, 5)), (100000, (5, 5))):
            body = b'{"compute":{"x":' + b"[" * levels + b"]" * levels + b"}}"
            with Script(lambda request: reply(200, body) if "/instance" in request else reply(404, b"{}")) as server:  # noqa: B023
                for arguments, code in ((["snapshot"], codes[0]), (["snapshot", "--redact"], codes[1]), (["get"], codes[0])):
                    got = call(*arguments + ["--endpoint", server.url])
                    self.assertEqual((got[0], got[2].count("\n")), (code, int(code > 0)), got[2])

    def test_indented_on_a_terminal(self):
        try:
            import pty
        except ImportError:
            self.skipTest("no pseudo-terminals here")
        ours, theirs = pty.openpty()
        subprocess.check_call([sys.executable, FILE, "get", "compute/plan", "--endpoint", self.vm.url], stdout=theirs)
        os.close(theirs)
        self.assertIn(b'{\r\n  "name": "",', os.read(ours, 1000))
        os.close(ours)

    def test_standard_output_that_is_closed(self):
        here = ["--endpoint", self.vm.url]
        for arguments in (["get", "compute"], ["get", "compute/name"], ["events"], ["events", "--json"],
                          ["token", RESOURCE], ["token", RESOURCE, "--json"], ["attested"], ["attested", "--der"],
                          ["attested", "--content"], ["snapshot"], ["events", "--watch", "--json"]):
            said = []
            with self.subTest(arguments=arguments), mock.patch.object(sys, "stdout", None):
                with mock.patch.object(imds, "say", said.append), signals_kept():
                    self.assertEqual(imds.main(arguments + here), 1)
            self.assertEqual(said, ["imds: standard output is closed"])
        if os.name == "posix":
            done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, FILE, "get", "compute"] + here,
                                  stderr=subprocess.PIPE)
            self.assertEqual((done.returncode, done.stderr), (1, b"imds: standard output is closed\n"))


class Usage(Case):
    def test_rows(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen(1)
            port = str(taken.getsockname()[1])
            shape = self.file("shape", b'{"compute": {"tagsList": "x"}}')
            self.check((
                ([], 2, "COMMAND"), (["nonsense"], 2, "invalid choice"), (["get", "--format", "xml"], 2, "invalid choice"),
                (["get", "--endpoint", "nonsense"], 2, "http://127.0.0.1:8169"),
                (["get", "--endpoint", ""], 2, "the endpoint must be like"),
                (["get", "--timeout", "0"], 2, "more than 0"), (["get", "--timeout", "x"], 2, "--timeout"),
                (["get", "--timeout", "nan"], 2, "more than 0"), (["get", "--timeout", "-1"], 2, "--timeout"),
                (["serve", "--port", port], 1, "can't listen on 127.0.0.1 port " + port),
                (["serve", "--port", port], 1, "choose another with --port"),
                (["serve", "--port", "99999"], 2, "from 0 to 65535"), (["serve", "--port", "x"], 2, "from 0 to 65535"),
                (["exec", "--port", "-1", "--", "true"], 2, "--port"),
                (["serve", "--port", "0", "--host", "203.0.113.1"], 1, "can't listen"),
                (["serve", "nowhere.json"], 2, "nowhere.json: No such file"), (["serve", self.folder], 2, self.folder),
                (["serve", self.file("text", b"hello")], 2, "is not JSON"), (["serve", self.file("e", b"")], 2, "is not JSON"),
                (["serve", self.file("half", b'{"compute": {"na')], 2, "is not JSON"),
                (["serve", self.file("deep", b"[" * 100000)], 2, "is not JSON"),
                (["serve", self.file("bytes", b"\xff\xfe\x00")], 2, "is not JSON"),
                (["serve", self.file("list", b"[]")], 2, "is not a VM"),
                (["serve", self.file("other", b'{"a": 1}')], 2, "is not a VM"),
                (["serve", self.file("none", b"{}")], 2, "is not a VM"),
                (["serve", self.file("balance", b'{"loadbalancer": {}}')], 2, "is not a VM"),
                (["serve", shape], 2, "instance.compute.tagsList must be a list"),
                (["serve", shape, "--profile", "linux"], 2, "not both"),
                (["serve", "--set", "compute.vmsize=x"], 2, "did you mean compute.vmSize?"),
                (["serve", "--set", "compute.vmSize"], 2, "NAME=VALUE"),
                (["serve", "--set", "compute.tagsList.0.name=x"], 2, "compute.tagsList has 0 items"),
                (["serve", "--set", "compute.plan=x"], 2, "give it as JSON"),
                (["serve", "--set", "compute.plan=" + "[" * 100000], 2, "give it as JSON"),
                (["serve", "--set", "compute.plan=[]"], 2, "give it as JSON"),
                (["serve", "--cloud", "AzureChina"], 2, "did you mean AzureChinaCloud?"),
                (["serve", "--profile", "windos"], 2, "did you mean windows?"),
                (["serve", "--as-of", "2019"], 2, "'2018'"), (["serve", "--api-versions", "2020"], 2, "2020"),
                (["serve", "--rate-limit", "-1"], 2, "rate_limit"), (["serve", "--rate-limit", "nan"], 2, "rate_limit"),
                (["serve", "--attested-issuer", "x"], 2, "must be a URL"),
                (["exec"], 2, "what is to be run?"), (["exec", "--"], 2, "what is to be run?"),
                (["exec", "true"], 2, "what is to be run?"), (["exec", "a", "-c", "b"], 2, "what is to be run?"),
                (["exec", "--", "no-such-command"], 127, "no-such-command"), (["exec", "--", self.folder], 126, self.folder),
                (["diff", "nowhere", "nowhere"], 2, "nowhere: No such file"),
            ))

    def test_commands_that_can_not_be_run(self):
        script = os.path.join(self.folder, "script")
        with open(script, "wb") as file:
            file.write(b"\x00\x01garbage")
        os.chmod(script, 0o755)
        self.check(((["exec", "--", script], 126, script), (["exec", "--", script + "/x"], 127, script), (["exec", "--", ""], 127, "")))

    def test_the_control_of_another_is_not_passed_on(self):
        for options, expected in (([], "None\n"), (["--control"], "http://")):
            code, out, _ = run("exec", *options + ["--", sys.executable, "-c", "import os; print(os.environ.get('AZURE_IMDS_CONTROL'))"],
                               env={"AZURE_IMDS_CONTROL": "elsewhere"})
            self.assertEqual((code, out[:len(expected)]), (0, expected))

    def test_options_that_exclude_one_another(self):
        self.check((
            (["attested", "--content", "--der"], 2, "--content or --der, not both"),
            (["events", "--exec", "true"], 2, "--exec goes with --watch"),
            (["get", "--fromat", "json"], 2, "get takes no '--fromat'; did you mean --format?"),
            (["exec", "--faults=500", "--", "true"], 2, "did you mean --fault?"), (["diff", "a", "b", "c", "A"], 2, "diff has no place for 'A'"),
            (["--json", "events"], 2, "--json belongs behind events"), (["get", "--nonsense"], 2, "get takes no '--nonsense'; see get --help"),
            (["serve", "--event", "Reboot:in=5s,after=10m"], 2, "--event says after twice"),

            (["serve", "--identity", "none", "--identity", "system"], 2, "--identity none goes with no other"),
            (["serve", "--identity", "system", "--identity", "none"], 2, "--identity none goes with no other"),
        ))

    def test_what_an_emulator_can_not_be(self):
        self.check((
            (["serve", "--event", "Rebot"], 2, "did you mean Reboot?"), (["serve", "--event", "Reboot:on=5"], 2, "key of --event"),
            (["serve", "--event", "Reboot:in=soon"], 2, "30s, 15m or 1h"), (["serve", "--event", "Reboot:in="], 2, "30s, 15m"),
            (["serve", "--event", "Reboot:in=1d"], 2, "30s, 15m or 1h"), (["serve", "--event", "Reboot:in=1e3"], 2, "30s, 15m"),
            (["serve", "--event", "Reboot:source=Me"], 2, "Platform"), (["serve", "--event", ""], 2, "EventType"),
            (["serve", "--scenario", "redploy"], 2, "did you mean redeploy?"),
            (["serve", "--identity", "me"], 2, "user:NAME"), (["serve", "--identity", "user:"], 2, "user"),
            (["serve", "--identity", "user:app,clientId=x"], 2, "did you mean client_id?"),
            (["serve", "--identity", "user:app,nonsense=x"], 2, "key of an identity"),
            (["serve", "--identity", "user:a,client_id=1,client_id=2"], 2, "given twice"),
            (["serve", "--identity", "user:a", "--identity", "user:A"], 2, "two identities have the same name"),
            (["serve", "--identity", "user:a,client_id=1", "--identity", "user:b,client_id=1"], 2, "the same clientId"),
            (["serve", "--identity", "system", "--identity", "system"], 2, "one system-assigned identity"),
            (["serve", "--attested-flaw", "expird"], 2, "did you mean expired?"),
            (["serve", "--time-scale", "0"], 2, "more than 0"),
            (["serve", "--time-scale", "x"], 2, "a number, more than 0, not 'x'"),
        ))

    def test_where_it_can_not_listen(self):
        for error, words, lacking in (
            (socket.gaierror(-2, "Name or service not known"), ["no name or address of this machine", "--host"], "--port"),
            (OSError(99, "Cannot assign requested address"), ["where there is only IPv6, use --host ::1"], "--port"),
            (OSError(98, "Address already in use"), ["--port 0"], "--host"), (OSError(13, "Permission denied"), ["--port"], "--host"),
        ):
            number = {99: "EADDRNOTAVAIL", 98: "EADDRINUSE", 13: "EACCES"}.get(error.errno)
            if number:
                import errno

                error.errno = getattr(errno, number)
            with mock.patch.object(socket.socket, "bind", side_effect=error):
                code, out, errors = call("serve", "--port", "0")
            self.assertEqual((code, out, errors.count("\n")), (1, "", 1))
            for word in words:
                self.assertIn(word, errors)
            self.assertNotIn(lacking, errors)
        with mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
            code, out, errors = call("serve", "--port", "0", "--quiet")
        self.assertEqual((code, out), (1, ""))
        self.assertIn("can't start (can't start new thread)", errors)
        self.assertNotIn("--host", errors)
        self.assertEqual(errors.count("\n"), 1)

    def test_times(self):
        for text, seconds in (("30", 30), ("30s", 30), ("15m", 900), ("1h", 3600), ("300ms", 0.3), ("1.5m", 90), ("0", 0),
                              ("-5", -5), ("-1000s", -1000)):
            self.assertEqual(imds.duration(text), seconds)
        for text in ("", "s", "1d", "1 s", "+1", "1,5", "1e3", "\u0661", "1s\n"):
            self.assertRaises(ValueError, imds.duration, text)


class Help(unittest.TestCase):
    CODES = {
        "get": "0 1 2 3 4 5", "events": "0 1 2 3 4 5", "token": "0 1 2 3 4 5", "attested": "0 1 2 3 4 5",
        "snapshot": "0 1 2 3 4 5", "diff": "0 1 2 3 4 5", "serve": "0 1 2", "exec": "0 1 2 126 127 128+N",
        "ctl": "0 1 2 3 4 5", "verify": "0 1 2 3 4 5", "doctor": "0 1 2 3 4 5", "test-ca": "0 2",
    }

    def test_of_each_command(self):
        self.assertEqual(set(self.CODES), set(imds.COMMANDS))
        for command, codes in list(self.CODES.items()) + [("", "0 1 2 3 4 5")]:
            with self.subTest(command=command):
                code, out, errors = call(*[command] * bool(command) + ["--help"])
                self.assertEqual((code, errors), (0, ""))
                self.assertLessEqual(max(map(len, out.splitlines())), 80)
                body, _, end = out.partition("\nexit codes:\n")
                self.assertEqual(" ".join(line.split()[0] for line in end.splitlines()), codes)
                for option in re.findall(r"(?<!\S)--[a-z-]+", imds.COMMANDS[command].options if command else ""):
                    for name in imds.OPTIONS[option].get("names", [option]):
                        self.assertIn(name, body)

    def test_version(self):
        self.assertEqual(call("--version"), (0, "imds %s\n" % imds.__version__, ""))

    def test_what_set_takes_is_said(self):
        self.assertIn("JSON", call("serve", "--help")[1].partition("--set NAME=VALUE  ")[2][:300])

    def test_limits_as_of_2018_are_said(self):
        self.assertIn("as of 2018: 5", " ".join(call("serve", "--help")[1].split()))


class Serving(Case):
    def test_banner_log_and_end(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with Serve() as server:
                self.assertRegex(server.url, r"^http://127\.0\.0\.1:\d+$")
                imds.get("compute/name", endpoint=server.url)
                with self.assertRaises(imds.NotFound):
                    imds.get("/metadata/x?api-version=2017-04-02", endpoint=server.url)
                idle = socket.create_connection(server.url[7:].split(":"))
                begun = time.monotonic()
                code, rest, errors = server.finish(number)
                self.assertLess(time.monotonic() - begun, 2)
                idle.close()
            self.assertEqual((code, rest), (0, ""))
            self.assertIn("avset2, Standard_D1 in westus", errors)
            self.assertIn("AZURE_IMDS_ENDPOINT=%s AZURE_POD_IDENTITY_AUTHORITY_HOST=%s\n" % (server.url, server.url), errors)
            self.assertRegex(errors, r'"GET /metadata/instance\?api-version=2025-04-07 HTTP/1.1" 200 -\n')
            self.assertIn(" 404 not found\n", errors)
            self.assertNotIn("Traceback", errors)

    def test_with_a_parent_that_ignores_interrupts(self):
        if os.name != "posix":
            self.skipTest("signals of POSIX")
        process = subprocess.Popen(["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, FILE, "serve", "--port", "0"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
        self.assertEqual(process.returncode, 0)

    @unittest.skipUnless(shutil.which("curl"), "no curl here")
    def test_the_curl_line_of_the_banner_works(self):
        with serving() as said:
            errors = sys.stderr.getvalue()
            line = re.search(r"^  (curl .*)$", errors, re.M).group(1)
            self.assertIn(said[0].url, line)
            body = subprocess.check_output(line, shell=True, timeout=20, env=dict(os.environ, http_proxy=CLOSED))
        self.assertEqual(json.loads(body.decode())["compute"]["name"], "avset2")

    def test_no_terminal_obeys_the_banner(self):
        with serving("--set", "compute.name=\x1b[31mx", "--set", "compute.location=a\nb") as said:
            pass
        self.assertEqual(said[1:3], [0, said[2]])
        self.assertIn("serving ?[31mx, Standard_D1 in a?b;", said[3])

    def test_the_banner_of_windows(self):
        with mock.patch.object(imds.os, "name", "nt"), serving() as said:
            url = said[0].url
        for line in ('  curl.exe --noproxy "*" -s -H Metadata:true "%s/metadata/instance?api-version=2025-04-07"' % url,
                     '  cmd:        set "AZURE_IMDS_ENDPOINT=%s" & set "AZURE_POD_IDENTITY_AUTHORITY_HOST=%s"' % (url, url),
                     "  PowerShell: $env:AZURE_IMDS_ENDPOINT = '%s'; $env:AZURE_POD_IDENTITY_AUTHORITY_HOST = '%s'" % (url, url)):
            self.assertIn(line + "\n", said[3])

    def test_off_the_main_thread(self):
        with serving() as said:  # which is
            self.assertEqual(said[0].get("compute/name"), "avset2")
        self.assertEqual((said[1], said[2].count("\n")), (0, 1))

        ended = []
        thread = threading.Thread(target=lambda: ended.append(call("exec", "--", sys.executable, "-c", "exit(7)")))
        thread.start()
        thread.join()
        self.assertEqual(ended, [(7, "", "")])

    def test_a_log_that_nobody_reads_holds_up_nobody(self):
        request = b"GET /metadata/versions HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n\r\n"
        with Serve() as server, socket.create_connection(server.url[7:].split(":"), 10) as client:
            for _ in range(40):  # twice what a pipe holds
                client.sendall(request * 40)
                data = b""
                while data.count(b'"]}') < 40:
                    data += client.recv(65536)
            self.assertIn("avset2, Standard_D1", server.finish()[2])

    def test_and_neither_do_its_longest_lines(self):
        line = b"GET /metadata/versions?" + b"x" * 8100 + b" HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n\r\n"
        with Serve() as server, socket.create_connection(server.url[7:].split(":"), 10) as client:
            for _ in range(30):
                client.sendall(line)
                data = b""
                while b'"]}' not in data:
                    data += client.recv(65536)
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(10), 0)  # with its log still unread
            self.assertLess(time.monotonic() - begun, 3)
            server.process.communicate()

    def test_a_log_of_what_is_quick(self):
        with Serve() as server:
            for number in range(50):
                with self.assertRaises(imds.NotFound):
                    imds.Client(server.url).get("/metadata/x%d?api-version=2021-02-01" % number)
            errors = server.finish()[2]
        self.assertEqual(len(re.findall(r'"GET /metadata/x\d+\?', errors)), 50)  # not a line is lost when it ends

    def test_quiet(self):
        with Serve("--quiet") as server:
            imds.get("compute/name", endpoint=server.url)
            self.assertNotIn("GET", server.finish()[2])

    def test_options(self):
        for arguments, path, value in (
            (["--profile", "windows"], "compute/name", "SQLTest"),
            (["--set", "compute.vmSize=Standard_D4s_v5", "--set", "compute.zone="], "compute/vmSize", "Standard_D4s_v5"),
            (["--set", 'compute.tagsList=[{"name":"a","value":"b"}]'], "compute/tags", "a:b"),
            (["--set", "compute.tags=a:b;c:d"], "compute/tagsList/1", {"name": "c", "value": "d"}),
            (["--set", 'compute.plan={"name":"x"}'], "compute/plan", {"name": "x", "product": "", "publisher": ""}),
            (["--cloud", "AzureChinaCloud"], "compute/azEnvironment", "AzureChinaCloud"),
            (["--api-versions", "2017-04-02,2017-08-01"], "/metadata/versions",
             {"apiVersions": ["2017-04-02", "2017-08-01"]}),
            (["--api-versions", "2025-11-15"], "/metadata/versions", {"apiVersions": ["2025-11-15"]}),
        ):
            with self.subTest(arguments=arguments), serving(*arguments) as said:
                self.assertEqual(said[0].get(path), value)
        with serving("--as-of", "2018") as said, self.assertRaises(imds.NotFound):
            said[0].get("/metadata/versions?api-version=2018-02-01")
        self.assertIn("at most 5 requests a second are answered; --rate-limit 0 turns that off", said[3])
        with serving("--rate-limit", "0.01") as said:
            said[0].get("compute/name")
            with self.assertRaises(imds.Unavailable):
                said[0].get("compute/name", deadline=0.3)

    def test_identities(self):
        with serving("--identity", "system", "--identity", "user:app,client_id=1111,object_id=2222,resource_id=/x/app2",
                     "--identity", "user:other") as said:
            system, app, other = said[0].identities
        self.assertEqual((system["type"], other["type"]), ("system", "user"))
        self.assertEqual(app, {"type": "user", "clientId": "1111", "objectId": "2222", "resourceId": "/x/app2"})
        self.assertTrue(other["resourceId"].endswith("/userAssignedIdentities/other"))
        with serving("--identity", "none", "--load-balancer") as said:
            self.assertEqual(said[0].identities, [])
            self.assertEqual(len(said[0].get("/metadata/loadbalancer")["loadbalancer"]["inboundRules"]), 1)

    def test_time_and_events(self):
        with serving("--time-scale", "6000", "--event", "Reboot:in=60s", "--scenario", "live-migration",
                     "--attested-flaw", "vmId") as said:
            self.assertEqual([each["EventType"] for each in said[0].events()["Events"]], ["Reboot", "Freeze"])
            with self.assertRaises(imds.Refused):
                imds.Client(said[0].url, clock=said[0].clock).attested()
            until = time.monotonic() + 5
            while time.monotonic() < until and said[0].events()["Events"][0]["EventStatus"] != "Started":
                time.sleep(0.01)
            self.assertEqual(said[0].events()["Events"][0]["EventStatus"], "Started")

    def test_an_event_in_full(self):
        with serving("--event", "Preempt:in=1h,resources=web_1+web_2,source=User,duration=2m,description=one, two=2, three",
                     "--event", "Freeze:description=a,b,in=5", "--event", "Reboot:in=-1000s") as said:
            one, other, past = said[0].events()["Events"]
        self.assertEqual((past["EventStatus"], past["NotBefore"]), ("Started", ""))  # not gone unseen
        self.assertEqual((one["Resources"], one["EventSource"], one["DurationInSeconds"], one["Description"]),
                         (["web_1", "web_2"], "User", 120, "one, two=2, three"))
        self.assertEqual(other["Description"], "a,b")
        self.assertEqual(imds._event("Reboot:after=1m,lasts=30s"), {"kind": "Reboot", "after": 60, "lasts": 30})

    def test_a_document_of_a_real_vm(self):
        document = '{"compute":{"name":"mine","tagsList":[{"name":"a","value":"\u00e9"}]},"network":{"interface":[]}}'
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # what curl writes, and what PowerShell does
            name = self.file(encoding, document.encode(encoding))
            with self.subTest(encoding=encoding), serving(name) as said:
                self.assertEqual(said[0].get("compute/tagsList/0/value"), "\u00e9")
                self.assertEqual(said[0].get("compute/location"), "")
        with mock.patch.object(sys, "stdin", mock.Mock(buffer=open(name, "rb"))) as stdin, serving("-") as said:
            self.assertEqual(said[0].get("compute/name"), "mine")
        stdin.buffer.close()

    def test_names_that_are_nearly_known_in_other_parts(self):
        for part, path, meant in (('"identity":{"tenantid":"x"}', "identity.tenantid", "tenantId"),
                                  ('"scheduledevents":{"Evnts":[]}', "scheduledevents.Evnts", "Events"),
                                  ('"loadbalancer":{"inboundRule":[]}', "loadbalancer.inboundRule", "inboundRules"),
                                  ('"loadbalancer":{"loadbalancer":{"inboundRule":[]}}', "loadbalancer.inboundRule", "inboundRules")):
            name = self.file("vm", ('{"instance":{},%s}' % part).encode())
            self.assertEqual(call("serve", "--strict", name), (2, "", (
                "imds: %s: %s is a name that no table knows; did you mean %s?\n" % (name, path, meant))))
        name = self.file("vm", b'{"instance":{},"identity":{"identities":[{"name":"a","client_id":"b"}]}}')
        self.assertEqual(run("exec", "--strict", name, "--", "true"), (0, "", ""))

    def test_names_that_are_nearly_known(self):
        name = self.file("vm", b'{"compute":{"nmae":"x","vmSize":"y","mine":1,"tagsList":[{"nam":"a"}]}}')
        lines = ["%s: compute.nmae is a name that no table knows; did you mean name?" % name,
                 "%s: compute.tagsList.0.nam is a name that no table knows; did you mean name?" % name]
        with serving(name) as said:
            self.assertEqual(said[0].get("compute/nmae"), "x")
        self.assertEqual([line for line in said[3].splitlines() if "warning" in line],
                         ["imds: warning: " + line for line in lines])
        code, out, errors = call("serve", "--strict", name)
        self.assertEqual((code, out, errors), (2, "", "imds: %s\n" % lines[0]))
        with serving("--strict", self.file("good", b'{"compute":{"name":"x","mine":1}}')) as said:
            self.assertEqual(said[0].get("compute/mine"), "1")

    def test_a_warning_for_a_host_that_is_not_loopback(self):
        with serving("--host", "0.0.0.0") as said:
            self.assertTrue(said[0].url.startswith("http://127.0.0.1:"))
        self.assertIn("warning: 0.0.0.0 is not loopback", said[3])
        with serving("--host", "localhost") as said:
            pass
        self.assertNotIn("warning", said[3])

    def test_hosts_that_may_ask(self):
        def ask(vm, host):
            with socket.create_connection(("127.0.0.1", vm.port), 10) as client:
                client.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\nMetadata: true\r\nHost: " + host + b"\r\n\r\n")
                return int(client.recv(1000).split(b" ")[1])

        with serving("--allow-host", "imds.test", "--allow-host", "Other") as said:
            self.assertEqual([ask(said[0], host) for host in (b"imds.test:80", b"other", b"evil.example")], [404, 404, 400])


class Exec(unittest.TestCase):
    def test_the_demonstration(self):
        code, out, errors = run("exec", "--", sys.executable, FILE, "get", "compute/vmId")
        self.assertEqual((code, out, errors), (0, "13f56399-bd52-4150-9748-7190aae1ff21\n", ""))

    def test_environment_and_exit_code(self):
        script = ("import os, sys; urls = {os.environ[name] for name in "
                  "('AZURE_IMDS_ENDPOINT', 'AZURE_POD_IDENTITY_AUTHORITY_HOST')}; print(*urls);"
                  "print(os.environ['NO_PROXY'], os.environ['no_proxy']); sys.exit(7)")
        code, out, _ = run("exec", "--set", "compute.name=x", "--", sys.executable, "-c", script,
                           env={"http_proxy": CLOSED, "NO_PROXY": "one,two", "no_proxy": ""})
        self.assertEqual(code, 7)
        self.assertRegex(out, r"^http://127\.0\.0\.1:\d+\none,two,127\.0\.0\.1 127\.0\.0\.1\n$")

    @unittest.skipUnless(shutil.which("curl"), "no curl here")
    def test_past_a_proxy(self):
        script = 'curl -s -H Metadata:true "$AZURE_IMDS_ENDPOINT/metadata/instance/compute/name?api-version=2021-02-01&format=text"'
        with Script(reply(502, b"proxy")) as proxy:
            out = run("exec", "--", "sh", "-c", script, env={"http_proxy": proxy.url})[1]
            self.assertEqual((out, proxy.requests), ("avset2", []))

    def test_options_of_the_command_are_its_own(self):
        self.assertEqual(run("exec", "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", "--", "--port")[1],
                         "['--', '--port']\n")

    @unittest.skipUnless(os.name == "posix", "signals of POSIX")
    def test_signals(self):
        self.assertEqual(call("exec", "--", "sh", "-c", "kill -9 $$")[0], 137)
        process = subprocess.Popen([sys.executable, FILE, "exec", "--", "sh", "-c", "echo on; exec sleep 50"],
                                   stdout=subprocess.PIPE)
        process.stdout.readline()
        process.terminate()
        self.assertEqual(process.wait(10), 143)
        process.stdout.close()

    @unittest.skipUnless(os.name == "posix", "signals of POSIX")
    def test_a_signal_while_the_command_is_being_started(self):
        popen = subprocess.Popen

        def start(*arguments, **settings):
            os.kill(os.getpid(), signal.SIGTERM)
            return popen(*arguments, **settings)

        with mock.patch.object(subprocess, "Popen", start):
            begun = time.monotonic()
            self.assertEqual(call("exec", "--", "sleep", "20")[0], 143)
            self.assertLess(time.monotonic() - begun, 5)

    @unittest.skipUnless(os.name == "posix", "signals of POSIX")
    def test_an_interrupt_is_the_commands_own(self):
        script = "import signal, sys; signal.signal(signal.SIGINT, lambda *_: sys.exit(9)); print('on', flush=True); signal.pause()"
        process = subprocess.Popen([sys.executable, FILE, "exec", "--", sys.executable, "-c", script], stdout=subprocess.PIPE,
                                   start_new_session=True)
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        self.assertEqual(process.wait(10), 9)
        process.stdout.close()


class Commands(Case):
    def test_snapshot_serve_diff(self):
        with imds.Emulator(profile="scaleset") as vm:
            code, out, _ = call("snapshot", "--endpoint", vm.url)
            self.assertEqual(code, 0)
            self.assertNotIn("access_token", out)
            name, = files(self.folder, vm=json.loads(out))
            self.assertEqual(call("diff", name, vm.url), (0, "", ""))
            with serving(name, "--set", "compute.vmSize=x", "--set", "compute.tagsList=[]") as said:
                code, out, _ = call("diff", name, said[0].url)
                self.assertEqual(code, 1)
                self.assertIn('instance/compute/vmSize: "Standard_D2s_v3" -> "x"\n', out)
                self.assertIn('instance/compute/tagsList/0: {"name":"Department","value":"IT"} -> (absent)\n', out)
                self.assertEqual(call("diff", name, said[0].url, "instance/compute/vmSize"),
                                 (1, 'instance/compute/vmSize: "Standard_D2s_v3" -> "x"\n', ""))
                self.assertEqual(call("diff", name, said[0].url, "/instance/network/"), (0, "", ""))
                self.assertEqual(call("diff", name, said[0].url, "instance/compute/vm")[0], 2)
                self.assertEqual(call("diff", name, said[0].url, "compute/name"), (0, "", ""))
            self.assertNotIn("web_1", call("snapshot", "--redact", "--endpoint", vm.url)[1])
            with mock.patch.object(imds, "NOBODY", 0.2):
                self.assertEqual(call("diff", name, CLOSED)[0], 3)
        self.assertEqual(call("diff", name, "nowhere")[0], 2)

    def test_approve_all_though_one_is_refused(self):
        events = [{"EventId": name, "EventType": "Reboot", "EventStatus": "Scheduled", "Resources": [], "NotBefore": ""} for name in "AB"]
        posts = []

        def answer(request):
            if request.startswith("POST"):
                posts.append([each["EventId"] for each in json.loads(request.partition("\r\n\r\n")[2])["StartRequests"]])
                return reply(400, b"{}") if "B" in posts[-1] else reply(200, b"")
            return reply(200, json.dumps({"DocumentIncarnation": 1, "Events": events}).encode())

        with Script(answer) as server:
            code, _, errors = call("events", "--approve", "all", "--endpoint", server.url)
        self.assertEqual((code, posts), (1, [["A", "B"], ["A"], ["B"]]))
        self.assertIn("approved Reboot A\n", errors)
        self.assertIn("answered 400", errors)
        self.assertIn("is there such an event as B (still)?", errors)

    def test_ctl_does_nothing_twice(self):
        for answer, code in ((None, 3), (reply(503, b""), 4), ([b""] * 4, 3)):
            with Script(answer) as server:
                got, _, errors = call("ctl", "advance", "seconds=30", "--url", server.url, "--timeout", "0.5")
                self.assertEqual((got, len(server.requests)), (code, 1), errors)
            if code == 3:
                self.assertIn("the operation may have been done", errors)
        with Script(None, reply(200, b'{"result":5}')) as server:  # reading may be tried again
            self.assertEqual(imds.Client(server.url).control("/imds/now", None), {"result": 5})

    def test_ctl_prints_nothing_that_a_terminal_obeys(self):
        said = {name: {"signature": "a\x1b]0;x\x07", "documentation": "b\x1b[2J\nc"} for name in imds.OPERATIONS}
        with Script(reply(200, json.dumps(said).encode())) as server:
            self.assertNotIn("\x1b", call("ctl", "--url", server.url)[1])
        with Script(reply(200, json.dumps({"result": "\x1b[2J"}).encode())) as server:
            self.assertEqual(call("ctl", "now", "--url", server.url)[1], "?[2J\n")

    def test_no_event_and_no_difference_does_either(self):
        events = [{"EventId": "A\x1b[2J\nimds: approved Reboot ALL", "EventType": "\x1b[31mReboot", "EventStatus": "Scheduled",
                   "Resources": [], "NotBefore": ""}]
        with Script(lambda request: reply(200, b"") if request.startswith("POST") else reply(
                200, json.dumps({"DocumentIncarnation": 1, "Events": events}).encode())) as server:
            self.assertEqual(call("events", "--approve", "all", "--endpoint", server.url),
                             (0, "", "imds: approved ?[31mReboot A?[2J?imds: approved Reboot ALL\n"))
        with tempfile.TemporaryDirectory() as folder:
            names = [os.path.join(folder, name) for name in "ab"]
            for name, compute in zip(names, ({"a\n\x1b[2Jb": "v\x7f\x9b"}, {})):
                with open(name, "w", encoding="utf-8") as file:
                    json.dump({"compute": compute}, file)
            self.assertEqual(call("diff", *names), (1, 'instance/compute/a\\n\\x1b[2Jb: "v\\x7f\\x9b" -> (absent)\n', ""))

    def test_diff_of_a_part(self):
        with tempfile.TemporaryDirectory() as folder:
            names = [os.path.join(folder, name) for name in "ab"]
            for name, size in zip(names, "xy"):
                with open(name, "w", encoding="utf-8") as file:
                    json.dump({"location": "westus", "vmSize": size}, file)
            self.assertEqual(call("diff", *names), (1, 'instance/vmSize: "x" -> "y"\n', ""))

    def test_diff_with_a_service_that_lies(self):
        for part, answer in (("scheduledevents", {"DocumentIncarnation": 1, "Events": [{"EventId": "a", "EventType": "x", "EventStatus": "x",
                                                                                        "Resources": [], "NotBefore": ""}]}),
                             ("loadbalancer", {"loadbalancer": 5})):
            def choose(request, part=part, answer=answer):
                return reply(200, json.dumps(answer).encode()) if part in request else reply() if "/instance" in request else reply(404, b"{}")

            with Script(choose) as server:
                code, _, errors = call("diff", server.url, server.url)
            self.assertEqual((code, errors.startswith("imds: %s is not a VM: " % server.url)), (5, True), errors)

    def test_diff_of_parts(self):
        bare, whole, other, truth, large = files(
            self.folder, bare={"compute": {"name": "x"}}, whole={"instance": {"compute": {"name": "x"}}, "loadbalancer": {}},
            other={"instance": {"compute": {"name": "x"}}, "identity": {}}, truth={"compute": {"name": True}},
            large={"compute": {"name": "x", "plan": {"name": "n" * 60, "product": "p" * 60}}})
        note = "imds: only the instance documents are compared: %s has nothing else\n" % bare
        self.assertEqual(call("diff", bare, whole), (0, "", note))
        self.assertEqual(call("diff", whole, bare), (0, "", note))
        self.assertEqual(call("diff", whole, other), (1, "identity: (absent) -> {}\nloadbalancer: {} -> (absent)\n", ""))
        self.assertEqual(call("diff", bare, truth), (1, 'instance/compute/name: "x" -> true\n', ""))
        self.assertEqual(call("diff", bare, large), (1, (
            'instance/compute/plan/name: (absent) -> "%s"\ninstance/compute/plan/product: (absent) -> "%s"\n'
            % ("n" * 60, "p" * 60)), ""))

    def test_token(self):
        with imds.Emulator(identities=["user:one", "user:two"]) as vm:
            here = (RESOURCE, "--endpoint", vm.url)
            code, out, error = call("token", *here)
            self.assertEqual((code, out), (1, ""))
            self.assertIn("Multiple user assigned identities", error)
            one = vm.identities[0]
            code, out, error = call("token", "--client-id", one["clientId"], *here)
            self.assertEqual((code, error, claims(out.strip())[1]["appid"]), (0, "", one["clientId"]))
            code, out, error = call("token", "--object-id", one["objectId"], *here)
            self.assertEqual((code, error, claims(out.strip())[1]["appid"]), (0, "", one["clientId"]))
            code, out, _ = call("token", "--msi-res-id", one["resourceId"], "--json", *here)
            self.assertEqual(json.loads(out)["client_id"], one["clientId"])

    def test_a_token_is_never_said(self):
        for answer, code in (
            (b'{"access_token":"eyJsecret","expires_in":"5"}', 5), (reply(400, b'{"access_token":"eyJsecret"}'), 1),
            (reply(200, b'{"access_token":"eyJsecret"}'), 5), (reply(200, b'{"access_token":"","expires_in":"86400"}'), 5),
        ):
            with Script(answer) as server:
                got, out, errors = call("token", "x", "--endpoint", server.url)
            self.assertEqual((got, out, errors.count("\n")), (code, "", 1))
            self.assertNotIn("eyJ", errors)

    @unittest.skipUnless(shutil.which("openssl"), "no openssl here")
    def test_attested(self):
        with imds.Emulator() as vm:
            self.assertEqual(json.loads(call("attested", "--endpoint", vm.url)[1])["encoding"], "pkcs7")
            content = json.loads(call("attested", "--content", "--nonce", "123", "--endpoint", vm.url)[1])
            self.assertEqual(content["nonce"], "123")
            der = self.file("der", subprocess.check_output([sys.executable, FILE, "attested", "--der", "--endpoint", vm.url]))
            chain = self.file("chain", (call("test-ca")[1] + call("test-ca", "--issuing")[1]).encode())
            subprocess.check_output(["openssl", "cms", "-verify", "-purpose", "any", "-inform", "DER", "-in", der,
                                     "-CAfile", chain], stderr=subprocess.DEVNULL)
            signature = json.loads(call("attested", "--nonce", "5", "--endpoint", vm.url)[1])["signature"]
            self.assertIn(b'"nonce":"5"', base64.b64decode(signature))

    def test_events(self):
        with imds.Emulator() as vm:
            here = ("--endpoint", vm.url)
            self.assertEqual(call("events", *here), (0, "no scheduled events\n", ""))
            self.assertEqual(call("events", "--exec", "true", *here)[0], 2)
            ids = [vm.schedule("Reboot"), vm.schedule("Preempt", after=3600, resources=["web_1", "web_2"], source="User"),
                   vm.play("live-migration")]
            code, out, _ = call("events", *here)
            self.assertEqual((code, out.count("\n")), (0, 3))
            self.assertRegex(out, r"Scheduled  Preempt    in (59|60):\d\d   [0-9A-F-]{36}  web_1,web_2")
            self.assertEqual(json.loads(call("events", "--json", *here)[1]), vm.events())
            self.assertEqual(call("events", "--approve", ids[0], *here), (0, "", ""))
            code, out, errors = call("events", "--approve", "unknown", *here)
            self.assertEqual((code, out, errors.count("\n")), (1, "", 1))
            self.assertNotIn("scheduled_events", errors)
            self.assertEqual(call("events", "--approve", "all", *here),
                             (0, "", "imds: approved Preempt %s\nimds: approved Freeze %s\n" % tuple(ids[1:])))
            self.assertEqual([each["EventStatus"] for each in vm.events()["Events"]], ["Started"] * 3)
            self.assertRegex(call("events", *here)[1], r"\AStarted    Reboot {16}" + ids[0])
            self.assertEqual(call("events", "--approve", "all", *here)[0], 0)
            vm.reset()
            vm.fail("scheduledevents: delay 600ms always")  # the time-out is for all requests together
            begun = time.monotonic()
            vm.schedule("Reboot")
            self.assertEqual(call("events", "--approve", "all", "--json", "--timeout", "1", *here)[0], 3)
            self.assertLess(time.monotonic() - begun, 1.5)
            vm.reset()
            self.assertEqual(call("events", "--approve", "unknown", *here)[0], 1)
            self.assertEqual([each.request.verb for each in vm.requests], ["POST"])  # nothing is asked that is not needed
            vm.reset()
            vm.clock.advance(5000)  # NotBefore goes by the service's clock
            vm.schedule("Reboot")
            self.assertRegex(call("events", *here)[1], r"in 1[45]:\d\d ")


class Bare(Case):
    """What a minimal image has: no site, no home, no ssl, nothing that can be written, half a library."""

    def test_isolated(self):
        bare = (sys.executable, "-I", "-S", "-W", "error")
        command = ("exec", "--") + bare + (FILE, "get", "compute/name")
        self.assertEqual(run(*command, python=bare), (0, "avset2\n", ""))

    def test_without_a_home_or_a_place_for_bytecode(self):
        shutil.copy(FILE, self.folder)
        os.chmod(self.folder, 0o500)
        copy = os.path.join(self.folder, "imds.py")
        environment = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
        environment["LD_LIBRARY_PATH"] = os.environ.get("LD_LIBRARY_PATH", "")
        out = subprocess.check_output([sys.executable, copy, "exec", "--", sys.executable, copy, "get", "compute/name"],
                                      env=environment, cwd="/")
        os.chmod(self.folder, 0o700)
        self.assertEqual(out, b"avset2\n")

    def test_without_ssl(self):
        script = ("import sys; sys.modules['ssl'] = sys.modules['_ssl'] = None; sys.path.insert(0, %r)\n"
                  "import imds\nwith imds.Emulator() as vm: print(vm.get('compute/name'))" % os.path.dirname(FILE))
        self.assertEqual(subprocess.check_output([sys.executable, "-W", "error", "-c", script]), b"avset2\n")

    def test_with_the_minimal_library(self):
        done = subprocess.run([sys.executable, "-c", MINIMAL], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        errors = done.stderr.decode().splitlines()
        self.assertEqual([line for line in done.stdout.decode().splitlines() if re.match(r"[\w-]+ \d+\Z", line)],
                         ["get 2", "events 2", "token 2", "serve 2", "exec 2", "test-ca 0", "get 0"], errors)
        self.assertEqual(len(errors), 5, errors)
        for line in errors:
            self.assertRegex(line, r"^imds: this Python lacks a part of its standard library, [\w.]+; .*apt-get install python3")

    def test_without_json_which_debian_12_counts_among_the_rest(self):
        script = ("import runpy, sys; sys.modules['json'] = None; sys.path.insert(0, %r); sys.argv[1:] = ['--version']\n"
                  "runpy.run_module('imds', run_name=%r)")
        for name, code, last in (("__main__", 2, "imds: this Python lacks a part of its standard library, json; "),
                                 ("imds", 1, "ModuleNotFoundError: ")):
            done = subprocess.run([sys.executable, "-c", script % (os.path.dirname(FILE), name)], stderr=subprocess.PIPE)
            errors = done.stderr.decode().splitlines()
            self.assertEqual((done.returncode, errors[-1][:len(last)]), (code, last))
            self.assertEqual(len(errors) == 1, code == 2)

    def test_as_a_zip_application(self):
        os.mkdir(os.path.join(self.folder, "app"))
        shutil.copy(FILE, os.path.join(self.folder, "app"))
        target = os.path.join(self.folder, "imds.pyz")
        zipapp.create_archive(os.path.join(self.folder, "app"), target, main="imds:main")
        done = subprocess.run([sys.executable, target, "exec", "--", sys.executable, "-c", "exit(3)"])
        self.assertEqual(done.returncode, 3)

    def test_an_import_pays_for_neither_half(self):
        script = ("import sys; sys.path.insert(0, %r); import imds; print([name for name in ('http.server', 'argparse',"
                  " 'urllib.request', 'socket', 'threading', 'ssl', 'typing', 'dataclasses') if name in sys.modules])"
                  % os.path.dirname(FILE))
        out = subprocess.check_output([sys.executable, "-I", "-S", "-c", script]).decode()
        self.assertEqual(out.strip(), "[]")
