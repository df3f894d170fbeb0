"""Known vulnerabilities of the pinned dependencies, by pip-audit from the OSV database: `make audit`.

Exit code 0: none is known, or the database cannot be reached, and why is said; 1: there are some, and they are listed;
2: the audit itself failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

OSV = "https://api.osv.dev/v1/query"
LOCK = Path(__file__).parents[2] / "requirements.lock"
PATIENCE = 10  # seconds, for one answer
# Known, and without consequence here: {id: why}. Whatever is listed here is printed with its reason.
ACCEPTED: dict[str, str] = {}


def why_unreachable(url: str) -> str | None:
    """Asks for nothing in particular; proxies of the environment are used. None: it answers."""
    question = urllib.request.Request(url, b'{"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "0"}')
    try:
        with urllib.request.urlopen(question, timeout=PATIENCE) as answer:
            json.load(answer)
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:  # no answer in time, or of somebody else
        return f"{type(error).__name__}: {error}"
    return None


def audited(requirements: Path, url: str) -> list[dict[str, Any]] | None:
    """pip-audit's list of the dependencies, each with its vulnerabilities; None where it failed, and said why."""
    words = ["--requirement", str(requirements), "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    words += ["--vulnerability-service", "osv", "--osv-url", url, "--format", "json", "--timeout", str(PATIENCE)]
    words += [word for name in ACCEPTED for word in ("--ignore-vuln", name)]
    done = subprocess.run([sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        print(done.stderr.strip()[-2000:], file=sys.stderr)
        return None
    found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requirements", type=Path, default=LOCK)
    parser.add_argument("--osv-url", default=OSV)
    options = parser.parse_args()
    if reason := why_unreachable(options.osv_url):
        print(f"audit skipped: {options.osv_url} cannot be reached ({reason})")
        return 0
    packages = audited(options.requirements, options.osv_url)
    if packages is None:
        print("audit failed: pip-audit gave no result", file=sys.stderr)
        return 2
    for name, why in ACCEPTED.items():
        print(f"accepted: {name}: {why}")
    found = [(package, problem) for package in packages for problem in package.get("vulns", ())]
    for package, problem in found:
        fixed = ", ".join(problem["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {problem['id']}, fixed in {fixed}")
    print(f"audit: {len(packages)} packages, {len(found)} known vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
