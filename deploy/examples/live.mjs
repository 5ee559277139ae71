// SPDX-License-Identifier: Apache-2.0
//
// Follows everything of a tenant as it happens and prints a line for each event,
// without a gap in what the log has.
//
//   NATS_URL=nats://127.0.0.1:4222 NATS_CREDS=… node live.mjs TENANT
//
// The live subjects are core NATS: whoever is slow, or has lost the connection,
// misses messages. What the log has stored carries its sequence in the header
// Nats-Sequence. If one is skipped the log says whether it was the tenant's.
// Behaviour is not stored: its numbers show what was missed.

import { readFileSync } from "node:fs";
import { jetstreamManager } from "@nats-io/jetstream";
import { connect, credsAuthenticator } from "@nats-io/transport-node";

const [tenant] = process.argv.slice(2);
const { NATS_URL, NATS_CREDS } = process.env;
if (!tenant || !NATS_URL || !NATS_CREDS) {
  console.error("usage: NATS_URL=… NATS_CREDS=… node live.mjs TENANT");
  process.exit(2);
}
const nc = await connect({ servers: NATS_URL, authenticator: credsAuthenticator(readFileSync(NATS_CREDS)), name: "live", maxReconnectAttempts: -1, waitOnFirstConnect: true });
const log = (await jetstreamManager(nc, { timeout: 20_000 })).streams;
const subject = `petri.${tenant}.>`;
const behavior = new Map(); // number of the last behaviour event, by analysis
let last = 0; // sequence up to which everything has been printed

// next is the first message of the tenant from a sequence on, or null.
async function next(seq) {
  try {
    return await log.getMessage("LOG", { seq, next_by_subj: subject });
  } catch (err) {
    if (err.code === 10037) return null; // there is none
    throw err;
  }
}

function print(what, event) {
  console.log([what, event.analysis ?? "", event.type, event.id].join(" "));
}

const messages = nc.subscribe("live." + subject);
await nc.flush();
console.log("ready");
for await (const m of messages) {
  const event = m.json();
  const header = m.headers?.get("Nats-Sequence");
  if (!header) { // behaviour
    const before = behavior.get(event.analysis);
    if (before && event.data.number > before + 1) {
      console.log(`gap ${event.analysis} ${event.data.number - before - 1} behaviour events were not shown`);
    }
    behavior.set(event.analysis, event.data.number);
    print("live", event);
    continue;
  }
  const seq = Number(header);
  if (seq <= last) continue; // read from the log before
  while (last > 0 && last + 1 < seq) {
    const missed = await next(last + 1);
    if (missed === null || missed.seq >= seq) break; // somebody else's
    print("late", missed.json());
    last = missed.seq;
  }
  last = seq;
  print("live", event);
}
