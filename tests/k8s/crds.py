"""Schemas of custom resources: those written in schemas/, and those of published CustomResourceDefinitions."""

from pathlib import Path

import jsonschema
import yaml

# What a structural schema and JSON Schema mean alike.
PLAIN = {"type", "enum", "required", "minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength", "pattern", "oneOf", "anyOf",
         "allOf", "not"}
SCHEMAS = Path(__file__).parent / "schemas"


def written() -> dict[str, dict]:
    """Kind -> JSON schema of the whole object."""
    kinds = {}
    for path in sorted(SCHEMAS.glob("*.yaml")):
        for kind, fields in yaml.safe_load(path.read_text()).items():
            root = fields.pop("root", False)
            spec = {"type": "object", "additionalProperties": False, **fields}
            parts = spec["properties"] if root else {"spec": spec}
            kinds[kind] = {
                "type": "object", "additionalProperties": False,
                "required": ["apiVersion", "kind", "metadata", *(spec.get("required", ()) if root else ["spec"])],
                "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}, **parts}}
    return kinds


def published(source: Path) -> dict[tuple[str, str], dict]:
    """(apiVersion, kind) -> schema, from a file or a directory of CustomResourceDefinitions."""
    found = {}
    for path in sorted(source.rglob("*.yaml")) if source.is_dir() else [source]:
        for document in yaml.load_all(path.read_text(), yaml.CSafeLoader):
            for item in document["items"] if document.get("kind", "").endswith("List") else [document]:
                if item.get("kind") != "CustomResourceDefinition":
                    continue
                for version in item["spec"]["versions"]:
                    group, kind = item["spec"]["group"], item["spec"]["names"]["kind"]
                    found[f"{group}/{version['name']}", kind] = version["schema"]["openAPIV3Schema"]
    return found


def strict(schema: dict) -> dict:
    """A structural schema as the API server reads it with unknown fields refused (`kubectl apply --validate=strict`), as JSON Schema."""
    made = {key: value for key, value in schema.items() if key in PLAIN}
    if "properties" in schema:
        made["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            made["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        made["items"] = strict(schema["items"])
    if schema.get("x-kubernetes-int-or-string"):
        for key in ("type", "anyOf"):
            made.pop(key, None)
        made["type"] = ["integer", "string"]
    return made


def check(item: dict, schema: dict) -> None:
    """Raise what jsonschema finds wrong."""
    jsonschema.Draft202012Validator(schema).validate(item)
