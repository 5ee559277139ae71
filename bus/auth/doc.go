// SPDX-License-Identifier: Apache-2.0

// Package auth makes the keys, the certificates and the server configuration of
// a NATS installation for several hosts, and says what each role may do there.
// It writes files and talks to nobody.
package auth
