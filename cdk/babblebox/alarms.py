"""Where alarms go: one topic, and the mail address behind it. Of its own, since both clusters' alarms need it."""

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from babblebox import names
from babblebox.stages import Stage


class Alarms(cdk.Stack):
    """The topic that CloudWatch and Alertmanager publish to."""

    def __init__(self, scope: Construct, id: str, *, stage: Stage) -> None:
        super().__init__(scope, id)
        self.key = kms.Key(self, "Key", enable_key_rotation=True, description="Alarms on their way to mail")
        self.key.grant_encrypt_decrypt(iam.ServicePrincipal("cloudwatch.amazonaws.com"))
        self.topic = sns.Topic(
            self,
            "Topic",
            topic_name=f"{names.PROJECT}-{stage.name}-alarms",
            master_key=self.key,
            enforce_ssl=True,
        )
        address = cdk.CfnParameter(self, "AlarmEmail", description="Who is told of alarms; confirms by a link")
        self.topic.add_subscription(subscriptions.EmailSubscription(address.value_as_string))
        cdk.CfnOutput(self, "TopicArn", value=self.topic.topic_arn)

    def grant_publish(self, role: iam.IRole) -> None:
        """Let a role publish; said in its own policy, so that this stack need not know it."""
        for actions, resource in (
            (["sns:Publish"], self.topic.topic_arn),
            (["kms:Decrypt", "kms:GenerateDataKey"], self.key.key_arn),
        ):
            role.add_to_principal_policy(iam.PolicyStatement(actions=actions, resources=[resource]))
