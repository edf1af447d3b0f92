"""What differs between the stages. Imports nothing, so that tests can read it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Nodes:
    """A group of EKS nodes."""

    instance: str
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Stage:
    """One installation; beta is small, prod survives the loss of a zone."""

    name: str
    cidr: str
    nat_gateways: int
    private_endpoints: bool
    """Whether AWS' own services are reached by endpoints inside the network instead of by the NAT gateways."""
    database_class: str
    database_multi_az: bool
    database_backup_days: int
    web_tasks: tuple[int, int]
    """The least and the most."""
    relay_tasks: int
    """More than one share the outbox; with two, one may be gone."""
    nodes: dict[str, Nodes]
    log_days: int
    root_ca_ends: str
    subordinate_ca_ends: str
    """Days (UTC) on which the authorities' certificates end; half a year before, and again a month, mail reminds of
    it. Move them by renewing: docs/aws.md."""


STAGES = (
    Stage(
        name="beta",
        cidr="10.20.0.0/16",
        nat_gateways=1,
        private_endpoints=False,
        database_class="t4g.medium",
        database_multi_az=False,
        database_backup_days=7,
        web_tasks=(1, 4),
        relay_tasks=1,
        nodes={"pulsar": Nodes("m7i.xlarge", 3, 4), "workers": Nodes("c7i.xlarge", 1, 4)},
        log_days=30,
        root_ca_ends="2036-11-01",
        subordinate_ca_ends="2031-11-01",
    ),
    Stage(
        name="prod",
        cidr="10.30.0.0/16",
        nat_gateways=3,
        private_endpoints=True,
        database_class="m7g.large",
        database_multi_az=True,
        database_backup_days=35,
        web_tasks=(3, 24),
        relay_tasks=2,
        nodes={"pulsar": Nodes("m7i.xlarge", 6, 9), "workers": Nodes("c7i.2xlarge", 2, 20)},
        log_days=365,
        root_ca_ends="2036-11-01",
        subordinate_ca_ends="2031-11-01",
    ),
)
