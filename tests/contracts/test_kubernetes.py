"""Do the manifests for Kubernetes fit its schemas, do they say what the compose file says, and is every pod confined?"""

import base64
import copy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from hushtune_client import cli as client_cli
from hushtune_common import config
from hushtune_common.wire.kit import Kit
from hushtune_server import cli as server_cli
from tests import compose

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/kubernetes"
VERSIONS = ("1.31", "1.34", "1.37")
MIB = {"Mi": 1, "Gi": 1024}
RESIDENT_MB = {"coordinator": 132, "air": 387, "eavesdropper": 478, "owner": 2765, "c1": 2560, "c2": 2560, "c3": 2560}
"""The largest resident sets of fourteen runs of the demo, trainers included: docs/OPERATIONS.md."""

Tree = dict[str, Any]


@cache
def kustomization() -> Tree:
    return yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))


@cache
def documents() -> list[Tree]:
    return [d for name in kustomization()["resources"] for d in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))]


def of_kind(*kinds: str) -> dict[str, Tree]:
    return {d["metadata"]["name"]: d for d in documents() if d["kind"] in kinds}


def pods() -> dict[str, Tree]:
    return {name: work["spec"]["template"] for name, work in of_kind("Job", "StatefulSet").items()}


def containers(pod: Tree) -> list[Tree]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


@cache
def services() -> dict[str, Tree]:
    others = {"pki", "report", "dashboard", "chaos", "prometheus", "grafana"}
    return {
        name: service
        for name, service in compose.services(RUN="kubernetes", METRICS="0.0.0.0:9100").items()
        if name not in others
    }


def chosen(selector: Tree, labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    assert all(e["operator"] == "In" for e in selector.get("matchExpressions", ()))
    equal = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return equal and all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", ()))


def lets(direction: str, own: Tree, other: Tree, port: int) -> bool:
    """What Kubernetes documents: all that is not chosen by a policy of the direction is free, else the union of its rules is."""
    side, peers = {"Ingress": ("ingress", "from"), "Egress": ("egress", "to")}[direction]
    policies = [p["spec"] for p in of_kind("NetworkPolicy").values() if direction in p["spec"]["policyTypes"]]
    ours = [p for p in policies if chosen(p["podSelector"], own["metadata"]["labels"])]
    rules = [rule for policy in ours for rule in policy.get(side, ())]
    return not ours or any(
        any(entry["port"] == port for entry in rule["ports"])
        and any("namespaceSelector" not in p and chosen(p["podSelector"], other["metadata"]["labels"]) for p in rule[peers])
        for rule in rules
    )


def ports(pod: Tree) -> list[int]:
    return [port["containerPort"] for c in pod["spec"]["containers"] for port in c.get("ports", ())]


def reached_here() -> set[tuple[str, str]]:
    return {
        (a, b)
        for (a, dialler), (b, listener) in permutations(pods().items(), 2)
        for port in {7001, 7002, 7003, *ports(listener)}
        if lets("Egress", dialler, listener, port) and lets("Ingress", listener, dialler, port)
    }


def reached_in_compose() -> set[tuple[str, str]]:
    """Who shares a network with whom and is told the other's address."""
    return {
        (a, b)
        for (a, one), (b, other) in permutations(services().items(), 2)
        if {*one["networks"]} & {*other["networks"]} and any(str(word).startswith(f"{b}:") for word in one["command"])
    }


def mounted(pod: Tree) -> Iterator[tuple[str, str]]:
    for volume in pod["spec"]["volumes"]:
        if "secret" in volume:
            yield "secret", volume["secret"]["secretName"]
        if "persistentVolumeClaim" in volume:
            yield "claim", volume["persistentVolumeClaim"]["claimName"]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_fits_the_strict_schema_of_its_kind(version: str) -> None:
    for document in documents():
        assert kubernetes_validate.validate(document, version, strict=True) == version


def test_the_schemas_refuse_a_misspelt_field_a_missing_one_and_a_wrong_type() -> None:
    for field, value in (("backofLimit", 3), ("template", {"spec": {"volumes": []}}), ("backoffLimit", "three")):
        broken = copy.deepcopy(of_kind("Job")["owner"])
        broken["spec"][field] = value
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_every_file_of_the_folder_is_used() -> None:
    named = {*kustomization()["resources"], "kustomization.yaml"}
    assert {path.name for path in FOLDER.glob("*.yaml")} == named


def test_the_roles_are_those_of_the_compose_file_with_its_images_and_commands() -> None:
    assert set(pods()) == set(services())
    for name, pod in pods().items():
        (container,) = pod["spec"]["containers"]
        assert {c["image"] for c in containers(pod)} == {services()[name]["image"]}
        theirs = [str(word) for word in services()[name]["command"]][1:-4]
        assert services()[name]["command"][-4:-1] == ["--log-folder", "/log", "--log-level"]  # a cluster collects what is printed
        assert container["args"] == ["/scenario/scenario.toml", *theirs]


def test_who_may_reach_whom_is_what_the_networks_of_the_compose_file_and_its_commands_say() -> None:
    assert reached_here() == reached_in_compose()
    assert {b for a, b in reached_here() if a == "eavesdropper"} == {"air"}
    assert [{b for a, b in reached_here() if a == c} for c in ("c1", "c2", "c3")] == [{"owner", "coordinator", "air"}] * 3
    assert len(reached_here()) == 2 + 1 + 3 * 3


def test_of_what_shares_a_network_in_compose_only_two_that_never_dial_each_other_are_kept_apart() -> None:
    shared = {
        frozenset((a, b)) for a, b in permutations(services(), 2) if {*services()[a]["networks"]} & {*services()[b]["networks"]}
    }
    assert shared - {frozenset(pair) for pair in reached_here()} == {frozenset(("coordinator", "air"))}


def test_nobody_reaches_the_outside_but_the_names_of_the_cluster() -> None:
    policies = {name: policy["spec"] for name, policy in of_kind("NetworkPolicy").items()}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, policy in policies.items():
        rules = [*policy.get("egress", ()), *policy.get("ingress", ())]
        peers = [peer for rule in rules for peer in rule.get("to", rule.get("from"))]
        assert all(rule["ports"] for rule in rules)
        assert not any("ipBlock" in peer for peer in peers)
        assert all(peer["podSelector"] for peer in peers)
        if any("namespaceSelector" in peer for peer in peers):
            assert (name, *{port["port"] for rule in rules for port in rule["ports"]}) in {("names", 53), ("to-metrics", 9100)}


def test_who_is_dialled_has_a_headless_service_of_its_name_and_port() -> None:
    for name in {b for _, b in reached_here()}:
        service = of_kind("Service")[name]["spec"]
        found = [n for n, pod in pods().items() if chosen({"matchLabels": service["selector"]}, pod["metadata"]["labels"])]
        assert (service["clusterIP"], found, [p["port"] for p in service["ports"]]) == (
            "None",
            [name],
            [p for p in ports(pods()[name]) if p != 9100],
        )


def test_no_pod_has_the_kit_or_the_state_of_another_and_none_the_authority() -> None:
    held = {name: {*mounted(pod)} for name, pod in pods().items()}
    assert {name: {s for kind, s in things if kind == "secret"} for name, things in held.items()} == {
        n: {f"{n}-kit"} for n in pods()
    }
    claims = [claim for things in held.values() for kind, claim in things if kind == "claim"]
    assert len(claims) == len({*claims})
    assert {*claims} == {*of_kind("PersistentVolumeClaim")}
    assert "authority" not in yaml.safe_dump([pods(), documents()])


@pytest.mark.parametrize("name", sorted(RESIDENT_MB))
def test_a_pod_is_confined(name: str) -> None:
    spec = pods()[name]["spec"]
    about = spec["securityContext"]
    assert (about["runAsNonRoot"], about["runAsUser"], about["runAsGroup"]) == (True, 10001, 10001)
    assert about["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & {*spec}
    assert all({*volume} <= {"name", "secret", "configMap", "emptyDir", "persistentVolumeClaim"} for volume in spec["volumes"])
    for container in containers(pods()[name]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert all(mount.get("readOnly") or mount["name"] in {"state", "cache", "tmp"} for mount in container["volumeMounts"])


def test_the_namespace_refuses_pods_that_are_not_confined() -> None:
    assert of_kind("Namespace")["hushtune"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert kustomization()["namespace"] == "hushtune"


@pytest.mark.parametrize("name", sorted(RESIDENT_MB))
def test_a_pod_asks_for_the_memory_that_was_measured_and_may_have_a_quarter_more(name: str) -> None:
    (container,) = pods()[name]["spec"]["containers"]
    asked, limit = (
        int(container["resources"][what]["memory"][:-2]) * MIB[container["resources"][what]["memory"][-2:]] * 2**20 / 1e6
        for what in ("requests", "limits")
    )
    assert asked >= RESIDENT_MB[name]
    assert limit >= 1.25 * RESIDENT_MB[name]


def test_the_commands_of_every_probe_and_of_every_wait_parse() -> None:
    for name, pod in pods().items():
        for container in containers(pod):
            probes = [
                container[k]["exec"]["command"] for k in ("startupProbe", "readinessProbe", "livenessProbe") if k in container
            ]
            waits = [
                part.split()
                for part in container.get("command", ["", "", ""])[2].removeprefix("until ").split(";")[0].split("&&")
            ]
            for program, *words in [*probes, *filter(None, waits)]:
                app = {"hushtune": server_cli.app, "hushtune-client": client_cli.app}[program]
                app.parse_args(words, exit_on_error=False, print_error=False)
                assert words[0] == "health", name


def test_nobody_is_restarted_because_somebody_else_does_not_answer() -> None:
    for pod in pods().values():
        for container in pod["spec"]["containers"]:
            asked = container.get("livenessProbe", {}).get("exec", {}).get("command", [])
            assert not asked or asked[2] == f"127.0.0.1:{ports(pod)[0]}"


def test_the_scenario_is_the_demo_and_that_of_the_eavesdropper_has_no_seed() -> None:
    source = (ROOT / "scenarios/demo.toml").read_text(encoding="utf-8")
    ours, theirs = (config.load(FOLDER / "scenario" / name) for name in ("scenario.toml", "without-seed.toml"))
    assert (FOLDER / "scenario/scenario.toml").read_text(encoding="utf-8") == source
    assert (theirs.seed, theirs.digest, ours.seed != 0) == (0, ours.digest, True)
    maps = {
        name: next(v["configMap"]["name"] for v in pod["spec"]["volumes"] if "configMap" in v) for name, pod in pods().items()
    }
    assert [name for name, chosen_map in maps.items() if chosen_map != "scenario"] == ["eavesdropper"]
    generated = {g["name"]: g["files"] for g in kustomization()["configMapGenerator"]}
    assert "scenario.toml=scenario/without-seed.toml" in generated[maps["eavesdropper"]]


def test_a_mounted_scenario_finds_its_plan_through_the_links_of_a_config_map(tmp_path: Path) -> None:
    items = next(v["configMap"]["items"] for v in pods()["owner"]["spec"]["volumes"] if "configMap" in v)
    for item in items:
        place = tmp_path / "..2026_01_02" / item["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FOLDER / "scenario" / item["key"], place)
    (tmp_path / "..data").symlink_to("..2026_01_02")
    (tmp_path / "scenario.toml").symlink_to("..data/scenario.toml")
    plan = config.load(tmp_path / "scenario.toml").owner.emulator.plan
    assert plan is not None
    shipped = config.load(ROOT / "scenarios/demo.toml").owner.emulator.plan
    assert shipped is not None
    assert Path(plan).read_bytes() == Path(shipped).read_bytes()


@pytest.mark.slow
def test_the_script_prints_a_secret_for_every_pod_which_is_its_kit_and_keeps_the_authority(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    done = subprocess.run(
        [FOLDER / "kits", tmp_path / "k"], env={"PATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    secrets: dict[str, Tree] = {s["metadata"]["name"]: s for s in yaml.safe_load_all(done.stdout)}
    assert set(secrets) == {f"{name}-kit" for name in pods()}
    for name, secret in secrets.items():
        kubernetes_validate.validate(secret, VERSIONS[-1], strict=True)
        (tmp_path / name).mkdir()
        for file, content in secret["data"].items():
            (tmp_path / name / file).write_bytes(base64.b64decode(content))
        assert Kit.load(tmp_path / name).caller.name == name.removesuffix("-kit")
    key = (tmp_path / "k/authority/ca.key").read_bytes()
    assert base64.b64encode(key).decode() not in done.stdout


def test_the_script_asks_for_a_folder() -> None:
    done = subprocess.run([FOLDER / "kits"], capture_output=True, text=True, timeout=10, check=False)
    assert (done.returncode, "usage:" in done.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
def test_what_kustomize_makes_of_it_fits_the_schemas_and_names_config_maps_that_it_made() -> None:
    done = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True, timeout=30, check=True)
    made: list[Tree] = [*yaml.safe_load_all(done.stdout)]
    for document in made:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "hushtune"
    maps = {d["metadata"]["name"] for d in made if d["kind"] == "ConfigMap"}
    named = {
        v["configMap"]["name"]
        for d in made
        if "template" in d.get("spec", ())
        for v in d["spec"]["template"]["spec"]["volumes"]
        if "configMap" in v
    }
    assert named == maps
    assert len(made) == len(documents()) + len(maps)
