"""The network of one stage: three zones, private for all that computes, isolated for the database."""

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_logs as logs
from aws_cdk import aws_route53 as route53
from constructs import Construct

from babblebox import names
from babblebox.findings import explain
from babblebox.stages import Stage

ZONES = 3
"""ZooKeeper and the copies of a message need a majority when one is lost."""
ENDPOINTS = {
    "Ecr": ec2.InterfaceVpcEndpointAwsService.ECR,
    "EcrDocker": ec2.InterfaceVpcEndpointAwsService.ECR_DOCKER,
    "EksAuth": ec2.InterfaceVpcEndpointAwsService.EKS_AUTH,
    "Logs": ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS,
    "PrivateCa": ec2.InterfaceVpcEndpointAwsService.PRIVATE_CERTIFICATE_AUTHORITY,
    "Secrets": ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER,
    "Sts": ec2.InterfaceVpcEndpointAwsService.STS,
}


class Network(cdk.Stack):
    """The VPC, its private DNS zone, and the security groups that those of other stacks name."""

    def __init__(self, scope: Construct, id: str, *, stage: Stage) -> None:
        super().__init__(scope, id)
        self.domain = cdk.CfnParameter(
            self,
            "DomainName",
            description="The name under which people reach BabbleBox, in the public hosted zone",
            allowed_pattern=r"[a-z0-9-]+(\.[a-z0-9-]+)+",
        )
        self.vpc = self._vpc(stage)
        self.zone = route53.PrivateHostedZone(self, "Zone", zone_name=names.zone(stage.name), vpc=self.vpc)
        self.tasks = ec2.SecurityGroup(
            self, "Tasks", vpc=self.vpc, allow_all_outbound=False, description="Tasks of web and relay on Fargate"
        )
        self.tasks.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "AWS: S3, ECR, Secrets Manager, logs")
        self.people = ec2.SecurityGroup(
            self, "People", vpc=self.vpc, allow_all_outbound=False, description="The load balancer that people reach"
        )
        for port, why in ((443, "People"), (80, "People, who are sent to 443")):
            self.people.add_ingress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(port), why)
        explain(self.people, "A chat for everybody.", "EC23")
        cdk.CfnOutput(self, "Address", value=f"https://{self.domain.value_as_string}")
        cdk.CfnOutput(self, "VpcId", value=self.vpc.vpc_id)
        cdk.CfnOutput(self, "ZoneName", value=self.zone.zone_name)

    @property
    def availability_zones(self) -> list[str]:
        """The first three of whichever region this is deployed to; without an account CDK would take two."""
        return [cdk.Fn.select(number, cdk.Fn.get_azs()) for number in range(ZONES)]

    def _vpc(self, stage: Stage) -> ec2.Vpc:
        kinds = {
            "public": (ec2.SubnetType.PUBLIC, 24),
            "private": (ec2.SubnetType.PRIVATE_WITH_EGRESS, 19),  # every pod has an address here
            "data": (ec2.SubnetType.PRIVATE_ISOLATED, 24),
        }
        vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(stage.cidr),
            max_azs=ZONES,
            nat_gateways=stage.nat_gateways,
            subnet_configuration=[
                ec2.SubnetConfiguration(name=name, subnet_type=kind, cidr_mask=mask, map_public_ip_on_launch=False)
                if kind is ec2.SubnetType.PUBLIC
                else ec2.SubnetConfiguration(name=name, subnet_type=kind, cidr_mask=mask)
                for name, (kind, mask) in kinds.items()
            ],
        )
        flows = logs.LogGroup(
            self,
            "Flows",
            log_group_name=names.log_group(stage.name, "flows"),
            retention=retention(stage),
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        vpc.add_flow_log("FlowLog", destination=ec2.FlowLogDestination.to_cloud_watch_logs(flows))
        vpc.add_gateway_endpoint("S3", service=ec2.GatewayVpcEndpointAwsService.S3)
        if stage.private_endpoints:
            inside = ec2.SecurityGroup(
                self, "Endpoints", vpc=vpc, allow_all_outbound=False, description="Endpoints of services of AWS"
            )
            inside.add_ingress_rule(ec2.Peer.ipv4(stage.cidr), ec2.Port.tcp(443), "All of this network")
            for name, service in ENDPOINTS.items():
                vpc.add_interface_endpoint(name, service=service, security_groups=[inside], open=False)
        return vpc


def retention(stage: Stage) -> logs.RetentionDays:
    """How long logs of a stage are kept."""
    return {30: logs.RetentionDays.ONE_MONTH, 365: logs.RetentionDays.ONE_YEAR}[stage.log_days]
