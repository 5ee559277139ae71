// SPDX-License-Identifier: Apache-2.0
//
// Reads an object of Petri's store with a NATS client that Petri did not write,
// and writes its bytes, as they are stored, to standard output:
//
//   NATS_URL=nats://127.0.0.1:4222 NATS_CREDS=… node object.mjs SHA256

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { Objm } from "@nats-io/obj";
import { connect, credsAuthenticator } from "@nats-io/transport-node";

const { NATS_URL, NATS_CREDS } = process.env;
const nc = await connect({ servers: NATS_URL, authenticator: credsAuthenticator(readFileSync(NATS_CREDS)), name: "independent client" });
try {
  const object = await (await new Objm(nc).open("ART")).get(process.argv[2]);
  if (!object) {
    throw new Error(`there is no object ${process.argv[2]}`);
  }
  for await (const chunk of object.data) {
    if (!process.stdout.write(chunk)) {
      await once(process.stdout, "drain");
    }
  }
  const error = await object.error; // also where the digest in the object's meta record is another
  if (error) {
    throw error;
  }
} finally {
  await nc.close();
}
