"""The part of kustomize that k8s/ uses, strictly: a field that is not known here is an error, not ignored.

So the manifests are tested where no kustomize is installed; where `kubectl` or `kustomize` is, test_build.py holds this to its result.
"""

import copy
from pathlib import Path

import yaml

FIELDS = {"apiVersion", "kind", "resources", "namespace", "labels", "generatorOptions", "configMapGenerator", "images", "patches"}
CLUSTER_SCOPED = {"Namespace", "ClusterQueue", "ResourceFlavor", "Topology", "WorkloadPriorityClass"}


def build(directory: Path) -> list[dict]:
    """The objects of a kustomization."""
    plan = load(directory / "kustomization.yaml")
    known(plan, FIELDS, directory)
    assert plan["kind"] == "Kustomization" and plan["apiVersion"] == "kustomize.config.k8s.io/v1beta1", directory
    objects = [item for name in plan.get("resources", ()) for item in resource(directory / name)]
    objects += [config_map(directory, entry, plan) for entry in plan.get("configMapGenerator", ())]
    for entry in plan.get("patches", ()):
        patch(objects, entry, directory)
    for item in objects:
        if plan.get("namespace") and item["kind"] not in CLUSTER_SCOPED:
            item["metadata"]["namespace"] = plan["namespace"]
        for entry in plan.get("labels", ()):
            known(entry, {"pairs"}, directory)
            item["metadata"].setdefault("labels", {}).update(entry["pairs"])
        for entry in plan.get("images", ()):
            known(entry, {"name", "newName", "newTag"}, directory)
            set_images(item, entry)
    names = [identity(item) for item in objects]
    assert len(names) == len(set(names)), f"{directory}: the same object twice: {names}"
    return objects


def identity(item: dict) -> tuple[str, str, str, str]:
    """Group and version, kind, namespace, name."""
    return item["apiVersion"], item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]


def load(path: Path) -> dict:
    return yaml.load(path.read_text(), UniqueKeys)


def resource(path: Path) -> list[dict]:
    if path.is_dir():
        return build(path)
    return [copy.deepcopy(item) for item in yaml.load_all(path.read_text(), UniqueKeys)]


def known(entry: dict, fields: set[str], where: Path) -> None:
    assert entry.keys() <= fields, f"{where}: this builder knows nothing of {sorted(entry.keys() - fields)}"


def config_map(directory: Path, entry: dict, plan: dict) -> dict:
    known(entry, {"name", "namespace", "envs", "files", "options"}, directory)
    assert plan["generatorOptions"] == {"disableNameSuffixHash": True}, directory
    data = {}
    for name in entry.get("envs", ()):
        for line in (directory / name).read_text().splitlines():
            if line and not line.startswith("#"):
                key, equals, value = line.partition("=")
                assert equals and key not in data, f"{name}: {line}"
                data[key] = value
    for name in entry.get("files", ()):
        key, _, path = name.partition("=")
        data[key] = (directory / path).read_text()
    metadata = {"name": entry["name"]}
    if "namespace" in entry:
        metadata["namespace"] = entry["namespace"]
    if options := entry.get("options"):
        known(options, {"labels"}, directory)
        metadata["labels"] = dict(options["labels"])
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def patch(objects: list[dict], entry: dict, directory: Path) -> None:
    """Apply a JSON patch (RFC 6902: add and replace) to the one object that `target` means."""
    known(entry, {"path", "target"}, directory)
    target = entry["target"]
    known(target, {"group", "kind", "name"}, directory)
    (item,) = [item for item in objects if item["kind"] == target["kind"] and item["metadata"]["name"] == target["name"]
               and item["apiVersion"].partition("/")[0] == target["group"]]
    for operation in load(directory / entry["path"]):
        known(operation, {"op", "path", "value"}, directory)
        *way, last = operation["path"].removeprefix("/").replace("~1", "/").split("/")
        place = item
        for step in way:
            place = place[int(step) if isinstance(place, list) else step]
        if isinstance(place, list):
            assert operation["op"] == "replace", "a list's elements are only replaced here"
            place[int(last)] = copy.deepcopy(operation["value"])
        else:
            assert (last in place) == (operation["op"] == "replace"), f"{entry['path']}: {operation['op']} {operation['path']}"
            place[last] = copy.deepcopy(operation["value"])


def set_images(node: object, entry: dict) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("containers", "initContainers"):
                for container in value:
                    name, _, tag = container["image"].rpartition(":")
                    if name == entry["name"]:
                        container["image"] = f"{entry.get('newName', name)}:{entry.get('newTag', tag)}"
            set_images(value, entry)
    elif isinstance(node, list):
        for value in node:
            set_images(value, entry)


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key given twice is an error, as it is for the API server."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key twice"
        return super().construct_mapping(node, deep)
