"""Room 6: the command line, as processes: what they print, where, and how they end."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import imds

FILE = os.path.abspath(imds.__file__)
CLOSED = "http://127.0.0.1:9"


def run(*arguments, **settings):
    """Run the command line; (exit code, standard output, standard error)."""
    python = settings.pop("python", (sys.executable, "-W", "error"))
    environment = dict(os.environ, **settings.pop("env", {}))
    done = subprocess.run(list(python) + [FILE] + list(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=60, env=environment, **settings)
    return done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")


class Serve:
    """A serve process: url, and finish() for the exit code and standard error."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen([sys.executable, "-W", "error", FILE, "serve", "--port", "0"] + list(arguments),
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
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


class Get(unittest.TestCase):
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
            (["--api-version", "2017-04-02", "network/interface/1/macAddress"], 0, "002248A1B2C4\n", ""),
            (["compute/vmid"], 1, "", "imds: there is no 'compute/vmid'; did you mean 'compute/vmId'?"),
            (["compute/name", "compute/vmid"], 1, "", "did you mean 'compute/vmId'?"),
            (["--api-version", "2030-01-01"], 1, "", "newest-versions"),
            (["/metadata/instance/compute/zone?api-version=2017-12-01"], 1, "", "answered 400"),
            (["http://example.com/metadata/instance"], 2, "", "is not at the endpoint"),
        ):
            with self.subTest(arguments=arguments):
                got = run("get", *arguments + here)
                self.assertEqual(got[:2], (code, out))
                self.assertIn(error, got[2])
                self.assertEqual(got[2].count("\n"), 1 if code else 0)
        self.assertEqual(json.loads(run("get", *here)[1]), self.vm.get())

    def test_locale(self):
        self.assertEqual(run("get", "compute/tags", "--endpoint", self.vm.url, env={"LC_ALL": "C"})[1], "caf\u00e9\n")

    def test_nobody_there(self):
        begun = time.monotonic()
        code, out, error = run("get", "compute/vmId", env={"AZURE_IMDS_ENDPOINT": CLOSED})
        self.assertEqual((code, out), (3, ""))
        self.assertIn("nobody answers at " + CLOSED, error)
        self.assertLess(time.monotonic() - begun, 6)

    def test_throttled_and_not_imds(self):
        from tests.test_client import HTML, Script, reply

        with Script(reply(429, b"{}")) as server:
            self.assertEqual(run("get", "x", "--endpoint", server.url, "--timeout", "1")[0], 4)
        with Script(reply(200, b"<html>", HTML)) as server:
            self.assertEqual(run("get", "x", "--endpoint", server.url)[0], 5)

    def test_a_reader_that_has_enough(self):
        process = subprocess.Popen([sys.executable, FILE, "get", "--endpoint", self.vm.url],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        errors = process.stderr.read()
        process.stderr.close()
        process.wait()
        self.assertEqual(errors, b"")

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


class Usage(unittest.TestCase):
    def test_rows(self):
        with socket.socket() as taken, tempfile.TemporaryDirectory() as folder:
            taken.bind(("127.0.0.1", 0))
            taken.listen(1)
            port = str(taken.getsockname()[1])
            files = {}
            for name, content in (("text", b"hello"), ("list", b"[]"), ("other", b'{"a": 1}'), ("empty", b""),
                                  ("shape", b'{"compute": {"tagsList": "x"}}'), ("deep", b"[" * 100000),
                                  ("half", b'{"compute": {"na'), ("bytes", b"\xff\xfe\x00")):
                files[name] = os.path.join(folder, name + ".json")
                with open(files[name], "wb") as file:
                    file.write(content)
            for arguments, code, error in (
                ([], 2, "COMMAND"), (["nonsense"], 2, "invalid choice"), (["get", "--format", "xml"], 2, "invalid choice"),
                (["get", "--endpoint", "nonsense"], 2, "http://127.0.0.1:8169"),
                (["get", "--timeout", "0"], 2, "more than 0"), (["get", "--timeout", "x"], 2, "--timeout"),
                (["serve", "--port", port], 1, "can't listen on 127.0.0.1 port " + port),
                (["serve", "--port", "99999"], 1, "can't listen"),
                (["serve", "--host", "203.0.113.1"], 1, "can't listen"),
                (["serve", "nowhere.json"], 2, "nowhere.json: No such file"), (["serve", folder], 2, folder),
                (["serve", files["text"]], 2, "is not JSON"), (["serve", files["empty"]], 2, "is not JSON"),
                (["serve", files["half"]], 2, "is not JSON"), (["serve", files["deep"]], 2, "is not JSON"),
                (["serve", files["bytes"]], 2, "is not JSON"), (["serve", files["list"]], 2, "is not a VM"),
                (["serve", files["other"]], 2, "is not a VM"),
                (["serve", files["shape"]], 2, "instance.compute.tagsList must be a list"),
                (["serve", "--set", "compute.vmsize=x"], 2, "did you mean compute.vmSize?"),
                (["serve", "--set", "compute.vmSize"], 2, "NAME=VALUE"),
                (["serve", "--cloud", "AzureChina"], 2, "did you mean AzureChinaCloud?"),
                (["serve", "--profile", "windos"], 2, "did you mean windows?"),
                (["serve", "--as-of", "2019"], 2, "'2018'"), (["serve", "--api-versions", "2020"], 2, "2020"),
                (["serve", "--rate-limit", "-1"], 2, "rate_limit"),
                (["exec"], 2, "what is to be run?"), (["exec", "--"], 2, "what is to be run?"),
                (["exec", "true"], 2, "what is to be run?"), (["exec", "a", "-c", "b"], 2, "what is to be run?"), (["serve", files["shape"], "--profile", "linux"], 2, "not both"),
                (["exec", "--", "no-such-command"], 127, "no-such-command"), (["exec", "--", folder], 126, folder),
            ):
                with self.subTest(arguments=arguments):
                    got = run(*arguments)
                    self.assertEqual(got[:2], (code, ""))
                    self.assertIn(error, got[2])
                    self.assertNotIn("Traceback", got[2])

    def test_version_and_help(self):
        self.assertEqual(run("--version")[:2], (0, "imds %s\n" % imds.__version__))
        for command in ((), ("get",), ("serve",), ("exec",)):
            code, out, _ = run(*command + ("--help",))
            self.assertEqual(code, 0)
            self.assertIn("exit codes:", out)


class Serving(unittest.TestCase):
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
            self.assertRegex(errors, r'"GET /metadata/instance\?api-version=2025-04-07 HTTP/1.1" 200 -\n')
            self.assertIn(" 404 not found\n", errors)
            self.assertNotIn("Traceback", errors)

    @unittest.skipUnless(shutil.which("curl"), "no curl here")
    def test_the_curl_line_of_the_banner_works(self):
        with Serve() as server:
            code, _, errors = server.finish()
        with Serve("--port", server.url.rpartition(":")[2]) as server:
            line = re.search(r"^  (curl .*)$", errors, re.M).group(1)
            body = subprocess.check_output(line, shell=True, timeout=20)
        self.assertEqual(json.loads(body.decode())["compute"]["name"], "avset2")

    def test_a_log_that_nobody_reads_holds_up_nobody(self):
        request = b"GET /metadata/versions HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n"
        with Serve() as server, socket.create_connection(server.url[7:].split(":"), 10) as client:
            for _ in range(40):  # twice what a pipe holds
                client.sendall(request * 40)
                data = b""
                while data.count(b'"]}') < 40:
                    data += client.recv(65536)
            self.assertIn("avset2, Standard_D1", server.finish()[2])

    def test_quiet(self):
        with Serve("--quiet") as server:
            imds.get("compute/name", endpoint=server.url)
            self.assertNotIn("GET", server.finish()[2])

    def test_options(self):
        for arguments, path, value in (
            (["--profile", "windows"], "compute/name", "SQLTest"),
            (["--set", "compute.vmSize=Standard_D4s_v5", "--set", "compute.zone="], "compute/vmSize", "Standard_D4s_v5"),
            (["--cloud", "AzureChinaCloud"], "compute/azEnvironment", "AzureChinaCloud"),
            (["--api-versions", "2017-04-02,2017-08-01"], "/metadata/versions",
             {"apiVersions": ["2017-04-02", "2017-08-01"]}),
        ):
            with self.subTest(arguments=arguments), Serve(*arguments) as server:
                self.assertEqual(imds.get(path, endpoint=server.url), value)
        with Serve("--as-of", "2018") as server, self.assertRaises(imds.NotFound):
            imds.get("/metadata/versions?api-version=2018-02-01", endpoint=server.url)
        with Serve("--rate-limit", "0.01") as server:
            imds.get("compute/name", endpoint=server.url)
            with self.assertRaises(imds.Unavailable):
                imds.get("compute/name", endpoint=server.url, deadline=0.1)

    def test_a_document_of_a_real_vm(self):
        document = '{"compute":{"name":"mine","tagsList":[{"name":"a","value":"\u00e9"}]},"network":{"interface":[]}}'
        with tempfile.TemporaryDirectory() as folder:
            for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # what curl writes, and what PowerShell does
                name = os.path.join(folder, encoding)
                with open(name, "wb") as file:
                    file.write(document.encode(encoding))
                with self.subTest(encoding=encoding), Serve(name) as server:
                    self.assertEqual(imds.get("compute/tagsList/0/value", endpoint=server.url), "\u00e9")
                    self.assertEqual(imds.get("compute/location", endpoint=server.url), "")

    def test_a_warning_for_a_host_that_is_not_loopback(self):
        with Serve("--host", "0.0.0.0") as server:
            self.assertTrue(server.url.startswith("http://127.0.0.1:"))
            self.assertIn("warning: 0.0.0.0 is not loopback", server.finish()[2])


class Exec(unittest.TestCase):
    def test_the_demonstration(self):
        code, out, errors = run("exec", "--", sys.executable, FILE, "get", "compute/vmId")
        self.assertEqual((code, out, errors), (0, "13f56399-bd52-4150-9748-7190aae1ff21\n", ""))

    def test_environment_and_exit_code(self):
        script = ("import os, sys; urls = {os.environ[name] for name in "
                  "('AZURE_IMDS_ENDPOINT', 'AZURE_POD_IDENTITY_AUTHORITY_HOST')}; print(*urls); sys.exit(7)")
        code, out, _ = run("exec", "--set", "compute.name=x", "--", sys.executable, "-c", script)
        self.assertEqual(code, 7)
        self.assertRegex(out, r"^http://127\.0\.0\.1:\d+\n$")

    def test_options_of_the_command_are_its_own(self):
        self.assertEqual(run("exec", "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", "--", "--port")[1],
                         "['--', '--port']\n")

    @unittest.skipUnless(os.name == "posix", "signals of POSIX")
    def test_signals(self):
        self.assertEqual(run("exec", "--", "sh", "-c", "kill -9 $$")[0], 137)
        process = subprocess.Popen([sys.executable, FILE, "exec", "--", "sh", "-c", "echo on; exec sleep 50"],
                                   stdout=subprocess.PIPE)
        process.stdout.readline()
        process.terminate()
        self.assertEqual(process.wait(10), 143)
        process.stdout.close()


class Bare(unittest.TestCase):
    """What a minimal image has: no site, no home, no ssl, nothing that can be written."""

    def test_isolated(self):
        bare = (sys.executable, "-I", "-S", "-W", "error")
        command = ("exec", "--") + bare + (FILE, "get", "compute/name")
        self.assertEqual(run(*command, python=bare), (0, "avset2\n", ""))

    def test_without_a_home_or_a_place_for_bytecode(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(FILE, folder)
            os.chmod(folder, 0o500)
            copy = os.path.join(folder, "imds.py")
            environment = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
            environment["LD_LIBRARY_PATH"] = os.environ.get("LD_LIBRARY_PATH", "")
            out = subprocess.check_output([sys.executable, copy, "exec", "--", sys.executable, copy, "get", "compute/name"],
                                          env=environment, cwd="/")
            os.chmod(folder, 0o700)
        self.assertEqual(out, b"avset2\n")

    def test_without_ssl(self):
        script = ("import sys; sys.modules['ssl'] = sys.modules['_ssl'] = None; sys.path.insert(0, %r)\n"
                  "import imds\nwith imds.Emulator() as vm: print(vm.get('compute/name'))" % os.path.dirname(FILE))
        self.assertEqual(subprocess.check_output([sys.executable, "-W", "error", "-c", script]), b"avset2\n")

    def test_an_import_pays_for_neither_half(self):
        script = ("import sys; sys.path.insert(0, %r); import imds; print([name for name in ('http.server', 'argparse',"
                  " 'urllib.request', 'socket', 'threading', 'ssl', 'typing', 'dataclasses') if name in sys.modules])"
                  % os.path.dirname(FILE))
        out = subprocess.check_output([sys.executable, "-I", "-S", "-c", script]).decode()
        self.assertEqual(out.strip(), "[]")


if __name__ == "__main__":
    unittest.main()
