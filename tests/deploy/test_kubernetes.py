"""deploy/kubernetes: the files match the schemas of Kubernetes and the settings, ports and paths of the program."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.environment import describe, load
from modules import registry
from tests.architecture.tree import ROOT
from tests.deploy.deployed import MODULES

FOLDER = ROOT / "deploy/kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
FILES = [FOLDER / name for name in KUSTOMIZATION["resources"] if name.endswith(".yaml")]
OBJECTS: list[dict[str, Any]] = [
    each for file in FILES for each in yaml.safe_load_all(file.read_text(encoding="utf-8"))
]
POD_MAKERS = [each for each in OBJECTS if each["kind"] in {"Deployment", "Job", "StatefulSet"}]
PODS = {each["metadata"]["name"]: each["spec"]["template"] for each in POD_MAKERS}
SECRETS = "/run/secrets/fulfilment"

VERSION = "1.32"


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in OBJECTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def container_of(name: str) -> dict[str, Any]:
    (container,) = PODS[name]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def environment_of(name: str) -> dict[str, str]:
    """Return the variables of a pod: those of its ConfigMap, and its own over them."""
    container = container_of(name)
    maps = [named("ConfigMap", each["configMapRef"]["name"])["data"] for each in container.get("envFrom", ())]
    found: dict[str, str] = {}
    for each in maps:
        found |= each
    return found | {each["name"]: each["value"] for each in container["env"] if "value" in each}


@pytest.mark.slow
def test_every_file_matches_the_schemas_of_kubernetes() -> None:
    """Strictly: an unknown field is an error."""
    done = subprocess.run(
        [Path(sys.executable).with_name("kubernetes-validate"), "-k", VERSION, "--strict", *FILES],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed for resource ") == len(OBJECTS)


def test_every_file_is_listed_in_a_kustomization() -> None:
    """A file that is not listed would never be applied; a listed file that is missing would stop everything."""
    listed = {
        path for file in (FOLDER, ROOT / "deploy/nats", ROOT / "deploy/proxy") for path in [file / "kustomization.yaml"]
    }
    assert {path.name for path in FOLDER.glob("*.yaml")} == {path.name for path in FILES} | {"kustomization.yaml"}
    for path in listed:
        kustomization = yaml.safe_load(path.read_text(encoding="utf-8"))
        for generator in kustomization.get("configMapGenerator", ()):
            assert all((path.parent / name).is_file() for name in generator["files"])
        for resource in kustomization.get("resources", ()):
            assert (path.parent / resource).exists()


def test_the_files_of_the_modules_differ_only_in_the_name() -> None:
    """orders.yaml becomes each other file by replacing the module name."""
    texts = {name: (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\n") for name in MODULES}
    _, _, orders = texts["orders"]
    for name, (_, _, text) in texts.items():
        assert text == orders.replace("orders", name).replace("ORDERS", name.upper())


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_locked_down_and_bounded(name: str) -> None:
    """No root user, no writable root, no capabilities, no service account token; requests and limits for every container."""
    pod, container = PODS[name]["spec"], container_of(name)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    for kind in ("requests", "limits"):
        assert container["resources"][kind].keys() == {"cpu", "memory"}
    mounts = {mount["name"] for mount in container.get("volumeMounts", ())}
    claims = {
        each["metadata"]["name"] for maker in POD_MAKERS for each in maker["spec"].get("volumeClaimTemplates", ())
    }
    assert mounts <= {volume["name"] for volume in pod["volumes"]} | claims
    assert container["image"] in {image["name"] for image in KUSTOMIZATION["images"]}


@pytest.mark.parametrize("name", [*MODULES, "migrate", "topology"])
def test_the_program_accepts_its_environment(name: str, tmp_path: Path) -> None:
    """Every variable is known, every secret is mounted, and together they are valid settings."""
    environment = environment_of(name)
    known = {variable.name for variable in describe(MODULES)} | {f"{each.name}_FILE" for each in describe(MODULES) if each.is_secret}
    assert environment.keys() - known - {"TMPDIR"} == set()
    (volume,) = [each for each in PODS[name]["spec"]["volumes"] if each["name"] == "secrets"]
    mounted = {item["path"] for item in volume["secret"]["items"]}
    secret_files = {value.removeprefix(f"{SECRETS}/") for value in environment.values() if value.startswith(SECRETS)}
    assert secret_files <= mounted
    for file in secret_files:
        module = file.rpartition("_")[2]
        url = f"postgresql://{module}:secret@postgres/{module}"
        text = {"api_keys": "operator:0123456789abcdef", "module_key": "0123456789abcdef"}.get(file, url if "database" in file else "secret")
        (tmp_path / file).touch(0o600)
        (tmp_path / file).write_text(text, encoding="utf-8")
    image = {"HTTP_HOST": "0.0.0.0", "HTTP_PORT": "8080"}
    settings = load(image | {key: value.replace(SECRETS, str(tmp_path)) for key, value in environment.items()}, MODULES)
    if name in MODULES:
        assert secret_files == mounted
        assert settings.modules == (name,)
        assert (settings.bus, settings.nats_user, settings.auth) == ("nats", name, "keys")
        assert str(settings.database_url(name)).endswith(f"/{name}")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_probes_a_drain_period_and_two_replicas(name: str) -> None:
    """The probes use existing paths and ports; the grace period is longer than the delay plus the shutdown."""
    deployment, container = named("Deployment", name), container_of(name)
    assert deployment["spec"]["replicas"] == 2
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8080}
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/livez", "liveness": "/livez", "readiness": "/readyz",
    }  # fmt: skip
    assert all(probe["port"] in ports for probe in probes.values())
    delay_seconds = float(environment_of(name)["SHUTDOWN_DELAY_S"])
    probe = container["readinessProbe"]
    assert delay_seconds >= probe["periodSeconds"]
    settings = {each.name: each.default for each in describe(MODULES)}
    grace_seconds = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_seconds >= delay_seconds + float(settings["SHUTDOWN_GRACE_S"]) + 5
    labels = PODS[name]["metadata"]["labels"].items()
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        named("Service", name)["spec"]["selector"],
        named("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels for selector in selectors)
    assert named("PodDisruptionBudget", name)["spec"]["minAvailable"] < deployment["spec"]["replicas"]


def test_nats_has_three_nodes_with_volumes_and_a_disruption_budget_of_one() -> None:
    """Their names match cluster.conf and NATS_URL, their passwords the variables of accounts.conf."""
    nats = named("StatefulSet", "nats")
    assert nats["spec"]["replicas"] == 3
    assert nats["spec"]["volumeClaimTemplates"]
    assert named("PodDisruptionBudget", "nats")["spec"]["maxUnavailable"] == 1
    assert named("Service", nats["spec"]["serviceName"])["spec"]["clusterIP"] == "None"
    hosts = {f"nats-{number}.{nats['spec']['serviceName']}" for number in range(3)}
    folder = ROOT / "deploy/nats"
    routes = [each["value"] for each in container_of("nats")["env"] if each["name"].startswith("ROUTE_")]
    assert routes == [f"nats-route://routes:$(ROUTES_PASSWORD)@{host}:6222" for host in sorted(hosts)]
    assert set(re.findall(r"nats://([\w.-]+):", named("ConfigMap", "fulfilment")["data"]["NATS_URL"])) == hosts
    configurations = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.conf"))
    set_variables = {each["name"] for each in container_of("nats")["env"]}
    not_deployed = {f"{module.upper()}_PASSWORD" for module in registry.MODULES if module not in MODULES}
    assert set(re.findall(r":\s*\$(\w+)", configurations)) - not_deployed <= set_variables
    keys = {
        each["valueFrom"]["secretKeyRef"]["key"]
        for each in container_of("nats")["env"]
        if "secretKeyRef" in each.get("valueFrom", {})
    }
    assert keys == {f"nats_{user}" for user in (*MODULES, "provisioner", "routes")}


def test_only_the_proxy_is_reachable_and_it_knows_every_module() -> None:
    """Ingress, Service and upstreams refer to each other; no other pod accepts connections from outside."""
    ingress = named("Ingress", "fulfilment")["spec"]["rules"][0]["http"]["paths"]
    assert [path["backend"]["service"]["name"] for path in ingress] == ["proxy"]
    upstreams = (ROOT / "deploy/proxy/upstreams.conf").read_text(encoding="utf-8")
    for host, port in set(re.findall(r"server (\w+):(\d+)", upstreams)):
        assert [each["port"] for each in named("Service", host)["spec"]["ports"]] == [int(port)]
    mounted = {mount["subPath"] for mount in container_of("proxy")["volumeMounts"] if "subPath" in mount}
    generator = yaml.safe_load((ROOT / "deploy/proxy/kustomization.yaml").read_text(encoding="utf-8"))[
        "configMapGenerator"
    ][0]
    assert mounted == set(generator["files"])
    policies = {each["metadata"]["name"]: each["spec"] for each in OBJECTS if each["kind"] == "NetworkPolicy"}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    open_to_all = {name for name, spec in policies.items() for rule in spec.get("ingress", ()) if "from" not in rule}
    assert open_to_all == {"proxy"}
    anywhere = {name for name, spec in policies.items() for rule in spec.get("egress", ()) if "to" not in rule}
    assert anywhere == {"databases", "provider"}  # both may be outside the cluster, so their ports are all that is known
    (provider,) = policies["provider"]["egress"]
    assert policies["provider"]["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "payments"}}
    assert provider["ports"] == [{"port": 443}]


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_may_open_the_connections_that_it_needs(pod: str) -> None:
    """Everything else is refused: a pod that was taken over cannot send elsewhere what it holds."""
    labels = PODS[pod]["metadata"]["labels"].items()
    found = set()
    for each in OBJECTS:
        if each["kind"] != "NetworkPolicy":
            continue
        selector = each["spec"]["podSelector"]
        expressions = selector.get("matchExpressions", ())
        is_member = all(dict(labels).get(one["key"]) in one["values"] for one in expressions)
        if selector.get("matchLabels", {}).items() <= labels and is_member:
            found |= {port["port"] for rule in each["spec"].get("egress", ()) for port in rule["ports"]}
    module = {4222, 5432, 8080}
    needed = {"nats": {6222}, "proxy": {8080}, "topology": {4222}, "migrate": {5432}, "payments": module | {443}}
    assert found == {53} | needed.get(pod, module)


def test_both_deployments_use_the_same_images() -> None:
    """The versions in compose.yaml and kustomization.yaml are equal."""
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))["services"]
    pinned = {f"{image.get('newName', image['name'])}:{image['newTag']}" for image in KUSTOMIZATION["images"]}
    assert pinned <= {service["image"] for service in compose.values()}
