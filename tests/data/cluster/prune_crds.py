"""Makes kuberay.json: the schemas of KubeRay's resources, pruned to what a manifest can break.

    python tests/data/cluster/prune_crds.py CLONE_OF_KUBERAY TAG

Descriptions, defaults and statuses go; what is said several times (a pod's template above all) is
said once; and a field that the schema does not know becomes an error, where the API server would
drop it without a word.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import yaml

CRDS = "ray-operator/config/crd/bases/ray.io_{}.yaml"
KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}
KEPT = (
    "type",
    "enum",
    "pattern",
    "required",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
)
ALTERNATIVES = ("anyOf", "oneOf", "allOf")


def prune(schema):
    """Turn a structural OpenAPI schema into the JSON schema that refuses unknown fields."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **_kept(schema, "pattern")}
    pruned = _kept(schema, *KEPT)
    if schema.get("nullable") and "type" in pruned:
        pruned["type"] = [pruned["type"], "null"]
    if "items" in schema:
        pruned["items"] = prune(schema["items"])
    for word in ALTERNATIVES:
        if word in schema:
            pruned[word] = [_kept(part, *KEPT) for part in schema[word]]
    if "properties" in schema:
        pruned["properties"] = {
            name: prune(part) for name, part in sorted(schema["properties"].items())
        }
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            pruned["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        pruned["additionalProperties"] = prune(schema["additionalProperties"])
    return pruned


def _kept(schema, *words):
    return {word: schema[word] for word in words if word in schema}


class Shared:
    """Definitions of the subtrees that occur more than once."""

    LONG = 160

    def __init__(self, trees):
        self._counts = Counter()
        for tree in trees:
            self._count(tree)
        self._names = {}
        self.definitions = {}

    def _count(self, tree):
        if isinstance(tree, dict):
            text = json.dumps(tree, sort_keys=True)
            self._counts[text] += 1
            if self._counts[text] > 1:
                return
        for part in tree.values() if isinstance(tree, dict) else tree:
            if isinstance(part, dict | list):
                self._count(part)

    def refer(self, tree):
        """Return a tree whose repeated parts are references."""
        if isinstance(tree, list):
            return [self.refer(part) for part in tree]
        if not isinstance(tree, dict):
            return tree
        text = json.dumps(tree, sort_keys=True)
        if len(text) < self.LONG or self._counts[text] < 2 or "type" not in tree:
            return {name: self.refer(part) for name, part in tree.items()}
        if text not in self._names:
            self._names[text] = name = str(len(self._names))
            self.definitions[name] = {key: self.refer(part) for key, part in tree.items()}
        return {"$ref": f"#/$defs/{self._names[text]}"}


def read_kind(clone, tag, plural):
    """Return the pruned schema of one kind, version v1."""
    text = _git(clone, "show", f"{tag}:{CRDS.format(plural)}")
    (version,) = [v for v in yaml.safe_load(text)["spec"]["versions"] if v["name"] == "v1"]
    schema = prune(version["schema"]["openAPIV3Schema"])
    del schema["properties"]["status"]
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def _git(clone, *command):
    return subprocess.run(
        ["git", "-C", clone, *command], check=True, capture_output=True, text=True
    ).stdout


def main(clone, tag):
    """Write kuberay.json beside this file."""
    kinds = {kind: read_kind(clone, tag, plural) for kind, plural in KINDS.items()}
    shared = Shared(kinds.values())
    made = {
        "source": "https://github.com/ray-project/kuberay, "
        + ", ".join(CRDS.format(plural) for plural in KINDS.values()),
        "commit": _git(clone, "rev-parse", f"{tag}^{{commit}}").strip(),
        "tag": tag,
        "licence": "Apache-2.0",
        "changes": "pruned and made strict by prune_crds.py",
        "kinds": {kind: shared.refer(schema) for kind, schema in kinds.items()},
        "$defs": shared.definitions,
    }
    path = Path(__file__).with_name("kuberay.json")
    path.write_text(json.dumps(made, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
