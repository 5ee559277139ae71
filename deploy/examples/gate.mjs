// SPDX-License-Identifier: Apache-2.0
//
// A gate: Petri asks it at an event of a protocol whether the analysis goes on.
//
//   NATS_URL=nats://127.0.0.1:4222 NATS_CREDS=… \
//     node gate.mjs TENANT NAME REGEXP
//
// It stops whatever has a command line that matches the regular expression. The
// question is a CloudEvent; the answer is {"decision": "go" or "stop", "reason":
// at most 512 bytes}. Several services of one gate share its questions.

import { readFileSync } from "node:fs";
import { connect, credsAuthenticator } from "@nats-io/transport-node";

const [tenant, name, pattern] = process.argv.slice(2);
const { NATS_URL, NATS_CREDS } = process.env;
if (!pattern || !NATS_URL || !NATS_CREDS) {
  console.error("usage: NATS_URL=… NATS_CREDS=… node gate.mjs TENANT NAME REGEXP");
  process.exit(2);
}
const forbidden = new RegExp(pattern);
// A gate that is not there stops analyses: it waits for its server, the first time
// too.
const nc = await connect({ servers: NATS_URL, authenticator: credsAuthenticator(readFileSync(NATS_CREDS)), name: `gate ${name}`, maxReconnectAttempts: -1, waitOnFirstConnect: true });
const questions = nc.subscribe(`gate.${tenant}.${name}`, { queue: "gate" });
await nc.flush();
console.log("ready");
for await (const question of questions) {
  const event = question.json();
  const command = (event.data.command ?? []).join(" ");
  const stop = forbidden.test(command);
  const reason = stop ? `${pattern} is forbidden` : `nothing is against ${event.type}`;
  question.respond(JSON.stringify({ decision: stop ? "stop" : "go", reason: reason.slice(0, 128) }));
  console.log(`${event.analysis} ${stop ? "stop" : "go"}`);
}
