"""Room 4: RSA, DER, X.509, PKCS#7 and JWT, beside known answers and, where it is there, beside openssl."""

import base64
import collections
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest
import urllib.request

import imds
from tests.support import claims

NAMES = ("westus.metadata.azure.com", "metadata.azure.com")
DIGEST_INFO = "3031300d060960864801650304020105000420"  # of SHA-256, RFC 8017 section 9.2


def service_certificate(start=1700000000, base="http://127.0.0.1:8169", names=NAMES):
    return imds.service_certificate(names, imds.TEST_ISSUER_NAME, start, base)


def elements(data):
    """Every element of DER, inner ones too: (tag, length, its octets of length). Raises AssertionError where it is
    not DER."""
    at = 0
    while at < len(data):
        tag, size, octets = data[at], data[at + 1], 1
        if size >= 128:
            octets += size & 127
            size = int.from_bytes(data[at + 2:at + 1 + octets], "big")
        at += 1 + octets
        content = data[at:at + size]
        if len(content) != size:
            raise AssertionError("cut off")
        yield tag, size, octets, content
        if tag & 0x20:
            yield from elements(content)
        at += size


class RSA(unittest.TestCase):
    def test_known_answers(self):
        # Made by another program from the same primes.
        for content, known in ((b"", "3e0f08c4d30fb4fbd892dbaf5302ae1c5152992f9ffba6efef02e03c9ab5c680"),
                               (b"abc", "7e65093ee9c2f608ad2a0b44b6e19cd1e741f9eb80f6bad444837f1dee0e990c")):
            self.assertEqual(hashlib.sha256(imds.sign(content)).hexdigest(), known)
        self.assertTrue(imds.sign(b"").hex().startswith("7f1f601616fae2c5ef777e4f539e36d043536659"))
        self.assertEqual(hashlib.sha256(imds.modulus()).hexdigest(),
                         "b2c54ba87bcfd8b975bb1279f687526b3a7465cabc948a3786ca0c4b6ecbeb68")

    def test_every_byte_of_the_padding(self):
        number = int.from_bytes(imds.modulus(), "big")
        self.assertEqual(number.bit_length(), 2048)
        for content in (b"", b"abc", b"x" * 100000):
            signature = imds.sign(content)
            self.assertEqual(len(signature), 256)
            opened = pow(int.from_bytes(signature, "big"), 65537, number).to_bytes(256, "big")
            self.assertEqual(opened.hex(), "0001" + "ff" * 202 + "00" + DIGEST_INFO + hashlib.sha256(content).hexdigest())

    def test_jwt(self):
        header, body, signature = imds.jwt('{"a":1}').split(".")
        self.assertEqual(base64.urlsafe_b64decode(header + "=="),
                         b'{"typ":"JWT","alg":"RS256","x5t":"imds-emulator-public-test-key","kid":"imds-emulator-public-test-key"}')
        self.assertEqual(body, "eyJhIjoxfQ")
        self.assertEqual(claims(imds.jwt('{"a":1}'))[1], {"a": 1})
        self.assertEqual(base64.urlsafe_b64decode(signature + "=="), imds.sign((header + "." + body).encode()))
        for data, text in ((b"", ""), (b"\xfb\xff", "-_8"), (b"a", "YQ")):
            self.assertEqual(imds.base64url(data), text)


class DER(unittest.TestCase):
    def test_lengths_are_as_short_as_can_be(self):
        for size, head in ((0, "0400"), (1, "0401"), (127, "047f"), (128, "048180"), (255, "0481ff"), (256, "04820100"),
                           (65535, "0482ffff"), (65536, "0483010000")):
            self.assertEqual(imds._der(0x04, b"a" * size)[:len(head) // 2].hex(), head)

    def test_integers(self):
        for number, encoded in ((0, "020100"), (1, "020101"), (127, "02017f"), (128, "02020080"), (255, "020200ff"),
                                (256, "02020100"), (32767, "02027fff"), (32768, "0203008000"), (65537, "0203010001")):
            self.assertEqual(imds._integer(number).hex(), encoded)

    def test_object_identifiers(self):
        for dotted, encoded in (("1.2.840.113549.1.1.11", "06092a864886f70d01010b"), ("2.5.29.15", "0603551d0f"),
                                ("2.16.840.1.101.3.4.2.1", "0609608648016503040201"),
                                ("1.3.6.1.5.5.7.3.1", "06082b06010505070301"), ("1.2.840.113549.1.7.2", "06092a864886f70d010702"),
                                ("2.5.4.3", "0603550403"), ("1.2.128", "06032a8100")):
            self.assertEqual(imds._oid(dotted).hex(), encoded)

    def test_times(self):
        for seconds, tag, text in ((0, 0x17, "700101000000Z"), (1770462286, 0x17, "260207110446Z"),
                                   (2524607999, 0x17, "491231235959Z"), (2524608000, 0x18, "20500101000000Z"),
                                   (32503679999, 0x18, "29991231235959Z")):
            self.assertEqual(imds._time(seconds), bytes([tag, len(text)]) + text.encode())

    def test_names(self):
        self.assertEqual(imds._name("C=US,CN=a").hex(), "3019310b3009060355040613025553310a300806035504030c0161")

    def test_all_that_is_built_is_der(self):
        signer = service_certificate()
        data = imds.signed_data(b"{}" * 300, imds.sign(b"{}" * 300), signer)
        for encoded in (imds.authority_certificate(), imds.authority_certificate(imds.TEST_ISSUER_NAME), imds.authority_certificate(imds.TEST_ISSUER_NAME, "http://x"), signer,
                        imds.token_certificate(), imds.revocation_list(imds.TEST_ISSUER_NAME, 1700006400), data):
            count = 0
            for _, size, octets, _ in elements(encoded):
                self.assertEqual(octets, 1 if size < 128 else 2 if size < 256 else 3)
                count += 1
            self.assertGreater(count, 20)


class Certificates(unittest.TestCase):
    def test_what_they_hold(self):
        signer = service_certificate()
        found = list(elements(signer))
        contents = [content for _, _, _, content in found]
        strings = [content.decode() for tag, _, _, content in found if tag in (0x0c, 0x13)]
        issuer = ["US", "imds emulator", "imds emulator test issuing CA (its key is public)"]
        self.assertEqual(strings, issuer + ["US", "WA", "Redmond", "Microsoft Corporation", "metadata.azure.com"])
        times = [content.decode() for tag, _, _, content in found if tag == 0x17]
        self.assertEqual(times, ["231114221320Z", "241009221320Z"])  # 330 days
        inner = [content.decode() for octets in contents if octets.startswith(b"\x30") for tag, _, _, content in elements(octets)
                 if tag in (0x82, 0x86)]
        for text in NAMES + ("http://127.0.0.1:8169/imds-test-issuing-ca.crt", "http://127.0.0.1:8169/ocsp",
                             "http://127.0.0.1:8169/imds-test-issuing-ca.crl"):
            self.assertIn(text, inner)
        uses = [octets.hex() for octets in contents]
        self.assertIn("300a06082b06010505070301", uses)  # of the extended uses, serverAuth alone
        self.assertIn("030205a0", uses)  # digitalSignature, keyEncipherment
        self.assertIn(bytes.fromhex("0603551d0f0101ff0404030205a0"), signer)  # critical
        for authority in (imds.authority_certificate(), imds.authority_certificate(imds.TEST_ISSUER_NAME)):
            self.assertIn(bytes.fromhex("0603551d130101ff040530030101ff"), authority)  # an authority; critical
            self.assertIn(bytes.fromhex("0603551d0f0101ff040403020106"), authority)  # keyCertSign, cRLSign; critical
            self.assertIn(b"\x17\x0d200101000000Z\x17\x0d490101000000Z", authority)

    def test_root_and_issuing_authority_never_change(self):
        for certificate, known in (
            (imds.authority_certificate(), "01da7911709907a75c7d6ede1f92ac8f8e8822357fbd4ccfd8767630e86392b1"),
            (imds.authority_certificate(imds.TEST_ISSUER_NAME), "67f9a05384cb11e9988dcb5f209d221c0a3b679cdebe29a0b1a4ba7dfb3c4e77"),
            (imds.token_certificate(), "8d291a4fff0b35dd7433ee28a6d1a129f835b7067d8cb0c488b47c8c26513e11"),
        ):
            self.assertEqual(hashlib.sha256(certificate).hexdigest(), known)

    def test_each_has_a_key_of_its_own(self):
        names = (imds.TEST_ROOT_NAME, imds.TEST_ISSUER_NAME, "")
        keys = [imds._key_id(name) for name in names]
        self.assertEqual(len(set(keys)), 3)
        certificates = [imds.authority_certificate(), imds.authority_certificate(imds.TEST_ISSUER_NAME, "http://x"), service_certificate()]
        for at, certificate in enumerate(certificates):
            own, issuers = b"\x06\x03\x55\x1d\x0e\x04\x16\x04\x14" + keys[at], b"\x80\x14" + keys[max(0, at - 1)]
            self.assertEqual((certificate.count(own), certificate.count(issuers)), (1, 1))
            for name in names:  # only the issuer's opens the signature
                number = int.from_bytes(imds.modulus(name), "big")
                self.assertEqual(number.bit_length(), 2048)
                opened = pow(int.from_bytes(certificate[-256:], "big"), 65537, number).to_bytes(256, "big")
                self.assertEqual(opened.startswith(b"\0\1\xff\xff"), name == names[max(0, at - 1)])

    def test_serial_numbers_are_positive_and_differ(self):
        certificates = [imds.authority_certificate(), imds.authority_certificate(imds.TEST_ISSUER_NAME), imds.authority_certificate(imds.TEST_ISSUER_NAME, "http://x"),
                        imds.authority_certificate(imds.TEST_ISSUER_NAME, "http://y"), service_certificate(base="http://x"),
                        service_certificate(names=("westus2.metadata.azure.com",) + NAMES[1:])] + [
            service_certificate(start) for start in (0, 86400, 1700000000)]
        serials = [[content for tag, _, _, content in elements(each) if tag == 0x02][1] for each in certificates]
        self.assertEqual(len(set(serials)), 9)
        self.assertTrue(all(1 <= len(serial) <= 20 and serial[0] < 128 for serial in serials))

    def test_pem(self):
        text = imds.pem(imds.authority_certificate())
        lines = text.split("\n")
        self.assertEqual((lines[0], lines[-2:]), ("-----BEGIN CERTIFICATE-----", ["-----END CERTIFICATE-----", ""]))
        self.assertEqual(max(map(len, lines[1:-2])), 64)
        self.assertEqual(base64.b64decode("".join(lines[1:-2])), imds.authority_certificate())


class PKCS7(unittest.TestCase):
    def test_the_form_of_the_service(self):
        content = b'{"vmId":"x"}'
        signer = service_certificate()
        data = imds.signed_data(content, b"s" * 256, signer)
        serial = [each for tag, _, _, each in elements(signer) if tag == 0x02][1]
        self.assertEqual(data.count(b"\x02" + bytes([len(serial)]) + serial), 2)  # in the certificate, and by whom it is signed
        self.assertEqual(data.count(imds._name(imds.TEST_ISSUER_NAME)), 2)
        found = list((collections.Counter(elements(data)) - collections.Counter(elements(signer))).elements())
        algorithm = bytes.fromhex("06092a864886f70d01010b0500")  # sha256WithRSAEncryption, where a digest's should be (observed)
        self.assertEqual(sum(octets == algorithm for _, _, _, octets in found), 2)
        self.assertEqual(sum(octets == bytes.fromhex("06092a864886f70d0101010500") for _, _, _, octets in found), 1)
        self.assertEqual([tag for tag, _, _, _ in found if tag >= 0xa0], [0xa0, 0xa0, 0xa0])  # no signed attributes
        self.assertEqual(imds.signed_content(data), content)

    def test_what_is_none(self):
        data = imds.signed_data(b"{}", b"s" * 256, service_certificate())
        for wrong in (b"", b"{}", b"\x30", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x30\x00" * 100, imds.authority_certificate(),
                      data[:20], data[:-1], b"\x30\x03\x02\x01\x01"):
            with self.subTest(wrong=wrong[:20]), self.assertRaises(ValueError):
                imds.signed_content(wrong)
        for at in range(len(data)):  # whatever comes, it is content or a ValueError
            for byte in (0x00, 0x7f, 0x80, 0xff, data[at] ^ 1):
                try:
                    imds.signed_content(data[:at] + bytes([byte]) + data[at + 1:])
                except ValueError:
                    pass


@unittest.skipUnless(shutil.which("openssl"), "no openssl here")
class OpenSSL(unittest.TestCase):
    """What the documentation tells a verifier to do, done by openssl."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.root = self.write("root.pem", imds.pem(imds.authority_certificate()).encode())
        self.both = self.write("both.pem", (imds.pem(imds.authority_certificate()) + imds.pem(imds.authority_certificate(imds.TEST_ISSUER_NAME))).encode())

    def write(self, name, data):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.write(data)
        return path

    def openssl(self, *arguments):
        """(exit code, standard output, standard error)"""
        done = subprocess.run(["openssl"] + list(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        return done.returncode, done.stdout, done.stderr.decode("utf-8", "replace")

    def signature(self, vm, *arguments, **settings):
        return base64.b64decode(vm.attested(*arguments, **settings)["signature"])

    def verify(self, path):
        # Both in one file: what -certfile names is used to build the chain only by openssl 3.2 and later.
        return self.openssl("cms", "-verify", "-inform", "DER", "-in", path, "-CAfile", self.both, "-purpose", "any")

    def test_the_recipe_of_the_documentation(self):
        with imds.Emulator() as vm:
            # The document is asked for over HTTP: its certificate leads to the Host that was asked.
            asked = http.client.HTTPConnection("127.0.0.1", vm.port, timeout=10)
            asked.request("GET", "/metadata/attested/document?api-version=2021-02-01&nonce=1234567890",
                          headers={"Metadata": "true"})
            answer = json.loads(asked.getresponse().read().decode())
            signature = self.write("signature", base64.b64decode(answer["signature"]))
            code, pem, errors = self.openssl("pkcs7", "-in", signature, "-inform", "DER", "-print_certs")
            self.assertEqual(code, 0, errors)
            self.assertEqual(pem.count(b"BEGIN CERTIFICATE"), 1)
            signer = self.write("signer.pem", pem)
            _, text, _ = self.openssl("x509", "-in", signer, "-noout", "-text")
            text = text.decode()
            url, = re.findall(r"CA Issuers - URI:(\S+)", text)
            self.assertEqual(url, "http://127.0.0.1:%d/imds-test-issuing-ca.crt" % vm.port)
            self.assertRegex(text, r"OCSP - URI:http://127\.0\.0\.1:%d/ocsp" % vm.port)
            self.assertRegex(text, r"Key Usage: critical\s+Digital Signature, Key Encipherment")
            self.assertRegex(text, r"Extended Key Usage: *\s+TLS Web Server Authentication\s*\n")
            self.assertRegex(text, r"Subject: C ?= ?US, ?ST ?= ?WA, ?L ?= ?Redmond, ?O ?= ?Microsoft Corporation, "
                                   r"?CN ?= ?metadata\.azure\.com")
            asked.request("GET", "/" + url.split("/", 3)[3])  # as curl does, without the Metadata header
            fetched = asked.getresponse()
            self.assertEqual((fetched.status, fetched.getheader("Content-Type")), (200, "application/pkix-cert"))
            der = self.write("intermediate.crt", fetched.read())
            code, pem, errors = self.openssl("x509", "-inform", "DER", "-in", der, "-outform", "PEM")
            self.assertEqual(code, 0, errors)
            intermediate = self.write("intermediate.pem", pem)
            _, more, _ = self.openssl("x509", "-in", intermediate, "-noout", "-text")
            lists = b""
            for crl in re.findall(r"URI:(http\S+\.crl)", text) + re.findall(r"URI:(http\S+\.crl)", more.decode()):
                asked.request("GET", "/" + crl.split("/", 3)[3])
                reply = asked.getresponse()
                self.assertEqual((reply.status, reply.getheader("Content-Type")), (200, "application/pkix-crl"))
                revoked = self.write("revoked.crl" if b"CRL" not in lists else "of-the-root.crl", reply.read())
                code, pem, errors = self.openssl("crl", "-inform", "DER", "-in", revoked, "-outform", "PEM")
                lists += pem
            url, = re.findall(r"CA Issuers - URI:(\S+)", more.decode())
            asked.request("GET", "/" + url.split("/", 3)[3])
            self.assertEqual(asked.getresponse().read(), imds.authority_certificate())
            asked.close()
        self.assertEqual(lists.count(b"BEGIN X509 CRL"), 2)
        for more in ([], ["-x509_strict"], ["-crl_check_all", "-CRLfile", self.write("crl.pem", lists)]):
            code, out, errors = self.openssl("verify", "-CAfile", self.root, "-untrusted", intermediate, *more + [signer])
            self.assertEqual((code, out.decode().rpartition(": ")[2].strip()), (0, "OK"), errors)
        revoked = os.path.join(self.folder, "revoked.crl")
        code, out, errors = self.openssl("verify", "-CAfile", self.root, "-untrusted", intermediate, signer)
        self.assertEqual((code, out.decode().rpartition(": ")[2].strip()), (0, "OK"), errors)
        self.assertNotEqual(self.openssl("verify", "-CAfile", self.root, signer)[0], 0)  # not without the intermediate
        code, content, errors = self.openssl("smime", "-verify", "-in", signature, "-inform", "DER", "-noverify")
        self.assertEqual((code, json.loads(content.decode())["nonce"]), (0, "1234567890"), errors)
        code, pem, errors = self.openssl("crl", "-inform", "DER", "-in", revoked, "-CAfile", intermediate, "-noout", "-text")
        self.assertEqual(code, 0, errors)
        self.assertIn("verify OK", errors)
        self.assertIn("No Revoked Certificates", pem.decode())

    def test_cms_for_any_purpose(self):
        with imds.Emulator() as vm:
            path = self.write("der", self.signature(vm, "123"))
        code, content, errors = self.verify(path)
        self.assertEqual(code, 0, errors)
        self.assertRegex(errors, "(CMS )?Verification successful")  # 1.1.1 says no CMS
        self.assertEqual(json.loads(content.decode())["nonce"], "123")
        code, _, _ = self.openssl("cms", "-verify", "-inform", "DER", "-in", path, "-CAfile", self.root, "-purpose", "any")
        self.assertNotEqual(code, 0)  # the intermediate is not in it (observed)

    def test_each_flaw(self):
        with imds.Emulator(cloud="AzureUSGovernmentCloud") as vm:
            for flaw in (None, "signer", "signature", "expired", "nonce", "vmId", "domain"):
                with self.subTest(flaw=flaw):
                    data = self.signature(vm, "1234567890", flaw=flaw)
                    path = self.write("attested.der", data)
                    code, _, errors = self.verify(path)
                    self.assertEqual(code == 0, flaw not in ("signer", "signature"), errors)
                    fields = json.loads(imds.signed_content(data).decode())
                    self.assertEqual(fields["nonce"] == "1234567890", flaw != "nonce")
                    self.assertEqual(fields["vmId"] == vm.instance["compute"]["vmId"], flaw != "vmId")
                    self.assertEqual(b"westus.metadata.azure.us" in data, flaw != "domain")
            good = self.signature(vm)
            for at in (good.index(b'"vmId"') + 10, len(good) - 5):  # a byte of the content, one of the signature
                path = self.write("attested.der", good[:at] + bytes([good[at] ^ 1]) + good[at + 1:])
                self.assertNotEqual(self.verify(path)[0], 0)

    def test_the_key_of_a_token(self):
        head, _, signature = imds.jwt('{"a":1}').rpartition(".")
        with imds.Emulator() as vm, urllib.request.urlopen(vm.url + "/common/discovery/keys", timeout=10) as reply:
            key, = json.loads(reply.read().decode())["keys"]
        certificate, = key["x5c"]
        path = self.write("token.crt", base64.b64decode(certificate))
        code, pem, errors = self.openssl("x509", "-inform", "DER", "-in", path, "-pubkey", "-noout")
        self.assertEqual(code, 0, errors)
        code, out, errors = self.openssl(
            "dgst", "-sha256", "-verify", self.write("key.pem", pem), "-signature",
            self.write("signature", base64.urlsafe_b64decode(signature + "==")), self.write("content", head.encode()))
        self.assertEqual((code, out.strip()), (0, b"Verified OK"), errors)
