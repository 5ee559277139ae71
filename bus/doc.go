// SPDX-License-Identifier: Apache-2.0

// Package bus is Petri's log, its store and its queues, on NATS JetStream.
//
// It owns the streams, subjects, consumers and buckets (all of them in one
// table, assets.go), publishing and reading of events, the content-addressed
// artifact store, the registry of analyzers, the clerk that commits what they
// hand in, and the wait for them. It can run the server too ([Server]).
//
// The log is the only truth: everything else here can be rebuilt from it.
// Whatever a stranger could have written is checked before it gets there.
package bus
