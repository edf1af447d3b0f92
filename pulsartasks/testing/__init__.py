"""Testing applications: an in-memory broker and a worker in the test's own process."""

from pulsartasks.testing.session import TestingSession

__all__ = ["TestingSession"]
