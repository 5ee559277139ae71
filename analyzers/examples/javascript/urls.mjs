// SPDX-License-Identifier: Apache-2.0
//
// An analyzer that finds URLs in samples and in the files that they leave
// behind:
//
//   NATS_URL=nats://127.0.0.1:4222 NATS_CREDS=… node urls.mjs
//
// It runs until it is told to stop. Any number may run at a time.

import { open, serve } from "./petri.mjs";

const MAX_URLS = 100;
const URL = /\b(?:https?|ftp|wss?):\/\/[\x21\x23-\x3b\x3d\x3f-\x5b\x5d\x5f\x61-\x7a\x7e]{4,200}/g;

// urls returns the findings of some bytes. The same bytes give the same
// findings: tasks may be given out more than once.
export function urls(bytes, artifact) {
  const text = bytes.toString("latin1");
  const found = new Map();
  for (const m of text.matchAll(URL)) {
    if (!found.has(m[0])) {
      found.set(m[0], m.index);
    }
  }
  if (found.size === 0) {
    return [];
  }
  const list = [...found].slice(0, MAX_URLS);
  return [{
    kind: "urls",
    title: found.size === 1 ? "1 URL" : `${found.size} URLs`,
    severity: "info",
    evidence: list.slice(0, 64).map(([, offset]) => ({ artifact: artifact.sha256, offset })),
    data: { urls: list.map(([url]) => url), omitted: found.size - list.length },
  }];
}

const info = { name: "urls", version: "1.0.0", kinds: ["sample", "dropped"] };

const nc = await open("analyzer urls");
for (const signal of ["SIGTERM", "SIGINT"]) {
  process.on(signal, () => nc.close());
}
await serve(nc, info, urls);
