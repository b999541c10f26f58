"""A small folder of images, datasets of it, and an S3 server, for the tests of `dvt_fast.dataset`."""

import logging
import os
import re
import shutil
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import boto3
import fsspec
import numpy as np
from moto.server import ThreadedMotoServer
from PIL import Image

from dvt_fast import build_dataset

TINY = {"name": "vit_tiny_patch16_224", "weights": "random", "size": 64}
TINY_ARGUMENTS = [
    "--vit", "vit_tiny_patch16_224", "--weights", "random", "--size", "64", "--views", "realtime", "--keep", "both"
]  # fmt: skip


def make_photos(folder: Path, count: int = 12) -> Path:
    """`count` distinct images; one more with the content of the second, one of the first's name with its own content,
    and one that is none."""
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        picture = Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8))
        picture.save(folder / "more" / "p00.png" if i == count - 1 else folder / f"p{i:02}.png")
    shutil.copy(folder / "p01.png", folder / "q.png")
    (folder / "bad.png").write_text("no image")
    return folder


def build(images, out, workers=0, **options):
    """`build_dataset` with the small ViT, few views and both parts, in this process, with one retry of the storage."""
    defaults = {"views": "realtime", "keep": "both", "workers": workers, "storage_retries": 1}
    return build_dataset(images, out, TINY, **(defaults | options))


def content(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class S3:
    """A server that speaks S3, on this machine, with the environment that leads clients to it. A context manager."""

    def __init__(self):
        self._port, self._server, self._before, self._count = 0, None, {}, 0

    def __enter__(self):
        self.start()
        settings = {
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_MAX_ATTEMPTS": "1",
        }  # fmt: skip
        self._before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        return self

    def __exit__(self, *_):
        for name, value in self._before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        self.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self):
        """Where it was before, with what it held."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self):
        self._server.stop()

    def client(self):
        return boto3.client("s3", endpoint_url=self.endpoint)

    def make_bucket(self, name: str | None = None) -> str:
        self._count += 1
        name = name or f"bucket-{self._count}"
        self.client().create_bucket(Bucket=name)
        return name

    def content(self, bucket: str) -> dict[str, bytes]:
        client, found = self.client(), {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", ()):
                found[item["Key"]] = client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
        return found

    def remove_bucket(self, bucket: str) -> dict[str, bytes]:
        """Remove a bucket and what is in it, and return that."""
        client, found = self.client(), {}
        while remaining := self.content(bucket):  # others may be writing
            found |= remaining
            for key in remaining:
                client.delete_object(Bucket=bucket, Key=key)
        client.delete_bucket(Bucket=bucket)
        return found

    @contextmanager
    def closed_to_strangers(self):
        """Meanwhile every request needs a user that the server knows, and it knows none."""
        self._actions_without_auth(b"0")
        try:
            yield
        finally:
            self._actions_without_auth(b"inf")

    def _actions_without_auth(self, count: bytes):
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.endpoint}/moto-api/reset-auth", count, headers)
        urllib.request.urlopen(request).close()

    @contextmanager
    def requests(self):
        """The requests meanwhile: "GET /bucket/path"."""
        seen: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: seen.append(re.search(r"[A-Z]{3,} /\S*", record.getMessage())[0])
        logger = logging.getLogger("werkzeug")
        before = logger.handlers, logger.level, logger.propagate
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
        try:
            yield seen
        finally:
            logger.handlers, _, logger.propagate = before
            logger.setLevel(before[1])
