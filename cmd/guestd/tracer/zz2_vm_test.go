//go:build vm && linux

package tracer_test

import "testing"

func TestYY(t *testing.T) {
	m := start(t)
	for range 3 {
		t.Log(m.must(request{Op: "raw"}).Clock)
	}
}
