// SPDX-License-Identifier: Apache-2.0

package app_test

import (
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/cmd/internal/app"
)

func TestCheckRoom(t *testing.T) {
	c := app.Config{Data: t.TempDir() + "/not/yet/made", Memory: 1 << 20}
	if free, err := app.FreeSpace(c.Data); err != nil || free <= 0 {
		t.Fatalf("%d bytes are free, %v", free, err)
	}
	c.Memory = 1 << 60
	err := c.CheckRoom()
	if err == nil || !strings.Contains(err.Error(), "make room") || !strings.Contains(err.Error(), c.Data) {
		t.Errorf("a guest of 1 EiB fits on the disk: %v", err)
	}
	c.NATS = "nats://elsewhere.example"
	if err := c.CheckRoom(); err != nil {
		t.Errorf("the disk of another host is judged by ours: %v", err)
	}
}
