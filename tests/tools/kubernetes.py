"""Checks Kubernetes manifests against the API's schemas, and prints them as one JSON list of [file, manifest].

Usage: kubernetes.py VERSION FILE...    fields that the schema doesn't know are refused
"""

import json
import sys

import kubernetes_validate
import yaml

version, *files = sys.argv[1:]
manifests = []
for file in files:
    with open(file, encoding="utf-8") as stream:
        for manifest in yaml.safe_load_all(stream):
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                sys.exit(f"{file}: {error}")
            manifests.append([file, manifest])
json.dump(manifests, sys.stdout)
