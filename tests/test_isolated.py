"""Room 10: exec --isolated, where 169.254.169.254 is this emulator and nothing else can be reached.

Whatever asks that address here looks first whether loopback is the only interface that there is.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import imds
from tests.support import FILE, is_root, own_network, run

ALONE = "[ \"$(grep -c : /proc/net/dev)\" = 1 ] || exit 99; "  # of sh: only in a namespace of its own
ASK = """
with open("/proc/self/net/dev") as file:
    if [line.split(":")[0].strip() for line in file if ":" in line] != ["lo"]:
        raise SystemExit(99)
import os, socket, sys, urllib.request
def ask(path, origin="http://169.254.169.254"):
    request = urllib.request.Request(origin + path, headers={"Metadata": "true", "User-Agent": "me/1"})
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5).read().decode()
"""
NAME = "/metadata/instance/compute/name?api-version=2025-04-07&format=text"
# The command, as if this Python had no os.unshare, or one that the kernel refuses.
WITHOUT = "import os, runpy, sys; sys.argv = sys.argv[1:]; vars(os).pop('unshare', None); runpy.run_path(sys.argv[0], {}, '__main__')"
REFUSED = """
import os, runpy, sys
def unshare(flags):
    raise PermissionError(1, "Operation not permitted")
os.unshare, sys.argv = unshare, sys.argv[1:]
runpy.run_path(sys.argv[0], {}, "__main__")
"""

# The command, after some lines of a test.
NOTHING = """
%simport os, runpy, sys
%s
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], {}, "__main__")
"""


def works(*command):
    try:
        return subprocess.run(list(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


isolated = unittest.skipUnless(own_network(), "no network namespaces are to be had here")


def python(code, *arguments):
    return [sys.executable, "-c", ASK + code] + list(arguments)


@isolated
class Isolated(unittest.TestCase):
    def test_the_address_is_this_emulator(self):
        for options, code, out in (
            (["--profile", "windows", "--set", "compute.name=mine"], "print(ask(%r), 'AZURE_IMDS_ENDPOINT' in os.environ, "
             "'AZURE_POD_IDENTITY_AUTHORITY_HOST' in os.environ)" % NAME, "mine False False\n"),
            (["--fault", "404", "--event", "Reboot"], "import urllib.error\ntry: ask(%r)\n"
             "except urllib.error.HTTPError as error: print(error.code)\n"
             "print(ask('/metadata/scheduledevents?api-version=2020-07-01').count('EventId'))" % NAME, "404\n1\n"),
            (["--control"], "print(ask('/imds/faults', os.environ['AZURE_IMDS_CONTROL'].replace('/imds', '')), end='')",
             '{"result":[]}\n'),
        ):
            with self.subTest(options=options, code=code):
                done = run("exec", *["--isolated"] + options + ["--"] + python(code), env={
                    "http_proxy": "http://127.0.0.1:9", "AZURE_POD_IDENTITY_AUTHORITY_HOST": "http://127.0.0.1:9"})
                self.assertEqual(done, (0, out, ""))

    def test_our_own_client_and_curl(self):
        done = run("exec", "--isolated", "--", "sh", "-c", ALONE + '"$0" "$1" get compute/name', sys.executable, FILE)
        self.assertEqual(done, (0, "avset2\n", ""))
        if shutil.which("curl"):
            done = run("exec", "--isolated", "--", "sh", "-c", ALONE + 'exec curl -s -H Metadata:true "http://169.254.169.254$0"',
                       NAME)
            self.assertEqual(done, (0, "avset2", ""))

    def test_nothing_else_can_be_reached(self):
        with imds.Emulator() as vm:
            done = run("exec", "--isolated", "--", *python("""
print(len(ask(%r)))
for address in (("127.0.0.1", int(sys.argv[1])), ("10.255.255.1", 80), ("8.8.8.8", 53), ("169.254.169.253", 80)):
    try:
        socket.create_connection(address, timeout=2)
        print("reached", address)
    except OSError as error:
        print(type(error).__name__)
""" % NAME, str(vm.port)))
            self.assertEqual((done[0], done[1].split()[:3], done[2]), (0, ["6", "ConnectionRefusedError", "OSError"], ""))
            self.assertNotIn("reached", done[1])
            self.assertEqual(vm.requests, [])

    def test_exit_codes_and_streams(self):
        for command, code in ((["sh", "-c", "exit 7"], 7), (["/nowhere/at/all"], 127), (["/"], 126),
                              (["sh", "-c", "kill -9 $$"], 137)):
            with self.subTest(command=command):
                self.assertEqual(run("exec", "--isolated", "--", *command)[0], code)
        done = subprocess.run([sys.executable, FILE, "exec", "--isolated", "--", "sh", "-c", "cat; echo bad >&2"],
                              input=b"\x00\xff\n", stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"\x00\xff\n", b"bad\n"))

    def test_signals(self):
        for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 5)):
            with self.subTest(number=number):
                command = [sys.executable, FILE, "exec", "--isolated", "--", sys.executable, "-c", (
                    "import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(5)); "
                    "print('up', flush=True); time.sleep(30)")]
                with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
                    self.assertEqual(process.stdout.readline(), b"up\n")
                    if number == signal.SIGINT:
                        os.killpg(process.pid, number)  # as a terminal does
                    else:
                        process.send_signal(number)
                    deadline = time.monotonic() + 10
                    while process.poll() is None and time.monotonic() < deadline:
                        time.sleep(0.01)
                    self.assertEqual(process.poll(), code)

    def test_requests_and_lint(self):
        code, out, errors = run("exec", "--isolated", "--requests", "--lint-strict", "--", *python("ask(%r)" % NAME.replace(
            "2025-04-07", "2017-08-01")))
        self.assertEqual((code, out), (1, ""))
        self.assertRegex(errors, r"\A1  \S+  GET /metadata/instance/compute/name\S+  200  by me/1\nold-api-version \(1\): ")

    def test_with_unshare_of_libc(self):  # as before Python 3.12
        self.assertEqual(run("exec", "--isolated", "--", *python("print(ask(%r), sys.argv[1:])" % NAME, "a b", ""),
                             python=(sys.executable, "-c", WITHOUT)), (0, "avset2 ['a b', '']\n", ""))

    def test_it_leaves_nothing_behind(self):
        def addresses():
            with open("/proc/net/fib_trie") as file:
                return file.read()

        before = addresses()
        self.assertEqual(run("exec", "--isolated", "--", "true")[0], 0)
        self.assertEqual(addresses(), before)

    def test_two_at_once(self):
        command = [sys.executable, FILE, "exec", "--isolated", "--"] + python("print(ask(%r))" % NAME)
        both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        self.assertEqual([process.communicate(timeout=30)[0] for process in both], [b"avset2\n"] * 2)


@isolated
@unittest.skipUnless(is_root() and shutil.which("setpriv"), "this is no root, who could become another")
class Unprivileged(unittest.TestCase):
    NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

    def test_without_root(self):
        pythons = [each for each in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3")
                   if works(*self.NOBODY + ("sh", "-c", '"$0" -c "import http.server" && "$0" -c ""', each))]
        if not pythons or not works(*self.NOBODY + ("unshare", "-rn", "true")):
            self.skipTest("nobody may not have a network namespace, or no Python")
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            copy = shutil.copy(FILE, os.path.join(folder, "imds.py"))
            os.chmod(copy, 0o644)
            command = list(self.NOBODY) + [pythons[0], "-B", copy, "exec", "--isolated", "--", pythons[0], "-c",
                                           ASK + "print(ask(%r), os.getgroups() == [0]); raise SystemExit(3)" % NAME]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30, cwd="/")
            self.assertEqual((done.returncode, done.stdout.split()[:1], done.stderr), (3, [b"avset2"], b""))


@unittest.skipUnless(sys.platform.startswith("linux"), "this is about Linux")
class Refusals(unittest.TestCase):
    def check(self, done, words):
        self.assertEqual((done[0], done[1], len(done[2].splitlines())), (2, "", 1), done)
        for word in words:
            self.assertIn(word, done[2])

    def test_where_the_kernel_forbids_it(self):
        ways_out = ["Operation not permitted", "sysctl -w kernel.unprivileged_userns_clone=1", "root",
                    "sudo ip addr add 169.254.169.254/32 dev lo"]
        self.check(run("exec", "--isolated", "--", "echo", "ran", python=(sys.executable, "-c", REFUSED)), ways_out)

    def test_where_there_is_no_unshare(self):
        code = "import sys; sys.modules['ctypes'] = None; " + WITHOUT
        self.check(run("exec", "--isolated", "--", "/bin/echo", "ran", python=(sys.executable, "-c", code)),
                   ["lacks a part of its standard library", "ctypes"])

    def test_an_unshare_that_does_nothing(self):
        code = NOTHING % ("import os\nos.unshare = lambda flags: None\n", "")
        self.check(run("exec", "--isolated", "--", "/bin/echo", "ran", python=(sys.executable, "-c", code)),
                   ["this is no network namespace of its own: nothing is run in it" if is_root() else
                    "make a network namespace"])  # anyone else can't even write the ids of one

    @isolated
    def test_a_namespace_with_more_in_it(self):
        code = NOTHING % ("", """
real = open
def open(name, *arguments, **settings):
    import io
    if name == "/proc/self/net/dev":
        return io.StringIO("Inter-| Receive\\n lo: 0\\n eth0: 0\\n")
    return real(name, *arguments, **settings)
import builtins
builtins.open = open
""")
        self.check(run("exec", "--isolated", "--", "/bin/echo", "ran", python=(sys.executable, "-c", code)),
                   ["this is no network namespace of its own: nothing is run in it"])
