"""Which of these tests there are, and what they share."""

import pytest

from tests.deploy import chart
from tests.deploy.assembly import Assembly

collect_ignore = [] if chart.chart() is not None else ["test_chart.py"]


@pytest.fixture(scope="session")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> Assembly:
    """All stacks as CDK would hand them to CloudFormation; making them takes a while."""
    return Assembly.synthesise(tmp_path_factory.mktemp("cdk") / "cdk.out")
