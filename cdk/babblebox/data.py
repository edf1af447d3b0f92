"""What a stage must not lose: recordings and pictures, the database, secrets."""

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_rds as rds
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from babblebox import names
from babblebox.findings import explain, managed
from babblebox.network import Network, retention
from babblebox.stages import Stage

DATABASE_PORT = 5432


class Data(cdk.Stack):
    """The buckets, the database and the secrets, under one key."""

    def __init__(self, scope: Construct, id: str, *, stage: Stage, network: Network) -> None:
        super().__init__(scope, id)
        self.key = kms.Key(self, "Key", alias=f"{names.PROJECT}-{stage.name}", enable_key_rotation=True)
        self.access_logs = self._access_logs(stage)
        self.blobs = self._blobs(network)
        self.offloaded = self._bucket("Offloaded", "offloaded/")
        self._exported = {
            bucket.node.id: self.export_value(bucket.bucket_arn, name=self._export(bucket))
            for bucket in (self.blobs, self.offloaded)
        }
        self.database = self._database(stage, network)
        self.secret_key = self._generated(stage)
        self.tokens = {
            role: self._filled_later(stage, f"pulsar-token/{role}", "The token of a role of Pulsar")
            for role in (*names.ROLES, *names.SUPERUSERS)
        }
        self.jwt_keys = self._filled_later(stage, "pulsar-jwt-keys", "PRIVATEKEY and PUBLICKEY of all tokens")
        cdk.CfnOutput(self, "BlobBucket", value=self.blobs.bucket_name)
        cdk.CfnOutput(self, "BlobStore", value=f"s3://{self.blobs.bucket_name}")
        cdk.CfnOutput(self, "OffloadBucket", value=self.offloaded.bucket_name)
        cdk.CfnOutput(self, "DatabaseHost", value=self.database.db_instance_endpoint_address)

    def grant_blobs(self, grantee: iam.IRole) -> None:
        """Read, write and delete recordings and pictures."""
        self._grant_objects(grantee, self.blobs, "s3:GetObject", "s3:PutObject", "s3:DeleteObject")

    def grant_offloading(self, grantee: iam.IRole) -> None:
        """Move closed ledgers of Pulsar to their bucket, read them there and delete them."""
        actions = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")
        self._grant_objects(grantee, self.offloaded, *actions)

    def _grant_objects(self, grantee: iam.IRole, bucket: s3.Bucket, *actions: str) -> None:
        """Listing is not for lists: without it S3 answers 403 instead of 404 when something is not there."""
        arn = self._exported[bucket.node.id]
        for allowed, resource in (
            (list(actions), f"{arn}/*"),
            (["s3:ListBucket"], arn),
            (["kms:Decrypt", "kms:GenerateDataKey"], self.key.key_arn),
        ):
            statement = iam.PolicyStatement(actions=allowed, resources=[resource])
            grantee.add_to_principal_policy(statement)
        explain(grantee, "Any object of one bucket.", f"IAM5[Resource::{self._export(bucket)}/*]")

    def _export(self, bucket: s3.Bucket) -> str:
        """The name under which other stacks know a bucket's ARN."""
        return f"{self.stack_name}-{bucket.node.id.lower()}"

    def _access_logs(self, stage: Stage) -> s3.Bucket:
        bucket = s3.Bucket(
            self,
            "AccessLogs",
            encryption=s3.BucketEncryption.S3_MANAGED,  # the only one that load balancers can write to
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            lifecycle_rules=[s3.LifecycleRule(expiration=cdk.Duration.days(stage.log_days))],
            removal_policy=cdk.RemovalPolicy.RETAIN,
        )
        bucket.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal("logdelivery.elasticloadbalancing.amazonaws.com")],
                actions=["s3:PutObject"],
                resources=[bucket.arn_for_objects("alb/*")],
            )
        )
        explain(bucket, "It holds the access logs of the others; its own would be about themselves.", "S1")
        return bucket

    def _blobs(self, network: Network) -> s3.Bucket:
        bucket = self._bucket("Blobs", "blobs/")
        bucket.add_cors_rule(
            allowed_methods=[s3.HttpMethods.GET, s3.HttpMethods.HEAD],
            allowed_origins=[f"https://{network.domain.value_as_string}"],
            allowed_headers=["Range"],
            exposed_headers=["Content-Range", "ETag"],
            max_age=3600,
        )
        bucket.add_lifecycle_rule(
            transitions=[
                s3.Transition(storage_class=s3.StorageClass.INTELLIGENT_TIERING, transition_after=cdk.Duration.days(30))
            ]
        )
        return bucket

    def _bucket(self, name: str, log_prefix: str) -> s3.Bucket:
        """What was overwritten or deleted by mistake can be had back for a month."""
        return s3.Bucket(
            self,
            name,
            encryption=s3.BucketEncryption.KMS,
            encryption_key=self.key,
            bucket_key_enabled=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            versioned=True,
            lifecycle_rules=[
                s3.LifecycleRule(
                    abort_incomplete_multipart_upload_after=cdk.Duration.days(7),
                    noncurrent_version_expiration=cdk.Duration.days(30),
                    expired_object_delete_marker=True,
                )
            ],
            server_access_logs_bucket=self.access_logs,
            server_access_logs_prefix=log_prefix,
            removal_policy=cdk.RemovalPolicy.RETAIN,
        )

    def _database(self, stage: Stage, network: Network) -> rds.DatabaseInstance:
        name = f"{names.PROJECT}-{stage.name}"
        engine = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_17)
        group = ec2.SecurityGroup(
            self, "DatabaseGroup", vpc=network.vpc, allow_all_outbound=False, description="The database"
        )
        group.add_ingress_rule(network.tasks, ec2.Port.tcp(DATABASE_PORT), "Web and relay")
        ec2.CfnSecurityGroupEgress(
            self,
            "TasksToDatabase",
            group_id=network.tasks.security_group_id,
            destination_security_group_id=group.security_group_id,
            ip_protocol="tcp",
            from_port=DATABASE_PORT,
            to_port=DATABASE_PORT,
            description="The database",
        )
        log_groups = [
            logs.LogGroup(
                self,
                f"Database{kind.capitalize()}Log",
                log_group_name=f"/aws/rds/instance/{name}/{kind}",
                retention=retention(stage),
                removal_policy=cdk.RemovalPolicy.DESTROY,
            )
            for kind in ("postgresql", "upgrade")
        ]
        database = rds.DatabaseInstance(
            self,
            "Database",
            instance_identifier=name,
            engine=engine,
            instance_type=ec2.InstanceType(stage.database_class),
            vpc=network.vpc,
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED),
            security_groups=[group],
            port=DATABASE_PORT,
            multi_az=stage.database_multi_az,
            storage_type=rds.StorageType.GP3,
            allocated_storage=50,
            max_allocated_storage=1000,
            storage_encrypted=True,
            storage_encryption_key=self.key,
            database_name=names.PROJECT,
            credentials=rds.Credentials.from_generated_secret(
                names.PROJECT, secret_name=names.secret(stage.name, "database"), encryption_key=self.key
            ),
            parameters={"rds.force_ssl": "1", "log_min_duration_statement": "1000"},
            backup_retention=cdk.Duration.days(stage.database_backup_days),
            preferred_backup_window="02:00-03:00",
            preferred_maintenance_window="sun:03:30-sun:04:30",
            copy_tags_to_snapshot=True,
            deletion_protection=True,
            removal_policy=cdk.RemovalPolicy.SNAPSHOT,
            auto_minor_version_upgrade=True,
            monitoring_interval=cdk.Duration.minutes(1),
            enable_performance_insights=True,
            performance_insight_encryption_key=self.key,
            cloudwatch_logs_exports=["postgresql", "upgrade"],
            ca_certificate=rds.CaCertificate.RDS_CA_RSA2048_G1,
        )
        for log_group in log_groups:  # else RDS makes them, without an end
            database.node.add_dependency(log_group)
        self.database_group = group
        if not stage.database_multi_az:
            explain(database, "Beta may be away while a snapshot is restored; prod has a standby.", "RDS3")
        explain(
            database,
            "The policy that RDS names for its measurements of the system.",
            managed("service-role/AmazonRDSEnhancedMonitoringRole"),
        )
        explain(database, "Another port hides nothing from who is inside; who is, security groups decide.", "RDS11")
        explain(
            database,
            "All who use the password read it when they start. It is changed by the runbook in docs/deploy.md, which "
            "starts them anew; a rotation in between would leave them with the old one.",
            "SMG4",
        )
        return database

    def _generated(self, stage: Stage) -> secretsmanager.Secret:
        secret = secretsmanager.Secret(
            self,
            "SecretKey",
            secret_name=names.secret(stage.name, "secret-key"),
            description="Signs sessions and forms of the chat",
            encryption_key=self.key,
            generate_secret_string=secretsmanager.SecretStringGenerator(password_length=64, exclude_punctuation=True),
        )
        explain(secret, "A new key signs everybody out; it is changed on purpose only, by docs/deploy.md.", "SMG4")
        return secret

    def _filled_later(self, stage: Stage, name: str, description: str) -> secretsmanager.Secret:
        """A secret without a value: the deployment mints it once, and CloudFormation never sees it."""
        secret = secretsmanager.Secret(
            self,
            "".join(word.capitalize() for word in name.replace("/", "-").split("-")),
            secret_name=names.secret(stage.name, name),
            description=description,
            encryption_key=self.key,
        )
        resource = secret.node.default_child
        assert isinstance(resource, cdk.CfnResource)
        resource.add_property_deletion_override("GenerateSecretString")
        explain(secret, "Signed with a key that AWS does not hold; docs/deploy.md says how it is replaced.", "SMG4")
        return secret
