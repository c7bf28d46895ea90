"""The README's sessions, run from top to bottom: what they print is what it shows. And its tables, beside the code's."""

import contextlib
import doctest
import importlib.util
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import imds
from tests.support import ROOT, lay_out, own_network, readme

# What differs from run to run, and what takes its place on both sides.
VOLATILE = (
    (r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}", "GUID"), (r"127\.0\.0\.1:\d\d+", "ADDRESS"),
    (r"\d\d/\d\d/\d\d \d\d:\d\d:\d\d", "TIME"), (r"\b\d\d:\d\d:\d\d\b", "TIME"), (r"in 14:\d\d ", "in 14:MM "),
    (r"in 0:\d\d ", "in 0:SS "), (r"\b\d+ ms\b", "N ms"), (r"(?m)^(clock +)[+-]\d+ s", r"\1N s"),
    (r"(CMS )?Verification successful", "Verification successful"),
    (r"\b(imds\.py|curl)/[\d.]+", r"\1/VERSION"),
)
# What a session needs beside bash and this Python, by what is in it.
NEEDS = {"openssl": "openssl", "verify.sh": "openssl", "curl": "curl", "naive.sh": "curl"}


def normal(text):
    for pattern, name in VOLATILE:
        text = re.sub(pattern, name, text)
    return text


def environment(folder, **more):
    kept = {name: value for name, value in os.environ.items() if name not in imds.LEADING and name != "KUBERNETES_SERVICE_HOST"}
    return dict(kept, PATH=folder + os.pathsep + os.environ["PATH"], PYTHONIOENCODING="utf-8", **more)


def transcript(commands, endpoint):
    """What a shell shows of some commands, each behind its prompt."""
    script = "\n".join("printf '%%s\\n' %s\n%s" % ("'$ " + command.replace("'", "'\\''") + "'", command)
                       for command in commands)
    with tempfile.TemporaryDirectory() as folder:
        lay_out(folder)
        done = subprocess.run(["bash", "-c", script], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=60, env=environment(folder, AZURE_IMDS_ENDPOINT=endpoint))
    return done.stdout.decode()


class Sessions(unittest.TestCase):
    @unittest.skipUnless(os.name == "posix" and shutil.which("bash"), "no bash here")
    def test_sessions(self):
        sessions = re.findall(r"^```console\n(.*?)^```$", readme(), re.M | re.S)
        self.assertGreater(len(sessions), 20)
        ran = 0
        with imds.Emulator() as vm:
            for session in sessions:
                commands = re.findall(r"^\$ (.*)$", session, re.M)
                lacking = [need for word, need in NEEDS.items() if word in session and not shutil.which(need)]
                if commands == ["python3 -m unittest"] or "npm install" in session or lacking or (
                        "--isolated" in session and not own_network()):
                    continue
                with self.subTest(session=session):
                    if re.search(r"-m imds serve", commands[0]):
                        self.serve(commands[0], session.splitlines()[1:])
                    else:
                        for _ in range(3):  # on a busy machine what shows haste may come too late to be that
                            shown = normal(transcript(commands, vm.url))
                            if shown == normal(session):
                                break
                        self.assertEqual(shown, normal(session))
                ran += 1
        self.assertGreater(ran, 15)

    def serve(self, command, lines):
        server = subprocess.Popen([sys.executable] + command.split()[1:] + ["--port", "0"], cwd=ROOT,
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            self.assertEqual([normal(server.stdout.readline().decode().strip()) for _ in lines],
                             [normal(line) for line in lines])
        finally:
            server.terminate()
            self.assertEqual(server.communicate(timeout=10)[0], b"")

    def test_python(self):
        blocks = re.findall(r"^```python\n(.*?)^```$", readme(), re.M | re.S)
        self.assertGreater(len(blocks), 6)
        with imds.Emulator() as vm, mock.patch.dict(os.environ, vm.environ):
            for block in blocks:
                code = compile(block, "README.md", "exec")
                if "import pytest" in block and not importlib.util.find_spec("pytest"):
                    continue
                with self.subTest(block=block), contextlib.redirect_stdout(io.StringIO()):
                    names = {}
                    exec(code, names)
                    if "MyTest" in names:
                        result = unittest.TestResult()
                        unittest.defaultTestLoader.loadTestsFromTestCase(names["MyTest"]).run(result)
                        self.assertEqual((result.testsRun, result.failures + result.errors), (1, []))
                    elif "pytest" not in block and "test_my_agent" in names:
                        names["test_my_agent"]()

    @unittest.skipIf(sys.flags.optimize > 1, "there are none")
    def test_the_examples_of_docstrings(self):
        with imds.Emulator() as vm, mock.patch.dict(os.environ, vm.environ):
            result = doctest.testmod(imds, extraglobs={"vm": vm, "imds": imds}, report=True)
        self.assertGreater(result.attempted, 4)
        self.assertEqual(result.failed, 0)


class Tables(unittest.TestCase):
    """What stands in the README and in the code, too."""

    def setUp(self):
        self.text = readme()

    def says(self, text, pattern=False):
        """It stands in the README; not assertIn, which would print all of it."""
        self.assertTrue(re.search(text if pattern else re.escape(text), self.text, re.M), "the README lacks " + text)

    def test_the_first_page_is_one(self):
        first, _, _ = self.text.partition("## The client\n")
        self.assertLessEqual(first.count("\n"), 150)
        for earlier, later in (("imds.get(", "-m imds get"), ("-m imds get", "def test_"), ("def test_", "-m imds serve")):
            self.assertLess(first.index(earlier), first.index(later))

    def test_every_link_leads_somewhere(self):
        titles = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
                  for title in re.findall(r"^#+ (.*)$", self.text, re.M)}
        self.assertEqual(set(re.findall(r"\]\(#([^)]+)\)", self.text)).difference(titles), set())

    def test_every_command_option_and_exit_code_is_named(self):
        codes = set(imds.EXIT_CODES)
        for name, row in imds.COMMANDS.items():
            self.says(r"^\| `%s\b" % name, True)
            codes.update(row.codes)
            for key in row.options.split():
                for option in imds.OPTIONS[key].get("names", [key]):
                    if option.startswith("--"):
                        self.says(re.escape(option) + r"\b", True)
        meanings = re.search(r"\| exit code \| meaning \|\n(.*?)\n\n", self.text, re.S).group(1)
        for code in codes:
            self.assertRegex(meanings, r"(?m)^\|[^|]*(?<!\w)%s(?![\w+])[^|]*\|" % re.escape(str(code)))

    def test_every_public_name_is_named(self):
        for name in imds.__all__:
            self.says(r"\b%s\b" % name, True)
            self.assertTrue(getattr(imds, name).__doc__ or sys.flags.optimize > 1, name)

    def test_every_argument_of_the_emulator_has_a_row(self):
        table = re.search(r"\| argument \| is .*?\n\n", self.text, re.S).group(0)
        rows = {name for row in re.findall(r"(?m)^\| (`.*?`) \|", table) for name in re.findall("`([^`]*)`", row)}
        self.assertEqual(rows | {"among"}, set(inspect.signature(imds.Emulator).parameters))

    def test_patience(self):
        for name, row in imds.PATIENCE.items():
            title = {"scheduledevents": "`scheduledevents`, the first time", "": "all others",
                     "scheduledevents again": "`scheduledevents` again"}.get(name, "`%s`" % name)
            self.says("| %s | %d | %d | %d | %d |\n" % ((title,) + row))
        said = re.search(r"it is tried again, until then.*?\n\n", self.text, re.S).group(0)
        for status in imds.RETRIED:
            self.assertIn(str(status), said)

    def test_faults_rules_flaws_and_operations(self):
        for name, row in imds.SITUATIONS.items():
            self.says("| `%s` | `%s` | %s |\n" % (name, row.playbook, row.text))
        for name, row in imds.LINT.items():
            self.says("| `%s` | %s | %s |\n" % (name, row.says, row.mark))
        for name, wrong in imds.FLAWS.items():
            self.says("| `%s` | %s |\n" % (name, wrong))
        for action in list(imds.FAULT_STATUSES) + list(imds.FAULT_ANSWERS) + list(imds.FAULT_MANNERS):
            self.says(r"^\| STEP: .*`%s" % action, True)
        operations = self.text.partition("| operation | arguments |")[2]
        for name in imds.OPERATIONS:
            row = re.search(r"(?m)^\| `%s` \| (.*) \|$" % name, operations).group(1)
            parameters = []
            for each in list(inspect.signature(getattr(imds.Bench, name)).parameters.values())[1:]:
                # What is handed on: how a request is to be like.
                parameters += ["verb", "headers", "query"] if each.kind == each.VAR_KEYWORD else [each.name]
            self.assertEqual(re.findall("`([^`]*)`", row), parameters, name)

    def test_numbers(self):
        self.says(" %d api-versions" % len(imds.VERSIONS))
        self.says(" %d checks" % len(imds.contract_checks()))
        for version in imds.UNLISTED_VERSIONS:
            self.says(version)
