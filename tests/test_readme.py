"""The README's sessions, run from top to bottom: what they print is what the README shows."""

import contextlib
import doctest
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import imds

ROOT = os.path.dirname(os.path.abspath(imds.__file__))

# What differs from run to run, and what takes its place on both sides.
VOLATILE = (
    (r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}", "GUID"), (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"\d\d/\d\d/\d\d \d\d:\d\d:\d\d", "TIME"), (r"in 14:\d\d ", "in 14:MM "), (r"in 0:\d\d ", "in 0:SS "),
    (r"CN ?= ?", "CN="),
)


def normal(text):
    for pattern, name in VOLATILE:
        text = re.sub(pattern, name, text)
    return text


class Readme(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
            cls.text = file.read()

    @unittest.skipUnless(os.name == "posix" and shutil.which("bash"), "no bash here")
    def test_sessions(self):
        sessions = re.findall(r"^```console\n(.*?)^```$", self.text, re.M | re.S)
        self.assertGreater(len(sessions), 8)
        ran = 0
        for session in sessions:
            if re.search(r"^\$ (sudo|openssl)|imds serve$|unittest$", session, re.M) and not self.can_run(session):
                continue
            commands = re.findall(r"^\$ (.*)$", session, re.M)
            expected = re.sub(r"^\$ .*\n", "", session, flags=re.M)
            with self.subTest(session=session), tempfile.TemporaryDirectory() as folder:
                shutil.copy(os.path.join(ROOT, "imds.py"), folder)
                with open(os.path.join(folder, "python3"), "w") as file:
                    file.write('#!/bin/sh\nexec "%s" "$@"\n' % sys.executable)
                os.chmod(file.name, 0o755)
                done = subprocess.run(["bash", "-m", "-c", "\n".join(commands)], cwd=folder, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, timeout=60,
                                      env=dict(os.environ, PATH=folder + os.pathsep + os.environ["PATH"]))
                printed = re.sub(r"^bash: .*\n", "", done.stdout.decode(), flags=re.M)
                self.assertEqual(normal(printed), normal(expected))
                ran += 1
        self.assertGreater(ran, 6)

    def can_run(self, session):
        return "openssl" in session and shutil.which("openssl")

    def test_python(self):
        blocks = re.findall(r"^```python\n(.*?)^```$", self.text, re.M | re.S)
        self.assertGreater(len(blocks), 5)
        for block in blocks:
            code = compile(block, "README.md", "exec")
            if "import pytest" not in block:
                with self.subTest(block=block), contextlib.redirect_stdout(io.StringIO()):
                    names = {}
                    exec(code, names)
                    if "MyTest" in names:
                        names["MyTest"]("test_my_agent").debug()

    def test_the_examples_of_docstrings(self):
        with imds.Emulator() as vm:
            os.environ["AZURE_IMDS_ENDPOINT"] = vm.url
            try:
                result = doctest.testmod(imds, extraglobs={"vm": vm, "imds": imds}, report=True)
            finally:
                os.environ["AZURE_IMDS_ENDPOINT"] = "http://127.0.0.1:9"
        self.assertGreater(result.attempted, 4)
        self.assertEqual(result.failed, 0)

    def test_every_command_option_and_exit_code_is_named(self):
        import argparse

        for name, (_, _, options) in imds.COMMANDS.items():
            self.assertTrue("| `%s" % name in self.text, name)
            parser = argparse.ArgumentParser(add_help=False)
            for add_options in options:
                add_options(parser)
            for action in parser._actions:
                for option in action.option_strings:
                    self.assertTrue(option in self.text, option)
        for code in re.findall(r"^  (\d)  ", imds.EXIT_CODES, re.M):
            self.assertTrue("| %s |" % code in self.text, code)

    def test_every_public_name_is_named(self):
        for name in imds.__all__:
            self.assertTrue(name in self.text, name)
            self.assertTrue(getattr(imds, name).__doc__, name)


if __name__ == "__main__":
    unittest.main()
