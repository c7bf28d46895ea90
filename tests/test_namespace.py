"""Rooms 8 to 10 at 169.254.169.254 itself, in a network namespace of its own, where only the emulator is."""

import shutil
import subprocess
import sys
import tempfile
import unittest

from tests.support import FILE, own_network

SCRIPT = """
ip link set lo up && ip addr add 169.254.169.254/32 dev lo || exit 99
unset AZURE_IMDS_ENDPOINT
"$0" "$1" serve --host 169.254.169.254 --port 80 2>/dev/null >url &
for _ in $(seq 100); do [ -s url ] && break; sleep 0.1; done
"$0" "$1" get compute/name network/interface/0/macAddress
kill $!
wait
"""


class Namespace(unittest.TestCase):
    def test_the_very_address(self):
        unshare = own_network()
        if not shutil.which("ip"):
            self.skip("ip is needed")
        if not unshare:
            self.skip("network namespaces are not allowed here")
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(unshare + ["sh", "-c", SCRIPT, sys.executable, FILE],
                                  cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        if done.returncode == 99:
            self.skip("the address can't be had: %s" % done.stderr.decode().strip())
        self.assertEqual((done.stdout, done.stderr), (b"avset2\n000D3A36DDED\n", b""))

    def skip(self, reason):
        print("skipped the test at 169.254.169.254: " + reason, file=sys.stderr)
        self.skipTest(reason)
