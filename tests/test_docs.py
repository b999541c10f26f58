"""Every command and example in the documents works as printed.

Blocks marked `sh` and `python` are run, in one folder a document, from top to bottom; blocks marked `text` are not. A
line that calls make is checked with `make -n`, because it would start these very tests. Trainings take a few steps of
the thousands that are printed, and s3://bucket is one of a server in this process.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path) -> list[tuple[str, str]]:
    """(language, content) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.M | re.S)


def few_steps(command: str) -> str:
    """The same training, but short."""
    return re.sub(r"(--steps |steps=)\d+", r"\g<1>3", command)


@pytest.fixture
def bucket():
    """The environment in which s3://bucket can be used."""
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    env = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=env["AWS_ENDPOINT_URL"], **keys).create_bucket(Bucket="bucket")
    yield env | {"AWS_DEFAULT_REGION": "us-east-1"}
    server.stop()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_run(document, tmp_path, bucket):
    image = pytest.importorskip("PIL.Image")
    programs = Path(sys.executable).parent
    if not (programs / "dvt-fast").is_file():
        pytest.skip("the package is not installed in this environment: make build")
    (tmp_path / "photos").mkdir()
    for n, name in enumerate(("photo.jpg", "photos/one.jpg", "photos/two.png", "photos/three.png", "photos/four.jpg")):
        picture = image.effect_mandelbrot((160, 120), (-2, -1.2, 1 - n / 5, 1.2), 50).convert("RGB")
        picture.save(tmp_path / name)
    env = os.environ | bucket | {"PATH": f"{programs}:{os.environ['PATH']}"}
    env.pop("DVT_FAST_CUDA_LIBRARY", None)  # of tests that need the emulator: here everything is as for a user
    python = "import dvt_fast\n"  # names of one block are known in the next
    for language, content in blocks(document):
        assert language in ("sh", "python", "text"), f"a block of {document.name} has no language, or an unknown one"
        if language == "sh":
            for line in map(few_steps, content.splitlines()):
                command, cwd = (f"make -n {line[5:]}", ROOT) if line.startswith("make ") else (line, tmp_path)
                done = subprocess.run(["bash", "-euc", command], cwd=cwd, env=env, capture_output=True, text=True)
                assert done.returncode == 0, f"{line}\n{done.stderr}"
        elif language == "python":
            python += few_steps(content)
            (tmp_path / "example.py").write_text(python)
            done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{content}\n{done.stderr}"


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def test_the_main_names_have_an_example():
    examples = "".join(content for language, content in blocks(ROOT / "README.md") if language == "python")
    for name in (
        "ViT",
        "decompose",
        "solve",
        "sample_views",
        "ArtifactMap.calibrate",
        "HashGrid",
        "Decomposition.load",
    ):
        assert f"dvt_fast.{name}(" in examples, name
    assert "artifacts=" in examples


def test_the_terms_of_the_embedded_weights_are_said_where_they_matter():
    text = (ROOT / "README.md").read_text()
    assert "non-commercial" in text[: text.index("## Where to go on")]
    assert "NOTICE.md" in text[text.index("MIT licence") :][:300]


def test_options_in_the_table_exist():
    from typer.testing import CliRunner

    from dvt_fast.cli.app import app

    shown = set(re.findall(r"--[a-z][a-z-]+", "".join(re.findall(r"^\|.*$", (ROOT / "README.md").read_text(), re.M))))
    text = CliRunner().invoke(app, ["decompose", "--help"], env={"COLUMNS": "300"}).output
    assert len(shown) > 5 and not [option for option in shown if f"{option} " not in text]


def test_picture_is_there_and_small():
    assert 50_000 < (ROOT / "docs" / "decomposition.png").stat().st_size < 600_000
