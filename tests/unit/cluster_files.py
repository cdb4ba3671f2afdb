"""Reading the files of cluster/, for the tests of what Ray and the clouds make of them."""

from contextlib import chdir
from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT / "tests" / "data" / "cluster"
CLOUDS = ("aws", "gcp", "azure")
MANIFESTS = ("raycluster", "rayjob", "networkpolicy")
POOL = "cosmoflow/pool"
GIB = 1 << 30

_TASK = {"cpu": {"CPU": 8, "memory": 16 * GIB}, "gpu": {"CPU": 4, "GPU": 1, "memory": 16 * GIB}}
"""What a task for each pool may ask for."""


def read_launcher(cloud):
    """Return a launcher file as it stands."""
    return yaml.safe_load((CLUSTER / f"{cloud}.yaml").read_text())


def prepare_launcher(cloud):
    """Return a launcher file as ``ray up`` completes it, from the root of the clone."""
    with chdir(ROOT):
        return prepare_config(read_launcher(cloud))


def read_manifest(name):
    """Return the objects of a Kubernetes manifest."""
    return list(yaml.safe_load_all((CLUSTER / "kubernetes" / f"{name}.yaml").read_text()))


def find_object(name, kind):
    """Return the one object of a kind in a manifest."""
    (found,) = [each for each in read_manifest(name) if each["kind"] == kind]
    return found


def start_commands(config):
    """Return the `ray start` commands of a launcher file, the head's first."""
    keys = ("head_start_ray_commands", "worker_start_ray_commands")
    (head, worker) = ([c for c in config[key] if "ray start" in c] for key in keys)
    assert len(head) == len(worker) == 1
    return head[0], worker[0]


def choose_nodes(config, pool, count=1, *, labelled=True, recovered=None):
    """Return which nodes Ray's autoscaler would start for some tasks of a pool.

    Parameters
    ----------
    config : dict
        Of the autoscaler, prepared.
    pool : {"cpu", "gpu"}
        Where the tasks belong.
    count : int
        How many tasks.
    labelled : bool
        Whether tasks without GPUs ask to stay off the GPU pool, as those of cosmoflow do as soon as
        nodes of both pools are up (``cosmoflow.engine.nodes.placement``).
    recovered : dict, optional
        How far types of nodes have recovered from a failure, from 0 to 1; see Ray's
        CloudResourceMonitor.
    """
    types = AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs()
    off_gpus = [(POOL, LabelSelectorOperator.LABEL_OPERATOR_NOT_IN, ["gpu"])]
    selectors = [off_gpus] if labelled and pool == "cpu" else None
    request = ResourceRequestUtil.make(_TASK[pool], label_selectors=selectors)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=config["max_workers"] + 1,
            resource_requests=ResourceRequestUtil.group_by_count([request] * count),
            recoverable_resource_availabilities=recovered or {},
        )
    )
    return {each.instance_type: each.count for each in reply.to_launch}
