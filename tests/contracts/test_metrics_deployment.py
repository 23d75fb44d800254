"""Do Prometheus' files fit the table of metrics and the compose file, and does the page of graphs show what there is?"""

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from hushtune_common.metrics.table import METRICS, TRAINER
from tests import compose

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/metrics"
ROLES = ("coordinator", "air", "owner", "eavesdropper", "c1", "c2", "c3")
ENDS = ("_bucket", "_sum", "_count")
WORDS = {"client": "client", "c1": "client", "c2": "client", "c3": "client"}


def page() -> dict[str, Any]:
    return json.loads((FOLDER / "grafana/dashboards/hushtune.json").read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in page()["panels"] if panel["type"] != "row"]


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    return [t["expr"] for panel in panels() for t in panel["targets"]] + [rule["expr"] for rule in alerts()]


def test_every_expression_asks_for_metrics_and_labels_that_there_are() -> None:
    for expression in expressions():
        for name, chosen in re.findall(r"(hushtune_\w+)(?:\{([^}]*)\})?", expression):
            if name.startswith(TRAINER):
                continue
            metric = METRICS.get(name) or METRICS[re.sub(f"({'|'.join(ENDS)})$", "", name)]
            known = {label.name: label for label in metric.labels}
            for label, wanted in re.findall(r'(\w+)!?=~?"([^"]*)"', chosen):
                assert label in {*known, "role", "process"}, expression
                assert label not in known or {*wanted.split("|")} <= known[label].allowed, expression


def test_the_page_has_panels_that_say_what_they_show_and_do_not_overlap() -> None:
    found = page()["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    assert all(panel["description"].endswith(".") and panel["targets"] for panel in panels())
    cells = [
        {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
        for p in (panel["gridPos"] for panel in found)
    ]
    assert all(0 <= x < 24 for cell in cells for x, _ in cell)
    assert not any(one & other for one, other in combinations(cells, 2))


def test_every_alarm_says_what_it_means_and_what_to_do() -> None:
    assert {"ClientDead", "AllGatesClosed", "CertificateEndsSoon", "DiskLow", "ProcessGone"} <= {a["alert"] for a in alerts()}
    for alert in alerts():
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"].endswith(".")


def test_prometheus_asks_every_role_of_the_compose_file_over_a_network_that_only_the_two_share() -> None:
    services = compose.services(METRICS="metrics:9100")
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert [c["targets"] for c in job["static_configs"]] == [[f"{role}:9100"] for role in ROLES]
    assert [c["labels"] for c in job["static_configs"]] == [{"role": WORDS.get(r, r), "process": r} for r in ROLES]
    for role in ROLES:
        command = [str(word) for word in services[role]["command"]]
        assert command[command.index("--metrics") + 1] == "metrics:9100"
        shared = {n for n, s in services.items() if f"{role}-metrics" in s.get("networks", ())}
        assert shared == {role, "prometheus"}
        assert services[role]["networks"][f"{role}-metrics"] == {"aliases": ["metrics"]}
        assert compose.read("docker-compose.yml")["networks"][f"{role}-metrics"] == {"internal": True}


def test_without_the_variable_no_role_serves_metrics_and_without_the_profile_nobody_reads_them() -> None:
    services = compose.services()
    for role in ROLES:
        command = [str(word) for word in services[role]["command"]]
        assert command[command.index("--metrics") + 1] == "off"
    assert services["prometheus"]["profiles"] == services["grafana"]["profiles"] == ["metrics"]


def test_prometheus_and_its_page_are_of_this_machine_only_pinned_and_can_come_from_another_registry() -> None:
    services = compose.services(PROMETHEUS_IMAGE="registry.example/p:1", GRAFANA_IMAGE="registry.example/g:1")
    assert [services[name]["image"] for name in ("prometheus", "grafana")] == ["registry.example/p:1", "registry.example/g:1"]
    for name in ("prometheus", "grafana"):
        assert re.fullmatch(r"docker\.io/\w+/\w+:v?\d+\.\d+\.\d+", compose.services()[name]["image"])
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
        assert all(volume.endswith(":ro") for volume in services[name]["volumes"] if volume.startswith("./"))
    assert {*services["grafana"]["networks"]} == {"graphs"}
    environment = services["grafana"]["environment"]
    assert (environment["GF_AUTH_DISABLE_LOGIN_FORM"], environment["GF_AUTH_ANONYMOUS_ORG_ROLE"]) == ("true", "Viewer")


def test_what_is_provisioned_finds_the_files_that_are_mounted() -> None:
    source = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert {t["datasource"]["uid"] for panel in panels() for t in panel["targets"]} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((FOLDER / "grafana/provisioning/dashboards/hushtune.yml").read_text())["providers"][0]
    mounted = dict(volume.split(":")[:2][::-1] for volume in compose.services()["grafana"]["volumes"])
    assert mounted["/etc/hushtune"] == "./deploy/metrics/grafana"
    assert (FOLDER / "grafana" / Path(provider["options"]["path"]).name / "hushtune.json").is_file()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no Prometheus here (Debian: apt-get install prometheus)")
@pytest.mark.parametrize(("kind", "file"), [("config", "prometheus.yml"), ("rules", "rules.yml")])
def test_prometheus_own_check_takes_the_files(kind: str, file: str) -> None:
    done = subprocess.run(["promtool", "check", kind, str(FOLDER / file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
