"""The EKS cluster of one stage, and on it Pulsar, with the address under which Fargate finds it."""

import json

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_eks_v2 as eks
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk.lambda_layer_kubectl_v35 import KubectlV35Layer
from constructs import Construct

from babblebox import names
from babblebox.addons import Addons
from babblebox.alarms import Alarms
from babblebox.data import DATABASE_PORT, Data
from babblebox.findings import explain, managed, wildcard
from babblebox.identities import PodIdentity
from babblebox.network import Network, retention
from babblebox.private_ca import PrivateCA
from babblebox.pulsar import Pulsar
from babblebox.stages import Nodes, Stage

KUBERNETES = eks.KubernetesVersion.V1_35
NODE_POLICIES = ("AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly", "AmazonEKS_CNI_Policy")
CUSTOM_RESOURCES = (
    "awspca.cert-manager.io",
    "cert-manager.io",
    "external-secrets.io",
    "keda.sh",
    "monitoring.coreos.com",
)
"""The groups of what k8s/ brings beside Kubernetes' own kinds."""
KUBECTL_POLICY = "service-role/AWSLambdaVPCAccessExecutionRole"
REGISTRY_POLICY = "AmazonEC2ContainerRegistryReadOnly"
ROLLOUT_GROUP = "babblebox:rollout"


class Cluster(cdk.Stack):
    """Kubernetes with its add-ons, Pulsar by its official chart, and who may do what there."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        stage: Stage,
        alarms: Alarms,
        network: Network,
        data: Data,
        authority: PrivateCA,
    ) -> None:
        super().__init__(scope, id)
        self.stage = stage
        self.cluster = self._cluster(network, data)
        self.nodes = [self._nodes(name, nodes) for name, nodes in stage.nodes.items()]
        self._operators()
        self._pipeline()
        self._let_in_to_database(data)
        addons = Addons(
            self,
            "Addons",
            stage=stage,
            cluster=self.cluster,
            nodes=self.nodes,
            alarms=alarms,
            data=data,
            authority=authority,
        )
        self._identities(data)
        self.pulsar = Pulsar(self, "Pulsar", stage=stage, network=network, cluster=self.cluster, data=data)
        self.pulsar.node.add_dependency(addons)
        cdk.CfnOutput(self, "ClusterName", value=self.cluster.cluster_name)
        self._explain()

    def _cluster(self, network: Network, data: Data) -> eks.Cluster:
        name = names.cluster(self.stage.name)
        log_group = logs.LogGroup(
            self,
            "ControlPlaneLog",
            log_group_name=f"/aws/eks/{name}/cluster",
            retention=retention(self.stage),
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        private = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS)
        cluster = eks.Cluster(
            self,
            "Cluster",
            cluster_name=name,
            version=KUBERNETES,
            vpc=network.vpc,
            vpc_subnets=[private],
            default_capacity_type=eks.DefaultCapacityType.NODEGROUP,
            default_capacity=0,
            bootstrap_cluster_creator_admin_permissions=False,
            endpoint_access=eks.EndpointAccess.PUBLIC_AND_PRIVATE,
            secrets_encryption_key=data.key,
            cluster_logging=list(eks.ClusterLoggingTypes),
            kubectl_provider_options=eks.KubectlProviderOptions(
                kubectl_layer=KubectlV35Layer(self, "Kubectl"), role=self._kubectl_role()
            ),
        )
        cluster.node.add_dependency(log_group)  # else EKS makes it, and its logs have no end
        return cluster

    def _kubectl_role(self) -> iam.Role:
        """The role in which a function of CDK applies charts and manifests; EKS makes it administrator."""
        role = iam.Role(
            self,
            "KubectlRole",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
            managed_policies=[iam.ManagedPolicy.from_aws_managed_policy_name(KUBECTL_POLICY)],
        )
        explain(role, "The policy that Lambda names for a function inside a network.", managed(KUBECTL_POLICY))
        explain(role, "Added by CDK, for charts in a registry of AWS.", managed(REGISTRY_POLICY), _public_registry())
        return role

    def _nodes(self, name: str, nodes: Nodes) -> eks.Nodegroup:
        role = iam.Role(
            self,
            f"{name.capitalize()}NodeRole",
            assumed_by=iam.ServicePrincipal("ec2.amazonaws.com"),
            managed_policies=[iam.ManagedPolicy.from_aws_managed_policy_name(policy) for policy in NODE_POLICIES],
        )
        explain(role, "The policies that EKS names for nodes.", *map(managed, NODE_POLICIES))
        template = ec2.LaunchTemplate(
            self,
            f"{name.capitalize()}NodeTemplate",
            http_tokens=ec2.LaunchTemplateHttpTokens.REQUIRED,
            http_put_response_hop_limit=1,  # pods cannot take on the node's role
            block_devices=[
                ec2.BlockDevice(
                    device_name="/dev/xvda",
                    volume=ec2.BlockDeviceVolume.ebs(80, encrypted=True, volume_type=ec2.EbsDeviceVolumeType.GP3),
                )
            ],
        )
        assert template.launch_template_id is not None
        return eks.Nodegroup(
            self,
            f"{name.capitalize()}Nodes",
            cluster=self.cluster,
            nodegroup_name=name,
            node_role=role,
            ami_type=eks.NodegroupAmiType.AL2023_X86_64_STANDARD,
            instance_types=[ec2.InstanceType(nodes.instance)],
            min_size=nodes.least,
            max_size=nodes.most,
            labels={"babblebox/nodes": name},
            enable_node_auto_repair=True,
            launch_template_spec=eks.LaunchTemplateSpec(
                id=template.launch_template_id, version=template.latest_version_number
            ),
        )

    def _operators(self) -> None:
        """Who deploys by hand takes on this role."""
        role = iam.Role(
            self,
            "Admin",
            assumed_by=iam.AccountRootPrincipal(),
            description="Administrates the EKS cluster; for people of this account whose policies let them assume it",
        )
        self.cluster.grant_cluster_admin("AdminAccess", role.role_arn)
        cdk.CfnOutput(self, "AdminRoleArn", value=role.role_arn)

    def _pipeline(self) -> None:
        """The pipeline changes what is in the namespaces of k8s/, and nothing else of the cluster."""
        role = iam.Role(
            self,
            "Rollout",
            role_name=names.rollout_role(self.stage.name),
            assumed_by=iam.ServicePrincipal("codebuild.amazonaws.com"),
        )
        role.add_to_policy(iam.PolicyStatement(actions=["eks:DescribeCluster"], resources=[self.cluster.cluster_arn]))
        stacks = (f"{names.PROJECT}-{self.stage.name}-*/*", f"{names.stack('registry')}/*")
        arns = [self.format_arn(service="cloudformation", resource="stack", resource_name=name) for name in stacks]
        role.add_to_policy(iam.PolicyStatement(actions=["cloudformation:DescribeStacks"], resources=arns))
        explain(
            role,
            "The outputs of the stacks are read, whose ARNs end in characters of AWS' choice.",
            *(wildcard(f"cloudformation:stack/{name}") for name in stacks),
        )
        namespaces = [names.APPS_KUBERNETES_NAMESPACE, names.PULSAR_KUBERNETES_NAMESPACE]
        scope = eks.CfnAccessEntry.AccessScopeProperty(type="namespace", namespaces=namespaces)
        policy = f"arn:{cdk.Aws.PARTITION}:eks::aws:cluster-access-policy/AmazonEKSAdminPolicy"
        eks.CfnAccessEntry(
            self,
            "RolloutAccess",
            cluster_name=self.cluster.cluster_name,
            principal_arn=role.role_arn,
            kubernetes_groups=[ROLLOUT_GROUP],
            access_policies=[eks.CfnAccessEntry.AccessPolicyProperty(policy_arn=policy, access_scope=scope)],
        )
        self.cluster.add_manifest("RolloutRights", *_rollout_rights())
        cdk.CfnOutput(self, "RolloutRoleArn", value=role.role_arn)

    def _let_in_to_database(self, data: Data) -> None:
        ec2.CfnSecurityGroupIngress(
            self,
            "PodsToDatabase",
            group_id=data.database_group.security_group_id,
            source_security_group_id=self.cluster.cluster_security_group_id,
            ip_protocol="tcp",
            from_port=DATABASE_PORT,
            to_port=DATABASE_PORT,
            description="The chat's worker and migrations",
        )

    def _identities(self, data: Data) -> None:
        for worker in names.WORKERS_WITH_BLOBS:
            identity = PodIdentity(
                self,
                f"{worker.capitalize()}Identity",
                cluster=self.cluster,
                namespace=names.APPS_KUBERNETES_NAMESPACE,
                service_account=worker,
            )
            data.grant_blobs(identity.role)
            cdk.CfnOutput(self, f"{worker.capitalize()}RoleArn", value=identity.role.role_arn)
        broker = PodIdentity(
            self,
            "BrokerIdentity",
            cluster=self.cluster,
            namespace=names.PULSAR_KUBERNETES_NAMESPACE,
            service_account=f"{names.PULSAR_RELEASE}-broker-acct",  # as the chart calls it
        )
        data.grant_offloading(broker.role)

    def _explain(self) -> None:
        explain(
            self.cluster,
            "Its interface can be reached from outside by who signs requests for one of the roles above: people who "
            "deploy, and CodeBuild, whose addresses are not known.",
            "EKS1",
        )
        explain(
            self.cluster,
            "The policies that EKS and Lambda name for the control plane and the functions of CDK.",
            managed("AmazonEKSClusterPolicy"),
            managed("service-role/AWSLambdaBasicExecutionRole"),
            managed(KUBECTL_POLICY),
        )
        explain(self.cluster, "The functions of CDK, in the runtime that its release was tried with.", "L1")
        handler = "IAM5[Resource::<ClusterKubectlProviderHandler2E05C68A.Arn>:*]"
        explain(self.cluster, "One function of CDK calls another, in any version.", handler)


def _public_registry() -> str:
    """The finding about a policy that CDK adds where there is one: cdk-nag has no shorter name for a condition."""
    arn = ["arn:", {"Ref": "AWS::Partition"}, ":iam::aws:policy/AmazonElasticContainerRegistryPublicReadOnly"]
    policy = {"Fn::If": ["HasEcrPublic", {"Fn::Join": ["", arn]}, {"Ref": "AWS::NoValue"}]}
    return f"IAM4[Policy::{json.dumps(policy, separators=(',', ':'))}]"


def _rollout_rights() -> list[dict[str, object]]:
    """What the access policies of EKS leave out: custom resources, and the few things without a namespace."""
    verbs = ["get", "list", "watch", "create", "update", "patch", "delete"]
    kind, name = "ClusterRole", "babblebox-rollout"
    rules = [
        *({"apiGroups": [group], "resources": ["*"], "verbs": verbs} for group in CUSTOM_RESOURCES),
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "list", "create", "patch"]},
        {"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["get", "list", "create", "patch"]},
    ]
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": f"{group}/v1", "kind": kind, "metadata": {"name": name}, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": kind, "name": name},
            "subjects": [{"apiGroup": group, "kind": "Group", "name": ROLLOUT_GROUP}],
        },
    ]
