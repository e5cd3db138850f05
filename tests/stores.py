"""Object stores for tests, looked at past the program: a folder, and an S3 service."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import boto3
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "a secret of nothing",
    "AWS_REGION": "eu-central-1",
    "AWS_ALLOW_HTTP": "true",
}


class Store(Protocol):
    """`url`: what MEMBANK_BLOB_STORE is set to."""

    url: str

    def names(self) -> list[str]:
        """Of all objects, in order."""

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, data: bytes) -> None: ...

    def remove(self, name: str) -> None: ...


class Folder:
    def __init__(self, path: Path) -> None:
        self.path, self.url = path, str(path)

    def names(self) -> list[str]:
        files = (p for p in self.path.rglob("*") if p.is_file())
        return sorted(str(p.relative_to(self.path)) for p in files)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_bytes(data)

    def remove(self, name: str) -> None:
        (self.path / name).unlink()


class S3:
    """A prefix in a bucket that is made for it."""

    def __init__(self, endpoint: str, bucket: str) -> None:
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=ACCOUNT["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ACCOUNT["AWS_SECRET_ACCESS_KEY"],
            region_name=ACCOUNT["AWS_REGION"],
        )
        self._bucket, self._prefix = bucket, "mem bank/"
        self.url = f"s3://{bucket}/{self._prefix.rstrip('/')}"
        place = {"LocationConstraint": ACCOUNT["AWS_REGION"]}
        self._client.create_bucket(Bucket=bucket, CreateBucketConfiguration=place)

    def names(self) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix
        )
        found = (one["Key"] for page in pages for one in page.get("Contents", []))
        return sorted(name.removeprefix(self._prefix) for name in found)

    def read(self, name: str) -> bytes:
        body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"]
        found: bytes = body.read()
        return found

    def write(self, name: str, data: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data)

    def remove(self, name: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)


@contextmanager
def s3_service() -> Iterator[str]:
    """Where an S3 service answers that keeps everything in this process."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
