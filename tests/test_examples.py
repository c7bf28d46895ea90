"""The README's whole examples, run as their first line says, in each language that is here; and its containers."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

from tests.support import CLOSED, FILE, ROOT, lay_out, named_files, own_network

COMMAND = re.compile(r"^(?:#|//) (python3 -m .*)$", re.M)
APP = r"""
ip link set lo up && ip addr add 169.254.169.254/24 dev lo || exit 99
python3 imds.py {server} >url 2>log & server=$!
trap 'kill $server' EXIT
for _ in $(seq 200); do {health} >health 2>&1 && break; sleep 0.05; done
cat health
{app}
"""


def node_can_test():
    version = subprocess.run(["node", "--version"], stdout=subprocess.PIPE).stdout if shutil.which("node") else b"v0."
    return int(re.match(rb"v(\d+)", version).group(1)) >= 18


# What an example needs, by its command or its text: (words, what it is, whether it is here).
NEEDS = (
    ("-m pytest", "pytest", lambda: bool(importlib.util.find_spec("pytest"))),
    ("node --test", "node 18", node_can_test),
    ("go test", "go", lambda: bool(shutil.which("go"))),
    ("openssl", "openssl", lambda: bool(shutil.which("openssl"))),
    ("curl", "curl", lambda: bool(shutil.which("curl"))),
)


@unittest.skipUnless(os.name == "posix" and shutil.which("sh"), "no shell here")
class Examples(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        lay_out(self.folder)
        # At the closed port no example finds a real service.
        self.environment = dict(os.environ, AZURE_IMDS_ENDPOINT=CLOSED, GOFLAGS="-mod=mod", GOPROXY="off",
                                GOTOOLCHAIN="local", GO111MODULE="off", PATH=self.folder + os.pathsep + os.environ["PATH"])
        self.environment.setdefault("HOME", self.folder)

    def begin(self, content):
        """Start what the first line of an example says."""
        process = subprocess.Popen(["sh", "-c", COMMAND.match(content).group(1)], cwd=self.folder, env=self.environment,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.addCleanup(lambda: process.returncode is None and process.communicate())
        self.addCleanup(lambda: process.returncode is None and process.kill())
        return process

    def end(self, process):
        """Its exit code, and all that it printed."""
        said = process.communicate(timeout=120)[0]
        return process.returncode, said.decode()

    def test_each(self):
        running, lacking = {}, set()
        for name, content in sorted(named_files().items()):
            if not COMMAND.match(content):
                continue
            absent = [what for words, what, is_here in NEEDS if words in content and not is_here()]
            lacking.update(absent)
            if not absent:
                running[name] = self.begin(content)  # all at once, for what they mostly do is wait before they ask again
        for name, process in running.items():
            with self.subTest(example=name):
                code, said = self.end(process)
                self.assertEqual(code, 0, said)
        self.assertIn("test.sh", running)
        self.assertIn("test_moving.py", running)
        if lacking:
            print("not run, of the README's examples: those for " + ", ".join(sorted(lacking)), file=sys.stderr)

    def test_which_are_there(self):
        names = {name: content for name, content in named_files().items() if COMMAND.match(content)}
        self.assertEqual(set(names), {"test_agent.py", "test_moving.py", "test.sh", "agent.test.mjs", "agent_test.go",
                                      "verify.sh"})
        for name in set(names) - {"verify.sh"}:
            self.assertIn("your software here", names[name])

    def test_they_fail_where_the_software_does(self):
        # Software that does not ask at all: the example must notice it.
        path = os.path.join(self.folder, "test.sh")
        with open(path) as file:
            content = file.read()
        asking = re.search(r"^test .*$", content, re.M).group(0)
        with open(path, "w") as file:
            file.write(content.replace(asking, "python3 -m imds verify --help >/dev/null"))
        code, said = self.end(self.begin(content))
        self.assertEqual(code, 1, said)
        self.assertRegex(said, "no request like .*, expected 3")


@unittest.skipUnless(sys.platform == "linux", "containers are Linux's")
class Containers(unittest.TestCase):
    """The README's Dockerfile and compose network, as far as they can be tried without an engine."""

    def setUp(self):
        files = named_files()
        self.dockerfile, self.compose = files["Dockerfile"], files["compose.yaml"]

    def lists(self, key):
        """The lists in brackets behind a key of the compose file."""
        return [json.loads(found) for found in re.findall(r"^ +%s: (\[.*\])$" % key, self.compose, re.M)]

    def test_dockerfile(self):
        lines = self.dockerfile.splitlines()
        self.assertEqual([line.split()[0] for line in lines], ["FROM", "COPY", "ENTRYPOINT"])
        for name in lines[1].split()[1:-1]:
            self.assertTrue(os.path.exists(os.path.join(ROOT, name)), name)

    def test_compose_is_yaml_of_that_shape(self):
        if not importlib.util.find_spec("yaml"):
            self.skipTest("no yaml here")
        import yaml

        document = yaml.safe_load(self.compose)
        address = document["services"]["imds"]["networks"]["metadata"]["ipv4_address"]
        self.assertEqual(address, "169.254.169.254")
        import ipaddress
        subnet = document["networks"]["metadata"]["ipam"]["config"][0]
        self.assertIn(ipaddress.ip_address(address), ipaddress.ip_network(subnet["subnet"]))
        self.assertIn(ipaddress.ip_address(subnet["gateway"]), ipaddress.ip_network(subnet["subnet"]))
        self.assertEqual(document["services"]["app"]["networks"], ["metadata"])

    def test_the_commands_at_that_address(self):
        for program in ("ip", "curl"):
            if not shutil.which(program):
                self.skipTest("no %s here" % program)
        unshare = own_network()
        if not unshare:
            self.skipTest("network namespaces are not allowed here")
        entry = json.loads(self.dockerfile.splitlines()[-1].partition(" ")[2])
        self.assertEqual(entry[:2], ["python3", "/imds.py"])
        server, app = self.lists("command")
        health = self.lists("test")[0]
        self.assertEqual(health[:3], ["CMD", "python3", "/imds.py"])
        words = {"server": entry[2:] + server, "health": ["python3", "imds.py"] + health[3:], "app": ["curl"] + app}
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(FILE, folder)
            script = APP.format(**{name: " ".join("'%s'" % word for word in each) for name, each in words.items()})
            with open(os.path.join(folder, "python3"), "w") as file:
                file.write('#!/bin/sh\nexec "%s" "$@"\n' % sys.executable)
            os.chmod(file.name, 0o755)
            environment = {name: value for name, value in os.environ.items() if name != "AZURE_IMDS_ENDPOINT"}
            environment["PATH"] = folder + os.pathsep + environment["PATH"]
            begun = time.monotonic()
            done = subprocess.run(unshare + ["sh", "-c", script], cwd=folder, env=environment, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, timeout=60)
        if done.returncode == 99:
            self.skipTest("the address can't be had: %s" % done.stderr.decode().strip())
        name, _, document = done.stdout.decode().partition("\n")
        self.assertEqual((name, done.stderr), ("web_1", b""))
        self.assertEqual(json.loads(document)["compute"]["name"], "web_1")
        self.assertLess(time.monotonic() - begun, 30)
