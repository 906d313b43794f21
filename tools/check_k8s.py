#!/usr/bin/env python3
"""Check the manifests in k8s/ and the image: every overlay renders, is valid, and agrees with the program and with the image.

    check_k8s.py            check all overlays
    check_k8s.py --venv     only print the folder with the tools, bin/kubectl among them

Valid means valid in the strict schemas of the Kubernetes versions in VERSIONS. What the program does is read from its sources: its
environment variables, paths, metrics, times; what the image does, from Dockerfile.arm64, which hadolint reads too. The tools (kubectl,
schemas, hadolint) are Python packages in a venv in the cache; k8s_tools.txt pins them. Each rule is a function that is given an overlay's documents and yields one sentence for each thing that is wrong.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import pinned

ROOT = Path(__file__).resolve().parent.parent
OVERLAYS = sorted(path.parent for path in (ROOT / "k8s/overlays").glob("*/kustomization.yaml"))
PINS = Path(__file__).with_name("k8s_tools.txt")
# Those that k3s's channels offer.
VERSIONS = ["1.34", "1.35", "1.36", "1.37"]
# Kinds that an operator brings: no schema of Kubernetes knows them.
FOREIGN = {"PodMonitor"}
# Immutable in a running cluster, so frozen here.
SELECTOR = {"app.kubernetes.io/name": "pocket-llm", "app.kubernetes.io/component": "server"}
# The Secrets that people make, and whether the pods start without them.
SECRETS = {"pocket-llm-hf": True, "pocket-llm-api-key": False}
CHAT_NAMES = {"GEMMA_3_1B_IT", "gemma-3n-e2b-it"}
# Read by the download's library, or only by other variables.
OTHER_VARIABLES = {"HF_TOKEN", "HF_ENDPOINT", "POD_IP"}
# Taints that do not outweigh the label: a phone reserved for the model, a phone with the control plane.
TOLERATED = {"llm", "node-role.kubernetes.io/control-plane"}
UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

Findings = Iterator[str]


def tools() -> Path:
    """The environment with the tools."""
    return pinned.venv("k8s", PINS)


@dataclass
class Facts:
    """What the program's sources say."""
    version: str
    port: int
    variables: set[str]
    commands: set[str]
    paths: set[str]
    metrics: set[str]
    drain_delay: float
    grace: float
    close: float
    image: "Image"
    catalogue: dict[str, dict]

    @classmethod
    def read(cls) -> "Facts":
        sources = {str(path.relative_to(ROOT / "src")): path.read_text() for path in (ROOT / "src").rglob("*.rs")}
        everything, config = "\n".join(sources.values()), sources["config.rs"]

        def default(variable: str) -> str:
            return one(rf'env = "{variable}",\s*default_value_t = ([\d.]+)', config)
        commands = one(r"\nenum Command \{(.*?)\n\}", sources["cli/mod.rs"], re.DOTALL)
        return cls(
            version=tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"],
            port=int(default("POCKET_LLM_PORT")),
            variables=set(re.findall(r'(?:env = |env::var(?:_os)?\()"([A-Z][A-Z0-9_]+)"', everything)),
            commands={re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() for name in re.findall(r"^    (\w+)", commands, re.MULTILINE)},
            paths=set(re.findall(r'shows\("(/[^"]*)"', sources["http/endpoints.rs"])),
            metrics=metrics_in(sources["metrics.rs"]),
            drain_delay=float(default("POCKET_LLM_DRAIN_DELAY")),
            grace=float(default("POCKET_LLM_GRACE")),
            close=float(one(r"close_time: Duration::from_secs\((\d+)\)", sources["http/app.rs"]))
            + float(one(r"LAST_BYTES: Duration = Duration::from_secs\((\d+)\)", sources["serve.rs"])),
            image=Image.read((ROOT / "Dockerfile.arm64").read_text()),
            catalogue={entry["name"]: entry for entry in map(tomllib.loads, map(Path.read_text, (ROOT / "models").glob("*.toml"))) if "name" in entry})


@dataclass
class Image:
    """What the Dockerfile says of its last stage."""
    entrypoint: list[str]
    user: tuple[int, int]
    volumes: list[str]
    store: str
    signal: str
    tags: set[str]

    @classmethod
    def read(cls, text: str) -> "Image":
        stage = text[text.rindex("\nFROM "):]
        user, group = one(r"^USER (\d+:\d+)$", stage, re.MULTILINE).split(":")
        return cls(
            entrypoint=json.loads(one(r"^ENTRYPOINT (\[.*\])$", stage, re.MULTILINE)), user=(int(user), int(group)),
            volumes=json.loads(one(r"^VOLUME (\[.*\])$", stage, re.MULTILINE)), store=one(r"\bPOCKET_LLM_MODELS=(\S+)", stage),
            signal=one(r"^STOPSIGNAL (\w+)$", stage, re.MULTILINE), tags=set(re.findall(r"--tag pocket-llm:(\S+)", text)))


def one(pattern: str, text: str, flags: int = 0) -> str:
    """The only match; anything else means that this script no longer understands the sources."""
    found = re.findall(pattern, text, flags)
    if len(found) != 1:
        raise SystemExit(f"check_k8s: {len(found)} matches for {pattern!r} in the sources, not one: bring the pattern up to date")
    return found[0]


def metrics_in(source: str) -> set[str]:
    """The names that /metrics shows, as Prometheus stores them."""
    front, engine = source.split("fn pool_registry")
    types = dict(re.findall(r"^    (\w+): (?:Family<\w+, )?(Counter|Gauge)\b", front, re.MULTILINE))
    names = set()
    for name, value in re.findall(r'registry\.register\("(\w+)", "[^"]*", ([^;]*)\);', front):
        field = re.sub(r"^self\.(\w+)\.clone\(\)$", r"\1", value)
        names.add(name + {"Counter": "_total", "Gauge": ""}.get(types.get(field, ""), "_info"))
    histograms = re.findall(r'\bseconds\("(\w+)"', front)
    names |= {f"{name}_seconds_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    names |= set(re.findall(r'\bgauge\("(\w+)"', engine))
    names |= set(re.findall(r'registry\.register\("(\w+)"', engine))
    names |= {f"{name}_bytes" for name in re.findall(r'registry\.register_with_unit\("(\w+)", "[^"]*", Unit::Bytes', engine)}
    names |= {f"{name}_total" for name in re.findall(r'\bcounter\("(\w+)"', engine)}
    names |= {f"{name}_seconds_total" for name in re.findall(r'\bseconds\("(\w+)"', engine)}
    return {f"pocket_llm_{name}" for name in names}


class Overlay:
    """An overlay's documents, with the ones that rules ask for at hand."""

    def __init__(self, documents: list[dict]):
        self.documents = documents
        (self.daemonset,) = self.all("DaemonSet")
        self.spec = self.daemonset["spec"]
        self.template = self.spec["template"]
        self.pod = self.template["spec"]
        self.containers = self.pod["initContainers"] + self.pod["containers"]
        (self.server,) = self.pod["containers"]

    def all(self, kind: str) -> list[dict]:
        return [document for document in self.documents if document["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        return {document["metadata"]["name"] for document in self.all(kind)}

    def settings(self, container: dict) -> dict[str, str]:
        """What comes from the ConfigMaps of `envFrom`."""
        wanted = {source["configMapRef"]["name"] for source in container.get("envFrom", [])}
        maps = [document for document in self.all("ConfigMap") if document["metadata"]["name"] in wanted]
        return {name: value for document in maps for name, value in (document.get("data") or {}).items()}


def within(part: dict, whole: dict) -> bool:
    return part.items() <= whole.items()


def selects(overlay: Overlay, facts: Facts) -> Findings:
    """Labels and what is chosen by them."""
    if overlay.pod["nodeSelector"] != {"llm": "true"}:
        yield f"the node selector is {overlay.pod['nodeSelector']}, not the string label llm=true"
    labels = overlay.template["metadata"]["labels"]
    if overlay.spec["selector"] != {"matchLabels": SELECTOR}:
        yield "the DaemonSet's selector has changed, which no running cluster accepts"
    if not within(SELECTOR, labels):
        yield "the pods lack labels of the DaemonSet's selector"
    if labels.get("app.kubernetes.io/version") != facts.version:
        yield f"the label of the version is {labels.get('app.kubernetes.io/version')}, not {facts.version}"
    services = [service for service in overlay.all("Service") if service["metadata"]["name"] == "llm"]
    if len(services) != 1:
        yield "there is no Service named llm"
    for service in services:
        if not within(service["spec"]["selector"], labels):
            yield "the Service llm selects other pods than ours"
        ports = [(port["port"], port["targetPort"]) for port in service["spec"]["ports"]]
        if ports != [(facts.port, facts.port)]:
            yield f"the Service's ports are {ports}, not the number {facts.port} to itself"
    for policy in overlay.all("NetworkPolicy"):
        if not within(policy["spec"]["podSelector"]["matchLabels"], labels):
            yield "the NetworkPolicy selects other pods than ours"
        if overlay.pod.get("hostNetwork"):
            yield "a NetworkPolicy does nothing for pods on the node's network"
    for monitor in overlay.all("PodMonitor"):
        yield from monitors(monitor["spec"], overlay, facts)


def monitors(spec: dict, overlay: Overlay, facts: Facts) -> Findings:
    """That a PodMonitor reaches the server, whose pod declares no port."""
    if not within(spec["selector"]["matchLabels"], overlay.template["metadata"]["labels"]):
        yield "the PodMonitor selects other pods than ours"
    for endpoint in spec["podMetricsEndpoints"]:
        if endpoint["path"] not in facts.paths:
            yield f"the PodMonitor asks for {endpoint['path']}, where nothing answers"
        if endpoint.keys() & {"port", "portNumber", "targetPort"}:
            yield "the PodMonitor asks for a declared port, and finds nothing"
        for pod_ip, address in (("10.0.0.2", f"10.0.0.2:{facts.port}"), ("fd00::2", f"[fd00::2]:{facts.port}")):
            found = scraped(endpoint["relabelings"], pod_ip, overlay)
            if found != [address]:
                yield f"the PodMonitor leads to {found} for a pod at {pod_ip}, not to {address} alone"


def scraped(rules: list[dict], pod_ip: str, overlay: Overlay) -> list[str]:
    """The addresses that Prometheus would ask: it has a target for each container of the pod, in each phase, and applies the rules."""
    addresses = []
    for container, phase in itertools.product(overlay.containers, ("Pending", "Running")):
        labels = {"__address__": pod_ip, "__meta_kubernetes_pod_ip": pod_ip, "__meta_kubernetes_pod_phase": phase,
                  "__meta_kubernetes_pod_container_name": container["name"], "__meta_kubernetes_pod_node_name": "phone-b"}
        kept = True
        for rule in rules:
            found = re.fullmatch(rule.get("regex", "(.*)"), ";".join(labels.get(name, "") for name in rule["sourceLabels"]))
            if rule.get("action", "replace") == "keep":
                kept = kept and found is not None
            elif found:
                labels[rule["targetLabel"]] = found.expand(rule.get("replacement", "$1").replace("$", "\\"))
        if kept:
            addresses.append(labels["__address__"])
    return addresses


def refers(overlay: Overlay, _: Facts) -> Findings:
    """Names that lead somewhere."""
    for kind, name in (("ServiceAccount", overlay.pod["serviceAccountName"]), ("PriorityClass", overlay.pod["priorityClassName"])):
        if name not in overlay.names(kind):
            yield f"there is no {kind} {name}"
    maps = overlay.names("ConfigMap")
    volumes = {volume["name"]: volume for volume in overlay.pod["volumes"]}
    wanted = {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume}
    wanted |= {source["configMapRef"]["name"] for container in overlay.containers for source in container.get("envFrom", [])}
    yield from (f"there is no ConfigMap {name}" for name in sorted(wanted - maps))
    used = {mount["name"] for container in overlay.containers for mount in container["volumeMounts"]}
    yield from (f"volume {name} is mounted but not there, or there but not mounted" for name in sorted(used ^ set(volumes)))
    for container in overlay.containers:
        for variable in container.get("env", []):
            key = variable.get("valueFrom", {}).get("secretKeyRef")
            if key and SECRETS.get(key["name"]) is not key.get("optional", False):
                yield f"{container['name']}: {variable['name']} comes from {key}, which is none of {SECRETS} (name and whether it is optional)"
            if variable["name"] == "HF_TOKEN" and container["name"] != "pull":
                yield f"{container['name']}: sees the hub's token, which only the download needs"
    if volumes.get("store", {}).get("hostPath", {}).get("type") != "DirectoryOrCreate":
        yield "the store does not lie on the phone itself"


def configures(overlay: Overlay, facts: Facts) -> Findings:
    """Environment and arguments."""
    for container in overlay.containers:
        who, settings, seen = container["name"], overlay.settings(container), set()
        for variable in container.get("env", []):
            name = variable["name"]
            if name in seen or name in settings:
                yield f"{who}: {name} is set twice"
            undefined = set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) - seen
            yield from (f"{who}: {name} refers to {other}, which is not defined above it" for other in sorted(undefined))
            seen.add(name)
        known = facts.variables | OTHER_VARIABLES
        yield from (f"{who}: the program does not read {name}" for name in sorted((seen | set(settings)) - known))
        arguments = container["args"]
        for name in re.findall(r"\$\((\w+)\)", " ".join(arguments)):
            if name not in seen | set(settings):
                yield f"{who}: an argument refers to {name}, which is not defined"
        if arguments[0] not in facts.commands:
            yield f"{who}: the program has no command {arguments[0]}"
        if container["image"] != f"pocket-llm:{facts.version}" or container["imagePullPolicy"] != "IfNotPresent":
            yield f"{who}: the image is {container['image']}, not this version's, or it is always pulled"
    settings = overlay.settings(overlay.server)
    if "POCKET_LLM_MODEL" not in settings:
        yield "no model is set"
    if not CHAT_NAMES <= set(settings.get("POCKET_LLM_ALIAS", "").split(",")):
        yield "the chat's two model names are not among the aliases"
    if "POCKET_LLM_PORT" in settings:
        yield "the port is set, and probes and Service would not follow"


def listens(overlay: Overlay, facts: Facts) -> Findings:
    """Network and probes."""
    on_node = overlay.pod.get("hostNetwork", False)
    if overlay.pod["dnsPolicy"] != ("ClusterFirstWithHostNet" if on_node else "ClusterFirst"):
        yield f"names of the cluster are not found with dnsPolicy {overlay.pod['dnsPolicy']}"
    hosts = [variable["value"] for variable in overlay.server["env"] if variable["name"] == "POCKET_LLM_HOST"]
    if hosts != ["127.0.0.1,$(POD_IP)"]:
        yield f"the server listens on {hosts}, not on the phone itself and its address in the cluster"
    if any(container.get("ports") for container in overlay.containers):
        yield "a port is declared: beside the chat's pod, which declares it too, ours would stay Pending"
    if overlay.pod.get("enableServiceLinks") is not False:
        yield "a Service named pocket-llm would set POCKET_LLM_PORT"
    for name, least in (("startupProbe", 300), ("readinessProbe", 5), ("livenessProbe", 30)):
        probe = overlay.server[name]
        get = probe["httpGet"]
        if get["path"] not in facts.paths or get["port"] != facts.port or "host" in get:
            yield f"the {name} asks {get}, where nothing answers"
        if probe["periodSeconds"] * probe["failureThreshold"] < least:
            yield f"the {name} gives up after less than {least} s"
    if overlay.server["livenessProbe"]["httpGet"]["path"] == overlay.server["readinessProbe"]["httpGet"]["path"]:
        yield "a server that is not ready would be killed"


def megabytes(quantity: str) -> float:
    """In MiB. Only whole bytes and binary units: the API server warns of fractions."""
    number, unit = re.fullmatch(r"(\d+)(\w*)", quantity).groups()
    return int(number) * UNITS[unit] / UNITS["Mi"]


def limits(overlay: Overlay, facts: Facts) -> Findings:
    """Memory, CPU, times, updates."""
    for container in overlay.containers:
        who, resources = container["name"], container["resources"]
        memory = [resources.get(kind, {}).get("memory") for kind in ("requests", "limits")]
        if None in memory or megabytes(memory[0]) > megabytes(memory[1]):
            yield f"{who}: memory is requested and limited to {memory}"
        if "cpu" in resources.get("limits", {}) or "cpu" not in resources.get("requests", {}):
            yield f"{who}: the CPU is limited, or not requested"
    settings = overlay.settings(overlay.server)
    drain = float(settings.get("POCKET_LLM_DRAIN_DELAY", facts.drain_delay)) + float(settings.get("POCKET_LLM_GRACE", facts.grace))
    if overlay.pod["terminationGracePeriodSeconds"] < drain + facts.close + 5:
        yield f"{overlay.pod['terminationGracePeriodSeconds']} s to end are not enough for {drain} + {facts.close} s, and 5 to spare"
    if overlay.spec["updateStrategy"] != {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}:
        yield "updates are not one phone at a time"
    tolerated = {toleration.get("key"): toleration.get("effect") for toleration in overlay.pod.get("tolerations", [])}
    if tolerated != dict.fromkeys(TOLERATED, "NoSchedule"):
        yield f"taints are tolerated: {tolerated}, not those of {sorted(TOLERATED)} alone"


def confines(overlay: Overlay, _: Facts) -> Findings:
    """What the containers may do."""
    pod = overlay.pod
    context = pod["securityContext"]
    if not (context["runAsNonRoot"] and context["runAsUser"] and context["seccompProfile"] == {"type": "RuntimeDefault"}):
        yield "the pod runs as root, or without seccomp"
    if pod["automountServiceAccountToken"] is not False or pod.get("hostPID") or pod.get("hostIPC"):
        yield "the pod gets a token, or sees the node's processes"
    for container in overlay.containers:
        who, own = container["name"], container["securityContext"]
        added = own["capabilities"].get("add", [])
        if own["allowPrivilegeEscalation"] is not False or own["readOnlyRootFilesystem"] is not True or own.get("privileged"):
            yield f"{who}: privileges may grow, or the root file system is writable"
        if own["capabilities"]["drop"] != ["ALL"] or added != (["CHOWN"] if who == "prepare-store" else []):
            yield f"{who}: holds other capabilities than it needs"
        if who != "prepare-store" and (own.get("runAsUser", 1) == 0 or own.get("runAsNonRoot") is False):
            yield f"{who}: runs as root"
        secrets = [v["name"] for v in container.get("env", []) if re.search("TOKEN|KEY|SECRET", v["name"]) and "value" in v]
        secrets += [name for name in overlay.settings(container) if re.search("TOKEN|KEY|SECRET", name)]
        yield from (f"{who}: {name} is written into the manifest" for name in secrets)


def runs(overlay: Overlay, facts: Facts) -> Findings:
    """The image, and what the manifests take for granted of it."""
    image, context = facts.image, overlay.pod["securityContext"]
    if image.entrypoint != ["/app/pocket-llm"] or image.signal != "SIGTERM":
        yield f"the image starts {image.entrypoint} and is stopped by {image.signal}"
    if image.tags != {facts.version}:
        yield f"the Dockerfile names the tags {sorted(image.tags)}, not {facts.version}"
    if (context["runAsUser"], context["runAsGroup"]) != image.user:
        yield f"the pod runs as {context['runAsUser']}:{context['runAsGroup']}, and the image's files are for {image.user}"
    if image.volumes != [image.store]:
        yield f"the image keeps models in {image.store}, which is not its volume {image.volumes}"
    for container in overlay.containers:
        who = container["name"]
        if "command" in container:
            yield f"{who}: has a command beside the image's entry point"
        stores = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "store"]
        stores += [variable["value"] for variable in container.get("env", []) if variable["name"] == "POCKET_LLM_MODELS"]
        if who == "prepare-store":
            stores.append(container["args"][-1])
            if container["args"][1:3] != ["--owner", "{}:{}".format(*image.user)]:
                yield f"{who}: gives the store to {container['args'][2]}, and the server is {image.user}"
        if len(stores) < 2 or set(stores) != {image.store}:
            yield f"{who}: the store is {stores}, and {image.store} in the image"


def shows(overlay: Overlay, facts: Facts) -> Findings:
    """Metrics on dashboards."""
    for document in overlay.all("ConfigMap"):
        for text in (document.get("data") or {}).values():
            unknown = set(re.findall(r"\bpocket_llm_\w+", text)) - facts.metrics
            yield from (f"the program has no metric {name}" for name in sorted(unknown))


RULES = [selects, refers, configures, listens, limits, confines, runs, shows]


def findings(documents: list[dict], facts: Facts) -> Findings:
    overlay = Overlay(documents)
    return itertools.chain.from_iterable(rule(overlay, facts) for rule in RULES)


def sums(text: str) -> Findings:
    """`#   request: 1 this + 2 that = 3`: the sum is right, and what the manifest asks for is not less."""
    for kind in ("request", "limit"):
        terms, total = one(rf"^#\s+{kind}:(.*) = (\d+)$", text, re.MULTILINE)
        values = [int(term.split()[0]) for term in terms.split(" + ")]
        if sum(values) != int(total):
            yield f"the terms of the {kind} are {sum(values)}, not {total}"
        asked = megabytes(one(rf"{kind}s:\s+memory: (\w+)", text))
        if not int(total) <= asked <= int(total) * 1.15:
            yield f"the {kind} is {asked} MiB for a sum of {total}"


def weighs(text: str, overlay: Overlay, facts: Facts) -> Findings:
    """The sums are for the file that the catalogue has for the overlay's model, and for the overlay's settings."""
    settings = overlay.settings(overlay.server)
    source = facts.catalogue[settings["POCKET_LLM_MODEL"]]["source"]
    if f"{source['file']} ({source['bytes']:,} bytes)" not in text:
        yield f"the sums are not for {source['file']} ({source['bytes']:,} bytes), which the catalogue has"
    if f" {-(-source['bytes'] // UNITS['Mi'])} file " not in text:
        yield "the sums do not count the whole file, in MiB"
    parallel = int(settings.get("POCKET_LLM_PARALLEL", 4))
    cells = int(settings.get("POCKET_LLM_CTX_SIZE", 2048 * parallel))
    if f"({parallel} answers at once, {cells} cells, " not in text:
        yield f"the sums are not for {parallel} answers at once and {cells} cells"


def lints(dockerfile: Path) -> Findings:
    """What hadolint says; a warning is as bad as an error."""
    run = subprocess.run([tools() / "bin/hadolint", "--no-color", "--failure-threshold", "style", dockerfile], capture_output=True, text=True)
    if run.returncode:
        yield f"hadolint: {(run.stdout + run.stderr).strip()}"


def schema_errors(document: dict) -> Findings:
    import kubernetes_validate
    if document["kind"] in FOREIGN:
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(map(str, error.path))
            yield f"{document['kind']} {document['metadata']['name']}: not valid in Kubernetes {version}: {where}: {error.message}"


def render(folder: Path) -> list[dict]:
    import yaml
    text = subprocess.run([tools() / "bin/kubectl", "kustomize", folder], check=True, capture_output=True, text=True)
    if text.stderr:
        raise SystemExit(f"check_k8s: {folder.name}: {text.stderr.strip()}")
    return list(yaml.safe_load_all(text.stdout))


def main() -> int:
    venv = tools()
    if "--venv" in sys.argv:
        print(venv)
        return 0
    if Path(sys.prefix) != venv:
        os.execv(venv / "bin/python", [str(venv / "bin/python"), *sys.argv])
    facts, wrong = Facts.read(), []
    readme = (ROOT / "k8s/README.md").read_text()
    for folder in OVERLAYS:
        documents = render(folder)
        found = [*findings(documents, facts), *itertools.chain.from_iterable(map(schema_errors, documents))]
        if (folder / "memory.yaml").exists():
            text = (folder / "memory.yaml").read_text()
            found += [*sums(text), *weighs(text, Overlay(documents), facts)]
        if f"overlays/{folder.name}" not in readme:
            found.append("k8s/README.md does not mention it")
        wrong += [f"{folder.name}: {sentence}" for sentence in found]
    wrong += lints(ROOT / "Dockerfile.arm64")
    for tag in set(re.findall(r"pocket-llm:(\d\S*?|latest)[\s`]", readme)) - {facts.version}:
        wrong.append(f"k8s/README.md names the image pocket-llm:{tag}, not {facts.version}")
    for sentence in wrong:
        print(f"check_k8s: {sentence}", file=sys.stderr)
    if not wrong:
        print(f"check_k8s: {len(OVERLAYS)} overlays agree with the program, the image and Kubernetes {', '.join(VERSIONS)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
