// SPDX-License-Identifier: Apache-2.0

// Package static says what a file is without running it: its hashes, how much
// like noise it is, and, of an ELF file, the identity that package elfid reads.
//
// It reads the file once from end to end, and the loaded segments of an ELF
// file once more, in constant memory.
package static

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/elfid"
)

const (
	// packed is the entropy from which code is taken for packed or encrypted.
	// Compiled code lies between 5.5 and 6.8.
	packed = 7.2
	// noise is the entropy of compressed or encrypted data.
	noise = 7.5
	// minNoise is how many bytes it takes to tell: a short range cannot have a
	// high entropy, nor does a high one mean much.
	minNoise = 4096
	// maxLoads is how many loaded segments are measured.
	maxLoads = 32
)

// Limits of the copy of an identity that goes into a finding.
const (
	briefList   = 64
	briefString = 256
)

// Analyzer implements [analyzers.Analyzer].
type Analyzer struct{}

var _ analyzers.Analyzer = Analyzer{}

// New returns an Analyzer.
func New() Analyzer { return Analyzer{} }

// Info implements [analyzers.Analyzer].
func (Analyzer) Info() analyzers.Info {
	return analyzers.Info{
		Name:    "static",
		Version: "1.1.1",
		Kinds:   []schemas.Kind{schemas.KindSample, schemas.KindDropped, schemas.KindExtracted},
		Memory:  64 << 20,
	}
}

// Analyze implements [analyzers.Analyzer].
func (Analyzer) Analyze(ctx context.Context, job analyzers.Job, emit analyzers.Emit) error {
	r, err := examine(ctx, job.Input)
	if err != nil {
		return err
	}
	if r.SHA256 != job.Artifact.SHA256 {
		return fmt.Errorf("the bytes have the digest %s, not the artifact's %s", r.SHA256, job.Artifact.SHA256)
	}
	for _, f := range findings(r) {
		if err := emitFinding(emit, r, f); err != nil {
			return err
		}
	}
	return analyzers.EmitJSON(emit, schemas.StaticSchema, r)
}

func examine(ctx context.Context, in *analyzers.Input) (*schemas.StaticResult, error) {
	r := &schemas.StaticResult{Schema: schemas.StaticSchema, Size: in.Size()}
	m5, s1, s256 := md5.New(), sha1.New(), sha256.New()
	p := newProfile(in.Size())
	if err := copyAll(ctx, io.MultiWriter(m5, s1, s256, p), in.Reader()); err != nil {
		return nil, err
	}
	r.MD5, r.SHA1, r.SHA256 = hex.EncodeToString(m5.Sum(nil)), hex.EncodeToString(s1.Sum(nil)), schemas.Digest(s256.Sum(nil))
	r.Entropy = p.entropy()
	var err error
	if r.Type, err = elfid.Classify(in, in.Size()); err != nil {
		return nil, err
	}
	if r.ELF, err = elfid.Read(in, in.Size()); errors.Is(err, elfid.ErrNotELF) {
		return r, nil
	} else if err != nil {
		return nil, err
	}
	return r, measure(ctx, in, r.ELF)
}

// copyAll copies until the end or until ctx is done.
func copyAll(ctx context.Context, w io.Writer, r io.Reader) error {
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf)
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read file: %w", err)
		}
	}
}

// measure fills in the entropy of the loaded segments, as long as they do not
// name more bytes than the file has.
func measure(ctx context.Context, in *analyzers.Input, id *schemas.ELFIdentity) error {
	left, loads := in.Size(), 0
	for i := range id.Segments {
		s := &id.Segments[i]
		if s.Type != "PT_LOAD" || s.FileSz == 0 || s.Offset >= uint64(in.Size()) {
			continue
		}
		n := int64(min(s.FileSz, uint64(in.Size())-s.Offset))
		if loads++; n > left || loads > maxLoads {
			return nil
		}
		left -= n
		var c counts
		if err := copyAll(ctx, &c, io.NewSectionReader(in, int64(s.Offset), n)); err != nil {
			return err
		}
		e := c.entropy()
		s.Entropy = &e
	}
	return nil
}

// finding is one that still lacks its encoded data.
type finding struct {
	schemas.Finding
	data any
}

func emitFinding(emit analyzers.Emit, r *schemas.StaticResult, f finding) error {
	x, err := analyzers.NewFinding(f.Kind, f.Title, f.Severity, f.data)
	if err != nil {
		return err
	}
	x.Confidence, x.Techniques, x.Evidence = f.Confidence, f.Techniques, f.Evidence
	if x.Evidence == nil {
		x.Evidence = []schemas.Evidence{{Artifact: &r.SHA256}}
	}
	return emit.Finding(x)
}

func findings(r *schemas.StaticResult) []finding {
	out := []finding{{
		Finding: schemas.Finding{Kind: "file_identity", Title: fmt.Sprintf("%s, %d bytes", r.Type.Description, r.Size), Severity: schemas.SeverityInfo},
		data:    schemas.FileIdentity{Size: r.Size, MD5: r.MD5, SHA1: r.SHA1, SHA256: r.SHA256, Entropy: r.Entropy.Whole, Type: r.Type},
	}}
	if r.ELF == nil {
		if r.Type.Description == "data" && r.Size >= minNoise && r.Entropy.Whole >= noise {
			out = append(out, finding{
				Finding: schemas.Finding{
					Kind: "high_entropy", Severity: schemas.SeverityInfo, Confidence: 60,
					Title: fmt.Sprintf("data of no known format that looks compressed or encrypted (%.2f bits per byte)", r.Entropy.Whole),
				},
				data: schemas.HighEntropy{Entropy: r.Entropy.Whole},
			})
		}
		return out
	}
	out = append(out, finding{
		Finding: schemas.Finding{Kind: "elf_identity", Title: identityTitle(r.ELF), Severity: schemas.SeverityInfo},
		data:    brief(r.ELF),
	})
	if f, ok := anomalies(r.ELF); ok {
		out = append(out, f)
	}
	for i, s := range r.ELF.Segments {
		if s.Entropy == nil || *s.Entropy < packed || s.FileSz < minNoise || s.Flags[2] != 'x' {
			continue
		}
		offset := int64(s.Offset)
		out = append(out, finding{
			Finding: schemas.Finding{
				Kind: "high_entropy", Severity: schemas.SeverityLow, Confidence: 70, Techniques: []string{"T1027.002"},
				Title:    fmt.Sprintf("executable segment %d looks packed or encrypted (%.2f bits per byte)", i, *s.Entropy),
				Evidence: []schemas.Evidence{{Artifact: &r.SHA256, Offset: &offset}},
			},
			data: schemas.HighEntropy{Entropy: *s.Entropy, Range: &schemas.ELFRange{Offset: offset, Size: int64(s.FileSz)}, Segment: &i},
		})
	}
	return out
}

func identityTitle(id *schemas.ELFIdentity) string {
	title := fmt.Sprintf("%s program for %d-bit %s-endian %s", id.Linkage, id.Class, id.Endianness, id.Machine)
	switch id.Linkage {
	case "none":
		title = fmt.Sprintf("%s file for %d-bit %s-endian %s", id.ObjectType, id.Class, id.Endianness, id.Machine)
	case "dynamic":
		title += fmt.Sprintf(", needs %d libraries", len(id.Needed))
	}
	return title
}

// brief is an identity that fits in a finding; the result document has it all.
func brief(id *schemas.ELFIdentity) schemas.ELFIdentity {
	b := *id
	b.Segments, b.Sections, b.Anomalies, b.Versions = nil, nil, nil, nil
	b.Interpreter, b.SOName = clip(b.Interpreter), clip(b.SOName)
	b.Needed, b.RPath, b.RunPath = clipAll(b.Needed), clipAll(b.RPath), clipAll(b.RunPath)
	return b
}

func clip(s string) string { return s[:min(len(s), briefString)] }

func clipAll(list []string) (out []string) {
	for _, s := range list[:min(len(list), briefList)] {
		out = append(out, clip(s))
	}
	return out
}

// evasive anomalies make tools see something else than Linux does, or nothing. What
// a file has that is merely cut off is none: shdr_outside, for the section headers
// are its last bytes, phdr_outside and segment_outside.
var evasive = []string{
	"class_mismatch", "data_mismatch", "shentsize_odd", "shstrndx_outside", "dynamic_offset", "dynamic_unmapped",
	"dynstr_unmapped", "entry_outside", "entry_not_executable", "interp_twice", "segment_wraps",
}

func anomalies(id *schemas.ELFIdentity) (finding, bool) {
	n := len(id.Anomalies)
	if n == 0 {
		return finding{}, false
	}
	f := finding{
		Finding: schemas.Finding{Kind: "elf_anomalies", Title: fmt.Sprintf("irregular headers: %s", id.Anomalies[0].Detail), Severity: schemas.SeverityLow},
		data:    schemas.ELFAnomalies{Anomalies: id.Anomalies},
	}
	if n > 1 {
		f.Title += fmt.Sprintf(" (and %d more)", n-1)
	}
	if slices.ContainsFunc(id.Anomalies, func(a schemas.ELFAnomaly) bool { return slices.Contains(evasive, a.Name) }) {
		f.Severity, f.Techniques = schemas.SeverityMedium, []string{"T1027"}
	}
	return f, true
}
