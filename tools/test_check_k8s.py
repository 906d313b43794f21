"""Each rule of check_k8s.py notices what it is for: a manifest is spoilt in one place, and that is found."""

import copy
import dataclasses
import tempfile
import unittest
from pathlib import Path

import check_k8s
from check_k8s import Facts, Overlay, findings, lints, render, schema_errors, sums, weighs

FOLDER = check_k8s.ROOT / "k8s/overlays"


def server(documents: list[dict]) -> dict:
    return Overlay(documents).server


def variable(name: str):
    return lambda documents: next(v for v in server(documents)["env"] if v["name"] == name)


def token(documents: list[dict]) -> dict:
    (pull,) = (container for container in pod(documents)["initContainers"] if container["name"] == "pull")
    return next(v for v in pull["env"] if v["name"] == "HF_TOKEN")["valueFrom"]["secretKeyRef"]


def pod(documents: list[dict]) -> dict:
    return Overlay(documents).pod


def kind(name: str):
    return lambda documents: Overlay(documents).all(name)[0]


# Where, the key there, what it becomes (None: nothing), and a piece of the sentence that must come.
SPOILT = [
    (pod, "nodeSelector", {"llm": True}, "node selector"),
    (lambda d: Overlay(d).spec["selector"]["matchLabels"], "more", "labels", "selector has changed"),
    (lambda d: Overlay(d).template["metadata"]["labels"], "app.kubernetes.io/component", "other", "lack labels"),
    (lambda d: Overlay(d).template["metadata"]["labels"], "app.kubernetes.io/version", "0.0.9", "label of the version"),
    (lambda d: kind("Service")(d)["spec"]["selector"], "app.kubernetes.io/name", "other", "other pods"),
    (lambda d: kind("Service")(d)["metadata"], "name", "pocket-llm", "no Service named llm"),
    (lambda d: kind("Service")(d)["spec"]["ports"][0], "targetPort", "http", "ports are"),
    (pod, "serviceAccountName", "nobody", "no ServiceAccount nobody"),
    (pod, "priorityClassName", "nothing", "no PriorityClass nothing"),
    (lambda d: kind("ConfigMap")(d)["metadata"], "name", "renamed", "no ConfigMap pocket-llm-"),
    (lambda d: pod(d)["volumes"][0], "name", "shop", "volume"),
    (lambda d: kind("ConfigMap")(d)["data"], "POCKET_LLM_MODLE", "typo", "does not read POCKET_LLM_MODLE"),
    (lambda d: kind("ConfigMap")(d)["data"], "POCKET_LLM_MODEL", None, "no model"),
    (lambda d: kind("ConfigMap")(d)["data"], "POCKET_LLM_ALIAS", "GEMMA_3_1B_IT", "two model names"),
    (lambda d: kind("ConfigMap")(d)["data"], "POCKET_LLM_API_KEY", "hush", "written into the manifest"),
    (lambda d: kind("ConfigMap")(d)["data"], "POCKET_LLM_GRACE", "60", "not enough"),
    (lambda d: kind("ConfigMap")(d)["data"], "POCKET_LLM_HOST", "0.0.0.0", "set twice"),
    (token, "optional", False, "which is none of"),
    (variable("POD_IP"), "name", "HF_TOKEN", "only the download"),
    (variable("POD_IP"), "name", "POD_NAME", "not defined above"),
    (variable("POCKET_LLM_HOST"), "value", "0.0.0.0", "listens on"),
    (server, "args", ["server"], "no command server"),
    (server, "args", ["serve", "$(MODEL)"], "refers to MODEL"),
    (server, "image", "pocket-llm:latest", "the image is"),
    (server, "ports", [{"containerPort": 8005}], "a port is declared"),
    (pod, "dnsPolicy", "ClusterFirst", "names of the cluster"),
    (pod, "enableServiceLinks", True, "POCKET_LLM_PORT"),
    (lambda d: server(d)["readinessProbe"]["httpGet"], "path", "/ready", "nothing answers"),
    (lambda d: server(d)["livenessProbe"]["httpGet"], "port", "http", "nothing answers"),
    (lambda d: server(d)["livenessProbe"]["httpGet"], "path", "/readyz", "would be killed"),
    (lambda d: server(d)["startupProbe"], "failureThreshold", 3, "gives up"),
    (lambda d: server(d)["resources"]["requests"], "memory", "4096Mi", "memory is requested"),
    (lambda d: server(d)["resources"]["limits"], "cpu", "2", "CPU is limited"),
    (pod, "terminationGracePeriodSeconds", 30, "not enough"),
    (lambda d: Overlay(d).spec["updateStrategy"]["rollingUpdate"], "maxUnavailable", 2, "one phone at a time"),
    (pod, "tolerations", [{"operator": "Exists"}], "taint"),
    (pod, "tolerations", None, "taint"),
    (lambda d: pod(d)["securityContext"], "runAsNonRoot", False, "as root"),
    (pod, "automountServiceAccountToken", True, "token"),
    (lambda d: server(d)["securityContext"], "readOnlyRootFilesystem", False, "writable"),
    (lambda d: server(d)["securityContext"]["capabilities"], "add", ["CHOWN"], "capabilities"),
    (lambda d: server(d)["securityContext"], "runAsUser", 0, "runs as root"),
    (lambda d: pod(d)["securityContext"], "runAsUser", 10001, "files are for"),
    (lambda d: pod(d)["initContainers"][0], "args", ["prepare-store", "--owner", "0:0", "/var/lib/pocket-llm"], "gives the store to"),
    (lambda d: pod(d)["initContainers"][0], "args", ["prepare-store", "--owner", "65532:65532", "/models"], "the store is"),
    (lambda d: server(d)["volumeMounts"][0], "mountPath", "/models", "the store is"),
    (variable("POCKET_LLM_MODELS"), "value", "/models", "the store is"),
    (server, "command", ["/bin/sh"], "entry point"),
]
# What the image says instead, and a piece of the sentence that must come.
SPOILT_IMAGE = [
    ("entrypoint", ["/bin/sh"], "the image starts"), ("signal", "SIGKILL", "stopped by"), ("user", (1000, 1000), "files are for"),
    ("volumes", ["/models"], "not its volume"), ("store", "/models", "the store is"), ("tags", {"latest"}, "names the tags"),
]


class Rules(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.facts = Facts.read()
        cls.phone = render(FOLDER / "phone")
        cls.monitoring = render(FOLDER / "monitoring")
        cls.pod_network = render(FOLDER / "pod-network")

    def found(self, documents: list[dict]) -> str:
        return "\n".join(findings(documents, self.facts))

    def spoil(self, documents: list[dict], where, key: str, value) -> str:
        documents = copy.deepcopy(documents)
        part = where(documents)
        if value is None:
            del part[key]
        else:
            part[key] = value
        return self.found(documents)

    def test_nothing_is_found_in_what_is_good(self):
        self.assertEqual(self.found(self.phone), "")

    def test_each_rule_notices(self):
        for where, key, value, sentence in SPOILT:
            with self.subTest(key=key, value=value):
                self.assertIn(sentence, self.spoil(self.phone, where, key, value))

    def test_what_only_some_overlays_have(self):
        network = kind("NetworkPolicy")
        self.assertIn("selects other pods", self.spoil(
            self.pod_network, lambda d: network(d)["spec"]["podSelector"]["matchLabels"], "app.kubernetes.io/name", "other"))
        self.assertIn("NetworkPolicy does nothing", self.spoil(self.pod_network, pod, "hostNetwork", True))
        monitor, first = kind("PodMonitor"), lambda d: monitor(d)["spec"]["podMetricsEndpoints"][0]
        self.assertEqual(self.found(self.monitoring), "")
        self.assertIn("selects other pods", self.spoil(
            self.monitoring, lambda d: monitor(d)["spec"]["selector"]["matchLabels"], "app.kubernetes.io/name", "other"))
        for key, value, sentence in (("portNumber", 8005, "finds nothing"), ("path", "/metric", "nothing answers"),
                                     ("relabelings", [], "leads to ['10.0.0.2', ")):
            self.assertIn(sentence, self.spoil(self.monitoring, first, key, value))
        self.assertIn("leads to ['10.0.0.2:8006']", self.spoil(
            self.monitoring, lambda d: first(d)["relabelings"][1], "replacement", "$1:8006"))
        board = next(d["metadata"]["name"] for d in self.monitoring if "dashboard" in d["metadata"]["name"])
        self.assertIn("no metric pocket_llm_speed", self.spoil(
            self.monitoring, lambda d: next(m for m in d if m["metadata"]["name"] == board)["data"], "pocket-llm.json", "pocket_llm_speed"))

    def test_the_schemas_are_strict(self):
        documents = copy.deepcopy(self.phone)
        pod(documents)["hostNetWork"] = True
        self.assertIn("hostNetWork", "\n".join(schema_errors(Overlay(documents).daemonset)))
        pod(documents).pop("hostNetWork")
        pod(documents)["nodeSelector"]["llm"] = True
        self.assertIn("nodeSelector", "\n".join(schema_errors(Overlay(documents).daemonset)))

    def test_sums_are_added_up(self):
        good = Path(FOLDER / "phone/memory.yaml").read_text()
        self.assertEqual(list(sums(good)), [])
        self.assertEqual(len(list(sums(good.replace("769 file +", "768 file +")))), 1)
        self.assertEqual(len(list(sums(good.replace("memory: 1088Mi", "memory: 1024Mi")))), 1)

    def test_sums_are_for_the_model_that_is_served(self):
        good, phone = Path(FOLDER / "phone/memory.yaml").read_text(), Overlay(self.phone)
        self.assertEqual(list(weighs(good, phone, self.facts)), [])
        for old, new in (("806,058,272", "806,058,273"), (" 769 file ", " 700 file "), ("8192 cells", "4096 cells")):
            self.assertEqual(len(list(weighs(good.replace(old, new), phone, self.facts))), 1, old)

    def test_image_and_manifests_agree(self):
        for field, value, sentence in SPOILT_IMAGE:
            with self.subTest(field=field):
                facts = dataclasses.replace(self.facts, image=dataclasses.replace(self.facts.image, **{field: value}))
                self.assertIn(sentence, "\n".join(findings(self.phone, facts)))

    def test_the_dockerfile_is_linted(self):
        good = (check_k8s.ROOT / "Dockerfile.arm64").read_text()
        with tempfile.NamedTemporaryFile("w", suffix=".Dockerfile") as file:
            file.write(good.replace("# hadolint ignore=", "# "))
            file.flush()
            (found,) = lints(Path(file.name))
        self.assertTrue("DL3008" in found and "DL3029" in found, found)


if __name__ == "__main__":
    unittest.main()
