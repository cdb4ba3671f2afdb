"""The files for Ray's cluster launcher: what Ray, its autoscaler and the clouds make of them."""

import json
from pathlib import Path

import jsonschema
import ray
from ray.autoscaler._private import _azure
from ray.autoscaler._private.util import validate_config
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import (
    CloudResourceMonitor,
)
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

from tests.cases import each
from tests.unit.cluster_files import (
    CLOUDS,
    GIB,
    POOL,
    ROOT,
    SCHEMAS,
    choose_nodes,
    prepare_launcher,
    read_launcher,
)

MEMORY = {
    "m6id.16xlarge": 256, "g6e.2xlarge": 64, "n2-highmem-32": 256, "g2-standard-16": 64,
    "Standard_E32ds_v5": 256, "Standard_NC24ads_A100_v4": 220,
}  # fmt: skip
"""GiB of the clouds' own tables."""


in_every_cloud = each("cloud", CLOUDS)


def pools_of(config):
    """Return the spot and the on-demand type of each pool."""
    types = config["available_node_types"]
    return {pool: (types[f"{pool}-spot"], types[pool]) for pool in ("cpu", "gpu")}


@in_every_cloud
def test_ray_accepts_the_file(cloud):
    schema = json.loads(Path(ray.__file__).with_name("autoscaler").joinpath(
        "ray-schema.json").read_text())  # fmt: skip
    jsonschema.validate(read_launcher(cloud), schema)
    validate_config(prepare_launcher(cloud))


@in_every_cloud
def test_what_is_mounted_is_what_a_node_installs(cloud):
    mounts = read_launcher(cloud)["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert mounts == {f"~/cosmoflow/{local}": local for local in mounts.values()}
    assert all((ROOT / local).exists() for local in mounts.values())
    # `ray up` hashes all of it: the environment and the tests would take minutes.
    assert set(mounts.values()) == {
        "cosmoflow", "configs", "cluster", "pyproject.toml", "requirements.txt", "README.md",
        "LICENSE",
    }  # fmt: skip


@in_every_cloud
def test_the_head_takes_no_work(cloud):
    config = read_launcher(cloud)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["labels"] == {POOL: "head"}


@in_every_cloud
def test_a_pool_is_one_shape_at_two_prices(cloud):
    for pool, (spot, on_demand) in pools_of(read_launcher(cloud)).items():
        assert spot["priority"] > on_demand["priority"]
        assert spot["labels"] == on_demand["labels"] == {POOL: pool}
        for key in ("resources", "min_workers", "max_workers"):
            assert spot[key] == on_demand[key]
        assert ("GPU" in spot["resources"]) == (pool == "gpu")
        assert _market(spot["node_config"]) != _market(on_demand["node_config"])
        assert _without_market(spot["node_config"]) == _without_market(on_demand["node_config"])


MARKETS = {"InstanceMarketOptions", "scheduling"}
AZURE_MARKET = {"priority", "evictionPolicy", "billingProfile"}


def _market(node):
    arm = node.get("azure_arm_parameters", {})
    return [node.get(key) for key in sorted(MARKETS)], [
        arm.get(key) for key in sorted(AZURE_MARKET)
    ]


def _without_market(node):
    kept = {key: value for key, value in node.items() if key not in MARKETS}
    arm = kept.get("azure_arm_parameters", {})
    return {**kept, "azure_arm_parameters": {k: v for k, v in arm.items() if k not in AZURE_MARKET}}


@in_every_cloud
def test_idle_workers_all_go_and_few_can_come(cloud):
    config = read_launcher(cloud)
    workers = [each for pool in pools_of(config).values() for each in pool]
    assert all(each["min_workers"] == 0 < each["max_workers"] for each in workers)
    assert config["max_workers"] <= 16
    assert 0 < config["idle_timeout_minutes"] <= 15


@in_every_cloud
def test_declared_memory_leaves_room_for_the_object_store_and_the_system(cloud):
    for spot, _ in pools_of(read_launcher(cloud)).values():
        node = spot["node_config"]
        shape = node.get("InstanceType") or node.get("machineType") or (
            node["azure_arm_parameters"]["vmSize"])  # fmt: skip
        # A kernel keeps about 3.5 % of a machine's memory; 30 % of the rest is the object store.
        room = 0.7 * 0.965 * MEMORY[shape] - spot["resources"]["memory"] / GIB
        assert 3.5 <= room <= 8.0


@in_every_cloud
@each("pool", ["cpu", "gpu"])
def test_tasks_bring_nodes_of_their_pool_and_spot_nodes_first(cloud, pool):
    config = prepare_launcher(cloud)
    assert choose_nodes(config, pool) == {f"{pool}-spot": 1}
    assert choose_nodes(config, pool, labelled=False) == {f"{pool}-spot": 1}
    most = config["available_node_types"][f"{pool}-spot"]["max_workers"]
    chosen = choose_nodes(config, pool, count=1000)
    # Spot nodes up to their limit, then those on demand, and never the other pool's.
    assert chosen == {f"{pool}-spot": most, pool: most}


def _recovery_after(status):
    """Return what the autoscaler remembers of a spot node that came to this state."""
    monitor = CloudResourceMonitor()
    monitor.notify(
        [InstanceUpdateEvent(instance_id="1", instance_type="cpu-spot", new_instance_status=status)]
    )
    return monitor.get_recoverable_resource_availabilities()


@in_every_cloud
def test_a_node_that_never_comes_up_sends_the_autoscaler_to_nodes_on_demand(cloud):
    recovered = _recovery_after(Instance.ALLOCATION_TIMEOUT)
    assert choose_nodes(prepare_launcher(cloud), "cpu", recovered=recovered) == {"cpu": 1}


@in_every_cloud
def test_a_launch_that_the_cloud_refuses_is_tried_again_at_spot(cloud):
    """Ray 2.60's limit, as README.md tells it. Fails when Ray has learnt; then mend that, too."""
    recovered = _recovery_after(Instance.ALLOCATION_FAILED)
    assert choose_nodes(prepare_launcher(cloud), "cpu", recovered=recovered) == {"cpu-spot": 1}


@in_every_cloud
def test_without_spot_nodes_all_work_goes_to_nodes_on_demand(cloud):
    """What README.md says to do then: `max_workers: 0` for the spot type."""
    config = prepare_launcher(cloud)
    config["available_node_types"]["cpu-spot"]["max_workers"] = 0
    assert choose_nodes(config, "cpu") == {"cpu": 1}


def test_google_knows_every_field_of_a_node():
    instance = json.loads((SCHEMAS / "gce_instance.json").read_text())
    validator = jsonschema.Draft202012Validator(instance)
    for name, node_type in read_launcher("gcp")["available_node_types"].items():
        found = [error.message for error in validator.iter_errors(node_type["node_config"])]
        assert not found, (name, found)
    # It does see a slip, and the list that Ray's own example has where the API wants an object.
    assert not validator.is_valid({"machineTyp": "n2-standard-16"})
    assert not validator.is_valid({"scheduling": [{"preemptible": True}]})


def _arm_template(name):
    return json.loads(Path(_azure.__file__).with_name(name).read_text())


def test_azure_knows_every_parameter_of_a_node():
    # The zone is Ray's own, and taken out before the template is filled in.
    known = _arm_template("azure-vm-template.json")["parameters"]
    kinds = {"string": str, "int": int, "bool": bool, "object": dict}
    for name, node_type in read_launcher("azure")["available_node_types"].items():
        parameters = node_type["node_config"]["azure_arm_parameters"]
        for key, value in parameters.items():
            assert isinstance(value, kinds[known[key]["type"]]), (name, key)
        needed = {key for key, about in known.items() if "defaultValue" not in about}
        from_ray = {"vmName", "adminUsername", "publicKey", "vmTags", "vmCount"}
        from_ray |= {"msi", "nsg", "subnet"}
        assert needed - from_ray <= set(parameters)


def test_azure_lets_ssh_in_and_nothing_else():
    (group,) = [
        resource
        for resource in _arm_template("azure-config-template.json")["resources"]
        if resource["type"].endswith("networkSecurityGroups")
    ]
    (rule,) = group["properties"]["securityRules"]
    assert rule["properties"]["destinationPortRange"] == "22"
