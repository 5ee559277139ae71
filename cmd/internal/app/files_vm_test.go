// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"testing"

	"github.com/petri-sandbox/petri/schemas"
)

// changes does to files what hides them from who looks at the end, and stays
// with one memfd open.
const changes = `#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
static int put(int fd, const char *s) { return write(fd, s, strlen(s)); }
int main(void)
{
	int fd = open("/tmp/gone", O_CREAT | O_WRONLY, 0755);
	put(fd, "deleted after it was closed"); close(fd); unlink("/tmp/gone");
	fd = open("/tmp/replaced", O_CREAT | O_WRONLY, 0644);
	put(fd, "replaced by a rename"); close(fd);
	fd = open("/tmp/new", O_CREAT | O_WRONLY, 0644);
	put(fd, "took its place"); close(fd); rename("/tmp/new", "/tmp/replaced");
	rename("/etc/protocols", "/tmp/moved");
	chmod("/etc/passwd", 0600); chown("/etc/group", 8, 8);
	unlink("/etc/services");
	fd = open("/etc/profile", O_WRONLY | O_APPEND); put(fd, "# more\n"); close(fd);
	fd = open("/tmp/open", O_CREAT | O_RDWR, 0600);
	put(fd, "unlinked and open"); unlink("/tmp/open");
	fd = memfd_create("payload", 0); put(fd, "open memfd");
	fflush(stdout);
	for (;;) pause();
}
`

// TestFiles checks what is told of files, and that the bytes of deleted ones are
// there.
func TestFiles(t *testing.T) {
	bin := build(t)
	data := filepath.Join(t.TempDir(), "data")
	r, _, code := detonate(t, bin, data, "--runtime", "3s", program(t, changes))
	if code != 0 || r.Outcome.Value != schemas.OutcomeCompleted {
		t.Errorf("exit code %d, outcome %+v", code, r.Outcome)
	}
	i := slices.IndexFunc(r.Artifacts, func(a schemas.Artifact) bool { return a.Kind == schemas.KindDrops })
	if i < 0 {
		t.Fatalf("no list of changed files: %+v", r.Artifacts)
	}
	get := func(d schemas.Digest) string { return run(t, bin+"/petri", "--data", data, "get", d.String()) }
	var list schemas.DropList
	if err := json.Unmarshal([]byte(get(r.Artifacts[i].SHA256)), &list); err != nil {
		t.Fatal(err)
	}
	find := func(path, change string) *schemas.DroppedFile {
		t.Helper()
		i := slices.IndexFunc(list.Files, func(f schemas.DroppedFile) bool { return f.Path == path && f.Change == change })
		if i < 0 {
			t.Errorf("%s is not listed as %s", path, change)
			return &schemas.DroppedFile{}
		}
		return &list.Files[i]
	}
	for _, tt := range []struct{ path, change, bytes string }{
		{"/tmp/gone", "deleted", "deleted after it was closed"},
		{"/tmp/replaced", "deleted", "replaced by a rename"},
		{"/tmp/replaced", "created", "took its place"},
		{"/tmp/open", "deleted", "unlinked and open"},
		{"/memfd:payload", "created", "open memfd"},
	} {
		f := find(tt.path, tt.change)
		if !f.Stored || f.SHA256 == nil {
			t.Errorf("%s: its bytes are not there: %+v", tt.path, f)
		} else if got := get(*f.SHA256); got != tt.bytes {
			t.Errorf("%s has %q, want %q", tt.path, got, tt.bytes)
		}
	}
	if f := find("/memfd:payload", "created"); len(f.OpenIn) != 1 {
		t.Errorf("who has the memfd open: %+v", f)
	}
	if f := find("/tmp/moved", "created"); f.From != "/etc/protocols" || f.Before != nil {
		t.Errorf("the renamed file: %+v", f)
	}
	if f := find("/etc/services", "deleted"); f.Before == nil || f.Before.SHA256 == nil || f.Type != "none" {
		t.Errorf("the deleted file: %+v", f)
	}
	if f := find("/etc/passwd", "attributes"); f.Mode != 0o600 || f.Before == nil || f.Before.Mode != 0o644 || f.Stored {
		t.Errorf("the file with another mode: %+v", f)
	}
	if f := find("/etc/group", "attributes"); f.UID != 8 || f.Before == nil || f.Before.UID != 0 {
		t.Errorf("the file with another owner: %+v", f)
	}
	if f := find("/etc/profile", "modified"); f.Before == nil || f.Before.SHA256 == nil || f.SHA256 == nil || *f.SHA256 == *f.Before.SHA256 {
		t.Errorf("the changed file: %+v", f)
	}
	for _, f := range list.Files {
		switch f.Path {
		case "/etc/hostname", "/etc/hosts", "/etc/machine-id", "/etc/resolv.conf", "/var/run/utmp":
			t.Errorf("what the sandbox wrote is listed: %+v", f)
		}
	}
}
