"""Lists what the package for phones is made of, as CycloneDX JSON: `make sbom`.

Crates come from cargo's own resolution for the package's target and features, their digests from Cargo.lock. llama.cpp is no crate:
it lies in the sources of llama-cpp-sys-2, so it is listed with the version of ggml that they name, and with a digest over all its
files. What only runs while building is listed with the scope `excluded`. The same sources give the same list: it has no time and
no random number in it.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tomllib

TARGET = "aarch64-unknown-linux-gnu"
# As tools/arm64-build.sh builds it.
FEATURES = ["--no-default-features", "--features", "dynamic"]
ROOT = pathlib.Path(__file__).resolve().parent.parent


def metadata():
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET, *FEATURES]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def reached(resolve, kinds):
    """Packages that are reached from the program over dependencies of these kinds, and whom each one needs."""
    nodes = {node["id"]: node for node in resolve["nodes"]}
    needs, waiting = {}, collections.deque([resolve["root"]])
    while waiting:
        package = waiting.popleft()
        if package in needs:
            continue
        # What a crate needs to build itself is a build dependency's whole tree; tests' are nobody's.
        needs[package] = [
            dependency["pkg"]
            for dependency in nodes[package]["deps"]
            if any(kind["kind"] in kinds for kind in dependency["dep_kinds"])
        ]
        waiting.extend(needs[package])
    return needs


def digest_of(folder):
    """One digest over the names and the contents of all files."""
    whole = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(str(file.relative_to(folder)).encode() + b"\0")
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def macro(text, name):
    return re.search(rf"{name}\D+(\d+)", text)[1]


def vendored(package):
    """llama.cpp, and what it brings along itself and is linked."""
    folder = pathlib.Path(package["manifest_path"]).parent / "llama.cpp"
    ggml = (folder / "ggml/CMakeLists.txt").read_text()
    version = ".".join(macro(ggml, f"GGML_VERSION_{part}") for part in ("MAJOR", "MINOR", "PATCH"))
    header = (folder / "vendor/nlohmann/json.hpp").read_text()
    json_version = ".".join(macro(header, f"NLOHMANN_JSON_VERSION_{part}") for part in ("MAJOR", "MINOR", "PATCH"))
    origin = f"{package['name']} {package['version']}"
    llama = {
        "type": "library",
        "bom-ref": "vendored:llama.cpp",
        "name": "llama.cpp",
        "version": f"ggml-{version}",
        "description": f"as the sources of {origin} have it; they name no other version",
        "licenses": [{"license": {"id": "MIT"}}],
        "hashes": [{"alg": "SHA-256", "content": digest_of(folder)}],
        "externalReferences": [{"type": "vcs", "url": "https://github.com/ggml-org/llama.cpp"}],
    }
    nlohmann = {
        "type": "library",
        "bom-ref": "vendored:nlohmann-json",
        "name": "nlohmann-json",
        "version": json_version,
        "description": "in llama.cpp's folder `vendor`",
        "licenses": [{"license": {"id": "MIT"}}],
        "purl": f"pkg:github/nlohmann/json@v{json_version}",
    }
    return [llama, nlohmann]


def component(package, checksums, scope):
    name, version = package["name"], package["version"]
    listed = {
        "type": "library",
        "bom-ref": f"pkg:cargo/{name}@{version}",
        "name": name,
        "version": version,
        "scope": scope,
        "purl": f"pkg:cargo/{name}@{version}",
    }
    if package["license"]:
        listed["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if checksum := checksums.get((name, version)):
        listed["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return listed


def bill():
    known = metadata()
    packages = {package["id"]: package for package in known["packages"]}
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(one["name"], one["version"]): one.get("checksum") for one in lock}
    linked, all_needs = reached(known["resolve"], {None}), reached(known["resolve"], {None, "build"})
    ref = {package: f"pkg:cargo/{packages[package]['name']}@{packages[package]['version']}" for package in all_needs}
    root = packages[known["resolve"]["root"]]
    components, dependencies = [], []
    for package in sorted(all_needs, key=ref.get):
        needs = sorted(ref[need] for need in all_needs[package])
        if packages[package]["name"] == "llama-cpp-sys-2":
            components += vendored(packages[package])
            needs.append("vendored:llama.cpp")
        dependencies.append({"ref": ref[package], "dependsOn": needs})
        if package != root["id"]:
            components.append(component(packages[package], checksums, "required" if package in linked else "excluded"))
    dependencies.append({"ref": "vendored:llama.cpp", "dependsOn": ["vendored:nlohmann-json"]})
    program = component(root, {}, "required") | {"type": "application"}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": program, "properties": [{"name": "cargo:target", "value": TARGET}]},
        "components": components,
        "dependencies": dependencies,
    }


def problems(made):
    """What is wrong with a list: empty if nothing is."""
    refs = [one["bom-ref"] for one in made["components"]] + [made["metadata"]["component"]["bom-ref"]]
    wrong = [f"{ref} is there twice" for ref, count in collections.Counter(refs).items() if count > 1]
    for one in made["components"]:
        has = {key for key in ("name", "version", "licenses") if one.get(key)}
        wrong += [f"{one['bom-ref']} has no {key}" for key in ("name", "version", "licenses") if key not in has]
        if one["bom-ref"].startswith("pkg:cargo/") and not re.fullmatch("[0-9a-f]{64}", one.get("hashes", [{}])[0].get("content", "")):
            wrong.append(f"{one['bom-ref']} has no digest in Cargo.lock")
    listed = [entry["ref"] for entry in made["dependencies"]]
    wrong += [f"the needs of {ref} are there twice" for ref, count in collections.Counter(listed).items() if count > 1]
    for entry in made["dependencies"]:
        wrong += [f"{entry['ref']} needs {need}, which is not listed" for need in entry["dependsOn"] if need not in refs]
    for name in ("llama-cpp-sys-2", "llama.cpp", "tokio", "hyper", "minijinja"):
        if not any(one["name"] == name and one.get("scope") != "excluded" for one in made["components"]):
            wrong.append(f"{name} is not listed as a part of the program")
    for name in ("proptest", "tokenizers", "criterion"):
        if any(one["name"] == name for one in made["components"]):
            wrong.append(f"{name} is listed, but no part of the package")
    return wrong


def main():
    parser = argparse.ArgumentParser(description="Lists what the package for phones is made of, as CycloneDX JSON.")
    parser.add_argument("--output", help="the file to write; without it the list is checked only")
    output = parser.parse_args().output
    made = bill()
    if wrong := problems(made):
        sys.exit("sbom: " + "; ".join(wrong))
    linked = sum(one.get("scope") != "excluded" for one in made["components"])
    print(f"sbom: {linked} parts of the program, {len(made['components']) - linked} that only build it")
    if output:
        pathlib.Path(output).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        print(f"sbom: written to {output}")


if __name__ == "__main__":
    main()
