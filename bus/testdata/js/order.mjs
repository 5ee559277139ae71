// SPDX-License-Identifier: Apache-2.0
//
// Reads everything that Petri's log holds of one analysis, with a NATS client
// that Petri did not write, and prints a line of JSON per event:
// {"seq": …, "subject": …, "event": …}, the event byte for byte as stored.
//
//   NATS_URL=nats://127.0.0.1:4222 NATS_CREDS=… \
//     node order.mjs TENANT ANALYSIS
//
// It needs to know the stream's name and the form of the subjects, and nothing
// else of Petri.

import { readFileSync } from "node:fs";
import { jetstream } from "@nats-io/jetstream";
import { connect, credsAuthenticator } from "@nats-io/transport-node";

const STREAM = "LOG";
const PATIENCE = 10_000; // ms without a message before it gives up

async function main() {
  const [tenant, analysis] = process.argv.slice(2);
  const { NATS_URL, NATS_CREDS } = process.env;
  if (!tenant || !analysis || !NATS_URL || !NATS_CREDS) {
    throw new Error("usage: NATS_URL=… NATS_CREDS=… node order.mjs TENANT ANALYSIS");
  }
  const nc = await connect({ servers: NATS_URL, authenticator: credsAuthenticator(readFileSync(NATS_CREDS)), name: "independent client", timeout: PATIENCE });
  try {
    await read(nc, `petri.${tenant}.${analysis}.>`);
  } finally {
    await nc.close();
  }
}

// read prints what the log holds when it begins, in the log's order.
async function read(nc, subject) {
  const consumer = await jetstream(nc).consumers.get(STREAM, { filter_subjects: [subject] });
  const { num_pending: pending } = await consumer.info();
  if (pending === 0) {
    throw new Error(`the log holds nothing under ${subject}`);
  }
  const messages = await consumer.consume({ max_messages: 100 });
  const late = setTimeout(() => messages.stop(new Error(`no message for ${PATIENCE} ms`)), PATIENCE);
  let last = 0;
  for await (const m of messages) {
    late.refresh();
    if (m.seq <= last) {
      throw new Error(`sequence ${m.seq} came after ${last}`);
    }
    last = m.seq;
    const event = m.string();
    JSON.parse(event); // throws if it is none
    // A line break in JSON lies between its tokens and may as well be a space.
    process.stdout.write(`{"seq":${m.seq},"subject":${JSON.stringify(m.subject)},"event":${event.replaceAll("\n", " ")}}\n`);
    if (m.info.pending === 0) {
      break;
    }
  }
  clearTimeout(late);
}

main().catch((err) => {
  console.error(`order.mjs: ${err.message}`);
  process.exitCode = 1;
});
