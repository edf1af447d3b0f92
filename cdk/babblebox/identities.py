"""A role of AWS for one service account in the cluster, by EKS Pod Identity."""

import aws_cdk as cdk
from aws_cdk import aws_eks_v2 as eks
from aws_cdk import aws_iam as iam
from constructs import Construct


class PodIdentity(Construct):
    """What the pods of one service account may do; others cannot take on the role."""

    def __init__(
        self, scope: Construct, id: str, *, cluster: eks.ICluster, namespace: str, service_account: str
    ) -> None:
        super().__init__(scope, id)
        self.role = role(self, cluster)
        self.association = eks.CfnPodIdentityAssociation(
            self,
            "Association",
            cluster_name=cluster.cluster_name,
            namespace=namespace,
            service_account=service_account,
            role_arn=self.role.role_arn,
        )


def role(scope: Construct, cluster: eks.ICluster) -> iam.Role:
    """A role that EKS gives to pods of this cluster alone."""
    conditions = {
        "StringEquals": {"aws:SourceAccount": cdk.Aws.ACCOUNT_ID},
        "ArnEquals": {"aws:SourceArn": cluster.cluster_arn},
    }
    principal = iam.ServicePrincipal("pods.eks.amazonaws.com").with_conditions(conditions)
    return iam.Role(scope, "Role", assumed_by=iam.SessionTagsPrincipal(principal))
