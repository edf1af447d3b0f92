"""The services of the test run are what the tests take them for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import boto3
import sqlalchemy
from botocore.config import Config

from tests.services import PulsarServer, S3Server, Speech

TOPIC = "persistent://public/default/kept"


def test_pulsar_keeps_a_subscription_through_a_power_cut(pulsar_server: PulsarServer) -> None:
    pulsar_server.admin("PUT", f"{TOPIC.replace('://', '/')}/subscription/reader")

    pulsar_server.restart(kill=True)

    assert "reader" in str(pulsar_server.stats(TOPIC)["subscriptions"])


def test_s3_gives_back_what_it_was_given(s3_server: S3Server) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=s3_server.endpoint_url,
        aws_access_key_id=s3_server.access_key,
        aws_secret_access_key=s3_server.secret_key,
        region_name=s3_server.region,
        config=Config(s3={"addressing_style": "path"}),
    )
    client.put_object(Bucket=s3_server.bucket, Key="a/b", Body=b"words", ContentType="text/plain")

    found = client.get_object(Bucket=s3_server.bucket, Key="a/b")

    assert (found["Body"].read(), found["ContentType"]) == (b"words", "text/plain")
    client.close()


def test_each_postgres_database_is_new(postgres: str) -> None:
    engine = sqlalchemy.create_engine(postgres)
    with engine.connect() as connection:
        tables = connection.scalar(sqlalchemy.text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"))
    engine.dispose()

    assert tables == 0


def test_speech_has_its_transcripts(speech: Speech) -> None:
    assert [len(clip.transcript.split()) for clip in speech.clips] == [22, 8, 14, 19, 8]
    assert all(clip.path.read_bytes().startswith(b"RIFF") for clip in speech.clips)
    assert [path.name for path in speech.broken] == ["awful.wav", "bad.wav", "evil.wav", "null.wav"]


def test_whisper_weights_are_there_for_both_engines(whisper_weights: Callable[[str], Path]) -> None:
    assert (whisper_weights("faster") / "model.bin").stat().st_size == 75_537_502
    assert whisper_weights("openai").stat().st_size > 70_000_000
