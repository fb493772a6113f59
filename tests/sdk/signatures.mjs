// Checks the signature of every request on standard input, a JSON object a line. Exit code 0 when
// each holds with each of its keys alone, and does not once the body is changed.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { Webhook } from "standardwebhooks";

const requests = readFileSync(0, "utf8").trim().split("\n").map((line) => JSON.parse(line));
for (const { secrets, headers, body } of requests) {
  for (const secret of secrets) {
    assert.deepEqual(new Webhook(secret).verify(body, headers), JSON.parse(body));
    assert.throws(() => new Webhook(secret).verify(body + " ", headers));
  }
}
console.log(`javascript: ${requests.length} signatures hold`);
