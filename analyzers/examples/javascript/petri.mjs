// SPDX-License-Identifier: Apache-2.0
//
// What an analyzer that speaks to Petri's bus has to do, in JavaScript:
// register, take tasks, read bytes, hand in answers. It knows the subjects and
// the JSON Schemas in schemas/json, and nothing else of Petri.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect, credsAuthenticator } from "@nats-io/transport-node";
import { decompress } from "fzstd";

const MAX_INPUT = 64 << 20; // bytes of an artifact that are read into memory
const HEARTBEAT = 3_000; // ms; a task that is silent for 10 s is given to somebody else
const MAX_ATTEMPTS = 3; // after that a task is answered as failed

// open connects as the environment says: NATS_URL, NATS_CREDS, the path of the
// analyzer's credentials, and NATS_CA, that of the authority of the server's
// certificate, if it has one.
export async function open(name) {
  const { NATS_URL, NATS_CREDS, NATS_CA } = process.env;
  if (!NATS_URL || !NATS_CREDS) {
    throw new Error("NATS_URL or NATS_CREDS is not set (nats.json in petri's data directory has the one, petri bus user DIR analyzer NAME makes the other)");
  }
  const creds = readFileSync(NATS_CREDS);
  const user = /-----BEGIN NATS USER JWT-----\s+\S+?\.(\S+?)\./.exec(creds.toString());
  const options = {
    servers: NATS_URL, name, maxReconnectAttempts: -1, authenticator: credsAuthenticator(creds),
    inboxPrefix: "_INBOX_" + JSON.parse(Buffer.from(user[1], "base64url")).name, // nobody may listen elsewhere
  };
  if (NATS_CA) {
    options.tls = { caFile: NATS_CA };
  }
  return connect(options);
}

// serve registers an analyzer and answers its tasks until the connection is
// closed. info is {name, version, kinds}; analyze(bytes, artifact) returns
// findings, as schemas/json/petri.finding.committed.v1.json has them.
export async function serve(nc, info, analyze, log = console.error) {
  const place = await register(nc, info);
  log(`registered: ${JSON.stringify(place)}`);
  const js = jetstream(nc);
  const instance = `${process.pid}@javascript`;
  const alive = () => nc.publish(`$KV.REGISTRY.${info.name}.${instance.replaceAll("@", "-")}`, JSON.stringify({ analyzer: info.name, instance, version: info.version }));
  alive();
  const heart = setInterval(alive, 5_000);
  try {
    // Analyses as they happen, and replays of past ones.
    await Promise.all([[place.stream, place.consumer], ["RUNS", place.runs]].map(([stream, consumer]) => (
      consumer ? follow(nc, js, stream, consumer, info, instance, analyze, log) : undefined
    )));
  } finally {
    clearInterval(heart);
  }
}

// register asks the bus to make the analyzer's consumers. Asking again with the
// same words changes nothing.
async function register(nc, { name, version, kinds, deadline = "1m0s" }) {
  const request = event(`petri.registry.registered.v1`, "_registry", "", `${name}/${Date.now()}`, { name, version, kinds, scope: "artifact", deadline });
  const reply = await nc.request(`reg.${name}`, JSON.stringify(request), { timeout: 10_000 });
  const place = reply.json();
  if (place.error) {
    throw new Error(`register ${name}: ${place.error}`);
  }
  return place;
}

async function follow(nc, js, stream, consumer, info, instance, analyze, log) {
  const c = await js.consumers.get(stream, consumer);
  const messages = await c.consume({ max_messages: 1, expires: 30_000, idle_heartbeat: 2_000 });
  for await (const m of messages) {
    log(`task: ${m.subject}`);
    const keep = setInterval(() => m.working(), HEARTBEAT);
    try {
      await answer(nc, js, m, info, instance, analyze);
      // Acknowledged last: a process that dies before is given the task again,
      // and a second answer changes nothing.
      await m.ackAck();
    } catch (err) {
      log(`given back: ${m.subject}: ${err.message}`);
      m.nak(2_000);
    } finally {
      clearInterval(keep);
    }
  }
}

// answer turns one message into one message.
async function answer(nc, js, m, info, instance, analyze) {
  const announced = JSON.parse(m.string());
  const artifact = announced.data.artifact ?? announced.data; // of a run: the task; of the log: the announcement
  const { tenant, analysis } = announced;
  const task = { tenant, analysis, run: announced.data.task?.run ?? "live", analyzer: info.name, sha256: artifact.sha256, kind: artifact.kind };
  const begin = Date.now();
  const done = { task, version: info.version, instance, status: "done", took: "" };
  if (m.info.deliveryCount > MAX_ATTEMPTS) {
    Object.assign(done, { status: "failed", error: `poison: ${m.info.deliveryCount - 1} attempts have ended without an answer` });
  } else if (artifact.size > MAX_INPUT) {
    Object.assign(done, { status: "skipped", error: `${artifact.size} bytes are more than ${MAX_INPUT}` });
  } else {
    const bytes = await read(nc, artifact);
    try {
      done.findings = await analyze(bytes, artifact);
    } catch (err) {
      Object.assign(done, { status: "failed", error: String(err.message).slice(0, 500), findings: undefined });
    }
  }
  done.took = `${Date.now() - begin}ms`;
  const token = base32(sha256([tenant, analysis, task.run, info.name, base32(Buffer.from(artifact.sha256, "hex"))].join("/")));
  const id = `${token}/${instance}`;
  await js.publish(`in.${info.name}.${token}`, JSON.stringify(event("petri.task.finished.v1", tenant, analysis, id, done)), { msgID: id });
}

// read returns an artifact's bytes, verified. The store holds them as frames of
// zstd, in the layout of any NATS object bucket. An analyzer may not make the
// consumer with which clients read one: it asks for message after message.
async function read(nc, artifact) {
  const { streams } = await jetstreamManager(nc);
  const name = Buffer.from(artifact.sha256).toString("base64url").padEnd(88, "=");
  const meta = await streams.getMessage("OBJ_ART", { last_by_subj: `$O.ART.M.${name}` });
  const info = meta?.json();
  if (!info || info.deleted) {
    throw new Error(`the store has no ${artifact.sha256}`);
  }
  if (Number(info.metadata.raw_size) !== artifact.size) {
    throw new Error(`${artifact.sha256} has ${info.metadata.raw_size} bytes, not ${artifact.size}`);
  }
  const chunks = [];
  for (let seq = 1; chunks.length < info.chunks;) {
    const chunk = await streams.getMessage("OBJ_ART", { seq, next_by_subj: `$O.ART.C.${info.nuid}` });
    if (!chunk) {
      throw new Error(`the store has ${chunks.length} of the ${info.chunks} chunks of ${artifact.sha256}`);
    }
    chunks.push(chunk.data);
    seq = chunk.seq + 1;
  }
  // Given room for what was announced, more than that cannot come out.
  const bytes = artifact.size ? Buffer.from(decompress(Buffer.concat(chunks), new Uint8Array(artifact.size))) : Buffer.alloc(0);
  if (sha256(bytes).toString("hex") !== artifact.sha256) {
    throw new Error(`the bytes of ${artifact.sha256} have another digest`);
  }
  return bytes;
}

// event wraps data in a CloudEvents 1.0 envelope.
function event(type, tenant, analysis, id, data) {
  return {
    specversion: "1.0", id, source: `/petri/${tenant}${analysis ? "/" + analysis : ""}`, type, time: new Date().toISOString(),
    datacontenttype: "application/json", dataschema: `urn:petri:schema:${type}`,
    tenant, ...(analysis && { analysis }), origin: "host", data,
  };
}

const sha256 = (b) => createHash("sha256").update(b).digest();

// base32 is RFC 4648's, in lower case and without padding.
function base32(bytes) {
  let out = "", bits = 0, value = 0;
  for (const b of bytes) {
    value = (value << 8) | b;
    for (bits += 8; bits >= 5; bits -= 5) {
      out += "abcdefghijklmnopqrstuvwxyz234567"[(value >>> (bits - 5)) & 31];
      value &= (1 << (bits - 5)) - 1;
    }
  }
  return bits ? out + "abcdefghijklmnopqrstuvwxyz234567"[(value << (5 - bits)) & 31] : out;
}
