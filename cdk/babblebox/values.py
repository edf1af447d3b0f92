"""The values of Pulsar's Helm chart as k8s/ has them for a stage. Knows nothing of CDK."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "k8s" / "pulsar" / "values"


def chart_values(stage: str) -> dict[str, Any]:
    """The values for a stage on AWS."""
    values: dict[str, Any] = {}
    for name in ("common", "aws", stage):
        values = merge(values, yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8")))
    return values


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two sets of values as Helm lays one on the other; None takes a key away.

    >>> merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4, "c": None}})
    {'a': {'b': 4}, 'd': 3}
    """
    merged = dict(below)
    for key, value in above.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged
