"""Room 4: HTTP as bytes in and bytes out, and then the sockets and threads around it."""

import contextlib
import gc
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

import imds

TARGET = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
REQUEST = ("GET %s HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n" % TARGET).encode()
POST = b"POST /metadata/instance?api-version=2021-02-01 HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n"


def conversation(log=None):
    return imds._Conversation(imds.Service(lambda: 0), threading.Lock(), log, "127.0.0.1")


def status(reply):
    return int(reply.split(b" ", 2)[1]) if reply else None


class Conversation(unittest.TestCase):
    def test_one_request(self):
        talk = conversation()
        reply = talk.receive(REQUEST)
        self.assertTrue(reply.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nServer: "))
        self.assertTrue(reply.endswith(b"\r\nContent-Length: 6\r\n\r\navset2"))
        self.assertNotIn(b"Connection", reply)
        self.assertFalse(talk.over or talk.in_request)

    def test_byte_by_byte(self):
        talk = conversation()
        for byte in REQUEST[:-1]:
            self.assertEqual(talk.receive(bytes([byte])), b"")
            self.assertTrue(talk.in_request)
        self.assertTrue(talk.receive(REQUEST[-1:]).endswith(b"avset2"))

    def test_pipelined(self):
        self.assertEqual(conversation().receive(REQUEST * 20).count(b"avset2"), 20)

    def test_rows(self):
        line = b"GET " + TARGET.encode() + b" HTTP/1.1\r\n"
        chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        for sent, expected, over in (  # expected None: it waits for more
            (b"", None, False),
            (line + b"Host: x\r\nmEtAdAtA:   True  \r\n\r\n", 200, False),
            (b"\r\n" + REQUEST, 200, False),
            (REQUEST.replace(b"\r\n", b"\n")[:-1] + b"\r\n", 200, False),
            (REQUEST.replace(b"Host: x", b"Host: x\r\nHost: y"), 400, True),
            (REQUEST.replace(b"Host: x", b"Host: x\r\nConnection: not-closed"), 200, False),
            (b"HEAD / HTTP/1.1\r\n\r\n", 400, True),
            (REQUEST.replace(b"\r\n", b"\n"), 200, False),
            (line + b"Metadata: true\r\n\r\n", 400, True),  # HTTP/1.1 wants a Host
            (line + b"Host: x\r\nMetadata: true\r\nConnection: close\r\n\r\n", 200, True),
            (REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0"), 200, True),
            (REQUEST.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nConnection: Keep-Alive\r\n"), 200, False),
            (b"GET /metadata\r\n\r\n", 400, True),
            (b"GET / HTTP/2.0\r\n\r\n", 400, True),
            (b"GET  / HTTP/1.1\r\n\r\n", 400, True),
            (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400, True),
            (b"G\x00T / HTTP/1.1\r\n\r\n", 400, True),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n", 400, True),  # TLS
            (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400, False),
            (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400, False),
            (b"HEAD " + line[4:] + b"Host: x\r\nMetadata: true\r\n\r\n", 405, False),
            (line + b"Host: x\r\nMetadata : true\r\n\r\n", 400, True),
            (line + b"Host: x\r\n folded: true\r\n\r\n", 400, True),
            (line + b"Host: x\r\nno colon\r\n\r\n", 400, True),
            (line + b"Host: x\r\nX: a\rb\r\n\r\n", 400, True),
            (b"GET /" + b"a" * 8200 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, True),
            (b"a" * 8300, 414, True),
            (line + b"X: " + b"a" * 66000 + b"\r\n\r\n", 431, True),
            (line + b"X: 1\r\n" * 11000, 431, True),
            (POST + b"Content-Length: 3\r\n\r\nabc", 405, False),
            (POST + b"Content-Length: 3\r\n\r\nab", None, False),
            (POST + b"Content-Length: 65536\r\n\r\n" + b"a" * 65536, 405, False),
            (POST + b"Content-Length: 65537\r\n\r\n", 413, True),
            (POST + b"Content-Length: 99999999999999\r\n\r\n", 413, True),
            (POST + b"Content-Length: -1\r\n\r\n", 400, True),
            (POST + b"Content-Length: +1\r\n\r\n", 400, True),
            (POST + b"Content-Length: \xb2\r\n\r\n", 400, True),
            (POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400, True),
            (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, True),
            (POST + b"Transfer-Encoding: gzip\r\n\r\n", 400, True),
            (chunked + b"3\r\nabc\r\n0\r\n\r\n", 405, False),
            (chunked + b"3;x=y\r\nabc\r\n0\r\nTrailer: z\r\n\r\n", 405, False),
            (chunked + b"3\r\nab", None, False),
            (chunked + b"3\r", None, False),
            (chunked + b"3\r\nabc\r\n0\r", None, False),
            (chunked + b"1\r\na\r\n" * 1030, 413, True),
            (chunked + b"3\r\nabc\r\n0\r\n", None, False),
            (chunked + b"xyz\r\n", 400, True),
            (chunked + b"-1\r\n", 400, True),
            (chunked + b"\r\n", 400, True),
            (chunked + b"3\r\nabcd\r\n", 400, True),
            (chunked + b"10001\r\n", 413, True),
            (chunked + b"fffffffff\r\n", 413, True),
            (chunked + b"1\r\na\r\n" * 13000, 413, True),
        ):
            with self.subTest(sent=sent[:120]):
                talk = conversation()
                reply = talk.receive(sent)
                self.assertEqual(status(reply), expected)
                self.assertEqual(talk.over, over)
                self.assertEqual(b"Connection: close\r\n" in reply, over)
                self.assertNotIn(b"Error response", reply)

    def test_head_has_a_length_and_no_body(self):
        reply = conversation().receive(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn(b"Content-Length: 323", reply)
        self.assertTrue(reply.endswith(b"\r\n\r\n"))

    def test_what_follows_a_body_is_the_next_request(self):
        talk = conversation()
        reply = talk.receive(POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + REQUEST)
        self.assertTrue(reply.endswith(b"avset2"))

    def test_expect_100_continue_once(self):
        talk = conversation()
        self.assertEqual(talk.receive(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n"),
                         b"HTTP/1.1 100 Continue\r\n\r\n")
        self.assertEqual(talk.receive(b"a"), b"")
        self.assertEqual(status(talk.receive(b"bc")), 405)

    def test_random_bytes(self):
        import random

        chance = random.Random(1)
        words = [REQUEST, POST, b"\r\n", b"\n", b" ", b":", b"Transfer-Encoding: chunked\r\n", b"%ff", b"\x00", b"\xff",
                 b"Content-Length: 5\r\n", b"GET ", b"HTTP/1.1", b"0\r\n\r\n", b"?api-version=", b"/metadata/../"]
        for _ in range(3000):
            talk = conversation()
            for _ in range(chance.randrange(1, 6)):
                reply = talk.receive(b"".join(chance.choice(words) for _ in range(chance.randrange(1, 8))))
                self.assertIn(status(reply), (None, 100, 200, 400, 404, 405, 413))
                if talk.over:
                    break

    def test_the_log(self):
        lines = []
        talk = conversation(lines.append)
        talk.receive(REQUEST)
        talk.receive(b"GET /metadata/instance HTTP/1.1\r\nHost: x\r\n\r\n")
        talk.receive(b'GET /"\x1b[31m HTTP/1.1\r\n\r\n')
        self.assertRegex(lines[0], r'^127\.0\.0\.1 - - \[\d\d/\w+/\d{4} [\d:]{8}\] "GET /meta\S+ HTTP/1.1" 200 -$')
        self.assertTrue(lines[1].endswith('"GET /metadata/instance HTTP/1.1" 400 Metadata header missing'))
        self.assertTrue(lines[2].endswith('"GET /\\x22\\x1b[31m HTTP/1.1" 400 not an HTTP request'))


def leftovers():
    gc.collect()
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    return files, threading.active_count()


class Fixture(unittest.TestCase):
    def connect(self, vm):
        client = socket.create_connection(("127.0.0.1", vm.port), 10)
        self.addCleanup(client.close)
        return client

    def read_all(self, client):
        data = b""
        with contextlib.suppress(ConnectionResetError):
            for chunk in iter(lambda: client.recv(65536), b""):
                data += chunk
        return data

    def test_with(self):
        with imds.Emulator() as vm:
            self.assertEqual(vm.url, "http://127.0.0.1:%d" % vm.port)
            self.assertEqual(vm.get("compute/name"), "avset2")
            self.assertEqual(imds.get("compute/name", endpoint=vm.url), "avset2")
        with self.assertRaises(RuntimeError):
            vm.url  # noqa: B018

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

    def test_several_share_nothing(self):
        with imds.Emulator() as one, imds.Emulator() as other:
            one.update({"compute": {"name": "one"}})
            self.assertEqual((one.get("compute/name"), other.get("compute/name")), ("one", "avset2"))
        self.assertEqual(imds.Emulator().instance["compute"]["name"], "avset2")

    def test_instance_is_a_copy(self):
        vm = imds.Emulator({"compute": {"name": "x"}})
        vm.instance["compute"]["name"] = "y"
        self.assertEqual(vm.instance["compute"]["name"], "x")

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
        self.assertEqual(self.read_all(clients[0]), b"")

    def test_an_idle_or_stalled_client_holds_up_nobody(self):
        with imds.Emulator() as vm:
            for part in (b"", b"GET", REQUEST[:-2], POST + b"Content-Length: 9\r\n\r\n"):
                self.connect(vm).sendall(part)
            begun = time.monotonic()
            self.assertEqual(vm.get("compute/name"), "avset2")
            self.assertLess(time.monotonic() - begun, 1)

    def test_five_hundred_connections(self):
        with imds.Emulator() as vm:
            clients = [self.connect(vm) for _ in range(400 if os.name == "nt" else 500)]
            for client in clients:
                client.sendall(REQUEST)
            for client in clients:
                self.assertEqual(status(client.recv(1000)), 200)

    def test_two_hundred_threads(self):
        with imds.Emulator() as vm:
            names, threads = [], []
            for _ in range(200):
                threads.append(threading.Thread(target=lambda: names.append(vm.get("compute/name"))))
                threads[-1].start()
            for number in range(50):
                vm.update({"compute": {"tags": str(number)}})
            for thread in threads:
                thread.join()
            self.assertEqual(names, ["avset2"] * 200)

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
                threads.append(threading.Thread(target=burst))
                threads[-1].start()
            for thread in threads:
                thread.join()
            self.assertEqual((seen.count(200), seen.count(429)), (5, 95))

    def test_time_limits(self):
        old = imds.REQUEST_TIME, imds.IDLE_TIME
        imds.REQUEST_TIME, imds.IDLE_TIME = 0.5, 0.5
        try:
            with imds.Emulator() as vm:
                idle, stalled, trickling = self.connect(vm), self.connect(vm), self.connect(vm)
                stalled.sendall(REQUEST[:-2])
                for byte in REQUEST[:30]:  # never silent for long, and never done
                    with contextlib.suppress(OSError):
                        trickling.sendall(bytes([byte]))
                    time.sleep(0.1)
                self.assertEqual(self.read_all(idle), b"")
                self.assertEqual(status(self.read_all(stalled)), 408)
                self.assertEqual(status(self.read_all(trickling)), 408)
        finally:
            imds.REQUEST_TIME, imds.IDLE_TIME = old

    def test_a_refusal_is_read_before_the_connection_ends(self):
        with imds.Emulator() as vm:
            client = self.connect(vm)
            client.sendall(POST + b"Content-Length: 9999999\r\n\r\n" + b"a" * 200000)
            self.assertEqual(status(self.read_all(client)), 413)

    def test_half_closed(self):
        with imds.Emulator() as vm:
            client = self.connect(vm)
            client.sendall(REQUEST)
            client.shutdown(socket.SHUT_WR)
            self.assertTrue(self.read_all(client).endswith(b"avset2"))

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

    def test_a_fault_is_answered_and_a_log_may_fail(self):
        def fail(line):
            raise OSError("no space left")

        with imds.Emulator(log=fail) as vm:
            self.assertEqual(vm.get("compute/name"), "avset2")
            vm._service.respond = None  # what no caller can do
            with self.assertRaises(imds.Unavailable) as caught:
                vm.get("compute/name", deadline=0.1)
            self.assertEqual(caught.exception.body, '{ "error": "Server error" }')

    def test_stop_from_within(self):
        vm = imds.Emulator(log=lambda line: vm.stop())
        vm.start()
        vm.get("compute/name")
        with self.assertRaises(RuntimeError):
            vm.url  # noqa: B018

    def test_more_clients_than_descriptors(self):
        if os.name != "posix":
            self.skipTest("no limits here")
        process = subprocess.Popen(
            ["sh", "-c", 'ulimit -n 64; exec "$0" "$1" serve --port 0 --quiet', sys.executable, imds.__file__],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        url, good, threads = process.stdout.readline().decode().strip(), [], []

        def ask():
            for _ in range(5):
                with contextlib.suppress(imds.Error):
                    good.append(imds.get("compute/name", endpoint=url))

        try:
            for _ in range(100):
                threads.append(threading.Thread(target=ask))
                threads[-1].start()
            for thread in threads:
                thread.join()
            self.assertEqual(imds.get("compute/name", endpoint=url), "avset2")
            self.assertGreater(len(good), 50)
        finally:
            process.terminate()
            errors = process.communicate(timeout=10)[1].decode()
        self.assertNotIn("Traceback", errors)
        self.assertEqual(process.returncode, 0)

    def test_a_client_that_does_not_read(self):
        with imds.Emulator() as vm:
            deaf = self.connect(vm)
            deaf.settimeout(0.2)
            with contextlib.suppress(socket.timeout):
                for _ in range(2000):
                    deaf.sendall(REQUEST.replace(b"/compute/name", b"").replace(b"&format=text", b"") * 50)
            self.assertEqual(vm.get("compute/name"), "avset2")

    @unittest.skipUnless(socket.has_ipv6, "no IPv6 here")
    def test_ipv6(self):
        try:
            vm = imds.Emulator(host="::1").start()
        except OSError as error:
            self.skipTest("no ::1 here: %s" % error)
        self.addCleanup(vm.stop)
        self.assertEqual(vm.url, "http://[::1]:%d" % vm.port)
        self.assertEqual(vm.get("compute/name"), "avset2")

    def test_a_port_that_is_taken(self):
        with imds.Emulator() as vm, self.assertRaises(OSError):
            imds.Emulator(port=vm.port).start()


if __name__ == "__main__":
    unittest.main()
