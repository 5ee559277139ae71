// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// detonate runs a file and returns its report, as bytes too, and the exit code.
func detonate(t *testing.T, bin, data string, args ...string) (*schemas.Report, []byte, int) {
	t.Helper()
	s := start(t, bin, data, append([]string{"--json", "run"}, args...)...)
	code := s.wait(8 * time.Minute)
	var r schemas.Report
	if err := json.Unmarshal(s.out.Bytes(), &r); err != nil {
		t.Fatalf("exit code %d, no report: %v\n%s%s", code, err, s.out.Bytes(), s.stderr.Bytes())
	}
	return &r, s.out.Bytes(), code
}

func file(r *schemas.Report, path string) *schemas.FileActivity {
	i := slices.IndexFunc(r.Files, func(f schemas.FileActivity) bool { return f.Path == path })
	if i < 0 {
		return nil
	}
	return &r.Files[i]
}

// TestRunDynamic runs a dynamically linked program of this host: exit code,
// output, process, files with results, and the trace with the printed text.
// Whoever folds the log gets the same bytes as the one who ran it.
func TestRunDynamic(t *testing.T) {
	bin := build(t)
	data, out := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "out")
	r, text, code := detonate(t, bin, data, "--out", out, "/bin/ls", "--", "-la", "/")
	if code != 0 || r.Outcome.Value != schemas.OutcomeCompleted || r.Verdict.Value != schemas.VerdictUndetermined {
		t.Errorf("exit code %d, outcome %+v, verdict %+v", code, r.Outcome, r.Verdict)
	}
	if c := r.Console; c.ExitCode == nil || *c.ExitCode != 0 || !strings.HasPrefix(c.Stdout, "total ") || !strings.Contains(c.Stdout, " etc\n") {
		t.Errorf("console: %+v", c)
	}
	if len(r.Processes) != 1 || !slices.Equal(r.Processes[0].Argv, []string{"/root/ls", "-la", "/"}) || r.Processes[0].ExitCode == nil {
		t.Errorf("processes: %+v", r.Processes)
	}
	if f := file(r, "/etc/passwd"); f == nil || f.Opens == 0 || f.Read == 0 {
		t.Errorf("/etc/passwd: %+v", f)
	}
	if f := file(r, "/etc/ld.so.preload"); f == nil || f.Failed == 0 || !slices.Contains(f.Errors, "ENOENT") {
		t.Errorf("/etc/ld.so.preload: %+v", f)
	}
	if got := run(t, bin+"/petri", "--data", data, "trace", r.Analysis.ID); !strings.Contains(got, `write(1, "total `) {
		t.Errorf("the trace has no write of the printed text:\n%.2000s", got)
	}
	stored, err := os.ReadFile(filepath.Join(out, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		again := run(t, bin+"/petri", "--data", data, "--json", "report", r.Analysis.ID)
		if again != string(text) || !bytes.Equal(stored, text) {
			t.Error("the log folded again gives another report")
		}
	}
	for _, a := range r.Artifacts {
		if a.Kind == schemas.KindTemplate {
			continue // of many analyses, and named by its digest in the report
		}
		found, _ := filepath.Glob(filepath.Join(out, "artifacts", string(a.Kind)+"-"+a.SHA256.String()+"*"))
		if len(found) != 1 {
			t.Errorf("%s %s was not written: %v", a.Kind, a.SHA256, found)
		}
	}
}

// TestRunStatic runs a static program that forks, execs, writes, deletes and
// connects.
func TestRunStatic(t *testing.T) {
	bin := build(t)
	r, _, code := detonate(t, bin, filepath.Join(t.TempDir(), "data"), program(t, "demo.c"))
	if code != 0 || r.Outcome.Value != schemas.OutcomeCompleted {
		t.Errorf("exit code %d, outcome %+v", code, r.Outcome)
	}
	if len(r.Processes) != 5 {
		t.Errorf("%d processes, there are 5: %+v", len(r.Processes), r.Processes)
	}
	if f := file(r, "/tmp/gone"); f == nil || !slices.Contains(f.Actions, "delete") {
		t.Errorf("/tmp/gone: %+v", f)
	}
	dropped := slices.ContainsFunc(r.Artifacts, func(a schemas.Artifact) bool {
		return a.Kind == schemas.KindDropped && a.Name == "/tmp/.payload"
	})
	if !dropped {
		t.Errorf("/tmp/.payload was not collected: %+v", r.Artifacts)
	}
	if !slices.ContainsFunc(r.Network.Connections, func(c schemas.NetworkActivity) bool { return c.Address == "198.51.100.7" && c.Port == 23 }) {
		t.Errorf("connections: %+v", r.Network.Connections)
	}
}

// TestRunOptions gives a sample arguments, environment, directory, user and
// standard input.
func TestRunOptions(t *testing.T) {
	bin := build(t)
	dir := t.TempDir()
	sample, input := dir+"/sample", dir+"/input"
	for path, text := range map[string]string{sample: "#!/bin/sh\necho \"$@\" $COLOR $(pwd) $(id -un)\ncat\n", input: "from standard input\n"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, _, code := detonate(t, bin, filepath.Join(t.TempDir(), "data"),
		"--env", "COLOR=blue", "--dir", "/var", "--user", "nobody", "--stdin", input, sample, "--", "a b", "c")
	if want := "a b c blue /var nobody\nfrom standard input\n"; code != 0 || r.Console.Stdout != want {
		t.Errorf("exit code %d, outcome %+v, it printed %q %q, want %q", code, r.Outcome, r.Console.Stdout, r.Console.Stderr, want)
	}
}

// TestRunOutcome runs what does not run, or not well, and looks at the outcome
// and the exit code. None of it is called clean.
func TestRunOutcome(t *testing.T) {
	bin := build(t)
	_, data := up(t, bin) // all runs share it
	write := func(name string, b []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ls, err := os.ReadFile("/bin/ls")
	if err != nil {
		t.Fatal(err)
	}
	sparc := bytes.Clone(ls)
	sparc[18] = 0x2b // e_machine: EM_SPARCV9
	script := func(s string) []byte { return []byte("#!/bin/sh\n" + s) }
	for _, tt := range []struct {
		name    string
		file    string
		args    []string
		outcome schemas.Outcome
		code    int
		reason  string // part of one
	}{
		{"text", write("text", []byte("no program\n")), nil, schemas.OutcomeUnsupported, 4, "interpreter line"},
		{"truncated", write("truncated", ls[:100]), nil, schemas.OutcomeUnsupported, 4, "truncated"},
		{"another CPU", write("sparc64", sparc), nil, schemas.OutcomeUnsupported, 4, "EM_SPARCV9"},
		{"interpreter that is not there", write("script", []byte("#!/no/such/interpreter\n")), nil, schemas.OutcomeNotExecuted, 4, "interpreter /no/such"},
		{"library that is not there", missingLibrary(t), nil, schemas.OutcomeNotExecuted, 4, "libpetri-nowhere.so.1"},
		{"odd name", write("na\nme \"q\" $(x)", script("echo \"$0\"")), nil, schemas.OutcomeCompleted, 0, ""},
		{"text with a command", write("text", []byte("echo from a text\n")), []string{"--command", "sh {sample}"}, schemas.OutcomeCompleted, 0, ""},
		{"reboot", write("reboot", script("echo b >/proc/sysrq-trigger; sleep 10\n")), nil, schemas.OutcomeIncomplete, 5, "went down by itself"},
		{"kills all", write("killer", script("kill -9 -1; echo alive\n")), nil, schemas.OutcomeCompleted, 0, ""},
		{"closes its output and sleeps", write("sleeper", script("exec >&- 2>&- <&-; sleep 1000\n")), []string{"--runtime", "2s"}, schemas.OutcomeCompleted, 0, ""},
		{"prints without end", write("printer", script("while :; do cat /bin/busybox; done\n")), []string{"--runtime", "3s"}, schemas.OutcomeIncomplete, 5, "stdout"},
		{"same bytes twice", write("twice", script("echo same >/tmp/a; echo same >/tmp/b; exit 3\n")), nil, schemas.OutcomeCompleted, 0, ""},
		{"a limit lowered", write("script", script("echo more than ten bytes\n")), []string{"--limit", "stdout=10"}, schemas.OutcomeIncomplete, 5, "stdout"},
		{"untraced", write("script", script("exit 0\n")), []string{"--untraced"}, schemas.OutcomeIncomplete, 5, "trace"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, _, code := detonate(t, bin, data, append(tt.args, tt.file)...)
			if r.Outcome.Value != tt.outcome || code != tt.code {
				t.Errorf("outcome %+v and exit code %d, want %s and %d", r.Outcome, code, tt.outcome, tt.code)
			}
			if r.Verdict.Value == schemas.VerdictNoFindings {
				t.Error("it was called clean")
			}
			if !slices.ContainsFunc(append(r.Outcome.Reasons, ""), func(s string) bool { return strings.Contains(s, tt.reason) }) {
				t.Errorf("no reason says %q: %q", tt.reason, r.Outcome.Reasons)
			}
		})
	}
}

// missingLibrary is a program that needs a library which no guest has.
func missingLibrary(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"lib.c": "int f(void) { return 7; }\n", "main.c": "int f(void); int main(void) { return f(); }\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "gcc", "-shared", "-fPIC", "-Wl,-soname,libpetri-nowhere.so.1", "-o", dir+"/libpetri-nowhere.so", dir+"/lib.c")
	run(t, "gcc", "-o", dir+"/needs", dir+"/main.c", "-L"+dir, "-lpetri-nowhere")
	return dir + "/needs"
}
