// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/protocol"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/elfid"
)

// analysis is one execution of a protocol on a sample.
type analysis struct {
	w        *Worker
	sub      schemas.Submission
	id       string
	attempt  int
	retryOf  string
	dir      string
	protocol *protocol.Protocol
	c        *Context
	sample   *os.File
	slog     *slog.Logger
	ended    bool
}

// errCancelled is the cause of a cancelled analysis.
type errCancelled struct{ by string }

func (e errCancelled) Error() string { return "cancelled by " + e.by }

// failure is an error with the word that analysis_failed gives for it.
type failure struct {
	reason string
	err    error
}

func (f failure) Error() string { return f.err.Error() }
func (f failure) Unwrap() error { return f.err }

// Reasons of analysis_failed.
const (
	reasonInterrupted = "interrupted" // the sandbox died
	reasonMachine     = "machine"     // the machine could not be started or driven
	reasonStore       = "store"       // the artifact store failed
	reasonLog         = "log"         // the log was away for too long
	reasonProtocol    = "protocol"    // the protocol or the hooks cannot be read
	reasonUnsupported = "unsupported" // no guest can run the sample
)

// Retryable reports whether another attempt may go better.
func Retryable(reason string) bool {
	switch reason {
	case reasonInterrupted, reasonMachine, reasonStore, reasonLog:
		return true
	}
	return false
}

// machineTime runs the analysis up to start_analysis: everything that needs
// the machine, and its end. It returns why the analysis fails, if it does, and
// leaves nothing of the machine behind whatever happens.
func (a *analysis) machineTime(ctx context.Context) (failed error) {
	// The context outlives a cancellation: its end has to be told too.
	life := context.WithoutCancel(ctx)
	writer, err := a.w.log.OpenContext(life, a.sub.Tenant, a.id)
	if err != nil {
		return failure{reasonLog, err}
	}
	a.c = NewContext(life, Config{
		Tenant: a.sub.Tenant, Analysis: a.id, Log: a.w.log, Writer: writer, Store: a.w.store,
		Slog: a.slog, Dir: a.dir, Limits: limits(a.sub.Options.Limits),
	})
	if err := a.begin(ctx); err != nil {
		return err
	}
	if why := a.sub.Sample.Type.Unsupported; why != "" {
		failed = failure{reasonUnsupported, errors.New(why)}
	} else {
		failed = a.drive(ctx)
	}
	if err := a.gather(); err != nil && failed == nil {
		failed = err
	}
	return failed
}

// begin publishes who runs the analysis, and announces the sample.
func (a *analysis) begin(ctx context.Context) error {
	submitted := schemas.AnalysisSubmitted{Submission: a.sub, Attempt: a.attempt, RetryOf: a.retryOf}
	if err := a.c.emit(schemas.OriginHost, submitted); err != nil {
		return failure{reasonLog, err}
	}
	if err := a.c.emit(schemas.OriginHost, schemas.AnalysisClaimed{Worker: a.w.opts.ID, Host: a.w.opts.Host, Version: a.w.opts.Version}); err != nil {
		return failure{reasonLog, err}
	}
	if err := a.fetchSample(ctx); err != nil {
		return failure{reasonStore, err}
	}
	s := a.sub.Sample
	if err := a.c.Announce(ctx, schemas.Artifact{Kind: schemas.KindSample, SHA256: s.SHA256, Size: s.Size, Name: s.Name}); err != nil {
		return failure{reasonLog, err}
	}
	return nil
}

// fetchSample copies the sample out of the store, which verifies it.
func (a *analysis) fetchSample(ctx context.Context) error {
	r, size, err := a.w.store.Open(ctx, a.sub.Sample.SHA256)
	if err != nil {
		return fmt.Errorf("fetch the sample: %w", err)
	}
	defer r.Close()
	f, err := os.CreateTemp(a.dir, "sample-")
	if err != nil {
		return fmt.Errorf("fetch the sample: %w", err)
	}
	a.sample = f
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	n, err := io.Copy(f, r)
	if err == nil && (n != size || n != a.sub.Sample.Size) {
		err = fmt.Errorf("it has %d bytes, not the %d that were submitted", n, a.sub.Sample.Size)
	}
	if err != nil {
		return fmt.Errorf("fetch the sample: %w", err)
	}
	return nil
}

// drive makes the machine and runs the protocol on it.
func (a *analysis) drive(ctx context.Context) error {
	var err error
	if a.protocol, err = protocol.Parse(a.sub.Protocol); err != nil {
		return failure{reasonProtocol, fmt.Errorf("protocol: %w", err)}
	}
	if err := a.w.opts.InstallHooks(a.c, a.sub.Hooks); err != nil {
		return failure{reasonProtocol, err}
	}
	m, err := a.w.machines.New(ctx, MachineSpec{
		Tenant: a.sub.Tenant, Analysis: a.id, Arch: a.sub.Profile, Dir: a.dir,
		Cold: a.sub.Options.Cold || a.coldStep(), Untraced: a.sub.Options.Untraced, Pcap: a.c.cfg.Limits.Pcap, Announce: a.c.Announce,
	}, a.c)
	if err != nil {
		return failure{reasonMachine, err}
	}
	a.c.attach(m)
	flushed := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(flushed)
		a.c.flushSources(done)
	}()
	err = a.runSteps(ctx)
	switch {
	case errors.Is(err, errNotExecuted), errors.Is(err, errMachineGone):
		err = nil
	case a.c.Err() != nil:
		err = failure{reasonLog, a.c.Err()}
	case err != nil && context.Cause(ctx) == nil:
		// A protocol that stops at a step has still told all it knows; only
		// a machine that never ran the sample is the sandbox's failure.
		if a.c.count(schemas.EventSampleStarted) == 0 {
			err = failure{reasonMachine, err}
		} else {
			err = nil
		}
	}
	a.c.stop(stopReason(err, ctx))
	close(done)
	<-flushed
	return err
}

func stopReason(err error, ctx context.Context) string {
	var c errCancelled
	if errors.As(context.Cause(ctx), &c) {
		return c.Error()
	}
	if err != nil {
		return "teardown after: " + err.Error()
	}
	return "teardown"
}

// coldStep reports whether the protocol asks for a boot.
func (a *analysis) coldStep() bool {
	return slices.ContainsFunc(a.protocol.Steps, func(s protocol.Step) bool { return s.Kind == protocol.Poweron && s.Cold })
}

func (a *analysis) machineSpec(cold bool) schemas.MachineSpec {
	start := "warm"
	if cold || a.sub.Options.Cold {
		start = "cold"
	}
	return a.w.opts.Describe(a.sub.Profile, start)
}

// gather waits for what still runs, stores what is left, and closes the set of
// artifacts.
func (a *analysis) gather() error {
	close(a.c.facts) // the machine is gone: nobody reports any more
	a.c.factsWG.Wait()
	if a.c.Err() != nil {
		return failure{reasonLog, a.c.Err()}
	}
	a.c.handlers.Wait()
	var sources []schemas.SourceCoverage
	for _, name := range []schemas.Source{schemas.SourceTrace, schemas.SourcePcap, schemas.SourceStdout, schemas.SourceStderr, schemas.SourceSerial} {
		s := a.c.sources[name]
		cov := s.finish()
		if err := s.manifest(cov); err != nil {
			cov.Status, cov.Reason = schemas.StatusPartial, "its manifest could not be stored: "+err.Error()
		}
		sources = append(sources, cov)
	}
	if a.c.dropped != nil {
		sources = append(sources, *a.c.dropped)
	}
	start := schemas.StartAnalysis{Artifacts: a.c.announced.close(), Sources: sources, Hooks: a.c.hooks.list()}
	if err := a.c.emit(schemas.OriginHost, start); err != nil {
		return failure{reasonLog, err}
	}
	return nil
}

// run is what the guest shall do.
func (a *analysis) run() (machine.Run, error) {
	name := guestName(a.sub.Sample.Name)
	dir := "/root"
	if u := a.sub.Options.User; u != "" && u != "root" && u != "0" {
		dir = "/tmp"
	}
	p := path.Join(dir, name)
	r := machine.Run{
		RunSample: schemas.RunSample{Path: p, Env: a.sub.Options.Env, Dir: dir, User: a.sub.Options.User},
		Name:      name, Size: a.sub.Sample.Size, Trace: !a.sub.Options.Untraced, Stdin: a.sub.Options.Stdin,
	}
	if d := a.sub.Options.Dir; d != "" {
		r.Dir = d
	}
	if r.User == "" {
		r.User = "root"
	}
	r.Command = append(a.expandTo(a.sub.Options.Command, p), a.sub.Options.Args...)
	l := limits(a.sub.Options.Limits)
	r.Limits = machine.Limits{Stdout: l.Stdout, Tasks: l.Tasks}
	if len(a.sub.Options.Command) == 0 {
		// Only of the sample itself is it known what its loader will ask for.
		if id, err := elfid.Read(a.sample, a.sub.Sample.Size); err == nil {
			r.Interp, r.Needed = id.Interpreter, id.Needed
			r.RunPath = runPath(id, dir)
		}
	}
	return r, nil
}

// runPath lists the directories that the sample itself tells its loader to look
// in.
func runPath(id *schemas.ELFIdentity, origin string) []string {
	var out []string
	for _, d := range slices.Concat(id.RunPath, id.RPath) {
		out = append(out, strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin).Replace(d))
	}
	return out
}

// guestName makes a file name for the guest out of what the submitter called
// the sample.
func guestName(s string) string {
	s = path.Base(s)
	ok := s != "" && len(s) <= 64 && s[0] != '.' && s[0] != '-'
	for _, c := range s {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-+", c))
	}
	if !ok {
		return "sample"
	}
	return s
}

// sampleWord stands for the sample's path in a command.
const sampleWord = "{sample}"

func (a *analysis) expand(command []string) []string {
	run, err := a.run()
	if err != nil {
		return command
	}
	return a.expandTo(command, run.Path)
}

// expandTo puts the sample's path in the place of the word {sample}; no
// command is the sample itself.
func (a *analysis) expandTo(command []string, p string) []string {
	if len(command) == 0 {
		return []string{p}
	}
	out := slices.Clone(command)
	for i, w := range out {
		if w == sampleWord {
			out[i] = p
		}
	}
	return out
}

// analysisTime waits for the analyzers and ends the analysis. The machine is
// gone and the job acknowledged by then.
func (a *analysis) analysisTime(ctx context.Context, failed error) {
	if a.c != nil && errors.Is(a.c.Err(), ErrFenced) {
		return // somebody else ends it
	}
	var missing []schemas.MissingTask
	if a.c != nil && a.c.count(schemas.EventStartAnalysis) > 0 && context.Cause(ctx) == nil {
		var err error
		if missing, err = a.waitForAnalyzers(ctx); err != nil && failed == nil {
			failed = failure{reasonLog, err}
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		failed = cause
	}
	// Whoever asked for the end need not wait for the log, but the log shall
	// have the ending.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	var cancelled errCancelled
	var f failure
	switch {
	case failed == nil:
		a.end(ctx, schemas.AnalysisCompleted{Missing: missing})
	case errors.As(failed, &cancelled):
		a.end(ctx, schemas.AnalysisCancelled{By: cancelled.by})
	case errors.As(failed, &f):
		a.end(ctx, schemas.AnalysisFailed{Reason: f.reason, Error: f.Error()})
	default:
		a.end(ctx, schemas.AnalysisFailed{Reason: reasonMachine, Error: failed.Error()})
	}
}

// endTimeout is how long the ending may take to reach the log. After it the
// next start of a sandbox writes it.
const endTimeout = 30 * time.Second

// waitTimeout is how long analyzers have where the protocol does not say.
const waitTimeout = 60 * time.Second

func (a *analysis) waitForAnalyzers(ctx context.Context) ([]schemas.MissingTask, error) {
	timeout := waitTimeout
	if a.protocol != nil {
		for _, s := range a.protocol.Steps {
			if s.Kind == protocol.WaitAnalysis {
				timeout = s.Timeout
			}
		}
	}
	deadline := time.Now().Add(timeout)
	if err := a.c.emit(schemas.OriginHost, schemas.WaitAnalysis{Deadline: deadline.UTC(), Expected: a.sub.Expected}); err != nil {
		return nil, err
	}
	return a.w.endings.Wait(ctx, a.sub.Tenant, a.id, deadline, a.sub.Expected)
}

func (a *analysis) end(ctx context.Context, ending schemas.Typed) {
	e, err := a.w.endings.End(ctx, a.sub.Tenant, a.id, ending)
	if err != nil {
		a.slog.Error("end the analysis", "analysis", a.id, "error", err)
		return
	}
	a.slog.Info("analysis ended", "analysis", a.id, "event", e.Name())
	a.ended = true
}
