"""``make deploy-infra STAGE=beta`` and ``make deploy-apps STAGE=beta``: brings AWS to what this checkout says.

Both are lists of steps, each of them one program with its arguments. With ``--dry-run`` what can be told from here is
checked and the steps are printed; nothing is changed, and nobody is asked. docs/deploy.md tells the whole way.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from tools import environment
from tools.terminal import SetupError, say

STAGES = ("beta", "prod")
CDK = environment.CHECKOUT / "cdk"
MANIFESTS = environment.CHECKOUT / "k8s"
CDK_PROGRAM = ("npx", "--yes", "aws-cdk@2.1148.1")
"""The command line of CDK; version 3 cannot read what the library of version 2 writes."""
IMAGES = ("web", "worker", "transcribe", "images", "beat")
INFRA = ("alarms", "network", "data", "private-ca", "cluster")
"""The stacks of a stage without those that need an image, in their order; the tokens come before the cluster."""
APPS = ("web", "observability")
PARTS = ("images", "pulsar", "workers", "web")
"""What deploy-apps does, in its order."""
PIPELINE_PARTS = ("pulsar", "workers")
"""Without what the pipeline has steps of its own for."""
OUTPUTS = {
    "REGISTRY": ("registry", "Registry"),
    "BLOB_STORE": ("data", "BlobStore"),
    "PCA_ARN": ("private-ca", "SubordinateArn"),
    "ADMIN_ROLE": ("cluster", "AdminRoleArn"),
}
"""What the manifests and the steps want to know, and the stack and output that say it."""
BEFORE_ROLLOUT = ("migrate", "topics")
"""Jobs that have to end well before any Deployment is changed."""
PATIENCE = "--timeout=20m"
MISSING = {
    "aws": "the AWS CLI, version 2",
    "docker": "Docker with BuildKit, for the images",
    "kubectl": "kubectl, at most one minor version from the cluster's",
    "npx": "Node.js 22, for the command line of CDK",
}


@dataclass(frozen=True)
class Step:
    """One program that is run."""

    what: str
    command: Sequence[str]
    reads: Sequence[str] = ()
    """A program whose output it reads."""
    text: str | None = field(default=None, repr=False)
    """What it reads, if that is no program's output."""
    unless: Sequence[str] = ()
    """A program; if that ends well, the step is done already."""
    folder: Path = environment.CHECKOUT
    python: Callable[[], Path] | None = None
    """The Python that the program means by ``python``."""

    def run(self) -> None:
        """Runs it, with its output on this terminal.

        Raises:
            SetupError: it failed.
        """
        env = dict(os.environ)
        if self.python is not None:
            env["PATH"] = f"{self.python().parent}{os.pathsep}{env['PATH']}"
        if self.unless and subprocess.run(self.unless, capture_output=True, env=env, check=False).returncode == 0:
            say(f"{self.what}: done before")
            return
        say(f"{self.what} ...")
        given = self.text
        if self.reads:
            given = subprocess.run(self.reads, stdout=subprocess.PIPE, text=True, env=env, check=True).stdout
        done = subprocess.run(self.command, input=given, text=True, cwd=self.folder, env=env, check=False)
        if done.returncode:
            raise SetupError(f"{self.what}: `{shlex.join(self.command)}` ended with {done.returncode}.")

    def __str__(self) -> str:
        """As a shell would run it."""
        words = shlex.join(self.command)
        if self.reads:
            words = f"{shlex.join(self.reads)} | {words}"
        if self.unless:
            words = f"{shlex.join(self.unless)} || {words}"
        if self.folder != environment.CHECKOUT:
            words = f"(cd {self.folder.relative_to(environment.CHECKOUT)} && {words})"
        return f"# {self.what}\n{words}"

    @property
    def programs(self) -> Iterator[str]:
        """What has to be installed for it."""
        for command in (self.command, self.reads, self.unless):
            if command and command[0] != "python":
                yield command[0]


WHO = Step("Who deploys, and to which account", ("aws", "sts", "get-caller-identity"))
"""Ends a deployment without credentials before it has done anything."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Does or shows the steps; 1 when something is in the way."""
    options = _parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="deploy-") as folder:
            parameters = [_parameter(options.stage, given) for given in options.parameter]
            if options.command == "infra":
                steps = list(infra_steps(options.stage, parameters))
            else:
                steps = list(_apps(options, parameters, Path(folder)))
            lacking = _lacking(steps)
            if options.dry_run:
                print("\n".join(map(str, steps)), flush=True)
            elif not lacking:
                for step in steps:
                    step.run()
    except (SetupError, BotoCoreError, ClientError, subprocess.CalledProcessError) as error:
        say(f"Deployment stopped: {error}")
        return 1
    for program in lacking:
        say(f"`{program}` is not installed here: {MISSING.get(program, program)}.")
    return 1 if lacking else 0


def infra_steps(stage: str, parameters: Sequence[str]) -> Iterator[Step]:
    """Everything but web and relay, which need an image: network, data, authorities, tokens, cluster and Pulsar."""
    *first, cluster = (stack_name(stage, name) for name in INFRA)
    yield WHO
    yield _templates()
    yield _deploy_stacks("Registry, network, data and authorities", [stack_name(stage, "registry"), *first], parameters)
    tokens = ("python", "-m", "tools.tokens", "--stage", stage)
    yield Step("Keys and tokens in Secrets Manager", tokens, python=environment.deployment)
    yield _deploy_stacks("Cluster and Pulsar", [cluster], parameters)


@dataclass(frozen=True)
class Apps:
    """What runs of the apps in a stage, and of which commit."""

    stage: str
    tag: str
    known: Mapping[str, str]
    """What the stacks say, by the names of `OUTPUTS`."""
    manifests: Manifests
    parameters: Sequence[str] = ()

    def steps(self, parts: Collection[str], *, in_own_role: bool = False) -> Iterator[Step]:
        """Images, what Pulsar needs in the cluster, workers, and at last web and relay.

        Args:
            parts: Which of `PARTS`.
            in_own_role: Whether who runs this may change the cluster, and need not become its administrator.
        """
        yield WHO
        if "images" in parts:
            yield from _images(self.tag, self.known["REGISTRY"])
        if {"pulsar", "workers"} & set(parts):
            role = () if in_own_role else ("--role-arn", self.known["ADMIN_ROLE"])
            config = (
                "aws",
                "eks",
                "update-kubeconfig",
                "--name",
                cluster_name(self.stage),
                "--alias",
                cluster_name(self.stage),
            )
            yield Step("Access to the cluster", (*config, *role))
        if "pulsar" in parts:
            yield from _pulsar(self.stage, self.manifests.pulsar)
        if "workers" in parts:
            yield from _workers(self.stage, self.manifests.apps)
        if "web" in parts:
            yield from self._web()

    def _web(self) -> Iterator[Step]:
        parameters = [*self.parameters, f"{stack_name(self.stage, 'web')}:ImageTag={self.tag}"]
        yield _templates()
        yield _deploy_stacks("Web and relay, and alarms", [stack_name(self.stage, name) for name in APPS], parameters)
        wait = (
            "aws",
            "ecs",
            "wait",
            "services-stable",
            "--cluster",
            cluster_name(self.stage),
            "--services",
            "web",
            "relay",
        )
        yield Step("Wait for web and relay", wait)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tools deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    infra, apps = (commands.add_parser(name) for name in ("infra", "apps"))
    for command in (infra, apps):
        command.add_argument("--stage", choices=STAGES, required=True)
        command.add_argument("--dry-run", action="store_true", help="check what can be checked here, show the steps")
        command.add_argument(
            "--parameter",
            action="append",
            default=[],
            metavar="STACK:NAME=VALUE",
            help="of a stack, kept once it is given, as in network:DomainName=chat.example.org",
        )
    apps.add_argument("--tag", help="of images; default: the commit that is checked out, with nothing changed")
    apps.add_argument("--only", action="append", choices=PARTS, help="a part of it; may be repeated")
    apps.add_argument("--pipeline", action="store_true", help="what the pipeline has no step of its own for")
    apps.add_argument("--outputs", type=Path, help="outputs of stacks, as cdk deploy --outputs-file has them")
    return parser


def _apps(options: argparse.Namespace, parameters: Sequence[str], folder: Path) -> Iterator[Step]:
    tag = options.tag or _commit()
    known = _known(options.stage, options.outputs, ask=not options.dry_run)
    manifests = Manifests.render(folder, options.stage, {**known, "TAG": tag})
    parts = PIPELINE_PARTS if options.pipeline else options.only or PARTS
    return Apps(options.stage, tag, known, manifests, parameters).steps(parts, in_own_role=options.pipeline)


# What is known


def _commit() -> str:
    """The commit that is checked out.

    Raises:
        SetupError: something is changed in it, so that no commit says what would be deployed.
    """
    if _told("git", "status", "--porcelain"):
        raise SetupError("Something is changed here and not committed; commit it, or name a --tag that was built.")
    return _told("git", "rev-parse", "HEAD")


def _told(*command: str) -> str:
    done = subprocess.run(command, cwd=environment.CHECKOUT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _known(stage: str, file: Path | None, *, ask: bool) -> dict[str, str]:
    """What the stacks say: in a file, else CloudFormation; where nobody may be asked, where it would come from."""
    stacks = {stack_name(stage, name) for name, _ in OUTPUTS.values()}
    if file is not None:
        outputs = _read(file)
    elif ask:
        outputs = ask_cloudformation(boto3.client("cloudformation"), stacks)
    else:
        outputs = {
            stack_name(stage, name): {output: f"<{stack_name(stage, name)}.{output}>"}
            for name, output in OUTPUTS.values()
        }
    known = {}
    for key, (name, output) in OUTPUTS.items():
        try:
            known[key] = outputs[stack_name(stage, name)][output]
        except KeyError:
            raise SetupError(
                f"{stack_name(stage, name)} has no output {output}; `make deploy-infra` comes first."
            ) from None
    parts = known["PCA_ARN"].split(":")  # arn:aws:acm-pca:REGION:...
    known["AWS_REGION"] = parts[3] if len(parts) > 3 else "<region>"
    return known


def ask_cloudformation(client: Any, stacks: Iterable[str]) -> dict[str, dict[str, str]]:
    """The outputs of these stacks."""
    found = {}
    for name in stacks:
        [stack] = client.describe_stacks(StackName=name)["Stacks"]
        found[name] = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}
    return found


def _read(file: Path) -> dict[str, dict[str, str]]:
    try:
        outputs = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SetupError(f"The outputs of the stacks cannot be read: {error}") from None
    if not isinstance(outputs, dict):
        raise SetupError(f"{file} does not hold outputs of stacks, as cdk deploy --outputs-file writes them.")
    return outputs


@dataclass(frozen=True)
class Manifests:
    """The objects of a stage, as kustomize renders them with what the stacks know."""

    pulsar: Sequence[Mapping[str, Any]]
    apps: Sequence[Mapping[str, Any]]

    @classmethod
    def render(cls, folder: Path, stage: str, values: Mapping[str, str]) -> Manifests:
        """Renders a copy in `folder`, so that nothing of an account gets into the checkout.

        Raises:
            SetupError: a value is not known, or kustomize fails.
        """
        copy = folder / MANIFESTS.name
        shutil.copytree(MANIFESTS, copy)
        return cls(*(_render(copy / path / stage, values) for path in ("pulsar/overlays", "overlays")))


def _render(overlay: Path, values: Mapping[str, str]) -> list[dict[str, Any]]:
    path = overlay / "stack.yaml"
    stack = yaml.safe_load(path.read_text("utf-8"))
    stack["data"] = {name: values.get(name, given) for name, given in stack["data"].items()}
    unknown = [name for name, value in stack["data"].items() if value == "none" or ".invalid" in value]
    if unknown:
        raise SetupError(f"{path.parent.name}/{path.name} wants {', '.join(unknown)}, which no stack says.")
    path.write_text(yaml.safe_dump(stack))
    kustomize = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    if shutil.which(kustomize[0]) is None:
        raise SetupError(f"`kubectl` is not installed here: {MISSING['kubectl']}.")
    done = subprocess.run([*kustomize, str(overlay)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"kustomize: {done.stderr.strip()}")
    return list(yaml.safe_load_all(done.stdout))


def _lacking(steps: Iterable[Step]) -> list[str]:
    """The programs that are not installed."""
    wanted = dict.fromkeys(program for step in steps for program in step.programs)
    return [program for program in wanted if shutil.which(program) is None]


def _parameter(stage: str, given: str) -> str:
    """A parameter as CDK takes it.

    >>> _parameter("beta", "network:DomainName=chat.example.org")
    'babblebox-beta-network:DomainName=chat.example.org'

    Raises:
        SetupError: it is not written so.
    """
    name, _, setting = given.partition(":")
    if name not in (*INFRA, *APPS) or "=" not in setting:
        raise SetupError(f"{given!r}: write STACK:NAME=VALUE with a stack among {', '.join((*INFRA, *APPS))}.")
    return f"{stack_name(stage, name)}:{setting}"


# The steps


def _templates() -> Step:
    return Step("The templates of all stacks", ("python", "app.py"), folder=CDK, python=environment.cdk)


def _deploy_stacks(what: str, stacks: Sequence[str], parameters: Sequence[str]) -> Step:
    """CDK asks before it widens rights or lets more in."""
    own = [given for given in parameters if given.partition(":")[0] in stacks]
    options = ["--app", "cdk.out", "--exclusively", *(word for given in own for word in ("--parameters", given))]
    return Step(what, (*CDK_PROGRAM, "deploy", *stacks, *options), folder=CDK)


def _images(tag: str, registry: str) -> Iterator[Step]:
    """Those that are not in the registry: a tag there never changes."""
    login = ("docker", "login", "--username", "AWS", "--password-stdin", registry)
    yield Step("Log in to the registry", login, reads=("aws", "ecr", "get-login-password"))
    for name in IMAGES:
        image = f"{registry}/babblebox/{name}:{tag}"
        there = ("docker", "manifest", "inspect", image)
        build = ("docker", "build", "--target", name, "--build-arg", f"REVISION={tag}", "--tag", image, ".")
        yield Step(f"Image {name}", build, unless=there)
        yield Step(f"Push {name}", ("docker", "push", image), unless=there)


def _pulsar(stage: str, objects: Sequence[Mapping[str, Any]]) -> Iterator[Step]:
    """What the chart's pods wait for; then they, and the tenant of the apps."""
    kubectl = _kubectl(stage, "pulsar")
    jobs = [each for each in objects if each["kind"] == "Job"]
    yield _apply("What Pulsar needs", kubectl, [each for each in objects if each["kind"] != "Job"])
    for component in ("zookeeper", "bookie", "broker", "proxy"):
        ready = ("rollout", "status", f"statefulset/pulsar-{component}", PATIENCE)
        yield Step(f"Wait for Pulsar's {component}", (*kubectl, *ready))
    yield from _run_jobs(kubectl, jobs)


def _workers(stage: str, objects: Sequence[Mapping[str, Any]]) -> Iterator[Step]:
    """First what they need, tables and topics, then they."""
    kubectl = _kubectl(stage, "babblebox")
    jobs = [each for each in objects if each["kind"] == "Job"]
    if missing := set(BEFORE_ROLLOUT) - {job["metadata"]["name"] for job in jobs}:
        raise SetupError(f"The manifests have no Job {', '.join(sorted(missing))}.")
    running = [each for each in objects if each["kind"] in ("Deployment", "ScaledObject")]
    needed = [each for each in objects if each not in jobs and each not in running]
    yield _apply("What the workers need", kubectl, needed)
    yield from _run_jobs(kubectl, jobs)
    yield _apply("Workers and beat", kubectl, running)
    for each in running:
        if each["kind"] == "Deployment":
            name = each["metadata"]["name"]
            yield Step(f"Wait for {name}", (*kubectl, "rollout", "status", f"deployment/{name}", PATIENCE))


def _run_jobs(kubectl: Sequence[str], jobs: Sequence[Mapping[str, Any]]) -> Iterator[Step]:
    """Each anew: a Job cannot be changed, and one that has ended does not run again."""
    for job in jobs:
        name = job["metadata"]["name"]
        yield Step(f"Remove the former Job {name}", (*kubectl, "delete", "job", name, "--ignore-not-found", "--wait"))
        yield _apply(f"Job {name}", kubectl, [job])
        wait = ("wait", "--for=condition=complete", f"job/{name}", PATIENCE)
        yield Step(f"Wait for Job {name}", (*kubectl, *wait))


def _apply(what: str, kubectl: Sequence[str], objects: Sequence[Mapping[str, Any]]) -> Step:
    named = ", ".join(f"{each['kind']} {each['metadata']['name']}" for each in objects)
    apply = (*kubectl, "apply", "--server-side", "--force-conflicts", "--filename", "-")
    return Step(f"{what}: {named}", apply, text=yaml.safe_dump_all(objects))


def _kubectl(stage: str, namespace: str) -> tuple[str, ...]:
    return ("kubectl", "--context", cluster_name(stage), "--namespace", namespace)


def stack_name(stage: str, name: str) -> str:
    """The name that cdk/ gives a stack.

    >>> stack_name("beta", "data"), stack_name("beta", "registry")
    ('babblebox-beta-data', 'babblebox-registry')
    """
    return f"babblebox-{name}" if name == "registry" else f"babblebox-{stage}-{name}"


def cluster_name(stage: str) -> str:
    return f"babblebox-{stage}"


if __name__ == "__main__":
    sys.exit(main())
