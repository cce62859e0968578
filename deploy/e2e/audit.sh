#!/usr/bin/env bash
# audit.sh: what Bowline's service accounts asked of the API server, one "ACCOUNT VERB GROUP/RESOURCE ok|forbidden" a line.
# What tests asked with an agent's token does not count.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/env.sh"
python3 - "$R/log/audit.log" <<'P'
import json
import sys

lines = set()
for line in open(sys.argv[1]):
    try:
        event = json.loads(line)
    except ValueError:
        continue  # the last line is being written
    about = event.get("objectRef")
    if about and not event.get("userAgent", "").startswith("kubectl"):
        name = about["resource"] + ("/" + about["subresource"] if "subresource" in about else "")
        # Only what authorisation forbade: admission answers 403 as well, as in a namespace that is going away.
        refused = event.get("annotations", {}).get("authorization.k8s.io/decision") == "forbid"
        account = event["user"]["username"].rsplit(":", 1)[1]
        lines.add(f"{account} {event['verb']} {about.get('apiGroup', '')}/{name} {'forbidden' if refused else 'ok'}")
print("\n".join(sorted(lines)))
P
