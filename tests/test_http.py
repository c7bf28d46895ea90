"""Room 7: HTTP, as bytes in and bytes out."""

import random
import time
import unittest

import imds
from tests.support import NOW, POST, REQUEST, TARGET, Steps, answers, bench, conversation, status

LINE = b"GET " + TARGET.encode() + b" HTTP/1.1\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
KIB = 1024


def in_pieces(data, sizes):
    """What a new conversation answers to bytes that come in pieces of these sizes, over and over."""
    talk, sent, at, turn = conversation(), b"", 0, 0
    while at < len(data) and not talk.ending:
        size = sizes[turn % len(sizes)]
        sent += answers(talk, data[at:at + size])
        at, turn = at + size, turn + 1
    return sent, talk.ending


class Conversation(unittest.TestCase):
    def test_one_request(self):
        talk = conversation()
        sent = answers(talk, REQUEST)
        self.assertTrue(sent.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nServer: "))
        self.assertTrue(sent.endswith(b"\r\nContent-Length: 6\r\n\r\navset2"))
        self.assertNotIn(b"Connection", sent)
        self.assertFalse(talk.ending or talk.in_request or talk.pending)

    def test_nothing_is_held_back(self):
        self.assertEqual([seconds for seconds, _ in conversation().receive(REQUEST * 3)], [0, 0, 0])

    def test_byte_by_byte(self):
        talk = conversation()
        for byte in REQUEST[:-1]:
            self.assertEqual(answers(talk, bytes([byte])), b"")
            self.assertTrue(talk.in_request)
        self.assertTrue(answers(talk, REQUEST[-1:]).endswith(b"avset2"))
        self.assertFalse(talk.in_request)

    def test_rows(self):
        for sent, expected, ending in (  # expected None: it waits for more
            (b"", None, ""),
            (b"\r\n", None, ""),
            (LINE + b"Host: localhost\r\nmEtAdAtA:   True  \r\n\r\n", 200, ""),
            (b"\r\n" + REQUEST, 200, ""),
            (REQUEST.replace(b"\r\n", b"\n")[:-1] + b"\r\n", 200, ""),
            (REQUEST.replace(b"\r\n", b"\n"), 200, ""),
            (REQUEST.replace(b"Host: localhost", b"Host: localhost\r\nHost: y"), 400, "close"),
            (REQUEST.replace(b"Host: localhost", b"Host: localhost\r\nConnection: not-closed"), 200, ""),
            (b"HEAD / HTTP/1.1\r\n\r\n", 400, "close"),
            (LINE + b"Metadata: true\r\n\r\n", 400, "close"),  # HTTP/1.1 wants a Host
            (LINE + b"Host: localhost\r\nMetadata: true\r\nConnection: close\r\n\r\n", 200, "close"),
            (LINE + b"Host: localhost\r\nMetadata: true\r\nConnection: keep-alive,\tclose\r\n\r\n", 200, "close"),
            (LINE + b"Host: localhost\r\nMetadata: true\r\nConnection: x\r\nConnection: CLOSE \r\n\r\n", 200, "close"),
            (REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0"), 200, "close"),
            (REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host: localhost\r\n", b""), 200, "close"),
            (REQUEST.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nConnection: Keep-Alive\r\n"), 200, ""),
            (REQUEST.replace(b"HTTP/1.1", b"HTTP/1.2"), 200, ""),  # as 1.1 (RFC 9110, 2.5)
            (REQUEST.replace(b"HTTP/1.1", b"HTTP/1.2").replace(b"Host: localhost\r\n", b""), 400, "close"),
            (REQUEST.replace(b"HTTP/1.1", b"HTTP/1.10"), 400, "close"),
            (REQUEST.replace(b"HTTP/1.1", b"http/1.1"), 400, "close"),
            (b"GET /metadata\r\n\r\n", 400, "close"),
            (b"GET / HTTP/2.0\r\n\r\n", 400, "close"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "close"),
            (b"GET  / HTTP/1.1\r\n\r\n", 400, "close"),
            (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "close"),
            (b"GET metadata HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "close"),
            (b"G\x00T / HTTP/1.1\r\n\r\n", 400, "close"),
            (b"CONNECT x:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, ""),
            (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, ""),
            (REQUEST.replace(b"GET /", b"GET HTTP://169.254.169.254/"), 200, ""),  # as to a proxy (RFC 9112, 3.2.2)
            (b"HEAD " + LINE[4:] + b"Host: localhost\r\nMetadata: true\r\n\r\n", 400, ""),
            (LINE + b"Host: localhost\r\nMetadata : true\r\n\r\n", 400, "close"),
            (LINE + b"Host: localhost\r\n folded: true\r\n\r\n", 400, "close"),
            (LINE + b"Host: localhost\r\nno colon\r\n\r\n", 400, "close"),
            (LINE + b"Host: localhost\r\n: no name\r\n\r\n", 400, "close"),
            (LINE + b"Host: localhost\r\nX: a\rb\r\n\r\n", 400, "close"),
            (LINE + b"Host: localhost\r\nX: a\0b\r\n\r\n", 400, "close"),
            (b"GET /" + b"a" * 8200 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "close"),
            (b"a" * 8300, 414, "close"),
            (LINE + b"X: " + b"a" * 66000 + b"\r\n\r\n", 431, "close"),
            (LINE + b"X: 1\r\n" * 11000, 431, "close"),
            # bodies
            (POST + b"Content-Length: 3\r\n\r\nabc", 405, ""),
            (POST + b"Content-Length: 3\r\n\r\nab", None, ""),
            (POST + b"Content-Length: 65536\r\n\r\n" + b"a" * 65536, 405, ""),
            (POST + b"Content-Length: 65537\r\n\r\n", 413, "close"),
            (POST + b"Content-Length: 99999999999999\r\n\r\n", 413, "close"),
            (POST + b"Content-Length: 9" + b"9" * 5000 + b"\r\n\r\n", 413, "close"),
            (POST + b"Content-Length: -1\r\n\r\n", 400, "close"),
            (POST + b"Content-Length: +1\r\n\r\n", 400, "close"),
            (POST + b"Content-Length: \r\n\r\n", 400, "close"),
            (POST + b"Content-Length: \xb2\r\n\r\n", 400, "close"),
            (POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400, "close"),
            (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "close"),
            (POST + b"Transfer-Encoding: gzip\r\n\r\n", 400, "close"),
            (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 400, "close"),
            (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "close"),
            (CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"3\r\nabc\r\n0\r\n\r\n", 400, "close"),
            (CHUNKED.replace(b"chunked", b"CHUNKED") + b"3\r\nabc\r\n0\r\n\r\n", 405, ""),
            (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", 405, ""),
            (CHUNKED + b"00000003\r\nabc\r\n000\r\n\r\n", 405, ""),
            (CHUNKED + b"3;x=y\r\nabc\r\n0\r\nTrailer: z\r\n\r\n", 405, ""),
            (CHUNKED + b"3;x=\"\t~\"\r\nabc\r\n0;z\r\n\r\n", 405, ""),
            (CHUNKED + b"3\r\nab", None, ""),
            (CHUNKED + b"3\r", None, ""),
            (CHUNKED + b"3\r\nabc\r\n0\r", None, ""),
            (CHUNKED + b"3\r\nabc\r\n0\r\n", None, ""),
            (CHUNKED + b"xyz\r\n", 400, "close"),
            (CHUNKED + b"-1\r\n", 400, "close"),
            (CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n", 400, "close"),
            (CHUNKED + b"\r\n", 400, "close"),
            (CHUNKED + b"3\r\nabcd\r\n", 400, "close"),
            (CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n", 400, "close"),
            (CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n", 400, "close"),
            (CHUNKED + b"3\r\r\nabc\r\n0\r\n\r\n", 400, "close"),
            (CHUNKED + b"3\nabc\r\n0\r\n\r\n", 400, "close"),
            (CHUNKED + b"3;a\nb\r\nabc\r\n0\r\n\r\n", 400, "close"),
            (CHUNKED + b"3\r\nabc\n0\r\n\r\n", 400, "close"),
            (CHUNKED + b"3\r\nabc\r\n0\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "close"),  # no trailer
            (CHUNKED + b"3\r\nabc\r\n0\r\nno colon\r\n\r\n", 400, "close"),
            (CHUNKED + b"3\r\nabc\r\n0\r\nT: z\n\r\n", 400, "close"),
            (CHUNKED + b"3\r\nabc\r\n0\r\n" + b"T: z\r\n" * 11000 + b"\r\n", 431, "close"),
            (CHUNKED + b"10001\r\n", 413, "close"),
            (CHUNKED + b"fffffffff\r\n", 413, "close"),
            (CHUNKED + b"1" * 17 + b"\r\n", 400, "close"),
            (CHUNKED + b"8000\r\n" + b"a" * 0x8000 + b"\r\n8001\r\n", 413, "close"),
            (CHUNKED + b"3;" + b"a" * 8200, 400, "close"),
            (CHUNKED + b"1\r\na\r\n" * 13000, 413, "close"),
        ):
            with self.subTest(sent=sent[:160]):
                talk = conversation()
                reply = answers(talk, sent)
                self.assertEqual(status(reply), expected)
                self.assertEqual(talk.ending, ending)
                self.assertEqual(b"Connection: close\r\n" in reply, bool(ending))
                self.assertEqual(b"Connection: keep-alive\r\n" in reply, b"HTTP/1.0" in sent and status(reply) == 200 and not ending)
                self.assertNotIn(b"Error response", reply)
                self.assertEqual(in_pieces(sent, [997]), (reply, ending))

    def test_limits_are_the_same_in_whatever_pieces(self):
        rows = [(CHUNKED + b"1\r\na\r\n" * count + b"0\r\n\r\n", expected)
                for count, expected in ((1023, 405), (1024, 405), (1025, 413))]
        rows += [(LINE + b"Host: localhost\r\nMetadata: true\r\nX: ".ljust(size, b"a") + b"\r\n\r\n", expected)
                 for size, expected in ((65534, 200), (65535, 200), (65536, 200), (65537, 431), (65538, 431), (65540, 431))]
        rows += [(LINE.replace(b"GET /", b"GET /" + b"/" * (8194 - len(LINE) + more)) + REQUEST[len(LINE):], expected)
                 for more, expected in ((-1, 200), (0, 200), (1, 414), (2, 414))]
        rows += [(CHUNKED + b"%x\r\n" % size + b"a" * size + b"\r\n0\r\n\r\n", expected)
                 for size, expected in ((65535, 405), (65536, 405), (65537, 413))]
        rows += [(CHUNKED + b"1;" + b"x" * size + b"\r\na\r\n0\r\n\r\n", expected)
                 for size, expected in ((8188, 405), (8189, 400), (8190, 400))]
        for sent, expected in rows:
            with self.subTest(size=len(sent), expected=expected):
                whole = in_pieces(sent, [len(sent)])
                self.assertEqual(status(whole[0]), expected)
                for sizes in ([len(sent) - 1], [len(sent) - 3], [1], [16384], [7, 8192, 3], [len(sent) - 2, 1]):
                    self.assertEqual(in_pieces(sent, sizes), whole, sizes)

    def test_tls_is_answered_at_once(self):
        for hello in (b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\n\n"):
            talk = conversation()
            self.assertTrue(answers(talk, hello).startswith(b"HTTP/1.1 400 Bad Request\r\n"))
            self.assertEqual(talk.ending, "close")

    def test_phrases(self):
        instance = b"/metadata/instance?api-version=2021-02-01"
        for sent, line in (
            (REQUEST, b"HTTP/1.1 200 OK"),
            (b"\x00", b"HTTP/1.1 400 Bad Request"),
            (REQUEST.replace(b"compute/name", b"x"), b"HTTP/1.1 404 Not Found"),
            (b"PUT " + instance + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 405 Method Not Allowed"),
            (POST + b"Content-Length: 70000\r\n\r\n", b"HTTP/1.1 413 Content Too Large"),
            (b"a" * 9000, b"HTTP/1.1 414 URI Too Long"),
            (LINE + b"a" * 70000, b"HTTP/1.1 431 Request Header Fields Too Large"),
        ):
            self.assertEqual(answers(conversation(), sent).partition(b"\r\n")[0], line)
        limited = conversation(rate_limit=1)
        self.assertIn(b"HTTP/1.1 429 Too Many Requests\r\n", answers(limited, REQUEST * 2))
        broken = bench()
        broken.service.respond = None
        sent = answers(conversation(broken), REQUEST)
        self.assertTrue(sent.startswith(b"HTTP/1.1 500 Internal Server Error\r\n"))
        self.assertTrue(sent.endswith(b'\r\n\r\n{ "error": "Server error" }'))

    def test_a_request_that_takes_too_long(self):
        talk = conversation()
        self.assertEqual(answers(talk, REQUEST[:-2]), b"")
        sent = b"".join(part for _, part in talk.refuse("slow"))
        self.assertTrue(sent.startswith(b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json; charset=utf-8\r\n"))
        self.assertTrue(sent.endswith(b'\r\nConnection: close\r\n\r\n{ "error": "Request timeout" }'))
        self.assertEqual((talk.ending, talk.in_request), ("close", False))

    def test_head_has_a_length_and_no_body(self):
        for target in (b"/", b"/metadata/instance/compute"):
            sent = answers(conversation(), b"HEAD " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertTrue(sent.startswith(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 323\r\nContent-Type: text/xml; "))
            self.assertTrue(sent.endswith(b"\r\n\r\n"))
        sent = answers(conversation(), b"HEAD " + LINE[4:] + b"X: " + b"a" * 66000)
        self.assertEqual(status(sent), 431)
        self.assertTrue(sent.endswith(b"\r\n\r\n"))

    def test_what_follows_a_body_is_the_next_request(self):
        for body in (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"Content-Length: 3\r\n\r\nabc",
                     b"Content-Length: 0\r\n\r\n", b"\r\n", b"Content-Length: 3\r\n\r\nabc\r\n"):
            of = bench()
            sent = answers(conversation(of), POST + body + REQUEST)
            self.assertEqual(status(sent), 405)
            self.assertTrue(sent.endswith(b"avset2"))
            self.assertEqual(len(of.journal), 2)

    def test_the_body_arrives_as_it_was_sent(self):
        for sent in (b"Content-Length: 6\r\n\r\nab\r\nc\0", b"Transfer-Encoding: chunked\r\n\r\n4\r\nab\r\n\r\n2\r\nc\0\r\n0\r\n\r\n"):
            of = bench()
            answers(conversation(of), POST + sent)
            self.assertEqual(of.journal[-1].request.body, b"ab\r\nc\0")

    def test_expect_100_continue_once(self):
        for more, continued in ((b"Content-Length: 3\r\n", True), (b"Content-Length: 0\r\n", False)):
            talk = conversation()
            sent = answers(talk, POST + more + b"Expect: 100-Continue\r\n\r\n")
            self.assertEqual(b"100 Continue" in sent, continued)
        talk = conversation()
        self.assertEqual(answers(talk, POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n"),
                         b"HTTP/1.1 100 Continue\r\n\r\n")
        self.assertEqual(answers(talk, b"a"), b"")
        self.assertEqual(status(answers(talk, b"bc")), 405)
        old = POST.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        self.assertEqual(answers(conversation(), old), b"")
        large = POST + b"Content-Length: 70000\r\nExpect: 100-continue\r\n\r\n"
        self.assertEqual(status(answers(conversation(), large)), 413)

    def test_random_bytes(self):
        chance = random.Random(1)
        words = [REQUEST, POST, b"\r\n", b"\n", b" ", b":", b"Transfer-Encoding: chunked\r\n", b"%ff", b"\x00", b"\xff",
                 b"Content-Length: 5\r\n", b"GET ", b"HTTP/1.1", b"0\r\n\r\n", b"?api-version=", b"/metadata/../"]
        for _ in range(500):
            pieces = [b"".join(chance.choice(words) for _ in range(chance.randrange(1, 8)))
                      for _ in range(chance.randrange(1, 6))]
            talk, sent = conversation(), b""
            for piece in pieces:
                reply = answers(talk, piece)
                self.assertIn(status(reply), (None, 100, 200, 400, 404, 405, 413))
                sent += reply
                if talk.ending:
                    break
            self.assertEqual(in_pieces(b"".join(pieces), [chance.randrange(1, 50), 11]), (sent, talk.ending), pieces)


class Pipelines(unittest.TestCase):
    def test_all_are_answered(self):
        self.assertEqual(answers(conversation(), REQUEST * 50).count(b"avset2"), 50)

    def test_a_bounded_number_at_a_time(self):
        talk = conversation()
        counts = [len(talk.receive(REQUEST * 40))]
        while talk.pending:
            counts.append(len(talk.receive()))
        self.assertEqual(counts, [16, 16, 8])
        self.assertFalse(talk.in_request)

    def test_nothing_is_pending_when_the_last_one_ends_a_turn(self):
        talk = conversation()
        self.assertEqual(len(talk.receive(REQUEST * 16)), 16)
        self.assertFalse(talk.pending)

    def test_a_bounded_number_of_bytes_at_a_time(self):
        talk = conversation(instance={"compute": {"userData": "a" * 40000}})
        whole = REQUEST.replace(b"/compute/name", b"").replace(b"&format=text", b"")
        self.assertEqual(len(talk.receive(whole * 10)), 2)
        self.assertTrue(talk.pending)
        self.assertEqual(len(talk.receive()), 2)

    def test_a_request_that_comes_meanwhile_waits_for_its_turn(self):
        talk = conversation()
        self.assertEqual(len(talk.receive(REQUEST * 20)), 16)
        sent = talk.receive(REQUEST.replace(b"compute/name", b"compute/zone"))
        self.assertEqual(b"".join(part for _, part in sent).count(b"avset2"), 4)
        self.assertTrue(sent[-1][1].endswith(b"\r\n\r\n1"))

    def test_nothing_is_answered_after_a_close(self):
        closing = REQUEST.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close")
        for sent, count in ((closing + REQUEST, 1), (REQUEST + closing + REQUEST * 3, 2),
                            (REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0") + REQUEST, 1), (REQUEST + b"\x00" + REQUEST, 1)):
            of = bench()
            talk = conversation(of)
            reply = answers(talk, sent)
            self.assertEqual(reply.count(b"avset2"), count)
            self.assertEqual(reply.count(b"Connection: close"), 1)
            self.assertEqual((talk.ending, talk.pending, talk.in_request), ("close", False, False))
            before = len(of.journal)
            self.assertEqual((answers(talk, REQUEST), len(of.journal), len(talk._unread)), (b"", before, 0))

    def test_what_a_waiting_client_says_is_bounded(self):
        talk = conversation()
        talk.hold(REQUEST)
        self.assertTrue(answers(talk).endswith(b"avset2"))
        with self.assertRaises(OSError):
            for _ in range(2000):
                talk.hold(REQUEST)


class Cost(unittest.TestCase):
    def cost(self, data):
        """Seconds of work for bytes that come one by one."""
        of = bench()
        talk, begun = conversation(of), time.process_time()
        for at in range(len(data)):
            talk.receive(data[at:at + 1])
        self.assertEqual(len(of.journal), 1)
        return time.process_time() - begun

    def test_each_byte_is_read_once(self):
        length = 60 * KIB
        for data in (CHUNKED + b"%x\r\n" % length + b"a" * length + b"\r\n0\r\n\r\n",
                     CHUNKED + (b"3c\r\n" + b"a" * 60 + b"\r\n") * 1000 + b"0\r\n\r\n",
                     CHUNKED + b"1\r\na\r\n0\r\n" + b"T: abcdefg\r\n" * 5 * KIB + b"\r\n",
                     POST + b"Content-Length: %d\r\n\r\n" % length + b"a" * length,
                     LINE + b"Host: localhost\r\nX: " + b"a" * length + b"\r\n\r\n",
                     LINE + b"Host: localhost\r\n" + b"T: abcdefg\r\n" * 5 * KIB + b"\r\n"):
            self.assertLess(self.cost(data), 1.5, data[:200])


class Limits(unittest.TestCase):
    def test_heads_and_answers_that_are_kept_are_few_and_small(self):
        of = bench()
        for number in range(400):
            answers(conversation(of), REQUEST.replace(b"Host: localhost", b"Host: localhost\r\nX: %d" % number))
        self.assertLessEqual(len(of.moment().answers), 256)
        large = REQUEST.replace(b"Host: localhost", b"Host: localhost\r\nX: " + b"a" * 5000)
        of = bench()
        answers(conversation(of), large)
        self.assertEqual(len(of.moment().answers), 0)

    def test_two_that_differ_by_a_byte(self):
        of = bench()
        for name, text in ((b"name", b"avset2"), (b"zone", b"1"), (b"name", b"avset2"), (b"zonf", b'{ "error": "Not found" }')):
            self.assertTrue(answers(conversation(of), REQUEST.replace(b"name", name)).endswith(b"\r\n\r\n" + text))

    def test_the_answers_of_one_moment_differ_in_their_number_only(self):
        clock = Steps(NOW)
        of = bench(clock=clock)
        one, other = [answers(conversation(of), REQUEST) for _ in range(2)]
        self.assertNotEqual(one, other)
        self.assertEqual(one.replace(b"-000000000001\r\n", b"-000000000002\r\n"), other)
        clock.advance(1)
        third = answers(conversation(of), REQUEST)
        self.assertIn(b"\r\nDate: Sat, 07 Feb 2026 11:04:47 GMT\r\n", third)

    def test_what_ends_a_connection_does_so_when_it_is_repeated(self):
        of = bench()
        for _ in range(3):
            talk = conversation(of)
            self.assertIn(b"Connection: close\r\n", answers(talk, REQUEST.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close")))
            self.assertEqual(talk.ending, "close")


class Log(unittest.TestCase):
    def test_lines(self):
        lines = []
        of = bench(log=lines.append)
        talk = imds.Conversation(of, "127.0.0.1")
        answers(talk, REQUEST)
        answers(talk, b"GET /metadata/instance HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answers(talk, b'GET /"\x1b[31m HTTP/1.1\r\n\r\n')
        answers(imds.Conversation(of, "::1"), b"\x16\x03\x01")
        answers(imds.Conversation(of), b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70000\r\n\r\n")
        self.assertRegex(lines[0], r'^127\.0\.0\.1 - - \[\d\d/\w+/\d{4} [\d:]{8}\] "GET /meta\S+ HTTP/1.1" 200 -$')
        self.assertTrue(lines[1].endswith('"GET /metadata/instance HTTP/1.1" 400 Metadata header missing'))
        self.assertTrue(lines[2].endswith('"GET /\\x22\\x1b[31m HTTP/1.1" 400 not an HTTP request'))
        self.assertRegex(lines[3], r'^::1 - - \[.*\] "\\x16\\x03\\x01" 400 not an HTTP request$')
        self.assertTrue(lines[4].endswith('"POST /x HTTP/1.1" 413 body too large'))
        self.assertIn("/Feb/2026 ", lines[0])  # in no locale
        self.assertEqual(len(lines), 5)
        self.assertTrue(all("\n" not in line for line in lines))
