"""What only the embedded broker promises: one file, many processes, woken not polled; and the same in memory."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from pulsartasks import PulsarTasks
from pulsartasks.brokers.base import Delivery, Subscription
from pulsartasks.brokers.local import LocalBroker, open_broker
from pulsartasks.brokers.local import broker as local
from pulsartasks.brokers.local.presence import Presence
from pulsartasks.errors import BacklogFullError, BrokerError, BrokerUnavailableError, ClosedError, ConfigurationError
from pulsartasks.message import REAL_TOPIC, Publication
from pulsartasks.topics import KEEPER
from tests.services import CHECKOUT, wait_until

TOPIC = "persistent://public/default/t"
ONE = Subscription((TOPIC,), "s")

Run = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def broker(database: Path) -> Iterator[LocalBroker]:
    broker = LocalBroker(database)
    broker.declare(TOPIC, ["s"])
    yield broker
    broker.close()


@pytest.fixture
def run(database: Path) -> Iterator[Run]:
    """Runs a program in another process, with `broker` and `TOPIC` at hand."""
    started: list[subprocess.Popen[bytes]] = []
    beginning = f"""
        import os, sys, time
        from pathlib import Path
        from pulsartasks.brokers.base import Subscription
        from pulsartasks.brokers.local import LocalBroker
        from pulsartasks.message import REAL_TOPIC, Publication
        TOPIC = {TOPIC!r}
        broker = LocalBroker(Path({str(database)!r}))
    """

    def start(program: str) -> subprocess.Popen[bytes]:
        text = textwrap.dedent(beginning) + textwrap.dedent(program)
        process = subprocess.Popen([sys.executable, "-c", text], cwd=CHECKOUT, stdout=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def said(process: subprocess.Popen[bytes]) -> str:
    """The next line that the process prints."""
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def publish(broker: LocalBroker, *values: str, topic: str = TOPIC) -> None:
    for outcome in broker.publish_many([Publication(topic, value.encode()) for value in values]):
        assert isinstance(outcome, str), outcome


def received(delivery: Delivery | None) -> str | None:
    return None if delivery is None else delivery.value.decode()


def test_message_wakes_a_consumer_of_another_process_at_once(broker: LocalBroker, run: Run) -> None:
    sender = run(
        """
        print("ready", flush=True)
        for _ in range(20):
            time.sleep(0.05)
            broker.publish(Publication(TOPIC, repr(time.time()).encode()))
        """
    )
    consumer = broker.subscribe(ONE)
    assert said(sender) == "ready"

    delays = []
    for _ in range(20):
        delivery = consumer.receive(30)
        assert delivery is not None
        delays.append(time.time() - float(delivery.value))

    # The safety check alone would find them after half of its second.
    assert statistics.median(delays) < local.SAFETY_CHECK / 5


def test_news_that_was_lost_is_found_by_the_safety_check(
    broker: LocalBroker, database: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = broker.subscribe(ONE)
    deaf = LocalBroker(database)
    monkeypatch.setattr(deaf, "notify", lambda news: None)

    publish(deaf, "unheard")

    assert received(consumer.receive(10 * local.SAFETY_CHECK)) == "unheard"
    deaf.close()


def test_what_a_killed_process_held_is_given_out_again(broker: LocalBroker, run: Run) -> None:
    publish(broker, "a")
    holder = run(
        """
        consumer = broker.subscribe(Subscription((TOPIC,), "s"))
        print(consumer.receive(10).value.decode(), flush=True)
        time.sleep(600)
        """
    )
    assert said(holder) == "a"
    consumer = broker.subscribe(ONE)
    assert consumer.receive(0) is None

    holder.send_signal(signal.SIGKILL)

    assert received(consumer.receive(30)) == "a"


@pytest.fixture
def refusing(broker: LocalBroker) -> Callable[[bool], None]:
    """Has the database refuse to be written to, as it does when the disk is full, and take it again."""
    return lambda refuse: broker.store._sql.execute(f"PRAGMA query_only = {int(refuse)}").close()


def test_acknowledgement_that_a_full_disk_refused_is_made_up_for(
    broker: LocalBroker, refusing: Callable[[bool], None]
) -> None:
    consumer = broker.subscribe(ONE)
    publish(broker, "done")
    delivery = consumer.receive(5)
    assert delivery is not None

    refusing(True)
    delivery.acknowledge()
    refusing(False)

    assert broker.store.unsettled(due_by=math.inf) == 1
    wait_until(lambda: broker.store.unsettled(due_by=math.inf) == 0, "it was not acknowledged")


def test_message_that_a_full_disk_kept_from_being_given_back_comes_again(
    broker: LocalBroker, refusing: Callable[[bool], None]
) -> None:
    consumer = broker.subscribe(ONE)
    publish(broker, "again")
    delivery = consumer.receive(5)
    assert delivery is not None

    refusing(True)
    delivery.release()
    refusing(False)

    assert received(consumer.receive(5)) == "again"


def test_stopped_process_is_not_taken_for_dead(broker: LocalBroker, run: Run) -> None:
    publish(broker, "a")
    holder = run(
        """
        consumer = broker.subscribe(Subscription((TOPIC,), "s"))
        print(consumer.receive(10).value.decode(), flush=True)
        time.sleep(600)
        """
    )
    assert said(holder) == "a"
    consumer = broker.subscribe(ONE)

    holder.send_signal(signal.SIGSTOP)

    assert consumer.receive(3 * local.SAFETY_CHECK) is None


def test_reader_of_a_killed_process_keeps_nothing(broker: LocalBroker, database: Path, run: Run) -> None:
    reader = run(
        """
        reader = broker.read("persistent://public/default/tailed")
        print("reading", flush=True)
        time.sleep(600)
        """
    )
    assert said(reader) == "reading"
    assert _count(database, "subscriptions") == 2

    reader.send_signal(signal.SIGKILL)
    broker.subscribe(ONE)

    wait_until(lambda: _count(database, "subscriptions") == 1, "the reader is still there")


def test_many_processes_publish_and_nothing_is_lost_or_out_of_order(broker: LocalBroker, run: Run) -> None:
    senders = [
        run(
            f"""
            for number in range(100):
                broker.publish(Publication(TOPIC, f"{name}{{number:03}}".encode()))
            """
        )
        for name in "abc"
    ]

    consumer = broker.subscribe(ONE)
    seen = [received(consumer.receive(30)) or "" for _ in range(300)]

    assert [sender.wait(30) for sender in senders] == [0, 0, 0]
    for name in "abc":
        assert [value for value in seen if value.startswith(name)] == [f"{name}{number:03}" for number in range(100)]


def test_published_message_survives_the_death_of_its_publisher(broker: LocalBroker, run: Run) -> None:
    publisher = run(
        """
        broker.publish(Publication(TOPIC, b"last words"))
        os.kill(os.getpid(), 9)
        """
    )
    assert publisher.wait(30) == -9

    assert received(broker.subscribe(ONE).receive(10)) == "last words"


def test_files_of_processes_that_ended_are_removed(broker: LocalBroker, database: Path, run: Run) -> None:
    process = run("broker.subscribe(Subscription((TOPIC,), 's')); print('there', flush=True); time.sleep(600)")
    assert said(process) == "there"
    folder = database.with_name(database.name + "-processes")
    process.send_signal(signal.SIGKILL)
    process.wait()

    broker.subscribe(ONE)

    assert sorted(path.suffix for path in folder.iterdir()) == [".lock", ".sock"]
    broker.close()
    assert not folder.exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_database_that_was_removed_under_its_users_is_told_of(
    broker: LocalBroker, database: Path, replaced: bool
) -> None:
    consumer = broker.subscribe(ONE)
    assert consumer.receive(0.0) is None

    for path in database.parent.glob("broker.db*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if replaced:
        LocalBroker(database).close()

    with pytest.raises(BrokerUnavailableError, match=f"{database} was removed while it was in use; start this process"):
        broker.publish(Publication(TOPIC, b"to nobody"))
    with pytest.raises(BrokerUnavailableError, match="was removed"):
        consumer.receive(30)  # it looks every second


def test_processes_may_come_and_go_at_the_same_moment(database: Path) -> None:
    def come_and_go() -> None:
        for _ in range(30):
            Presence(database).leave()

    with ThreadPoolExecutor(4) as pool:
        for guest in [pool.submit(come_and_go) for _ in range(4)]:
            guest.result(60)

    assert not database.with_name(database.name + "-processes").exists()


def test_path_too_long_for_a_socket_works_too(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(database.parent))
    path = tmp_path / ("long" * 40) / "broker.db"
    one, other = LocalBroker(path), LocalBroker(path)
    one.declare(TOPIC, ["s"])
    consumer = one.subscribe(ONE)

    publish(other, "a")

    assert received(consumer.receive(30)) == "a"
    one.close()
    other.close()


def test_forked_child_opens_a_connection_of_its_own(database: Path) -> None:
    program = f"""
        import os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from pulsartasks import PulsarTasks
        app = PulsarTasks("forking", "local://{database}")
        @app.task
        def note(text: str) -> None: ...
        note.delay("parent")
        child = os.fork()
        note.delay("child" if child == 0 else "parent again")
        if child:
            _, status = os.waitpid(child, 0)
            raise SystemExit(os.waitstatus_to_exitcode(status))
    """

    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=CHECKOUT, check=True, timeout=60)

    assert _count(database, "messages") == 3


@pytest.mark.parametrize(
    "wait",
    [
        "call.get(timeout=60)",
        "asyncio.run(call.aget(timeout=60))",
        "GroupResult([call]).get(timeout=60)",
        "while not call.ready(): time.sleep(0.01)",
    ],
)
def test_result_of_a_call_of_its_parent_reaches_a_forked_child_though_the_parent_is_told(
    wait: str, database: Path
) -> None:
    program = f"""
        import asyncio, os, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from pulsartasks import GroupResult, PulsarTasks
        from pulsartasks.brokers.local.broker import LocalReader
        from pulsartasks.worker.worker import Worker
        app = PulsarTasks("forking", "local://{database}")
        @app.task
        def note() -> None: ...
        call = note.delay()
        assert not call.ready()  # from now on the parent listens
        looked, looks = os.pipe()
        next_kept = LocalReader._next_kept
        def tell(reader):
            row = next_kept(reader)
            if row is None and reader._topic.endswith(".results"):
                os.write(looks, b".")
            return row
        if os.fork() == 0:
            LocalReader._next_kept = tell
            began = time.monotonic()
            {wait}
            os._exit(time.monotonic() - began > 20)  # it would look again after LOOK_AGAIN
        os.read(looked, 1)
        worker = Worker(app)
        worker.start()
        _, status = os.wait()
        worker.stop()
        raise SystemExit(os.waitstatus_to_exitcode(status))
    """

    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=CHECKOUT, check=True, timeout=60)


def test_end_of_a_forked_child_takes_nothing_from_its_parent(database: Path) -> None:
    program = f"""
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from pulsartasks import PulsarTasks
        from pulsartasks.brokers.base import Subscription
        app = PulsarTasks("forking", "local://{database}")
        @app.task
        def note(text: str) -> None: ...
        note.delay("held by the parent")
        consumer = app.broker.subscribe(Subscription((note.topics.work,), "forking"))
        assert consumer.receive(10)
        child = os.fork()
        if child == 0:
            sys.exit()
        os.waitpid(child, 0)
        print(*os.listdir("{database}-processes"), flush=True)
        app.broker.subscribe(Subscription((note.topics.work,), "forking"))
        again = consumer.receive(0.1)
        raise SystemExit(again is not None)
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=CHECKOUT, check=True, timeout=60, capture_output=True
    )

    assert sorted(Path(name).suffix for name in done.stdout.decode().split()) == [".lock", ".sock"]


def test_process_that_a_dead_one_forked_does_not_count_for_it(broker: LocalBroker, run: Run) -> None:
    publish(broker, "a")
    process = run("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        assert broker.subscribe(Subscription((TOPIC,), "s")).receive(10)
        child = os.fork()
        if child:
            print(child, flush=True)
            os._exit(1)
        time.sleep(600)
    """)
    child = int(said(process))
    process.wait()

    try:
        assert received(broker.subscribe(ONE).receive(10)) == "a"
    finally:
        os.kill(child, signal.SIGKILL)


def test_processes_with_other_temporary_folders_are_not_taken_for_dead(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("long" * 40) / "broker.db"
    one, other = LocalBroker(path), LocalBroker(path)
    one.declare(TOPIC, ["s"])
    publish(one, "a")
    monkeypatch.setattr(tempfile, "tempdir", str(database.parent / "one"))
    assert received(one.subscribe(ONE).receive(10)) == "a"

    monkeypatch.setattr(tempfile, "tempdir", str(database.parent / "other"))
    consumer = other.subscribe(ONE)

    assert consumer.receive(0) is None
    one.close()
    assert received(consumer.receive(10)) == "a"
    other.close()


def test_shortage_of_files_does_not_end_the_looking(broker: LocalBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = broker.subscribe(ONE)
    looks = []

    def look(_: Presence) -> set[str]:
        looks.append(1)
        if len(looks) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return {broker.process}

    monkeypatch.setattr(Presence, "alive", look)

    wait_until(lambda: len(looks) > 1, "nobody looks any more")
    consumer.close()


def test_folder_that_cannot_be_used_is_a_clear_error(broker: LocalBroker, database: Path) -> None:
    database.with_name(database.name + "-processes").write_text("in the way")

    with pytest.raises(BrokerUnavailableError, match="processes"):
        broker.subscribe(ONE)


def test_database_is_for_its_owner_alone(broker: LocalBroker, database: Path) -> None:
    publish(broker, "secret")

    assert {path.name: path.stat().st_mode & 0o077 for path in database.parent.glob("broker.db*")} == {
        "broker.db": 0,
        "broker.db-shm": 0,
        "broker.db-wal": 0,
    }


def test_closed_broker_says_so(database: Path) -> None:
    broker = LocalBroker(database)
    broker.declare(TOPIC, ["s"])
    consumer, reader = broker.subscribe(ONE), broker.read(TOPIC)
    waiting: list[BaseException] = []

    def wait() -> None:
        try:
            consumer.receive(30)
        except ClosedError as error:
            waiting.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()

    broker.close()
    broker.close()

    waiter.join(10)
    assert len(waiting) == 1
    for use in (
        lambda: consumer.receive(0),
        lambda: reader.receive(0),
        lambda: broker.publish(Publication(TOPIC, b"")),
        lambda: broker.subscribe(ONE),
        lambda: broker.declare(TOPIC, []),
    ):
        with pytest.raises(ClosedError):
            use()
    consumer.close()
    reader.close()


@pytest.mark.parametrize("url", ["memory://", "local://{database}", "local://{database}?sync=full"])
def test_url_says_where_and_how(url: str, database: Path) -> None:
    broker = open_broker(url.format(database=database))
    broker.declare(TOPIC, ["s"])
    consumer = broker.subscribe(ONE)

    broker.publish(Publication(TOPIC, b"a"))

    assert received(consumer.receive(10)) == "a"
    assert database.exists() is url.startswith("local")
    broker.close()


def test_local_without_a_path_is_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    broker = open_broker("local://")
    broker.declare(TOPIC, ["s"])
    broker.close()

    assert (tmp_path / ".pulsartasks" / "broker.db").is_file()


@pytest.mark.parametrize(
    "url",
    ["local://relative/broker.db", "local:///tmp/x.db?sink=full", "memory://?sync=maybe", "local://?encryption_key=k"],
)
def test_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="broker"):
        open_broker(url)


def test_two_brokers_in_memory_have_nothing_in_common() -> None:
    one, other = open_broker("memory://"), open_broker("memory://")
    for broker in (one, other):
        broker.declare(TOPIC, ["s"])

    one.publish(Publication(TOPIC, b"a"))

    assert other.subscribe(ONE).receive(0.1) is None
    one.close()
    other.close()


def test_file_that_is_no_database_is_a_clear_error(database: Path) -> None:
    database.write_bytes(b"no database, but as long as the header of one would have to be " * 20)
    app = PulsarTasks("shop", f"local://{database}")

    @app.task
    def note() -> None:
        """Does nothing."""

    with pytest.raises(BrokerError, match="damaged or no database"):
        note.delay()


def test_database_that_is_locked_for_long_is_a_clear_error(
    broker: LocalBroker, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = LocalBroker(database)
    impatient.store._sql.execute("PRAGMA busy_timeout = 100")
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(BrokerUnavailableError, match="locked"):
            impatient.publish(Publication(TOPIC, b"a"))

    assert isinstance(impatient.publish(Publication(TOPIC, b"b")), str)
    impatient.close()


def test_folder_that_cannot_be_made_is_a_clear_error() -> None:
    with pytest.raises(BrokerUnavailableError, match="cannot be made"):
        open_broker("local:///dev/null/here/broker.db")


def _count(database: Path, table: str) -> int:
    with closing(sqlite3.connect(database, timeout=30)) as sql:
        [number] = sql.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(number)


def test_full_topic_takes_what_settles_a_message_and_other_topics_take_all() -> None:
    broker = LocalBroker(None, max_backlog=1)
    other = f"{TOPIC}-other"
    for topic in (TOPIC, other):
        broker.declare(topic, ["s"])
    broker.declare(f"{TOPIC}-kept", [KEEPER])
    broker.publish(Publication(TOPIC, b"1"))
    broker.publish(Publication(f"{TOPIC}-kept", b"1"))

    outcomes = broker.publish_many(
        [
            Publication(TOPIC, b"2"),
            Publication(TOPIC, b"2", properties={REAL_TOPIC: TOPIC}),
            Publication(other, b"2"),
            Publication(f"{TOPIC}-kept", b"2"),
        ],
        timeout=0.0,
    )

    assert [type(outcome) for outcome in outcomes] == [BacklogFullError, str, str, str]
    broker.close()


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_limit_that_is_no_number_of_messages_is_refused(limit: str) -> None:
    with pytest.raises(ConfigurationError, match="max_backlog is a number of messages"):
        open_broker(f"memory://?max_backlog={limit}")
