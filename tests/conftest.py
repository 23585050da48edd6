"""Shared set-up: one torch thread, shapes and types checked at run time, repeatable examples."""

import os
import tempfile

# Set before any library of theirs is imported: no test may ask the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import config, install_import_hook

# The modules through which tensors flow; beartype knows not every hint of the other libraries.
TENSORS = [
    "types",
    "segmentation",
    "objective",
    "protocols",
    "training.rollouts.simulator",
    "policy",
]
install_import_hook(
    [*(f"segcredit.{name}" for name in TENSORS), "segmenters", "estimators"], "beartype.beartype"
)

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

torch.set_num_threads(1)
# Where the tests run on a shared machine, hypothesis' own clock says nothing about the code.
settings.register_profile(
    "segcredit",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("segcredit")

if "SEGCREDIT_CACHE" not in os.environ:
    # Set before pytest-xdist starts its workers, which therefore share it.
    CACHE = tempfile.TemporaryDirectory(prefix="segcredit-tests-")
    os.environ["SEGCREDIT_CACHE"] = CACHE.name


@pytest.fixture
def unchecked():
    """Run-time shape checks off, as for users: the library's own sentences can be seen."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
