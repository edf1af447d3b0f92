"""What wakes somebody, and one page on which to look then."""

from collections.abc import Iterator
from datetime import date, timedelta

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_scheduler as scheduler
from constructs import Construct

from babblebox import names
from babblebox.alarms import Alarms
from babblebox.cluster import Cluster
from babblebox.data import Data
from babblebox.private_ca import PrivateCA
from babblebox.stages import Stage
from babblebox.web import Web

MINUTE = cdk.Duration.minutes(1)
RELAY_EVENTS = {
    "outbox.delayed": "Pulsar does not take what the outbox holds",
    "outbox.interrupted": "the relay cannot reach the database",
    "outbox.parked": "a row of the outbox can never be sent",
}
"""What the relay logs (docs/logging.md) when what people sent does not go on."""
REMINDERS = (timedelta(days=183), timedelta(days=30))
"""How long before an authority's certificate ends mail reminds of it."""


class Observability(cdk.Stack):
    """Alarms, reminders of the authorities' ends, and a dashboard; what is in Kubernetes Prometheus watches."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        stage: Stage,
        alarms: Alarms,
        data: Data,
        authority: PrivateCA,
        cluster: Cluster,
        web: Web,
    ) -> None:
        super().__init__(scope, id)
        self.stage = stage
        self.topic = alarms.topic
        self.alarms: list[cloudwatch.Alarm] = []
        self._web(web)
        for service in (web.web, web.relay):
            self._service(service)
        self._relay(web.log_groups["relay"])
        self._database(data)
        self._pulsar(cluster.pulsar.load_balancer, list(cluster.pulsar.target_groups.values()))
        self._certificates(web, authority)
        self._reminders(alarms)
        self._dashboard(data, cluster, web)

    def _alarm(
        self,
        name: str,
        metric: cloudwatch.IMetric,
        threshold: float,
        *,
        minutes: int = 5,
        below: bool = False,
        missing: cloudwatch.TreatMissingData = cloudwatch.TreatMissingData.NOT_BREACHING,
    ) -> None:
        """`name` is what the mail says: what is wrong, as a sentence."""
        alarm = cloudwatch.Alarm(
            self,
            "".join(word.capitalize() for word in name.replace("-", " ").split()),
            alarm_name=f"{names.PROJECT} {self.stage.name}: {name}",
            metric=metric,
            threshold=threshold,
            evaluation_periods=minutes,
            comparison_operator=cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD
            if below
            else cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
            treat_missing_data=missing,
        )
        action = actions.SnsAction(self.topic)
        alarm.add_alarm_action(action)
        alarm.add_ok_action(action)
        self.alarms.append(alarm)

    def _web(self, web: Web) -> None:
        balancer, group = web.load_balancer.metrics, web.targets.metrics
        self._alarm(
            "the load balancer answers 5xx itself",
            balancer.http_code_elb(elb.HttpCodeElb.ELB_5XX_COUNT, period=MINUTE, statistic="Sum"),
            5,
        )
        self._alarm(
            "web answers 5xx",
            group.http_code_target(elb.HttpCodeTarget.TARGET_5XX_COUNT, period=MINUTE, statistic="Sum"),
            5,
        )
        self._alarm(  # a stream counts by its first byte alone
            "web answers slowly", group.target_response_time(period=MINUTE, statistic="p95"), 1.0
        )
        self._alarm(
            "no web task is healthy",
            group.healthy_host_count(period=MINUTE, statistic="Minimum"),
            1,
            minutes=2,
            below=True,
            missing=cloudwatch.TreatMissingData.BREACHING,
        )

    def _service(self, service: ecs.FargateService) -> None:
        name = service.node.id.lower()
        self._alarm(f"{name} uses all of its processor", service.metric_cpu_utilization(period=MINUTE), 90, minutes=15)
        self._alarm(f"{name} is short of memory", service.metric_memory_utilization(period=MINUTE), 90)
        least = self.stage.web_tasks[0] if name == "web" else self.stage.relay_tasks
        self._alarm(
            f"{name} has too few tasks",
            self._insight("RunningTaskCount", service),
            least,
            minutes=10,
            below=True,
            missing=cloudwatch.TreatMissingData.BREACHING,
        )

    def _insight(self, metric: str, service: ecs.FargateService) -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace="ECS/ContainerInsights",
            metric_name=metric,
            dimensions_map={"ClusterName": service.cluster.cluster_name, "ServiceName": service.service_name},
            period=MINUTE,
            statistic="Minimum",
        )

    def _relay(self, log_group: logs.LogGroup) -> None:
        for event, what in RELAY_EVENTS.items():
            name = "".join(word.capitalize() for word in event.split("."))
            events = logs.MetricFilter(
                self,
                f"{name}Filter",
                log_group=log_group,
                filter_pattern=logs.FilterPattern.string_value("$.event", "=", event),
                metric_namespace=f"BabbleBox/{self.stage.name}",
                metric_name=name,
                default_value=0,
            )
            # A broker that restarts delays for seconds: a fault is what lasts three minutes, and any parked row.
            self._alarm(what, events.metric(period=MINUTE, statistic="Sum"), 0, minutes=1 if "parked" in event else 3)

    def _database(self, data: Data) -> None:
        database = data.database
        self._alarm(
            "the database uses all of its processor", database.metric_cpu_utilization(period=MINUTE), 85, minutes=15
        )
        self._alarm("the database's disk fills up", database.metric_free_storage_space(period=MINUTE), 10e9, below=True)
        self._alarm(
            "the database is short of memory", database.metric_freeable_memory(period=MINUTE), 200e6, below=True
        )
        self._alarm(
            "the database's disk is slow", database.metric("WriteLatency", period=MINUTE, statistic="Average"), 0.05
        )
        self._alarm("the database has too many connections", database.metric_database_connections(period=MINUTE), 300)

    def _pulsar(self, balancer: elb.NetworkLoadBalancer, groups: list[elb.NetworkTargetGroup]) -> None:
        for group in groups:
            self._alarm(
                f"no proxy of Pulsar is healthy for {group.node.id.lower()}",
                group.metrics.healthy_host_count(period=MINUTE, statistic="Minimum"),
                1,
                minutes=2,
                below=True,
                missing=cloudwatch.TreatMissingData.BREACHING,
            )
        self._alarm(
            "Pulsar's load balancer resets connections",
            balancer.metrics.custom("TCP_ELB_Reset_Count", period=MINUTE, statistic="Sum"),
            50,
        )

    def _certificates(self, web: Web, authority: PrivateCA) -> None:
        self._alarm(
            "the public certificate was not renewed",
            web.certificate.metric_days_to_expiry(period=cdk.Duration.days(1)),
            30,
            minutes=1,
            below=True,
        )
        self._alarm(
            "the private authority cannot issue certificates",
            cloudwatch.Metric(
                namespace="AWS/ACMPrivateCA",
                metric_name="Failure",
                dimensions_map={"PrivateCAArn": authority.subordinate.attr_arn},
                period=cdk.Duration.hours(1),
                statistic="Sum",
            ),
            0,
            minutes=1,
        )

    def _reminders(self, alarms: Alarms) -> None:
        """CloudWatch has no metric for the end of an authority, so its known day is in the calendar."""
        role = iam.Role(self, "Reminder", assumed_by=iam.ServicePrincipal("scheduler.amazonaws.com"))
        alarms.grant_publish(role)
        for name, day, before in self._ends():
            scheduler.CfnSchedule(
                self,
                f"{name.capitalize()}CaEnds{before.days}",
                description=f"The certificate of the private {name} authority ends in {before.days} days",
                schedule_expression=f"at({day - before}T09:00:00)",
                flexible_time_window=scheduler.CfnSchedule.FlexibleTimeWindowProperty(mode="OFF"),
                target=scheduler.CfnSchedule.TargetProperty(
                    arn=self.topic.topic_arn,
                    role_arn=role.role_arn,
                    input=f"{names.PROJECT} {self.stage.name}: the certificate of the private {name} authority ends on "
                    f"{day}. docs/aws.md says how it is renewed.",
                ),
            )

    def _ends(self) -> Iterator[tuple[str, date, timedelta]]:
        ends = {"root": self.stage.root_ca_ends, "subordinate": self.stage.subordinate_ca_ends}
        for name, day in ends.items():
            for before in REMINDERS:
                yield name, date.fromisoformat(day), before

    def _dashboard(self, data: Data, cluster: Cluster, web: Web) -> None:
        balancer, group, database = web.load_balancer.metrics, web.targets.metrics, data.database
        five = elb.HttpCodeTarget.TARGET_5XX_COUNT
        proxies = [group.metrics.healthy_host_count() for group in cluster.pulsar.target_groups.values()]
        latency = [group.target_response_time(statistic=statistic) for statistic in ("p50", "p95", "p99")]
        graphs = {
            "Requests": [balancer.request_count(), group.http_code_target(five)],
            "Seconds to the first byte": latency,
            "Open connections": [balancer.active_connection_count()],
            "Processor (%)": [service.metric_cpu_utilization() for service in (web.web, web.relay)],
            "Tasks": [self._insight("RunningTaskCount", service) for service in (web.web, web.relay)],
            "Healthy proxies of Pulsar": proxies,
            "Database: processor (%)": [database.metric_cpu_utilization()],
            "Database: connections": [database.metric_database_connections()],
            "Database: free disk": [database.metric_free_storage_space()],
        }
        dashboard = cloudwatch.Dashboard(self, "Dashboard", dashboard_name=f"{names.PROJECT}-{self.stage.name}")
        dashboard.add_widgets(cloudwatch.AlarmStatusWidget(alarms=list(self.alarms), width=24, title="Alarms"))
        dashboard.add_widgets(
            *(cloudwatch.GraphWidget(title=title, left=metrics, width=8) for title, metrics in graphs.items())
        )
