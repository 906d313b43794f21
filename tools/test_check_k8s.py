"""Each rule of check_k8s.py notices what it is for: a manifest is spoilt in one place, and that is found."""

import copy
import unittest
from pathlib import Path

import check_k8s
from check_k8s import Facts, Overlay, findings, render, schema_errors, sums

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
    (lambda d: pod(d)["securityContext"], "runAsNonRoot", False, "as root"),
    (pod, "automountServiceAccountToken", True, "token"),
    (lambda d: server(d)["securityContext"], "readOnlyRootFilesystem", False, "writable"),
    (lambda d: server(d)["securityContext"]["capabilities"], "add", ["CHOWN"], "capabilities"),
    (lambda d: server(d)["securityContext"], "runAsUser", 0, "runs as root"),
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
        monitor = kind("ServiceMonitor")
        self.assertIn("no Service of ours", self.spoil(
            self.monitoring, lambda d: monitor(d)["spec"]["endpoints"][0], "port", "metrics"))
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
        self.assertEqual(len(list(sums(good.replace("769 weights +", "768 weights +")))), 1)
        self.assertEqual(len(list(sums(good.replace("memory: 1280Mi", "memory: 1024Mi")))), 1)


if __name__ == "__main__":
    unittest.main()
