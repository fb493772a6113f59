"""Sends events with the Python CloudEvents SDK in every mode it has, then reads the archive back.

Usage: python.py URL ARCHIVE. Exit code 0 when the archive holds exactly what was sent.
"""

import base64
import glob
import http.client
import json
import sys
import time
from datetime import datetime, timezone
from urllib.parse import urlsplit

from cloudevents.core.bindings.http import to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from cloudevents.v1.conversion import to_binary as old_to_binary
from cloudevents.v1.conversion import to_structured as old_to_structured
from cloudevents.v1.http import CloudEvent as OldCloudEvent

URL, ARCHIVE = sys.argv[1], sys.argv[2]
WHEN = datetime(2026, 1, 15, 9, 30, 0, 123456, timezone.utc)

CASES = {
    "object": ({"datacontenttype": "application/json"}, {"text": "Grüße, 世界 🚀", "n": 1.5, "deep": {"list": [1, None, True]}}),
    "all-attributes": (
        {
            "datacontenttype": "application/json",
            "dataschema": "https://example.com/schema",
            "subject": "an object with \"quotes\", 100% and spaces",
            "time": WHEN,
            "partitionkey": "key-7",
            "extension": "ünïcödé ☕",
        },
        {"a": 1},
    ),
    "text": ({"datacontenttype": "text/plain"}, "words, não só ASCII"),
    "bytes": ({"datacontenttype": "application/octet-stream"}, bytes(range(256))),
    "no-data": ({}, None),
}


def expected(event):
    """The archived form of an event, without what EventFlow adds."""
    line = dict(event.get_attributes())  # with what the SDK added: a time
    line["time"] = line["time"].isoformat().replace("+00:00", "Z")
    data = event.get_data()
    if isinstance(data, bytes):
        line["data_base64"] = base64.b64encode(data).decode()
    elif data is not None:
        line["data"] = data
    return line


connection = http.client.HTTPConnection(urlsplit(URL).netloc, timeout=30)


def post(headers, body):
    """Exactly what the SDK made, and nothing a client library would add."""
    connection.request("POST", "/v1/events", body=body, headers=headers)
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status == 202, (answer.status, text)
    assert json.loads(text)["accepted"] >= 1, text


def event(mode, name):
    attributes, data = CASES[name]
    made = CloudEvent(
        attributes={"id": f"{mode}-{name}", "source": "/sdk/python", "type": "sdk.test", "specversion": "1.0", **attributes},
        data=data,
    )
    sent[f"{mode}-{name}"] = expected(made)
    return made


sent = {}
for mode, convert in (("structured", to_structured), ("binary", to_binary)):
    for name in CASES:
        message = convert(event(mode, name), JSONFormat())
        post(message.headers, message.body)

# The SDK leaves batches to the program: an array of structured events.
batch = b",".join(JSONFormat().write(event("batch", name)) for name in CASES)
post({"content-type": "application/cloudevents-batch+json"}, b"[" + batch + b"]")

# The older interface, which most programs out there still use.
for mode, convert in (("structured", old_to_structured), ("binary", old_to_binary)):
    full = {"specversion": "1.0", "id": f"old-{mode}", "source": "/sdk/python", "type": "sdk.test",
            "datacontenttype": "application/json", "time": "2026-01-15T09:30:00.123456Z"}
    headers, body = convert(OldCloudEvent(dict(full), {"old": [1, 2]}))
    post(headers, body)
    sent[full["id"]] = {**full, "data": {"old": [1, 2]}}


def archived():
    lines = []
    for file in sorted(glob.glob(ARCHIVE + "/*/*/*/events-*.ndjson")):
        with open(file, encoding="utf-8") as handle:
            lines += [json.loads(line) for line in handle if line.endswith("\n")]
    return lines


deadline = time.monotonic() + 30
while len(archived()) < len(sent):
    assert time.monotonic() < deadline, f"{len(archived())} of {len(sent)} events in the archive"
    time.sleep(0.01)

lines = archived()
assert [line["eventflowoffset"] for line in lines] == [str(n) for n in range(len(sent))], "offsets"
for line in lines:
    JSONFormat().read(None, json.dumps(line))  # the SDK understands what the archive holds
    del line["eventflowoffset"], line["eventflowtime"]
    assert line == sent[line["id"]], f"\nsent     {sent[line['id']]}\narchived {line}"
print(f"python: {len(lines)} events unchanged")
