// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/schemas"
)

const ownAnalysis = "01M7WZ34TR4T32M2AMXEPM8TA2"

func ownBody(t testing.TB, id string, data schemas.Typed) []byte {
	t.Helper()
	e, err := schemas.NewEvent("default", ownAnalysis, ownAnalysis+"/"+id, time.Unix(1e9, 0), schemas.OriginHost, data)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestOwn holds each family's event to its one subject.
func TestOwn(t *testing.T) {
	t.Parallel()
	d := schemas.Sum([]byte("x"))
	task := schemas.TaskRef{Tenant: "default", Analysis: ownAnalysis, Run: schemas.LiveRun, Analyzer: "yara", SHA256: &d, Kind: schemas.KindSample}
	rerun := task
	rerun.Run = "r-" + ownAnalysis
	finding := func(t schemas.TaskRef) schemas.FindingCommitted {
		return schemas.FindingCommitted{Task: t, Finding: schemas.Finding{Kind: "k", Title: "t", Severity: schemas.SeverityHigh}}
	}
	a := schemas.Artifact{Kind: schemas.KindSample, SHA256: d}
	s := schemas.Segment{Source: schemas.SourceStdout, N: 3}
	x := schemas.Derivation{Task: rerun, Artifact: schemas.Artifact{Kind: schemas.KindExtracted, SHA256: d}}
	bodies := map[string][]byte{ // by the subject behind the analysis'
		"context.start_analysis":                                     ownBody(t, "context/4", schemas.StartAnalysis{}),
		"artifact.sample." + d.Token() + ".0":                        ownBody(t, strings.TrimPrefix(a.ID(ownAnalysis), ownAnalysis+"/"), a),
		"segment.stdout.3":                                           ownBody(t, strings.TrimPrefix(s.ID(ownAnalysis), ownAnalysis+"/"), s),
		"finding.high.yara." + d.Token() + ".0":                      ownBody(t, "finding/live/yara/"+d.Token()+"/0", finding(task)),
		"refinding.high.yara." + d.Token() + ".0":                    ownBody(t, "finding/"+rerun.Run+"/yara/"+d.Token()+"/0", finding(rerun)),
		"receipt.live.yara." + d.Token():                             ownBody(t, "receipt/live/yara/"+d.Token(), schemas.Receipt{Task: task}),
		"derivation." + rerun.Run + ".extracted." + d.Token() + ".0": ownBody(t, strings.TrimPrefix(x.ID(), ownAnalysis+"/"), x),
		"report.json":  ownBody(t, "report/json/x", schemas.ReportWritten{Format: "json"}),
		"checkpoint.7": ownBody(t, "checkpoint/7", schemas.Checkpoint{Events: 7}),
	}
	prefix := logPrefix + "default." + ownAnalysis + "."
	subjects := []string{"finding.low.yara." + d.Token() + ".0", "report.html", "context.wait_analysis", "artifact.sample." + d.Token() + ".1", "other.x"}
	for s := range bodies {
		subjects = append(subjects, s)
	}
	for of, body := range bodies {
		for _, at := range subjects {
			if _, err := own(prefix+at, body); (err == nil) != (of == at) {
				t.Errorf("what belongs under %s lies under %s: %v", of, at, err)
			}
		}
		for _, at := range []string{logPrefix + "other." + ownAnalysis + "." + of, logPrefix + "default.01M7WZ34TR4T32M2AMXEPM8TA3." + of, registry + "yara", tombstones + "default." + ownAnalysis, "in.yara.x", ""} {
			if _, err := own(at, body); err == nil {
				t.Errorf("what belongs under %s belongs under %q too", of, at)
			}
		}
	}
	newer := []byte(strings.Replace(string(bodies["report.json"]), "petri.report.written.v1", "petri.newer.thing.v1", 1))
	for at, want := range map[string]bool{"newer.thing": true, "newer.a.b.c": true, "newer": false, "newer.a b": false, "newest.thing": false} {
		if _, err := own(prefix+at, newer); (err == nil) != want {
			t.Errorf("a newer Petri's under %s: %v", at, err)
		}
	}
}

// FuzzOwn has whatever is taken for an event of an analysis be one that its file
// can have, or can say nothing against but what its data says.
func FuzzOwn(f *testing.F) {
	d := schemas.Sum([]byte("x"))
	prefix := logPrefix + "default." + ownAnalysis + "."
	f.Add(prefix+"context.analysis_submitted", ownBody(f, "context/0", schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: ownAnalysis}}))
	f.Add(prefix+"receipt.live.yara."+d.Token(), ownBody(f, "receipt/live/yara/"+d.Token(), schemas.Receipt{Task: schemas.TaskRef{SHA256: &d}}))
	f.Add(prefix+"finding.info.yara._.0", ownBody(f, "finding/live/yara/_/0", schemas.FindingCommitted{}))
	f.Add(prefix+"report.json", []byte(`{"error":{"code":404}}`))
	f.Add(registry+"yara", []byte{})
	f.Fuzz(func(t *testing.T, subject string, body []byte) {
		e, err := own(subject, body)
		if err != nil {
			return
		}
		tenant, analysis, _, _, ok := analysisOf(subject)
		if ok && (e.Tenant != tenant || e.Analysis != analysis) {
			t.Errorf("%s's under %q", e.Analysis, subject)
		}
		if !ok && !strings.HasPrefix(subject, "petri._") {
			t.Errorf("under %q", subject)
		}
		r := newRepeats()
		entry := newEntry(1, subject, body)
		if was, err := r.again(entry); was || err != nil {
			t.Errorf("the first %s: %v, %v", e.ID, was, err)
		}
		switch e.Family() {
		case "context", "artifact", "derivation", "finding", "receipt", "checkpoint":
			if was, err := r.again(entry); ok && !was {
				t.Errorf("the second %s is not found to be one: %v", e.ID, err)
			}
		}
		if !ok || schemas.CheckTenant(tenant) != nil || schemas.CheckID(analysis) != nil || e.Name() != schemas.EventSubmitted {
			return
		}
		log, err := petrifile.NewLog(tenant, analysis, "")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = log.Add(petrifile.Entry{Subject: subject, Body: body}) // it may refuse, and must not panic
	})
}
