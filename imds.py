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
    4 emulator      http.server around the service
    5 client        urllib to a service
    6 command line  argparse, printing, exit codes
"""

import collections
import functools
import http
import itertools
import json
import os
import sys
import time
import urllib.error
import urllib.parse

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is at run time, without the import
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Mapping, NoReturn, Optional, Sequence, Tuple, Type

__version__ = "0.1.0"
__all__ = [
    "Client", "Emulator", "Error", "NotFound", "NotIMDS", "Refused", "Unavailable", "Unreachable",
    "format_text", "get", "resolve",
]


# ==================================================================================================
# Room 1: contract
#
# What the service is, as data: no logic, no imports. "Documented" is Microsoft's article on the
# Instance Metadata Service; "observed" is what the real service was seen to send.
# ==================================================================================================

# Every documented api-version and the fields it added to /metadata/instance. A name with {} is an
# object, with [{}] a list of objects, alone a string; `:bool` is the one JSON boolean there is.
# The first line is the preview with its own shape; the second starts what all later ones add to.
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
PREVIEW, FIRST_GA, NEWEST = "2017-03-01", "2017-04-02", "2025-04-07"

# What the preview called the fields of today.
PREVIEW_NAMES = {
    "ipAddress": "ipaddress",
    "privateIpAddress": "ipaddress",
    "publicIpAddress": "publicip",
    "macAddress": "mac",
}

# The value of azEnvironment, and the versions that the document of early 2018 lists for that cloud.
CLOUDS = {
    "AzurePublicCloud": ("2017-04-02", "2017-08-01", "2017-12-01", "2018-02-01"),
    "AzureUSGovernmentCloud": ("2017-04-02", "2017-08-01"),
    "AzureChinaCloud": ("2017-04-02", "2017-08-01"),
    "AzureGermanCloud": ("2017-04-02", "2017-08-01"),
}

# Path under /metadata: the verbs it takes and the api-version that introduced it (None: it has no versions).
ENDPOINTS = {
    "instance": (("GET",), "2017-03-01"),
    "versions": (("GET",), None),
}

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

# Why a request is refused: status, the words for the access log, the body of the instance service and,
# where the identity service has words of its own, those. The blanks are the service's. $verb and
# $newest stand for the request's verb and the three newest versions served.
BAD_REQUEST = '{ "error": "Bad request" }'
IDENTITY_BAD_REQUEST = '{"error":"invalid_request","error_description":"Bad request"}'
REFUSALS = {
    "verb": (405, "verb not allowed", '{ "error": "Not allowed" }', '{"error":"Not allowed"}'),
    "outside-verb": (400, "verb not supported", VERB_BODY, None),
    "outside": (404, "outside /metadata", OUTSIDE_BODY, None),
    "metadata": (400, "Metadata header missing",
                 '{ "error": "Bad request: . Required metadata header not specified" }',
                 '{"error":"invalid_request","error_description":"Required metadata header not specified"}'),
    "forwarded": (400, "X-Forwarded-For header present", BAD_REQUEST, IDENTITY_BAD_REQUEST),
    "target": (400, "percent-encoding not valid", BAD_REQUEST, IDENTITY_BAD_REQUEST),
    "duplicate": (400, "query parameter given twice", BAD_REQUEST, IDENTITY_BAD_REQUEST),
    "version": (400, "api-version missing or unknown",
                '{"error":"Bad request. api-version is invalid or was not specified in the request.'
                ' For more information refer to aka.ms/azureimds","newest-versions":$newest}', None),
    "version-missing-2018": (400, "api-version missing",
                             '{"error":"Bad request. api-version was not specified in the request.'
                             ' For more information refer to aka.ms/azureimds","newest-versions":$newest}', None),
    "version-unknown-2018": (404, "api-version unknown", '{ "error": "Not found. Invalid version requested" }', None),
    "path": (404, "not found", '{ "error": "Not found" }', '{"error":"Not Found"}'),
    "format": (400, "format unknown", BAD_REQUEST, IDENTITY_BAD_REQUEST),
    "leaf": (400, "a leaf needs format=text", BAD_REQUEST, None),
    "throttled": (429, "throttled", '{ "error": "Too many requests" }',
                  '{"error":"invalid_request","error_description":"Temporarily throttled, too many requests"}'),
    "throttled-text": (429, "throttled", "Too many requests", None),
    # For what can't be read as a request; statuses of RFC 9110 and 6585, words of our own.
    "malformed": (400, "not an HTTP request", BAD_REQUEST, None),
    "slow": (408, "request took too long", '{ "error": "Request timeout" }', None),
    "body-size": (413, "body too large", '{ "error": "Request body too large" }', None),
    "line-size": (414, "request line too long", '{ "error": "Request line too long" }', None),
    "headers-size": (431, "headers too large", '{ "error": "Request headers too large" }', None),
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

# Requests a second that the documentation allows: in all, and to the identity service.
RATE_LIMIT, IDENTITY_RATE_LIMIT = 5, 20

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
            "ipv6": {"ipAddress": [{"privateIpAddress": "fd00:db8:deca::5"}]},
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
        super().__init__(message)
        self.message, self.status, self.body, self.url = message, status, body, url

    def __str__(self) -> str:  # KeyError would print a repr, OSError nothing
        return self.message


class NotFound(Error, KeyError):
    """There is no such path in the document or in the service. Also a KeyError."""


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
    nearest = difflib.get_close_matches(wanted, paths, n=1, cutoff=0.75)
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
    known = _template(NEWEST)
    return dict(_project(document, known, known, "instance"))


def view(document: "Dict[str, Any]", version: str, extended: bool = False) -> "Dict[str, Any]":
    """Return ``document`` as an api-version shows it: without the fields that came later, in
    alphabetical order, and with ``extended`` only where it was asked for."""
    known = _template(NEWEST)
    if version == PREVIEW:
        document, known = _rename(document), _rename(known)
    seen = dict(_project(document, _template(version), known, "instance"))
    if not extended:
        seen.pop("extended", None)
    return seen


@functools.lru_cache(maxsize=None)
def _template(version: str) -> "Dict[str, Any]":
    """The empty document of an api-version: all the fields it knows, with "" or [one empty item]."""
    if version == PREVIEW:
        return _fields(VERSIONS[PREVIEW])
    template = {}  # type: Dict[str, Any]
    for since, text in VERSIONS.items():
        if PREVIEW < since <= version:
            _add(template, _fields(text))
    return template


def _fields(text: str) -> "Dict[str, Any]":
    """'a b{c} d[{e:bool}]', a row of VERSIONS -> {"a": "", "b": {"c": ""}, "d": [{"e": False}]}"""
    for mark, token in ("[{", " [ "), ("}]", " ] "), ("{", " { "), ("}", " } "):
        text = text.replace(mark, token)
    name, open_containers = "", [{}]  # type: Tuple[str, List[Dict[str, Any]]]
    for token in text.split():
        if token in "{[":
            inner = {}  # type: Dict[str, Any]
            open_containers[-1][name] = inner if token == "{" else [inner]
            open_containers.append(inner)
        elif token in "}]":
            open_containers.pop()
        else:
            name, _, kind = token.partition(":")
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
    path = name.replace(".", "/")
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


# ==================================================================================================
# Room 3: service
#
# One request in, one response out; knows the core. No sockets, no threads, and no clock of its own:
# it is given one. The rules of the service stand in Service._answer, in the order in which they apply.
# ==================================================================================================

# verb: str; target: str, path and query as sent; headers: names in lower case -> value, where a
# repeated header's values are joined by commas; body: bytes.
Request = collections.namedtuple("Request", "verb target headers body")

# status: int; headers: list of (name, value), in order; body: bytes; note: str, why it was refused.
Response = collections.namedtuple("Response", "status headers body note")

# A target taken apart. path: its names; endpoint: the row of ENDPOINTS they begin with, or None;
# query: dict; problem: the row of REFUSALS that the target itself deserves, or None.
Target = collections.namedtuple("Target", "path endpoint query problem")


@functools.lru_cache(maxsize=1024)
def parse_target(target: str) -> "Target":
    """Take a request's target apart: percent-decoded once, without doubled slashes and dots, so that
    ".." never leaves the tree."""
    if target[:7].lower() == "http://":  # the form for proxies, which every server has to accept
        target = "/" + target[7:].partition("/")[2]
    raw_path, _, raw_query = target.partition("?")
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
        names, problem = names or ["metadata"], "target"
    below = "/".join(names[1:]) + "/"
    endpoint = next((known for known in ENDPOINTS if below.startswith(known + "/")), None)
    return Target(tuple(names), endpoint if names[:1] == ["metadata"] else None, query, problem)


def _decode(text: str) -> str:
    decoded = urllib.parse.unquote_to_bytes(text).decode("utf-8")
    if "\0" in decoded:
        raise ValueError("a NUL is in %r" % text)
    return decoded


class _Refusal(Exception):
    """A row of REFUSALS that applies."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


class _Bucket:
    """A token bucket: ``rate`` requests a second, refilled all the time, as many at once (at least one)."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate, self.size = rate, max(rate, 1)
        self.tokens, self.when = self.size, now

    def take(self, now: float) -> bool:
        self.tokens = min(self.size, self.tokens + (now - self.when) * self.rate)
        self.when = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Service:
    """The service of one VM. ``clock`` returns the time in seconds since 1970; the rest is as for
    Emulator. Raises ValueError for a value that can't be served."""

    def __init__(
        self, clock: "Callable[[], float]", instance: "Optional[Dict[str, Any]]" = None, profile: str = "linux",
        cloud: "Optional[str]" = None, versions: "Optional[Iterable[str]]" = None, as_of: "Optional[str]" = None,
        rate_limit: "Optional[float]" = None,
    ) -> None:
        if as_of not in (None, "2018"):
            raise ValueError("as_of must be '2018' or nothing, not %r" % as_of)
        self.in_2018 = as_of == "2018"
        self.clock = clock
        self.instance = complete(VMS[_known(profile, VMS, "profile")] if instance is None else instance)
        if cloud is not None:
            self.instance["compute"]["azEnvironment"] = _known(cloud, CLOUDS, "cloud")
        served = tuple(VERSIONS)  # type: Sequence[str]
        if self.in_2018:
            served = CLOUDS.get(self.instance["compute"]["azEnvironment"], CLOUDS["AzurePublicCloud"])
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
        self._bucket = _Bucket(rate_limit, clock()) if rate_limit else None
        self._views = {}  # type: Dict[Tuple[str, bool], Dict[str, Any]]
        self._pages = {}  # type: Dict[str, Tuple[str, bytes]]
        self._date = (0, "")
        self._request_ids = ("%08x-0000-4000-8000-%012x" % (int(clock()), n) for n in itertools.count(1))

    def update(self, patch: "Mapping[str, Any]") -> None:
        """Change the running VM by a JSON merge patch (RFC 7386) of its instance document."""
        self.instance = complete(merge_patch(self.instance, patch))
        self._views, self._pages = {}, {}

    def respond(self, request: "Request") -> "Response":
        """Answer one request."""
        try:
            return self._response(200, *self._answer(request, parse_target(request.target)))
        except _Refusal as refusal:
            return self.refuse(refusal.rule, request)

    def _answer(self, request: "Request", asked: "Target") -> "Tuple[str, bytes]":
        """The content type and body of an answer, or a _Refusal: every rule, in the order of the service."""
        path, endpoint, query, headers = asked.path, asked.endpoint, asked.query, request.headers
        inside = path[:1] == ("metadata",)
        has_header = all(value.strip().lower() == "true" for value in headers.get("metadata", "").split(","))
        if request.verb not in _verbs(endpoint):
            raise _Refusal("verb" if inside else "outside-verb")
        if not inside:  # GET / without the header is 400: a detector relies on it
            raise _Refusal("outside" if path or has_header else "metadata")
        throttled = self._bucket is not None and not self._bucket.take(self.clock())  # what is refused counts, too
        if not has_header:
            raise _Refusal("metadata")
        if "x-forwarded-for" in headers:
            raise _Refusal("forwarded")
        if asked.problem:
            raise _Refusal(asked.problem)
        if endpoint != "versions" or self.in_2018:
            self._check_version(query.get("api-version"))
        page = self._pages.get(request.target) or self._page(request.target, asked)  # path, then format
        if throttled:
            raise _Refusal("throttled-text" if page[0] == TEXT_TYPE else "throttled")
        return page

    def _check_version(self, version: "Optional[str]") -> None:
        if version in self.versions:
            return
        if not self.in_2018:
            raise _Refusal("version")
        raise _Refusal("version-missing-2018" if version is None else "version-unknown-2018")

    def _page(self, target: str, asked: "Target") -> "Tuple[str, bytes]":
        """The content type and body of what a target shows, kept for as long as the document is the same."""
        form = asked.query.get("format", "json")
        node = self._node(asked)
        if asked.endpoint == "versions":  # it has one form, whatever is asked for
            form = "json"
        if form not in ("json", "text"):
            raise _Refusal("format")
        if form == "json" and not isinstance(node, (dict, list)):
            raise _Refusal("leaf")
        page = (TEXT_TYPE, format_text(node).encode()) if form == "text" else (JSON_TYPE, format_json(node).encode())
        if len(self._pages) >= 1000:  # targets can be made up without end
            self._pages.clear()
        self._pages[target] = page
        return page

    def _node(self, asked: "Target") -> "Any":
        """The node that a target names."""
        path, query = asked.path[1:], asked.query
        if asked.endpoint == "instance":
            key = query["api-version"], query.get("extended", "").lower() == "true"
            if key not in self._views:
                self._views[key] = view(self.instance, *key)
            try:
                return find(self._views[key], path[1:])
            except KeyError:
                raise _Refusal("path") from None
        if path == ("versions",) and not self.in_2018:
            return {"apiVersions": self.versions}
        if path == () and query.get("format", "json") != "json":  # /metadata has a listing, but no document
            return {"instance": {}}
        raise _Refusal("path")

    def refuse(self, rule: str, request: "Optional[Request]" = None) -> "Response":
        """The response of a row of REFUSALS; ``request`` is None when it could not be read."""
        status, note, body, identity_body = REFUSALS[rule]
        extra = []  # type: List[Tuple[str, str]]
        if request:
            asked = parse_target(request.target)
            if identity_body and asked.path[1:2] == ("identity",):
                body = identity_body
            if status == 405:
                extra = [("Allow", ", ".join(_verbs(asked.endpoint)))]
            body = body.replace("$verb", request.verb).replace("$newest", format_json(self.versions[:-4:-1]))
        content_type = next((CONTENT_TYPES[start] for start in CONTENT_TYPES if body.startswith(start)), TEXT_TYPE)
        return self._response(status, content_type, body.encode(), note, extra)

    def _response(
        self, status: int, content_type: str, body: bytes, note: str = "", extra: "Sequence[Tuple[str, str]]" = (),
    ) -> "Response":
        now = int(self.clock())
        if self._date[0] != now:
            from email.utils import formatdate

            self._date = now, formatdate(now, usegmt=True)
        values = {
            "Content-Type": content_type,
            "Server": IIS_SERVER if content_type in (XML_TYPE, HTML_TYPE) else IMDS_SERVER,
            "x-ms-request-id": next(self._request_ids),
            "Date": self._date[1],
            "Content-Length": str(len(body)),
        }
        return Response(status, [(name, values[name]) for name in HEADERS[content_type]] + list(extra), body, note)


def _verbs(endpoint: "Optional[str]") -> "Tuple[str, ...]":
    return ENDPOINTS[endpoint][0] if endpoint else ("GET", "POST")


def _known(name: str, names: "Iterable[str]", kind: str) -> str:
    """``name``, if it is one of ``names``; else a ValueError that suggests the right one."""
    import difflib

    if name in names:
        return name
    nearest = difflib.get_close_matches(name.lower(), {known.lower(): known for known in names}, n=1, cutoff=0.5)
    right = [known for known in names if known.lower() in nearest]
    raise ValueError("there is no %s %r; %s" % (
        kind, name, "did you mean %s?" % right[0] if right else "there are " + ", ".join(names)))


# ==================================================================================================
# Room 4: emulator
#
# http.server around the service: sockets, threads, start and stop; knows the service. HTTP itself is
# a pure machine, bytes in and bytes out (_Conversation). One thread serves every connection: no
# client waits for another that stalls, and an open connection costs a few kilobytes.
# ==================================================================================================

DEFAULT_PORT = 8169
MAX_LINE, MAX_HEADERS, MAX_BODY = 8 * 1024, 64 * 1024, 64 * 1024  # bytes
REQUEST_TIME, IDLE_TIME, LINGER_TIME = 10, 120, 1  # seconds: to send a request, between two, to read a refusal
TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def read_head(data: bytes) -> "Optional[Tuple[Tuple[str, str, str], Dict[str, str], int]]":
    """Read the head of a request: its line (verb, target, version), its headers (names in lower case,
    repeated ones joined by commas) and its size; None while it is incomplete."""
    end, gap = data.find(b"\r\n\r\n"), 4
    if end < 0:  # typed by hand, perhaps
        end, gap = data.find(b"\n\n"), 2
    line_size = data.find(b"\n") if b"\n" in data else len(data)
    if line_size > MAX_LINE + 1:
        raise _Refusal("line-size")
    if (len(data) if end < 0 else end) - line_size > MAX_HEADERS:
        raise _Refusal("headers-size")
    if end < 0:
        return None
    lines = data[:end].decode("latin-1").replace("\r\n", "\n").split("\n")
    headers = {}  # type: Dict[str, str]
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not (name and colon and TOKEN.issuperset(name)) or "\r" in value or "\0" in value:
            raise _Refusal("malformed")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = headers[name] + "," + value if name in headers else value
    return _read_line(lines[0]), headers, end + gap


@functools.lru_cache(maxsize=1024)
def _read_line(line: str) -> "Tuple[str, str, str]":
    words = line.split(" ")
    if len(words) != 3 or not words[0] or not TOKEN.issuperset(words[0]) or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise _Refusal("malformed")
    if not words[1].lower().startswith(("/", "http://", "*")) or not all("!" <= char <= "~" for char in words[1]):
        raise _Refusal("malformed")
    return words[0], words[1], words[2]


def read_body(headers: "Mapping[str, str]", data: bytes, start: int) -> "Optional[Tuple[bytes, int]]":
    """Read the body that begins at ``start``, and where it ends; None while it is incomplete."""
    if "transfer-encoding" in headers:
        if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers:
            raise _Refusal("malformed")
        return _read_chunks(data, start)
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise _Refusal("malformed")
    if len(length) > 9 or int(length) > MAX_BODY:
        raise _Refusal("body-size")
    end = start + int(length)
    return (data[start:end], end) if len(data) >= end else None


def _read_chunks(data: bytes, start: int) -> "Optional[Tuple[bytes, int]]":
    chunks, at, total = [], start, 0  # type: List[bytes], int, int
    while True:
        line_end = data.find(b"\r\n", at)
        digits = data[at:line_end if line_end >= 0 else len(data)].partition(b";")[0].strip(b" \t")
        if len(digits) > 8 or digits.strip(b"0123456789abcdefABCDEF"):
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
        if total > MAX_BODY or len(data) < chunk_end + 2:
            break
        if data[chunk_end:chunk_end + 2] != b"\r\n":
            raise _Refusal("malformed")
        chunks.append(data[at:chunk_end])
        at = chunk_end + 2
    if total > MAX_BODY or len(data) - start > MAX_BODY + MAX_LINE:
        raise _Refusal("body-size")
    return None


def _write(response: "Response", with_body: bool, connection: str) -> bytes:
    """A response as bytes."""
    lines = ["HTTP/1.1 %d %s" % (response.status, http.HTTPStatus(response.status).phrase)]
    lines += ["%s: %s" % header for header in response.headers]
    if connection:
        lines.append("Connection: " + connection)
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode("latin-1") + response.body if with_body else head.encode("latin-1")


class _Conversation:
    """HTTP/1.1 with one client. ``over`` is true when the connection ends after what was returned last."""

    def __init__(self, service: "Service", lock: "Any", log: "Optional[Callable[[str], None]]", peer: str) -> None:
        self._service, self._lock, self._log, self._peer = service, lock, log, peer
        self._unread, self._continued = b"", False
        self.over = False

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
            if version == "HTTP/1.1" and "host" not in headers:
                raise _Refusal("malformed")
            read = read_body(headers, self._unread, start)
        except _Refusal as refusal:
            return self._refuse(refusal.rule)
        if read is None:
            if self._continued or headers.get("expect", "").lower() != "100-continue":
                return b""
            self._continued = True
            return b"HTTP/1.1 100 Continue\r\n\r\n"
        body, end = read
        self._unread, self._continued = self._unread[end:], False
        with self._lock:
            response = self._service.respond(Request(verb, target, headers, body))
        wish = headers.get("connection", "").lower()
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
        self._unread, self.over = b"", True
        return _write(response, True, "close")

    def _log_line(self, line: str, response: "Response") -> None:
        """The line of http.server's access log, with the reason of a refusal at its end."""
        line = "".join(char if char.isprintable() and char != '"' else "\\x%02x" % ord(char) for char in line)
        assert self._log is not None
        self._log('%s - - [%s] "%s" %d %s' % (
            self._peer, time.strftime("%d/%b/%Y %H:%M:%S"), line, response.status, response.note or "-"))


def _http_server(host: str, port: int, converse: "Callable[[str], _Conversation]") -> "Any":
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
            self.unsent, self.since, self.lingering = b"", time.monotonic(), False

        def time_left(self, now: float) -> float:
            busy = self.unsent or self.conversation.in_request
            return self.since + (LINGER_TIME if self.lingering else REQUEST_TIME if busy else IDLE_TIME) - now

    class Server(http.server.HTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        allow_reuse_address = os.name == "posix"  # elsewhere it would let two servers share a port
        request_queue_size = 512

        def server_bind(self) -> None:
            socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks the DNS for a name

        def __init__(self) -> None:
            self.connections = set()  # type: set[Connection]
            self.stopping = False
            self.waker, self.woken = socket.socketpair()
            self.selector = selectors.DefaultSelector()
            super().__init__((host, port), converse)  # type: ignore[arg-type]  # not a handler class: there is none
            self.socket.setblocking(False)
            self.selector.register(self.socket, selectors.EVENT_READ)
            self.selector.register(self.woken, selectors.EVENT_READ)

        def serve_forever(self, poll_interval: float = 1) -> None:
            swept = time.monotonic()
            while not self.stopping:
                for key, _ in self.selector.select(poll_interval):
                    if key.data:
                        self.serve(key.data)
                    elif key.fileobj is self.socket:
                        self.accept()
                now = time.monotonic()
                if now >= swept + poll_interval:
                    swept = now
                    for connection in [each for each in self.connections if each.time_left(now) <= 0]:
                        self.time_out(connection)

        def shutdown(self) -> None:
            self.stopping = True
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
                if error.errno in (errno.EMFILE, errno.ENFILE) and self.connections:  # the longest idle one yields
                    self.drop(min(self.connections, key=lambda connection: connection.since))

        def serve(self, connection: "Connection") -> None:
            """Do what a connection is ready for: sending the rest of an answer, or else reading."""
            conversation = connection.conversation
            try:
                if not connection.unsent:
                    data = connection.socket.recv(65536)
                    if not data:
                        return self.drop(connection)
                    if connection.lingering:
                        return None
                    was_in_request = conversation.in_request
                    connection.unsent = conversation.receive(data)
                    if connection.unsent or not was_in_request:
                        connection.since = time.monotonic()
                self.send(connection)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError:  # reset, or gone
                self.drop(connection)

        def send(self, connection: "Connection") -> None:
            if connection.unsent:
                try:
                    sent = connection.socket.send(connection.unsent)
                except BlockingIOError:
                    sent = 0
                connection.unsent = connection.unsent[sent:]
                if connection.unsent:
                    self.selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
                    return
                if self.selector.get_key(connection.socket).events != selectors.EVENT_READ:
                    self.selector.modify(connection.socket, selectors.EVENT_READ, connection)
            if connection.conversation.over:  # closed at once, unread data would reset it before the answer is read
                connection.socket.shutdown(socket.SHUT_WR)
                connection.lingering, connection.since = True, time.monotonic()

        def time_out(self, connection: "Connection") -> None:
            if not connection.conversation.in_request or connection.unsent or connection.lingering:
                return self.drop(connection)
            connection.unsent = connection.conversation.time_out()
            try:
                self.send(connection)
            except OSError:
                self.drop(connection)

        def drop(self, connection: "Connection") -> None:
            self.connections.discard(connection)
            self.selector.unregister(connection.socket)
            connection.socket.close()

    return Server()


class Emulator:
    """The Instance Metadata Service of one VM on a port of this machine, for a test or by hand.

    >>> with Emulator() as vm:
    ...     vm.get("compute/name")
    'avset2'

    instance    dict in the shape of ``/metadata/instance``; what it lacks is empty. None: ``profile``
    host, port  where it listens; port 0 is a free one
    rate_limit  requests a second, refilled all the time; 0 is off. None: off, but 5 ``as_of`` 2018
    cloud       the value of azEnvironment: a key of CLOUDS. None: the document's
    versions    the api-versions that it serves, of the 35 documented ones. None: all
    as_of       "2018" is the service of the 2018 document: its versions by cloud, its errors
    profile     the built-in VM: "linux", "windows" or "scaleset"
    clock       a function that returns the time in seconds since 1970
    log         called with a line per request, str

    ``start`` and ``stop`` do without ``with``. All of it may be used from any thread. Raises
    ValueError for a value that can't be served and, on start, OSError where it can't listen.
    """

    def __init__(
        self, instance: "Optional[Dict[str, Any]]" = None, host: str = "127.0.0.1", port: int = 0,
        rate_limit: "Optional[float]" = None, cloud: "Optional[str]" = None,
        versions: "Optional[Iterable[str]]" = None, as_of: "Optional[str]" = None, profile: str = "linux",
        clock: "Callable[[], float]" = time.time, log: "Optional[Callable[[str], None]]" = None,
    ) -> None:
        import threading

        self._service = Service(clock, instance, profile, cloud, versions, as_of, rate_limit)
        self._address, self._log = (host, port), log
        self._lock = threading.Lock()
        self._server = None  # type: Any
        self._thread = None  # type: Optional[threading.Thread]

    def start(self) -> "Emulator":
        """Listen, and answer from a thread of its own."""
        import threading

        if self._server:
            raise RuntimeError("the emulator at %s is already started" % self.url)
        self._server = _http_server(self._address[0], self._address[1], self._converse)
        self._thread = threading.Thread(target=self._server.serve_forever, name="imds-emulator", daemon=True)
        self._thread.start()
        return self

    def wait(self) -> None:
        """Return when it has been stopped; a signal interrupts."""
        while self._thread and self._thread.is_alive():
            self._thread.join(0.5)

    def stop(self) -> None:
        """Close every connection and the port, at once."""
        server, thread, self._server, self._thread = self._server, self._thread, None, None
        if server and thread:
            server.shutdown()
            thread.join()
            server.server_close()

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

    def get(self, path: str = "", **settings: "Any") -> "Any":
        """Ask this emulator: ``imds.get`` with its endpoint."""
        return get(path, endpoint=self.url, **settings)


# ==================================================================================================
# Room 5: client
#
# urllib to a service; knows the core. Never through a proxy, never behind a redirect; an answer is
# checked before it is believed, and asked for again while the service asks for patience.
# ==================================================================================================

DEFAULT_ENDPOINT = "http://169.254.169.254"
TIMEOUT = 2  # seconds to connect, and then for each piece of the answer
DEADLINE = 20  # seconds in all, retries included
GONE_DEADLINE = 70  # the same while the service answers 410: the VM is being moved (documented)
MAX_REPLY = 4 * 1024 * 1024  # bytes
RETRIED = (408, 410, 429)  # and 5xx; never another 4xx

Reply = collections.namedtuple("Reply", "status content_type server body url")


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
    endpoint: "Optional[str]" = None, timeout: float = TIMEOUT, deadline: "Optional[float]" = None
) -> "Any":
    """Return what the service of this VM says at ``path``: a leaf as str, a container as dict or list.

    path         "compute/vmId", "instance/compute/vmId", "/metadata/instance/compute/vmId", or such a
                 URL; "" is the whole document. With a query it goes to the service as it is, and comes
                 back as JSON parsed or as text
    api_version  None: the newest that both sides know
    format       "text": what the service prints with format=text, as str
    endpoint     base URL. None: $AZURE_IMDS_ENDPOINT, or http://169.254.169.254
    timeout      seconds to connect, and then for each piece of the answer
    deadline     seconds in all, retries included. None: 20, and 70 while the VM is being moved (410)

    Raises NotFound (a KeyError), Refused, Unreachable (an OSError), Unavailable, NotIMDS, all of them
    Error; ValueError for an endpoint, a URL or a format that can't be used.
    """
    return Client(endpoint, api_version=api_version, timeout=timeout, deadline=deadline).get(path, format=format)


class Client:
    """The service at one endpoint, with the settings of ``get``. It may be used from any thread.

    ``clock`` (monotonic, in seconds) and ``sleep`` stand in for those of ``time`` in tests.
    """

    def __init__(
        self, endpoint: "Optional[str]" = None, *, api_version: "Optional[str]" = None, timeout: float = TIMEOUT,
        deadline: "Optional[float]" = None, clock: "Callable[[], float]" = time.monotonic,
        sleep: "Callable[[float], None]" = time.sleep
    ) -> None:
        self.endpoint = (endpoint or os.environ.get("AZURE_IMDS_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        parts = urllib.parse.urlsplit(self.endpoint)
        if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("the endpoint must be like http://127.0.0.1:%d, not %r" % (DEFAULT_PORT, self.endpoint))
        self.api_version, self.timeout, self.deadline = api_version, timeout, deadline
        self._clock, self._sleep = clock, sleep
        self._negotiated = None  # type: Optional[str]

    def get(self, path: str = "", *, format: "Optional[str]" = None) -> "Any":
        """As ``imds.get``."""
        return self.get_all([path], format=format)[0]

    def get_all(self, paths: "Iterable[str]", *, format: "Optional[str]" = None) -> "List[Any]":
        """As ``get`` for each of ``paths``; the instance document is asked for once."""
        if format not in (None, "json", "text"):
            raise ValueError("format must be 'json' or 'text', not %r" % format)
        document, nodes = None, []
        for target in [self._target(path) for path in paths]:
            if "?" in target or not target.startswith("/metadata/instance/"):
                nodes.append(self._content(self._ask(target)))
                continue
            document = document or self.instance()
            try:
                node = resolve(document, target[len("/metadata/instance/"):])
            except NotFound as error:
                url = self.endpoint + "/metadata/instance"
                raise NotFound("%s (%s at %s)" % (error, url, self.api_version or self._negotiated), url=url) from None
            nodes.append(format_text(node) if format == "text" else node)
        return nodes

    def instance(self) -> "Dict[str, Any]":
        """Return the whole instance document."""
        version = self.api_version or self._negotiated or NEWEST
        try:
            reply = self._ask("/metadata/instance?api-version=" + urllib.parse.quote(version), starting=True)
        except (Refused, NotFound) as error:
            offered = _newest_offered(error)
            if self.api_version or not offered or offered == version:
                raise
            version = offered
            reply = self._ask("/metadata/instance?api-version=" + urllib.parse.quote(version), starting=True)
        document = self._content(reply)
        if not isinstance(document, dict) or not isinstance(document.get("compute"), dict):
            raise _not_imds(reply, "JSON of another shape")
        self._negotiated = version
        return document

    def _target(self, path: str) -> str:
        """The target of a request for ``path``, in whatever form it was written."""
        if "://" in path:
            origin, slash, rest = path.partition("://")[2].partition("/")
            if "http://" + origin not in (DEFAULT_ENDPOINT, self.endpoint):
                raise ValueError("%r is not at the endpoint %s; to ask another, use endpoint http://%s"
                                 % (path, self.endpoint, origin))
            path = slash + rest
        if path.startswith("/metadata/") and not path.startswith("/metadata/instance"):
            return path
        below = path.lstrip("/")
        for prefix in ("metadata", "instance"):
            if below == prefix or below[:len(prefix) + 1] in (prefix + "/", prefix + "?"):
                below = below[len(prefix):].lstrip("/")
        return "/metadata/instance" + ("" if below.startswith("?") else "/") + below

    def _ask(self, target: str, starting: bool = False) -> "Reply":
        """One request and its retries. ``starting``: a 404 means that the service is not up yet."""
        import random

        begun = self._clock()
        for attempt in itertools.count():
            failure, patience = self._try(target, begun, starting)
            if isinstance(failure, Reply):
                return failure
            pause = (0.1 if isinstance(failure, Unreachable) else 1) * min(2 ** attempt, 8) * random.uniform(0.75, 1.25)
            if self._clock() + pause >= begun + patience:
                raise failure
            self._sleep(pause)
        raise AssertionError("not reached")

    def _try(self, target: str, begun: float, starting: bool) -> "Tuple[Any, float]":
        """One request: a Reply of status 200; or the Error that it came to and for how many seconds
        since ``begun`` it is worth trying."""
        import socket

        limit = DEADLINE if self.deadline is None else self.deadline
        gone_limit = GONE_DEADLINE if self.deadline is None else self.deadline
        url = self.endpoint + target
        try:
            reply = _fetch(url, self.timeout, self._clock, begun + gone_limit)
        except NotIMDS as error:
            return error, 0
        except socket.timeout as error:
            return _unreachable(url, error), 0
        except OSError as error:
            return _unreachable(url, error), limit if isinstance(error, ConnectionResetError) else min(limit, TIMEOUT)
        status = reply.status
        if reply.content_type == "text/html" and not reply.server.startswith("Microsoft-IIS") and status < 500:
            return _not_imds(reply, "an HTML page"), 0
        if 300 <= status < 400:
            return _not_imds(reply, "a redirect"), 0
        if status == 404 and starting and "Invalid version" not in reply.body:
            return _failure(Unavailable, reply, "the service is not up yet; try again later"), limit
        if status in RETRIED or status >= 500:
            advice = {408: "try again", 410: "the VM is being moved; try again in a minute",
                      429: "ask less often than 5 times a second"}.get(status, "try again later")
            return _failure(Unavailable, reply, advice), gone_limit if status == 410 else limit
        if status == 404:
            return _failure(NotFound, reply, "check the path and the api-version"), 0
        if status != 200:
            return _failure(Refused, reply, "check the request"), 0
        return reply, 0

    def _content(self, reply: "Reply") -> "Any":
        """The content of a reply: JSON parsed, or text."""
        if reply.content_type == "application/json":
            try:
                return json.loads(reply.body)
            except (ValueError, RecursionError):
                raise _not_imds(reply, "broken JSON") from None
        if reply.content_type == "text/plain":
            return reply.body
        raise _not_imds(reply, reply.content_type or "no content type")


def _fetch(url: str, timeout: float, clock: "Callable[[], float]", deadline: float) -> "Reply":
    """One GET, with no proxy, no redirect, no error for a status. Raises OSError or NotIMDS."""
    import http.client
    import socket
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
    request = urllib.request.Request(url, headers={"Metadata": "true", "User-Agent": "imds.py/" + __version__})
    try:
        with opener.open(request, timeout=max(0.001, min(timeout, deadline - clock()))) as response:
            chunks, size = [], 0  # type: List[bytes], int
            for chunk in iter(lambda: response.read1(65536), b""):
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_REPLY:
                    raise NotIMDS("%s answered more than %d bytes: what answers is not IMDS" % (url, MAX_REPLY),
                                  response.status, url=url)
            if response.length or not response.headers:  # the connection ended too soon
                raise ConnectionResetError("the answer is cut off")
            body = b"".join(chunks).decode("utf-8", "replace")
            return Reply(response.status, response.headers.get_content_type(), response.headers.get("Server", ""),
                         body, url)
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
        return str(max(json.loads(error.body or "")["newest-versions"]))
    except (ValueError, KeyError, TypeError):
        return FIRST_GA if error.status == 404 else None


# ==================================================================================================
# Room 6: command line
#
# argparse, printing, exit codes; knows all. Results go to standard output, the rest to standard error.
# ==================================================================================================

USAGE_ERROR = 2
EXIT_CODES = """\
exit codes:
  0  done
  1  the service says no (not found, bad request), or the port is taken
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
    options = _parser().parse_args(arguments)
    options.command = command
    try:
        return int(options.run(options))
    except Error as error:
        return _complain(error, error.exit_code)
    except ValueError as error:
        return _complain(error, USAGE_ERROR)
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> "Any":
    import argparse

    parser = argparse.ArgumentParser(
        prog="python3 -m imds", description="Client and emulator of the Azure Instance Metadata Service.",
        epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version="imds " + __version__)
    commands = parser.add_subparsers(metavar="COMMAND", dest="name")
    commands.required = True

    def add(name: str, run: "Callable[[Any], int]", text: str) -> "Any":
        command = commands.add_parser(name, help=text, description=text, epilog=EXIT_CODES,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        command.set_defaults(run=run)
        return command

    asking = add("get", _get, "print what the service says")
    asking.add_argument("paths", metavar="PATH", nargs="*",
                        help="like compute/vmId, or a URL from the documentation; none is the whole document")
    asking.add_argument("--format", choices=("json", "text"), help="print a leaf as JSON, or a container as a listing")
    asking.add_argument("--api-version", metavar="DATE", help="default: the newest that both sides know")
    asking.add_argument("--endpoint", metavar="URL", help="default: $AZURE_IMDS_ENDPOINT, or " + DEFAULT_ENDPOINT)
    asking.add_argument("--timeout", metavar="SECONDS", type=_seconds, help="give up after so long, retries included")

    serving = add("serve", _serve, "emulate the service until interrupted")
    serving.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 is a free one (default: %(default)s)")
    running = add("exec", _exec, "run a command against an emulator of its own: exec [OPTIONS] -- COMMAND ...")
    running.add_argument("--port", type=int, default=0, help="default: a free one")
    for command in (serving, running):
        command.add_argument("document", metavar="VM.json", nargs="?",
                             help="what /metadata/instance returns, of a real VM for example; - is standard input")
        command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
        command.add_argument("--profile", default="linux", help="built-in VM: %s" % ", ".join(VMS))
        command.add_argument("--set", metavar="NAME=VALUE", action="append", default=[],
                             help="change a value of the VM, like compute.vmSize=Standard_D4s_v5 (repeatable)")
        command.add_argument("--cloud", help="azEnvironment: %s" % ", ".join(CLOUDS))
        command.add_argument("--as-of", metavar="YEAR", help="2018: the service of the 2018 document")
        command.add_argument("--api-versions", metavar="DATE,...", help="serve only these")
        command.add_argument("--rate-limit", metavar="N", type=float, help="requests a second (default: no limit)")
        command.add_argument("--quiet", action="store_true", help="no access log")
    return parser


def _seconds(text: str) -> float:
    import argparse

    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError("must be more than 0")
    return seconds


def _get(options: "Any") -> int:
    client = Client(options.endpoint, api_version=options.api_version, timeout=options.timeout or TIMEOUT,
                    deadline=options.timeout)
    for node in client.get_all(options.paths or [""], format=options.format):
        if isinstance(node, str) and options.format != "json":
            _print(node)
        else:
            _print(format_json(node, 2 if sys.stdout.isatty() else None))
    return 0


def _serve(options: "Any") -> int:
    import signal

    def interrupt(*_: object) -> "NoReturn":
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    vm = _emulator(options)
    try:
        _start(vm, options)
        compute = vm.instance["compute"]
        _print(vm.url)
        _log("serving %s, %s in %s; stop with Ctrl-C. Try:\n"
             "  curl --noproxy '*' -s -H Metadata:true '%s/metadata/instance?api-version=%s'\n"
             "  export AZURE_IMDS_ENDPOINT=%s AZURE_POD_IDENTITY_AUTHORITY_HOST=%s"
             % (compute["name"] or "a VM", compute["vmSize"] or "of no size", compute["location"] or "no location",
                vm.url, vm.versions[-1], vm.url, vm.url))
        vm.wait()
    except KeyboardInterrupt:
        pass
    finally:
        vm.stop()
    return 0


def _exec(options: "Any") -> int:
    import signal
    import subprocess

    if not options.command:
        raise ValueError("what is to be run? exec [OPTIONS] -- COMMAND ...")
    vm = _emulator(options)
    try:
        _start(vm, options)
        environment = dict(os.environ, AZURE_IMDS_ENDPOINT=vm.url, AZURE_POD_IDENTITY_AUTHORITY_HOST=vm.url)
        try:
            child = subprocess.Popen(options.command, env=environment)
        except OSError as error:
            return _complain("%s: %s" % (options.command[0], error.strerror), 126 if error.errno == 13 else 127)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the command, too
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        code = child.wait()
        return code if code >= 0 else 128 - code
    finally:
        vm.stop()


def _emulator(options: "Any") -> "Emulator":
    document = complete(VMS[_known(options.profile, VMS, "profile")] if options.document is None
                        else _read_document(options.document))
    for setting in options.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError("--set takes NAME=VALUE, like compute.vmSize=Standard_D4s_v5, not %r" % setting)
        assign(document, name, value)
    return Emulator(
        document, host=options.host, port=options.port, rate_limit=options.rate_limit, cloud=options.cloud,
        versions=options.api_versions and options.api_versions.split(","), as_of=options.as_of,
        log=None if options.quiet or options.name == "exec" else _log)


def _start(vm: "Emulator", options: "Any") -> None:
    try:
        vm.start()
    except (OSError, OverflowError) as error:
        raise Error("can't listen on %s port %d (%s); choose another with --port, or --port 0 for a free one"
                    % (options.host, options.port, getattr(error, "strerror", None) or error)) from None
    if options.host != "localhost" and options.host != "::1" and not options.host.startswith("127."):
        _log("warning: %s is not loopback; whoever reaches this machine can read what is served" % options.host)


def _read_document(name: str) -> "Dict[str, Any]":
    try:
        if name == "-":
            text = sys.stdin.buffer.read()
        else:
            with open(name, "rb") as file:
                text = file.read()
    except OSError as error:
        raise ValueError("%s: %s" % (name, error.strerror)) from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("%s is not JSON: %s" % (name, error)) from None
    if not isinstance(document, dict) or not ("compute" in document or "network" in document):
        raise ValueError("%s is not a VM: save what /metadata/instance returns, the whole of it" % name)
    try:
        return complete(document)
    except ValueError as error:
        raise ValueError("%s is not a VM: %s" % (name, error)) from None


def _print(text: str) -> None:
    """Print a result, as UTF-8 whatever the locale."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.buffer.flush()


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _complain(error: object, code: int) -> int:
    _log("imds: %s" % error)
    return code


if __name__ == "__main__":
    sys.exit(main())
