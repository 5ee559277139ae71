// SPDX-License-Identifier: Apache-2.0

package schemas

import "slices"

// Action says what a client of the bus does with a channel.
type Action string

// Actions of a client.
const (
	ActionReceive Action = "receive" // it reads what others wrote
	ActionSend    Action = "send"    // it writes
)

// A Channel is a family of subjects and what travels on it: one entry of the
// AsyncAPI document, the wire contract for clients in any language.
type Channel struct {
	Name    string   // in the document
	Address string   // the subject; tokens in braces vary, see [ChannelParameters]
	Stream  string   // that stores it; empty: core NATS, at most once
	Action  Action   // what a client does
	Types   []string // of [Types] that travel on it
	Family  string   // or all event types of that family, where Types is empty
	Reply   []string // types of the answer to a request; empty: no answer
	About   string
}

// Channels lists what a client of the bus can read and write, in a fixed order.
// The caller owns the slice.
func Channels() []Channel { return slices.Clone(channels) }

var channels = []Channel{
	{"context", "petri.{tenant}.{analysis}.context.{event}", "LOG", ActionReceive, nil, "context", nil,
		"What the sandbox did and saw, in order: the events of the protocol and of the guest, the last of them the ending."},
	{"segments", "petri.{tenant}.{analysis}.segment.{source}.{n}", "LOG", ActionReceive, nil, "segment", nil,
		"Pieces of the high-volume sources while the guest runs, numbered, each naming its predecessor's digest."},
	{"artifacts", "petri.{tenant}.{analysis}.artifact.{kind}.{digest}.{occurrence}", "LOG", ActionReceive, nil, "artifact", nil,
		"Announcements of bytes in the store. An analyzer's consumer gives it those of its kinds: each is a task."},
	{"findings", "petri.{tenant}.{analysis}.finding.{severity}.{analyzer}.{digest}.{n}", "LOG", ActionReceive, nil, "finding", nil,
		"What analyzers said, as the clerk committed it. The digest is _ where the task was over the analysis."},
	{"refindings", "petri.{tenant}.{analysis}.refinding.{severity}.{analyzer}.{digest}.{n}", "LOG", ActionReceive, nil, "finding", nil,
		"The same from replays and hunts, which whoever listens for findings does not see."},
	{"derivations", "petri.{tenant}.{analysis}.derivation.{run}.{kind}.{digest}.{occurrence}", "LOG", ActionReceive, nil, "derivation", nil,
		"What analyzers derived in replays and hunts: tasks of the same run, and of nobody else."},
	{"receipts", "petri.{tenant}.{analysis}.receipt.{run}.{analyzer}.{digest}", "LOG", ActionReceive, nil, "receipt", nil,
		"Each closes a task; there is one per run, analyzer and artifact."},
	{"reports", "petri.{tenant}.{analysis}.report.{format}", "LOG", ActionReceive, nil, "report", nil,
		"A report was written; its bytes are in the object bucket REP."},
	{"checkpoints", "petri.{tenant}.{analysis}.checkpoint.{n}", "LOG", ActionReceive, nil, "checkpoint", nil,
		"The sandbox's signature under the log so far."},
	{"registrations", "petri._registry.{analyzer}", "LOG", ActionReceive, []string{Registration{}.EventType()}, "", nil,
		"An analyzer is interested from here on."},
	{"unregistrations", "petri._unregistry.{analyzer}", "LOG", ActionReceive, []string{Unregistration{}.EventType()}, "", nil,
		"An analyzer is interested no more."},
	{"tombstones", "petri._tombstone.{tenant}.{analysis}", "LOG", ActionReceive, nil, "tombstone", nil,
		"An analysis was deleted."},
	{"live", "live.petri.{tenant}.{analysis}.{rest}", "", ActionReceive, []string{EnvelopeSchema}, "", nil,
		"Everything of the log as it is stored, republished with the header Nats-Sequence, so that who misses something can see it."},
	{"behavior", "live.petri.{tenant}.{analysis}.behavior.{category}.{action}", "", ActionReceive, nil, "behavior", nil,
		"What the sample does as the trace shows it, within a budget: for eyes. The trace itself is an artifact."},
	{"register", "reg.{analyzer}", "", ActionSend, []string{Registration{}.EventType()}, "", []string{RegisteredSchema},
		"A request that registers an analyzer and makes its consumers; asking again with the same words changes nothing."},
	{"unregister", "unreg.{analyzer}", "", ActionSend, []string{Unregistration{}.EventType()}, "", []string{RegisteredSchema},
		"A request that ends an analyzer's interest."},
	{"inbox", "in.{analyzer}.{task}", "INBOX", ActionSend, nil, "task", nil,
		"A finished task: one message for one message. The clerk checks it and commits it as one."},
	{"gates", "gate.{tenant}.{gate}", "", ActionReceive, nil, "context", []string{GateAnswerSchema},
		"A request to a gate: the event that the sandbox waits at. The answer says whether it goes on."},
}

// ChannelParameters says what the varying tokens of subjects are.
func ChannelParameters() map[string]string {
	return map[string]string{
		"tenant":     "whose analysis it is; default where there is only one tenant",
		"analysis":   "a ULID, 26 characters",
		"event":      "name of the context event",
		"source":     "trace, pcap, stdout, stderr or serial",
		"n":          "a number from 0",
		"kind":       "what the bytes are: sample, memory, pcap, trace, dropped, …",
		"digest":     "the sha256 as 52 characters of lower-case base32 (RFC 4648 without padding), or _",
		"occurrence": "a number from 0, for bytes that are announced again",
		"severity":   "info, low, medium, high or critical",
		"analyzer":   "name of the analyzer",
		"run":        "live, or r- and a ULID",
		"format":     "of the report: json",
		"rest":       "the tokens that the subject in the log has",
		"category":   "process, file, network, memory or kernel",
		"action":     "exec, open, connect, …",
		"task":       "base32 as above of the sha256 of TENANT/ANALYSIS/RUN/ANALYZER/DIGEST",
		"gate":       "name of the gate, as the protocol has it",
	}
}

// RegisteredSchema is the schema of [Registered].
const RegisteredSchema = "petri.registry.answer.v1"

// Registered answers the request of an analyzer to be registered.
type Registered struct {
	Stream   string `json:"stream,omitempty"`   // where the consumer is
	Consumer string `json:"consumer,omitempty"` // durable that gives the tasks of analyses as they happen
	Runs     string `json:"runs,omitempty"`     // durable of the stream RUNS that gives the tasks of replays
	Uploads  string `json:"uploads,omitempty"`  // object bucket for result documents and derived artifacts
	Together int    `json:"together,omitempty"` // answers that may be handed in as one message, a JSON list; none: one
	Error    string `json:"error,omitempty"`    // why not; then the rest is empty
}
