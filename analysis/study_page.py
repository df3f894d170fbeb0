"""Where Optuna's own dashboard shows a study, if one runs on this machine."""

from __future__ import annotations

import http.client
import json
from typing import Any

HOST, PORT = "127.0.0.1", 8080  # what `optuna-dashboard` takes unless it is told otherwise
SECONDS = 0.5  # that it has to answer: a page waits for it


def study_page(study: str, port: int | None = None) -> str:
    """The address of the study of that name; empty where no dashboard runs, or one of other studies does. `port`: of
    the dashboard, its usual one if there is none."""
    port = PORT if port is None else port
    for one in _studies(port):
        if one.get("study_name") == study:
            return f"http://{HOST}:{port}/dashboard/studies/{one['study_id']}"
    return ""


def _studies(port: int) -> list[dict[str, Any]]:
    """Anything may listen there: what does not answer like a dashboard has no studies."""
    connection = http.client.HTTPConnection(HOST, port, timeout=SECONDS)
    try:
        connection.request("GET", "/api/studies")
        answer = connection.getresponse()
        content = json.loads(answer.read()) if answer.status == http.client.OK else {}
    except (OSError, http.client.HTTPException, ValueError):
        return []
    finally:
        connection.close()
    found = content.get("study_summaries") if isinstance(content, dict) else None
    return [one for one in found or [] if isinstance(one, dict)]
