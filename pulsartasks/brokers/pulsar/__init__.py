"""Apache Pulsar as the broker: ``pulsar://HOST:6650`` or ``pulsar+ssl://HOST:6651``, with settings as URL parameters.

This package is the only place that imports ``pulsar``. It never nacks, asks the client for no dead letters and no ack
timeout, and publishes and consumes on two clients, for reasons that stand beside the lines concerned.
"""

from __future__ import annotations

from pulsartasks.brokers.base import Broker
from pulsartasks.brokers.pulsar.broker import PulsarBroker
from pulsartasks.brokers.pulsar.settings import PulsarSettings

__all__ = ["PulsarBroker", "PulsarSettings", "open_broker"]


def open_broker(url: str) -> Broker:
    """The broker at a ``pulsar://`` or ``pulsar+ssl://`` URL; nothing is connected before it is needed.

    Raises:
        ConfigurationError: the URL or a setting is wrong.
    """
    return PulsarBroker(PulsarSettings.parse(url))
