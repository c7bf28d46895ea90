"""Real clients, unmodified, against `serve` and under `exec --isolated`; .ci/run installs them and runs this.

    pip install -r tests/clients/requirements.txt
    python3 -m unittest tests/clients/sdks.py
"""

import json
import logging
import os
import re
import subprocess
import sys
import time
import unittest
import urllib.request

import imds

for variable in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IMDS_ENDPOINT", "MSI_ENDPOINT", "MSI_SECRET"):
    os.environ.pop(variable, None)  # they would lead a client to another service

logging.disable(logging.CRITICAL)  # what a client says of refusals that a test wants
VAULT = "https://vault.azure.net"


class Serve:
    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, imds.__file__, "serve", "--port", "0", "--quiet"] + list(arguments),
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.url = self.process.stdout.readline().decode().strip()

    def __enter__(self):
        os.environ["AZURE_POD_IDENTITY_AUTHORITY_HOST"] = self.url
        return self

    def __exit__(self, *_):
        os.environ["AZURE_POD_IDENTITY_AUTHORITY_HOST"] = "http://127.0.0.1:9"
        self.process.terminate()
        self.process.communicate()


def identity(spec):
    """The identity that `serve --identity SPEC` has, on the built-in VM."""
    return imds.Service(time.time, identities=[spec]).identities()[0]


def claims(token, server):
    """The claims of a token, once PyJWT has checked its signature and times with the published key."""
    import jwt

    tenant = imds.get("/metadata/identity/info", endpoint=server.url)["tenantId"]
    with urllib.request.urlopen("%s/%s/.well-known/openid-configuration" % (server.url, tenant)) as response:
        configuration = json.loads(response.read().decode())
    key = jwt.PyJWKClient(configuration["jwks_uri"]).get_signing_key_from_jwt(token)
    return jwt.decode(token, key.key, algorithms=["RS256"], audience=VAULT, issuer=configuration["issuer"])


class AzureIdentity(unittest.TestCase):
    def token(self, **settings):
        from azure.identity import ManagedIdentityCredential

        with ManagedIdentityCredential(**settings) as credential:
            return credential.get_token(VAULT + "/.default")

    def test_system_assigned(self):
        with Serve() as server:
            token = self.token()
            self.assertEqual(claims(token.token, server)["oid"], identity("system")["objectId"])
            self.assertAlmostEqual(token.expires_on, time.time() + 86400, delta=60)

    def test_user_assigned(self):
        one = identity("user:one")
        with Serve("--identity", "user:one", "--identity", "user:two") as server:
            for settings in ({"client_id": one["clientId"]}, {"identity_config": {"object_id": one["objectId"]}},
                             {"identity_config": {"resource_id": one["resourceId"]}}):
                with self.subTest(settings=settings):
                    self.assertEqual(claims(self.token(**settings).token, server)["appid"], one["clientId"])

    def test_no_identity(self):
        from azure.core.exceptions import ClientAuthenticationError

        for arguments, settings, words in (
            (["--identity", "none"], {}, "Identity not found"), ([], {"client_id": "unknown"}, "Identity not found"),
            (["--identity", "user:one", "--identity", "user:two"], {}, "Multiple user assigned identities exist"),
        ):
            with self.subTest(words=words), Serve(*arguments), self.assertRaises(ClientAuthenticationError) as caught:
                self.token(**settings)
            self.assertIn(words, str(caught.exception))

    def test_the_probe_of_a_chain(self):
        from azure.identity import DefaultAzureCredential

        others = dict.fromkeys(("cli", "developer_cli", "powershell", "environment", "shared_token_cache",
                                "visual_studio_code", "workload_identity", "broker", "interactive_browser"), True)
        settings = {"exclude_%s_credential" % name: value for name, value in others.items()}
        with Serve() as server, DefaultAzureCredential(**settings) as credential:
            begun = time.monotonic()
            token = credential.get_token(VAULT + "/.default")
            self.assertLess(time.monotonic() - begun, 2)
            self.assertEqual(claims(token.token, server)["oid"], identity("system")["objectId"])


class Msal(unittest.TestCase):
    def answer(self, managed_identity):
        import msal
        import requests

        with requests.Session() as session:
            return msal.ManagedIdentityClient(managed_identity, http_client=session).acquire_token_for_client(
                resource=VAULT)

    def test_system_assigned(self):
        import msal

        with Serve() as server:
            answer = self.answer(msal.SystemAssignedManagedIdentity())
            self.assertEqual(answer.get("token_type"), "Bearer", answer)
            self.assertEqual(claims(answer["access_token"], server)["oid"], identity("system")["objectId"])
            self.assertGreater(answer["expires_in"], 86000)

    def test_user_assigned(self):
        import msal

        one = identity("user:one")
        with Serve("--identity", "user:one", "--identity", "user:two") as server:
            for selector in ({"client_id": one["clientId"]}, {"object_id": one["objectId"]},
                             {"resource_id": one["resourceId"]}):
                with self.subTest(selector=selector):
                    answer = self.answer(msal.UserAssignedManagedIdentity(**selector))
                    self.assertEqual(claims(answer["access_token"], server)["appid"], one["clientId"])

    def test_errors(self):
        import msal

        for arguments, words in ((["--identity", "none"], "Identity not found"),
                                 (["--identity", "user:one", "--identity", "user:two"], "Multiple user assigned")):
            with self.subTest(words=words), Serve(*arguments):
                answer = self.answer(msal.SystemAssignedManagedIdentity())
                self.assertNotIn("access_token", answer)
                self.assertEqual(answer["error"], "invalid_request")
                self.assertIn(words, answer["error_description"])


# Programs as people write them: nothing in them, and no variable, says where the service is.
PROGRAMS = {
    "azure-identity": """
from azure.identity import ManagedIdentityCredential
print(ManagedIdentityCredential().get_token("https://vault.azure.net/.default").token)
""",
    "msal": """
import msal, requests
client = msal.ManagedIdentityClient(msal.SystemAssignedManagedIdentity(), http_client=requests.Session())
print(client.acquire_token_for_client(resource="https://vault.azure.net").get("access_token"))
""",
}


def isolated(program, *options):
    """Run a program where 169.254.169.254 is an emulator: its exit code, and what it and `exec` said."""
    environment = {name: value for name, value in os.environ.items() if name not in imds.LEADING}
    done = subprocess.run([sys.executable, imds.__file__, "exec", "--isolated", *options, "--", sys.executable, "-c", program],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, env=environment)
    return done.returncode, done.stdout.decode().strip(), done.stderr.decode()


class Isolated(unittest.TestCase):
    def setUp(self):
        code, _, said = isolated("")
        if code == 2 and "network namespace" in said:
            self.skipTest(said.strip())

    def test_no_variable_and_no_setting(self):
        import jwt

        for name, program in PROGRAMS.items():
            with self.subTest(client=name):
                code, token, said = isolated("import os; assert not [name for name in os.environ if name.startswith('AZURE_')]"
                                             + program, "--identity", "user:one")
                self.assertEqual((code, said), (0, ""))
                self.assertEqual(jwt.decode(token, options={"verify_signature": False})["appid"],
                                 identity("user:one")["clientId"])

    def test_their_judgement_is_as_the_readme_shows(self):
        with open(os.path.join(os.path.dirname(os.path.abspath(imds.__file__)), "README.md"), encoding="utf-8") as file:
            text = file.read()
        for name, program in PROGRAMS.items():
            row = re.search(r"(?m)^\| %s [^|]*\(Python\) \|([^|]*)\|[^|]*\|([^|]*)\|$" % name, text)
            for options, cell in (((), row.group(1)), (("--fault", "429 x2"), row.group(2))):
                with self.subTest(client=name, options=options):
                    said = isolated(program, "--lint", *options)[2]
                    self.assertEqual(re.findall(r"(?m)^([\w-]+) \(\d+\): ", said), re.findall("`([^`]*)`", cell), said)
