"""The names that the stacks share with k8s/, the images and the apps. Imports nothing, so that tests can read it."""

PROJECT = "babblebox"

IMAGES = ("web", "worker", "transcribe", "images", "beat")
"""The container images, and the repositories `babblebox/NAME` that hold them."""

ROLES = ("web", "chat", "transcribe", "images", "beat", "keda", "topics")
"""Whom a token proves: web and relay, each worker, beat, the autoscaler, and who applies topics."""
SUPERUSERS = ("broker-admin", "proxy-admin", "admin")
"""The roles of Pulsar itself, and of its operator."""

PULSAR_RELEASE = "pulsar"
PULSAR_KUBERNETES_NAMESPACE = "pulsar"
APPS_KUBERNETES_NAMESPACE = "babblebox"
PULSAR_NAMESPACE = "babblebox/apps"
"""Tenant and namespace of the topics."""

PULSAR_PORT = 6651
PULSAR_ADMIN_PORT = 443
PULSAR_ADMIN_POD_PORT = 8443
"""The proxy's ports with TLS, as its Service offers them; its pods serve the admin interface on another one."""

WEB_PORT = 8000
WEB_HEALTH = "/healthz"
USER_ID = 10001
STATE_FOLDER = "/var/lib/pulsartasks"
"""Made for `USER_ID` in every image, and declared a volume, so that Fargate keeps its owner."""

WORKERS_WITH_BLOBS = ("transcribe", "images")
"""Service accounts in `APPS_KUBERNETES_NAMESPACE` that read and write recordings and pictures."""


def stack(name: str, stage: str | None = None) -> str:
    """The name of a stack, of one stage or shared by all.

    >>> stack("web", "beta"), stack("registry")
    ('babblebox-beta-web', 'babblebox-registry')
    """
    return "-".join(filter(None, (PROJECT, stage, name)))


def cluster(stage: str) -> str:
    """The name of the EKS cluster, and of the ECS cluster."""
    return f"{PROJECT}-{stage}"


def zone(stage: str) -> str:
    """The private hosted zone.

    >>> zone("beta")
    'beta.babblebox.internal'
    """
    return f"{stage}.{PROJECT}.internal"


def pulsar_host(stage: str) -> str:
    """Where Fargate finds Pulsar's proxy; the proxy's certificate has this name."""
    return f"pulsar.{zone(stage)}"


def secret(stage: str, name: str) -> str:
    """The name of a secret in AWS Secrets Manager.

    >>> secret("beta", "secret-key")
    'babblebox/beta/secret-key'
    """
    return f"{PROJECT}/{stage}/{name}"


def token_secret(stage: str, role: str) -> str:
    """The secret that holds the token of a role."""
    return secret(stage, f"pulsar-token/{role}")


def repository(image: str) -> str:
    """The ECR repository of an image."""
    return f"{PROJECT}/{image}"


def log_group(stage: str, name: str) -> str:
    """The CloudWatch log group of a part."""
    return f"/{PROJECT}/{stage}/{name}"


def rollout_role(stage: str) -> str:
    """The role in which the pipeline rolls out to the EKS cluster."""
    return f"{PROJECT}-{stage}-rollout"
