// Sends events with the JavaScript CloudEvents SDK in every mode it has, then reads the archive back.
//
// Usage: node javascript.mjs URL ARCHIVE. Exit code 0 when the archive holds exactly what was sent.

import assert from "node:assert/strict";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { CloudEvent, HTTP, Mode, emitterFor, httpTransport } from "cloudevents";

const [url, archive] = process.argv.slice(2);
const target = `${url}/v1/events`;
const time = "2026-01-15T09:30:00.123Z";
const base = { source: "/sdk/javascript", type: "sdk.test", time };
const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);

const cases = {
  object: { datacontenttype: "application/json", data: { text: "Grüße, 世界 🚀", n: 1.5, deep: { list: [1, null, true] } } },
  "all-attributes": {
    datacontenttype: "application/json",
    dataschema: "https://example.com/schema",
    subject: "an object with spaces",
    partitionkey: "key-7",
    data: { a: 1 },
  },
  list: { datacontenttype: "application/json", data: [1, "two", { three: 3 }] },
  text: { datacontenttype: "text/plain", data: "words, não só ASCII" },
  bytes: { datacontenttype: "application/octet-stream", data: bytes },
};

const sent = new Map();
function event(mode, name) {
  const made = new CloudEvent({ ...base, id: `${mode}-${name}`, ...cases[name] });
  const expected = { specversion: "1.0", ...base, id: made.id, ...cases[name] };
  if (expected.data instanceof Uint8Array) {
    expected.data_base64 = Buffer.from(expected.data).toString("base64");
    delete expected.data;
  }
  sent.set(made.id, expected);
  return made;
}

for (const mode of [Mode.STRUCTURED, Mode.BINARY]) {
  const emit = emitterFor(httpTransport(target), { mode });
  for (const name of Object.keys(cases)) {
    const answer = await emit(event(mode, name));
    assert.equal(JSON.parse(answer.body).accepted, 1, answer.body);
  }
}

// The SDK reads batches but leaves writing one to the program: an array of structured events.
const batch = Object.keys(cases).map((name) => event("batch", name));
const answer = await fetch(target, {
  method: "POST",
  headers: { "content-type": "application/cloudevents-batch+json" },
  body: JSON.stringify(batch),
});
assert.equal(answer.status, 202, await answer.clone().text());

function files(folder) {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true })
    .filter((name) => /events-\d+\.ndjson$/.test(name))
    .sort()
    .map((name) => join(folder, name));
}
const archived = () =>
  files(archive).flatMap((file) => readFileSync(file, "utf8").split("\n").slice(0, -1)).map((line) => JSON.parse(line));

const deadline = Date.now() + 30_000;
while (archived().length < sent.size) {
  assert.ok(Date.now() < deadline, `${archived().length} of ${sent.size} events in the archive`);
  await pause(10);
}

const lines = archived();
assert.deepEqual(lines.map((line) => line.eventflowoffset), [...sent.keys()].map((_, n) => String(n)));
for (const line of lines) {
  // The SDK understands what the archive holds.
  HTTP.toEvent({ headers: { "content-type": "application/cloudevents+json" }, body: JSON.stringify(line) });
  const { eventflowoffset, eventflowtime, ...rest } = line;
  assert.deepEqual(rest, sent.get(line.id));
}
console.log(`javascript: ${lines.length} events unchanged`);
