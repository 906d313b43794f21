#!/usr/bin/env python3
"""Apply the manifests in k8s/ to a real Kubernetes control plane, and watch what it makes of them.

etcd, kube-apiserver, kube-scheduler and kube-controller-manager are the real ones (build_control_plane.sh), on 127.0.0.1 and free ports;
kubectl is the one that check_k8s.py pins. The phones are only Node objects: a stand-in for their kubelets says that bound pods run and become
ready after a while, and lets go of deleted ones. So this proves scheduling, rollouts and admission, and says nothing about containers.

Every wait has a deadline (WAIT), the whole run too (WHOLE); the processes that were started are ended by their pids.
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Callable, Iterator

import check_k8s

ROOT = Path(__file__).resolve().parent.parent
K8S = ROOT / "k8s"
WAIT = 120
WHOLE = 1200
SELECTOR = ",".join(f"{name}={value}" for name, value in check_k8s.SELECTOR.items())
STRATEGIC = "application/strategic-merge-patch+json"
PHONES = {"phone-a": "10.0.0.1", "phone-b": "10.0.0.2", "phone-c": "10.0.0.3", "laptop": "10.0.0.9"}
# How often the stand-in looks, and how many looks a pod takes to become ready: time enough to catch a rollout that does not wait.
TICK, READY_AFTER = 0.2, 5
# Seconds between a phone's signs of life, and without one until it counts as out of reach (40 by default).
BEAT, GRACE = 4, 20

# The chat of k3s-on-phone-demo as far as the scheduler sees it: on the node's network, with port 8005 declared and not used.
CHAT = {
    "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "chat"},
    "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "chat"}}, "template": {"metadata": {"labels": {"app": "chat"}}, "spec": {
        "hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet", "nodeSelector": {"llm": "true"},
        "containers": [{"name": "chat", "image": "chat:1", "ports": [{"containerPort": 8080}, {"containerPort": 8005}]}]}}}}
# Only so that PodMonitors can be applied; what is in them it does not check.
MONITORS = {
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "podmonitors.monitoring.coreos.com"},
    "spec": {"group": "monitoring.coreos.com", "scope": "Namespaced", "names": {"kind": "PodMonitor", "plural": "podmonitors"},
             "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
                 "type": "object", "x-kubernetes-preserve-unknown-fields": True}}}]}}


class Failed(Exception):
    """Something that the manifests promise did not happen."""


def eventually(what: str, condition: Callable[[], object]):
    """Waits until `condition` holds, and gives what it returned."""
    deadline = time.monotonic() + WAIT
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failed(f"not within {WAIT} s: {what}")
        time.sleep(0.1)


def expect(what: str, holds: object) -> None:
    if not holds:
        raise Failed(what)


def say(sentence: str) -> None:
    print(f"k8s_control_plane: {sentence}", flush=True)


class ControlPlane:
    """The four processes, and ways to talk to them."""

    def __init__(self, programs: Path, folder: Path, kubectl: Path):
        self.programs, self.folder, self.kubectl_path = programs, folder, kubectl
        self.processes: list[subprocess.Popen] = []
        self.token = os.urandom(16).hex()

    def up(self) -> None:
        """Starts everything, and returns when it answers."""
        folder = self.folder
        client, peer, port, controllers, scheduler = free_ports(5)
        self.url = f"https://127.0.0.1:{port}"
        self.files()
        self.start("etcd", f"--data-dir={folder}/etcd", f"--listen-client-urls=http://127.0.0.1:{client}",
                   f"--advertise-client-urls=http://127.0.0.1:{client}", f"--listen-peer-urls=http://127.0.0.1:{peer}",
                   f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}", f"--initial-cluster=default=http://127.0.0.1:{peer}")
        self.start("kube-apiserver", f"--etcd-servers=http://127.0.0.1:{client}", "--bind-address=127.0.0.1", f"--secure-port={port}",
                   f"--cert-dir={folder}/certificates", f"--token-auth-file={folder}/tokens.csv", "--authorization-mode=RBAC",
                   "--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.43.0.0/24", "--service-account-issuer=https://kubernetes.default.svc",
                   f"--service-account-key-file={folder}/accounts.key", f"--service-account-signing-key-file={folder}/accounts.key")
        certificate = folder / "certificates/apiserver.crt"
        eventually("kube-apiserver writes its certificate", lambda: self.alive() and certificate.exists() and certificate.read_text())
        self.tls = ssl.create_default_context(cafile=str(certificate))
        self.kubeconfig(certificate)
        eventually("kube-apiserver is ready", lambda: self.alive() and self.ready())
        shared = (f"--kubeconfig={folder}/kubeconfig", "--bind-address=127.0.0.1", "--leader-elect=false", *self.no_plain_port())
        self.start("kube-controller-manager", *shared, f"--secure-port={controllers}", f"--node-monitor-grace-period={GRACE}s",
                   f"--service-account-private-key-file={folder}/accounts.key", f"--root-ca-file={certificate}", f"--cert-dir={folder}/controllers")
        self.start("kube-scheduler", *shared, f"--secure-port={scheduler}", f"--cert-dir={folder}/scheduler")

    def files(self) -> None:
        (self.folder / "tokens.csv").write_text(f"{self.token},prover,prover,system:masters\n")
        subprocess.run(["openssl", "genrsa", "-out", self.folder / "accounts.key", "2048"], check=True, capture_output=True)

    def kubeconfig(self, certificate: Path) -> None:
        cluster = {"server": self.url, "certificate-authority-data": base64.b64encode(certificate.read_bytes()).decode()}
        (self.folder / "kubeconfig").write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": cluster}], "users": [{"name": "here", "user": {"token": self.token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here", "namespace": "default"}}]}))

    def no_plain_port(self) -> list[str]:
        """Old versions listen without TLS too, on every address, unless told otherwise; new ones no longer know the flag."""
        text = subprocess.run([self.programs / "kube-scheduler", "--help"], capture_output=True, text=True).stdout
        return ["--port=0"] if " --port int" in text else []

    def start(self, program: str, *arguments: str) -> None:
        log = open(self.folder / f"{program}.log", "w")
        # A group of its own: an interrupt from the terminal reaches us, and we end them in order.
        self.processes.append(subprocess.Popen([self.programs / program, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                               start_new_session=True, env={"PATH": os.environ["PATH"], "HOME": str(self.folder)}))

    def alive(self) -> bool:
        for process in self.processes:
            if process.poll() is not None:
                program = Path(process.args[0]).name
                tail = (self.folder / f"{program}.log").read_text().splitlines()[-5:]
                raise Failed(f"{program} ended with status {process.returncode}:\n  " + "\n  ".join(tail))
        return True

    def stop(self) -> None:
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in reversed(self.processes):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def ready(self) -> bool:
        try:
            return self.call("GET", "/readyz", raw=True) == b"ok"
        except OSError:
            return False

    def call(self, method: str, path: str, body: object = None, kind: str = "application/json", raw: bool = False):
        request = urllib.request.Request(self.url + path, method=method, data=None if body is None else json.dumps(body).encode(),
                                         headers={"Authorization": f"Bearer {self.token}", "Content-Type": kind})
        with urllib.request.urlopen(request, context=self.tls, timeout=30) as answer:
            content = answer.read()
        return content if raw else json.loads(content)

    def kubectl(self, *arguments: str, body: object = None, warning: str = "") -> str:
        """Runs kubectl; a warning is as bad as an error, unless it is the one that is known."""
        run = subprocess.run([self.kubectl_path, f"--kubeconfig={self.folder}/kubeconfig", f"--cache-dir={self.folder}/kubectl",
                              "--request-timeout=30s", *arguments], input=None if body is None else json.dumps(body),
                             capture_output=True, text=True, timeout=2 * WAIT)
        told = run.stderr.strip()
        expect(f"kubectl {' '.join(arguments)}: {told}", run.returncode == 0 and (warning in told if warning else not told))
        return run.stdout

    def pods(self, selector: str = SELECTOR) -> list[dict]:
        return self.call("GET", f"/api/v1/namespaces/default/pods?labelSelector={urllib.parse.quote(selector)}")["items"]

    def daemonset(self) -> dict:
        return self.call("GET", "/apis/apps/v1/namespaces/default/daemonsets/pocket-llm")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Kubelets(threading.Thread):
    """Says what the kubelets of the phones would: that the phone lives, that bound pods run, are ready after a while, and are gone after
    their deletion. Phones in `absent` say nothing."""

    def __init__(self, plane: ControlPlane):
        super().__init__(daemon=True)
        self.plane, self.ages, self.ending = plane, {}, threading.Event()
        self.absent: set[str] = set()
        self.beaten = -BEAT
        self.error: Exception | None = None

    def run(self) -> None:
        while not self.ending.wait(TICK):
            try:
                if time.monotonic() >= self.beaten + BEAT:
                    self.beat()
                for pod in self.plane.call("GET", "/api/v1/pods")["items"]:
                    if pod["spec"].get("nodeName") in PHONES.keys() - self.absent:
                        self.tend(pod)
            except urllib.error.HTTPError as error:
                if error.code not in (404, 409):  # a pod that changed or went meanwhile
                    self.error = error
            except OSError as error:
                self.error = error

    def beat(self) -> None:
        self.beaten = time.monotonic()
        alive = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        for name in PHONES.keys() - self.absent:
            self.plane.call("PATCH", f"/api/v1/nodes/{name}/status", {"status": {"conditions": [alive]}}, STRATEGIC)

    def tend(self, pod: dict) -> None:
        meta, path = pod["metadata"], f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        if "deletionTimestamp" in meta:
            self.plane.call("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}})
            return
        age = self.ages[meta["uid"]] = self.ages.get(meta["uid"], 0) + 1
        if age not in (1, READY_AFTER):
            return
        ready = "True" if age == READY_AFTER else "False"
        conditions = [{"type": kind, "status": ready, "lastTransitionTime": meta["creationTimestamp"]}
                      for kind in ("Initialized", "ContainersReady", "Ready")]
        address = PHONES[pod["spec"]["nodeName"]]
        self.plane.call("PATCH", path + "/status", {"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                        "hostIP": address, "conditions": conditions}}, STRATEGIC)


class Rollout(threading.Thread):
    """Records every change of our pods, in the API server's order, and counts how many phones were without a ready one."""

    def __init__(self, plane: ControlPlane, phones: int):
        super().__init__(daemon=True)
        listed = plane.call("GET", "/api/v1/namespaces/default/pods")
        self.ready = {pod["metadata"]["name"] for pod in plane.pods() if is_ready(pod)}
        expect(f"all {phones} phones are ready before a rollout", len(self.ready) == phones)
        self.phones, self.worst, self.changes = phones, 0, 0
        path = f"/api/v1/namespaces/default/pods?watch=1&timeoutSeconds={2 * WAIT}&resourceVersion={listed['metadata']['resourceVersion']}"
        request = urllib.request.Request(plane.url + path, headers={"Authorization": f"Bearer {plane.token}"})
        self.stream = urllib.request.urlopen(request, context=plane.tls, timeout=2 * WAIT)
        self.start()

    def run(self) -> None:
        for line in self.stream:
            event = json.loads(line)
            pod = event["object"]
            if not check_k8s.within(check_k8s.SELECTOR, pod["metadata"].get("labels", {})):
                continue
            self.changes += 1
            if event["type"] != "DELETED" and is_ready(pod):
                self.ready.add(pod["metadata"]["name"])
            else:
                self.ready.discard(pod["metadata"]["name"])
            self.worst = max(self.worst, self.phones - len(self.ready))


def is_ready(pod: dict) -> bool:
    """A pod that is being deleted is not, whatever it says."""
    conditions = {condition["type"]: condition["status"] for condition in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def nodes_of(pods: list[dict]) -> list[str]:
    return sorted(pod["spec"].get("nodeName", "") for pod in pods)


def settled(plane: ControlPlane, nodes: list[str]) -> Callable[[], object]:
    def condition():
        pods, state = plane.pods(), plane.daemonset()
        status = state["status"]
        return (nodes_of(pods) == nodes and all(map(is_ready, pods)) and status.get("observedGeneration") == state["metadata"]["generation"]
                and status.get("updatedNumberScheduled", 0) == status["desiredNumberScheduled"] == len(nodes) and pods) or (not nodes and not pods)
    return condition


def make_phones(plane: ControlPlane) -> None:
    for name, address in PHONES.items():
        plane.call("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}})
        room = {"cpu": "8", "memory": "6Gi", "pods": "110", "ephemeral-storage": "64Gi"}
        plane.call("PATCH", f"/api/v1/nodes/{name}/status", {"status": {
            "capacity": room, "allocatable": room, "addresses": [{"type": "InternalIP", "address": address}]}}, STRATEGIC)


def every_overlay_is_admitted(plane: ControlPlane, _: Kubelets) -> None:
    plane.kubectl("apply", "-f", "-", body=MONITORS)
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/podmonitors.monitoring.coreos.com")
    for folder in check_k8s.OVERLAYS:
        lines = plane.kubectl("apply", "--dry-run=server", "-k", str(folder)).splitlines()
        expect(f"{folder.name}: {lines}", len(lines) >= 6 and all("(server dry run)" in line for line in lines))
    say(f"{len(check_k8s.OVERLAYS)} overlays: admitted by the API server, no warning")


def labels_decide(plane: ControlPlane, _: Kubelets) -> None:
    plane.kubectl("apply", "-k", str(K8S / "overlays/phone"))
    eventually("the DaemonSet is seen", lambda: plane.daemonset()["status"].get("observedGeneration"))
    expect("without a label nothing runs", not plane.pods() and plane.daemonset()["status"]["desiredNumberScheduled"] == 0)
    plane.kubectl("label", "node", "laptop", "llm=false")
    plane.kubectl("label", "node", "phone-b", "llm=true")
    (pod,) = eventually("phone-b alone serves", settled(plane, ["phone-b"]))
    spec = pod["spec"]
    expect(f"priority -1, pushing nobody away: {spec['priority']} {spec['preemptionPolicy']}", (spec["priority"], spec["preemptionPolicy"]) == (-1, "Never"))
    expect("no port is declared, not even by a default", not any(container.get("ports") for container in spec["initContainers"] + spec["containers"]))
    expect("no token is mounted", all("/serviceaccount" not in mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]))
    tolerated = sorted(f"{each['key'].removeprefix('node.kubernetes.io/')}:{each['effect']}" for each in spec["tolerations"])
    expect(f"it tolerates {tolerated}", {"not-ready:NoExecute", "unreachable:NoExecute"} <= set(tolerated)
           and not {"memory-pressure:NoExecute", "disk-pressure:NoExecute"} & set(tolerated))
    say(f"label llm=true on phone-b: one pod there, none elsewhere; the controller's own tolerations: {', '.join(tolerated)}")
    endpoints = eventually("llm leads to phone-b", lambda: plane.call("GET", "/api/v1/namespaces/default/endpoints/llm").get("subsets"))
    reached = [(address["ip"], port["port"]) for subset in endpoints for address in subset.get("addresses", []) for port in subset["ports"]]
    expect(f"llm leads to {reached}", reached == [(PHONES["phone-b"], 8005)])
    say(f"Service llm leads to {reached[0][0]}:{reached[0][1]}, the node's own address")


def lives_beside_the_chat(plane: ControlPlane, _: Kubelets) -> None:
    plane.kubectl("apply", "-f", "-", body=CHAT)
    eventually("the chat runs on phone-b", lambda: [pod for pod in plane.pods("app=chat") if is_ready(pod) and pod["spec"]["nodeName"] == "phone-b"])
    # The other order: the chat is there before us.
    plane.kubectl("scale", "deployment", "chat", "--replicas=2")
    plane.kubectl("label", "node", "phone-c", "llm=true")
    eventually("both phones serve", settled(plane, ["phone-b", "phone-c"]))
    eventually("the chat runs on both phones", lambda: nodes_of(filter(is_ready, plane.pods("app=chat"))) == ["phone-b", "phone-c"])
    say("beside the chat's pod, which declares hostPort 8005: scheduled, whoever comes first")
    # The same pod with the port declared, to see that the trap is one.
    (ours, *_) = plane.pods()
    spec = json.loads(json.dumps(plane.daemonset()["spec"]["template"]["spec"]))
    spec["containers"][0]["ports"] = [{"containerPort": 8005}]
    spec["nodeName"], spec["nodeSelector"] = None, {"kubernetes.io/hostname": ours["spec"]["nodeName"]}
    plane.call("POST", "/api/v1/namespaces/default/pods", {"metadata": {"name": "with-port"}, "spec": spec})
    reason = eventually("a pod that declares the port stays Pending", lambda: [
        condition["message"] for condition in plane.call("GET", "/api/v1/namespaces/default/pods/with-port")["status"].get("conditions", [])
        if condition["type"] == "PodScheduled" and condition["status"] == "False"])
    expect(f"it stays Pending for its port: {reason}", "port" in reason[0])
    plane.kubectl("delete", "pod", "with-port", "--grace-period=0")
    say(f"the same pod with the port declared stays Pending: {reason[0]}")


def labels_go(plane: ControlPlane, _: Kubelets) -> None:
    plane.kubectl("label", "node", "phone-c", "llm-")
    eventually("phone-c no longer serves", settled(plane, ["phone-b"]))
    plane.kubectl("label", "node", "phone-b", "llm=false", "--overwrite")
    eventually("nobody serves", settled(plane, []))
    say("label removed, label set to false: the pod goes")
    for name in ("phone-a", "phone-b", "phone-c"):
        plane.kubectl("label", "node", name, "llm=true", "--overwrite")
    eventually("three phones serve", settled(plane, ["phone-a", "phone-b", "phone-c"]))


def configuration(plane: ControlPlane) -> str:
    (server,) = plane.daemonset()["spec"]["template"]["spec"]["containers"]
    return server["envFrom"][0]["configMapRef"]["name"]


def one_phone_at_a_time(plane: ControlPlane, _: Kubelets) -> None:
    phones = ["phone-a", "phone-b", "phone-c"]
    before = {pod["metadata"]["name"] for pod in plane.pods()}
    gemma = configuration(plane)

    def roll(what: str, *arguments: str, warning: str = "") -> None:
        rollout = Rollout(plane, len(phones))
        plane.kubectl(*arguments, warning=warning)
        plane.kubectl("rollout", "status", "daemonset/pocket-llm", f"--timeout={WAIT}s")
        eventually(f"{what} is everywhere", settled(plane, phones))
        eventually("the watch has seen it", lambda: len(rollout.ready) == len(phones))
        expect(f"{what}: {rollout.worst} phones were away at once", rollout.worst == 1)
        say(f"{what}: one phone at a time ({rollout.changes} changes watched)")
    roll("another model (qwen)", "apply", "-k", str(K8S / "overlays/qwen"))
    expect("every pod is another", not before & {pod["metadata"]["name"] for pod in plane.pods()})
    qwen = configuration(plane)
    expect("another model is another ConfigMap", qwen != gemma)
    roll("kubectl rollout undo", "rollout", "undo", "daemonset/pocket-llm", warning="previously managed with 'kubectl apply'")
    expect("undo brings the old configuration back", configuration(plane) == gemma)
    model = plane.call("GET", f"/api/v1/namespaces/default/configmaps/{gemma}")["data"]["POCKET_LLM_MODEL"]
    expect(f"the old configuration is still there: {model}", model == "gemma-3-1b")
    for name in ("secure", "pod-network", "monitoring", "smoke"):
        roll(f"overlay {name} over another", "apply", "-k", str(K8S / "overlays" / name))


def absent_phones_keep_their_pods(plane: ControlPlane, kubelets: Kubelets) -> None:
    """Whether an absent phone also holds up an update depends on the version of the controller: some do not count it."""
    def on(node: str) -> dict:
        (pod,) = [pod for pod in plane.pods() if pod["spec"]["nodeName"] == node]
        return pod

    def reached() -> set[str]:
        subsets = plane.call("GET", "/api/v1/namespaces/default/endpoints/llm").get("subsets", [])
        return {address["ip"] for subset in subsets for address in subset.get("addresses", [])}
    before = {node: on(node)["metadata"]["uid"] for node in ("phone-a", "phone-b", "phone-c")}
    kubelets.absent.add("phone-c")
    eventually("phone-c leaves the Service", lambda: reached() == {PHONES["phone-a"], PHONES["phone-b"]})
    expect("its pod stays bound to it", on("phone-c")["metadata"]["uid"] == before["phone-c"] and "deletionTimestamp" not in on("phone-c")["metadata"])
    say("a phone out of reach: keeps its pod, leaves the Service")
    rollout = Rollout(plane, 2)
    plane.kubectl("apply", "-k", str(K8S / "overlays/phone"))
    plane.kubectl("label", "node", "phone-c", "llm-")
    eventually("the others are updated", lambda: all(
        is_ready(on(node)) and on(node)["metadata"]["uid"] != before[node] for node in ("phone-a", "phone-b")))
    eventually("the watch has seen it", lambda: len(rollout.ready) == 2)
    expect(f"an update with its label taken off: {rollout.worst} phones were away at once", rollout.worst == 1)
    say("its label taken off: the others are updated, one at a time")
    kubelets.absent.clear()
    eventually("its old pod is gone when it is back", settled(plane, ["phone-a", "phone-b"]))


def taints_decide(plane: ControlPlane, _: Kubelets) -> None:
    # Reserved for the model, or with the control plane: the label counts. Any other taint does too.
    plane.kubectl("taint", "node", "phone-c", "llm=true:NoSchedule", "node-role.kubernetes.io/control-plane:NoSchedule")
    plane.kubectl("label", "node", "phone-c", "llm=true")
    eventually("a phone reserved for the model serves", settled(plane, ["phone-a", "phone-b", "phone-c"]))
    plane.kubectl("taint", "node", "laptop", "other=true:NoSchedule")
    plane.kubectl("label", "node", "laptop", "llm=true", "--overwrite")
    # The controller sees changes of nodes in their order: when the next one shows, it has looked at this one.
    plane.kubectl("label", "node", "phone-c", "llm-")
    eventually("a taint of another kind keeps the pod away", settled(plane, ["phone-a", "phone-b"]))
    plane.kubectl("taint", "node", "laptop", "other-")
    eventually("and no longer when it is gone", settled(plane, ["laptop", "phone-a", "phone-b"]))
    plane.kubectl("label", "node", "laptop", "llm-")
    say("taints: one that reserves a phone for the model, and the control plane's, are tolerated; another is not")


def leaves_nothing(plane: ControlPlane, _: Kubelets) -> None:
    plane.kubectl("delete", "-k", str(K8S / "overlays/phone"))
    eventually("all pods are gone", lambda: not plane.pods())
    say("delete: gone")


STEPS = [every_overlay_is_admitted, labels_decide, lives_beside_the_chat, labels_go, one_phone_at_a_time, absent_phones_keep_their_pods,
         taints_decide, leaves_nothing]


def prove(plane: ControlPlane) -> None:
    version = plane.call("GET", "/version")["gitVersion"]
    say(f"Kubernetes {version} is up on {plane.url}")
    eventually("the default service account is there", lambda: "default" in plane.kubectl("get", "serviceaccounts", "-o", "name"))
    make_phones(plane)
    kubelets = Kubelets(plane)
    kubelets.start()
    try:
        for step in STEPS:
            step(plane, kubelets)
            plane.alive()
            expect(f"the stand-in for the kubelets: {kubelets.error}", kubelets.error is None)
    finally:
        kubelets.ending.set()
        kubelets.join(timeout=60)


@contextlib.contextmanager
def control_plane() -> Iterator[ControlPlane]:
    """Gives the running control plane, and leaves nothing of it; a failed one leaves its logs."""
    built = subprocess.run([ROOT / "tools/build_control_plane.sh"], check=True, stdout=subprocess.PIPE, text=True)
    kubectl = check_k8s.tools() / "bin/kubectl"
    folder = Path(tempfile.mkdtemp(prefix="k8s-prove-"))
    plane = ControlPlane(Path(built.stdout.strip()), folder, kubectl)

    def overdue(*_: object) -> None:
        raise Failed(f"not done within {WHOLE} s")
    signal.signal(signal.SIGALRM, overdue)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.alarm(WHOLE)
    try:
        plane.up()
        yield plane
    except (Failed, OSError, subprocess.TimeoutExpired):
        logs = folder.with_name(folder.name + "-logs")
        logs.mkdir()
        for log in folder.glob("*.log"):
            shutil.copy(log, logs)
        print(f"k8s_control_plane: logs are in {logs}", file=sys.stderr)
        raise
    finally:
        signal.alarm(0)
        plane.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    began = time.monotonic()
    try:
        with control_plane() as plane:
            prove(plane)
    except Failed as failed:
        print(f"k8s_control_plane: FAILED: {failed}", file=sys.stderr)
        return 1
    say(f"everything holds ({time.monotonic() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
