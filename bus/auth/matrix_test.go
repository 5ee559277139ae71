// SPDX-License-Identifier: Apache-2.0

package auth_test

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
)

var update = flag.Bool("update", false, "write the table into docs/security.md")

// columns of the matrix: a role, and its name if it has one.
var columns = []struct {
	role auth.Role
	name string
}{
	{auth.Clerk, ""}, {auth.Archiver, ""}, {auth.Sandboxd, ""}, {auth.Analyzer, "yara"}, {auth.Reporter, ""}, {auth.SIEM, ""}, {auth.User, "acme"},
}

// matrix says who may do what: one letter per column, y or -. Of what is not
// listed nobody but bus and admin may anything.
var matrix = []struct {
	subject, what, may string
	listen             bool
}{
	{"petri.acme.A.context.pre_poweron", "write context events", "--y----", false},
	{"petri.acme.A.artifact.sample.D.0", "announce artifacts", "y-y----", false},
	{"petri.acme.A.checkpoint.7", "sign the log", "--y----", false},
	{"petri.acme.A.report.json", "announce reports", "----y--", false},
	{"petri.acme.A.finding.high.yara.D.0", "write findings", "y------", false},
	{"petri.acme.A.receipt.live.yara.D", "write receipts", "y------", false},
	{"petri._registry.yara", "write registrations past the registrar", "-------", false},
	{"petri._tombstone.acme.A", "say that an analysis was deleted", "-------", false},
	{"petri.acme.A.context.analysis_amended", "note that an answer came late", "y-y----", false},
	{"in.yara.T", "hand in yara's finished tasks", "---y---", false},
	{"in.capa.T", "hand in another analyzer's finished tasks", "-------", false},
	{"reg.yara", "register yara", "---y---", false},
	{"reg.capa", "register another analyzer", "-------", false},
	{"unreg.capa", "unregister another analyzer", "-------", false},
	{"$KV.REGISTRY.yara.host-1", "show that yara lives", "---y---", false},
	{"$KV.REGISTRY.capa.host-1", "show that another analyzer lives", "-------", false},
	{"$JS.API.CONSUMER.MSG.NEXT.LOG.az-yara-live", "take yara's tasks", "-yyy---", false},
	{"$JS.API.CONSUMER.MSG.NEXT.LOG.az-capa-live", "take another analyzer's tasks", "-yy----", false},
	{"$JS.API.CONSUMER.MSG.NEXT.RUNS.az-yara-run", "take yara's tasks of runs", "---y---", false},
	{"$JS.API.CONSUMER.MSG.NEXT.RUNS.az-capa-run", "take another analyzer's tasks of runs", "-------", false},
	{"$JS.ACK.LOG.az-yara-live.1.1.1.1.1", "finish yara's tasks", "---y---", false},
	{"$JS.ACK.LOG.az-capa-live.1.1.1.1.1", "finish another analyzer's tasks", "-------", false},
	{"dead.LOG.az-yara-live", "bury yara's tasks", "---y---", false},
	{"dead.LOG.az-capa-live", "bury another analyzer's tasks", "-------", false},
	{"dead.RUNS.az-yara-run", "bury yara's tasks of runs", "---y---", false},
	{"$JS.API.CONSUMER.MSG.NEXT.INBOX.clerk", "take finished tasks", "y------", false},
	{"run.capa.R.T", "give out tasks of runs", "y------", false},
	{"dead.INBOX.clerk.yara", "bury finished tasks", "y------", false},
	{"dead.JOBS.jobs", "bury jobs", "--y----", false},
	{"$JS.API.CONSUMER.CREATE.LOG.mine", "make consumers on the log", "-yy----", false},
	{"$JS.API.CONSUMER.DELETE.LOG.az-yara-live", "delete consumers", "-------", false},
	{"$JS.API.STREAM.MSG.GET.LOG", "read the whole log", "yyyyy--", false},
	{"$JS.API.DIRECT.GET.LOG.petri.acme.A.report.json", "look up an event of acme", "yyyyy--", false},
	{"$JS.API.DIRECT.GET.LOG.petri.other.A.report.json", "look up an event of another tenant", "yyyyy--", false},
	{"$JS.API.STREAM.PURGE.LOG", "purge the log", "-y-----", false},
	{"$JS.API.STREAM.MSG.DELETE.LOG", "delete from the log", "-------", false},
	{"$JS.API.STREAM.DELETE.LOG", "delete the log", "-------", false},
	{"$JS.API.STREAM.UPDATE.LOG", "change the log's configuration", "-------", false},
	{"$JS.API.STREAM.CREATE.X", "make streams", "-------", false},
	{"$JS.API.STREAM.SNAPSHOT.LOG", "copy the log", "-------", false},
	{"$O.ART.M.N", "write artifacts", "y-y----", false},
	{"$JS.API.STREAM.MSG.GET.OBJ_ART", "read artifacts", "yyyyy--", false},
	{"$JS.API.STREAM.PURGE.OBJ_ART", "purge artifacts", "-------", false},
	{"$O.REP.M.N", "write reports", "----y--", false},
	{"$O.ARC.M.N", "write the archive", "-y-----", false},
	{"$KV.ARCHIVE.acme.A", "write the archive's entries", "-y-----", false},
	{"$O.UP-yara.M.N", "upload as yara", "---y---", false},
	{"$JS.API.DIRECT.GET.KV_MEMO.$KV.MEMO.K", "look for an earlier answer by the hash of the work", "yy-y---", false},
	{"$KV.MEMO.K", "say what an earlier answer is", "y------", false},
	{"$JS.API.STREAM.MSG.GET.KV_ATTEMPTS", "read how often a task was begun, by its hash", "yy-y---", false},
	{"$KV.ATTEMPTS.yara.T", "say that yara begins a task", "---y---", false},
	{"$KV.ATTEMPTS.capa.T", "say that another analyzer begins a task", "-------", false},
	{"$JS.API.DIRECT.GET.OBJ_UP-yara.$O.UP-yara.C.N", "have its own uploads sent somewhere", "yy-----", false},
	{"$JS.API.STREAM.PURGE.OBJ_UP-yara", "take away what yara has uploaded", "y------", false},
	{"$O.UP-capa.M.N", "upload as another analyzer", "-------", false},
	{"$KV.PROFILES.amd64", "say which analyzers are expected", "-------", false},
	{"$JS.API.STREAM.MSG.GET.KV_PROFILES", "read which analyzers are expected", "yyy----", false},
	{"$KV.ANALYZERS.yara", "add and remove analyzers", "-------", false},
	{"$JS.API.STREAM.MSG.GET.KV_ANALYZERS", "read which analyzers are added or removed", "yyyy---", false},
	{"job.acme.amd64.high", "queue a job of acme", "--y----", false},
	{"job.other.amd64.high", "queue a job of another tenant", "--y----", false},
	{"$JS.API.CONSUMER.MSG.NEXT.JOBS.sbx-amd64-high", "take jobs", "--y----", false},
	{"$JS.API.STREAM.MSG.GET.JOBS", "read the queue", "yyy----", false},
	{"ctl.acme.A.cancel", "cancel an analysis of acme", "-------", false},
	{"ctl.other.A.cancel", "cancel another tenant's analysis", "-------", false},
	{"ask.acme.list", "ask the desk for acme", "------y", false},
	{"ask.acme.submit.S", "bring the desk a sample of acme", "------y", false},
	{"ask.other.list", "ask the desk for another tenant", "-------", false},
	{"gate.acme.mine", "ask a gate", "--y----", false},
	{"$KV.LEASE.A", "hold a lease", "--y----", false},
	{"$KV.STATE.acme.A", "change the list of analyses", "-y-----", false},
	{"$SYS.REQ.SERVER.PING", "administer the servers", "-------", false},
	{"_INBOX_bus.x", "answer in another's place", "-------", false},

	{"_INBOX_bus.>", "hear another's answers", "-------", true},
	{"_INBOX.>", "hear answers of clients without a prefix", "-------", true},
	{"live.petri.acme.>", "watch acme", "------y", true},
	{"live.petri.other.>", "watch another tenant", "-------", true},
	{"live.petri.>", "watch everybody", "-------", true},
	{"live.petri.*.*.finding.>", "hear everybody's findings", "-----y-", true},
	{"ctl.*.*.*", "be told to cancel", "--y----", true},
	{"in.>", "read finished tasks", "-------", true},
	{"job.>", "listen to jobs", "-------", true},
	{"reg.*", "be the registrar", "-------", true},
	{"ask.>", "be the desk", "-------", true},
	{"gate.acme.mine", "be a gate", "-------", true},
	{">", "hear everything", "-------", true},
}

// serve runs the server of a generated configuration.
func serve(t *testing.T) (dir, url string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "bus")
	o := auth.Options{Hosts: []string{"127.0.0.1"}, Tenants: []string{"acme", "other"}, Analyzers: []string{"static"}, MaxPayload: 4 << 20}
	if err := auth.Init(dir, o); err != nil {
		t.Fatal(err)
	}
	if _, err := auth.AddUser(dir, auth.Analyzer, "yara", auth.UserOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Join(dir, "nodes", "127.0.0.1"))
	opts, err := server.ProcessConfigFile("nats.conf")
	if err != nil {
		t.Fatal(err)
	}
	opts.NoSigs, opts.NoLog, opts.Port = true, true, server.RANDOM_PORT
	opts.TLSTimeout, opts.AuthTimeout = 60, 60
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("the server does not start")
	}
	o.Port = s.Addr().(*net.TCPAddr).Port
	return dir, o.URL()
}

// serveLocal runs the server that Petri brings with it.
func serveLocal(t *testing.T) (dir, url string) {
	t.Helper()
	dir = t.TempDir()
	s, err := bus.StartServer(dir, bus.ServerOptions{Analyzers: []string{"static"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for _, u := range [][2]string{{"user", "acme"}, {"user", "other"}, {"analyzer", "yara"}} {
		if _, err := auth.AddUser(dir, auth.Role(u[0]), u[1], auth.UserOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return dir, s.Address().URL
}

// both has a test run on several hosts' server, and on that of one machine.
func both(t *testing.T, test func(t *testing.T, dir, url string)) {
	for name, serve := range map[string]func(*testing.T) (string, string){"hosts": serve, "machine": serveLocal} {
		t.Run(name, func(t *testing.T) {
			dir, url := serve(t)
			test(t, dir, url)
		})
	}
}

// address is how a user reaches a server.
func address(dir, url, user string) bus.Address {
	a := bus.Address{URL: url, Creds: filepath.Join(dir, "users", user+".creds"), CA: filepath.Join(dir, "ca", "ca.pem")}
	if _, err := os.Stat(a.CA); err != nil { // of one machine
		a.CA = ""
	}
	return a
}

// client is one user's connection.
type client struct {
	nc     *nats.Conn
	mu     sync.Mutex
	denied []string
}

func (c *client) refused() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.denied
	c.denied = nil
	return out
}

func dial(t *testing.T, dir, url, user string) *client {
	t.Helper()
	c := &client{}
	a := address(dir, url, user)
	opts := []nats.Option{nats.UserCredentials(a.Creds),
		nats.CustomInboxPrefix(auth.InboxPrefix(user)), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.denied = append(c.denied, err.Error())
			}
		})}
	if a.CA != "" {
		opts = append(opts, nats.RootCAs(a.CA))
	}
	var err error
	c.nc, err = nats.Connect(url, append(opts, nats.Timeout(time.Minute))...)
	if err != nil {
		t.Fatalf("connect as %s: %v", user, err)
	}
	t.Cleanup(c.nc.Close)
	return c
}

// flush returns when the server has read what was sent, and the client what it
// answered.
func (c *client) flush(t *testing.T) {
	t.Helper()
	if err := c.nc.FlushTimeout(time.Minute); err != nil {
		t.Fatal(err)
	}
}

func TestMatrix(t *testing.T) {
	doc, err := filepath.Abs("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	both(t, matrixOn)
	compareDoc(t, doc)
}

func matrixOn(t *testing.T, dir, url string) {
	bus := dial(t, dir, url, "bus")
	heard, err := bus.nc.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	bus.flush(t)
	for i, col := range columns {
		user, err := auth.UserName(col.role, col.name)
		if err != nil {
			t.Fatal(err)
		}
		c := dial(t, dir, url, user)
		for _, row := range matrix {
			want := row.may[i] == 'y'
			var arrived bool
			mark := fmt.Sprintf("from %s to %s", user, row.subject)
			if row.listen {
				sub, err := c.nc.SubscribeSync(row.subject)
				if err != nil {
					t.Fatal(err)
				}
				c.flush(t)
				concrete := strings.ReplaceAll(strings.ReplaceAll(row.subject, ">", "x"), "*", "x")
				if err := bus.nc.Publish(concrete, []byte(mark)); err != nil {
					t.Fatal(err)
				}
				bus.flush(t)
				c.flush(t)
				m, err := sub.NextMsg(time.Millisecond)
				arrived = err == nil && string(m.Data) == mark
				_ = sub.Unsubscribe() // of a refused one too
			} else {
				if err := c.nc.Publish(row.subject, []byte(mark)); err != nil {
					t.Fatal(err)
				}
				c.flush(t)
				bus.flush(t)
				for {
					m, err := heard.NextMsg(time.Millisecond)
					if err != nil {
						break
					}
					arrived = arrived || m.Subject == row.subject && string(m.Data) == mark
				}
			}
			refused := c.refused()
			if arrived != want || (len(refused) == 0) != want {
				t.Errorf("%s, %s (%s): arrived %v, refused %q; want it %s", user, row.what, row.subject, arrived, refused, map[bool]string{true: "allowed", false: "refused"}[want])
			}
		}
	}
}

const begin, end = "<!-- matrix: made by go test ./bus/auth -update -->\n", "<!-- end -->\n"

// compareDoc holds the table in the documentation to the one here.
func compareDoc(t *testing.T, path string) {
	t.Helper()
	var b strings.Builder
	b.WriteString("| may | subject |")
	for _, c := range columns {
		fmt.Fprintf(&b, " %s |", strings.TrimSpace(string(c.role)+" "+c.name))
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, row := range matrix {
		how := "publish"
		if row.listen {
			how = "subscribe"
		}
		fmt.Fprintf(&b, "| %s | %s `%s` |", row.what, how, row.subject)
		for _, c := range row.may {
			b.WriteString(map[rune]string{'y': " yes |", '-': " – |"}[c])
		}
		b.WriteString("\n")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	want := before + begin + b.String() + end + after
	if want == string(text) {
		return
	}
	if !*update {
		t.Errorf("the table in %s is not the one here (write it: go test ./bus/auth -update)", path)
		return
	}
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestStrangers has who has no credentials, or another installation's, refused.
func TestStrangers(t *testing.T) {
	dir, url := serve(t)
	ca := nats.RootCAs(filepath.Join(dir, "ca", "ca.pem"))
	if _, err := nats.Connect(url, ca, nats.Timeout(time.Minute)); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("without credentials: %v", err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := auth.Init(other, auth.Options{Hosts: []string{"h"}, MaxPayload: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := nats.Connect(url, ca, nats.UserCredentials(filepath.Join(other, "users", "bus.creds")), nats.Timeout(time.Minute)); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("with another installation's credentials: %v", err)
	}
	creds := nats.UserCredentials(filepath.Join(dir, "users", "bus.creds"))
	if _, err := nats.Connect(url, creds, nats.RootCAs(filepath.Join(other, "ca", "ca.pem"))); err == nil {
		t.Error("a server that another authority has signed for was believed")
	}
	if err := auth.Init(dir, auth.Options{Hosts: []string{"h"}}); err == nil {
		t.Error("an installation was overwritten")
	}
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil && !fi.IsDir() && fi.Mode().Perm()&0o077 != 0 && filepath.Ext(path) != ".pem" && !strings.Contains(path, "/data/") {
			t.Errorf("%s can be read by others: %v", path, fi.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestInitRefuses(t *testing.T) {
	for name, o := range map[string]auth.Options{
		"two servers": {Hosts: []string{"a", "b"}},
		"a host":      {Hosts: []string{"a b"}},
		"twice":       {Hosts: []string{"a", "b", "a"}},
		"a tenant":    {Hosts: []string{"a"}, Tenants: []string{"_registry"}},
	} {
		if err := auth.Init(filepath.Join(t.TempDir(), "x"), o); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	for _, c := range [][2]string{{"analyzer", "a.b"}, {"analyzer", ""}, {"user", "*"}, {"bus", "x"}, {"root", ""}} {
		if u, err := auth.UserName(auth.Role(c[0]), c[1]); err == nil {
			t.Errorf("%v is user %s", c, u)
		}
	}
}
