"""Pulsar by its official Helm chart with the values in k8s/, behind a load balancer inside the network."""

from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_eks_v2 as eks
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_route53 as route53
from aws_cdk import aws_route53_targets as targets
from constructs import Construct

from babblebox import names
from babblebox.data import Data
from babblebox.findings import explain
from babblebox.network import Network
from babblebox.stages import Stage
from babblebox.values import chart_values, merge

CHART_VERSION = "4.7.0"
PORTS = {names.PULSAR_PORT: names.PULSAR_PORT, names.PULSAR_ADMIN_PORT: names.PULSAR_ADMIN_POD_PORT}
"""The proxy's ports and those of its pods."""


class Pulsar(Construct):
    """The chart, the load balancer of its proxy, and the name of that in the private zone."""

    def __init__(
        self, scope: Construct, id: str, *, stage: Stage, network: Network, cluster: eks.Cluster, data: Data
    ) -> None:
        super().__init__(scope, id)
        offload = {"bucket": data.offloaded.bucket_name, "region": cdk.Aws.REGION}
        chart = eks.HelmChart(
            self,
            "Chart",
            cluster=cluster,
            repository="https://pulsar.apache.org/charts",
            chart="pulsar",
            version=CHART_VERSION,
            release=names.PULSAR_RELEASE,
            namespace=names.PULSAR_KUBERNETES_NAMESPACE,
            create_namespace=True,
            wait=False,  # its pods wait for what `make deploy-apps` brings: issuer, secrets, storage class
            values=merge(chart_values(stage.name), {"broker": {"storageOffload": offload}}),
        )
        self.load_balancer = self._load_balancer(stage, network, cluster)
        self.target_groups = {port: self._target_group(port, network, cluster) for port in PORTS}
        bindings = cluster.add_manifest(
            "ProxyTargets", *(_binding(port, group.target_group_arn) for port, group in self.target_groups.items())
        )
        bindings.node.add_dependency(chart)
        route53.ARecord(
            self,
            "Record",
            zone=network.zone,
            record_name="pulsar",
            target=route53.RecordTarget.from_alias(targets.LoadBalancerTarget(self.load_balancer)),
        )
        cdk.CfnOutput(cdk.Stack.of(self), "PulsarHost", value=names.pulsar_host(stage.name))

    def _load_balancer(self, stage: Stage, network: Network, cluster: eks.Cluster) -> elb.NetworkLoadBalancer:
        group = ec2.SecurityGroup(
            self,
            "Proxy",
            vpc=network.vpc,
            allow_all_outbound=False,
            description="The load balancer of the Pulsar proxy",
        )
        for port, pod_port in PORTS.items():
            group.add_ingress_rule(network.tasks, ec2.Port.tcp(port), "Web and relay")
            self._between(f"FromTasks{port}", network.tasks.security_group_id, group.security_group_id, port)
            self._between(f"ToPods{port}", group.security_group_id, cluster.cluster_security_group_id, pod_port)
            ec2.CfnSecurityGroupIngress(
                self,
                f"Pods{port}",
                group_id=cluster.cluster_security_group_id,
                source_security_group_id=group.security_group_id,
                ip_protocol="tcp",
                from_port=pod_port,
                to_port=pod_port,
                description="The load balancer of the Pulsar proxy",
            )
        balancer = elb.NetworkLoadBalancer(
            self,
            "LoadBalancer",
            load_balancer_name=f"{names.PROJECT}-{stage.name}-pulsar",
            vpc=network.vpc,
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS),
            internet_facing=False,
            security_groups=[group],
            cross_zone_enabled=True,
            deletion_protection=True,
        )
        explain(balancer, "It passes TLS on to the proxy, so there is nothing that its access log could tell.", "ELB2")
        return balancer

    def _between(self, id: str, source: str, destination: str, port: int) -> None:
        ec2.CfnSecurityGroupEgress(
            self,
            id,
            group_id=source,
            destination_security_group_id=destination,
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            description="The Pulsar proxy",
        )

    def _target_group(self, port: int, network: Network, cluster: eks.Cluster) -> elb.NetworkTargetGroup:
        """Pods come and go in it by the binding; TLS ends in them, so their certificate is for the record's name."""
        group = elb.NetworkTargetGroup(
            self,
            f"Targets{port}",
            vpc=network.vpc,
            port=PORTS[port],
            protocol=elb.Protocol.TCP,
            target_type=elb.TargetType.IP,
            preserve_client_ip=False,
            deregistration_delay=cdk.Duration.seconds(60),
            connection_termination=True,
            health_check=elb.HealthCheck(protocol=elb.Protocol.TCP, interval=cdk.Duration.seconds(10)),
        )
        cdk.Tags.of(group).add("cluster", cluster.cluster_name)  # the controller changes groups with this tag alone
        self.load_balancer.add_listener(f"Listener{port}", port=port, default_target_groups=[group])
        return group


def _binding(port: int, target_group: str) -> dict[str, Any]:
    return {
        "apiVersion": "elbv2.k8s.aws/v1beta1",
        "kind": "TargetGroupBinding",
        "metadata": {"name": f"proxy-{port}", "namespace": names.PULSAR_KUBERNETES_NAMESPACE},
        "spec": {
            "serviceRef": {"name": f"{names.PULSAR_RELEASE}-proxy", "port": port},
            "targetGroupARN": target_group,
            "targetType": "ip",
        },
    }
