"""Web and relay on Fargate: tasks of one image, behind a load balancer that people reach by HTTPS."""

from collections.abc import Sequence

import aws_cdk as cdk
from aws_cdk import aws_certificatemanager as acm
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_route53 as route53
from aws_cdk import aws_route53_targets as targets
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from babblebox import names
from babblebox.data import Data
from babblebox.findings import explain, wildcard
from babblebox.network import Network, retention
from babblebox.private_ca import PrivateCA
from babblebox.stages import Stage

IDLE_TIMEOUT = 60
"""Seconds of silence after which the load balancer ends a connection: four heartbeats of a live stream."""
KEEP_ALIVE = 75
"""Longer than that, so that gunicorn never closes a connection on which a request is under way to it."""
GRACE = 30
"""Seconds that requests have when a task ends."""
THREADS = 32
"""More than the open streams of one process (`Settings.stream_limit`), so that pages are served beside them."""
PROCESSES = 2
GUNICORN = (
    "gunicorn",
    f"--bind=0.0.0.0:{names.WEB_PORT}",
    "--worker-class=gthread",
    f"--workers={PROCESSES}",
    f"--threads={THREADS}",
    f"--keep-alive={KEEP_ALIVE}",
    f"--graceful-timeout={GRACE}",
    "--worker-tmp-dir=/dev/shm",  # on a disk its heartbeat could wait for others
    "--no-control-socket",
    "apps.chat.wsgi:serve()",
)
CREDENTIALS = names.STATE_FOLDER
"""Where the files are that the library reads: token and authority."""
WRITE_CREDENTIALS = (
    "import os, pathlib\n"
    f"folder = pathlib.Path('{CREDENTIALS}')\n"
    "for name in ('token', 'ca.crt'):\n"
    "    file = folder / name\n"
    "    file.touch(mode=0o400)\n"
    "    os.chmod(file, 0o600)\n"
    "    file.write_text(os.environ[name.upper().replace('.', '_')])\n"
)


class Web(cdk.Stack):
    """The service that answers people, and the one that hands the outbox to Pulsar."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        stage: Stage,
        network: Network,
        data: Data,
        authority: PrivateCA,
        repository: ecr.IRepository,
    ) -> None:
        super().__init__(scope, id)
        self.stage, self.network, self.data, self.authority = stage, network, data, authority
        self.tag = cdk.CfnParameter(self, "ImageTag", description="The tag of the image `web` that is deployed")
        self.image = ecs.ContainerImage.from_ecr_repository(repository, self.tag.value_as_string)
        self.cluster = ecs.Cluster(
            self,
            "Cluster",
            cluster_name=names.cluster(stage.name),
            vpc=network.vpc,
            container_insights_v2=ecs.ContainerInsights.ENABLED,
        )
        self.key = kms.Key.from_key_arn(self, "Key", data.key.key_arn)
        self.log_groups: dict[str, logs.LogGroup] = {}
        self.relay = self._relay()
        self.web = self._web()
        self.load_balancer = self._load_balancer()
        self.targets = self._listen()
        self._scale()
        cdk.CfnOutput(self, "EcsCluster", value=self.cluster.cluster_name)
        cdk.CfnOutput(self, "DeployedTag", value=self.tag.value_as_string)

    def _relay(self) -> ecs.FargateService:
        task = self._task("relay", ["python", "-m", "apps.chat.relay"], cpu=256, memory=512)
        return self._service("relay", task, self.stage.relay_tasks)

    def _web(self) -> ecs.FargateService:
        task = self._task("web", GUNICORN, cpu=1024, memory=2048, port=names.WEB_PORT)
        self.data.grant_blobs(task.task_role)
        return self._service("web", task, self.stage.web_tasks[0], grace=cdk.Duration.seconds(60))

    def _task(
        self, name: str, command: Sequence[str], *, cpu: int, memory: int, port: int | None = None
    ) -> ecs.FargateTaskDefinition:
        task = ecs.FargateTaskDefinition(
            self,
            f"{name.capitalize()}Task",
            family=f"{names.cluster(self.stage.name)}-{name}",
            cpu=cpu,
            memory_limit_mib=memory,
            runtime_platform=ecs.RuntimePlatform(
                cpu_architecture=ecs.CpuArchitecture.X86_64, operating_system_family=ecs.OperatingSystemFamily.LINUX
            ),
            volumes=[ecs.Volume(name="tmp"), ecs.Volume(name="credentials")],
        )
        log_group = logs.LogGroup(
            self,
            f"{name.capitalize()}Log",
            log_group_name=names.log_group(self.stage.name, name),
            retention=retention(self.stage),
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        self.log_groups[name] = log_group
        credentials = self._credentials(task, log_group)
        main = self._container(
            task,
            name,
            command,
            log_group,
            environment=self._environment(),
            secrets=self._secrets(),
            stop_timeout=cdk.Duration.seconds(GRACE + 15),
            port_mappings=[ecs.PortMapping(container_port=port)] if port else None,
        )
        main.add_mount_points(
            ecs.MountPoint(source_volume="tmp", container_path="/tmp", read_only=False),  # noqa: S108 - in a container
            ecs.MountPoint(source_volume="credentials", container_path=CREDENTIALS, read_only=True),
        )
        main.add_container_dependencies(
            ecs.ContainerDependency(container=credentials, condition=ecs.ContainerDependencyCondition.SUCCESS)
        )
        explain(task, "What is in the environment is no secret; those come from Secrets Manager.", "ECS2")
        explain(task.obtain_execution_role(), "Every registry's log-in, which cannot be limited.", wildcard("*"))
        return task

    def _credentials(self, task: ecs.FargateTaskDefinition, log_group: logs.LogGroup) -> ecs.ContainerDefinition:
        """Token and authority as files, written before the start; so the main process' environment has no token."""
        container = self._container(
            task,
            "credentials",
            ["python", "-c", WRITE_CREDENTIALS],
            log_group,
            essential=False,
            secrets={
                "TOKEN": self._secret(self.data.tokens["web"]),
                "CA_CRT": ecs.Secret.from_secrets_manager(self.authority.trust),
            },
        )
        container.add_mount_points(
            ecs.MountPoint(source_volume="credentials", container_path=CREDENTIALS, read_only=False)
        )
        return container

    def _container(
        self,
        task: ecs.FargateTaskDefinition,
        name: str,
        command: Sequence[str],
        log_group: logs.LogGroup,
        **more: object,
    ) -> ecs.ContainerDefinition:
        hardened = ecs.LinuxParameters(self, f"{task.node.id}{name.capitalize()}Linux", init_process_enabled=True)
        hardened.drop_capabilities(ecs.Capability.ALL)
        return task.add_container(
            name,
            image=self.image,
            command=list(command),
            user=str(names.USER_ID),
            readonly_root_filesystem=True,
            linux_parameters=hardened,
            logging=ecs.LogDriver.aws_logs(
                stream_prefix=name, log_group=log_group, mode=ecs.AwsLogDriverMode.NON_BLOCKING
            ),
            **more,
        )

    def _environment(self) -> dict[str, str]:
        host = names.pulsar_host(self.stage.name)
        return {
            "AWS_DEFAULT_REGION": cdk.Aws.REGION,
            "BABBLEBOX_PROXIES": "1",
            "BLOB_STORE": f"s3://{self.data.blobs.bucket_name}",
            "DATABASE_URL": "postgresql+psycopg://",  # the rest is PG*, which libpq reads itself
            "PGDATABASE": names.PROJECT,
            "PGHOST": self.data.database.db_instance_endpoint_address,
            "PGPORT": self.data.database.db_instance_endpoint_port,
            "PGSSLMODE": "require",
            "PULSARTASKS_ADMIN_URL": f"https://{host}",
            "PULSARTASKS_BROKER": f"pulsar+ssl://{host}:{names.PULSAR_PORT}",
            "PULSARTASKS_CLIENT_LOG": "/dev/stderr",
            "PULSARTASKS_NAMESPACE": names.PULSAR_NAMESPACE,
            "PULSARTASKS_REPLY_TO": "web",
            "PULSARTASKS_TLS_CA": f"{CREDENTIALS}/ca.crt",
            "PULSARTASKS_TOKEN_FILE": f"{CREDENTIALS}/token",
        }

    def _secrets(self) -> dict[str, ecs.Secret]:
        login = self.data.database.secret
        assert login is not None
        return {
            "PGUSER": self._secret(login, "username"),
            "PGPASSWORD": self._secret(login, "password"),
            "SECRET_KEY": self._secret(self.data.secret_key),
        }

    def _secret(self, secret: secretsmanager.ISecret, field: str | None = None) -> ecs.Secret:
        """A secret by its ARN: granted as it is, it would name this stack's roles in the policy of the other's key."""
        name = f"{secret.node.path.replace('/', '')}Here"
        here = self.node.try_find_child(name) or secretsmanager.Secret.from_secret_attributes(
            self, name, secret_complete_arn=secret.secret_arn, encryption_key=self.key
        )
        return ecs.Secret.from_secrets_manager(here, field)

    def _service(
        self, name: str, task: ecs.FargateTaskDefinition, tasks: int, grace: cdk.Duration | None = None
    ) -> ecs.FargateService:
        """A rollout that does not come up is taken back; the number of tasks never falls below the wanted one."""
        return ecs.FargateService(
            self,
            name.capitalize(),
            service_name=name,
            cluster=self.cluster,
            task_definition=task,
            desired_count=tasks,
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS),
            security_groups=[self.network.tasks],
            assign_public_ip=False,
            circuit_breaker=ecs.DeploymentCircuitBreaker(enable=True, rollback=True),
            min_healthy_percent=100,
            max_healthy_percent=200,
            availability_zone_rebalancing=ecs.AvailabilityZoneRebalancing.ENABLED,
            health_check_grace_period=grace,
            propagate_tags=ecs.PropagatedTagSource.SERVICE,
        )

    def _load_balancer(self) -> elb.ApplicationLoadBalancer:
        balancer = elb.ApplicationLoadBalancer(
            self,
            "LoadBalancer",
            vpc=self.network.vpc,
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PUBLIC),
            internet_facing=True,
            security_group=self.network.people,
            idle_timeout=cdk.Duration.seconds(IDLE_TIMEOUT),
            drop_invalid_header_fields=True,
            desync_mitigation_mode=elb.DesyncMitigationMode.STRICTEST,
            deletion_protection=True,
        )
        # Not by log_access_logs(), which wants to know the region.
        for name, value in (("enabled", "true"), ("bucket", self.data.access_logs.bucket_name), ("prefix", "alb")):
            balancer.set_attribute(f"access_logs.s3.{name}", value)
        return balancer

    def _listen(self) -> elb.ApplicationTargetGroup:
        domain = self.network.domain.value_as_string
        hosted = cdk.CfnParameter(
            self,
            "HostedZoneId",
            type="AWS::Route53::HostedZone::Id",
            description="The public hosted zone in which DomainName is, for its record and its certificate",
        )
        zone = route53.HostedZone.from_hosted_zone_attributes(
            self, "PublicZone", hosted_zone_id=hosted.value_as_string, zone_name=domain
        )
        certificate = acm.Certificate(
            self, "Certificate", domain_name=domain, validation=acm.CertificateValidation.from_dns(zone)
        )
        self.certificate = certificate
        route53.ARecord(
            self,
            "Record",
            zone=zone,
            target=route53.RecordTarget.from_alias(targets.LoadBalancerTarget(self.load_balancer)),
        )
        group = elb.ApplicationTargetGroup(
            self,
            "Targets",
            vpc=self.network.vpc,
            port=names.WEB_PORT,
            protocol=elb.ApplicationProtocol.HTTP,
            target_type=elb.TargetType.IP,
            targets=[self.web],
            deregistration_delay=cdk.Duration.seconds(GRACE),
            health_check=elb.HealthCheck(
                path=names.WEB_HEALTH,
                interval=cdk.Duration.seconds(10),
                timeout=cdk.Duration.seconds(5),
                healthy_threshold_count=2,
                unhealthy_threshold_count=3,
                healthy_http_codes="200",
            ),
        )
        self.load_balancer.add_listener(
            "Https",
            port=443,
            protocol=elb.ApplicationProtocol.HTTPS,
            certificates=[certificate],
            ssl_policy=elb.SslPolicy.TLS13_RES,
            default_target_groups=[group],
            open=False,
        )
        self.load_balancer.add_listener(
            "Http",
            port=80,
            protocol=elb.ApplicationProtocol.HTTP,
            default_action=elb.ListenerAction.redirect(protocol="HTTPS", port="443", permanent=True),
            open=False,
        )
        return group

    def _scale(self) -> None:
        least, most = self.stage.web_tasks
        scaling = self.web.auto_scale_task_count(min_capacity=least, max_capacity=most)
        scaling.scale_on_cpu_utilization(
            "Cpu", target_utilization_percent=60, scale_in_cooldown=cdk.Duration.minutes(5)
        )
        scaling.scale_on_request_count(
            "Requests",
            requests_per_target=1500,  # a minute
            target_group=self.targets,
            scale_in_cooldown=cdk.Duration.minutes(5),
        )
