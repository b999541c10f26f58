"""Print pip constraints that keep the torch packages of this environment as they are; nothing where there are none.

pip resolves torchvision (which timm asks for) to its newest release, and that release names one exact torch: without
these lines an install may replace a torch that someone built for their robot.
"""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

for package in ("torch", "torchvision", "torchaudio"):
    with suppress(PackageNotFoundError):
        print(f"{package}=={version(package)}")
