// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
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
	guest    string // that the machine is
	advice   string // how to have another guest that the sample asks for
	c        *Context
	sample   *os.File
	elf      func() (*schemas.ELFIdentity, error) // the sample's headers, read once
	slog     *slog.Logger
	ended    bool

	signer   Signer        // nil: nobody vouches for the log
	vouching chan struct{} // closed when the signature at start_analysis is done; nil: there is none

	stopListening func() // to what analyzers ask for; nil: nobody did
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
	// No guest is for the sample's CPU and ABI, or the one asked for is not.
	reasonArchitecture = "unsupported_architecture"
	reasonHook         = "hook" // a required hook failed where no step is left to fail
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
	writer, err := a.w.log.OpenContext(context.WithoutCancel(ctx), a.sub.Tenant, a.id)
	if err != nil {
		return failure{reasonLog, err}
	}
	a.c = NewContext(ctx, Config{
		Tenant: a.sub.Tenant, Analysis: a.id, Log: a.w.log, Writer: writer, Store: a.w.store,
		Slog: a.slog, Dir: a.dir, Limits: limits(a.sub.Options.Limits), Clock: a.sub.Options.Clock,
		Gates: a.w.opts.Gates, Findings: a.w.opts.Findings,
	})
	if err := a.begin(ctx); err != nil {
		return err
	}
	if err := a.checkGuest(); err != nil {
		failed = err
	} else if why := a.sub.Sample.Type.Unsupported; why != "" {
		failed = failure{reasonUnsupported, errors.New(why)}
	} else {
		failed = a.drive(ctx)
	}
	if err := a.gather(); err != nil && failed == nil {
		failed = err
	}
	return failed
}

// checkGuest compares the guest that was asked for with the one that the sample
// is for, whatever its submitter took it for: the wrong guest might well start
// it. A command of the user's own is none of the sample's business.
func (a *analysis) checkGuest() error {
	if len(a.sub.Options.Command) > 0 {
		return nil
	}
	id, err := a.elf()
	if errors.Is(err, elfid.ErrNotELF) {
		if elfid.SplitsArgument(a.sub.Sample.Type.Interpreter) { // else env would run, and not the script
			return failure{reasonUnsupported, errors.New("its first line needs the option -S of env, which that of the guests does not have")}
		}
		return nil
	}
	if err != nil {
		return failure{reasonStore, err}
	}
	guest, why := catalogue.Guest(id)
	if why == "" && guest != a.sub.Profile {
		why = fmt.Sprintf("the sample is for the guest %s, and %s was asked for", guest, a.sub.Profile)
	}
	if why != "" {
		return failure{reasonArchitecture, errors.New(why)}
	}
	return nil
}

// listen hears what analyzers ask for until the context takes no more events.
// Nobody waits for it but the context's end.
func (a *analysis) listen() {
	ctx, cancel := context.WithCancel(a.c.work)
	a.stopListening = cancel
	a.c.strays.Add(1)
	go func() {
		defer a.c.strays.Done()
		a.c.listen(ctx)
	}()
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

// refuse ends an analysis that never began.
func (a *analysis) refuse(ctx context.Context, why failure) error {
	log, err := a.w.log.OpenContext(ctx, a.sub.Tenant, a.id)
	if err != nil {
		return err
	}
	submitted := schemas.AnalysisSubmitted{Submission: a.sub, Attempt: a.attempt, RetryOf: a.retryOf}
	e, err := schemas.NewEvent(a.sub.Tenant, a.id, log.NextID(), time.Now(), schemas.OriginHost, submitted)
	if err == nil {
		err = log.Write(ctx, e)
	}
	if err == nil {
		_, err = a.w.endings.End(ctx, a.sub.Tenant, a.id, schemas.AnalysisFailed{Reason: why.reason, Error: why.Error()})
	}
	return err
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
	a.elf = sync.OnceValues(func() (*schemas.ELFIdentity, error) { return elfid.Read(f, a.sub.Sample.Size) })
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
	a.guest, a.advice = a.chooseGuest()
	m, err := a.w.machines.New(ctx, MachineSpec{
		Tenant: a.sub.Tenant, Analysis: a.id, Guest: a.guest, Sample: a.sub.Sample.SHA256, Dir: a.dir,
		Cold: a.sub.Options.Cold || a.coldStep(), Untraced: a.sub.Options.Untraced, Pcap: a.c.cfg.Limits.Pcap, Announce: a.c.Announce,
	}, a.c)
	if err != nil {
		return failure{reasonMachine, err}
	}
	a.c.obey(a.protocol)
	a.c.attach(m)
	a.listen()
	flushed := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(flushed)
		a.c.flushSources(done)
	}()
	err = a.runSteps(ctx)
	var known failure
	switch {
	case errors.Is(err, errNotExecuted), errors.Is(err, errMachineGone):
		err = nil
	case a.c.Err() != nil:
		err = failure{reasonLog, a.c.Err()}
	case errors.As(err, &known):
	case err != nil && context.Cause(ctx) == nil:
		// A protocol that stops at a step has still told all it knows; only
		// a machine that never ran the sample is the sandbox's failure, unless
		// a gate wanted that.
		var stopped *errGate
		if a.c.count(schemas.EventSampleStarted) == 0 && !errors.As(err, &stopped) {
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
	return a.w.opts.Describe(a.guest, start)
}

// gatherTimeout is how long start_analysis waits where the protocol does not
// say.
const gatherTimeout = 60 * time.Second

// gather waits for what still runs, as long as the step start_analysis may,
// stores what is left, and closes the set of artifacts.
func (a *analysis) gather() error {
	i, step := a.lastStep(protocol.StartAnalysis)
	timeout := gatherTimeout
	if step != nil {
		timeout = step.Timeout
	}
	overdue := a.c.settle(timeout)
	if a.stopListening != nil {
		a.stopListening()
	}
	if a.c.Err() != nil {
		return failure{reasonLog, a.c.Err()}
	}
	if overdue && step != nil {
		if _, err := a.c.publishLast(stepFailed(i, *step, fmt.Errorf("hooks were not done after %s", timeout))); err != nil {
			return failure{reasonLog, err}
		}
	}
	var sources []schemas.SourceCoverage
	for _, name := range []schemas.Source{schemas.SourceTrace, schemas.SourcePcap, schemas.SourceStdout, schemas.SourceStderr, schemas.SourceSerial} {
		s := a.c.sources[name]
		cov := s.finish()
		if err := s.manifest(cov); err != nil {
			cov.Status, cov.Reason = schemas.StatusPartial, "its manifest could not be stored: "+err.Error()
		}
		sources = append(sources, cov)
	}
	a.c.mu.Lock()
	if a.c.dropped != nil {
		sources = append(sources, *a.c.dropped)
	}
	a.c.mu.Unlock()
	start := schemas.StartAnalysis{Artifacts: a.c.announced.close(), Sources: sources, Hooks: a.c.hooks.list(), Unheard: a.c.unheard()}
	e, err := a.c.publishLast(start)
	if err != nil {
		return failure{reasonLog, err}
	}
	if err := a.c.dispatch(e); err != nil {
		return failure{reasonHook, err}
	}
	return nil
}

// lastStep is the protocol's last step of that kind, and its index.
func (a *analysis) lastStep(k protocol.Kind) (int, *protocol.Step) {
	if a.protocol != nil {
		for i, s := range slices.Backward(a.protocol.Steps) {
			if s.Kind == k {
				return i, &s
			}
		}
	}
	return 0, nil
}

// run is what the guest shall do.
func (a *analysis) run() (machine.Run, error) {
	name := a.guestName()
	dir := "/root"
	if u := a.sub.Options.User; u != "" && u != "root" && u != "0" {
		dir = "/tmp"
	}
	p := path.Join(dir, name)
	r := machine.Run{
		RunSample: schemas.RunSample{Path: p, Env: a.environment(), Dir: dir, User: a.sub.Options.User},
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
		if id, err := a.elf(); err == nil {
			switch {
			case id.Module:
				r.Load = schemas.HowLoaded
			case elfid.Library(id):
				r.Load = schemas.HowMapped
			}
			r.Interp, r.Needed, r.Versions, r.RunPath = id.Interpreter, id.Needed, id.Versions, runPath(id, dir)
		} else if t := a.sub.Sample.Type; t.Format == elfid.FormatScript {
			if p, program := elfid.Interpreter(t.Interpreter); path.IsAbs(p) {
				r.Interp, r.Program = p, program
			}
		}
	}
	return r, nil
}

// maxLibraryText bounds what the names of libraries and their directories take of
// the request to the guest, in bytes of JSON: the sample chose them.
const maxLibraryText = 8 << 10

// namesTooMuch reports whether the libraries are too many to be asked for in the
// guest. No program needs so many, and a sample may name them so that nobody looks.
func namesTooMuch(r machine.Run) bool {
	b, err := json.Marshal([][]string{r.Needed, r.Versions, r.RunPath})
	return err != nil || len(b) > maxLibraryText
}

// cutOff is where the sample ends by its program headers, if that is behind the
// page in which the file does: Linux maps it all the same, and whoever reads there
// gets SIGBUS, often the loader before it comes to the program. Otherwise it is 0.
func (a *analysis) cutOff() (end uint64) {
	id, err := a.elf()
	if err != nil {
		return 0
	}
	const page = 4 << 10
	for _, s := range id.Segments {
		if s.Type == "PT_LOAD" && s.FileSz > 0 {
			end = max(end, s.Offset+min(s.FileSz, math.MaxUint64-s.Offset))
		}
	}
	if end <= (uint64(a.sub.Sample.Size)+page-1)&^(page-1) {
		return 0
	}
	return end
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

// RandomName as the name of a sample in the guest is one that the sandbox makes
// up, of letters that tell nothing.
const RandomName = "random"

// guestName is the sample's file name in the guest. The same analysis has the
// same one whenever it is asked.
func (a *analysis) guestName() string {
	switch name := cmp.Or(a.sub.Options.Name, path.Base(a.sub.Sample.Name)); {
	case a.sub.Options.Name == RandomName:
		sum := sha256.Sum256([]byte("name " + a.id))
		return strings.ToLower(base32.HexEncoding.EncodeToString(sum[:5]))
	case CheckGuestName(name) == nil:
		return name
	}
	return "sample"
}

// CheckGuestName reports what is wrong with a file name for the guest: it must be
// fit for a shell and a list, whatever reads it.
func CheckGuestName(s string) error {
	ok := s != "" && len(s) <= 64 && s[0] != '.' && s[0] != '-'
	for _, c := range s {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-+", c))
	}
	if !ok {
		return fmt.Errorf("%q is no plain file name: at most 64 letters, digits and ._-+, the first no . or -", s)
	}
	return nil
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
