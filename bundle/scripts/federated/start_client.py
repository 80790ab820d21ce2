"""The script that NVFlare's Client API runs at a site; it is handed over by its path."""

from scripts.federated.client import main

main()
