"""Checks the signature of every request on standard input, a JSON object a line.

Exit code 0 when each holds with each of its keys alone, and does not once the body is changed.
"""

import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

count = 0
for line in sys.stdin:
    request = json.loads(line)
    for secret in request["secrets"]:
        assert Webhook(secret).verify(request["body"], request["headers"]) == json.loads(request["body"])
        try:
            Webhook(secret).verify(request["body"] + " ", request["headers"])
        except WebhookVerificationError:
            continue
        raise SystemExit("a changed body was accepted")
    count += 1
print(f"python: {count} signatures hold")
