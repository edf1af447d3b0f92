"""The fixtures that pytest finds where pulsartasks is installed."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

SHOP = """
from pulsartasks import PulsarTasks

app = PulsarTasks("shop", "pulsar://nobody.is.there:6650")


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y
"""


def run(pytester: pytest.Pytester, source: str) -> pytest.RunResult:
    pytester.makepyfile(shop=SHOP, test_shop=source)
    return pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")


def test_fixtures_give_a_worker_for_the_app_in_the_settings_and_may_be_overridden(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\npulsartasks_app = shop:app\npythonpath = .")
    result = run(
        pytester,
        """
        import threading
        import pytest
        from shop import add

        def test_worker(pulsartasks_worker):
            assert add.delay(2, 3).get(timeout=120) == 5
            assert pulsartasks_worker.assert_published(add, 2, 3).args == (2, 3)

        def test_nothing_is_left_of_it(pulsartasks_worker):
            assert pulsartasks_worker.published() == []

        class TestEager:
            @pytest.fixture
            def pulsartasks_options(self):
                return {"eager": True}

            def test_eager(self, pulsartasks_worker):
                assert add.delay(2, 3).state == "SUCCESS"

        class TestOther:
            @pytest.fixture
            def pulsartasks_app(self):
                from pulsartasks import PulsarTasks
                app = PulsarTasks("other")
                app.task(name="nothing")(lambda: None)
                return app

            def test_app(self, pulsartasks_app, pulsartasks_worker):
                assert pulsartasks_app.name == "other"
                assert pulsartasks_app.broker_url == "memory://"
        """,
    )

    result.assert_outcomes(passed=4)


def test_missing_app_is_said_with_what_to_write(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test_worker(pulsartasks_worker):\n    pass")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*Write pulsartasks_app = shop:app among pytest's settings*"])
