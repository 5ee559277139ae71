// SPDX-License-Identifier: Apache-2.0

package fold_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/schemas"
)

// document is one result document for all digests.
type document []byte

func (d document) Document(schemas.Digest, int64) ([]byte, error) { return d, nil }

// TestHugeLists gives the fold more of everything than a report holds.
func TestHugeLists(t *testing.T) {
	const more = 7
	n := schemas.MaxReportList + more
	whole := events(t, "completed")
	analysis, head := whole[0].Analysis, whole[0]
	event := func(id string, data schemas.Typed) schemas.Event {
		e, err := schemas.NewEvent(head.Tenant, analysis, analysis+"/"+id, time.Unix(1e9, 0), schemas.OriginGuest, data)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	list := []schemas.Event{head}
	start := schemas.StartAnalysis{}
	done := schemas.AnalysisCompleted{}
	for i := range n {
		d := schemas.Sum(fmt.Appendf(nil, "%d", i))
		task := schemas.TaskRef{Tenant: head.Tenant, Analysis: analysis, Run: schemas.LiveRun, Analyzer: "behavior", SHA256: &d}
		a := schemas.Artifact{Kind: schemas.KindDropped, SHA256: d, File: &schemas.FileMeta{Path: fmt.Sprint(i)}}
		list = append(list,
			event(fmt.Sprintf("context/%d", i+1), schemas.StepFailed{Step: i, Name: "exec", Error: "no"}),
			event(a.ID(analysis), a),
			event(fmt.Sprintf("finding/%d", i), schemas.FindingCommitted{Task: task, Finding: schemas.Finding{Kind: "garbage", Title: "x", Severity: "worst"}}),
			event(fmt.Sprintf("receipt/%d", i), schemas.Receipt{Task: task, Status: "done", Findings: 1, Result: &schemas.ResultRef{Schema: schemas.BehaviorSchema, SHA256: d}}))
		start.Sources = append(start.Sources, schemas.SourceCoverage{Source: schemas.Source(fmt.Sprint("source", i)), Status: schemas.StatusMissing})
		start.Hooks = append(start.Hooks, schemas.HookCoverage{Name: fmt.Sprint("hook", i)})
		start.Artifacts = append(start.Artifacts, schemas.AnnouncedArtifact{Kind: schemas.KindDropped, SHA256: d, Occurrences: 1 << 30})
		done.Missing = append(done.Missing, schemas.MissingTask{Analyzer: "slow", SHA256: &d, Reason: "timeout"})
	}
	list = append(list, event(fmt.Sprintf("context/%d", n+1), start), event(fmt.Sprintf("context/%d", n+2), done))

	doc := schemas.BehaviorResult{Schema: schemas.BehaviorSchema, Omitted: map[string]int{"files": 5, "processes": -1 << 60}}
	words, pids := make([]string, n), make([]int, n)
	for range n {
		doc.Processes = append(doc.Processes, schemas.Process{})
		doc.Files = append(doc.Files, schemas.FileActivity{})
		doc.Network = append(doc.Network, schemas.NetworkActivity{})
		doc.Gaps = append(doc.Gaps, "a gap")
	}
	doc.Processes[0].Argv = words
	doc.Files[0].Actions, doc.Files[0].Errors, doc.Files[0].PIDs = words, words, pids
	doc.Network[0].Errors, doc.Network[0].PIDs = words, pids
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}

	r, err := foldAll(list).Report(document(b))
	if err != nil {
		t.Fatal(err)
	}
	sound(t, r)
	if r.Outcome.Value == schemas.OutcomeCompleted {
		t.Errorf("the outcome is %s", r.Outcome.Value)
	}
	om := r.Coverage.Omitted
	for name, want := range map[string]int{
		"timeline": more + 3, "failed_steps": more, "artifacts": more, "findings": more, "analyzers": more,
		"processes": more, "files": more + 5, "connections": more, "arguments": more, "actions": more, "errors": 2 * more, "pids": 2 * more,
		"sources": more, "hooks": more, "missing_tasks": more,
	} {
		if om[name] != want {
			t.Errorf("%d %s are omitted, not %d", om[name], name, want)
		}
	}
	if om["gaps"] == 0 {
		t.Error("no gaps are omitted")
	}
}

// TestFloodOfFaults shows no more gaps than a person reads.
func TestFloodOfFaults(t *testing.T) {
	list := events(t, "completed")
	n := number(t, list, schemas.EventCompleted) + 1
	for i := range 50_000 {
		list = append(list, contextEvent(t, list, n+i, schemas.Fault{Text: "trouble"}))
	}
	r := folded(t, list)
	sound(t, r)
	if r.Outcome.Value != schemas.OutcomeIncomplete || len(r.Coverage.Gaps) > 1000 {
		t.Errorf("outcome %s with %d gaps", r.Outcome.Value, len(r.Coverage.Gaps))
	}
}

// TestMangled folds logs that were shuffled, cut, repeated and written over, by
// dice that fall the same each time. Whatever comes out is sound; what lacks an
// event is not completed; and two folds agree.
func TestMangled(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2))
	junk := []string{`null`, `{}`, `[]`, `"x"`, `1e999`, `{"task":{}}`, `{"n":-1}`, `{"n":9223372036854775807,"source":"stdout"}`, `{"submission":null}`, `{"artifacts":[null]}`, `{"missing":null}`, `{`, ``}
	types := []string{"petri.context.analysis_completed.v1", "petri.context.analysis_completed.v9", "petri.unknown.thing.v1", "petri.x", "petri.context..v1", "petri.finding.committed.v1", "petri.receipt.committed.v1", "petri.segment.published.v1", "petri.artifact.announced.v1", "petri.derivation.committed.v1", "petri.context.start_analysis.v1"}
	for name := range logs {
		whole := events(t, name)
		for range 60 {
			list := slices.Clone(whole)
			for range 1 + dice.IntN(4) {
				i, j := dice.IntN(len(list)), dice.IntN(len(list))
				switch dice.IntN(7) {
				case 0:
					list = slices.Delete(list, i, i+1)
				case 1:
					list = slices.Insert(list, j, list[i])
				case 2:
					list[i], list[j] = list[j], list[i]
				case 3:
					list[i].Data = json.RawMessage(junk[dice.IntN(len(junk))])
				case 4:
					list[i].Type = types[dice.IntN(len(types))]
				case 5:
					list[i].ID = list[j].ID
				case 6:
					list[i].Analysis = "another"
				}
				if len(list) == 0 {
					break
				}
			}
			check(t, list)
		}
	}
}

// check folds a log twice, and holds the report to what must always hold.
func check(t *testing.T, list []schemas.Event) {
	t.Helper()
	r, err := foldAll(list).Report(documents{})
	if err != nil {
		if r != nil || err != fold.ErrNoSubmission {
			t.Fatalf("%v, with %v", err, r)
		}
		return
	}
	sound(t, r)
	if encode(t, r) != encode(t, folded(t, list)) {
		t.Error("two folds differ")
	}
	if r.Outcome.Value == schemas.OutcomeCompleted {
		for _, name := range []string{schemas.EventSubmitted, schemas.EventSampleStarted, schemas.EventStartAnalysis, schemas.EventCompleted} {
			if !slices.ContainsFunc(list, named(name)) {
				t.Errorf("completed without %s", name)
			}
		}
	}
}

// FuzzFold folds lines of JSON, whatever they hold. Whatever the log: no panic,
// one outcome, and the same report from the same lines.
func FuzzFold(f *testing.F) {
	for name := range logs {
		list, err := recorded(name)
		if err != nil {
			f.Fatal(err)
		}
		var b bytes.Buffer
		for _, e := range list {
			line, err := json.Marshal(e)
			if err != nil {
				f.Fatal(err)
			}
			b.Write(append(line, '\n'))
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var list []schemas.Event
		lines := bufio.NewScanner(bytes.NewReader(b))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			// As hostile as can be: not even the envelope is checked.
			var e schemas.Event
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				list = append(list, e)
			}
		}
		check(t, list)
	})
}

// FuzzDocument folds a whole log with a result document that holds anything.
func FuzzDocument(f *testing.F) {
	whole := events(f, "completed")
	f.Add([]byte(`{"schema":"petri.result.behavior.v1","processes":[{"argv":null}],"files":null,"omitted":{"files":-1}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := foldAll(whole).Report(document(b))
		if err != nil {
			t.Fatal(err)
		}
		sound(t, r)
	})
}
