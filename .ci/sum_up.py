"""
Print the results of all tests, from a folder with one JUnit report per environment.

First each failed test with the end of its output, then one line per report, finally the sum.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

OUTPUT_MAX = 3_000


def main(folder: Path) -> None:
    passed_in_all = failed_in_all = 0
    for report in sorted(folder.glob("*.xml")):
        passed = failed = skipped = 0
        for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - written by our own tests
            problems = [*case.findall("failure"), *case.findall("error")]
            for problem in problems:
                print(f"--- {report.stem}: {case.get('classname')}::{case.get('name')}")
                print((problem.text or problem.get("message") or "")[-OUTPUT_MAX:])
            failed += len(problems)
            skipped += len(case.findall("skipped"))
            passed += not problems and case.find("skipped") is None
        print(f"{report.stem}: {passed} passed, {failed} failed, {skipped} skipped")
        passed_in_all += passed
        failed_in_all += failed
    print(f"{passed_in_all} passed, {failed_in_all} failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
