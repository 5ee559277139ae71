// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"reflect"
	"slices"
	"strings"
	"sync"
)

// Form says how the values of a schema travel.
type Form string

const (
	// FormEnvelope is what is around every event's data: an [Event].
	FormEnvelope Form = "envelope"
	// FormEvent is the data of events of one type.
	FormEvent Form = "event"
	// FormDocument is a JSON document of its own: an artifact, a result
	// document, a report.
	FormDocument Form = "document"
)

// Names of schemas that no event's type is.
const (
	// EnvelopeSchema is the schema of every event's envelope.
	EnvelopeSchema = "petri.event.v1"
	// CustomType is the schema of context events whose names are a protocol's
	// own, see [Custom].
	CustomType = "petri.context.custom.v1"
)

// A TypeInfo says what belongs to a schema's name.
type TypeInfo struct {
	Name  string // of the schema: an event's type, or what a document's field schema holds
	Form  Form
	Value any    // of the Go type that the schema is generated from
	About string // one sentence, where the Go type's own comment does not tell
}

// New returns a pointer to a new zero value of the Go type, to decode into.
func (t TypeInfo) New() any { return reflect.New(reflect.TypeOf(t.Value)).Interface() }

// Types lists every schema that Petri has: the envelope, the events and the
// documents, in an order that is the same in every program. The caller owns
// the slice.
func Types() []TypeInfo { return slices.Clone(types()) }

var types = sync.OnceValue(func() []TypeInfo {
	list := []TypeInfo{{EnvelopeSchema, FormEnvelope, Event{}, ""}}
	list = append(list, contextTypes()...)
	for _, v := range []Typed{
		Artifact{}, Derivation{}, Segment{}, FindingCommitted{}, Receipt{}, FinishedTask{},
		Registration{}, Unregistration{}, ReportWritten{}, Submission{}, RunTask{}, Checkpoint{}, Tombstone{},
	} {
		list = append(list, TypeInfo{v.EventType(), FormEvent, v, ""})
	}
	for _, action := range BehaviorActions {
		category, name, _ := strings.Cut(action, ".")
		b := Behavior{Category: category, Action: name}
		list = append(list, TypeInfo{b.EventType(), FormEvent, b, behaviorAbout[action]})
	}
	return append(list,
		TypeInfo{Report{}.EventType(), FormDocument, Report{}, ""},
		TypeInfo{ManifestSchema, FormDocument, Manifest{}, ""},
		TypeInfo{DropsSchema, FormDocument, DropList{}, ""},
		TypeInfo{TemplateSchema, FormDocument, Template{}, ""},
		TypeInfo{StaticSchema, FormDocument, StaticResult{}, ""},
		TypeInfo{BehaviorSchema, FormDocument, BehaviorResult{}, ""},
		TypeInfo{ControlSchema, FormDocument, ControlRequest{}, ""},
		TypeInfo{DefinitionSchema, FormDocument, Definition{}, ""},
		TypeInfo{ProfileSchema, FormDocument, Profile{}, ""},
		TypeInfo{GateAnswerSchema, FormDocument, GateAnswer{}, ""},
		TypeInfo{RegisteredSchema, FormDocument, Registered{}, ""},
	)
})

// contextTypes lists the context events, SEE's first, in the order in which a
// run shows them.
func contextTypes() []TypeInfo {
	var list []TypeInfo
	add := func(about string, v Typed) {
		list = append(list, TypeInfo{v.EventType(), FormEvent, v, about})
	}
	verb := func(name, before, after string) {
		add(before, Transition{Verb: "pre_" + name})
		add(after, Transition{Verb: "post_" + name})
	}
	add("", PrePoweron{})
	add("", PostPoweron{})
	add("", IPAddress{})
	add("", RunSample{})
	verb("pause", "The guest's CPUs are about to stand still.", "The guest's CPUs stand still.")
	add("The protocol asks hooks to capture the machine as it stands.", Custom{Name: EventSnapshotsCapture})
	verb("resume", "The guest's CPUs are about to go on.", "The guest's CPUs go on.")
	verb("shutdown", "The guest is about to be asked to power off.", "The guest has powered off because it was asked to.")
	verb("poweroff", "The machine's power is about to be taken.", "The machine's power has been taken.")
	verb("restart", "The machine is about to be reset.", "The machine has been reset and its guest is ready again.")
	add("", StartAnalysis{})
	add("", WaitAnalysis{})
	add("", WaitAnalysisV1{})

	for _, v := range []Typed{
		AnalysisSubmitted{}, AnalysisClaimed{}, GuestReady{}, SampleStarted{}, SampleExited{}, TreeExited{}, MachineOff{},
		Fault{}, PossibleTampering{}, LogAway{}, HookFailed{}, StepFailed{}, PreExec{}, Exec{}, PreDumpMemory{},
		GateAnswered{}, ControlDecided{},
		AnalysisCompleted{}, AnalysisFailed{}, AnalysisCancelled{}, AnalysisAmended{}, RunAdopted{},
	} {
		add("", v)
	}
	for _, v := range []string{"poweron", "pause", "resume", "shutdown", "poweroff", "restart"} {
		add("The verb "+v+" failed: this event takes the place of post_"+v+".", FailedTransition{Verb: "failed_" + v})
	}
	add("An event that a protocol triggered under a name of its own, in whose place custom stands here.", Custom{Name: "custom"})
	return list
}

// behaviorAbout says what each of [BehaviorActions] is.
var behaviorAbout = map[string]string{
	"process.fork":         "A process or thread was made.",
	"process.exec":         "A process became another program.",
	"process.exit":         "A process ended.",
	"process.signal":       "A signal was sent.",
	"process.ptrace":       "A process traced another one, or asked to be traced.",
	"process.setuid":       "A process changed whose it is.",
	"process.rename":       "A thread changed the name that the kernel shows for it.",
	"file.open":            "A file was opened.",
	"file.create":          "A file was opened so that it is made if it is not there.",
	"file.write":           "Something was written into a file.",
	"file.delete":          "A file or directory was removed.",
	"file.rename":          "A file was given another name.",
	"file.chmod":           "A file's permissions were changed.",
	"file.chown":           "A file was given another owner.",
	"file.link":            "A hard or symbolic link was made.",
	"file.mkdir":           "A directory was made.",
	"file.mount":           "A file system was mounted or unmounted.",
	"network.socket":       "A socket was made.",
	"network.connect":      "A socket was connected to an address.",
	"network.bind":         "A socket was given an address.",
	"network.listen":       "A socket began to listen.",
	"network.accept":       "A connection was accepted.",
	"network.send":         "Something was sent to an address.",
	"memory.mmap_rwx":      "Memory became writable and executable at once.",
	"memory.process_write": "A process wrote into the memory of another one.",
	"memory.memfd":         "A file without a name in any directory was made.",
	"kernel.module_load":   "A kernel module was loaded.",
	"kernel.module_unload": "A kernel module was removed.",
	"kernel.bpf":           "The bpf call was made.",
	"kernel.kexec":         "Another kernel was loaded to be started.",
	"kernel.reboot":        "The machine was asked to restart or to power off.",
	"kernel.io_uring":      "An io_uring was made: what is done through it shows in no system call.",
}
