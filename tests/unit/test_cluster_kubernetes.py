"""The Kubernetes manifests: what KubeRay, its autoscaler and the API server make of them."""

import copy
import json

import jsonschema
import kubernetes_validate
import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from tests.cases import each
from tests.unit.cluster_files import (
    GIB,
    MANIFESTS,
    POOL,
    SCHEMAS,
    choose_nodes,
    find_object,
    read_manifest,
)

UNITS = {"Gi": GIB, "m": 1e-3, "": 1}
NEWEST = kubernetes_validate.latest_version()


@pytest.fixture(scope="module")
def kuberay():
    """Return a function that validates an object of KubeRay 1.7, strictly."""
    schemas = json.loads((SCHEMAS / "kuberay.json").read_text())

    def check(thing):
        schema = {**schemas["kinds"][thing["kind"]], "$defs": schemas["$defs"]}
        jsonschema.validate(thing, schema, cls=jsonschema.Draft202012Validator)

    return check


in_both_manifests = each("manifest", ["raycluster", "rayjob"])


def spec_of(manifest):
    """Return the cluster of a manifest."""
    if manifest == "raycluster":
        return find_object("raycluster", "RayCluster")["spec"]
    return find_object("rayjob", "RayJob")["spec"]["rayClusterSpec"]


def groups_of(spec):
    return {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def pods_of(spec):
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def amount(quantity):
    number = str(quantity).rstrip("Gim")
    return float(number) * UNITS[str(quantity)[len(number) :]]


@each("name", MANIFESTS)
def test_every_field_is_one_that_the_server_knows(kuberay, name):
    for thing in read_manifest(name):
        if thing["apiVersion"] == "ray.io/v1":
            kuberay(thing)
        else:
            kubernetes_validate.validate(thing, NEWEST, strict=True)


def test_a_slip_is_seen(kuberay):
    cluster = find_object("raycluster", "RayCluster")
    for change in (
        lambda spec: spec.update(enableInTreeAutoscalin=True),
        lambda spec: spec["workerGroupSpecs"][0].update(maxReplicas="8"),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0].update(imag="x"),
        lambda spec: spec["authOptions"].update(mode="tokens"),
    ):
        broken = copy.deepcopy(cluster)
        change(broken["spec"])
        with pytest.raises(jsonschema.ValidationError):
            kuberay(broken)


def test_the_job_has_the_same_cluster():
    cluster = find_object("raycluster", "RayCluster")["spec"]
    job = find_object("rayjob", "RayJob")["spec"]["rayClusterSpec"]
    start = job["headGroupSpec"]["rayStartParams"]
    assert start["dashboard-host"] == "0.0.0.0"
    start["dashboard-host"] = "127.0.0.1"
    assert job == cluster


@in_both_manifests
def test_every_connection_needs_the_token(manifest):
    spec = spec_of(manifest)
    assert spec["authOptions"] == {"mode": "token"}


@in_both_manifests
def test_the_head_takes_no_work(manifest):
    spec = spec_of(manifest)
    head = spec["headGroupSpec"]
    assert head["resources"] == {"CPU": "0"}
    assert head["labels"] == {POOL: "head"}
    assert head["serviceType"] == "ClusterIP"


@in_both_manifests
def test_a_pool_is_one_shape_at_two_prices(manifest):
    spec = spec_of(manifest)
    groups = groups_of(spec)
    for pool in ("cpu", "gpu"):
        spot, on_demand = groups[f"{pool}-spot"], groups[pool]
        assert spot["priority"] > on_demand["priority"]
        assert spot["template"]["spec"].pop("nodeSelector")
        assert spot["template"]["spec"].pop("tolerations")
        for key in ("template", "resources", "rayStartParams", "minReplicas", "maxReplicas"):
            assert spot[key] == on_demand[key]
        assert spot["labels"] == on_demand["labels"] == {POOL: pool}
        assert on_demand["minReplicas"] == 0


@in_both_manifests
def test_pods_have_what_ray_is_told_that_they_have(manifest):
    spec = spec_of(manifest)
    for group in spec["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        declared = group["resources"]
        assert amount(limits["cpu"]) == float(declared["CPU"])
        assert limits.get("nvidia.com/gpu") == declared.get("GPU")
        # Workers and the object store, and 4 GiB or more for Ray.
        store = int(group["rayStartParams"]["object-store-memory"])
        assert int(declared["memory"]) + store + 4 * GIB <= amount(limits["memory"])


@in_both_manifests
def test_pods_run_as_nobody_much(manifest):
    spec = spec_of(manifest)
    for group in pods_of(spec):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["serviceAccountName"] == "cosmoflow"
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


@in_both_manifests
def test_what_is_spilled_has_a_volume(manifest):
    spec = spec_of(manifest)
    for group in pods_of(spec):
        pod = group["template"]["spec"]
        folder = group["rayStartParams"]["object-spilling-directory"]
        mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounts[folder]]["emptyDir"] == {}


@in_both_manifests
@each("pool", ["cpu", "gpu"])
def test_the_autoscaler_brings_pods_of_the_pool_and_spot_pods_first(manifest, pool):
    spec = spec_of(manifest)
    resource = {"metadata": {"name": "cosmoflow", "namespace": "default"}, "spec": spec}
    config = _derive_autoscaling_config_from_ray_cr(resource)
    assert choose_nodes(config, pool) == {f"{pool}-spot": 1}
    assert choose_nodes(config, pool, recovered={f"{pool}-spot": 0.5}) == {pool: 1}


@in_both_manifests
def test_the_cluster_admits_its_own_pods_and_names_all_others(manifest):
    spec = spec_of(manifest)
    policy = find_object("networkpolicy", "NetworkPolicy")["spec"]
    ours = policy["podSelector"]["matchLabels"]
    for group in pods_of(spec):
        assert ours.items() <= group["template"]["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    inside, *outside = policy["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": ours}}]}
    # Others reach the dashboard and the metrics, and never the ports that run code.
    assert [[port["port"] for port in rule["ports"]] for rule in outside] == [[8265], [8080]]
    assert all(source for rule in outside for source in rule["from"])
