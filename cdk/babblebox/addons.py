"""What the cluster has beside Kubernetes: EKS' own add-ons where there is one, else the project's Helm chart."""

from collections.abc import Mapping, Sequence
from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_eks_v2 as eks
from aws_cdk import aws_iam as iam
from constructs import Construct, IDependable

from babblebox import names
from babblebox.alarms import Alarms
from babblebox.data import Data
from babblebox.findings import explain, managed, wildcard
from babblebox.identities import PodIdentity, role
from babblebox.private_ca import PrivateCA
from babblebox.stages import Stage

LOAD_BALANCER_CONTROLLER = eks.AlbControllerVersion.V3_2_2.helm_chart_version
EXTERNAL_SECRETS = "2.0.0"
VOLUMES_POLICY = "service-role/AmazonEBSCSIDriverPolicy"
KEDA = "2.20.2"
PROMETHEUS = "88.5.3"
CLUSTER_AUTOSCALER = "9.59.1"  # of Kubernetes 1.35


class Addons(Construct):
    """Volumes, certificates, secrets, load balancing and scaling, each with the least of AWS' rights."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        stage: Stage,
        cluster: eks.Cluster,
        nodes: Sequence[eks.Nodegroup],
        alarms: Alarms,
        data: Data,
        authority: PrivateCA,
    ) -> None:
        super().__init__(scope, id)
        self._stage, self._cluster, self._nodes = stage, cluster, nodes
        self._every_node()
        agent = self._addon("eks-pod-identity-agent")
        self._with_identity = [agent, *nodes]
        self._volumes()
        self._certificates(authority)
        self._secrets(data)
        self._load_balancing()
        self._scaling()
        self._monitoring(alarms)

    def _every_node(self) -> None:
        self._addon("vpc-cni", {"enableNetworkPolicy": "true"})  # else the policies of k8s/ were words alone
        self._addon("kube-proxy")
        for name in ("coredns", "metrics-server"):
            self._addon(name).node.add_dependency(*self._nodes)

    def _volumes(self) -> None:
        identity = role(Construct(self, "Volumes"), self._cluster)
        identity.add_managed_policy(iam.ManagedPolicy.from_aws_managed_policy_name(VOLUMES_POLICY))
        explain(
            identity, "The policy that EKS names for the driver; it is bound to its volumes.", managed(VOLUMES_POLICY)
        )
        self._addon("aws-ebs-csi-driver", service_account="ebs-csi-controller-sa", identity=identity)

    def _certificates(self, authority: PrivateCA) -> None:
        manager = self._addon("cert-manager")
        manager.node.add_dependency(*self._nodes)
        identity = role(Construct(self, "Issuer"), self._cluster)
        identity.add_to_policy(
            iam.PolicyStatement(
                actions=["acm-pca:DescribeCertificateAuthority", "acm-pca:GetCertificate"],
                resources=[authority.subordinate.attr_arn],
            )
        )
        identity.add_to_policy(
            iam.PolicyStatement(
                actions=["acm-pca:IssueCertificate"],
                resources=[authority.subordinate.attr_arn],
                conditions={"StringLike": {"acm-pca:TemplateArn": "arn:*:acm-pca:::template/*EndEntity*"}},
            )
        )
        issuer = self._addon(
            "aws-privateca-connector-for-kubernetes", service_account="aws-privateca-issuer", identity=identity
        )
        issuer.node.add_dependency(manager)

    def _secrets(self, data: Data) -> None:
        """For the cluster's own copies: k8s/ says which secret goes to which namespace."""
        identity = self._identity("ExternalSecrets", "external-secrets", "external-secrets")
        arn = cdk.Stack.of(self).format_arn(
            service="secretsmanager",
            resource="secret",
            resource_name=names.secret(self._stage.name, "*"),
            arn_format=cdk.ArnFormat.COLON_RESOURCE_NAME,
        )
        identity.role.add_to_policy(
            iam.PolicyStatement(
                actions=["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"], resources=[arn]
            )
        )
        data.key.grant_decrypt(identity.role)
        explain(
            identity,
            "All secrets of this stage, whose full names end in characters of AWS' choice.",
            wildcard(f"secretsmanager:secret:{names.secret(self._stage.name, '*')}"),
        )
        self._chart(
            "ExternalSecretsChart",
            repository="https://charts.external-secrets.io",
            chart="external-secrets",
            version=EXTERNAL_SECRETS,
            namespace="external-secrets",
            values={"installCRDs": True, "replicaCount": 2, "podDisruptionBudget": {"enabled": True}},
            after=[identity, *self._with_identity],
        )

    def _load_balancing(self) -> None:
        """Registers the pods of Pulsar's proxy at the load balancer of `Pulsar`; it makes none of its own."""
        name = "aws-load-balancer-controller"
        identity = self._identity("LoadBalancing", "kube-system", name)
        described = ("TargetGroups", "TargetGroupAttributes", "TargetHealth", "LoadBalancers", "Tags")
        kinds = ("AvailabilityZones", "Instances", "NetworkInterfaces", "SecurityGroups", "Subnets", "Vpcs")
        reading = [f"elasticloadbalancing:Describe{kind}" for kind in described] + [
            f"ec2:Describe{kind}" for kind in kinds
        ]
        identity.role.add_to_policy(iam.PolicyStatement(actions=reading, resources=["*"]))
        groups = cdk.Stack.of(self).format_arn(
            service="elasticloadbalancing", resource="targetgroup", resource_name="*"
        )
        identity.role.add_to_policy(
            iam.PolicyStatement(
                actions=["elasticloadbalancing:RegisterTargets", "elasticloadbalancing:DeregisterTargets"],
                resources=[groups],
                conditions={"StringEquals": {"aws:ResourceTag/cluster": self._cluster.cluster_name}},
            )
        )
        explain(
            identity,
            "Descriptions cannot be limited; targets change in groups with the cluster's tag.",
            wildcard("*"),
            wildcard("elasticloadbalancing:targetgroup/*"),
        )
        self._chart(
            "LoadBalancingChart",
            repository="https://aws.github.io/eks-charts",
            chart=name,
            version=LOAD_BALANCER_CONTROLLER,
            namespace="kube-system",
            values={
                "clusterName": self._cluster.cluster_name,
                "region": cdk.Aws.REGION,
                "vpcId": self._cluster.vpc.vpc_id,
                "serviceAccount": {"name": name},
                "createIngressClassResource": False,
                "enableServiceMutatorWebhook": False,
                "enableShield": False,
                "enableWaf": False,
                "enableWafv2": False,
            },
            after=[identity, *self._with_identity],
        )

    def _scaling(self) -> None:
        """KEDA adds and takes away pods by what waits on topics; the autoscaler follows with nodes."""
        self._chart(
            "KedaChart",
            repository="https://kedacore.github.io/charts",
            chart="keda",
            version=KEDA,
            namespace="keda",
            values={"operator": {"replicaCount": 2}, "podDisruptionBudget": {"operator": {"maxUnavailable": 1}}},
            after=self._with_identity,
        )
        name = "cluster-autoscaler"
        identity = self._identity("Autoscaler", "kube-system", name)
        autoscaling = ("AutoScalingGroups", "AutoScalingInstances", "LaunchConfigurations", "ScalingActivities", "Tags")
        reading = [f"autoscaling:Describe{kind}" for kind in autoscaling]
        reading += [
            f"ec2:{kind}" for kind in ("DescribeImages", "DescribeInstanceTypes", "DescribeLaunchTemplateVersions")
        ]
        reading += ["ec2:GetInstanceTypesFromInstanceRequirements", "eks:DescribeNodegroup"]
        identity.role.add_to_policy(iam.PolicyStatement(actions=reading, resources=["*"]))
        identity.role.add_to_policy(
            iam.PolicyStatement(
                actions=["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"],
                resources=["*"],
                conditions={"StringEquals": {"aws:ResourceTag/eks:cluster-name": self._cluster.cluster_name}},
            )
        )
        explain(
            identity, "Descriptions cannot be limited; what changes is limited by the cluster's tag.", wildcard("*")
        )
        self._chart(
            "AutoscalerChart",
            repository="https://kubernetes.github.io/autoscaler",
            chart=name,
            version=CLUSTER_AUTOSCALER,
            namespace="kube-system",
            values={
                "autoDiscovery": {"clusterName": self._cluster.cluster_name},
                "awsRegion": cdk.Aws.REGION,
                "rbac": {"serviceAccount": {"name": name}},
            },
            after=[identity, *self._with_identity],
        )

    def _monitoring(self, alarms: Alarms) -> None:
        """Prometheus with the PodMonitors and rules of k8s/ and of Pulsar's chart; alerts go where alarms go."""
        namespace, name = "monitoring", "alertmanager"
        identity = self._identity("Alertmanager", namespace, name)
        alarms.grant_publish(identity.role)
        everything = ("podMonitorSelectorNilUsesHelmValues", "ruleSelectorNilUsesHelmValues")
        receiver = {"topic_arn": alarms.topic.topic_arn, "sigv4": {"region": cdk.Aws.REGION}}
        self._chart(
            "PrometheusChart",
            repository="https://prometheus-community.github.io/helm-charts",
            chart="kube-prometheus-stack",
            version=PROMETHEUS,
            namespace=namespace,
            values={
                "grafana": {"enabled": False},
                "prometheus": {
                    "prometheusSpec": {
                        **dict.fromkeys(everything, False),
                        "replicas": 2,
                        "retention": "30d",
                        "storageSpec": _claim("50Gi"),
                    }
                },
                "alertmanager": {
                    "serviceAccount": {"name": name},
                    "alertmanagerSpec": {"replicas": 2, "storage": _claim("2Gi")},
                    "config": {
                        "route": {
                            "receiver": "alarms",
                            "group_by": ["alertname", "namespace"],
                            "routes": [{"receiver": "nobody", "matchers": ['alertname =~ "Watchdog|InfoInhibitor"']}],
                        },
                        "receivers": [{"name": "nobody"}, {"name": "alarms", "sns_configs": [receiver]}],
                    },
                },
            },
            wait=False,  # its volumes wait for the storage class in k8s/
            after=[identity, *self._with_identity],
        )

    def _addon(
        self,
        name: str,
        configuration: Mapping[str, Any] | None = None,
        *,
        service_account: str | None = None,
        identity: iam.Role | None = None,
    ) -> eks.CfnAddon:
        """An add-on in the version that EKS gives for the cluster's own; it is not updated behind our back."""
        associations = None
        if service_account is not None and identity is not None:
            associations = [
                eks.CfnAddon.PodIdentityAssociationProperty(service_account=service_account, role_arn=identity.role_arn)
            ]
        addon = eks.CfnAddon(
            self,
            "".join(word.capitalize() for word in name.split("-")),
            addon_name=name,
            cluster_name=self._cluster.cluster_name,
            configuration_values=cdk.Stack.of(self).to_json_string(configuration) if configuration else None,
            pod_identity_associations=associations,
            resolve_conflicts="OVERWRITE",
        )
        if identity is not None:
            addon.node.add_dependency(*self._with_identity)
        return addon

    def _identity(self, name: str, namespace: str, service_account: str) -> PodIdentity:
        return PodIdentity(self, name, cluster=self._cluster, namespace=namespace, service_account=service_account)

    def _chart(
        self, id: str, *, after: Sequence[IDependable], values: Mapping[str, Any], wait: bool = True, **chart: str
    ) -> None:
        release = eks.HelmChart(
            self,
            id,
            cluster=self._cluster,
            release=chart["chart"],
            create_namespace=chart["namespace"] != "kube-system",
            wait=wait,
            timeout=cdk.Duration.minutes(10),
            values=values,
            **chart,
        )
        release.node.add_dependency(*after)


def _claim(size: str) -> dict[str, Any]:
    """A volume as Prometheus' operator asks for it, of the storage class in k8s/."""
    spec = {"storageClassName": "gp3", "resources": {"requests": {"storage": size}}}
    return {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"], **spec}}}
