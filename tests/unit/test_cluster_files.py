"""What all files of cluster/ have in common, and .ci/: versions, options, shells, secrets."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from ray.scripts.scripts import start

from tests.cases import each
from tests.unit.cluster_files import (
    CLOUDS,
    CLUSTER,
    MANIFESTS,
    POOL,
    ROOT,
    find_object,
    read_launcher,
    read_manifest,
    start_commands,
)

FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
TEXTS = {path.relative_to(CLUSTER).as_posix(): path.read_text() for path in FILES}
OPTIONS = {option for parameter in start.params for option in parameter.opts}
TOKEN_ON = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="


def pinned(name):
    """Return the version of a package in requirements.txt."""
    found = re.search(rf"^{name}==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    return found[1]


def find_tool(name):
    """Return the path of a linter of the development environment."""
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    assert found, f"{name} is not installed: pip install -r requirements.txt"
    return found


def shell_scripts():
    """Yield every piece of shell in cluster/ and .ci/ under a name."""
    for name in (".ci/run", ".ci/lanes"):
        yield name, (ROOT / name).read_text()
    for name, text in TEXTS.items():
        if name.endswith(".sh"):
            yield name, text
    for cloud in CLOUDS:
        for key, commands in read_launcher(cloud).items():
            if key.endswith("_commands"):
                yield f"{cloud}.yaml {key}", "#!/usr/bin/env bash\n" + "\n".join(commands) + "\n"
    job = find_object("rayjob", "RayJob")["spec"]
    yield "rayjob.yaml entrypoint", f"#!/usr/bin/env bash\n{job['entrypoint']}\n"


@each(("name", "text"), list(shell_scripts()), ids=lambda value: value[:40])
def test_shellcheck_finds_nothing(name, text):
    result = subprocess.run(
        [find_tool("shellcheck"), "--format=gcc", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, ""), name


def test_hadolint_finds_nothing():
    result = subprocess.run(
        [find_tool("hadolint"), "--no-color", str(CLUSTER / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == ""
    assert result.returncode == 0


def test_versions_are_those_of_the_tests():
    # In a comment, because torch is installed first and on its own.
    torch = re.search(r"\btorch==([\d.]+\d)", (ROOT / "requirements.txt").read_text())[1]
    assert f"torch=={torch}\n" in (ROOT / "Makefile").read_text()
    asked = [match for text in TEXTS.values() for match in re.findall(r"\btorch==([\d.]+\d)", text)]
    assert len(asked) >= 2
    assert set(asked) == {torch}
    ray = pinned("ray")
    asked = [m for text in TEXTS.values() for m in re.findall(r"ray\[default\]==([\d.]+\d)", text)]
    assert len(asked) >= 2
    assert set(asked) == {ray}
    assert f"boto3=={pinned('boto3')} " in TEXTS["aws.yaml"]
    for name, kind in (("raycluster", "RayCluster"), ("rayjob", "RayJob")):
        spec = find_object(name, kind)["spec"]
        assert spec.get("rayClusterSpec", spec)["rayVersion"] == ray


DISKS = """\
/dev/nvme0n1 Amazon Elastic Block Store
/dev/nvme1n1 Amazon EC2 NVMe Instance Storage
/dev/nvme2n1 Amazon EC2 NVMe Instance Storage
/dev/nvme3n1 nvme_card-pd
/dev/nvme4n1 nvme_card
/dev/nvme5n1 MSFT NVMe Accelerator v1.0
/dev/nvme6n1 Microsoft NVMe Direct Disk v2
/dev/sda     Virtual Disk
/dev/sdb
"""


def test_only_disks_of_the_host_itself_are_formatted(tmp_path):
    (function,) = re.findall(r"^find_flash\(\) \{.*?^\}", TEXTS["setup_node.sh"], re.M | re.S)
    listing = tmp_path / "lsblk"
    listing.write_text(f"#!/bin/sh\ncat <<'END'\n{DISKS}END\n")
    listing.chmod(0o755)
    found = subprocess.run(
        ["bash", "-c", f"{function}\nfind_flash"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [f"/dev/nvme{n}n1" for n in (1, 2, 4, 6)]


def test_nodes_and_images_have_a_python_that_is_tested():
    patterns = {"Dockerfile": r"FROM python:(3\.\d+)", "setup_node.sh": r"python(3\.\d+) "}
    for name, pattern in patterns.items():
        found = set(re.findall(pattern, TEXTS[name]))
        assert len(found) == 1
        assert found <= {"3.11", "3.12"}


def test_the_image_is_built_of_what_the_builder_is_sent():
    sent = re.findall("^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = re.findall(r"^COPY (.+) \S+$", TEXTS["Dockerfile"], re.MULTILINE)
    assert sorted(word for line in copied for word in line.split()) == sorted(sent)
    assert all((ROOT / name).exists() for name in sent)
    # Requirements before code, so that a change of code installs nothing anew.
    assert TEXTS["Dockerfile"].index("-r /opt") < TEXTS["Dockerfile"].index("COPY cosmoflow")
    assert TEXTS["Dockerfile"].rindex("USER 1000") > TEXTS["Dockerfile"].rindex("RUN")


def started_rays():
    """Yield every `ray start` under the name of its file, head or worker."""
    for cloud in CLOUDS:
        head, worker = start_commands(read_launcher(cloud))
        yield f"{cloud} head", head
        yield f"{cloud} worker", worker
    script = TEXTS["slurm.sh"].replace("\\\n", " ")
    commands = re.findall(r"ray start .*", script)
    yield from zip(("slurm head", "slurm worker"), commands, strict=True)


@each(("name", "command"), list(started_rays()), ids=lambda value: value[:12])
def test_ray_starts_behind_a_token_and_shows_its_dashboard_to_nobody(name, command):
    options = re.findall(r"(--[a-z-]+)=?(\S*)", command[command.index("ray start") :])
    assert {option for option, _ in options} <= OPTIONS
    given = dict(options)
    assert ("--head" in given) == name.endswith("head")
    if "--head" in given:
        assert given["--dashboard-host"] == "127.0.0.1"
    assert given["--metrics-export-port"].isdigit()
    text = TEXTS["slurm.sh"] if name.startswith("slurm") else command
    assert TOKEN_ON in text
    if name != "slurm head":
        folder = given["--object-spilling-directory"]
        assert f"COSMOFLOW_SCRATCH={folder}" in text


@each("kind", ["RayCluster", "RayJob"])
def test_kuberay_starts_ray_with_options_that_it_has(kind):
    spec = find_object(kind.lower(), kind)["spec"]
    spec = spec.get("rayClusterSpec", spec)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert {f"--{name}" for name in group["rayStartParams"]} <= OPTIONS
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_labels_name_the_three_pools():
    found = {
        name: set(re.findall(rf"{POOL}[:=] ?(\w+)", text))
        for name, text in TEXTS.items()
        if POOL in text and not name.endswith(".md")
    }
    assert {"aws.yaml", "gcp.yaml", "azure.yaml", "slurm.sh"} < set(found)
    assert set().union(*found.values()) == {"head", "cpu", "gpu"}


SECRETS = (
    r"AKIA[0-9A-Z]{16}", r"-----BEGIN", r"(?i)\b(secret|password|account_key|sas_token)\w*\s*[:=]",
    r"\b[0-9a-f]{32,}\b", r"\bey[A-Za-z0-9_-]{20,}", r"AWS_SECRET", r"RAY_AUTH_TOKEN=",
)  # fmt: skip


@each("name", TEXTS)
def test_no_file_holds_a_secret(name):
    assert not [pattern for pattern in SECRETS if re.search(pattern, TEXTS[name])]


def test_every_object_of_kubernetes_is_without_a_secret():
    assert "Secret" not in {thing["kind"] for name in MANIFESTS for thing in read_manifest(name)}


@each("cloud", CLOUDS)
def test_the_readme_names_what_must_be_filled_in(cloud):
    wanted = set(re.findall(r"\bYOUR[-A-Z]+", yaml.dump(read_launcher(cloud))))
    assert all(word in TEXTS["README.md"] for word in wanted)
