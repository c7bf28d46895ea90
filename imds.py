"""Both halves of the Azure Instance Metadata Service (IMDS) and a test bench, in one file and the standard library.

The client asks the service of the VM it runs on:

    >>> imds.get("compute/vmId")                                    # a leaf: a str
    '13f56399-bd52-4150-9748-7190aae1ff21'
    >>> imds.get("network/interface/0/ipv4/subnet")                 # a container: a dict or a list
    [{'address': '10.1.2.0', 'prefix': '24'}]

    $ python3 -m imds get compute/vmId

The emulator is that service, anywhere:

    >>> with imds.Emulator() as vm:
    ...     vm.get("compute/name")
    'avset2'

    $ python3 -m imds serve

The file has ten rooms. Each knows only the rooms above it:

     1 contract      tables of the service: versions, fields, refusals, events, patience
     2 core          pure functions on documents: complete, view at a version, resolve, print
     3 documents     what a VM is made of: built-in ones, checks, changes, redaction
     4 signatures    RSA, DER, X.509, PKCS#7, JWT: enough for a token and an attested document
     5 service       one request in, one response out; every rule, in the order of the service
     6 bench         what a test does to a service: operations by name, faults, a journal, a judge of clients
     7 http          HTTP/1.1 as a pure machine: bytes in, bytes out
     8 emulator      the service on a port, by way of http.server
     9 client        urllib to a service; verify (is it IMDS?) and doctor (why can't it be reached?)
    10 command line  argparse, printing, exit codes
"""

import base64
import collections
import functools
import itertools
import os
import re
import sys
import time
import urllib.parse

LACKING = ("this Python lacks a part of its standard library, %s; install the whole of it, with "
           "'apt-get install python3' on Debian")
try:
    import json
except ImportError as problem:  # as in Debian's python3-minimal
    if __name__ == "__main__":
        sys.stderr.write("imds: %s\n" % LACKING % problem.name)
        sys.exit(2)
    raise

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is at run time, without the import
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NoReturn, Optional, Sequence, Tuple, Type

__version__ = "0.2.0"
__all__ = [
    # core
    "Error", "NotFound", "Refused", "Unreachable", "Unavailable", "NotIMDS", "resolve", "format_text", "parse_time",
    # documents
    "make_vm", "redact", "diff",
    # emulator
    "Clock", "Emulator", "ScaleSet",
    # client
    "Client", "get", "scheduled_events", "approve", "watch_events", "token", "attested", "attested_content",
]


# ==================================================================================================
# Room 1: contract
#
# What the service is, as data without logic. In this file "documented" means by Microsoft's article on the
# Instance Metadata Service, "observed" means seen at the real service, and "chosen" means decided here, where
# neither says. A rule of the service is a row of a table here wherever it can be one.
# ==================================================================================================

# Every documented api-version and the fields it added to /metadata/instance. `a{...}` is an object, `a[{...}]`
# a list of objects, `a:KIND=DEFAULT` a value. KIND says how redact() replaces it (_Redactor in room 3); DEFAULT is
# what the service sends for a VM without it, "" if left out: word=false is a flag as a string, bool a real one. The
# first row is what the preview alone had; the second is the base that all other rows add to. A new api-version is
# one row.
VERSIONS = {
    "2017-03-01": "network{interface[{ipv4{subnet[{dnsservers[{ipaddress:address}]}]}}]}",
    "2017-04-02": "compute{location:region name:numbered offer:image osType:word platformFaultDomain:word"
                  " platformUpdateDomain:word publisher:image sku:image version:version vmId:guid vmSize:size}"
                  " network{interface[{ipv4{ipAddress[{privateIpAddress:address publicIpAddress:address}]"
                  " subnet[{address:address prefix:word}]}"
                  " ipv6{ipAddress[{privateIpAddress:address}]} macAddress:mac}]}",
    "2017-08-01": "compute{placementGroupId:guid resourceGroupName:name subscriptionId:guid tags:tags}",
    "2017-10-01": "",
    "2017-12-01": "compute{vmScaleSetName:name zone:word}",
    "2018-02-01": "",
    "2018-04-02": "compute{plan{name:image product:image publisher:image} publicKeys[{keyData:key path:file}]}",
    "2018-10-01": "compute{azEnvironment:word provider:word}",
    "2019-02-01": "compute{customData:data}",
    "2019-03-11": "compute{resourceId:id}",
    "2019-04-30": "",
    "2019-06-01": "compute{storageProfile{"
                  "dataDisks[{caching:word createOption:word diskSizeGB:count image{uri:url} lun:word"
                  " managedDisk{id:id storageAccountType:word} name:numbered vhd{uri:url}"
                  " writeAcceleratorEnabled:word=false}]"
                  " imageReference{id:id offer:image publisher:image sku:image version:version}"
                  " osDisk{caching:word createOption:word diskSizeGB:count encryptionSettings{enabled:word=false}"
                  " image{uri:url} managedDisk{id:id storageAccountType:word} name:numbered osType:word vhd{uri:url}"
                  " writeAcceleratorEnabled:word=false}}}",
    "2019-06-04": "compute{tagsList[{name:tag value:value}]}",
    "2019-08-01": "compute{storageProfile{osDisk{diffDiskSettings{option:word}}}}",
    "2019-08-15": "",
    "2019-11-01": "",
    "2020-06-01": "compute{isHostCompatibilityLayerVm:word=false"
                  " securityProfile{secureBootEnabled:word=false virtualTpmEnabled:word=false}}",
    "2020-07-15": "compute{osProfile{adminUsername:name computerName:numbered}}",
    "2020-09-01": "compute{licenseType:word}",
    "2020-10-01": "compute{osProfile{disablePasswordAuthentication:word}}",
    "2020-12-01": "compute{evictionPolicy:word priority:word}",
    "2021-01-01": "compute{userData:data}",
    "2021-02-01": "compute{storageProfile{resourceDisk{size:count=0}}}",
    "2021-03-01": "compute{extendedLocation{name:name type:word} virtualMachineScaleSet{id:id}}",
    "2021-05-01": "compute{storageProfile{dataDisks[{bytesPerSecondThrottle:count diskCapacityBytes:count"
                  " isSharedDisk:word=false isUltraDisk:word=false opsPerSecondThrottle:count}]}}",
    "2021-08-01": "extended{compute{hasCustomData:bool ppsType:word}}",
    "2021-10-01": "compute{platformSubFaultDomain:word}",
    "2021-11-01": "compute{additionalCapabilities{hibernationEnabled:word=false}"
                  " securityProfile{encryptionAtHost:word=false}"
                  " storageProfile{osDisk{encryptionSettings{diskEncryptionKey{secretUrl:url sourceVault{id:id}}"
                  " keyEncryptionKey{keyUrl:url sourceVault{id:id}}}}}}",
    "2021-11-15": "compute{host{id:id} hostGroup{id:id}}",
    "2021-12-13": "compute{securityProfile{securityType:word}}",
    "2023-07-01": "compute{storageProfile{imageReference{communityGalleryImageId:id exactVersion:version"
                  " sharedGalleryImageId:id}}}",
    "2023-11-15": "compute{isVmInStandbyPool:word physicalZone:region}",
    "2024-03-15": "",
    "2024-07-17": "",
    "2025-04-07": "",
}
# Versions that no document lists, but shipped clients use: answered, but offered only if ``versions`` names them.
UNLISTED_VERSIONS = {
    "2025-07-24": "network{interface[{interfaceCompartmentID:guid}]}",
    "2025-11-11": "compute{interconnectGroupId:guid interconnectSubgroupId:guid}",
    "2025-11-15": "",
}
PREVIEW, FIRST_GA, NEWEST = "2017-03-01", "2017-04-02", max(VERSIONS)

DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z"  # the form of an api-version

# Names of fields today -> their names in the preview.
PREVIEW_NAMES = {
    "ipAddress": "ipaddress", "privateIpAddress": "ipaddress", "publicIpAddress": "publicip", "macAddress": "mac",
}

# By azEnvironment. domain: of the attested document's certificate; issuer: the host that issues tokens;
# versions_in_2018: those that the document of early 2018 lists for that cloud.
Cloud = collections.namedtuple("Cloud", "domain issuer versions_in_2018")
CLOUDS = {
    "AzurePublicCloud": Cloud("metadata.azure.com", "sts.windows.net",
                              ("2017-04-02", "2017-08-01", "2017-12-01", "2018-02-01")),
    "AzureUSGovernmentCloud": Cloud("metadata.azure.us", "sts.windows.net", ("2017-04-02", "2017-08-01")),
    "AzureChinaCloud": Cloud("metadata.azure.cn", "sts.chinacloudapi.cn", ("2017-04-02", "2017-08-01")),
    "AzureGermanCloud": Cloud("metadata.microsoftazure.de", "sts.windows.net", ("2017-04-02", "2017-08-01")),
}

# Path under /metadata: the verbs it takes, the api-version that introduced it (None: it needs none), and the
# method of Service that answers. Newer, certificate-based tokens are not emulated: the 404 of no_credential
# makes SDKs use identity/oauth2/token.
Endpoint = collections.namedtuple("Endpoint", "verbs since answer")
ENDPOINTS = {
    "attested/document": Endpoint(("GET",), "2018-10-01", "attested_document"),
    "identity/credential": Endpoint(("GET", "POST"), None, "no_credential"),
    "identity/getplatformmetadata": Endpoint(("GET", "POST"), None, "no_credential"),
    "identity/info": Endpoint(("GET",), "2018-02-01", "identity_info"),
    "identity/issuecredential": Endpoint(("GET", "POST"), None, "no_credential"),
    "identity/oauth2/token": Endpoint(("GET",), "2018-02-01", "token"),
    "instance": Endpoint(("GET",), "2017-03-01", "instance_document"),
    "loadbalancer": Endpoint(("GET",), "2020-10-01", "load_balancer_document"),
    "scheduledevents": Endpoint(("GET", "POST"), "2017-03-01", "scheduled_events"),
    "versions": Endpoint(("GET",), None, "api_versions"),
}
NO_ENDPOINT = Endpoint(("GET", "POST"), FIRST_GA, "listing")  # of every other path

COMPONENTS = tuple(sorted({path.partition("/")[0] for path in ENDPOINTS}))  # their first names

# Scheduled events have versions of their own. EVENT_FIELDS is in the order of the wire. since: the version that
# added the field; default: its value where a document lacks it; redaction: its KIND, as in VERSIONS; variable:
# `events --exec` passes it as $EVENT_ and this (None: it does not).
EVENT_VERSIONS = ("2017-03-01", "2017-08-01", "2017-11-01", "2019-01-01", "2019-04-01", "2019-08-01", "2020-07-01")
EVENTS_GA, EVENTS_NEWEST = "2017-08-01", EVENT_VERSIONS[-1]
EventField = collections.namedtuple("EventField", "since type default redaction variable")
EVENT_FIELDS = {
    "EventId": EventField("2017-03-01", str, "", "guid", "ID"),
    "EventStatus": EventField("2017-03-01", str, "Scheduled", "word", "STATUS"),
    "EventType": EventField("2017-03-01", str, "", "word", "TYPE"),
    "ResourceType": EventField("2017-03-01", str, "VirtualMachine", "word", None),
    "Resources": EventField("2017-03-01", list, (), "numbered", "RESOURCES"),  # of strings
    "NotBefore": EventField("2017-03-01", str, "", "time", "NOT_BEFORE"),
    "Description": EventField("2019-04-01", str, "", "description", "DESCRIPTION"),
    "EventSource": EventField("2019-08-01", str, "Platform", "word", "SOURCE"),
    "DurationInSeconds": EventField("2020-07-01", int, -1, "count", "DURATION"),
}

# since: the first version that shows the EventType; notice: seconds until NotBefore; duration: DurationInSeconds
# (-1: unknown); lasts: seconds for which it is Started; descriptions: by EventSource, "" if missing. `lasts` is
# from Azure's own scenarios, the Description of Redeploy by a user is chosen, all else is documented.
MAINTENANCE = "Host server is undergoing maintenance."
EventType = collections.namedtuple("EventType", "since notice duration lasts descriptions")
EVENT_TYPES = {
    "Freeze": EventType("2017-03-01", 900, 5, 300, {
        "Platform": "Virtual machine is being paused because of a memory-preserving Live Migration operation."}),
    "Reboot": EventType("2017-03-01", 900, -1, 600, {
        "Platform": MAINTENANCE,
        "User": "Virtual machine is going to be restarted as requested by authorized user."}),
    "Redeploy": EventType("2017-03-01", 600, -1, 600, {
        "Platform": MAINTENANCE,
        "User": "Virtual machine is going to be redeployed as requested by authorized user."}),
    "Preempt": EventType("2017-11-01", 30, -1, 600, {}),
    "Terminate": EventType("2019-01-01", 300, -1, 600, {}),
}
# Other Descriptions that the platform sends (observed). redact() keeps them, too.
OBSERVED_DESCRIPTIONS = (
    "Host Server infrastructure is undergoing maintenance.", "Host server is undergoing an emergency repair.",
)

# Azure's own scenarios of July 2025, as the arguments of Bench.schedule.
SCENARIOS: "Dict[str, Dict[str, Any]]" = {
    "live-migration": {"kind": "Freeze", "after": 900, "lasts": 300},
    "user-reboot": {"kind": "Reboot", "source": "User", "after": 900, "lasts": 600},
    "host-agent-maintenance": {"kind": "Freeze", "description": MAINTENANCE, "after": 900, "lasts": 600},
    "redeploy": {"kind": "Redeploy", "after": 900, "lasts": 600},
    "user-redeploy": {"kind": "Redeploy", "source": "User", "after": 900, "lasts": 600},
    "cancelled-maintenance": {"kind": "Freeze", "description": MAINTENANCE, "after": 900, "lasts": 600,
                              "cancelled_after": 480},
}

# What a version added to the signed content of the attested document.
ATTESTED_VERSIONS = {
    "2018-10-01": "nonce plan{name product publisher} timeStamp{createdOn expiresOn} vmId",
    "2019-04-30": "subscriptionId",
    "2019-11-01": "sku",
    "2020-09-01": "licenseType",
}
ATTESTED_TIME, ATTESTED_NONCE = "%m/%d/%y %H:%M:%S -0000", "%Y%m%d-%H%M%S"  # its times; its nonce, if none was given
ATTESTED_SECONDS = 6 * 3600  # how long a document is valid (observed)
CERTIFICATE_BACKDATED, CERTIFICATE_SECONDS = 30 * 86400, 330 * 86400  # of its certificate: its age, its validity
MAX_NONCE = 32  # characters

# What can be wrong with an attested document, so that a verifier must refuse it.
FLAWS = {
    "signer": "its certificate comes from an authority that nobody knows",
    "signature": "a byte of its content was changed after it was signed",
    "expired": "it was valid until a day ago",
    "nonce": "it answers another nonce",
    "vmId": "it is about another VM",
    "domain": "its certificate is for another domain",
}

# The lists in the document of a load balancer and their fields, in the order of the wire and the notation of VERSIONS.
BALANCE = ("publicIpAddresses[{frontendIpAddress:address privateIpAddress:address}]"
           " inboundRules[{frontendIpAddress:address protocol:word frontendPort:count backendPort:count"
           " privateIpAddress:address}]"
           " outboundRules[{frontendIpAddress:address privateIpAddress:address}]")

# The parts of a whole VM and their fields. Those of instance are in VERSIONS, and attested needs none: redact() omits
# it, as its signature would not survive.
PARTS = {
    "instance": "",
    "scheduledevents": "DocumentIncarnation:count Events[{%s}]" % " ".join(
        "%s:%s" % (name, field.redaction) for name, field in EVENT_FIELDS.items()),
    "identity": "tenantId:guid identities[{type:word name:name clientId:guid objectId:guid resourceId:id"
                " client_id:guid object_id:guid resource_id:id}]",  # the last three as a user may write them
    "loadbalancer": "loadbalancer{%s} %s" % (BALANCE, BALANCE),  # a user may leave out the frame
    "attested": "",
}

# Query parameters that name the identity of a token. Then, in seconds: from the issue of a token to its end, from its
# beginning to its issue, and from its renewal to its end.
SELECTORS = {"client_id": "clientId", "object_id": "objectId", "msi_res_id": "resourceId", "mi_res_id": "resourceId"}
TOKEN_SECONDS, TOKEN_BACKDATED, TOKEN_RENEWED = 86400, 300, 300
DEFAULT_TENANT = "f146b86f-6f44-43f1-973f-91a7637cd756"

# The primes of the RSA keys that sign the emulator's tokens, attested documents and certificates: all but one make a
# key. One of many small primes signs faster than one of two large ones, and nobody sees the difference. Anyone can
# read them here: a signature by these keys proves nothing, and no verifier outside a test may trust them.
TEST_PRIMES = tuple(int(digits, 16) for digits in """
    f2261d3de4f0b28e4b27361e7d59cf02917739a3dd34282fc5ffa4166398cf87
    f7a5f276b5d655a8c8ddf08434920a7e0e98e3d738138a8f4645a5c09bbf082f
    f7753dd85eea67400a37e796554cc03f6640d9e5c6bf508416156ebe753ffc69
    f0c94138ae99b0db23a4236fdc2735084652912a4bc980c258cb53454aae46b9
    f815bf744d8d3ba739fe787f0f076cedfde725982239bb806e6b57ae0506fbf3
    f1ad0cad6750fbd46713e8191b2fc241482678d00704c45d049f79e605fd6c45
    f1049d2f61f2b7e047545b2ed9ab9c42768932bc4caac0026564c20f06e3d213
    f0eb49aca18a52fbeefc496b7d9f78f34b63b99543409ef460912d63163524ad
    f116405b32ccb9eb588989be4058dd90b96ed20e9d07571150eb27b2f413fe37
    """.split())
TEST_KEY_ID = "imds-emulator-public-test-key"
# Distinguished names. The one in the real service's certificate begins like SERVICE_NAME (observed).
TEST_ROOT_NAME = "C=US,O=imds emulator,CN=imds emulator test root CA (its key is public)"
TEST_ISSUER_NAME = "C=US,O=imds emulator,CN=imds emulator test issuing CA (its key is public)"
TEST_TOKEN_NAME = "C=US,O=imds emulator,CN=imds emulator test tokens (their key is public)"
TEST_KEYS = {TEST_ROOT_NAME: 0, TEST_ISSUER_NAME: 1, "": 2}  # the prime that each lacks; "": of the service itself
SERVICE_NAME = "C=US,ST=WA,L=Redmond,O=Microsoft Corporation,CN="

# What the web server in front of the service says (observed).
XML_BODY = """\
<?xml version="1.0" encoding="utf-8"?>
<Error xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema">
    <Code>%s</Code>
    <Message>%s</Message>
    <Details>%s</Details>
</Error>"""
VERB_BODY = XML_BODY % ("InvalidHttpVerb", "The HTTP verb specified was not recognized by the server.",
                        "'$verb' is not a supported verb.")
GONE_BODY = XML_BODY % ("ResourceNotAvailable",
                        "The resource requested is no longer available. Please refresh your cache.", "")

OUTSIDE_BODY = """\
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">
<html xmlns="http://www.w3.org/1999/xhtml">
<head>
<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1"/>
<title>404 - File or directory not found.</title>
<style type="text/css">
<!--
body{margin:0;font-size:.7em;font-family:Verdana, Arial, Helvetica, sans-serif;background:#EEEEEE;}
fieldset{padding:0 15px 10px 15px;}\x20
h1{font-size:2.4em;margin:0;color:#FFF;}
h2{font-size:1.7em;margin:0;color:#CC0000;}\x20
h3{font-size:1.2em;margin:10px 0 0 0;color:#000000;}\x20
#header{width:96%;margin:0 0 0 0;padding:6px 2% 6px 2%;font-family:"trebuchet MS", Verdana, sans-serif;color:#FFF;
background-color:#555555;}
#content{margin:0 0 0 2%;position:relative;}
.content-container{background:#FFF;width:96%;margin-top:8px;padding:10px;position:relative;}
-->
</style>
</head>
<body>
<div id="header"><h1>Server Error</h1></div>
<div id="content">
 <div class="content-container"><fieldset>
  <h2>404 - File or directory not found.</h2>
  <h3>The resource you are looking for might have been removed, had its name changed, or is temporarily \
unavailable.</h3>
 </fieldset></div>
</div>
</body>
</html>
""".replace("\n", "\r\n")  # the stock page of IIS, 1245 bytes

# Why a request is refused: status, the reason for the access log, the body with the service's own spacing.
# $verb, $path and $value stand for parts of the request, $tenant for the identity service's tenant, $newest
# for the three newest versions served. DIALECTS has the bodies of components that differ.
BAD_REQUEST = '{ "error": "Bad request" }'
IDENTITY_ERROR = '{"error":"invalid_request","error_description":"%s"}'
Refusal = collections.namedtuple("Refusal", "status reason body")
REFUSALS = {
    "head": Refusal(400, "HEAD is not supported", VERB_BODY),
    "verb": Refusal(405, "verb not allowed", '{ "error": "Not allowed" }'),
    "outside-verb": Refusal(400, "verb not supported", VERB_BODY),
    "outside": Refusal(404, "outside /metadata", OUTSIDE_BODY),
    "metadata": Refusal(400, "Metadata header missing",
                        '{ "error": "Bad request: . Required metadata header not specified" }'),
    "forwarded": Refusal(400, "X-Forwarded-For header present", BAD_REQUEST),
    "target": Refusal(400, "percent-encoding not valid", BAD_REQUEST),
    "duplicate": Refusal(400, "query parameter given twice", BAD_REQUEST),
    "version": Refusal(400, "api-version missing or unknown",
                       '{"error":"Bad request. api-version is invalid or was not specified in the request.'
                       ' For more information refer to aka.ms/azureimds","newest-versions":$newest}'),
    "version-missing-2018": Refusal(400, "api-version missing",
                                    '{"error":"Bad request. api-version was not specified in the request.'
                                    ' For more information refer to aka.ms/azureimds","newest-versions":$newest}'),
    "version-unknown-2018": Refusal(404, "api-version unknown", '{ "error": "Not found. Invalid version requested" }'),
    "version-of-another": Refusal(404, "api-version unknown to this endpoint", '{ "error": "Not found" }'),
    "path": Refusal(404, "not found", '{ "error": "Not found" }'),
    "format": Refusal(400, "format unknown", BAD_REQUEST),
    "leaf": Refusal(400, "a leaf needs format=text", BAD_REQUEST),
    "throttled": Refusal(429, "throttled", '{ "error": "Too many requests" }'),
    "throttled-text": Refusal(429, "throttled", "Too many requests"),
    # By one endpoint only.
    "events": Refusal(400, "StartRequests not valid", BAD_REQUEST),
    "nonce": Refusal(400, "nonce too long", BAD_REQUEST),
    "no-load-balancer": Refusal(404, "no load balancer", '{ "error": "No load balancer metadata is found. Please check'
                                ' if your VM is using any non-basic SKU load balancer and retry later." }'),
    "no-resource": Refusal(400, "resource missing", IDENTITY_ERROR % "Required query variable 'resource' is missing"),
    "no-identity": Refusal(400, "identity not found", IDENTITY_ERROR % "Identity not found"),
    "several-identities": Refusal(400, "several identities, none named", IDENTITY_ERROR % (
        "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the"
        " token request")),
    "several-selectors": Refusal(400, "identity named twice", IDENTITY_ERROR % "Bad request"),
    "bad-resource": Refusal(400, "resource not valid", '{"error":"invalid_resource","error_description":"AADSTS50001:'
                            ' The application named $value was not found in the tenant named $tenant."}'),
    "no-attestation": Refusal(400, "attestation token missing", IDENTITY_ERROR % (
        "Attestation Token is missing / empty in the issue credential request")),
    # For what is no valid request, or comes from a web page. Statuses are by RFC 9110 and 6585, bodies are chosen.
    "host": Refusal(400, "Host is not a name of this emulator", '{ "error": "Bad request. Host not allowed" }'),
    "malformed": Refusal(400, "not an HTTP request", BAD_REQUEST),
    "slow": Refusal(408, "request took too long", '{ "error": "Request timeout" }'),
    "body-size": Refusal(413, "body too large", '{ "error": "Request body too large" }'),
    "line-size": Refusal(414, "request line too long", '{ "error": "Request line too long" }'),
    "headers-size": Refusal(431, "headers too large", '{ "error": "Request headers too large" }'),
    # For an error of the emulator itself, and for the faults of playbooks.
    "failed": Refusal(500, "internal error", '{ "error": "Server error" }'),
    "bad-request": Refusal(400, "bad request", BAD_REQUEST),
    "denied": Refusal(403, "denied by the guest proxy agent", ""),
    "gone": Refusal(410, "the VM is being moved", GONE_BODY),
    "bad-gateway": Refusal(502, "bad gateway", '{ "error": "Bad gateway" }'),
    "unavailable": Refusal(503, "service unavailable", '{ "error": "Service unavailable" }'),
    "gateway-timeout": Refusal(504, "gateway timeout", '{ "error": "Gateway timeout" }'),
}

# The bodies of components with words of their own, by the first name below /metadata.
DIALECTS = {
    "identity": {
        "verb": '{"error":"Not allowed"}',
        "metadata": IDENTITY_ERROR % "Required metadata header not specified",
        **dict.fromkeys(("bad-request", "duplicate", "format", "forwarded", "target"), IDENTITY_ERROR % "Bad request"),
        **dict.fromkeys(("path", "version-of-another"), '{"error":"Not Found"}'),
        "throttled": IDENTITY_ERROR % "Temporarily throttled, too many requests",
        "failed": '{"error":"unknown","error_description":"Failed to retrieve token from the Active directory.'
                  ' For details see logs in <file path>"}',  # as it is documented
    },
    "loadbalancer": {
        "verb": '{ "error": "Http method is not allowed: Path = \\"$path\\", Method = \\"$verb\\"" }',
        **dict.fromkeys(("path", "version-of-another"),
                        '{ "error": "API is not found: Path = \\"$path\\", Method = \\"$verb\\"" }'),
        "format": '{ "error": "Parameter value is not allowed, or parameter value \\"$value\\" is not allowed for'
                  ' parameter \\"format\\". Please fix the request and retry." }',
        "unavailable": '{ "error": "Internal service unavailable. Please retry later" }',
    },
}

# Reason phrases, the same on every Python.
REASONS = {
    200: "OK", 302: "Found", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 410: "Gone", 413: "Content Too Large", 414: "URI Too Long", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout",
}

# The type of a refusal's body, by how it begins. Then the headers of a response, in the order of the wire (observed):
# of the service itself, and of what the web server and the guest proxy agent in front of it say.
JSON_TYPE, TEXT_TYPE = "application/json; charset=utf-8", "text/plain; charset=utf-8"
XML_TYPE, HTML_TYPE = "text/xml; charset=utf-8", "text/html"
CERTIFICATE_TYPE, REVOCATION_TYPE = "application/pkix-cert", "application/pkix-crl"  # of RFC 5280
CONTENT_TYPES = {"{": JSON_TYPE, "<?xml": XML_TYPE, "<!DOCTYPE": HTML_TYPE, "": TEXT_TYPE}
IMDS_HEADERS = ("Content-Type", "Server", "x-ms-request-id", "Date", "Content-Length")
HEADERS = {
    XML_TYPE: ("Content-Length", "Content-Type", "Server", "Date"),
    HTML_TYPE: ("Content-Type", "Server", "Date", "Content-Length"),
    "denied": ("Content-Type", "Date", "Content-Length"),
}
IMDS_SERVER, IIS_SERVER = "IMDS/150.870.65.1854", "Microsoft-IIS/10.0"

# A step of a playbook is one of these: a status, with its row of REFUSALS; an answer that is not the service's, with
# status, content type, body and a description; or a manner of sending the right answer, with a description.
FAULT_STATUSES = {"400": "bad-request", "403": "denied", "404": "path", "410": "gone", "429": "throttled",
                  "500": "failed", "502": "bad-gateway", "503": "unavailable", "504": "gateway-timeout"}
FAULT_ANSWERS = {
    "portal": (200, HTML_TYPE, b"<!DOCTYPE html><title>Welcome</title><p>Please log in to use this network.\n",
               "an HTML page"),
    "huge": (200, JSON_TYPE, b'{"compute":{"name":"$filler"}}', "more than a client may read"),
    "redirect": (302, HTML_TYPE, b"<!DOCTYPE html><title>Moved</title>\n", "to another place"),
}
FAULT_MANNERS = {
    "ok": "as it should be", "reset": "the connection is reset", "hang": "never, until the client gives up",
    "cut": "a part of it, and then the end", "drip": "a byte at a time", "broken": "a part of it, as if that were all",
}
FILLER_SIZE = 5 << 20  # bytes that $filler stands for
REDIRECTED = "/redirected"  # the path that `redirect` leads to begins with this
Situation = collections.namedtuple("Situation", "playbook text")
SITUATIONS = {
    "booting": Situation("404 x3", "the service is not up yet, and then it is"),
    "migrating": Situation("410 for 60s", "the VM is being moved, for a minute"),
    "flaky": Situation("500 p 0.2", "one request in five fails"),
    "throttled": Situation("429 for 10s", "too many requests, for ten seconds"),
    "captive-portal": Situation("portal always", "a network that wants a login answers instead"),
    "dead": Situation("hang always", "somebody listens and never answers"),
    "denied": Situation("403 always", "the guest proxy agent lets nobody through"),
    "cold-events": Situation("GET scheduledevents: delay 120s", "the first list of events takes two minutes"),
}

# Requests a second that the documentation allows: in all; to the identity service, and how many of these at once.
RATE_LIMIT, IDENTITY_RATE_LIMIT, IDENTITY_AT_ONCE = 5, 20, 5

DEFAULT_ENDPOINT, DEFAULT_PORT = "http://169.254.169.254", 8169

# How long a client waits, in seconds, by endpoint ("": all others). connect: for a connection; answer: for each piece
# of an answer, and it gives up when two tries brought none; total: for all tries; gone: for all tries once the service
# answers 410, because the VM is being moved (documented). The first list of scheduled events may take two minutes
# (documented), later ones ("again") may not. Tokens take longer, for another service issues them.
Patience = collections.namedtuple("Patience", "connect answer total gone")
PATIENCE = {
    "scheduledevents": Patience(2, 120, 120, 120),
    "scheduledevents again": Patience(2, 5, 20, 70),
    "identity/oauth2/token": Patience(2, 10, 20, 70),
    "attested/document": Patience(2, 10, 20, 70),
    "": Patience(2, 2, 20, 70),
}
# Besides 5xx, the statuses to try again after, with pauses that double from 1 to 8 s; and advice for the error, if all
# tries fail. A 404 counts only at RETRIED_404: every service has these paths, so it is not up yet.
RETRIED = {
    404: "the service is not up yet; try again later",
    408: "try again",
    410: "the VM is being moved; try again in a minute",
    429: "ask less often",
}
RETRIED_404 = ("instance", "identity/oauth2/token")
PASSING = frozenset(RETRIED).union(range(500, 600)).difference([404, 511])  # at any path; 511 is of a captive portal


# ==================================================================================================
# Room 2: core
#
# The exceptions, and pure functions on dicts, lists and strings; knows the contract. What the emulator
# answers and what the client prints both come from here, so they can't drift apart. A row of VERSIONS is
# parsed into a template, an empty document whose leaves are Fields; a document is walked along a template,
# which completes it, cuts it to a version and puts its names in order, all in one function (_shape).
# ==================================================================================================

MAX_DEPTH, MAX_LEVELS = 64, 910  # levels of containers: in a user's document, in any JSON
MAX_CONTAINERS = 200000  # in any JSON: each takes much more memory than its two characters
MAX_MESSAGE = 2000  # characters of an Error; a service's answer can be long


class Error(Exception):
    """The base of the errors: the service, or the way to it, fails.

    The message says what was asked, what came back and what to do. ``status`` (int) and ``body`` (str) are the
    service's reply, ``url`` (str) the request; each is None if unknown, and ``body`` also if a token may be in it.
    """

    exit_code = 1

    def __init__(
        self, message: str, status: "Optional[int]" = None, body: "Optional[str]" = None, url: "Optional[str]" = None,
    ) -> None:
        message = one_line(message[:MAX_MESSAGE])
        super().__init__(message)
        self.message, self.status, self.body, self.url = message, status, body, url
        self.offered: "List[str]" = []  # the api-versions to try instead, the best first
        self.retry_after = 0  # seconds until the service wants to be asked again

    def __str__(self) -> str:  # KeyError would print a repr, OSError nothing
        return self.message


class NotFound(Error, KeyError):
    """There is no such path in the document or in the service. Also a KeyError."""


class Refused(Error):
    """The service said no (400, 403, 405, ...) and would again, or its attested document failed a check."""


class Unreachable(Error, OSError):
    """No answer came, or not in time. Also an OSError. ``what``: "nobody listens", "somebody breaks off" or "silence"
    (not in time)."""

    exit_code, what = 3, "nobody listens"


class Unavailable(Error):
    """Until the deadline the service only answered that it is throttling, failing, moving or not up."""

    exit_code = 4


class NotIMDS(Error):
    """What answers is not the Instance Metadata Service: a captive portal, say, or another cloud's."""

    exit_code = 5


def printable(text: str) -> str:
    """``text`` with "?" for what a terminal might obey."""
    return "".join(char if char.isprintable() else "?" for char in text)


def one_line(text: str) -> str:
    """``text`` as one printable line, its white space folded."""
    return printable(" ".join(text.split()))


# --- paths and printing

def resolve(document: "Any", path: str) -> "Any":
    """Return the node of ``document`` (dicts, lists and leaves) at ``path``.

    A path is names and list indexes with slashes between, like "network/interface/0/macAddress". Case matters;
    empty parts are skipped, so "" is the document itself. Raises NotFound, which suggests a similar path.
    """
    try:
        return find(document, filter(None, path.split("/")))
    except KeyError:
        nearest = suggest(document, path)
        raise NotFound("there is no %r%s" % (path, "; did you mean %r?" % nearest if nearest else "")) from None


def find(document: "Any", names: "Iterable[str]") -> "Any":
    """Return the node of ``document`` that the names and list indexes lead to, or raise KeyError."""
    node = document
    for name in names:
        node = node[name] if isinstance(node, dict) else dict(children(node))[name]
    return node


def has(document: "Any", names: "Iterable[str]") -> bool:
    """Whether the names and list indexes lead anywhere in ``document``."""
    try:
        find(document, names)
        return True
    except KeyError:
        return False


def nearest_of(word: str, words: "Iterable[str]", cutoff: float) -> "Optional[str]":
    """The one of ``words`` that is most like ``word``, whatever the case, or None."""
    try:
        import difflib
    except ImportError:  # Debian's python3-minimal has none
        return None
    spelled = {each.lower(): each for each in words}
    found = difflib.get_close_matches(word.lower(), spelled, n=1, cutoff=cutoff)
    return spelled[found[0]] if found else None


def suggest(document: "Any", path: str) -> "Optional[str]":
    """Return the path in ``document`` that ``path`` probably means, or None: the same in another case, with
    more names in front, or spelled a little differently."""
    paths = list(itertools.islice(walk(document), 2000))  # more would take longer than the request
    wanted = "/".join(filter(None, path.split("/"))).lower()
    ends = [each for each in paths if ("/" + each.lower()).endswith("/" + wanted)]
    return min(ends, key=lambda each: each.count("/")) if ends else nearest_of(wanted, paths, 0.8)


def walk(node: "Any", path: str = "") -> "Iterator[str]":
    """Yield the path of every node below ``node``, a container before what it holds."""
    for name, child in children(node):
        if len(path) + len(name) < 300:  # no field has a longer one; all could take gigabytes, or too many levels
            yield path + name
            yield from walk(child, "%s%s/" % (path, name))


def children(node: "Any") -> "Iterable[Tuple[str, Any]]":
    """(name, or index as str; child) for each child of a dict or a list; none for a leaf."""
    if isinstance(node, dict):
        return node.items()
    return ((str(index), item) for index, item in enumerate(node)) if isinstance(node, list) else ()


def format_text(node: "Any") -> str:
    """Return ``node`` as the service prints it with ``format=text``.

    A leaf is its value. A container is the names in it, one per line in alphabetical order, with a slash
    after the name of a container, and without a line end after the last (observed).
    """
    if not isinstance(node, (dict, list)):
        return leaf(node)
    listed = sorted(children(node)) if isinstance(node, dict) else children(node)
    return "\n".join(name + "/" * isinstance(child, (dict, list)) for name, child in listed)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def format_json(node: "Any", indent: "Optional[int]" = None) -> str:
    """Return ``node`` as the service prints JSON, minified and without escapes; with ``indent``, for people, unless
    it is deeper than MAX_DEPTH: json indents by recursion in Python, which has a limit."""
    if indent and not list(levels(node))[-1]:
        return json.dumps(node, ensure_ascii=False, indent=indent)
    return _encode(node)


def copied(node: "Any") -> "Any":
    """A copy of what JSON can hold, all the way down; tuples become lists."""
    return json.loads(json.dumps(node))


def load_json(data: bytes, load: "Callable[[str], Any]" = json.loads) -> "Any":
    """Parse JSON in UTF-8. Raises ValueError, also for too many containers, and for more than MAX_LEVELS in one
    another: at the limit of its recursion CPython before 3.9 may abort."""
    text = data.decode()
    count = text.count("[") + text.count("{")
    if count > MAX_LEVELS:
        brackets = re.sub(r"[^][{}]+", "", without_strings(text))
        depths = itertools.accumulate(1 if bracket in "[{" else -1 for bracket in brackets)
        if count > MAX_CONTAINERS or max(depths, default=0) > MAX_LEVELS:
            raise ValueError("more than %d containers are in one another, or %d in all" % (MAX_LEVELS, MAX_CONTAINERS))
    try:
        return load(text)
    except RecursionError:  # the caller is deep down already
        raise ValueError("too many containers are in one another") from None


def without_strings(text: str) -> str:
    """JSON without its strings, which may not even end."""
    return re.sub('"[^"]*"?', "", text.replace("\\\\", "").replace('\\"', ""))


def leaf(value: "Any") -> str:
    """A leaf as the service writes it: always a string, and empty when there is none (documented)."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- templates, and documents along them

Field = collections.namedtuple("Field", "kind default")  # of a leaf: how it is redacted, and what it is when absent
GA_VERSIONS = {version: row for version, row in sorted({**VERSIONS, **UNLISTED_VERSIONS}.items()) if version != PREVIEW}


def complete(document: "Any", *, is_plain: bool = False) -> "Dict[str, Any]":
    """Return a copy of ``document``, in the shape of ``/metadata/instance``, with every field of VERSIONS.

    A missing field gets its default, mostly ""; fields that no table knows are kept. If only one of ``tags``
    and ``tagsList`` is there, the other is made from it. Raises ValueError, which names the path, for a value
    of the wrong shape. ``is_plain``: it has passed check_plain() already.
    """
    if not is_plain:
        check_plain(document, "instance")
    completed = _shape(document, everything(), everything(), "instance")
    given, compute = (document or {}).get("compute") or {}, completed["compute"]
    if given.get("tags") is None:
        tags = sorted(compute["tagsList"], key=lambda tag: tag["name"].lower())  # by name (documented)
        compute["tags"] = ";".join("%(name)s:%(value)s" % tag for tag in tags)
    elif given.get("tagsList") is None:
        pairs = [pair.partition(":") for pair in compute["tags"].split(";") if pair]
        compute["tagsList"] = [{"name": name, "value": value} for name, _, value in pairs]
    return dict(completed)


def view(document: "Dict[str, Any]", version: str, extended: bool = False) -> "Dict[str, Any]":
    """Return ``document`` as an api-version shows it: without the fields that came later, in
    alphabetical order, and with ``extended`` only where it was asked for."""
    whole = everything()
    if version == PREVIEW:
        document, whole = _rename(document), _rename(whole)
    seen = dict(_shape(document, template(version), whole, "instance"))
    if not extended:
        seen.pop("extended", None)
    return seen


@functools.lru_cache(maxsize=None)
def template(version: str) -> "Dict[str, Any]":
    """The instance document of an api-version with a Field for every value, and one item in every list."""
    if version == PREVIEW:
        return dict(_rename(fields_until(FIRST_GA, VERSIONS)))
    return fields_until(version, GA_VERSIONS)


def everything() -> "Dict[str, Any]":
    """The template of the newest version of all."""
    return template(max(GA_VERSIONS))


def since(path: str) -> "Optional[str]":
    """The api-version that added the field at ``path`` ("compute/zone"), or None where no table knows it."""
    names = without_indexes(filter(None, path.split("/")))
    return next((version for version in GA_VERSIONS if has(template(version), names)), None)


def without_indexes(names: "Iterable[str]") -> "List[str]":
    """Names in a document as they are in a template, where a list has one item."""
    return ["0" if name.isdigit() else name for name in names]


def fields_until(version: str, rows: "Mapping[str, str]") -> "Dict[str, Any]":
    """The template of all rows up to ``version``."""
    return fields(" ".join(text for added, text in rows.items() if added <= version))


def fields(text: str) -> "Dict[str, Any]":
    """Parse one or more rows of VERSIONS, like 'a b{c:word} d[{e=0}]', into a template."""
    containers: "List[Dict[str, Any]]" = [{}]
    for name, opened, kind, default, odd in re.findall(r"(\w+)(?:(\[?{)|(?::(\w+))?(?:=(\w+))?)|}\]?|(\S+)", text):
        if odd:
            raise ValueError("%r is not a field, in %r" % (odd, text))
        if opened == "{":
            containers.append(containers[-1].setdefault(name, {}))
        elif opened == "[{":
            containers.append(containers[-1].setdefault(name, [{}])[0])
        elif name:
            containers[-1][name] = Field(kind, False if kind == "bool" else default)
        else:
            containers.pop()
    return containers[0]


def _shape(node: "Any", shown: "Any", whole: "Any", path: str) -> "Any":
    """``node`` with the names of the template ``shown``, in order, and any names that ``whole`` does not have."""
    if isinstance(shown, Field):
        if isinstance(node, (dict, list)):
            raise ValueError("%s must be a single value, not %s" % (path, kind_of(node)))
        if shown.kind == "bool":
            return node in (True, "true")
        return shown.default if node is None else leaf(node)
    kind = type(shown)
    node = check(kind() if node in (None, "") else node, kind, path)
    if kind is list:
        return [_shape(item, shown[0], whole[0], "%s.%d" % (path, index)) for index, item in enumerate(node)]
    shaped = {}
    for name in sorted(set(shown).union(set(node).difference(whole))):
        if name in shown:
            shaped[name] = _shape(node.get(name), shown[name], whole.get(name, shown[name]), "%s.%s" % (path, name))
        else:
            shaped[name] = _strings(node[name])
    return shaped


def _strings(node: "Any") -> "Any":
    """A part of a document that no table knows: in order, and every leaf a string."""
    if isinstance(node, dict):
        return {name: _strings(node[name]) for name in sorted(node)}
    return [_strings(item) for item in node] if isinstance(node, list) else leaf(node)


def _rename(node: "Any") -> "Any":
    """A document or a template with the names of the preview."""
    if isinstance(node, dict):
        return {PREVIEW_NAMES.get(name, name): _rename(child) for name, child in node.items()
                if PREVIEW_NAMES.get(name) not in node}  # which it may have already
    return [_rename(item) for item in node] if isinstance(node, list) else node


# --- checks, times and ids

def kind_of(node: "Any") -> str:
    return "an object" if isinstance(node, dict) else "a list" if isinstance(node, list) else repr(node)


def check(node: "Any", kind: type, path: str) -> "Any":
    """Return ``node`` if it is a ``kind``; else raise ValueError, which names ``path``."""
    if not isinstance(node, kind) or isinstance(node, bool):  # which is an int to Python
        names = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}
        raise ValueError("%s must be %s, not %s" % (path, names[kind], kind_of(node)))
    return node


def levels(node: "Any") -> "Iterator[List[Any]]":
    """Yield the nodes at each level, from the top to MAX_DEPTH below it; any at the last are too deep."""
    level = [node]
    for _ in range(MAX_DEPTH + 1):
        yield level
        level = [child for each in level if isinstance(each, (dict, list)) for _, child in children(each)]


def check_plain(node: "Any", what: str) -> None:
    """Raise ValueError unless ``node`` can be written as JSON and read again everywhere."""
    for level in levels(node):
        if not all(isinstance(name, str) for each in level if isinstance(each, dict) for name in each):
            raise ValueError("%s can't be written as JSON: a name in it is not a string" % what)
    if level:
        raise ValueError("%s can't be written as JSON: more than %d containers are in one another" % (what, MAX_DEPTH))
    try:
        json.dumps(node, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise ValueError("%s can't be written as JSON: %s" % (what, error)) from None


def known(name: "Any", names: "Iterable[str]", kind: str) -> str:
    """``name``, if it is one of ``names``; else a ValueError that suggests the right one."""
    names = list(names)
    if isinstance(name, str) and name in names:
        return name
    nearest = nearest_of(str(name), names, 0.5)
    listed = names if len(names) <= 24 else names[:3] + ["..."] + names[-3:]
    raise ValueError("there is no %s %r; %s" % (
        kind, name, "did you mean %s?" % nearest if nearest else "there are " + ", ".join(listed)))


def parse_time(text: str) -> "Optional[float]":
    """Return seconds since 1970 for a NotBefore, in RFC 1123 (the service) or ISO 8601 (Azure's own mock); None for "".
    Raises ValueError for other text, and for times before 1970 or after 9999."""
    import datetime
    import email.utils

    if not text:
        return None
    found = re.match(r"(\d{4})-?(\d\d)-?(\d\d)[T ](\d\d):?(\d\d)(?::?(\d\d)(?:\.\d+)?)?"
                     r"(?:Z|([+-])(\d\d):?(\d\d))?\Z", text, re.A)
    try:
        if found:
            *numbers, sign, hours, minutes = found.groups("0")
            offset = (int(hours) * 3600 + int(minutes) * 60) * (-1 if sign == "-" else 1)
        else:  # parsedate_tz() alone would take much that is no time
            parsed: "Any" = email.utils.parsedate_tz(text) if re.match(r"[\w:,+ -]{1,40}\Z", text, re.A) else None
            numbers, offset = parsed[:6], parsed[9] or 0
        year, month, day, hour, minute, second = map(int, numbers)
        moment = datetime.datetime(year, month, day, hour, minute, second) - datetime.timedelta(seconds=offset)
        seconds = (moment - datetime.datetime(1970, 1, 1)) // datetime.timedelta(seconds=1)
        if seconds >= 0:
            return seconds
    except (ValueError, OverflowError, TypeError, IndexError):
        pass
    raise ValueError("%r is not a time between 1970 and 9999" % (text,))


@functools.lru_cache(maxsize=64)  # many answers are of one second
def http_date(seconds: float) -> str:
    """Seconds since 1970 as HTTP and the service write a time."""
    from email.utils import formatdate

    return formatdate(int(seconds), usegmt=True)


def guid(*words: str) -> str:
    """A GUID made of ``words``, the same each time."""
    import uuid

    return str(uuid.uuid5(uuid.UUID(DEFAULT_TENANT), "/".join(words)))


# ==================================================================================================
# Room 3: documents
#
# What a VM is made of; knows the core. A VM is an instance document, or an object with that and the
# other PARTS. Each built-in VM is a row of PROFILES; "scaleset" stands for all VMs of its scale set.
# Every part is checked before it is served, so the service can trust it. redact() walks a VM along the
# templates: the kind of a field says what replaces its value. What no table knows is replaced as well,
# even the name of the field.
# ==================================================================================================

# The built-in VMs. `linux` and `windows` are the samples of the 2018 document with what it masks (addresses,
# ids) filled in from the ranges for documentation. `place`: the location as physicalZone has it; `domain`: fault and
# update domain; `image`: publisher, offer, sku, version; `disk`: GB and account type of the OS disk, MB of the
# temporary one; `data`: GB and caching of each data disk; `interfaces`: private addresses, public address, subnet,
# prefix, MAC; `more` is merged into `compute`.
Profile = collections.namedtuple("Profile", """
    name computer group resource location place zone domain size system image disk data vm_id interfaces more""")
PROFILES = {
    "linux": Profile(
        name="avset2", computer="avset2", group="myrg", resource="virtualMachines/avset2", location="westus",
        place="uswest", zone="1", domain="1", size="Standard_D1", system="Linux",
        image=("Canonical", "UbuntuServer", "16.04-LTS", "16.04.201708030"),
        disk=("30", "Standard_LRS", "51200"), data=(), vm_id="13f56399-bd52-4150-9748-7190aae1ff21",
        interfaces=((("10.1.2.5",), "203.0.113.5", "10.1.2.0", "24", 0x000D3A36DDED),), more={}),
    "windows": Profile(
        name="SQLTest", computer="SQLTest", group="myrg", resource="virtualMachines/SQLTest", location="westus",
        place="uswest", zone="", domain="0", size="Standard_DS2", system="Windows",
        image=("MicrosoftSQLServer", "SQL2016SP1-WS2016", "Enterprise", "13.0.400110"),
        disk=("127", "Premium_LRS", "14336"), data=(), vm_id="453945c8-3923-4366-b2d3-ea4c80e9b70e",
        interfaces=((("10.0.1.4",), "203.0.113.6", "10.0.1.0", "24", 0x002248020E1E),),
        more={"licenseType": "Windows_Server"}),
    "scaleset": Profile(
        name="web_1", computer="web000001", group="web", resource="virtualMachineScaleSets/web/virtualMachines/1",
        location="westeurope", place="europewest", zone="2", domain="1", size="Standard_D2s_v3", system="Linux",
        image=("canonical", "0001-com-ubuntu-server-jammy", "22_04-lts-gen2", "22.04.202510020"),
        disk=("30", "Premium_LRS", "16384"), data=(("256", "None"), ("1024", "ReadOnly")),
        vm_id="1da71a3d-9b58-4520-abce-552bb5cfbd51",
        interfaces=((("10.2.0.5",), "203.0.113.7", "10.2.0.0", "22", 0x002248A1B2C3),
                    (("10.2.8.6", "10.2.8.7"), "", "10.2.8.0", "21", 0x002248A1B2C4)),
        more={"isHostCompatibilityLayerVm": "true", "placementGroupId": "7a9f84b0-f870-4ce6-8a4e-2e8932afc298",
              "securityProfile": {"secureBootEnabled": "true", "securityType": "TrustedLaunch",
                                  "virtualTpmEnabled": "true"},
              "tagsList": [{"name": "Department", "value": "IT"}, {"name": "Environment", "value": "Test"},
                           {"name": "Role", "value": "web"}],
              "vmScaleSetName": "web"}),
}
SAMPLE_SUBSCRIPTION = "8d10da13-8125-4ba9-a717-bf7490507b3d"
SAMPLE_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIELgzMWJvdBFTqZbaox0OkkEF8BublFopQicU9X/aEAY azureuser"
PHYSICAL_ZONES = {"1": "AZ01", "2": "AZ03", "3": "AZ02"}  # by zone; another for each subscription


def make_vm(profile: str = "linux", *, number: "Optional[int]" = None) -> "Dict[str, Any]":
    """Return the instance document of a built-in VM: "linux", "windows" or "scaleset".

    ``number``, an int from 0 to 999, is for "scaleset": which of its VMs. Each has its own name, ids, addresses,
    domains and zone, as Azure numbers them. None: number 1. Raises ValueError.
    """
    row = PROFILES[known(profile, PROFILES, "profile")]
    if number is not None:
        row = _instance_of(row, check(number, int, "number"))
    image, version = dict(zip(IMAGE_WORDS, row.image)), row.image[-1]
    disk_gb, account, temporary_mb = row.disk
    resource_id = "/subscriptions/%s/resourceGroups/%%s/providers/Microsoft.Compute/%%s" % SAMPLE_SUBSCRIPTION
    is_linux = row.system == "Linux"

    def disk(suffix: str, gigabytes: str, caching: str, **more: str) -> "Dict[str, Any]":
        group = row.group.upper() if "Set" in row.resource else row.group  # upper case: observed
        return dict(more, caching=caching, diskSizeGB=gigabytes, name=row.name + suffix, managedDisk={
            "id": resource_id % (group, "disks/" + row.name + suffix), "storageAccountType": account})

    compute = {
        **image, "azEnvironment": "AzurePublicCloud", "location": row.location, "name": row.name,
        "osProfile": {"adminUsername": "azureuser", "computerName": row.computer,
                      "disablePasswordAuthentication": "true" if is_linux else ""}, "osType": row.system,
        "physicalZone": "%s-%s" % (row.place, PHYSICAL_ZONES[row.zone]) if row.zone else "",
        "platformFaultDomain": row.domain, "platformUpdateDomain": row.domain, "provider": "Microsoft.Compute",
        "publicKeys": [{"keyData": SAMPLE_KEY, "path": "/home/azureuser/.ssh/authorized_keys"}] if is_linux else [],
        "resourceGroupName": row.group, "resourceId": resource_id % (row.group, row.resource),
        "storageProfile": {
            "dataDisks": [disk("_data_%d" % lun, gigabytes, caching, createOption="Empty", lun=str(lun),
                               bytesPerSecondThrottle="979202048", diskCapacityBytes=str(int(gigabytes) << 30),
                               opsPerSecondThrottle="65280")
                          for lun, (gigabytes, caching) in enumerate(row.data)],
            "imageReference": dict(image, exactVersion=version, version="latest"),
            "osDisk": disk("_OsDisk_1", disk_gb, "ReadWrite", createOption="FromImage", osType=row.system),
            "resourceDisk": {"size": temporary_mb},
        },
        "subscriptionId": SAMPLE_SUBSCRIPTION, "version": version, "vmId": row.vm_id, "vmSize": row.size,
        "zone": row.zone,
    }
    return complete({
        "compute": merge_patch(compute, row.more),
        "extended": {"compute": {"hasCustomData": False, "ppsType": "None"}},
        "network": {"interface": [{
            "ipv4": {"ipAddress": [{"privateIpAddress": each, "publicIpAddress": public} for each in addresses],
                     "subnet": [{"address": subnet, "prefix": prefix}]},
            "macAddress": "%012X" % mac,
        } for addresses, public, subnet, prefix, mac in row.interfaces]},
    }, is_plain=True)


def _instance_of(row: "Profile", number: int) -> "Profile":
    """Another instance of the scale set that ``row`` is number 1 of."""
    import ipaddress

    if "Set" not in row.resource:
        raise ValueError("only instances of the scale set have a number, and %s is no instance" % row.name)
    if not 0 <= number < 1000:
        raise ValueError("an instance has a number from 0 to 999, not %r" % number)
    step, digits = number - 1, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return row._replace(
        name=row.name[:-1] + str(number),
        computer=row.computer[:-2] + digits[number // 36] + digits[number % 36],  # Azure counts in base 36
        resource=row.resource[:-1] + str(number), zone=str(number % 3 + 1), domain=str(number % 5),
        vm_id=row.vm_id if step == 0 else guid(row.vm_id, str(number)),
        interfaces=tuple(
            (tuple(str(ipaddress.ip_address(each) + step * len(addresses)) for each in addresses),
             str(ipaddress.ip_address(public) + step) if public and number < 248 else "",
             subnet, prefix, mac + 2 * step)
            for addresses, public, subnet, prefix, mac in row.interfaces))


# --- parts, and checks by part

NO_VM = "%s is not a VM: save the whole of what /metadata/instance returns, or of what snapshot prints"


def split_document(document: "Any") -> "Dict[str, Any]":
    """Return the PARTS of a whole VM, or of an instance document alone, by name and checked. A missing part is
    None, a missing instance {}. Raises ValueError."""
    check(document, dict, "instance")
    check_plain(document, "it")
    parts: "Dict[str, Any]" = dict(dict.fromkeys(PARTS), **given_parts(document))
    parts["instance"] = {} if parts["instance"] is None else parts["instance"]
    for name, check_part in CHECKS.items():
        if parts[name] is not None:
            check_part(check(parts[name], dict, name))
    return parts


def given_parts(document: "Mapping[str, Any]") -> "Mapping[str, Any]":
    """The parts of a whole VM that are there, or of an instance document alone. Raises ValueError."""
    parts = document if set(PARTS).intersection(document) else {"instance": document}
    unknown = sorted(set(parts).difference(PARTS))
    if unknown:
        raise ValueError("a VM has %s, not %s" % (", ".join(PARTS), ", ".join(unknown)))
    return parts


def check_event(event: "Any", where: str = "the event") -> None:
    """Raise ValueError for a wrong type, no EventId, or a NotBefore that is no time."""
    check(event, dict, where)
    for name, field in EVENT_FIELDS.items():
        value = check(event.get(name, field.type(field.default)), field.type, "%s.%s" % (where, name))
        for text in value if field.type is list else [str(value)]:
            if re.search("[\ud800-\udfff]", check(text, str, "%s.%s" % (where, name))):
                raise ValueError("%s.%s holds half a character" % (where, name))
    if not event.get("EventId"):
        raise ValueError("%s.EventId must be there" % where)
    parse_time(event.get("NotBefore", ""))


def check_events(document: "Mapping[str, Any]") -> None:
    """Raise ValueError unless ``document`` is a list of scheduled events."""
    check(document.get("DocumentIncarnation", 1), int, "scheduledevents.DocumentIncarnation")
    seen = set()
    for at, event in enumerate(check(document.get("Events", []), list, "scheduledevents.Events")):
        where = "scheduledevents.Events.%d" % at
        known(check(event, dict, where).get("EventType"), EVENT_TYPES, "EventType")
        check_event(event, where)
        known(event.get("EventStatus", "Scheduled"), ("Scheduled", "Started"), "EventStatus")
        if event["EventId"].upper() in seen:
            raise ValueError("%s.EventId must be there once only, in whatever case" % where)
        seen.add(event["EventId"].upper())


IDENTITY_KEYS = {"name": "name", "client_id": "clientId", "object_id": "objectId", "resource_id": "resourceId"}
IDENTITY_FORM = "'system', 'user:NAME' or 'user:NAME,client_id=...,object_id=...,resource_id=...'"


def read_identity(spec: "Any") -> "Dict[str, str]":
    """Return an identity as its user gives it: a dict with some of type, name, clientId, objectId, resourceId.
    ``spec`` is such a dict, or text like IDENTITY_FORM. Raises ValueError."""
    if isinstance(spec, str):
        kind, _, rest = spec.partition(":")
        words = rest.split(",") if kind == "user" or kind == "system" and rest else []
        pairs = [("type", kind)]
        if kind == "user":
            pairs.append(("name", words.pop(0)))
            if re.search("[:=/]", pairs[-1][1]):
                raise ValueError("an identity is %s, not %r" % (IDENTITY_FORM, spec))
        for word in words:
            key, _, value = word.partition("=")
            pairs.append((known(key, list(IDENTITY_KEYS)[1:], "key of an identity"), value))
    else:
        pairs = list({"type": "user", **check(spec, dict, "an identity")}.items())
    said: "Dict[str, Any]" = {}
    for key, value in pairs:
        field = known(IDENTITY_KEYS.get(key, key), ["type", *IDENTITY_KEYS.values()], "key of an identity")
        if field in said:
            raise ValueError("%s is given twice in %r" % (key, spec))
        said[field] = value
    check_plain(said, "an identity")
    for key, value in said.items():
        if not check(value, str, "identity." + key):
            raise ValueError("%s of an identity is empty, in %r" % (key, spec))
    if said["type"] not in ("system", "user") or said["type"] == "user" and len(said) == 1:
        raise ValueError("an identity is %s, not %r" % (IDENTITY_FORM, spec))
    return said


def check_identity(document: "Mapping[str, Any]") -> None:
    """Raise ValueError unless ``document`` is an identity part."""
    check(document.get("tenantId", ""), str, "identity.tenantId")
    check_identities(check(document.get("identities", []), list, "identity.identities"))


def check_identities(specs: "Iterable[Any]") -> "List[Dict[str, str]]":
    """Return read_identity() of each. Raises ValueError, also where a request could not tell two apart."""
    identities = [read_identity(spec) for spec in ([specs] if isinstance(specs, (str, dict)) else specs)]
    for key in IDENTITY_KEYS.values():
        values = [each[key].lower() for each in identities if key in each]
        if len(set(values)) < len(values):
            raise ValueError("two identities have the same %s" % key)
    if sum(each["type"] == "system" for each in identities) > 1:
        raise ValueError("a VM has one system-assigned identity at most")
    return identities


def full_identity(said: "Mapping[str, str]", compute: "Mapping[str, str]") -> "Dict[str, str]":
    """Return type, clientId, objectId and resourceId of a VM's identity; ids not given are made from other ids."""
    is_system = said["type"] == "system"
    name = said.get("name") or said.get("clientId") or said.get("objectId", "")
    resource_id = said.get("resourceId") or (compute["resourceId"] if is_system else (
        "/subscriptions/%s/resourceGroups/%s/providers/Microsoft.ManagedIdentity/userAssignedIdentities/%s"
        % (compute["subscriptionId"], compute["resourceGroupName"], name)))
    seed = without_instance(resource_id).lower()  # all VMs that share this identity have the same ids
    if seed == compute["resourceId"].lower():
        seed = compute["vmId"]  # the identity of one VM goes with it: another VM of that name has other ids
    return {"type": said["type"], "clientId": said.get("clientId") or guid(seed, "client"),
            "objectId": said.get("objectId") or guid(seed, "object"), "resourceId": resource_id}


def without_instance(resource_id: str) -> str:
    """The resource id of the scale set whose VM, in uniform orchestration, has this one; any other id as it is."""
    return re.sub("(?i)(/virtualMachineScaleSets/[^/]+)/virtualMachines/[^/]+$", r"\1", resource_id)


def read_balance(document: "Mapping[str, Any]") -> "Dict[str, Any]":
    """Return what is in the document of a load balancer, or was given without its frame, in the order of the wire.
    Raises ValueError."""
    rules, lists = check(document.get("loadbalancer", document), dict, "loadbalancer"), {}
    for name, [row] in fields(BALANCE).items():
        where = "loadbalancer." + name
        lists[name] = [{key: rule[key] for key in (*row, *check(rule, dict, where)) if key in rule}
                       for rule in check(rules.get(name, []), list, where)]
    return {**lists, **rules, **lists}  # the names in this order, whatever the document's


CHECKS: "Dict[str, Callable[[Mapping[str, Any]], Any]]" = {
    "scheduledevents": check_events, "identity": check_identity, "loadbalancer": read_balance,
    "attested": lambda document: [check(document.get(name), str, "attested." + name)
                                  for name in ("encoding", "signature")],
}


def sample_balance(instance: "Mapping[str, Any]") -> "Dict[str, Any]":
    """A public load balancer in front of the first address of a VM."""
    addresses = [address["privateIpAddress"] for interface in instance["network"]["interface"]
                 for address in interface["ipv4"]["ipAddress"]]
    front, back = "203.0.113.10", addresses[0] if addresses else "10.0.0.4"
    both = {"frontendIpAddress": front, "privateIpAddress": back}
    rule = {"frontendIpAddress": front, "protocol": "tcp", "frontendPort": 443, "backendPort": 8443,
            "privateIpAddress": back}
    return {"publicIpAddresses": [both], "inboundRules": [rule], "outboundRules": [both]}


# --- changes, differences, misspellings

def as_object(node: "Any") -> "Dict[str, Any]":
    """``node``, or {} if it is no object."""
    return node if isinstance(node, dict) else {}


def merge_patch(target: "Any", patch: "Any") -> "Any":
    """Return ``target`` changed by a JSON merge patch (RFC 7386); neither of the two is altered."""
    if not isinstance(patch, dict):
        return patch
    result = dict(as_object(target))
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


def change(instance: "Mapping[str, Any]", patch: "Any") -> "Dict[str, Any]":
    """A complete instance document changed by a merge patch, and complete again. Raises ValueError."""
    check_plain(check(patch, dict, "the patch"), "the patch")
    return _completed(merge_patch(instance, patch), as_object(patch.get("compute")))


def _completed(changed: "Any", names: "Iterable[str]") -> "Dict[str, Any]":
    """Return ``changed``, complete again. ``names`` are the fields of ``compute`` that were set; if only one of
    ``tags`` and ``tagsList`` is among them, the other is made from it."""
    for one, other in (("tags", "tagsList"), ("tagsList", "tags")):
        if one in names and other not in names:
            changed["compute"].pop(other, None)
    return complete(changed)


def assign(instance: "Mapping[str, Any]", name: str, text: str) -> "Dict[str, Any]":
    """Return a complete instance document with the value called ``name`` ("compute.vmSize",
    "network.interface.0.macAddress") set; an object or a list is given as JSON. Raises ValueError for a name
    that is not there."""
    names = [part for part in name.replace(".", "/").split("/") if part]
    if not names:
        raise ValueError("which value is to be set to %r?" % text)
    changed = copied(instance)
    try:
        parent, old = find(changed, names[:-1]), find(changed, names)
    except KeyError:
        raise ValueError(_no_such_value(instance, name, names)) from None
    value: "Any" = text
    if isinstance(old, (dict, list)):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, type(old)):
            raise ValueError("%s is %s: give it as JSON, or set a value in it" % (name, kind_of(old)))
    parent[int(names[-1]) if isinstance(parent, list) else names[-1]] = value
    return _completed(changed, names[1:2] if names[0] == "compute" else ())


def _no_such_value(instance: "Any", name: str, names: "List[str]") -> str:
    """Why ``name`` can't be set, and what could be."""
    there = max(end for end in range(len(names)) if has(instance, names[:end]))
    node, path = find(instance, names[:there]), ".".join(names[:there])
    if isinstance(node, list):
        return "%s has %d items; to have more, set %s to a list, as JSON" % (path, len(node), path)
    nearest = (suggest(instance, "/".join(names)) or "").replace("/", ".")
    return "there is no %r%s" % (name, "; did you mean %s?" % nearest if nearest else "")


def misspelled(node: "Any", shown: "Any", path: str = "") -> "Iterator[Tuple[str, str]]":
    """Yield (path, the name that was meant) for each field of ``node`` that the template ``shown`` does not know, and
    whose name is nearly a known one."""
    for name, child in children(node):
        inner = shown[0] if isinstance(shown, list) else shown.get(name)
        if inner is None:
            nearest = nearest_of(name, shown, 0.75)
            if nearest:
                yield path + name, nearest
        elif not isinstance(inner, Field):
            yield from misspelled(child, inner, path + name + ".")


def diff(before: "Any", after: "Any", *, path: str = "") -> "Iterator[Tuple[str, Any, Any]]":
    """Yield (path, value before, value after) for each place where two documents differ. A path is a str like
    "compute/name"; a missing value is None."""
    if isinstance(before, list) and isinstance(after, list):
        before, after = dict(children(before)), dict(children(after))
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(set(before).union(after)):
            yield from diff(before.get(name), after.get(name), path=path + "/" + name if path else name)
    elif before != after or type(before) is not type(after):  # True == 1
        yield path, before, after


# --- redaction

# Values of the kind `word` that the platform sets, not a user, in lower case. Numbers are public there, too.
PUBLIC_WORDS = frozenset("""
    true false linux windows microsoft.compute azurestack ussec usnat none readonly readwrite fromimage empty attach
    copy restore upload import standard_lrs standard_zrs standardssd_lrs standardssd_zrs premium_lrs premium_zrs
    premiumv2_lrs ultrassd_lrs local cachedisk resourcedisk nvmedisk trustedlaunch confidentialvm standard regular low
    spot deallocate delete edgezone windows_client windows_server rhel_byos rhel_base rhel_eus rhel_els_6 rhel_sapapps
    rhel_sapha rhel_basesapapps rhel_basesapha sles_byos sles sles_standard sles_sap sles_hpc ubuntu ubuntu_pro savable
    running runninguser unknown preprovisionedosdisk virtualmachine scheduled started platform user system tcp udp icmp
    all internal external vxlan
    """.split() + [each.lower() for each in (*CLOUDS, *EVENT_TYPES)])
REGIONS = frozenset("""
    asiaeast asiasoutheast australiacentral australiacentral2 australiaeast australiasoutheast austriaeast
    belgiumcentral brazilsouth brazilsoutheast brazilus canadacentral canadaeast centralindia centralus
    centraluseuap chilecentral chinaeast chinaeast2 chinaeast3 chinanorth chinanorth2 chinanorth3 denmarkeast
    eastasia eastus eastus2 eastus2euap eastus3 europenorth europewest finlandcentral francecentral francesouth
    germanycentral germanynorth germanynortheast germanywestcentral greececentral indiacentral indiasouthcentral
    indonesiacentral israelcentral israelnorthwest italynorth japaneast japanwest jioindiacentral jioindiawest
    koreacentral koreasouth malaysiawest mexicocentral newzealandnorth northcentralus northeurope norwayeast
    norwaywest polandcentral qatarcentral saudiarabiaeast southafricanorth southafricawest southcentralus
    southcentralus2 southeastasia southindia spaincentral swedencentral swedensouth switzerlandnorth switzerlandwest
    taiwannorth taiwannorthwest uaecentral uaenorth uksouth ukwest uscentral usdodcentral usdodeast useast useast2
    usgovarizona usgoviowa usgovtexas usgovvirginia usnateast usnatwest usseceast ussecwest ussecwestcentral ussouth
    uswest uswest2 uswest3 westcentralus westeurope westindia westus westus2 westus3
    """.split())
IMAGE_WORDS = ("publisher", "offer", "sku")
# Who publishes images for everybody. The name of any other image could tell whose VM it is.
PUBLISHERS = frozenset("""
    almalinux azuredatabricks azureopenshift canonical center-for-internet-security-inc coreos credativ debian
    erockyenterprisesoftwarefoundationinc1653071250513 kali-linux kinvolk microsoft-ads microsoft-aks
    microsoft-azure-batch microsoft-dsvm microsoft-hpc microsoftazuresiterecovery microsoftbiztalkserver
    microsoftcblmariner microsoftdynamicsax microsoftostc microsoftrserver microsoftsharepoint microsoftsqlserver
    microsoftvisualstudio microsoftwindowsdesktop microsoftwindowsserver microsoftwindowsserverhpcpack
    microsoftwindowsserverremotedesktop nvidia openlogic oracle redhat redhat-limited resf suse thefreebsdfoundation
    """.split())
RESOURCE_TYPES = frozenset("""
    artifacttypes availabilitysets capacityreservationgroups communitygalleries diskencryptionsets disks extensions
    galleries hostgroups hosts images keys loadbalancers locations networkinterfaces offers providers
    proximityplacementgroups publicipaddresses publishers resourcegroups secrets sharedgalleries skus snapshots
    storageaccounts subnets subscriptions userassignedidentities vaults versions virtualmachines virtualmachinescalesets
    virtualnetworks""".split())
RESOURCE_PROVIDERS = frozenset(
    "microsoft.compute microsoft.keyvault microsoft.managedidentity microsoft.network microsoft.storage".split())
PUBLIC_FOLDERS = frozenset(["home", "Users", "root", "var", "lib", "etc", "ssh", ".ssh", "authorized_keys"])
VM_SIZE = (r"(?i)(?:Basic|Standard)_(?:A|B|DC?|DS|EC?|FX?|GS?|H|HB|HC|HX|L|LS|M|NCC?|ND|NG|NM|NP|NV|PB)[0-9]{1,4}"
           r"(?:-[0-9]{1,3})?[abdefilmnoprstx]{0,6}(?:_(?:cc|HPN|(?:flex_)?(?:[AHTV][0-9]{1,3}|MI300X)|GH200|MA35D"
           r"|(?:NDR_)?GB[23]00|xl_RTXPRO6000BSE|[0-9]{1,2}))?(?:_v[0-9]{1,2})?(?:_Promo)?\Z")
GUID = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\Z"
DISK_NAME = (r"(?is)(.+?)((?:_OsDisk|_DataDisk|_disk)_[0-9]{1,3}|_disk[0-9]{1,2}"
             r"|(?:_lun_[0-9]{1,2})?_[0-9]{1,3}(?=_))(?:_([0-9a-f]{32}))?\Z")
# What Azure appends to the name of a scale set: a number, or eight digits if the set is a flexible one.
IN_SET = r"(?ai)(%(set)s_)?%(set)s(?:(_[0-9]{1,5}|00[0-2][0-9A-Z]{3})|_([0-9a-f]{8}))\Z"
PRIVATE_PREFIXES = {0xFC: "fd00", 0xFD: "fd00", 0xFE: "fe80"}  # of IPv6 addresses, by the first byte
PRIVATE_ADDRESS = r"10\.|127\.|169\.254\.|172\.(?:1[6-9]|2\d|3[01])\.|192\.168\."  # without those of documentation


def redact(vm: "Mapping[str, Any]") -> "Dict[str, Any]":
    """Return a whole VM (of an instance document: with that part alone) in which a stand-in of the same form
    replaces all that no table calls public; equal values of one kind get the same stand-in. The attested document
    is left out: its signature can't be redacted. Raises ValueError."""
    check_plain(check(vm, dict, "the VM"), "the VM")
    parts = given_parts(copied(vm))
    redactor = _Redactor(parts)
    return {part: redactor.clean(parts[part], everything() if part == "instance" else fields(PARTS[part]))
            for part in PARTS if part in parts and part != "attested"}


class _Redactor:
    """Stand-ins for the values of one VM: a method for each KIND of a field except `bool`; value() also for what no
    table knows."""

    def __init__(self, parts: "Mapping[str, Any]") -> None:
        self._numbers: "Dict[str, Dict[str, int]]" = {}  # kind -> value -> the number of its stand-in
        self._networks: "Dict[Any, Any]" = {}  # subnet -> its stand-in
        self._next_network = 0x0A100000  # 10.16.0.0
        compute = as_object(as_object(parts.get("instance")).get("compute"))
        self._published = _published(compute)
        scale_set = compute.get("vmScaleSetName")
        self._set = scale_set if isinstance(scale_set, str) else ""
        self._listed_tags = compute.get("tagsList", ())
        self._place(parts.get("instance"), everything())  # first, for address() needs it
        self._prefixes = sorted({network.prefixlen for network in self._networks}, reverse=True)

    def clean(self, node: "Any", shown: "Any") -> "Any":
        """``node`` redacted along the template ``shown`` (None: no table knows it)."""
        if isinstance(node, dict):
            inner = as_object(shown)
            network = self._networks.get(_network(node) if "prefix" in inner else None)
            return {name if name in inner else self.number("field", name):
                    str(network.network_address) if network and name == "address" else
                    self.clean(child, inner.get(name)) for name, child in node.items()}
        if isinstance(node, list):
            item = shown[0] if isinstance(shown, list) else shown if isinstance(shown, Field) else None
            return [self.clean(child, item) for child in node]
        if node is None or node == "" or isinstance(node, bool):
            return node
        if isinstance(shown, dict) and isinstance(node, str) and "clientId" in shown:  # an identity as text
            kind, colon, rest = node.partition(":")
            words = []
            for word in rest.split(","):
                key, equals, value = word.partition("=")
                is_pair = equals and key in shown
                words.append(key + "=" + self.clean(value, shown[key]) if is_pair else self.clean(word, shown["name"]))
            return ("user" if kind == "user" else "system") + colon + ",".join(words)
        kind = shown.kind if isinstance(shown, Field) else "value"
        if kind == "bool":
            return node in (True, "true")
        most = {"count": 10**15, "word": 1000}.get(kind, -1)  # below this, the platform set it
        if isinstance(node, int) and -1 <= node < most:
            return node
        if not isinstance(node, str):
            first = max(most, 1000)
            return type(node)(first + int(self.number("from %d" % first, str(node), "%d")))
        return str(getattr(self, kind)(node))

    def number(self, kind: str, value: str, form: str = "") -> str:
        """The stand-in of a value: its number among the values of its kind, in ``form``."""
        numbers = self._numbers.setdefault(kind, {})
        return (form or kind + "%d") % numbers.setdefault(value, len(numbers) + 1)

    def word(self, value: str) -> str:
        return value if value.lower() in PUBLIC_WORDS or re.match(r"(-1|[0-9]{1,3})\Z", value) else self.value(value)

    def count(self, value: str) -> str:
        return value if re.match(r"(-1|0|[1-9][0-9]{0,14})\Z", value) else self.value(value)

    def value(self, value: str) -> str:
        return self.name(value) if re.match(GUID, value) else self.number("value", value)

    def tag(self, value: str) -> str:
        return self.number("tag", value.lower())

    def tags(self, value: str) -> str:
        """Only tagsList tells where each begins: a value may have a semicolon in it, and a name a colon."""
        pairs = [pair.partition(":") for pair in value.split(";")]
        try:
            listed = [(tag["name"], ":", tag["value"]) for tag in self._listed_tags]
            if value == ";".join(map("".join, listed)):
                pairs = listed
        except (KeyError, TypeError):  # a user's own
            pass
        return ";".join((tag and self.tag(tag)) + colon + (value and self.value(value)) for tag, colon, value in pairs)

    def image(self, value: str) -> str:
        is_public = value == "latest" or value.lower() in self._published
        return value if is_public else self.number("image", value.lower())

    def version(self, value: str) -> str:
        return value if re.match(r"[0-9]+(?:\.[0-9]+){1,4}\Z", value) else self.image(value)

    def region(self, value: str) -> str:
        """Keep the zone of a physical zone, like "uswest-AZ01"."""
        zone = value[-5:] if re.match(r"-AZ[0-9]{2}\Z", value[-5:]) else ""
        region = value[:len(value) - len(zone)].lower().replace(" ", "")
        return value if region in REGIONS else self.number("region", region) + zone

    def size(self, value: str) -> str:
        return value if re.match(VM_SIZE, value) else self.value(value)

    def name(self, value: str) -> str:
        """A name to which Azure appends nothing. Keep the case of a GUID."""
        if re.match(GUID, value):
            text = self.number("guid", value.lower(), "00000000-0000-4000-8000-%012x")
            return text.upper() if value.isupper() else text
        return self.number("name", value.lower() + "/" + value.upper())  # some letters have two lower cases

    def numbered(self, value: str) -> str:
        """The name of a VM or of a disk. Keep what Azure appends: in web_1, web00000A and web_OsDisk_1_HEX only "web"
        and HEX are replaced. After the name of the VM's scale set, numbers may be longer."""
        disk = re.match(DISK_NAME, value)
        of_vm, suffix, code = disk.groups("") if disk else (value, "", "")
        return self._own_name(of_vm) + suffix + (code and self.number("hex", code.lower(), "_%032x"))

    def _own_name(self, value: str) -> str:
        if re.match(GUID, value):
            return self.name(value)
        in_set = self._set and re.match(IN_SET % {"set": re.escape(self._set)}, value)
        if in_set:  # Azure puts the name of the set before those of its disks once more
            name, (again, suffix, code) = self.name(self._set), in_set.groups("")
            return (name + "_" if again else "") + name + suffix + (code and self.number("code", code.lower(), "_%08x"))
        found = re.match(r"(?is)(.+?)(_[0-9]{1,3}|0000[0-9A-Z]{2})\Z", value)
        base, suffix = found.groups() if found and not found.group(1).isdigit() else (value, "")
        return self.name(base) + suffix

    guid = name  # either may stand where the other is expected

    def id(self, value: str) -> str:
        """A resource id is types and names in turn, where "providers" is followed by a namespace. Redact all else
        as a name."""
        words, kind, in_set = value.split("/"), "", False
        replaced = {"locations": self.region, "virtualmachines": self.numbered, "disks": self.numbered}
        if words[0]:
            return self.name(value)
        for at, word in enumerate(words):
            if kind:
                public = (kind == "providers" and word.lower() in RESOURCE_PROVIDERS
                          or kind == "versions" and re.match(r"(?:latest|[0-9]+(?:\.[0-9]+){1,3})\Z", word)
                          or kind == "virtualmachines" and in_set and re.match(r"[0-9]{1,5}\Z", word))
                words[at] = word if public or not word else replaced.get(kind, self.name)(word)
                kind, in_set = "", kind == "virtualmachinescalesets"
            elif word.lower() in RESOURCE_TYPES:
                kind = word.lower()
            else:
                words[at] = word and self.name(word)
        return "/".join(words)

    def url(self, value: str) -> str:
        return self.number("url", value, "https://redacted.example/%d")

    def file(self, value: str) -> str:
        words, is_user = value.split("/"), False
        for at, word in enumerate(words):
            if word:
                words[at] = word if word in PUBLIC_FOLDERS and not is_user else self.name(word)
                is_user = word in ("home", "Users") and not is_user  # the next, though it may be called like a folder
        return "/".join(words)

    def key(self, value: str) -> str:
        """An SSH key that nobody has. Keep its line breaks, which some who read it stumble over."""
        import hashlib

        words = value.split()
        first, *more = re.split(r"([^\S \t]+)", value.strip(), maxsplit=1)  # more: a line break, and the other lines
        has_type = re.match("(ssh|ecdsa|sk)-", first)
        if has_type and not more:
            words = words[:2]  # behind them is a comment
        secret = hashlib.sha256(self.number("key", " ".join(words)).encode()).digest()
        blob = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0 " + secret).decode()
        text = "ssh-ed25519 %s redacted" % blob
        if has_type and more:  # as the portal wraps a key that it has made
            width = max(len(first), 16)
            text = more[0].join(text[at:at + width] for at in range(0, len(text), width))
        return text + value[len(value.rstrip("\r\n")):]

    def data(self, value: str) -> str:
        return base64.b64encode(self.number("data", value, "redacted %d").encode()).decode()

    def time(self, value: str) -> str:
        try:
            return http_date(parse_time(value) or 0)
        except ValueError:
            return ""

    def description(self, value: str) -> str:
        texts = [text for row in EVENT_TYPES.values() for text in row.descriptions.values()]
        return value if value in texts or value in OBSERVED_DESCRIPTIONS else self.number("description", value)

    def mac(self, value: str) -> str:
        if not re.match(r"(?:[0-9A-Fa-f]{2}[:.-]?){5}[0-9A-Fa-f]{2}\Z", value):
            return self.value(value)
        digits, separator = re.sub("[:.-]", "", value).upper(), re.sub("[0-9A-Fa-f]", "", value)[:1]
        text = self.number("mac", digits, "00155D%06X")
        return separator.join(text[at:at + 2] for at in range(0, 12, 2))

    def _place(self, node: "Any", shown: "Any") -> None:
        """Choose a stand-in for each subnet in ``node``: a network of the same size that no other one has."""
        import ipaddress

        if not isinstance(shown, (dict, list)) or not isinstance(node, type(shown)):
            return
        network = _network(node) if isinstance(node, dict) and "prefix" in shown else None
        if network and network not in self._networks:
            size = network.num_addresses
            start = -(-self._next_network // size) * size
            if start < 0xF0000000 and start + size > 0x0B000000:  # 10.0.0.0/8 is full: go on in the unused 240.0.0.0/4
                start = max(0xF0000000, size)
            self._next_network = start + size
            self._networks[network] = ipaddress.IPv4Network((start % 2**32, network.prefixlen), strict=False)
        for name, child in children(node):
            self._place(child, shown[0] if isinstance(shown, list) else shown.get(name))

    def address(self, value: str) -> str:
        """Keep an address in its subnet; without one, keep whether it is private. Brackets stay."""
        import ipaddress

        if re.match(r"\[[^[]*\]\Z", value):
            return "[%s]" % self.address(value[1:-1])
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            return self.value(value)
        if address.version == 6 and address.ipv4_mapped:
            return "::ffff:" + self.address(str(address.ipv4_mapped))
        if address.version == 6:
            prefix = PRIVATE_PREFIXES.get(address.packed[0], "2001:db8")
            return self.number("ipv6", str(address), prefix + "::%x")
        around = (ipaddress.IPv4Network((int(address), prefix), strict=False) for prefix in self._prefixes)
        network = next((each for each in around if each in self._networks), None)
        if network is None:
            is_private = re.match(PRIVATE_ADDRESS, str(address))
            number = int(self.number("private" if is_private else "public", str(address), "%d"))
            return ("10.0.%d.%d" if is_private else "198.18.%d.%d") % divmod(number, 256)
        if address == network.network_address:
            return str(self._networks[network].network_address)
        number = int(self.number("in " + str(network), str(address), "%d")) + 2  # Azure reserves the first four
        return str(self._networks[network][number % (network.num_addresses - 1) + 1])


def _published(compute: "Mapping[str, Any]") -> "set[str]":
    """The words of a VM's image that are public, in lower case: those of an image of PUBLISHERS, if they have the form
    of such words (and are no stand-ins). Of an image in a gallery there are none, for its owner chose them."""
    image = as_object(as_object(compute.get("storageProfile")).get("imageReference"))
    others = [image[name] for name in set(image).difference(IMAGE_WORDS + ("version", "exactVersion"))]
    if any(each not in (None, "", [], {}) and not isinstance(each, bool) for each in others):
        return set()
    words = [node.get(name) for node in (compute, image)
             if str(node.get("publisher", "")).lower() in PUBLISHERS for name in IMAGE_WORDS]
    return {word.lower() for word in words if isinstance(word, str) and not re.match(GUID, word)
            and re.match(r"(?i)(?!image[0-9]+\Z)[a-z0-9][a-z0-9._-]{0,63}\Z", word)}


def _network(subnet: "Mapping[str, Any]") -> "Any":
    """The IPv4Network that a subnet is, or None."""
    import ipaddress

    try:
        if re.match(r"[0-9]{1,2}\Z", str(subnet["prefix"])):  # as word() keeps it
            return ipaddress.IPv4Network("%(address)s/%(prefix)s" % subnet, strict=False)
    except (KeyError, ValueError):
        pass
    return None


# ==================================================================================================
# Room 4: signatures
#
# RSA, DER, X.509, PKCS#7 and JWT, as much as a token and an attested document need; knows only the
# contract. DER is built inside out: each function returns the bytes of one element. Root, issuing
# authority and service have a test key each; the name of who signs says which.
# ==================================================================================================

SHA256_WITH_RSA, RSA, SHA256 = "1.2.840.113549.1.1.11", "1.2.840.113549.1.1.1", "2.16.840.1.101.3.4.2.1"
DATA, SIGNED_DATA = "1.2.840.113549.1.7.1", "1.2.840.113549.1.7.2"
NAME_TYPES = {"C": "2.5.4.6", "ST": "2.5.4.8", "L": "2.5.4.7", "O": "2.5.4.10", "CN": "2.5.4.3"}
EXTENSIONS = {"authorityKeyIdentifier": "2.5.29.35", "subjectKeyIdentifier": "2.5.29.14", "keyUsage": "2.5.29.15",
              "extKeyUsage": "2.5.29.37", "basicConstraints": "2.5.29.19", "authorityInfoAccess": "1.3.6.1.5.5.7.1.1",
              "subjectAltName": "2.5.29.17", "cRLDistributionPoints": "2.5.29.31", "cRLNumber": "2.5.29.20"}
SERVER_AUTH, CA_ISSUERS, OCSP = "1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.48.2", "1.3.6.1.5.5.7.48.1"
INTEGER, BIT_STRING, OCTET_STRING, PRINTABLE_STRING, UTF8_STRING = 0x02, 0x03, 0x04, 0x13, 0x0c  # tags of DER
KEY_IDENTIFIER, DNS_NAME, URI = 0x80, 0x82, 0x86  # tags in extensions
PUBLIC_EXPONENT = 65537  # e, of every key
AUTHORITY_TIMES = 1577836800, 2493072000  # of root and issuing authority: from 2020 to 2049
# Name of an authority -> the files with its certificate, .crt, and its revocation list, .crl.
FILES = {TEST_ROOT_NAME: "imds-test-ca", TEST_ISSUER_NAME: "imds-test-issuing-ca"}


@functools.lru_cache(maxsize=None)
def _private_key(name: str) -> "List[Tuple[int, int, int, int]]":
    """The key of an authority, or by any other name the service's. For each prime: the prime, its exponent and its
    coefficient (RFC 8017, section 3.2), and the product of those before it."""
    lacking = TEST_KEYS.get(name, TEST_KEYS[""])
    key, product = [], 1
    for prime in TEST_PRIMES[:lacking] + TEST_PRIMES[lacking + 1:]:
        # The inverse of e modulo prime - 1. pow(a, p - 2, p) is that of a modulo a prime p, as e itself is (Fermat).
        factor = PUBLIC_EXPONENT - pow(prime - 1, PUBLIC_EXPONENT - 2, PUBLIC_EXPONENT)
        exponent = (1 + (prime - 1) * factor) // PUBLIC_EXPONENT
        coefficient = pow(product, prime - 2, prime)
        key.append((prime, exponent, coefficient, product))
        product *= prime
    return key


def sign(content: bytes, name: str = "") -> bytes:
    """Sign with a test key: RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017)."""
    digest = _sequence(_algorithm(SHA256), _der(OCTET_STRING, _sha256(content)))
    padded = b"\0\1" + b"\xff" * (253 - len(digest)) + b"\0" + digest  # 256 bytes
    number, signature = int.from_bytes(padded, "big"), 0
    for prime, exponent, coefficient, product in _private_key(name):
        signature += (pow(number, exponent, prime) - signature) * coefficient % prime * product
    return signature.to_bytes(256, "big")


def modulus(name: str = "") -> bytes:
    """The modulus of a test key, 256 bytes. Its public half is this and PUBLIC_EXPONENT."""
    prime, _, _, product = _private_key(name)[-1]
    return (prime * product).to_bytes(256, "big")


def _sha256(data: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(data).digest()


def base64url(data: bytes) -> str:
    """Base64 for URLs, without its padding (RFC 7515)."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def jwt(claims: str) -> str:
    """A JWT (RFC 7519) of ``claims``, which are JSON, signed with RS256."""
    header = '{"typ":"JWT","alg":"RS256","x5t":"%s","kid":"%s"}' % (TEST_KEY_ID, TEST_KEY_ID)
    signed = base64url(header.encode()) + "." + base64url(claims.encode())
    return signed + "." + base64url(sign(signed.encode()))


# --- certificates

@functools.lru_cache(maxsize=16)
def authority_certificate(name: str = TEST_ROOT_NAME, base: str = "") -> bytes:
    """The certificate of an authority, DER: TEST_ROOT_NAME, which a verifier must trust, or TEST_ISSUER_NAME, which has
    signed the service's. ``base``: the URL below which its issuer's certificate and revocation list are, for it to
    name; "": it names none."""
    return _certificate(name, TEST_ROOT_NAME, AUTHORITY_TIMES, [
        _extension("basicConstraints", _sequence(TRUE), critical=True),
        _extension("keyUsage", _der(BIT_STRING, b"\x01\x06"), critical=True),  # keyCertSign, cRLSign
    ] + (_places(base, TEST_ROOT_NAME) if base else []))


@functools.lru_cache(maxsize=None)
def token_certificate() -> bytes:
    """A certificate of the key that signs tokens, DER, signed by itself."""
    return _certificate(TEST_TOKEN_NAME, TEST_TOKEN_NAME, AUTHORITY_TIMES, [])


@functools.lru_cache(maxsize=16)
def service_certificate(names: "Tuple[str, ...]", issuer: str, start: int, base: str) -> bytes:
    """The certificate of the service, DER, as observed in 2026, for the DNS ``names``, of which the last is its common
    name. ``base``: as for authority_certificate."""
    return _certificate(SERVICE_NAME + names[-1], issuer, (start, start + CERTIFICATE_SECONDS), [
        _extension("keyUsage", _der(BIT_STRING, b"\x05\xa0"), critical=True),  # digitalSignature, keyEncipherment
        _extension("extKeyUsage", _sequence(_oid(SERVER_AUTH))),
        _extension("basicConstraints", _sequence(), critical=True),
        _extension("subjectAltName", _sequence(*[_der(DNS_NAME, name.encode()) for name in names]))]
        + _places(base, TEST_ISSUER_NAME))


def _places(base: str, issuer: str) -> "List[bytes]":
    """The extensions that name the places, below the URL ``base``, of the issuer's certificate and revocation list."""
    names = FILES[issuer] + ".crt", FILES[issuer] + ".crl", "ocsp"
    certificate, revoked, ocsp = [_der(URI, (base + "/" + name).encode()) for name in names]
    return [
        _extension("authorityInfoAccess", _sequence(
            _sequence(_oid(CA_ISSUERS), certificate), _sequence(_oid(OCSP), ocsp))),
        _extension("cRLDistributionPoints", _sequence(_sequence(_explicit(0, _explicit(0, revoked)))))]


def _certificate(subject: str, issuer: str, times: "Tuple[float, float]", extensions: "List[bytes]") -> bytes:
    """An X.509 certificate, DER. Times in seconds since 1970."""
    key = _sequence(_integer(int.from_bytes(modulus(subject), "big")), _integer(PUBLIC_EXPONENT))
    subject_key = _extension("subjectKeyIdentifier", _der(OCTET_STRING, _key_id(subject)))
    more = _sequence(*extensions, subject_key, _authority_key(issuer))
    # An issuer may not use a number twice.
    serial = int.from_bytes(_sha256(b"%s %d %s" % (subject.encode(), times[0], more))[:15], "big") | 1
    return _signed(
        issuer, _explicit(0, _integer(2)), _integer(serial), _algorithm(SHA256_WITH_RSA),
        _name(issuer), _sequence(_time(times[0]), _time(times[1])), _name(subject),
        _sequence(_algorithm(RSA), _der(BIT_STRING, b"\0" + key)), _explicit(3, more))


@functools.lru_cache(maxsize=4)
def revocation_list(issuer: str, start: int) -> bytes:
    """The revocation list of an authority, DER: empty, and valid for a week."""
    return _signed(
        issuer, _integer(1), _algorithm(SHA256_WITH_RSA), _name(issuer), _time(start), _time(start + 7 * 86400),
        _explicit(0, _sequence(_authority_key(issuer), _extension("cRLNumber", _integer(start)))))


def _signed(issuer: str, *parts: bytes) -> bytes:
    """The frame of a certificate and of a revocation list: content, algorithm, signature."""
    content = _sequence(*parts)
    return _sequence(content, _algorithm(SHA256_WITH_RSA), _der(BIT_STRING, b"\0" + sign(content, issuer)))


def pem(certificate: bytes) -> str:
    lines = re.findall(".{1,64}", base64.b64encode(certificate).decode())
    return "\n".join(["-----BEGIN CERTIFICATE-----"] + lines + ["-----END CERTIFICATE-----", ""])


# --- PKCS#7

def signed_data(content: bytes, signature: bytes, signer: bytes) -> bytes:
    """PKCS#7 SignedData, DER, as the service writes it (observed): with the content, without signed attributes,
    with sha256WithRSAEncryption as the digest's algorithm, and with the signer's certificate alone."""
    tbs_certificate = _elements(_elements(signer)[0])[0]
    _, serial, _, issuer, *_ = _elements(tbs_certificate)
    signer_info = _sequence(_integer(1), _sequence(_sequence(issuer), _der(INTEGER, serial)),
                            _algorithm(SHA256_WITH_RSA), _algorithm(RSA), _der(OCTET_STRING, signature))
    encapsulated = _sequence(_oid(DATA), _explicit(0, _der(OCTET_STRING, content)))
    return _sequence(_oid(SIGNED_DATA), _explicit(0, _sequence(
        _integer(1), _set(_algorithm(SHA256_WITH_RSA)), encapsulated, _explicit(0, signer), _set(signer_info))))


def signed_content(data: bytes) -> bytes:
    """The content of a PKCS#7 SignedData. Its signature is not looked at. Raises ValueError."""
    try:
        content_info = _elements(_elements(data)[0])
        signed = _elements(_elements(content_info[1])[0])
        return _elements(_elements(signed[2])[1])[0]
    except (IndexError, ValueError):
        raise ValueError("not a PKCS#7 SignedData") from None


# --- DER

def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 128 | len(octets)]) + octets + content


_sequence, _set = functools.partial(_der, 0x30), functools.partial(_der, 0x31)
TRUE = b"\x01\x01\xff"  # a BOOLEAN


def _explicit(number: int, *parts: bytes) -> bytes:
    return _der(0xa0 + number, *parts)


def _integer(number: int) -> bytes:
    return _der(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _oid(dotted: str) -> bytes:
    first, second, *rest = [int(part) for part in dotted.split(".")]
    octets = bytearray([first * 40 + second])
    for number in rest:
        groups = [number & 127]
        while number > 127:
            number >>= 7
            groups.append(number & 127 | 128)
        octets += bytes(reversed(groups))
    return _der(0x06, bytes(octets))


def _algorithm(dotted: str) -> bytes:
    return _sequence(_oid(dotted), _der(0x05))


def _name(text: str) -> bytes:
    """A distinguished name: "C=US,O=...,CN=..."."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    return _sequence(*[
        _set(_sequence(_oid(NAME_TYPES[key]), _der(PRINTABLE_STRING if key == "C" else UTF8_STRING, value.encode())))
        for key, _, value in pairs])  # a country must be the former (RFC 5280)


def _time(seconds: float) -> bytes:
    """UTCTime until 2049, GeneralizedTime after it (RFC 5280)."""
    moment = time.gmtime(seconds)
    stamp = "%04d%02d%02d%02d%02d%02dZ" % moment[:6]
    return _der(0x17, stamp[2:].encode()) if 1950 <= moment[0] < 2050 else _der(0x18, stamp.encode())


def _key_id(name: str) -> bytes:
    return _sha256(modulus(name))[:20]


def _authority_key(issuer: str) -> bytes:
    return _extension("authorityKeyIdentifier", _sequence(_der(KEY_IDENTIFIER, _key_id(issuer))))


def _extension(name: str, value: bytes, critical: bool = False) -> bytes:
    return _sequence(_oid(EXTENSIONS[name]), TRUE if critical else b"", _der(OCTET_STRING, value))


def _elements(data: bytes) -> "List[bytes]":
    """The content of each DER element in ``data``, one level deep."""
    found, at = [], 0
    while at < len(data):
        size, at = data[at + 1], at + 2
        if size >= 128:
            octets = size & 127
            size, at = int.from_bytes(data[at:at + octets], "big"), at + octets
        if at + size > len(data):
            raise ValueError("cut off")
        found.append(data[at:at + size])
        at += size
    return found


# ==================================================================================================
# Room 5: service
#
# One request in, one response out; knows documents and signatures. It opens no socket, starts no thread,
# and its clock is an argument. Service._answer applies the rules in the order of the real service; each
# refusal is a row of REFUSALS. What is slow to make is kept until it changes: views and pages of the
# document, the list of events as text, signed tokens.
# ==================================================================================================

# verb: str; target: str, path and query as sent; headers: names in lower case -> value, where a
# repeated header's values are joined by commas; body: bytes; version: of HTTP, str.
Request = collections.namedtuple("Request", "verb target headers body version")
Request.__new__.__defaults__ = (b"", "HTTP/1.1")  # namedtuple takes defaults from Python 3.7 on

# status: int; headers: list of (name, value), in order; body: bytes; rule: the key of REFUSALS, or None; repeats:
# whether the same request would be answered the same, but for Date and x-ms-request-id, as long as nothing changes.
Response = collections.namedtuple("Response", "status headers body rule repeats")

# A target taken apart. names: of its path; endpoint: the key of ENDPOINTS that they begin with, or None; row: that row,
# or NO_ENDPOINT; rest: the names below it; query: dict; problem: a key of REFUSALS if it is refused as it is, or None.
Target = collections.namedtuple("Target", "names endpoint row rest query problem")


@functools.lru_cache(maxsize=256)
def parse_target(target: str) -> "Target":
    """Take a request's target apart: percent-decoded once, without doubled slashes, "metadata" in any case. Dots are
    names like any other, for the service does not resolve them (observed)."""
    if not target.startswith("/"):  # servers have to accept the form for proxies, too: http://HOST/PATH
        target = re.sub("^http://[^/?]*", "", target, flags=re.I)
    raw_path, _, raw_query = target.partition("?")
    query, problem = {}, None  # type: Dict[str, str], Optional[str]
    decode: "Callable[[str], str]" = _decode if "%" in target else str  # most have nothing to decode
    try:
        names = tuple(filter(None, decode(raw_path).split("/")))
        for pair in filter(None, raw_query.replace("+", " ").split("&")):
            raw_name, _, value = pair.partition("=")
            name = decode(raw_name)
            if name in query:
                problem = "duplicate"
            query[name] = decode(value)
    except ValueError:
        names, problem = tuple(filter(None, raw_path.split("/"))), "target"
    if names and names[0].lower() == "metadata":
        names = ("metadata",) + names[1:]
        for size in (2, 3, 4):
            endpoint = "/".join(names[1:size])
            if endpoint in ENDPOINTS:
                return Target(names, endpoint, ENDPOINTS[endpoint], names[size:], query, problem)
    return Target(names, None, NO_ENDPOINT, names[1:], query, problem)


def _decode(text: str) -> str:
    decoded = urllib.parse.unquote(text, errors="strict")
    if "\0" in decoded:
        raise ValueError("a NUL is in %r" % text)
    return decoded


def refusal_body(rule: str, names: "Tuple[str, ...]") -> str:
    """The body of a row of REFUSALS, with its $words, as the component to which the names of a path lead has it."""
    component = names[1] if len(names) > 1 and names[0] == "metadata" else ""
    return str(DIALECTS.get(component, {}).get(rule, REFUSALS[rule].body))


def content_type_of(body: str) -> str:
    """The type of a refusal's body."""
    return next(kind for start, kind in CONTENT_TYPES.items() if body.startswith(start))


class Rejection(Exception):
    """A request is refused with the row ``rule`` of REFUSALS; ``value`` is the $value in its body."""

    def __init__(self, rule: str, value: str = "") -> None:
        super().__init__(rule)
        self.rule, self.value = rule, value


def is_local(host: str, names: "Iterable[str]") -> bool:
    """Whether a Host header is an address or one of ``names``. By other names a web page may come (DNS rebinding)."""
    name = re.sub(r":\d*\Z", "", host).lower()
    return name in names or bool(re.match(r"\d{1,3}(?:\.\d{1,3}){3}\Z|\[[0-9a-f:.]+(?:%\w+)?\]\Z", name))


class _Bucket:
    """A token bucket, refilled continuously: ``rate`` requests a second, and as many (at least one) at once."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate, self.size = rate, max(rate, 1)
        self.tokens, self.when = self.size, now

    def take(self, now: float) -> bool:
        self.tokens = min(self.size, self.tokens + max(0, now - self.when) * self.rate)
        self.when = max(now, self.when)  # a clock that steps back and forth must not fill it
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class _Event:
    """A scheduled event. ``shown``: its fields; ``lasts``: seconds; all else in seconds since 1970, None: not yet."""

    def __init__(self, shown: "Dict[str, Any]", *, starts: float, cancelled: float, lasts: float) -> None:
        self.shown, self.starts, self.cancelled, self.lasts = shown, starts, cancelled, lasts
        self.started: "Optional[float]" = None

    def next_change(self) -> float:
        """When it starts, is cancelled, or is gone."""
        return min(self.starts, self.cancelled) if self.started is None else self.started + self.lasts


class Events:
    """The list of scheduled events: Scheduled, then Started by approval or when NotBefore comes, then gone.

    Each change of the list increments ``incarnation``. Several VMs may share it. Nothing runs in the background:
    methods call settle() first, which takes from a heap the changes that are due, and drops the entries of changes
    that no longer apply.
    """

    def __init__(self, clock: "Callable[[], float]", document: "Optional[Mapping[str, Any]]" = None) -> None:
        document = document or {}
        self._clock, self.incarnation = clock, document.get("DocumentIncarnation", 1)
        self._events: "Dict[str, _Event]" = {}  # by EventId in upper case
        self._due: "List[Tuple[float, int, _Event]]" = []
        self._texts: "Dict[Any, str]" = {}
        now = self._clock()
        for event in document.get("Events", []):
            shown = {name: field.type(field.default) for name, field in EVENT_FIELDS.items()}
            shown.update(event)
            not_before = parse_time(shown["NotBefore"]) or 0
            if shown["NotBefore"][:1].isdigit():  # ISO 8601, which the service does not write
                shown["NotBefore"] = http_date(not_before)
            starts = not_before if not_before > now else float("inf")  # an old recording waits for approval
            recorded = _Event(shown, starts=starts, cancelled=float("inf"), lasts=EVENT_TYPES[shown["EventType"]].lasts)
            self._put(recorded)
            if shown["EventStatus"] == "Started":
                self._start(recorded, now)

    def _put(self, event: "_Event") -> None:
        """Have an event on the list, and its next change on the heap."""
        import heapq

        self._events[event.shown["EventId"].upper()] = event
        heapq.heappush(self._due, (event.next_change(), id(event), event))

    def _start(self, event: "_Event", now: float) -> None:
        event.started = now
        event.shown.update(EventStatus="Started", NotBefore="")
        self._put(event)

    def _changed(self) -> None:
        self.incarnation, self._texts = self.incarnation + 1, {}

    def settle(self) -> float:
        """Apply all changes that are due, in order; return when the next one is, or infinity."""
        import heapq

        now, last = self._clock(), None
        while self._due:
            when, _, event = self._due[0]
            if event.next_change() != when or self._events.get(event.shown["EventId"].upper()) is not event:
                heapq.heappop(self._due)
                continue
            if when > now:
                return when
            heapq.heappop(self._due)
            if event.started is None and event.starts == when:
                self._start(event, when)
            else:
                del self._events[event.shown["EventId"].upper()]
            if when != last:
                self._changed()
            last = when
        return float("inf")

    def add(self, shown: "Dict[str, Any]", *, starts: float, cancelled: float, lasts: float) -> None:
        """Put a Scheduled event on the list; it starts at once if ``starts`` has passed."""
        self.settle()
        self._put(_Event(shown, starts=max(starts, self._clock()), cancelled=cancelled, lasts=lasts))
        self._changed()

    def named(self, event_ids: "List[str]") -> "List[_Event]":
        """The events of these ids, Scheduled or Started. Raises ValueError where there is none."""
        self.settle()
        for event_id in event_ids:
            if event_id.upper() not in self._events:
                raise ValueError("there is no event %r" % event_id)
        return [self._events[event_id.upper()] for event_id in event_ids]

    def cancel(self, event_id: str) -> None:
        self.named([event_id])  # or it raises
        del self._events[event_id.upper()]
        self._changed()

    def approve(self, events: "Iterable[_Event]") -> None:
        """Start those of the events that are still Scheduled."""
        now, waiting = self._clock(), [event for event in events if event.started is None]
        for event in waiting:
            self._start(event, now)
        if waiting:
            self._changed()

    def text(self, version: str, single: bool) -> str:
        """The list as JSON, as a version shows it to a VM; ``single``: the VM belongs to no scale set."""
        self.settle()
        key = version, single and version == PREVIEW
        if key not in self._texts:
            later = [name for name, field in EVENT_FIELDS.items() if field.since > version]
            shown = [{name: value for name, value in event.shown.items() if name not in later}
                     for event in self._events.values() if EVENT_TYPES[event.shown["EventType"]].since <= version]
            if single and version == PREVIEW:  # which put "_" before the names of single VMs
                shown = [dict(event, Resources=["_" + name.lstrip("_") for name in event["Resources"]])
                         for event in shown]
            self._texts[key] = format_json({"DocumentIncarnation": self.incarnation, "Events": shown})
        return self._texts[key]


@functools.lru_cache(maxsize=64)  # many answers are of one second
def _token_answer(token: str, client_id: str, resource: str, issued: int, now: int) -> bytes:
    """What the service says of a token, as JSON: all values are str."""
    return format_json({
        "access_token": token, "client_id": client_id,
        "expires_in": str(issued + TOKEN_SECONDS - now), "expires_on": str(issued + TOKEN_SECONDS),
        "ext_expires_in": str(TOKEN_SECONDS - 1), "not_before": str(issued - TOKEN_BACKDATED),
        "resource": resource, "token_type": "Bearer",
    }).encode()


class Service:
    """The service of one VM. ``clock`` returns the time in seconds since 1970, ``events`` is a list to share;
    the rest is as for Emulator. Raises ValueError for a value that can't be served."""

    def __init__(
        self, clock: "Callable[[], float]", instance: "Optional[Mapping[str, Any]]" = None, *,
        profile: "Optional[str]" = None, cloud: "Optional[str]" = None, versions: "Optional[Iterable[str]]" = None,
        as_of: "Optional[str]" = None, rate_limit: "Optional[float]" = None,
        identities: "Optional[Iterable[Any]]" = None, load_balancer: "Any" = None,
        attested_flaw: "Optional[str]" = None, attested_issuer: "Optional[str]" = None,
        events: "Optional[Events]" = None, only_hosts: "Optional[Iterable[str]]" = None,
    ) -> None:
        if as_of not in (None, "2018"):
            raise ValueError("as_of must be '2018' or nothing, not %r" % as_of)
        if instance is not None and profile is not None:
            raise ValueError("a document or a profile, not both")
        if attested_issuer is not None and not re.match(r"https?://[!-~]+\Z", attested_issuer):
            raise ValueError("attested_issuer must be a URL, not %r" % attested_issuer)
        self.clock, self.in_2018 = clock, as_of == "2018"
        parts = split_document({} if instance is None else instance)
        if instance and not {*PARTS, *everything()}.intersection(instance):  # such as the fields of compute alone
            raise ValueError(NO_VM % "the document")
        self.instance = make_vm(profile or "linux") if instance is None else complete(parts["instance"], is_plain=True)
        if cloud is not None:
            self.instance["compute"]["azEnvironment"] = known(cloud, CLOUDS, "cloud")
        self._choose_versions(versions)
        if rate_limit is None:
            rate_limit = RATE_LIMIT if self.in_2018 else 0
        if not 0 <= rate_limit < 1e9:
            raise ValueError("rate_limit must be 0 (off) or more requests a second, not %r" % rate_limit)
        self.rate_limit, now = rate_limit, clock()
        self._bucket = _Bucket(rate_limit, now) if rate_limit else None
        self._identity_bucket = _Bucket(IDENTITY_RATE_LIMIT, now)
        self._identity_requests = 0  # since new_turn()
        self.events = events or Events(clock, parts["scheduledevents"])
        self.attested_flaw = attested_flaw and known(attested_flaw, FLAWS, "flaw")
        self._only_hosts = None if only_hosts is None else frozenset(only_hosts)  # besides addresses; None: any
        self._attested_issuer, self.base = attested_issuer, "http://localhost"  # base: where this service is
        self._recorded: "Optional[Dict[str, str]]" = parts["attested"]
        identity = parts["identity"] or {}
        self.tenant = identity.get("tenantId") or DEFAULT_TENANT
        self.set_load_balancer(parts["loadbalancer"] if parts["loadbalancer"] is not None else load_balancer)
        self.count, self._id_form = 0, "%08x-0000-4000-8000-%%012x" % int(now)
        self.set_identities(identity.get("identities", ["system"]) if identities is None else identities)

    def _choose_versions(self, versions: "Optional[Iterable[str]]") -> None:
        """Set which versions are offered, are answered, and are those of scheduled events."""
        self.versions, unlisted, newest_events = list(VERSIONS), list(UNLISTED_VERSIONS), EVENTS_NEWEST
        if self.in_2018:
            self.versions = list(self._cloud().versions_in_2018)
            unlisted, newest_events = [PREVIEW], self.versions[-1]
        self._answered = self.versions + unlisted
        if versions is not None:
            self.versions = self._answered = sorted({known(each, self._answered, "api-version") for each in versions})
        if not self.versions:
            raise ValueError("versions must name at least one api-version")
        self._event_versions = [each for each in EVENT_VERSIONS if each <= newest_events]

    # --- what may change

    def _forget(self) -> None:
        """Drop what is cached of the instance document and the identities."""
        self._views: "Dict[Tuple[str, bool], Dict[str, Any]]" = {}
        self._pages: "Dict[Tuple[Any, ...], Tuple[str, bytes]]" = {}
        self._tokens: "Dict[Tuple[str, ...], Tuple[int, str]]" = {}
        self._selected: "Dict[Optional[Tuple[str, str]], List[Dict[str, str]]]" = {}  # None: without a selector

    def update(self, patch: "Mapping[str, Any]") -> None:
        self.instance = change(self.instance, patch)
        self._recorded = None
        self._forget()

    def set_identities(self, specs: "Iterable[Any]") -> None:
        """Give the VM these identities: see read_identity."""
        said = check_identities(specs)
        if len(said) > 1:  # to make the ids of one alone would import uuid for nothing
            ids = {full_identity(each, self.instance["compute"])["clientId"].lower() for each in said}
            if len(ids) < len(said):
                raise ValueError("two identities have the same clientId")
        self._said = said
        self._forget()

    def identities(self) -> "List[Dict[str, str]]":
        return [full_identity(said, self.instance["compute"]) for said in self._said]

    def set_load_balancer(self, document: "Any") -> None:
        """Set the document of the VM's load balancer. True: a sample; False or None: there is none."""
        if isinstance(document, dict):
            check_plain(document, "loadbalancer")
            document = copied(read_balance(document))
        elif document is not None and not isinstance(document, bool):
            raise ValueError("load_balancer must be true, false or an object, not %s" % kind_of(document))
        self._balance = document

    def load_balancer(self) -> "Optional[Dict[str, Any]]":
        if self._balance in (None, False):
            return None
        return {"loadbalancer": sample_balance(self.instance) if self._balance is True else self._balance}

    def new_turn(self) -> None:
        """All requests so far are answered: later ones do not count as "at once" with them."""
        self._identity_requests = 0

    # --- requests

    def respond(self, request: "Request") -> "Response":
        asked = parse_target(request.target)
        try:
            content_type, body = self._answer(request, asked)
        except Rejection as refusal:
            return self.refuse(refusal.rule, request, refusal.value)
        return self._response(200, content_type, body, None, request)

    def is_foreign(self, request: "Request") -> bool:
        """Whether its Host is none of this service's, as that of a web page may be."""
        host = request.headers.get("host") or "localhost"
        return self._only_hosts is not None and not is_local(host, self._only_hosts)

    def _answer(self, request: "Request", asked: "Target") -> "Tuple[str, bytes]":
        """The content type and body of an answer, or a Rejection: every rule, in the order of the service."""
        endpoint, query, headers = asked.endpoint, asked.query, request.headers
        inside = asked.names[:1] == ("metadata",)
        if self.in_2018 and "/metadata" not in urllib.parse.unquote(request.target.partition("?")[0]):
            inside = False  # its case mattered then
        if self.is_foreign(request):
            raise Rejection("host")
        metadata = headers.get("metadata", "")  # nearly always "true": looking for that first is fast
        has_header = metadata == "true" or all(value.strip(" \t").lower() == "true" for value in metadata.split(","))
        if request.verb == "HEAD" and not (inside and self.in_2018):
            raise Rejection("head")
        if request.verb not in asked.row.verbs and (has_header or request.verb != "POST" or not inside):
            raise Rejection("verb" if inside else "outside-verb")
        if not inside:
            return self._outside(request, asked.names, has_header)
        throttled = self._exceeds_limit(asked.names)  # a request that is refused counts, too
        # The preview of scheduled events needs no header (documented). A POST does, or any web page could approve.
        if not has_header and (endpoint, query.get("api-version"), request.verb) != ("scheduledevents", PREVIEW, "GET"):
            raise Rejection("metadata")
        if "x-forwarded-for" in headers:
            raise Rejection("forwarded")
        if asked.problem:
            raise Rejection(asked.problem)
        self._check_version(asked)
        page = self._page(asked, request)
        if request.verb == "POST" and endpoint != "scheduledevents":
            raise Rejection("verb")
        started = self._to_start(request) if request.verb == "POST" else []
        if throttled:
            raise Rejection("throttled-text" if page[0] == TEXT_TYPE else "throttled")
        if request.verb == "POST":  # the one thing that a request can change
            self.events.approve(started)
            return JSON_TYPE, b""
        return page

    def _outside(self, request: "Request", names: "Tuple[str, ...]", has_header: bool) -> "Tuple[str, bytes]":
        """Outside /metadata there is only PUBLISHED, by which the emulator's signatures can be checked."""
        page = PUBLISHED.get("/".join(names[-2:])) if len(names) <= 3 else None  # the tenant may be in front
        if page and request.verb == "GET":
            content_type, answer = page
            return content_type, answer(self, request)
        raise Rejection("outside" if names or has_header else "metadata")  # a detector relies on 400 for GET /

    def _exceeds_limit(self, names: "Tuple[str, ...]") -> bool:
        """Count a request, and return whether it is one too many."""
        if self._bucket is None:
            return False
        if names[1:2] != ("identity",) or self.in_2018:
            return not self._bucket.take(self.clock())
        self._identity_requests += 1
        return not self._identity_bucket.take(self.clock()) or self._identity_requests > IDENTITY_AT_ONCE

    def _check_version(self, asked: "Target") -> None:
        first, version = asked.row.since, asked.query.get("api-version", "")
        if first is None:
            return
        of_events = asked.endpoint == "scheduledevents"
        served = self._event_versions if of_events else self._answered
        if version in served and version >= first:
            return
        if version in served or of_events and re.match(DATE, version):
            raise Rejection("version-of-another")  # the endpoint came later, or has versions of its own
        if not self.in_2018:
            raise Rejection("version")
        raise Rejection("version-unknown-2018" if "api-version" in asked.query else "version-missing-2018")

    def _page(self, asked: "Target", request: "Request") -> "Tuple[str, bytes]":
        """The content type and body of what a target shows: first its path, then its format."""
        endpoint, form = asked.endpoint, asked.query.get("format", "json")
        if endpoint == "instance":
            key = asked.query["api-version"], asked.query.get("extended"), asked.rest, form
            if key in self._pages:
                return self._pages[key]
        elif asked.rest:
            raise Rejection("path")
        node = getattr(self, asked.row.answer)(asked, request)
        forms = ("json", "text") if endpoint in ("instance", "versions", None) else ("json",)
        if form not in forms:
            raise Rejection("format", form)
        if isinstance(node, bytes):  # JSON already
            page = JSON_TYPE, node
        elif form == "text" and endpoint != "versions":  # always JSON, whatever the format
            page = TEXT_TYPE, format_text(node).encode()
        elif isinstance(node, (dict, list)):
            page = JSON_TYPE, format_json(node).encode()
        else:
            raise Rejection("leaf")
        if endpoint == "instance" and len(self._pages) < 1000:  # until _forget()
            self._pages[key] = page
        return page

    # --- answers of endpoints, named in ENDPOINTS

    def listing(self, asked: "Target", request: "Request") -> "Any":
        """/metadata itself can be listed as text, but not shown as JSON."""
        if asked.query.get("format", "json") == "json":
            raise Rejection("path")
        return {name.partition("/")[0]: {} for name, endpoint in ENDPOINTS.items()
                if endpoint.since and endpoint.since <= asked.query["api-version"]}

    def instance_document(self, asked: "Target", request: "Request") -> "Any":
        key = asked.query["api-version"], asked.query.get("extended", "").lower() == "true"
        if key not in self._views:
            self._views[key] = view(self.instance, *key)
        try:
            return find(self._views[key], asked.rest)
        except KeyError:
            raise Rejection("path") from None

    def api_versions(self, asked: "Target", request: "Request") -> "Any":
        if self.in_2018:
            raise Rejection("path")
        return {"apiVersions": self.versions}

    def scheduled_events(self, asked: "Target", request: "Request") -> bytes:
        return self.events.text(asked.query["api-version"], not self.instance["compute"]["vmScaleSetName"]).encode()

    def _to_start(self, request: "Request") -> "List[_Event]":
        """The events that a POST approves; a payload with anything else in it changes nothing."""
        try:
            requests = check(load_json(request.body)["StartRequests"], list, "StartRequests")
            return self.events.named([each["EventId"] for each in requests])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Rejection("events") from None

    def load_balancer_document(self, asked: "Target", request: "Request") -> "Any":
        document = self.load_balancer()
        if document is None:
            raise Rejection("no-load-balancer")
        return document

    def identity_info(self, asked: "Target", request: "Request") -> "Any":
        return {"tenantId": self.tenant}

    def no_credential(self, asked: "Target", request: "Request") -> "Any":
        """404, for newer tokens are not emulated; but 400 to a POST without attestation_token (observed)."""
        if asked.endpoint == "identity/issuecredential" and request.verb == "POST":
            try:
                given = load_json(request.body).get("attestation_token")
            except (ValueError, AttributeError):
                given = None
            if not given:
                raise Rejection("no-attestation")
        raise Rejection("path")

    def token(self, asked: "Target", request: "Request") -> bytes:
        """An access token of a managed identity, as the service answers it."""
        query, now = asked.query, int(self.clock())
        resource = query.get("resource")
        if not resource:
            raise Rejection("no-resource")
        identity = self._select(query)
        is_guid = len(resource) == 36 and resource.count("-") == 4
        is_scope = resource.rstrip("/ ").lower().endswith("/.default")
        if not (":" in resource or is_guid) or is_scope:  # an application's URI or GUID
            raise Rejection("bad-resource", resource)
        key = (resource, *identity.values())
        issued, token = self._tokens.get(key, (0, ""))
        is_good = issued - TOKEN_BACKDATED <= now <= issued + TOKEN_SECONDS - TOKEN_RENEWED
        if not is_good or query.get("bypass_cache", "").lower() == "true":
            issued, token = now, jwt(format_json(self._claims(identity, resource, now)))
            if len(self._tokens) >= 1000:  # clients may name any number of resources
                self._tokens.clear()
            self._tokens[key] = issued, token
        return _token_answer(token, identity["clientId"], resource, issued, now)

    def _select(self, query: "Mapping[str, str]") -> "Dict[str, str]":
        """The full_identity() that a query names; if none is named, the system-assigned one, or the only one."""
        if not self._selected:
            identities = self.identities()
            self._selected[None] = [each for each in identities if each["type"] == "system"] or identities
            for identity in identities:
                for name, value in identity.items():
                    self._selected.setdefault((name, value.lower()), []).append(identity)
        selectors = [(field, query[name].lower()) for name, field in SELECTORS.items() if query.get(name)]
        if len(selectors) > 1:
            raise Rejection("several-selectors")
        found = self._selected.get(selectors[0] if selectors else None, [])
        if len(found) != 1:
            raise Rejection("several-identities" if found else "no-identity")
        return found[0]

    def _claims(self, identity: "Mapping[str, str]", resource: str, issued: int) -> "Dict[str, Any]":
        """The claims of a token. Resource ids in it have "resourcegroups" in lower case (observed)."""
        claims = {
            "aud": resource, "iss": self._issuer(), "iat": issued - TOKEN_BACKDATED, "nbf": issued - TOKEN_BACKDATED,
            "exp": issued + TOKEN_SECONDS, "appid": identity["clientId"], "appidacr": "2", "idp": self._issuer(),
            "idtyp": "app", "oid": identity["objectId"], "sub": identity["objectId"], "tid": self.tenant, "ver": "1.0",
        }
        if identity["type"] != "system":
            vm = self.instance["compute"]["resourceId"]
            claims["xms_az_rid"] = vm.replace("/resourceGroups/", "/resourcegroups/")
        claims["xms_mirid"] = without_instance(identity["resourceId"]).replace("/resourceGroups/", "/resourcegroups/")
        return claims

    def _issuer(self) -> str:
        return "https://%s/%s/" % (self._cloud().issuer, self.tenant)

    def _open_id(self, request: "Request") -> bytes:
        base = "http://%s/%s" % (request.headers.get("host") or "localhost", self.tenant)
        return format_json({
            "issuer": self._issuer(), "jwks_uri": base + "/discovery/keys",
            "id_token_signing_alg_values_supported": ["RS256"], "subject_types_supported": ["pairwise"],
            "response_types_supported": ["id_token"]}).encode()

    def _keys(self, request: "Request") -> bytes:
        return format_json({"keys": [{
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": TEST_KEY_ID, "x5t": TEST_KEY_ID, "e": "AQAB",
            "n": base64url(modulus()), "x5c": [base64.b64encode(token_certificate()).decode()]}]}).encode()

    def revoked(self, issuer: str) -> bytes:
        """The revocation list of an authority, of today."""
        return revocation_list(issuer, int(self.clock()) // 86400 * 86400)

    def attested_document(self, asked: "Target", request: "Request") -> "Any":
        nonce = asked.query.get("nonce", "")
        if len(nonce) > MAX_NONCE:
            raise Rejection("nonce")
        return self.attested(asked.query["api-version"], nonce, self.attested_flaw, request)

    def authorities(self, request: "Optional[Request]") -> str:
        """The URL below which the certificates of the authorities are: by the Host that was asked."""
        host = request.headers.get("host") if request else None
        return (self._attested_issuer or ("http://" + host if host else self.base)).rstrip("/")

    def attested(
        self, version: str, nonce: str, flaw: "Optional[str]" = None, request: "Optional[Request]" = None,
    ) -> "Dict[str, str]":
        """The attested document: {"encoding": "pkcs7", "signature": base64}."""
        if self._recorded and not nonce and not flaw:
            return dict(self._recorded)
        created = int(self.clock()) - (86400 + ATTESTED_SECONDS if flaw == "expired" else 0)
        content = self._attested_content(version, nonce, flaw, created)
        signature = sign(content)
        if flaw == "signature":
            content = content[:-1] + b" }"
        domain = "metadata.example.com" if flaw == "domain" else self._cloud().domain
        region = re.sub("[^a-z0-9-]", "", self.instance["compute"]["location"].lower())[:63] or "westus"
        issuer = "CN=nobody's CA" if flaw == "signer" else TEST_ISSUER_NAME
        start = created - created % 86400 - CERTIFICATE_BACKDATED  # a new certificate a day
        names = "%s.%s" % (region, domain), domain
        signer = service_certificate(names, issuer, start, self.authorities(request))
        return {"encoding": "pkcs7", "signature": base64.b64encode(signed_data(content, signature, signer)).decode()}

    def _attested_content(self, version: str, nonce: str, flaw: "Optional[str]", created: int) -> bytes:
        """The content to sign, as JSON: the fields of ``version``, in alphabetical order."""
        if flaw == "nonce":
            nonce = "1111111111" if nonce == "0000000000" else "0000000000"
        compute, expires = self.instance["compute"], time.gmtime(created + ATTESTED_SECONDS)
        stamps = [time.strftime(ATTESTED_TIME, moment) for moment in (time.gmtime(created), expires)]
        content = dict(compute, nonce=nonce or time.strftime(ATTESTED_NONCE, expires),
                       timeStamp={"createdOn": stamps[0], "expiresOn": stamps[1]},
                       vmId=guid("another", compute["vmId"]) if flaw == "vmId" else compute["vmId"])
        names = fields_until(version, ATTESTED_VERSIONS)
        return format_json({name: content[name] for name in sorted(names)}).encode()

    def _cloud(self) -> "Cloud":
        name = self.instance["compute"]["azEnvironment"].lower()  # AZUREPUBLICCLOUD is documented, too
        return next((cloud for key, cloud in CLOUDS.items() if key.lower() == name), CLOUDS["AzurePublicCloud"])

    # --- responses

    def refuse(self, rule: str, request: "Optional[Request]" = None, value: str = "") -> "Response":
        """The response of a row of REFUSALS; ``request`` is None when it could not be read."""
        asked = parse_target("" if request is None else request.target)
        status, body = REFUSALS[rule].status, refusal_body(rule, asked.names)
        if request is not None and "$" in body:
            body = self._fill_in(body, verb=request.verb, path="/" + "/".join(asked.names), value=value)
        response = self._response(status, content_type_of(body), body.encode(), rule, request)
        if request is not None and status == 405:
            response.headers.append(("Allow", ", ".join(asked.row.verbs)))
        return response

    def _fill_in(self, body: str, **words: str) -> str:
        """``body``, XML or JSON, with $tenant, $newest and these words in it."""
        from html import escape

        words["tenant"] = self.tenant
        for name, word in words.items():
            words[name] = escape(word) if body.startswith("<") else format_json(word)[1:-1]
        words["newest"] = format_json(self.versions[:-4:-1])
        return re.sub(r"\$([a-z]+)", lambda found: words[found.group(1)], body)

    def _response(
        self, status: int, content_type: str, body: bytes, rule: "Optional[str]", request: "Optional[Request]",
    ) -> "Response":
        server = IIS_SERVER if content_type in HEADERS else IMDS_SERVER
        self.count += 1
        values = {"Content-Type": content_type, "Server": server, "x-ms-request-id": self.request_id(self.count),
                  "Date": http_date(int(self.clock())), "Content-Length": str(len(body))}
        headers = [(name, values[name]) for name in HEADERS.get(rule or "", HEADERS.get(content_type, IMDS_HEADERS))]
        repeats = (request is not None and self._bucket is None and request.verb != "POST"
                   and "bypass_cache" not in request.target)
        return Response(status, headers, body, rule, repeats)

    def request_id(self, number: int) -> str:
        return self._id_form % number


# Outside /metadata: what those who check tokens or attested documents ask of the authorities that signed them.
PUBLISHED: "Dict[str, Tuple[str, Callable[[Service, Request], bytes]]]" = {
    ".well-known/openid-configuration": (JSON_TYPE, Service._open_id),
    "discovery/keys": (JSON_TYPE, Service._keys),
    FILES[TEST_ROOT_NAME] + ".pem": (TEXT_TYPE, lambda service, request: pem(authority_certificate()).encode()),
    FILES[TEST_ROOT_NAME] + ".crt": (CERTIFICATE_TYPE, lambda service, request: authority_certificate()),
    FILES[TEST_ROOT_NAME] + ".crl": (REVOCATION_TYPE, lambda service, request: service.revoked(TEST_ROOT_NAME)),
    FILES[TEST_ISSUER_NAME] + ".crt": (CERTIFICATE_TYPE, lambda service, request: authority_certificate(
        TEST_ISSUER_NAME, service.authorities(request))),
    FILES[TEST_ISSUER_NAME] + ".crl": (REVOCATION_TYPE, lambda service, request: service.revoked(TEST_ISSUER_NAME)),
}


# ==================================================================================================
# Room 6: bench
#
# What a test does to a service; knows the service. Each operation is one method here, with arguments and
# results that JSON can carry; Emulator, /imds/ and `ctl` offer it by the same name. A request and its answer
# are an Exchange, from which the access log, the journal, assertions and lint() read. A fault is a step of a
# playbook: it changes the answer here, or how it is sent, in room 7. For speed, the same bytes get the same answer
# until their Moment ends: the clock shows another second, an event is due, or an operation changes something.
# ==================================================================================================

JOURNAL_SIZE = 10000  # exchanges
# What the journal masks: headers and parameters with one of these in their names, in lower case.
SECRET = ("auth(?!ority)|assertion|bearer|cookie|credential|csrf|identity-header|jwt|key|passw|pwd|secret|session|sig"
          "|token")
SECRET_PARAMETER = "(?:%s)[^=&?]*=" % SECRET
MAX_KEPT = 16 * 1024  # bytes of a request or an answer that the journal keeps
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()  # strftime would use the locale's
LAST_CLOCK = 32503679999  # the end of the year 2999; Windows goes little further


class Exchange(collections.namedtuple("Exchange", "number time peer vm request response rule fault seconds")):
    """A request and its answer. number: int, from 1; time: seconds since 1970; peer: the client's address; vm: int,
    its number in a ScaleSet; request, response: a Request and a Response, secrets masked; rule: the key of REFUSALS,
    or None; fault: str, the step of a playbook that changed it, or None; seconds: for which that delayed the answer."""

    __slots__ = ()

    def __str__(self) -> str:
        """One line: number, time, what was asked, what came, why, and who asked."""
        agent = self.request.headers.get("user-agent")
        return printable("  ".join(filter(None, (
            str(self.number), _log_time(int(self.time))[12:], "%s %s" % (self.request.verb, self.request.target),
            str(self.response.status), REFUSALS[self.rule].reason if self.rule else None,
            self.fault and "(fault: %s)" % self.fault, agent and "by " + agent))))

    @property
    def asked(self) -> "Target":
        return parse_target(self.request.target)

    @property
    def manner(self) -> str:
        """What the step of a playbook did to its answer: a status, or a key of FAULT_ANSWERS or FAULT_MANNERS."""
        return str(self.fault or "ok").split()[-1]

    def as_dict(self) -> "Dict[str, Any]":
        """What /imds/ shows of it."""
        return {"number": self.number, "time": self.time, "peer": self.peer, "vm": self.vm, "verb": self.request.verb,
                "target": self.request.target, "headers": self.request.headers,
                "body": self.request.body.decode("utf-8", "replace"), "status": self.response.status,
                "rule": self.rule, "fault": self.fault, "seconds": self.seconds}


# The time in which the same bytes get the same answer. second: of the clock; until: when the next one begins, or an
# event is due; incarnation: of Events; answers: dict, bytes of a request -> Kept (room 7).
Moment = collections.namedtuple("Moment", "second until incarnation answers")


class Bench:
    """A service, and what a test does to it. ``clock``: a Clock; ``log`` is called with a line for each exchange;
    ``vm``: the number of this VM in a ScaleSet; ``control``: whether there is /imds/; ``hosts``: names that the
    Host header may have there; all else is as for Emulator."""

    def __init__(
        self, clock: "Any", instance: "Optional[Mapping[str, Any]]" = None, *,
        log: "Optional[Callable[[str], None]]" = None, vm: int = 0, control: bool = False,
        hosts: "Iterable[str]" = (), faults: "Iterable[Any]" = (), schedule: "Iterable[Any]" = (), **settings: "Any",
    ) -> None:
        import copy

        self.clock, self.vm, self._log, self.has_control = clock, vm, log, control
        self._hosts = frozenset(name.lower() for name in hosts).union(["localhost"])
        self.service = Service(clock, instance, **settings)
        self._settings = copy.deepcopy(dict(settings, instance=instance, events=None))  # reset() makes a new list
        self.siblings: "List[Bench]" = [self]  # the VMs of a scale set
        self._rows: "Any" = collections.deque(maxlen=JOURNAL_SIZE)  # for _whole()
        self.cleared = 0  # the number of the last exchange that reset() dropped
        self.watchers: "List[Callable[[], None]]" = []  # called after each exchange
        self._playbooks: "List[_Playbook]" = []
        self._now = 0.0  # the clock at the last call of moment()
        self._moment: "Optional[Moment]" = None
        self._first_faults, self._first_events = tuple(faults), tuple(schedule)
        self._begin()

    def _begin(self) -> None:
        """Start the faults and schedule the events that it is to begin with."""
        self.recover()
        for row in self._first_faults:
            self.fail(**row) if isinstance(row, dict) else self.fail(row)
        first = self.siblings[0]  # all VMs of a set share its events
        for row in first._first_events:
            first.schedule(**row) if isinstance(row, dict) else first.play(row)

    # --- requests

    def moment(self) -> "Moment":
        """The current Moment."""
        now, moment, events = self.clock(), self._moment, self.service.events
        self._now = now
        if moment is None or not moment.second <= now < moment.until or events.incarnation != moment.incarnation:
            moment = self._moment = Moment(int(now), min(int(now) + 1, events.settle()), events.incarnation, {})
        return moment

    def respond(self, request: "Request", peer: str = "-") -> "Exchange":
        step = None
        try:
            if self.has_control and re.match(r"/imds(?:[/?]|\Z)", request.target):
                return Exchange(0, self.clock(), peer, self.vm, request, self._controlled(request), None, None, 0.0)
            matched, step = self._step_for(request) if self._playbooks else (False, None)
            response = self._misbehave(step, request) if step else self.service.respond(request)
            if matched:  # the next request may get another step
                response = response._replace(repeats=False)
            elif not response.repeats:  # it may have changed something
                self._moment = None
        except Exception:  # one request must not end the service of all
            self.report()
            response = self.service.refuse("failed")
        return self._record(peer, request, response, step)

    def be_at(self, url: str) -> None:
        """Set the URL of the service, for attested documents that are asked for without a Host."""
        self.service.base, self._moment = url, None

    def refuse(self, rule: str, line: str, peer: str = "-") -> "Exchange":
        """Refuse what could not be read as a request; ``line``: its beginning."""
        return self._record(peer, Request("", line, {}, b"", ""), self.service.refuse(rule))

    def _record(self, peer: str, request: "Request", response: "Response", step: "Any" = None) -> "Exchange":
        exchange = Exchange(self.service.count, self.clock(), peer, self.vm, request, response, response.rule,
                            step and str(step), step.delay if step else 0.0)
        self._note(masked(exchange))
        return exchange

    def repeat(self, exchange: "Exchange", peer: str) -> str:
        """Record a repetition of an exchange in this Moment; return the x-ms-request-id of its answer."""
        service = self.service
        service.count += 1  # a short tuple is made, and later dropped, in a third of the time of an Exchange
        self._note((service.count, self._now, peer, exchange))
        return service.request_id(service.count)

    def _note(self, row: "Tuple[Any, ...]") -> None:
        self._rows.append(row)
        if self._log:
            self._write(log_line(_whole(row)))
        for watcher in self.watchers:
            watcher()

    def _write(self, line: str) -> None:
        try:
            if self._log:
                self._log(line)
        except Exception:  # a log that can't be written must not cost the answer
            pass

    def report(self) -> None:
        """Write the traceback of the exception that is being handled, a bug in the emulator, to the log."""
        import traceback

        for line in traceback.format_exc().splitlines():
            self._write("imds: " + line)

    # --- operations on the VM

    def instance(self) -> "Dict[str, Any]":
        """A copy of the instance document, complete."""
        return dict(copied(self.service.instance))

    def update(self, patch: "Mapping[str, Any]") -> None:
        """Change the running VM by a JSON merge patch (RFC 7386) of its instance document.

        >>> vm.update({"compute": {"tags": "Department:IT"}})

        Where only one of tags and tagsList changes, the other follows. Raises ValueError, and changes nothing, where
        a value has the wrong shape.
        """
        self.service.update(patch)
        self._moment = None

    def identities(self, identities: "Optional[Iterable[Any]]" = None) -> "List[Dict[str, str]]":
        """Return the managed identities: dicts of type, clientId, objectId and resourceId, all str. ``identities``
        replaces them first: a list of such dicts, with some of these keys or a name, or of "system", "user:NAME" or
        "user:NAME,client_id=...,object_id=...,resource_id=..."; other ids are derived from the VM's."""
        if identities is not None:
            self.service.set_identities(identities)
            self._moment = None
        return self.service.identities()

    def load_balancer(self, load_balancer: "Any" = None) -> "Any":
        """Return the load balancer's document, or None. ``load_balancer`` replaces it first: a document, true for a
        sample, false for none. Raises ValueError."""
        if load_balancer is not None:
            self.service.set_load_balancer(load_balancer)
            self._moment = None
        return copied(self.service.load_balancer())

    def attested(self, nonce: str = "", *, api_version: str = NEWEST, flaw: "Optional[str]" = None) -> "Dict[str, str]":
        """Return the attested document, {"encoding": "pkcs7", "signature": base64}. ``flaw``: one that a verifier must
        refuse: signer, signature, expired, nonce, vmId or domain. Raises ValueError."""
        if len(check(nonce, str, "nonce")) > MAX_NONCE:
            raise ValueError("a nonce has at most %d characters" % MAX_NONCE)
        known(api_version, [each for each in GA_VERSIONS if each >= min(ATTESTED_VERSIONS)], "api-version")
        return self.service.attested(api_version, nonce, None if flaw is None else known(flaw, FLAWS, "flaw"))

    def replace(self, instance: "Mapping[str, Any]") -> None:
        """Serve another VM, a document as for Emulator, with the same list of events. Raises ValueError."""
        self._restart(dict(self._settings, instance=instance, profile=None, events=self.service.events))

    def _restart(self, settings: "Dict[str, Any]") -> None:
        old, self.service = self.service, Service(self.clock, **settings)
        self.service.base, self.service.count = old.base, old.count
        self._moment = None

    def reset(self) -> None:
        """Restore the VM, its events, the clock, the journal and the faults to how they started."""
        self.clock.reset()
        self._restart(self._settings)
        for each in self.siblings:  # which share them
            each.service.events, each._moment = self.service.events, None
        self._rows.clear()
        self.cleared = self.service.count
        self._begin()

    # --- operations on events and the clock

    def schedule(
        self, kind: str, *, resources: "Optional[Iterable[str]]" = None, after: "Optional[float]" = None,
        at: "Optional[float]" = None, duration: "Optional[int]" = None, source: str = "Platform",
        description: "Optional[str]" = None, lasts: "Optional[float]" = None,
        cancelled_after: "Optional[float]" = None,
    ) -> str:
        """Schedule an event and return its EventId.

        kind             the EventType: Freeze, Reboot, Redeploy, Preempt or Terminate
        resources        names of VMs. None: this one
        after, at        NotBefore, in seconds from now, or since 1970. None: the notice that the type is documented
                         to give
        duration         DurationInSeconds, -1 is unknown. None: the type's
        source           "Platform" or "User"
        description      None: what the service says for that type and source
        lasts            seconds for which it is Started. None: the type's
        cancelled_after  seconds from now until it is cancelled. None: it is not

        It is Scheduled, then Started when it is approved or NotBefore comes, and ``lasts`` later it is gone.
        Raises ValueError for a value that no event can have.
        """
        row, now = EVENT_TYPES[known(kind, EVENT_TYPES, "EventType")], self.clock()
        known(source, ("Platform", "User"), "EventSource")
        if isinstance(resources, (str, dict)):
            raise ValueError("resources must be a list of names, not %r" % (resources,))
        if after is not None and at is not None:
            raise ValueError("after or at, not both")
        notice = number("after", row.notice if after is None else after, -1e9, 1e9)
        starts = now + notice if at is None else number("at", at, 0, LAST_CLOCK)
        cancelled = float("inf") if cancelled_after is None else now + number(
            "cancelled_after", cancelled_after, 0, 1e9)
        lasts = number("lasts", row.lasts if lasts is None else lasts, 0, 1e9)
        duration = row.duration if duration is None else check(duration, int, "duration")
        compute, events = self.service.instance["compute"], self.service.events
        shown: "Dict[str, Any]" = {
            "EventId": guid(compute["vmId"], str(now), str(events.incarnation)).upper(),
            "EventStatus": "Scheduled", "EventType": kind, "ResourceType": "VirtualMachine",
            "Resources": [compute["name"]] if resources is None else list(resources),
            "NotBefore": http_date(number("NotBefore", starts, 0, LAST_CLOCK)),
            "Description": row.descriptions.get(source, "") if description is None else description,
            "EventSource": source, "DurationInSeconds": int(number("duration", duration, -1, 1e9)),
        }
        if "" in shown["Resources"]:
            raise ValueError("resources has a name that is empty")
        check_event(shown)
        events.add(shown, starts=starts, cancelled=cancelled, lasts=lasts)
        return str(shown["EventId"])

    def play(self, scenario: str) -> str:
        """Schedule the event of one of Azure's own scenarios: live-migration, user-reboot, host-agent-maintenance,
        redeploy, user-redeploy or cancelled-maintenance. Returns its EventId."""
        return self.schedule(**SCENARIOS[known(scenario, SCENARIOS, "scenario")])

    def approve(self, event_id: str) -> None:
        """Start an event now, as a client's approval does. Raises ValueError where there is none."""
        events = self.service.events
        events.approve(events.named([check(event_id, str, "event_id")]))

    def cancel(self, event_id: str) -> None:
        """Take an event off the list. Raises ValueError where there is none."""
        self.service.events.cancel(check(event_id, str, "event_id"))

    def events(self) -> "Dict[str, Any]":
        """The list of scheduled events, as the newest version shows it."""
        return dict(json.loads(self.service.events.text(EVENTS_NEWEST, False)))

    def now(self) -> float:
        """The time of the clock, in seconds since 1970."""
        return float(self.clock())

    def advance(self, seconds: float) -> None:
        """Move the clock forward by ``seconds``, at once."""
        self.clock.advance(number("seconds", seconds, 0, LAST_CLOCK))

    def freeze(self) -> None:
        """Stop the clock; only ``advance`` still moves it."""
        self.clock.freeze()

    def resume(self, scale: "Optional[float]" = None) -> None:
        """Let the clock run again, ``scale`` times as fast as real time; None: as fast as at first."""
        self.clock.resume(None if scale is None else number("scale", scale, 0, 1e9))

    # --- operations with faults

    def fail(self, playbook: str, *, seed: "Optional[int]" = None) -> "Dict[str, Any]":
        """Let the service fail by a playbook, "[WHERE:] STEP, STEP, ...", or by the name of a situation.

        Each request that matches takes one step; after the last, the service answers normally. WHERE: a verb, a path
        below /metadata, or both; without it all requests match. STEP: a status (400 403 404 410 429 500 502 503 504),
        reset, hang, cut, drip, portal, broken, huge, redirect or ok, with "delay 3s" before it, or that alone; then how
        often: once, or "x2", "for 60s" (on the clock), "every 3", "p 0.2", "always". Returns {"playbook": str, "seed":
        int}; the ``seed`` decides the chances of "p". Raises ValueError, which says where a playbook is wrong.
        """
        text = SITUATIONS[playbook].playbook if check(playbook, str, "playbook") in SITUATIONS else playbook
        seed = int(self.clock() * 1000) % 2**31 if seed is None else check(seed, int, "seed")
        self.faults()  # which drops those that are over
        self._playbooks.append(_Playbook(text, seed))
        self._moment = None
        return {"playbook": text, "seed": seed}

    def recover(self) -> None:
        """End all faults."""
        self._playbooks = []

    def faults(self) -> "List[str]":
        """The playbooks that are not over."""
        self._playbooks = [each for each in self._playbooks if not each.is_over(self.clock())]
        return [each.text for each in self._playbooks]

    def _step_for(self, request: "Request") -> "Tuple[bool, Optional[_Step]]":
        """Whether a playbook matches a request, and the step of the first that does not spare it, or None."""
        if self.service.is_foreign(request):  # it is refused, with or without faults
            return False, None
        names, now, matched = parse_target(request.target).names, self.clock(), False
        for playbook in self._playbooks:
            if playbook.matches(request.verb, names) and not playbook.is_over(now):
                matched, step = True, playbook.step(now)
                if step:
                    return True, step
        return matched, None

    def _misbehave(self, step: "_Step", request: "Request") -> "Response":
        """The answer that a step asks for. If only its sending is to fail, room 7 sees to that."""
        if step.action in FAULT_STATUSES:
            as_text = parse_target(request.target).query.get("format") == "text"
            rule = FAULT_STATUSES[step.action]
            return self.service.refuse("throttled-text" if rule == "throttled" and as_text else rule, request)
        if step.action in FAULT_ANSWERS:
            status, content_type, body, _ = FAULT_ANSWERS[step.action]
            body = body.replace(b"$filler", b"x" * FILLER_SIZE) if b"$filler" in body else body
            headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
            if step.action == "redirect":
                headers.append(("Location", REDIRECTED + request.target))
            self.service.count += 1
            return Response(status, headers, body, None, False)
        response = self.service.respond(request)
        if step.action == "broken":
            body = response.body[:len(response.body) // 2]
            shorter = dict(response.headers, **{"Content-Length": str(len(body))})
            response = response._replace(headers=list(shorter.items()), body=body)
        return response

    # --- operations on the journal

    @property
    def journal(self) -> "List[Exchange]":
        """The last JOURNAL_SIZE exchanges, the newest last."""
        return list(map(_whole, self._rows))

    def requests(
        self, path: "Optional[str]" = None, *, verb: "Optional[str]" = None,
        headers: "Optional[Mapping[str, str]]" = None, query: "Optional[Mapping[str, str]]" = None, since: int = 0,
    ) -> "List[Exchange]":
        """Return the exchanges in the journal, newest last, that have this path, this verb, at least these headers and
        query parameters, and a number above ``since``; None fits all."""
        expected = _Expected(path, verb=verb, headers=headers, query=query)
        check(since, int, "since")
        recent = map(_whole, itertools.takewhile(lambda row: row[0] > since, reversed(self._rows)))
        return [each for each in recent if not expected.differences(each.request)][::-1]

    def assert_requested(self, path: str, *, times: "Optional[int]" = None, **like: "Any") -> None:
        """Raise AssertionError unless there was such a request, or exactly so many ``times``; it shows the most similar
        other requests, and how they differ. ``like``: verb, headers and query, as for ``requests``."""
        found, expected = self.requests(path, **like), _Expected(path, **like)
        check(0 if times is None else times, int, "times")
        if len(found) == times or times is None and found:
            return

        def distance(row: "Tuple[List[str], Exchange]") -> "Tuple[int, int, int]":
            common = os.path.commonprefix([row[1].request.target, str(expected.path)])
            return len(row[0]), -len(common), -row[1].number

        others = ((expected.differences(each.request), each) for each in self.journal)
        nearest = sorted((row for row in others if row[0]), key=distance)[:3]
        lines = ["%s like %s, expected %s" % (counted(len(found)), expected, "1 or more" if times is None else times)]
        lines += ["  " + str(each) for each in found[-3:]]
        lines += ["  %s\n    %s" % (each, "; ".join(differences)) for differences, each in nearest]
        raise AssertionError("\n".join(lines if nearest else lines + ["  there was no other request"]))

    def assert_not_requested(self, path: str, **like: "Any") -> None:
        """Raise AssertionError if there was such a request. ``like``: as for ``assert_requested``."""
        found = self.requests(path, **like)
        if found:
            first = "%s like %s, expected none" % (counted(len(found)), _Expected(path, **like))
            raise AssertionError("\n  ".join([first] + [str(each) for each in found[:3]]))

    def lint(self) -> "List[Dict[str, Any]]":
        """Return which published rules the clients in the journal break: dicts of rule, count, seen (the first such
        request), says (the rule in words), mark ("documented", "observed" or "chosen") and source (who says it)."""
        journal = self.journal
        found = [(name, rule, list(rule.find(journal))) for name, rule in LINT.items()]
        return [{"rule": name, "count": len(those), "seen": str(those[0]), "says": rule.says, "mark": rule.mark,
                 "source": rule.source} for name, rule, those in found if those]

    # --- control over HTTP

    def _controlled(self, request: "Request") -> "Response":
        """The answer of /imds/: an operation by its name, the list of them, or, for a browser, the page."""
        raw_path, _, raw_query = request.target.partition("?")
        name = raw_path[len("/imds"):].strip("/")
        if not is_local(request.headers.get("host", ""), self._hosts):
            return self._said(400, {"error": "no web page is let in: allow the Host by --allow-host, or allow_hosts"})
        if not name and request.verb == "GET" and "text/html" in request.headers.get("accept", ""):
            return self._said(200, None, PAGE.encode())
        if request.headers.get("metadata", "").lower() != "true":
            return self._said(400, {"error": "the header Metadata: true is needed"})
        try:
            if not name and request.verb == "GET":
                return self._said(200, {each: describe(each) for each in OPERATIONS})
            known(name, OPERATIONS, "operation")
            if request.verb == "POST":
                if raw_query:
                    raise ValueError("the arguments of a POST come as JSON in its body")
                arguments = check(load_json(request.body) if request.body.strip() else {}, dict, "the body")
            elif request.verb == "GET" and name in READING:
                pairs = dict(urllib.parse.parse_qsl(raw_query, keep_blank_values=True))
                if name != "requests" and set(pairs) - {"vm"}:
                    raise ValueError("%s takes no arguments by GET; POST them" % name)
                arguments = read_arguments(name, pairs)
            else:
                return self._said(405, {"error": "POST it", "operation": name})
            return self._said(200, {"result": self.operate(name, arguments)})
        except (UnicodeDecodeError, json.JSONDecodeError):
            return self._said(400, {"error": 'the body must be JSON, like {"kind": "Reboot"}'})
        except (ValueError, AssertionError) as error:
            return self._said(400, {"error": str(error) or type(error).__name__})

    def operate(self, name: str, arguments: "Mapping[str, Any]") -> "Any":
        """Do the operation ``name``; return its result as JSON can carry it. The argument ``vm``, an int, says on which
        of several VMs. Raises ValueError."""
        import inspect

        given = dict(arguments)
        vm = given.pop("vm", None)
        if vm is not None and not 0 <= check(vm, int, "vm") < len(self.siblings):
            raise ValueError("vm must be from 0 to %d, not %r" % (len(self.siblings) - 1, vm))
        method = getattr(self if vm is None else self.siblings[vm], name)
        signature = inspect.signature(method)
        if not any(each.kind == each.VAR_KEYWORD for each in signature.parameters.values()):
            for argument in given:
                known(argument, list(signature.parameters) or ["no arguments"], "argument of " + name)
        try:
            signature.bind(**given)  # which says in better words than a call what is missing
            check_plain(given, "the arguments")
            if name == "reset" and vm is None:  # all share the clock and the events, which go back with any of them
                for each in self.siblings:
                    each.reset()
                return None
            result = method(**given)
        except TypeError as error:  # from within it, too: a type that no check foresaw
            raise ValueError("%s; it is %s" % (error, describe(name)["signature"])) from None
        return [each.as_dict() for each in result] if name == "requests" else result

    def _said(self, status: int, content: "Any", page: bytes = b"") -> "Response":
        body = page or (format_json(content) + "\n").encode()
        headers = [("Content-Type", HTML_TYPE + "; charset=utf-8" if page else JSON_TYPE),
                   ("Content-Length", str(len(body))), ("Cache-Control", "no-store"),
                   ("X-Content-Type-Options", "nosniff")]
        if page:
            headers.append(("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src "
                                                       "'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"))
        return Response(status, headers, body, None, False)


OPERATIONS = (
    "advance", "approve", "assert_not_requested", "assert_requested", "attested", "cancel", "events", "fail", "faults",
    "freeze", "identities", "instance", "lint", "load_balancer", "now", "play", "recover", "requests", "reset",
    "resume", "schedule", "update",
)
READING = ("events", "faults", "identities", "instance", "lint", "load_balancer", "now", "requests")  # so by GET, too


def describe(name: str) -> "Dict[str, str]":
    import inspect

    method = getattr(Bench, name)
    signature = re.sub(r"\(self(?:, )?", "(", re.sub(r"(: ?|-> )'([^']+)'", r"\1\2", str(inspect.signature(method))))
    return {"signature": name + signature, "documentation": inspect.getdoc(method) or ""}


def read_arguments(name: str, texts: "Mapping[str, str]") -> "Dict[str, Any]":
    """Parse arguments of an operation: JSON where it takes no str. A list may be names with "," or "+" between, or one
    item that is no JSON; what else is no JSON stays text, which the operation refuses."""
    kinds, arguments = getattr(Bench, name).__annotations__, {}  # type: Any, Dict[str, Any]
    for key, text in texts.items():
        kind, arguments[key] = kinds.get(key), text  # kind: a type, or a string with one
        if kind not in (str, "Optional[str]"):
            try:
                arguments[key] = load_json(text.encode())
            except ValueError:
                if "Iterable" in str(kind):
                    arguments[key] = re.split("[,+]", text) if "Iterable[str]" in kind else [text]
    return arguments


def number(name: str, value: "Any", least: float, most: float) -> float:
    """``value``, if it is a number of that range; else a ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError("%s must be a number from %g to %g, not %r" % (name, least, most, value))
    return value


def duration(text: str) -> float:
    """Seconds of "30s", "15m", "1h", "300ms" or "30". Raises ValueError."""
    found = re.match(r"(-?[0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|)\Z", text)
    if not found:
        raise ValueError("a time is like 30s, 15m or 1h, not %r" % text)
    return float(found.group(1)) * {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600}[found.group(2)]


# --- playbooks

# delay: seconds; action: a key of FAULT_STATUSES, FAULT_ANSWERS or FAULT_MANNERS; often: "x", "for", "every", "p" or
# "always"; amount: the number that belongs to it.
class _Step(collections.namedtuple("_Step", "delay action often amount")):
    def __str__(self) -> str:
        return "delay %gs %s" % (self.delay, self.action) if self.delay else str(self.action)


HOW_OFTEN = (r"(?:x(?P<x>[0-9]{1,6})|for (?P<for>\S+)|every (?P<every>[0-9]{1,6})"
             r"|p (?P<p>0?\.\d{1,9}|0|1)|always(?P<always>))\Z")
VERBS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT")


class _Playbook:
    """Which requests a playbook matches, and the steps that it has left."""

    def __init__(self, text: str, seed: int) -> None:
        import random

        self.text, self._random = text, random.Random(seed)
        where, colon, steps = text.rpartition(":")
        words, at = where.split(), len(where) + len(colon)
        self._verb = words.pop(0) if words and words[0].isupper() else None
        names = [name for name in "".join(words).split("/") if name]
        if self._verb not in (None,) + VERBS:
            self._fail(0, self._verb, nearest_of(self._verb, VERBS, 0.5) or "one of " + " ".join(VERBS))
        if len(words) > 1 or colon and not (self._verb or names):
            self._fail(0, where.strip(), "a path, like instance or POST scheduledevents")
        if names[:1] == ["metadata"]:
            del names[0]
        path = "/".join(names)
        if names and names[0] != "instance" and not any((name + "/").startswith(path + "/") for name in ENDPOINTS):
            meant = nearest_of(path, list(COMPONENTS) + list(ENDPOINTS), 0.6)
            self._fail(where.find(words[0]), words[0], meant or "one of " + " ".join(COMPONENTS))
        self._names = ("metadata", *names) if names else ()  # with which a target has to begin
        self._steps: "List[_Step]" = []
        for part in steps.split(","):
            if self._steps and self._steps[-1].often in ("always", "every", "p"):
                self._fail(at, part.strip(), "nothing, for %s never ends" % self._steps[-1].often)
            self._steps.append(self._read(part, at))
            at += len(part) + 1
        self._used, self._until = 0, float("inf")  # how often the first step was taken, and when a step "for" is over

    def _fail(self, at: int, found: "Optional[str]", wanted: str) -> "NoReturn":
        """Raise the ValueError about what is at this index of the playbook, or behind the blanks there."""
        at += len(self.text[at:]) - len(self.text[at:].lstrip())
        raise ValueError("the playbook %r is wrong at %d: where %r stands there could be %s" % (
            self.text, at + 1, found or "nothing", wanted))

    def _read(self, text: str, at: int) -> "_Step":
        """Read one step; ``at``: its index in the playbook."""
        rest, delay, action = text.split(), 0.0, ""
        fail = functools.partial(self._fail, at, " ".join(rest))
        if rest[:1] == ["delay"]:
            try:
                delay, rest = duration(rest[1]), rest[2:]
            except (IndexError, ValueError):
                fail("a time, like in delay 3s")
        actions = list(FAULT_STATUSES) + list(FAULT_ANSWERS) + list(FAULT_MANNERS)
        if rest and rest[0] in actions:
            action = rest.pop(0)
        elif not delay:
            if text.strip() in SITUATIONS:
                fail("%s; a situation stands alone" % SITUATIONS[text.strip()].playbook)
            meant = nearest_of(text.strip(), SITUATIONS, 0.7)
            fail("the situation %s, alone" % meant if meant else "delay 3s or one of " + " ".join(actions))
        found = re.match(HOW_OFTEN, " ".join(rest) or "x1")
        if not found:
            for end, word in enumerate(rest):
                if word in actions and re.match(HOW_OFTEN, " ".join(rest[:end]) or "x1"):
                    fail("a comma before " + word)
            fail("x2, for 60s, every 3, p 0.2 or always, behind " + (action or "a delay"))
        often = str(found.lastgroup)
        try:
            amount = duration(found.group(often)) if often == "for" else float(found.group(often) or 1)
        except ValueError:
            amount = 0
        if often != "p" and amount <= 0:
            fail("for 60s" if often == "for" else "a number from 1, behind " + often)
        if not 0 <= delay <= 86400:
            fail("a delay of at most a day")
        return _Step(delay, action or "ok", often, amount)

    def matches(self, verb: str, names: "Tuple[str, ...]") -> bool:
        return self._verb in (None, verb) and names[:len(self._names)] == self._names

    def is_over(self, now: float) -> bool:
        """Drop the first step if it was taken often or long enough; return whether none is left."""
        first = self._steps[0] if self._steps else None
        if first and (now >= self._until or first.often == "x" and self._used >= first.amount):
            del self._steps[0]
            self._used, self._until = 0, float("inf")
        return not self._steps

    def step(self, now: float) -> "Optional[_Step]":
        """The step for one request, or None if this one is spared."""
        step = self._steps[0]
        self._used += 1
        if step.often == "for" and self._used == 1:
            self._until = now + step.amount
        spared = (step.often == "every" and self._used % step.amount
                  or step.often == "p" and self._random.random() >= step.amount)
        return None if spared else step


# --- the journal

class _Expected:
    """What a request should be like. None, or a header or parameter that is not named, fits anything."""

    def __init__(self, path: "Any", *, verb: "Any" = None, headers: "Any" = None, query: "Any" = None) -> None:
        for name, value, kind in (("path", path, str), ("verb", verb, str), ("headers", headers, dict),
                                  ("query", query, dict)):
            check(kind() if value is None else value, kind, name)
        if path is not None and not path.startswith(("/", "http://")):  # as in a playbook
            known(path.partition("?")[0].partition("/")[0], COMPONENTS, "path below /metadata")
            path = "/metadata/" + path
        self.path, self.verb, self.headers, self.query = path, verb, headers or {}, query or {}

    def __str__(self) -> str:
        more = ["%s: %s" % each for each in self.headers.items()] + ["%s=%s" % each for each in self.query.items()]
        return " ".join(filter(None, [self.verb, self.path])) + (" (%s)" % ", ".join(more) if more else "")

    def differences(self, request: "Request") -> "List[str]":
        """How a request differs, in words."""
        if self.path is None and self.verb is None and not (self.headers or self.query):  # for speed
            return []
        asked, wanted, found = parse_target(request.target), parse_target(self.path or ""), []
        if self.path is not None and wanted.names != asked.names:
            found.append("path /%s, not /%s" % ("/".join(asked.names), "/".join(wanted.names)))
        if self.verb is not None and self.verb != request.verb:
            found.append("verb %s, not %s" % (request.verb, self.verb))
        rows = [("header " + name, request.headers.get(name.lower()), value) for name, value in self.headers.items()]
        rows += [(name, asked.query.get(name), value) for name, value in dict(wanted.query, **self.query).items()]
        return found + ["%s is %r, not %r" % row for row in rows if row[1] != row[2]]


def _whole(row: "Tuple[Any, ...]") -> "Exchange":
    """A row of the journal: an Exchange; or number, time and peer of a repetition, and the Exchange that it repeats."""
    return row if isinstance(row, Exchange) else Exchange._make(row[:3] + row[3][3:])


def counted(count: int) -> str:
    return "%s request%s" % (count or "no", "" if count <= 1 else "s")


def masked(exchange: "Exchange") -> "Exchange":
    """An exchange without secrets, like tokens and Authorization, cut to the size that the journal keeps."""
    request, response, names = exchange.request, exchange.response, " ".join(exchange.request.headers)
    target, plain = request.target, urllib.parse.unquote(request.target).lower()
    if re.search(SECRET, names):
        secret = [name for name in request.headers if re.search(SECRET, name)]
        request = request._replace(headers=dict(request.headers, **dict.fromkeys(secret, "(masked)")))
    if request.body and ("identity" in plain or re.search(SECRET.encode(), request.body.lower())):
        request = request._replace(body=b"(masked)")
    if re.search(SECRET_PARAMETER, plain) or not plain.startswith("/"):
        request = request._replace(target=_masked_target(request))
        response = response._replace(headers=[  # as where a redirect leads to
            (name, value.replace(target, request.target)) for name, value in response.headers])
    if b'"access_token"' in response.body[:32]:
        response = response._replace(body=re.sub(b'("access_token":")[^"]*', rb"\1(masked)", response.body, count=1))
    if len(request.body) + len(request.target) + len(names) + sum(map(len, request.headers.values())) > MAX_KEPT:
        headers = {name[:200]: value[:200] for name, value in list(request.headers.items())[:50]}
        request = request._replace(target=request.target[:8192], headers=headers, body=request.body[:4096])
    if len(response.body) > MAX_KEPT:
        response = response._replace(body=response.body[:MAX_KEPT])
    if request is exchange.request and response is exchange.response:
        return exchange
    return exchange._replace(request=request, response=response)


def _masked_target(request: "Request") -> str:
    """A target without the secrets in its parameters, or without its user; or a line that is no request."""
    def masked_pair(pair: str) -> str:
        name, _, value = pair.partition("=")
        is_secret = value and re.search(SECRET_PARAMETER, urllib.parse.unquote(pair).lower())
        return name + "=(masked)" if is_secret else pair

    if not request.verb and not re.match(r"\S+ \S+ HTTP/", request.target):
        return "(masked)" if re.search(SECRET, request.target.lower()) else str(request.target)
    path, question, query = str(request.target).partition("?")
    return re.sub("//[^/]*@", "//(masked)@", path) + question + "&".join(map(masked_pair, query.split("&")))


def log_line(exchange: "Exchange") -> str:
    """The line of http.server's access log, with the reason of a refusal, or the fault, at its end."""
    request, rule = exchange.request, exchange.rule
    line = "%s %s %s" % (request.verb, request.target, request.version) if request.verb else request.target
    if not line.isprintable() or '"' in line:
        line = "".join(char if char.isprintable() and char != '"' else "\\x%02x" % ord(char) for char in line)
    reason = REFUSALS[rule].reason if rule else "-"
    return '%s - - [%s] "%s" %d %s' % (
        exchange.peer, _log_time(int(exchange.time)), line, exchange.response.status,
        "fault: " + exchange.fault if exchange.fault else reason)


@functools.lru_cache(maxsize=1)
def _log_time(seconds: int) -> str:
    now = time.localtime(seconds)
    return "%02d/%s/%d %02d:%02d:%02d" % (now[2], MONTHS[now[1] - 1], now[0], now[3], now[4], now[5])


# --- the judge of clients

def _is_meant(each: "Exchange") -> bool:
    """Whether a request is for this service. Other clouds have theirs elsewhere, and DigitalOcean at /metadata/v1."""
    names = each.asked.names
    return names[:1] == ("metadata",) and names[1:2] not in (("v1",), ("v1.json",))


def _is_probe(each: "Exchange") -> bool:
    """Whether an SDK only wants to know if there is an identity service: it leaves out the header or, formerly, all
    parameters, and takes the 400 for a yes."""
    return each.asked.names[1:2] == ("identity",) and (each.rule == "metadata" or not each.asked.query)


def _each(is_wrong: "Callable[[Exchange], Any]") -> "Callable[..., Iterator[Exchange]]":
    """Make a rule that finds each request for this service for which ``is_wrong`` is true."""
    return lambda journal: (each for each in journal if _is_meant(each) and is_wrong(each))


def _again(
    is_wrong: "Callable[[Exchange, Exchange], Any]", key: "Callable[[Exchange], Any]",
) -> "Callable[..., Iterator[Exchange]]":
    """Make a rule that compares each request of a client with its last one of the same ``key`` (None: skip it)."""
    def find(journal: "Iterable[Exchange]") -> "Iterator[Exchange]":
        last: "Dict[Any, Exchange]" = {}
        for each in journal:
            what = key(each)
            if what is not None:
                which = _sender(each), what
                if which in last and is_wrong(last[which], each):
                    yield each
                last[which] = each
    return find


def _too_soon(endpoint: str, is_soon: "Callable[[Exchange, Exchange], bool]") -> "Callable[..., Iterator[Exchange]]":
    """Make a rule that compares each GET of an endpoint itself with the last one of that target, if that had been
    answered in full, with 200, by then."""
    def target_of(each: "Exchange") -> "Optional[str]":
        is_of_it = each.asked.endpoint == endpoint and not each.asked.rest and each.request.verb == "GET"
        return each.request.target if is_of_it else None

    def is_wrong(last: "Exchange", each: "Exchange") -> bool:
        was_answered = last.response.status == 200 and last.manner == "ok" and each.time >= last.time + last.seconds
        return was_answered and is_soon(last, each)

    return _again(is_wrong, target_of)


def _sender(each: "Exchange") -> "Tuple[Any, ...]":
    """Who sent a request, as far as can be told."""
    return each.peer, each.vm, each.request.headers.get("user-agent")


def _bursts(journal: "Iterable[Exchange]") -> "Iterator[Exchange]":
    """Requests to the identity service that come while IDENTITY_AT_ONCE others may not be answered yet."""
    recent: "Any" = collections.deque(maxlen=IDENTITY_AT_ONCE + 1)
    for each in journal:
        if each.asked.names[:2] == ("metadata", "identity") and each.request.headers.get("metadata"):
            recent.append(each)
            if len(recent) > IDENTITY_AT_ONCE and each.time - recent[0].time < max(0.05, recent[0].seconds):
                yield each


def _gave_up(journal: "Iterable[Exchange]") -> "Iterator[Exchange]":
    """The last 410 that a client got for a target, where it gave up much too soon."""
    gone: "Dict[Any, List[Exchange]]" = {}  # client and target -> its 410s since the last other answer
    for each in journal:
        which = _sender(each), each.request.target
        if each.response.status == 410 and _is_meant(each):
            gone.setdefault(which, []).append(each)
        else:
            gone.pop(which, None)
    return (those[-1] for those in gone.values() if those[-1].time - those[0].time < PATIENCE[""].gone - 20)


def _insists(journal: "Iterable[Exchange]") -> "Iterator[Exchange]":
    """Requests that are the same as one refused with 400; but a probe is no mistake."""
    refused: "Dict[Any, set[Any]]" = {}  # client and path -> what was refused there since the last other answer
    for each in journal:
        headers = map(each.request.headers.get, ("metadata", "host", "x-forwarded-for"))  # others may hold a new id
        what = each.request.verb, each.request.target, each.request.body, tuple(headers)
        which = _sender(each), each.asked.names
        if each.response.status != 400:  # the client has put it right, say the api-version
            refused.pop(which, None)
        elif _is_meant(each) and not _is_probe(each):
            if what in refused.setdefault(which, set()):
                yield each
            refused[which].add(what)


# Versions of endpoints that seldom get new ones, by the first name below /metadata: however old, they are good.
CURRENT_VERSIONS = {"scheduledevents": EVENT_VERSIONS[-2:],
                    "identity": ("2018-02-01", "2019-08-01", "2020-06-01", "2021-02-01")}  # of its documentation


def _old(journal: "Iterable[Exchange]") -> "Iterator[Exchange]":
    """Requests of an api-version that is more than three years old, and not for want of a newer one."""
    offered = {PREVIEW}  # it has a rule of its own; and what the service said to be its newest
    for each in journal:
        asked, version = each.asked, each.asked.query.get("api-version", "")
        if _is_meant(each) and re.match(DATE, version):
            good = offered.union(CURRENT_VERSIONS.get("".join(asked.names[1:2]), ()))
            three_years_ago = time.strftime("%Y-%m-%d", time.gmtime(max(0, each.time - 3 * 365 * 86400)))
            if version not in good and version < three_years_ago:
                yield each
        if each.rule == "version-unknown-2018":
            offered.add(CLOUDS["AzurePublicCloud"].versions_in_2018[-1])
        elif asked.endpoint == "versions" or each.rule and each.rule.startswith("version"):
            dates = re.findall(r"\d{4}-\d\d-\d\d", each.response.body.decode("utf-8", "replace"))
            offered.update(dates[:1] if each.rule else dates[-1:])


def _hurries(last: "Exchange", each: "Exchange") -> bool:
    """Whether a request comes at once after the answer to the last one, which asked for a pause."""
    pause = each.time - last.time - last.seconds
    return (last.response.status == 429 or last.response.status >= 500) and -0.01 < pause < 0.2 and _is_meant(each)


def _renews_early(last: "Exchange", each: "Exchange") -> bool:
    """Whether a token was good for longer: SDKs renew it after half of its time, or five minutes before its end."""
    found = re.search(rb'"expires_in":"([0-9]{1,12})"', last.response.body)
    left = int(found.group(1)) if found else 0
    return (each.response.status == 200 and "bypass_cache" not in each.request.target
            and each.time - last.time < min(left / 2, left - TOKEN_RENEWED))


# says: the rule in words; mark: how it is known, in the words of room 1; source: who says it, an article of Microsoft's
# by its title; find: takes a list of Exchanges and yields those that break the rule.
LintRule = collections.namedtuple("LintRule", "says mark source find")
INSTANCE_ARTICLE, EVENTS_ARTICLE = "Azure Instance Metadata Service", "Scheduled Events"
TOKENS_ARTICLE, USERS, MAKERS = "How to get a token on a VM", "users of the service", "the makers of this file"
LINT = {
    "no-metadata-header": LintRule(
        "each request needs the header Metadata: true", "documented", INSTANCE_ARTICLE,
        _each(lambda each: each.rule == "metadata" and not _is_probe(each))),
    "through-a-proxy": LintRule(
        "requests must go straight to the service: proxies are to be passed by", "documented", INSTANCE_ARTICLE,
        _each(lambda each: not each.request.target.startswith("/")
              or {"via", "x-forwarded-for"}.intersection(each.request.headers))),
    "no-api-version": LintRule(
        "each request names an api-version", "documented", INSTANCE_ARTICLE,
        _each(lambda each: each.asked.endpoint and each.asked.row.since and each.rule != "metadata"
              and not each.asked.query.get("api-version"))),
    "old-api-version": LintRule(
        "newer versions than one of three years ago say more; old ones may answer slowly", "observed", USERS, _old),
    "preview-api-version": LintRule(
        "2017-03-01 is a preview of another shape, and may not be there", "documented", EVENTS_ARTICLE,
        _each(lambda each: each.asked.query.get("api-version") == PREVIEW)),
    "several-documents": LintRule(
        "one whole document answers every question about a VM; ask for it once", "chosen", MAKERS,
        _too_soon("instance", lambda last, each: each.time - last.time < 5)),
    "polls-too-often": LintRule(
        "scheduled events are to be asked for once a second at most", "documented", EVENTS_ARTICLE,
        _too_soon("scheduledevents", lambda last, each: each.time - last.time < 0.9)),
    "no-pause": LintRule(
        "after 429 or 5xx wait before asking again, longer each time", "documented", TOKENS_ARTICLE,
        _again(_hurries, lambda each: (each.request.verb, each.request.target))),
    "gives-up-on-410": LintRule(
        "410 means that the VM is being moved: ask again for 70 seconds", "documented", TOKENS_ARTICLE, _gave_up),
    "repeats-a-400": LintRule(
        "what was refused with 400 is refused again", "documented", TOKENS_ARTICLE, _insists),
    "identity-burst": LintRule(
        "five requests at once is what the identity service takes", "documented", INSTANCE_ARTICLE, _bursts),
    "token-again": LintRule(
        "a token is good for hours: keep it", "documented", TOKENS_ARTICLE,
        _too_soon("identity/oauth2/token", _renews_early)),
    "leaf-as-json": LintRule(
        "a leaf is to be asked for with format=text", "documented", INSTANCE_ARTICLE,
        _each(lambda each: each.rule == "leaf")),
    "follows-a-redirect": LintRule(
        "the service never redirects: who does is somebody else", "chosen", MAKERS,
        lambda journal: (each for each in journal if each.request.target.startswith(REDIRECTED + "/"))),
    "no-user-agent": LintRule(
        "a User-Agent tells who asks", "chosen", MAKERS,
        _each(lambda each: not each.request.headers.get("user-agent"))),
}

# The page of /imds/: one file, made of the operations above; all that it shows is text, never markup.
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>imds</title>
<style>
:root { color-scheme: light dark; --line: #8886; --bad: #c33; --good: #2a2; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 0 1em 4em; max-width: 70em; }
h2 { font-size: 1.1em; margin: 1.6em 0 .4em; border-bottom: 1px solid var(--line); }
pre, code, td { font: 13px/1.4 ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; }
td { padding: .15em .6em .15em 0; vertical-align: top; overflow-wrap: anywhere; border-bottom: 1px solid var(--line); }
button, input, select { font: inherit; padding: .2em .6em; margin: .1em; }
details { margin-left: 1em; } summary { cursor: pointer; }
.bad { color: var(--bad); } .good { color: var(--good); } #said { min-height: 1.4em; }
#requests { max-height: 26em; overflow: auto; }
</style>
<h1>imds <small id="vm"></small></h1>
<p id="said" role="status"></p>
<h2>Clock</h2>
<p><span id="clock"></span>
<button data-do="advance" data-with='{"seconds":60}'>+1 min</button>
<button data-do="advance" data-with='{"seconds":900}'>+15 min</button>
<button data-do="freeze">freeze</button> <button data-do="resume">resume</button>
<button data-do="reset">reset all</button></p>
<h2>Scheduled events</h2>
<p><select id="kind" aria-label="EventType">$kinds</select>
<button id="schedule">schedule</button></p>
<table id="events"></table>
<h2>Faults</h2>
<p><input id="playbook" size="34" list="situations" aria-label="playbook" placeholder="instance: 500 x2, delay 3s">
<datalist id="situations">$situations</datalist>
<button id="fail">start</button> <button data-do="recover">end all</button></p>
<table id="faults"></table>
<h2>Requests</h2>
<div id="requests" tabindex="0" aria-label="requests"><table></table></div>
<h2>Judgement</h2>
<table id="lint"></table>
<h2>VM</h2>
<div id="tree"></div>
<script>
"use strict";
const $ = id => document.getElementById(id);
let since = 0, away = "";
const shown = {};
async function ask(name, data) {
  const options = {headers: {Metadata: "true"}};
  if (data !== undefined) { options.method = "POST"; options.body = JSON.stringify(data); }
  const reply = await fetch("/imds/" + name, options), answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error);
  return answer.result;
}
function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}
function row(table, texts, kind, more) {
  const line = table.insertRow();
  for (const text of texts) {
    const cell = line.insertCell();
    cell.textContent = text;
    if (kind) cell.className = kind;
  }
  if (more) line.insertCell().append(...more);
}
function button(text, name, data) {
  const made = element("button", text);
  made.onclick = () => act(name, data);
  return made;
}
async function act(name, data) {
  try {
    const done = await ask(name, data || {});
    if (name === "reset") $("requests").firstChild.replaceChildren();
    $("said").textContent = name + ": " + (done === null ? "done" : JSON.stringify(done));
  } catch (error) { $("said").textContent = error.message; }
  await look();
}
function tree(node, name) {
  if (node === null || typeof node !== "object") return element("div", name + ": " + node);
  const made = element("details"); made.open = name === "instance";
  made.append(element("summary", name), ...Object.keys(node).map(key => tree(node[key], key)));
  return made;
}
function changed(name, data) {  // what is the same is left alone, and so keeps the focus
  const text = JSON.stringify(data), other = text !== shown[name];
  shown[name] = text;
  if (other && $(name).contains(document.activeElement)) $("schedule").focus();
  if (other) $(name).replaceChildren();
  return other;
}
async function look() {
  try {
    const [requests, events, faults, lint, vm, now] = await Promise.all(
      ["requests?since=" + since, "events", "faults", "lint", "instance", "now"].map(name => ask(name)));
    $("clock").textContent = new Date(now * 1000).toISOString().slice(0, 19) + "Z";
    for (const each of requests) {
      if (each.number <= since) continue;
      since = each.number;
      row($("requests").firstChild, [each.number, each.verb + " " + each.target, each.status, each.rule || "",
          each.fault || "", each.headers["user-agent"] || ""], each.status < 400 ? "good" : "bad");
      $("requests").scrollTop = 1e9;
    }
    if (changed("events", events)) for (const each of events.Events)
      row($("events"), [each.EventStatus, each.EventType, each.NotBefore, each.Resources.join(", "), each.Description],
          "", ["approve", "cancel"].map(name => button(name, name, {event_id: each.EventId})));
    if (changed("faults", faults)) for (const each of faults) row($("faults"), [each], "bad");
    if (changed("lint", lint)) for (const each of lint)
      row($("lint"), [each.rule, each.count, each.says, each.seen], "bad");
    if (changed("tree", vm)) {
      $("vm").textContent = vm.compute.name;
      $("tree").append(tree(vm, "instance"));
    }
    if ($("said").textContent === away) $("said").textContent = "";
  } catch (error) {
    $("said").textContent = away = error.message;
    since = 0; $("requests").firstChild.replaceChildren();  // another server may be there next
  }
}
for (const each of document.querySelectorAll("[data-do]"))
  each.onclick = () => act(each.dataset.do, JSON.parse(each.dataset.with || "{}"));
$("schedule").onclick = () => act("schedule", {kind: $("kind").value});
$("fail").onclick = () => act("fail", {playbook: $("playbook").value});
$("playbook").onkeydown = event => { if (event.key === "Enter") $("fail").onclick(); };
setInterval(look, 1000); look();
</script>
""".replace("$situations", "<option>" + "<option>".join(SITUATIONS)).replace(
    "$kinds", "<option>" + "<option>".join(EVENT_TYPES))


# ==================================================================================================
# Room 7: http
#
# HTTP/1.1 without sockets, a Conversation for each client: bytes in, [(seconds to wait, bytes to send), ...]
# and an ending out; knows the bench. The protocol is a generator that yields None where it needs more bytes,
# so it does not matter in which pieces they come, and no piece is parsed twice. Nothing that a client sends
# can make it keep more than the limits below.
# ==================================================================================================

MAX_LINE, MAX_HEADERS, MAX_BODY = 8 * 1024, 64 * 1024, 64 * 1024  # bytes
MAX_CHUNKS = 1024  # of a body
MAX_REPLIES, MAX_REPLY_SIZE = 16, 64 * 1024  # answers in a row, and bytes, before it is the turn of other clients
MAX_REPEATED, MAX_ANSWERS = 4096, 256  # bytes of a request whose answer a Moment keeps; how many answers it keeps
MAX_AT_ONCE = 8 * 1024  # bytes of an answer that are with a client by the time the connection is closed
DRIP_TIME = 0.02  # seconds between two bytes of the fault "drip"
# Verb, target and version. The target is a path, or a URL, as for a proxy; for OPTIONS "*", for CONNECT a host.
REQUEST_LINE = r"([!-~]+) ((?:/|\*|(?i:http://)|(?<=^CONNECT )[!-~])[!-~]*) (HTTP/1\.\d)\Z"
HEAD_END = b"\r?\n\r?\n"  # a line feed will do, for requests typed by hand
CHUNK_LINE = b"([0-9A-Fa-f]{1,16})(?:;[\t -~\x80-\xff]*)?\r\n"
TCHAR = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")  # of RFC 9110

# A kept answer. pieces: its bytes before and after the x-ms-request-id, or all if it has none; ending and lingers of
# the Conversation after it; its Exchange.
Kept = collections.namedtuple("Kept", "pieces ending lingers exchange")


def parse_head(head: bytes) -> "Request":
    """Parse the head of a request, without the empty line at its end. Raises Rejection."""
    lines = head.decode("latin-1").replace("\r\n", "\n").split("\n")
    found = re.match(REQUEST_LINE, lines[0], re.A)
    if not found or not TCHAR.issuperset(found.group(1)):
        raise Rejection("malformed")
    verb, target, version = found.groups()
    return Request(verb, target, parse_headers(lines[1:]), b"", version)


_parse_again = functools.lru_cache(maxsize=64)(parse_head)  # clients repeat themselves


def parse_headers(lines: "Iterable[str]") -> "Dict[str, str]":
    """Parse header lines; a repeated header's values are joined by commas. Raises Rejection."""
    headers: "Dict[str, str]" = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not (name and colon and TCHAR.issuperset(name)) or "\r" in value or "\0" in value:
            raise Rejection("malformed")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = headers[name] + "," + value if name in headers else value
    return headers


def format_response(response: "Response", with_body: bool, connection: str) -> bytes:
    """A response as it is sent; ``connection``: the value of that header, or "" for none."""
    lines = ["HTTP/1.1 %d %s" % (response.status, REASONS[response.status])]
    lines += map(": ".join, response.headers)
    if connection:
        lines.append("Connection: " + connection)
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head + response.body if with_body else head


class Conversation:
    """HTTP with one client.

    ``ending``: "" while it goes on, or what the connection does once all is sent: "close", "reset", or "hang" until the
    client closes it. ``lingers``: before it closes, what the client may still send is to be read; left unread, it would
    reset the connection, and the answer could be lost. ``in_request``: a request has begun and is not complete.
    ``pending``: more requests may be complete, and ``receive()`` with no data answers them.
    """

    def __init__(self, bench: "Bench", peer: str = "127.0.0.1") -> None:
        self._bench, self._peer, self._unread = bench, peer, bytearray()
        self.ending, self.lingers, self.in_request, self.pending = "", False, False, False
        self._machine, self._line = self._run(), ""  # the line of the request that is being read
        self._exchange: "Any" = None  # the last one

    def receive(self, data: bytes = b"") -> "List[Tuple[float, bytes]]":
        """Take what the client sent; return what to send, as [(seconds to wait, bytes), ...]."""
        fresh = not self.in_request and not self._unread
        if fresh:
            moment = self._bench.moment()
            kept = moment.answers.get(data)
            if kept is not None:
                self.ending, self.lingers = kept.ending, kept.lingers
                request_id = self._bench.repeat(kept.exchange, self._peer)
                return [(0, request_id.encode().join(kept.pieces))]
        self._unread += data
        sent: "List[Tuple[float, bytes]]" = []
        replies = size = 0
        self.pending = False
        while not self.ending:
            reply = next(self._machine)
            if reply is None:
                break
            sent += reply
            replies, size = replies + 1, size + sum(len(each) for _, each in reply)
            if replies >= MAX_REPLIES or size >= MAX_REPLY_SIZE:
                self.pending = bool(self._unread) and not self.ending
                break
        if self.ending:
            self._unread.clear()
        if fresh and replies == 1 and not self.in_request and not self._unread and len(data) <= MAX_REPEATED:
            self._keep(moment, data, sent[0][1])
        self._exchange = None
        return sent

    def hold(self, data: bytes) -> None:
        """Keep what the client sent until the next ``receive()``."""
        self._unread += data
        self.pending = True
        if len(self._unread) > MAX_HEADERS + MAX_BODY:
            raise ConnectionAbortedError("a client that is made to wait sends on and on")

    def _keep(self, moment: "Moment", data: bytes, reply: bytes) -> None:
        """Keep an answer in its Moment, if it may be given again."""
        exchange = self._exchange
        if exchange.response.repeats and len(moment.answers) < MAX_ANSWERS:
            request_id = dict(exchange.response.headers).get("x-ms-request-id")
            pieces = reply.split(request_id.encode(), 1) if request_id else [reply]
            moment.answers[data] = Kept(pieces, self.ending, self.lingers, masked(exchange))

    def _run(self) -> "Iterator[Optional[List[Tuple[float, bytes]]]]":
        """Yield what to send for each request in turn; None where more bytes are needed. The generators below do so,
        too; they return what they have read, or raise Rejection."""
        while True:
            while self._unread and self._unread[0] in b"\r\n":  # some clients send a line end after a body
                del self._unread[:1]
            self.in_request = bool(self._unread)
            if not self._unread:
                yield None
                continue
            try:
                request = yield from self._read_head()
                body = yield from self._read_body(request)
            except Rejection as refusal:
                yield self.refuse(refusal.rule)
                return
            self.in_request = False
            yield self._answer(request._replace(body=body) if body else request)

    def _read_head(self) -> "Any":
        self._line = ""
        if chr(self._unread[0]) not in TCHAR:  # as in a TLS handshake, which sends no more until it is answered
            raise Rejection("malformed")
        seen, line_end, head_end = 0, 0, re.compile(HEAD_END)
        while True:
            if not line_end:
                line_end = self._unread.find(b"\n", seen) + 1
                if (line_end - 1 if line_end else len(self._unread)) > MAX_LINE + 1:  # the line, and perhaps a "\r"
                    raise Rejection("line-size")
            found = head_end.search(self._unread, max(0, seen - 3))
            # The limit is without the end of the head: up to four bytes, which may not be complete yet.
            if line_end and (found.start() if found else len(self._unread) - 4) - line_end > MAX_HEADERS:
                raise Rejection("headers-size")
            if found:
                break
            seen = len(self._unread)
            yield None
        raw = bytes(self._unread[:found.start()])
        request = _parse_again(raw) if len(raw) <= MAX_REPEATED else parse_head(raw)
        del self._unread[:found.end()]
        self._line = "%s %s %s" % (request.verb, request.target, request.version)
        if request.version != "HTTP/1.0" and "host" not in request.headers or "," in request.headers.get("host", ""):
            raise Rejection("malformed")
        return request

    def _read_body(self, request: "Request") -> "Any":
        headers, old = request.headers, request.version == "HTTP/1.0"
        length, coding = headers.get("content-length", "0"), headers.get("transfer-encoding", "").lower()
        if "transfer-encoding" in headers and (coding != "chunked" or "content-length" in headers or old):
            raise Rejection("malformed")
        if not length.isdecimal():
            raise Rejection("malformed")
        if len(length) > 20 or int(length) > MAX_BODY:
            raise Rejection("body-size")
        if headers.get("expect", "").lower() == "100-continue" and (coding or int(length)) and not old:
            yield [(0, b"HTTP/1.1 100 Continue\r\n\r\n")]
        return (yield from self._read_chunks() if coding else self._take(int(length)))

    def _read_chunks(self) -> "Any":
        chunks, total = [], 0  # type: List[bytes], int
        while True:
            line = yield from self._read_line()
            found = re.match(CHUNK_LINE, line)
            if not found:
                raise Rejection("malformed")
            size = int(found.group(1), 16)
            if not size:
                break
            total += size
            if total > MAX_BODY or len(chunks) >= MAX_CHUNKS:
                raise Rejection("body-size")
            chunk = yield from self._take(size + 2)
            if not chunk.endswith(b"\r\n"):
                raise Rejection("malformed")
            chunks.append(chunk[:-2])
        trailers = 0
        while line != b"\r\n":
            line = yield from self._read_line()
            trailers += len(line)
            if trailers > MAX_HEADERS:
                raise Rejection("headers-size")
            if not line.endswith(b"\r\n"):
                raise Rejection("malformed")
            parse_headers([line[:-2].decode("latin-1")] if line != b"\r\n" else [])
        return b"".join(chunks)

    def _read_line(self) -> "Any":
        seen = end = 0
        while not end:
            end = self._unread.find(b"\n", seen) + 1
            if (end or len(self._unread)) > MAX_LINE:
                raise Rejection("malformed")
            seen = len(self._unread)
            if not end:
                yield None
        return (yield from self._take(end))

    def _take(self, size: int) -> "Any":
        while len(self._unread) < size:
            yield None
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def _answer(self, request: "Request") -> "List[Tuple[float, bytes]]":
        wish = [word.strip(" \t") for word in request.headers.get("connection", "").lower().split(",")]
        over = "keep-alive" not in wish if request.version == "HTTP/1.0" else "close" in wish
        exchange = self._exchange = self._bench.respond(request, self._peer)
        over = over or exchange.rule == "denied"
        connection = "close" if over else "keep-alive" if request.version == "HTTP/1.0" else ""
        data = format_response(exchange.response, request.verb != "HEAD", connection)
        if over:
            self.ending, self.lingers = "close", bool(request.body or self._unread) or len(data) > MAX_AT_ONCE
        return self._spoiled(exchange, data) if exchange.fault else [(0, data)]

    def _spoiled(self, exchange: "Exchange", data: bytes) -> "List[Tuple[float, bytes]]":
        """An answer in the pieces, and with the pauses, of a fault."""
        manner = exchange.manner
        if manner == "cut":
            body_size = 0 if exchange.request.verb == "HEAD" else len(exchange.response.body)
            data = data[:len(data) - max(1, (body_size or len(data)) // 2)]
            self.ending, self.lingers = "close", True
        elif manner in ("reset", "hang"):
            self.ending, data = manner, b""
        elif manner == "drip":
            drops = [bytes([byte]) for byte in data[:MAX_REPLY_SIZE]]
            drops[-1] += data[MAX_REPLY_SIZE:]  # who waits for more gets the rest at once
            return [(exchange.seconds, drops[0])] + [(DRIP_TIME, drop) for drop in drops[1:]]
        return [(exchange.seconds, data)]

    def refuse(self, rule: str) -> "List[Tuple[float, bytes]]":
        """Refuse what can't be read, or takes too long; return what to send."""
        line = self._line or self._unread[:80].partition(b"\n")[0].decode("latin-1").rstrip("\r")
        self._exchange = self._bench.refuse(rule, line, self._peer)
        with_body = not line.startswith("HEAD ")
        self._unread.clear()
        self.ending, self.lingers, self.in_request = "close", True, False
        return [(0, format_response(self._exchange.response, with_body, "close"))]


# ==================================================================================================
# Room 8: emulator
#
# The service on a port, by way of http.server; knows http. One thread serves every connection: it waits
# until any socket is ready or any timer is due, and never for a single client. Bytes go in and out of a
# Conversation; a timer sends what it wants sent later. An exception ends one connection, and no other.
# ==================================================================================================

REQUEST_TIME, IDLE_TIME, LINGER_TIME = 10, 120, 5  # seconds: to send a request; without any progress; to read the end
READ_SIZE = 16384  # bytes at a time
MAX_BY_SELECT = 480  # connections, where select() is all there is: it takes 512 sockets on Windows


class _Connection:
    """A client's socket and Conversation. unsent: bytes to send now; later: what is to be sent after that, and when;
    since: when its time-out began; awaited: what the selector waits for, 0 is nothing."""

    __slots__ = ("socket", "conversation", "unsent", "later", "since", "awaited")

    def __init__(self, client: "Any", conversation: "Conversation", now: float) -> None:
        self.socket, self.conversation, self.since = client, conversation, now
        self.unsent = b""
        self.later: "List[Tuple[float, bytes]]" = []  # seconds after the piece before it, bytes
        self.awaited = 0

    @property
    def lingering(self) -> bool:
        """All is sent, and the client is to close."""
        return bool(self.conversation.ending) and not (self.unsent or self.later)

    def is_busy(self) -> bool:
        conversation = self.conversation
        return bool(self.unsent or self.later) or conversation.in_request or conversation.ending == "hang"

    def is_overdue(self, now: float) -> bool:
        if self.later or self.conversation.ending == "hang":  # a fault holds it open: no time-out
            return False
        limit = REQUEST_TIME if self.conversation.in_request else IDLE_TIME
        return now - self.since >= (LINGER_TIME if self.lingering else limit)


@functools.lru_cache(maxsize=None)
def _server_class() -> "Any":
    """The class of the server, made on first use: a client need not import http.server."""
    import errno
    import heapq
    import http.server
    import selectors
    import socket
    import socketserver
    import struct

    READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
    TOGETHER = getattr(socket, "MSG_MORE", 0)  # on Linux: the last bytes go in one packet with the end

    class Server(http.server.HTTPServer):
        """An HTTPServer, bound and listening, that serves every connection from one thread."""

        allow_reuse_address = os.name == "posix"  # elsewhere it would let two servers share a port
        request_queue_size = 512
        server_bind = socketserver.TCPServer.server_bind  # HTTPServer's own asks the DNS for a name

        def __init__(self, address: "Tuple[str, int]", bench: "Bench", lock: "Any") -> None:
            # If it can't listen, the base calls server_close(), which needs all of this.
            self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            self.bench, self.lock, self.stopping, self.accepting = bench, lock, False, False
            self.connections: "set[_Connection]" = set()
            self.now = time.monotonic()  # when this turn of the loop began
            self.timers: "List[Tuple[float, int, _Connection]]" = []  # when each connection is to go on
            self.waker, self.woken = socket.socketpair()
            self.selector = selectors.DefaultSelector()
            self.most = MAX_BY_SELECT if isinstance(self.selector, selectors.SelectSelector) else sys.maxsize
            super().__init__(address, Conversation)  # type: ignore[arg-type]  # not a handler class: there is none
            self.socket.setblocking(False)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # every connection inherits it
            self.selector.register(self.woken, READ)
            self.accept_again()

        def serve_forever(self, poll_interval: float = 1) -> None:
            swept, select, guard, serve = time.monotonic(), self.selector.select, self.guard, self.serve
            try:
                while not self.stopping:
                    wait = poll_interval
                    if self.timers:
                        wait = max(0, min(wait, self.timers[0][0] - time.monotonic()))
                    ready = select(wait)
                    self.now = time.monotonic()
                    for key, _ in ready:
                        if key.data is not None:
                            guard(key.data, serve)
                        elif key.fileobj is self.socket:
                            self.accept()
                        else:  # shutdown() was called, if only by a forked child
                            self.woken.recv(READ_SIZE)
                    self.bench.service.new_turn()
                    due = []
                    while self.timers and self.timers[0][0] <= self.now:
                        due.append(heapq.heappop(self.timers)[2])
                    for connection in due:  # what falls due meanwhile can wait its turn
                        guard(connection, self.go_on)
                    if self.now >= swept + poll_interval:
                        swept = self.now
                        self.accept_again()
                        for connection in [each for each in self.connections if each.is_overdue(swept)]:
                            guard(connection, self.time_out)
            finally:
                self.server_close()

        def go_on(self, connection: "_Connection") -> None:
            """Send what is due, or else answer what is pending."""
            if connection.later:
                connection.unsent, connection.since = connection.later.pop(0)[1], self.now
                self.send(connection)
            else:
                self.converse(connection)

        def shutdown(self) -> None:
            self.stopping = True
            try:
                self.waker.send(b"\0")
            except OSError:  # serve_forever() has ended already
                pass

        def server_close(self) -> None:
            super().server_close()
            for each in [connection.socket for connection in self.connections] + [self.waker, self.woken]:
                each.close()
            self.selector.close()

        def accept(self) -> None:
            newcomers: "List[_Connection]" = []
            while len(newcomers) < MAX_REPLIES and (len(self.connections) < self.most or self.make_room()):
                try:
                    client, address = self.get_request()
                except OSError as error:
                    if error.errno in (errno.EMFILE, errno.ENFILE):
                        self.make_room()
                    break
                newcomers.append(_Connection(client, Conversation(self.bench, address[0]), self.now))
                self.connections.add(newcomers[-1])
            self.bench.service.new_turn()  # a newcomer may be a client that was answered in this one
            for connection in newcomers:
                self.guard(connection, lambda each: each.socket.setblocking(False))  # fails if it is gone (on macOS)
                self.guard(connection, self.serve)  # most have sent their request by now, and many need no more
                self.guard(connection, self.wait_for)

        def wait_for(self, connection: "_Connection") -> None:
            """Wait until the client sends or, while there is something to send, until it reads."""
            events = WRITE if connection.unsent else READ
            if not connection.awaited:
                self.selector.register(connection.socket, events, connection)
            elif connection.awaited != events:
                self.selector.modify(connection.socket, events, connection)
            connection.awaited = events

        def make_room(self) -> bool:
            """Drop the connection that is idle for longest; if none is, stop accepting for now."""
            second_ago = time.monotonic() - 1
            idle = [each for each in self.connections if not each.is_busy() and each.since < second_ago]
            if idle:
                self.drop(min(idle, key=lambda connection: connection.since))
            elif self.accepting:
                self.selector.unregister(self.socket)
                self.accepting = False
            return bool(idle)

        def accept_again(self) -> None:
            if not self.accepting and not self.stopping:
                self.selector.register(self.socket, READ)
                self.accepting = True

        def serve(self, connection: "_Connection") -> None:
            if connection.unsent:
                self.send(connection)
            elif connection.later or not connection.conversation.pending:  # else go_on() answers that first
                try:
                    data = connection.socket.recv(READ_SIZE)
                except BlockingIOError:
                    return
                if not data:
                    self.drop(connection)
                elif not connection.conversation.ending:  # else it is only read away
                    self.converse(connection, data)

        def guard(self, connection: "_Connection", do: "Callable[[_Connection], None]") -> None:
            """Call ``do`` for a connection, if it is still there; an exception drops that one and no other."""
            if connection not in self.connections:
                return
            try:
                do(connection)
            except OSError:  # reset, or gone
                self.drop(connection)
            except Exception:  # a bug
                self.drop(connection)
                with self.lock:
                    self.bench.report()

        def converse(self, connection: "_Connection", data: bytes = b"") -> None:
            conversation = connection.conversation
            if connection.later:  # an answer is held back, so the next request has to wait
                conversation.hold(data)
                return
            began = not conversation.in_request
            with self.lock:
                parts = conversation.receive(data)
            if began or parts:
                connection.since = self.now
            connection.later = parts
            self.send(connection)

        def send(self, connection: "_Connection") -> None:
            """Send what can be sent now, and set a timer for what comes later."""
            later, conversation = connection.later, connection.conversation
            while later and not later[0][0]:  # all that is ready goes as one piece
                connection.unsent += later.pop(0)[1]
            if connection.unsent:
                is_last = not later and conversation.ending == "close"
                try:
                    sent = connection.socket.send(connection.unsent, TOGETHER if is_last else 0)
                except BlockingIOError:
                    sent = 0
                connection.unsent = connection.unsent[sent:]
                if sent and connection.unsent:
                    connection.since = self.now
            if connection.unsent or connection.awaited == WRITE:  # read no more from a client that does not read
                self.wait_for(connection)
            if connection.unsent:
                return
            if later or conversation.pending:
                when = time.monotonic() + (later[0][0] if later else 0)
                heapq.heappush(self.timers, (when, id(connection), connection))
            elif conversation.ending:
                self.end(connection)

        def end(self, connection: "_Connection") -> None:
            conversation, connection.since = connection.conversation, self.now
            if conversation.ending == "reset":
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.drop(connection)
            elif conversation.ending == "close":  # shutdown() sends what is held back; with a reset it would be lost
                connection.socket.shutdown(socket.SHUT_WR)
                if not conversation.lingers:
                    self.drop(connection)

        def time_out(self, connection: "_Connection") -> None:
            if connection.conversation.in_request and not connection.unsent:
                with self.lock:
                    connection.later = connection.conversation.refuse("slow")
                self.send(connection)
            else:
                self.drop(connection)

        def drop(self, connection: "_Connection") -> None:
            if connection in self.connections:
                self.connections.discard(connection)
                connection.later.clear()  # a timer may keep the connection for long
                if connection.awaited:
                    self.selector.unregister(connection.socket)
                connection.socket.close()
                self.accept_again()

    return Server


class Clock:
    """The time of an emulator: ``clock()`` returns seconds since 1970. It follows ``source``, ``scale`` times as
    fast, until a method changes that. Raises ValueError for a time outside the years 1970 to 2999."""

    def __init__(self, source: "Callable[[], float]" = time.time, *, scale: float = 1) -> None:
        import threading

        self._source, self._normal, self._lock = source, scale, threading.Lock()
        self._run: "Tuple[float, float, float]"  # a time of the source, this clock's then, and its scale since
        self.reset()

    def __call__(self) -> float:
        """The time now."""
        seen, then, scale = self._run
        return then + (self._source() - seen) * scale

    def advance(self, seconds: float) -> None:
        """Go forward by ``seconds``, or back, at once."""
        with self._lock:
            seen, then, scale = self._run
            self._set(seen, then + seconds, scale)

    def freeze(self) -> None:
        """Stand still; only ``advance`` still moves it."""
        self.resume(0)

    def resume(self, scale: "Optional[float]" = None) -> None:
        """Run again, ``scale`` times as fast as the source; None: as fast as at first."""
        with self._lock:
            self._set(self._source(), self(), self._normal if scale is None else scale)

    def reset(self) -> None:
        """Show the time of the source again, and follow it as at first."""
        with self._lock:
            now = self._source()
            self._set(now, now, self._normal)

    def _set(self, seen: float, then: float, scale: float) -> None:
        if not 0 <= then <= LAST_CLOCK or not 0 <= scale < 1e9:
            raise ValueError("a clock can't show %r seconds since 1970, or run %r times as fast" % (then, scale))
        self._run = seen, then, scale


def _several(words: "Any") -> "Any":
    """One or several as a list; None stays None."""
    return [words] if isinstance(words, (str, dict)) else None if words is None else list(words)


THREAD_NAME = "imds-emulator"


def _is_own_thread() -> bool:
    """Whether an emulator's thread calls, as in ``log``. It has the lock, so it can't wait for itself or a sibling."""
    import threading

    return threading.current_thread().name == THREAD_NAME


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _locked(operation: "Callable[..., Any]") -> "Any":
    """An operation of Bench as a method of Emulator: the same signature and documentation, safe in any thread."""
    @functools.wraps(operation)
    def method(self: "Emulator", *args: "Any", **kwargs: "Any") -> "Any":
        with self._lock:
            return operation(self._bench, *args, **kwargs)

    return method


class Emulator:
    """The Instance Metadata Service of one VM on a port of this machine, for a test or by hand.

    >>> with Emulator() as vm:
    ...     vm.get("compute/name")
    'avset2'

    instance         dict in the shape of ``/metadata/instance``, or a whole VM as ``imds snapshot`` writes
                     it; what it lacks is empty. None: ``profile``
    host, port       where it listens; port 0 is a free one
    rate_limit       requests a second; with one, the identity service takes 20. 0: none. None: none, but 5
                     with ``as_of``
    cloud            the value of azEnvironment: a key of CLOUDS. None: the document's
    versions         the api-versions that it serves. None: the documented ones, and a few that it does not list
                     but shipped clients use
    as_of            "2018" is the service of the 2018 document: its versions by cloud, its errors
    profile          the built-in VM: "linux" (the default), "windows" or "scaleset"
    clock            a function that returns the time in seconds since 1970, or a Clock
    log              called with a line per request, str
    identities       the managed identities: see ``identities`` below. None: the document's, or "system"
    load_balancer    True: a sample; or its document. What ``instance`` says of it comes first
    attested_flaw    a key of FLAWS: what is wrong with its attested documents
    attested_issuer  URL at which a verifier finds the issuer of their certificate. None: this emulator
    allow_hosts      names that a Host header may have besides "localhost", ``host`` and addresses; others are
                     refused, as a web page may have sent them. If ``host`` is not loopback, any may read /metadata
    faults           playbooks and situations, or dicts of the arguments of ``fail``
    schedule         events to begin with: scenarios of ``play``, or dicts of the arguments of ``schedule``
    control          True: the operations are at /imds/, for any language
    among            for ScaleSet only

    Everything in it follows ``vm.clock``, a Clock: ``vm.clock.advance(900)``, ``vm.clock.freeze()``.
    ``start`` and ``stop`` are for use without ``with``. All of it may be used from any thread. Raises
    ValueError for a value that can't be served and, on start, OSError if it can't listen.
    """

    def __init__(
        self, instance: "Optional[Mapping[str, Any]]" = None, *, host: str = "127.0.0.1", port: int = 0,
        rate_limit: "Optional[float]" = None, cloud: "Optional[str]" = None,
        versions: "Optional[Iterable[str]]" = None, as_of: "Optional[str]" = None, profile: "Optional[str]" = None,
        clock: "Callable[[], float]" = time.time, log: "Optional[Callable[[str], None]]" = None,
        identities: "Optional[Iterable[Any]]" = None, load_balancer: "Any" = None,
        attested_flaw: "Optional[str]" = None, attested_issuer: "Optional[str]" = None,
        allow_hosts: "Iterable[str]" = (), faults: "Iterable[Any]" = (), schedule: "Iterable[Any]" = (),
        control: bool = False, among: "Any" = None,
    ) -> None:
        import threading

        if not 0 <= check(port, int, "port") <= 65535:
            raise ValueError("port must be from 0 to 65535, not %r" % port)
        self.clock = clock if isinstance(clock, Clock) else Clock(clock)
        named = _several(allow_hosts)
        hosts = {name.lower() for name in [host, "localhost"] + named}
        vm, events, lock = among or (0, None, threading.RLock())
        self._bench = Bench(
            self.clock, instance, log=log, profile=profile, cloud=cloud, versions=_several(versions), as_of=as_of,
            rate_limit=rate_limit, identities=_several(identities), load_balancer=load_balancer,
            attested_flaw=attested_flaw, attested_issuer=attested_issuer, hosts=named,
            only_hosts=hosts if is_loopback(host) else None, control=control, vm=vm, events=events,
            faults=_several(faults), schedule=_several(schedule))
        self._address, self._lock, self._starting = (host, port), lock, threading.Lock()
        self._server: "Any" = None  # unless it is started
        self._thread: "Optional[threading.Thread]" = None  # of the last start

    def start(self) -> "Emulator":
        """Listen, and answer from a thread of its own."""
        import threading

        last = self._thread
        if last and not self._server and not _is_own_thread():
            last.join()  # it may still have the port
        with self._starting:
            if self._server:
                raise RuntimeError("the emulator at %s is already started" % self.url)
            try:
                server = _server_class()(self._address, self._bench, self._lock)
            except OSError as error:
                error.filename = "%s port %d" % self._address  # which its message shows
                raise
            thread = threading.Thread(target=server.serve_forever, name=THREAD_NAME, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                server.server_close()
                raise OSError(str(error)) from None
            self._server, self._thread = server, thread
            self._bench.be_at(self.url)
        return self

    def wait(self, seconds: "Optional[float]" = None) -> bool:
        """Wait until it is stopped, or for ``seconds``; return whether it still runs. Signals are handled meanwhile."""
        until = time.monotonic() + (1e9 if seconds is None else seconds)
        thread = self._thread if self._server else None
        while thread and thread.is_alive() and time.monotonic() < until:
            thread.join(min(0.5, until - time.monotonic()))
        return bool(thread and thread.is_alive())

    def stop(self) -> None:
        """Close every connection and the port, at once."""
        with self._starting:
            server, self._server, thread = self._server, None, self._thread
        if server:
            server.shutdown()
            if _is_own_thread():  # the thread ends after this turn of its loop,
                server.socket.close()  # but its port is free at once
        if thread and not _is_own_thread():
            thread.join()

    __enter__ = start

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port it listens on."""
        server = self._server
        if not server:
            raise RuntimeError("the emulator is not started: use start(), or 'with Emulator() as vm:'")
        return int(server.server_address[1])

    @property
    def url(self) -> str:
        """Its address, "http://127.0.0.1:PORT": what AZURE_IMDS_ENDPOINT and ``endpoint=`` take."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._address[0], self._address[0])
        return "http://%s:%d" % ("[%s]" % host if ":" in host else host, self.port)

    @property
    def environ(self) -> "Dict[str, str]":
        """The environment variables that lead this client and the SDKs to it, past any proxy: a dict of str."""
        host, names = self.url.rpartition(":")[0][len("http://"):].strip("[]"), {}
        for name, other in (("NO_PROXY", "no_proxy"), ("no_proxy", "NO_PROXY")):
            said = os.environ.get(name, os.environ.get(other, ""))  # to set one alone would hide the other
            others = [each for each in said.split(",") if each and each != host]
            names[name] = said if said.strip() == "*" else ",".join(others + [host])
        names.update(AZURE_IMDS_ENDPOINT=self.url, AZURE_POD_IDENTITY_AUTHORITY_HOST=self.url)
        return dict(names, AZURE_IMDS_CONTROL=self.url + "/imds") if self._bench.has_control else names

    @property
    def versions(self) -> "List[str]":
        """The api-versions that it offers, oldest first."""
        return list(self._bench.service.versions)

    @property
    def name(self) -> str:
        """The name of the VM."""
        return str(self._bench.service.instance["compute"]["name"])

    @property
    def rate_limit(self) -> float:
        """Requests a second, or 0."""
        return self._bench.service.rate_limit

    instance, requests = property(_locked(Bench.instance)), property(_locked(Bench.requests))
    identities = property(_locked(Bench.identities), _locked(Bench.identities))
    load_balancer = property(_locked(Bench.load_balancer), _locked(
        lambda bench, document: bench.load_balancer(False if document is None else document)))
    update, schedule, play = _locked(Bench.update), _locked(Bench.schedule), _locked(Bench.play)
    approve, cancel, events = _locked(Bench.approve), _locked(Bench.cancel), _locked(Bench.events)
    advance, freeze, resume = _locked(Bench.advance), _locked(Bench.freeze), _locked(Bench.resume)
    now, attested, replace = _locked(Bench.now), _locked(Bench.attested), _locked(Bench.replace)
    fail, faults, recover = _locked(Bench.fail), _locked(Bench.faults), _locked(Bench.recover)
    lint, reset = _locked(Bench.lint), _locked(Bench.reset)
    assert_requested, assert_not_requested = _locked(Bench.assert_requested), _locked(Bench.assert_not_requested)

    def wait_for(self, path: str, *, times: int = 1, timeout: float = 10, **like: "Any") -> "List[Exchange]":
        """Wait until there are ``times`` such requests, and return them; after ``timeout`` seconds raise AssertionError
        as ``assert_requested`` does. ``like``: verb, headers and query, as for ``requests``."""
        import threading

        came, seen, found = threading.Condition(self._lock), 0, []  # type: Any, int, List[Exchange]

        def are_there() -> bool:  # looks at each once, for every exchange wakes it
            nonlocal seen, found
            found += self._bench.requests(path, since=seen, **like)
            found = [each for each in found if each.number > self._bench.cleared]
            seen = self._bench.service.count
            return len(found) >= times

        with came:
            self._bench.watchers.append(came.notify_all)
            try:
                if not came.wait_for(are_there, number(
                        "timeout", min(timeout, threading.TIMEOUT_MAX), 0, threading.TIMEOUT_MAX)):
                    self._bench.assert_requested(path, times=times, **like)
                return self._bench.requests(path, **like)
            finally:
                self._bench.watchers.remove(came.notify_all)


class ScaleSet:
    """The VMs of one scale set, each an Emulator at its own port. They share one clock and one list of scheduled
    events: if one approves an event, it starts for all.

    >>> with ScaleSet(3) as vms:
    ...     event_id = vms.schedule("Reboot", resources=[vms[1].name])
    ...     [vm.get("compute/platformFaultDomain") for vm in vms]
    ['0', '1', '2']

    count    how many, up to 1000; they are numbered from 0, with names, ids, addresses, domains and zones as Azure
             numbers them
    port     of the first; the others follow it. 0: free ones

    All else is as for Emulator, and the same for each, but only the first has ``control``; its operations take ``vm``.
    """

    def __init__(
        self, count: int, *, profile: str = "scaleset", port: int = 0, clock: "Callable[[], float]" = time.time,
        control: bool = False, schedule: "Iterable[Any]" = (), **settings: "Any",
    ) -> None:
        import threading

        if check(count, int, "count") < 1:
            raise ValueError("a scale set has at least one VM")
        self.clock = clock if isinstance(clock, Clock) else Clock(clock)
        for name in {"allow_hosts", "faults", "identities", "versions"}.intersection(settings):
            settings[name] = _several(settings[name])  # each VM goes through them
        shared = Events(self.clock), threading.RLock()
        self._vms = [Emulator(make_vm(profile, number=number), port=port and port + number, clock=self.clock,
                              control=control and number == 0, schedule=schedule if number == 0 else (),
                              among=(number,) + shared, **settings)
                     for number in range(count)]
        siblings = [vm._bench for vm in self._vms]
        for bench in siblings:
            bench.siblings = siblings

    def start(self) -> "ScaleSet":
        """Start all, or none: raises the OSError of one that can't, or the RuntimeError of one that was started."""
        started: "List[Emulator]" = []
        try:
            for vm in self._vms:
                started.append(vm.start())
        except (OSError, RuntimeError):
            for vm in started:
                vm.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop all."""
        for vm in self._vms:
            vm.stop()

    def wait(self, seconds: "Optional[float]" = None) -> bool:
        """As Emulator.wait of the first VM."""
        return self._vms[0].wait(seconds)

    __enter__ = start

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __len__(self) -> int:
        return len(self._vms)

    def __getitem__(self, number: int) -> "Emulator":
        return self._vms[number]

    def schedule(self, kind: str, **arguments: "Any") -> str:
        """As ``Emulator.schedule``: an event that all VMs show."""
        return str(self._vms[0].schedule(kind, **arguments))

    def reset(self) -> None:
        """Put everything back as it was at the start."""
        for vm in self._vms:
            vm.reset()

    @property
    def environ(self) -> "Dict[str, str]":
        """As Emulator.environ of the first VM; AZURE_IMDS_ENDPOINTS has the URLs of all, with blanks between."""
        return dict(self._vms[0].environ, AZURE_IMDS_ENDPOINTS=" ".join(vm.url for vm in self._vms))


# ==================================================================================================
# Room 9: client
#
# urllib to a service; knows the contract, the core, checks of documents, parse_target and how to read what is
# signed. It uses no proxy and follows no redirect. Every socket operation of a call ends at the call's deadline,
# whatever the other side sends. An answer is checked before it is believed; PATIENCE and RETRIED say when to ask
# again. Errors quote the identity service only in words of the contract, for a token may be in all else.
# ==================================================================================================

TOKEN_VERSION = "2018-02-01"
MAX_HEAD, MAX_REPLY, MAX_EVENTS = 64 * 1024, 4 * 1024 * 1024, 20000  # bytes of an answer; events in a list
NOBODY = 2  # seconds to try where nobody listens, unless a deadline is given
MAX_DEAF = 10  # seconds without a look at events, for some come with a notice of 30
RENEGOTIATED = 60  # seconds for which an older api-version is asked for, before the newest is tried again
RENEWAL_PAUSE = 30  # seconds between two tries to renew a token that is still valid
IDENTITY_REFUSALS = frozenset(  # bodies that may be shown: no part of a request or a token is in them
    body for body in [refusal.body for refusal in REFUSALS.values()] + list(DIALECTS["identity"].values())
    if body.startswith("{") and "$" not in body)
ADVICE = {403: "the guest proxy agent may keep this program out", 404: "check the path and the api-version"}
# What the service never answers, by status, or else by its first digit; for all others the status says enough.
ODD_ANSWERS = {3: "a redirect", 304: None, 4: "an HTML page", 401: "a challenge, as an Azure Arc agent does",
               511: "a wish to log in"}
UNREACHABLE = {  # why no answer came: what an error says
    "silence": "something listens at %(url)s but does not answer in time; %(led)sis it the service?",
    "somebody breaks off": "what listens at %(url)s broke off (%(why)s); %(led)sis it the service?",
    "nobody listens": "nobody answers at %(url)s (%(why)s); %(led)son an Azure VM check the route to "
                      + DEFAULT_ENDPOINT + ", elsewhere start an emulator with 'python3 -m imds serve'",
}
ADDRESS = r"[\d.]+\Z|.*:"  # of a host that is no name
JWT = r"eyJ[\w-]{10}[\w.-]*"
ENDPOINT_FORM = r"http://([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?\Z"


class Reply(collections.namedtuple("Reply", "status headers data url")):
    """An answer. status: int; headers: a mapping that takes names in any case; data: bytes of the body; url: str."""

    __slots__ = ()

    @property
    def content_type(self) -> str:
        """The Content-Type, without its charset."""
        return str(self.headers.get("content-type", "")).partition(";")[0].strip().lower()

    def time_in(self, name: str) -> "Optional[float]":
        """The time in a header, in seconds since 1970, or None if there is none that can be read."""
        try:
            return parse_time(self.headers.get(name, ""))
        except ValueError:
            return None

    @property
    def retry_after(self) -> int:
        """Retry-After in seconds, from now or from the Date of the answer; 0 if there is none that can be read."""
        said = self.headers.get("retry-after", "").strip()
        if said.isdecimal():
            return int(said[:9])
        then, now = self.time_in("retry-after"), self.time_in("date") or time.time()
        return 0 if then is None else max(0, int(then - now + 0.999))

    @property
    def text(self) -> str:
        return str(self.data.decode("utf-8", "replace"))

    @property
    def body(self) -> "Optional[str]":
        """The text; None if it is of the identity service and not in IDENTITY_REFUSALS."""
        is_of_identity = "identity" in urllib.parse.unquote(self.url).lower()  # as a service might read it
        return None if is_of_identity and self.text not in IDENTITY_REFUSALS else self.text

    def __repr__(self) -> str:  # some tracebacks show variables, and ``data`` may hold a token
        return "<reply %d of %d bytes from %s>" % (self.status, len(self.data), self.url.partition("?")[0])


def attested_content(document: "Mapping[str, str]") -> "Dict[str, Any]":
    """Return the content of an attested document, {"nonce": str, "timeStamp": {...}, "vmId": str, ...}. Its signature
    is NOT checked. Raises ValueError."""
    try:
        content = _parse_json(signed_content(base64.b64decode(document["signature"], validate=True)))
        return dict(check(content, dict, "its content"))
    except (KeyError, TypeError) as error:
        raise ValueError("not an attested document: %r" % error) from None


def _default_endpoint() -> str:
    return os.environ.get("AZURE_IMDS_ENDPOINT", DEFAULT_ENDPOINT).rstrip("/")


@functools.lru_cache(maxsize=64)
def _is_endpoint(url: str) -> bool:
    found = re.match(ENDPOINT_FORM, url, re.A)
    return bool(found and int((found.group(2) or ":80")[1:]) <= 65535)


@functools.lru_cache(maxsize=64)  # programs ask the same again
def _target(path: str, endpoint: str) -> str:
    """The target of a request for ``path``, in any of the forms that ``get`` takes."""
    if re.match(r"\w+://", path):
        origin, slash, rest = path.partition("://")[2].partition("/")
        if "http://" + origin not in (DEFAULT_ENDPOINT, endpoint):
            raise ValueError("%r is not at the endpoint %s; to ask another, use endpoint http://%s"
                             % (path, endpoint, origin))
        path = slash + rest
    names, question, query = path.partition("?")
    if names.startswith("/metadata") and (question or not (names + "/").startswith("/metadata/instance/")):
        return path
    below = re.sub(r"\A(metadata(/+|\Z))?(instance(/+|\Z))?", "", names.strip("/"))
    return "/metadata/instance/" + below + question + query


@functools.lru_cache(maxsize=64)
def _quoted(target: str) -> str:
    return urllib.parse.quote(target, safe="%/:=&?~+!$,;'@()*[]")


def say(line: str) -> None:
    """Write a line to standard error, if that is possible."""
    try:
        sys.stderr.write(printable(line) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # full, closed or absent
        pass


class Client:
    """The service at one endpoint. It may be used from any thread.

    endpoint     base URL. None: $AZURE_IMDS_ENDPOINT, or http://169.254.169.254
    api_version  None: the newest that this file knows, or else the newest that the service offers
    timeout      seconds to connect, and then for each piece of the answer. None: see PATIENCE
    deadline     seconds for a whole call: names, connections, all tries and pauses. None: see PATIENCE
    clock, timer, sleep
                 time.time, time.monotonic and time.sleep, or what replaces them in tests

    ``imds.get``, ``imds.token`` and the other functions of the module are methods of it that take the first four of
    these, too, by name. Requests raise NotFound (a KeyError), Refused, Unreachable (an OSError), Unavailable or
    NotIMDS, each an Error; a value that can't be used raises ValueError.
    """

    def __init__(
        self, endpoint: "Optional[str]" = None, *, api_version: "Optional[str]" = None,
        timeout: "Optional[float]" = None, deadline: "Optional[float]" = None,
        clock: "Callable[[], float]" = time.time, timer: "Callable[[], float]" = time.monotonic,
        sleep: "Callable[[float], None]" = time.sleep,
    ) -> None:
        self.endpoint = _default_endpoint() if endpoint is None else endpoint.rstrip("/")
        self._is_led = endpoint is None and "AZURE_IMDS_ENDPOINT" in os.environ  # for messages
        if not _is_endpoint(self.endpoint):
            raise ValueError("the endpoint must be like http://127.0.0.1:%d, not %r%s" % (
                DEFAULT_PORT, self.endpoint, ", which is the value of AZURE_IMDS_ENDPOINT" if self._is_led else ""))
        for name, seconds in (("timeout", timeout), ("deadline", deadline)):
            if seconds is not None and not (isinstance(seconds, (int, float)) and 0 < seconds < 1e6):
                raise ValueError("%s must be more than 0 seconds, not %r" % (name, seconds))
        self.api_version, self.timeout, self.deadline = api_version, timeout, deadline
        self._clock, self._timer, self._sleep = clock, timer, sleep
        self._negotiated: "Dict[str, Tuple[str, float]]" = {}  # endpoint -> the api-version that it took, until when
        self._listed_events = False
        self.begun: "Optional[float]" = None  # ``timer`` when a deadline began that several calls share
        self.ahead = 0.0  # seconds by which the service's clock, and so NotBefore, is ahead of ours
        self._tokens: "Dict[str, _Shared]" = {}  # by target

    def get(self, path: str = "", *, format: "Optional[str]" = None) -> "Any":
        """Return what the service of this VM says at ``path``: a leaf as str, a container as dict or list.

        path    "compute/vmId", "instance/compute/vmId", "/metadata/instance/compute/vmId", or such a URL; "" is the
                whole document. A path with a query is sent as it is, with an api-version if it lacks one; the answer
                is returned as parsed JSON, or as str if it is text
        format  "text": return what the service prints with format=text, a str. None or "json": the node itself
        """
        return self.get_all([path], format=format)[0]

    def get_all(self, paths: "Iterable[str]", *, format: "Optional[str]" = None) -> "List[Any]":
        """As ``get`` for each of ``paths``; the instance document is asked for once."""
        if format not in (None, "json", "text"):
            raise ValueError("format must be 'json' or 'text', not %r" % format)
        call, document, nodes = self._call(), None, []  # type: _Call, Optional[Dict[str, Any]], List[Any]
        for target in [_target(check(path, str, "path"), self.endpoint) for path in paths]:
            if "?" in target or not target.startswith("/metadata/instance/"):
                node = _content(self._ask_newest(target, call))
            else:
                document = document or self._instance(call)
                node = self._node(document, target[len("/metadata/instance/"):])
            nodes.append(format_text(node) if format == "text" else node)
        return nodes

    def _node(self, document: "Dict[str, Any]", path: str) -> "Any":
        try:
            node = resolve(document, path)
            return node if isinstance(node, (dict, list)) else leaf(node)
        except NotFound as error:
            version, added = self.api_version or self._negotiated.get("instance", (NEWEST, 0))[0], since(path)
            later: "Any" = error
            if added and added > version:
                later = "there is no %r before api-version %s" % (path, added)
            elif path.partition("/")[0] in COMPONENTS:
                later = "there is no %r in the instance document; did you mean '/metadata/%s'?" % (path, path)
            url = self.endpoint + "/metadata/instance"
            raise NotFound("%s (%s at %s)" % (later, url, version), url=url) from None

    def scheduled_events(self) -> "Dict[str, Any]":
        """Return the scheduled events of this VM and its neighbours in an availability set or scale set.

        {"DocumentIncarnation": int, "Events": [{"EventId": str, "EventStatus": "Scheduled" or "Started",
        "EventType": str, "ResourceType": "VirtualMachine", "Resources": [name, ...], "NotBefore": str, "" once
        Started, "Description": str, "EventSource": str, "DurationInSeconds": int}, ...]}; ``parse_time`` reads a
        NotBefore. The first request to a VM may take two minutes (documented).
        """
        document, odd, _ = self._events(self._call())
        if odd:
            raise odd
        return document

    def _events(self, call: "_Call") -> "Tuple[Dict[str, Any], Optional[Error], set[str]]":
        """The list with the scheduled events that can be read; an Error about the first that can't, or None; and the
        EventIds, in upper case, of all that can't, "" for one without."""
        reply = self._ask_newest("/metadata/scheduledevents", call)
        document, events = _content(reply), []  # type: Any, List[Dict[str, Any]]
        try:
            check(check(document, dict, "it")["DocumentIncarnation"], int, "DocumentIncarnation")
            listed = check(document["Events"], list, "Events")
        except (ValueError, KeyError):
            raise _not_imds(reply, "JSON of another shape") from None
        self.ahead = (reply.time_in("date") or self._clock()) - self._clock()
        if len(listed) > MAX_EVENTS:
            raise _not_imds(reply, "more than %d events" % MAX_EVENTS)
        why, unread = "", set()  # type: str, set[str]
        for event in listed:
            try:
                check_event(event)
                missing = [name for name in ("EventStatus", "EventType", "Resources", "NotBefore") if name not in event]
                if missing:
                    raise ValueError("it has no " + ", ".join(missing))
                events.append(event)
            except ValueError as error:
                why = why or str(error)
                unread.add(str(as_object(event).get("EventId") or "").upper())
        self._listed_events = True
        odd = _not_imds(reply, "an event that can't be read (%s)" % why) if why else None
        return dict(document, Events=events), odd, unread

    def approve(self, *event_ids: str) -> None:
        """Approve events: they start now, for all their Resources. Raises Refused for an unknown EventId."""
        call = self._call()
        body = format_json({"StartRequests": [{"EventId": event_id} for event_id in event_ids]}).encode()
        try:
            reply = self._ask_newest("/metadata/scheduledevents", call, body)
        except Refused as refusal:
            if call.interrupted:  # an earlier try may have been accepted, and only its answer lost
                document, _, unread = self._events(call)
                waiting = unread.union(event["EventId"].upper() for event in document["Events"]
                                       if event["EventStatus"] == "Scheduled")
                if "" not in unread and waiting.isdisjoint(each.upper() for each in event_ids):
                    return
            advice = "; is there such an event as %s (still)? The list of events says" % ", ".join(event_ids)
            raise Refused("%s%s" % (refusal, advice if refusal.status == 400 else ""),
                          refusal.status, refusal.body, refusal.url) from None
        answer = parsed_or_none(reply.data.strip() or b"{}")
        if isinstance(answer, dict) and {"error", "errors"}.intersection(map(str.lower, answer)):
            raise _failure(Refused, reply, "the approval was not taken")
        if not isinstance(answer, dict) or _is_foreign(reply):
            raise _not_imds(reply, "no answer to an approval")

    def watch_events(self, *, interval: float = 1) -> "Iterator[Dict[str, Any]]":
        """Yield what ``scheduled_events`` returns: at once, and again whenever its DocumentIncarnation or Events have
        changed. Pauses ``interval`` seconds between requests, at least 0.2. A failure (no connection, no answer in
        time, an answer or an event that can't be read) is reported on standard error, each kind once, and raised as
        an Error only when the service has failed for longer than the deadline."""
        seen: "Any" = None
        for document in self.poll_events(interval=interval):
            if (document["DocumentIncarnation"], document["Events"]) != seen:
                seen = document["DocumentIncarnation"], document["Events"]
                yield dict(document, Events=[dict(event) for event in document["Events"]])

    def poll_events(self, *, interval: float = 1) -> "Iterator[Dict[str, Any]]":
        """As ``watch_events``, but yield the list after every request, changed or not; while the service fails, the
        last list again."""
        path = "/metadata/scheduledevents"
        failing: "Optional[float]" = None  # ``timer`` when the first look that failed began
        moved: "Optional[float]" = None  # ``timer`` when the service last answered 410 since then
        last: "Optional[Dict[str, Any]]" = None
        said: "set[str]" = set()  # the kinds of failures since the last list without one
        while True:
            begun, wait = self._timer(), max(interval, 1 / RATE_LIMIT)
            least = NOBODY if self.timeout or self.deadline else self._patience(path).answer
            call = _Call(begun if failing is None else failing, MAX_DEAF, begun + least)
            try:
                document, odd, unread = self._events(call)
                if last and unread:  # an event that can't be read now is not gone
                    if "" in unread:  # it may be any of them
                        unread.update(event["EventId"].upper() for event in last["Events"])
                    unread.difference_update(event["EventId"].upper() for event in document["Events"])
                    kept = [event for event in last["Events"] if event["EventId"].upper() in unread]
                    document["Events"] += kept[:MAX_EVENTS]
                last, failing, moved = document, None, None
            except Error as error:
                failing, odd = call.begun, error
                moved = moved if call.moved is None else call.moved
                left = failing + self.time_for(path, failing, moved, error) - self._timer()
                if left <= 0:
                    raise
                wait = max(wait, min(error.retry_after, left, MAX_DEAF))
            if odd is None:
                said.clear()
            elif type(odd).__name__ not in said:
                said.add(type(odd).__name__)
                say("imds: %s; watching goes on" % odd)
            if last is not None:
                yield last
            self._sleep(wait)

    def token(self, resource: str, **selector: "Optional[str]") -> str:
        """Return an access token of a managed identity of this VM for ``resource``, like "https://vault.azure.net".

        client_id, object_id or msi_res_id (also called mi_res_id), a str, says which identity; without one it is the
        system-assigned one, or else the only user-assigned one. A Client keeps a token until five minutes before it
        expires. No Error quotes a token.
        """
        return str(self.token_answer(resource, **selector)["access_token"])

    def token_answer(self, resource: str, **selector: "Optional[str]") -> "Dict[str, str]":
        """As ``token``, but return the whole answer: access_token, client_id, expires_in, expires_on, ..., all str. If
        it can't be renewed five minutes before it expires, it is kept until it does."""
        import threading

        unknown = set(selector).difference(SELECTORS)
        if unknown:
            raise TypeError("a token takes %s, not %s" % (", ".join(SELECTORS), ", ".join(sorted(unknown))))
        query = [("api-version", TOKEN_VERSION), ("resource", resource)]
        query += sorted((name, value) for name, value in selector.items() if value)
        target, call = "/metadata/identity/oauth2/token?" + urllib.parse.urlencode(query), self._call()
        shared = self._tokens.get(target)
        if shared is None:
            if len(self._tokens) >= 1000:  # a program may name any number of resources
                self._tokens.clear()
            shared = self._tokens.setdefault(target, _Shared())
        if self._is_good(shared, call):
            return dict(shared.token.answer)
        turn = shared.turns.setdefault(os.getpid(), threading.RLock())  # a forked child has its own
        if not turn.acquire(blocking=False):  # another thread asks for it
            kept = shared.token
            if self._left(kept) > 0:
                return dict(kept.answer)
            if not turn.acquire(timeout=max(0, call.begun + self._patience(target).gone - self._timer())):
                raise shared.failed_since(call) or Unreachable(
                    "no token came in time for another thread that asks for it at %s" % self.endpoint)
        try:
            if not self._is_good(shared, call):
                self._renew(shared, target, call)
            return dict(shared.token.answer)
        finally:
            turn.release()

    def _left(self, token: "_Token") -> float:
        """Seconds until it expires, by the faster: the timer may stop while a VM sleeps, and the clock may be set."""
        return min(token.end - self._timer(), token.end_by_clock - self._clock())

    def _is_good(self, shared: "_Shared", call: "_Call") -> bool:
        """Whether the token that is kept need not be renewed now: it lasts for a while, or it lasts at all and was just
        asked for, by whatever thread."""
        was_just_asked = shared.asked > call.begun or self._timer() - shared.asked < RENEWAL_PAUSE
        return self._left(shared.token) > (0 if was_just_asked else TOKEN_RENEWED)

    def _renew(self, shared: "_Shared", target: str, call: "_Call") -> None:
        """Ask for a token, and keep it unless the one before it is better. A refusal of another thread since this call
        began, or a failure if no time is left, is taken as if this one had asked."""
        import copy

        failure = shared.failed_since(call)
        is_late = self._timer() - call.begun > 0.9 * self._patience(target).total
        if failure and (is_late or not isinstance(failure, (Unreachable, Unavailable))):
            raise failure
        try:
            token = self._new_token(target, call)
        except Error as error:
            shared.asked, shared.failure = self._timer(), copy.copy(error)  # without its frames
            if self._left(shared.token) <= 0:
                raise
        else:
            shared.asked, shared.failure = self._timer(), None
            shared.token = max(token, shared.token, key=lambda each: max(0, self._left(each)))

    def _new_token(self, target: str, call: "_Call") -> "_Token":
        timer, clock = self._timer(), self._clock()
        reply = self._ask(target, call)
        answer = object_in(reply.data)
        lasts = [int(str(answer[name])) - start for name, start in (("expires_in", 0), ("expires_on", int(clock)))
                 if re.match(r"[0-9]{1,12}\Z", str(answer.get(name)))]
        token = answer.get("access_token")
        if not (lasts and isinstance(token, str) and re.match(r"[!-~]+\Z", token)):
            error = _not_imds(reply, "something that is not a token's answer")
            del reply, answer, token  # an error's frames are not to hold what came
            raise error
        least = min(lasts + [2 * TOKEN_SECONDS])  # none is good for so long, whatever is said
        leaves = {name: leaf(value) for name, value in answer.items() if not isinstance(value, (dict, list))}
        return _Token(leaves, timer + least, clock + least)

    def attested(self, nonce: str = "") -> "Dict[str, str]":
        """Return the attested document, {"encoding": "pkcs7", "signature": base64}; ``attested_content`` reads it.

        It checks the nonce, if one is given, that vmId is this VM's and that the document is valid now, or else raises
        Refused. It does NOT check the signature and the certificates, for the standard library can't: whoever gets
        the document must do so, with openssl for example.
        """
        import calendar

        call = self._call()
        query = "?" + urllib.parse.urlencode({"nonce": nonce}) if nonce else ""
        reply = self._ask_newest("/metadata/attested/document" + query, call)
        document = _content(reply)
        try:
            content = attested_content(document)
            created, expires = [calendar.timegm(time.strptime(content["timeStamp"][name], ATTESTED_TIME))
                                for name in ("createdOn", "expiresOn")]
            signed_nonce, vm_id = content["nonce"], check(content["vmId"], str, "vmId")
            if document.get("encoding") != "pkcs7":
                raise ValueError("its encoding is not pkcs7")
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise _not_imds(reply, "something that is not an attested document (%s)" % error) from None
        problem = ""
        if nonce and signed_nonce != nonce:
            problem = "it answers nonce %r, not %r" % (signed_nonce, nonce)
        elif not vm_id or vm_id.lower() != str(self._node(self._instance(call), "compute/vmId")).lower():
            problem = "it is of another VM, %s" % vm_id
        elif created > expires or not created - 300 <= self._clock() <= expires:  # five minutes for clocks that differ
            problem = "it is valid from %(createdOn)s to %(expiresOn)s, and it is not that now" % content["timeStamp"]
        if problem:
            raise Refused("the attested document of %s is not to be believed: %s" % (reply.url, problem),
                          reply.status, reply.body, reply.url)
        return dict(document)

    def snapshot(self) -> "Dict[str, Any]":
        """Return the whole VM: {"instance": {...}}, and scheduledevents, identity (the tenant; never a token),
        loadbalancer and attested as far as the service has them."""
        call = self._call()
        vm = {"instance": self._instance(call)}
        for path in ("scheduledevents", "identity/info", "loadbalancer", "attested/document"):
            part = path.partition("/")[0]
            try:
                node = _content(self._ask_newest("/metadata/" + path, call if self.deadline else self._call()))
            except (NotFound, Refused):
                continue  # this service, or this VM, has none
            is_object = isinstance(node, dict)
            if part == "identity":  # no more than that, not even in the frames of an error
                tenant = as_object(node).get("tenantId")
                node = {"tenantId": tenant if isinstance(tenant, str) else ""}
            if not is_object:
                url = self.endpoint + "/metadata/" + path
                raise NotIMDS("%s answered with JSON of another shape: what answers is not IMDS" % url, url=url)
            vm[part] = node
        return vm

    def ask_once(self, verb: str, target: str, headers: "Mapping[str, str]") -> "Reply":
        """One answer, of any status. Raises Unreachable, NotIMDS."""
        url, row = self.endpoint + target, self._patience(target)
        try:
            return _transport()(url, None, _Limit(row, self._call().begun + row.total, self._timer), verb, headers)
        except OSError as error:
            raise self._unreachable(url, error) from None

    def control(self, target: str, arguments: "Optional[Mapping[str, Any]]") -> "Any":
        """What /imds/ of an emulator answers to a POST of ``arguments``, which is not sent again where it may have been
        heard, or to a GET if they are None. Raises Refused, with its answer as ``body``."""
        body = None if arguments is None else format_json(arguments).encode()
        return _content(self._ask(target, self._call(), body, once=body is not None))

    def _instance(self, call: "_Call") -> "Dict[str, Any]":
        reply = self._ask_newest("/metadata/instance", call)
        document = _content(reply)
        if not isinstance(document, dict) or not isinstance(document.get("compute"), dict):
            raise _not_imds(reply, "text" if isinstance(document, str) else "JSON of another shape")
        return document

    def _ask_newest(self, target: str, call: "_Call", body: "Optional[bytes]" = None) -> "Reply":
        """Ask; if a target needs an api-version and has none, at ``self.api_version``, or else at the newest, and where
        the service refuses that, at what it offers, which is then kept for a minute. Scheduled events have versions of
        their own, and a service too old for one answers 404 and offers none: then EVENTS_GA is next, unless it has
        taken the newest before."""
        path, _, query = target.partition("?")
        endpoint, row = parse_target(path)[1:3]
        if endpoint is None or row.since is None or "api-version=" in query:
            return self._ask(target, call)
        of_events = endpoint == "scheduledevents"
        fixed = None if of_events else self.api_version
        newest = fixed or (EVENTS_NEWEST if of_events else NEWEST)
        taken, until = self._negotiated.get(endpoint, ("", 0))
        version = taken if not fixed and self._timer() < until else newest
        tried: "List[str]" = []
        while True:
            tried.append(version)
            try:
                reply = self._ask("%s?api-version=%s%s" % (path, version, query and "&" + query), call, body)
                if version == newest or len(tried) > 1:
                    self._negotiated[endpoint] = version, self._timer() + RENEGOTIATED
                return reply
            except (Refused, NotFound) as error:
                offered = error.offered
                if of_events:
                    offered = [EVENTS_GA] if isinstance(error, NotFound) and taken != newest else []
                offered = [each for each in offered if each not in tried]
                if fixed or not offered or len(tried) > 5:
                    raise
                version = offered[0]

    # --- one request, and its tries

    def _call(self) -> "_Call":
        return _Call(self._timer() if self.begun is None else self.begun)

    def _patience(self, target: str) -> "Patience":
        """The row of PATIENCE for a target, with the timeout and deadline of this client."""
        endpoint = parse_target(target).endpoint or ""
        again = " again" if endpoint == "scheduledevents" and self._listed_events else ""
        row = PATIENCE.get(endpoint + again, PATIENCE[""])
        if self.timeout is not None:
            row = row._replace(connect=self.timeout, answer=self.timeout)
        return row if self.deadline is None else row._replace(total=self.deadline, gone=self.deadline)

    def time_for(self, target: str, begun: float, moved: "Optional[float]", error: "Error") -> float:
        """Seconds from ``begun`` for all tries of a target, the last of which failed with ``error``: ``gone`` of its
        row if that was a 410; or else ``total``, counted from the last 410 if there was one (at ``moved``)."""
        row = self._patience(target)
        if error.status == 410:
            return float(row.gone)
        return float(row.total if moved is None else min(row.gone, moved - begun + row.total))

    def _ask(self, target: str, call: "_Call", body: "Optional[bytes]" = None, once: bool = False) -> "Reply":
        """Send one request, and again until it is answered or its row of PATIENCE ends; if ``once``, until it may have
        been heard."""
        url, row, pause = self.endpoint + _quoted(target), self._patience(target), 1.0
        told: "Optional[Error]" = None  # what the service said last
        silences = 0  # tries since then that brought no answer in time
        nobody: "Optional[float]" = None  # ``timer`` since when nobody listens
        while True:
            begun = self._timer()
            total = row.total if call.moved is None else row.gone  # seconds from call.begun for all tries
            try:
                reply = _transport()(url, body, _Limit(row, max(call.begun + total, call.until), self._timer))
                failure = _error_in(reply, body)
                if failure is None:
                    return reply
                del reply  # an error's frames are not to hold what came
            except OSError as error:
                failure = self._unreachable(url, error)

            # What this try says of the service, and how long it may be asked for that.
            why = failure
            if isinstance(failure, Unavailable):
                told, silences, nobody = failure, 0, None
                call.interrupted |= (failure.status or 0) >= 500
                call.moved = self._timer() if failure.status == 410 else call.moved
                total = self.time_for(target, call.begun, call.moved, failure)
            elif not isinstance(failure, Unreachable):
                raise failure
            elif failure.what == "nobody listens":
                nobody = begun if nobody is None else nobody
                if call.moved is None and self.deadline is None:
                    total = min(total, nobody - call.begun + NOBODY)
            else:
                call.interrupted, nobody = True, None
                if failure.what == "silence":
                    silences, why = silences + 1, told or failure

            # Whether there is time and sense for another.
            left = call.begun + total - min(0.5, total / 10) - self._timer()  # until the last try, which takes time
            is_late = left < 0.001 or failure.retry_after > min(left, call.longest)
            is_deaf = silences > 1 and call.moved is None
            may_be_heard = once and call.interrupted
            if is_late or is_deaf or may_be_heard:
                raise why
            import random

            wait = pause * random.uniform(0.75, 1.25) * (1 if isinstance(failure, Unavailable) else 0.1)
            self._sleep(min(max(wait, failure.retry_after), left))
            pause = min(pause * 2, 8)

    def _unreachable(self, url: str, problem: "Any") -> "Unreachable":
        broke_off = isinstance(problem, ConnectionError) and not isinstance(problem, ConnectionRefusedError)
        what = "somebody breaks off" if broke_off else "nobody listens"
        if isinstance(problem, _Silence):
            what = "silence"
        led = "AZURE_IMDS_ENDPOINT leads there; " if self._is_led else ""
        why = problem.strerror or str(problem) or type(problem).__name__
        error = Unreachable(UNREACHABLE[what] % {"url": url, "why": why, "led": led}, url=url)
        error.what = what
        return error


class _Call:
    """What the requests of one call of the client share. Times are those of its ``timer``."""

    def __init__(self, begun: float, longest: float = float("inf"), until: float = 0) -> None:
        self.begun = begun
        self.longest = longest  # seconds of a pause that the service asks for; if it wants more, the call fails
        self.until = until  # a try may take until then, though its row of PATIENCE ends before
        self.moved: "Optional[float]" = None  # when the service last answered 410
        self.interrupted = False  # a try got no answer, or a 5xx, and may have done something all the same


class _Limit:
    """How long one try may take."""

    def __init__(self, row: "Patience", until: float, timer: "Callable[[], float]") -> None:
        self.row, self.until, self.timer = row, until, timer

    def left(self, most: float) -> float:
        """Seconds that are left, at most ``most``. Raises _Silence if there are none."""
        left = min(most, self.until - self.timer())
        if left <= 0:
            raise _Silence("the deadline has passed")
        return left


class _Silence(OSError):
    """No answer in time, or the deadline passed before the request was sent."""


class _Token:
    """A token's answer, and the timer and the clock when it expires."""

    def __init__(self, answer: "Dict[str, str]", end: float, end_by_clock: float) -> None:
        self.answer, self.end, self.end_by_clock = answer, end, end_by_clock


class _Shared:
    """What the threads share that ask for the same token. turns: by process, a lock for who asks; token: the best that
    came; asked: the timer when one last ended asking; failure: why nothing came then."""

    def __init__(self) -> None:
        self.turns: "Dict[int, Any]" = {}
        self.token = _Token({}, float("-inf"), float("-inf"))
        self.asked, self.failure = 0.0, None  # type: float, Optional[Error]

    def failed_since(self, call: "_Call") -> "Optional[Error]":
        """Why another thread could not have it since this call began."""
        import copy

        return copy.copy(self.failure) if self.asked > call.begun else None


@functools.lru_cache(maxsize=None)
def _transport() -> "Callable[..., Reply]":
    """Make ``fetch(url, body, limit, verb, headers)``, which sends one request within a _Limit and raises OSError or
    NotIMDS. It uses HTTPHandler alone, so that urllib can't use a proxy, follow a redirect or raise for a status. It
    is made on first use, as its imports take time."""
    import http.client
    import socket
    import urllib.error
    import urllib.request

    class Socket(socket.socket):
        """A socket that gives up at the deadline, even if single bytes keep coming."""

        limit: "_Limit"
        received, most, ended = 0, MAX_HEAD, False

        def in_time(self, do: "Callable[..., Any]", *args: "Any") -> "Any":
            left = self.limit.left(self.limit.row.answer)
            if not 0.99 * left < (self.gettimeout() or 0) <= left:  # settimeout() is a system call
                self.settimeout(left)
            try:
                return do(*args)
            except socket.timeout:
                raise _Silence("timed out") from None

        def sendall(self, *args: "Any") -> None:
            self.in_time(super().sendall, *args)

        def recv_into(self, *args: "Any") -> int:
            if self.received > self.most:  # now, for the last read may have brought more than it was for
                raise _Odd("more than %d bytes" % self.most)
            count = self.in_time(super().recv_into, *args)
            self.received, self.ended = self.received + count, count == 0
            return int(count)

        def __del__(self) -> None:  # an interrupt can come before it is closed
            if self.fileno() >= 0:
                socket.socket(fileno=self.detach()).close()

    class Response(http.client.HTTPResponse):
        def begin(self) -> None:
            super().begin()
            while 102 <= self.status < 200:  # early hints and the like; the base skips 100 itself
                self.headers = self.msg = None  # type: ignore[assignment]
                super().begin()

    class Connection(http.client.HTTPConnection):
        response_class = Response
        sock: "Socket"

        def __init__(self, host: str, *, limit: "_Limit", **settings: "Any") -> None:
            super().__init__(host, **settings)
            self.limit = limit

        def request(self, method: str, url: str, body: "Any" = None, headers: "Any" = None, **settings: "Any") -> None:
            # urllib asks the server to close; here the client closes, which is sooner.
            headers = {name: value for name, value in headers.items() if name != "Connection"}
            super().request(method, url, body, headers, **settings)

        def connect(self) -> None:
            limit, problem = self.limit, None  # type: _Limit, Optional[OSError]
            until = limit.timer() + limit.left(limit.row.connect)
            addresses = _addresses(self.host, self.port, until - limit.timer())
            for at, address in enumerate(addresses):
                share = (until - limit.timer()) / (len(addresses) - at)
                if share <= 0:
                    break
                try:
                    self.sock = Socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
                    self.sock.limit = limit
                    self.sock.settimeout(share)
                    self.sock.connect((address, self.port))
                    return
                except OSError as error:  # also of a system that has no IPv6
                    problem = error
                    if self.sock:
                        self.sock.close()
            raise problem or _Silence("the deadline has passed")

        def getresponse(self) -> "Any":
            sock, response = self.sock, None  # the base may clear self.sock
            try:
                response = super().getresponse()
            except http.client.BadStatusLine as error:
                is_begun = "HTTP".startswith(str(error.args[0])[:4])  # "HT", say
                if not (is_begun and sock.ended):
                    raise
            if sock.ended:
                if response:
                    response.close()
                raise ConnectionResetError("the answer is cut off")
            sock.most += MAX_REPLY
            return response

    handler = urllib.request.HTTPHandler()

    @functools.lru_cache(maxsize=8)  # programs ask the same again, and making it takes as long as parsing an answer
    def request_for(url: str, body: "Optional[bytes]", verb: "Optional[str]", headers: "Any") -> "Any":
        sent = dict(headers, **{"User-Agent": "imds.py/" + __version__})
        if body is not None:
            sent["Content-Type"] = "application/json"
        request = urllib.request.Request(url, body, sent, method=verb)
        request.timeout = None
        return request

    def read(response: "Any", url: str) -> "Reply":
        with response:
            if _is_coded(response):
                raise _Odd("something encoded in a way that was not asked for")
            if (response.length or 0) > MAX_REPLY:
                raise _Odd("more than %d bytes" % MAX_REPLY)
            return Reply(response.status, response.headers, response.read(), url)

    def fetch(
        url: str, body: "Optional[bytes]", limit: "_Limit", verb: "Optional[str]" = None,
        headers: "Optional[Mapping[str, str]]" = None,
    ) -> "Reply":
        request = request_for(url, body, verb, (("Metadata", "true"),) if headers is None else tuple(headers.items()))
        problem: "Any" = None
        try:
            return read(handler.do_open(Connection, request, limit=limit), url)  # type: ignore[arg-type]
        except http.client.IncompleteRead:
            problem = ConnectionResetError("the answer is cut off")
        except urllib.error.URLError as error:
            problem = error.reason if isinstance(error.reason, OSError) else OSError("the request can't be sent")
        except OSError as error:
            problem = error
        except Exception as error:  # http.client leaves the headers to email, which may raise anything
            what = str(error) if isinstance(error, _Odd) else "something that is not HTTP"
            problem = NotIMDS("%s answered %s: what answers is not IMDS" % (url, what), url=url)
        # Outside `except`, without context and frames: they would keep what came, perhaps a token.
        problem.__context__ = None
        raise problem.with_traceback(None)

    return fetch


class _Odd(Exception):
    """What the service never sends, in words that may be shown."""


def _addresses(host: str, port: int, most: float) -> "List[str]":
    """The addresses of a host, by a thread, for getaddrinfo() has no time-out; ``most``: seconds."""
    host = host.strip("[]")
    if re.match(ADDRESS, host):
        return [host]
    import socket
    import threading

    found: "List[Any]" = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
            found.extend(dict.fromkeys(str(answer[4][0]) for answer in answers))
        except (OSError, UnicodeError) as error:  # UnicodeError: a name is too long
            found.append(error if isinstance(error, OSError) else OSError("it is no name"))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(most)
    if not found:
        raise OSError("the name %r was not resolved in time" % host)
    if isinstance(found[0], OSError):
        raise found[0]
    return found


def _is_coded(response: "Any") -> bool:
    """Whether a body is encoded, or its headers let http.client and another reader see different bodies."""
    headers, names = response.headers, "\n".join(response.headers).lower()
    if headers.defects or " " in names or "\t" in names:
        return True
    if "-encoding" not in names and names.count("content-length") < 2:  # as nearly always
        return "content-length" in names and response.length is None  # it is no number
    lengths = set(headers.get_all("content-length", []))
    encodings = {each.strip().lower() for each in headers.get_all("content-encoding", [])}
    framings = [each.lower() for each in headers.get_all("transfer-encoding", [])]
    return len(lengths) > 1 or not encodings <= {"identity", ""} or framings not in ([], ["chunked"])


def _error_in(reply: "Reply", body: "Optional[bytes]") -> "Optional[Error]":
    """The Error that a reply means, or None; an Unavailable if it is worth another try. ``body``: of the request."""
    status = reply.status
    if status == 200 or status == 204 and body is not None:
        return None
    is_foreign, path = _is_foreign(reply), reply.url.partition("?")[0].partition("/metadata/")[2]
    is_not_up = status == 404 and path in RETRIED_404 and not is_foreign and not _says_invalid_version(reply)
    if is_not_up or status in PASSING:
        return _failure(Unavailable, reply, RETRIED.get(status, "try again later"))
    if is_foreign or not 400 <= status < 500:
        what = ODD_ANSWERS.get(status, ODD_ANSWERS.get(status // 100))
        return _not_imds(reply, what or "a status that the service never has")
    advice = ADVICE.get(status, "check the request")
    if status == 404:
        return _failure(NotFound, reply, _since_when(reply.url) or advice)
    return _failure(Refused, reply, advice)


def _since_when(url: str) -> str:
    """If what a URL asks for came with a later api-version than the one it names: with which; or else ""."""
    asked = parse_target(url)
    first = asked.row.since
    if asked.rest:  # below other endpoints there is nothing
        first = since("/".join(asked.rest)) if asked.endpoint == "instance" else None
    is_early = first and asked.query.get("api-version", first) < first
    return "it is there since api-version %s" % first if is_early else ""


def _says_invalid_version(reply: "Reply") -> bool:
    """Whether it is how the service of 2018 refuses an api-version."""
    return reply.status == 404 and b"Invalid version" in reply.data


def _is_foreign(reply: "Reply") -> bool:
    """Whether it is a challenge, or a page of a web server other than the service's own."""
    is_of_iis = reply.headers.get("server", "").startswith("Microsoft-IIS")
    return "www-authenticate" in reply.headers or reply.content_type == "text/html" and not is_of_iis


def _number(kind: "Type[float]", word: str) -> float:
    number = kind(word[:400])
    if len(word) > 400 or number != number or number in (float("inf"), float("-inf")):
        raise ValueError("%.400s is no number of JSON, or a long one" % word)
    return number


# A call for each int takes long; newer Pythons limit the digits themselves.
_DECODER = json.JSONDecoder(
    parse_int=None if hasattr(sys, "set_int_max_str_digits") else functools.partial(_number, int),
    parse_float=functools.partial(_number, float), parse_constant=functools.partial(_number, float))


def _parse_json(data: bytes) -> "Any":
    """Parse JSON in UTF-8, with or without a byte order mark, but not NaN or infinities. Raises ValueError."""
    return load_json(data[3:] if data.startswith(b"\xef\xbb\xbf") else data, _DECODER.decode)


def parsed_or_none(data: bytes) -> "Any":
    """As _parse_json, or None: its ValueError has the whole text, and must not become the context of an Error."""
    try:
        return _parse_json(data)
    except ValueError:
        return None


def object_in(data: bytes) -> "Dict[str, Any]":
    """The JSON object that is the whole of a body, or {}."""
    return as_object(parsed_or_none(data))


def list_in(data: bytes, name: str) -> "List[Any]":
    """The list under ``name`` in a JSON object, or []."""
    listed = object_in(data).get(name)
    return listed if isinstance(listed, list) else []


def _content(reply: "Reply") -> "Any":
    """The content of a reply: JSON parsed, or text. Raises NotIMDS."""
    content, odd = None, reply.content_type or "no type"
    if reply.content_type == "application/json":
        content, odd = parsed_or_none(reply.data), "broken JSON"
    elif reply.content_type == "text/plain":
        content, odd = _text_in(reply), "text that is not UTF-8"
        if re.match(r"\s*<(!doctype|!--|\?xml|html|head)", content or "", re.I):
            content, odd = None, "an HTML page"
    elif reply.content_type == "text/html":
        odd = "an HTML page"
    if content is None:
        error = _not_imds(reply, odd)
        del reply  # an error's frames are not to hold what came
        raise error
    return content


def _text_in(reply: "Reply") -> "Optional[str]":
    """The text that a reply is, or None if it is not in UTF-8, or says that it is not."""
    charset = re.search(r"charset\s*=\W*([\w-]+)", str(reply.headers.get("content-type")), re.I)
    if charset and charset.group(1).lower() not in ("utf-8", "utf8", "us-ascii"):
        return None
    try:
        return str(reply.data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None


def _not_imds(reply: "Reply", what: str) -> "NotIMDS":
    return NotIMDS("%s answered %d with %s: what answers is not IMDS" % (reply.url, reply.status, what),
                   reply.status, reply.body, reply.url)


def _without_tokens(text: str) -> str:
    """``text`` with each JWT masked, for another server may put one anywhere."""
    return re.sub(JWT, "(masked)", text)


def _failure(kind: "Type[Error]", reply: "Reply", advice: str) -> "Error":
    body, said = reply.body, "something that is not shown here"
    if body is not None:
        said = _without_tokens(" ".join(body[:300].split())) or "nothing more"
    elif b'"invalid_resource"' in reply.data:
        said, advice = "invalid_resource", "is the resource right, like https://vault.azure.net?"
    error = kind("%s answered %d, %s; %s" % (reply.url, reply.status, said, advice), reply.status, body, reply.url)
    error.offered, error.retry_after = _offered(reply), reply.retry_after
    return error


def _offered(reply: "Reply") -> "List[str]":
    """The api-versions to try after a refusal, the best first: the newest of newest-versions. The service of 2018 has
    no such list, but answers 404 "Invalid version": then its versions."""
    if _says_invalid_version(reply):
        return sorted(CLOUDS["AzurePublicCloud"].versions_in_2018, reverse=True)
    return sorted(filter(_is_date, list_in(reply.data, "newest-versions")), reverse=True)[:1]


def _asking(method: "Callable[..., Any]") -> "Any":
    """Make a method of Client a function of the module. Calls to the VM's own service share one Client, which keeps
    tokens; other calls get a new one, for at a port there may be another emulator each time."""
    @functools.wraps(method)
    def function(*arguments: "Any", **settings: "Any") -> "Any":
        chosen = {name: settings.pop(name) for name in ("endpoint", "api_version", "timeout", "deadline")
                  if name in settings}
        own = all(value is None for value in chosen.values()) and _default_endpoint() == DEFAULT_ENDPOINT
        return method(_client_of_this_vm() if own else Client(**chosen), *arguments, **settings)

    function.__wrapped__ = method.__get__(Client)  # for help() and editors, which show no self of a bound method
    if method.__doc__:  # not with -OO
        text = method.__doc__.rstrip()
        last = text.rpartition("\n")[2]  # with a margin, which Python 3.13 takes away
        function.__doc__ = "%s\n\n%sAlso takes endpoint, api_version, timeout and deadline, as Client does." % (
            text, last[:len(last) - len(last.lstrip())])
    return function


@functools.lru_cache(maxsize=None)
def _client_of_this_vm() -> "Client":
    return Client(DEFAULT_ENDPOINT)


get, scheduled_events, approve = _asking(Client.get), _asking(Client.scheduled_events), _asking(Client.approve)
watch_events, token, attested = _asking(Client.watch_events), _asking(Client.token), _asking(Client.attested)


def _get_here(vm: "Emulator", path: str = "", *, deadline: float = 2, **settings: "Any") -> "Any":
    """As ``imds.get``, from this emulator, with a deadline of 2 seconds."""
    return get(path, endpoint=vm.url, deadline=deadline, **settings)


Emulator.get = _get_here  # type: ignore[attr-defined]  # a method that needs this room

# --- verify: is this an IMDS?

SENT = {  # by a check
    "-": {}, "true": {"Metadata": "true"}, "True": {"Metadata": "True"}, "false": {"Metadata": "false"},
    "xff": {"Metadata": "true", "X-Forwarded-For": "10.0.0.1"},
}
# A check per line. mark: documented, observed or chosen; expected: the key of REFUSALS whose status and body should
# come, or a key of SHAPES; verb; header: a key of SENT; name; target, in which {i} is /metadata/instance, and {v} asks
# for the newest version on offer.
Check = collections.namedtuple("Check", "mark expected verb header name target")
CONTRACT_CHECKS = """\
observed    metadata            GET   -      no header                    {i}{v}
documented  metadata            GET   false  header that says false       {i}{v}
observed    document            GET   True   header in other case         {i}{v}
chosen      metadata            GET   -      no header, before the version  {i}
observed    metadata            GET   -      no header, identity          {token}
documented  metadata            GET   false  header that says false, identity  {token}
documented  metadata            GET   -      no header, versions          {m}/versions
observed    metadata            GET   -      no header, leaf              {i}/compute/vmId{v}{text}
observed    metadata            GET   -      no header, attested          {m}/attested/document{v}
observed    metadata            GET   -      no header, load balancer     {m}/loadbalancer{v}
observed    metadata            GET   -      no header, tenant            {m}/identity/info{t}
documented  refused             GET   xff    X-Forwarded-For              {i}{v}
chosen      forwarded           GET   xff    X-Forwarded-For, the words   {i}{v}
documented  refused             GET   xff    X-Forwarded-For, token       {token}{t}{r}
documented  refused             GET   xff    X-Forwarded-For, attested    {m}/attested/document{v}
documented  refused             GET   xff    X-Forwarded-For, events      {m}/scheduledevents?api-version=2020-07-01
documented  refused             GET   true   parameter given twice        {i}{v}&api-version=VERSION
chosen      duplicate           GET   true   parameter given twice, the words  {i}{v}&api-version=VERSION
observed    document            GET   true   unknown parameter            {i}{v}&any=thing
observed    head                HEAD  -      HEAD                         {i}/compute
chosen      metadata            GET   -      GET / without the header     /
observed    outside             GET   -      outside /metadata            /latest/meta-data/
documented  version             GET   true   no version                   {i}
observed    version             GET   true   no version, leaf             {i}/compute/location
observed    version             GET   true   no version, root             {m}
observed    version             GET   true   version under another name   {i}?version=VERSION
documented  version             GET   true   version before the first     {i}?api-version=2016-01-01
documented  version             GET   true   version between two          {i}?api-version=2019-05-05
documented  version             GET   true   version after the last       {i}?api-version=2999-01-01
documented  version             GET   true   malformed version            {i}?api-version=latest
documented  versions            GET   true   versions                     {m}/versions
chosen      path                GET   true   unknown endpoint             {m}/nonsense{v}
observed    path                GET   true   unknown field                {i}/compute/nonsense{v}
documented  path                GET   true   other case                   {i}/Compute{v}
chosen      path                GET   true   field of a later version     {i}/compute/zone?api-version=2017-08-01{text}
chosen      path                GET   true   index out of range           {i}/network/interface/99{v}
observed    not-found           GET   true   dots in the path             {m}/./instance{v}
observed    document            GET   true   slash at the end             {i}/compute/{v}
observed    guid                GET   true   slash at the end of a leaf   {i}/compute/vmId/{v}{text}
observed    mac                 GET   true   doubled slash                {i}/network/interface/0//macAddress{v}{text}
observed    document            GET   true   compute is not wrapped       {i}/compute{v}
documented  document            GET   true   network is not wrapped       {i}/network{v}
documented  document            GET   true   compute at the oldest version  {i}/compute?api-version=OLDEST
observed    document            GET   true   a list is a bare list        {i}/network/interface{v}
observed    document            GET   true   format=json of a container   {i}/network{v}&format=json
observed    guid                GET   true   leaf as text                 {i}/compute/vmId{v}{text}
documented  leaf-refused        GET   true   leaf without a format        {i}/compute/vmId{v}
documented  leaf-refused        GET   true   leaf as JSON                 {i}/compute/vmId{v}&format=json
chosen      leaf                GET   true   leaf refused, the words      {i}/compute/vmId{v}
chosen      format              GET   true   unknown format               {i}/compute{v}&format=xml
observed    listing             GET   true   listing of the root          {i}{v}{text}
observed    listing             GET   true   listing of compute           {i}/compute{v}{text}
observed    indexes             GET   true   listing of a list            {i}/network/interface{v}{text}
observed    path                GET   true   identity root                {m}/identity{v}
documented  tenant              GET   true   tenant                       {m}/identity/info{t}
observed    no-resource         GET   true   token without a resource     {token}{t}
observed    token               GET   true   token                        {token}{t}{r}
observed    token               GET   true   token at a later version     {token}?api-version=2021-05-01{r}
observed    no-identity         GET   true   token of nobody              {token}{t}{r}&client_id=dead
observed    loadbalancer        GET   true   load balancer                {m}/loadbalancer{v}
observed    attested            GET   true   attested document            {m}/attested/document{v}&nonce=1234567890
chosen      version-of-another  GET   true   attested before its time     {m}/attested/document?api-version=2018-04-02
documented  metadata            GET   -      events without the header    {m}/scheduledevents?api-version=2020-07-01
observed    refused             GET   true   events, version of another   {m}/scheduledevents?api-version=2021-12-13
observed    content-type        GET   true   header Content-Type          {i}{v}
observed    server              GET   true   header Server                {i}{v}
observed    x-ms-request-id     GET   true   header x-ms-request-id       {i}{v}
observed    date                GET   true   header Date                  {i}{v}
observed    content-length      GET   true   header Content-Length        {i}{v}
chosen      path                GET   true   platform of newer tokens     {m}/identity/getplatformmetadata{cred}=2.0
chosen      path                GET   true   credential, by GET           {m}/identity/credential{cred}=1.0
chosen      path                GET   true   newer credential, by GET     {m}/identity/issuecredential{cred}=2.0
"""


def contract_checks() -> "List[Check]":
    """The checks of the table, and one for each version of what changes with it. (The preview is known from its
    document alone, which was withdrawn.)"""
    lines = CONTRACT_CHECKS.format(
        i="/metadata/instance", m="/metadata", v="?api-version=VERSION", t="?api-version=TOKENS", text="&format=text",
        token="/metadata/identity/oauth2/token", cred="?cred-api-version", r="&resource=https://management.azure.com/")
    return [Check(*re.split("  +", line)) for line in lines.splitlines()] + [
        Check("chosen" if version == PREVIEW else "documented", expected, "GET", "true", "%s at %s" % (name, version),
              "/metadata/%s?api-version=%s" % (endpoint, version))
        for expected, name, endpoint, versions in (
            ("event-list", "events", "scheduledevents", EVENT_VERSIONS),
            ("attested", "attested document", "attested/document", ATTESTED_VERSIONS),
            ("document", "document", "instance", VERSIONS))
        for version in versions]


def judge(check_row: "Check", reply: "Reply") -> str:
    """How a reply differs from what a check expects, or ""; without what may be a token in it."""
    refusal = REFUSALS.get(check_row.expected)
    shape = {refusal.status: functools.partial(_check_refusal, check_row)} if refusal else SHAPES[check_row.expected]
    try:
        if reply.status not in shape:
            raise ValueError("status %d, not %s" % (reply.status, " or ".join(map(str, shape))))
        shape[reply.status](reply)
    except ValueError as error:
        return _without_tokens(str(error))
    return ""


# Each of these raises a ValueError, which says how a reply differs.

def _check_refusal(check_row: "Check", reply: "Reply") -> None:
    text = refusal_body(check_row.expected, parse_target(check_row.target).names).replace("$verb", check_row.verb)
    if "$newest" in text:
        offered = list_in(reply.data, "newest-versions")[:3]
        newest_first = sorted(filter(_is_date, offered), reverse=True) or ["VERSION"]
        text = text.replace("$newest", format_json(newest_first))
        if parsed_or_none(reply.data) == json.loads(text):  # which blanks the service sends is not known
            text = reply.text
    if check_row.verb != "HEAD":
        _check_words([text], reply)
    _check_type(reply, content_type_of(text).partition(";")[0])


def _check_words(texts: "Sequence[str]", reply: "Reply") -> None:
    """That a body is one of these texts; if not, how it differs from the first, around where it begins to."""
    if reply.text not in texts:
        start = max(0, len(os.path.commonprefix([reply.text, texts[0]])) - 100)
        raise ValueError("body %s, not %s" % (_part_of(reply.body, start), _part_of(texts[0], start)))


def _part_of(text: "Optional[str]", start: int = 0) -> str:
    """A part of a body for a message, but nothing of a token."""
    if text is None or re.search("(?i)access_?token|" + JWT, text):
        return "that may hold a token"
    return repr(("..." if start else "") + text[start:start + 200])


def _is_date(version: "Any") -> bool:
    return isinstance(version, str) and bool(re.match(DATE, version))


def _check_type(reply: "Reply", wanted: str) -> None:
    if reply.content_type != wanted:
        raise ValueError("type %r, not %s" % (reply.content_type, wanted))


def _check_print(reply: "Reply") -> None:
    """That JSON comes as such, and minified; it is not shown, for it may be a token."""
    _check_type(reply, "application/json")
    if re.search(r"\s", without_strings(reply.text)):
        raise ValueError("no minified JSON")


def _check_names(found: "Iterable[str]", wanted: "Iterable[str]", where: str = "") -> None:
    if list(found) != list(wanted):
        raise ValueError("names %s%s, not %s" % (", ".join(found)[:200], where, ", ".join(wanted)))


# Seen later or earlier than documented, or not documented.
VARYING = frozenset(["isVmInStandbyPool", "physicalZone", "resourceDisk"])


def _check_keys(node: "Any", shown: "Any", path: str) -> None:
    """That a node is like a template: names, their order, and strings as leaves, of which nothing is shown."""
    forms: "Dict[type, str]" = {dict: "an object", list: "a list", str: "a string"}
    where, wanted = path or "it", str if isinstance(shown, Field) else type(shown)
    if type(node) is not wanted:
        raise ValueError("%s is %s, not %s" % (where, forms.get(type(node)) or format_json(node), forms[wanted]))
    if wanted is list:
        shown = dict.fromkeys(map(str, range(len(node))), shown[0])
    elif wanted is dict:
        missing = sorted(set(shown).difference(node, VARYING))
        if missing:
            raise ValueError("%s lacks %s" % (where, ", ".join(missing)))
    for name, child in children(node):
        if name in shown:
            _check_keys(child, shown[name], (path + "." + name).strip("."))
    if wanted is dict and list(node) != sorted(node):
        raise ValueError("%s is not in order" % where)


def _shown_at(reply: "Reply") -> "Any":
    """The template of the part of the instance document that was asked for."""
    asked = parse_target(reply.url)
    shown = dict(template(asked.query["api-version"]))
    shown.pop("extended", None)
    return find(shown, without_indexes(asked.rest))


def _check_document(reply: "Reply") -> None:
    document, asked, shown = parsed_or_none(reply.data), parse_target(reply.url), _shown_at(reply)
    _check_type(reply, "application/json")
    if document is None:
        raise ValueError("not JSON")
    _check_keys(document, shown, "")
    for path in walk(document):
        names = without_indexes(path.split("/"))
        added = None if has(shown, names) or VARYING.intersection(names) else since("/".join(asked.rest + (path,)))
        if added in VERSIONS and added > asked.query["api-version"]:
            raise ValueError("it has %s, which is there since %s" % (path, added))
    _check_print(reply)


def _check_text(pattern: str, reply: "Reply") -> None:
    _check_type(reply, "text/plain")
    if len(reply.data) > 65536:
        raise ValueError("%d bytes, too many for this" % len(reply.data))
    if not re.match(pattern, reply.text):
        raise ValueError("body %s, not like %s" % (_part_of(reply.text), pattern))


def _check_listing(pattern: str, reply: "Reply") -> None:
    _check_text(pattern, reply)
    lines = reply.text.split("\n")
    missing = set(format_text(_shown_at(reply)).split("\n")).difference(lines, VARYING)
    if missing:
        raise ValueError("lacks " + ", ".join(sorted(missing)))
    names = [line.rstrip("/") for line in lines]
    if names != sorted(names, key=lambda name: (len(name), name) if name.isdigit() else (0, name)):
        raise ValueError("not in order")


def _check_header(name: str, pattern: str, reply: "Reply") -> None:
    value = reply.headers.get(name, "")
    if not re.match(pattern + r"\Z", value):
        raise ValueError("it is %r, not like %s" % (value, pattern))


def _check_length(reply: "Reply") -> None:
    if "transfer-encoding" not in reply.headers:  # as a proxy may send it
        _check_header("content-length", str(len(reply.data)), reply)


def _checked_object(patterns: "Mapping[str, str]", reply: "Reply") -> "Dict[str, Any]":
    """The JSON object that a reply is, with these names in this order; a value is a str like its pattern, or anything
    where that is empty."""
    document = parsed_or_none(reply.data)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    _check_names(document, patterns)
    for name, pattern in patterns.items():  # no value is shown, for it may be a token
        if pattern and not (isinstance(document[name], str) and re.match(pattern + r"\Z", document[name])):
            raise ValueError("%s is no string like %s" % (name, pattern))
    _check_print(reply)
    return document


def _check_versions(reply: "Reply") -> None:
    listed = check(_checked_object({"apiVersions": ""}, reply)["apiVersions"], list, "apiVersions")
    if not (listed and all(map(_is_date, listed)) and listed == sorted(set(listed))):
        raise ValueError("not a list of dates, in order")


NOT_BEFORE = {  # by EventStatus: its form, and that in words
    "Scheduled": (r"(\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT)?\Z", "like Mon, 19 Sep 2016 18:29:47 GMT"),
    "Started": (r"\Z", "blank"),
}


def _check_event_list(reply: "Reply") -> None:
    document = _checked_object({"DocumentIncarnation": "", "Events": ""}, reply)
    version = parse_target(reply.url).query["api-version"]
    check(document["DocumentIncarnation"], int, "DocumentIncarnation")
    for event in check(document["Events"], list, "Events"):
        check_event(event)
        _check_names(event, [name for name, field in EVENT_FIELDS.items() if field.since <= version], " in an event")
        pattern, form = NOT_BEFORE[known(event["EventStatus"], NOT_BEFORE, "EventStatus")]
        if not re.match(pattern, event["NotBefore"]):
            raise ValueError("NotBefore is %r, not %s" % (event["NotBefore"], form))
        known(event["ResourceType"], ("VirtualMachine",), "ResourceType")


def _check_balance(reply: "Reply") -> None:
    document, wanted = _checked_object({"loadbalancer": ""}, reply), fields(BALANCE)
    read_balance(document)
    rules = document["loadbalancer"]
    _check_names([name for name in rules if name != "tunnelInterfaces"], wanted)  # of a gateway load balancer
    for name, (row,) in wanted.items():
        for rule in rules[name]:
            _check_names(rule, row, " in " + name)
            for key, field in row.items():
                check(rule[key], int if field.kind == "count" else str, "%s.%s" % (name, key))


def _check_attested(reply: "Reply") -> None:
    document = _checked_object({"encoding": "pkcs7", "signature": "[A-Za-z0-9+/=]+"}, reply)
    try:
        content = attested_content(document)
    except ValueError as error:
        raise ValueError("its signature: %s" % error) from None
    _check_keys(content, fields_until(parse_target(reply.url).query["api-version"], ATTESTED_VERSIONS), "its content")


def _check_refusal_of_token(reply: "Reply") -> None:
    """A VM without the identity may say so; one of another cloud does not know the resource, or its directory does not
    let it have a token (documented)."""
    if object_in(reply.data).get("error") not in ("invalid_resource", "unauthorized_client", "access_denied"):
        _check_words([REFUSALS["no-identity"].body, REFUSALS["several-identities"].body], reply)


def _check_refusal_of_leaf(reply: "Reply") -> None:
    if re.search(b'"newest-versions"|header not specified', reply.data):
        raise ValueError("it is refused for another reason")


SHAPES: "Dict[str, Dict[int, Callable[[Reply], Any]]]" = {  # by status
    "document": {200: _check_document},
    "guid": {200: functools.partial(_check_text, r"([0-9a-fA-F-]{36})?\Z")},
    "mac": {200: functools.partial(_check_text, r"([0-9A-F]{12})?\Z")},
    "not-found": {404: lambda reply: None},
    "refused": dict.fromkeys((400, 403, 404), lambda reply: None),
    "listing": {200: functools.partial(_check_listing, r"(\w+/?\n)*\w+/?\Z")},
    "indexes": {200: functools.partial(_check_listing, r"(\d+/\n)*\d+/\Z")},
    "leaf-refused": {400: _check_refusal_of_leaf},
    "versions": {200: _check_versions},
    "tenant": {200: functools.partial(_checked_object, {"tenantId": ".+"})},
    "token": {200: functools.partial(_checked_object, {
        "access_token": "[!-~]+", "client_id": ".*", "expires_in": "[0-9]+", "expires_on": "[0-9]+",
        "ext_expires_in": "[0-9]+", "not_before": "[0-9]+", "resource": ".+", "token_type": "Bearer"}),
              400: _check_refusal_of_token},
    "loadbalancer": {200: _check_balance,
                     404: functools.partial(_check_words, [REFUSALS["no-load-balancer"].body] + [
                         '{ "error": "%s" }' % text for text in (
                             "Load Balancer metadata API is not available right now. Please retry later",
                             "/metadata/loadbalancer is not currently available")])},
    "attested": {200: _check_attested},
    "event-list": {200: _check_event_list},
    "content-length": {200: _check_length},
    **{name: {200: functools.partial(_check_header, name, pattern)} for name, pattern in (
        ("content-type", "(?i)application/json; ?charset=utf-8"), ("server", r"IMDS/\d+\.\d+\.\d+\.\d+"),
        ("x-ms-request-id", "(?i)[0-9a-f-]{36}"), ("date", ".+ GMT"))},
}
PUT_OFF = {410: "the VM is being moved", 429: "throttled"}  # why an answer tells nothing


def verify(ask: "Callable[..., Tuple[int, Mapping[str, str], bytes]]") -> "Iterator[Tuple[Check, str, str]]":
    """Yield each of contract_checks() with "holds", "differs" or "can't tell", and why. ``ask(verb, target, headers)``
    returns status, headers (as a mapping that takes names in lower case) and body."""
    listed, problem = [], None  # type: List[Any], Optional[Error]
    try:
        listed = list_in(ask("GET", "/metadata/versions", SENT["true"])[2], "apiVersions")
    except Error as error:  # perhaps only this can't be asked
        problem = error
    offered = [each for each in VERSIONS if each in listed]
    if not offered:  # without that list, a request without a version is refused with the newest ones
        try:
            listed = list_in(ask("GET", "/metadata/instance", SENT["true"])[2], "newest-versions")
        except Error:
            if problem:
                raise
    named = [each for each in VERSIONS if each in listed]
    newest = max(named or [NEWEST])
    words = {"VERSION": newest, "OLDEST": min([each for each in named if each != PREVIEW] or [FIRST_GA]),
             "TOKENS": newest if offered and TOKEN_VERSION not in offered else TOKEN_VERSION}
    for row in contract_checks():
        row = row._replace(target=re.sub("[A-Z]{6,}", lambda found: words[found.group()], row.target))
        yield (row,) + _verdict_on(row, ask, offered, newest)


def _verdict_on(
    row: "Check", ask: "Callable[..., Tuple[int, Mapping[str, str], bytes]]", offered: "List[str]", newest: str,
) -> "Tuple[str, str]":
    """The verdict on a check, and why. ``offered``: the versions that the service lists; ``newest``: of those that it
    names there or elsewhere."""
    asked, has_shape = parse_target(row.target), row.expected in SHAPES
    version = asked.query.get("api-version", "")
    added = asked.row.since if version and row.expected not in ("version", "version-of-another") else None
    if offered and version in VERSIONS and version not in offered:
        return "can't tell", "this service does not offer " + version
    if added and not added <= version <= newest:
        return "can't tell", "this service does not offer it yet"
    if has_shape and asked.endpoint == "instance" and not has(template(version), without_indexes(asked.rest)):
        return "can't tell", "at %s it is not there" % version
    try:
        reply = Reply(*ask(row.verb, row.target, SENT[row.header]), url=row.target)
        if reply.status >= 500:  # which may have passed
            reply = Reply(*ask(row.verb, row.target, SENT[row.header]), url=row.target)
    except Error as error:
        return "differs" if isinstance(error, NotIMDS) else "can't tell", str(error)
    if reply.status in PUT_OFF:
        return "can't tell", PUT_OFF[reply.status]
    why = judge(row, reply)
    if why and not offered and has_shape and version and _offered(reply):
        return "can't tell", "this service refuses " + version
    return "differs" if why else "holds", why


# What says little of who answers: another server may do the same.
COMMON = frozenset("head outside path version-of-another not-found refused leaf-refused content-type x-ms-request-id"
                   " date content-length".split())


class Asker:
    """Asks a client for verify(), and judges the whole. ``answers``: what came so far: an Unreachable, "failing",
    "imds" or "other"."""

    def __init__(self, client: "Client") -> None:
        self.client, self.answers, self.last = client, [], 0.0  # type: Client, List[Any], float

    def __call__(self, verb: str, target: str, headers: "Mapping[str, str]") -> "Any":
        time.sleep(max(0, self.last + 0.25 - time.monotonic()))  # at 4 a second no service throttles
        self.last = time.monotonic()
        try:
            reply = self.client.ask_once(verb, target, headers)
        except Unreachable as error:
            self.answers.append(error)
            self.client.deadline = self.client.deadline or 10  # who is silent once need not be waited for so long again
            raise
        is_agent = reply.status == 403 and not reply.data and verb != "HEAD"  # of the guest proxy: lets nobody through
        who = "imds" if is_agent or is_like_imds(reply.data) else "other"
        self.answers.append("failing" if reply.status in PASSING else who)
        return reply[:3]

    def judge_all(self, verdicts: "List[Tuple[Check, str, str]]", strict: bool) -> bool:
        """Whether the service differs from a check that is documented or observed, or, if ``strict``, from any. Raises
        Unreachable, Unavailable or NotIMDS where the verdicts don't say that of an IMDS."""
        documents = [why for row, _, why in verdicts if row.name.startswith("document at ")]
        if documents and all(why.startswith("status 400, ") for why in documents):
            say("imds: each document is refused; does a proxy on the way add X-Forwarded-For, or take Metadata away?")
        is_wrong = any(verdict == "differs" and (strict or row.mark != "chosen") for row, verdict, _ in verdicts)
        is_imds = any(verdict == "holds" and row.expected not in COMMON for row, verdict, _ in verdicts)
        lost = [answer for answer in self.answers if isinstance(answer, Error)]
        passing = {*PUT_OFF.values(), *map(str, lost)}  # reasons that another run may not meet
        is_unsure = 2 * sum(why in passing for _, _, why in verdicts) > len(verdicts)
        is_silent = is_unsure and len(lost) > self.answers.count("failing")
        has_gone = bool(lost) and lost[-6:] == self.answers[-6:]  # none of the last six requests was answered
        if is_silent or has_gone and not is_wrong:
            raise lost[-1]
        if is_unsure or set(self.answers) == {"failing"}:
            raise Unavailable("%s answers little but 410, 429 and 5xx; try again later" % self.client.endpoint)
        if not is_imds and "imds" not in self.answers:
            raise NotIMDS("no answer is like one of the service: what answers at %s is not IMDS" % self.client.endpoint)
        return is_wrong


def is_like_imds(body: bytes) -> bool:
    """Whether an answer could be from IMDS, even a wrong one."""
    names = {"compute", "vmId", "access_token", "DocumentIncarnation", "newest-versions", "apiVersions", "loadbalancer"}
    return b"Required metadata header not specified" in body or not names.isdisjoint(object_in(body))


# --- doctor: why can't my program reach IMDS from here?

AZURE_CHASSIS = "7783-7084-3265-9085-8269-3286-77"  # chassis asset tag of every Azure VM (documented by systemd)
LEADING = {  # environment variables that lead clients elsewhere, and which clients
    "AZURE_IMDS_ENDPOINT": "this client", "AZURE_POD_IDENTITY_AUTHORITY_HOST": "azure-identity and MSAL",
    "IDENTITY_ENDPOINT": "every SDK: to Azure Arc with IMDS_ENDPOINT, to App Service with IDENTITY_HEADER",
    "IMDS_ENDPOINT": "every SDK, with IDENTITY_ENDPOINT: to Azure Arc", "MSI_ENDPOINT": "every SDK: to Cloud Shell",
}
# Who answers a request without the header: the first row that fits, and the last fits all. (statuses or None, header or
# None, text in it, pattern in the body, who, exit code); exit code 0: the answer to a client tells more.
ANSWERERS = (
    ((401,), "www-authenticate", ".key", "", "an Azure Arc agent", 5),
    (None, "metadata-flavor", "Google", "", "the metadata service of Google Cloud", 5),
    (None, "server", "EC2ws", "", "the metadata service of AWS", 5),
    (None, "x-ms-azure-host-authorization", "", "", "IMDS, behind the guest proxy agent", 0),
    ((403,), None, "", r"\A\Z", "the guest proxy agent, which lets nobody through", 1),
    ((400,), None, "", "Required metadata header not specified", "IMDS", 0),
    ((404,), "server", "IMDS/", "", "IMDS, which may not be up yet", 4),
    ((404,), "content-type", "application/json", "", "perhaps IMDS, which may not be up yet", 4),
    ((200,), None, "", '"compute"', "something like IMDS that does not want the header", 0),
    ((410,), None, "", "", "IMDS of a VM that is being moved", 4),
    ((429,), None, "", "", "IMDS, but throttling", 4),
    (PASSING, None, "", "", "something that is failing", 4),
    (None, "content-type", "text/html", "", "a captive portal, or some other web server", 5),
    (None, "location", "", "", "something that redirects: a captive portal", 5),
    (None, None, "", "", "something else", 5),
)


class Doctor:
    """Looks for what leads to the service, and asks it. ``facts``: (name, value, what it means); ``verdict``: in a
    line; ``exit_code``: as in EXIT_CODES. ``root``: where proc and sys are; ``environ``: None is os.environ."""

    def __init__(self, client: "Client", *, root: str = "/", environ: "Optional[Mapping[str, str]]" = None) -> None:
        self.client, self._root = client, root
        self._environ = os.environ if environ is None else environ
        self.facts: "List[Tuple[str, str, str]]" = []
        self._host = str(urllib.parse.urlsplit(client.endpoint).hostname)
        self._variables()
        self._proxies()
        self._place()
        verdict, self.exit_code = self._answers()
        self.verdict = one_line(verdict)

    def _fact(self, name: str, value: str, meaning: str = "") -> None:
        self.facts.append((name, one_line(value), meaning))

    def _read(self, path: str) -> str:
        try:
            with open(os.path.join(self._root, path), encoding="utf-8", errors="replace") as file:
                return file.read(65536)
        except OSError:
            return ""

    def _variables(self) -> None:
        for name, whom in LEADING.items():
            if name in self._environ:
                self._fact(name, self._environ[name], "leads " + whom)
        if not set(LEADING).intersection(self._environ):
            self._fact("variables", "none", "clients go to " + DEFAULT_ENDPOINT)

    def _proxies(self) -> None:
        """Which variables would lead curl or Python through a proxy: Python takes each in any case, and the lower one
        first, even if it is empty; curl takes http_proxy in lower case only."""
        from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed lacks it

        environ, place = self._environ, self.client.endpoint.partition("://")[2]
        upper = environ.get("NO_PROXY", "")
        bypassed = {"Python": proxy_bypass_environment(place, {"no": environ.get("no_proxy", upper)}),
                    "curl": self._is_passed_by_curl((environ.get("no_proxy") or upper).lower())}
        for name, users in (("http_proxy", ("curl", "Python")), ("all_proxy", ("curl",)), ("ALL_PROXY", ("curl",)),
                            ("HTTP_PROXY", () if "http_proxy" in environ else ("Python",))):
            if environ.get(name):
                led = [who for who in users if not bypassed[who]]
                if led:
                    meaning = "%s would send requests for %s there; set NO_PROXY=%s" % (
                        "Python, and not curl" if led == ["Python"] else " and ".join(led), self._host, self._host)
                else:
                    meaning = "passed by, for no_proxy says so" if users else "not used, for http_proxy comes first"
                self._fact(name, re.sub(r"(?s)\A(\w+://)?.*@", r"\1(masked)@", environ[name]), meaning)

    def _is_passed_by_curl(self, listed: str) -> bool:
        """Whether a no_proxy has the host for curl: an address or its network, or a name or the end of it."""
        import ipaddress

        for word in listed.replace(",", " ").split():
            try:
                if ipaddress.ip_address(self._host) in ipaddress.ip_network(word, strict=False):
                    return True
            except ValueError:  # one of the two is a name
                is_name = not re.match(ADDRESS, self._host)
                if is_name and ("." + self._host).endswith("." + word.lstrip(".")):
                    return True
        return listed == "*"

    def _place(self) -> None:
        self._tag = self._read("sys/class/dmi/id/chassis_asset_tag").strip()
        meanings = {AZURE_CHASSIS: "an Azure VM", "": "whether this is an Azure VM can't be seen"}
        self._fact("chassis tag", self._tag or "not readable", meanings.get(self._tag, "no Azure VM"))
        self._fact("route", *self._route())
        signs = [sign for sign, there in (
            ("/.dockerenv", os.path.exists(os.path.join(self._root, ".dockerenv"))),
            ("cgroup of a container", re.search("docker|kubepods|containerd|libpod", self._read("proc/1/cgroup"))),
            ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_HOST" in self._environ)) if there]
        if signs:
            self._fact("container", ", ".join(signs), "the service answers a container only over the network of its VM")

    def _route(self) -> "Tuple[str, str]":
        """The route to the endpoint, from /proc/net/route, where numbers are hexadecimal, low byte first."""
        import ipaddress

        is_own = re.search(r"\|-- %s\n +/32 host LOCAL" % re.escape(self._host), self._read("proc/net/fib_trie"))
        if is_own or is_loopback(self._host):
            return "loopback", "this machine itself"
        try:
            address = int.from_bytes(ipaddress.IPv4Address(self._host).packed, "little")
        except ValueError:
            return "not seen", "the endpoint is a name, or an address of IPv6"
        if not os.path.exists(os.path.join(self._root, "proc/net/route")):
            return "not seen", "this system does not show it in /proc/net/route"
        routes = [words for words in map(str.split, self._read("proc/net/route").splitlines()[1:])
                  if len(words) >= 8 and address & int(words[7], 16) == int(words[1], 16)]
        if not routes:
            return "none", "nothing leads to %s; add a route over the first interface" % self._host
        best = max(routes, key=lambda words: bin(int(words[7], 16)).count("1"))
        gateway = ", by a gateway" if int(best[2], 16) else ""
        return "over " + best[0] + gateway, "it has to be the primary interface of the VM"

    def _answers(self) -> "Tuple[str, int]":
        where, begun = self.client.endpoint, self.client._timer()
        try:
            reply = self.client.ask_once("GET", "/metadata/instance?api-version=2021-02-01", {})
        except Unreachable as error:
            self._fact("answers", "nothing", "the verdict says who could be in the way")
            return "%s at %s; %s" % (error.what, where, self._why_nobody()), 3
        except NotIMDS as error:
            why = "it does not speak HTTP" if "not HTTP" in str(error) else "its answer can't be read"
            self._fact("answers", why, str(error))
            return "what answers at %s is not IMDS: %s" % (where, why), 5
        self._fact("time", "%.0f ms" % (1000 * (self.client._timer() - begun)), "for one answer")
        who, code = next((who, code) for statuses, header, value, pattern, who, code in ANSWERERS
                         if (statuses is None or reply.status in statuses)
                         and (header is None or value in reply.headers.get(header, ()))
                         and re.search(pattern, reply.text))
        self._fact("without the header", "status %d" % reply.status, who)
        if code:
            return "what answers at %s is %s" % (where, who), code
        try:
            failure = self._ask_as_a_client()
        except (Unreachable, NotIMDS) as error:
            self._fact("answers", "no more", str(error))
            return "IMDS answers at %s, but not every time" % where, error.exit_code
        if failure:
            return "%s answers at %s, but not a client: %s" % (who, where, failure), failure.exit_code
        elsewhere = [name for name in LEADING if name != "AZURE_IMDS_ENDPOINT"
                     and self._environ.get(name, where).rstrip("/") != where]
        note = "; but %s leads SDKs elsewhere" % ", ".join(elsewhere) if elsewhere else ""
        return "%s answers at %s%s" % (who, where, note), 0

    def _why_nobody(self) -> str:
        if "KUBERNETES_SERVICE_HOST" in self._environ:
            return "this is a pod, and AKS can keep pods from the service: use workload identity, or hostNetwork"
        if self._tag == AZURE_CHASSIS:
            return "this is an Azure VM: check the route, the firewall and the primary interface"
        return "%sstart an emulator with 'python3 -m imds serve'" % (
            "this does not look like an Azure VM: " if self._tag else "unless this is an Azure VM, ")

    def _ask_as_a_client(self) -> "Optional[Error]":
        """Add the facts that a client meets; return what it would make of the first answer, if that is an error."""
        first = self.client.ask_once("GET", "/metadata/instance?api-version=2021-02-01", SENT["true"])
        failure = _error_in(first, None)
        if failure is None and not is_like_imds(first.data):
            failure = _not_imds(first, "something else")
        elif failure and failure.offered:  # an older service, with which a client comes to terms
            failure = None
        self._fact("with the header", "status %d" % first.status, "clients do not" if failure else "clients get on")
        listing = self.client.ask_once("GET", "/metadata/versions", SENT["true"])
        versions = sorted(filter(_is_date, list_in(listing.data, "apiVersions")))
        self._fact("versions", "%d, up to %s" % (len(versions), versions[-1]) if versions else "not listed",
                   "what a client may ask for")
        date = listing.time_in("date")
        if date is None:
            self._fact("clock", "not compared", "the answer has no Date")
        else:
            ahead = int(self.client._clock()) - int(date)  # a Date has whole seconds
            self._fact("clock", "%+d s" % ahead, "as the service's" if abs(ahead) < 60 else
                       "this clock is wrong: tokens and attested documents will not be believed")
        answer = self._in_time("identity", "a token may take ten seconds", "/metadata/identity/oauth2/token"
                               "?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F")
        if answer and answer.status == 200 and b'"access_token"' in answer.data:
            self._fact("identity", "a token came (not shown)", "this VM has an identity")
        elif answer:
            said = json.loads(answer.body).get("error_description") if answer.body else None
            advice = RETRIED.get(answer.status, "try again later") if answer.status in PASSING else None
            self._fact("identity", "status %d" % answer.status, said or advice or "no token for programs on this VM")
        answer = self._in_time("scheduled events", "the first list may take two minutes",
                               "/metadata/scheduledevents?api-version=2020-07-01")
        if answer:
            self._fact("scheduled events", "on, %d of them" % len(list_in(answer.data, "Events"))
                       if answer.status == 200 else "status %d" % answer.status, "asking turns them on")
        return failure

    def _in_time(self, name: str, longest: str, target: str) -> "Optional[Reply]":
        """What a client is answered, or None if that takes too long: a fact, and no fault, as ``longest`` says."""
        try:
            return self.client.ask_once("GET", target, SENT["true"])
        except Unreachable as error:
            if error.what != "silence":
                raise
            self._fact(name, error.what, longest)
            return None


# ==================================================================================================
# Room 10: command line
#
# argparse, exit codes, printing; knows all. Results go to standard output, the rest to standard error. A
# command is a row of COMMANDS, an option one of OPTIONS; a run makes only the parser of its own command.
# ==================================================================================================

USAGE_ERROR = 2
GRACE = 5  # seconds from SIGTERM to SIGKILL, for handlers of events
MAX_HANDLERS = 64  # that run at once; those of more events come later
MAX_PAUSE = 60  # seconds for which the service can put off an approval
EXIT_CODES = {
    0: "done",
    1: "the service says no (not found, bad request)",
    2: "usage: an option, a path or a file that can't be used",
    3: "nobody answers",
    4: "throttled or failing, after all retries",
    5: "what answers is not IMDS",
}


def main(argv: "Optional[Sequence[str]]" = None) -> int:
    """Run a command line and return its exit code; None: run that of this process, and exit with the code."""
    if argv is None:
        sys.exit(main(sys.argv[1:]))
    arguments, command = list(argv), []  # type: List[str], List[str]
    if os.name == "posix":  # arguments are UTF-8, whatever the locale
        arguments = [os.fsencode(argument).decode("utf-8", "surrogateescape") for argument in arguments]
    if arguments[:1] == ["exec"] and "--" in arguments:
        split = arguments.index("--")
        arguments, command = arguments[:split], arguments[split + 1:]
    elif arguments[:1] == ["exec"] and not {"-h", "--help"}.intersection(arguments):
        arguments = ["exec"]  # complains of no command
    try:
        options, others = _parser(arguments).parse_known_args(arguments)
        if others:
            raise ValueError(_not_taken(options.name, others[0]))
        options.command = command
        return int(options.run(options) or 0)
    except Error as error:
        return _complain(error, error.exit_code)
    except ValueError as error:
        return _complain(error, USAGE_ERROR)
    except RecursionError:
        return _complain("too many containers are in one another", NotIMDS.exit_code)
    except ImportError as error:  # as in Debian's python3-minimal
        return _complain(LACKING % error.name, USAGE_ERROR)
    except BrokenPipeError:  # the reader of our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        return _complain(error.strerror or error, 1)
    except KeyboardInterrupt:
        return 130


def _parser(arguments: "Sequence[str]") -> "Any":
    import argparse

    layout: "Any" = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=28, width=79)

    def parser(make: "Callable[..., Any]", name: str, text: str, codes: "Mapping[Any, Any]", **more: str) -> "Any":
        listed = "\n".join(["exit codes:"] + ["  %-3s  %s" % code for code in codes.items()])
        return make(name, description=text, epilog=listed, formatter_class=layout, **more)

    whole = parser(argparse.ArgumentParser, "python3 -m imds",
                   "Client and emulator of the Azure Instance Metadata Service.", EXIT_CODES)
    whole.add_argument("--version", action="version", version="imds " + __version__)
    commands = whole.add_subparsers(metavar="COMMAND", dest="name")
    commands.required = True
    asked = [name for name in COMMANDS if name in arguments[:1]]  # making them all would cost `get` 5 ms
    for name in asked or COMMANDS:
        row = COMMANDS[name]
        command = parser(commands.add_parser, name, row.text[0].upper() + row.text[1:] + ".", row.codes, help=row.text)
        command.set_defaults(run=row.run)
        if name == "exec":
            command.usage = "%(prog)s [OPTIONS] [VM.json] -- COMMAND ..."
        for option in row.options.split() if asked else ():
            settings = dict(OPTIONS[option])
            command.add_argument(*settings.pop("names", [option]), **settings)
    return whole


def _not_taken(command: str, argument: str) -> str:
    """Why a command does not take an argument, and what could be done about it."""
    rows = ((name, OPTIONS[name]) for name in COMMANDS[command].options.split())
    names = [each for name, row in rows for each in row.get("names", [name]) if each.startswith("-")]
    option = argument.partition("=")[0]
    if option in names:
        return "%s belongs behind %s" % (option, command)
    if not option.startswith("-"):
        return "%s has no place for %r; put options behind all else, or see %s --help" % (command, argument, command)
    nearest = nearest_of(option, names, 0.6)
    advice = "did you mean %s?" % nearest if nearest else "see %s --help" % command
    return "%s takes no %r; %s" % (command, argument, advice)


def _seconds(text: str) -> float:
    import argparse

    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError("must be a number, more than 0, not %r, and less than a million" % text)
    return seconds


def _port(text: str) -> int:
    import argparse

    if not re.match(r"[0-9]{1,5}\Z", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError("must be a number from 0 to 65535, not %r" % text)
    return int(text)


# The arguments of add_argument() for each option and for each positional argument (in capitals). names: of an option
# that another command has, too, but in another sense.
OPTIONS: "Dict[str, Dict[str, Any]]" = {
    "PATH": {"nargs": "*", "help": "like compute/vmId, or a URL from the documentation; none is the whole document"},
    "RESOURCE": {"help": "like https://vault.azure.net"},
    "A": {"help": "a file, or the URL of an endpoint"},
    "B": {"help": "the same"},
    "PREFIX": {"metavar": "PATH", "nargs": "?", "default": "",
               "help": "compare only what is below it, like instance/compute"},
    "VM": {"metavar": "VM.json", "nargs": "?",
           "help": "what /metadata/instance returns, of a real VM for example, or what snapshot prints; - is standard "
                   "input"},
    "--format": {"choices": ("json", "text"), "help": "print a leaf as JSON, or a container as a listing"},
    "--api-version": {"metavar": "DATE",
                      "help": "default: the newest that is known here, or else the newest that the service offers"},
    "--endpoint": {"metavar": "URL", "help": "default: $AZURE_IMDS_ENDPOINT, or " + DEFAULT_ENDPOINT},
    "--timeout": {"metavar": "SECONDS", "type": _seconds, "help": "give up after so long, all included"},
    "--json": {"action": "store_true", "help": "as the service says it, for programs"},
    "--watch": {"action": "store_true", "help": "a line for each change, until interrupted"},
    "--interval": {"metavar": "SECONDS", "type": _seconds, "default": 1, "help": "between two looks (default: 1)"},
    "--approve": {"metavar": "ID|all", "help": "let an event start now"},
    "--exec": {"metavar": "CMD", "dest": "handler",
               "help": "with --watch: run CMD for each event of this VM, told about it in $EVENT_ID, _TYPE, _STATUS, "
                       "_RESOURCES, _NOT_BEFORE, _DESCRIPTION, _SOURCE, _DURATION; approve it if CMD ends with 0"},
    **dict.fromkeys(("--client-id", "--object-id", "--msi-res-id"), {"metavar": "ID", "help": "which identity"}),
    "--nonce": {"metavar": "TEXT", "default": "", "help": "to be found in it; at most %d characters" % MAX_NONCE},
    "--content": {"action": "store_true", "help": "print what it says"},
    "--der": {"action": "store_true", "help": "print its PKCS#7 as bytes, for openssl"},
    "--redact": {"action": "store_true", "help": "with stand-ins for ids, names, addresses, keys and all that is not "
                                                 "known to be public"},
    "--issuing": {"action": "store_true", "help": "the authority below the root, which signs the service's own"},
    "--serve-port": {"names": ["--port"], "type": _port, "default": DEFAULT_PORT,
                     "help": "0 is a free one (default: %(default)s)"},
    "--port": {"type": _port, "default": 0, "help": "default: a free one"},
    "--host": {"default": "127.0.0.1", "help": "address to listen on (default: %(default)s)"},
    "--profile": {"help": "built-in VM: %s (default: linux)" % ", ".join(PROFILES)},
    "--set": {"metavar": "NAME=VALUE", "action": "append", "default": [],
              "help": "change a value of the VM, like compute.vmSize=Standard_D4s_v5; an object or a list is given as "
                      "JSON (repeatable)"},
    "--strict": {"action": "store_true", "help": "refuse a file in which a name is nearly a known one"},
    "--cloud": {"help": "azEnvironment: %s" % ", ".join(CLOUDS)},
    "--as-of": {"metavar": "YEAR", "help": "2018: the service of the 2018 document"},
    "--api-versions": {"metavar": "DATE,...", "help": "serve only these"},
    "--rate-limit": {"metavar": "N", "type": float,
                     "help": "requests a second, as many at once; 20 for tokens (default: no limit; as of 2018: 5)"},
    "--event": {"metavar": "TYPE[:KEY=VALUE,...]", "action": "append", "default": [],
                "help": "schedule an event, like Preempt:in=30s,resources=web_1+web_2; keys: in (or after), lasts, "
                        "resources, duration, source, description (repeatable)"},
    "--scenario": {"action": "append", "default": [], "help": "schedule: %s" % ", ".join(SCENARIOS)},
    "--identity": {"metavar": "SPEC", "action": "append",
                   "help": "a managed identity that it has: none, system, user:NAME or "
                           "user:NAME,client_id=...,object_id=...,resource_id=... (repeatable; default: system)"},
    "--load-balancer": {"action": "store_true", "help": "put it behind a load balancer"},
    "--attested-flaw": {"metavar": "NAME", "help": "give attested documents that must be refused: %s"
                                                   % "; ".join("%s, %s" % flaw for flaw in FLAWS.items())},
    "--attested-issuer": {"metavar": "URL",
                          "help": "where a verifier finds the issuer of their certificate (default: this emulator)"},
    "--allow-host": {"metavar": "NAME", "action": "append", "default": [],
                     "help": "answer requests whose Host says this name, too (repeatable)"},
    "--fault": {"metavar": "PLAYBOOK", "action": "append", "default": [],
                "help": "let it fail, like 'instance: 500 x2, 404, delay 3s' or flaky: see serve --help-situations "
                        "(repeatable)"},
    "--seed": {"metavar": "N", "type": int,
               "help": "of the first --fault, N + 1 of the second, ...: the same chances again (default: by the time)"},
    "--help-situations": {"action": "store_true", "help": "say how a playbook is written, and which have a name"},
    "--control": {"action": "store_true", "help": "let /imds/ control it, from any language or a browser"},
    "--reload": {"action": "store_true", "help": "read VM.json again whenever it changes"},
    "--requests": {"action": "store_true", "help": "print what the command asked, after it has ended"},
    "--lint": {"action": "store_true", "help": "judge what it asked by the published rules, after it has ended"},
    "--lint-strict": {"action": "store_true", "help": "the same, and end with 1 where a rule is broken"},
    "--isolated": {"action": "store_true",
                   "help": "run it where 169.254.169.254 is this emulator, and nothing else can be reached (Linux)"},
    "--scale-set": {"metavar": "N", "type": int, "help": "serve so many VMs of one scale set, a port each"},
    "URL": {"help": "of the service, like http://127.0.0.1:%d" % DEFAULT_PORT},
    "--verdicts": {"names": ["--json"], "action": "store_true", "help": "for programs"},
    "--checks-strict": {"names": ["--strict"], "action": "store_true",
                        "help": "count what documentation and observation leave open, too"},
    "--each-timeout": {"names": ["--timeout"], "metavar": "SECONDS", "type": _seconds,
                       "help": "for each request (default: as the client's)"},
    "--root": {"metavar": "DIR", "default": "/", "help": "where proc and sys are (default: /)"},
    "OPERATION": {"nargs": "?", "help": "none: list them all"},
    "ARGUMENT": {"metavar": "NAME=VALUE", "nargs": "*", "help": "like kind=Reboot after=30"},
    "--url": {"metavar": "URL", "help": "of the emulator (default: $AZURE_IMDS_CONTROL, $AZURE_IMDS_ENDPOINT/imds, or "
                                        "http://127.0.0.1:%d/imds)" % DEFAULT_PORT},
    "--time-scale": {"metavar": "N", "type": _seconds, "default": 1, "help": "let its time run so many times as fast"},
    "--quiet": {"action": "store_true", "help": "no access log (exec has none)"},
}


# --- the client's commands

def _client(options: "Any") -> "Client":
    return Client(options.endpoint, api_version=getattr(options, "api_version", None),
                  timeout=options.timeout, deadline=options.timeout)


def _run_get(options: "Any") -> None:
    for node in _client(options).get_all(options.PATH or [""], format=options.format):
        _print(node if isinstance(node, str) and options.format != "json" else _json(node))


def _run_token(options: "Any") -> None:
    answer = _client(options).token_answer(options.RESOURCE, client_id=options.client_id,
                                           object_id=options.object_id, msi_res_id=options.msi_res_id)
    _print(_json(answer) if options.json else answer["access_token"])


def _run_attested(options: "Any") -> None:
    if options.content and options.der:
        raise ValueError("--content or --der, not both")
    document = _client(options).attested(options.nonce)
    if options.der:
        _write(base64.b64decode(document["signature"]))
    else:
        _print(_json(attested_content(document) if options.content else document))


def _run_snapshot(options: "Any") -> None:
    client = _client(options)
    vm = client.snapshot()
    try:
        _print(format_json(redact(vm) if options.redact else vm, 2))
    except ValueError as error:  # it nests too deeply
        raise NotIMDS("%s answers what can't be redacted: %s" % (client.endpoint, error)) from None


def _run_diff(options: "Any") -> int:
    sources = options.A, options.B
    vms = [_comparable(source) for source in sources]
    bare = [source for source, vm in zip(sources, vms) if set(vm) == {"instance"}]
    if len(bare) == 1:
        vms = [{"instance": vm["instance"]} for vm in vms]
        say("imds: only the instance documents are compared: %s has nothing else" % bare[0])
    names = [name for name in options.PREFIX.split("/") if name]
    names = names[1:] if names[:1] == ["metadata"] else names
    names = ["instance"] + names if names and names[0] not in PARTS else names
    if not any(has(vm, names) for vm in vms):
        raise ValueError("neither of the two has %s" % "/".join(names))
    before, after = [find(vm, names) if has(vm, names) else None for vm in vms]
    lines = [line for difference in diff(before, after, path="/".join(names)) for line in _in_lines(*difference)]
    if lines:
        _print("\n".join(lines))
    return bool(lines)


def _comparable(source: str) -> "Dict[str, Any]":
    """The parts that a VM has, from a file or an endpoint, without the attested document, which differs each time."""
    client = Client(source) if source.startswith("http://") else None
    vm = client.snapshot() if client else _read_json(source)
    try:
        parts = split_document(vm)
    except ValueError as error:
        raise (NotIMDS if client else ValueError)("%s is not a VM: %s" % (source, error)) from None
    return {part: node for part, node in parts.items() if node is not None and part != "attested"}


def _in_lines(path: str, before: "Any", after: "Any") -> "Iterator[str]":
    """A difference in a line; but an added or removed container that is too long for one, in lines for its children."""
    present = before if after is None else after
    if None in (before, after) and len(format_json(present)) > 100 and children(present):
        for name, child in children(present):
            yield from _in_lines(path + "/" + name, None if before is None else child, None if after is None else child)
    elif present is not None:
        shown = ["(absent)" if node is None else format_json(node) for node in (before, after)]
        line = "%s: %s -> %s" % (path, *shown)
        yield "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _run_verify(options: "Any") -> int:
    ask = Asker(Client(options.URL, timeout=options.timeout, deadline=options.timeout))
    verdicts = []
    for row, verdict, why in verify(ask):
        verdicts.append((row, verdict, why))
        if not options.json:
            _print(printable("%-10s  %-10s  %s%s" % (verdict, row.mark, row.name, why and ": " + why[:300])))
    summary = {mark: {"holds": 0, "differs": 0, "can't tell": 0} for mark in ("documented", "observed", "chosen")}
    for row, verdict, _ in verdicts:
        summary[row.mark][verdict] += 1
    if options.json:
        checks = []
        for row, verdict, why in verdicts:
            asked = "; ".join([row.verb + " " + row.target] + ["%s: %s" % each for each in SENT[row.header].items()])
            checks.append({"check": row.name, "mark": row.mark, "request": asked, "verdict": verdict, "why": why})
        _print(_json({"url": ask.client.endpoint, "checks": checks, "summary": summary}))
    else:
        for mark, counts in summary.items():
            _print("%-10s  " % mark + "%(holds)d hold, %(differs)d differ, %(can't tell)d can't be told" % counts)
    return ask.judge_all(verdicts, options.strict)


def _run_doctor(options: "Any") -> int:
    client = Client(options.endpoint, timeout=options.timeout or 3, deadline=options.timeout or 5)
    client.begun = time.monotonic() if options.timeout else None
    doctor = Doctor(client, root=options.root)
    if options.json:
        facts = [{"fact": name, "value": value, "means": meaning} for name, value, meaning in doctor.facts]
        _print(_json({"verdict": doctor.verdict, "exit_code": doctor.exit_code, "facts": facts}))
    else:
        width = max(len(name) for name, _, _ in doctor.facts)
        _print(doctor.verdict + "\n")
        for name, value, meaning in doctor.facts:
            _print(printable("%-*s  %s%s" % (width, name, value, meaning and ": " + meaning)))
    return doctor.exit_code


def _run_test_ca(options: "Any") -> None:
    _print(pem(authority_certificate(TEST_ISSUER_NAME if options.issuing else TEST_ROOT_NAME)).rstrip())


# --- events

def _run_events(options: "Any") -> int:
    client, is_refused = _client(options), False
    if options.handler == "":
        raise ValueError("--exec wants a command")
    if options.handler and not options.watch:
        raise ValueError("--exec goes with --watch")
    if options.timeout and not options.watch:
        client.begun = time.monotonic()
    if options.approve == "all":
        waiting = [event for event in client.scheduled_events()["Events"] if event["EventStatus"] == "Scheduled"]
        if not waiting and not options.json:
            say("imds: no event waits for an approval")
        for event, refusal in _approve(client, waiting):
            is_refused |= refusal is not None
            if refusal or not options.json:
                say("imds: %s" % (refusal or "approved %(EventType)s %(EventId)s" % event))
    elif options.approve is not None:
        client.approve(options.approve)
    if options.watch:
        _Watch(client, options).run()
    elif options.json:
        _print(_json(client.scheduled_events()))
    elif options.approve is None:
        events = client.scheduled_events()["Events"]
        _print("\n".join(_event_line(event, client) for event in events) or "no scheduled events")
    return is_refused


def _approve(client: "Client", events: "Sequence[Any]") -> "Iterator[Tuple[Any, Optional[Error]]]":
    """Approve events together or, where that is refused, for one may have started, each alone. Yield each with its
    refusal, or None."""
    try:
        if events:
            client.approve(*[event["EventId"] for event in events])
        yield from ((event, None) for event in events)
    except (Refused, NotFound) as error:
        if len(events) == 1:
            yield events[0], error
        else:
            for event in events:
                yield from _approve(client, [event])


class _Watch:
    """`events --watch`: a line for each event that comes, changes or goes; on a terminal, a countdown to the next."""

    def __init__(self, client: "Client", options: "Any") -> None:
        import copy

        self.client, self.options = client, options
        self.other = copy.copy(client)  # for all but the list of events, which is not to wait for long meanwhile
        self.other.deadline = min(client.deadline or MAX_DEAF / 2, MAX_DEAF / 2)
        self.known: "Dict[str, Dict[str, Any]]" = {}
        self.incarnation: "Any" = None
        self.live = _is_terminal() and not options.json
        self.name: "Optional[str]" = None
        self.nameless_since: "Optional[float]" = None  # None: it was not asked for in vain yet
        self.ask_at = 0.0  # time.monotonic() from which the name may be asked for

    def run(self) -> None:
        handlers = _Handlers(self.options.handler, self.other)
        interval = max(self.options.interval, 2 / RATE_LIMIT)  # for the list, and perhaps an approval
        signals = _Signals()
        try:
            for document in self.client.poll_events(interval=interval):
                self.show(document)
                name = self.own_name() if self.options.handler else None
                signals.held = True  # an interrupt in begin() could leave a handler running
                for event in self.known.values():
                    if name in event["Resources"]:
                        handlers.begin(event)
                signals.held = False
                if signals.came:
                    raise KeyboardInterrupt
                handlers.look(self.known)
                self.count_down()
                if not _has_reader():
                    raise BrokenPipeError()
        finally:
            signals.ignore()
            handlers.end()

    def own_name(self) -> "Optional[str]":
        """The name of this VM, or None if it can't be had now. Raises the Error that has lasted for the deadline."""
        begun = time.monotonic()
        if self.name or begun < self.ask_at:
            return self.name
        try:
            name = self.other.get("compute/name")
            if not isinstance(name, str) or not name:
                raise NotIMDS("this VM has no name, by which its events could be told")
            self.name = name
        except Error as error:
            nameless = begun if self.nameless_since is None else self.nameless_since
            if time.monotonic() - nameless >= self.client.time_for("/metadata/instance", nameless, None, error):
                raise
            if self.nameless_since is None:
                say("imds: %s; watching goes on" % error)
            self.nameless_since, self.ask_at = nameless, time.monotonic() + min(error.retry_after, MAX_DEAF)
        return self.name

    def show(self, document: "Mapping[str, Any]") -> None:
        incarnation = document["DocumentIncarnation"]
        events = {event["EventId"].upper(): event for event in document["Events"]}
        if self.live:
            sys.stdout.write("\r\x1b[K")
        if self.options.json:
            if (incarnation, events) != (self.incarnation, self.known):
                _print(format_json(document))
        else:
            if self.incarnation is None and not events:
                say("imds: no scheduled events yet")
            gone = {event_id: dict(event, EventStatus="Gone", NotBefore="")
                    for event_id, event in self.known.items() if event_id not in events}
            for event_id, event in {**events, **gone}.items():
                if event != self.known.get(event_id):
                    _print(_fitting(_event_line(event, self.client), self.live))
        self.incarnation, self.known = incarnation, events

    def count_down(self) -> None:
        coming = [event for event in self.known.values() if event["NotBefore"]]
        if self.live and coming:
            soonest = min(coming, key=lambda event: parse_time(event["NotBefore"]) or 0)
            line = "%s of %s %s" % (soonest["EventType"], ",".join(soonest["Resources"]), _left(soonest, self.client))
            _write(_fitting(one_line(line), True).encode())


class _Handlers:
    """The commands that run for events, one for each. When it ends with 0 its event is approved: as long as that is
    Scheduled, the approval is sent again until the service takes or refuses it."""

    def __init__(self, command: "Optional[str]", client: "Client") -> None:
        self.command, self.client = command, client
        self.running: "Dict[str, Any]" = {}  # EventId, in upper case -> subprocess.Popen
        self.could_run: "Dict[str, bool]" = {}  # by EventId; of one that could not, this was reported
        self.approvals: "List[str]" = []  # the EventIds that are to be approved
        self.is_late = False  # an approval was not taken, and this was reported
        self.approve_at = 0.0  # time.monotonic() from which the service may be asked for an approval

    def begin(self, event: "Mapping[str, Any]") -> None:
        """Run the command for an event, once."""
        import subprocess

        event_id = event["EventId"].upper()
        if self.could_run.get(event_id) or len(self.running) >= MAX_HANDLERS:
            return
        try:
            self.running[event_id] = subprocess.Popen(
                str(self.command), shell=True, env=_event_environment(event), start_new_session=os.name == "posix")
            self.could_run[event_id] = True
        except OSError as error:  # perhaps only now
            if event_id not in self.could_run:
                self.could_run[event_id] = False
                say("imds: %s can't be run (%s); event %s is not approved" % (self.command, error.strerror, event_id))

    def look(self, events: "Mapping[str, Mapping[str, Any]]") -> None:
        """See which handlers have ended, and send the approvals that are due."""
        ended = [each for each, handler in self.running.items() if handler.poll() is not None]
        self.approvals += [each for each in ended if self.report(each)]
        due = [events[each] for each in self.approvals if events.get(each, {}).get("EventStatus") == "Scheduled"]
        if not due or time.monotonic() < self.approve_at:
            return
        late: "Optional[Error]" = None  # why the first that is to be sent again was not taken
        until, pause = time.monotonic() + MAX_DEAF / 2, 0.0
        try:
            for event, refusal in _approve(self.client, due):
                if refusal is None or refusal.status == 400:
                    self.approvals.remove(event["EventId"].upper())
                    if refusal:
                        say("imds: %s" % refusal)
                else:
                    late, pause = late or refusal, MAX_DEAF
                if time.monotonic() >= until:  # the list comes first
                    break
        except Error as error:
            late, pause = error, min(error.retry_after, MAX_PAUSE)
        if late and not self.is_late:
            say("imds: %s; the approval will be sent again" % late)
        self.is_late, self.approve_at = bool(late), time.monotonic() + pause

    def report(self, event_id: str) -> bool:
        """Forget a handler that has ended; return whether its event may start."""
        code = self.running.pop(event_id).returncode
        if code:
            say("imds: %s ended with %d; event %s is not approved" % (self.command, code, event_id))
        return not code

    def end(self) -> None:
        """End the handlers, and all that they have started: with SIGTERM, and after GRACE seconds with SIGKILL."""
        import signal

        for handler in self.running.values():
            self.kill(handler, signal.SIGTERM)
        until = time.monotonic() + GRACE
        while any(map(self.is_running, self.running.values())) and time.monotonic() < until:
            time.sleep(0.02)
        for event_id, handler in list(self.running.items()):
            self.kill(handler, getattr(signal, "SIGKILL", signal.SIGTERM))
            handler.wait()
            self.report(event_id)

    def is_running(self, handler: "Any") -> bool:
        """Whether a handler runs, or one of its processes, which may outlive the shell that started them."""
        return handler.poll() is None or os.name == "posix" and self.kill(handler, 0)

    def kill(self, handler: "Any", number: int) -> bool:
        """Send a signal to all processes of a handler; return whether there were any."""
        try:
            if os.name == "posix":
                os.killpg(handler.pid, number)
            else:
                handler.terminate()
            return True
        except OSError:  # all have ended
            return False


def _event_line(event: "Mapping[str, Any]", client: "Client") -> str:
    return printable("%-9s  %-9s  %-9s  %s  %s  %s" % (
        event["EventStatus"], event["EventType"], _left(event, client), event["EventId"],
        ",".join(event["Resources"]), event.get("Description", ""))).rstrip()


def _left(event: "Mapping[str, Any]", client: "Client") -> str:
    """The time until NotBefore, by the service's clock."""
    not_before = parse_time(event["NotBefore"])
    return "" if not_before is None else "in %d:%02d" % divmod(
        max(0, int(not_before - time.time() - client.ahead)), 60)


def _event_environment(event: "Mapping[str, Any]") -> "Dict[str, Any]":
    environment: "Dict[str, Any]" = dict(os.environ)
    for name, field in EVENT_FIELDS.items():
        value = event.get(name, "")
        text = " ".join(value) if isinstance(value, list) else str(value)
        if field.variable:
            data = text.replace("\0", "").encode()[:32768]  # systems limit the size
            environment["EVENT_" + field.variable] = data.decode("utf-8", "ignore") if os.name == "nt" else data
    return environment


# --- the emulator's commands

def _run_serve(options: "Any") -> None:
    if options.help_situations:
        _print(playbook_help())
        return
    if options.reload and options.VM in (None, "-"):
        raise ValueError("--reload goes with a file")
    seen, log = _stamp(options.VM) if options.reload else None, _Log()
    vm = _emulator(options, None if options.quiet else log)
    signals = _Signals()
    try:
        _start(vm, options)
        vms = [vm] if options.scale_set is None else vm
        _banner(vms[0])
        _print("\n".join(each.url for each in vms))
        while vm.wait(0.5) and not signals.came:
            stamp = _stamp(options.VM) if options.reload else None
            if stamp not in (None, seen):
                seen = stamp
                _reload(vm, options)
    except KeyboardInterrupt:
        pass
    finally:
        signals.ignore()
        vm.stop()
        log.close()


def playbook_help() -> str:
    """How a playbook is written, and the situations that have a name."""
    lines = ["--fault '[WHERE:] STEP, STEP, ...': one step for each request that matches, then all is well again.", "",
             "WHERE     instance, identity, scheduledevents, POST scheduledevents, ...: a path below /metadata",
             "STEP      " + " ".join(FAULT_STATUSES)]
    steps = list(FAULT_MANNERS.items()) + [(name, row[-1]) for name, row in FAULT_ANSWERS.items()]
    lines += ["          %-9s %s" % step for step in steps + [("delay 3s", "alone or first")]]
    lines += ["HOW OFTEN once, x2, for 60s, every 3, p 0.2, always", "", "situations:"]
    lines += ["  %-16s %-32s %s" % (name, row.playbook, row.text) for name, row in SITUATIONS.items()]
    return "\n".join(lines)


def _stamp(name: str) -> "Any":
    """What changes when a file is written, or None if there is no file."""
    try:
        stat = os.stat(name)
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
    except OSError:
        return None


def _reload(vm: "Emulator", options: "Any") -> None:
    """Serve the file again. If it is wrong, say so and keep the old VM."""
    try:
        vm.replace(_parts(options))
        say("imds: %s was read again" % options.VM)
    except ValueError as error:
        say("imds: %s; the VM stays as it was" % error)


def _banner(vm: "Emulator") -> None:
    """Say what is served, and how to ask it in the shells of this system."""
    compute, target = vm.instance["compute"], "/metadata/instance?api-version=" + vm.versions[-1]
    say("serving %s, %s in %s; stop with Ctrl-C. Try:" % (
        compute["name"] or "a VM", compute["vmSize"] or "of no size", compute["location"] or "no location"))
    variables = ("AZURE_IMDS_ENDPOINT", "AZURE_POD_IDENTITY_AUTHORITY_HOST")
    if os.name == "nt":
        say('  curl.exe --noproxy "*" -s -H Metadata:true "%s%s"' % (vm.url, target))
        say("  cmd:        " + " & ".join('set "%s=%s"' % (name, vm.url) for name in variables))
        say("  PowerShell: " + "; ".join("$env:%s = '%s'" % (name, vm.url) for name in variables))
    else:
        say("  curl --noproxy '*' -s -H Metadata:true '%s%s'" % (vm.url, target))
        say("  export " + " ".join("%s=%s" % (name, vm.url) for name in variables))
    if "AZURE_IMDS_CONTROL" in vm.environ:
        control = vm.environ["AZURE_IMDS_CONTROL"]
        say("  control: %s/ is a page for a browser; for ctl: export AZURE_IMDS_CONTROL=%s" % (control, control))
    if vm.rate_limit:
        say("at most %g requests a second are answered; --rate-limit 0 turns that off" % vm.rate_limit)


class _Log:
    """The access log on standard error. A thread of its own writes it, so that no client waits when nobody reads
    the pipe; then old lines are lost."""

    def __init__(self) -> None:
        import threading

        self._lines: "Any" = collections.deque(maxlen=10000)
        self._some = threading.Event()  # lines that are not written yet
        self._thread: "Any" = None

    def __call__(self, line: str) -> None:
        import threading

        if sys.stderr is None:  # it was closed, and 2 may by now be the number of a client's socket
            return
        self._lines.append(line)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="imds-log", daemon=True)
            self._thread.start()
        if not self._some.is_set():
            self._some.set()

    def _run(self) -> None:
        while True:
            self._some.wait()
            time.sleep(0.02)  # to write many lines at once is cheaper
            text = ""
            while self._lines:
                text += self._lines.popleft() + "\n"
                if len(text) > 65536 or not self._lines:
                    try:  # not sys.stderr: Python fails to exit while a daemon thread holds its lock
                        os.write(2, text.encode("utf-8", "backslashreplace"))
                    except OSError:
                        pass
                    text = ""
            self._some.clear()
            if self._lines:  # they came meanwhile
                self._some.set()

    def close(self) -> None:
        """Wait until all is written, but not for long."""
        until = time.monotonic() + 0.5
        while (self._lines or self._some.is_set()) and time.monotonic() < until:
            time.sleep(0.005)


def _run_exec(options: "Any") -> int:
    import shutil
    import subprocess

    if not options.command:
        raise ValueError("what is to be run? exec [OPTIONS] -- COMMAND ...")
    if options.isolated and (options.host != "127.0.0.1" or options.port):
        raise ValueError("--isolated goes with no --host or --port: it is at %s" % DEFAULT_ENDPOINT)
    if options.isolated:
        isolate()
        options.host, options.port = DEFAULT_ENDPOINT.partition("://")[2], 80
    vm = _emulator(options, None)
    children, ending = [], []  # type: List[Any], List[bool]

    def end(*_: object) -> None:
        ending.append(True)
        for child in children:
            child.terminate()

    try:
        _start(vm, options)
        _set_signals(lambda *_: None, end)  # a terminal sends Ctrl-C to the command as well, which decides
        program = shutil.which(options.command[0]) if os.name == "nt" else None  # a .cmd, too
        environment = dict(os.environ, **vm.environ)
        if not options.control:  # that of another emulator
            environment.pop("AZURE_IMDS_CONTROL", None)
        if options.isolated:  # clients are to go to the address of the real service
            environment = {name: value for name, value in environment.items() if name not in LEADING}
        try:
            children.append(subprocess.Popen([program or options.command[0]] + options.command[1:], env=environment))
        except OSError as error:
            is_absent = isinstance(error, (FileNotFoundError, NotADirectoryError)) or not options.command[0]
            return _complain("%s: %s" % (options.command[0], error.strerror), 127 if is_absent else 126)
        if ending:  # SIGTERM came during Popen
            end()
        code = int(children[0].wait())
        broken = _report_requests(vm, options)
        if options.lint_strict and broken and code == 0:
            return 1
        return code if code >= 0 else 128 - code  # below 0: minus the signal that ended it
    finally:
        vm.stop()


FORBIDDEN = """\
this system does not let you make a network namespace (%s): allow it with 'sysctl -w \
kernel.unprivileged_userns_clone=1' or 'sysctl -w kernel.apparmor_restrict_unprivileged_userns=0', or run it as root; \
or give the address to this machine with 'sudo ip addr add 169.254.169.254/32 dev lo' and use exec --host \
169.254.169.254 --port 80"""


def isolate() -> None:
    """Move this process into a network namespace with nothing but loopback and 169.254.169.254; if it is not root's,
    into a user namespace as well, in which it is. Raise ValueError unless the former is surely new and empty."""
    if not sys.platform.startswith("linux"):
        raise ValueError("--isolated needs Linux, for its network namespaces")
    user, group, new_network, new_user = os.getuid(), os.getgid(), 0x40000000, 0x10000000
    try:
        before = os.readlink("/proc/self/ns/net")
        _unshare(new_network | (new_user if user else 0))
        if user:
            for name, text in (("setgroups", "deny"), ("uid_map", "0 %d 1" % user), ("gid_map", "0 %d 1" % group)):
                with open("/proc/self/" + name, "w") as file:
                    file.write(text)
    except OSError as error:
        raise ValueError(FORBIDDEN % error.strerror) from None
    with open("/proc/self/net/dev", encoding="ascii") as lines:
        interfaces = [line.partition(":")[0].strip() for line in lines if ":" in line]
    if os.readlink("/proc/self/ns/net") == before or interfaces != ["lo"]:
        raise ValueError("this is no network namespace of its own: nothing is run in it")
    _bring_up(DEFAULT_ENDPOINT.partition("://")[2])


def _unshare(flags: int) -> None:
    """os.unshare, which Python has from 3.12 on."""
    if hasattr(os, "unshare"):
        os.unshare(flags)
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _bring_up(address: str) -> None:
    """Start loopback and give it an address, by the ioctls SIOCSIFFLAGS and SIOCSIFADDR."""
    import fcntl
    import socket
    import struct

    set_flags, set_address, up_and_running = 0x8914, 0x8916, 0x41
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, set_flags, struct.pack("16sH22x", b"lo", up_and_running))
        request = struct.pack("16sHH4s16x", b"lo:0", socket.AF_INET, 0, socket.inet_aton(address))
        fcntl.ioctl(control, set_address, request)


def _report_requests(vm: "Emulator", options: "Any") -> int:
    """Report what a command asked and which rules it broke, as the options say; return how many rules."""
    for exchange in vm.requests if options.requests else ():
        say(str(exchange))
    findings = vm.lint() if options.lint or options.lint_strict else []
    for finding in findings:
        say("%(rule)s (%(count)d): %(says)s (%(mark)s)" % finding)
        say("    %(seen)s" % finding)
    if (options.lint or options.lint_strict) and not findings:
        say("no rule is broken, in %s" % counted(len(vm.requests)))
    return len(findings)


def _run_ctl(options: "Any") -> int:
    import textwrap

    led = os.environ.get("AZURE_IMDS_CONTROL") or os.environ.get("AZURE_IMDS_ENDPOINT")
    url = (options.url or led or "http://127.0.0.1:%d" % DEFAULT_PORT).rstrip("/")
    origin, path = re.match(r"(\w+://[^/]*|[^/]*)/?(.*)", url).groups()  # type: ignore[union-attr]
    client = Client(origin, timeout=options.timeout, deadline=options.timeout or 5)
    pairs = [argument.partition("=") for argument in options.ARGUMENT]
    if not all(equals for _, equals, _ in pairs) or len({key for key, _, _ in pairs}) < len(pairs):
        raise ValueError("an argument is NAME=VALUE, like kind=Reboot, each once")
    name = options.OPERATION and known(options.OPERATION, OPERATIONS, "operation")
    arguments = read_arguments(name, {key: value for key, _, value in pairs}) if name else None
    try:
        answer = client.control("/%s/%s" % (path or "imds", name or ""), arguments)
    except Unreachable as error:
        if error.what != "nobody listens":
            raise Unreachable("%s; the operation may have been done" % error) from None
        raise Unreachable("no emulator answers at %s; start one with 'python3 -m imds serve --control', or say with "
                          "--url where it is" % url) from None
    except NotFound:
        raise Error("there is no control at %s: start the emulator with --control" % url) from None
    except Refused as error:
        why = object_in((error.body or "").encode()).get("error")
        for line in (why if isinstance(why, str) else error.message).split("\n"):  # an assertion has several
            say("imds: " + line)
        return Error.exit_code
    try:
        result, rows = (answer["result"], []) if name else (None, [answer[each] for each in OPERATIONS])
        listed = [[check(row[part], str, part) for part in ("signature", "documentation")] for row in rows]
    except (KeyError, TypeError, ValueError):
        raise NotIMDS("what answers at %s is no emulator: it says something else" % url) from None
    for signature, documentation in listed:
        _print("\n".join(textwrap.wrap(printable(signature), 79, subsequent_indent="        ")))
        _print(textwrap.indent("\n".join(map(printable, documentation.split("\n"))), "    "))
    if result is not None:
        _print(printable(result) if isinstance(result, str) else _json(result))
    return 0


def _emulator(options: "Any", log: "Optional[Callable[[str], None]]") -> "Any":
    """The Emulator, or the ScaleSet, that the options ask for, with its events and faults."""
    count = getattr(options, "scale_set", None)
    if count is not None and (options.VM or options.set or options.reload):
        raise ValueError("--scale-set goes with no file, --set or --reload")
    parts = _parts(options) if options.VM is not None or options.set else None
    if not options.host:
        raise ValueError("--host wants an address; 0.0.0.0 is all of IPv4, :: is all of IPv6")
    identities = [] if options.identity == ["none"] else options.identity
    if identities and "none" in identities:
        raise ValueError("--identity none goes with no other")
    seed = int(time.time() * 1000) % 2**31 if options.seed is None else options.seed
    settings = {name: getattr(options, name) for name in (
        "host", "port", "rate_limit", "cloud", "as_of", "control", "attested_flaw", "attested_issuer", "load_balancer")}
    settings.update(
        versions=options.api_versions and options.api_versions.split(","), allow_hosts=options.allow_host, log=log,
        clock=Clock(time.time, scale=options.time_scale), identities=identities,
        schedule=[_event(event) for event in options.event] + options.scenario,
        faults=[{"playbook": playbook, "seed": seed + at} for at, playbook in enumerate(options.fault)])
    profile = None if parts else options.profile
    vm: "Any" = Emulator(parts, profile=profile, **settings) if count is None else ScaleSet(
        count, profile=profile or "scaleset", **settings)
    for playbook, fault in zip((vm if count is None else vm[0]).faults(), settings["faults"]):
        if " p " in playbook:
            say("imds: fault %s, seed %d" % (playbook, fault["seed"]))
    return vm


def _parts(options: "Any") -> "Dict[str, Any]":
    """The parts of the VM of a file or a profile, complete and with --set applied."""
    if options.VM is None:
        document = {"instance": make_vm(options.profile or "linux")}
    elif options.profile:
        raise ValueError("a file or --profile, not both")
    else:
        document = _read_json(options.VM)
    if not {"instance", "compute", "network"}.intersection(document):
        raise ValueError(NO_VM % options.VM)
    try:
        parts = split_document(document)
        instance = complete(parts["instance"])
    except ValueError as error:
        raise ValueError("%s is not a VM: %s" % (options.VM, error)) from None
    for part, node in parts.items():
        shown = everything() if part == "instance" else fields(PARTS[part])
        if part in shown:  # the frame of the load balancer's document
            node = (node or {}).get(part, node)
        for path, meant in misspelled(node, shown, "" if part == "instance" else part + "."):
            message = "%s: %s is a name that no table knows; did you mean %s?" % (options.VM, path, meant)
            if options.strict:
                raise ValueError(message)
            say("imds: warning: " + message)
    for setting in options.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError("--set takes NAME=VALUE, like compute.vmSize=Standard_D4s_v5, not %r" % setting)
        instance = assign(instance, name, value)
    return dict(parts, instance=instance)


# The keys of --event: the argument of Bench.schedule that each gives, and how it is read.
EVENT_KEYS: "Dict[str, Tuple[str, Callable[[str], Any]]]" = {
    "in": ("after", duration), "after": ("after", duration), "lasts": ("lasts", duration),
    "resources": ("resources", lambda names: names.split("+")),
    "duration": ("duration", lambda text: int(duration(text))), "source": ("source", str),
    "description": ("description", str),
}


def _event(text: str) -> "Dict[str, Any]":
    """Parse --event into the arguments of Emulator.schedule. A comma without NAME= behind it is part of a value."""
    kind, _, rest = text.partition(":")
    event: "Dict[str, Any]" = {"kind": kind}
    for pair in re.split(r",(?=\w+=)", rest) if rest else ():
        key, _, value = pair.partition("=")
        argument, read = EVENT_KEYS[known(key, EVENT_KEYS, "key of --event")]
        if argument in event:
            raise ValueError("--event says %s twice" % argument)
        event[argument] = read(value)
    return event


def _start(vm: "Any", options: "Any") -> None:
    import errno
    import socket

    try:
        vm.start()
    except OSError as error:
        advice = "choose another with --host"
        if not error.filename:  # it was no port
            raise Error("can't start (%s); end other programs, or allow more threads" % error) from None
        if isinstance(error, socket.gaierror):
            advice = "it is no name or address of this machine; " + advice
        elif error.errno == errno.EADDRINUSE:
            advice = "choose another with --port, or --port 0 for a free one"
        elif error.errno == errno.EACCES:
            advice = "ports below 1024 need more rights; choose another with --port"
        elif error.errno == errno.EADDRNOTAVAIL and options.host == "127.0.0.1":
            advice = "where there is only IPv6, use --host ::1"
        raise Error("can't listen on %s (%s); %s" % (error.filename, error.strerror or error, advice)) from None
    if not is_loopback(options.host) and not getattr(options, "isolated", False):
        say("imds: warning: %s is not loopback; whoever reaches this machine can read what is served" % options.host)


# --- what the commands share

def _read_json(name: str) -> "Dict[str, Any]":
    try:
        if name == "-":
            text = sys.stdin.buffer.read() if sys.stdin else b""
        else:
            with open(name, "rb") as file:
                text = file.read()
    except OSError as error:
        raise ValueError("%s: %s" % (name, error.strerror)) from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("%s is not JSON: %s" % (name, error)) from None
    if not isinstance(document, dict):
        raise ValueError("%s is not a VM: it holds no object" % name)
    return document


def _json(node: "Any") -> str:
    return format_json(node, 2 if _is_terminal() else None)


def _print(text: str) -> None:
    """Print a result, as UTF-8 whatever the locale."""
    _write(text.encode("utf-8", "replace") + b"\n")


def _write(data: bytes) -> None:
    if not sys.stdout:
        raise OSError("standard output is closed")
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        if os.name == "nt" and error.errno == 22:  # on Windows: the reader is gone
            raise BrokenPipeError() from None
        raise


def _is_terminal() -> bool:
    return bool(sys.stdout and sys.stdout.isatty())


def _has_reader() -> bool:
    """Whether the reader of standard output may still be there."""
    import select

    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return not any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no poll, or nothing that can be asked
        return True


def _fitting(line: str, live: bool) -> str:
    """A line, cut so that a terminal does not wrap it."""
    import shutil

    return line[:shutil.get_terminal_size().columns - 1] if live else line


def _set_signals(interrupt: "Any", end: "Any") -> None:
    """Set what SIGINT, and SIGTERM and SIGHUP, do, if this is the main thread: no other may."""
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, end)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signal.SIGHUP, end)


class _Signals:
    """Raises KeyboardInterrupt at the first SIGTERM or Ctrl-C, until ``ignore()``. ``came``: one came, even if its
    exception was lost, as in a __del__; ``held``: only note it in ``came``."""

    def __init__(self) -> None:
        self.came = self.held = False
        _set_signals(self._interrupt, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        came, self.came = self.came, True
        if not self.held and not came:  # a second one would interrupt what the first began
            sys.unraisablehook = lambda _: None  # an object that is left half made may complain when it is closed
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """Ignore further signals: the program is ending."""
        import signal

        _set_signals(signal.SIG_IGN, signal.SIG_IGN)


def _complain(error: object, code: int) -> int:
    say("imds: %s" % error)
    return code


# run: takes the parsed options, returns an exit code or None; options: keys of OPTIONS; codes: what each means here.
Command = collections.namedtuple("Command", "run text options codes")
_ASKS = "--endpoint --timeout"  # of each client
_NO_CLIENT = {code: EXIT_CODES[code] for code in (0, 1, 2)}
_EMULATES = ("VM --host --allow-host --profile --set --strict --cloud --as-of --api-versions --rate-limit --event"
             " --scenario --identity --load-balancer --attested-flaw --attested-issuer --fault --seed --control"
             " --time-scale --quiet")
COMMANDS = {
    "get": Command(_run_get, "print what the service says", "PATH --format --api-version " + _ASKS, EXIT_CODES),
    "events": Command(_run_events, "print, watch and approve scheduled events",
                      "--json --watch --interval --approve --exec " + _ASKS, EXIT_CODES),
    "token": Command(_run_token, "print an access token of a managed identity",
                     "RESOURCE --client-id --object-id --msi-res-id --json " + _ASKS, EXIT_CODES),
    "attested": Command(_run_attested, "print the attested document; its signature is not checked",
                        "--nonce --content --der " + _ASKS, EXIT_CODES),
    "snapshot": Command(_run_snapshot, "print the whole VM as JSON, for serve; no token is in it",
                        "--redact " + _ASKS, EXIT_CODES),
    "diff": Command(_run_diff, "print what differs between two VMs, path by path", "A B PREFIX",
                    {**EXIT_CODES, 1: "something differs, or the service says no"}),
    "serve": Command(_run_serve, "emulate the service until interrupted",
                     "--serve-port --scale-set --reload --help-situations " + _EMULATES,
                     {**_NO_CLIENT, 1: "it can't listen there"}),
    "exec": Command(_run_exec, "run a command against an emulator of its own",
                    "--port --isolated --requests --lint --lint-strict " + _EMULATES,
                    {**_NO_CLIENT, 1: "it can't listen there; a rule is broken (--lint-strict)",
                     126: "the command can't be run", 127: "there is no such command",
                     "128+N": "signal N ended the command; else the exit code is the command's own"}),
    "ctl": Command(_run_ctl, "do an operation of an emulator that was started with --control",
                   "OPERATION ARGUMENT --url --timeout", {**EXIT_CODES, 1: "the operation was refused"}),
    "verify": Command(_run_verify, "check whether something behaves as IMDS does; it only reads",
                      "URL --verdicts --checks-strict --each-timeout",
                      {**EXIT_CODES, 1: "a documented or observed check differs"}),
    "doctor": Command(_run_doctor, "say why a program can't reach IMDS from here",
                      "--verdicts --root " + _ASKS, EXIT_CODES),
    "test-ca": Command(_run_test_ca, "print the certificate of the authority behind the emulator's attested documents",
                       "--issuing", {code: EXIT_CODES[code] for code in (0, 2)}),
}


if __name__ == "__main__":
    main()
