"""What a blob store promises, on a folder and on a real S3 server, with the same tests."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from pulsartasks.contrib.blobs import (
    MAX_KEY_BYTES,
    Blob,
    BlobNotFoundError,
    BlobStore,
    BlobStoreRefusedError,
    BlobStoreUnavailableError,
    InvalidBlobKeyError,
    open_blob_store,
)
from pulsartasks.errors import ConfigurationError, PulsarTasksError
from tests.services import CHECKOUT, S3Server, free_ports

MEBIBYTE = 1024 * 1024


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of this test's own."""
    if request.param == "folder":
        return str(tmp_path / "not" / "yet" / "there")
    server: S3Server = request.getfixturevalue("s3")
    return server.store_url(f"test-{os.urandom(6).hex()}")


@pytest.fixture
def store(url: str) -> BlobStore:
    return open_blob_store(url)


def test_blob_comes_back_with_its_content_type(store: BlobStore) -> None:
    store.put("chat-7/voice/01.webm", b"\x1aE\xdf\xa3 voice", content_type="audio/webm; codecs=opus")

    assert store.get("chat-7/voice/01.webm") == Blob(b"\x1aE\xdf\xa3 voice", "audio/webm; codecs=opus")


@pytest.mark.parametrize("data", [b"", b"\n\n{}\n", bytes(range(256)), os.urandom(3 * MEBIBYTE)], ids=len)
def test_every_byte_comes_back(store: BlobStore, data: bytes) -> None:
    store.put("data", data)

    assert store.get("data").data == data


def test_content_type_is_octets_unless_given(store: BlobStore) -> None:
    store.put("data", b"1")

    assert store.get("data").content_type == "application/octet-stream"


@pytest.mark.parametrize(
    "key",
    [
        "Grüße/日本語/👩‍💻.png",
        "two words + 100% & more?.txt",
        "a=b;c,d@e!f'g(h)*~",
        ".hidden/..two.dots",
        "#fragment",
        "x" * 200 + "/" + "y" * 200,
    ],
)
def test_key_may_be_unusual(store: BlobStore, key: str) -> None:
    store.put(key, key.encode())

    assert store.get(key).data == key.encode()


def test_keys_differ_in_case_and_in_unicode_form(store: BlobStore) -> None:
    keys = ["Key", "key", "\u00e9", "e\u0301"]

    for key in keys:
        store.put(key, key.encode())

    assert [store.get(key).data.decode() for key in keys] == keys


@pytest.mark.parametrize(
    "key",
    ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\0b", "a\nb", "\ud800", "é" * 513],
    ids=ascii,
)
def test_dangerous_key_is_refused_by_every_method(store: BlobStore, key: str) -> None:
    with pytest.raises(InvalidBlobKeyError):
        store.put(key, b"")
    with pytest.raises(InvalidBlobKeyError):
        store.get(key)
    with pytest.raises(InvalidBlobKeyError):
        store.delete(key)


@pytest.mark.parametrize("content_type", ["", "text/plain\r\nX-Evil: 1", "text/plain; name=é"])
def test_content_type_that_is_no_header_is_refused(store: BlobStore, content_type: str) -> None:
    with pytest.raises(ValueError, match="is not a content type"):
        store.put("data", b"", content_type=content_type)


def test_last_put_wins(store: BlobStore) -> None:
    store.put("data", b"a long first version", content_type="text/plain")
    store.put("data", b"second", content_type="image/png")

    assert store.get("data") == Blob(b"second", "image/png")


def test_missing_blob_has_an_error_that_names_it(store: BlobStore) -> None:
    with pytest.raises(BlobNotFoundError, match="chat-7/gone") as caught:
        store.get("chat-7/gone")

    assert caught.value.key == "chat-7/gone"
    assert isinstance(caught.value, PulsarTasksError)
    assert not isinstance(caught.value, OSError), "a retry would not find it either"


def test_folder_of_a_blob_is_no_blob(store: BlobStore) -> None:
    store.put("chat-7/voice", b"1")

    with pytest.raises(BlobNotFoundError):
        store.get("chat-7")


def test_deleted_blob_is_gone_and_may_be_deleted_again(store: BlobStore) -> None:
    store.put("data", b"1")

    store.delete("data")
    store.delete("data")

    with pytest.raises(BlobNotFoundError):
        store.get("data")


def test_another_store_of_the_same_url_sees_the_blob(url: str) -> None:
    open_blob_store(url).put("data", b"1")

    assert open_blob_store(url).get("data").data == b"1"


def test_concurrent_writers_never_mix_their_blobs(store: BlobStore) -> None:
    """Bytes and content type are always of the same writer, and whole."""
    store.put("data", b"0" * MEBIBYTE, content_type="text/0")
    done = threading.Event()

    def write(writer: int) -> None:
        for _ in range(10):
            store.put("data", str(writer).encode() * MEBIBYTE, content_type=f"text/{writer}")

    def read() -> None:
        while not done.is_set():
            seen.append(store.get("data"))

    seen: list[Blob] = []
    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(1, 5)]
    reader = threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()

    assert {len(blob.data) for blob in seen} == {MEBIBYTE}
    assert [blob for blob in seen if blob.data[:1] * MEBIBYTE != blob.data] == []
    assert [blob for blob in seen if blob.content_type != f"text/{blob.data[:1].decode()}"] == []


def test_store_works_in_a_child_after_a_fork(url: str) -> None:
    program = """
        import os, sys
        from pulsartasks.contrib.blobs import open_blob_store
        store = open_blob_store(sys.argv[1])
        store.put("from-parent", b"1")
        child = os.fork()
        store.put("from-child" if child == 0 else "from-parent-again", store.get("from-parent").data)
        if child:
            _, status = os.waitpid(child, 0)
            raise SystemExit(os.waitstatus_to_exitcode(status))
    """

    subprocess.run([sys.executable, "-c", textwrap.dedent(program), url], cwd=CHECKOUT, check=True, timeout=60)

    store = open_blob_store(url)
    assert [store.get(f"from-{name}").data for name in ("child", "parent-again")] == [b"1", b"1"]


class TestFolder:
    def test_file_url_names_a_folder(self, tmp_path: Path) -> None:
        open_blob_store(str(tmp_path / "with space")).put("data", b"1")

        assert open_blob_store(f"file://{tmp_path}/with%20space").get("data").data == b"1"

    def test_relative_folder_stays_where_it_was_opened(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        store = open_blob_store("blobs")
        monkeypatch.chdir("/")

        store.put("data", b"1")

        assert (tmp_path / "blobs").is_dir()

    def test_key_and_folder_of_another_key_may_be_the_same(self, tmp_path: Path) -> None:
        store = open_blob_store(str(tmp_path))
        store.put("a", b"1")
        store.put("a/b", b"2")

        assert (store.get("a").data, store.get("a/b").data) == (b"1", b"2")

    def test_key_may_be_as_long_as_in_s3(self, tmp_path: Path) -> None:
        store = open_blob_store(str(tmp_path))
        store.put("k" * MAX_KEY_BYTES, b"1")

        assert store.get("k" * MAX_KEY_BYTES).data == b"1"

    def test_nothing_but_the_blobs_stays_in_the_folder(self, tmp_path: Path) -> None:
        store = open_blob_store(str(tmp_path))
        for version in range(5):
            store.put("data", str(version).encode())

        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1

    def test_failed_put_leaves_the_old_blob(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = open_blob_store(str(tmp_path))
        store.put("data", b"old")

        monkeypatch.setattr(os, "fsync", _disk_full)
        with pytest.raises(BlobStoreUnavailableError, match="No space left") as caught:
            store.put("data", b"new")

        assert isinstance(caught.value, OSError), "so that autoretry_for=(OSError,) covers it"
        assert store.get("data").data == b"old"
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1

    def test_folder_that_is_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        store = open_blob_store(str(tmp_path / "file"))

        with pytest.raises(BlobStoreRefusedError, match="not usable"):
            store.put("data", b"1")

    def test_foreign_file_is_not_taken_for_a_blob(self, tmp_path: Path) -> None:
        store = open_blob_store(str(tmp_path))
        store.put("data", b"1")
        (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
        path.write_bytes(b"something else")

        with pytest.raises(BlobStoreRefusedError, match="not written by a blob store"):
            store.get("data")


def _disk_full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


class TestS3:
    @pytest.fixture
    def unreachable(self, monkeypatch: pytest.MonkeyPatch) -> BlobStore:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        (port,) = free_ports(1)
        return open_blob_store(f"s3://bucket?endpoint_url=http://127.0.0.1:{port}")

    def test_stores_of_two_prefixes_are_apart(self, s3: S3Server) -> None:
        one, two = open_blob_store(s3.store_url("one")), open_blob_store(s3.store_url("two/and/more"))
        one.put("data", b"1")
        two.put("data", b"2")

        assert (one.get("data").data, two.get("data").data) == (b"1", b"2")
        assert open_blob_store(s3.store_url()).get("two/and/more/data").data == b"2"

    def test_missing_bucket_is_refused(self, s3: S3Server) -> None:
        store = open_blob_store(f"s3://nosuchbucket?endpoint_url={s3.endpoint_url}")

        with pytest.raises(BlobStoreRefusedError, match=r"'nosuchbucket'.*NoSuchBucket.*make the bucket"):
            store.put("data", b"1")
        with pytest.raises(BlobStoreRefusedError, match="NoSuchBucket"):
            store.get("data")

    def test_wrong_secret_is_refused(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")

        with pytest.raises(BlobStoreRefusedError, match="check AWS_SECRET_ACCESS_KEY"):
            open_blob_store(s3.store_url()).get("data")

    def test_unknown_access_key_is_refused(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")

        with pytest.raises(BlobStoreRefusedError, match="check AWS_ACCESS_KEY_ID"):
            open_blob_store(s3.store_url()).put("data", b"1")

    def test_absent_credentials_are_refused(
        self, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in s3.environment:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))

        with pytest.raises(BlobStoreRefusedError, match="set AWS_ACCESS_KEY_ID"):
            open_blob_store(s3.store_url()).put("data", b"1")

    def test_unreachable_server_is_an_os_error_that_is_worth_a_retry(self, unreachable: BlobStore) -> None:
        with pytest.raises(BlobStoreUnavailableError, match="Could not connect") as caught:
            unreachable.get("data")

        assert isinstance(caught.value, OSError)

    def test_region_of_the_url_is_used(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
        store = open_blob_store(s3.store_url() + f"&region={s3.region}")

        store.put("data", b"1")

        assert store.get("data").data == b"1"

    def test_threads_share_the_store_from_its_first_use(self, s3: S3Server) -> None:
        store = open_blob_store(s3.store_url("threads"))
        failures: list[BaseException] = []
        start = threading.Barrier(8)

        def put_and_get(thread: int) -> None:
            start.wait()
            try:
                store.put(f"{thread}", str(thread).encode())
                assert store.get(f"{thread}").data == str(thread).encode()
            except BaseException as error:  # noqa: BLE001 - shown by the assertion below
                failures.append(error)

        threads = [threading.Thread(target=put_and_get, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert failures == []

    def test_missing_boto3_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pulsartasks.contrib.blobs.find_spec", lambda name: None)

        with pytest.raises(ConfigurationError, match=r"pip install 'pulsartasks\[s3\]'"):
            open_blob_store("s3://bucket")


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("", "write a folder such as"),
        ("gs://bucket", "s3://bucket/prefix"),
        ("https://s3.example.org/bucket", "s3://bucket/prefix"),
        ("file://relative/folder", "file:///var/lib/blobs"),
        ("s3://", "no bucket's name"),
        ("s3://Upper_Case", "no bucket's name"),
        ("s3://key:hunter2@bucket", "AWS_ACCESS_KEY_ID"),
        ("s3://bucket?endpoint=http://127.0.0.1", "endpoint_url="),
        ("s3://bucket/pre#fix", "fix"),
        ("s3://bucket?endpoint_url=127.0.0.1:9000", "without http://"),
    ],
)
def test_bad_url_gets_an_error_that_says_what_to_write(url: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_blob_store(url)

    assert hint in str(caught.value)
    assert "hunter2" not in str(caught.value)
