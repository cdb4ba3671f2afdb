"""cluster/aws.yaml against a stand-in for EC2 and IAM (moto), by the code that `ray up` runs."""

from types import SimpleNamespace

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws import node_provider
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.tags import (
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from tests.cases import each
from tests.unit.cluster_files import CLUSTER, GIB, prepare_launcher

REGION = "us-east-1"


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    """An account with the roles of README.md, and the launcher file as Ray completes it there."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
        for part in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            patch.setenv(f"AWS_{part}", "none")
        ec2, iam = boto3.client("ec2"), boto3.client("iam")
        for pool in ("head", "worker"):
            iam.create_instance_profile(InstanceProfileName=f"cosmoflow-{pool}")
        config = AWSNodeProvider.bootstrap_config(prepare_launcher("aws"))
        yield SimpleNamespace(config=config, ec2=ec2, patch=patch)


def launch(account, name):
    """Have Ray start one node of a type; return what EC2 made of it."""
    provider = AWSNodeProvider(account.config["provider"], "cosmoflow")
    tags = {
        TAG_RAY_NODE_KIND: "worker",
        TAG_RAY_NODE_NAME: name,
        TAG_RAY_NODE_STATUS: "uninitialized",
        TAG_RAY_LAUNCH_CONFIG: "0",
        TAG_RAY_USER_NODE_TYPE: name,
    }
    node = account.config["available_node_types"][name]["node_config"]
    (made,) = provider.create_node(node, tags, 1)
    found = account.ec2.describe_instances(InstanceIds=[made])
    return found["Reservations"][0]["Instances"][0]


def test_ssh_is_all_that_the_world_reaches(account):
    groups = account.ec2.describe_security_groups(
        Filters=[{"Name": "group-name", "Values": ["cosmoflow"]}]
    )["SecurityGroups"]
    (group,) = groups
    for rule in group["IpPermissions"]:
        if rule["IpRanges"] or rule["Ipv6Ranges"]:
            assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
        else:
            assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]
    for node_type in account.config["available_node_types"].values():
        assert node_type["node_config"]["SecurityGroupIds"] == [group["GroupId"]]


def test_declared_resources_are_those_of_the_instances(account):
    types = account.config["available_node_types"]
    shapes = sorted({each["node_config"]["InstanceType"] for each in types.values()})
    catalogue = account.ec2.describe_instance_types(InstanceTypes=shapes)["InstanceTypes"]
    account.patch.setattr(node_provider, "list_ec2_instances", lambda *_: catalogue)
    bare = {name: {**each, "resources": {}} for name, each in types.items()}
    filled = AWSNodeProvider.fillout_available_node_types_resources(
        {**account.config, "available_node_types": bare}
    )["available_node_types"]
    for name in ("cpu-spot", "cpu", "gpu-spot", "gpu"):
        declared, found = types[name]["resources"], filled[name]["resources"]
        assert declared["CPU"] == found["CPU"]
        assert declared.get("GPU") == found.get("GPU")
        # Ray would have all but the object store for workers, and nothing for itself.
        assert declared["memory"] <= found["memory"] - 4 * GIB


@each(
    ("name", "market"), [("cpu-spot", "spot"), ("gpu-spot", "spot"), ("cpu", None), ("gpu", None)]
)
def test_nodes_are_rented_as_their_type_says(account, name, market):
    node = launch(account, name)
    assert node.get("InstanceLifecycle") == market
    assert node["MetadataOptions"]["HttpTokens"] == "required"
    assert node["IamInstanceProfile"]["Arn"].endswith("/cosmoflow-worker")


class _Tags(yaml.SafeLoader):
    """Reads CloudFormation's short functions as the text after them."""


_Tags.add_multi_constructor("!", lambda loader, _, node: loader.construct_scalar(node))


def test_the_head_may_rent_nodes_and_workers_may_not():
    template = yaml.load((CLUSTER / "aws-account.yaml").read_text(), Loader=_Tags)
    resources = template["Resources"]
    allowed = {}
    for name in ("HeadRole", "WorkerRole"):
        policies = resources[name]["Properties"]["Policies"]
        statements = [s for p in policies for s in p["PolicyDocument"]["Statement"]]
        assert {s["Effect"] for s in statements} == {"Allow"}
        allowed[name] = {action for s in statements for action in s["Action"]}
        assert not [action for action in allowed[name] if action.endswith(":*")]
    assert {"ec2:RunInstances", "iam:PassRole"} <= allowed["HeadRole"]
    assert {action.split(":")[0] for action in allowed["WorkerRole"]} == {"s3"}
    assert allowed["WorkerRole"] < allowed["HeadRole"]
    bucket = resources["Bucket"]["Properties"]["PublicAccessBlockConfiguration"]
    assert set(bucket.values()) == {True}
    profiles = [r["Properties"]["InstanceProfileName"] for r in resources.values()
                if r["Type"] == "AWS::IAM::InstanceProfile"]  # fmt: skip
    assert sorted(profiles) == ["cosmoflow-head", "cosmoflow-worker"]


def test_the_account_can_be_made(account):
    text = (CLUSTER / "aws-account.yaml").read_text()
    client = boto3.client("cloudformation")
    client.create_stack(
        StackName="cosmoflow",
        TemplateBody=text.replace("InstanceProfileName: cosmoflow-", "InstanceProfileName: made-"),
        Parameters=[{"ParameterKey": "BucketName", "ParameterValue": "boxes"}],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    (stack,) = client.describe_stacks(StackName="cosmoflow")["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    profile = boto3.client("iam").get_instance_profile(InstanceProfileName="made-worker")
    (role,) = profile["InstanceProfile"]["Roles"]
    assert role["RoleName"] == "cosmoflow-worker"
    assert [b["Name"] for b in boto3.client("s3").list_buckets()["Buckets"]] == ["boxes"]
