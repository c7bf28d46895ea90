"""Managed identity and attested data: every case of the service, and that the signatures are good."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import imds
from tests.test_client import Patient, Script, reply
from tests.test_service import ask

NOW = 1709809599
URL = "/metadata/identity/oauth2/token?api-version=2018-02-01"
VAULT = "&resource=https%3A%2F%2Fvault.azure.net"


def service(**settings):
    return imds.Service(lambda: NOW, **settings)


def claims(token):
    return [json.loads(base64.urlsafe_b64decode(part + "==").decode()) for part in token.split(".")[:2]]


class Token(unittest.TestCase):
    def test_errors(self):
        form = '{"error":"invalid_request","error_description":"%s"}'
        header, several = "Required metadata header not specified", (
            "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the "
            "token request")
        two = ["user:one", "user:two"]
        ok = {"metadata": "true"}
        for identities, target, headers, status, body in (
            (["system"], "/metadata/identity/oauth2/token", {}, 400, form % header),
            (["system"], URL + VAULT, {}, 400, form % header),
            (["system"], URL, ok, 400, form % "Required query variable 'resource' is missing"),
            (["system"], URL + "&resource=", ok, 400, form % "Required query variable 'resource' is missing"),
            ([], URL + VAULT, ok, 400, form % "Identity not found"),
            (["system"], URL + VAULT + "&client_id=unknown", ok, 400, form % "Identity not found"),
            (two, URL + VAULT, ok, 400, form % several),
            (["system"], URL + VAULT + "&client_id=a&object_id=b", ok, 400, form % "Bad request"),
            (["system"], URL + VAULT + "&format=text", ok, 400, form % "Bad request"),
            (["system"], URL + VAULT + "&api-version=2018-02-01", ok, 400, form % "Bad request"),
            (["system"], URL + "&resource=nonsense", ok, 400, None),
            (["system"], URL.replace("2018-02-01", "2017-12-01") + VAULT, ok, 404, '{"error":"Not Found"}'),
            (["system"], "/metadata/identity?api-version=2021-12-13", ok, 404, '{"error":"Not Found"}'),
            (["system"], "/metadata/identity/oauth2/x?api-version=2021-12-13", ok, 404, '{"error":"Not Found"}'),
            (["system"], "/metadata/identity/getplatformmetadata?cred-api-version=2.0", ok, 404, '{"error":"Not Found"}'),
            (["system"], "/metadata/identity/getplatformmetadata?cred-api-version=2.0", {}, 400, form % header),
        ):
            with self.subTest(identities=identities, target=target):
                response = ask(target, headers, of=service(identities=identities))
                self.assertEqual(response.status, status)
                if body:
                    self.assertEqual(response.body.decode(), body)
        self.assertEqual(len(form % header), 88)
        self.assertEqual(len(form % "Identity not found"), 68)
        self.assertEqual(len(form % several), 168)
        self.assertEqual(ask("/metadata/identity/issuecredential?cred-api-version=2.0", {}, "POST").status, 400)
        self.assertEqual(ask("/metadata/identity/issuecredential?cred-api-version=2.0", ok, "POST").status, 404)
        self.assertEqual(json.loads(ask(URL + "&resource=nonsense").body.decode())["error"], "invalid_resource")

    def test_body(self):
        response = ask(URL + VAULT, of=service())
        answer = json.loads(response.body.decode())
        self.assertEqual(" ".join(answer), "access_token client_id expires_in expires_on ext_expires_in not_before "
                                           "resource token_type")
        self.assertTrue(all(isinstance(value, str) for value in answer.values()))
        self.assertNotIn(b" ", response.body)
        self.assertEqual((answer["expires_in"], answer["ext_expires_in"]), ("86400", "86399"))
        self.assertEqual(int(answer["expires_on"]), NOW + 86400)
        self.assertEqual(int(answer["expires_on"]) - int(answer["not_before"]), 86700)
        self.assertEqual((answer["resource"], answer["token_type"]), ("https://vault.azure.net", "Bearer"))

    def test_versions_and_forms_of_a_request(self):
        for query in ("?api-version=2018-02-01" + VAULT, "?api-version=2019-08-01" + VAULT, "?api-version=2021-05-01" + VAULT,
                      "?resource=https://vault.azure.net&api-version=2018-02-01", "?api-version=2018-02-01" + VAULT + "&x=y",
                      "?api-version=2018-02-01&resource=00000003-0000-0000-c000-000000000000",
                      "?api-version=2018-02-01&resource=api://mine"):
            with self.subTest(query=query):
                self.assertEqual(ask("/metadata/identity/oauth2/token" + query).status, 200)

    def test_which_identity(self):
        one = service(identities=["system", "user:one", "user:two"])
        for index, query in ((0, ""), (1, "&client_id=%(clientId)s"), (2, "&object_id=%(objectId)s"),
                             (1, "&msi_res_id=%(resourceId)s"), (2, "&mi_res_id=%(resourceId)s"),
                             (0, "&client_id=%(clientId)s")):
            identity = one.identities[index]
            with self.subTest(query=query):
                for selector in (query % identity, (query % identity).replace(identity["clientId"],
                                                                              identity["clientId"].upper())):
                    answer = json.loads(ask(URL + VAULT + selector, of=one).body.decode())
                    self.assertEqual(answer["client_id"], identity["clientId"])
                    self.assertEqual(claims(answer["access_token"])[1]["xms_mirid"], identity["resourceId"])
        only = service(identities=["user:one"])
        self.assertEqual(json.loads(ask(URL + VAULT, of=only).body.decode())["client_id"], only.identities[0]["clientId"])

    def test_the_cache(self):
        now = [NOW]
        one = imds.Service(lambda: now[0])

        def answer(query=""):
            return json.loads(ask(URL + VAULT + query, of=one).body.decode())

        first = answer()
        now[0] += 100
        second = answer()
        self.assertEqual((second["access_token"], second["expires_in"]), (first["access_token"], "86300"))
        self.assertNotEqual(answer("&bypass_cache=true")["access_token"], first["access_token"])
        now[0] += 86400 - 200
        self.assertEqual(answer()["expires_in"], "86400")

    def test_claims(self):
        one = service()
        header, body = claims(json.loads(ask(URL + VAULT, of=one).body.decode())["access_token"])
        self.assertEqual((header["alg"], header["typ"], header["kid"]), ("RS256", "JWT", imds.TEST_KEY_ID))
        identity = one.identities[0]
        for name, value in {
            "aud": "https://vault.azure.net", "iss": "https://sts.windows.net/%s/" % one.tenant, "iat": NOW,
            "nbf": NOW - 300, "exp": NOW + 86400, "oid": identity["objectId"], "sub": identity["objectId"],
            "tid": one.tenant, "appid": identity["clientId"], "xms_mirid": one.instance["compute"]["resourceId"],
        }.items():
            self.assertEqual(body[name], value, name)

    def test_info(self):
        self.assertEqual(ask("/metadata/identity/info?api-version=2018-02-01").body,
                         b'{"tenantId":"f146b86f-6f44-43f1-973f-91a7637cd756"}')

    def test_its_own_limits(self):
        now = [NOW]
        one = imds.Service(lambda: now[0], rate_limit=5)
        statuses = []
        for _ in range(21):
            one.new_turn()
            statuses.append(ask(URL + VAULT, of=one))
        self.assertEqual([response.status for response in statuses], [200] * 20 + [429])
        self.assertEqual(statuses[-1].body, b'{"error":"invalid_request","error_description":"Temporarily throttled, too '
                                            b'many requests"}')
        self.assertEqual(len(statuses[-1].body), 90)
        self.assertNotIn("Retry-After", dict(statuses[-1].headers))
        self.assertEqual(ask("/metadata/instance?api-version=2018-02-01", of=one).status, 200)  # a bucket of its own
        now[0] += 1
        one.new_turn()
        self.assertEqual([ask(URL + VAULT, of=one).status for _ in range(6)], [200] * 5 + [429])  # five at a time

    def test_the_key_is_published_and_only_its_public_half(self):
        one = service()
        base = "/" + one.tenant
        for prefix in (base, ""):
            configuration = json.loads(ask(prefix + "/.well-known/openid-configuration",
                                           {"host": "127.0.0.1:8169"}, of=one).body.decode())
        self.assertEqual(configuration["jwks_uri"], "http://127.0.0.1:8169%s/discovery/keys" % base)
        self.assertEqual(configuration["issuer"], "https://sts.windows.net/%s/" % one.tenant)
        key, = json.loads(ask(base + "/discovery/keys", {}, of=one).body.decode())["keys"]
        self.assertEqual(set(key), {"kty", "use", "alg", "kid", "n", "e"})
        token = json.loads(ask(URL + VAULT, of=one).body.decode())["access_token"]
        signed, _, signature = token.rpartition(".")
        number = int.from_bytes(base64.urlsafe_b64decode(signature + "=="), "big")
        modulus = int.from_bytes(base64.urlsafe_b64decode(key["n"] + "=="), "big")
        import hashlib

        self.assertTrue(pow(number, 65537, modulus).to_bytes(256, "big").endswith(hashlib.sha256(signed.encode()).digest()))


class TokenClient(unittest.TestCase):
    def test_token(self):
        with imds.Emulator(identities=["system", "user:app"]) as vm:
            token = imds.token("https://vault.azure.net", endpoint=vm.url)
            self.assertEqual(claims(token)[1]["aud"], "https://vault.azure.net")
            app = vm.identities[1]
            token = imds.token("https://vault.azure.net", client_id=app["clientId"], endpoint=vm.url)
            self.assertEqual(claims(token)[1]["appid"], app["clientId"])
            vm.identities = ["user:one", "user:two"]
            with self.assertRaises(imds.Refused) as caught:
                imds.Client(vm.url).token("https://vault.azure.net")
            self.assertIn("Multiple user assigned identities", str(caught.exception))
            vm.identities = []
            with self.assertRaises(imds.Refused):
                imds.Client(vm.url).token("https://vault.azure.net")

    def test_it_is_kept_until_shortly_before_it_expires(self):
        lines, patient = [], Patient()
        with imds.Emulator(log=lines.append) as vm:
            client = patient.client(vm.url)
            first = client.token("https://vault.azure.net")
            patient.now += 86000
            self.assertEqual(client.token("https://vault.azure.net"), first)
            self.assertEqual(len(lines), 1)
            patient.now += 200
            client.token("https://vault.azure.net")
            client.token("https://storage.azure.com")
            self.assertEqual(len(lines), 3)
            self.assertNotIn(first, "".join(lines))

    def test_what_is_not_a_token(self):
        for body in (b"[]", b"{}", b'{"access_token":5}', b"{"):
            with Script(reply(200, body)) as server, self.assertRaises(imds.NotIMDS):
                imds.Client(server.url).token("x")
        with self.assertRaises(TypeError):
            imds.Client().token("x", name="y")


class Attested(unittest.TestCase):
    URL = "/metadata/attested/document?api-version="

    def content(self, query, of=None):
        response = ask(self.URL + query, of=of or service())
        self.assertEqual(response.status, 200)
        document = json.loads(response.body.decode())
        self.assertEqual((list(document), document["encoding"]), (["encoding", "signature"], "pkcs7"))
        return imds.signed_content(base64.b64decode(document["signature"])).decode()

    def test_content_by_version(self):
        one = imds.Service(lambda: 1582296971, {"compute": {"vmId": "e01f", "subscriptionId": "ce73", "sku": "gen1"}})
        plan = '"plan":{"name":"","product":"","publisher":""}'
        stamps = '"timeStamp":{"createdOn":"02/21/20 14:56:11 -0000","expiresOn":"02/21/20 20:56:11 -0000"}'
        nonce = '"nonce":"20200221-205611"'
        for version, content in (
            ("2018-10-01", '{%s,%s,%s,"vmId":"e01f"}' % (nonce, plan, stamps)),
            ("2019-04-30", '{%s,%s,"subscriptionId":"ce73",%s,"vmId":"e01f"}' % (nonce, plan, stamps)),
            ("2019-11-01", '{%s,%s,"sku":"gen1","subscriptionId":"ce73",%s,"vmId":"e01f"}' % (nonce, plan, stamps)),
            ("2020-09-01", '{"licenseType":"",%s,%s,"sku":"gen1","subscriptionId":"ce73",%s,"vmId":"e01f"}'
             % (nonce, plan, stamps)),
        ):
            with self.subTest(version=version):
                self.assertEqual(self.content(version, one), content)

    def test_nonce_and_rules(self):
        self.assertIn('"nonce":"1234567890"', self.content("2021-02-01&nonce=1234567890"))
        self.assertIn('"nonce":"%s"' % ("a" * 32), self.content("2021-02-01&nonce=" + "a" * 32))
        for query, status in (("2021-02-01&nonce=" + "a" * 33, 400), ("2018-04-02", 404), ("2021-02-01&format=text", 400),
                              ("", 400)):
            self.assertEqual(ask(self.URL + query).status, status)
        self.assertEqual(ask("/metadata/attested?api-version=2021-02-01").status, 404)

    @unittest.skipUnless(shutil.which("openssl"), "no openssl here")
    def test_openssl_accepts_it_and_refuses_each_flaw(self):
        def openssl(*arguments):
            done = subprocess.run(["openssl"] + list(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            return done.returncode, done.stdout

        with tempfile.TemporaryDirectory() as folder, imds.Emulator(cloud="AzureUSGovernmentCloud") as vm:
            ca, der = os.path.join(folder, "ca.pem"), os.path.join(folder, "attested.der")
            with open(ca, "w") as file:
                file.write(imds.test_ca())
            verify = ("cms", "-verify", "-inform", "DER", "-in", der, "-CAfile", ca)
            for flaw in [None] + list(imds.FLAWS):
                data = base64.b64decode(vm.attested("1234567890", flaw=flaw)["signature"])
                with open(der, "wb") as file:
                    file.write(data)
                code, content = openssl(*verify)
                with self.subTest(flaw=flaw):
                    self.assertEqual(code == 0, flaw not in ("signer", "signature"))
                    fields = json.loads(imds.signed_content(data).decode())
                    self.assertEqual(fields["nonce"] == "1234567890", flaw != "nonce")
                    self.assertEqual(fields["vmId"] == vm.instance["compute"]["vmId"], flaw != "vmId")
                    self.assertEqual(b"westus.metadata.azure.us" in data, flaw != "domain")
            good = base64.b64decode(vm.attested()["signature"])
            for at in (good.index(b'"vmId"') + 10, len(good) - 5):  # a byte of the content, one of the signature
                with open(der, "wb") as file:
                    file.write(good[:at] + bytes([good[at] ^ 1]) + good[at + 1:])
                self.assertNotEqual(openssl(*verify)[0], 0)

    def test_client(self):
        with imds.Emulator() as vm:
            document, content = imds.attested("1234567890", endpoint=vm.url)
            self.assertEqual(content["nonce"], "1234567890")
            self.assertEqual(imds.decode_attested(document), content)
            self.assertEqual(imds.attested(endpoint=vm.url)[1]["vmId"], vm.get("compute/vmId"))
        for flaw, word in (("expired", "valid from"), ("nonce", "answers nonce"), ("vmId", "another VM")):
            with imds.Emulator(attested_flaw=flaw) as vm, self.assertRaises(imds.Refused) as caught:
                imds.attested("1234567890", endpoint=vm.url)
            self.assertIn(word, str(caught.exception))
        for body in (b"{}", b'{"signature":"!"}', b'{"signature":"MAAA"}', b"[]", b'{"signature":""}'):
            with Script(reply(200, body)) as server, self.assertRaises(imds.NotIMDS):
                imds.attested(endpoint=server.url)

    def test_the_ca_is_served(self):
        self.assertEqual(ask("/imds-test-ca.pem", {}).body.decode(), imds.test_ca())


class LoadBalancer(unittest.TestCase):
    URL = "/metadata/loadbalancer?api-version="

    def test_rows(self):
        none = ('{"error":"No load balancer metadata is found. Please check if your VM is using any non-basic SKU load '
                'balancer and retry later."}')
        gone = '{"error":"API is not found: Path = \\"/metadata/loadbalancer\\", Method = \\"GET\\""}'
        for wanted, target, verb, status, body in (
            (False, self.URL + "2020-10-01", "GET", 404, none), (True, self.URL + "2020-10-01", "GET", 200, None),
            (True, self.URL + "2025-04-07&format=json", "GET", 200, None), (True, self.URL + "2020-09-01", "GET", 404, gone),
            (True, self.URL + "2020-10-01&format=text", "GET", 400,
             '{"error":"Parameter value is not allowed, or parameter value \\"text\\" is not allowed for parameter '
             '\\"format\\". Please fix the request and retry."}'),
            (True, self.URL + "2020-10-01", "POST", 405,
             '{"error":"Http method is not allowed: Path = \\"/metadata/loadbalancer\\", Method = \\"POST\\""}'),
            (True, self.URL, "GET", 400, None),
        ):
            with self.subTest(target=target, verb=verb):
                response = ask(target, verb=verb, of=service(load_balancer=wanted))
                self.assertEqual(response.status, status)
                json.loads(response.body.decode())
                if body:
                    self.assertEqual(response.body.decode(), body)

    def test_order_and_integers(self):
        body = ask(self.URL + "2020-10-01", of=service(load_balancer=True)).body.decode()
        self.assertTrue(body.startswith('{"loadbalancer":{"publicIpAddresses":[{"frontendIpAddress":"203.0.113.10",'
                                        '"privateIpAddress":"10.1.2.5"}],"inboundRules":[{"frontendIpAddress":'
                                        '"203.0.113.10","protocol":"tcp","frontendPort":443,"backendPort":8443,'), body)

    def test_a_document_of_ones_own(self):
        rules = {"outboundRules": [], "inboundRules": [{"backendPort": 1, "frontendIpAddress": "[2001:db8::1]"}], "x": 1}
        one = service(instance={"instance": {}, "loadbalancer": rules})
        self.assertEqual(ask(self.URL + "2020-10-01", of=one).body.decode(),
                         '{"loadbalancer":{"publicIpAddresses":[],"inboundRules":[{"frontendIpAddress":"[2001:db8::1]",'
                         '"backendPort":1}],"outboundRules":[],"x":1}}')
        with self.assertRaises(ValueError):
            service(instance={"instance": {}, "loadbalancer": {"inboundRules": 5}})


if __name__ == "__main__":
    unittest.main()
