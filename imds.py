"""Both halves of the Azure Instance Metadata Service (IMDS), in one file and the standard library.

The client asks the service of the VM it runs on:

    >>> imds.get("compute/vmId")                                    # a leaf: a str
    '13f56399-bd52-4150-9748-7190aae1ff21'
    >>> imds.get("network/interface/0/ipv4/subnet")                 # a container: a dict or a list
    [{'address': '10.1.2.0', 'prefix': '24'}]

    $ python3 -m imds get compute/vmId

The emulator is that service, anywhere:

    >>> with imds.Emulator() as vm:
    ...     imds.get("compute/name", endpoint=vm.url)
    'avset2'

    $ python3 -m imds serve

The file has six rooms. Each knows only the rooms above it:

    1 contract      tables of the service: versions, fields, clouds, refusals, built-in VMs
    2 core          pure functions on documents: complete, view at a version, resolve, print
    3 service       one request in, one response out; every rule, in the order of the service
    4 emulator      the service on a port, by way of http.server
    5 client        urllib to a service
    6 command line  argparse, printing, exit codes
"""

import collections
import functools
import itertools
import json
import os
import re
import sys
import time
import urllib.parse

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is at run time, without the import
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NoReturn, Optional, Sequence, Tuple, Type

__version__ = "0.1.0"
__all__ = [
    "Client", "Clock", "Emulator", "Error", "NotFound", "NotIMDS", "Refused", "Unavailable", "Unreachable",
    "approve", "attested", "format_text", "get", "resolve", "scheduled_events", "token", "watch_events",
    "parse_time",
]


# ==================================================================================================
# Room 1: contract
#
# What the service is, as data: no logic, no imports. "Documented" is Microsoft's article on the
# Instance Metadata Service; "observed" is what the real service was seen to send.
# ==================================================================================================

# Every documented api-version and the fields it added to /metadata/instance. A name with {} is an
# object, with [{}] a list of objects, alone a string; `:bool` is the one JSON boolean there is.
# Lists hold objects only. The first row is the preview with its own shape; the second starts what all
# later ones add to. A new api-version is one row.
VERSIONS = {
    "2017-03-01": "compute{location name offer osType platformFaultDomain platformUpdateDomain publisher sku version"
                  " vmId vmSize} network{interface[{ipv4{ipaddress[{ipaddress publicip}]"
                  " subnet[{address dnsservers[{ipaddress}] prefix}]} ipv6{ipaddress[{ipaddress}]} mac}]}",
    "2017-04-02": "compute{location name offer osType platformFaultDomain platformUpdateDomain publisher sku version"
                  " vmId vmSize} network{interface[{ipv4{ipAddress[{privateIpAddress publicIpAddress}]"
                  " subnet[{address prefix}]} ipv6{ipAddress[{privateIpAddress}]} macAddress}]}",
    "2017-08-01": "compute{placementGroupId resourceGroupName subscriptionId tags}",
    "2017-10-01": "",
    "2017-12-01": "compute{vmScaleSetName zone}",
    "2018-02-01": "",
    "2018-04-02": "compute{plan{name product publisher} publicKeys[{keyData path}]}",
    "2018-10-01": "compute{azEnvironment provider}",
    "2019-02-01": "compute{customData}",
    "2019-03-11": "compute{resourceId}",
    "2019-04-30": "",
    "2019-06-01": "compute{storageProfile{"
                  "dataDisks[{caching createOption diskSizeGB image{uri} lun managedDisk{id storageAccountType} name"
                  " vhd{uri} writeAcceleratorEnabled}]"
                  " imageReference{id offer publisher sku version}"
                  " osDisk{caching createOption diffDiskSettings{option} diskSizeGB encryptionSettings{enabled}"
                  " image{uri} managedDisk{id storageAccountType} name osType vhd{uri} writeAcceleratorEnabled}}}",
    "2019-06-04": "compute{tagsList[{name value}]}",
    "2019-08-01": "",
    "2019-08-15": "",
    "2019-11-01": "",
    "2020-06-01": "compute{isHostCompatibilityLayerVm securityProfile{secureBootEnabled virtualTpmEnabled}}",
    "2020-07-15": "compute{osProfile{adminUsername computerName}}",
    "2020-09-01": "compute{licenseType}",
    "2020-10-01": "compute{osProfile{disablePasswordAuthentication}}",
    "2020-12-01": "compute{evictionPolicy priority}",
    "2021-01-01": "compute{userData}",
    "2021-02-01": "compute{storageProfile{resourceDisk{size}}}",
    "2021-03-01": "compute{extendedLocation{name type} virtualMachineScaleSet{id}}",
    "2021-05-01": "compute{storageProfile{dataDisks[{bytesPerSecondThrottle diskCapacityBytes isSharedDisk"
                  " isUltraDisk opsPerSecondThrottle}]}}",
    "2021-08-01": "extended{compute{hasCustomData:bool ppsType}}",
    "2021-10-01": "compute{platformSubFaultDomain}",
    "2021-11-01": "compute{additionalCapabilities{hibernationEnabled} securityProfile{encryptionAtHost}"
                  " storageProfile{osDisk{encryptionSettings{diskEncryptionKey{secretUrl sourceVault{id}}"
                  " keyEncryptionKey{keyUrl sourceVault{id}}}}}}",
    "2021-11-15": "compute{host{id} hostGroup{id}}",
    "2021-12-13": "compute{securityProfile{securityType}}",
    "2023-07-01": "compute{storageProfile{imageReference{communityGalleryImageId exactVersion sharedGalleryImageId}}}",
    "2023-11-15": "compute{isVmInStandbyPool physicalZone}",
    "2024-03-15": "",
    "2024-07-17": "",
    "2025-04-07": "",
}
PREVIEW, FIRST_GA, NEWEST = "2017-03-01", "2017-04-02", max(VERSIONS)

DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z"  # the form of an api-version

# What the preview called the fields of today.
PREVIEW_NAMES = {
    "ipAddress": "ipaddress",
    "privateIpAddress": "ipaddress",
    "publicIpAddress": "publicip",
    "macAddress": "mac",
}

# The value of azEnvironment, the domain of the attested document's certificate, and the versions that
# the document of early 2018 lists for that cloud.
CLOUDS = {
    "AzurePublicCloud": ("metadata.azure.com", ("2017-04-02", "2017-08-01", "2017-12-01", "2018-02-01")),
    "AzureUSGovernmentCloud": ("metadata.azure.us", ("2017-04-02", "2017-08-01")),
    "AzureChinaCloud": ("metadata.azure.cn", ("2017-04-02", "2017-08-01")),
    "AzureGermanCloud": ("metadata.microsoftazure.de", ("2017-04-02", "2017-08-01")),
}

# Path under /metadata: the verbs it takes and the api-version that introduced it (None: it has none).
ENDPOINTS = {
    "attested/document": (("GET",), "2018-10-01"),
    # A newer way to a token, which SDKs probe for with no api-version: not here, and 404 says so.
    "identity/credential": (("GET", "POST"), None),
    "identity/getplatformmetadata": (("GET", "POST"), None),
    "identity/issuecredential": (("GET", "POST"), None),
    "identity/info": (("GET",), "2018-02-01"),
    "identity/oauth2/token": (("GET",), "2018-02-01"),
    "instance": (("GET",), "2017-03-01"),
    "loadbalancer": (("GET",), "2020-10-01"),
    "scheduledevents": (("GET", "POST"), "2017-03-01"),
    "versions": (("GET",), None),
}

# Scheduled events have versions of their own. Each added these fields to an event, in the order of the wire.
EVENT_VERSIONS = {
    "2017-03-01": "EventId EventStatus EventType ResourceType Resources NotBefore",  # names of single VMs begin with _
    "2017-08-01": "",
    "2017-11-01": "",
    "2019-01-01": "",
    "2019-04-01": "Description",
    "2019-08-01": "EventSource",
    "2020-07-01": "DurationInSeconds",
}
EVENT_FIELDS = (  # of a document: type, and what it is when it is not said
    ("EventId", str, ""), ("EventStatus", str, "Scheduled"), ("Resources", list, []), ("NotBefore", str, ""),
    ("Description", str, ""), ("EventSource", str, "Platform"), ("DurationInSeconds", int, -1),
)  # type: Tuple[Tuple[str, type, Any], ...]
EVENTS_GA, EVENTS_NEWEST = "2017-08-01", max(EVENT_VERSIONS)

# EventType: the version that knows it; seconds of notice; DurationInSeconds (-1: unknown); seconds for
# which it is Started; Description by EventSource, empty where there is none. The seconds of Started are
# those of Azure's own scenarios, the text of Redeploy by a user is chosen, all else is documented.
MAINTENANCE = "Host server is undergoing maintenance."
EVENT_TYPES = {
    "Freeze": ("2017-03-01", 900, 5, 300, {
        "Platform": "Virtual machine is being paused because of a memory-preserving Live Migration operation."}),
    "Reboot": ("2017-03-01", 900, -1, 600, {
        "Platform": MAINTENANCE,
        "User": "Virtual machine is going to be restarted as requested by authorized user."}),
    "Redeploy": ("2017-03-01", 600, -1, 600, {
        "Platform": MAINTENANCE,
        "User": "Virtual machine is going to be redeployed as requested by authorized user."}),
    "Preempt": ("2017-11-01", 30, -1, 600, {}),
    "Terminate": ("2019-01-01", 300, -1, 600, {}),
}

# Azure's own scenarios of July 2025: EventType, EventSource, Description (None: the type's), seconds of
# notice, seconds of Started, seconds until it is cancelled.
SCENARIOS = {
    "live-migration": ("Freeze", "Platform", None, 900, 300, None),
    "user-reboot": ("Reboot", "User", None, 900, 600, None),
    "host-agent-maintenance": ("Freeze", "Platform", MAINTENANCE, 900, 600, None),
    "redeploy": ("Redeploy", "Platform", None, 900, 600, None),
    "user-redeploy": ("Redeploy", "User", None, 900, 600, None),
    "cancelled-maintenance": ("Freeze", "Platform", MAINTENANCE, 900, 600, 480),
}

# What a version added to the signed content of the attested document.
ATTESTED_VERSIONS = {
    "2018-10-01": "nonce plan{name product publisher} timeStamp{createdOn expiresOn} vmId",
    "2019-04-30": "subscriptionId",
    "2019-11-01": "sku",
    "2020-09-01": "licenseType",
}
ATTESTED_TIME, ATTESTED_NONCE = "%m/%d/%y %H:%M:%S -0000", "%Y%m%d-%H%M%S"  # its times, and its own nonce
ATTESTED_SECONDS = 6 * 3600  # how long one is valid (observed); its certificate is backdated, and lasts:
CERTIFICATE_BACKDATED, CERTIFICATE_SECONDS = 30 * 86400, 330 * 86400
MAX_NONCE = 32  # characters

# What makes an attested document one that a verifier must refuse.
FLAWS = {
    "signer": "its certificate comes from an authority that nobody knows",
    "signature": "a byte of its content was changed after it was signed",
    "expired": "it was valid until a day ago",
    "nonce": "it answers another nonce",
    "vmId": "it is about another VM",
    "domain": "its certificate is for another domain",
}

# The load balancer's document, in the order of the wire.
LOAD_BALANCER = {
    "publicIpAddresses": ("frontendIpAddress", "privateIpAddress"),
    "inboundRules": ("frontendIpAddress", "protocol", "frontendPort", "backendPort", "privateIpAddress"),
    "outboundRules": ("frontendIpAddress", "privateIpAddress"),
}

# What is known of an identity, how a request for a token names one, and a token's times in seconds.
IDENTITY_FIELDS = ("type", "clientId", "objectId", "resourceId")
SELECTORS = {"client_id": "clientId", "object_id": "objectId", "msi_res_id": "resourceId", "mi_res_id": "resourceId"}
TOKEN_SECONDS, TOKEN_BACKDATED, TOKEN_RENEWED = 86400, 300, 300
DEFAULT_TENANT = "f146b86f-6f44-43f1-973f-91a7637cd756"

# The two primes of the RSA key that signs the emulator's tokens and attested documents. Anyone can read
# them here: a signature by this key proves nothing, and no verifier outside a test may trust it.
TEST_KEY_PRIMES = (
    int(
        "d80c0e488c3b860d1c899793fc7da48c2bb78c3b2d26190b3d1d98b2e27452b6aeed3267a816727319b12a"
        "e64cff73aeac9d3bb908f16d208a5a3ae66e40dbf2867a4ca4b01e0ef9265f6609b750dee5c3576e0234a5"
        "98fc4a036af6fb1a96ef1d015201ff56f42861a630040549e30cbaec3cd51b238c3b239db3f0823cc1f5", 16),
    int(
        "c81675588937008ef9cc9fed0fe8ce01f8724d476957800b74c94158767a99524d3359b914f86ae23457cc"
        "d232164e1e2899bb67560c5c8943aec4172f6528c45b27b9087266a46f38dd7f452a9f8520454bd047d57d"
        "3309c6d028b99eba46c2dfb8ec830a0441b261095dbf87a1468a374a791778fbee36e0c8cf2cb05d2827", 16),
)
TEST_KEY_ID = "imds-emulator-public-test-key"
TEST_CA_NAME = "imds emulator test CA (its key is public)"

# The pages of the web server in front of the service (observed).
VERB_BODY = """\
<?xml version="1.0" encoding="utf-8"?>
<Error xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema">
    <Code>InvalidHttpVerb</Code>
    <Message>The HTTP verb specified was not recognized by the server.</Message>
    <Details>'$verb' is not a supported verb.</Details>
</Error>"""

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

# Why a request is refused: status, the words for the access log, the body. The blanks are the service's.
# $verb, $path, $value, $tenant and $newest stand for parts of the request, the identity service's tenant
# and the three newest versions served. A component with words of its own has them in DIALECTS below.
BAD_REQUEST = '{ "error": "Bad request" }'
IDENTITY_BAD_REQUEST = '{"error":"invalid_request","error_description":"Bad request"}'
REFUSALS = {
    "verb": (405, "verb not allowed", '{ "error": "Not allowed" }'),
    "outside-verb": (400, "verb not supported", VERB_BODY),
    "outside": (404, "outside /metadata", OUTSIDE_BODY),
    "metadata": (400, "Metadata header missing",
                 '{ "error": "Bad request: . Required metadata header not specified" }'),
    "forwarded": (400, "X-Forwarded-For header present", BAD_REQUEST),
    "target": (400, "percent-encoding not valid", BAD_REQUEST),
    "duplicate": (400, "query parameter given twice", BAD_REQUEST),
    "version": (400, "api-version missing or unknown",
                '{"error":"Bad request. api-version is invalid or was not specified in the request.'
                ' For more information refer to aka.ms/azureimds","newest-versions":$newest}'),
    "version-missing-2018": (400, "api-version missing",
                             '{"error":"Bad request. api-version was not specified in the request.'
                             ' For more information refer to aka.ms/azureimds","newest-versions":$newest}'),
    "version-unknown-2018": (404, "api-version unknown", '{ "error": "Not found. Invalid version requested" }'),
    "path": (404, "not found", '{ "error": "Not found" }'),
    "format": (400, "format unknown", BAD_REQUEST),
    "leaf": (400, "a leaf needs format=text", BAD_REQUEST),
    "throttled": (429, "throttled", '{ "error": "Too many requests" }'),
    "throttled-text": (429, "throttled", "Too many requests"),
    # Of one endpoint only.
    "events": (400, "StartRequests not valid", BAD_REQUEST),
    "nonce": (400, "nonce too long", BAD_REQUEST),
    "no-load-balancer": (404, "no load balancer", '{"error":"No load balancer metadata is found. Please check if your'
                         ' VM is using any non-basic SKU load balancer and retry later."}'),
    "no-resource": (400, "resource missing", '{"error":"invalid_request","error_description":'
                    '"Required query variable \'resource\' is missing"}'),
    "no-identity": (400, "identity not found",
                    '{"error":"invalid_request","error_description":"Identity not found"}'),
    "several-identities": (400, "several identities, none named", '{"error":"invalid_request","error_description":'
                           '"Multiple user assigned identities exist, please specify the clientId / resourceId of the'
                           ' identity in the token request"}'),
    "several-selectors": (400, "identity named twice", IDENTITY_BAD_REQUEST),
    "bad-resource": (400, "resource not valid", '{"error":"invalid_resource","error_description":"AADSTS50001: The'
                     ' application named $value was not found in the tenant named $tenant."}'),
    # For what can't be read as a request; statuses of RFC 9110 and 6585, words of our own.
    "malformed": (400, "not an HTTP request", BAD_REQUEST),
    "slow": (408, "request took too long", '{ "error": "Request timeout" }'),
    "body-size": (413, "body too large", '{ "error": "Request body too large" }'),
    "line-size": (414, "request line too long", '{ "error": "Request line too long" }'),
    "headers-size": (431, "headers too large", '{ "error": "Request headers too large" }'),
    # For a fault of the emulator's own.
    "failed": (500, "internal error", '{ "error": "Server error" }'),
}

# The bodies of components with words of their own, by the first name below /metadata.
DIALECTS = {
    "identity": {
        "verb": '{"error":"Not allowed"}',
        "metadata": '{"error":"invalid_request","error_description":"Required metadata header not specified"}',
        "forwarded": IDENTITY_BAD_REQUEST,
        "target": IDENTITY_BAD_REQUEST,
        "duplicate": IDENTITY_BAD_REQUEST,
        "path": '{"error":"Not Found"}',
        "format": IDENTITY_BAD_REQUEST,
        "throttled": '{"error":"invalid_request","error_description":"Temporarily throttled, too many requests"}',
    },
    "loadbalancer": {
        "verb": '{"error":"Http method is not allowed: Path = \\"$path\\", Method = \\"$verb\\""}',
        "path": '{"error":"API is not found: Path = \\"$path\\", Method = \\"$verb\\""}',
        "format": '{"error":"Parameter value is not allowed, or parameter value \\"$value\\" is not allowed for'
                  ' parameter \\"format\\". Please fix the request and retry."}',
        "throttled": '{"error":"Too many requests"}',
    },
}

# Reason phrases, the same on every Python.
REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
    413: "Content Too Large", 414: "URI Too Long", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error",
}

# What a body is, by how it begins (none of these: text), and the header set that goes with it, in the
# order of the wire (observed). JSON and text come from the service, pages from the web server before it.
JSON_TYPE, TEXT_TYPE = "application/json; charset=utf-8", "text/plain; charset=utf-8"
XML_TYPE, HTML_TYPE = "text/xml; charset=utf-8", "text/html"
CONTENT_TYPES = {"{": JSON_TYPE, "<?xml": XML_TYPE, "<!DOCTYPE": HTML_TYPE}
IMDS_HEADERS = ("Content-Type", "Server", "x-ms-request-id", "Date", "Content-Length")
HEADERS = {
    JSON_TYPE: IMDS_HEADERS,
    TEXT_TYPE: IMDS_HEADERS,
    XML_TYPE: ("Content-Length", "Content-Type", "Server", "Date"),
    HTML_TYPE: ("Content-Type", "Server", "Date", "Content-Length"),
}
IMDS_SERVER, IIS_SERVER = "IMDS/150.870.65.1854", "Microsoft-IIS/10.0"

# Requests a second that the documentation allows: in all; to the identity service, and how many of these at once.
RATE_LIMIT, IDENTITY_RATE_LIMIT, IDENTITY_AT_ONCE = 5, 20, 5

# Where the service is, and where the emulator is unless told otherwise.
DEFAULT_ENDPOINT, DEFAULT_PORT = "http://169.254.169.254", 8169

# What a document of a whole VM holds.
PARTS = ("instance", "scheduledevents", "identity", "loadbalancer", "attested")

# What of a document says who or where it is, and what takes its place: by the path, list indexes left out.
# "" is public and stays. GUIDs, addresses and resource ids are found wherever else they stand, and what
# no table knows is a "value".
REDACTED = {
    "instance.compute.customData": "data",
    "instance.compute.name": "name",
    "instance.compute.offer": "",
    "instance.compute.osProfile.adminUsername": "name",
    "instance.compute.osProfile.computerName": "name",
    "instance.compute.publicKeys.keyData": "key",
    "instance.compute.publicKeys.path": "file",
    "instance.compute.publisher": "",
    "instance.compute.resourceGroupName": "name",
    "instance.compute.sku": "",
    "instance.compute.storageProfile.dataDisks.image.uri": "url",
    "instance.compute.storageProfile.dataDisks.name": "name",
    "instance.compute.storageProfile.dataDisks.vhd.uri": "url",
    "instance.compute.storageProfile.imageReference.exactVersion": "",
    "instance.compute.storageProfile.imageReference.offer": "",
    "instance.compute.storageProfile.imageReference.publisher": "",
    "instance.compute.storageProfile.imageReference.sku": "",
    "instance.compute.storageProfile.imageReference.version": "",
    "instance.compute.storageProfile.osDisk.encryptionSettings.diskEncryptionKey.secretUrl": "url",
    "instance.compute.storageProfile.osDisk.encryptionSettings.keyEncryptionKey.keyUrl": "url",
    "instance.compute.storageProfile.osDisk.image.uri": "url",
    "instance.compute.storageProfile.osDisk.name": "name",
    "instance.compute.storageProfile.osDisk.vhd.uri": "url",
    "instance.compute.tags": "tags",
    "instance.compute.tagsList.name": "tag",
    "instance.compute.tagsList.value": "value",
    "instance.compute.userData": "data",
    "instance.compute.version": "",
    "instance.compute.vmScaleSetName": "name",
    "instance.network.interface.macAddress": "mac",
    "scheduledevents.Events.Description": "description",
    "scheduledevents.Events.NotBefore": "",
    "scheduledevents.Events.Resources": "name",
}
FOUND_ANYWHERE = (
    ("id", r"/?\bsubscriptions/[^\s\"',;]+|/(?:Community|Shared)Galleries/[^\s\"',;]+"),
    ("guid", "(?<![0-9a-f])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?![0-9a-f])"),
    ("hex", "(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])"),
    ("ipv6", r"(?<![\w:])(?:::ffff:[\d.]+|(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|(?:[0-9a-f]{1,4}:)+:(?:[0-9a-f]{1,4}"
             r"(?::[0-9a-f]{1,4})*)?|::[0-9a-f]{1,4}(?::[0-9a-f]{1,4})*)(?![\w:])"),
    ("private", r"(?<![\w.])(?:(?:10|127)(?:\.\d{1,3}){3}"
                r"|(?:169\.254|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2})(?![\w.])"),
    ("public", r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])"),
)
STAND_INS = {  # number -> text; those without a number are all the same
    "data": "cmVkYWN0ZWQ=", "description": "redacted", "guid": "00000000-0000-4000-8000-%012x", "hex": "%032x",
    "ipv6": "2001:db8::%x", "mac": "00155D%06X", "name": "name%d", "private": "10.0.%d.%d", "public": "198.18.%d.%d",
    "tag": "tag%d", "url": "https://redacted.example/%d", "value": "value%d",
    "key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIELgzMWJvdBFTqZbaox0OkkEF8BublFopQicU9X/aEAY redacted",
}
PUBLIC_FOLDERS = ("", "home", "Users", "root", "var", "lib", "etc", "ssh", ".ssh", "authorized_keys")

# The built-in VMs. `linux` and `windows` are the samples of the 2018 document with what it masks
# (addresses, ids) filled in from the ranges for documentation, and completed to today's shape: what
# is not said here is empty.
VMS = {
    "linux": {
        "compute": {
            "additionalCapabilities": {"hibernationEnabled": "false"},
            "azEnvironment": "AzurePublicCloud",
            "isHostCompatibilityLayerVm": "false",
            "location": "westus",
            "name": "avset2",
            "offer": "UbuntuServer",
            "osProfile": {"adminUsername": "azureuser", "computerName": "avset2",
                          "disablePasswordAuthentication": "true"},
            "osType": "Linux",
            "physicalZone": "westus-AZ01",
            "platformFaultDomain": "1",
            "platformUpdateDomain": "1",
            "provider": "Microsoft.Compute",
            "publicKeys": [{
                "keyData": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIELgzMWJvdBFTqZbaox0OkkEF8BublFopQicU9X/aEAY azureuser",
                "path": "/home/azureuser/.ssh/authorized_keys",
            }],
            "publisher": "Canonical",
            "resourceGroupName": "myrg",
            "resourceId": "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourceGroups/myrg"
                          "/providers/Microsoft.Compute/virtualMachines/avset2",
            "securityProfile": {"encryptionAtHost": "false", "secureBootEnabled": "false",
                                "virtualTpmEnabled": "false"},
            "sku": "16.04-LTS",
            "storageProfile": {
                "imageReference": {"exactVersion": "16.04.201708030", "offer": "UbuntuServer",
                                   "publisher": "Canonical", "sku": "16.04-LTS", "version": "latest"},
                "osDisk": {
                    "caching": "ReadWrite",
                    "createOption": "FromImage",
                    "diskSizeGB": "30",
                    "encryptionSettings": {"enabled": "false"},
                    "managedDisk": {
                        "id": "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourceGroups/myrg"
                              "/providers/Microsoft.Compute/disks/avset2_OsDisk_1",
                        "storageAccountType": "Standard_LRS",
                    },
                    "name": "avset2_OsDisk_1",
                    "osType": "Linux",
                    "writeAcceleratorEnabled": "false",
                },
                "resourceDisk": {"size": "51200"},
            },
            "subscriptionId": "8d10da13-8125-4ba9-a717-bf7490507b3d",
            "version": "16.04.201708030",
            "vmId": "13f56399-bd52-4150-9748-7190aae1ff21",
            "vmSize": "Standard_D1",
            "zone": "1",
        },
        "extended": {"compute": {"hasCustomData": False, "ppsType": "None"}},
        "network": {"interface": [{
            "ipv4": {"ipAddress": [{"privateIpAddress": "10.1.2.5", "publicIpAddress": "203.0.113.5"}],
                     "subnet": [{"address": "10.1.2.0", "prefix": "24"}]},
            "macAddress": "000D3A36DDED",
        }]},
    },
    "windows": {
        "compute": {
            "additionalCapabilities": {"hibernationEnabled": "false"},
            "azEnvironment": "AzurePublicCloud",
            "isHostCompatibilityLayerVm": "false",
            "licenseType": "Windows_Server",
            "location": "westus",
            "name": "SQLTest",
            "offer": "SQL2016SP1-WS2016",
            "osProfile": {"adminUsername": "azureuser", "computerName": "SQLTest"},
            "osType": "Windows",
            "platformFaultDomain": "0",
            "platformUpdateDomain": "0",
            "provider": "Microsoft.Compute",
            "publisher": "MicrosoftSQLServer",
            "resourceGroupName": "myrg",
            "resourceId": "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourceGroups/myrg"
                          "/providers/Microsoft.Compute/virtualMachines/SQLTest",
            "securityProfile": {"encryptionAtHost": "false", "secureBootEnabled": "false",
                                "virtualTpmEnabled": "false"},
            "sku": "Enterprise",
            "storageProfile": {
                "imageReference": {"exactVersion": "13.0.400110", "offer": "SQL2016SP1-WS2016",
                                   "publisher": "MicrosoftSQLServer", "sku": "Enterprise", "version": "latest"},
                "osDisk": {
                    "caching": "ReadWrite",
                    "createOption": "FromImage",
                    "diskSizeGB": "127",
                    "encryptionSettings": {"enabled": "false"},
                    "managedDisk": {
                        "id": "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourceGroups/myrg"
                              "/providers/Microsoft.Compute/disks/SQLTest_OsDisk_1",
                        "storageAccountType": "Premium_LRS",
                    },
                    "name": "SQLTest_OsDisk_1",
                    "osType": "Windows",
                    "writeAcceleratorEnabled": "false",
                },
                "resourceDisk": {"size": "14336"},
            },
            "subscriptionId": "8d10da13-8125-4ba9-a717-bf7490507b3d",
            "version": "13.0.400110",
            "vmId": "453945c8-3923-4366-b2d3-ea4c80e9b70e",
            "vmSize": "Standard_DS2",
        },
        "extended": {"compute": {"hasCustomData": False, "ppsType": "None"}},
        "network": {"interface": [{
            "ipv4": {"ipAddress": [{"privateIpAddress": "10.0.1.4", "publicIpAddress": "203.0.113.6"}],
                     "subnet": [{"address": "10.0.1.0", "prefix": "24"}]},
            "macAddress": "002248020E1E",
        }]},
    },
    "scaleset": {
        "compute": {
            "additionalCapabilities": {"hibernationEnabled": "false"},
            "azEnvironment": "AzurePublicCloud",
            "isHostCompatibilityLayerVm": "true",
            "location": "westeurope",
            "name": "web_1",
            "offer": "0001-com-ubuntu-server-jammy",
            "osProfile": {"adminUsername": "azureuser", "computerName": "web000001",
                          "disablePasswordAuthentication": "true"},
            "osType": "Linux",
            "physicalZone": "westeurope-AZ03",
            "placementGroupId": "7a9f84b0-f870-4ce6-8a4e-2e8932afc298",
            "platformFaultDomain": "0",
            "platformUpdateDomain": "1",
            "provider": "Microsoft.Compute",
            "publicKeys": [{
                "keyData": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIELgzMWJvdBFTqZbaox0OkkEF8BublFopQicU9X/aEAY azureuser",
                "path": "/home/azureuser/.ssh/authorized_keys",
            }],
            "publisher": "canonical",
            "resourceGroupName": "web",
            "resourceId": "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourceGroups/web"
                          "/providers/Microsoft.Compute/virtualMachineScaleSets/web/virtualMachines/1",
            "securityProfile": {"encryptionAtHost": "false", "secureBootEnabled": "true",
                                "securityType": "TrustedLaunch", "virtualTpmEnabled": "true"},
            "sku": "22_04-lts-gen2",
            "storageProfile": {
                "dataDisks": [{
                    "bytesPerSecondThrottle": "979202048",
                    "caching": "None",
                    "createOption": "Empty",
                    "diskCapacityBytes": "274877906944",
                    "diskSizeGB": "256",
                    "isSharedDisk": "false",
                    "isUltraDisk": "false",
                    "lun": "0",
                    "managedDisk": {
                        "id": "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourceGroups/WEB"
                              "/providers/Microsoft.Compute/disks/web_1_data_0",
                        "storageAccountType": "Premium_LRS",
                    },
                    "name": "web_1_data_0",
                    "opsPerSecondThrottle": "65280",
                    "writeAcceleratorEnabled": "false",
                }, {
                    "bytesPerSecondThrottle": "979202048",
                    "caching": "ReadOnly",
                    "createOption": "Empty",
                    "diskCapacityBytes": "1099511627776",
                    "diskSizeGB": "1024",
                    "isSharedDisk": "false",
                    "isUltraDisk": "false",
                    "lun": "1",
                    "managedDisk": {
                        "id": "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourceGroups/WEB"
                              "/providers/Microsoft.Compute/disks/web_1_data_1",
                        "storageAccountType": "Premium_LRS",
                    },
                    "name": "web_1_data_1",
                    "opsPerSecondThrottle": "65280",
                    "writeAcceleratorEnabled": "false",
                }],
                "imageReference": {"exactVersion": "22.04.202510020", "offer": "0001-com-ubuntu-server-jammy",
                                   "publisher": "canonical", "sku": "22_04-lts-gen2", "version": "latest"},
                "osDisk": {
                    "caching": "ReadWrite",
                    "createOption": "FromImage",
                    "diskSizeGB": "30",
                    "encryptionSettings": {"enabled": "false"},
                    "managedDisk": {
                        "id": "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourceGroups/WEB"
                              "/providers/Microsoft.Compute/disks/web_1_OsDisk_1",
                        "storageAccountType": "Premium_LRS",
                    },
                    "name": "web_1_OsDisk_1",
                    "osType": "Linux",
                    "writeAcceleratorEnabled": "false",
                },
                "resourceDisk": {"size": "16384"},
            },
            "subscriptionId": "8d10da13-8125-4ba9-a717-bf7490507b3d",
            "tags": "Department:IT;Environment:Test;Role:web",
            "tagsList": [{"name": "Department", "value": "IT"}, {"name": "Environment", "value": "Test"},
                         {"name": "Role", "value": "web"}],
            "version": "22.04.202510020",
            "vmId": "1da71a3d-9b58-4520-abce-552bb5cfbd51",
            "vmScaleSetName": "web",
            "vmSize": "Standard_D2s_v3",
            "zone": "2",
        },
        "extended": {"compute": {"hasCustomData": False, "ppsType": "None"}},
        "network": {"interface": [{
            "ipv4": {"ipAddress": [{"privateIpAddress": "10.2.0.5", "publicIpAddress": "203.0.113.7"}],
                     "subnet": [{"address": "10.2.0.0", "prefix": "24"}]},
            "macAddress": "002248A1B2C3",
        }, {
            "ipv4": {"ipAddress": [{"privateIpAddress": "10.2.1.5", "publicIpAddress": ""},
                                   {"privateIpAddress": "10.2.1.6", "publicIpAddress": ""}],
                     "subnet": [{"address": "10.2.1.0", "prefix": "24"}]},
            "macAddress": "002248A1B2C4",
        }]},
    },
}


# ==================================================================================================
# Room 2: core
#
# Pure functions on dicts, lists and strings; knows the contract. What the emulator answers and what
# the client prints both come from here, so they can't drift apart.
# ==================================================================================================

class Error(Exception):
    """What is raised when the service, or the way to it, fails.

    The message says what was asked, what came back and what to do. ``status`` (int) and ``body`` (str)
    are the service's reply and ``url`` (str) the request; each is None where there was none.
    """

    exit_code = 1

    def __init__(
        self, message: str, status: "Optional[int]" = None, body: "Optional[str]" = None, url: "Optional[str]" = None,
    ) -> None:
        message = one_line(message)
        super().__init__(message)
        self.message, self.status, self.body, self.url = message, status, body, url

    def __str__(self) -> str:  # KeyError would print a repr, OSError nothing
        return self.message


class NotFound(Error, KeyError):
    """There is no such path in the document or in the service. Also a KeyError."""


def printable(text: str) -> str:
    """``text`` with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in text)


def one_line(text: str) -> str:
    """``text`` as one printable line, its white space folded."""
    return printable(" ".join(text.split()))


def resolve(document: "Any", path: str) -> "Any":
    """Return the node of ``document`` (dicts, lists and leaves) at ``path``.

    A path is names and list indexes between slashes, "network/interface/0/macAddress", in the very
    case of the document; empty parts are passed over, so "" is the document itself. Raises NotFound,
    with the nearest path that exists as its advice.
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
        if isinstance(node, list) and name in map(str, range(len(node))):  # "0", not "00" or "-1"
            node = node[int(name)]
        elif isinstance(node, dict):
            node = node[name]
        else:
            raise KeyError(name)
    return node


def suggest(document: "Any", path: str) -> "Optional[str]":
    """Return the path in ``document`` that is most like ``path``, or None: right but for its case,
    right but for where it begins, or nearly right."""
    import difflib

    paths = {known.lower(): known for known in walk(document)}
    wanted = "/".join(filter(None, path.split("/"))).lower()
    for known in paths:
        if known == wanted or known.endswith("/" + wanted):
            return paths[known]
    nearest = difflib.get_close_matches(wanted, paths, n=1, cutoff=0.8)
    return paths[nearest[0]] if nearest else None


def walk(node: "Any", path: str = "") -> "Iterable[str]":
    """Yield the path of every node below ``node``, a container before what it holds."""
    names = enumerate(node) if isinstance(node, list) else node.items() if isinstance(node, dict) else ()
    for name, child in names:
        yield path + str(name)
        yield from walk(child, "%s%s/" % (path, name))


def format_text(node: "Any") -> str:
    """Return ``node`` as the service prints it with ``format=text``.

    A leaf is its value; a container its names, one a line in alphabetical order, those of containers
    with a slash behind them, and no line end at the end (observed).
    """
    if isinstance(node, dict):
        return "\n".join(name + "/" * isinstance(node[name], (dict, list)) for name in sorted(node))
    if isinstance(node, list):
        return "\n".join(str(index) + "/" * isinstance(item, (dict, list)) for index, item in enumerate(node))
    return _leaf(node)


def format_json(node: "Any", indent: "Optional[int]" = None) -> str:
    """Return ``node`` as the service prints JSON: minified, UTF-8 as it is; or indented, for people."""
    return json.dumps(node, ensure_ascii=False, indent=indent, separators=(",", ": " if indent else ":"))


def _leaf(value: "Any") -> str:
    """A leaf as the service writes it: always a string, and empty when there is none (documented)."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def complete(document: "Any") -> "Dict[str, Any]":
    """Return ``document``, in the shape of ``/metadata/instance``, with every field there is.

    Fields that it lacks are empty; fields that no table knows are kept. Raises ValueError, naming the
    path, where a value has the wrong shape.
    """
    known = template(NEWEST)
    try:
        completed = dict(_project(document, known, known, "instance"))
        format_json(completed).encode()
    except UnicodeEncodeError as error:
        raise ValueError("instance holds text that is not Unicode: %s" % error) from None
    except (TypeError, RecursionError) as error:
        raise ValueError("instance can't be written as JSON: %s" % error) from None
    return completed


def view(document: "Dict[str, Any]", version: str, extended: bool = False) -> "Dict[str, Any]":
    """Return ``document`` as an api-version shows it: without the fields that came later, in
    alphabetical order, and with ``extended`` only where it was asked for."""
    known = template(NEWEST)
    if version == PREVIEW:
        document, known = _rename(document), _rename(known)
    seen = dict(_project(document, template(version), known, "instance"))
    if not extended:
        seen.pop("extended", None)
    return seen


@functools.lru_cache(maxsize=None)
def template(version: str) -> "Dict[str, Any]":
    """The empty instance document of an api-version: all the fields it knows, with "" or [one empty item]."""
    if version == PREVIEW:
        return _fields(VERSIONS[PREVIEW])
    return _fields_until(version, {since: text for since, text in VERSIONS.items() if since != PREVIEW})


def _fields_until(version: str, table: "Mapping[str, str]") -> "Dict[str, Any]":
    """All the fields that a table of versions has at ``version``."""
    fields = {}  # type: Dict[str, Any]
    for since, text in table.items():
        if since <= version:
            _add(fields, _fields(text))
    return fields


def _fields(text: str) -> "Dict[str, Any]":
    """'a b{c} d[{e:bool}]', a row of VERSIONS -> {"a": "", "b": {"c": ""}, "d": [{"e": False}]}"""
    for mark, spaced in ("[{", " [ "), ("}]", " ] "), ("{", " { "), ("}", " } "):
        text = text.replace(mark, spaced)
    name, open_containers = "", [{}]  # type: Tuple[str, List[Dict[str, Any]]]
    for word in text.split():
        if word in "{[":
            inner = {}  # type: Dict[str, Any]
            open_containers[-1][name] = inner if word == "{" else [inner]
            open_containers.append(inner)
        elif word in "}]":
            open_containers.pop()
        else:
            name, _, kind = word.partition(":")
            if not re.match(r"\w+$", name):
                raise ValueError("%r is not the name of a field, in %r" % (word, text))
            open_containers[-1][name] = False if kind == "bool" else ""
    return open_containers[0]


def _add(template: "Any", more: "Any") -> None:
    """Put the fields of one template into another."""
    for name, child in more.items():
        if isinstance(child, list) and name in template:
            _add(template[name][0], child[0])
        elif isinstance(child, dict) and name in template:
            _add(template[name], child)
        else:
            template[name] = child


def _project(node: "Any", template: "Any", known: "Any", path: str) -> "Any":
    """``node`` in the shape of ``template``, its names in order. Names that ``known`` lacks pass."""
    if isinstance(template, dict):
        if node in (None, ""):
            node = {}
        if not isinstance(node, dict):
            raise ValueError("%s must be an object, not %s" % (path, _kind(node)))
        result = {}
        for name in sorted(set(template).union(set(node).difference(known))):
            if name in template:
                result[name] = _project(node.get(name), template[name], known.get(name, template[name]),
                                        "%s.%s" % (path, name))
            else:
                result[name] = _strings(node[name])
        return result
    if isinstance(template, list):
        if node in (None, ""):
            node = []
        if not isinstance(node, list):
            raise ValueError("%s must be a list, not %s" % (path, _kind(node)))
        return [_project(item, template[0], known[0], "%s.%d" % (path, index)) for index, item in enumerate(node)]
    if isinstance(node, (dict, list)):
        raise ValueError("%s must be a single value, not %s" % (path, _kind(node)))
    return node in (True, "true") if isinstance(template, bool) else _leaf(node)


def _strings(node: "Any") -> "Any":
    """A part of a document that no table knows: in order, and every leaf a string."""
    if isinstance(node, dict):
        return {name: _strings(node[name]) for name in sorted(node)}
    return [_strings(item) for item in node] if isinstance(node, list) else _leaf(node)


def _kind(node: "Any") -> str:
    return "an object" if isinstance(node, dict) else "a list" if isinstance(node, list) else repr(node)


def _rename(node: "Any") -> "Any":
    """A document or a template with the names of the preview."""
    if isinstance(node, dict):
        return {PREVIEW_NAMES.get(name, name): _rename(child) for name, child in node.items()}
    return [_rename(item) for item in node] if isinstance(node, list) else node


def merge_patch(target: "Any", patch: "Any") -> "Any":
    """Return ``target`` changed by a JSON merge patch (RFC 7386); neither of the two is altered."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, change in patch.items():
        if change is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), change)
    return result


def assign(document: "Dict[str, Any]", name: str, text: str) -> None:
    """Set the value called ``name`` ("compute.vmSize", "network.interface.0.macAddress") of a complete
    document; an object or a list is given as JSON. Raises ValueError for a name that is not there."""
    path = name.replace(".", "/").strip("/")
    if not path:
        raise ValueError("which value is to be set to %r?" % text)
    parent, _, last = path.rpartition("/")
    try:
        old = resolve(document, path)
    except NotFound:
        nearest = (suggest(document, path) or "").replace("/", ".")
        raise ValueError("there is no %r%s" % (name, "; did you mean %s?" % nearest if nearest else "")) from None
    value = text  # type: Any
    if isinstance(old, (dict, list)):
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, type(old)):
            raise ValueError("%s is %s: give it as JSON, or set a value in it" % (name, _kind(old)))
    node = resolve(document, parent)
    node[int(last) if isinstance(node, list) else last] = value


def _known(name: str, names: "Iterable[str]", kind: str) -> str:
    """``name``, if it is one of ``names``; else a ValueError that suggests the right one."""
    if isinstance(name, str) and name in names:
        return name
    import difflib

    nearest = difflib.get_close_matches(str(name).lower(), {known.lower(): known for known in names}, n=1, cutoff=0.5)
    right = [known for known in names if known.lower() in nearest]
    raise ValueError("there is no %s %r; %s" % (
        kind, name, "did you mean %s?" % right[0] if right else "there are " + ", ".join(names)))


def parse_time(text: str) -> "Optional[float]":
    """Seconds since 1970 for a NotBefore, RFC 1123 (the service) or ISO 8601 (Azure's own mock); None for
    an empty one. Raises ValueError."""
    import calendar
    import email.utils

    if not text:
        return None
    parsed = email.utils.parsedate_tz(text)
    if parsed:
        return email.utils.mktime_tz(parsed)
    found = re.match(r"(\d{4})-?(\d\d)-?(\d\d)[T ](\d\d):?(\d\d)(?::?(\d\d)(?:\.\d+)?)?"
                     r"(?:Z|([+-])(\d\d):?(\d\d))?\Z", text)
    if not found:
        raise ValueError("%r is not a time" % text)
    sign, hours, minutes = found.group(7), int(found.group(8) or 0), int(found.group(9) or 0)
    offset = (hours * 3600 + minutes * 60) * (-1 if sign == "-" else 1)
    return calendar.timegm(tuple(int(number or 0) for number in found.groups()[:6]) + (0, 0, 0)) - offset


def _http_date(seconds: float) -> str:
    from email.utils import formatdate

    return formatdate(int(seconds), usegmt=True)


def guid(*words: str) -> str:
    """A GUID made of ``words``, the same each time."""
    import uuid

    return str(uuid.uuid5(uuid.UUID(DEFAULT_TENANT), "/".join(words)))


# --- whole VMs: what more than the instance document a file may hold

def split_document(document: "Mapping[str, Any]") -> "Dict[str, Any]":
    """The parts of a document: of a whole VM, or of one that is an instance document only. A part that is
    not there is None, an instance {}. Raises ValueError."""
    if not isinstance(document, dict):
        raise ValueError("instance must be an object, not " + _kind(document))
    parts = dict.fromkeys(PARTS)  # type: Dict[str, Any]
    parts.update(document if set(PARTS).intersection(document) else {"instance": document})
    parts["instance"] = {} if parts["instance"] is None else parts["instance"]
    try:
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError("it can't be written as JSON: %s" % error) from None
    unknown = sorted(set(parts).difference(PARTS))
    if unknown:
        raise ValueError("a VM has %s, not %s" % (", ".join(PARTS), ", ".join(unknown)))
    for name in PARTS[1:]:
        if parts[name] is not None:
            _check(parts[name], dict, name)
    events, identity = parts["scheduledevents"] or {}, parts["identity"] or {}
    _check(events.get("DocumentIncarnation", 1), int, "scheduledevents.DocumentIncarnation")
    for at, event in enumerate(_check(events.get("Events", []), list, "scheduledevents.Events")):
        where = "scheduledevents.Events.%d" % at
        _check(event, dict, where)
        _known(_check(event.get("EventType"), str, where + ".EventType"), EVENT_TYPES, "EventType")
        for field, kind, default in EVENT_FIELDS:
            _check(event.get(field, default), kind, where + "." + field)
        parse_time(event.get("NotBefore", ""))
        for resource in event.get("Resources", []):
            _check(resource, str, where + ".Resources")
        _known(event.get("EventStatus", "Scheduled"), ("Scheduled", "Started"), "EventStatus")
        if not event.get("EventId") or event["EventId"] in [other["EventId"] for other in events["Events"][:at]]:
            raise ValueError("%s.EventId must be there, and once only" % where)
    _check(identity.get("tenantId", ""), str, "identity.tenantId")
    check_identities(_check(identity.get("identities", []), list, "identity.identities"))
    rules = _check((parts["loadbalancer"] or {}).get("loadbalancer", parts["loadbalancer"] or {}), dict, "loadbalancer")
    for name in LOAD_BALANCER:
        for rule in _check(rules.get(name, []), list, "loadbalancer." + name):
            _check(rule, dict, "loadbalancer." + name)
    for field in ("encoding", "signature") if parts["attested"] else ():
        _check(parts["attested"].get(field), str, "attested." + field)
    return parts


def _check(node: "Any", kind: type, path: str) -> "Any":
    """``node``, if it is of a type; else a ValueError that names its path."""
    if not isinstance(node, kind) or isinstance(node, bool):
        names = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}
        raise ValueError("%s must be %s, not %s" % (path, names[kind], _kind(node)))
    return node


def check_identities(identities: "Iterable[Any]") -> "List[Any]":
    """The identities as a list, or a ValueError: each is "system", "user:NAME", or a dict of IDENTITY_FIELDS."""
    checked = list(identities)
    for identity in checked:
        if isinstance(identity, dict):
            for field in IDENTITY_FIELDS:
                _check(identity.get(field), str, "identity." + field)
        elif identity != "system" and not re.match("user:.", str(identity)):
            raise ValueError("an identity is 'system' or 'user:NAME', not %r" % identity)
    return checked


def balance(document: "Mapping[str, Any]") -> "Dict[str, Any]":
    """A load balancer's document in the order of the wire."""
    document = document.get("loadbalancer", document)
    rules = {name: [_in_order(rule, fields) for rule in document.get(name, [])]
             for name, fields in LOAD_BALANCER.items()}
    return _in_order(dict(document, **rules), tuple(LOAD_BALANCER))


def _in_order(node: "Mapping[str, Any]", names: "Sequence[str]") -> "Dict[str, Any]":
    """``node`` with ``names`` first, and then what else it has."""
    return {name: node[name] for name in list(names) + [more for more in node if more not in names] if name in node}


def sample_balance(instance: "Mapping[str, Any]") -> "Dict[str, Any]":
    """A public load balancer before the first address of a VM."""
    addresses = [address for interface in instance["network"]["interface"]
                 for address in interface["ipv4"]["ipAddress"]]
    both = {"frontendIpAddress": "203.0.113.10",
            "privateIpAddress": addresses[0]["privateIpAddress"] if addresses else "10.0.0.4"}
    return {"publicIpAddresses": [both], "outboundRules": [both],
            "inboundRules": [dict(both, protocol="tcp", frontendPort=443, backendPort=8443)]}


def redact(vm: "Mapping[str, Any]") -> "Dict[str, Any]":
    """Return a whole VM with stand-ins of the same form for what says whose it is: the same one for the
    same value, wherever it stands. The attested document is left out: its signature can't be redacted."""
    numbers = {}  # type: Dict[Tuple[str, str], int]
    pattern = re.compile("|".join("(?P<%s>%s)" % row for row in FOUND_ANYWHERE), re.I)
    known = {"instance." + re.sub("/0(?=/|$)", "", path).replace("/", ".") for path in walk(template(NEWEST))}

    def stand_in(kind: str, value: str) -> str:
        form = STAND_INS[kind]
        if not value or "%" not in form:
            return value and form
        same_kind = [number for (other, _), number in numbers.items() if other == kind]
        number = numbers.setdefault((kind, value.lower()), len(same_kind) + 1)
        text = form % (number if form.count("%") == 1 else divmod(number, 256))
        return text.upper() if kind == "guid" and value.isupper() else text

    def name(value: str) -> str:
        """web_1, web00000A and web_OsDisk_1_HEX keep the form of what comes after web."""
        found = re.match(r"(.+?)((?:_OsDisk|_DataDisk|_disk)?_\d{1,4}|000[0-9A-Z]{3})(_([0-9a-f]{32}))?\Z", value, re.S)
        if not found:
            return stand_in("name", value)
        unique = "_" + stand_in("hex", found.group(4)) if found.group(4) else ""
        return stand_in("name", found.group(1)) + found.group(2) + unique

    def resource_id(value: str) -> str:
        """A type and a name in turn; "providers" is followed by a namespace, which is public."""
        words, at = value.split("/"), 0
        while at + 1 < len(words):
            kind, after = words[at].lower(), words[at + 1]
            if not kind:
                at += 1
                continue
            if kind == "subscriptions":
                words[at + 1] = stand_in("guid", after)
            elif kind == "virtualmachines" and re.match(r"\d{1,4}\Z", after):
                pass  # the number of a scale set's instance
            elif after and kind not in ("providers", "versions"):
                words[at + 1] = name(after)
            at += 2
        return "/".join(words)

    def found_anywhere(found: "Any") -> str:
        kind, value = str(found.lastgroup), str(found.group())
        return resource_id(value) if kind == "id" else stand_in(kind, value)

    def clean(node: "Any", path: str) -> "Any":
        if isinstance(node, dict):
            return {key: clean(child, path + "." + key if path else key) for key, child in node.items()}
        if isinstance(node, list):
            return [clean(child, path) for child in node]
        kind = REDACTED.get(path)
        if not isinstance(node, str) or not node or kind == "":
            return node
        if kind == "name":
            return name(node)
        if kind == "file":
            return "/".join(word if word in PUBLIC_FOLDERS else name(word) for word in node.split("/"))
        if kind == "tags":
            pairs = [pair.partition(":") for pair in node.split(";")]
            return ";".join(stand_in("tag", tag) + colon + stand_in("value", value) for tag, colon, value in pairs)
        if kind == "description" and any(node in texts.values() for *_, texts in EVENT_TYPES.values()):
            return node
        if kind or path.startswith("instance.") and path not in known:
            return stand_in(kind or "value", node)
        return pattern.sub(found_anywhere, node)

    return dict(clean({part: vm[part] for part in PARTS if part in vm and part != "attested"}, ""))


def diff(before: "Any", after: "Any", path: str = "") -> "Iterator[Tuple[str, Any, Any]]":
    """Yield (path, value before, value after) for each place where two documents differ; a value that is
    not there is None."""
    if isinstance(before, list) and isinstance(after, list):
        before, after = ({str(index): item for index, item in enumerate(items)} for items in (before, after))
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(set(before).union(after)):
            yield from diff(before.get(name), after.get(name), path + "/" + name if path else name)
    elif before != after or type(before) is not type(after):  # True == 1
        yield path, before, after


# --- signatures: RSA and DER, as much as a token and an attested document need

SHA256_WITH_RSA, RSA = "1.2.840.113549.1.1.11", "1.2.840.113549.1.1.1"


def sign(content: bytes) -> bytes:
    """Sign with the test key: RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017)."""
    import hashlib

    exponent, (p, q) = _private_exponent(), TEST_KEY_PRIMES
    digest = _der(0x30, _algorithm("2.16.840.1.101.3.4.2.1"), _der(0x04, hashlib.sha256(content).digest()))
    padded = b"\0\1" + b"\xff" * (253 - len(digest)) + b"\0" + digest  # 256 bytes
    number = int.from_bytes(padded, "big")  # one power for each prime is faster than one for their product
    by_p, by_q = pow(number % p, exponent % (p - 1), p), pow(number % q, exponent % (q - 1), q)
    return (by_q + (by_p - by_q) * pow(q, p - 2, p) % p * q).to_bytes(256, "big")


@functools.lru_cache(maxsize=None)
def _private_exponent() -> int:
    totient = (TEST_KEY_PRIMES[0] - 1) * (TEST_KEY_PRIMES[1] - 1)
    return (1 + totient * (65537 - pow(totient, 65535, 65537))) // 65537  # 1/65537, for 65537 is a prime


def certificate(name: str, names: "Sequence[str]", issuer: str, start: float, end: float) -> bytes:
    """An X.509 certificate, DER, of the test key: for ``name`` and the DNS ``names``, or, without them,
    of an authority. Times in seconds since 1970."""
    import hashlib

    if names:
        constraints = _der(0x30)
        more = [
            _extension("2.5.29.15", _der(0x03, b"\x05\xa0")),  # digitalSignature, keyEncipherment
            # serverAuth and clientAuth as observed; emailProtection, for openssl takes nothing else for CMS
            _extension("2.5.29.37", _der(0x30, *[_oid("1.3.6.1.5.5.7.3.%d" % use) for use in (1, 2, 4)])),
            _extension("2.5.29.17", _der(0x30, *[_der(0x82, each.encode()) for each in names])),
        ]
    else:
        constraints = _der(0x30, _der(0x01, b"\xff"))
        more = [_extension("2.5.29.15", _der(0x03, b"\x01\x06"))]  # keyCertSign, cRLSign
    key = _der(0x30, _integer(TEST_KEY_PRIMES[0] * TEST_KEY_PRIMES[1]), _integer(65537))
    key_id = hashlib.sha256(key).digest()[:20]
    more += [_extension("2.5.29.14", _der(0x04, key_id)), _extension("2.5.29.35", _der(0x30, _der(0x80, key_id)))]
    to_be_signed = _der(
        0x30, _der(0xa0, _integer(2)), _integer(_serial(name, start)), _algorithm(SHA256_WITH_RSA), _name(issuer),
        _der(0x30, _time(start), _time(end)), _name(name),
        _der(0x30, _algorithm(RSA), _der(0x03, b"\0" + key)),
        _der(0xa3, _der(0x30, _extension("2.5.29.19", constraints, critical=True), *more)))
    return _der(0x30, to_be_signed, _algorithm(SHA256_WITH_RSA), _der(0x03, b"\0" + sign(to_be_signed)))


@functools.lru_cache(maxsize=None)
def test_ca() -> str:
    """The certificate of the authority behind the emulator's attested documents, as PEM."""
    import base64

    from_2020, to_2049 = 1577836800, 2493072000
    text = base64.b64encode(certificate(TEST_CA_NAME, (), TEST_CA_NAME, from_2020, to_2049)).decode()
    lines = [text[at:at + 64] for at in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN CERTIFICATE-----"] + lines + ["-----END CERTIFICATE-----", ""])


def signed_data(content: bytes, signature: bytes, signer: bytes, name: str, issuer: str, start: float) -> bytes:
    """PKCS#7 SignedData, DER, as the service was seen to write it: the content inside, no signed
    attributes, sha256WithRSAEncryption as the digest's algorithm, and only the signer's certificate."""
    info = _der(0x30, _integer(1), _der(0x30, _name(issuer), _integer(_serial(name, start))),
                _algorithm(SHA256_WITH_RSA), _algorithm(RSA), _der(0x04, signature))
    return _der(0x30, _oid("1.2.840.113549.1.7.2"), _der(0xa0, _der(
        0x30, _integer(1), _der(0x31, _algorithm(SHA256_WITH_RSA)),
        _der(0x30, _oid("1.2.840.113549.1.7.1"), _der(0xa0, _der(0x04, content))),
        _der(0xa0, signer), _der(0x31, info))))


def signed_content(data: bytes) -> bytes:
    """The content of a PKCS#7 SignedData. Its signature is not looked at. Raises ValueError."""
    try:
        content_info = _children(_children(data)[0][1])
        signed = _children(_children(content_info[1][1])[0][1])
        wrapped = _children(_children(signed[2][1])[1][1])
        return wrapped[0][1]
    except (IndexError, ValueError):
        raise ValueError("not a PKCS#7 SignedData") from None


def _base64url(data: bytes) -> str:
    import base64

    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 128 | len(octets)]) + octets + content


def _children(data: bytes) -> "List[Tuple[int, bytes]]":
    """The elements that stand one after another in DER: their tags and contents."""
    elements, at = [], 0
    while at < len(data):
        tag, size, at = data[at], data[at + 1], at + 2
        if size >= 128:
            octets = size & 127
            size, at = int.from_bytes(data[at:at + octets], "big"), at + octets
        if at + size > len(data):
            raise ValueError("cut off")
        elements.append((tag, data[at:at + size]))
        at += size
    return elements


def _integer(number: int) -> bytes:
    return _der(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


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
    return _der(0x30, _oid(dotted), _der(0x05))


def _name(common_name: str) -> bytes:
    return _der(0x30, _der(0x31, _der(0x30, _oid("2.5.4.3"), _der(0x0c, common_name.encode()))))


def _time(seconds: float) -> bytes:
    return _der(0x17, time.strftime("%y%m%d%H%M%SZ", time.gmtime(seconds)).encode())


def _serial(name: str, start: float) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(b"%s %d" % (name.encode(), start)).digest()[:15], "big") | 1


def _extension(dotted: str, value: bytes, critical: bool = False) -> bytes:
    return _der(0x30, _oid(dotted), _der(0x01, b"\xff") if critical else b"", _der(0x04, value))


# ==================================================================================================
# Room 3: service
#
# One request in, one response out; knows the core. It opens no socket, starts no thread, and asks the
# time of whoever made it. The rules of the service stand in Service._answer, in the order in which they apply.
# ==================================================================================================

# verb: str; target: str, path and query as sent; headers: names in lower case -> value, where a
# repeated header's values are joined by commas; body: bytes.
Request = collections.namedtuple("Request", "verb target headers body")

# status: int; headers: list of (name, value), in order; body: bytes; note: str, why it was refused.
Response = collections.namedtuple("Response", "status headers body note")

# A target taken apart. path: its names; endpoint: the key of ENDPOINTS that they begin with, or None;
# query: dict; problem: the key of REFUSALS that the target itself deserves, or None; page: what it
# shows of an instance document, the same for targets that show the same.
Target = collections.namedtuple("Target", "path endpoint query problem page")


@functools.lru_cache(maxsize=256)
def parse_target(target: str) -> "Target":
    """Take a request's target apart: percent-decoded once, without doubled slashes and dots, so that
    ".." never leaves the tree."""
    # Servers have to accept the form for proxies, too: http://HOST/PATH.
    raw_path, _, raw_query = re.sub("^http://[^/?]*", "", target, flags=re.I).partition("?")
    names, query, problem = [], {}, None  # type: List[str], Dict[str, str], Optional[str]
    try:
        for name in _decode(raw_path).split("/"):
            if name == "..":
                del names[-1:]
            elif name not in ("", "."):
                names.append(name)
        for pair in filter(None, raw_query.split("&")):
            name, _, value = (_decode(part) for part in pair.replace("+", " ").partition("="))
            problem = "duplicate" if name in query else problem
            query[name] = value
    except ValueError:
        names, problem = names or list(filter(None, raw_path.split("/"))), "target"
    below = "/".join(names[1:]) + "/"
    endpoint = next((known for known in ENDPOINTS if below.startswith(known + "/")), None)
    page = query.get("api-version"), query.get("extended", "").lower() == "true", tuple(names), query.get("format")
    return Target(tuple(names), endpoint if names[:1] == ["metadata"] else None, query, problem, page)


def _decode(text: str) -> str:
    decoded = urllib.parse.unquote_to_bytes(text).decode("utf-8")
    if "\0" in decoded:
        raise ValueError("a NUL is in %r" % text)
    return decoded


class _Refusal(Exception):
    """The row of REFUSALS with the key ``rule`` applies; ``value`` is what its body speaks of."""

    def __init__(self, rule: str, value: str = "") -> None:
        super().__init__(rule)
        self.rule, self.value = rule, value


class _Bucket:
    """A token bucket: ``rate`` requests a second, refilled all the time, as many at once (at least one)."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate, self.size = rate, max(rate, 1)
        self.tokens, self.when = self.size, now

    def take(self, now: float) -> bool:
        self.tokens = min(self.size, self.tokens + max(0, now - self.when) * self.rate)
        self.when = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class _Event:
    """A scheduled event. Times in seconds since 1970; ``started`` is None until it has."""

    def __init__(
        self, event_id: str, kind: str, resources: "List[str]", source: str, description: str, duration: int,
        not_before: float, lasts: float, cancelled: float = float("inf"), started: "Optional[float]" = None,
        replayed: bool = False,
    ) -> None:
        self.id, self.kind, self.resources, self.source = event_id, kind, resources, source
        self.description, self.duration, self.not_before = description, duration, not_before
        self.lasts, self.cancelled, self.started = lasts, cancelled, started
        self.starts = float("inf") if replayed else not_before  # by itself

    def next_change(self) -> float:
        """When it starts, is cancelled, or is gone."""
        return min(self.starts, self.cancelled) if self.started is None else self.started + self.lasts

    def fields(self) -> "Dict[str, Any]":
        return {
            "EventId": self.id, "EventStatus": "Scheduled" if self.started is None else "Started",
            "EventType": self.kind, "ResourceType": "VirtualMachine", "Resources": self.resources,
            "NotBefore": _http_date(self.not_before) if self.started is None else "",
            "Description": self.description, "EventSource": self.source, "DurationInSeconds": self.duration,
        }


class _Events:
    """The list of scheduled events: Scheduled, then Started by approval or when NotBefore comes, then gone.
    Each change of the list makes a new incarnation."""

    def __init__(self, document: "Mapping[str, Any]", now: float) -> None:
        self.incarnation, self.events = document.get("DocumentIncarnation", 1), []  # type: int, List[_Event]
        for event in document.get("Events", []):
            fields = dict([(name, default) for name, _, default in EVENT_FIELDS], **event)
            not_before, kind = parse_time(fields["NotBefore"]) or 0, fields["EventType"]
            self.events.append(_Event(
                fields["EventId"], kind, list(fields["Resources"]), fields["EventSource"], fields["Description"],
                fields["DurationInSeconds"], not_before, EVENT_TYPES[kind][3],
                started=now if fields["EventStatus"] == "Started" else None,
                replayed=not_before <= now))  # what was recorded some time ago waits for its approval

    def settle(self, now: float) -> None:
        """Let everything happen that is due, each moment in its turn."""
        while self.events:
            due = min(event.next_change() for event in self.events)
            if due > now:
                return
            for event in [event for event in self.events if event.next_change() == due]:
                if event.started is None and event.starts == due:
                    event.started = due
                else:
                    self.events.remove(event)
            self.incarnation += 1

    def add(self, event: "_Event") -> None:
        self.events.append(event)
        self.incarnation += 1

    def find(self, event_id: str) -> "Optional[_Event]":
        return next((event for event in self.events if event.id.upper() == event_id.upper()), None)

    def cancel(self, event_id: str) -> None:
        event = self.find(event_id)
        if event is None:
            raise ValueError("there is no event %r" % event_id)
        self.events.remove(event)
        self.incarnation += 1

    def approve(self, event_ids: "Iterable[str]", now: float) -> None:
        waiting = [event for event in map(self.find, event_ids) if event and event.started is None]
        for event in waiting:
            event.started = now
        self.incarnation += bool(waiting)

    def document(self, version: str, single: bool) -> "Dict[str, Any]":
        """The list as a version shows it; ``single``: the VM belongs to no scale set."""
        names = [name for since, added in EVENT_VERSIONS.items() if since <= version for name in added.split()]
        shown = [event.fields() for event in self.events if EVENT_TYPES[event.kind][0] <= version]
        for fields in shown:
            if version == PREVIEW and single:
                fields["Resources"] = ["_" + name for name in fields["Resources"]]
        return {"DocumentIncarnation": self.incarnation,
                "Events": [{name: fields[name] for name in names} for fields in shown]}


class Service:
    """The service of one VM. ``clock`` returns the time in seconds since 1970; the rest is as for
    Emulator. Raises ValueError for a value that can't be served."""

    def __init__(
        self, clock: "Callable[[], float]", instance: "Optional[Mapping[str, Any]]" = None, profile: str = "linux",
        cloud: "Optional[str]" = None, versions: "Optional[Iterable[str]]" = None, as_of: "Optional[str]" = None,
        rate_limit: "Optional[float]" = None, identities: "Optional[Iterable[str]]" = None,
        load_balancer: bool = False, attested_flaw: "Optional[str]" = None,
    ) -> None:
        if as_of not in (None, "2018"):
            raise ValueError("as_of must be '2018' or nothing, not %r" % as_of)
        self.in_2018, self.clock, now = as_of == "2018", clock, clock()
        parts = split_document(VMS[_known(profile, VMS, "profile")] if instance is None else instance)
        self.instance = complete(parts["instance"])
        if cloud is not None:
            self.instance["compute"]["azEnvironment"] = _known(cloud, CLOUDS, "cloud")
        served = tuple(VERSIONS)  # type: Sequence[str]
        if self.in_2018:
            served = self._cloud()[1]
        self.event_versions = [version for version in EVENT_VERSIONS if not self.in_2018 or version <= served[-1]]
        if versions is not None:
            chosen = [_known(version, served, "api-version") for version in versions]
            served = [version for version in served if version in chosen]
        if not served:
            raise ValueError("versions must name at least one api-version")
        self.versions = list(served)
        if rate_limit is None:
            rate_limit = RATE_LIMIT if self.in_2018 else 0
        if not 0 <= rate_limit < 1e9:
            raise ValueError("rate_limit must be 0 (off) or more requests a second, not %r" % rate_limit)
        self._bucket = _Bucket(rate_limit, now) if rate_limit else None
        self._identity_bucket = _Bucket(IDENTITY_RATE_LIMIT, now) if rate_limit else None
        self._identity_requests = 0  # in this turn
        self.events = _Events(parts["scheduledevents"] or {}, now)
        self._balanced = parts["loadbalancer"] if parts["loadbalancer"] is not None else load_balancer
        self.attested_flaw = attested_flaw and _known(attested_flaw, FLAWS, "flaw")
        self._recorded = parts["attested"]  # type: Optional[Dict[str, str]]
        identity = parts["identity"] or {}
        self.tenant = identity.get("tenantId") or DEFAULT_TENANT
        self._identities = []  # type: List[Any]
        self.identities = identity.get("identities", ["system"]) if identities is None else identities
        self._tokens = {}  # type: Dict[Tuple[str, str], Tuple[float, str]]
        self._views = {}  # type: Dict[Tuple[str, bool], Dict[str, Any]]
        self._pages = {}  # type: Dict[Tuple[Any, ...], Tuple[str, bytes]]
        self._date = None, ""  # type: Tuple[Optional[int], str]
        self._request_ids = ("%08x-0000-4000-8000-%012x" % (int(now), n) for n in itertools.count(1))

    # --- what a test may do to the VM

    def update(self, patch: "Mapping[str, Any]") -> None:
        """Change the running VM by a JSON merge patch (RFC 7386) of its instance document."""
        self.instance = complete(merge_patch(self.instance, patch))
        self._views, self._pages, self._recorded = {}, {}, None

    def schedule(
        self, kind: str, resources: "Optional[Iterable[str]]" = None, not_before: "Optional[float]" = None,
        duration: "Optional[int]" = None, source: str = "Platform", description: "Optional[str]" = None,
        lasts: "Optional[float]" = None, cancelled_after: float = float("inf"),
    ) -> str:
        """Schedule an event and return its EventId: see Emulator.schedule. ``lasts``: seconds of Started;
        ``cancelled_after``: seconds until it is cancelled."""
        now = self.clock()
        _, notice, type_duration, type_lasts, descriptions = EVENT_TYPES[_known(kind, EVENT_TYPES, "EventType")]
        _known(source, ("Platform", "User"), "EventSource")
        names = [self.instance["compute"]["name"]] if resources is None else list(resources)
        if isinstance(resources, str) or not all(isinstance(name, str) for name in names):
            raise ValueError("resources must be a list of names, not %r" % (resources,))
        duration = type_duration if duration is None else duration
        if not isinstance(duration, int) or isinstance(duration, bool) or not -1 <= duration < 1e9:
            raise ValueError("duration must be a whole number of seconds, or -1, not %r" % (duration,))
        description = descriptions.get(source, "") if description is None else description
        format_json([names, _check(description, str, "description")]).encode()  # ValueError for half a character
        if not_before is None:
            not_before = now + notice
        elif not_before < 1e8:  # seconds from now, for as seconds since 1970 that would be long ago
            not_before += now
        if not 0 <= not_before < 200e9:
            raise ValueError("not_before must be seconds from now, or since 1970, not %r" % not_before)
        self.events.settle(now)
        event_id = guid(self.instance["compute"]["vmId"], str(now), str(self.events.incarnation)).upper()
        self.events.add(_Event(
            event_id, kind, names, source, description, duration, not_before,
            type_lasts if lasts is None else lasts, now + cancelled_after))
        return event_id

    def play(self, scenario: str) -> str:
        """Schedule the event of one of SCENARIOS and return its EventId."""
        kind, source, description, notice, lasts, cancelled = SCENARIOS[_known(scenario, SCENARIOS, "scenario")]
        return self.schedule(kind, not_before=notice, source=source, description=description, lasts=lasts,
                             cancelled_after=float("inf") if cancelled is None else cancelled)

    def cancel(self, event_id: str) -> None:
        """Take an event off the list. Raises ValueError where there is none."""
        self.events.settle(self.clock())
        self.events.cancel(event_id)

    def identity(self, spec: str) -> "Dict[str, str]":
        """The identity called "system" or "user:NAME", its ids made from the VM's."""
        compute, (kind, _, name) = self.instance["compute"], spec.partition(":")
        resource_id = compute["resourceId"] if kind == "system" else (
            "/subscriptions/%s/resourceGroups/%s/providers/Microsoft.ManagedIdentity/userAssignedIdentities/%s"
            % (compute["subscriptionId"], compute["resourceGroupName"], name))
        return {"type": kind, "clientId": guid(compute["vmId"], spec, "client"),
                "objectId": guid(compute["vmId"], spec, "object"), "resourceId": resource_id}

    @property
    def identities(self) -> "List[Dict[str, str]]":
        """The managed identities: dicts of IDENTITY_FIELDS. May be set to "system" and "user:NAME", too."""
        return [self.identity(each) if isinstance(each, str) else dict(each) for each in self._identities]

    @identities.setter
    def identities(self, identities: "Iterable[Any]") -> None:
        self._identities = check_identities(identities)

    # --- requests

    def new_turn(self) -> None:
        """Say that what was asked so far has been answered: what follows did not come at the same time."""
        self._identity_requests = 0

    def respond(self, request: "Request") -> "Response":
        """Answer one request."""
        try:
            return self._response(200, *self._answer(request, parse_target(request.target)))
        except _Refusal as refusal:
            return self.refuse(refusal.rule, request, refusal.value)

    def _answer(self, request: "Request", asked: "Target") -> "Tuple[str, bytes]":
        """The content type and body of an answer, or a _Refusal: every rule, in the order of the service."""
        path, endpoint, query, headers = asked.path, asked.endpoint, asked.query, request.headers
        inside = path[:1] == ("metadata",)
        has_header = headers.get("metadata") == "true" or all(  # the first for speed: it is what nearly all send
            value.strip(" \t").lower() == "true" for value in headers.get("metadata", "").split(","))
        if request.verb not in _verbs(endpoint):
            raise _Refusal("verb" if inside else "outside-verb")
        if not inside:
            return self._outside(request, path, has_header)
        throttled = self._is_throttled(path)  # what is refused counts, too
        if not has_header and not (endpoint == "scheduledevents" and query.get("api-version") == PREVIEW):
            raise _Refusal("metadata")  # but the preview of scheduled events did without
        if "x-forwarded-for" in headers:
            raise _Refusal("forwarded")
        if asked.problem:
            raise _Refusal(asked.problem)
        self._check_version(endpoint, query.get("api-version"))
        page = self._pages.get(asked.page) or self._page(asked)
        started = self._to_start(request) if request.verb == "POST" else []
        if throttled:
            raise _Refusal("throttled-text" if page[0] == TEXT_TYPE else "throttled")
        if request.verb == "POST":  # of scheduled events: the one thing that a request can change
            self.events.approve(started, self.clock())
            return JSON_TYPE, b""
        return page

    def _outside(self, request: "Request", path: "Tuple[str, ...]", has_header: bool) -> "Tuple[str, bytes]":
        """What is outside /metadata: nothing, but for what lets the emulator's signatures be checked."""
        key_page = KEY_PAGES.get("/".join(path[-2:])) if len(path) <= 3 else None  # with the tenant before it, or not
        if key_page and request.verb == "GET":
            return JSON_TYPE, format_json(key_page(self, request)).encode()
        if path == ("imds-test-ca.pem",) and request.verb == "GET":
            return TEXT_TYPE, test_ca().encode()
        raise _Refusal("outside" if path or has_header else "metadata")  # a detector relies on 400 for GET /

    def _is_throttled(self, path: "Tuple[str, ...]") -> bool:
        if self._bucket is None or self._identity_bucket is None:
            return False
        if path[1:2] != ("identity",) or self.in_2018:
            return not self._bucket.take(self.clock())
        self._identity_requests += 1
        return not self._identity_bucket.take(self.clock()) or self._identity_requests > IDENTITY_AT_ONCE

    def _check_version(self, endpoint: "Optional[str]", version: "Optional[str]") -> None:
        first = ENDPOINTS[endpoint][1] if endpoint else FIRST_GA
        if first is None:
            return
        if endpoint == "scheduledevents" and version:  # it has versions of its own
            if version in self.event_versions:
                return
            if re.match(DATE, version):
                raise _Refusal("path")
        elif version in self.versions:
            if version < first:  # the endpoint came later
                raise _Refusal("path")
            return
        if not self.in_2018:
            raise _Refusal("version")
        raise _Refusal("version-missing-2018" if version is None else "version-unknown-2018")

    def _page(self, asked: "Target") -> "Tuple[str, bytes]":
        """The content type and body of what a target shows: first its path, then its format."""
        endpoint, form = asked.endpoint, asked.query.get("format", "json")
        if endpoint in ("instance", None):
            node = self._instance(asked)
            if form not in ("json", "text"):
                raise _Refusal("format", form)
            if form == "json" and not isinstance(node, (dict, list)):
                raise _Refusal("leaf")
        elif "/".join(asked.path[1:]) in PAGES:
            if form != "json" and endpoint != "versions":  # which has one form, whatever is asked for
                raise _Refusal("format", form)
            node, form = PAGES[endpoint](self, asked.query), "json"
        else:
            raise _Refusal("path")
        page = (TEXT_TYPE, format_text(node).encode()) if form == "text" else (JSON_TYPE, format_json(node).encode())
        if endpoint == "instance":  # it stays as it is until the document changes
            self._pages[asked.page] = page
        return page

    # --- pages

    def _instance(self, asked: "Target") -> "Any":
        query = asked.query
        if asked.endpoint is None:
            if asked.path[1:] or query.get("format", "json") == "json":
                raise _Refusal("path")  # /metadata has a listing, but no document
            firsts = {name.partition("/")[0]: first for name, (_, first) in ENDPOINTS.items() if first}
            return {name: {} for name, first in firsts.items() if first <= query["api-version"]}
        key = asked.page[:2]
        if key not in self._views:
            self._views[key] = view(self.instance, *key)
        try:
            return find(self._views[key], asked.path[2:])
        except KeyError:
            raise _Refusal("path") from None

    def _versions(self, query: "Mapping[str, str]") -> "Any":
        if self.in_2018:
            raise _Refusal("path")
        return {"apiVersions": self.versions}

    def _scheduled_events(self, query: "Mapping[str, str]") -> "Any":
        self.events.settle(self.clock())
        return self.events.document(query["api-version"], not self.instance["compute"]["vmScaleSetName"])

    def _to_start(self, request: "Request") -> "List[str]":
        """The EventIds that a POST approves; a payload with anything else in it changes nothing."""
        self.events.settle(self.clock())
        try:
            requests = json.loads(request.body.decode())["StartRequests"]
            event_ids = [each["EventId"] for each in requests]
            if isinstance(requests, list) and all(self.events.find(event_id) for event_id in event_ids):
                return event_ids
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise _Refusal("events")

    def _load_balancer(self, query: "Mapping[str, str]") -> "Any":
        if self._balanced is False:
            raise _Refusal("no-load-balancer")
        given = sample_balance(self.instance) if self._balanced is True else self._balanced
        return {"loadbalancer": balance(given)}

    def _identity_info(self, query: "Mapping[str, str]") -> "Any":
        return {"tenantId": self.tenant}

    def _token(self, query: "Mapping[str, str]") -> "Any":
        resource, now = query.get("resource"), self.clock()
        if not resource:
            raise _Refusal("no-resource")
        identity = self._selected(query)
        if not (":" in resource or len(resource) == 36 and resource.count("-") == 4):  # a URI, or an application's GUID
            raise _Refusal("bad-resource", resource)
        key = identity["clientId"], resource
        issued, token = self._tokens.get(key, (0, ""))
        if now > issued + TOKEN_SECONDS - TOKEN_RENEWED or query.get("bypass_cache", "").lower() == "true":
            issued = int(now)
            token = self._signed_token(identity, resource, issued)
            if len(self._tokens) >= 1000:  # resources can be made up without end
                self._tokens.clear()
            self._tokens[key] = issued, token
        return {
            "access_token": token, "client_id": identity["clientId"],
            "expires_in": str(int(issued + TOKEN_SECONDS - now)), "expires_on": str(issued + TOKEN_SECONDS),
            "ext_expires_in": str(TOKEN_SECONDS - 1), "not_before": str(issued - TOKEN_BACKDATED),
            "resource": resource, "token_type": "Bearer",
        }

    def _selected(self, query: "Mapping[str, str]") -> "Dict[str, str]":
        """The identity that a request is for."""
        selectors = [(field, query[name].lower()) for name, field in SELECTORS.items() if query.get(name)]
        if len(selectors) > 1:
            raise _Refusal("several-selectors")
        if selectors:
            field, value = selectors[0]
            found = [identity for identity in self.identities if identity.get(field, "").lower() == value]
        else:
            found = [identity for identity in self.identities if identity.get("type") == "system"] or self.identities
        if len(found) > 1:
            raise _Refusal("several-identities")
        if not found:
            raise _Refusal("no-identity")
        return found[0]

    def _signed_token(self, identity: "Mapping[str, str]", resource: str, issued: int) -> str:
        """A JWT (RFC 7519), signed with RS256."""
        claims = {
            "aud": resource, "iss": self._issuer(), "iat": issued, "nbf": issued - TOKEN_BACKDATED,
            "exp": issued + TOKEN_SECONDS, "appid": identity["clientId"], "appidacr": "2", "idp": self._issuer(),
            "idtyp": "app", "oid": identity["objectId"], "sub": identity["objectId"], "tid": self.tenant,
            "ver": "1.0", "xms_mirid": identity["resourceId"],
        }
        parts = [_base64url(format_json(part).encode())
                 for part in ({"typ": "JWT", "alg": "RS256", "kid": TEST_KEY_ID}, claims)]
        return ".".join(parts + [_base64url(sign(".".join(parts).encode()))])

    def _issuer(self) -> str:
        return "https://sts.windows.net/%s/" % self.tenant

    def _key_set(self, request: "Request") -> "Any":
        modulus = TEST_KEY_PRIMES[0] * TEST_KEY_PRIMES[1]
        return {"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": TEST_KEY_ID, "e": "AQAB",
                          "n": _base64url(modulus.to_bytes(256, "big"))}]}

    def _open_id(self, request: "Request") -> "Any":
        base = "http://%s/%s" % (request.headers.get("host", "localhost"), self.tenant)
        return {"issuer": self._issuer(), "jwks_uri": base + "/discovery/keys",
                "id_token_signing_alg_values_supported": ["RS256"], "subject_types_supported": ["pairwise"],
                "response_types_supported": ["id_token"]}

    def _attested(self, query: "Mapping[str, str]") -> "Any":
        if len(query.get("nonce", "")) > MAX_NONCE:
            raise _Refusal("nonce")
        return self.attested(query["api-version"], query.get("nonce", ""), self.attested_flaw)

    def attested(self, version: str = NEWEST, nonce: str = "", flaw: "Optional[str]" = None) -> "Dict[str, str]":
        """The attested document: {"encoding": "pkcs7", "signature": base64}. ``flaw``: a key of FLAWS."""
        import base64

        if len(nonce) > MAX_NONCE:
            raise ValueError("a nonce has at most %d characters" % MAX_NONCE)
        if self._recorded and not nonce and not flaw:
            return self._recorded
        if flaw == "nonce":
            nonce = "1111111111" if nonce == "0000000000" else "0000000000"
        compute = self.instance["compute"]
        created = int(self.clock()) - (86400 + ATTESTED_SECONDS if flaw == "expired" else 0)
        start = created - created % 86400 - CERTIFICATE_BACKDATED  # of the certificate: a new one a day
        expires = time.gmtime(created + ATTESTED_SECONDS)
        domain = "metadata.example.com" if flaw == "domain" else self._cloud()[0]
        stamps = [time.strftime(ATTESTED_TIME, moment) for moment in (time.gmtime(created), expires)]
        content = format_json(_project({
            "licenseType": compute["licenseType"], "plan": compute["plan"], "sku": compute["sku"],
            "nonce": nonce or time.strftime(ATTESTED_NONCE, expires),
            "subscriptionId": compute["subscriptionId"],
            "timeStamp": {"createdOn": stamps[0], "expiresOn": stamps[1]},
            "vmId": guid("another", compute["vmId"]) if flaw == "vmId" else compute["vmId"],
        }, _fields_until(version, ATTESTED_VERSIONS), _fields_until(NEWEST, ATTESTED_VERSIONS), "attested")).encode()
        signature = sign(content)
        if flaw == "signature":
            content = content[:-1] + b" }"
        issuer = "nobody's CA" if flaw == "signer" else TEST_CA_NAME
        region = re.sub("[^a-z0-9-]", "", compute["location"].lower())[:63] or "westus"
        names = ("%s.%s" % (region, domain), domain)
        leaf = _leaf_certificate(domain, names, issuer, start)
        data = signed_data(content, signature, leaf, domain, issuer, start)
        return {"encoding": "pkcs7", "signature": base64.b64encode(data).decode()}

    def _cloud(self) -> "Tuple[str, Tuple[str, ...]]":
        return CLOUDS.get(self.instance["compute"]["azEnvironment"], CLOUDS["AzurePublicCloud"])

    # --- responses

    def refuse(self, rule: str, request: "Optional[Request]" = None, value: str = "") -> "Response":
        """The response of a row of REFUSALS; ``request`` is None when it could not be read."""
        import html

        status, note, body = REFUSALS[rule]
        extra = []  # type: List[Tuple[str, str]]
        if request:
            asked = parse_target(request.target)
            component = asked.path[1] if asked.path[:1] == ("metadata",) and len(asked.path) > 1 else ""
            body = DIALECTS.get(component, {}).get(rule, body)
            if status == 405:
                extra = [("Allow", ", ".join(_verbs(asked.endpoint)))]
            escape = html.escape if body.startswith("<") else lambda word: json.dumps(word)[1:-1]
            words = {"verb": request.verb, "path": "/" + "/".join(asked.path), "value": value, "tenant": self.tenant}
            words = {name: escape(word) for name, word in words.items()}
            words["newest"] = format_json(self.versions[:-4:-1])
            body = re.sub(r"\$(\w+)", lambda found: words[found.group(1)], body)
        content_type = next((CONTENT_TYPES[start] for start in CONTENT_TYPES if body.startswith(start)), TEXT_TYPE)
        return self._response(status, content_type, body.encode(), note, extra)

    def _response(
        self, status: int, content_type: str, body: bytes, note: str = "", extra: "Sequence[Tuple[str, str]]" = (),
    ) -> "Response":
        now = int(self.clock())
        if self._date[0] != now:
            self._date = now, _http_date(now)
        values = {
            "Content-Type": content_type,
            "Server": IIS_SERVER if content_type in (XML_TYPE, HTML_TYPE) else IMDS_SERVER,
            "x-ms-request-id": next(self._request_ids),
            "Date": self._date[1],
            "Content-Length": str(len(body)),
        }
        return Response(status, [(name, values[name]) for name in HEADERS[content_type]] + list(extra), body, note)


# What answers at each endpoint but /metadata/instance; and, outside /metadata, what a validator of
# tokens asks of the authority that signed them.
PAGES = {
    "attested/document": Service._attested,
    "identity/info": Service._identity_info,
    "identity/oauth2/token": Service._token,
    "loadbalancer": Service._load_balancer,
    "scheduledevents": Service._scheduled_events,
    "versions": Service._versions,
}
KEY_PAGES = {
    ".well-known/openid-configuration": Service._open_id,
    "discovery/keys": Service._key_set,
}


@functools.lru_cache(maxsize=16)
def _leaf_certificate(domain: str, names: "Tuple[str, ...]", issuer: str, start: int) -> bytes:
    return certificate(domain, names, issuer, start, start + CERTIFICATE_SECONDS)


def _verbs(endpoint: "Optional[str]") -> "Tuple[str, ...]":
    return ENDPOINTS[endpoint][0] if endpoint else ("GET", "POST")


# ==================================================================================================
# Room 4: emulator
#
# What puts the service on a port, by way of http.server; knows the service. HTTP itself is
# a pure machine, bytes in and bytes out (_Conversation). One thread serves every connection: no
# client waits for another that stalls, and an open connection costs a few kilobytes.
# ==================================================================================================

MAX_LINE, MAX_HEADERS, MAX_BODY = 8 * 1024, 64 * 1024, 64 * 1024  # bytes
REQUEST_TIME, IDLE_TIME, LINGER_TIME = 10, 120, 5  # seconds: to send a request, between two, to read a refusal
MAX_CHUNKS = 1024  # of a body
HEAD_END = re.compile(b"\r?\n\r?\n")  # a line feed will do, for requests typed by hand
TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def read_head(data: bytes) -> "Optional[Tuple[Tuple[str, str, str], Dict[str, str], int]]":
    """Read the head of a request: its line (verb, target, version), its headers (names in lower case,
    repeated ones joined by commas) and its size; None while it is incomplete."""
    found = HEAD_END.search(data)
    line_size = data.find(b"\n") if b"\n" in data else len(data)
    if line_size > MAX_LINE + 1:
        raise _Refusal("line-size")
    if (found.start() if found else len(data)) - line_size > MAX_HEADERS:
        raise _Refusal("headers-size")
    if not found:
        return None
    line, headers = _parse_head(data[:found.start()])
    return line, headers, found.end()


@functools.lru_cache(maxsize=64)  # a client says the same each time
def _parse_head(head: bytes) -> "Tuple[Tuple[str, str, str], Dict[str, str]]":
    lines = head.decode("latin-1").replace("\r\n", "\n").split("\n")
    headers = {}  # type: Dict[str, str]
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not (name and colon and TOKEN.issuperset(name)) or "\r" in value or "\0" in value:
            raise _Refusal("malformed")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = headers[name] + "," + value if name in headers else value
    words = lines[0].split(" ")
    if len(words) != 3 or not words[0] or not TOKEN.issuperset(words[0]) or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise _Refusal("malformed")
    if not all("!" <= char <= "~" for char in words[1]):
        raise _Refusal("malformed")
    if words[0] != "CONNECT" and not words[1].lower().startswith(("/", "http://", "*")):
        raise _Refusal("malformed")
    return (words[0], words[1], words[2]), headers


def read_body(headers: "Mapping[str, str]", data: bytes, start: int) -> "Optional[Tuple[bytes, int]]":
    """Read the body that begins at ``start``, and where it ends; None while it is incomplete."""
    if "transfer-encoding" in headers:
        if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers:
            raise _Refusal("malformed")
        return _read_chunks(data, start)
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise _Refusal("malformed")
    if len(length) > 20 or int(length) > MAX_BODY:
        raise _Refusal("body-size")
    end = start + int(length)
    return (data[start:end], end) if len(data) >= end else None


def _read_chunks(data: bytes, start: int) -> "Optional[Tuple[bytes, int]]":
    chunks, at, total = [], start, 0  # type: List[bytes], int, int
    while True:
        line_end = data.find(b"\r\n", at)
        digits = data[at:line_end if line_end >= 0 else len(data)].partition(b";")[0].strip(b" \t\r")
        if len(digits) > 20 or digits.strip(b"0123456789abcdefABCDEF"):
            raise _Refusal("malformed")
        if line_end < 0:
            break
        if not digits:
            raise _Refusal("malformed")
        size = int(digits, 16)
        total += size
        if size == 0:
            end = data.find(b"\r\n\r\n", line_end)  # what stands before it are trailers
            if end >= 0:
                return b"".join(chunks), end + 4
            break
        at, chunk_end = line_end + 2, line_end + 2 + size
        if total > MAX_BODY or len(chunks) > MAX_CHUNKS or len(data) < chunk_end + 2:
            break
        if data[chunk_end:chunk_end + 2] != b"\r\n":
            raise _Refusal("malformed")
        chunks.append(data[at:chunk_end])
        at = chunk_end + 2
    if total > MAX_BODY or len(chunks) > MAX_CHUNKS or len(data) - start > MAX_BODY + MAX_LINE:
        raise _Refusal("body-size")
    return None


def _write(response: "Response", with_body: bool, connection: str) -> bytes:
    """A response as bytes."""
    lines = ["HTTP/1.1 %d %s" % (response.status, REASONS[response.status])]
    lines += map(": ".join, response.headers)
    if connection:
        lines.append("Connection: " + connection)
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode("latin-1") + response.body if with_body else head.encode("latin-1")


class _Conversation:
    """HTTP/1.1 with one client. ``over``: the connection ends after what was returned last;
    ``continued``: the client was told to send its body."""

    def __init__(self, service: "Service", lock: "Any", log: "Optional[Callable[[str], None]]", peer: str) -> None:
        self._service, self._lock, self._log, self._peer = service, lock, log, peer
        self._unread = b""
        self.continued = self.over = False

    @property
    def in_request(self) -> bool:
        """Whether a request has begun and is not complete."""
        return bool(self._unread)

    def receive(self, data: bytes) -> bytes:
        """Take what the client sent; return what goes back."""
        self._unread += data
        replies = []
        while self._unread and not self.over:
            reply = self._reply()
            if not reply:
                break
            replies.append(reply)
        return b"".join(replies)

    def time_out(self) -> bytes:
        """End a request that takes too long; return what goes back."""
        return self._refuse("slow")

    def _reply(self) -> bytes:
        self._unread = self._unread.lstrip(b"\r\n")  # some clients end a body with a line end of their own
        try:
            head = read_head(self._unread)
            if head is None:
                return b""
            (verb, target, version), headers, start = head
            if version == "HTTP/1.1" and "host" not in headers or "," in headers.get("host", ""):
                raise _Refusal("malformed")
            read = read_body(headers, self._unread, start)
        except _Refusal as refusal:
            return self._refuse(refusal.rule)
        if read is None:
            if self.continued or version == "HTTP/1.0" or headers.get("expect", "").lower() != "100-continue":
                return b""
            self.continued = True
            return b"HTTP/1.1 100 Continue\r\n\r\n"
        body, end = read
        self._unread, self.continued = self._unread[end:], False
        request = Request(verb, target, headers, body)
        with self._lock:
            try:
                response = self._service.respond(request)
            except Exception as error:  # one request must not end the service of all
                response = self._service.refuse("failed", request)
                note = "%s: %s: %s" % (response.note, type(error).__name__, error)
                response = response._replace(note=one_line(note))
        wish = headers.get("connection", "").lower().replace(" ", "").split(",")
        self.over = "close" in wish if version == "HTTP/1.1" else "keep-alive" not in wish
        if self._log:
            self._log_line("%s %s %s" % (verb, target, version), response)
        connection = "close" if self.over else "keep-alive" if version == "HTTP/1.0" else ""
        return _write(response, verb != "HEAD", connection)

    def _refuse(self, rule: str) -> bytes:
        with self._lock:
            response = self._service.refuse(rule)
        if self._log:
            self._log_line(self._unread[:80].partition(b"\n")[0].decode("latin-1").rstrip("\r"), response)
        with_body = not self._unread.startswith(b"HEAD ")
        self._unread, self.over = b"", True
        return _write(response, with_body, "close")

    def _log_line(self, line: str, response: "Response") -> None:
        """The line of http.server's access log, with the reason of a refusal at its end."""
        line = "".join(char if char.isprintable() and char != '"' else "\\x%02x" % ord(char) for char in line)
        assert self._log is not None
        try:
            self._log('%s - - [%s] "%s" %d %s' % (
                self._peer, time.strftime("%d/%b/%Y %H:%M:%S"), line, response.status, response.note or "-"))
        except Exception:  # a log that can't be written must not cost the answer
            pass


def _http_server(
    host: str, port: int, converse: "Callable[[str], _Conversation]", new_turn: "Callable[[], None]",
) -> "Any":
    """Return an HTTPServer, bound and listening, that serves every connection from one thread."""
    import errno
    import http.server
    import selectors
    import socket
    import socketserver

    class Connection:
        """A client's socket, what is said over it, what is still to be sent, and since when it is as it is."""

        def __init__(self, client: "socket.socket", peer: str) -> None:
            self.socket, self.conversation = client, converse(peer)
            self.unsent, self.since, self.blocked, self.lingering = b"", time.monotonic(), False, False

        def is_busy(self) -> bool:
            return bool(self.unsent) or self.conversation.in_request

        def time_left(self, now: float) -> float:
            limit = LINGER_TIME if self.lingering else REQUEST_TIME if self.is_busy() else IDLE_TIME
            return self.since + limit - now

    class Server(http.server.HTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        allow_reuse_address = os.name == "posix"  # elsewhere it would let two servers share a port
        request_queue_size = 512

        def server_bind(self) -> None:
            socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks the DNS for a name

        def __init__(self) -> None:  # which closes it again where it can't listen, so all of it must be there
            self.connections = set()  # type: set[Connection]
            self.stopping = False
            self.waker, self.woken = socket.socketpair()
            self.selector = selectors.DefaultSelector()
            super().__init__((host, port), converse)  # type: ignore[arg-type]  # not a handler class: there is none
            self.socket.setblocking(False)
            self.selector.register(self.woken, selectors.EVENT_READ)
            self.accepting = False
            self.accept_again()

        def serve_forever(self, poll_interval: float = 1) -> None:
            swept = time.monotonic()
            try:
                while not self.stopping:
                    for key, _ in self.selector.select(poll_interval):
                        if key.data:
                            self.serve(key.data)
                        elif key.fileobj is self.socket:
                            self.accept()
                        else:  # woken, by shutdown
                            self.stopping = True
                    new_turn()
                    now = time.monotonic()
                    if now >= swept + poll_interval:
                        swept = now
                        self.accept_again()
                        for connection in [each for each in self.connections if each.time_left(now) <= 0]:
                            self.time_out(connection)
            finally:
                self.server_close()

        def shutdown(self) -> None:
            self.waker.send(b"\0")

        def server_close(self) -> None:
            super().server_close()
            for each in [connection.socket for connection in self.connections] + [self.waker, self.woken]:
                each.close()
            self.selector.close()

        def accept(self) -> None:
            try:
                while True:
                    client, address = self.get_request()
                    client.setblocking(False)
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connection = Connection(client, address[0])
                    self.connections.add(connection)
                    self.selector.register(client, selectors.EVENT_READ, connection)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):  # the longest idle one yields, or the newcomers wait
                    second_ago = time.monotonic() - 1
                    idle = [each for each in self.connections if not each.is_busy() and each.since < second_ago]
                    if idle:
                        self.drop(min(idle, key=lambda connection: connection.since))
                    else:
                        self.selector.unregister(self.socket)
                        self.accepting = False

        def accept_again(self) -> None:
            if not self.accepting:
                self.selector.register(self.socket, selectors.EVENT_READ)
                self.accepting = True

        def serve(self, connection: "Connection") -> None:
            """Do what a connection is ready for: sending the rest of an answer, or else reading."""
            conversation = connection.conversation
            if connection not in self.connections:  # dropped a moment ago
                return
            try:
                if not connection.unsent:
                    data = connection.socket.recv(65536)
                    if not data:
                        self.drop(connection)
                        return
                    if connection.lingering:
                        return
                    was_in_request = conversation.in_request
                    connection.unsent = conversation.receive(data)
                    if connection.unsent and not conversation.continued or not was_in_request:
                        connection.since = time.monotonic()
                self.send(connection)
            except (BlockingIOError, InterruptedError):
                pass
            except Exception:  # reset, or gone; or a fault of ours, which must not end the service of all
                self.drop(connection)

        def send(self, connection: "Connection") -> None:
            if connection.unsent:
                try:
                    sent = connection.socket.send(connection.unsent)
                except BlockingIOError:
                    sent = 0
                connection.unsent = connection.unsent[sent:]
                if bool(connection.unsent) != connection.blocked:
                    connection.blocked = not connection.blocked
                    event = selectors.EVENT_WRITE if connection.blocked else selectors.EVENT_READ
                    self.selector.modify(connection.socket, event, connection)
                if connection.blocked:
                    return
            if connection.conversation.over:  # closed at once, unread data would reset it before the answer is read
                connection.socket.shutdown(socket.SHUT_WR)
                connection.lingering, connection.since = True, time.monotonic()

        def time_out(self, connection: "Connection") -> None:
            if not connection.conversation.in_request or connection.unsent or connection.lingering:
                self.drop(connection)
                return
            connection.unsent = connection.conversation.time_out()
            try:
                self.send(connection)
            except OSError:
                self.drop(connection)

        def drop(self, connection: "Connection") -> None:
            self.connections.discard(connection)
            self.selector.unregister(connection.socket)
            connection.socket.close()
            self.accept_again()

    return Server()


class Clock:
    """The time of an emulator, in seconds since 1970: ``clock()``. It follows ``source``, ``scale`` times
    as fast, until it is told otherwise. Raises ValueError for a time outside the years 1970 to 8000."""

    def __init__(self, source: "Callable[[], float]" = time.time, scale: float = 1) -> None:
        import threading

        now = source()
        self._source, self._normal, self._lock = source, scale, threading.Lock()
        self._run = now, now, scale  # the source's time, this clock's time then, and how fast it has run since

    def __call__(self) -> float:
        """The time now."""
        seen, then, scale = self._run
        return then + (self._source() - seen) * scale

    def advance(self, seconds: float) -> None:
        """Go forward by so many seconds, at once."""
        with self._lock:
            seen, then, scale = self._run
            self._set(seen, then + seconds, scale)

    def freeze(self) -> None:
        """Stand still; only ``advance`` goes on."""
        self.resume(0)

    def resume(self, scale: "Optional[float]" = None) -> None:
        """Run again, ``scale`` times as fast as the source; None: as fast as at first."""
        with self._lock:
            self._set(self._source(), self(), self._normal if scale is None else scale)

    def _set(self, seen: float, then: float, scale: float) -> None:
        if not 0 <= then < 190e9 or not 0 <= scale < 1e9:
            raise ValueError("a clock can't show %r seconds since 1970, or run %r times as fast" % (then, scale))
        self._run = seen, then, scale


class Emulator:
    """The Instance Metadata Service of one VM on a port of this machine, for a test or by hand.

    >>> with Emulator() as vm:
    ...     vm.get("compute/name")
    'avset2'

    instance       dict in the shape of ``/metadata/instance``, or a whole VM as ``imds snapshot`` writes
                   it; what it lacks is empty. None: ``profile``
    host, port     where it listens; port 0 is a free one
    rate_limit     requests a second, refilled all the time, and 20 to the identity service; 0 is off.
                   None: off, but 5 ``as_of`` 2018
    cloud          the value of azEnvironment: a key of CLOUDS. None: the document's
    versions       the api-versions that it serves, of the documented ones. None: all
    as_of          "2018" is the service of the 2018 document: its versions by cloud, its errors
    profile        the built-in VM: "linux", "windows" or "scaleset"
    clock          a function that returns the time in seconds since 1970, or a Clock
    log            called with a line per request, str
    identities     the managed identities: "system", "user:NAME". None: the document's, or "system"
    load_balancer  True: it has one, unless the document says which
    attested_flaw  a key of FLAWS: its attested documents are to be refused

    ``vm.clock`` is the one clock of all of it: ``vm.clock.advance(900)``, ``vm.clock.freeze()``.
    ``start`` and ``stop`` do without ``with``. All of it may be used from any thread. Raises
    ValueError for a value that can't be served and, on start, OSError where it can't listen.
    """

    def __init__(
        self, instance: "Optional[Mapping[str, Any]]" = None, host: str = "127.0.0.1", port: int = 0,
        rate_limit: "Optional[float]" = None, cloud: "Optional[str]" = None,
        versions: "Optional[Iterable[str]]" = None, as_of: "Optional[str]" = None, profile: str = "linux",
        clock: "Callable[[], float]" = time.time, log: "Optional[Callable[[str], None]]" = None,
        identities: "Optional[Iterable[str]]" = None, load_balancer: bool = False,
        attested_flaw: "Optional[str]" = None,
    ) -> None:
        import threading

        self.clock = clock if isinstance(clock, Clock) else Clock(clock)
        self._service = Service(self.clock, instance, profile, cloud, versions, as_of, rate_limit, identities,
                                load_balancer, attested_flaw)
        self._address, self._log = (host, port), log
        self._lock = threading.RLock()
        self._server = None  # type: Any
        self._thread = None  # type: Optional[threading.Thread]

    def start(self) -> "Emulator":
        """Listen, and answer from a thread of its own."""
        import threading

        if self._server:
            raise RuntimeError("the emulator at %s is already started" % self.url)
        self._server = _http_server(self._address[0], self._address[1], self._converse, self._service.new_turn)
        self._thread = threading.Thread(target=self._server.serve_forever, name="imds-emulator", daemon=True)
        self._thread.start()
        return self

    def wait(self) -> None:
        """Return when it has been stopped; a signal interrupts."""
        while self._thread and self._thread.is_alive():
            self._thread.join(0.5)

    def stop(self) -> None:
        """Close every connection and the port, at once."""
        import threading

        with self._lock:
            server, thread, self._server, self._thread = self._server, self._thread, None, None
        if server and thread:
            server.shutdown()
            if thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> "Emulator":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _converse(self, peer: str) -> "_Conversation":
        return _Conversation(self._service, self._lock, self._log, peer)

    @property
    def port(self) -> int:
        """The port it listens on."""
        if not self._server:
            raise RuntimeError("the emulator is not started: use start(), or 'with Emulator() as vm:'")
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Its address, "http://127.0.0.1:PORT": what AZURE_IMDS_ENDPOINT and ``endpoint=`` take."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._address[0], self._address[0])
        return "http://%s:%d" % ("[%s]" % host if ":" in host else host, self.port)

    @property
    def instance(self) -> "Dict[str, Any]":
        """A copy of the instance document, complete."""
        import copy

        with self._lock:
            return copy.deepcopy(self._service.instance)

    @property
    def versions(self) -> "List[str]":
        """The api-versions that it serves, oldest first."""
        return list(self._service.versions)

    def update(self, patch: "Mapping[str, Any]") -> None:
        """Change the running VM by a JSON merge patch (RFC 7386) of its instance document.

        >>> vm.update({"compute": {"tags": "Department:IT"}})

        Raises ValueError, and changes nothing, where a value has the wrong shape.
        """
        with self._lock:
            self._service.update(patch)

    @property
    def identities(self) -> "List[Dict[str, str]]":
        """A copy of the managed identities: dicts of type, clientId, objectId, resourceId. May be set, to
        such dicts or to "system" and "user:NAME"."""
        with self._lock:
            return [dict(identity) for identity in self._service.identities]

    @identities.setter
    def identities(self, identities: "Iterable[Any]") -> None:
        with self._lock:
            self._service.identities = [each if isinstance(each, str) else dict(each) for each in identities]

    def schedule(
        self, kind: str, resources: "Optional[Iterable[str]]" = None, not_before: "Optional[float]" = None,
        duration: "Optional[int]" = None, source: str = "Platform", description: "Optional[str]" = None,
    ) -> str:
        """Schedule an event and return its EventId.

        kind         the EventType, a key of EVENT_TYPES
        resources    names of VMs. None: this one
        not_before   seconds from now, or since 1970. None: the notice that the type is documented to give
        duration     DurationInSeconds. None: the type's
        source       "Platform" or "User"
        description  None: what the service says for that type and source

        It is Scheduled, then Started once it is approved or NotBefore comes, then gone. Raises ValueError
        for what no event has.
        """
        with self._lock:
            return self._service.schedule(kind, resources, not_before, duration, source, description)

    def play(self, scenario: str) -> str:
        """Schedule the event of one of Azure's own scenarios, a key of SCENARIOS; return its EventId."""
        with self._lock:
            return self._service.play(scenario)

    def cancel(self, event_id: str) -> None:
        """Take an event off the list. Raises ValueError where there is none."""
        with self._lock:
            self._service.cancel(event_id)

    def attested(self, nonce: str = "", api_version: str = NEWEST, flaw: "Optional[str]" = None) -> "Dict[str, str]":
        """The attested document as the service answers it; with ``flaw``, a key of FLAWS, one to be refused."""
        with self._lock:
            return self._service.attested(_known(api_version, VERSIONS, "api-version"), nonce,
                                          flaw and _known(flaw, FLAWS, "flaw"))

    def get(self, path: str = "", **settings: "Any") -> "Any":
        """Ask this emulator: ``imds.get`` with its endpoint; all there is in this room of the next."""
        return get(path, endpoint=self.url, **settings)


# ==================================================================================================
# Room 5: client
#
# urllib to a service; knows the core. Never through a proxy, never behind a redirect; an answer is
# checked before it is believed, and asked for again while the service asks for patience.
# ==================================================================================================

TIMEOUT = 2  # seconds to connect, and then for each piece of the answer
DEADLINE = 20  # seconds in all, retries included
GONE_DEADLINE = 70  # the same while the service answers 410: the VM is being moved (documented)
TOKEN_TIMEOUT, EVENTS_TIMEOUT = 10, 120  # the same as TIMEOUT for a new token, for the first list of events
TOKEN_VERSION = "2018-02-01"
MAX_REPLY = 4 * 1024 * 1024  # bytes
RETRIED = {  # and 5xx, never another 4xx; with advice for when it does not help
    408: "try again",
    410: "the VM is being moved; try again in a minute",
    429: "ask less often than 5 times a second",
}

Reply = collections.namedtuple("Reply", "status content_type server date body url")


class Refused(Error):
    """The service understood and said no: 400, 403, 405 and the like. Asking again would not help."""


class Unreachable(Error, OSError):
    """Nobody answered, or not in time. Also an OSError."""

    exit_code = 3


class Unavailable(Error):
    """The service answered, but was throttling, moving or failing until the deadline."""

    exit_code = 4


class NotIMDS(Error):
    """What answers is not the Instance Metadata Service: a captive portal, say, or another cloud's."""

    exit_code = 5


def get(
    path: str = "", *, api_version: "Optional[str]" = None, format: "Optional[str]" = None,
    endpoint: "Optional[str]" = None, timeout: "Optional[float]" = None,
    deadline: "Optional[float]" = None
) -> "Any":
    """Return what the service of this VM says at ``path``: a leaf as str, a container as dict or list.

    path         "compute/vmId", "instance/compute/vmId", "/metadata/instance/compute/vmId", or such a
                 URL; "" is the whole document. With a query it goes to the service as it is, and comes
                 back as JSON parsed or as text
    api_version  None: the newest that this file knows, or else the newest that the service offers
    format       "text": what the service prints with format=text, as str. None, "json": as it is
    endpoint     base URL. None: $AZURE_IMDS_ENDPOINT, or http://169.254.169.254
    timeout      seconds to connect, and then for each piece of the answer. None: 2
    deadline     seconds in all, retries included. None: 20, and 70 while the VM is being moved (410)

    Raises NotFound (a KeyError), Refused, Unreachable (an OSError), Unavailable, NotIMDS, all of them
    Error; ValueError for an endpoint, a URL or a format that can't be used.
    """
    return Client(endpoint, api_version=api_version, timeout=timeout, deadline=deadline).get(path, format=format)


def scheduled_events(endpoint: "Optional[str]" = None) -> "Dict[str, Any]":
    """Return the scheduled events of this VM and its neighbours in an availability set or scale set.

    {"DocumentIncarnation": int, "Events": [{"EventId": str, "EventStatus": "Scheduled" or "Started",
    "EventType": str, "ResourceType": "VirtualMachine", "Resources": [name, ...], "NotBefore": str, "" once
    Started, "Description": str, "EventSource": str, "DurationInSeconds": int}, ...]}; ``parse_time`` reads a
    NotBefore. The first request to a VM may take two minutes (documented). Raises Error.
    """
    return Client(endpoint).scheduled_events()


def approve(*event_ids: str, endpoint: "Optional[str]" = None) -> None:
    """Let scheduled events start now, for all the VMs that they name. Raises Refused for an unknown EventId."""
    Client(endpoint).approve(*event_ids)


def watch_events(interval: float = 1, endpoint: "Optional[str]" = None) -> "Iterator[Dict[str, Any]]":
    """Yield what ``scheduled_events`` returns, now and then whenever it has changed: once for each
    DocumentIncarnation. Asks every ``interval`` seconds, and never more than 5 times a second. It ends with
    the Error that ``scheduled_events`` raises when the service fails for longer than the deadline."""
    return Client(endpoint).watch_events(interval)


def token(
    resource: str, *, client_id: "Optional[str]" = None, object_id: "Optional[str]" = None,
    msi_res_id: "Optional[str]" = None, endpoint: "Optional[str]" = None
) -> str:
    """Return an access token of a managed identity of this VM for ``resource``, "https://vault.azure.net".

    client_id, object_id or msi_res_id says which identity; none of them: the system-assigned one, or else
    the only user-assigned one. A token is kept until five minutes before it expires. Raises Refused
    where there is no such identity, and the other kinds of Error.
    """
    return _shared_client(_endpoint(endpoint)).token(
        resource, client_id=client_id, object_id=object_id, msi_res_id=msi_res_id)


def _endpoint(endpoint: "Optional[str]") -> str:
    return (endpoint or os.environ.get("AZURE_IMDS_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


@functools.lru_cache(maxsize=16)
def _shared_client(endpoint: str) -> "Client":
    return Client(endpoint)


def attested(
    nonce: "Optional[str]" = None, endpoint: "Optional[str]" = None
) -> "Tuple[Dict[str, str], Dict[str, Any]]":
    """Return the attested document, {"encoding": "pkcs7", "signature": base64}, and its decoded content.

    Checked are the nonce, that vmId is this VM's, and that it is valid now; Refused is raised where one
    is not right. NOT checked are the signature and the chain of certificates: the standard library
    can't. Whoever the document is meant for must check them, with openssl for example.
    """
    return Client(endpoint).attested(nonce)


class Client:
    """The service at one endpoint, with the settings of ``get``. It may be used from any thread.

    ``clock`` (monotonic, in seconds), ``sleep`` and ``now`` (seconds since 1970) stand in for those of
    ``time`` in tests.
    """

    def __init__(
        self, endpoint: "Optional[str]" = None, *, api_version: "Optional[str]" = None,
        timeout: "Optional[float]" = None, deadline: "Optional[float]" = None,
        clock: "Callable[[], float]" = time.monotonic,
        sleep: "Callable[[float], None]" = time.sleep, now: "Callable[[], float]" = time.time
    ) -> None:
        self.endpoint = _endpoint(endpoint)
        if not re.match(r"http://([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?$", self.endpoint, re.A):
            raise ValueError("the endpoint must be like http://127.0.0.1:%d, not %r" % (DEFAULT_PORT, self.endpoint))
        if not all(seconds is None or 0 < seconds < 1e6 for seconds in (timeout, deadline)):
            raise ValueError("timeout and deadline must be more than 0 seconds")
        self.api_version, self.timeout, self.deadline = api_version, timeout, deadline
        self._clock, self._sleep, self._now = clock, sleep, now
        self._negotiated, self._events_version = None, EVENTS_NEWEST  # type: Optional[str], str
        self.ahead = 0.0  # seconds by which the clock that NotBefore goes by is ahead of ours
        self._tokens = {}  # type: Dict[str, Tuple[float, Dict[str, str]]]

    def get(self, path: str = "", *, format: "Optional[str]" = None) -> "Any":
        """As ``imds.get``."""
        return self.get_all([path], format=format)[0]

    def get_all(self, paths: "Iterable[str]", *, format: "Optional[str]" = None) -> "List[Any]":
        """As ``get`` for each of ``paths``; the instance document is asked for once."""
        if format not in (None, "json", "text"):
            raise ValueError("format must be 'json' or 'text', not %r" % format)
        begun, document, nodes = self._clock(), None, []  # type: float, Optional[Dict[str, Any]], List[Any]
        for target in [self._target(path) for path in paths]:
            if "?" in target or not target.startswith("/metadata/instance/"):
                node = _content(self._whole(target, begun))
                nodes.append(format_text(node) if format == "text" else node)
                continue
            document = document or self._instance(begun)
            try:
                node = resolve(document, target[len("/metadata/instance/"):])
            except NotFound as error:
                url = self.endpoint + "/metadata/instance"
                raise NotFound("%s (%s at %s)" % (error, url, self.api_version or self._negotiated), url=url) from None
            nodes.append(format_text(node) if format == "text" else node)
        return nodes

    def scheduled_events(self) -> "Dict[str, Any]":
        """Return the list of scheduled events: {"DocumentIncarnation": int, "Events": [dict, ...]}."""
        reply = self._ask_events()
        document = _content(reply)
        try:
            self.ahead = (parse_time(reply.date) or self._now()) - self._now()
            for event in document["Events"]:
                parse_time(event["NotBefore"])
                format_json([event["EventId"], event["EventStatus"], event["EventType"], ",".join(event["Resources"])])
            if document["DocumentIncarnation"] is not None:
                return dict(document)
        except (KeyError, TypeError, ValueError, AttributeError):
            pass
        raise _not_imds(reply, "JSON of another shape")

    def approve(self, *event_ids: str) -> None:
        """Let events start now, for all the VMs that they name. Raises Refused for an unknown EventId."""
        try:
            requests = [{"EventId": event_id} for event_id in event_ids]
            self._ask_events(format_json({"StartRequests": requests}).encode())
        except Refused as error:
            raise Refused("%s; is there such an event (still)? scheduled_events() says" % error,
                          error.status, error.body, error.url) from None

    def _ask_events(self, body: "Optional[bytes]" = None) -> "Reply":
        target = "/metadata/scheduledevents?api-version="
        try:
            return self._ask(target + self._events_version, patience=EVENTS_TIMEOUT, body=body)
        except NotFound:
            if self._events_version == EVENTS_GA:
                raise
            self._events_version = EVENTS_GA  # a service of before the other
            return self._ask(target + EVENTS_GA, patience=EVENTS_TIMEOUT, body=body)

    def watch_events(self, interval: float = 1) -> "Iterator[Dict[str, Any]]":
        """Yield the list of scheduled events as it is now, and again whenever it has changed: once for each
        DocumentIncarnation. Asks every ``interval`` seconds, and never more than 5 times a second."""
        seen = None
        for document in self.poll_events(interval):
            if document.get("DocumentIncarnation") != seen:
                seen = document.get("DocumentIncarnation")
                yield document

    def poll_events(self, interval: float = 1) -> "Iterator[Dict[str, Any]]":
        """Yield the list of scheduled events every ``interval`` seconds."""
        while True:
            yield self.scheduled_events()
            self._sleep(max(interval, 1 / RATE_LIMIT))

    def token(self, resource: str, **selector: "Optional[str]") -> str:
        """Return an access token for ``resource``: see imds.token."""
        return str(self.token_answer(resource, **selector)["access_token"])

    def token_answer(self, resource: str, **selector: "Optional[str]") -> "Dict[str, str]":
        """Return the whole answer: access_token, client_id, expires_in, expires_on, ..., all str. It is kept
        until five minutes before it expires."""
        unknown = set(selector).difference(SELECTORS)
        if unknown:
            raise TypeError("a token takes %s, not %s" % (", ".join(SELECTORS), ", ".join(sorted(unknown))))
        query = [("api-version", TOKEN_VERSION), ("resource", resource)]
        query += sorted((name, value) for name, value in selector.items() if value)
        target = "/metadata/identity/oauth2/token?" + urllib.parse.urlencode(query)
        renewed, answer = self._tokens.get(target, (float("-inf"), {}))
        now = self._clock()
        if now >= renewed:
            reply = self._ask(target, patience=TOKEN_TIMEOUT)
            try:
                answer = _content(reply)
                self._tokens[target] = now + float(answer["expires_in"]) - TOKEN_RENEWED, answer
                answer["access_token"].encode("ascii")
            except (NotIMDS, KeyError, TypeError, ValueError, AttributeError):
                self._tokens.pop(target, None)
                reply = reply._replace(body="")  # a token may be in it
                raise _not_imds(reply, "something that is not a token's answer") from None
        return dict(answer)

    def attested(self, nonce: "Optional[str]" = None) -> "Tuple[Dict[str, str], Dict[str, Any]]":
        """Return the attested document and its content: see imds.attested."""
        query = {"nonce": nonce} if nonce else {}
        reply = self._ask_newest("/metadata/attested/document", query, patience=TOKEN_TIMEOUT)
        document = _content(reply)
        try:
            content = decode_attested(document)
            stamps = [_attested_time(content["timeStamp"][name]) for name in ("createdOn", "expiresOn")]
            signed_nonce, vm_id = content["nonce"], content["vmId"]
        except (ValueError, KeyError, TypeError) as error:
            raise _not_imds(reply, "something that is not an attested document (%s)" % error) from None
        wrong = ""
        if nonce and signed_nonce != nonce:
            wrong = "it answers nonce %r, not %r" % (signed_nonce, nonce)
        elif vm_id != self.get("compute/vmId"):
            wrong = "it is of another VM, %s" % vm_id
        elif not stamps[0] - 300 <= self._now() <= stamps[1]:  # five minutes for clocks that differ
            wrong = "it is valid from %(createdOn)s to %(expiresOn)s, and it is not that now" % content["timeStamp"]
        if wrong:
            raise Refused("the attested document of %s is not to be believed: %s" % (reply.url, wrong),
                          reply.status, reply.body, reply.url)
        return document, content

    def snapshot(self) -> "Dict[str, Any]":
        """Return the whole VM: its instance document, and of scheduledevents, identity (the tenant; never a
        token), loadbalancer and attested what the service has."""
        vm = {"instance": self._instance(self._clock())}
        for part, path in (("scheduledevents", "scheduledevents"), ("identity", "identity/info"),
                           ("loadbalancer", "loadbalancer"), ("attested", "attested/document")):
            try:
                vm[part] = self.get("/metadata/" + path)
            except (NotFound, Refused):
                pass  # this service, or this VM, has none
        return vm

    def _instance(self, begun: float) -> "Dict[str, Any]":
        """The whole instance document."""
        reply = self._ask_newest("/metadata/instance", {}, begun, starting=True)
        document = _content(reply)
        if not isinstance(document, dict) or not isinstance(document.get("compute"), dict):
            raise _not_imds(reply, "text" if isinstance(document, str) else "JSON of another shape")
        return document

    def _whole(self, target: str, begun: float) -> "Reply":
        """The answer to a target as it is; to an endpoint by its name alone, at its newest version."""
        first = ENDPOINTS.get(target[len("/metadata/"):], ((), None))[1]
        if target == "/metadata/scheduledevents":
            return self._ask_events()
        return self._ask_newest(target, {}, begun) if first else self._ask(target, begun)

    def _ask_newest(
        self, path: str, query: "Mapping[str, str]", begun: "Optional[float]" = None, starting: bool = False,
        patience: float = 0,
    ) -> "Reply":
        """Ask at the newest api-version that both sides know, unless one was chosen."""
        version = self.api_version or self._negotiated or NEWEST
        for last in (False, True):
            target = path + "?" + urllib.parse.urlencode(dict({"api-version": version}, **query))
            try:
                reply = self._ask(target, begun, starting, patience)
                break
            except (Refused, NotFound) as error:
                offered = _newest_offered(error)
                if last or self.api_version or not offered or offered == version:
                    raise
                version = offered
        self._negotiated = version
        return reply

    def _target(self, path: str) -> str:
        """The target of a request for ``path``, in whatever form it was written."""
        if re.match(r"\w+://", path):
            origin, slash, rest = path.partition("://")[2].partition("/")
            if "http://" + origin not in (DEFAULT_ENDPOINT, self.endpoint):
                raise ValueError("%r is not at the endpoint %s; to ask another, use endpoint http://%s"
                                 % (path, self.endpoint, origin))
            path = slash + rest
        names, question, query = path.partition("?")
        if names.startswith("/metadata") and (question or not (names + "/").startswith("/metadata/instance/")):
            return path
        below = names.strip("/")
        for prefix in ("metadata", "instance"):
            if (below + "/").startswith(prefix + "/"):
                below = below[len(prefix):].lstrip("/")
        return "/metadata/instance/" + below + question + query

    def _ask(
        self, target: str, begun: "Optional[float]" = None, starting: bool = False, patience: float = 0,
        body: "Optional[bytes]" = None,
    ) -> "Reply":
        """One request and its retries, until the deadline after ``begun``. ``starting``: a 404 means that
        the service is not up yet; ``patience``: the least seconds to wait for an answer."""
        import random
        import socket

        url = self.endpoint + urllib.parse.quote(target, safe="%/:=&?~+!$,;'@()*[]")
        begun = self._clock() if begun is None else begun
        connecting = TIMEOUT if self.timeout is None else self.timeout
        timeout = max(TIMEOUT, patience) if self.timeout is None else self.timeout
        limit, pause = DEADLINE if self.deadline is None else self.deadline, 1.0
        while True:
            until = begun + (max(limit, patience) if self.deadline is None else limit)
            try:
                return _accepted(_fetch(url, connecting, timeout, self._clock, until, body), starting)
            except _TryAgain as again:
                error, first_pause = again.error, 1.0  # type: Error, float
                if error.status == 410 and self.deadline is None:
                    limit = GONE_DEADLINE
            except socket.timeout as problem:
                raise _unreachable(url, problem) from None
            except OSError as problem:
                error, first_pause = _unreachable(url, problem), 0.1
                if not isinstance(problem, ConnectionResetError):  # nobody there: to be said in two seconds
                    limit = min(limit, TIMEOUT)
            wait = first_pause * pause * random.uniform(0.75, 1.25)
            if self._clock() + wait >= begun + limit:
                raise error
            self._sleep(wait)
            pause = min(pause * 2, 8)


class _TryAgain(Exception):
    """What came back asks for patience; ``error`` is what to say when there is none left."""

    def __init__(self, error: "Error") -> None:
        super().__init__(error)
        self.error = error


def _accepted(reply: "Reply", starting: bool) -> "Reply":
    """A reply of status 200, or the Error that it means."""
    status = reply.status
    if status == 200:
        return reply
    if reply.content_type == "text/html" and not reply.server.startswith("Microsoft-IIS") and status < 500:
        raise _not_imds(reply, "an HTML page")
    if status == 404 and starting and "Invalid version" not in reply.body:
        raise _TryAgain(_failure(Unavailable, reply, "the service is not up yet; try again later"))
    if status in RETRIED or status >= 500:
        raise _TryAgain(_failure(Unavailable, reply, RETRIED.get(status, "try again later")))
    if status == 404:
        raise _failure(NotFound, reply, "check the path and the api-version")
    if status >= 400:
        raise _failure(Refused, reply, "check the request")
    raise _not_imds(reply, "a redirect" if 300 <= status < 400 else "that status")


def _content(reply: "Reply") -> "Any":
    """The content of a reply: JSON parsed, or text."""
    if reply.content_type == "application/json":
        try:
            return json.loads(reply.body)
        except (ValueError, RecursionError):
            raise _not_imds(reply, "broken JSON") from None
    if reply.content_type == "text/plain":
        return reply.body
    raise _not_imds(reply, "an HTML page" if reply.content_type == "text/html" else reply.content_type or "no type")


def decode_attested(document: "Mapping[str, str]") -> "Dict[str, Any]":
    """The content of an attested document, {"nonce": str, "timeStamp": {...}, "vmId": str, ...}. Its signature
    is not looked at. Raises ValueError."""
    import base64

    content = json.loads(signed_content(base64.b64decode(document["signature"], validate=True)).decode())
    if not isinstance(content, dict):
        raise ValueError("its content is not an object")
    return content


def _attested_time(text: str) -> float:
    import calendar

    return calendar.timegm(time.strptime(text, ATTESTED_TIME))


def _fetch(
    url: str, connecting: float, timeout: float, clock: "Callable[[], float]", deadline: float,
    body: "Optional[bytes]" = None,
) -> "Reply":
    """One GET, or a POST of ``body``; no proxy, no redirect, no error for a status. ``connecting`` seconds
    to connect, ``timeout`` for each piece of the answer. Raises OSError or NotIMDS."""
    import http.client
    import socket
    import urllib.error
    import urllib.request

    class Socket(socket.socket):
        """A socket that gives up at the deadline, even when bytes keep trickling in."""

        def recv_into(self, *args: "Any") -> int:
            self.settimeout(max(0.001, min(timeout, deadline - clock())))
            return super().recv_into(*args)

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            plain = self.sock
            self.sock = Socket(plain.family, plain.type, plain.proto, plain.detach())
            self.sock.settimeout(timeout)

    class Handler(urllib.request.HTTPHandler):
        def http_open(self, request: "urllib.request.Request") -> "Any":
            return self.do_open(Connection, request)

    opener = urllib.request.OpenerDirector()  # with one handler: nothing that knows of proxies or redirects
    opener.add_handler(Handler())
    headers = {"Metadata": "true", "User-Agent": "imds.py/" + __version__, "Content-Type": "application/json"}
    if body is None:
        del headers["Content-Type"]
    request = urllib.request.Request(url, body, headers)
    try:
        with opener.open(request, timeout=max(0.001, min(connecting, deadline - clock()))) as response:
            chunks, size = [], 0  # type: List[bytes], int
            for chunk in iter(lambda: response.read1(65536), b""):
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_REPLY:
                    raise NotIMDS("%s answered more than %d bytes: what answers is not IMDS" % (url, MAX_REPLY),
                                  response.status, url=url)
            if response.length or not response.headers:  # the connection ended too soon
                raise ConnectionResetError("the answer is cut off")
            content_type = response.headers.get_content_type() if "Content-Type" in response.headers else ""
            return Reply(response.status, content_type, response.headers.get("Server", ""),
                         response.headers.get("Date", ""), b"".join(chunks).decode("utf-8", "replace"), url)
    except http.client.IncompleteRead:
        raise ConnectionResetError("the answer is cut off") from None
    except urllib.error.URLError as error:
        raise (error.reason if isinstance(error.reason, OSError) else error) from None
    except ConnectionError:
        raise
    except http.client.HTTPException as error:
        raise NotIMDS("%s answered something that is not HTTP (%s): what answers is not IMDS"
                      % (url, error or type(error).__name__), url=url) from None


def _unreachable(url: str, error: OSError) -> "Unreachable":
    return Unreachable("nobody answers at %s (%s); on an Azure VM check the route to %s, elsewhere start an emulator "
                       "with 'python3 -m imds serve'" % (url, error.strerror or error, DEFAULT_ENDPOINT), url=url)


def _not_imds(reply: "Reply", what: str) -> "NotIMDS":
    return NotIMDS("%s answered %d with %s: what answers is not IMDS" % (reply.url, reply.status, what),
                   reply.status, reply.body, reply.url)


def _failure(kind: "Type[Error]", reply: "Reply", advice: str) -> "Error":
    said = " ".join(reply.body[:300].split()) or "nothing more"
    return kind("%s answered %d, %s; %s" % (reply.url, reply.status, said, advice), reply.status, reply.body, reply.url)


def _newest_offered(error: "Error") -> "Optional[str]":
    """The newest api-version that a refusal offers: newest-versions says so; services without that list
    answer 404 "Invalid version", and all of them have the first GA version."""
    try:
        offered = json.loads(error.body or "")["newest-versions"]
        return max(str(version) for version in offered if re.match(DATE, version))
    except (ValueError, KeyError, TypeError, RecursionError):
        return FIRST_GA if error.status == 404 and "Invalid version" in (error.body or "") else None


# ==================================================================================================
# Room 6: command line
#
# argparse, printing, exit codes; knows all. Results go to standard output, the rest to standard error.
# ==================================================================================================

USAGE_ERROR = 2
EXIT_CODES = """\
exit codes:
  0  done
  1  the service says no (not found, bad request); diff found a difference; the port is taken
  2  usage: an option, a path or a file that can't be used
  3  nobody answers
  4  throttled or failing, after all retries
  5  what answers is not IMDS
  exec ends with the exit code of its command: 128 + N after signal N, 127 if there is no such command
"""


def main(argv: "Optional[Sequence[str]]" = None) -> int:
    """Run the command line; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = []  # type: List[str]
    if arguments[:1] == ["exec"] and "--" in arguments:
        split = arguments.index("--")
        arguments, command = arguments[:split], arguments[split + 1:]
    elif arguments[:1] == ["exec"] and not {"-h", "--help"}.intersection(arguments):
        arguments = ["exec"]  # which asks for the command
    try:
        options = _parser(arguments).parse_args(arguments)
        options.command = command
        return int(options.run(options) or 0)
    except Error as error:
        return _complain(error, error.exit_code)
    except ValueError as error:
        return _complain(error, USAGE_ERROR)
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _complain(error.strerror or error, 1)
    except KeyboardInterrupt:
        return 130


def _parser(arguments: "Sequence[str]") -> "Any":
    import argparse

    def parser(make: "Callable[..., Any]", name: str, text: str, **more: str) -> "Any":
        return make(name, description=text, epilog=EXIT_CODES,
                    formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    whole = parser(argparse.ArgumentParser, "python3 -m imds",
                   "Client and emulator of the Azure Instance Metadata Service.")
    whole.add_argument("--version", action="version", version="imds " + __version__)
    commands = whole.add_subparsers(metavar="COMMAND", dest="name")
    commands.required = True
    for name, (run, text, options) in COMMANDS.items():
        command = parser(commands.add_parser, name, text, help=text)
        command.set_defaults(run=run)
        for add_options in options if name in arguments else ():  # making them all would cost `get` 4 ms
            add_options(command)
    return whole


def _get_options(command: "Any") -> None:
    command.add_argument("paths", metavar="PATH", nargs="*",
                         help="like compute/vmId, or a URL from the documentation; none is the whole document")
    command.add_argument("--format", choices=("json", "text"), help="print a leaf as JSON, or a container as a listing")
    command.add_argument("--api-version", metavar="DATE",
                         help="default: the newest that is known here, or else the newest that the service offers")


def _client_options(command: "Any") -> None:
    command.add_argument("--endpoint", metavar="URL", help="default: $AZURE_IMDS_ENDPOINT, or " + DEFAULT_ENDPOINT)
    command.add_argument("--timeout", metavar="SECONDS", type=_seconds, help="give up after so long, retries included")


def _events_options(command: "Any") -> None:
    command.add_argument("--json", action="store_true", help="as the service says it, for programs")
    command.add_argument("--watch", action="store_true", help="a line for each change, until interrupted")
    command.add_argument("--interval", metavar="SECONDS", type=_seconds, default=1,
                         help="between two looks (default: 1)")
    command.add_argument("--approve", metavar="ID|all", help="let an event start now")
    command.add_argument("--exec", metavar="CMD", dest="handler",
                         help="with --watch: run CMD for each event of this VM, told about it in $EVENT_ID, _TYPE, "
                              "_STATUS, _RESOURCES, _NOT_BEFORE, _DESCRIPTION, _SOURCE, _DURATION; approve it if CMD "
                              "ends with 0")


def _token_options(command: "Any") -> None:
    command.add_argument("resource", metavar="RESOURCE", help="like https://vault.azure.net")
    for name in ("client-id", "object-id", "msi-res-id"):
        command.add_argument("--" + name, metavar="ID", help="which identity")
    command.add_argument("--json", action="store_true", help="the whole answer")


def _attested_options(command: "Any") -> None:
    command.add_argument("--nonce", metavar="TEXT", help="to be found in it; at most %d characters" % MAX_NONCE)
    command.add_argument("--content", action="store_true", help="print what it says")
    command.add_argument("--der", action="store_true", help="print its PKCS#7 as bytes, for openssl")


def _snapshot_options(command: "Any") -> None:
    command.add_argument("--redact", action="store_true", help="with stand-ins for ids, names, addresses and keys")


def _diff_options(command: "Any") -> None:
    for name in ("A", "B"):
        command.add_argument(name, help="a file, or the URL of an endpoint")


def _serve_options(command: "Any") -> None:
    command.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 is a free one (default: %(default)s)")


def _exec_options(command: "Any") -> None:
    command.usage = "%(prog)s [OPTIONS] [VM.json] -- COMMAND ..."
    command.add_argument("--port", type=int, default=0, help="default: a free one")


def _emulator_options(command: "Any") -> None:
    command.add_argument("document", metavar="VM.json", nargs="?",
                         help="what /metadata/instance returns, of a real VM for example, or what snapshot prints; "
                              "- is standard input")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    command.add_argument("--profile", help="built-in VM: %s (default: linux)" % ", ".join(VMS))
    command.add_argument("--set", metavar="NAME=VALUE", action="append", default=[],
                         help="change a value of the VM, like compute.vmSize=Standard_D4s_v5 (repeatable)")
    command.add_argument("--cloud", help="azEnvironment: %s" % ", ".join(CLOUDS))
    command.add_argument("--as-of", metavar="YEAR", help="2018: the service of the 2018 document")
    command.add_argument("--api-versions", metavar="DATE,...", help="serve only these")
    command.add_argument("--rate-limit", metavar="N", type=float,
                         help="requests a second, as many at once; 20 for tokens (default: no limit)")
    command.add_argument("--event", metavar="TYPE[:KEY=VALUE,...]", action="append", default=[],
                         help="schedule an event, like Preempt:in=30s,resources=web_1+web_2; keys: in, resources, "
                              "duration, source, description (repeatable)")
    command.add_argument("--scenario", action="append", default=[], help="schedule: %s" % ", ".join(SCENARIOS))
    command.add_argument("--identity", metavar="system|user:NAME|none", action="append",
                         help="a managed identity that it has (repeatable; default: system)")
    command.add_argument("--load-balancer", action="store_true", help="put it behind a load balancer")
    command.add_argument("--attested-flaw", metavar="NAME",
                         help="give attested documents that must be refused: %s"
                              % "; ".join("%s, %s" % flaw for flaw in FLAWS.items()))
    command.add_argument("--time-scale", metavar="N", type=_seconds, default=1,
                         help="let its time run so many times as fast")
    command.add_argument("--quiet", action="store_true", help="no access log (exec has none)")


def _seconds(text: str) -> float:
    import argparse

    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError("must be a number, more than 0, not %r" % text)
    return seconds


def _client(options: "Any") -> "Client":
    return Client(options.endpoint, api_version=getattr(options, "api_version", None),
                  timeout=options.timeout, deadline=options.timeout)


def _run_get(options: "Any") -> None:
    for node in _client(options).get_all(options.paths or [""], format=options.format):
        _print(node if isinstance(node, str) and options.format != "json" else _json(node))


def _run_events(options: "Any") -> None:
    client = _client(options)
    if options.handler and not options.watch:
        raise ValueError("--exec goes with --watch")
    if options.approve is not None:
        waiting = [event for event in client.scheduled_events()["Events"] if event.get("EventStatus") == "Scheduled"]
        ids = [event["EventId"] for event in waiting] if options.approve == "all" else [options.approve]
        if ids:
            client.approve(*ids)
    if options.watch:
        _watch(client, options)
    elif options.json:
        _print(_json(client.scheduled_events()))
    elif options.approve is None:
        events = client.scheduled_events()["Events"]
        _print("\n".join(_event_line(event, client) for event in events) or "no scheduled events")


def _watch(client: "Client", options: "Any") -> None:
    """Print a line for each event that comes, changes or goes; run the handler for those of this VM."""
    import shutil
    import subprocess

    name = client.get("compute/name") if options.handler else None  # of no VM: no handler
    interval = max(options.interval, 2 / RATE_LIMIT)  # a look, and perhaps an approval
    known, handlers, handled = {}, {}, set()  # type: Dict[str, Any], Dict[str, Any], set[str]
    live = sys.stdout.isatty() and not options.json
    incarnation = None
    try:
        for document in client.poll_events(interval):
            events = {event["EventId"]: event for event in document["Events"]}
            if live:
                sys.stdout.write("\r\x1b[K")
            if options.json and document["DocumentIncarnation"] != incarnation:
                _print(format_json(document))
            incarnation = document["DocumentIncarnation"]
            for event_id in list(events) + [gone for gone in known if gone not in events]:
                event = events.get(event_id) or dict(known[event_id], EventStatus="Gone", NotBefore="")
                if event != known.get(event_id) and not options.json:
                    _print(_event_line(event, client))
                if name in event["Resources"] and event_id in events and event_id not in handled:
                    handled.add(event_id)
                    handlers[event_id] = subprocess.Popen(options.handler, shell=True, env=_event_environment(event))
            known = events
            ended = [event_id for event_id, handler in handlers.items() if handler.poll() is not None]
            done = [event_id for event_id in ended if handlers[event_id].returncode == 0
                    and events.get(event_id, {}).get("EventStatus") == "Scheduled"]
            for event_id in ended:
                _report(handlers.pop(event_id), event_id)
            if done:
                try:
                    client.approve(*done)
                except Refused as error:  # gone in the meantime: no reason to stop watching
                    _log("imds: %s" % error)
            coming = [event for event in known.values() if event["NotBefore"]]
            if live and coming:
                soonest = min(coming, key=lambda event: parse_time(event["NotBefore"]) or 0)
                line = "%s of %s %s" % (soonest["EventType"], ",".join(soonest["Resources"]), _left(soonest, client))
                sys.stdout.write(one_line(line)[:shutil.get_terminal_size().columns - 1])
                sys.stdout.flush()
    finally:
        for event_id, handler in handlers.items():  # what it began it should end
            handler.wait()
            _report(handler, event_id)


def _report(handler: "Any", event_id: str) -> None:
    if handler.returncode:
        _log("imds: %s ended with %d; event %s is not approved" % (handler.args, handler.returncode, event_id))


def _event_line(event: "Mapping[str, Any]", client: "Client") -> str:
    """An event for people: its status, type, the time that is left, its id, VMs and description."""
    return printable("%-9s  %-9s  %-9s  %s  %s  %s" % (
        event["EventStatus"], event["EventType"], _left(event, client), event["EventId"],
        ",".join(event["Resources"]), event.get("Description", ""))).rstrip()


def _left(event: "Mapping[str, Any]", client: "Client") -> str:
    """The time until NotBefore, by the service's clock."""
    not_before = parse_time(event["NotBefore"])
    return "" if not_before is None else "in %d:%02d" % divmod(
        max(0, int(not_before - time.time() - client.ahead)), 60)


def _event_environment(event: "Mapping[str, Any]") -> "Dict[str, str]":
    names = {"ID": "EventId", "TYPE": "EventType", "STATUS": "EventStatus", "NOT_BEFORE": "NotBefore",
             "DESCRIPTION": "Description", "SOURCE": "EventSource", "DURATION": "DurationInSeconds"}
    environment = dict(os.environ, EVENT_RESOURCES=" ".join(event.get("Resources", [])))
    environment.update(("EVENT_" + name, str(event.get(field, ""))) for name, field in names.items())
    return {name: value.replace("\0", "") for name, value in environment.items()}


def _run_token(options: "Any") -> None:
    answer = _client(options).token_answer(options.resource, client_id=options.client_id,
                                           object_id=options.object_id, msi_res_id=options.msi_res_id)
    _print(_json(answer) if options.json else answer["access_token"])


def _run_attested(options: "Any") -> None:
    import base64

    document, content = _client(options).attested(options.nonce)
    if options.der:
        sys.stdout.buffer.write(base64.b64decode(document["signature"]))
        sys.stdout.buffer.flush()
    else:
        _print(_json(content if options.content else document))


def _run_snapshot(options: "Any") -> None:
    vm = _client(options).snapshot()
    _print(format_json(redact(vm) if options.redact else vm, 2))


def _run_diff(options: "Any") -> int:
    vms = []  # type: List[Dict[str, Any]]
    for name in (options.A, options.B):
        vm = Client(name).snapshot() if name.startswith("http://") else _read_json(name)
        parts = {part: node for part, node in split_document(vm).items() if node is not None}
        parts.pop("attested", None)  # it is another one each time
        vms.append(parts)
    if not all(set(vm).difference(("instance",)) for vm in vms):  # one has nothing else: compare no more
        vms = [{"instance": vm["instance"]} for vm in vms]
    one, other = vms
    count = 0
    for path, before, after in diff(one, other):
        _print("%s: %s -> %s" % (path, _shown(before), _shown(after)))
        count += 1
    return 1 if count else 0


def _shown(value: "Any") -> str:
    return "(absent)" if value is None else format_json(value)


def _json(node: "Any") -> str:
    """JSON, indented for people."""
    return format_json(node, 2 if sys.stdout.isatty() else None)


def _run_serve(options: "Any") -> int:
    import signal

    def interrupt(*_: object) -> "NoReturn":
        raise KeyboardInterrupt

    vm = _emulator(options)
    try:
        signal.signal(signal.SIGTERM, interrupt)
        _start(vm, options)
        compute = vm.instance["compute"]
        _log("serving %s, %s in %s; stop with Ctrl-C. Try:\n"
             "  curl --noproxy '*' -s -H Metadata:true '%s/metadata/instance?api-version=%s'\n"
             "  export AZURE_IMDS_ENDPOINT=%s AZURE_POD_IDENTITY_AUTHORITY_HOST=%s"
             % (compute["name"] or "a VM", compute["vmSize"] or "of no size", compute["location"] or "no location",
                vm.url, vm.versions[-1], vm.url, vm.url))
        _print(vm.url)
        vm.wait()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is ending already
    finally:
        vm.stop()
    return 0


def _run_exec(options: "Any") -> int:
    import signal
    import subprocess

    if not options.command:
        raise ValueError("what is to be run? exec [OPTIONS] -- COMMAND ...")
    vm = _emulator(options)
    children, ending = [], []  # type: List[Any], List[bool]

    def end(*_: object) -> None:
        ending.append(True)
        for child in children:
            child.terminate()

    try:
        _start(vm, options)
        environment = dict(os.environ, AZURE_IMDS_ENDPOINT=vm.url, AZURE_POD_IDENTITY_AUTHORITY_HOST=vm.url)
        signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to the command, too
        signal.signal(signal.SIGTERM, end)
        try:
            children.append(subprocess.Popen(options.command, env=environment))
        except OSError as error:
            return _complain("%s: %s" % (options.command[0], error.strerror), 126 if error.errno == 13 else 127)
        if ending:  # while it was being started
            end()
        code = int(children[0].wait())
        return code if code >= 0 else 128 - code
    finally:
        vm.stop()


def _emulator(options: "Any") -> "Emulator":
    document = VMS[_known(options.profile or "linux", VMS, "profile")]
    if options.document is not None:
        if options.profile:
            raise ValueError("a file or --profile, not both")
        document = _read_json(options.document)
        if not {"instance", "compute", "network"}.intersection(document):
            raise ValueError("%s is not a VM: save the whole of what /metadata/instance returns, or of what snapshot "
                             "prints" % options.document)
    try:
        parts = split_document(document)
        parts["instance"] = complete(parts["instance"])
    except ValueError as error:
        raise ValueError("%s is not a VM: %s" % (options.document, error)) from None
    for setting in options.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError("--set takes NAME=VALUE, like compute.vmSize=Standard_D4s_v5, not %r" % setting)
        assign(parts["instance"], name, value)
        parts["instance"] = complete(parts["instance"])
    vm = Emulator(
        parts, host=options.host, port=options.port, rate_limit=options.rate_limit, cloud=options.cloud,
        versions=options.api_versions and options.api_versions.split(","), as_of=options.as_of,
        log=None if options.quiet or options.name == "exec" else _log_request,
        clock=Clock(time.time, options.time_scale),
        identities=options.identity and [each for each in options.identity if each != "none"],
        load_balancer=options.load_balancer, attested_flaw=options.attested_flaw)
    for event in options.event:
        vm.schedule(**_event(event))
    for scenario in options.scenario:
        vm.play(scenario)
    return vm


def _event(text: str) -> "Dict[str, Any]":
    """What --event says, as the arguments of Emulator.schedule."""
    kind, _, rest = text.partition(":")
    event = {"kind": kind}  # type: Dict[str, Any]
    readers = {"in": ("not_before", _duration), "resources": ("resources", lambda names: names.split("+")),
               "duration": ("duration", lambda seconds: int(_duration(seconds))), "source": ("source", str),
               "description": ("description", str)}  # type: Dict[str, Tuple[str, Callable[[str], Any]]]
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        name, reader = readers[_known(key, readers, "key of --event")]
        event[name] = reader(value)
    return event


def _duration(text: str) -> float:
    found = re.match(r"(-?[0-9]+(?:\.[0-9]+)?)([smh]?)$", text)
    if not found:
        raise ValueError("a time is like 30s, 15m or 1h, not %r" % text)
    return float(found.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[found.group(2)]


def _start(vm: "Emulator", options: "Any") -> None:
    try:
        vm.start()
    except (OSError, OverflowError) as error:
        raise Error("can't listen on %s port %d (%s); choose another with --port, or --port 0 for a free one"
                    % (options.host, options.port, getattr(error, "strerror", None) or error)) from None
    if options.host != "localhost" and options.host != "::1" and not options.host.startswith("127."):
        _log("warning: %s is not loopback; whoever reaches this machine can read what is served" % options.host)


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


def _print(text: str) -> None:
    """Print a result, as UTF-8 whatever the locale."""
    if not sys.stdout:
        raise OSError("standard output is closed")
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.buffer.flush()


def _log(line: str) -> None:
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # full, closed or absent: nobody there to be told
        pass


def _log_request(line: str) -> None:
    """A line of the access log; lost where nobody empties the pipe that standard error is, for no client
    may wait for that."""
    import select

    try:
        ready = bool(select.select([], [sys.stderr], [], 0)[1])
    except (OSError, ValueError, TypeError):  # nothing that can be asked, as on Windows
        ready = True
    if ready:
        _log(line)


def _complain(error: object, code: int) -> int:
    _log("imds: %s" % error)
    return code


def _run_test_ca(options: "Any") -> None:
    _print(test_ca().rstrip())


# What runs, what the help says of it, and what adds its options.
COMMANDS = {
    "get": (_run_get, "print what the service says", (_get_options, _client_options)),
    "events": (_run_events, "print, watch and approve scheduled events", (_events_options, _client_options)),
    "token": (_run_token, "print an access token of a managed identity", (_token_options, _client_options)),
    "attested": (_run_attested, "print the attested document; its signature is not checked",
                 (_attested_options, _client_options)),
    "snapshot": (_run_snapshot, "print the whole VM as JSON, for serve; no token is in it",
                 (_snapshot_options, _client_options)),
    "diff": (_run_diff, "print what differs between two VMs, path by path; exit code 1 if anything does",
             (_diff_options,)),
    "serve": (_run_serve, "emulate the service until interrupted", (_serve_options, _emulator_options)),
    "exec": (_run_exec, "run a command against an emulator of its own: exec [OPTIONS] -- COMMAND ...",
             (_exec_options, _emulator_options)),
    "test-ca": (_run_test_ca, "print the certificate of the authority behind the emulator's attested documents", ()),
}  # type: Dict[str, Tuple[Callable[[Any], Any], str, Sequence[Callable[[Any], None]]]]


if __name__ == "__main__":
    sys.exit(main())
