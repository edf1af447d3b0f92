"""From a commit to both stages: tests, images, beta, a person's word, prod."""

from collections.abc import Mapping, Sequence

import aws_cdk as cdk
from aws_cdk import aws_codebuild as codebuild
from aws_cdk import aws_codeconnections as codeconnections
from aws_cdk import aws_codepipeline as codepipeline
from aws_cdk import aws_codepipeline_actions as actions
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct, IConstruct

from babblebox import names
from babblebox.cluster import KUBERNETES
from babblebox.findings import explain, wildcard
from babblebox.registry import Registry
from babblebox.stages import Stage

SERVICES = ("web", "relay")
"""What runs on Fargate: each of the image `web`, which its container for credentials is, too."""
ARTIFACT_ACTIONS = (
    *("s3:GetObject", "s3:GetBucket", "s3:List", "s3:DeleteObject", "s3:Abort"),
    *("kms:GenerateDataKey", "kms:ReEncrypt"),
)
"""What CDK allows the steps of a pipeline, each with everything that begins so."""
COMMIT = "$CODEBUILD_RESOLVED_SOURCE_VERSION"
"""The tag of an image is the commit that it was built from."""


class Pipelines(cdk.Stack):
    """One pipeline for all stages, so that prod gets what beta had."""

    def __init__(self, scope: Construct, id: str, *, stages: Sequence[Stage], registry: Registry) -> None:
        super().__init__(scope, id)
        self.registry = registry
        self.key = kms.Key(self, "Key", enable_key_rotation=True, description="What the pipeline's steps hand on")
        self.pipeline = self._pipeline()
        source, built = codepipeline.Artifact("source"), codepipeline.Artifact("built")
        self.pipeline.add_stage(stage_name="source", actions=[self._source(source)])
        self.pipeline.add_stage(stage_name="test", actions=[self._step("test", source, _TEST)])
        self.pipeline.add_stage(stage_name="images", actions=[self._images(source, built)])
        approval = self._approval()
        for stage in stages:
            waits = [approval] if stage is stages[-1] else []
            self.pipeline.add_stage(stage_name=stage.name, actions=[*waits, *self._deploy(stage, source, built)])
        self._explain()

    def _pipeline(self) -> codepipeline.Pipeline:
        bucket = s3.Bucket(
            self,
            "Artifacts",
            encryption=s3.BucketEncryption.KMS,
            encryption_key=self.key,
            bucket_key_enabled=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            lifecycle_rules=[s3.LifecycleRule(expiration=cdk.Duration.days(30))],
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        explain(bucket, "It hands artifacts from step to step; CloudTrail tells who changed the pipeline.", "S1")
        return codepipeline.Pipeline(
            self,
            "Pipeline",
            pipeline_name=names.PROJECT,
            pipeline_type=codepipeline.PipelineType.V2,
            execution_mode=codepipeline.ExecutionMode.QUEUED,
            artifact_bucket=bucket,
        )

    def _source(self, source: codepipeline.Artifact) -> actions.CodeStarConnectionsSourceAction:
        connection = codeconnections.CfnConnection(
            self, "GitHub", connection_name=names.PROJECT, provider_type="GitHub"
        )
        asked = {
            "RepositoryOwner": "The owner of the repository on GitHub",
            "RepositoryName": "Its name",
            "Branch": "The branch that is deployed",
        }
        owner, name, branch = (
            cdk.CfnParameter(self, parameter, description=what).value_as_string for parameter, what in asked.items()
        )
        cdk.CfnOutput(self, "ConnectionArn", value=connection.attr_connection_arn)
        return actions.CodeStarConnectionsSourceAction(
            action_name="github",
            connection_arn=connection.attr_connection_arn,
            owner=owner,
            repo=name,
            branch=branch,
            output=source,
            trigger_on_push=True,
        )

    def _images(self, source: codepipeline.Artifact, built: codepipeline.Artifact) -> actions.CodeBuildAction:
        """Built once, pushed under the commit's name; a tag that is there was built before and stays."""
        project = self._project("images", _images_spec(self.registry), privileged=True)
        for repository in self.registry.repositories.values():
            repository.grant_pull_push(project)
        explain(project, "Every registry's log-in, which cannot be limited.", wildcard("*"))
        explain(project, "Docker builds images; the project runs commands of this repository alone.", "CB3")
        return actions.CodeBuildAction(action_name="images", project=project, input=source, outputs=[built])

    def _approval(self) -> actions.ManualApprovalAction:
        topic = sns.Topic(self, "Approvals", master_key=self.key, enforce_ssl=True)
        address = cdk.CfnParameter(self, "ApprovalEmail", description="Who is asked before a rollout to prod")
        topic.add_subscription(subscriptions.EmailSubscription(address.value_as_string))
        return actions.ManualApprovalAction(
            action_name="approve",
            notification_topic=topic,
            additional_information="Beta runs this commit. Approve to roll it out to prod.",
            run_order=1,
        )

    def _deploy(
        self, stage: Stage, source: codepipeline.Artifact, built: codepipeline.Artifact
    ) -> list[codepipeline.IAction]:
        """First what migrates tables and makes topics, and the workers; then web and relay, which need both."""
        role = iam.Role.from_role_name(self, f"{stage.name.capitalize()}Rollout", names.rollout_role(stage.name))
        step = f"rollout-{stage.name}"
        rollout = self._project(step, _rollout_spec(stage), role=role)
        cluster = ecs.Cluster.from_cluster_attributes(
            self,
            f"{stage.name.capitalize()}Cluster",
            cluster_name=names.cluster(stage.name),
            vpc=ec2.Vpc.from_vpc_attributes(
                self, f"{stage.name.capitalize()}Vpc", vpc_id="unused", availability_zones=["unused"]
            ),
            security_groups=[],
        )
        services = [
            actions.EcsDeployAction(
                action_name=service,
                service=ecs.FargateService.from_fargate_service_attributes(
                    self, f"{stage.name.capitalize()}{service.capitalize()}", cluster=cluster, service_name=service
                ),
                image_file=built.at_path(f"{service}.json"),
                deployment_timeout=cdk.Duration.minutes(30),
                run_order=3,
            )
            for service in SERVICES
        ]
        return [actions.CodeBuildAction(action_name=step, project=rollout, input=source, run_order=2), *services]

    def _step(self, name: str, source: codepipeline.Artifact, spec: Mapping[str, object]) -> actions.CodeBuildAction:
        return actions.CodeBuildAction(action_name=name, project=self._project(name, spec), input=source)

    def _project(
        self, name: str, spec: Mapping[str, object], *, privileged: bool = False, role: iam.IRole | None = None
    ) -> codebuild.PipelineProject:
        project_name = f"{names.PROJECT}-{name}"
        log_group = logs.LogGroup(
            self,
            f"{name.title().replace('-', '')}Log",
            log_group_name=f"/aws/codebuild/{project_name}",
            retention=logs.RetentionDays.THREE_MONTHS,
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        project = codebuild.PipelineProject(
            self,
            name.title().replace("-", ""),
            project_name=project_name,
            role=role,
            encryption_key=self.key,
            build_spec=codebuild.BuildSpec.from_object(dict(spec)),
            environment=codebuild.BuildEnvironment(
                build_image=codebuild.LinuxBuildImage.STANDARD_7_0,
                compute_type=codebuild.ComputeType.LARGE,
                privileged=privileged,
            ),
            logging=codebuild.LoggingOptions(cloud_watch=codebuild.CloudWatchLoggingOptions(log_group=log_group)),
            grant_report_group_permissions=False,
            timeout=cdk.Duration.minutes(90),
        )
        logs_of_it = f"logs:log-group:/aws/codebuild/<{self._logical_id(project)}>:*"
        explain(self if role else project, "The log streams of this project.", wildcard(logs_of_it))
        return project

    def _explain(self) -> None:
        own = f"IAM5[Resource::<{self._logical_id(self.pipeline.artifact_bucket)}.Arn>/*]"
        actions = [f"IAM5[Action::{action}*]" for action in ARTIFACT_ACTIONS]
        explain(
            self.pipeline,
            "What CDK gives the action that deploys to ECS: a task definition has no name before it is made.",
            wildcard("*"),
        )
        explain(self, "The artifacts of this pipeline: any object of one bucket, under one key.", own, *actions)

    def _logical_id(self, construct: IConstruct) -> str:
        resource = construct.node.default_child
        assert isinstance(resource, cdk.CfnElement)
        return str(self.resolve(resource.logical_id))


_TEST = {
    "version": "0.2",
    "phases": {
        "install": {"runtime-versions": {"python": "3.13", "java": "corretto17", "golang": "1.24", "nodejs": "22"}},
        "build": {"commands": [".ci/run"]},
    },
}


def _images_spec(registry: Registry) -> dict[str, object]:
    uri = registry.repositories["web"].repository_uri
    host = cdk.Fn.select(0, cdk.Fn.split("/", uri))
    build = [
        f"docker manifest inspect {repository.repository_uri}:{COMMIT} > /dev/null"
        f" || (docker build --target {image} --build-arg REVISION={COMMIT} -t {repository.repository_uri}:{COMMIT} ."
        f" && docker push {repository.repository_uri}:{COMMIT})"
        for image, repository in registry.repositories.items()
    ]
    described = [
        f'printf \'[{{"name":"%s","imageUri":"%s"}},{{"name":"credentials","imageUri":"%s"}}]\''
        f" {service} {uri}:{COMMIT} {uri}:{COMMIT} > {service}.json"
        for service in SERVICES
    ]
    login = f"aws ecr get-login-password | docker login --username AWS --password-stdin {host}"
    return {
        "version": "0.2",
        "phases": {"pre_build": {"commands": [login]}, "build": {"commands": [*build, *described]}},
        "artifacts": {"files": [f"{service}.json" for service in SERVICES]},
    }


def _install_kubectl() -> list[str]:
    """That of the cluster's own version; the one in the image may be too old for it."""
    program, release = "/usr/local/bin/kubectl", "https://dl.k8s.io/release"
    return [
        f"version=$(curl -fsSL {release}/stable-{KUBERNETES.version}.txt)",
        f"curl -fsSL -o {program} {release}/$version/bin/linux/amd64/kubectl",
        f'echo "$(curl -fsSL {release}/$version/bin/linux/amd64/kubectl.sha256)  {program}" | sha256sum --check',
        f"chmod +x {program}",
    ]


def _rollout_spec(stage: Stage) -> dict[str, object]:
    return {
        "version": "0.2",
        "phases": {
            "install": {"runtime-versions": {"python": "3.13"}, "commands": _install_kubectl()},
            "build": {"commands": [f"make deploy-apps STAGE={stage.name} TAG={COMMIT} ARGS=--pipeline"]},
        },
    }
