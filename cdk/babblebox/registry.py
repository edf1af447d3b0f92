"""The container images' home, shared by all stages: what was tried in beta is what runs in prod."""

import aws_cdk as cdk
from aws_cdk import aws_ecr as ecr
from constructs import Construct

from babblebox import names

KEPT = 50
"""Images a repository keeps, which is how far back a rollback reaches."""


class Registry(cdk.Stack):
    """A repository for each image."""

    def __init__(self, scope: Construct, id: str) -> None:
        super().__init__(scope, id)
        self.repositories = {image: self._repository(image) for image in names.IMAGES}
        host = cdk.Fn.select(0, cdk.Fn.split("/", self.repositories["web"].repository_uri))
        cdk.CfnOutput(self, "Registry", value=host)

    def _repository(self, image: str) -> ecr.Repository:
        repository = ecr.Repository(
            self,
            image.capitalize(),
            repository_name=names.repository(image),
            encryption=ecr.RepositoryEncryption.KMS,
            image_scan_on_push=True,
            image_tag_mutability=ecr.TagMutability.IMMUTABLE,
            lifecycle_rules=[
                ecr.LifecycleRule(
                    rule_priority=1,
                    description="Left over from builds",
                    tag_status=ecr.TagStatus.UNTAGGED,
                    max_image_age=cdk.Duration.days(7),
                ),
                ecr.LifecycleRule(rule_priority=2, description="Old images", max_image_count=KEPT),
            ],
            removal_policy=cdk.RemovalPolicy.RETAIN,
        )
        cdk.CfnOutput(self, f"{image.capitalize()}Repository", value=repository.repository_uri)
        return repository
