// SPDX-License-Identifier: Apache-2.0

package analyzers_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/schemas"
)

// list are the analyzers of this test program, which starts itself as a child.
func list() []analyzers.Analyzer {
	return []analyzers.Analyzer{actor{}, actor{hasty: true}, summary{}, stream{}, tool{}, needy{}}
}

func TestMain(m *testing.M) {
	analyzers.Child(list())
	if len(os.Args) == 3 && os.Args[1] == "test-runner" {
		w := newWorld()
		w.sample("actor", []byte("loop"))
		analyzers.Run(context.Background(), list(), w.services(), analyzers.Options{Dir: os.Args[2]})
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// actor does what its sample's first line says.
type actor struct{ hasty bool }

func (a actor) Info() analyzers.Info {
	i := analyzers.Info{Name: "actor", Version: "1.0.0", Kinds: []schemas.Kind{schemas.KindSample}, Memory: 128 << 20}
	if a.hasty {
		i.Name, i.Deadline = "hasty", 500*time.Millisecond
	}
	return i
}

var (
	sink      [][]byte
	rawOutput = os.NewFile(3, "output") // for ever: the collector would close it
)

func (actor) Analyze(ctx context.Context, job analyzers.Job, emit analyzers.Emit) error {
	b, err := io.ReadAll(job.Input.Reader())
	if err != nil {
		return err
	}
	what, rest, _ := strings.Cut(string(b), "\n")
	out := rawOutput
	note := func(err error) error {
		return emit.Finding(schemas.Finding{Kind: "attempt", Title: fmt.Sprintf("%T: %v", err, err)})
	}
	switch what {
	case "ok":
		f, err := analyzers.NewFinding("size", "it has a size", schemas.SeverityInfo, map[string]int64{"size": job.Input.Size()})
		if err != nil {
			return err
		}
		return emit.Finding(f)
	case "panic":
		emit.Finding(schemas.Finding{Kind: "early", Title: "must not be seen"})
		var s []int
		_ = s[len(rest)]
	case "panic_elsewhere":
		go panic("in a goroutine\x1b[31m")
		select {}
	case "oom":
		for {
			p := make([]byte, 1<<20)
			for i := range p {
				p[i] = 1
			}
			sink = append(sink, p)
		}
	case "loop":
		for i := 0; i >= 0; i &= 7 { // for ever
		}
	case "obedient":
		<-ctx.Done()
		return ctx.Err()
	case "sleep":
		time.Sleep(time.Hour)
	case "stdout":
		fmt.Println("this is not a frame")
		return emit.Finding(schemas.Finding{Kind: "fine", Title: "it goes on"})
	case "garbage":
		out.WriteString(rest)
		os.Exit(0)
	case "garbage_flood":
		for {
			out.Write(bytes.Repeat([]byte{'F', 0, 0, 0, 1, '{'}, 10000))
		}
	case "data_flood":
		emit.Result("petri.result.flood.v1", func(w io.Writer) error {
			for {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return err
				}
			}
		})
		return nil
	case "raw_data_flood":
		w := bufio.NewWriter(out)
		payload, _ := json.Marshal(schemas.ResultRef{Schema: "petri.result.flood.v1"})
		frame(w, 'R', payload)
		for {
			frame(w, 'B', make([]byte, 1<<16))
		}
	case "stderr_flood":
		for range 100000 {
			fmt.Fprintln(os.Stderr, strings.Repeat("x", 1000))
		}
		return nil
	case "silent":
		os.Exit(0)
	case "exit":
		fmt.Fprintln(os.Stderr, "I leave")
		os.Exit(7)
	case "many_findings":
		for i := range 1000 {
			f := schemas.Finding{Kind: "number", Title: fmt.Sprint(i)}
			if i%100 == 99 {
				f.Severity = schemas.SeverityHigh
			}
			if err := emit.Finding(f); err != nil {
				return err
			}
		}
		return nil
	case "large_findings":
		for i := range 100 {
			f, err := analyzers.NewFinding("large", fmt.Sprint(i), "", strings.Repeat("<", 10000))
			if err != nil {
				return err
			}
			if err := emit.Finding(f); err != nil {
				return err
			}
		}
		return nil
	case "huge_finding":
		f, err := analyzers.NewFinding("huge", "too much data", schemas.SeverityHigh, strings.Repeat("x", 1<<20))
		if err != nil {
			return err
		}
		return emit.Finding(f)
	case "bad_finding":
		return emit.Finding(schemas.Finding{Kind: "Not A Kind", Title: "x"})
	case "many_derived":
		for i := range 600 {
			if err := emit.Derive(schemas.Derived{Kind: "dropped", Name: fmt.Sprint(i)}, strings.NewReader(fmt.Sprint(i))); err != nil {
				return err
			}
		}
		return nil
	case "large_derived":
		err := emit.Derive(schemas.Derived{Kind: "dropped", Name: "large"}, io.LimitReader(zeros{}, 3<<20))
		if err != nil {
			return err
		}
		return emit.Derive(schemas.Derived{Kind: "dropped", Name: "small\x00\xff", MediaType: "text/plain"}, strings.NewReader(rest))
	case "result":
		return analyzers.EmitJSON(emit, "petri.result.actor.v1", map[string]string{"text": strings.Repeat("x", 5<<20)})
	case "two_results":
		analyzers.EmitJSON(emit, "petri.result.actor.v1", 1)
		return analyzers.EmitJSON(emit, "petri.result.actor.v1", 2)
	case "large_result":
		return analyzers.EmitJSON(emit, "petri.result.actor.v1", strings.Repeat("x", 20<<20))
	case "broken_result":
		return emit.Result("petri.result.actor.v1", func(w io.Writer) error {
			w.Write([]byte("half"))
			return errors.New("no more")
		})
	case "skip":
		return analyzers.Skip("not for %s", "me\n")
	case "error":
		return errors.New("this analyzer does not feel well")
	case "network":
		_, err := net.DialTimeout("tcp", strings.TrimSpace(rest), time.Second)
		return note(err)
	case "read_file":
		_, err := os.ReadFile("/etc/passwd")
		return note(err)
	case "write_input":
		_, err := os.NewFile(4, "input").Write([]byte("x"))
		return note(err)
	case "environment":
		dir, err := os.Getwd()
		return emit.Finding(schemas.Finding{Kind: "environment", Title: fmt.Sprintf("%d variables, in %q (%v), %d arguments, stdin %v", len(os.Environ()), dir, err, len(os.Args), rest)})
	default:
		return analyzers.Skip("unknown act %.40q", what)
	}
	return nil
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func frame(w io.Writer, typ byte, b []byte) {
	n := len(b)
	w.Write([]byte{typ, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	w.Write(b)
}

// summary is of scope analysis.
type summary struct{}

func (summary) Info() analyzers.Info {
	return analyzers.Info{
		Name: "summary", Version: "0.1.0-rc.1", Scope: schemas.ScopeAnalysis, After: analyzers.AfterArtifacts, Reads: []schemas.Kind{schemas.KindConsole},
	}
}

func (summary) Analyze(_ context.Context, job analyzers.Job, emit analyzers.Emit) error {
	for range 2 {
		for e, err := range job.Events {
			if err != nil {
				return err
			}
			if err := emit.Finding(schemas.Finding{Kind: "event", Title: e.Type}); err != nil {
				return err
			}
		}
	}
	for _, item := range job.Artifacts {
		b, err := io.ReadAll(item.Input.Reader())
		if err != nil {
			return err
		}
		if err := emit.Finding(schemas.Finding{Kind: "console", Title: string(b)}); err != nil {
			return err
		}
	}
	return emit.Finding(schemas.Finding{Kind: "omitted", Title: fmt.Sprint(job.Omitted)})
}

// stream reads a trace.
type stream struct{}

func (stream) Info() analyzers.Info {
	return analyzers.Info{Name: "stream", Version: "1.0.0", Kinds: []schemas.Kind{schemas.KindTrace, schemas.KindDropped}}
}

func (stream) Analyze(_ context.Context, job analyzers.Job, emit analyzers.Emit) error {
	b, err := io.ReadAll(job.Input.Reader())
	if err != nil {
		return err
	}
	title := fmt.Sprintf("%.300s", b)
	if job.Manifest != nil {
		title = fmt.Sprintf("%d segments, %d lost: %s", len(job.Manifest.Segments), job.Manifest.Coverage.Lost, b)
	}
	return emit.Finding(schemas.Finding{Kind: "stream", Title: title})
}

// tool starts a program.
type tool struct{}

func (tool) Info() analyzers.Info {
	return analyzers.Info{Name: "tool", Version: "1.0.0", Kinds: []schemas.Kind{schemas.KindSample}, Exec: true, Deadline: time.Second}
}

func (tool) Analyze(ctx context.Context, job analyzers.Job, emit analyzers.Emit) error {
	b, err := io.ReadAll(job.Input.Reader())
	if err != nil {
		return err
	}
	argv := strings.Fields(string(b))
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	return emit.Finding(schemas.Finding{Kind: "tool", Title: fmt.Sprintf("%s (%v)", bytes.TrimSpace(out), err)})
}

// needy is never available.
type needy struct{ analyzers.Analyzer }

func (needy) Info() analyzers.Info {
	return analyzers.Info{Name: "needy", Version: "1.0.0", Kinds: []schemas.Kind{schemas.KindSample}}
}

func (needy) Preflight(context.Context) error {
	return fmt.Errorf("%w: yara is not installed; apt install yara", analyzers.ErrUnavailable)
}
