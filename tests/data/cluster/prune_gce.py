"""Makes gce_instance.json: the fields of a Compute Engine instance, as a strict JSON schema.

python tests/data/cluster/prune_gce.py GOOGLE_API_PYTHON_CLIENT.whl
"""

import json
import sys
import zipfile
from pathlib import Path

DOCUMENT = "googleapiclient/discovery_cache/documents/compute.v1.json"
KEPT = ("type", "enum")


class Pruned:
    """The definitions that an instance refers to."""

    def __init__(self, schemas):
        self._schemas = schemas
        self.definitions = {}

    def add(self, name):
        """Define a type and those that it refers to."""
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = self._prune(self._schemas[name])

    def _prune(self, schema):
        if "$ref" in schema:
            self.add(schema["$ref"])
            return {"$ref": f"#/$defs/{schema['$ref']}"}
        pruned = {word: schema[word] for word in KEPT if word in schema}
        if schema.get("format") in ("int64", "uint64"):
            pruned["type"] = ["integer", "string"]  # JSON's numbers are too small for them.
        if "items" in schema:
            pruned["items"] = self._prune(schema["items"])
        if "properties" in schema:
            pruned["properties"] = {
                name: self._prune(part)
                for name, part in sorted(schema["properties"].items())
                if not part.get("description", "").startswith(("[Output Only]", "Output only"))
            }
            pruned["additionalProperties"] = False
        return pruned


def main(wheel):
    """Write gce_instance.json beside this file."""
    with zipfile.ZipFile(wheel) as archive:
        document = json.loads(archive.read(DOCUMENT))
    pruned = Pruned(document["schemas"])
    pruned.add("Instance")
    made = {
        "source": f"{Path(wheel).name}, {DOCUMENT}",
        "revision": document["revision"],
        "licence": "Apache-2.0",
        "changes": "pruned and made strict by prune_gce.py",
        "$ref": "#/$defs/Instance",
        "$defs": dict(sorted(pruned.definitions.items())),
    }
    path = Path(__file__).with_name("gce_instance.json")
    path.write_text(json.dumps(made, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
