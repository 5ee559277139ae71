// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

func TestProfiles(t *testing.T) {
	t.Parallel()
	b := start(t)
	ctx := t.Context()
	if p, err := b.Profile(ctx, "amd64"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("nobody has said anything, and there is %+v, %v", p, err)
	}
	nobody := schemas.Profile{Schema: schemas.ProfileSchema, Name: "amd64", Expected: []string{}}
	some := nobody
	some.Expected = []string{"static", "yara"}
	for _, want := range []schemas.Profile{some, nobody} {
		if err := b.SetProfile(ctx, want); err != nil {
			t.Fatal(err)
		}
		got, err := b.Profile(ctx, "amd64")
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
		all, err := b.Profiles(ctx)
		if diff := cmp.Diff(map[string]schemas.Profile{"amd64": want}, all); diff != "" || err != nil {
			t.Errorf("all: %v (-want +got):\n%s", err, diff)
		}
	}
	for _, want := range []bool{true, false} {
		if there, err := b.ForgetProfile(ctx, "amd64"); there != want || err != nil {
			t.Errorf("forget: %v, %v", there, err)
		}
		if _, err := b.Profile(ctx, "amd64"); !errors.Is(err, bus.ErrNotFound) {
			t.Errorf("it is forgotten: %v", err)
		}
	}
	if all, err := b.Profiles(ctx); len(all) != 0 || err != nil {
		t.Errorf("all are forgotten: %v, %v", all, err)
	}
}

// TestProfileUnreadable wants what cannot be read told from what is not there.
func TestProfileUnreadable(t *testing.T) {
	t.Parallel()
	b := start(t)
	kv, err := b.JetStream().KeyValue(t.Context(), "PROFILES")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"{", "[]", "null", `{"schema":"petri.profile.v1","name":"amd64"}`, `{"schema":"petri.profile.v2","name":"amd64","expected_analyzers":[]}`} {
		if _, err := kv.Put(t.Context(), "amd64", []byte(text)); err != nil {
			t.Fatal(err)
		}
		if p, err := b.Profile(t.Context(), "amd64"); err == nil || errors.Is(err, bus.ErrNotFound) {
			t.Errorf("%s is read as %+v, %v", text, p, err)
		}
	}
	if err := b.JetStream().DeleteKeyValue(t.Context(), "PROFILES"); err != nil {
		t.Fatal(err)
	}
	if p, err := b.Profile(t.Context(), "amd64"); err == nil || errors.Is(err, bus.ErrNotFound) || !strings.Contains(err.Error(), "PROFILES") {
		t.Errorf("without a bucket: %+v, %v", p, err)
	}
}
