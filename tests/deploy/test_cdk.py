"""cdk/: what its stacks would make of an account, and that k8s/, the images and the apps call things the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from flask import Flask

from apps.chat.settings import Settings
from apps.chat.web import health
from cdk.babblebox import names
from cdk.babblebox.stages import STAGES, Stage
from pulsartasks.brokers.pulsar.settings import PulsarSettings
from tests.deploy.assembly import Assembly, Json, listed, named, text
from tools import deploy, environment, tokens

CHECKOUT = environment.CHECKOUT
K8S = CHECKOUT / "k8s"
STACKS = ("alarms", "network", "data", "private-ca", "cluster", "web", "observability")
CHART = "Custom::AWSCDK-EKS-HelmChart"
OUTPUTS = {
    "registry": {"Registry"},
    "network": {"Address", "VpcId", "ZoneName"},
    "data": {"BlobBucket", "BlobStore", "OffloadBucket"},
    "private-ca": {"SubordinateArn"},
    "cluster": {"AdminRoleArn", "ClusterName", "PulsarHost", "RolloutRoleArn"},
    "web": {"DeployedTag", "EcsCluster"},
}
"""What `make deploy-apps` and people read."""
ECS_DEPLOYS = ("ecs:RegisterTaskDefinition", "ecs:TagResource", "ecs:UpdateService")
"""What CDK gives the action of CodePipeline that deploys to ECS."""
LINT_IGNORED = {
    "W3005": "CDK says twice what comes first; the templates are its own.",
    "W3691": "PostgreSQL by its major version: RDS chooses the minor one, and keeps it up to date.",
}


@pytest.fixture(params=STAGES, ids=lambda stage: stage.name)
def stage(request: pytest.FixtureRequest) -> Stage:
    stage: Stage = request.param
    return stage


# The whole


def test_every_stage_has_all_of_its_stacks(assembly: Assembly) -> None:
    of_stages = {names.stack(name, stage.name) for stage in STAGES for name in STACKS}

    assert assembly.templates.keys() == {*of_stages, names.stack("registry"), names.stack("pipelines")}


def test_nothing_was_looked_up_and_nothing_is_of_one_account(assembly: Assembly) -> None:
    everything = json.dumps([assembly.manifest, assembly.templates])

    assert "missing" not in assembly.manifest
    assert "dummy" not in everything
    assert not re.findall(r"\b\d{12}\b", re.sub(r"20\d{6}000000", "", everything))  # but for the authorities' ends
    environments = {each["environment"] for each in assembly.manifest["artifacts"].values() if "environment" in each}
    assert environments == {"aws://unknown-account/unknown-region"}


def test_no_template_holds_a_secret(assembly: Assembly) -> None:
    secrets = [resource["Properties"] for _, resource in assembly.everywhere("AWS::SecretsManager::Secret")]

    values = {text(secret["Name"]): secret["SecretString"] for secret in secrets if "SecretString" in secret}
    trust = {names.secret(stage.name, "pulsar-ca") for stage in STAGES}
    assert values.keys() == trust
    assert all(value == {"Fn::GetAtt": ["RootCertificate", "Certificate"]} for value in values.values())
    generated = {text(secret["Name"]) for secret in secrets if "GenerateSecretString" in secret}
    assert generated == {names.secret(stage.name, name) for stage in STAGES for name in ("database", "secret-key")}


def test_every_secret_of_the_agreement_is_there(assembly: Assembly, stage: Stage) -> None:
    stacks = [names.stack(name, stage.name) for name in ("data", "private-ca")]
    found = {
        text(each["Name"]) for stack in stacks for each in assembly.properties(stack, "AWS::SecretsManager::Secret")
    }

    tokens = {names.token_secret(stage.name, role) for role in (*names.ROLES, *names.SUPERUSERS)}
    others = {names.secret(stage.name, name) for name in ("pulsar-jwt-keys", "pulsar-ca", "database", "secret-key")}
    assert found == tokens | others


def test_no_role_may_do_everything(assembly: Assembly) -> None:
    for stack, statement in assembly.policies():
        assert "NotAction" not in statement
        for action in listed(statement["Action"]):
            assert not action.endswith((":*", "*:*")), (stack, statement)
            assert action != "*", (stack, statement)
        changes = [action for action in listed(statement["Action"]) if not _only_reads(action)]
        if "*" in listed(statement["Resource"]) and "Condition" not in statement:
            assert set(changes) <= {"ecr:GetAuthorizationToken", *ECS_DEPLOYS}, (stack, statement)


def _only_reads(action: str) -> bool:
    return re.match(r"[a-z0-9-]+:(Describe|List|Get(?!AuthorizationToken))", action) is not None


def test_no_role_is_an_administrator(assembly: Assembly) -> None:
    attached = {
        text(policy) for _, role in assembly.everywhere("AWS::IAM::Role")
        for policy in role["Properties"].get("ManagedPolicyArns", [])
    }  # fmt: skip

    assert not [policy for policy in attached if re.search(r"Administrator|FullAccess|PowerUser", policy)]


def test_logs_end(assembly: Assembly) -> None:
    groups = list(assembly.everywhere("AWS::Logs::LogGroup"))

    assert len(groups) > 15
    for _, group in groups:
        assert group["Properties"]["RetentionInDays"] >= 30


def test_everything_that_is_stored_is_encrypted(assembly: Assembly) -> None:
    for stack, bucket in assembly.everywhere("AWS::S3::Bucket"):
        (rule,) = bucket["Properties"]["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        algorithm = rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"]
        assert algorithm in ("aws:kms", "AES256"), stack
    for kind, key in {
        "AWS::SecretsManager::Secret": "KmsKeyId",
        "AWS::SNS::Topic": "KmsMasterKeyId",
        "AWS::CodeBuild::Project": "EncryptionKey",
    }.items():
        for stack, resource in assembly.everywhere(kind):
            assert key in resource["Properties"] or text(resource["Properties"]["Name"]).endswith("pulsar-ca"), stack
    for _, resource in assembly.everywhere("AWS::KMS::Key"):
        assert resource["Properties"]["EnableKeyRotation"] is True


def test_no_bucket_is_public_or_read_without_tls(assembly: Assembly) -> None:
    policies = {
        (stack, policy["Properties"]["Bucket"]["Ref"]): policy["Properties"]["PolicyDocument"]["Statement"]
        for stack, policy in assembly.everywhere("AWS::S3::BucketPolicy")
    }
    for stack, template in assembly.templates.items():
        for logical_id, resource in template["Resources"].items():
            if resource["Type"] == "AWS::S3::Bucket":
                assert set(resource["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
                refused = [each["Condition"] for each in policies[stack, logical_id] if each["Effect"] == "Deny"]
                assert {"Bool": {"aws:SecureTransport": "false"}} in refused
                assert {"NumericLessThan": {"s3:TlsVersion": 1.2}} in refused


def test_cfn_lint_finds_nothing_that_is_not_explained(assembly: Assembly) -> None:
    """Of prod, which has all that beta has."""
    templates = [str(assembly.folder / f"{name}.template.json") for name in assembly.templates if "beta" not in name]
    command = [
        str(Path(sys.executable).with_name("cfn-lint")),
        "--format",
        "parseable",
        "--ignore-checks",
        *LINT_IGNORED,
        "--",
    ]
    done = subprocess.run([*command, *templates], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_finding_of_cdk_nag_is_explained(assembly: Assembly) -> None:
    """That there is none without is why the synthesis ended well; a reason is a sentence."""
    reasons = [
        reason
        for path in assembly.folder.glob("*.metadata.json")
        for entries in json.loads(path.read_text("utf-8")).values()
        for entry in entries
        if entry["type"] == "aws:cdk:acknowledged-rules"
        for rule, reason in entry["data"].items()
        if "AwsSolutions" in rule
    ]

    assert len(set(reasons)) > 20
    assert all(len(reason.split()) > 3 and reason.endswith(".") for reason in reasons)


# The network


def test_a_stage_has_three_zones_of_its_region(assembly: Assembly, stage: Stage) -> None:
    subnets = assembly.properties(names.stack("network", stage.name), "AWS::EC2::Subnet")
    zones = {json.dumps(subnet["AvailabilityZone"]) for subnet in subnets}

    assert zones == {json.dumps({"Fn::Select": [number, {"Fn::GetAZs": ""}]}) for number in range(3)}
    assert len(subnets) == 9
    assert not any(subnet["MapPublicIpOnLaunch"] for subnet in subnets)


def test_flows_are_logged_and_s3_has_a_way_of_its_own(assembly: Assembly, stage: Stage) -> None:
    stack = names.stack("network", stage.name)

    assert assembly.only(stack, "AWS::EC2::FlowLog")["TrafficType"] == "ALL"
    services = [text(each["ServiceName"]) for each in assembly.properties(stack, "AWS::EC2::VPCEndpoint")]
    assert any(service.endswith(".s3") for service in services)
    if stage.private_endpoints:
        assert {service.rpartition(".")[2] for service in services} >= {"dkr", "secretsmanager", "logs", "sts"}
    assert len(assembly.resources(stack, "AWS::EC2::NatGateway")) == stage.nat_gateways


def test_people_reach_one_security_group_and_nobody_else_does(assembly: Assembly, stage: Stage) -> None:
    opened = [
        rule
        for name in STACKS
        for group in assembly.properties(names.stack(name, stage.name), "AWS::EC2::SecurityGroup")
        for rule in group.get("SecurityGroupIngress", [])
        if rule.get("CidrIp") == "0.0.0.0/0"
    ]

    assert sorted(rule["FromPort"] for rule in opened) == [80, 443]
    for _, rule in assembly.everywhere("AWS::EC2::SecurityGroupIngress"):
        assert "CidrIp" not in rule["Properties"]


# Data


def test_the_database_survives(assembly: Assembly, stage: Stage) -> None:
    (resource,) = assembly.resources(names.stack("data", stage.name), "AWS::RDS::DBInstance")
    database = resource["Properties"]

    assert resource["DeletionPolicy"] == resource["UpdateReplacePolicy"] == "Snapshot"
    assert database["DeletionProtection"] is True
    assert database["StorageEncrypted"] is True
    assert "KmsKeyId" in database
    assert database["MultiAZ"] is (stage.name == "prod")
    assert database["BackupRetentionPeriod"] == (35 if stage.name == "prod" else 7)
    assert database["PubliclyAccessible"] is False
    assert database["CopyTagsToSnapshot"] is True
    parameters = assembly.only(names.stack("data", stage.name), "AWS::RDS::DBParameterGroup")["Parameters"]
    assert parameters["rds.force_ssl"] == "1"


def test_only_tasks_and_pods_reach_the_database(assembly: Assembly, stage: Stage) -> None:
    (group,) = assembly.properties(names.stack("data", stage.name), "AWS::EC2::SecurityGroup")
    of_tasks = assembly.properties(names.stack("data", stage.name), "AWS::EC2::SecurityGroupIngress")
    of_pods = named(
        assembly.properties(names.stack("cluster", stage.name), "AWS::EC2::SecurityGroupIngress"), "Description"
    )

    assert "SecurityGroupIngress" not in group
    (rule,) = of_tasks
    assert "Tasks" in text(rule["SourceSecurityGroupId"])
    assert rule["FromPort"] == rule["ToPort"] == 5432
    pods = of_pods["The chat's worker and migrations"]
    assert pods["FromPort"] == pods["ToPort"] == 5432
    assert pods["SourceSecurityGroupId"]["Fn::GetAtt"][1] == "ClusterSecurityGroupId"


def test_blobs_are_kept_by_version_and_only_the_chat_s_own_pages_may_ask(assembly: Assembly, stage: Stage) -> None:
    blobs = next(
        bucket
        for bucket in assembly.properties(names.stack("data", stage.name), "AWS::S3::Bucket")
        if "CorsConfiguration" in bucket
    )

    assert blobs["VersioningConfiguration"] == {"Status": "Enabled"}
    (cors,) = blobs["CorsConfiguration"]["CorsRules"]
    assert cors["AllowedMethods"] == ["GET", "HEAD"]
    (origin,) = cors["AllowedOrigins"]
    assert text(origin).startswith("https://{")
    assert "DomainName" in text(origin)
    rules = blobs["LifecycleConfiguration"]["Rules"]
    assert {"AbortIncompleteMultipartUpload", "NoncurrentVersionExpiration", "Transitions"} <= set().union(*rules)
    assert not any("ExpirationInDays" in rule for rule in rules)


# The authorities


def test_a_root_signs_a_subordinate_that_can_sign_no_other(assembly: Assembly, stage: Stage) -> None:
    stack = names.stack("private-ca", stage.name)
    authorities = named(assembly.properties(stack, "AWS::ACMPCA::CertificateAuthority"), "Type")
    certificates = [text(each["TemplateArn"]).rpartition("template/")[2] for each in
                    assembly.properties(stack, "AWS::ACMPCA::Certificate")]  # fmt: skip

    assert authorities.keys() == {"ROOT", "SUBORDINATE"}
    assert {each["KeyAlgorithm"] for each in authorities.values()} == {"RSA_4096"}
    assert sorted(certificates) == ["RootCACertificate/V1", "SubordinateCACertificate_PathLen0/V1"]
    chained = [
        each for each in assembly.properties(stack, "AWS::ACMPCA::CertificateAuthorityActivation")
        if "CertificateChain" in each
    ]  # fmt: skip
    assert len(chained) == 1
    assert len(assembly.resources(stack, "AWS::ACMPCA::CertificateAuthorityActivation")) == 2
    for resource in assembly.resources(stack, "AWS::ACMPCA::CertificateAuthority"):
        assert resource["DeletionPolicy"] == "Retain"


def test_the_end_of_an_authority_is_announced(assembly: Assembly, stage: Stage) -> None:
    ends = [each["Validity"] for each in
            assembly.properties(names.stack("private-ca", stage.name), "AWS::ACMPCA::Certificate")]  # fmt: skip
    schedules = assembly.properties(names.stack("observability", stage.name), "AWS::Scheduler::Schedule")
    announced = [date.fromisoformat(each["ScheduleExpression"][3:13]) for each in schedules]

    assert len(announced) == 4
    for end in ends:
        day = date.fromisoformat(str(end["Value"])[:8])
        assert end["Type"] == "END_DATE"
        assert {(day - notice).days for notice in announced} >= {30, 183}


def test_the_issuer_gets_certificates_for_servers_and_clients_alone(assembly: Assembly, stage: Stage) -> None:
    issuing = [
        statement for stack, statement in assembly.policies()
        if stack == names.stack("cluster", stage.name) and "acm-pca:IssueCertificate" in listed(statement["Action"])
    ]  # fmt: skip

    (statement,) = issuing
    assert "Subordinate" in text(statement["Resource"])
    assert statement["Condition"]["StringLike"]["acm-pca:TemplateArn"].endswith("template/*EndEntity*")


# The cluster


def test_the_cluster_encrypts_its_secrets_and_logs_who_did_what(assembly: Assembly, stage: Stage) -> None:
    cluster = assembly.only(names.stack("cluster", stage.name), "AWS::EKS::Cluster")

    assert cluster["EncryptionConfig"][0]["Resources"] == ["secrets"]
    logged = {each["Type"] for each in cluster["Logging"]["ClusterLogging"]["EnabledTypes"]}
    assert logged == {"api", "audit", "authenticator", "controllerManager", "scheduler"}
    assert cluster["AccessConfig"]["AuthenticationMode"] == "API"
    assert cluster["AccessConfig"]["BootstrapClusterCreatorAdminPermissions"] is False


def test_the_kubectl_of_cdk_is_of_the_cluster_s_version(assembly: Assembly, stage: Stage) -> None:
    version = assembly.only(names.stack("cluster", stage.name), "AWS::EKS::Cluster")["Version"]

    assert f"kubectl-v{version.removeprefix('1.')}==" in environment.CDK_LOCK.read_text("utf-8")


def test_pods_cannot_take_on_the_role_of_a_node(assembly: Assembly, stage: Stage) -> None:
    templates = assembly.properties(names.stack("cluster", stage.name), "AWS::EC2::LaunchTemplate")

    assert len(templates) == len(stage.nodes)
    for template in templates:
        options = template["LaunchTemplateData"]["MetadataOptions"]
        assert options == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert template["LaunchTemplateData"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True


def test_the_cluster_has_what_k8s_builds_on(assembly: Assembly, stage: Stage) -> None:
    stack = names.stack("cluster", stage.name)
    addons = named(assembly.properties(stack, "AWS::EKS::Addon"), "AddonName")
    charts = named(assembly.properties(stack, CHART), "Chart")

    assert addons.keys() >= {
        *("aws-ebs-csi-driver", "aws-privateca-connector-for-kubernetes", "cert-manager"),
        *("eks-pod-identity-agent", "vpc-cni"),
    }
    assert charts.keys() == {
        *("aws-load-balancer-controller", "cluster-autoscaler", "external-secrets", "keda", "kube-prometheus-stack"),
        "pulsar",
    }
    assert json.loads(addons["vpc-cni"]["ConfigurationValues"]) == {"enableNetworkPolicy": "true"}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", chart["Version"]) for chart in charts.values())


def test_a_role_for_pods_is_given_to_pods_of_this_cluster_alone(assembly: Assembly, stage: Stage) -> None:
    stack = names.stack("cluster", stage.name)
    roles = [
        role["AssumeRolePolicyDocument"]["Statement"][0]
        for role in assembly.properties(stack, "AWS::IAM::Role")
        if "pods.eks" in json.dumps(role["AssumeRolePolicyDocument"])
    ]

    assert len(roles) >= 8
    for trust in roles:
        assert trust["Principal"] == {"Service": "pods.eks.amazonaws.com"}
        assert set(trust["Action"]) == {"sts:AssumeRole", "sts:TagSession"}
        assert trust["Condition"]["ArnEquals"]["aws:SourceArn"]["Fn::GetAtt"][1] == "Arn"


def test_the_pipeline_changes_two_namespaces_and_is_no_administrator(assembly: Assembly, stage: Stage) -> None:
    entries = assembly.properties(names.stack("cluster", stage.name), "AWS::EKS::AccessEntry")
    (rollout,) = [entry for entry in entries if entry.get("KubernetesGroups")]

    (policy,) = rollout["AccessPolicies"]
    assert policy["AccessScope"] == {"Type": "namespace", "Namespaces": ["babblebox", "pulsar"]}
    assert not text(policy["PolicyArn"]).endswith("ClusterAdminPolicy")


def test_every_bookie_has_a_node_of_its_own(assembly: Assembly, stage: Stage) -> None:
    values = chart_values(assembly, stage)

    for part in ("zookeeper", "bookkeeper", "broker"):
        assert values[part]["replicaCount"] <= stage.nodes["pulsar"].least


# From Fargate to Pulsar


def test_only_the_tasks_reach_the_load_balancer_of_pulsar(assembly: Assembly, stage: Stage) -> None:
    stack = names.stack("cluster", stage.name)
    balancer = assembly.only(stack, "AWS::ElasticLoadBalancingV2::LoadBalancer")
    (group,) = [text(each) for each in balancer["SecurityGroups"]]
    rules = [
        rule for rule in assembly.properties(stack, "AWS::EC2::SecurityGroupIngress") if text(rule["GroupId"]) == group
    ]

    assert balancer["Scheme"] == "internal"
    assert {"Key": "deletion_protection.enabled", "Value": "true"} in balancer["LoadBalancerAttributes"]
    assert {rule["FromPort"] for rule in rules} == {6651, 443}
    assert all("Tasks" in text(rule["SourceSecurityGroupId"]) for rule in rules)
    own = named(assembly.properties(stack, "AWS::EC2::SecurityGroup"), "GroupDescription")
    assert "SecurityGroupIngress" not in own["The load balancer of the Pulsar proxy"]


def test_the_load_balancer_hands_tls_on_to_the_pods_of_the_proxy(assembly: Assembly, stage: Stage) -> None:
    stack = names.stack("cluster", stage.name)
    listeners = assembly.properties(stack, "AWS::ElasticLoadBalancingV2::Listener")
    bindings = [item for manifest in assembly.properties(stack, "Custom::AWSCDK-EKS-KubernetesResource")
                for item in json.loads(text(manifest["Manifest"])) if item["kind"] == "TargetGroupBinding"]  # fmt: skip

    assert {(each["Port"], each["Protocol"]) for each in listeners} == {(6651, "TCP"), (443, "TCP")}
    assert {each["spec"]["serviceRef"]["port"] for each in bindings} == {6651, 443}
    assert {each["spec"]["serviceRef"]["name"] for each in bindings} == {"pulsar-proxy"}
    assert {each["metadata"]["namespace"] for each in bindings} == {"pulsar"}
    assert "service" not in chart_values(assembly, stage)["proxy"]  # so it is ClusterIP


def test_the_name_that_the_tasks_ask_for_is_in_the_proxy_s_certificate(assembly: Assembly, stage: Stage) -> None:
    env = environment_of(assembly, stage, "web")
    record = assembly.only(names.stack("cluster", stage.name), "AWS::Route53::RecordSet")
    zone = assembly.only(names.stack("network", stage.name), "AWS::Route53::HostedZone")

    host = names.pulsar_host(stage.name)
    assert env["PULSARTASKS_BROKER"] == f"pulsar+ssl://{host}:6651"
    assert env["PULSARTASKS_ADMIN_URL"] == f"https://{host}"
    assert record["Name"] == f"{host}."
    assert "AliasTarget" in record
    assert zone["Name"] == f"{names.zone(stage.name)}."
    assert host in chart_values(assembly, stage)["tls"]["proxy"]["dnsNames"]


def test_the_chart_has_what_only_this_account_knows(assembly: Assembly, stage: Stage) -> None:
    offload = chart_values(assembly, stage)["broker"]["storageOffload"]

    assert "Offloaded" in offload["bucket"]
    assert offload["region"] == "{AWS::Region}"


# Web and relay


def test_what_a_deployment_wants_to_know_is_an_output(assembly: Assembly, stage: Stage) -> None:
    outputs = {name: assembly.templates[names.stack(name, stage.name)].get("Outputs", {}) for name in STACKS}
    outputs["registry"] = assembly.templates[names.stack("registry")]["Outputs"]

    for name, wanted in OUTPUTS.items():
        assert wanted <= outputs[name].keys()


@pytest.mark.parametrize("service", ["web", "relay"])
def test_a_rollout_that_fails_is_taken_back(assembly: Assembly, stage: Stage, service: str) -> None:
    found = named(assembly.properties(names.stack("web", stage.name), "AWS::ECS::Service"), "ServiceName")[service]
    rollout = found["DeploymentConfiguration"]

    assert rollout["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}
    assert rollout["MinimumHealthyPercent"] == 100
    assert found["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "DISABLED"
    subnets = found["NetworkConfiguration"]["AwsvpcConfiguration"]["Subnets"]
    assert all("private" in json.dumps(subnet) for subnet in subnets)


@pytest.mark.parametrize("service", ["web", "relay"])
def test_a_container_has_no_rights_and_writes_to_its_volumes_alone(
    assembly: Assembly, stage: Stage, service: str
) -> None:
    for container in containers(assembly, stage, service).values():
        assert container["ReadonlyRootFilesystem"] is True
        assert container["User"] == str(names.USER_ID)
        assert container["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
        assert "Privileged" not in container


@pytest.mark.parametrize("service", ["web", "relay"])
def test_the_image_gives_the_volumes_to_its_user(assembly: Assembly, stage: Stage, service: str) -> None:
    mounted = {point["ContainerPath"] for each in containers(assembly, stage, service).values()
               for point in each["MountPoints"]}  # fmt: skip

    (declared,) = re.findall(r"^VOLUME (\[.+\])", (CHECKOUT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert mounted == set(json.loads(declared))


@pytest.mark.parametrize("service", ["web", "relay"])
def test_secrets_come_from_secrets_manager(assembly: Assembly, stage: Stage, service: str) -> None:
    found = containers(assembly, stage, service)

    assert {each["Name"] for each in found[service]["Secrets"]} == {"PGUSER", "PGPASSWORD", "SECRET_KEY"}
    origins = {each["Name"]: text(each["ValueFrom"]) for each in found["credentials"]["Secrets"]}
    assert origins.keys() == {"TOKEN", "CA_CRT"}
    assert "PulsarTokenWeb" in origins["TOKEN"]
    assert found[service]["DependsOn"] == [{"Condition": "SUCCESS", "ContainerName": "credentials"}]
    assert not [name for name in environment_of(assembly, stage, service) if re.search("TOKEN$|PASSWORD|SECRET", name)]


def test_the_library_finds_the_files_that_the_container_before_it_wrote(
    assembly: Assembly, stage: Stage, tmp_path: Path
) -> None:
    python, *arguments = containers(assembly, stage, "web")["credentials"]["Command"]
    arguments = [word.replace(names.STATE_FOLDER, str(tmp_path)) for word in arguments]
    for token in ("first.of.all", "second.of.all"):  # a task that is started again writes them again
        env = {"TOKEN": token, "CA_CRT": "-----BEGIN CERTIFICATE-----\n"}
        subprocess.run([sys.executable, *arguments], env=env, check=True)

    env = {
        name: value.replace(names.STATE_FOLDER, str(tmp_path))
        for name, value in environment_of(assembly, stage, "web").items()
    }
    settings = PulsarSettings.parse(env["PULSARTASKS_BROKER"], env)
    assert python == "python"
    assert Path(str(settings.token_file)).read_text() == "second.of.all"
    assert Path(str(settings.tls_ca)).read_text() == "-----BEGIN CERTIFICATE-----\n"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_the_database_is_found_by_the_variables_of_its_own_client(
    assembly: Assembly, stage: Stage, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment_of(assembly, stage, "web")
    url = sa.make_url(postgres)
    given = {
        "PGHOST": url.host or url.query["host"],
        "PGPORT": url.port,
        "PGUSER": url.username,
        "PGDATABASE": url.database,
    }
    for name, value in {**given, "PGPASSWORD": "p@ss/w:rd"}.items():
        if value is not None:
            monkeypatch.setenv(name, str(value))

    engine = sa.create_engine(env["DATABASE_URL"])
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT current_database()")) == url.database
    engine.dispose()
    assert env.keys() >= {"PGHOST", "PGPORT", "PGDATABASE"}
    assert env["PGSSLMODE"] == "require"


def test_gunicorn_takes_the_command_of_the_task(assembly: Assembly, stage: Stage, tmp_path: Path) -> None:
    program, *arguments = containers(assembly, stage, "web")["web"]["Command"]
    env = {"DATABASE_URL": f"sqlite:///{tmp_path / 'chat.db'}", "BLOB_STORE": str(tmp_path), "SECRET_KEY": "k" * 32}
    done = subprocess.run(
        [sys.executable, "-m", program, "--check-config", *arguments],
        env={**os.environ, **env},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_a_live_stream_is_not_cut_between_two_heartbeats(assembly: Assembly, stage: Stage) -> None:
    balancer = assembly.only(names.stack("web", stage.name), "AWS::ElasticLoadBalancingV2::LoadBalancer")
    attributes = {each["Key"]: each["Value"] for each in balancer["LoadBalancerAttributes"]}
    command = " ".join(containers(assembly, stage, "web")["web"]["Command"])
    options = {name: int(value) for name, value in re.findall(r"--([a-z-]+)=(\d+)(?= )", command)}
    settings = Settings("", "", "")

    idle = int(attributes["idle_timeout.timeout_seconds"])
    assert idle >= 3 * settings.heartbeat
    assert options["keep-alive"] > idle  # else gunicorn closes a connection on which a request is under way
    assert options["threads"] > settings.stream_limit
    stop = containers(assembly, stage, "web")["web"]["StopTimeout"]
    assert stop > options["graceful-timeout"]


def test_people_reach_web_by_tls_1_2_or_newer(assembly: Assembly, stage: Stage) -> None:
    stack = names.stack("web", stage.name)
    balancer = assembly.only(stack, "AWS::ElasticLoadBalancingV2::LoadBalancer")
    listeners = {each["Port"]: each for each in assembly.properties(stack, "AWS::ElasticLoadBalancingV2::Listener")}
    attributes = {each["Key"]: each["Value"] for each in balancer["LoadBalancerAttributes"]}

    assert listeners.keys() == {80, 443}
    assert listeners[443]["SslPolicy"] == "ELBSecurityPolicy-TLS13-1-2-Res-2021-06"
    assert listeners[443]["Protocol"] == "HTTPS"
    (redirect,) = listeners[80]["DefaultActions"]
    assert redirect["RedirectConfig"] == {"Port": "443", "Protocol": "HTTPS", "StatusCode": "HTTP_301"}
    for name in (
        "deletion_protection.enabled",
        "routing.http.drop_invalid_header_fields.enabled",
        "access_logs.s3.enabled",
    ):
        assert attributes[name] == "true"


def test_the_load_balancer_asks_a_route_that_exists(assembly: Assembly, stage: Stage) -> None:
    group = assembly.only(names.stack("web", stage.name), "AWS::ElasticLoadBalancingV2::TargetGroup")
    flask = Flask("routes")
    flask.register_blueprint(health.blueprint)

    assert group["HealthCheckPath"] in {rule.rule for rule in flask.url_map.iter_rules()}
    assert group["Matcher"] == {"HttpCode": "200"}
    (mapping,) = containers(assembly, stage, "web")["web"]["PortMappings"]
    assert mapping["ContainerPort"] == group["Port"] == names.WEB_PORT
    assert f"--bind=0.0.0.0:{names.WEB_PORT}" in containers(assembly, stage, "web")["web"]["Command"]
    network = json.dumps(assembly.properties(names.stack("network", stage.name), "AWS::EC2::SecurityGroupIngress"))
    assert f'"FromPort": {names.WEB_PORT}' in network


def test_web_knows_of_the_load_balancer_in_front(assembly: Assembly, stage: Stage) -> None:
    assert environment_of(assembly, stage, "web")["BABBLEBOX_PROXIES"] == "1"


def test_web_grows_with_its_work(assembly: Assembly, stage: Stage) -> None:
    stack = names.stack("web", stage.name)
    target = assembly.only(stack, "AWS::ApplicationAutoScaling::ScalableTarget")
    metrics = {
        policy["TargetTrackingScalingPolicyConfiguration"]["PredefinedMetricSpecification"]["PredefinedMetricType"]
        for policy in assembly.properties(stack, "AWS::ApplicationAutoScaling::ScalingPolicy")
    }

    assert (target["MinCapacity"], target["MaxCapacity"]) == stage.web_tasks
    assert metrics == {"ECSServiceAverageCPUUtilization", "ALBRequestCountPerTarget"}


# Images and their way


def test_images_are_scanned_unchangeable_and_not_kept_for_ever(assembly: Assembly) -> None:
    repositories = named(assembly.properties(names.stack("registry"), "AWS::ECR::Repository"), "RepositoryName")

    assert repositories.keys() == {f"babblebox/{image}" for image in names.IMAGES}
    for repository in repositories.values():
        assert repository["ImageScanningConfiguration"] == {"ScanOnPush": True}
        assert repository["ImageTagMutability"] == "IMMUTABLE"
        assert "imageCountMoreThan" in repository["LifecyclePolicy"]["LifecyclePolicyText"]


def test_prod_waits_for_a_person_and_gets_what_beta_had(assembly: Assembly) -> None:
    stages = assembly.only(names.stack("pipelines"), "AWS::CodePipeline::Pipeline")["Stages"]
    actions = {stage["Name"]: sorted((each["RunOrder"], each["Name"]) for each in stage["Actions"]) for stage in stages}

    assert [stage["Name"] for stage in stages] == ["source", "test", "images", "beta", "prod"]
    assert actions["beta"] == [(2, "rollout-beta"), (3, "relay"), (3, "web")]
    assert actions["prod"] == [(1, "approve"), (2, "rollout-prod"), (3, "relay"), (3, "web")]
    deploys = [each for stage in stages[3:] for each in stage["Actions"] if each["ActionTypeId"]["Provider"] == "ECS"]
    assert {each["Configuration"]["FileName"] for each in deploys} == {"web.json", "relay.json"}


def test_the_pipeline_builds_each_image_from_the_dockerfile(assembly: Assembly) -> None:
    spec = build_spec(assembly, "images")
    dockerfile = (CHECKOUT / "Dockerfile").read_text("utf-8")

    built = set(re.findall(r"docker build --target (\S+)", spec))
    assert built == set(names.IMAGES)
    assert built <= set(re.findall(r"^FROM .+ AS (\S+)", dockerfile, re.MULTILINE))


def test_what_ecs_deploys_names_both_containers_of_a_task(assembly: Assembly, stage: Stage) -> None:
    spec = yaml.safe_load(build_spec(assembly, "images"))
    line = next(command for command in spec["phases"]["build"]["commands"] if command.endswith("> web.json"))
    said = subprocess.run(["sh", "-c", line.removesuffix(" > web.json")], capture_output=True, text=True, check=True)

    assert {each["name"] for each in json.loads(said.stdout)} == containers(assembly, stage, "web").keys()


def test_the_commands_that_deploy_name_all_stacks_their_outputs_and_roles(assembly: Assembly, stage: Stage) -> None:
    assert {*deploy.INFRA, *deploy.APPS} == set(STACKS)
    for name, output in deploy.OUTPUTS.values():
        stack = names.stack(name, None if name == "registry" else stage.name)
        assert output in assembly.templates[stack]["Outputs"]
    assert (*tokens.ROLES, *tokens.SUPERUSERS) == (*names.ROLES, *names.SUPERUSERS)
    assert deploy.IMAGES == names.IMAGES
    assert f"make deploy-apps STAGE={stage.name}" in build_spec(assembly, f"rollout-{stage.name}")


# What wakes somebody


def test_every_alarm_is_mailed(assembly: Assembly, stage: Stage) -> None:
    alarms = assembly.properties(names.stack("observability", stage.name), "AWS::CloudWatch::Alarm")

    watched = {each.get("MetricName") for each in alarms}
    assert watched >= {
        *("HTTPCode_ELB_5XX_Count", "HTTPCode_Target_5XX_Count", "TargetResponseTime", "HealthyHostCount"),
        *("CPUUtilization", "MemoryUtilization", "RunningTaskCount", "FreeStorageSpace", "DatabaseConnections"),
        *("OutboxDelayed", "OutboxInterrupted", "OutboxParked", "DaysToExpiry", "Failure"),
    }
    for alarm in alarms:
        assert len(alarm["AlarmActions"]) == len(alarm["OKActions"]) == 1
        assert "Topic" in text(alarm["AlarmActions"][0])


def test_alarms_of_the_relay_watch_for_events_that_it_logs(assembly: Assembly, stage: Stage) -> None:
    filters = assembly.properties(names.stack("observability", stage.name), "AWS::Logs::MetricFilter")
    events = {re.sub(r'.*"(.+)".*', r"\1", each["FilterPattern"]) for each in filters}

    documented = (CHECKOUT / "docs" / "logging.md").read_text("utf-8")
    assert len(events) == 3
    assert all(f"| `{event}` |" in documented for event in events)


# What k8s/ calls the same


def test_k8s_reads_secrets_that_are_there(assembly: Assembly, stage: Stage) -> None:
    stacks = [names.stack(name, stage.name) for name in ("data", "private-ca")]
    found = {
        text(each["Name"]) for stack in stacks for each in assembly.properties(stack, "AWS::SecretsManager::Secret")
    }
    read = {
        each["remoteRef"]["key"].replace("STAGE", stage.name)
        for manifest in manifests() if manifest["kind"] == "ExternalSecret" for each in manifest["spec"]["data"]
    }  # fmt: skip

    assert len(read) > 8
    assert read <= found


def test_k8s_has_the_service_accounts_that_have_roles(assembly: Assembly, stage: Stage) -> None:
    associations = {
        (each["Namespace"], each["ServiceAccount"])
        for each in assembly.properties(names.stack("cluster", stage.name), "AWS::EKS::PodIdentityAssociation")
    }
    accounts = {manifest["metadata"]["name"] for manifest in manifests() if manifest["kind"] == "ServiceAccount"}

    ours = {account for namespace, account in associations if namespace == "babblebox"}
    assert ours == {"transcribe", "images"}
    assert ours <= accounts
    broker = "pulsar-broker-acct"  # as the chart calls it
    assert ("pulsar", broker) in associations
    assert broker in (K8S / "pulsar" / "values" / "aws.yaml").read_text("utf-8")


def test_k8s_knows_the_network_and_the_nodes(assembly: Assembly, stage: Stage) -> None:
    vpc = assembly.only(names.stack("network", stage.name), "AWS::EC2::VPC")
    labels = [each["Labels"] for each in assembly.properties(names.stack("cluster", stage.name), "AWS::EKS::Nodegroup")]
    values = chart_values(assembly, stage)
    assert all(values[part]["nodeSelector"] in labels for part in ("zookeeper", "bookkeeper", "broker", "proxy"))
    selectors = re.findall(
        r"nodeSelector, value: \{(\S+): ([\w-]+)\}", (K8S / "components/aws/kustomization.yaml").read_text("utf-8")
    )

    told = [manifest["data"] for manifest in manifests(stage.name) if manifest["kind"] == "ConfigMap"]
    assert {each["VPC_CIDR"] for each in told if "VPC_CIDR" in each} == {vpc["CidrBlock"]}
    assert selectors
    assert all({key: value} in labels for key, value in selectors)


def test_k8s_lets_the_load_balancer_in_by_the_ports_of_the_pods(assembly: Assembly, stage: Stage) -> None:
    (policy,) = [
        each for each in manifests() if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "load-balancer"
    ]
    groups = assembly.properties(names.stack("cluster", stage.name), "AWS::ElasticLoadBalancingV2::TargetGroup")

    (rule,) = policy["spec"]["ingress"]
    assert {each["port"] for each in rule["ports"]} == {group["Port"] for group in groups} == {6651, 8443}


def test_k8s_names_the_issuer_of_the_chart_and_the_volumes_of_the_driver(assembly: Assembly, stage: Stage) -> None:
    values = chart_values(assembly, stage)
    named_there = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests()}

    issuer = values["certs"]["issuers"]["ca"]
    assert (issuer["kind"], issuer["name"]) in named_there
    assert ("StorageClass", values["bookkeeper"]["volumes"]["ledgers"]["storageClassName"]) in named_there
    assert ("ExternalSecret", issuer["secretName"]) in named_there


def test_k8s_lets_prometheus_in_from_where_it_is(assembly: Assembly, stage: Stage) -> None:
    chart = named(assembly.properties(names.stack("cluster", stage.name), CHART), "Chart")["kube-prometheus-stack"]
    policies = [
        each for each in manifests() if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "metrics"
    ]

    assert policies
    for policy in policies:
        (source,) = policy["spec"]["ingress"][0]["from"]
        assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": chart["Namespace"]}


def containers(assembly: Assembly, stage: Stage, service: str) -> dict[str, Json]:
    tasks = named(assembly.properties(names.stack("web", stage.name), "AWS::ECS::TaskDefinition"), "Family")
    return named(tasks[f"babblebox-{stage.name}-{service}"]["ContainerDefinitions"], "Name")


def environment_of(assembly: Assembly, stage: Stage, service: str) -> dict[str, str]:
    return {each["Name"]: text(each["Value"]) for each in containers(assembly, stage, service)[service]["Environment"]}


def chart_values(assembly: Assembly, stage: Stage) -> Any:
    charts = named(assembly.properties(names.stack("cluster", stage.name), CHART), "Chart")
    return json.loads(text(charts["pulsar"]["Values"]))


def build_spec(assembly: Assembly, project: str) -> str:
    projects = named(assembly.properties(names.stack("pipelines"), "AWS::CodeBuild::Project"), "Name")
    return text(projects[f"babblebox-{project}"]["Source"]["BuildSpec"])


def manifests(stage: str | None = None) -> list[Json]:
    """What k8s/ says for AWS; of overlays that of one stage, or none."""
    paths = [path for path in K8S.rglob("*.yaml") if "values" not in path.parts]
    overlays = [path for path in paths if "overlays" in path.parts and stage in path.parts]
    shared = [path for path in paths if "overlays" not in path.parts]
    loaded = [yaml.safe_load_all(path.read_text("utf-8")) for path in [*shared, *overlays]]
    return [manifest for each in loaded for manifest in each if manifest and "metadata" in manifest]
