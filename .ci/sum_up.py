"""
Say what became of all tests, given the folder with a JUnit report of each environment.

First each test that failed, with the end of what it said; then a line for each report, and last the sum.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

SAID_MAX = 3_000


def main(folder: Path) -> None:
    passed_in_all = failed_in_all = 0
    for report in sorted(folder.glob("*.xml")):
        passed = failed = skipped = 0
        for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - written by our own tests
            troubles = [*case.findall("failure"), *case.findall("error")]
            for trouble in troubles:
                print(f"--- {report.stem}: {case.get('classname')}::{case.get('name')}")
                print((trouble.text or trouble.get("message") or "")[-SAID_MAX:])
            failed += len(troubles)
            skipped += len(case.findall("skipped"))
            passed += not troubles and case.find("skipped") is None
        print(f"{report.stem}: {passed} passed, {failed} failed, {skipped} skipped")
        passed_in_all += passed
        failed_in_all += failed
    print(f"{passed_in_all} passed, {failed_in_all} failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
