"""One path followed by its names: from a task on Fargate to the topics on which the web publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
import yaml

from apps.chat import media, threads
from apps.chat.database import Database
from apps.chat.migrate import migrate
from apps.chat.models import Chat, User, outbox
from apps.events import thread_changed
from cdk.babblebox import names
from pulsartasks.contrib.blobs import open_blob_store
from pulsartasks.roles import Role
from pulsartasks.topics import namespace_of, short_name
from tests.deploy.assembly import Assembly, text
from tests.deploy.chart import values_of
from tests.deploy.declared import declared
from tests.deploy.manifests import APPS, ON_AWS, PULSAR, containers_of, named, render
from tools import deploy, tokens

PORTS = {"pulsar+ssl": 6651, "https": 443}
"""Of the chart's Service for the proxy, by what speaks on them."""
DEMO = Path(media.__file__).parent.parent / "demo"


@pytest.mark.parametrize("stage", ON_AWS)
@pytest.mark.parametrize("service", ["web", "relay"])
def test_web_reaches_the_topics_it_publishes_on(assembly: Assembly, stage: str, service: str, tmp_path: Path) -> None:
    main, credentials = _containers(assembly, stage, service)
    env = {each["Name"]: text(each["Value"]) for each in main["Environment"]}
    addresses = [urlsplit(env[name]) for name in ("PULSARTASKS_BROKER", "PULSARTASKS_ADMIN_URL")]

    # The name in the environment leads to the load balancer of the proxies
    (host,) = {address.hostname for address in addresses}
    record = assembly.only(names.stack("cluster", stage), "AWS::Route53::RecordSet")
    zone = assembly.only(names.stack("network", stage), "AWS::Route53::HostedZone")
    assert record["Name"] == f"{host}."
    assert host == f"pulsar.{zone['Name'].rstrip('.')}"

    # by ports that it, and the proxies' Service behind it, have
    ports = {address.port or PORTS[address.scheme] for address in addresses}
    assert ports == set(PORTS.values())
    listeners = assembly.properties(names.stack("cluster", stage), "AWS::ElasticLoadBalancingV2::Listener")
    assert {listener["Port"] for listener in listeners} == ports

    # to a certificate that has the name, of the authority that the client trusts
    values = [yaml.safe_load(path.read_text("utf-8")) for path in values_of(stage)]
    assert host in [name for each in values for name in each.get("tls", {}).get("proxy", {}).get("dnsNames", ())]
    (issuer,) = (each["certs"]["issuers"]["ca"] for each in values if "certs" in each)
    assert issuer["name"] == named(render(PULSAR[stage]), "AWSPCAClusterIssuer", issuer["name"])["metadata"]["name"]
    _, arn = deploy.OUTPUTS["PCA_ARN"]
    assert arn in assembly.templates[names.stack("private-ca", stage)]["Outputs"]
    origins = {each["Name"]: text(each["ValueFrom"]) for each in credentials["Secrets"]}
    assert "Trust" in origins["CA_CRT"]

    # as the role that its token proves
    assert "PulsarTokenWeb" in origins["TOKEN"]
    assert names.token_secret(stage, "web") == f"babblebox/{stage}/pulsar-token/web"
    role = "web"
    assert role in tokens.ROLES

    # which may publish on each topic for which the web has something in its outbox, and follow what it shows
    app, roles = _grants(stage, role)
    topics = declared(app, env["PULSARTASKS_NAMESPACE"], roles)
    assert {namespace_of(topic.name) for topic in topics} == {env["PULSARTASKS_NAMESPACE"]}
    permitted = {short_name(topic.name): topic.permissions.get(role, []) for topic in topics}
    published = _published(tmp_path)
    assert len(published) == 2
    assert all("produce" in permitted[short_name(topic)] for topic in published)
    assert "consume" in permitted[thread_changed.name]
    assert env["PULSARTASKS_REPLY_TO"] == Role.parse(f"{role}=call").reply_name


def test_tools_and_stacks_call_things_the_same() -> None:
    assert (tokens.ROLES, tokens.SUPERUSERS) == (names.ROLES, names.SUPERUSERS)
    assert deploy.IMAGES == names.IMAGES
    assert tokens.STAGES == deploy.STAGES == ON_AWS
    for stage in ON_AWS:
        assert deploy.cluster_name(stage) == names.cluster(stage)
        assert all(deploy.stack_name(stage, name) == names.stack(name, stage) for name in (*deploy.INFRA, *deploy.APPS))
    assert deploy.stack_name("beta", "registry") == names.stack("registry")


def test_deployment_finds_what_it_wants_to_know_and_every_stack(assembly: Assembly) -> None:
    for stage in ON_AWS:
        for name, output in deploy.OUTPUTS.values():
            assert output in assembly.templates[deploy.stack_name(stage, name)]["Outputs"]
    deployed = {
        deploy.stack_name(stage, name) for stage in ON_AWS for name in ("registry", *deploy.INFRA, *deploy.APPS)
    }
    assert assembly.templates.keys() == {*deployed, names.stack("pipelines")}


def _containers(assembly: Assembly, stage: str, service: str) -> list[dict[str, Any]]:
    """The container of a service, and the one that writes its credentials."""
    family = f"{names.cluster(stage)}-{service}"
    tasks = assembly.properties(names.stack("web", stage), "AWS::ECS::TaskDefinition")
    (task,) = (each for each in tasks if each["Family"] == family)
    by_name = {each["Name"]: each for each in task["ContainerDefinitions"]}
    return [by_name[service], by_name["credentials"]]


def _grants(stage: str, role: str) -> tuple[str, tuple[str, ...]]:
    """The app for whose tasks the Job `topics` gives a role its permissions, and what all roles get with it."""
    job = named(render(APPS[stage]), "Job", "topics")
    (arguments,) = (
        each["args"] for each in containers_of(job) if any(word.startswith(f"--role={role}=") for word in each["args"])
    )
    grants = tuple(word.removeprefix("--role=") for word in arguments if word.startswith("--role="))
    return arguments[arguments.index("-A") + 1], grants


def _published(folder: Path) -> set[str]:
    """The topics of what the outbox holds when somebody has sent a message."""
    database = Database(f"sqlite:///{folder}/chat.db")
    migrate(database)
    with database.writing() as session:
        ada = User(name="Ada", name_key="ada", password="-")
        chat = Chat()
        session.add_all([ada, chat])
        session.flush()
        threads.add_member(session, chat.id, ada.id)
    picture = media.picture((DEMO / "picture.jpg").read_bytes())
    draft = threads.Draft("client-id", picture=picture)
    threads.send(database, open_blob_store(str(folder / "blobs")), chat.id, ada.id, draft)
    with database.reading() as session:
        topics = set(session.scalars(sa.select(outbox.table.c.topic)))
    database.close()
    return topics
