"""``make deploy-infra`` and ``make deploy-apps``: what they would do, and what they say of what is in the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from tools import deploy, kubernetes
from tools.deploy import Manifests, Step
from tools.terminal import SetupError

REGION, ACCOUNT = "eu-central-1", "123456789012"
REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
OUTPUTS = {
    "babblebox-registry": {"Registry": REGISTRY},
    "babblebox-beta-data": {"BlobStore": "s3://blobs-of-beta"},
    "babblebox-beta-private-ca": {"SubordinateArn": f"arn:aws:acm-pca:{REGION}:{ACCOUNT}:certificate-authority/1"},
    "babblebox-beta-cluster": {"AdminRoleArn": f"arn:aws:iam::{ACCOUNT}:role/admin"},
}
FIRST = ("alarms", "network", "data", "private-ca")
"""What the tokens come after."""
TAG = "0123abc"
CDK = "(cd cdk && npx --yes aws-cdk@2.1148.1 deploy"
KUBECTL = "kubectl --context babblebox-beta --namespace"


@pytest.fixture(autouse=True)
def _kustomize(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that every run of the tests has, also where kubectl is not installed."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "kustomize").symlink_to(kubernetes.kustomize())
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """What `cdk deploy --outputs-file` writes."""
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(OUTPUTS))
    return path


def _commands(told: str) -> list[str]:
    return [line for line in told.splitlines() if not line.startswith("#")]


def _lacking(commands: Sequence[str]) -> bool:
    return any(shutil.which(name) is None for name in deploy.MISSING if any(name in command for command in commands))


def test_infra_shows_its_steps_and_does_none(capfd: pytest.CaptureFixture[str]) -> None:
    status = deploy.main(
        ["infra", "--stage", "beta", "--dry-run", "--parameter", "network:DomainName=chat.example.org"]
    )

    commands = _commands(capfd.readouterr().out)
    before = "babblebox-registry " + " ".join(
        f"babblebox-beta-{name}" for name in ("alarms", "network", "data", "private-ca")
    )
    parameter = "--parameters babblebox-beta-network:DomainName=chat.example.org"
    assert commands == [
        "aws sts get-caller-identity",
        "(cd cdk && python app.py)",
        f"{CDK} {before} --app cdk.out --exclusively {parameter})",
        "python -m tools.tokens --stage beta",
        f"{CDK} babblebox-beta-cluster --app cdk.out --exclusively)",
    ]
    assert status == int(_lacking(commands))


def test_apps_show_their_steps_and_do_none(outputs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status = deploy.main(["apps", "--stage", "beta", "--dry-run", "--tag", TAG, "--outputs", str(outputs)])

    commands = _commands(capfd.readouterr().out)
    assert status == int(_lacking(commands))
    image = f"{REGISTRY}/babblebox/web:{TAG}"
    assert commands[1:4] == [
        f"aws ecr get-login-password | docker login --username AWS --password-stdin {REGISTRY}",
        f"docker manifest inspect {image} || docker build --target web --build-arg REVISION={TAG} --tag {image} .",
        f"docker manifest inspect {image} || docker push {image}",
    ]
    role = OUTPUTS["babblebox-beta-cluster"]["AdminRoleArn"]
    web = "babblebox-beta-web babblebox-beta-observability"
    in_order = [
        f"docker manifest inspect {REGISTRY}/babblebox/beat:{TAG} || docker push {REGISTRY}/babblebox/beat:{TAG}",
        f"aws eks update-kubeconfig --name babblebox-beta --alias babblebox-beta --role-arn {role}",
        f"{KUBECTL} pulsar rollout status statefulset/pulsar-proxy --timeout=20m",
        f"{KUBECTL} pulsar wait --for=condition=complete job/tenant --timeout=20m",
        f"{KUBECTL} babblebox wait --for=condition=complete job/migrate --timeout=20m",
        f"{KUBECTL} babblebox wait --for=condition=complete job/topics --timeout=20m",
        f"{KUBECTL} babblebox rollout status deployment/transcribe --timeout=20m",
        f"{CDK} {web} --app cdk.out --exclusively --parameters babblebox-beta-web:ImageTag={TAG})",
        "aws ecs wait services-stable --cluster babblebox-beta --services web relay",
    ]
    assert [command for command in commands if command in in_order] == in_order


def test_apps_can_be_shown_before_there_are_stacks(capfd: pytest.CaptureFixture[str]) -> None:
    deploy.main(["apps", "--stage", "prod", "--dry-run", "--tag", TAG, "--only", "images"])

    assert "'<babblebox-registry.Registry>'" in capfd.readouterr().out


def test_pipeline_changes_the_cluster_in_its_own_role(outputs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    deploy.main(["apps", "--stage", "beta", "--dry-run", "--tag", TAG, "--outputs", str(outputs), "--pipeline"])

    commands = _commands(capfd.readouterr().out)
    assert commands[1] == "aws eks update-kubeconfig --name babblebox-beta --alias babblebox-beta"
    assert all(command.startswith("kubectl") for command in commands[2:])


def test_make_passes_stage_tag_and_dry_run_on(outputs: Path) -> None:
    arguments = ["STAGE=beta", f"TAG={TAG}", "DRY_RUN=1", f"ARGS=--outputs={outputs}"]
    done = subprocess.run(["make", "deploy-apps", *arguments], capture_output=True, text=True, check=False)

    assert f"docker push {REGISTRY}/babblebox/web:{TAG}" in done.stdout, done.stderr


# What the stacks say gets where it belongs


def test_manifests_have_what_the_stacks_say(outputs: Path, tmp_path: Path) -> None:
    known = {
        "TAG": TAG,
        "REGISTRY": REGISTRY,
        "BLOB_STORE": "s3://blobs",
        "AWS_REGION": REGION,
        "PCA_ARN": "arn:of:pca",
    }
    before = _content(deploy.MANIFESTS)

    manifests = Manifests.render(tmp_path, "beta", known)

    images = {container["image"] for each in manifests.apps for container in _containers(each)}
    assert images <= {f"{REGISTRY}/babblebox/{name}:{TAG}" for name in deploy.IMAGES}
    [config] = _named(manifests.apps, "ConfigMap", "config")
    assert config["data"]["BLOB_STORE"] == "s3://blobs"
    [issuer] = _named(manifests.pulsar, "AWSPCAClusterIssuer", "")
    assert issuer["spec"] == {"arn": "arn:of:pca", "region": REGION}
    assert _content(deploy.MANIFESTS) == before


def test_value_that_no_stack_says_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"beta/stack\.yaml wants AWS_REGION, which no stack"):
        Manifests.render(tmp_path, "beta", {"PCA_ARN": "arn:of:pca"})


def test_cloudformation_is_asked_for_the_outputs() -> None:
    client = boto3.client("cloudformation", region_name=REGION, aws_access_key_id="k", aws_secret_access_key="s")
    told = {"OutputKey": "Registry", "OutputValue": REGISTRY}
    stack = {"StackName": "r", "CreationTime": 0, "StackStatus": "CREATE_COMPLETE", "Outputs": [told]}
    with Stubber(client) as aws:
        aws.add_response("describe_stacks", {"Stacks": [stack]}, {"StackName": "babblebox-registry"})

        assert deploy.ask_cloudformation(client, ["babblebox-registry"]) == {
            "babblebox-registry": {"Registry": REGISTRY}
        }


# What is in the way is said


def _refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert deploy.main(arguments) == 1
    return capfd.readouterr().err


def test_stage_that_there_is_none_of_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        deploy.main(["infra", "--stage", "gamma"])

    assert "choose from" in capfd.readouterr().err


def test_outputs_that_cannot_be_read_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    apps = ["apps", "--stage", "beta", "--dry-run", "--tag", TAG, "--outputs"]
    (tmp_path / "words").write_text("words")
    (tmp_path / "none").write_text("{}")

    assert "No such file" in _refused(capfd, *apps, str(tmp_path / "nothing"))
    assert "cannot be read" in _refused(capfd, *apps, str(tmp_path / "words"))
    assert "babblebox-registry has no output Registry; `make deploy-infra`" in _refused(
        capfd, *apps, str(tmp_path / "none")
    )


def test_parameter_of_no_stack_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    told = _refused(capfd, "infra", "--stage", "beta", "--dry-run", "--parameter", "net:DomainName=x")

    assert "write STACK:NAME=VALUE with a stack among alarms, network, data" in told


def test_missing_program_is_named_and_nothing_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    told = _refused(capfd, "infra", "--stage", "beta")

    assert "`npx` is not installed here: Node.js" in told
    assert "..." not in told


def test_step_that_fails_ends_the_deployment(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SetupError, match="It: `false` ended with 1"):
        Step("It", ("false",)).run()
    with pytest.raises(subprocess.CalledProcessError):
        Step("It", ("true",), reads=("false",)).run()


def test_step_reads_what_it_is_given_and_is_not_done_twice(capfd: pytest.CaptureFixture[str]) -> None:
    Step("Text", ("cat",), text="a text").run()
    Step("Piped", ("cat",), reads=("echo", "a pipe")).run()
    Step("Done", ("echo", "never"), unless=("true",)).run()

    told = capfd.readouterr()
    assert told.out == "a texta pipe\n"
    assert told.err.splitlines() == ["Text ...", "Piped ...", "Done: done before"]


def _content(folder: Path) -> dict[str, bytes]:
    files = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return {str(path): path.read_bytes() for path in files}


def _containers(each: Mapping[str, Any]) -> list[dict[str, Any]]:
    if each["kind"] not in ("Deployment", "Job"):
        return []
    pod = each["spec"]["template"]["spec"]
    return [*pod["containers"], *pod.get("initContainers", [])]


def _named(objects: Sequence[Mapping[str, Any]], kind: str, start: str) -> list[Mapping[str, Any]]:
    return [each for each in objects if each["kind"] == kind and each["metadata"]["name"].startswith(start)]
