"""
Write the list of parts of the image into it: ``write_sbom.py ROOTFS ARCHIVES WHEELS LOCK``.

The document is CycloneDX 1.6 JSON (https://cyclonedx.org/docs/1.6/json/). It names every Python package and every Debian
package of which the image has a file, with version, licence (Python), dependencies, and the SHA-256 of the file that was
downloaded; and what wheels contain of others. The same packages give the same document.

ROOTFS: the root of the image, with an environment in ``/opt/fulfilment``. ARCHIVES: the output of ``apt-cache show``.
WHEELS: the folder of the installed wheels. LOCK: the file with the hashes of the downloads. Runs with the tools of
requirements/build.txt.
"""

from __future__ import annotations

__all__ = ["DOCUMENT", "debian_components", "list_of_parts"]

import hashlib
import json
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

DOCUMENT = "usr/share/sbom/fulfilment.cdx.json"
"""Where the document is in the image. Scanners look for the ending ``.cdx.json``."""

_APPLICATION = "fulfilment"
_INTERPRETER = "python3.11-minimal"


def paragraphs(text: str) -> Iterator[dict[str, str]]:
    """Yield the paragraphs of a Debian control file (deb822) as fields; a continued field has the first line only."""
    for paragraph in re.split(r"\n\n+", text.strip()):
        yield dict(re.findall(r"(?m)^([A-Za-z0-9-]+): *(.*)$", paragraph))


def debian_components(status: str, archives: str, distribution: str) -> Iterator[tuple[dict[str, Any], set[str]]]:
    """Yield the component of each package in dpkg's *status*, and the names of the packages that it depends on."""
    hashes = {(each["Package"], each["Version"]): each["SHA256"] for each in paragraphs(archives) if "SHA256" in each}
    for fields in paragraphs(status):
        name, version = fields["Package"], fields["Version"]
        source, _, source_version = fields.get("Source", name).partition(" ")
        purl = (
            f"pkg:deb/debian/{quote(name)}@{quote(version)}"
            f"?arch={fields['Architecture']}&distro={distribution}&upstream={quote(source + source_version.translate(_AS_UPSTREAM))}"
        )
        component: dict[str, Any] = {
            "bom-ref": purl,
            "type": "library",
            "name": name,
            "version": version,
            "purl": purl,
            "supplier": {"name": re.sub(r" *<.*", "", fields["Maintainer"])},
            "description": fields["Description"],
        }
        if (digest := hashes.get((name, version))) is not None:
            component["hashes"] = [{"alg": "SHA-256", "content": digest}]
        needs = f"{fields.get('Depends', '')},{fields.get('Pre-Depends', '')}"
        yield component, set(re.findall(r"(?:^|[,|]) *([a-z0-9][a-z0-9+.-]+)", needs))


_AS_UPSTREAM = str.maketrans({"(": "@", ")": None})


def list_of_parts(
    python: dict[str, Any],
    debian: Iterable[tuple[dict[str, Any], set[str]]],
    wheels: Mapping[str, str],
    bundled: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """
    Return one document of the Python packages that cyclonedx-py found and of Debian's.

    *wheels* has the SHA-256 of each download by the package's name, *bundled* what a wheel contains of others. The application
    is the root; it depends on its dependencies and on the interpreter.
    """
    for component in python["components"]:
        name = normalised(component["name"])
        component["hashes"] = [{"alg": "SHA-256", "content": wheels[name]}]
        if name in bundled:
            component["components"] = bundled[name]
    application = next(each for each in python["components"] if each["name"] == _APPLICATION)
    python["components"].remove(application)
    python["metadata"]["component"] = application | {"type": "application"}
    packages = {component["name"]: (component, names) for component, names in debian}
    references = {name: component["bom-ref"] for name, (component, _) in packages.items()}
    for component, names in packages.values():
        python["components"].append(component)
        needed = sorted(references[name] for name in names & references.keys())
        python["dependencies"].append({"ref": component["bom-ref"]} | ({"dependsOn": needed} if needed else {}))
    for node in python["dependencies"]:
        if node["ref"] == application["bom-ref"]:
            node["dependsOn"] = [*node.get("dependsOn", ()), references[_INTERPRETER]]
    content = json.dumps(python, sort_keys=True)
    return python | {"serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}"}


def normalised(name: str) -> str:
    """Return the name of a Python package as an index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def downloads(wheels: Path, lock: str) -> Iterator[tuple[str, str]]:
    """Yield name and SHA-256 of each wheel in a folder; of one that was built here, the hash of its source in the *lock*."""
    entries = re.findall(r"(?ms)^([a-z0-9-]+)==(.*?)(?=^[a-z#]|\Z)", lock)
    locked = {name: re.findall("--hash=sha256:([0-9a-f]+)", entry) for name, entry in entries}
    for wheel in wheels.glob("*.whl"):
        name = normalised(wheel.name.partition("-")[0])
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest not in (hashes := locked.get(name, [digest])):
            (digest,) = hashes
        yield name, digest


def bundled_parts(packages: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """
    Yield the name of each package whose wheel has a list of its own parts (PEP 770), and those parts: crates, libraries.

    The lists are removed from *packages*: our document has their content in a sixth of the bytes.
    """
    for folder in sorted(packages.glob("*.dist-info/sboms")):
        name = normalised(folder.parent.name.partition("-")[0])
        parts = {}
        for file in sorted(folder.glob("*.json")):
            for each in json.loads(file.read_text(encoding="utf-8"))["components"]:
                if normalised(each["name"]) != name:
                    part = {key: each[key] for key in ("type", "name", "version", "purl") if key in each}
                    parts[f"{each['name']}@{each.get('version')}"] = part
        yield name, [part | {"bom-ref": f"{name}#{reference}"} for reference, part in parts.items()]
        shutil.rmtree(folder)


def main(rootfs: Path, archives: Path, wheels: Path, lock: Path) -> None:
    interpreter = rootfs / "opt/fulfilment/bin/python"
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--spec-version", "1.6", "--output-reproducible"]
    listed = subprocess.run([*command, interpreter], stdout=subprocess.PIPE, check=True).stdout  # noqa: S603 - our own arguments
    release = dict(re.findall(r'(?m)^(\w+)="?([^"\n]*)', (rootfs / "etc/os-release").read_text(encoding="utf-8")))
    status = (rootfs / "var/lib/dpkg/status").read_text(encoding="utf-8")
    debian = debian_components(status, archives.read_text(encoding="utf-8"), f"{release['ID']}-{release['VERSION_ID']}")
    (packages,) = rootfs.glob("opt/fulfilment/lib/python3*/site-packages")
    hashes = dict(downloads(wheels, lock.read_text(encoding="utf-8")))
    parts = list_of_parts(json.loads(listed), debian, hashes, dict(bundled_parts(packages)))
    # Scanners take the distribution, whose advisories they read, from here.
    system = {"bom-ref": "distribution", "type": "operating-system", "name": release["ID"], "version": release["VERSION_ID"]}
    parts["components"].append(system)
    document = json.dumps(parts, indent=1, sort_keys=True) + "\n"
    if (error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(document)) is not None:
        sys.exit(f"the list of parts is not valid CycloneDX: {error}")
    target = rootfs / DOCUMENT
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
