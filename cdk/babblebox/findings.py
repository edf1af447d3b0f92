"""Answers to what cdk-nag finds: a finding is mended, or explained where it was found."""

import aws_cdk as cdk
from constructs import IConstruct


def explain(construct: IConstruct, reason: str, *findings: str) -> None:
    """Say why findings of AwsSolutions about this construct, and those below it, are meant so.

    A finding is a rule, `EC23`, or what `managed` and `wildcard` name: each policy and each `*` on its own.
    """
    rules = [cdk.Acknowledgment(id=f"AwsSolutions-{finding}", reason=reason) for finding in findings]
    cdk.Validations.of(construct).acknowledge(*rules)


def managed(policy: str) -> str:
    """The finding that a role has a policy of AWS."""
    return f"IAM4[Policy::arn:<AWS::Partition>:iam::aws:policy/{policy}]"


def wildcard(resource: str) -> str:
    """The finding that a policy says `*` about resources: about all ("*"), or those of a service ("s3:name/*")."""
    if resource == "*":
        return "IAM5[Resource::*]"
    service, _, name = resource.partition(":")
    return f"IAM5[Resource::arn:<AWS::Partition>:{service}:<AWS::Region>:<AWS::AccountId>:{name}]"
