"""The tests of imds: python3 -m unittest

Nothing here sends anything to 169.254.169.254: the endpoint is a closed port of this machine, unless
a test names another. Proxies are taken out of the environment; a test that wants one sets it. What
Python says has no colours, though FORCE_COLOR, which CI systems like to set, asks for them.
"""

import os

os.environ["AZURE_IMDS_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["PYTHON_COLORS"] = "0"
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]
