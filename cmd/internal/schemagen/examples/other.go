// SPDX-License-Identifier: Apache-2.0

package examples

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// rerun is a task of a replay over the sample.
func rerun(analyzer string) schemas.TaskRef {
	return schemas.TaskRef{
		Tenant: tenant, Analysis: analysis, Run: "r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA", Analyzer: analyzer,
		SHA256: ptr(sampleDigest), Kind: schemas.KindSample,
	}
}

func task() schemas.TaskRef {
	return schemas.TaskRef{Tenant: tenant, Analysis: analysis, Run: schemas.LiveRun, Analyzer: "static", SHA256: ptr(sampleDigest), Kind: schemas.KindSample}
}

// taskID is the id of what came of the task.
func taskID(what string) string {
	t := task()
	return strings.Join([]string{what, t.Run, t.Analyzer, t.Token()}, "/")
}

func finding() schemas.Finding {
	return schemas.Finding{
		Kind: "elf_anomalies", Title: "a writable and executable segment, as packers have it",
		Severity: schemas.SeverityMedium, Confidence: 60, Techniques: []string{"T1027.002"},
		Evidence: []schemas.Evidence{
			{Artifact: ptr(sampleDigest), Offset: ptr(int64(4096))},
			{Event: analysis + "/" + contextID(7), Record: ptr(uint64(17))},
		},
		Data: json.RawMessage(`{"anomalies":[{"name":"segment_rwx","detail":"segment 0 is writable and executable"}]}`),
	}
}

func result() *schemas.ResultRef {
	return &schemas.ResultRef{Schema: schemas.StaticSchema, SHA256: resultDigest, Size: 5918}
}

func artifact() schemas.Artifact {
	return schemas.Artifact{
		Kind: schemas.KindDropped, SHA256: droppedDigest, Size: 26, Occurrence: 0, MediaType: "text/plain", Name: "/etc/cron.d/hello",
		File: ptr(dropped()), Event: analysis + "/" + contextID(14),
	}
}

func dropped() schemas.FileMeta {
	return schemas.FileMeta{Path: "/etc/cron.d/hello", Mode: 0o644, UID: 0, GID: 0, Modified: at(12370), Change: "created"}
}

func segment() schemas.Segment {
	return schemas.Segment{
		Source: schemas.SourceStdout, N: 0, SHA256: stdoutDigest, Size: int64(len(stdout)), First: 0, Records: uint64(len(stdout)),
		Produced: uint64(len(stdout)), Data: []byte(stdout), From: at(12369), Final: true,
	}
}

// otherFacts are the events that are neither context nor behaviour.
func otherFacts() []fact {
	a, s := artifact(), segment()
	host, guest := schemas.OriginHost, schemas.OriginGuest
	below := func(id string) string { return strings.TrimPrefix(id, analysis+"/") }
	return []fact{
		{data: submission(), id: "job", at: start, origin: host},
		{data: a, id: below(a.ID(analysis)), at: at(13046), origin: host},
		{data: s, id: below(s.ID(analysis)), at: at(12642), origin: guest},
		{data: schemas.Derivation{
			Task: rerun("archive"),
			Artifact: schemas.Artifact{
				Kind: schemas.KindExtracted, SHA256: schemas.Sum([]byte("inner")), Size: 8192, Name: "inner.elf",
				Parent: ptr(sampleDigest), Depth: 1, Analyzer: "archive", Run: rerun("archive").Run,
			},
		}, id: "derivation/" + rerun("archive").Run + "/extracted/" + schemas.Sum([]byte("inner")).Token() + "/0", at: at(80_500), origin: host},
		{data: schemas.FindingCommitted{Task: task(), Version: "1.0.0", Rules: ptr(rulesDigest), Finding: finding()}, id: taskID("finding") + "/0", at: at(5213), origin: host},
		{data: schemas.Receipt{
			Task: task(), Version: "1.0.0", Rules: ptr(rulesDigest), Instance: "sandbox-1-22073", Status: schemas.TaskDone,
			Findings: 1, Derived: 1, Result: result(), Cut: &schemas.TaskCut{Findings: 3}, Took: ms(63),
		}, id: taskID("receipt"), at: at(5213), origin: host},
		{data: schemas.FinishedTask{
			Task: task(), Version: "1.0.0", Rules: ptr(rulesDigest), Instance: "sandbox-1-22073", Status: schemas.TaskDone,
			Findings: []schemas.Finding{finding()},
			Derived:  []schemas.Derived{{Kind: "unpacked", SHA256: schemas.Sum([]byte("unpacked")), Size: 40960, MediaType: "application/x-executable", Name: "hello.unpacked"}},
			Result:   result(), Cut: &schemas.TaskCut{Findings: 3}, Took: ms(63),
		}, id: taskID("task"), at: at(5210), origin: host},
		{data: schemas.ReportWritten{
			Format: "json", SHA256: schemas.Sum([]byte("report")), Size: 10430, Events: 33,
			Outcome: schemas.OutcomeIncomplete, Verdict: schemas.VerdictUndetermined,
		}, id: "report/json/" + schemas.Sum([]byte("report")).Token(), at: at(13952), origin: host},
		{data: schemas.Registration{
			Name: "static", Version: "1.0.0", Config: ptr(configDigest), Kinds: []schemas.Kind{schemas.KindSample, schemas.KindDropped},
			Scope: schemas.ScopeArtifact, Deadline: schemas.Duration(time.Minute),
		}, tenant: "_registry", id: "static/01M7WWPHSK3QZV8E5T2RC9B7DN", at: at(-900), origin: host},
		{data: schemas.RunTask{
			Task:     rerun("static"),
			Artifact: &schemas.Artifact{Kind: schemas.KindSample, SHA256: sampleDigest, Size: 16568, Name: "hello"},
		}, id: "run/r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA/static/" + sampleDigest.Token(), at: at(80_000), origin: host},
		{data: schemas.Checkpoint{
			At: schemas.EventStartAnalysis, Events: 41, Root: schemas.Sum([]byte("root")),
			Key: schemas.Sum([]byte("key")).String(), Signature: []byte("sixty-four bytes of an Ed25519 signature (RFC 8032) stand here.."),
		}, id: "checkpoint/41", at: at(13100), origin: host},
		{data: schemas.Tombstone{Tenant: tenant, Analysis: analysis, By: "root@sandbox-1", Reason: "the customer asked for it", Events: 57}, id: "tombstone", at: at(900_000), origin: host},
		{data: schemas.Unregistration{Name: "static"}, tenant: "_registry", id: "static/01M7WX0A4N6GJ2YH8KQ5PVB3ET", at: at(600_000), origin: host},
	}
}
